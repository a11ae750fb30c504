"""Every error this package raises on purpose: one root, a stable code each, and a page in docs/reference/errors.md.

The docstring of a class is its default message. A message says what happened, why, and what to do. Subclasses keep
the built-in base that a caller would expect.
"""

import difflib
import enum
import itertools
from collections.abc import Iterable, Sequence
from typing import ClassVar


def suggest_closest(name: str, known: Iterable[str]) -> str:
    """``; did you mean x?`` for the known name most like ``name``, or nothing: the end of a clause in a message."""
    among = itertools.islice(known, 1000)  # comparing costs some 10 us a name, and a pipeline may have many wrong names
    matches = difflib.get_close_matches(name, among, n=1)
    return f"; did you mean {matches[0]}?" if matches else ""


def format_problems(heading: str, problems: Sequence[str]) -> str:
    """One problem behind the heading, or several below it, one a line."""
    if len(problems) == 1:
        return f"{heading}: {problems[0]}"
    return "\n- ".join([f"{heading}:", *problems])


class Remedy(enum.Enum):
    """What to do about an error, where a program does it by a call: its value says so in Python.

    The command line has words of its own for each.
    """

    LIST_RUNS = "dag.runs() lists those it has."
    NAME_NODE = "Start a new run, wait for this one to end, or name the node to begin at: retry(from_node=...)."
    UNDO_AGAIN = "Mend the cause and call run.rollback(), which tries again, or start a new run."
    WAIT_FOR_ROLLBACK = "Wait until its rollback is over (run.wait(rollback=True)), then retry it."
    WAIT_FOR_FINALISERS = "Wait until they are over (run.wait(rollback=True)), then undo it."
    LOOK_AT_ROLLBACK = "run.rollback_status tells how far it is."
    LOOK_AT_RUN = "Wait longer, or look at run.snapshot() and the workers' logs."
    SAY_AGE = "Say how old they must be: older_than, in seconds or as a timedelta."


class DagabaazError(Exception):
    """Something went wrong in dagabaaz-celery.

    ``message`` is ``facts`` and the ``remedy`` in words, where there is one.
    """

    code: ClassVar[str] = "DGB000"

    def __init__(self, message: str = "", *, remedy: Remedy | None = None) -> None:
        self.facts = message or (type(self).__doc__ or "").strip()
        self.remedy = remedy
        self.message = self.facts if remedy is None else f"{self.facts} {remedy.value}"
        super().__init__(self.message)

    def __str__(self) -> str:
        return f"[{self.code}] {self.message}"


class ConfigurationError(DagabaazError, ValueError):
    """A setting is missing or wrong."""

    code = "DGB101"


class StoreUrlMissing(ConfigurationError):
    """The app has a real broker and no store."""

    code = "DGB102"


class StoreError(DagabaazError):
    """The store cannot be used."""

    code = "DGB201"


class StoreSchemaError(StoreError):
    """The store's schema is not the one this release works with."""

    code = "DGB202"


class StoreMismatch(StoreError):
    """A message speaks of a run in another store than this worker's."""

    code = "DGB203"


class StoreUnavailable(StoreError, ConnectionError):
    """The store's database is away; ``in_doubt``: what was asked of it may have been done all the same."""

    code = "DGB204"

    def __init__(self, message: str = "", *, in_doubt: bool = False) -> None:
        self.in_doubt = in_doubt
        super().__init__(message)


class StoreReadOnly(StoreError, TypeError):
    """The store's rows are shown here, and not changed."""

    code = "DGB205"


class PipelineError(DagabaazError, ValueError):
    """A pipeline definition has problems; ``problems`` lists every one."""

    code = "DGB301"

    def __init__(self, message: str = "", problems: Sequence[str] = ()) -> None:
        self.problems = list(problems)
        super().__init__(message)


class UnknownPipeline(DagabaazError, LookupError):
    """No pipeline has this name."""

    code = "DGB302"


class PluginConflict(DagabaazError, ValueError):
    """Two different plugins have one name."""

    code = "DGB303"


class ActionConflict(DagabaazError, ValueError):
    """Two different actions have one name, or an action has two rollbacks."""

    code = "DGB304"


class UnknownRun(DagabaazError, LookupError):
    """The store has no such run."""

    code = "DGB401"


class RunPruned(UnknownRun):
    """Retention has deleted the run, or is at it."""

    code = "DGB409"


class UnknownNode(DagabaazError, LookupError):
    """The run has no such node."""

    code = "DGB402"


class KeyConflict(DagabaazError, ValueError):
    """A run with this key exists with other input."""

    code = "DGB403"


class RunInputError(DagabaazError, ValueError):
    """A run's input is not what its pipeline takes; ``problems`` lists every one."""

    code = "DGB404"

    def __init__(self, message: str = "", problems: Sequence[str] = ()) -> None:
        self.problems = list(problems)
        super().__init__(message)


class RunStateError(DagabaazError, RuntimeError):
    """The run is in a state in which this cannot be done."""

    code = "DGB405"


class WaitTimeout(DagabaazError, TimeoutError):
    """The run did not end in time; it goes on."""

    code = "DGB406"


class WaitRefused(DagabaazError, RuntimeError):
    """Waiting here could never end."""

    code = "DGB407"


class RemoteActionError(DagabaazError, RuntimeError):
    """An action of a flow failed in a worker, with an exception that cannot be made again here.

    ``type`` is the name of the exception's class, ``traceback`` its text, ``node`` the slug of the action's node; None
    when no action is to blame.
    """

    code = "DGB408"

    def __init__(self, message: str = "", *, type: str = "", traceback: str = "", node: str | None = None) -> None:
        self.type = type
        self.traceback = traceback
        self.node = node
        super().__init__(message)


class RunSelectionError(DagabaazError, ValueError):
    """A call on many runs does not say which, or names what no run can be; ``problems`` lists every one."""

    code = "DGB410"

    def __init__(self, message: str = "", problems: Sequence[str] = (), *, remedy: Remedy | None = None) -> None:
        self.problems = list(problems)
        super().__init__(message, remedy=remedy)


class TransactionOpen(DagabaazError, RuntimeError):
    """A transaction of the app is open in which this cannot be done."""

    code = "DGB411"


class TaskInputError(DagabaazError, ValueError):
    """A plugin's parameters cannot be filled from its task's input."""

    code = "DGB501"


class ResultError(DagabaazError, TypeError):
    """A plugin's result cannot become artifacts."""

    code = "DGB502"


class MissingFile(DagabaazError, FileNotFoundError):
    """A file that a task needs is not there."""

    code = "DGB503"


class LimitExceeded(DagabaazError, ValueError):
    """Something is larger than its limit."""

    code = "DGB504"


class MissingSecret(DagabaazError, LookupError):
    """A secret that a node names could not be had."""

    code = "DGB506"


class SecretExposed(DagabaazError, ValueError):
    """Something would have shown a secret."""

    code = "DGB507"


class NotJson(DagabaazError, ValueError):
    """A value cannot be kept as JSON; ``problems`` lists every one, with its path."""

    code = "DGB505"

    def __init__(self, message: str = "", problems: Sequence[str] = ()) -> None:
        self.problems = list(problems)
        super().__init__(message)

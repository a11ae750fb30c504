"""What the store hands out: rows as frozen values, and what a committed transaction still owes the world."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from dagabaaz_celery.constants import RunStatus
from dagabaaz_celery.models import TaskArtifact

OwedKind = Literal["callback", "cancel", "launch", "epilogue"]
OWED_KINDS: tuple[OwedKind, ...] = ("callback", "cancel", "launch", "epilogue")
#: What goes on after a run's end: its last bodies are waited for, its tasks are undone, its finalisers run.
Epilogue = Literal["waiting", "rollback", "finalisers"]
RollbackStatus = Literal["none", "running", "done", "failed"]
#: How a body's result is given back by ``run.result``: nothing, one value, or a list.
ResultShape = Literal["none", "one", "many"]
#: The name among a run's options under which observers keep what travels with it; no option of Celery's.
CARRIED = "dagabaaz_carried"
#: What an artifact was before it became one: its plain value is rebuilt from this.
ArtifactShape = Literal["file", "record", "scalar"]


@dataclass(frozen=True, slots=True)
class RunRow:
    """One run."""

    id: str
    pipeline: str
    version: int | None
    definition_hash: str
    key: str | None
    status: RunStatus
    paused: bool
    generation: int
    nodes_total: int
    nodes_done: int
    error: dict[str, Any] | None
    options: dict[str, Any]
    created_at: int
    ended_at: int | None
    rollback_status: RollbackStatus
    epilogue: Epilogue | None
    timeout: int | None
    #: When retention gave the run up: of what it had, something or everything is gone.
    pruned_at: int | None = None


@dataclass(frozen=True, slots=True)
class NodeRow:
    """One node of a run; with index ``~i`` the undoing of node ``i``."""

    index: int
    status: str
    tasks_total: int
    tasks_done: int
    launch_cursor: int = 0
    opened_at: int | None = None
    closed_at: int | None = None


@dataclass(frozen=True, slots=True)
class Dispatch:
    """A task to publish.

    ``options`` are the Celery options given at its run's start; ``delay`` are the seconds until it is due.
    """

    attempt_id: str
    task_id: str
    run_id: str
    node_index: int
    definition_hash: str
    retries: int
    options: dict[str, Any]
    delay: float = 0.0


@dataclass(frozen=True, slots=True)
class Published:
    """An attempt that was sent to a queue, and when; microseconds by the database's clock."""

    dispatch: Dispatch
    queue: str
    queued_at: int
    claimed_at: int | None


@dataclass(frozen=True, slots=True)
class Attempt:
    """The attempt at a task that an outcome speaks of; ``token`` None for a task that cannot be fenced."""

    attempt_id: str
    token: str | None
    task_id: str
    run_id: str
    node_index: int
    ordinal: int
    number: int
    retries: int
    recoveries: int
    worker_id: str | None
    claimed_at: int | None
    input_artifact_id: str | None
    origin_artifact_id: str | None


@dataclass(frozen=True, slots=True)
class AttemptContext:
    """An attempt, what its run was started from, and its input artifact.

    ``left`` tells how many tasks of its node were not done when it was read, itself among them.
    """

    attempt: Attempt
    definition_hash: str
    left: int
    artifact: TaskArtifact | None


@dataclass(frozen=True, slots=True)
class Owed:
    """Something to be done after a commit, at least once: a callback, a cancellation, the rest of a wide launch.

    Or an ``epilogue``: what follows the run's end once its last body has ended.
    """

    id: str
    run_id: str
    kind: OwedKind
    generation: int
    node_index: int
    status: RunStatus
    tries: int


@dataclass(frozen=True, slots=True)
class NewArtifact:
    """An artifact that a body produced, checked and ready to be stored; ``metadata_json`` is its metadata's text."""

    artifact: TaskArtifact
    shape: ArtifactShape
    metadata_json: str


def plain_value(artifact: TaskArtifact, shape: str) -> Any:
    """What a body returned, from the artifact that it became."""
    if shape == "scalar":
        return artifact.metadata["value"]
    if shape == "record":
        return dict(artifact.metadata)
    return artifact


def to_result(values: list[Any], shape: str | None) -> Any:
    """What a body returned, from the values that became artifacts."""
    if shape == "none":
        return None
    return values[0] if shape == "one" else values


#: The type of a task's or run's error that took longer than it may.
DEADLINE_EXCEEDED = "DeadlineExceeded"


@dataclass(frozen=True, slots=True)
class TaskError:
    """Why a task ended badly.

    ``module`` and ``qualname`` say where an exception's class is defined, empty where there was no exception. ``args``
    are what the class makes the same exception of; None where JSON cannot hold them, or they may not be kept.
    """

    type: str
    message: str
    traceback: str = ""
    module: str = ""
    qualname: str = ""
    args: list[Any] | None = field(default=None, hash=False)


@dataclass(slots=True)
class Aftermath:
    """What is to be done once the transaction has committed; the sweep does it if this process dies first."""

    publish: list[Dispatch] = field(default_factory=list)
    owed: list[Owed] = field(default_factory=list)
    #: Of a cancellation: whether it was this one that ended the run.
    ended_run: bool = False
    #: What observers are told: the run, whether it started here, the nodes that closed here, whether it ended here.
    run_id: str = ""
    started: bool = False
    closed: list[int] = field(default_factory=list)
    #: Of a launch of which something is left: (input artifact, origin) of all its tasks.
    items: Sequence[tuple[str | None, str | None]] | None = None

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to do and nothing to tell, as after most tasks of a wide node."""
        return not (self.publish or self.owed or self.started or self.closed)

    @property
    def has_end(self) -> bool:
        """Whether the run ended in this transaction."""
        return any(owed.kind == "callback" for owed in self.owed)


@dataclass(frozen=True, slots=True)
class ClaimRefused:
    """Why a message must not start a body."""

    attempt_id: str
    reason: str

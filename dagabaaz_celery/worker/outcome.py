"""How attempts end: the one handler behind the plugin wrapper and behind Celery's signals."""

import json
import logging
import mmap
import random
import threading
import time
import traceback
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, TypeVar

from celery.exceptions import Ignore, Reject
from celery.worker import state as worker_state

from dagabaaz_celery.constants import TaskStatus
from dagabaaz_celery.json_door import check_json
from dagabaaz_celery.stores.sql.outages import CommitUnanswered, describe_outage, is_outage
from dagabaaz_celery.stores.sql.records import DEADLINE_EXCEEDED, Aftermath, NewArtifact, ResultShape, TaskError
from dagabaaz_celery.stores.sql.store import SqlStore, Work
from dagabaaz_celery.worker.observers import Observers, tell_of_loss

logger = logging.getLogger(__name__)
T = TypeVar("T")

_MAX_PAUSE_SECONDS = 5.0
#: Seconds that a task which no live worker knows is offered again and again.
_UNKNOWN_GRACE = 600.0
#: What is kept of an error, in characters.
_MAX_TRACEBACK_CHARS = 20_000
_MAX_MESSAGE_CHARS = 4_000
_MAX_TYPE_CHARS = 200
_MAX_ARGS_BYTES = 4_000
_MAX_ARGS_DEPTH = 8
#: Looked at beyond those bounds, so that no part of a secret is left where a text is cut.
_MARGIN_CHARS = 10_000


class OutcomeHandler:
    """Records outcomes, waits out a database that is away, and has what follows the commit done.

    ``unknown_pause`` are the seconds between two tries to find a worker that knows a task.
    """

    def __init__(
        self,
        store: SqlStore,
        settle: Callable[[Aftermath], None],
        *,
        max_recoveries: int,
        unknown_pause: float,
        observers: Observers,
    ) -> None:
        self._store = store
        self._settle = settle
        self._max_recoveries = max_recoveries
        self._unknown_pause = unknown_pause
        self._observers = observers
        self._unknown_since: dict[str, float] = {}
        self.refused = 0

    def complete(self, work: Work, artifacts: list[NewArtifact], shape: ResultShape) -> bool:
        """The body succeeded. False when the attempt was no longer current: its outcome was refused."""
        return self._record(work, "success", lambda: self._store.complete(work, artifacts, shape))

    def fail(self, work: Work, error: TaskError, *, began: bool = True) -> bool:
        """The body failed, or could not begin."""
        return self._record(work, "failure", lambda: self._store.fail(work, error, began=began))

    def cancel(self, work: Work, error: TaskError) -> bool:
        """Somebody revoked the task in Celery, or it expired."""
        return self._record(work, "cancellation", lambda: self._store.fail(work, error, TaskStatus.CANCELLED))

    def expire(self, work: Work, timeout: float) -> bool:
        """The body took longer than its node allows; whether it still runs is another matter."""
        return self.fail(work, describe_deadline(timeout))

    def retry(self, work: Work, *, delay: float, retries: int, error: TaskError) -> bool:
        """The body asked for another attempt."""
        return self._record(
            work, "retry", lambda: self._store.retry_attempt(work, delay=delay, retries=retries, error=error)
        )

    def rescue(self, work: Work, reason: TaskError) -> bool:
        """The attempt was lost with its worker."""
        won = self._record(work, "rescue", lambda: self._store.rescue(work, reason, self._max_recoveries))
        if won and self._observers:
            self._observers.tell("rescued", work)
            self.report_loss(work, reason)
        return won

    def report_loss(self, work: Work, error: TaskError) -> None:
        """Tell observers of an attempt that ended with its process, from where its body could not."""
        if self._observers:
            tell_of_loss(self._observers, self._store, work, error)

    def return_unknown(self, attempt_id: str, name: str, known_to: list[str]) -> None:
        """A worker got a task that it does not know: owed again for a while, then failed."""
        now = time.monotonic()
        # Forgets what it has not heard of for as long again: an attempt is refused many times within its grace.
        self._unknown_since = {id_: at for id_, at in self._unknown_since.items() if now - at < 2 * _UNKNOWN_GRACE}
        since = self._unknown_since.setdefault(attempt_id, now)
        if known_to or now - since < _UNKNOWN_GRACE:
            wait_out(lambda: self._store.return_unknown(attempt_id, self._unknown_pause))
            return
        workers = ", ".join(f"{worker.hostname} ({worker.version})" for worker in self._store.list_workers()) or "none"
        message = (
            f"no live worker knows the task {name!r} (asked for {_UNKNOWN_GRACE / 60:.0f} minutes; live workers: "
            f"{workers}). Deploy the plugin to a worker of its queue, then retry the run."
        )
        self.fail_attempt(attempt_id, TaskError("UnknownTask", message))

    def fail_attempt(self, attempt_id: str, error: TaskError) -> bool:
        """Like ``fail``, of an attempt known by its id only; False when it is not current."""
        work = wait_out(lambda: self._store.find_work(attempt_id))
        return work is not None and self.fail(work, error)

    def _record(self, work: Work, what: str, transition: Callable[[], Aftermath | None]) -> bool:
        aftermath = wait_out(transition)
        if aftermath is None:
            self.refused += 1
            logger.warning(
                "the %s of attempt %s (task %s, run %s) was refused: the attempt is not current any more",
                what,
                work.attempt.attempt_id,
                work.attempt.task_id,
                work.attempt.run_id,
            )
            return False
        self._settle(aftermath)
        return True


def describe_deadline(timeout: float) -> TaskError:
    """Why an attempt ended whose node's timeout (in seconds) was over."""
    return TaskError(DEADLINE_EXCEEDED, f"the body took longer than its node's timeout of {timeout:g} s")


def describe_error(error: BaseException, redact: Callable[[str], str] = str) -> TaskError:
    """What is kept of an exception, all of it within bounds; ``redact`` takes the secrets out of its texts.

    Arguments in which a secret shows are not kept at all.
    """
    message = redact(_read_message(error)[: _MAX_MESSAGE_CHARS + _MARGIN_CHARS])[:_MAX_MESSAGE_CHARS]
    text = _format_traceback(error)
    if len(text) > _MAX_TRACEBACK_CHARS:
        half = _MAX_TRACEBACK_CHARS // 2
        head, tail = redact(text[: half + _MARGIN_CHARS])[:half], redact(text[-half - _MARGIN_CHARS :])[-half:]
        text = f"{head}\n... {len(text) - 2 * half} characters left out ...\n{tail}"
    else:
        text = redact(text)
    kind = type(error)
    return TaskError(
        type=kind.__name__[:_MAX_TYPE_CHARS],
        message=message,
        traceback=text,
        module=str(kind.__module__)[:_MAX_TYPE_CHARS],
        qualname=kind.__qualname__[:_MAX_TYPE_CHARS],
        args=_read_args(error, redact),
    )


# An exception's own code is the user's: it must not cost the run its end.


def _read_message(error: BaseException) -> str:
    try:
        return str(error)
    except Exception as second:
        return f"<no message: its __str__ raised {type(second).__name__}>"


def _format_traceback(error: BaseException) -> str:
    try:
        return "".join(traceback.format_exception(error))
    except Exception as second:
        return f"<no traceback: reading it raised {type(second).__name__}>"


def _read_args(error: BaseException, redact: Callable[[str], str]) -> list[Any] | None:
    """What the exception's class makes the same one of, as pickle would; None where that is not JSON."""
    try:
        made_of: Any = error.__reduce__()
        if made_of[0] is not type(error):
            return None
        args = made_of[1]
        text = check_json(list(args), "args", max_bytes=_MAX_ARGS_BYTES, max_depth=_MAX_ARGS_DEPTH)
        kept: list[Any] = json.loads(text)
        # Escapes would hide the end of a secret from who reads the JSON text alone.
        is_safe = redact(text) == text and redact(str(args)) == str(args)
        return kept if is_safe and kept == list(args) else None
    except Exception:  # with args that its own code makes, it is described without
        return None


def explain_no_outcome(error: Ignore | Reject) -> TaskError:
    """What a body did that raised one of Celery's orders to forget its task."""
    message = f"the body raised Celery's {type(error).__name__}, which leaves no outcome; raise an error or return"
    return TaskError(type(error).__name__, message)


def seconds_until(when: datetime | float | None) -> float:
    """Seconds from now to a moment, or a countdown as it is; never negative. A moment without a zone is UTC."""
    if isinstance(when, datetime):
        aware = when if when.tzinfo else when.replace(tzinfo=UTC)
        when = (aware - datetime.now(UTC)).total_seconds()
    return max(float(when or 0), 0.0)


def ends_process(error: BaseException) -> bool:
    """Whether what a body raised ends its process, which others then take over; in another thread it ends the body."""
    is_main = threading.current_thread() is threading.main_thread()
    return is_main and isinstance(error, (SystemExit, KeyboardInterrupt))


def tells_worker_to_end(error: BaseException) -> bool:
    """Whether Celery's own signal handlers raised this, out of a body in the main thread that they interrupted.

    So it happens to a solo worker that is shut down cold: its pool cannot do what the handler asks of it.
    """
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_globals.get("__name__") == "celery.apps.worker":
            return True
        trace = trace.tb_next
    return False


def wait_out(call: Callable[[], T], *, give_up_after: float | None = None) -> T:
    """Make a database call, waiting with growing, jittered pauses while the database is away.

    Without ``give_up_after`` (seconds) the wait ends only when the worker is told to stop; then the error is raised.
    Nor does it give up while a commit is unanswered: who asks with the same words learns whether it was made.
    """
    started = time.monotonic()
    pause = 0.1
    in_doubt = False
    while True:
        try:
            return call()
        except Exception as error:
            waited = time.monotonic() - started
            in_doubt = in_doubt or isinstance(error, CommitUnanswered)
            gives_up = give_up_after is not None and waited > give_up_after and not in_doubt
            if not is_outage(error) or stop_flag.is_raised() or gives_up:
                raise
            logger.warning("the database is away, waiting %.1f s: %s", pause, describe_outage(error))
        _nap.wait(pause * random.uniform(0.5, 1.5))  # noqa: S311  # jitter, not a secret
        pause = min(pause * 2, _MAX_PAUSE_SECONDS)


class _StopFlag:
    """One byte that a worker's main process shares with its pool: Celery tells only the former that it is to stop."""

    def __init__(self) -> None:
        self._shared: mmap.mmap | None = None

    def share(self) -> None:
        """Lower the flag; the processes that are forked from now on see it raised."""
        self._shared = mmap.mmap(-1, 1)

    def raise_(self) -> None:
        """The worker was told to stop."""
        if self._shared is not None:
            self._shared[0] = 1

    def is_raised(self) -> bool:
        """Whether this worker was told to stop."""
        # Celery's flags are exit codes: 0 is an order to stop, too.
        told = (worker_state.should_terminate, worker_state.should_stop)
        if any(flag is not None and flag is not False for flag in told):
            return True
        return self._shared is not None and self._shared[0] == 1


#: Whether this worker is stopping.
stop_flag = _StopFlag()


_nap = threading.Event()

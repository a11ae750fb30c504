"""The wrapper around a plugin's ``run``: claim, body, outcome; and around its ``retry``.

It does nothing for a call without our message header, so that a task's other callers are unaffected. The outcome is
committed here, inside the task, where a crash or an outage can still be answered: what a signal handler raises is
swallowed by Celery, and the message would be gone.
"""

import functools
import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import datetime
from pathlib import Path
from typing import Any

from celery import Task
from celery.exceptions import Ignore, MaxRetriesExceededError, Reject, Retry, SoftTimeLimitExceeded
from celery.utils.serialization import raise_with_context

from dagabaaz_celery.context import PluginContext
from dagabaaz_celery.errors import MissingFile, StoreMismatch, TaskInputError, TransactionOpen
from dagabaaz_celery.models import DagNode
from dagabaaz_celery.pipeline import Definition
from dagabaaz_celery.stores.sql.engines import describe_url
from dagabaaz_celery.stores.sql.outages import DATABASE_ERRORS, is_outage
from dagabaaz_celery.stores.sql.records import ClaimRefused, NewArtifact, ResultShape, TaskError, plain_value
from dagabaaz_celery.stores.sql.store import Claimed, Work
from dagabaaz_celery.stores.sql.tables import new_id
from dagabaaz_celery.worker.active import (
    Active,
    AskedRetry,
    Throttle,
    current_work,
    find_active,
    redact_current,
    running,
)
from dagabaaz_celery.worker.observers import Body
from dagabaaz_celery.worker.outcome import (
    describe_deadline,
    describe_error,
    ends_process,
    explain_no_outcome,
    seconds_until,
    tells_worker_to_end,
    wait_out,
)
from dagabaaz_celery.worker.publish import HEADER
from dagabaaz_celery.worker.registry import Plugin
from dagabaaz_celery.worker.results import ArtifactDoor
from dagabaaz_celery.worker.runtime import Runtime
from dagabaaz_celery.worker.secrets import Secrets

logger = logging.getLogger(__name__)

#: A claim that cannot reach the database gives its message back after so many seconds.
_CLAIM_PATIENCE = 30.0
#: A message that is given back comes again at once: this keeps it from spinning.
_REQUEUE_PAUSE = 1.0
_UNOBSERVED = nullcontext()
#: What a request has of the wrapper's calls: None for each that began, or why it refused to.
_BEGINNINGS = "dagabaaz_beginnings"


class AttemptSuperseded(Ignore):  # type: ignore[misc]  # Celery ships no types
    """Raised out of a body whose next attempt is recorded: Celery then acknowledges and stores nothing."""

    def __init__(self, message: str, reason: TaskError | None = None) -> None:
        super().__init__(message)
        self.reason = reason

    def __reduce__(self) -> tuple[Any, ...]:
        return AttemptSuperseded, self.args  # a pool's process hands it to the main one, which needs no reason


def wrap_plugin(runtime: Runtime, plugin: Plugin) -> None:
    """Replace ``run`` and ``retry`` of a finalized task."""
    task = plugin.task
    body, celery_retry = task.run, task.retry

    @functools.wraps(body)
    def run(*args: Any, **kwargs: Any) -> Any:
        header = read_header(task.request)
        if header is None or _is_inside(task):  # a body that calls its own task directly shares its request
            return body(*args, **kwargs)
        return Execution(runtime, plugin, body).run(header)

    @functools.wraps(celery_retry)
    def retry(*args: Any, **kwargs: Any) -> Any:
        active = find_active()
        if active is None or not _is_inside(task):
            return celery_retry(*args, **kwargs)
        return retry_in_run(runtime, task, active, *args, **kwargs)

    run.dagabaaz_wrapped = True  # type: ignore[attr-defined]
    task.run, task.retry = run, retry


def is_wrapped(task: Task) -> bool:
    """Whether ``wrap_plugin`` replaced this task's ``run``."""
    return getattr(task.run, "dagabaaz_wrapped", False)


def read_header(request: Any) -> dict[str, Any] | None:
    """What our publisher put into a message; None for a call from elsewhere."""
    found = request.get(HEADER)
    if found is None:  # an eager call keeps its headers together
        found = (request.get("headers") or {}).get(HEADER)
    return found if isinstance(found, dict) else None


def expect_begin(task: Task) -> None:
    """Have the wrapper note on the task's current request that it was called."""
    # A list, as Task.__call__ hands on a copy of the request.
    setattr(task.request, _BEGINNINGS, [])


def explain_no_begin(task: Task) -> TaskError | None:
    """Why nothing was begun for a request that ended well; None where the wrapper did begin, or none was expected.

    A task class may keep an error of ours to itself, or return from its ``__call__`` without calling anything.
    """
    beginnings: list[TransactionOpen | None] = task.request.get(_BEGINNINGS, [None])
    if not beginnings:
        return TaskError("BodyNotCalled", f"the class of task {task.name!r} returned without calling the task's body")
    return None if beginnings[0] is None else describe_error(beginnings[0])


def _is_inside(task: Task) -> bool:
    """Whether this thread is in the body that the task's current request runs."""
    work = current_work()
    return work is not None and work.attempt.attempt_id == task.request.id


class Execution:
    """One message of a wrapped plugin, from claim to outcome."""

    def __init__(self, runtime: Runtime, plugin: Plugin, body: Callable[..., Any]) -> None:
        self._runtime = runtime
        self._plugin = plugin
        self._body = body
        self._attempt_id = str(plugin.task.request.id)
        self._secrets = Secrets(runtime.secret_resolver)
        self._has_begun = False
        self._header: dict[str, Any] = {}

    def run(self, header: dict[str, Any]) -> Any:
        """The body's plain result, for an explicit result backend; None where results are ignored."""
        self._header = header
        self._refuse_other_store(header)
        refusal = self._find_refusal()
        self._plugin.task.request.get(_BEGINNINGS, []).append(refusal)
        if refusal is not None:
            raise refusal
        claimed = self._claim()
        try:
            return self._run_claimed(claimed)
        except BaseException as error:
            shown = self._secrets.shield(error)
            if shown is error:
                raise
        raise shown  # out here, so that the error which shows a secret is no part of it

    def _run_claimed(self, claimed: Claimed) -> Any:
        work = claimed.work
        door = ArtifactDoor(self._runtime.settings, self._plugin.info.name, self._secrets)
        active = Active(work, self._node_of(work).slug, self._secrets)
        try:
            with running(active), self._observe(work):
                result = self._call_body(claimed, door)
                artifacts, shape = door.take_result(result)
        except AttemptSuperseded:
            self._record_asked_retry(active)
            raise
        except (Ignore, Reject) as error:
            self._give_way_to_retry(active, error)
            self._runtime.outcome.fail(work, explain_no_outcome(error))
            raise
        except Retry as error:
            self._record_raised_retry(work, error)
        except BaseException as error:
            if ends_process(error):
                raise
            self._give_way_to_retry(active, error)
            if tells_worker_to_end(error):
                reason = TaskError("WorkerLost", f"attempt {work.attempt.number} was lost: its worker was told to quit")
                self._runtime.outcome.rescue(work, reason)
                raise Ignore("the worker was told to quit") from error
            if not self._fail(work, error):
                raise Ignore("the attempt is not current any more") from error
            if isinstance(error, Exception) and not isinstance(error, MemoryError):
                raise
            # Celery would never end a task that raised no Exception, and ends its whole worker for a MemoryError.
            raise RuntimeError(f"the body raised {type(error).__name__}: {describe_error(error).message}") from error
        self._give_way_to_retry(active)
        if not self._complete(work, artifacts, shape):
            raise Ignore("the attempt is not current any more")
        if self._plugin.task.ignore_result:
            return None
        values = [plain_value(new.artifact, new.shape) for new in artifacts]
        return values if shape == "many" else (values[0] if values else None)

    def _complete(self, work: Work, artifacts: list[NewArtifact], shape: ResultShape) -> bool:
        try:
            return self._runtime.outcome.complete(work, artifacts, shape)
        except Exception as error:
            if is_outage(error):
                raise self._give_back(error) from error
            self._fail(work, error)  # something the database does not take
            raise

    def _fail(self, work: Work, error: BaseException) -> bool:
        try:
            return self._runtime.outcome.fail(work, self._describe(work, error), began=self._has_begun)
        except Exception as outage:
            if is_outage(outage):
                raise self._give_back(outage) from outage
            raise

    def _describe(self, work: Work, error: BaseException) -> TaskError:
        definition = self._runtime.store.definition_of(work.definition_hash).definition
        timeout = definition.timeout_of(work.attempt.node_index)
        if timeout is not None and isinstance(error, SoftTimeLimitExceeded):
            return describe_deadline(timeout)
        return describe_error(error, self._secrets.redact)

    def _give_back(self, outage: Exception) -> Reject:
        """The worker stops while the database is away: the work is not failed, others do it again."""
        logger.warning(
            "attempt %s of run %s ends without a database to tell: its message goes back",
            self._attempt_id,
            self._header.get("run"),
        )
        return Reject(outage, requeue=True)

    def _refuse_other_store(self, header: dict[str, Any]) -> None:
        ours, theirs = self._runtime.store.id, header.get("store")
        if theirs == ours:
            return
        refusal = StoreMismatch(
            f"Task {self._attempt_id} belongs to store {theirs} and this worker uses store {ours} "
            f"({describe_url(self._runtime.store.database.url)}): its run cannot be advanced here. Set "
            "dagabaaz_store_url to the same database in every process of this broker. The message goes back."
        )
        logger.critical("%s", refusal)
        time.sleep(_REQUEUE_PAUSE)
        raise Reject(refusal, requeue=True)

    def _find_refusal(self) -> TransactionOpen | None:
        """In an open transaction nothing is begun: what is recorded of the attempt would come and go with that."""
        if not self._runtime.store.is_in_apps_transaction or self._plugin.task.request.is_eager:
            return None
        return TransactionOpen(
            f"Task {self._plugin.task.name!r} was begun inside a transaction on the store's database, as a task "
            "class does whose __call__ opens one. Open it in the body: with transaction.atomic()."
        )

    def _claim(self) -> Claimed:
        token = new_id()  # the same in every try, so that a claim whose answer was lost finds itself
        store, worker_id = self._runtime.store, self._runtime.worker_id
        try:
            claimed = wait_out(
                lambda: store.claim(self._attempt_id, token, worker_id),
                # A message that was acknowledged early cannot go back: then only waiting is left.
                give_up_after=_CLAIM_PATIENCE if self._plugin.task.acks_late else None,
            )
        except DATABASE_ERRORS as error:
            logger.warning(
                "the database is away, the message of attempt %s of run %s goes back: %s",
                self._attempt_id,
                self._header.get("run"),
                error,
            )
            time.sleep(_REQUEUE_PAUSE)
            raise Reject(error, requeue=True) from error
        if isinstance(claimed, ClaimRefused):
            run_id = self._header.get("run")
            logger.info("attempt %s of run %s was not started: %s", claimed.attempt_id, run_id, claimed.reason)
            raise Ignore(claimed.reason)
        return claimed

    def _call_body(self, claimed: Claimed, door: ArtifactDoor) -> Any:
        if claimed.input_error is not None:
            raise claimed.input_error
        _refuse_missing_files(claimed.input)
        parameters, work = self._plugin.parameters, claimed.work
        context = self._build_context(work, door) if parameters.context_names else None
        task_input = self._secrets.fill(self._node_of(work), claimed.input)
        args, kwargs = parameters.fill(task_input, context, undoes=work.attempt.node_index < 0)
        self._has_begun = True
        return self._body(*args, **kwargs)

    def _observe(self, work: Work) -> AbstractContextManager[None]:
        observers = self._runtime.observers
        if not observers:
            return _UNOBSERVED
        definition = self._runtime.store.definition_of(work.definition_hash).definition
        return observers.around_body(
            describe_body(self._plugin.task, self._header, work, definition, lambda error: self._explain(work, error))
        )

    def _explain(self, work: Work, error: BaseException) -> tuple[TaskError, bool]:
        if isinstance(error, AttemptSuperseded):
            return error.reason or describe_error(error, self._secrets.redact), True
        if isinstance(error, Retry):
            return describe_error(_cause_of(error), self._secrets.redact), True
        if isinstance(error, (Ignore, Reject)):
            return explain_no_outcome(error), False
        return self._describe(work, error), False

    def _node_of(self, work: Work) -> DagNode:
        definition = self._runtime.store.definition_of(work.definition_hash).definition
        return definition.node_of(work.attempt.node_index)

    def _build_context(self, work: Work, door: ArtifactDoor) -> PluginContext:
        attempt, store, slug = work.attempt, self._runtime.store, self._node_of(work).slug
        written, asked, was_cancelled = Throttle(1.0), Throttle(1.0), [False]

        def report_progress(done: int, total: int) -> None:
            # In a transaction of the body's own nobody would see it, and the task's row would stay locked to its end.
            if not store.is_in_apps_transaction and written.is_open():
                with _passing_over_outages():
                    store.set_progress(attempt, done, total)

        def ask_cancelled() -> bool:
            if not was_cancelled[0] and asked.is_open():
                with _passing_over_outages():
                    was_cancelled[0] = not store.is_wanted(attempt.attempt_id)
            return was_cancelled[0]

        def ask_run() -> tuple[str, str | None, str]:
            run = wait_out(lambda: store.get_run(attempt.run_id))
            return run.status.value, None if run.error is None else run.error["message"], run.rollback_status

        return PluginContext(
            run_id=attempt.run_id,
            slug=slug,
            task_id=attempt.task_id,
            attempt=attempt.number,
            scratch_path=self._runtime.settings.files_dir
            / attempt.run_id
            / (f"{slug}.rollback" if attempt.node_index < 0 else slug)
            / f"{attempt.task_id}-{attempt.number}",
            emit_artifact=door.emit,
            report_progress=report_progress,
            ask_cancelled=ask_cancelled,
            ask_run=ask_run,
            undoes=attempt.node_index < 0,
        )

    def _give_way_to_retry(self, active: Active, error: BaseException | None = None) -> None:
        """A body that asked for another attempt gets it, whatever came after that."""
        if active.retry is not None:
            self._record_asked_retry(active)
            raise Ignore("the body asked for another attempt") from error

    def _record_asked_retry(self, active: Active) -> None:
        asked = active.retry
        if asked is None:
            return
        try:
            self._runtime.outcome.retry(active.work, delay=asked.delay, retries=asked.retries, error=asked.reason)
        except Exception as outage:
            if is_outage(outage):
                raise self._give_back(outage) from outage
            raise

    def _record_raised_retry(self, work: Work, error: Retry) -> None:
        """A body that raises Retry itself, without ``self.retry``."""
        cause = describe_error(_cause_of(error), self._secrets.redact)
        delay = _retry_delay(self._runtime, error.when)
        self._runtime.outcome.retry(work, delay=delay, retries=work.attempt.retries + 1, error=cause)
        raise AttemptSuperseded("the body asked for another attempt", cause) from error


def retry_in_run(  # the parameters, and their places, of Task.retry
    runtime: Runtime,
    task: Task,
    active: Active,
    args: Any = None,
    kwargs: Any = None,
    exc: BaseException | None = None,
    throw: bool = True,
    eta: datetime | None = None,
    countdown: float | None = None,
    max_retries: int | None = None,
    **options: Any,
) -> Ignore:
    """``self.retry`` in a run: the next attempt is stored and owed once the body is left; Celery publishes nothing.

    Past ``max_retries`` it raises as Celery does: ``exc``, else MaxRetriesExceededError. The next attempt is published
    with its node's options, so that ``options`` given here (queue, priority, …) are not followed.
    """
    if args or kwargs:
        raise TaskInputError(
            f"Task {task.name!r} called self.retry with other arguments: in a run a task's input comes from its store "
            "and stays the same. Call self.retry without args and kwargs."
        )
    if options:
        logger.warning(
            "task %s called self.retry with %s: in a run every attempt is published with its node's options",
            task.name,
            ", ".join(sorted(options)),
        )
    retries = active.work.attempt.retries + 1
    limit = task.max_retries if max_retries is None else max_retries
    if limit is not None and retries > limit:
        if exc is not None:
            raise_with_context(exc)
        raise MaxRetriesExceededError(f"Can't retry {task.name}[{task.request.id}]: {limit} retries were made.")
    delay = _retry_delay(runtime, eta or (task.default_retry_delay if countdown is None else countdown))
    cause = exc or sys.exc_info()[1]
    reason = TaskError("Retry", "the body asked for another attempt")
    if cause is not None:
        reason = describe_error(cause, redact_current)
    active.retry = AskedRetry(delay, retries, reason)
    superseded = AttemptSuperseded(f"retry {retries} is due in {delay:g} s", reason)
    if throw:
        raise superseded
    return superseded


def _cause_of(error: Retry) -> BaseException:
    return error.exc if isinstance(error.exc, BaseException) else error


def describe_body(
    task: Task, header: dict[str, Any], work: Work, definition: Definition, explain: Callable[[BaseException], Any]
) -> Body:
    """What observers are told of a body that is about to run."""
    node, delivery = definition.node_of(work.attempt.node_index), task.request.delivery_info or {}
    return Body(
        work=work,
        pipeline=definition.name,
        slug=node.slug,
        plugin=(node.rollback if work.attempt.node_index < 0 else node.plugin) or "",
        carried=header.get("carried", {}),
        queue=delivery.get("routing_key"),
        due_at=header.get("due"),
        explain=explain,
    )


def _retry_delay(runtime: Runtime, when: datetime | float | None) -> float:
    """Seconds until the next attempt is due; an eager retry does not wait, as in Celery."""
    return 0.0 if runtime.app.conf.task_always_eager else seconds_until(when)


@contextmanager
def _passing_over_outages() -> Iterator[None]:
    """What a body shows or asks meanwhile is not worth failing it for while the database is away."""
    try:
        yield
    except DATABASE_ERRORS as error:
        if not is_outage(error):
            raise
        logger.warning("the database is away, a body goes on without it: %s", error)


def _refuse_missing_files(task_input: dict[str, Any]) -> None:
    """A file that another host wrote elsewhere is named here, before the body stumbles over it."""
    artifacts = task_input.get("artifacts")
    entries = (
        [task_input, *(entry for entry in artifacts if isinstance(entry, dict))]
        if isinstance(artifacts, list)
        else [task_input]
    )
    for entry in entries:
        path = entry.get("file_path")
        if isinstance(path, str) and "file_name" in entry and not Path(path).exists():
            raise MissingFile(
                f"The input file {path!r} is not there. It was written by an upstream task: make dagabaaz_files_dir a "
                "directory that every worker host shares, and do not delete files while their run goes on."
            )

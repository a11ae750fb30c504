"""Celery's own signals, for ends that never reach a wrapper and for tasks that have none.

Receivers must not raise (Celery would swallow it) and must not hold up the worker's main process: there they only hand
over to the sweep thread. They are keyed on the task id argument, and idempotent: an outcome that is recorded already
is left alone.
"""

import logging
import sys
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from billiard.exceptions import TimeLimitExceeded, WorkerLostError
from celery import Task, signals, states
from celery._state import get_current_task
from celery.exceptions import Ignore, Retry

from dagabaaz_celery.stores.sql.outages import is_outage
from dagabaaz_celery.stores.sql.records import ClaimRefused, TaskError
from dagabaaz_celery.stores.sql.store import Work
from dagabaaz_celery.stores.sql.tables import new_id
from dagabaaz_celery.worker.active import Active, running
from dagabaaz_celery.worker.outcome import (
    describe_deadline,
    describe_error,
    ends_process,
    explain_no_outcome,
    seconds_until,
    wait_out,
)
from dagabaaz_celery.worker.plugin_task import describe_body, expect_begin, explain_no_begin, is_wrapped, read_header
from dagabaaz_celery.worker.publish import HEADER
from dagabaaz_celery.worker.results import ArtifactDoor
from dagabaaz_celery.worker.runtime import Runtime

logger = logging.getLogger(__name__)


class SignalReceivers:
    """Connects one app's runtime to Celery's signals."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        #: What is to be left when the body of a task without a wrapper is over, by its attempt id.
        self._entered: dict[str, ExitStack] = {}

    def connect(self) -> None:
        """Connect every receiver; the caller keeps this object alive."""
        signals.task_prerun.connect(self.on_prerun)
        signals.task_success.connect(self.on_success)
        signals.task_failure.connect(self.on_failure)
        signals.task_retry.connect(self.on_retry)
        signals.task_postrun.connect(self.on_postrun)
        signals.task_revoked.connect(self.on_revoked)
        signals.task_unknown.connect(self.on_unknown)
        signals.worker_process_shutdown.connect(self.on_process_shutdown)

    def on_prerun(self, sender: Task, task_id: str, **_: Any) -> None:
        """Show an unfenced task as running: it runs whatever the store says. Of others the wrapper is to be called."""
        if self._is_unfenced(sender):
            self._do("claim", task_id, lambda: self._claim_unfenced(sender, task_id))
        elif self._is_ours(sender.app, read_header(sender.request)):
            expect_begin(sender)

    def on_success(self, sender: Task, result: Any, **_: Any) -> None:
        """A task without a wrapper succeeded; a wrapped one recorded that itself, unless it was never called."""
        task_id = sender.request.id
        if self._is_unfenced(sender):
            self._leave(task_id)
            self._do("success", task_id, lambda: self._complete(sender, task_id, result))
        elif self._is_ours(sender.app, read_header(sender.request)) and (error := explain_no_begin(sender)):
            self._do("failure", task_id, lambda: self._fail_unbegun(task_id, error))

    def on_failure(self, sender: Task, task_id: str, exception: BaseException, **_: Any) -> None:
        """A body raised, was stopped at its hard time limit, or its process was lost."""
        # In the main process the request is not at hand: there the store is asked whether the task is one of ours.
        in_consumer = get_current_task() is None
        self._leave(task_id, exception)
        if sender.app is self._runtime.app and (in_consumer or self._is_ours(sender.app, read_header(sender.request))):
            self._do("failure", task_id, lambda: self._fail(task_id, exception))

    def on_retry(self, sender: Task, request: Any, reason: Any, **_: Any) -> None:
        """A task without a wrapper asked for another attempt, which Celery publishes under the same id."""
        if self._is_unfenced(sender):
            self._leave(request.id, reason)
            delay = seconds_until(getattr(reason, "when", None))
            self._do("retry", request.id, lambda: self._lend(request.id, delay, (request.retries or 0) + 1))

    def on_postrun(self, sender: Task, task_id: str, retval: Any, state: str | None, **_: Any) -> None:
        """A task without a wrapper ended in one of the ways that no other signal tells."""
        if isinstance(retval, Ignore) and self._is_ours(sender.app, read_header(sender.request)):
            # Celery's frames and a copy of their code, some 200 KB, would wait in a cycle for the garbage collector.
            retval.__traceback__ = None
        if not self._is_unfenced(sender):
            return
        error = sys.exc_info()[1]
        self._leave(task_id, retval if isinstance(retval, BaseException) else error)
        if state is None and error is not None and not ends_process(error):
            self._do("failure", task_id, lambda: self._fail(task_id, error))
        elif state == states.IGNORED or (state == states.REJECTED and not (retval.requeue and sender.acks_late)):
            self._do("failure", task_id, lambda: self._fail(task_id, retval, explain_no_outcome(retval)))

    def on_revoked(self, sender: Task, request: Any, expired: bool, **_: Any) -> None:
        """Somebody revoked a task in Celery, or it expired."""
        if self._is_ours(sender.app, read_header(request)):
            reason = "expired in Celery" if expired else "was revoked in Celery"
            self._do("revocation", request.id, lambda: self._cancel(request.id, reason))

    def on_unknown(self, sender: Any, name: str, id: str, message: Any, **_: Any) -> None:
        """A worker got a task that it does not know, as happens during a rolling deploy."""
        header = (message.headers or {}).get(HEADER)
        if self._is_ours(sender.app, header):
            self._do("unknown task", id, lambda: self._return_unknown(id, name))

    def on_process_shutdown(self, **_: Any) -> None:
        """A pool's process ends."""
        self._runtime.write_marks()

    def _do(self, what: str, task_id: str, call: Callable[[], Any]) -> None:
        """Make the call here in a pool process or thread; in the consumer's thread hand it to the sweep."""
        queue = self._runtime.sweep_queue
        if queue is not None and queue.is_here and get_current_task() is None:
            queue.put(lambda: self._do_safely(what, task_id, call))
        else:
            self._do_safely(what, task_id, call)

    def _do_safely(self, what: str, task_id: str, call: Callable[[], Any]) -> None:
        try:
            call()
        except Exception:
            logger.exception("the %s of task %s could not be recorded: the sweep finds it", what, task_id)

    def _claim_unfenced(self, task: Task, attempt_id: str) -> None:
        token = new_id()
        store, worker_id = self._runtime.store, self._runtime.worker_id
        claimed = wait_out(lambda: store.claim(attempt_id, token, worker_id, may_hand_back=False))
        if isinstance(claimed, ClaimRefused):
            logger.warning("task %s runs although it should not: %s", attempt_id, claimed.reason)
            return
        self._enter(task, claimed.work)

    def _enter(self, task: Task, work: Work) -> None:
        """What a wrapper does around the body: name it in logs, tell observers."""
        definition = self._runtime.store.definition_of(work.definition_hash).definition
        self._entered[work.attempt.attempt_id] = entered = ExitStack()
        entered.enter_context(running(Active(work, definition.node_of(work.attempt.node_index).slug, None)))
        if self._runtime.observers:
            header = dict(read_header(task.request) or {})
            if task.request.retries:
                header.pop("due", None)  # Celery sent it again, and says not when
            body = describe_body(task, header, work, definition, self._explain)
            entered.enter_context(self._runtime.observers.around_body(body))

    def _leave(self, attempt_id: str | None, error: BaseException | None = None) -> None:
        entered = self._entered.pop(attempt_id, None) if attempt_id is not None else None
        if entered is not None:
            entered.__exit__(
                None if error is None else type(error), error, None if error is None else error.__traceback__
            )

    def _explain(self, error: BaseException) -> tuple[TaskError, bool]:
        cause = error.exc if isinstance(error, Retry) and isinstance(error.exc, BaseException) else error
        return describe_error(cause), isinstance(error, Retry)

    def _complete(self, task: Task, attempt_id: str, result: Any) -> None:
        work = wait_out(lambda: self._runtime.store.find_work(attempt_id))
        if work is None:
            run_id = (read_header(task.request) or {}).get("run")
            logger.warning(
                "the success of task %s of run %s was refused: it is not current any more", attempt_id, run_id
            )
            return
        try:
            artifacts, shape = ArtifactDoor(self._runtime.settings, task.name).take_result(result)
        except Exception as error:  # whatever the result raises fails its task, not the worker
            self._runtime.outcome.fail(work, describe_error(error))
            return
        self._runtime.outcome.complete(work, artifacts, shape)

    def _lend(self, attempt_id: str, delay: float, retries: int) -> None:
        wait_out(lambda: self._runtime.store.lend_to_celery(attempt_id, delay=delay, retries=retries))

    def _fail(self, attempt_id: str, exception: BaseException, error: TaskError | None = None) -> None:
        work = wait_out(lambda: self._runtime.store.find_work(attempt_id))
        if work is None or not self._runtime.store.is_current(attempt_id):
            return  # recorded by the wrapper, or by the first of Celery's two signals
        if work.attempt.worker_id not in (None, self._runtime.worker_id):
            return  # a duplicate ended here, and the attempt runs elsewhere
        if is_outage(exception) and work.attempt.token is not None:
            return  # the store was away, not the body at fault: the sweep finds the attempt
        if isinstance(exception, WorkerLostError):
            self._runtime.outcome.rescue(work, describe_error(exception))
        else:
            explained = error or self._describe(work, exception)
            if self._runtime.outcome.fail(work, explained) and isinstance(exception, TimeLimitExceeded):
                self._runtime.outcome.report_loss(work, explained)

    def _fail_unbegun(self, attempt_id: str, error: TaskError) -> None:
        work = wait_out(lambda: self._runtime.store.find_work(attempt_id))
        if work is not None and work.attempt.token is None:  # else this was a duplicate, and the attempt runs elsewhere
            self._runtime.outcome.fail(work, error, began=False)

    def _describe(self, work: Work, exception: BaseException) -> TaskError:
        """A process that Celery killed at its hard limit had taken longer than its node's timeout, if that has one."""
        definition = self._runtime.store.definition_of(work.definition_hash).definition
        timeout = definition.timeout_of(work.attempt.node_index)
        if timeout is not None and isinstance(exception, TimeLimitExceeded):
            return describe_deadline(timeout)
        return describe_error(exception)

    def _cancel(self, attempt_id: str, reason: str) -> None:
        work = wait_out(lambda: self._runtime.store.find_work(attempt_id))
        if work is not None and self._runtime.store.is_current(attempt_id):
            self._runtime.outcome.cancel(work, TaskError("TaskRevoked", f"task {attempt_id} {reason}"))

    def _return_unknown(self, attempt_id: str, name: str) -> None:
        knowing = [worker for worker in self._runtime.store.list_workers() if name in worker.plugins]
        logger.error(
            "this worker got task %s (%s) and does not know it; %d live workers do. Deploy the plugin to every worker "
            "of the queue, or give it a queue of its own",
            name,
            attempt_id,
            len(knowing),
        )
        self._runtime.outcome.return_unknown(attempt_id, name, known_to=[worker.hostname for worker in knowing])

    def _is_unfenced(self, task: Task) -> bool:
        """Whether a message of ours runs a task without our wrapper."""
        header = read_header(task.request)
        return self._is_ours(task.app, header) and not is_wrapped(task)

    def _is_ours(self, app: Any, header: Any) -> bool:
        return isinstance(header, dict) and app is self._runtime.app and header.get("store") == self._runtime.store.id

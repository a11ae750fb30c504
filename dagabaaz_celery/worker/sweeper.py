"""The sweep: threads in each worker's main process that do what is owed and take over what was lost.

Any number of workers sweep at once: each takes small batches, locked. One round is what signal receivers handed over,
what is owed, what has had its time, tasks to publish, runs with nothing open, this worker's own lost attempts, the
attempts of workers that died, and messages that the broker lost. The heartbeat, the users' callbacks and the deletion
of old runs have threads of their own: none may wait for another.
"""

import logging
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

from celery import Celery, bootsteps, signals

from dagabaaz_celery.stores.sql.outages import is_outage
from dagabaaz_celery.stores.sql.owed import WorkerRow
from dagabaaz_celery.stores.sql.records import OWED_KINDS, Owed, TaskError
from dagabaaz_celery.stores.sql.store import SqlStore, Work
from dagabaaz_celery.stores.sql.tables import new_id
from dagabaaz_celery.worker.broker import BROKER_ERRORS
from dagabaaz_celery.worker.liveness import Heart, Watch, begun_attempt_ids, log_failure
from dagabaaz_celery.worker.outcome import stop_flag, wait_out
from dagabaaz_celery.worker.pruning import PruneThread
from dagabaaz_celery.worker.redis_mend import mend_redis_transport
from dagabaaz_celery.worker.report import offer_report, withdraw_report
from dagabaaz_celery.worker.resend import LostMessages
from dagabaaz_celery.worker.runtime import Runtime, SweepQueue

logger = logging.getLogger(__name__)

_BATCH = 500
#: What a sweep does itself; callbacks have a thread of their own.
_OWED = tuple(kind for kind in OWED_KINDS if kind != "callback")
#: Rounds that follow each other quickly when a worker was lost, and the part of an interval between them.
_HURRIED, _HURRY = 3, 0.5
#: Seconds that a stopping worker waits for a callback to return.
_CALLBACK_PATIENCE = 10.0


class Sweeper:
    """One worker's sweep thread."""

    def __init__(
        self,
        runtime: Runtime,
        worker_id: str,
        *,
        hostname: str,
        get_queues: Callable[[], list[str]],
        get_consumer: Callable[[], Any] = lambda: None,
    ) -> None:
        settings = runtime.settings
        self._runtime = runtime
        self._worker_id = worker_id
        self._interval = settings.sweep_interval
        self._queue = SweepQueue()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="dagabaaz-sweep", daemon=True)
        self._heart = Heart(
            runtime.app,
            runtime.store,
            worker_id,
            hostname=hostname,
            get_queues=get_queues,
            get_consumer=get_consumer,
            interval=settings.sweep_interval,
            dead_after=settings.dead_after,
        )
        self._watch = Watch(self._heart, dead_after=settings.dead_after)
        self._lost_messages = LostMessages(
            runtime.broker, runtime.store, runtime.publisher, self._stop.is_set, self._note
        )
        self._callbacks = _CallbackThread(runtime, self._queue.callbacks)
        self._pruning = PruneThread(runtime)
        self._mourned: dict[str, WorkerRow] = {}
        #: Claims whose task was not found in the pool, and since when.
        self._missing: dict[tuple[str, str | None], float] = {}
        self._orphans: dict[str, str | None] = {}
        self._hurried = 0

    def start(self) -> None:
        """Announce the worker, then sweep until stopped."""
        self._runtime.sweep_queue = self._queue
        wait_out(self._heart.announce)
        self._heart.start()
        self._callbacks.start()
        self._pruning.start()
        self._thread.start()

    def ask_to_stop(self) -> None:
        """Have the threads end soon, without waiting for them."""
        self._stop.set()
        self._queue.wake.set()
        self._heart.ask_to_stop()
        self._callbacks.ask_to_stop()
        self._pruning.ask_to_stop()

    def stop(self) -> None:
        """End the threads and withdraw the worker, whose pool has ended."""
        self.ask_to_stop()
        self._thread.join()
        self._callbacks.stop()
        self._pruning.stop()
        try:
            self._make_handed_over_calls()
            self._heart.stop()
        except Exception:
            logger.exception("the worker could not withdraw: others take it for dead after a while")
        self._runtime.sweep_queue = None
        self._runtime.close()

    def sweep(self) -> None:
        """One round; each part does what it can, whatever became of the others, unless the database is away."""
        for part in (
            self._make_handed_over_calls,
            self._do_owed,
            self._enforce_deadlines,
            self._publish_due,
            self._reconcile_stalled,
            self._rescue_own_lost,
            self._look_after_workers,
        ):
            if self._stop.is_set():
                return
            try:
                part()
            except Exception as error:
                if is_outage(error):
                    raise
                logger.exception("a part of the sweep failed; the next round tries it again")

    @property
    def _store(self) -> SqlStore:
        return self._runtime.store

    def _run(self) -> None:
        while not self._stop.is_set():
            pause = self._interval
            try:
                self.sweep()
                pause = self._pause()
            except Exception as error:
                # The next round is the answer to an outage, and to anything else that was not foreseen.
                log_failure("a sweep", f"the next one follows in {pause:.1f} s", error)
            self._queue.wake.wait(pause)
            self._queue.wake.clear()

    def _pause(self) -> float:
        """Until the next round, or until a delayed task is due."""
        longest = self._interval * (_HURRY if self._hurried else 1)
        self._hurried = max(self._hurried - 1, 0)
        due = self._store.seconds_to_next_due()
        return longest if due is None else min(max(due, 0.01), longest)

    def _make_handed_over_calls(self) -> None:
        for call in self._queue.take_all():
            self._do_alone("what Celery signalled", call)

    def _do_owed(self) -> None:
        seen: set[str] = set()
        while not self._stop.is_set() and (owed_now := self._store.lease_owed(_BATCH, _OWED)):
            is_again = seen.issuperset(owed.id for owed in owed_now)
            seen.update(owed.id for owed in owed_now)
            for owed in owed_now:
                self._do_alone(
                    f"the {owed.kind} of run {owed.run_id}",
                    lambda owed=owed: self._runtime.do_owed(owed),  # type: ignore[misc]
                )
                self._note(owed.kind)
            if is_again:  # runs that wait for their last bodies are due again and again: the rest of the sweep is, too
                break
        self._callbacks.look()

    def _enforce_deadlines(self) -> None:
        for work, timeout in self._store.find_overdue_tasks(_BATCH):
            self._note("task_deadline")
            self._do_alone(
                f"the deadline of task {work.attempt.task_id}",
                lambda work=work, timeout=timeout: self._runtime.outcome.expire(work, timeout),  # type: ignore[misc]
            )
        for run_id in self._store.find_overdue_runs(_BATCH):
            self._note("run_deadline")
            self._do_alone(
                f"the deadline of run {run_id}",
                lambda run_id=run_id: self._runtime.settle(self._store.expire(run_id)),  # type: ignore[misc]
            )

    def _publish_due(self) -> None:
        while not self._stop.is_set() and self._runtime.publish_due(_BATCH):
            continue

    def _reconcile_stalled(self) -> None:
        for run_id in self._store.find_stalled_runs(_BATCH):
            self._do_alone(f"reconciling run {run_id}", lambda run_id=run_id: self._reconcile(run_id))  # type: ignore[misc]

    def _reconcile(self, run_id: str) -> None:
        self._runtime.settle(self._store.reconcile(run_id))
        self._note("reconcile")

    def _note(self, action: str, count: int = 1) -> None:
        """Tell observers what this sweep did."""
        if self._runtime.observers:
            self._runtime.observers.tell("swept", action, count)

    def _do_alone(self, what: str, call: Callable[[], object]) -> None:
        """One thing of many: what is wrong with it must not keep the others waiting."""
        try:
            call()
        except Exception as error:
            if is_outage(error):
                raise
            logger.exception("%s failed; the next sweep tries it again", what)

    def _rescue_own_lost(self) -> None:
        """Attempts that the store says run here and that Celery has not begun, for a sweep's interval, as claimed."""
        running = self._store.list_running_on(self._worker_id)
        begun = begun_attempt_ids()  # after the question: what was claimed in between is among them by now
        now = time.monotonic()
        missing: dict[tuple[str, str | None], float] = {}
        for work in running:
            attempt = work.attempt
            if attempt.attempt_id in begun:
                continue
            claim = (attempt.attempt_id, attempt.token)
            missing[claim] = self._missing.get(claim, now)
            if now - missing[claim] >= self._interval:
                self._rescue(work, "its process ended without an outcome")
        self._missing = missing

    def _look_after_workers(self) -> None:
        workers = self._store.list_workers()
        dead = self._watch.find_dead(workers, self._worker_id)
        if self._watch.is_bereaved:
            self._heart.hurry()
            self._hurried = _HURRIED
        living = [worker for worker in workers if worker not in dead]
        for worker in dead:
            self._bury(worker)
        self._rescue_orphans()
        self._mind_broker(lambda: self._mourn(living))
        self._mind_broker(lambda: self._lost_messages.resend(living, self._worker_id))

    def _bury(self, worker: WorkerRow) -> None:
        """Give to others what a dead worker ran, and have it mourned, even if the answer to the burial is lost.

        What it ran is listed before it is forgotten: should it come back, what it claims afterwards is not lost.
        """
        running = self._store.list_running_on(worker.id)
        self._mourned[worker.id] = worker
        if not self._store.try_bury_worker(worker.id, worker.beat):
            del self._mourned[worker.id]
            return  # it came back, or another sweep was first
        logger.error("worker %s (pid %d) is dead: its tasks are dispatched again", worker.hostname, worker.pid)
        for work in running:
            self._rescue(work, "its worker died")

    def _mourn(self, living: list[WorkerRow]) -> None:
        """Give to others what dead workers had taken; again with the next sweep, should it fail."""
        came_back = {worker.id for worker in living}
        for worker in list(self._mourned.values()):
            if worker.id not in came_back:
                self._lost_messages.mourn(worker, living)
            del self._mourned[worker.id]

    def _rescue_orphans(self) -> None:
        """Attempts of workers that nobody knows, in two sweeps with the same token.

        Once is not enough: a worker that comes back may claim before its next heartbeat announces it again.
        """
        orphans = self._store.list_orphans()
        for work in orphans:
            if self._orphans.get(work.attempt.attempt_id, "") == work.attempt.token:
                self._rescue(work, "its worker died")
        self._orphans = {work.attempt.attempt_id: work.attempt.token for work in orphans}

    def _mind_broker(self, look: Callable[[], None]) -> None:
        try:
            look()
        except BROKER_ERRORS as error:
            logger.warning("the broker is away, lost messages cannot be looked for: %s", error)

    def _rescue(self, work: Work, what: str) -> None:
        attempt = work.attempt
        logger.warning(
            "task %s of run %s is lost (%s): attempt %d is over", attempt.task_id, attempt.run_id, what, attempt.number
        )
        self._note("rescue")
        reason = TaskError("WorkerLost", f"attempt {attempt.number} was lost: {what}")
        self._do_alone(f"rescuing task {attempt.task_id}", lambda: self._runtime.outcome.rescue(work, reason))


class _CallbackThread:
    """Runs the users' callbacks, which may be slow, away from everything that must not wait; one at a time."""

    def __init__(self, runtime: Runtime, wake: threading.Event) -> None:
        self._runtime = runtime
        self._wake = wake
        self._stop = threading.Event()
        self._current: Owed | None = None
        self._thread = threading.Thread(target=self._run, name="dagabaaz-callbacks", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def ask_to_stop(self) -> None:
        self._stop.set()
        self._wake.set()

    def stop(self) -> None:
        """Let the callback in progress return, for a while; what waits is delivered by another worker."""
        self.ask_to_stop()
        self._thread.join(timeout=_CALLBACK_PATIENCE)

    def look(self) -> None:
        """Have the thread look for callbacks; the one that it is busy with stays its own."""
        current = self._current
        if current is not None:
            self._runtime.store.renew_owed(current)
        self._wake.set()

    def _run(self) -> None:
        while not self._stop.is_set():
            self._wake.wait()
            self._wake.clear()
            try:
                self._deliver_all()
            except Exception as error:
                log_failure("delivering callbacks", "they stay owed until the next sweep", error)

    def _deliver_all(self) -> None:
        while not self._stop.is_set() and (owed_now := self._runtime.store.lease_owed(1, ("callback",))):
            self._current = owed_now[0]
            try:
                self._runtime.deliver(self._current)
                if self._runtime.observers:
                    self._runtime.observers.tell("swept", "callback", 1)
            finally:
                self._current = None


def list_consumed_queues(app: Celery, consumer: Any) -> list[str]:
    """Names of the queues that a worker's consumer gets messages from.

    Celery's own list for the app grows by each queue that this process publishes to, where the worker was given none.
    """
    task_consumer = getattr(consumer, "task_consumer", None)
    if task_consumer is None:
        return sorted(map(str, app.amqp.queues.consume_from))
    return sorted(queue.name for queue in list(task_consumer.queues))


def build_sweep_step(runtime: Runtime, prepare: Callable[[], None]) -> type[bootsteps.StartStopStep]:
    """The worker bootstep that runs a runtime's sweep; ``prepare`` is called before the worker's pool starts."""

    class SweepStep(bootsteps.StartStopStep):  # type: ignore[misc]  # Celery ships no types
        """Identity before the pool forks, the sweep while the worker runs, withdrawal when its pool has ended."""

        name = f"dagabaaz-sweep-{id(runtime)}"
        requires = ("celery.worker.components:Pool",)

        def __init__(self, parent: Any, **kwargs: Any) -> None:
            super().__init__(parent, **kwargs)
            prepare()
            mend_redis_transport(runtime.app)
            runtime.prepare_worker()
            runtime.worker_id = worker_id = new_id()
            self._sweeper = Sweeper(
                runtime,
                worker_id,
                hostname=parent.hostname or socket.gethostname(),
                get_queues=lambda: list_consumed_queues(runtime.app, getattr(parent, "consumer", None)),
                get_consumer=lambda: getattr(parent, "consumer", None),
            )

        def start(self, parent: Any) -> None:
            self._sweeper.start()
            offer_report(runtime)
            signals.worker_shutdown.connect(self._withdraw)  # steps stop before the pool's last tasks have ended

        def stop(self, parent: Any) -> None:
            """Bodies end first; those whose outcome waits for the database are told not to wait any longer."""
            stop_flag.raise_()

        def terminate(self, parent: Any) -> None:
            """A cold shutdown waits for nothing, and others take over what ran here."""
            stop_flag.raise_()
            self._sweeper.ask_to_stop()

        def _withdraw(self, sender: Any, **_: Any) -> None:
            signals.worker_shutdown.disconnect(self._withdraw)
            withdraw_report(runtime)
            runtime.write_marks()
            self._sweeper.stop()
            runtime.worker_id = None
            stop_flag.share()  # for the next worker of a process that outlives this one

    return SweepStep

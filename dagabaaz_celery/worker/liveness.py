"""Who is alive: this worker's heartbeat, and what its silence or another's means.

A heartbeat is a counter in the store, not a time. A worker is dead when its counter has not moved for ``dead_after``
seconds of this observer's clock while the observer's own heartbeats succeeded throughout: an outage of the database,
or a freeze of the observer, makes nobody dead.
"""

import logging
import math
import os
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from celery import Celery, signals
from celery.worker import state as worker_state

from dagabaaz_celery import __version__
from dagabaaz_celery.stores.sql.outages import describe_outage, is_outage
from dagabaaz_celery.stores.sql.owed import WorkerRow
from dagabaaz_celery.stores.sql.store import SqlStore
from dagabaaz_celery.worker.forks import fork_gate
from dagabaaz_celery.worker.publish import HEADER

logger = logging.getLogger(__name__)

#: Our ids are UUIDs of version 7; Celery's own are of version 4.
_ID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}")

#: Heartbeats that tell of a message after it came, so that every other worker reads one of them.
_REPORTS = 3
#: Heartbeats that follow each other quickly when a worker was lost, and the part of an interval between them.
_HURRIED, _HURRY = 2, 0.5
#: A heartbeat that comes later than so many intervals is a gap in the observer's own watch.
_GAP_INTERVALS = 3


def longest_gap(interval: float, dead_after: float) -> float:
    """Seconds between two heartbeats of an observer's own beyond which its watch begins anew.

    A database that froze for so long, and an interval more, must not make another worker seem dead, whose heartbeats
    it kept waiting as well. ``dead_after`` is three intervals at least.
    """
    return min(_GAP_INTERVALS * interval, dead_after / 2)


def log_failure(what: str, then: str, error: Exception) -> None:
    """Say what failed, why, and what follows: in a line for a database that is away, in full for anything else."""
    if is_outage(error):
        logger.warning("%s failed, the database is away (%s); %s", what, describe_outage(error), then)
    else:
        logger.error("%s failed; %s", what, then, exc_info=error)


def held_attempt_ids(consumer: Any = None) -> set[str]:
    """Ids of the messages that this worker process has taken from the broker and not ended.

    With Celery's consumer, those too that wait for their task's rate limit, which Celery counts nowhere else. Other
    tasks are left out, unless their ids are made as ours are.
    """
    known = [
        *_list_now(worker_state.active_requests),
        *_list_now(worker_state.reserved_requests),
        *list(worker_state.requests.values()),
    ]
    for bucket in list(getattr(consumer, "task_buckets", {}).values()):
        if bucket is not None:
            known += [request for request, _ in bucket.contents.copy()]
    return {request.id for request in known if _ID.fullmatch(str(request.id))}


def begun_attempt_ids() -> set[str]:
    """Ids of the tasks that this worker's pool has begun, or may have, and not ended.

    A message that came again is none of them before the pool takes it: the process that had the first may have died,
    and the second may wait here for long.
    """
    waiting = (
        request for request in _list_now(worker_state.reserved_requests) if not request.delivery_info["redelivered"]
    )
    return {request.id for request in (*_list_now(worker_state.active_requests), *waiting)}


def _list_now(requests: Any) -> list[Any]:
    """What a WeakSet holds; to iterate over one fails when another thread adds to it meanwhile, as Celery does."""
    return [request for reference in list(requests.data) if (request := reference()) is not None]


class Deliveries:
    """The last of our messages that this worker was given by each route, for some heartbeats after it came.

    Not for longer: what is reported counts as held, and this worker may have lost it with its broker's connection.
    """

    def __init__(self, app: Celery) -> None:
        self._app = app
        self._latest: dict[tuple[Any, ...], str] = {}
        self._reports: dict[str, int] = {}

    def connect(self) -> None:
        """Take note from now on."""
        signals.task_received.connect(self._on_received)

    def disconnect(self) -> None:
        """Take no more note."""
        signals.task_received.disconnect(self._on_received)

    def report(self) -> set[str]:
        """The ids for one heartbeat, of any task whose id may be one of ours."""
        latest = {id_ for id_ in list(self._latest.values()) if _ID.fullmatch(id_)}
        self._reports = {id_: self._reports.get(id_, 0) + 1 for id_ in latest}
        return {id_ for id_, count in self._reports.items() if count <= _REPORTS}

    def _on_received(self, sender: Any, request: Any, **_: Any) -> None:
        if sender.app is self._app and HEADER in request.request_dict:
            given = request.delivery_info
            self._latest[given.get("exchange"), given.get("routing_key"), given.get("priority")] = str(request.id)


class Heart:
    """A thread that announces the worker and beats, whatever the sweep is busy with."""

    def __init__(
        self,
        app: Celery,
        store: SqlStore,
        worker_id: str,
        *,
        hostname: str,
        get_queues: Callable[[], list[str]],
        get_consumer: Callable[[], Any] = lambda: None,
        interval: float,
        dead_after: float,
    ) -> None:
        self._app = app
        self._store = store
        self._worker_id = worker_id
        self._hostname = hostname
        self._get_queues = get_queues
        self._get_consumer = get_consumer
        self._interval = interval
        self._deliveries = Deliveries(app)
        self._longest_gap = longest_gap(interval, dead_after)
        self._stop = threading.Event()
        self._wake = threading.Event()
        self._hurried = 0
        self._thread = threading.Thread(target=self._run, name="dagabaaz-heartbeat", daemon=True)
        self._last_beat = time.monotonic()
        self._steady_since = self._last_beat

    def start(self) -> None:
        """Beat until stopped."""
        self._deliveries.connect()
        self._last_beat = self._steady_since = time.monotonic()
        self._thread.start()

    def ask_to_stop(self) -> None:
        """Have the thread end soon, without waiting for it."""
        self._stop.set()
        self._wake.set()

    def hurry(self) -> None:
        """Beat at once, and once more soon: others wait for what this worker holds, as one was lost."""
        self._hurried = _HURRIED
        self._wake.set()

    def stop(self) -> None:
        """End the thread and withdraw the worker: its pool has ended."""
        self._deliveries.disconnect()
        self.ask_to_stop()
        self._thread.join()
        self._store.remove_worker(self._worker_id)

    def beat(self) -> None:
        """Count one heartbeat; a worker that was taken for dead announces itself again."""
        with fork_gate.inside():
            queues, plugins = self._get_queues(), self._plugin_names()
        # With the last of those that went by: they tell how far the broker has come with a queue.
        holding = held_attempt_ids(self._get_consumer()) | self._deliveries.report()
        alive = self._store.beat(self._worker_id, queues=queues, plugins=plugins, holding=sorted(holding))
        if not alive:
            logger.warning("others took this worker for dead and gave its tasks away; it announces itself again")
            self.announce()
        now = time.monotonic()
        if now - self._last_beat > self._longest_gap:
            self._steady_since = now
        self._last_beat = now

    def seconds_of_steady_watch(self) -> float:
        """For how long this worker's own heartbeats have succeeded without a gap; 0 while they do not."""
        now = time.monotonic()
        if now - self._last_beat > self._longest_gap:
            return 0.0
        return now - self._steady_since

    def _run(self) -> None:
        while not self._is_over():
            try:
                self.beat()
            except Exception as error:  # an outage, or a bug: the next beat is the answer to both
                self._last_beat = -math.inf  # the watch is not steady before the next success
                log_failure("a heartbeat", f"the next one follows in {self._interval:.1f} s", error)

    def _is_over(self) -> bool:
        """Wait until the next heartbeat is due; True when there is to be none."""
        self._wake.wait(self._interval * _HURRY if 0 < self._hurried < _HURRIED else self._interval)
        self._wake.clear()
        self._hurried = max(self._hurried - 1, 0)
        return self._stop.is_set()

    def announce(self) -> None:
        """Make the worker known, before it claims anything."""
        self._store.announce_worker(
            WorkerRow(
                id=self._worker_id,
                hostname=self._hostname,
                pid=os.getpid(),
                version=__version__,
                beat=0,
                queues=self._get_queues(),
                plugins=self._plugin_names(),
                holding=[],
            )
        )

    def _plugin_names(self) -> list[str]:
        """Task names that this worker runs."""
        return sorted(name for name in self._app.tasks if not name.startswith("celery."))


@dataclass(frozen=True)
class _Observed:
    """A worker's heartbeat counter, and since when by this observer's clock it has stood there."""

    beat: int
    since: float


class Watch:
    """Tells which other workers are dead."""

    def __init__(self, heart: Heart, *, dead_after: float) -> None:
        self._heart = heart
        self._dead_after = dead_after
        self._observed: dict[str, _Observed] = {}
        #: Whether a worker was found dead by the last look, or was not there any more.
        self.is_bereaved = False

    def find_dead(self, workers: list[WorkerRow], own_id: str) -> list[WorkerRow]:
        """Workers whose counter has stood still for ``dead_after`` seconds of steady watch."""
        now = time.monotonic()
        watched = self._heart.seconds_of_steady_watch()
        observed = {}
        dead = []
        for worker in workers:
            seen = self._observed.get(worker.id)
            if seen is None or seen.beat != worker.beat:
                seen = _Observed(worker.beat, now)
            observed[worker.id] = seen
            if worker.id != own_id and min(now - seen.since, watched) > self._dead_after:
                dead.append(worker)
        self.is_bereaved = bool(dead) or not self._observed.keys() <= observed.keys()
        self._observed = observed
        return dead

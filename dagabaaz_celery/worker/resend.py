"""Finding messages that the broker lost after it had accepted them.

A published task that waits longer than its lease is only suspect: a backlog may be long. It is lost when the broker
does not have it either. So a queue's books are balanced: tasks that the store says wait there, less messages that the
broker counts, less those that workers report to hold. What is missing is looked for among the longest waiting tasks,
and sent again when a second look, after every live worker has reported anew, finds the same ones still missing.

A worker that died may have taken messages with it: some brokers give them to nobody else before long. So the books of
its queues are balanced without waiting for leases, and if they miss as many as it had reported to hold, those are sent
again at once.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass

from celery import Celery

from dagabaaz_celery.stores.sql.owed import WorkerRow
from dagabaaz_celery.stores.sql.records import Dispatch
from dagabaaz_celery.stores.sql.store import SqlStore

logger = logging.getLogger(__name__)

_BATCH = 1000
#: Seconds within which every lease ends.
_EVER = 1e9


@dataclass(frozen=True)
class _Suspects:
    """Attempts that were missing at one look, and where every worker's heartbeat stood then.

    ``early``: their leases were not waited for.
    """

    attempt_ids: frozenset[str]
    beats: dict[str, int]
    early: bool


class LostMessages:
    """One worker's look for lost messages; any number of workers may look at once."""

    def __init__(self, app: Celery, store: SqlStore, publish: Callable[[list[Dispatch]], object]) -> None:
        self._app = app
        self._store = store
        self._publish = publish
        self._suspects: dict[str, _Suspects] = {}
        self._bereaved: set[str] = set()

    def mourn(self, dead: WorkerRow, living: list[WorkerRow]) -> None:
        """A worker died: send again what it had taken and the broker keeps back, and look at its queues early."""
        self._bereaved.update(dead.queues)
        waiting = self._store.list_waiting_queues(within=_EVER)
        held = _held_by(living)
        for queue in waiting.keys() & set(dead.queues):
            reported = self._store.count_queued_among(queue, dead.holding)
            if reported and self._count_missing(queue, waiting[queue], held) >= reported:
                taken = self._store.lease_lost_tasks(dead.holding, within=_EVER)
                logger.warning("worker %s took %d tasks with it: they are sent again", dead.hostname, len(taken))
                self._publish(taken)

    def resend(self, workers: list[WorkerRow]) -> None:
        """Look at every queue in which a task has waited for long; one small query when there is none."""
        waiting = self._store.list_waiting_queues()
        if self._bereaved:
            young = self._store.list_waiting_queues(within=self._store.policy.resend_after)
            self._bereaved &= young.keys()
            waiting |= {queue: young[queue] for queue in self._bereaved}
        self._suspects = {queue: found for queue, found in self._suspects.items() if queue in waiting}
        for queue, count in waiting.items():
            self._look_at(queue, count, workers)

    def _look_at(self, queue: str, waiting: int, workers: list[WorkerRow]) -> None:
        before = self._suspects.get(queue)
        beats = {worker.id: worker.beat for worker in workers}
        if before is not None and any(before.beats.get(id_, -1) == beat for id_, beat in beats.items()):
            return  # somebody may have taken messages that it has not reported yet
        early = queue in self._bereaved
        within = self._store.policy.resend_after if early else 0.0
        held = _held_by(workers)
        missing = self._count_missing(queue, waiting, held)
        found: frozenset[str] = frozenset()
        if missing > 0:
            found = frozenset(self._store.find_lost_candidates(queue, held, min(missing, _BATCH), within=within))
        self._suspects[queue] = _Suspects(found, beats, early)
        lost = found & before.attempt_ids if before is not None else frozenset()
        if lost:
            again = self._store.lease_lost_tasks(sorted(lost), within=within)
            logger.warning("the broker lost messages of queue %r: %d tasks are sent again", queue, len(again))
            self._publish(again)
        if early and before is not None and before.early:
            self._bereaved.discard(queue)

    def _count_missing(self, queue: str, waiting: int, held: list[str]) -> int:
        """Tasks of a queue that neither the broker nor a worker has, of those that wait."""
        return waiting - self._count_messages(queue) - self._store.count_queued_among(queue, held)

    def _count_messages(self, queue: str) -> int:
        """Messages that wait in the broker; a queue that is gone has none."""
        with self._app.connection_for_read() as connection:
            channel = connection.channel()
            try:
                return int(channel.queue_declare(queue=queue, passive=True).message_count)
            except connection.channel_errors:
                return 0


def _held_by(workers: list[WorkerRow]) -> list[str]:
    return [attempt_id for worker in workers for attempt_id in worker.holding]

"""Finding messages that the broker lost after it had accepted them.

A published task that waits longer than its lease is only suspect: a backlog may be long. But a queue gives out what it
got first. So a message is gone from the queue when one that was sent later to the same queue, with the same priority,
was given out; or when the queue was seen empty. Each such sight is a mark: what was sent before it must be with a
worker, or is lost. A mark counts when every live worker has reported anew what it holds, and, where it comes from a
later message, when that was given out a while ago.

The marks cost nothing where tasks run. They are read off what workers report to hold with their heartbeats.

A worker that died may have taken messages with it: some brokers give them to nobody else before long, others put them
back at once, ahead of everything. So new marks are made for its queues, and neither a lease nor a while is waited for.
What it had reported to hold is sent again at once, if the books of its queues miss as many.
"""

import logging
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field

from dagabaaz_celery.stores.sql.owed import WorkerRow
from dagabaaz_celery.stores.sql.records import Dispatch
from dagabaaz_celery.stores.sql.store import SqlStore
from dagabaaz_celery.stores.sql.transaction import MICROSECONDS
from dagabaaz_celery.worker.broker import Broker
from dagabaaz_celery.worker.publish import Publisher

logger = logging.getLogger(__name__)

_BATCH = 5000
#: Messages that are sent before it is noted that they were.
_SENT_AT_ONCE = 200
#: Workers that look, of all that live; the others need not.
_WATCHERS = 2
#: Heartbeats after which a report is certainly newer than a mark: one may have been under way.
_NEW_BEATS = 2
#: Microseconds by which the order of sending and that of being recorded as sent may differ between publishers.
_MARGIN = 2 * MICROSECONDS
#: The part of a lease after which marks are made, so that some count when it ends.
_WATCHED_FROM = 1 / 3
#: Seconds within which every lease ends.
_EVER = 1e9
_ANY_PRIORITY = object()


@dataclass(frozen=True)
class _Mark:
    """What was sent before ``sent_before`` had left the queue at ``at``; both by the database's clock."""

    sent_before: int
    at: int
    beats: dict[str, int]

    def is_reported(self, workers: Iterable[WorkerRow]) -> bool:
        """Whether every worker has told since what it holds."""
        return all(worker.beat >= self._last_beat(worker) + _NEW_BEATS for worker in workers)

    def _last_beat(self, worker: WorkerRow) -> int:
        """The one that was noted; none for a worker that was announced since, as one is that was taken for dead."""
        noted = self.beats.get(worker.id, 0)
        return noted if noted <= worker.beat else 0


@dataclass
class _Queue:
    """Marks by priority: those that do not count yet, and the one that does.

    ``bereaved``: a worker died that was served by this queue, and nothing has been found out since.
    """

    bereaved: bool = False
    young: dict[Hashable, list[_Mark]] = field(default_factory=dict)
    counting: dict[Hashable, int] = field(default_factory=dict)

    def forget(self) -> None:
        """Messages may have been put back ahead of what was given out."""
        self.young.clear()
        self.counting.clear()

    def add(self, priority: Hashable, mark: _Mark) -> None:
        """Note a mark that says more than those before."""
        marks = self.young.setdefault(priority, [])
        last = marks[-1].sent_before if marks else self.counting.get(priority, 0)
        if mark.sent_before > last:
            marks.append(mark)

    def grow(self, workers: Sequence[WorkerRow], now: int, *, patience: int) -> None:
        """Let marks count whose time has come; an empty queue, or a bereaved one, needs no ``patience``."""
        for priority, marks in self.young.items():
            wait = 0 if priority is _ANY_PRIORITY or self.bereaved else patience
            while marks and now - marks[0].at >= wait and marks[0].is_reported(workers):
                self.counting[priority] = marks.pop(0).sent_before

    def is_passed(self, priority: Hashable, sent_at: int) -> bool:
        """Whether a message that was sent then has left the queue."""
        return sent_at < max(self.counting.get(priority, 0) - _MARGIN, self.counting.get(_ANY_PRIORITY, 0))

    def last_mark(self) -> int:
        """Nothing that was sent later is known to have left."""
        return max(self.counting.values(), default=0)


class LostMessages:
    """One worker's look for lost messages; any number of workers may look at once."""

    def __init__(
        self,
        broker: Broker,
        store: SqlStore,
        publisher: Publisher,
        is_stopping: Callable[[], bool] = lambda: False,
        note: Callable[[str, int], None] = lambda action, count: None,
    ) -> None:
        self._is_stopping = is_stopping
        self._note = note
        self._broker = broker
        self._store = store
        self._publisher = publisher
        self._queues: dict[str, _Queue] = {}
        self._seen: set[str] = set()
        self._lost_links = broker.lost_links

    def mourn(self, dead: WorkerRow, living: Sequence[WorkerRow]) -> None:
        """A worker died: send again what it had taken and the broker keeps back, and look at its queues early."""
        waiting = self._store.list_waiting_queues(within=_EVER)
        held = sorted(_held_by(living))
        names = waiting.keys() & set(dead.queues)
        self._queues |= {name: _Queue(bereaved=True) for name in names}
        for name in names:
            reported = self._store.count_queued_among(name, dead.holding)
            if not reported:
                continue
            missing = waiting[name] - self._count_messages(name) - self._store.count_queued_among(name, held)
            if missing >= reported:
                taken = self._store.lease_lost_tasks(dead.holding, within=_EVER)
                logger.warning("worker %s took %d tasks with it: they are sent again", dead.hostname, len(taken))
                self._send_again(taken)

    def resend(self, workers: Sequence[WorkerRow], own_id: str) -> None:
        """Look at every queue in which a task has waited for a while; one small query when there is none."""
        bereaved = [name for name, queue in self._queues.items() if queue.bereaved]
        if not bereaved and own_id not in sorted(worker.id for worker in workers)[:_WATCHERS]:
            self._queues.clear()
            return
        patience = self._store.policy.resend_after
        now = self._store.read_clock()
        waiting = self._store.list_waiting_queues(within=patience * (1 if bereaved else 1 - _WATCHED_FROM))
        self._queues = {name: self._queues.get(name) or _Queue() for name in waiting}
        if not waiting:
            return
        beats = {worker.id: worker.beat for worker in workers}
        held = _held_by(workers)
        empty = [name for name in waiting if not self._count_messages(name)]
        self._mark_given_out(held, now, beats)
        for name, queue in self._queues.items():
            if name in empty:
                queue.add(_ANY_PRIORITY, _Mark(now, now, beats))
            queue.grow(workers, now, patience=int(patience * MICROSECONDS))
            if queue.counting:
                self._resend_passed(name, queue, held, within=patience if queue.bereaved else 0.0)
                queue.bereaved = False

    def _mark_given_out(self, held: set[str], now: int, beats: dict[str, int]) -> None:
        """What a worker holds has been given out, and so has all that was sent before it."""
        for found in self._store.find_published(sorted(held - self._seen)):
            queue = self._queues.get(found.queue)
            if queue is not None:
                mark = _Mark(found.queued_at, found.claimed_at or now, beats)
                queue.add(self._publisher.priority_of(found.dispatch), mark)
        self._seen = held

    def _resend_passed(self, name: str, queue: _Queue, held: set[str], *, within: float) -> None:
        again = 0
        limit = _BATCH + len(held)
        is_more = True
        while is_more:
            found = self._store.find_sent_before(name, queue.last_mark(), limit, within=within)
            lost = [
                dispatch.attempt_id
                for dispatch, sent_at in found
                if dispatch.attempt_id not in held and queue.is_passed(self._publisher.priority_of(dispatch), sent_at)
            ]
            leased = self._store.lease_lost_tasks(lost, within=within) if lost else []
            again += len(leased)
            is_more = bool(leased) and self._send_again(leased) and len(found) == limit
        if again:
            logger.warning("the broker lost messages of queue %r: %d tasks are sent again", name, again)

    def _send_again(self, leased: list[Dispatch]) -> bool:
        """Send and mark, bit by bit; whether all was sent. The rest is found again when its lease has ended."""
        for start in range(0, len(leased), _SENT_AT_ONCE):
            some = leased[start : start + _SENT_AT_ONCE]
            if self._is_stopping() or not self._publisher.publish(some):
                return False
            self._store.mark_resent([dispatch.attempt_id for dispatch in some])
            self._note("resend", len(some))
        return True

    def _count_messages(self, name: str) -> int:
        with self._broker.link() as link:
            lost_links = self._broker.lost_links
            if lost_links != self._lost_links:  # it was away: what workers had taken is ahead of the queue again
                for queue in self._queues.values():
                    queue.forget()
                self._lost_links = lost_links
            return link.count_messages(name)


def _held_by(workers: Iterable[WorkerRow]) -> set[str]:
    return {attempt_id for worker in workers for attempt_id in worker.holding}

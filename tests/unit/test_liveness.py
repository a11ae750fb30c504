"""Who is taken for dead: a heart against a store that may fail, by a clock that the test turns."""

import queue
import uuid
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from celery import Celery
from celery.worker import state as worker_state

from dagabaaz_celery.stores.sql.owed import WorkerRow
from dagabaaz_celery.stores.sql.tables import new_id
from dagabaaz_celery.worker import liveness
from dagabaaz_celery.worker.liveness import Heart, Watch, held_attempt_ids, longest_gap

INTERVAL = 0.01
DEAD_AFTER = 10 * INTERVAL
OTHER = WorkerRow("other", "there", 1, "1", beat=7, queues=[], plugins=[], holding=[])


@dataclass
class Clock:
    """Seconds that pass when told to."""

    seconds: float = 1000.0

    def monotonic(self) -> float:
        return self.seconds


class Store:
    """Heartbeats one by one: each waits for the answer that the test gives."""

    def __init__(self) -> None:
        self.asked: queue.Queue[None] = queue.Queue()
        self.answers: queue.Queue[bool | Exception] = queue.Queue()
        self.announced = 0

    def announce_worker(self, worker: WorkerRow) -> None:
        self.announced += 1

    def remove_worker(self, worker_id: str) -> None:
        pass

    def beat(self, worker_id: str, **_: Any) -> bool:
        self.asked.put(None)
        answer = self.answers.get(timeout=10)
        if isinstance(answer, Exception):
            raise answer
        return answer


@dataclass
class Beating:
    """A heart that has begun a beat and waits for the store's answer."""

    heart: Heart
    store: Store
    clock: Clock

    def go_on(self, *answers: bool | Exception, each: float = INTERVAL) -> None:
        """Answer a beat, ``each`` seconds after the one before, and so on; returns when all were taken in."""
        for answer in answers:
            self.clock.seconds += each
            self.store.answers.put(answer)
            self.store.asked.get(timeout=10)


@pytest.fixture
def beating(monkeypatch: pytest.MonkeyPatch) -> Iterator[Beating]:
    clock, store = Clock(), Store()
    monkeypatch.setattr(liveness, "time", clock)
    heart = Heart(
        Celery("liveness"), store, "own", hostname="here", get_queues=list, interval=INTERVAL, dead_after=DEAD_AFTER
    )
    heart.start()
    store.asked.get(timeout=10)
    yield Beating(heart, store, clock)
    heart.ask_to_stop()
    store.answers.put(True)
    heart.stop()


def test_a_counter_that_stands_still_through_a_steady_watch_is_a_death(beating: Beating):
    watch = Watch(beating.heart, dead_after=DEAD_AFTER)
    found = []

    for _ in range(12):
        found.append(watch.find_dead([OTHER], "own"))
        beating.go_on(True)

    assert found == [[]] * 11 + [[OTHER]]


def test_nobody_is_dead_by_a_watch_in_which_a_heartbeat_failed(beating: Beating):
    watch = Watch(beating.heart, dead_after=DEAD_AFTER)
    watch.find_dead([OTHER], "own")
    beating.go_on(*[True] * 9)

    beating.go_on(OSError("the database is away"))
    assert beating.heart.seconds_of_steady_watch() == 0
    beating.go_on(*[True] * 10)
    assert watch.find_dead([OTHER], "own") == []

    beating.go_on(*[True] * 2)
    assert watch.find_dead([OTHER], "own") == [OTHER]


def test_nobody_is_dead_by_a_watch_with_a_gap(beating: Beating):
    watch = Watch(beating.heart, dead_after=DEAD_AFTER)
    watch.find_dead([OTHER], "own")

    beating.go_on(True, each=100.0)

    assert watch.find_dead([OTHER], "own") == []


@pytest.mark.parametrize("dead_after", [3.0, 4.0, 6.0, 20.0])
def test_no_freeze_of_the_database_makes_a_worker_dead_that_beats_before_and_after(dead_after: float):
    # The other's last heartbeat was an interval before the freeze, and its next one follows the freeze.
    assert 1.0 + longest_gap(1.0, dead_after) < dead_after
    assert longest_gap(1.0, dead_after) > 1.0  # or every heartbeat would be a gap


def test_a_worker_that_was_taken_for_dead_announces_itself_again(beating: Beating):
    before = beating.store.announced

    beating.go_on(True, False, True)

    assert beating.store.announced == before + 1


@dataclass(eq=False)
class Request:
    """A message that Celery has taken."""

    id: str


class BusySet(weakref.WeakSet[Request]):
    """Requests, to which another thread adds whenever somebody is in the middle of them."""

    def __iter__(self) -> Iterator[Request]:
        for request in super().__iter__():
            more = Request(new_id())
            self.add(more)
            yield request


def test_tasks_with_ids_of_celery_are_not_reported_as_held(monkeypatch: pytest.MonkeyPatch):
    ours, foreign = Request(new_id()), Request(str(uuid.uuid4()))
    monkeypatch.setattr(worker_state, "requests", {request.id: request for request in (ours, foreign)})

    assert held_attempt_ids() == {ours.id}


def test_what_is_held_can_be_told_while_celery_takes_more(monkeypatch: pytest.MonkeyPatch):
    requests = [Request(new_id()) for _ in range(3)]
    monkeypatch.setattr(worker_state, "reserved_requests", BusySet(requests))

    assert held_attempt_ids() == {request.id for request in requests}


def test_a_heart_that_is_to_hurry_beats_at_once():
    store = Store()
    heart = Heart(
        Celery(set_as_current=False), store, "own", hostname="here", get_queues=list, interval=3600, dead_after=7200
    )
    heart.start()
    try:
        assert store.asked.empty()
        heart.hurry()
        store.asked.get(timeout=10)
    finally:
        store.answers.put(True)
        heart.ask_to_stop()
        heart.stop()


def test_whoever_sees_another_worker_dead_or_gone_is_bereaved_until_the_next_look(beating: Beating):
    watch = Watch(beating.heart, dead_after=DEAD_AFTER)
    looks = []
    for workers in ([OTHER], [OTHER], [], []):
        watch.find_dead(workers, "own")
        looks.append(watch.is_bereaved)

    assert looks == [False, False, True, False]

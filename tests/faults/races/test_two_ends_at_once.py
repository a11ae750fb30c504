"""Fault 11: events that exclude each other happen to one run at the same instant, and it ends once.

First each pair in an interleaving that is made to happen: one is held at its commit while the other waits for it. Then
all of them at random, again and again.
"""

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from sqlalchemy import event

from dagabaaz_celery.app import Dagabaaz
from dagabaaz_celery.constants import RUN_TERMINAL_STATUSES, FanMode, RunStatus
from dagabaaz_celery.models import DagNode
from dagabaaz_celery.stores.sql.invariants import find_violations
from dagabaaz_celery.stores.sql.records import TaskError
from dagabaaz_celery.stores.sql.store import SqlStore, Work
from tests.faults.conftest import StoreUnderTest
from tests.faults.races.pins import Background, LateCommit, Waiters
from tests.faults.races.racers import (
    Call,
    Crew,
    Seen,
    callbacks_of,
    cancel,
    claim,
    complete,
    crash,
    fail,
    pause,
    resume,
    retry,
    retry_task,
    store_of,
    tokens_of,
    work_on,
)
from tests.integration.sql_stores import attempts_of, node, records, start
from tests.integration.sql_stores import claim as claim_one
from tests.processes import wait_until

pytestmark = [pytest.mark.fault(11), pytest.mark.timeout(1800)]

SEED = 11
BOOM = TaskError("ValueError", "boom")
WIDTH = 4

#: Two roots, one of which fans out, and a join of everything.
NODES = [
    node("source"),
    node("other"),
    node("wide", "source"),
    node("join", "wide", "other", fan_mode=FanMode.AGGREGATE),
]


@dataclass
class Scene:
    """A run in flight: what is in its bodies, and what waits in a queue."""

    run_id: str
    works: list[Work] = field(default_factory=list)
    queued: list[str] = field(default_factory=list)


def begin(store: SqlStore, claimed: int, nodes: Sequence[DagNode] = NODES) -> Scene:
    """A run whose source has fanned out to ``WIDTH`` tasks; so many of its open tasks are claimed, "other" first."""
    started = start(store, *nodes)
    source, other = attempts_of(started)
    fan = store.complete(claim_one(store, source), records(WIDTH), "many")
    open_ = [other, *attempts_of(fan)]
    store.mark_queued(open_)
    return Scene(
        started.run.id,
        [claim_one(store, attempt_id) for attempt_id in open_[:claimed]],
        open_[claimed:],
    )


def begin_last(store: SqlStore) -> Scene:
    """A run of one task, which is in its body."""
    started = start(store, node("only"))
    return Scene(started.run.id, [claim_one(store, attempts_of(started)[0])])


def begin_failed(store: SqlStore) -> Scene:
    """A run that has failed while the rest of its bodies still run, and whose tasks were not cancelled yet."""
    scene = begin(store, claimed=1 + WIDTH)
    assert store.fail(scene.works.pop(), BOOM) is not None
    return scene


# -- what holds in the end


def come_to_rest(dag: Dagabaaz, scene: Scene, seen: Sequence[Seen]) -> str:
    """Let every body that runs end, and run whatever is still open; the run's status when it is over.

    Then every end has its callback, one for each generation, no invariant is broken, and nobody claimed anything once
    a cancel that ended the run had returned.
    """
    store = store_of(dag)
    run = dag.run(scene.run_id)
    resume(dag, scene.run_id)
    for work in [*scene.works, *(each.work for each in seen if each.work is not None)]:
        complete(dag, work)
    while run.status not in RUN_TERMINAL_STATUSES:
        waiting = [task.attempt_id for task in run.tasks() if task.status in ("pending", "queued")]
        assert waiting, f"the run is {run.status} and nothing of it is open that could end it: {run.snapshot()}"
        assert all(work_on(dag, attempt_id).won for attempt_id in waiting)
    row = store.get_run(scene.run_id)
    ends = callbacks_of(store, scene.run_id)
    assert [generation for generation, _ in ends] == list(range(1, row.generation + 1))
    assert ends[-1][1] == row.status
    forget_callbacks(store, scene.run_id)
    assert find_violations(store, [scene.run_id], at_rest=True) == []
    if row.status == RunStatus.CANCELLED:
        for tokens in filter(None, (each.tokens for each in seen)):
            assert tokens_of(store, scene.run_id) == tokens
    return str(row.status)


def forget_callbacks(store: SqlStore, run_id: str) -> None:
    """Deliver what is owed of a run, to nobody, whoever holds its lease."""
    owed = store.tables.owed
    with store.database.write() as connection:
        connection.execute(owed.delete().where(owed.c.run_id == run_id, owed.c.kind == "callback"))


# -- made to happen


@dataclass(frozen=True)
class Meeting:
    """Two calls, the first held at its commit while the second comes; what each wins, and how the run ends.

    ``begin`` makes the run; a call is given the dag and the scene.
    """

    begin: Callable[[SqlStore], Scene]
    first: Callable[[Dagabaaz, Scene], Seen]
    second: Callable[[Dagabaaz, Scene], Seen]
    won: tuple[bool, bool]
    ends: str
    #: Whether the second waits for the first on a server too, where readers and guards on other rows do not.
    waits: bool = True


def of_run(function: Callable[[Dagabaaz, str], Seen]) -> Callable[[Dagabaaz, Scene], Seen]:
    """A call on the scene's run."""
    return lambda dag, scene: function(dag, scene.run_id)


def of_work(function: Callable[[Dagabaaz, Work], Seen], number: int = 0) -> Callable[[Dagabaaz, Scene], Seen]:
    """A call on something that is in its body."""
    return lambda dag, scene: function(dag, scene.works[number])


def claim_queued(dag: Dagabaaz, scene: Scene) -> Seen:
    """Claim the first task that waits in a queue."""
    return claim(dag, scene.queued[0])


def begin_wide(store: SqlStore) -> Scene:
    return begin(store, claimed=1 + WIDTH)


def begin_one_waiting(store: SqlStore) -> Scene:
    return begin(store, claimed=WIDTH)


MEETINGS = {
    "the last completes, and a cancel comes": Meeting(
        begin_last, of_work(complete), of_run(cancel), (True, True), "completed"
    ),
    "a cancel, and the last completes": Meeting(
        begin_last, of_run(cancel), of_work(complete), (True, True), "cancelled"
    ),
    "a failure, and a sibling closes its node": Meeting(
        begin_wide, of_work(fail, 1), of_work(complete), (True, True), "failed"
    ),
    "a sibling closes its node, and a failure comes": Meeting(
        begin_wide, of_work(complete), of_work(fail, 1), (True, True), "failed"
    ),
    "a failure, and another": Meeting(begin_wide, of_work(fail, 0), of_work(fail, 1), (True, True), "failed"),
    "a failure, and a crash": Meeting(begin_wide, of_work(fail, 0), of_work(crash, 1), (True, True), "failed"),
    "a failure, and a cancel": Meeting(begin_wide, of_work(fail, 0), of_run(cancel), (True, True), "failed"),
    "a cancel, and a failure": Meeting(begin_wide, of_run(cancel), of_work(fail, 0), (True, True), "cancelled"),
    "a failure and a success of one attempt": Meeting(
        begin_last, of_work(fail), of_work(complete), (True, False), "failed"
    ),
    "a success and a failure of one attempt": Meeting(
        begin_last, of_work(complete), of_work(fail), (True, False), "completed"
    ),
    "a late success, and a retry of the run": Meeting(
        begin_failed, of_work(complete), of_run(retry), (True, True), "completed"
    ),
    "a retry of the run, and a late success": Meeting(
        begin_failed, of_run(retry), of_work(complete), (True, False), "completed"
    ),
    "a retry of the run, and a late failure": Meeting(
        begin_failed, of_run(retry), of_work(fail), (True, False), "completed"
    ),
    "two retries of the run": Meeting(begin_failed, of_run(retry), of_run(retry), (True, False), "completed"),
    "a retry of the run, and a cancel": Meeting(begin_failed, of_run(retry), of_run(cancel), (True, True), "cancelled"),
    "two cancels": Meeting(begin_wide, of_run(cancel), of_run(cancel), (True, True), "cancelled"),
    "a claim, and a cancel": Meeting(begin_one_waiting, claim_queued, of_run(cancel), (True, True), "cancelled"),
    "a claim, and a pause": Meeting(
        begin_one_waiting, claim_queued, of_run(pause), (True, True), "completed", waits=False
    ),
    "a pause, and a claim": Meeting(
        begin_one_waiting, of_run(pause), claim_queued, (True, True), "completed", waits=False
    ),
    "a body asks for a retry, and a cancel comes": Meeting(
        begin_last, of_work(retry_task), of_run(cancel), (True, True), "cancelled"
    ),
}


@pytest.mark.parametrize("meeting", MEETINGS.values(), ids=MEETINGS)
def test_two_meet_at_a_slow_commit(here: Dagabaaz, there: Dagabaaz, meeting: Meeting) -> None:
    scene = meeting.begin(store_of(here))
    is_server = store_of(here).database.engine.dialect.name != "sqlite"
    with LateCommit(store_of(here)) as late, Waiters(store_of(there)) as waiters:
        first = Background(lambda: meeting.first(here, scene))
        late.wait_until_held()
        second = Background(lambda: meeting.second(there, scene))
        wait_until(lambda: second.is_done or waiters.count() == 1, "the second waits, or is done")
        assert second.is_done == (is_server and not meeting.waits)
        late.release()
        seen = first.result(), second.result()
    if is_server:
        assert (seen[0].won, seen[1].won) == meeting.won
    else:  # what follows the first's commit may come before the second, which sees all of the first
        assert seen[0].won
    assert come_to_rest(here, scene, seen) == meeting.ends


def test_no_cancel_returns_before_a_claim_that_may_still_commit(here: Dagabaaz, there: Dagabaaz) -> None:
    """Not a second cancel either, which finds the run cancelled."""
    if store_of(here).database.engine.dialect.name == "sqlite":
        pytest.skip("SQLite writes one transaction at a time: a claim commits before a cancel can")
    # Given a claim that has won and is held at its commit
    scene = begin_one_waiting(store_of(here))
    with LateCommit(store_of(here)) as late, Waiters(store_of(there)) as waiters:
        claiming = Background(lambda: claim_queued(here, scene))
        late.wait_until_held()
        # When the run is cancelled, and the impatient user cancels it again
        cancels = [Background(lambda: cancel(there, scene.run_id))]
        wait_until(lambda: waiters.count() == 1, "the first cancel waits for the claim")
        cancels.append(Background(lambda: cancel(there, scene.run_id)))
        # Then neither returns before that claim
        wait_until(lambda: waiters.count() == 2 or any(each.is_done for each in cancels), "both wait")
        assert not any(each.is_done for each in cancels)
        late.release()
        seen = [each.result() for each in (claiming, *cancels)]
    assert come_to_rest(here, scene, seen) == "cancelled"


@pytest.mark.parametrize("store", ["postgresql", "mariadb"], indirect=True)
def test_a_task_that_goes_back_to_pending_while_it_is_looked_for_is_cancelled(here: Dagabaaz, there: Dagabaaz) -> None:
    # Given a run that was cancelled with a body in it
    store = store_of(here)
    scene = begin_last(store)
    moved: list[str] = []

    def go_back(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        if not moved and store.tables.task.name in statement:
            moved.append(statement)
            assert retry_task(there, scene.works[0]).won

    (cancellation,) = (owed for owed in store.cancel(scene.run_id, "enough").owed if owed.kind == "cancel")
    # When that body asks for a retry just after the cancellation had its first look at the tasks
    event.listen(store.database.engine, "after_cursor_execute", go_back)
    try:
        store.cancel_rest(cancellation)
    finally:
        event.remove(store.database.engine, "after_cursor_execute", go_back)
    # Then it is found all the same
    assert moved
    assert come_to_rest(here, scene, []) == "cancelled"


# -- at random

#: For each contest the scene, and what is called on it at once.
CONTESTS: dict[str, tuple[Callable[[SqlStore], Scene], Callable[[Scene], list[Call]]]] = {
    "a cancel against the last success": (
        begin_last,
        lambda scene: [Call(cancel, scene.run_id), Call(complete, scene.works[0])],
    ),
    "a cancel against claims": (
        lambda store: begin(store, claimed=1),
        lambda scene: [
            Call(cancel, scene.run_id),
            Call(complete, scene.works[0]),
            *(Call(claim, each) for each in scene.queued),
        ],
    ),
    "two cancels against claims": (
        lambda store: begin(store, claimed=1),
        lambda scene: [Call(cancel, scene.run_id)] * 2 + [Call(claim, each) for each in scene.queued],
    ),
    "a cancel against retries of tasks": (
        begin_wide,
        lambda scene: [Call(cancel, scene.run_id), *(Call(retry_task, each) for each in scene.works)],
    ),
    "a failure against siblings' successes": (
        begin_wide,
        lambda scene: [Call(fail, scene.works[0]), *(Call(complete, each) for each in scene.works[1:])],
    ),
    "every kind of end": (
        begin_wide,
        lambda scene: [
            Call(fail, scene.works[0]),
            Call(fail, scene.works[1]),
            Call(crash, scene.works[2]),
            Call(complete, scene.works[3]),
            Call(cancel, scene.run_id),
        ],
    ),
    "a retry against late outcomes": (
        begin_failed,
        lambda scene: [
            Call(retry, scene.run_id),
            Call(fail, scene.works[0]),
            *(Call(complete, each) for each in scene.works[1:]),
        ],
    ),
    "two retries": (
        begin_failed,
        lambda scene: [Call(retry, scene.run_id)] * 2 + [Call(complete, each) for each in scene.works],
    ),
    "a retry against a cancel": (
        begin_failed,
        lambda scene: [Call(retry, scene.run_id), Call(cancel, scene.run_id), Call(complete, scene.works[0])],
    ),
    "a pause and a resume against claims": (
        lambda store: begin(store, claimed=1),
        lambda scene: [
            Call(pause, scene.run_id),
            Call(resume, scene.run_id),
            *(Call(claim, each) for each in scene.queued),
        ],
    ),
    "a pause against successes and a cancel": (
        begin_wide,
        lambda scene: [
            Call(pause, scene.run_id),
            Call(cancel, scene.run_id),
            *(Call(complete, each) for each in scene.works),
        ],
    ),
}


@pytest.mark.parametrize(("begin_scene", "calls_of"), CONTESTS.values(), ids=CONTESTS)
def test_many_things_happen_at_once(
    here: Dagabaaz,
    store: StoreUnderTest,
    crew: Crew,
    begin_scene: Callable[[SqlStore], Scene],
    calls_of: Callable[[Scene], list[Call]],
    scale: Callable[[int, int], int],
    record: Callable[[str, float, str], None],
) -> None:
    chance = random.Random(SEED)
    ends: Counter[str] = Counter()
    turns = scale(6, 400)
    for _ in range(turns):
        scene = begin_scene(store_of(here))
        calls = calls_of(scene)
        chance.shuffle(calls)
        spread = chance.choice([0.0, 0.001, 0.004])
        seen = crew.race(store.url, store.prefix, [replace(call, offset=chance.uniform(0, spread)) for call in calls])
        ends[come_to_rest(here, scene, seen)] += 1
    for end, count in ends.items():
        record(f"two ends at once: {end}", count, "runs")

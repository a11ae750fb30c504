"""Fault 10: the last parents of a node complete at the same instant, and the node launches once."""

import logging
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any

import pytest
from sqlalchemy import event

from dagabaaz_celery.app import Dagabaaz
from dagabaaz_celery.constants import FanMode
from dagabaaz_celery.stores.sql.invariants import find_violations
from dagabaaz_celery.stores.sql.store import SqlStore, Started, Work
from tests.faults.conftest import StoreUnderTest
from tests.faults.races.pins import PATIENCE, Background, LateCommit, Waiters, run_locked
from tests.faults.races.racers import Call, Crew, claim, complete, open_dag, store_of
from tests.integration.sql_stores import attempts_of, node, records, start
from tests.integration.sql_stores import claim as claim_one
from tests.processes import wait_until

pytestmark = [pytest.mark.fault(10), pytest.mark.timeout(1800)]

SEED = 20261122


def start_parent_nodes(store: SqlStore, count: int) -> tuple[Started, list[str]]:
    """A run of so many parents of one join, and one more that has completed; the others' attempts."""
    parents = [f"p{number}" for number in range(count + 1)]
    started = start(store, *map(node, parents), node("child", *parents, fan_mode=FanMode.AGGREGATE))
    first, *others = attempts_of(started)
    store.complete(claim_one(store, first), records(1), "one")
    return started, others


def start_wide_node(store: SqlStore, count: int) -> tuple[Started, list[str]]:
    """A run of one node of so many tasks, and one more that has completed; the others' attempts."""
    started = start(store, node("source"), node("wide", "source"), node("child", "wide", fan_mode=FanMode.AGGREGATE))
    (root,) = attempts_of(started)
    fan = store.complete(claim_one(store, root), records(count + 1), "many")
    first, *others = attempts_of(fan)
    store.complete(claim_one(store, first), records(1), "one")
    return started, others


@pytest.mark.parametrize("begin", [start_parent_nodes, start_wide_node], ids=["parent nodes", "tasks of one node"])
@pytest.mark.parametrize(("count", "short"), [(2, 20), (50, 3)], ids=["the last 2", "the last 50"])
def test_the_last_complete_at_the_same_instant(
    here: Dagabaaz,
    store: StoreUnderTest,
    crew: Crew,
    begin: Callable[[SqlStore, int], tuple[Started, list[str]]],
    count: int,
    short: int,
    scale: Callable[[int, int], int],
    record: Callable[[str, float, str], None],
) -> None:
    chance = random.Random(SEED)
    ours = store_of(here)
    turns = scale(short, 1000)
    for turn in range(turns):
        # Given a join whose last parents are all in their bodies
        started, attempts = begin(ours, count)
        works = [seen.work for seen in crew.race(store.url, store.prefix, [Call(claim, each) for each in attempts])]
        # When all of them complete at the same instant, or within a millisecond
        spread = 0.001 * (turn % 2)
        calls = [Call(complete, work, chance.uniform(0, spread)) for work in works]
        seen = crew.race(store.url, store.prefix, calls)
        # Then every completion counts, and one of them launches the join, once
        assert all(each.won for each in seen)
        launched = [attempt_id for each in seen for attempt_id in each.launched]
        assert len(launched) == 1
        finish(ours, launched[0])
        assert find_violations(ours, [started.run.id], at_rest=True) == []
    record(f"joins of the last {count} at once", turns, "joins")


@pytest.mark.parametrize("begin", [start_parent_nodes, start_wide_node], ids=["parent nodes", "tasks of one node"])
def test_the_last_two_meet_at_a_slow_commit(
    here: Dagabaaz, there: Dagabaaz, begin: Callable[[SqlStore, int], tuple[Started, list[str]]]
) -> None:
    ours, theirs = store_of(here), store_of(there)
    # Given that one of the last two has done everything and is held at its commit
    started, attempts = begin(ours, 2)
    first_work, second_work = (claim_one(ours, attempt_id) for attempt_id in attempts)
    with LateCommit(ours) as late, Waiters(theirs) as waiters:
        first = Background(lambda: ours.complete(first_work, records(1), "one"))
        late.wait_until_held()
        # When the other one completes meanwhile, and waits for it
        second = Background(lambda: theirs.complete(second_work, records(1), "one"))
        wait_until(lambda: waiters.count() == 1, "the second waits for the first")
        late.release()
        # Then it sees what the first has done, and launches the join
        assert attempts_of(first.result()) == []
        launched = attempts_of(second.result())
    assert len(launched) == 1
    finish(ours, launched[0])
    assert find_violations(ours, [started.run.id], at_rest=True) == []


def test_parents_that_have_all_counted_wait_for_the_run(here: Dagabaaz, there: Dagabaaz, store: StoreUnderTest) -> None:
    ours, theirs = store_of(here), store_of(there)
    # Given that the last two have each closed their own node, unseen by the other, before either has the run's lock
    started, attempts = start_parent_nodes(ours, 2)
    first_work, second_work = (claim_one(ours, attempt_id) for attempt_id in attempts)
    with closing(open_dag(store.url, store.prefix)) as holder, Waiters(ours, theirs) as waiters:
        with run_locked(store_of(holder), started.run.id):
            both = [
                Background(lambda: ours.complete(first_work, records(1), "one")),
                Background(lambda: theirs.complete(second_work, records(1), "one")),
            ]
            wait_until(lambda: waiters.count() == 2, "both wait for the run")
        # When the lock comes free, then the one who gets it last launches the join
        launched = [attempt_id for each in both for attempt_id in attempts_of(each.result())]
    assert len(launched) == 1
    finish(ours, launched[0])
    assert find_violations(ours, [started.run.id], at_rest=True) == []


@pytest.mark.parametrize("store", ["postgresql", "mariadb"], indirect=True)
def test_whoever_loses_a_deadlock_completes_all_the_same(
    here: Dagabaaz, there: Dagabaaz, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, logger="dagabaaz_celery.stores.sql.database")
    # Given two completions, each of which holds the other's node and asks for its own: a deadlock
    ours, theirs = store_of(here), store_of(there)
    started, attempts = start_parent_nodes(ours, 2)
    first_work, second_work = (claim_one(ours, attempt_id) for attempt_id in attempts)
    crossing = threading.Barrier(2)
    with (
        locking_node_once(ours, second_work, crossing) as first_tries,
        locking_node_once(theirs, first_work, crossing) as second_tries,
    ):
        # When the server ends it by sending one of them back
        both = [
            Background(lambda: ours.complete(first_work, records(1), "one")),
            Background(lambda: theirs.complete(second_work, records(1), "one")),
        ]
        launched = [attempt_id for each in both for attempt_id in attempts_of(each.result())]
    # Then that one does all of it again, and the join launches once
    assert sorted([len(first_tries), len(second_tries)]) == [1, 2]
    assert caplog.text.count("lost a conflict") == 1
    assert len(launched) == 1
    finish(ours, launched[0])
    assert find_violations(ours, [started.run.id], at_rest=True) == []


@contextmanager
def locking_node_once(store: SqlStore, of: Work, crossing: threading.Barrier) -> Iterator[list[str]]:
    """The store's next completion begins by locking this work's node, and goes on once both have done so.

    Gives the completions that were sent: one for each try.
    """
    sent: list[str] = []
    node_table, task_table = store.tables.node, store.tables.task
    key = (node_table.c.run_id == of.attempt.run_id, node_table.c.node_index == of.attempt.node_index)
    extra = node_table.select().where(*key).with_for_update()

    def note(connection: Any, cursor: Any, statement: str, parameters: Any, context: Any, executemany: bool) -> None:
        if f"UPDATE {task_table.name}" in statement:
            sent.append(statement)
            if len(sent) == 1:
                connection.execute(extra).all()
                crossing.wait(PATIENCE)

    event.listen(store.database.engine, "before_cursor_execute", note)
    try:
        yield sent
    finally:
        event.remove(store.database.engine, "before_cursor_execute", note)


def finish(store: SqlStore, attempt_id: str) -> None:
    """Complete the last task of a run and deliver its callback."""
    last = store.complete(claim_one(store, attempt_id), [], "none")
    assert [owed.kind for owed in last.owed] == ["callback"]
    store.settle_owed(last.owed[0])

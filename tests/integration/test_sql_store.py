"""What the SQL store promises beyond the protocols: costs, lost answers, half-written launches, ends and debts."""

import gc
import json
import os
import signal
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from celery.exceptions import SoftTimeLimitExceeded
from sqlalchemy import Connection, NullPool, create_engine, event, literal, select, text
from sqlalchemy.exc import DBAPIError, IntegrityError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from dagabaaz_celery.constants import FanMode, RunStatus, TaskStatus
from dagabaaz_celery.errors import KeyConflict, RunStateError, StoreError, StoreSchemaError, UnknownRun
from dagabaaz_celery.models import TaskArtifact
from dagabaaz_celery.stores.sql.dialects import now
from dagabaaz_celery.stores.sql.direct import Direct
from dagabaaz_celery.stores.sql.drivers import Sent, psycopg_driver
from dagabaaz_celery.stores.sql.invariants import find_violations
from dagabaaz_celery.stores.sql.outages import CommitUnanswered, is_outage
from dagabaaz_celery.stores.sql.owed import WorkerRow
from dagabaaz_celery.stores.sql.records import Aftermath, ClaimRefused, NewArtifact, Owed, TaskError
from dagabaaz_celery.stores.sql.store import SqlStore, Work
from dagabaaz_celery.stores.sql.tables import new_id
from dagabaaz_celery.stores.sql.transaction import StorePolicy
from tests import services
from tests.faults.races.pins import Waiters
from tests.integration.celery_support import wait_until
from tests.integration.sql_stores import (
    attempts_of,
    claim,
    counting_statements,
    node,
    noting_round_trips,
    records,
    start,
)

BOOM = TaskError("ValueError", "boom", "Traceback …")


SERVERS = {
    "postgresql": services.postgres_url,
    "pgbouncer": services.pgbouncer_url,
    "mariadb": services.mysql_url,
}


@pytest.fixture(scope="module", params=["sqlite", *SERVERS])
def opened(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SqlStore]:
    """A store with tables of its own for this module's tests: making them takes a second on a server."""
    if request.param in SERVERS:
        url, prefix = SERVERS[request.param](), f"s{new_id()[-8:]}_"
    else:
        url, prefix = f"sqlite:///{tmp_path_factory.mktemp('store') / 'runs.sqlite3'}", "dagabaaz_"
    made = SqlStore(url, prefix=prefix, policy=StorePolicy(launch_batch=10))
    assert made.id  # opened
    yield made
    with made.database.write() as connection:
        made.tables.metadata.drop_all(connection)
        connection.execute(text(f"DROP TABLE {made.tables.prefix}schema_version"))
    made.close()


@pytest.fixture
def store(opened: SqlStore) -> SqlStore:
    """The store, empty."""
    with opened.database.write() as connection:
        for table in (
            opened.tables.run,
            opened.tables.tag,
            opened.tables.node,
            opened.tables.task,
            opened.tables.attempt,
        ):
            connection.execute(table.delete())
        for table in (opened.tables.artifact, opened.tables.owed, opened.tables.pipeline, opened.tables.worker):
            connection.execute(table.delete())
    return opened


# -- what a step costs


def of_database(store: SqlStore, *, sqlite: int, postgresql: int, mysql: int) -> int:
    """What a step costs there: each can say more, or less, in one statement."""
    backend = store.database.url.get_backend_name()
    return {"sqlite": sqlite, "postgresql": postgresql}.get(backend, mysql)


def test_a_completion_that_closes_nothing_costs_the_same_at_any_width(store: SqlStore):
    costs = []
    for width in (2, 10):
        roots = start(store, node("source"), node("work", "source"))
        first = store.complete(claim(store, attempts_of(roots)[0]), records(width), "many")
        work = claim(store, attempts_of(first)[0])
        with counting_statements(store) as sent:
            store.complete(work, records(1), "one")
        costs.append(len(sent))

    # The guard, the artifact, the counter: in one, in guard and counter together, each by itself.
    assert costs == [of_database(store, sqlite=3, postgresql=1, mysql=2)] * 2


def test_a_claim_reads_its_input_with_it(store: SqlStore):
    roots = start(store, node("source"), node("work", "source"))
    fan = store.complete(claim(store, attempts_of(roots)[0]), records(1), "one")

    with counting_statements(store) as sent:
        claim(store, attempts_of(fan)[0])

    assert len(sent) == of_database(store, sqlite=2, postgresql=1, mysql=2)


def test_starts_and_what_every_task_does_make_few_round_trips_on_servers(store: SqlStore):
    def count(call: Callable[[], Any]) -> tuple[Any, int]:
        made: list[Sequence[Sent]] = []
        with noting_round_trips(made.append):
            return call(), len(made)

    nodes = node("source"), node("work", "source"), node("next", "work")
    start(store, *nodes)  # keeps the definition
    roots, for_start = count(lambda: start(store, *nodes, key="once", tags={"customer": "42"}))
    fan = store.complete(claim(store, attempts_of(roots)[0]), records(2), "many")

    first, for_claim = count(lambda: claim(store, attempts_of(fan)[0]))
    _, for_completion = count(lambda: store.complete(first, records(1), "one"))
    last = claim(store, attempts_of(fan)[1])
    assert last.left == 1
    _, for_closing = count(lambda: store.complete(last, records(1), "one"))

    # Is it there; the run; its first tasks with the COMMIT.
    assert for_start == of_database(store, sqlite=13, postgresql=3, mysql=3)
    # Closing a node: what is read, and with the COMMIT what is written. SQLite has nobody to wait for.
    assert for_claim == of_database(store, sqlite=2, postgresql=1, mysql=1)
    assert for_completion == of_database(store, sqlite=4, postgresql=1, mysql=1)  # MariaDB: and its COMMIT
    assert for_closing == of_database(store, sqlite=12, postgresql=2, mysql=2)


@pytest.mark.parametrize("length", [5, 200])
def test_closing_a_node_of_a_chain_costs_the_same_at_any_length(store: SqlStore, length: int):
    chain = [node("n0"), *(node(f"n{i}", f"n{i - 1}") for i in range(1, length))]
    work = claim(store, attempts_of(start(store, *chain))[0])

    with counting_statements(store) as sent:
        store.complete(work, records(1), "one")

    # guard, artifact, counter; lock, neighbours; routing; close, task, launched, progress
    assert len(sent) == of_database(store, sqlite=10, postgresql=7, mysql=10)


def test_closing_a_node_reads_only_its_neighbourhood(store: SqlStore):
    wide = [node("root"), *(node(f"n{i}", "root") for i in range(300)), node("other"), node("child", "other")]
    started = start(store, *wide)
    other = claim(store, attempts_of(started)[1])

    with counting_statements(store) as sent:
        store.complete(other, records(1), "one")

    assert len(sent) == of_database(store, sqlite=10, postgresql=7, mysql=10)


def test_a_completion_that_is_cut_off_before_its_artifact_is_written_was_none(store: SqlStore):
    work, *_ = fan_out(store, 3)

    def interrupt(connection: Connection, cursor: Any, statement: str, *_: Any) -> None:
        if f"INSERT INTO {store.tables.artifact.name}" in statement:
            raise SoftTimeLimitExceeded

    event.listen(store.database.engine, "before_cursor_execute", interrupt)
    with pytest.raises(SoftTimeLimitExceeded):
        store.complete(work, records(1), "one")
    event.remove(store.database.engine, "before_cursor_execute", interrupt)

    assert [n.tasks_done for n in store.get_nodes(work.attempt.run_id)] == [1, 0, 0]
    assert store.complete(work, records(1), "one") == Aftermath()
    assert find_violations(store, [work.attempt.run_id]) == []


def test_a_statement_that_a_signal_cuts_off_spoils_nothing(store: SqlStore):
    """SQLite would keep to what it saw then as long as the error lives; a server's answer would still be to come."""
    run_id = start(store, node("a")).run.id

    def cut_off(batch: Sequence[Sent]) -> None:
        if any(f"FROM {store.tables.run.name}" in sent.text for sent in batch):  # where the run is locked
            raise SoftTimeLimitExceeded

    with noting_round_trips(cut_off), pytest.raises(SoftTimeLimitExceeded) as error:
        store.cancel(run_id, "cut off")
    other = SqlStore(store.url, prefix=store.tables.prefix)
    start(other, node("a"))
    other.close()

    assert store.cancel(run_id, "again").ended_run
    del error  # it was to live until here


def test_an_error_among_what_travels_together_is_raised_and_spoils_nothing(store: SqlStore):
    run_id = start(store, node("a")).run.id
    bad, good = Direct(text("SELECT nothing FROM nowhere")), Direct(select(literal(7).label("seven")))

    def fail(connection: Connection) -> None:
        store.rows.runs.set_nodes_done(connection, run_id, 5)
        asked = [bad.ask(connection, {}), good.ask(connection, {})]
        asked[1].all()

    for _ in range(3):  # the first time statements are prepared, or would have been
        with pytest.raises(DBAPIError):
            store.transact(fail)
        with store.database.write() as connection:
            assert [tuple(row) for row in good.all(connection, {})] == [(7,)]

    assert store.get_run(run_id).nodes_done == 0  # all was rolled back


def test_an_error_of_the_database_is_told_from_the_one_that_is_being_handled(store: SqlStore):
    """A body may have failed by an error of the same driver, as the handler of some other error of its own."""
    bad = Direct(text("SELECT nothing FROM nowhere"))
    driver_error = store.database.engine.dialect.loaded_dbapi.Error

    def ask_twice(connection: Connection) -> None:
        asked = [bad.ask(connection, {}), bad.ask(connection, {})]
        asked[1].all()

    bodys_own = driver_error("the body's database")
    bodys_own.__context__ = KeyError("what it was handling")
    try:
        raise bodys_own
    except driver_error:
        with pytest.raises(DBAPIError, match="nowhere"):
            store.transact(ask_twice)


def test_a_transaction_that_a_signal_cuts_off_as_it_begins_ends_all_the_same(store: SqlStore):
    """As Celery's soft time limit does it, which comes at any moment."""
    attempt_id = attempts_of(start(store, node("a")))[0]

    def interrupt(connection: Connection) -> None:
        raise SoftTimeLimitExceeded

    event.listen(store.database.engine, "begin", interrupt)
    with pytest.raises(SoftTimeLimitExceeded), store.database.write():
        raise AssertionError
    event.remove(store.database.engine, "begin", interrupt)
    claim(store, attempt_id)

    other = SqlStore(store.url, prefix=store.tables.prefix)
    assert isinstance(other.claim(attempt_id, new_id(), None), ClaimRefused)  # it sees the claim of the first
    other.close()


# -- lost answers: what was committed and not heard is asked again


def test_a_repeated_claim_finds_itself(store: SqlStore):
    attempt_id = attempts_of(start(store, node("a")))[0]
    token = new_id()

    first = store.claim(attempt_id, token, None)
    again = store.claim(attempt_id, token, None)

    assert first == again
    assert isinstance(store.claim(attempt_id, new_id(), None), ClaimRefused)


def test_a_repeated_outcome_changes_nothing(store: SqlStore):
    work = claim(store, attempts_of(start(store, node("a"), node("b", "a")))[0])

    first = store.complete(work, records(2), "many")
    again = store.complete(work, records(2), "many")

    assert len(attempts_of(first)) == 2
    assert again is not None
    assert attempts_of(again) == []
    assert [n.tasks_done for n in store.get_nodes(work.attempt.run_id)] == [1, 0]


def test_a_repeated_start_finds_its_run(store: SqlStore):
    run_id = new_id()

    first = start(store, node("a"), run_id=run_id)
    again = start(store, node("a"), run_id=run_id)

    assert (first.run.id, again.run.id) == (run_id, run_id)
    assert attempts_of(again) == []
    assert [run.id for run in store.search_runs()] == [run_id]


def test_an_outcome_under_another_token_is_refused(store: SqlStore):
    work = claim(store, attempts_of(start(store, node("a")))[0], worker_id=new_id())

    rescued = store.rescue(work, TaskError("WorkerLost", "it died"), max_recoveries=3)
    late = store.complete(work, records(1), "one")

    assert len(attempts_of(rescued)) == 1
    assert late is None
    assert store.get_nodes(work.attempt.run_id)[0].tasks_done == 0


# -- keys


def test_the_same_key_and_input_give_the_same_run_once(store: SqlStore):
    barrier = threading.Barrier(6)
    found = []

    def begin() -> None:
        barrier.wait(10)
        found.append(start(store, node("a"), key="order-42"))

    threads = [threading.Thread(target=begin) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)

    assert len({each.run.id for each in found}) == 1
    assert sorted(each.created for each in found) == [False] * 5 + [True]


def test_the_same_key_with_other_input_is_a_conflict(store: SqlStore):
    first = start(store, node("a"), key="order-42")

    with pytest.raises(KeyConflict, match="order-42"):
        store.start(
            store.definition_of(first.run.definition_hash).definition, '{"x":1}', run_id=new_id(), key="order-42"
        )

    assert len(store.search_runs()) == 1


# -- wide launches


def test_a_wide_launch_is_made_in_batches_that_anyone_can_resume(store: SqlStore):
    roots = start(store, node("source"), node("work", "source"), node("end", "work", fan_mode=FanMode.AGGREGATE))
    begun = store.complete(claim(store, attempts_of(roots)[0]), records(25), "many")
    (owed,) = begun.owed
    run_id = owed.run_id
    assert (len(attempts_of(begun)), owed.kind) == (10, "launch")
    assert [n.status for n in store.get_nodes(run_id)] == ["completed", "launching", "blocked"]

    # The first batch is worked off while the launch is interrupted: the node must not close.
    for attempt_id in attempts_of(begun):
        store.complete(claim(store, attempt_id), [], "none")
    assert store.get_nodes(run_id)[1].status == "launching"

    made = [attempts_of(store.continue_launch(owed)), attempts_of(store.continue_launch(owed))]

    assert [len(batch) for batch in made] == [10, 5]
    assert store.get_nodes(run_id)[1].status == "launched"
    for attempt_id in (*made[0], *made[1]):
        store.complete(claim(store, attempt_id), [], "none")
    assert store.get_run(run_id).status == RunStatus.COMPLETED


def test_a_launch_that_goes_on_in_one_process_reads_its_artifacts_once(store: SqlStore):
    roots = start(store, node("source"), node("work", "source"))
    begun = store.complete(claim(store, attempts_of(roots)[0]), records(45), "many")
    made = len(attempts_of(begun))

    with counting_statements(store) as sent:
        more = store.continue_launch(begun.owed[0])
        made += len(attempts_of(more))
        while more.owed:
            more = store.continue_launch(begun.owed[0], more.items)
            made += len(attempts_of(more))

    assert made == 45
    assert len([statement for statement in sent if f"FROM {store.tables.artifact.name}" in statement]) == 1
    assert find_violations(store, [roots.run.id]) == []


def test_a_run_that_failed_while_launching_goes_on_where_it_stopped(store: SqlStore):
    roots = start(store, node("source"), node("work", "source"))
    begun = store.complete(claim(store, attempts_of(roots)[0]), records(25), "many")
    run_id = begun.owed[0].run_id
    done = attempts_of(begun)[:9]
    for attempt_id in done:
        store.complete(claim(store, attempt_id), [], "none")
    failed = store.fail(claim(store, attempts_of(begun)[9]), BOOM)
    assert attempts_of(store.continue_launch(begun.owed[0])) == []

    again = store.retry(run_id)

    assert len(attempts_of(again)) == 1
    (launch,) = [owed for owed in again.owed if owed.kind == "launch"]
    later = [*attempts_of(store.continue_launch(launch)), *attempts_of(store.continue_launch(launch))]
    for attempt_id in (*attempts_of(again), *later):
        store.complete(claim(store, attempt_id), [], "none")
    assert len(later) == 15
    assert store.get_run(run_id).status == RunStatus.COMPLETED
    assert failed is not None


def test_a_retry_repeats_nothing_of_a_launch_that_was_cut_between_batches(store: SqlStore):
    """Every task made so far has completed when the run ends: only the rest is made, and nothing runs twice."""
    roots = start(store, node("source"), node("work", "source"), node("end", "work", fan_mode=FanMode.AGGREGATE))
    begun = store.complete(claim(store, attempts_of(roots)[0]), records(25), "many")
    run_id = begun.owed[0].run_id
    for attempt_id in attempts_of(begun):
        store.complete(claim(store, attempt_id), records(1), "one")
    store.cancel(run_id, "enough")

    again = store.retry(run_id)

    assert attempts_of(again) == []
    work = store.get_nodes(run_id)[1]
    assert (work.status, work.tasks_total, work.tasks_done, work.launch_cursor) == ("launching", 25, 10, 10)
    (launch,) = [owed for owed in again.owed if owed.kind == "launch"]
    later = [*attempts_of(store.continue_launch(launch)), *attempts_of(store.continue_launch(launch))]
    assert len(later) == 15
    for attempt_id in later:
        end = store.complete(claim(store, attempt_id), records(1), "one")
    with store.read() as connection:
        assert store.rows.tasks.count_by_status(connection, run_id)[1] == {"completed": 25}
    store.complete(claim(store, attempts_of(end)[0]), [], "none")
    assert store.get_run(run_id).status == RunStatus.COMPLETED
    assert find_violations(store, [run_id]) == []


def begin_wide_launch(store: SqlStore) -> Owed:
    """The rest of a launch of 25 tasks, of which 10 were made."""
    roots = start(store, node("source"), node("work", "source"))
    (owed,) = store.complete(claim(store, attempts_of(roots)[0]), records(25), "many").owed
    return owed


def test_a_process_with_a_lower_limit_resumes_a_launch_that_another_began(store: SqlStore):
    owed = begin_wide_launch(store)
    strict = SqlStore(store.url, prefix=store.tables.prefix, policy=StorePolicy(launch_batch=10, max_fan_out=5))

    made = [len(attempts_of(strict.continue_launch(owed))) for _ in range(2)]

    strict.close()
    assert made == [10, 5]
    assert store.get_nodes(owed.run_id)[1].status == "launched"


def test_a_launch_whose_artifacts_were_changed_is_left_as_it_is(store: SqlStore, caplog: pytest.LogCaptureFixture):
    owed = begin_wide_launch(store)
    artifact = store.tables.artifact
    with store.database.write() as connection:
        connection.execute(artifact.delete().where(artifact.c.ordinal == 3))
    before = store.get_nodes(owed.run_id)

    left = store.continue_launch(owed)

    assert (attempts_of(left), left.owed) == ([], [])
    assert store.get_nodes(owed.run_id) == before
    assert "was to get 25 tasks and would now get 24" in caplog.text


# -- ends and what they owe


def test_an_end_owes_one_callback_and_the_cancellation(store: SqlStore):
    started = start(store, node("a"), node("b"))
    failing, sibling = attempts_of(started)
    running = claim(store, sibling)

    aftermath = store.fail(claim(store, failing), BOOM)

    assert [(owed.kind, owed.status) for owed in aftermath.owed] == [("callback", "failed"), ("cancel", "failed")]
    assert store.lease_owed(10) == []  # leased to the process that made it
    assert store.cancel_rest(aftermath.owed[1]) == [sibling]
    assert store.complete(running, [], "none") is None
    run = store.get_run(started.run.id)
    expected = {"type": "ValueError", "message": "boom", "traceback": "Traceback …", "node": "a"}
    assert {name: run.error[name] for name in expected} == expected
    assert run.error["task_id"]


def test_no_claim_commits_once_a_cancel_has_returned(store: SqlStore):
    started = start(store, node("a"))
    for owed in store.cancel(started.run.id, "enough").owed:
        if owed.kind == "cancel":
            store.cancel_rest(owed)

    refused = store.claim(attempts_of(started)[0], new_id(), None)

    assert isinstance(refused, ClaimRefused)
    assert "cancelled" in refused.reason


def test_a_worker_that_is_announced_twice_is_one_worker(store: SqlStore):
    worker = WorkerRow(new_id(), "host", 1, "1", beat=0, queues=["q"], plugins=[], holding=[])

    for _ in range(2):  # the answer to the first was lost
        store.announce_worker(worker)

    assert [found.id for found in store.list_workers()] == [worker.id]


def test_a_retry_that_is_repeated_after_a_lost_answer_is_made_once(store: SqlStore):
    run = start(store, node("a")).run
    store.cancel(run.id, "x")
    store.retry(run.id)

    assert store.retry(run.id, after=1).publish == []

    assert store.get_run(run.id).generation == 2
    with pytest.raises(RunStateError):
        store.retry(run.id, after=2)


def test_cancelling_twice_owes_one_callback(store: SqlStore):
    started = start(store, node("a"))

    first, second = store.cancel(started.run.id, "x"), store.cancel(started.run.id, "y")

    # Both see to it that no task is left open when they return
    assert [[owed.kind for owed in each.owed] for each in (first, second)] == [["callback", "cancel"], ["cancel"]]
    assert second.owed[0] == first.owed[1]


def test_a_crash_crashes_the_run_after_the_last_recovery(store: SqlStore):
    attempt_id = attempts_of(start(store, node("a")))[0]
    for _ in range(2):
        rescued = store.rescue(claim(store, attempt_id, new_id()), TaskError("WorkerLost", "it died"), max_recoveries=2)
        (attempt_id,) = attempts_of(rescued)

    work = claim(store, attempt_id, new_id())
    store.rescue(work, TaskError("WorkerLost", "it died"), max_recoveries=2)

    run = store.get_run(work.attempt.run_id)
    assert run.status == RunStatus.CRASHED
    assert "3th time" not in run.error["message"]
    assert "lost 3 times" in run.error["message"]


def test_on_lost_crash_crashes_the_run_at_once(store: SqlStore):
    work = claim(store, attempts_of(start(store, node("a", on_lost="crash")))[0], new_id())

    store.rescue(work, TaskError("WorkerLost", "it died"), max_recoveries=3)

    assert store.get_run(work.attempt.run_id).status == RunStatus.CRASHED


def test_a_paused_run_refuses_claims_and_owes_them_again(store: SqlStore):
    started = start(store, node("a"))
    (attempt_id,) = attempts_of(started)
    store.mark_queued([attempt_id])
    store.set_paused(started.run.id, True)

    refused = store.claim(attempt_id, new_id(), None)
    assert store.lease_due_tasks(10) == []
    store.set_paused(started.run.id, False)

    assert isinstance(refused, ClaimRefused)
    assert [dispatch.attempt_id for dispatch in store.lease_due_tasks(10)] == [attempt_id]


def test_a_task_that_is_marked_late_was_published_when_it_was_sent(store: SqlStore):
    """What came before it in its queue and is not with a worker is taken for lost."""
    (attempt_id,) = attempts_of(start(store, node("a")))
    before = store.read_clock()
    store.mark_queued([attempt_id], "work", age=60.0)
    with store.read() as connection:
        (task,) = connection.execute(store.tables.task.select()).all()
    assert before <= task.queued_at + 60_000_000 <= store.read_clock()
    assert task.lease_until > before


def test_a_delayed_retry_is_not_due_before_its_time(store: SqlStore):
    work = claim(store, attempts_of(start(store, node("a")))[0])

    store.retry_attempt(work, delay=3600, retries=1, error=BOOM)

    assert store.lease_due_tasks(10) == []
    assert 3500 < store.seconds_to_next_due() <= 3600


def test_a_stalled_run_is_found_and_reconciled(store: SqlStore):
    started = start(store, node("a"), node("b", "a"))
    run_id = started.run.id
    work = claim(store, attempts_of(started)[0])
    with store.database.write() as connection:  # a completion that a bug, or a hand in the database, left half done
        task, nodes = store.tables.task, store.tables.node
        connection.execute(task.update().where(task.c.id == work.attempt.task_id).values(status="completed"))
        connection.execute(nodes.update().where(nodes.c.node_index == 0).values(tasks_done=1))

    assert store.find_stalled_runs(10) == [run_id]
    store.reconcile(run_id)

    assert store.get_run(run_id).status == RunStatus.COMPLETED
    assert [n.status for n in store.get_nodes(run_id)] == ["completed", "filtered"]
    assert store.find_stalled_runs(10) == []


def test_only_an_ended_run_can_be_retried(store: SqlStore):
    run_id = start(store, node("a")).run.id

    with pytest.raises(RunStateError, match="running"):
        store.retry(run_id)
    with pytest.raises(UnknownRun):
        store.retry(new_id())


@pytest.mark.parametrize("run_id", ["", "42", "not-a-run", "\x00", "{0}", 7, None], ids=repr)
def test_what_is_no_id_is_an_unknown_run(store: SqlStore, run_id: object):
    doors = (
        store.get_run,
        store.get_run_input,
        store.get_nodes,
        store.retry,
        store.reconcile,
        lambda id_: store.cancel(id_, "x"),
        lambda id_: store.set_paused(id_, True),
    )

    for door in doors:
        with pytest.raises(UnknownRun):
            door(run_id)


def test_an_id_that_no_run_has_is_an_unknown_run(store: SqlStore):
    for door in (store.get_run, store.get_run_input, store.get_nodes, store.reconcile):
        with pytest.raises(UnknownRun):
            door(new_id())


# -- the file and its schema


def test_a_file_that_is_no_database_is_left_alone(tmp_path: Path):
    path = tmp_path / "notes.txt"
    path.write_text("not a database, " * 100)

    with pytest.raises(StoreError, match="not a SQLite database"):
        SqlStore(f"sqlite:///{path}").search_runs()

    assert path.read_text().startswith("not a database")


def test_a_missing_directory_is_named(tmp_path: Path):
    with pytest.raises(StoreError, match="does not exist"):
        SqlStore(f"sqlite:///{tmp_path / 'no' / 'runs.sqlite3'}").search_runs()


def test_a_newer_schema_is_refused_and_left_alone(store: SqlStore):
    start(store, node("a"))
    set_version = f"UPDATE {store.tables.prefix}schema_version SET version_num = :version"
    with store.database.write() as connection:
        before = connection.execute(text(f"SELECT version_num FROM {store.tables.prefix}schema_version")).scalar_one()
        connection.execute(text(set_version), {"version": "9999"})

    newcomer = SqlStore(store.url, prefix=store.tables.prefix)
    with pytest.raises(StoreSchemaError, match="newer than this release"):
        newcomer.search_runs()
    newcomer.close()

    with store.database.write() as connection:
        connection.execute(text(set_version), {"version": before})


def test_without_auto_migrate_an_empty_database_is_refused_with_the_command(tmp_path: Path):
    url = f"sqlite:///{tmp_path / 'runs.sqlite3'}"

    with pytest.raises(StoreSchemaError, match=r"python -m dagabaaz_celery\.stores\.sql\.schema"):
        SqlStore(url, auto_migrate=False).search_runs()


def test_concurrent_first_uses_make_one_store(store: SqlStore):
    """Migrations wait for each other, or find them done."""
    url = f"{store.url}.first" if store.url.startswith("sqlite") else store.url
    prefix = f"f{new_id()[-8:]}_"
    stores = [SqlStore(url, prefix=prefix) for _ in range(4)]
    barrier = threading.Barrier(4)
    ids = []

    def open_one(opened: SqlStore) -> None:
        barrier.wait(10)
        ids.append(opened.id)

    threads = [threading.Thread(target=open_one, args=(each,)) for each in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    with stores[0].database.write() as connection:
        stores[0].tables.metadata.drop_all(connection)
        connection.execute(text(f"DROP TABLE {prefix}schema_version"))
    for each in stores:
        each.close()

    assert len(ids) == 4
    assert len(set(ids)) == 1


def test_the_migrations_make_the_tables_that_the_code_uses(store: SqlStore):
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    start(store, node("a"))
    with store.read() as connection:
        context = MigrationContext.configure(
            connection,
            opts={
                "include_name": lambda name, kind, parents: (
                    kind != "table" or (name.startswith(store.tables.prefix) and not name.endswith("version"))
                )
            },
        )
        assert compare_metadata(context, store.tables.metadata) == []


@pytest.mark.parametrize(
    "values",
    [{"status": "confused"}, {"nodes_done": 2}],
    ids=["a status that does not exist", "more nodes done than there are"],
)
def test_the_database_itself_refuses_what_no_state_allows(store: SqlStore, values: dict):
    start(store, node("a"))

    with pytest.raises((IntegrityError, OperationalError)) as caught, store.database.write() as connection:
        connection.execute(store.tables.run.update().values(**values))

    assert not is_outage(caught.value)  # whoever waited for it to pass would wait for ever


def find_session(connection: Connection) -> int:
    """What the server calls a connection."""
    question = {"postgresql": "SELECT pg_backend_pid()"}.get(connection.dialect.name, "SELECT CONNECTION_ID()")
    session: int = connection.execute(text(question)).scalar_one()
    return session


def end_session(store: SqlStore, session: int) -> None:
    """Have the server end a connection of a store, by one that is not the store's."""
    killer = create_engine(store.url, poolclass=NullPool)
    order = {"postgresql": "SELECT pg_terminate_backend(:id)"}.get(killer.dialect.name, "KILL :id")
    with killer.begin() as connection:
        connection.execute(text(order), {"id": session})


def test_a_connection_that_the_server_ends_is_an_outage(store: SqlStore):
    if store.url.startswith("sqlite"):
        pytest.skip("SQLite has no server")

    with store.database.engine.connect() as connection:
        end_session(store, find_session(connection))
        with pytest.raises(DBAPIError) as caught:
            connection.execute(text("SELECT 1"))

    assert is_outage(caught.value)


@pytest.mark.parametrize("idle_seconds", [0.0, 3600.0], ids=["asked first", "just used"])
def test_a_pooled_connection_that_the_server_ended_is_nobodys_trouble(
    request: pytest.FixtureRequest, store: SqlStore, monkeypatch: pytest.MonkeyPatch, idle_seconds: float
):
    """It is asked before its use after a pause; and right after its last, what it was to do is done by another."""
    if request.node.callspec.params["opened"] in ("sqlite", "pgbouncer"):
        pytest.skip("SQLite has no server, and behind PgBouncer a session is anybody's")
    monkeypatch.setattr("dagabaaz_celery.stores.sql.engines._IDLE_SECONDS", idle_seconds)
    store.close()
    with store.database.write() as pooled:
        session = find_session(pooled)
    end_session(store, session)

    started = start(store, node("a"))

    assert [run.id for run in store.search_runs(limit=9)] == [started.run.id]
    with store.database.write() as connection:
        assert find_session(connection) != session


def test_a_connection_that_lay_idle_is_asked_also_where_the_pool_did_not_have_it(
    request: pytest.FixtureRequest, store: SqlStore, monkeypatch: pytest.MonkeyPatch
):
    if request.node.callspec.params["opened"] in ("sqlite", "pgbouncer"):
        pytest.skip("SQLite has no server, and behind PgBouncer a session is anybody's")
    store.close()
    with store.database.write() as kept:
        session = find_session(kept)
    end_session(store, session)
    clock = time.monotonic
    monkeypatch.setattr("dagabaaz_celery.stores.sql.database.time.monotonic", lambda: clock() + 3600)

    with store.read() as connection:
        assert find_session(connection) != session


def test_after_one_connection_was_lost_none_of_those_beside_it_is_trusted(
    request: pytest.FixtureRequest, store: SqlStore
):
    """A failover ends all of them at once, and what is to be done is done by another once."""
    if request.node.callspec.params["opened"] in ("sqlite", "pgbouncer"):
        pytest.skip("SQLite has no server, and behind PgBouncer a session is anybody's")
    store.close()
    with store.database.write() as one, store.database.write() as two, store.database.write() as three:
        sessions = [find_session(connection) for connection in (one, two, three)]
    for session in sessions:
        end_session(store, session)

    started = [start(store, node("a")).run.id for _ in range(3)]

    assert {run.id for run in store.search_runs(limit=9)} == set(started)


def test_a_completion_whose_client_is_killed_meanwhile_is_whole_or_was_none(store: SqlStore):
    """A server goes on with what it was sent; on MariaDB it says otherwise then of what changed."""
    if store.url.startswith("sqlite"):
        pytest.skip("SQLite has no server")
    work, *_ = fan_out(store, 3)
    run_id, before = work.attempt.run_id, count_artifacts(store, work.attempt.run_id)
    store.close()
    other = create_engine(store.url, poolclass=NullPool)
    task = store.tables.task
    row = select(task.c.status).where(task.c.id == work.attempt.task_id).with_for_update()

    with other.begin() as holder, Waiters(store) as waiters:
        holder.execute(row).one()
        child = os.fork()
        if child == 0:
            store.complete(work, records(3), "many")
            os._exit(0)
        wait_until(lambda: waiters.count() == 1, "the completion waits for the task's row")
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    with other.begin() as next_one:  # whoever waits for a row gets it in turn
        status = next_one.execute(row).scalar_one()

    assert (status, count_artifacts(store, run_id) - before) in (("completed", 3), ("running", 0))
    assert store.complete(work, records(3), "many") == Aftermath()
    assert count_artifacts(store, run_id) - before == 3
    assert find_violations(store, [run_id]) == []


def test_what_a_signal_raises_while_the_server_is_waited_for_comes_out_of_it(store: SqlStore):
    """And not what the driver makes of it, which would count as an outage, to be waited out."""
    waiting = {
        "postgresql": "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE :ours",
        "mysql": "SELECT count(*) FROM information_schema.innodb_trx "
        "WHERE trx_state = 'LOCK WAIT' AND trx_query LIKE :ours",
    }.get(store.database.url.get_backend_name())
    if waiting is None:
        pytest.skip("SQLite has no server")
    # Given a completion that waits for its node, which another transaction has locked
    work, *_ = fan_out(store, 1)
    other = SqlStore(store.url, prefix=store.tables.prefix)
    looking = {"ours": f"%{store.tables.prefix}node%"}

    def interrupt_once_it_waits() -> None:
        def waits() -> bool:
            with other.read() as connection:
                return connection.execute(text(waiting), looking).scalar_one() > 0

        wait_until(waits, "the completion waits")
        os.kill(os.getpid(), signal.SIGUSR1)

    def interrupt(*_: object) -> None:
        raise SoftTimeLimitExceeded

    before = signal.signal(signal.SIGUSR1, interrupt)
    try:
        with other.database.write() as holder:
            holder.execute(store.tables.node.select().with_for_update()).all()
            interrupter = threading.Thread(target=interrupt_once_it_waits)
            interrupter.start()
            # When a signal cuts it off
            with pytest.raises(SoftTimeLimitExceeded):
                store.complete(work, records(1), "one")
            interrupter.join()
    finally:
        signal.signal(signal.SIGUSR1, before)
        other.close()
    # Then it did nothing, and the next does all of it
    assert store.complete(work, records(1), "one") is not None
    assert count_artifacts(store, work.attempt.run_id) == 2
    assert find_violations(store, [work.attempt.run_id]) == []


def test_what_was_prepared_before_an_error_is_not_prepared_again(store: SqlStore):
    with store.read() as connection:
        own = connection.connection.dbapi_connection
        if store.database.engine.dialect.driver != "psycopg" or not psycopg_driver.has_prepared(own):
            pytest.skip("nothing is prepared there")
    good, bad = Direct(select(literal(7).label("seven"))), Direct(text("SELECT 1/0"))

    def fail(connection: Connection) -> None:
        asked = [good.ask(connection, {}), bad.ask(connection, {})]
        asked[1].all()

    counts = []
    for _ in range(3):
        with pytest.raises(DBAPIError):
            store.transact(fail)
        with store.read() as connection:  # the same one
            counts.append(connection.execute(text("SELECT count(*) FROM pg_prepared_statements")).scalar_one())
    assert counts[0] == counts[1] == counts[2]


def test_a_table_that_is_another_than_it_was_is_found_out_once(store: SqlStore):
    """As after a migration that another release made meanwhile: what was prepared for the old one is of no use."""
    if store.database.url.get_backend_name() != "postgresql":
        pytest.skip("others prepare nothing")
    table, (first, second) = f"{store.tables.prefix}changing", ("bigint", "text")
    read = Direct(text(f"SELECT value FROM {table}"))
    with store.database.write() as connection:
        connection.execute(text(f"CREATE TABLE {table} (value {first})"))
    try:
        for kind in (second, first):
            store.transact(lambda connection: read.all(connection, {}))
            with store.database.write() as connection:
                connection.execute(text(f"ALTER TABLE {table} ALTER value TYPE {kind} USING value::{kind}"))
        store.transact(lambda connection: read.all(connection, {}))
    finally:
        with store.database.write() as connection:
            connection.execute(text(f"DROP TABLE {table}"))


def test_a_connection_that_was_closed_is_kept_by_nobody(store: SqlStore):
    if store.url.startswith("sqlite"):
        pytest.skip("there are no weak references to sqlite3's")
    run_id = start(store, node("a")).run.id
    other = SqlStore(store.url, prefix=store.tables.prefix)
    with other.database.write() as connection:
        other.rows.runs.set_nodes_done(connection, run_id, 0)
        opened = weakref.ref(connection.connection.dbapi_connection)
    del connection
    other.close()
    gc.collect()
    assert opened() is None


def test_nothing_is_begun_again_once_its_commit_was_asked_for(store: SqlStore):
    """Whether a commit without an answer was made is asked by who knows how, and not by doing it twice."""
    if store.url.startswith("sqlite"):
        pytest.skip("SQLite has no server")
    tries = []

    def work(connection: Connection) -> None:
        tries.append(1)
        session = find_session(connection)
        event.listen(connection, "commit", lambda own: end_session(store, session))

    with pytest.raises(CommitUnanswered):
        store.transact(work)

    assert len(tries) == 1


@pytest.mark.parametrize("away", ["refused", "the pool is empty"])
def test_a_statement_that_stood_alone_stays_in_doubt_when_the_database_is_away_at_its_repeat(
    store: SqlStore, away: str
):
    """Who claims then may not give the task back to others: it may be its own already."""
    if store.url.startswith("sqlite"):
        pytest.skip("SQLite has no server")
    engine, tries = store.database.engine, []

    def work(connection: Connection) -> None:
        tries.append(1)
        end_session(store, find_session(connection))
        engine.dispose()
        connection.execute(text("SELECT 1"))

    def refuse(dialect: Any, record: Any, given: Any, options: dict[str, Any]) -> None:
        if tries and away == "the pool is empty":
            raise PoolTimeoutError
        if tries:
            options["port"] = 1

    event.listen(engine, "do_connect", refuse)
    try:
        with pytest.raises(CommitUnanswered) as caught:
            store.database.transact_each(work)
    finally:
        event.remove(engine, "do_connect", refuse)
    assert is_outage(caught.value.__cause__)  # the second time there was no connection


def test_the_databases_clock_is_the_worlds(store: SqlStore):
    before = time.time()
    with store.read() as connection:
        if store.database.engine.dialect.name in ("mysql", "mariadb"):
            connection.execute(text("SET time_zone = '+09:00'"))
        first = connection.execute(select(now(), now())).one()
        if store.database.engine.dialect.name in ("mysql", "mariadb"):
            connection.execute(text("SET time_zone = DEFAULT"))

    assert first[0] == first[1]
    assert before - 5 < first[0] / 1e6 < time.time() + 5


def test_a_task_that_failed_keeps_its_history_when_it_is_retried(store: SqlStore):
    work = claim(store, attempts_of(start(store, node("a")))[0])
    store.fail(work, BOOM)

    store.retry(work.attempt.run_id)

    with store.read() as connection:
        history = connection.execute(store.tables.attempt.select()).all()
        (task,) = connection.execute(store.tables.task.select()).all()
    assert [(row.attempt_id, row.number) for row in history] == [(work.attempt.attempt_id, 1)]
    assert (task.id, task.number, task.status) == (work.attempt.task_id, 2, TaskStatus.PENDING)


# -- the race that a lock decides: what is ready is read after it


def test_parents_that_close_at_the_same_instant_launch_their_child_once(store: SqlStore):
    """Each parent's transaction is held between its counter and the run's lock until all have got there."""
    for _ in range(10):
        parents = [f"p{number}" for number in range(4)]
        started = start(store, *map(node, parents), node("child", *parents, fan_mode=FanMode.AGGREGATE))
        works = [claim(store, attempt_id) for attempt_id in attempts_of(started)]
        barrier = threading.Barrier(len(works))
        launched: list[str] = []

        def finish(work=None, barrier=barrier, launched=launched) -> None:
            barrier.wait(10)
            launched.extend(attempts_of(store.complete(work, records(1), "one")))

        threads = [threading.Thread(target=finish, kwargs={"work": work}) for work in works]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)

        assert len(launched) == 1
        assert find_violations(store, [started.run.id]) == []


def complete_behind(store: SqlStore, work: Work, first: Callable[[Connection], object]) -> Aftermath | None:
    """Complete work while a transaction that has done ``first`` is open, which it must wait for; then that commits."""
    found: list[Aftermath | None] = []
    locked = store.database.engine.connect()
    with locked, locked.begin():
        first(locked)
        completing = threading.Thread(target=lambda: found.append(store.complete(work, records(1), "one")))
        completing.start()
        wait_until_blocked(store)
    completing.join(30)
    return found[0]


def fan_out(store: SqlStore, width: int) -> list[Work]:
    """A node of so many tasks, each of them claimed, with a node behind it."""
    started = start(store, node("source"), node("work", "source"), node("all", "work", fan_mode=FanMode.AGGREGATE))
    fanned = store.complete(claim(store, attempts_of(started)[0]), records(width), "many")
    return [claim(store, attempt_id) for attempt_id in attempts_of(fanned)]


def count_artifacts(store: SqlStore, run_id: str) -> int:
    """How many a run has."""
    with store.read() as connection:
        return sum(store.rows.artifacts.count_by_node(connection, run_id).values())


def test_a_completion_that_finds_itself_the_last_once_it_has_the_lock_closes_its_node(store: SqlStore):
    """It was not the last when it began to wait for its node's counter."""
    if store.url.startswith("sqlite"):
        pytest.skip("SQLite writes one transaction at a time: nobody waits inside one")
    first, second = fan_out(store, 2)

    def complete_first(connection: Connection) -> None:
        counted, _ = store.rows.completions.try_complete(connection, first.attempt, [], "none")
        assert counted.tasks_done == 1

    aftermath = complete_behind(store, second, complete_first)

    assert len(attempts_of(aftermath)) == 1  # what joins them
    assert find_violations(store, [first.attempt.run_id]) == []


def test_a_completion_counts_once_whatever_is_written_to_its_task_meanwhile(store: SqlStore):
    if store.url.startswith("sqlite"):
        pytest.skip("SQLite writes one transaction at a time: nobody waits inside one")
    work, *_ = fan_out(store, 3)
    attempt = work.attempt

    complete_behind(store, work, lambda connection: store.rows.tasks.set_progress(connection, attempt, 1, 2))

    assert [(node.tasks_done, node.tasks_total) for node in store.get_nodes(attempt.run_id)][1] == (1, 3)
    assert count_artifacts(store, attempt.run_id) == 4
    assert find_violations(store, [attempt.run_id]) == []


def test_a_completion_of_what_was_ended_meanwhile_writes_nothing(store: SqlStore):
    if store.url.startswith("sqlite"):
        pytest.skip("SQLite writes one transaction at a time: nobody waits inside one")
    work, *_ = fan_out(store, 3)
    attempt = work.attempt

    def cancel(connection: Connection) -> None:
        assert store.rows.tasks.try_end(connection, attempt, TaskStatus.CANCELLED, "{}")

    assert complete_behind(store, work, cancel) is None

    assert [(node.tasks_done, node.tasks_total) for node in store.get_nodes(attempt.run_id)][1] == (0, 3)
    assert count_artifacts(store, attempt.run_id) == 3


def test_what_the_tasks_of_a_wide_node_made_is_kept_to_the_letter(store: SqlStore):
    """Files, records and plain values, several of a task and none."""
    texts = ["", "ü 😀", 'a "quoted" \\ word', "{}", "two\nlines"]
    made = [
        [],
        records(3),
        [
            NewArtifact(TaskArtifact(metadata={"value": text_}), "scalar", json.dumps({"value": text_}))
            for text_ in texts
        ],
        [
            NewArtifact(
                TaskArtifact(file_path="/a b/ü", file_name="ü", file_size=2**40, mime_type="text/x", metadata={}),
                "file",
                "{}",
            )
        ],
    ]
    works = fan_out(store, len(made))
    for work, artifacts in zip(works, made, strict=True):
        store.complete(work, artifacts, "many")

    run_id = works[0].attempt.run_id
    with store.read() as connection:
        found = store.rows.artifacts.values(connection, run_id, 1)
        texts_found = connection.execute(select(store.tables.artifact.c.metadata)).scalars().all()
    given = [(work.attempt.task_id, new) for work, artifacts in zip(works, made, strict=True) for new in artifacts]
    assert [
        (task_id, shape, artifact.model_copy(update={"origin_artifact_id": None})) for task_id, shape, artifact in found
    ] == [(task_id, new.shape, new.artifact) for task_id, new in given]
    assert {new.metadata_json for _, new in given} <= set(texts_found)
    assert find_violations(store, [run_id]) == []


def test_a_claim_whose_run_is_retried_while_it_reads_its_input_is_none(store: SqlStore):
    """On PostgreSQL nothing is locked meanwhile; elsewhere the retry waits for the claim."""
    if store.database.url.get_backend_name() != "postgresql":
        pytest.skip("a claim and what it reads are one transaction here")
    works = fan_out(store, 3)
    run_id = works[0].attempt.run_id
    joined = [store.complete(work, records(1), "one") for work in works][-1]
    other = SqlStore(store.url, prefix=store.tables.prefix)
    retried = []

    def retry_meanwhile(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        if statement.startswith("SELECT") and f"FROM {store.tables.artifact.name}" in statement and not retried:
            retried.append(run_id)
            other.cancel_rest(other.cancel(run_id, "enough").owed[-1])
            other.retry(run_id, from_node="source")

    event.listen(store.database.engine, "before_cursor_execute", retry_meanwhile)
    try:
        found = store.claim(attempts_of(joined)[0], new_id(), None)
    finally:
        event.remove(store.database.engine, "before_cursor_execute", retry_meanwhile)
        other.close()

    assert retried
    assert isinstance(found, ClaimRefused)
    assert find_violations(store, [run_id]) == []


def test_a_claim_that_is_not_let_to_the_row_is_in_no_doubt(request: pytest.FixtureRequest, store: SqlStore):
    """Nothing was committed: who waits for the database may give up, and give the message back."""
    if request.node.callspec.params["opened"] != "postgresql":
        pytest.skip("only on PostgreSQL a claim is a statement that stands alone; behind PgBouncer a SET is for all")
    started = start(store, node("a"))
    impatient = SqlStore(store.url, prefix=store.tables.prefix)

    @event.listens_for(impatient.database.engine, "checkout")
    def wait_briefly(connection: Any, record: Any, proxy: Any) -> None:
        connection.execute("SET lock_timeout = '50ms'")

    with store.database.write() as holder:
        holder.execute(store.tables.task.select().with_for_update())
        with pytest.raises(DBAPIError) as caught:
            impatient.claim(attempts_of(started)[0], new_id(), None)

    assert is_outage(caught.value)
    assert not isinstance(caught.value, CommitUnanswered)
    impatient.close()


def test_what_was_prepared_before_a_column_changed_its_type_is_prepared_again(store: SqlStore):
    if store.database.url.get_backend_name() != "postgresql":
        pytest.skip("nothing is prepared here")
    table = store.tables.artifact.name
    works = fan_out(store, 20)
    for work in works[:10]:
        store.complete(work, records(1), "one")

    try:
        with store.database.write() as connection:
            connection.execute(text(f"ALTER TABLE {table} ALTER file_size TYPE numeric"))
        for work in works[10:]:
            store.complete(work, records(1), "one")
        again = fan_out(store, 2)
    finally:
        with store.database.write() as connection:
            connection.execute(text(f"ALTER TABLE {table} ALTER file_size TYPE bigint"))

    assert find_violations(store, [works[0].attempt.run_id, again[0].attempt.run_id]) == []


def test_nobody_waits_for_a_node_while_many_artifacts_are_written(store: SqlStore):
    work, *_ = fan_out(store, 3)

    with counting_statements(store) as sent:
        store.complete(work, records(60), "many")

    words = ("UPDATE", "INSERT")
    changed = [statement.split(" SET ")[0].split(" (")[0] for statement in sent if statement.startswith(words)]
    tables = store.tables
    assert changed[0] == f"UPDATE {tables.task.name}"
    assert changed[-1] == f"UPDATE {tables.node.name}"
    assert set(changed[1:-1]) == {f"INSERT INTO {tables.artifact.name}"}


def test_a_deadlock_inside_a_savepoint_is_run_again(store: SqlStore):
    """MySQL takes the savepoint back with the transaction, and says of the deadlock that the savepoint is not there."""
    if store.url.startswith("sqlite"):
        pytest.skip("SQLite writes one transaction at a time: nobody waits inside one")
    one, other = (start(store, node("a")).run.id for _ in range(2))
    both_hold_one, tries = threading.Barrier(2), []

    def take(first: str, second: str) -> None:
        def work(connection) -> None:
            tries.append(first)
            store.rows.runs.lock(connection, first)
            if tries.count(first) == 1:
                both_hold_one.wait(10)
            with connection.begin_nested():
                store.rows.runs.lock(connection, second)

        store.transact(work)

    threads = [threading.Thread(target=take, args=pair) for pair in ((one, other), (other, one))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)

    assert len(tries) == 3  # one of them was the victim, once


def test_a_closing_that_waits_for_the_lock_of_a_failing_run_is_made_good_by_the_retry(store: SqlStore):
    """Roots A and B, A -> C: B fails while A's closing transaction waits for the run's lock; after a retry C starts."""
    if store.url.startswith("sqlite"):
        pytest.skip("SQLite writes one transaction at a time: nobody waits inside one")
    started = start(store, node("a"), node("b"), node("c", "a"))
    run_id = started.run.id
    work_a, work_b = (claim(store, attempt_id) for attempt_id in attempts_of(started))
    locked = store.database.engine.connect()
    with locked, locked.begin():
        store.rows.runs.lock(locked, run_id)
        closing = threading.Thread(target=lambda: store.complete(work_a, records(1), "one"))
        closing.start()
        wait_until_blocked(store)
        store.rows.runs.try_end(locked, run_id, RunStatus.FAILED, None)  # as B's failure does, holding the lock
    closing.join(30)
    with store.database.write() as connection:
        store.rows.tasks.try_end(connection, work_b.attempt, TaskStatus.FAILED, "{}")
    assert [n.status for n in store.get_nodes(run_id)] == ["launched", "launched", "blocked"]

    again = store.retry(run_id)

    nodes = {store.definition_of(d.definition_hash).topology.nodes[d.node_index].slug for d in again.publish}
    assert nodes == {"b", "c"}
    for attempt_id in attempts_of(again):
        store.complete(claim(store, attempt_id), [], "none")
    assert store.get_run(run_id).status == RunStatus.COMPLETED
    assert find_violations(store, [run_id]) == []


def wait_until_blocked(store: SqlStore) -> None:
    """Until the server says that somebody waits for a lock."""
    question = {
        "postgresql": "SELECT count(*) FROM pg_locks WHERE NOT granted",
        "mysql": "SELECT count(*) FROM information_schema.innodb_trx WHERE trx_state = 'LOCK WAIT'",
    }[store.database.engine.dialect.name.replace("mariadb", "mysql")]
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        with store.read() as connection:
            if connection.execute(text(question)).scalar_one():
                return
        time.sleep(0.2)  # InnoDB's table is a copy that is not renewed for those who ask more often
    raise AssertionError("nobody waits for the lock")

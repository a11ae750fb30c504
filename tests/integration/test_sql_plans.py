"""What databases read for what workers ask all the time, in a store that holds very many tasks.

Each database has a hundred thousand tasks that ended, and a million with DAGABAAZ_FAULTS=full. The bounds are the same.
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy import text

from dagabaaz_celery.constants import FanMode, RunStatus
from dagabaaz_celery.settings import Settings
from dagabaaz_celery.stores.sql.records import Dispatch, TaskError
from dagabaaz_celery.stores.sql.store import SqlStore
from dagabaaz_celery.stores.sql.tables import new_id
from dagabaaz_celery.stores.sql.transaction import StorePolicy
from dagabaaz_celery.worker.pruning import Pruner
from tests import services
from tests.integration.sql_plans import CUSTOMERS, Crowd, fill, observe
from tests.integration.sql_stores import attempts_of, claim, node, records, start

SIZE = 1_000_000 if os.environ.get("DAGABAAZ_FAULTS") == "full" else 100_000
#: Rows for one statement that takes a batch of up to a thousand tasks, and for one about one task.
BATCH, ONE = 6_000, 200
SERVERS = {"postgresql": services.postgres_url, "mariadb": services.mysql_url}
#: Microseconds since 1970: after the runs that ended, before those that are open.
LONG_AGO = 10**15
LOST = TaskError("WorkerLost", "it died")

pytestmark = pytest.mark.timeout(1200)


@dataclass(frozen=True)
class Place:
    """A store and the runs in it."""

    store: SqlStore
    crowd: Crowd

    def read(self, act: Callable[[], object]) -> int:
        """Rows that the act's statements read; none may read all of a table that grows with the runs."""
        tables, readings = self.store.tables, observe(self.store, act)
        for reading in readings:
            growing = (tables.task, tables.run, tables.tag, tables.node, tables.artifact, tables.attempt)
            large = {table.name for table in growing}
            assert not large & set(reading.scanned), reading
        return sum(reading.rows for reading in readings)


def build_runtime(store: SqlStore) -> Any:
    """As much of an app as deleting runs needs."""
    return SimpleNamespace(store=store, settings=Settings(), file_callbacks=[])


@pytest.fixture(scope="module", params=["sqlite", *SERVERS])
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A store with tables of its own, full of tasks."""
    sqlite = f"sqlite:///{tmp_path_factory.mktemp('plans') / 'runs.sqlite3'}"
    url = SERVERS[request.param]() if request.param in SERVERS else sqlite
    # What a test's own run owes is leased for longer than all tests take.
    store = SqlStore(url, prefix=f"p{new_id()[-8:]}_", policy=StorePolicy(lease=3600.0))
    try:
        yield Place(store, fill(store, SIZE))
    finally:
        with store.database.write() as connection:
            store.tables.metadata.drop_all(connection)
            connection.execute(text(f"DROP TABLE IF EXISTS {store.tables.prefix}schema_version"))
        store.close()


# -- the sweep


@pytest.mark.parametrize(
    "ask",
    [
        lambda store: store.seconds_to_next_due(),
        lambda store: store.find_stalled_runs(500),
        lambda store: store.list_running_on(new_id()),
        lambda store: store.list_orphans(),
        lambda store: store.lease_owed(500),
        lambda store: store.list_workers(),
        lambda store: store.count_queued_among("work", [new_id() for _ in range(100)]),
        lambda store: store.find_published([new_id() for _ in range(100)]),
        lambda store: store.find_overdue_tasks(500),
        lambda store: store.find_overdue_runs(500),
    ],
    ids=[
        "next due",
        "stalled",
        "running here",
        "orphans",
        "owed",
        "workers",
        "queued among held",
        "published of those",
        "overdue tasks",
        "overdue runs",
    ],
)
def test_a_sweep_reads_no_task_that_it_does_not_ask_for(place: Place, ask: Callable[[SqlStore], object]):
    assert place.read(lambda: ask(place.store)) < ONE


def test_publishing_reads_the_batch_and_not_the_rest_of_what_is_owed(place: Place):
    store, due = place.store, []

    for _ in range(3):
        assert place.read(lambda: due.extend(store.lease_due_tasks(500))) < BATCH
    assert place.read(lambda: store.mark_queued([dispatch.attempt_id for dispatch in due[:1000]], "work")) < 2 * BATCH
    assert place.read(lambda: store.release([dispatch.attempt_id for dispatch in due[1000:]])) < BATCH

    assert len(due) == 1500
    assert {dispatch.run_id for dispatch in due} == {place.crowd.resumed}


def test_what_a_paused_run_owes_is_not_looked_at(place: Place):
    place.store.set_paused(place.crowd.resumed, True)

    assert place.read(lambda: place.store.lease_due_tasks(500)) < ONE

    place.store.set_paused(place.crowd.resumed, False)


def test_delayed_tasks_that_are_due_are_found_among_many_that_are_not(place: Place):
    store = place.store
    for _ in range(10):
        store.retry_attempt(claim(store, attempts_of(start(store, node("a")))[0]), delay=6, retries=1, error=LOST)
    task = store.tables.task
    with store.database.write() as connection:
        connection.execute(task.update().where(task.c.not_before < 2**59).values(not_before=1))

    found: list[object] = []
    assert place.read(lambda: found.extend(store.lease_due_tasks(10))) < ONE
    assert len(found) == 10


def test_looking_for_lost_messages_reads_what_is_queued_and_nothing_else(place: Place):
    """Everything that waits in a queue is looked at: this grows with the backlog, not with the store."""
    store, backlog = place.store, place.crowd.tenth
    lost: list[tuple[Dispatch, int]] = []

    assert place.read(store.list_waiting_queues) < 4 * backlog
    assert place.read(lambda: lost.extend(store.find_sent_before("work", 2**60, 1000))) < 6 * backlog
    assert place.read(lambda: store.lease_lost_tasks([dispatch.attempt_id for dispatch, _ in lost])) < 2 * BATCH
    assert place.read(lambda: store.mark_resent([dispatch.attempt_id for dispatch, _ in lost])) < 2 * BATCH
    assert len(lost) == 1000


# -- a task's way


def test_a_task_of_a_wide_node_runs_without_reading_another(place: Place):
    store = place.store
    first, second, third = (dispatch.attempt_id for dispatch in store.lease_due_tasks(3))
    works = []

    for attempt_id in (first, second, third):
        assert place.read(lambda attempt_id=attempt_id: works.append(claim(store, attempt_id, new_id()))) < ONE
    completed, retried, rescued = works
    assert place.read(lambda: store.set_progress(completed.attempt, 1, 2)) < ONE
    assert place.read(lambda: store.is_current(first)) < ONE
    assert place.read(lambda: store.complete(completed, records(2), "many")) < ONE
    assert place.read(lambda: store.claim(first, new_id(), new_id())) < ONE  # refused
    assert place.read(lambda: store.retry_attempt(retried, delay=0, retries=1, error=LOST)) < ONE
    assert place.read(lambda: store.rescue(rescued, LOST, 3)) < ONE
    assert place.read(lambda: store.find_work(second)) < ONE


def test_a_run_begins_goes_on_and_ends_without_reading_another(place: Place):
    store, outcomes, starts = place.store, [], []
    nodes = (node("a"), node("b", "a"), node("c", "b", fan_mode=FanMode.AGGREGATE))

    assert place.read(lambda: starts.append(start(store, *nodes, key="once"))) < ONE
    run_id = starts[0].run.id
    source = claim(store, attempts_of(starts[0])[0])
    assert place.read(lambda: outcomes.append(store.complete(source, records(3), "many"))) < ONE
    for attempt_id in attempts_of(outcomes[0]):
        last = store.complete(claim(store, attempt_id), records(1), "one")
    (gather,) = attempts_of(last)
    assert place.read(lambda: outcomes.append(claim(store, gather))) < ONE
    assert place.read(lambda: outcomes.append(store.fail(outcomes[1], LOST))) < ONE
    for owed in outcomes[2].owed:
        assert place.read(lambda owed=owed: store.cancel_rest(owed)) < ONE
    assert place.read(lambda: store.retry(run_id)) < 2 * ONE
    assert place.read(lambda: store.reconcile(run_id)) < ONE
    assert place.read(lambda: (store.get_run(run_id), store.get_nodes(run_id))) < ONE


def test_undoing_a_wide_node_reads_a_batch_of_its_tasks_and_nothing_of_others_history(place: Place):
    rows, run_id = place.store.rows.tasks, place.crowd.paused

    def list_batch() -> None:
        with place.store.read() as connection:
            assert len(rows.list_begun(connection, run_id, 1, after=100, limit=1000)) == 1000

    def count_all() -> None:
        with place.store.read() as connection:
            assert rows.count_begun(connection, run_id, [0, 1]) == {1: place.crowd.tenth}

    assert place.read(list_batch) < BATCH
    assert place.read(count_all) < 5 * place.crowd.tenth


def test_cancelling_a_wide_run_reads_each_open_task_a_few_times(place: Place):
    """However many batches it takes: none begins where the first one did."""
    store, owed = place.store, []

    assert place.read(lambda: owed.extend(store.cancel(place.crowd.backlog, "enough").owed)) < ONE
    (cancellation,) = (each for each in owed if each.kind == "cancel")
    assert place.read(lambda: store.cancel_rest(cancellation)) < 25 * place.crowd.tenth

    with store.read() as connection:
        counts = store.rows.tasks.count_by_status(connection, place.crowd.backlog)
    assert counts[1] == {"completed": place.crowd.tenth, "cancelled": place.crowd.tenth}


# -- lists of runs


@pytest.mark.parametrize(
    "which",
    [
        {},
        {"status": "running"},
        {"status": "failed"},
        {"status": "completed"},
        {"status": "crashed"},
        {"pipeline": "rare"},
        {"pipeline": "often"},
        {"pipeline": "nobody's"},
        {"pipeline": "often", "status": "completed"},
        {"created_since": LONG_AGO},
        {"created_before": LONG_AGO},
        {"created_since": LONG_AGO, "status": "completed"},
        {"created_before": LONG_AGO, "pipeline": "often"},
        {"created_since": LONG_AGO, "pipeline": "often"},
        {"created_since": LONG_AGO, "tags": {"env": "prod"}},
    ],
    ids=str,
)
def test_runs_are_listed_without_reading_those_that_are_not_shown(place: Place, which: dict[str, Any]):
    assert place.read(lambda: place.store.search_runs(**which, limit=50)) < 2 * ONE


@pytest.mark.parametrize(
    "which",
    [
        {"tags": {"env": "prod"}},
        {"tags": {"customer": "7"}},
        {"tags": {"customer": "nobody"}},
        {"tags": {"env": "prod", "customer": "7"}},
        {"tags": {"env": "prod", "customer": "nobody"}},
        {"tags": {"env": "prod"}, "status": "completed"},
        {"tags": {"env": "prod"}, "status": "running"},
        {"tags": {"customer": "7"}, "status": "running"},
        {"tags": {"env": "prod"}, "pipeline": "often"},
        {"tags": {"env": "prod"}, "pipeline": "often", "status": "completed"},
    ],
    ids=str,
)
def test_runs_are_found_by_tags_among_all_that_have_others(place: Place, which: dict[str, Any]):
    of_customer = place.crowd.size // 10 // CUSTOMERS
    found: list[Any] = []

    assert place.read(lambda: found.extend(place.store.search_runs(**which, limit=50))) < 5 * of_customer + 2 * ONE
    assert all(row.status == which.get("status", row.status) for row in found)


def test_with_several_tags_servers_begin_with_the_rarest_and_sqlite_with_the_last(place: Place):
    """SQLite knows how often tags occur on the average, and not how often one does."""
    is_sqlite = place.store.database.engine.dialect.name == "sqlite"
    tags = {"customer": "7", "env": "prod"}

    of_all = 2 * place.crowd.size // 10
    assert place.read(lambda: place.store.search_runs(tags=tags, limit=50)) < (of_all if is_sqlite else 2 * ONE)


def test_the_failed_runs_of_a_pipeline_are_found_among_all_that_failed(place: Place):
    failed = place.crowd.size // 10 // 100

    assert place.read(lambda: place.store.search_runs(pipeline="rare", status="failed", limit=50)) < 3 * failed + ONE


def test_what_a_run_made_and_what_went_wrong_is_found_among_its_own_rows(place: Place):
    rows, run = place.store.rows, place.store.search_runs(status="failed", limit=1)[0].id

    def look(run_id: str) -> None:
        with place.store.read() as connection:
            rows.tasks.list_bad_ends(connection, run_id, 10)
            rows.artifacts.count_by_node(connection, run_id)

    assert place.read(lambda: look(run)) < 2 * ONE
    assert place.read(lambda: look(place.crowd.backlog)) < 5 * place.crowd.tenth


def test_a_run_is_found_by_the_beginning_of_its_id_without_reading_others(place: Place):
    first, last = place.crowd.paused[:20] + "000-000000000000", place.crowd.paused[:20] + "fff-ffffffffffff"
    found: list[str] = []

    assert place.read(lambda: found.extend(place.store.find_runs_between(first, last, 4))) < ONE
    assert place.crowd.paused in found


# -- old runs


@pytest.mark.parametrize("which", [{}, {"failed_rollbacks": True}, {"pipeline": "often"}], ids=str)
@pytest.mark.parametrize("status", ["completed", "failed", "cancelled"])
def test_old_runs_are_found_without_reading_the_others(place: Place, status: str, which: dict[str, Any]):
    """The oldest first: those that are too young are not looked at, nor any that has no place among the first."""
    rows, found = place.store.rows.pruning, []

    def look(age: int) -> None:
        with place.store.database.write() as connection:
            found[:] = rows.find_old(connection, status, age=age, limit=50, lock=True, **which)

    assert place.read(lambda: look(0)) < 2 * ONE
    assert len(found) == (0 if status == "cancelled" else 50)
    assert place.read(lambda: look(2**60)) < ONE
    assert found == []


def test_a_look_where_nothing_is_old_reads_next_to_nothing(place: Place):
    pruner = Pruner(build_runtime(place.store), lambda seconds: False)

    def look() -> None:
        pruner.go_on()
        pruner.prune(dict.fromkeys((RunStatus.COMPLETED, RunStatus.FAILED), 10.0**10))
        pruner.delete_definitions()

    assert place.read(look) < ONE


def test_deleting_runs_reads_what_is_theirs_a_few_times(place: Place):
    """Tasks, artifacts and history of 50 runs, in a store with a hundred thousand of each, or a million."""
    pruner = Pruner(build_runtime(place.store), lambda seconds: False)

    assert place.read(lambda: pruner.prune({RunStatus.COMPLETED: 0.0}, limit=50)) < 2 * BATCH
    assert pruner.runs == {"completed": 50}
    assert pruner.counts["artifact"] == 500


def test_whether_a_definition_is_in_use_is_seen_at_a_glance(place: Place):
    rows = place.store.rows.pruning
    digest = place.store.get_run(place.crowd.paused).definition_hash

    def ask() -> None:
        with place.store.database.write() as connection:
            rows.give_up_definitions(connection, [digest])
            assert rows.delete_definitions(connection, grace=0, limit=50) == 0

    assert place.read(ask) < ONE

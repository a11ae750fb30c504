"""How databases answer what workers ask all the time, beside many tasks that the question does not mean."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import event, insert, text

from dagabaaz_celery.stores.sql.store import SqlStore
from dagabaaz_celery.stores.sql.tables import new_id
from tests import services
from tests.integration.sql_stores import attempts_of, claim, node, records, start

MANY = 10_000


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SqlStore]:
    """A store with a paused run that has many pending tasks, and a running one that has completed as many."""
    sqlite = f"sqlite:///{tmp_path_factory.mktemp('plans') / 'runs.sqlite3'}"
    url = services.postgres_url() if request.param == "postgresql" else sqlite
    made = SqlStore(url, prefix=f"p{new_id()[-8:]}_")
    paused, running = start(made, node("a")).run.id, start(made, node("a"), node("b", "a")).run.id
    made.set_paused(paused, True)
    with made.database.write() as connection:
        for each in (
            make_tasks(paused, MANY, "pending"),
            make_tasks(running, MANY, "completed"),
            make_tasks(running, 500, "queued", queue="work", queued_at=1, lease_until=2),
            make_tasks(running, 50, "running", worker_id=new_id()),
            make_tasks(running, 5, "pending", not_before=2**60),
        ):
            connection.execute(insert(made.tables.task), each)
    with made.database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        for table in made.tables.metadata.sorted_tables:
            connection.execute(text(f"ANALYZE {table.name}"))
    yield made
    with made.database.write() as connection:
        made.tables.metadata.drop_all(connection)
        connection.execute(text(f"DROP TABLE {made.tables.prefix}schema_version"))
    made.close()


def make_tasks(run_id: str, count: int, status: str, **values: Any) -> list[dict[str, Any]]:
    fixed = {"run_id": run_id, "node_index": 1, "number": 1, "retries": 0, "recoveries": 0, "resends": 0}
    return [
        {"id": new_id(), "attempt_id": new_id(), "ordinal": n, "status": status, **fixed, **values}
        for n in range(count)
    ]


def find_scans(store: SqlStore, act: Callable[[], object]) -> list[str]:
    """Lines of plans that read the whole table of tasks, of every statement that an act sends."""
    sent: list[tuple[str, Any]] = []

    def note(connection: Any, cursor: Any, statement: str, parameters: Any, context: Any, executemany: bool) -> None:
        if statement.startswith(("SELECT", "UPDATE", "DELETE")):
            sent.append((statement, parameters[0] if executemany else parameters))

    event.listen(store.database.engine, "before_cursor_execute", note)
    try:
        act()
    finally:
        event.remove(store.database.engine, "before_cursor_execute", note)
    assert sent
    is_sqlite = store.url.startswith("sqlite")
    explain, scan = ("EXPLAIN QUERY PLAN", "SCAN ") if is_sqlite else ("EXPLAIN", "Seq Scan on ")
    with store.read() as connection:
        plans = [
            line
            for statement, parameters in sent
            for row in connection.exec_driver_sql(f"{explain} {statement}", parameters)
            for line in str(row[-1]).splitlines()
        ]
    return [line for line in plans if f"{scan}{store.tables.task.name}" in line and "USING" not in line]


@pytest.mark.parametrize(
    "ask",
    [
        lambda store: store.lease_due_tasks(500),
        lambda store: store.seconds_to_next_due(),
        lambda store: store.list_waiting_queues(),
        lambda store: store.find_lost_candidates("work", [], 100),
        lambda store: store.find_stalled_runs(500),
        lambda store: store.list_running_on(new_id()),
        lambda store: store.list_orphans(),
    ],
    ids=["due", "next due", "waiting queues", "lost candidates", "stalled", "running here", "orphans"],
)
def test_a_sweep_reads_no_task_that_it_does_not_ask_for(store: SqlStore, ask: Callable[[SqlStore], object]):
    assert find_scans(store, lambda: ask(store)) == []


def test_a_task_runs_without_reading_another(store: SqlStore):
    started = start(store, node("a"), node("b", "a"))
    works = []

    assert find_scans(store, lambda: works.append(claim(store, attempts_of(started)[0]))) == []
    assert find_scans(store, lambda: store.complete(works[0], records(1), "one")) == []


def test_what_a_paused_run_owes_is_not_looked_at(store: SqlStore):
    if store.url.startswith("sqlite"):
        pytest.skip("SQLite counts no rows")
    sent: list[tuple[str, Any]] = []

    def note(connection: Any, cursor: Any, statement: str, parameters: Any, context: Any, executemany: bool) -> None:
        sent.append((statement, parameters))

    while store.lease_due_tasks(500):
        continue
    event.listen(store.database.engine, "before_cursor_execute", note)
    store.lease_due_tasks(500)
    store.find_stalled_runs(500)
    store.seconds_to_next_due()
    event.remove(store.database.engine, "before_cursor_execute", note)

    with store.read() as connection:
        for statement, parameters in sent:
            (plan,) = connection.exec_driver_sql(f"EXPLAIN (ANALYZE, FORMAT JSON) {statement}", parameters).scalar_one()
            assert count_rows(plan["Plan"]) < 100, statement


def count_rows(plan: dict[str, Any]) -> int:
    """Rows that a plan's execution read, or read and dropped."""
    own = plan["Actual Rows"] + plan.get("Rows Removed by Filter", 0) + plan.get("Rows Removed by Join Filter", 0)
    return int(own * plan["Actual Loops"]) + sum(map(count_rows, plan.get("Plans", [])))

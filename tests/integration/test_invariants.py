"""The checker must see what is wrong: each break of a row is found and named."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dagabaaz_celery.stores.sql.invariants import find_violations
from dagabaaz_celery.stores.sql.store import SqlStore
from tests.integration.sql_stores import attempts_of, claim, node, records, start


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqlStore]:
    opened = SqlStore(f"sqlite:///{tmp_path / 'runs.sqlite3'}")
    yield opened
    opened.close()


@pytest.fixture
def run_id(store: SqlStore) -> str:
    """A run that completed: a source of two, one task for each, and its callback delivered."""
    roots = start(store, node("source"), node("work", "source"))
    fan = store.complete(claim(store, attempts_of(roots)[0]), records(2), "many")
    for attempt_id in attempts_of(fan):
        last = store.complete(claim(store, attempt_id), records(1), "one")
    for owed in last.owed:
        store.settle_owed(owed)
    return roots.run.id


def test_a_healthy_store_has_no_violations(store: SqlStore, run_id: str):
    assert find_violations(store, at_rest=True) == []


@pytest.mark.parametrize(
    ("table", "where", "values", "complaint"),
    [
        ("run", {}, {"nodes_done": 1}, "counts 1 nodes as done, and 2 are closed"),
        ("run", {}, {"ended_at": None}, "its end is None"),
        ("run", {}, {"status": "running"}, "is running and its end is"),
        ("node", {"node_index": 1}, {"tasks_done": 1}, "counts 1 tasks as done, and 2 are"),
        ("node", {"node_index": 1}, {"launch_cursor": 1}, "has 2 tasks and made 1"),
        ("node", {"node_index": 0}, {"status": "launched"}, "was launched while source is not closed"),
        ("node", {"node_index": 1}, {"status": "filtered"}, "has tasks ['completed', 'completed']"),
        ("task", {"node_index": 1, "ordinal": 0}, {"status": "failed"}, "is failed and has 1 artifacts"),
        ("task", {"node_index": 1, "ordinal": 0}, {"ordinal": 7}, "ordinals are not 0, 1, 2"),
        ("task", {"node_index": 0}, {"number": 2}, "is at attempt 2 and its history has 0"),
        ("task", {"node_index": 0}, {"status": "running", "claim_token": None}, "runs and nobody claimed it"),
    ],
    ids=lambda value: value if isinstance(value, str) and " " in value else "",
)
def test_a_broken_row_is_named(
    store: SqlStore, run_id: str, table: str, where: dict[str, Any], values: dict[str, Any], complaint: str
):
    rows = getattr(store.tables, table)
    with store.database.write() as connection:
        connection.execute(rows.update().filter_by(**where).values(**values))

    found = find_violations(store, [run_id])

    assert any(complaint in problem for problem in found), found


def test_rows_without_their_run_are_counted(store: SqlStore, run_id: str):
    with store.database.write() as connection:
        connection.execute(store.tables.run.delete())

    assert f"table {store.tables.task.name} has 3 rows of runs that are not there" in find_violations(store)


def test_at_rest_nothing_may_be_open_or_owed(store: SqlStore):
    started = start(store, node("a"))
    failed = store.fail(claim(store, attempts_of(started)[0]), _error())
    assert failed is not None
    start(store, node("b"))

    found = " ".join(find_violations(store, at_rest=True))

    assert "is still owed a callback (failed, tried 0 times)" in found
    assert "has 1 open tasks and nothing goes on" in found
    assert find_violations(store) == []


def _error() -> Any:
    from dagabaaz_celery.stores.sql.records import TaskError

    return TaskError("ValueError", "boom")

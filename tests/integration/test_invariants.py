"""The checker must see what is wrong: each break of a row is found and named."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from sqlalchemy import Connection, delete, event, insert, select, update

from dagabaaz_celery.app import Dagabaaz
from dagabaaz_celery.errors import UnknownRun
from dagabaaz_celery.pipeline import Definition, Pipeline, PluginSnapshot
from dagabaaz_celery.stores.memory import MemoryStore
from dagabaaz_celery.stores.sql import invariants
from dagabaaz_celery.stores.sql.records import TaskError
from dagabaaz_celery.stores.sql.store import SqlStore
from dagabaaz_celery.stores.sql.tables import Tables, new_id
from dagabaaz_celery.stores.sql.transaction import StorePolicy
from dagabaaz_celery.testing import assert_sound, find_violations
from tests.integration.sql_stores import attempts_of, claim, node, records, start

BOOM = TaskError("ValueError", "boom")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqlStore]:
    opened = SqlStore(f"sqlite:///{tmp_path / 'runs.sqlite3'}", policy=StorePolicy(launch_batch=2))
    yield opened
    opened.close()


@pytest.fixture
def run_id(store: SqlStore) -> str:
    """A run that completed: a source of two, one task for each, of which one was retried; its callback delivered."""
    roots = start(store, node("source"), node("work", "source"))
    fan = store.complete(claim(store, attempts_of(roots)[0]), records(2), "many")
    first, second = attempts_of(fan)
    again = store.retry_attempt(claim(store, first), delay=0, retries=1, error=BOOM)
    last = None
    for attempt_id in (*attempts_of(again), second):
        last = store.complete(claim(store, attempt_id), records(1), "one")
    for owed in last.owed:
        store.settle_owed(owed)
    return roots.run.id


def test_a_healthy_store_has_no_violations(store: SqlStore, run_id: str):
    assert find_violations(store, at_rest=True) == []
    assert_sound(store, [run_id])


# -- one break each

Break = Callable[[Tables], Any]


def change(table: str, _where: dict[str, Any] | None = None, **values: Any) -> Break:
    """An update of the rows that have these values."""
    return lambda tables: update(getattr(tables, table)).filter_by(**_where or {}).values(**values)


def remove(table: str, **where: Any) -> Break:
    return lambda tables: delete(getattr(tables, table)).filter_by(**where)


SOURCE, FIRST = {"node_index": 0}, {"node_index": 1, "ordinal": 0}
FIRST_MADE = {"node_index": 1, "task_ordinal": 0}
OWED = {"kind": "callback", "generation": 1, "node_index": -1, "status": "completed", "tries": 0, "due_at": 0}


def owe(**changes: Any) -> Break:
    """Something owed to every run."""

    def build(tables: Tables) -> Any:
        values = {"id": new_id(), **OWED, **changes}
        return lambda connection, run_id: connection.execute(insert(tables.owed).values(run_id=run_id, **values))

    return build


BREAKS = {
    "counts 1 nodes as done, and 2 are closed": change("run", nodes_done=1),
    "its end is None": change("run", ended_at=None),
    "is running and its end is": change("run", status="running"),
    "is completed with 1 of 2 nodes closed": change("node", {"node_index": 1}, status="failed"),
    "has 1 node rows of 2": remove("node", node_index=1),
    "has 2 tasks of node #1, which is not there": remove("node", node_index=1),
    "has 3 nodes and its definition 2": change("run", nodes_total=3),
    "its definition 0+ is not there": change("run", definition_hash="0" * 64),
    "counts 1 tasks as done, and 2 are": change("node", {"node_index": 1}, tasks_done=1),
    "has 2 tasks and made 1": change("node", {"node_index": 1}, launch_cursor=1),
    "has 2 tasks before its launch": change("node", {"node_index": 1}, status="blocked"),
    "has 2 tasks of 3": change("node", {"node_index": 1}, tasks_total=3),
    "has all 2 tasks and is not launched": change("node", {"node_index": 1}, status="launching"),
    "is closed with 2 of 3 tasks done": change("node", {"node_index": 1}, tasks_total=3),
    "was launched while source is not closed": change("node", {"node_index": 0}, status="launched"),
    "has tasks that are 2 completed": change("node", {"node_index": 1}, status="filtered"),
    "was opened at None": change("node", {"node_index": 1}, opened_at=None),
    "was closed at None": change("node", {"node_index": 1}, closed_at=None),
    "runs and nobody claimed it": change("task", SOURCE, status="running", claim_token=None),
    "is queued and claimed": change("task", SOURCE, status="queued"),
    "is queued and was never published": change("task", SOURCE, status="queued", queued_at=None),
    "is queued and has an end": change("task", SOURCE, status="queued"),
    "is completed and has no end": change("task", SOURCE, ended_at=None),
    "is completed and was never sent": change("task", SOURCE, number=0),
    "counts 1 recoveries and 0 retries in 1 attempts": change("task", SOURCE, recoveries=1),
    "has 2 tasks for the same work": change("task", {"node_index": 1}, input_artifact_id=None),
    "ordinals are not 0, 1, 2": change("task", FIRST, ordinal=7),
    "is at attempt 2 and its history has 0": change("task", SOURCE, number=2),
    "is at attempt 2 and its history has 1, the last of them 3": change("attempt", number=3),
    "its current attempt is in its history too": lambda tables: update(tables.attempt).values(
        attempt_id=select(tables.task.c.attempt_id).filter_by(**FIRST).scalar_subquery()
    ),
    "artifact .* of node 'work' belongs to task .*, which is not there": remove("task", **FIRST),
    "attempt .* belongs to task .*, which is not there": remove("task", **FIRST),
    "reads artifact": change("task", FIRST, input_artifact_id=new_id()),
    "gathers what goes back to artifact": change("task", FIRST, origin_artifact_id=new_id()),
    "goes back to artifact": change("artifact", {"node_index": 1, "task_ordinal": 0}, origin_artifact_id=new_id()),
    "is failed and has 1 artifacts": change("task", FIRST, status="failed"),
    "has artifacts whose ordinals are not 0, 1, 2": change("artifact", {"node_index": 0, "ordinal": 1}, ordinal=2),
    "gave back 'none' and has 2 artifacts": change("task", SOURCE, result_shape="none"),
    "gave back 'one' and has 2 artifacts": change("task", SOURCE, result_shape="one"),
    "node 'work': 2 tasks gave back one value each, and 1 are there": remove("artifact", **FIRST_MADE),
    "has 1 artifacts that stand at another run, node or place": change("task", FIRST, ordinal=7),
    "which it has not reached": owe(generation=2),
    "is completed and owed a callback that says failed": owe(status="failed"),
    "is completed with 1 open tasks": change("task", FIRST, status="pending", claim_token=None, ended_at=None),
}


@pytest.mark.parametrize("sentence", BREAKS)
def test_a_broken_row_is_named(store: SqlStore, run_id: str, sentence: str):
    broken = BREAKS[sentence](store.tables)
    with store.database.write() as connection:
        if callable(broken):
            broken(connection, run_id)
        else:
            connection.execute(broken)

    found = find_violations(store, [run_id])

    assert any(re.search(sentence, problem) for problem in found), found
    assert all(problem.startswith(f"run {run_id}: ") for problem in found)


def test_an_outcome_that_was_accepted_twice_is_named(store: SqlStore, run_id: str):
    """Its artifacts are there twice."""
    artifact = store.tables.artifact
    with store.database.write() as connection:
        row = connection.execute(select(artifact).filter_by(node_index=1, task_ordinal=0)).one()
        connection.execute(insert(artifact).values({**row._mapping, "id": new_id()}))

    found = " ".join(find_violations(store, [run_id]))

    assert "has artifacts whose ordinals are not 0, 1, 2, …" in found
    assert "gave back 'one' and has 2 artifacts" in found


def test_open_tasks_that_nobody_is_to_cancel_are_named(store: SqlStore):
    started = start(store, node("a"), node("b"))
    store.fail(claim(store, attempts_of(started)[0]), BOOM)
    assert find_violations(store) == []

    with store.database.write() as connection:
        connection.execute(delete(store.tables.owed).filter_by(kind="cancel"))

    assert any("is failed with 1 open tasks, and nobody is to cancel" in problem for problem in find_violations(store))


def test_a_launch_that_nobody_goes_on_with_is_named(store: SqlStore):
    started = start(store, node("source"), node("wide", "source"))
    store.complete(claim(store, attempts_of(started)[0]), records(3), "many")
    assert find_violations(store) == []

    with store.database.write() as connection:
        connection.execute(delete(store.tables.owed))

    assert any("'wide': is being launched, and nobody is to go on" in problem for problem in find_violations(store))


def test_retries_that_celery_makes_itself_are_no_attempts(store: SqlStore):
    """A task that is not wrapped keeps its attempt id through Celery's own retries."""
    snapshot = PluginSnapshot(task_name="other", wrapped=False)
    definition = Definition(name="p", nodes=[node("a")], plugins={"work": snapshot})
    started = store.start(definition, "{}", run_id=new_id())
    (attempt_id,) = attempts_of(started)
    claim(store, attempt_id)

    store.lend_to_celery(attempt_id, delay=1, retries=1)

    assert find_violations(store) == []


def test_rows_without_their_run_are_counted(store: SqlStore, run_id: str):
    start(store, node("a"), tags={"customer": "42", "kind": "x"})
    with store.database.write() as connection:
        connection.execute(store.tables.run.delete())

    found = find_violations(store)
    assert f"table {store.tables.task.name} has 4 rows of runs that are not there" in found
    assert f"table {store.tables.tag.name} has 2 rows of runs that are not there" in found


def test_at_rest_nothing_may_be_open_or_owed(store: SqlStore):
    started = start(store, node("a"))
    failed = store.fail(claim(store, attempts_of(started)[0]), BOOM)
    assert failed is not None
    start(store, node("b"))

    found = " ".join(find_violations(store, at_rest=True))

    assert "is still owed a callback (failed, tried 0 times)" in found
    assert "has 1 open tasks, and was meant to have none" in found
    assert find_violations(store) == []


# -- the report


def test_of_many_rows_with_one_problem_a_few_are_named(store: SqlStore):
    started = start(store, *(node(f"n{index}") for index in range(40)))
    with store.database.write() as connection:
        connection.execute(update(store.tables.task).values(status="running"))

    found = find_violations(store)

    assert len(found) == 6
    assert found[-1] == f"run {started.run.id}: and 35 more like the last"


def test_more_runs_than_are_read_at_once_are_all_looked_at(store: SqlStore):
    runs = [start(store, node("a")).run.id for _ in range(120)]
    with store.database.write() as connection:
        connection.execute(update(store.tables.task).values(status="running"))

    assert [problem.split()[1].rstrip(":") for problem in find_violations(store)] == runs


def test_no_row_of_a_healthy_run_leaves_the_database(store: SqlStore):
    """What is read of a run grows with its graph and not with its tasks."""
    started = start(store, node("source"), node("work", "source"))
    fan = store.complete(claim(store, attempts_of(started)[0]), records(300), "many")
    while fan.owed:
        fan = store.continue_launch(fan.owed[0])
    fetched: list[int] = []

    def count_rows(connection: Connection, cursor: Any, statement: str, *_: Any) -> None:
        if statement.startswith("SELECT"):
            again = connection.connection.cursor()
            fetched.append(len(again.execute(statement, _[0]).fetchall()))

    event.listen(store.database.engine, "after_cursor_execute", count_rows)
    try:
        assert find_violations(store) == []
    finally:
        event.remove(store.database.engine, "after_cursor_execute", count_rows)

    assert len(fetched) > 10
    assert max(fetched) < 10


def test_a_run_that_is_not_there_is_refused(store: SqlStore):
    with pytest.raises(UnknownRun):
        find_violations(store, [new_id()])
    with pytest.raises(UnknownRun):
        find_violations(store, ["order-42"])


# -- where people meet it


def _double(n: int) -> int:
    return 2 * n


def test_an_apps_runs_are_checked_through_its_handles(tmp_path: Path):
    app = Celery("checked", broker="memory://")
    app.conf.update(task_always_eager=True, dagabaaz_store_url=f"sqlite:///{tmp_path / 'runs.sqlite3'}")
    dag = Dagabaaz(app)
    dag.plugin(_double, name="double")
    run, other = (dag.start(Pipeline("sums", nodes=[{"slug": "a", "plugin": "double"}]), {"n": n}) for n in (2, 3))
    assert_sound(dag)
    assert_sound(dag, [run, other.id])

    store = SqlStore(app.conf.dagabaaz_store_url)
    with store.database.write() as connection:
        connection.execute(update(store.tables.node).filter_by(run_id=run.id).values(closed_at=None))
    store.close()

    assert find_violations(dag, [other]) == []
    with pytest.raises(AssertionError, match=f"run {run.id}: node 'a' \\(completed\\): was closed at None"):
        assert_sound(dag)
    dag.close()


def test_a_run_that_still_goes_on_is_not_at_rest_and_not_unsound(store: SqlStore):
    start(store, node("a"))

    with pytest.raises(AssertionError, match=r"and not at rest after 0 s:\n.* is running, and was meant to"):
        assert_sound(store, timeout=0)
    assert_sound(store, at_rest=False)


def test_the_store_in_memory_has_nothing_to_check():
    with pytest.raises(TypeError, match="MemoryStore"):
        find_violations(MemoryStore())  # type: ignore[arg-type]


def test_from_the_command_line(store: SqlStore, run_id: str, capsys: pytest.CaptureFixture[str]):
    assert invariants.main([store.url, "--at-rest"]) == 0
    assert capsys.readouterr().out == "every invariant holds\n"

    with store.database.write() as connection:
        connection.execute(update(store.tables.run).values(nodes_done=1))

    assert invariants.main([store.url, "--run", run_id]) == 1
    assert capsys.readouterr().out == (f"run {run_id}: counts 1 nodes as done, and 2 are closed\n1 broken invariants\n")


def test_from_the_command_line_a_store_that_is_not_there_is_not_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert invariants.main([f"sqlite:///{tmp_path / 'mistyped.sqlite3'}"]) == 2
    assert "There is no store file" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []

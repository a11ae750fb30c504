"""Very many old tasks are deleted while others work, and nobody waits for it.

Twenty thousand tasks on each database, and a million with DAGABAAZ_FAULTS=full: there the promise itself is measured,
that no transaction holds its locks for a second.
"""

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy import event, func, select, text

from dagabaaz_celery.constants import RunStatus
from dagabaaz_celery.settings import Settings
from dagabaaz_celery.stores.sql import invariants
from dagabaaz_celery.stores.sql.store import SqlStore
from dagabaaz_celery.stores.sql.tables import new_id
from dagabaaz_celery.worker.pruning import Pruner
from tests import services
from tests.integration.sql_plans import Filler
from tests.integration.sql_stores import attempts_of, claim, node, records, start

IS_FULL = os.environ.get("DAGABAAZ_FAULTS") == "full"
SIZE = 1_000_000 if IS_FULL else 20_000
SERVERS = {"postgresql": services.postgres_url, "mariadb": services.mysql_url}
NODES = (node("a"), node("b", "a"))
MOST_ROWS = 2000

pytestmark = pytest.mark.timeout(7200)


@dataclass
class Measured:
    """What was seen of a store's writing transactions: seconds for which each lasted, and rows that each deleted."""

    seconds: list[float] = field(default_factory=list)
    rows: list[int] = field(default_factory=lambda: [0])


@contextmanager
def measuring(store: SqlStore) -> Iterator[Measured]:
    """From the moment at which a transaction has begun until its commit is answered."""
    measured, write = Measured(), store.database.write

    @contextmanager
    def measured_write() -> Iterator[Any]:
        with write() as connection:
            begun = time.monotonic()
            measured.rows.append(0)
            yield connection
        measured.seconds.append(time.monotonic() - begun)

    def count(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        if statement.startswith("DELETE"):
            measured.rows[-1] += cursor.rowcount

    event.listen(store.database.engine, "after_cursor_execute", count)
    store.database.write = measured_write  # type: ignore[method-assign]
    yield measured
    store.database.write = write  # type: ignore[method-assign]


def fill(store: SqlStore, size: int) -> None:
    """Put ``size`` tasks of old runs into a store: half of them in one run, the others in runs of ten."""
    model = start(store, *NODES).run
    filler = Filler(store)
    wide = start(store, *NODES).run.id
    half = size // 2
    ended = {"claim_token": filler.id("n"), "claimed_at": "n", "ended_at": "n", "status": "'completed'"}
    filler.tasks(half, wide, ":run", "n", **ended)
    filler.tasks(half, None, filler.id(filler.divide("n", 10)), "n % 10", **ended)
    fixed = {"definition_hash": f"'{model.definition_hash}'", "input": "'{}'", "options": "'{}'", "paused": "FALSE"}
    counts = {"generation": "1", "nodes_total": "2", "nodes_done": "2", "rollback_status": "'none'"}
    filler.insert(
        "run",
        half // 10,
        id=filler.id("n"),
        pipeline="'p'",
        status="'completed'",
        created_at="n",
        ended_at="n",
        **fixed,
        **counts,
    )
    tens = {"status": "'completed'", "tasks_total": "10", "tasks_done": "10", "launch_cursor": "10"}
    filler.insert("node", half // 10, run_id=filler.id("n"), node_index="1", **tens)
    place = {"node_index": "1", "task_id": filler.id("n"), "ordinal": "0", "shape": "'record'", "metadata": "'{}'"}
    first = 10**9
    for of_run, run_id, ordinal in ((wide, ":run", "n"), (None, filler.id(filler.divide("n", 10)), "n % 10")):
        own = {"id": filler.id(f"{first} + n"), "origin_artifact_id": filler.id(f"{first} + n")}
        filler.insert("artifact", half, of_run, run_id=run_id, task_ordinal=ordinal, **place, **own)
        first *= 2
    history = {"number": "1", "status": "'running'", "claimed_at": "n", "ended_at": "n", "reason": "'{}'"}
    own = {"attempt_id": filler.id(f"{first} + n"), "task_id": filler.id("n")}
    filler.insert("attempt", half // 5, wide, run_id=":run", **own, **history)
    run = store.tables.run
    with store.database.write() as connection:
        connection.execute(run.update().where(run.c.id == wide).values(status="completed", ended_at=1))
        connection.execute(store.tables.owed.delete())


@pytest.fixture(params=["sqlite", *SERVERS])
def store(request: pytest.FixtureRequest, tmp_path: Any) -> Iterator[SqlStore]:
    """A store with tables of its own, full of old tasks."""
    url = SERVERS[request.param]() if request.param in SERVERS else f"sqlite:///{tmp_path / 'runs.sqlite3'}"
    found = SqlStore(url, prefix=f"q{new_id()[-8:]}_")
    fill(found, SIZE)
    yield found
    with found.database.write() as connection:
        found.tables.metadata.drop_all(connection)
        connection.execute(text(f"DROP TABLE {found.tables.prefix}schema_version"))
    found.close()


class Others:
    """A thread that starts runs, claims and completes their tasks, by connections of its own, until told to stop."""

    def __init__(self, store: SqlStore) -> None:
        self.store = SqlStore(store.url, prefix=store.tables.prefix)
        self.seconds: list[float] = []
        self.runs: list[str] = []
        self.error: Exception | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work)

    def _work(self) -> None:
        try:
            while not self._stop.wait(0.01):
                self._run()
        except Exception as error:
            self.error = error

    def _run(self) -> None:
        started = self._time(lambda: start(self.store, *NODES))
        todo = list(attempts_of(started))
        while todo:
            attempt = todo.pop()
            work = self._time(lambda attempt=attempt: claim(self.store, attempt))
            aftermath = self._time(lambda work=work: self.store.complete(work, records(1), "many"))
            todo += attempts_of(aftermath)
        self.runs.append(started.run.id)

    def _time(self, call: Any) -> Any:
        begun = time.monotonic()
        answer = call()
        self.seconds.append(time.monotonic() - begun)
        return answer

    def __enter__(self) -> "Others":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self.store.close()


def count_tasks(store: SqlStore) -> int:
    with store.read() as connection:
        return connection.execute(select(func.count()).select_from(store.tables.task)).scalar_one()


def test_very_many_old_tasks_are_deleted_while_others_work(store: SqlStore, capsys: pytest.CaptureFixture[str]):
    tasks = count_tasks(store)
    assert tasks > SIZE

    def pause(seconds: float) -> bool:
        time.sleep(seconds)
        return False

    pruner = Pruner(SimpleNamespace(store=store, settings=Settings(), file_callbacks=[]), pause)  # type: ignore[arg-type]
    begun = time.monotonic()
    with Others(store) as others, measuring(store) as measured:
        pruner.prune({RunStatus.COMPLETED: 3600.0})
    took = time.monotonic() - begun

    assert others.error is None
    report = pruner.report()
    assert (report.runs_total, report.tasks, report.artifacts) == (SIZE // 20 + 1, tasks - 1, SIZE)
    assert count_tasks(store) == 1 + 2 * len(others.runs), "one of a run that has not ended"
    assert max(measured.rows) <= MOST_ROWS
    assert len(others.runs) > 0
    assert {store.get_run(run_id).status for run_id in others.runs} == {RunStatus.COMPLETED}
    assert invariants.find_violations(store, others.runs) == []
    if IS_FULL:
        with capsys.disabled():
            print(  # noqa: T201  # figures for the person who asked for them
                f"\n{store.database.engine.dialect.name}: {SIZE} tasks in {took:.0f} s and {len(measured.seconds)} "
                f"transactions, the longest {max(measured.seconds):.3f} s; beside it {len(others.runs)} runs, of whose "
                f"calls the longest took {max(others.seconds):.3f} s"
            )
        assert max(measured.seconds) < 1.0

"""A store with very many tasks, and what its statements read there."""

import re
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import bindparam, event, text, update

from dagabaaz_celery.stores.sql.store import SqlStore
from dagabaaz_celery.stores.sql.tables import Id
from tests.integration.sql_stores import node, start

#: An id made of a number: 16 bytes, in the numbers' order, and of 1970.
_ID_OF = {
    "sqlite": "CAST(char(0, 0, 0) || printf('%013d', {}) AS BLOB)",
    "postgresql": "CAST(lpad(to_hex({}), 32, '0') AS uuid)",
    "mysql": "UNHEX(LPAD(HEX({}), 32, '0'))",
}
_TASKS_OF_A_RUN = 10
#: Each has as many of the runs that ended, by a tag; by another, all of them are of one kind.
CUSTOMERS = 500
#: Instructions of SQLite's machine that count as one row: reading, comparing and keeping one takes about as many.
_STEPS_OF_A_ROW = 10
_TICK = 100
_SQLITE_SCAN = re.compile(r"SCAN \w+")  # where an index gives the order, a limit ends what says "USING" after it
_EXPLAINED = ("SELECT", "UPDATE", "DELETE", "WITH")


@dataclass(frozen=True)
class Crowd:
    """Open runs, each with a tenth of ``size`` tasks that are completed and as many that are not.

    Beside them are runs that ended, of ten tasks each, so that ``size`` tasks in all are completed.
    """

    size: int
    paused: str
    resumed: str
    backlog: str
    delayed: str

    @property
    def tenth(self) -> int:
        return self.size // 10


class Filler:
    """Fills tables by one statement each: rows are made by the database, of the numbers that it counts."""

    def __init__(self, store: SqlStore) -> None:
        self._store = store
        dialect = _name_dialect(store)
        self._id, self._divide = _ID_OF[dialect], "DIV" if dialect == "mysql" else "/"
        self._made = 0

    def id(self, number: str) -> str:
        return self._id.format(number)

    def divide(self, a: str, b: int) -> str:
        return f"{a} {self._divide} {b}"

    def insert(self, table: str, count: int, of_run: str | None = None, **columns: str) -> None:
        """Insert rows; columns are SQL over ``n``, which goes from 0 to ``count``, and ``:run``."""
        digits = len(str(count - 1))
        ten = " UNION ALL ".join(f"SELECT {digit} AS d" for digit in range(10))
        tables = " CROSS JOIN ".join(f"({ten}) AS t{place}" for place in range(digits))
        number = " + ".join(f"t{place}.d * {10**place}" for place in range(digits))
        statement = text(
            f"INSERT INTO {self._store.tables.prefix}{table} ({', '.join(columns)}) "
            f"SELECT {', '.join(columns.values())} FROM (SELECT {number} AS n FROM {tables}) AS numbers "
            f"WHERE n < {count}"
        )
        if of_run is not None:
            statement = statement.bindparams(bindparam("run", of_run, type_=Id()))
        with self._store.database.write() as connection:
            if _name_dialect(self._store) == "sqlite":
                connection.exec_driver_sql("PRAGMA cache_size = -200000")  # KiB: indexes are filled out of order
            connection.execute(statement)

    def tasks(self, count: int, of_run: str | None, run: str, ordinal: str, **columns: str) -> None:
        """Insert tasks, each with ids of its own."""
        self._made += 1
        first = self._made * 10**10
        fixed = dict.fromkeys(("retries", "recoveries", "resends"), "0")
        ids = {"id": self.id(f"{first} + n"), "attempt_id": self.id(f"{first + 10**12} + n")}
        places = {"run_id": run, "node_index": "1", "ordinal": ordinal, "number": "1"}
        self.insert("task", count, of_run, **ids, **places, **fixed, **columns)


def _name_dialect(store: SqlStore) -> str:
    return store.database.engine.dialect.name.replace("mariadb", "mysql")


def fill(store: SqlStore, size: int) -> Crowd:
    """Put ``size`` tasks that ended into a store, with their runs, nodes and artifacts, and open ones beside them.

    On two busy cores a million took 20 to 60 s, by the database.
    """
    nodes = (node("a"), node("b", "a"))
    model = start(store, *nodes).run
    filler = Filler(store)
    run_of_task = filler.id(filler.divide("n", _TASKS_OF_A_RUN))
    ordinal = f"n % {_TASKS_OF_A_RUN}"
    ended = {"claim_token": filler.id("n"), "claimed_at": "n", "ended_at": "n", "queue": "'work'", "queued_at": "n"}
    ended |= {"status": "'completed'", "worker_id": filler.id("7")}
    filler.tasks(size * 6 // 10, None, run_of_task, ordinal, **ended)
    filler.insert(
        "run",
        size // _TASKS_OF_A_RUN,
        id=filler.id("n"),
        pipeline="CASE WHEN n % 1000 = 0 THEN 'rare' ELSE 'often' END",
        definition_hash=f"'{model.definition_hash}'",
        input="'{}'",
        options="'{}'",
        status="CASE WHEN n % 100 = 0 THEN 'failed' ELSE 'completed' END",
        paused="FALSE",
        generation="1",
        nodes_total="2",
        nodes_done="2",
        rollback_status="'none'",
        created_at="n",
        ended_at="n",
    )
    text_of = {"mysql": "CHAR", "sqlite": "TEXT", "postgresql": "TEXT"}[_name_dialect(store)]
    for name, value in (("env", "'prod'"), ("customer", f"CAST(n % {CUSTOMERS} AS {text_of})")):
        filler.insert("tag", size // _TASKS_OF_A_RUN, run_id=filler.id("n"), name=f"'{name}'", value=value)
    filler.insert(
        "node",
        size // _TASKS_OF_A_RUN,
        run_id=filler.id("n"),
        node_index="1",
        status="'completed'",
        tasks_total="10",
        tasks_done="10",
        launch_cursor="10",
    )
    filler.insert(
        "artifact",
        size,
        id=filler.id("n"),
        run_id=run_of_task,
        node_index="1",
        task_id=filler.id("n"),
        task_ordinal=ordinal,
        ordinal="0",
        shape="'record'",
        metadata="'{}'",
        origin_artifact_id=filler.id("n"),
    )
    filler.insert(
        "attempt",
        size,
        attempt_id=filler.id(f"{10**9} + n"),
        task_id=filler.id("n"),
        run_id=run_of_task,
        number="1",
        status="'running'",
        claimed_at="n",
        ended_at="n",
        reason="'{}'",
    )
    crowd = Crowd(size, *(start(store, *nodes).run.id for _ in range(4)))
    queued = {"queue": "'work'", "queued_at": "n + 1", "lease_until": "2"}
    for run_id, columns in (
        (crowd.paused, {"status": "'pending'"}),
        (crowd.resumed, {"status": "'pending'"}),
        (crowd.backlog, {"status": "'queued'", **queued}),
        (crowd.delayed, {"status": "'pending'", "not_before": str(2**60)}),
    ):
        filler.tasks(crowd.tenth, run_id, ":run", "n", **ended)
        filler.tasks(crowd.tenth, run_id, ":run", f"{crowd.tenth} + n", **columns)
        _set_launched(store, run_id, crowd.tenth)
    store.set_paused(crowd.paused, True)
    _analyze(store)
    return crowd


def _set_launched(store: SqlStore, run_id: str, count: int) -> None:
    nodes = store.tables.node
    of_run = update(nodes).where(nodes.c.run_id == run_id)
    with store.database.write() as connection:
        connection.execute(of_run.where(nodes.c.node_index == 1).values(tasks_total=count, launch_cursor=count))
        connection.execute(of_run.where(nodes.c.node_index == 1).values(status="launched"))


def _analyze(store: SqlStore) -> None:
    """Have the planner know the tables, as a server's own care does after a while; PostgreSQL also cleans them."""
    word = {"postgresql": "VACUUM ANALYZE", "mysql": "ANALYZE TABLE"}.get(_name_dialect(store))
    if word is not None:  # SQLite does nothing of the kind by itself
        with store.database.write_each() as connection:
            for table in store.tables.metadata.sorted_tables:
                connection.exec_driver_sql(f"{word} {table.name}")


# -- what statements read


@dataclass
class Reading:
    """A statement, how many rows were read for it, and the tables that were read from end to end."""

    statement: str
    rows: int = 0
    scanned: list[str] = field(default_factory=list)


def observe(store: SqlStore, act: Callable[[], object]) -> list[Reading]:
    """What each statement of an act read, on the way to what it found."""
    with _OBSERVERS[_name_dialect(store)](store) as readings:
        act()
    assert readings, "the act sent nothing"
    return readings


@contextmanager
def _observe_postgresql(store: SqlStore) -> Iterator[list[Reading]]:
    """Each statement is run twice, first by EXPLAIN ANALYZE in a savepoint that is taken back.

    Those that stand alone are in a transaction meanwhile, or there were no savepoint.
    """

    def explain(connection: Any, statement: str, parameters: Any) -> Reading:
        with connection.connection.cursor() as own:
            own.execute("SAVEPOINT explained")
            own.execute(f"EXPLAIN (ANALYZE, FORMAT JSON) {statement}", parameters)
            parts = list(_walk(own.fetchone()[0][0]["Plan"]))
            own.execute("ROLLBACK TO SAVEPOINT explained")
        scanned = [part["Relation Name"] for part in parts if part["Node Type"] == "Seq Scan"]
        return Reading(statement, sum(map(_count_rows, parts)), scanned)

    store.database.write_each = store.database.write  # type: ignore[method-assign]
    try:
        with _before_each(store, explain) as readings:
            yield readings
    finally:
        del store.database.write_each


def _walk(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for below in plan.get("Plans", []):
        yield from _walk(below)


def _count_rows(part: dict[str, Any]) -> int:
    """Rows that a part of a plan read from a table or an index, those that it dropped among them."""
    if "Scan" not in part["Node Type"] or part["Node Type"] == "Bitmap Heap Scan":  # the index's are the same rows
        return 0
    dropped = part.get("Rows Removed by Filter", 0) + part.get("Rows Removed by Index Recheck", 0)
    return int((part["Actual Rows"] + dropped) * part["Actual Loops"])


@contextmanager
def _observe_mysql(store: SqlStore) -> Iterator[list[Reading]]:
    """The server counts for each session how often it asked a table for a row."""
    before = 0

    def count(connection: Any) -> int:
        with connection.connection.cursor() as own:
            own.execute("SHOW SESSION STATUS LIKE 'Handler_read%'")
            return sum(int(value) for _, value in own.fetchall())

    def explain(connection: Any, statement: str, parameters: Any) -> Reading:
        nonlocal before
        with connection.connection.cursor() as own:
            own.execute(f"EXPLAIN {statement}", parameters)
            columns = [column[0] for column in own.description]
            parts = [dict(zip(columns, row, strict=True)) for row in own.fetchall()]
        before = count(connection)
        return Reading(statement, scanned=[part["table"] for part in parts if part["type"] == "ALL"])

    def end(connection: Any, cursor: Any, statement: str, parameters: Any, context: Any, executemany: bool) -> None:
        if statement.startswith(_EXPLAINED):
            readings[-1].rows = count(connection) - before

    with _before_each(store, explain) as readings:
        event.listen(store.database.engine, "after_cursor_execute", end)
        try:
            yield readings
        finally:
            event.remove(store.database.engine, "after_cursor_execute", end)


@contextmanager
def _observe_sqlite(store: SqlStore) -> Iterator[list[Reading]]:
    """SQLite counts no rows, and calls back after so many instructions of its machine."""

    def explain(connection: Any, statement: str, parameters: Any) -> Reading:
        driver: sqlite3.Connection = connection.connection.driver_connection
        lines = [str(row[-1]) for row in driver.execute(f"EXPLAIN QUERY PLAN {statement}", parameters)]
        reading = Reading(statement, scanned=[line.split()[1] for line in lines if _SQLITE_SCAN.fullmatch(line)])

        def tick() -> int:
            reading.rows += _TICK // _STEPS_OF_A_ROW
            return 0

        driver.set_progress_handler(tick, _TICK)
        return reading

    with _before_each(store, explain) as readings:
        yield readings


_OBSERVERS = {"sqlite": _observe_sqlite, "postgresql": _observe_postgresql, "mysql": _observe_mysql}


@contextmanager
def _before_each(store: SqlStore, explain: Callable[[Any, str, Any], Reading]) -> Iterator[list[Reading]]:
    """Call ``explain`` before each statement that reads; of many with one text, for the first."""
    readings: list[Reading] = []

    def note(connection: Any, cursor: Any, statement: str, parameters: Any, context: Any, executemany: bool) -> None:
        if statement.startswith(_EXPLAINED):
            readings.append(explain(connection, statement, parameters[0] if executemany else parameters))

    event.listen(store.database.engine, "before_cursor_execute", note)
    try:
        yield readings
    finally:
        event.remove(store.database.engine, "before_cursor_execute", note)

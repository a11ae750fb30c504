"""A barrier by hand, on the raw driver: in as few statements and round trips as each database permits.

The tables are those of the package, with its indexes, under another prefix. A claim is one statement; an outcome is one
transaction of a guard, an artifact and a counter; the counter says to one task of a stage that it was the last. What is
left out makes it quicker than a barrier to be relied on could be: no input is read, what ends a stage is no part of the
transaction that ended it, nothing notes what was published, and nothing is ever mended.
"""

import json
import sqlite3
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import psycopg
import pymysql
from pymysql.constants import CLIENT
from sqlalchemy import URL, NullPool, create_engine, make_url

from dagabaaz_celery.stores.sql.tables import build_tables, new_id
from tests.benchmarks.counts import COMMIT, STATEMENT

PREFIX = "limit_"
_TASK = ("id", "run_id", "node_index", "ordinal", "status", "attempt_id", "number", "retries", "recoveries", "resends")
_ARTIFACT = ("id", "run_id", "node_index", "task_id", "task_ordinal", "ordinal", "shape", "metadata")
_BUSY_SECONDS = 30.0


@dataclass(frozen=True)
class Row:
    """A task that was launched."""

    task_id: str
    run_id: str
    stage: int
    attempt_id: str


class Barrier(ABC):
    """Claims, outcomes and launches on one connection, which belongs to one process."""

    def __init__(self, note: Callable[[str], None] | None = None) -> None:
        self._note = note

    def start(self, stages: Sequence[int]) -> list[Row]:
        """A run whose first stage is launched."""
        run_id = new_id()
        self._insert_nodes([(run_id, stage, "launched", width, 0, width) for stage, width in enumerate(stages)])
        return self.launch(run_id, 0, stages[0])

    def launch(self, run_id: str, stage: int, width: int) -> list[Row]:
        """The tasks of a stage, and what each is to take where they are many."""
        rows = [Row(new_id(), run_id, stage, new_id()) for _ in range(width)]
        if width > 1:
            self._insert_artifacts([self._source_artifact(row, ordinal) for ordinal, row in enumerate(rows)])
        self._insert_tasks(
            [
                (row.task_id, run_id, stage, ordinal, "pending", row.attempt_id, 1, 0, 0, 0)
                for ordinal, row in enumerate(rows)
            ]
        )
        return rows

    @abstractmethod
    def claim(self, attempt_id: str, token: str) -> bool:
        """Whether this is the one who may run the attempt."""

    @abstractmethod
    def complete(self, row: Row, token: str, metadata: str) -> int:
        """Record the outcome with one artifact; how many tasks of the stage are done by now, 0 when refused."""

    @abstractmethod
    def _insert_nodes(self, rows: list[tuple[Any, ...]]) -> None: ...

    @abstractmethod
    def _insert_tasks(self, rows: list[tuple[Any, ...]]) -> None: ...

    @abstractmethod
    def _insert_artifacts(self, rows: list[tuple[Any, ...]]) -> None: ...

    def _source_artifact(self, row: Row, ordinal: int) -> tuple[Any, ...]:
        return (new_id(), row.run_id, row.stage - 1, row.task_id, 0, ordinal, "many", json.dumps({"n": ordinal}))

    def _count(self, statements: int, commits: int = 1) -> None:
        if self._note is not None:
            for _ in range(statements):
                self._note(STATEMENT)
            for _ in range(commits):
                self._note(COMMIT)


_NODE = ("run_id", "node_index", "status", "tasks_total", "tasks_done", "launch_cursor")


def _insert(table: str, columns: Sequence[str], mark: str) -> str:
    return f"INSERT INTO {PREFIX}{table} ({', '.join(columns)}) VALUES ({', '.join([mark] * len(columns))})"


def _to_bytes(row: tuple[Any, ...], ids: Sequence[int]) -> tuple[Any, ...]:
    return tuple(bytes.fromhex(value.replace("-", "")) if i in ids else value for i, value in enumerate(row))


def _raw(value: str) -> bytes:
    return bytes.fromhex(value.replace("-", ""))


class SqliteBarrier(Barrier):
    """sqlite3, with the settings of the package's own store."""

    _NOW = "CAST((julianday('now') - 2440587.5) * 86400000000.0 AS INTEGER)"
    _CLAIM = (
        f"UPDATE limit_task SET status = 'running', claim_token = ?, claimed_at = {_NOW}, lease_until = NULL "
        "WHERE attempt_id = ? AND status IN ('pending', 'queued')"
    )
    _GUARD = (
        f"UPDATE limit_task SET status = 'completed', ended_at = {_NOW}, result_shape = 'one' "
        "WHERE attempt_id = ? AND status = 'running' AND claim_token = ?"
    )
    _COUNT = (
        "UPDATE limit_node SET tasks_done = tasks_done + 1 WHERE run_id = ? AND node_index = ? RETURNING tasks_done"
    )

    def __init__(self, url: URL, note: Callable[[str], None] | None = None) -> None:
        super().__init__(note)
        self._connection = sqlite3.connect(str(url.database), timeout=_BUSY_SECONDS, isolation_level=None)
        self._connection.execute("PRAGMA journal_mode=WAL")
        self._connection.execute("PRAGMA synchronous=NORMAL")

    def claim(self, attempt_id: str, token: str) -> bool:
        self._count(1)
        return self._connection.execute(self._CLAIM, (_raw(token), _raw(attempt_id))).rowcount == 1

    def complete(self, row: Row, token: str, metadata: str) -> int:
        self._count(3)
        run_id = _raw(row.run_id)
        execute = self._connection.execute
        execute("BEGIN IMMEDIATE")
        try:
            if execute(self._GUARD, (_raw(row.attempt_id), _raw(token))).rowcount != 1:
                return 0
            artifact = (_raw(new_id()), run_id, row.stage, _raw(row.task_id), 0, 0, "one", metadata)
            execute(_insert("artifact", _ARTIFACT, "?"), artifact)
            [(done,)] = execute(self._COUNT, (run_id, row.stage)).fetchall()
            return int(done)
        finally:
            execute("COMMIT")

    def _insert_nodes(self, rows: list[tuple[Any, ...]]) -> None:
        self._insert_many("node", _NODE, [_to_bytes(row, (0,)) for row in rows])

    def _insert_tasks(self, rows: list[tuple[Any, ...]]) -> None:
        self._insert_many("task", _TASK, [_to_bytes(row, (0, 1, 5)) for row in rows])

    def _insert_artifacts(self, rows: list[tuple[Any, ...]]) -> None:
        self._insert_many("artifact", _ARTIFACT, [_to_bytes(row, (0, 1, 3)) for row in rows])

    def _insert_many(self, table: str, columns: Sequence[str], rows: list[tuple[Any, ...]]) -> None:
        self._count(1)
        self._connection.execute("BEGIN IMMEDIATE")
        self._connection.executemany(_insert(table, columns, "?"), rows)
        self._connection.execute("COMMIT")


#: What each column of many rows travels as.
_POSTGRES_TYPES = {
    "node": ("uuid", "int", "text", "int", "int", "int"),
    "task": ("uuid", "uuid", "int", "int", "text", "uuid", "int", "int", "int", "int"),
    "artifact": ("uuid", "uuid", "int", "uuid", "int", "int", "text", "text"),
}


class PostgresBarrier(Barrier):
    """psycopg 3, which prepares what it sends often. An outcome is one statement, and so one round trip."""

    _NOW = "CAST(EXTRACT(EPOCH FROM statement_timestamp()) * 1000000 AS BIGINT)"
    _CLAIM = (
        f"UPDATE limit_task SET status = 'running', claim_token = %s, claimed_at = {_NOW}, lease_until = NULL "
        "WHERE attempt_id = %s AND status IN ('pending', 'queued')"
    )
    _COMPLETE = (
        f"WITH done AS (UPDATE limit_task SET status = 'completed', ended_at = {_NOW}, result_shape = 'one' "
        "WHERE attempt_id = %s AND status = 'running' AND claim_token = %s RETURNING id, run_id, node_index, ordinal), "
        "made AS (INSERT INTO limit_artifact "
        "(id, run_id, node_index, task_id, task_ordinal, ordinal, shape, metadata) "
        "SELECT %s, run_id, node_index, id, ordinal, 0, 'one', %s FROM done) "
        "UPDATE limit_node SET tasks_done = tasks_done + 1 FROM done "
        "WHERE limit_node.run_id = done.run_id AND limit_node.node_index = done.node_index RETURNING tasks_done"
    )

    def __init__(self, url: URL, note: Callable[[str], None] | None = None) -> None:
        super().__init__(note)
        plain = url.set(drivername="postgresql", query={}).render_as_string(hide_password=False)
        self._connection = psycopg.connect(plain, autocommit=True)
        self._connection.isolation_level = psycopg.IsolationLevel.READ_COMMITTED
        self._cursor = self._connection.cursor()

    def claim(self, attempt_id: str, token: str) -> bool:
        self._count(1)
        return self._cursor.execute(self._CLAIM, (token, attempt_id)).rowcount == 1

    def complete(self, row: Row, token: str, metadata: str) -> int:
        self._count(1)
        found = self._cursor.execute(self._COMPLETE, (row.attempt_id, token, new_id(), metadata)).fetchone()
        return 0 if found is None else int(found[0])

    def _insert_nodes(self, rows: list[tuple[Any, ...]]) -> None:
        self._insert_many("node", _NODE, rows)

    def _insert_tasks(self, rows: list[tuple[Any, ...]]) -> None:
        self._insert_many("task", _TASK, rows)

    def _insert_artifacts(self, rows: list[tuple[Any, ...]]) -> None:
        self._insert_many("artifact", _ARTIFACT, rows)

    def _insert_many(self, table: str, columns: Sequence[str], rows: list[tuple[Any, ...]]) -> None:
        self._count(1)
        arrays = ", ".join(f"%s::{kind}[]" for kind in _POSTGRES_TYPES[table])
        statement = f"INSERT INTO {PREFIX}{table} ({', '.join(columns)}) SELECT * FROM unnest({arrays})"
        self._cursor.execute(statement, [list(column) for column in zip(*rows, strict=True)])


class MariaBarrier(Barrier):
    """PyMySQL. The statements of an outcome travel together, so that it is one round trip."""

    _NOW = "TIMESTAMPDIFF(MICROSECOND, '1970-01-01', UTC_TIMESTAMP(6))"
    _CLAIM = (
        f"UPDATE limit_task SET status = 'running', claim_token = %s, claimed_at = {_NOW}, lease_until = NULL "
        "WHERE attempt_id = %s AND status IN ('pending', 'queued')"
    )
    _COMPLETE = (
        "START TRANSACTION; "
        f"UPDATE limit_task SET status = 'completed', ended_at = {_NOW}, result_shape = 'one' "
        "WHERE attempt_id = %s AND status = 'running' AND claim_token = %s; "
        "INSERT INTO limit_artifact (id, run_id, node_index, task_id, task_ordinal, ordinal, shape, metadata) "
        "SELECT %s, %s, %s, %s, 0, 0, 'one', %s FROM DUAL WHERE ROW_COUNT() = 1; "
        # The answer to an UPDATE carries the value that LAST_INSERT_ID was given.
        "UPDATE limit_node SET tasks_done = LAST_INSERT_ID(tasks_done + 1) "
        "WHERE run_id = %s AND node_index = %s AND ROW_COUNT() = 1; "
        "COMMIT"
    )
    _COUNTER_AT = 3

    def __init__(self, url: URL, note: Callable[[str], None] | None = None) -> None:
        super().__init__(note)
        self._connection = pymysql.connect(
            host=url.host,
            port=url.port or 3306,
            user=url.username,
            password=url.password or "",
            database=url.database,
            autocommit=True,
            client_flag=CLIENT.MULTI_STATEMENTS,
        )
        self._cursor = self._connection.cursor()
        self._cursor.execute("SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED")

    def claim(self, attempt_id: str, token: str) -> bool:
        self._count(1)
        return self._cursor.execute(self._CLAIM, (_raw(token), _raw(attempt_id))) == 1

    def complete(self, row: Row, token: str, metadata: str) -> int:
        self._count(3)
        run_id, task_id = _raw(row.run_id), _raw(row.task_id)
        artifact = (_raw(new_id()), run_id, row.stage, task_id, metadata)
        cursor = self._cursor
        cursor.execute(self._COMPLETE, (_raw(row.attempt_id), _raw(token), *artifact, run_id, row.stage))
        answers = [(cursor.rowcount, cursor.lastrowid)]
        while cursor.nextset():
            answers.append((cursor.rowcount, cursor.lastrowid))
        changed, done = answers[self._COUNTER_AT]
        return int(done) if changed == 1 else 0

    def _insert_nodes(self, rows: list[tuple[Any, ...]]) -> None:
        self._insert_many("node", _NODE, [_to_bytes(row, (0,)) for row in rows])

    def _insert_tasks(self, rows: list[tuple[Any, ...]]) -> None:
        self._insert_many("task", _TASK, [_to_bytes(row, (0, 1, 5)) for row in rows])

    def _insert_artifacts(self, rows: list[tuple[Any, ...]]) -> None:
        self._insert_many("artifact", _ARTIFACT, [_to_bytes(row, (0, 1, 3)) for row in rows])

    def _insert_many(self, table: str, columns: Sequence[str], rows: list[tuple[Any, ...]]) -> None:
        self._count(1)
        self._cursor.executemany(_insert(table, columns, "%s"), rows)  # sent as few long statements


_BARRIERS = {"sqlite": SqliteBarrier, "postgresql": PostgresBarrier, "mysql": MariaBarrier}


def make_tables(database_url: str) -> None:
    """Make the tables; once, before any barrier is opened."""
    engine = create_engine(database_url, poolclass=NullPool)
    build_tables(PREFIX).metadata.create_all(engine)


def open_barrier(database_url: str, note: Callable[[str], None] | None = None) -> Barrier:
    """A barrier over a connection of this process's own."""
    url = make_url(database_url)
    return _BARRIERS[url.get_backend_name()](url, note)

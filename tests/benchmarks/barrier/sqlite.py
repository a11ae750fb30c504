"""The SQL limit on SQLite, by sqlite3."""

import sqlite3
from collections.abc import Callable, Sequence
from typing import Any

from sqlalchemy import URL

from dagabaaz_celery.stores.sql.tables import new_id
from tests.benchmarks.barrier.base import Barrier, Row, build_insert, to_raw, to_raw_ids

_BUSY_SECONDS = 30.0
_INSERT_ARTIFACT = build_insert("artifact", "?")


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
        return self._connection.execute(self._CLAIM, (to_raw(token), to_raw(attempt_id))).rowcount == 1

    def complete(self, row: Row, token: str, metadata: str) -> int:
        self._count(3)
        run_id = to_raw(row.run_id)
        execute = self._connection.execute
        execute("BEGIN IMMEDIATE")
        try:
            if execute(self._GUARD, (to_raw(row.attempt_id), to_raw(token))).rowcount != 1:
                return 0
            artifact = (to_raw(new_id()), run_id, row.stage, to_raw(row.task_id), 0, 0, "one", metadata)
            execute(_INSERT_ARTIFACT, artifact)
            [(done,)] = execute(self._COUNT, (run_id, row.stage)).fetchall()
            return int(done)
        finally:
            execute("COMMIT")

    def insert(self, table: str, rows: Sequence[tuple[Any, ...]]) -> None:
        self._count(1)
        self._connection.execute("BEGIN IMMEDIATE")
        self._connection.executemany(build_insert(table, "?"), [to_raw_ids(table, row) for row in rows])
        self._connection.execute("COMMIT")

"""The SQL limit on PostgreSQL, by psycopg 3."""

from collections.abc import Callable, Sequence
from typing import Any

import psycopg
from sqlalchemy import URL

from dagabaaz_celery.stores.sql.tables import new_id
from tests.benchmarks.barrier.base import COLUMNS, PREFIX, Barrier, Row

#: What each column of many rows travels as.
_TYPES = {
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

    def insert(self, table: str, rows: Sequence[tuple[Any, ...]]) -> None:
        self._count(1)
        arrays = ", ".join(f"%s::{kind}[]" for kind in _TYPES[table])
        statement = f"INSERT INTO {PREFIX}{table} ({', '.join(COLUMNS[table])}) SELECT * FROM unnest({arrays})"
        self._cursor.execute(statement, [list(column) for column in zip(*rows, strict=True)])

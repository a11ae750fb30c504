"""The SQL limit on MariaDB, by PyMySQL."""

from collections.abc import Callable, Sequence
from typing import Any

import pymysql
from pymysql.constants import CLIENT
from sqlalchemy import URL

from dagabaaz_celery.stores.sql.tables import new_id
from tests.benchmarks.barrier.base import Barrier, Row, build_insert, to_raw, to_raw_ids


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
        return bool(self._cursor.execute(self._CLAIM, (to_raw(token), to_raw(attempt_id))) == 1)

    def complete(self, row: Row, token: str, metadata: str) -> int:
        self._count(3)
        run_id, task_id = to_raw(row.run_id), to_raw(row.task_id)
        artifact = (to_raw(new_id()), run_id, row.stage, task_id, metadata)
        cursor = self._cursor
        cursor.execute(self._COMPLETE, (to_raw(row.attempt_id), to_raw(token), *artifact, run_id, row.stage))
        answers = [(cursor.rowcount, cursor.lastrowid)]
        while cursor.nextset():
            answers.append((cursor.rowcount, cursor.lastrowid))
        changed, done = answers[self._COUNTER_AT]
        return int(done) if changed == 1 else 0

    def insert(self, table: str, rows: Sequence[tuple[Any, ...]]) -> None:
        self._count(1)
        rows = [to_raw_ids(table, row) for row in rows]
        self._cursor.executemany(build_insert(table, "%s"), rows)  # which sends few long statements

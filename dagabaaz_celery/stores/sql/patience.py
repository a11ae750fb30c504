"""Connections to SQLite that wait for a writer by themselves.

SQLite's own wait sleeps for 1 ms, then 2, 5 and so on up to 100, while most of what is written here takes a tenth of
the first: with two processes that write in turn, more time went by asleep than at work. Python lets nobody choose
other pauses (https://www.sqlite.org/c3ref/busy_handler.html), so SQLite is told not to wait, and it is done here.
"""

import random
import sqlite3
import time
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

T = TypeVar("T")
#: The first pause and the longest, in seconds.
_FIRST_PAUSE, _LONGEST_PAUSE = 0.00005, 0.01


class PatientConnection(sqlite3.Connection):
    """Waits for up to ``patience`` seconds while the file is locked, then raises what SQLite says."""

    patience = 0.0

    def cursor(self, factory: Any = None) -> Any:
        return super().cursor(factory or _PatientCursor)

    def commit(self) -> None:
        _wait_for(super().commit, self.patience)


class _PatientCursor(sqlite3.Cursor):
    """For many values a statement is executed only in a transaction, which has the lock that it needs."""

    connection: PatientConnection

    def execute(self, *statement: Any) -> Any:
        return _wait_for(partial(super().execute, *statement), self.connection.patience)


def _wait_for(call: Callable[[], T], patience: float) -> T:
    deadline, pause = time.monotonic() + patience, _FIRST_PAUSE
    while True:
        try:
            return call()
        except sqlite3.OperationalError as error:
            if not _may_pass(error) or time.monotonic() > deadline:
                raise
        time.sleep(pause * random.uniform(0.5, 1.5))  # noqa: S311  # jitter, not a secret
        pause = min(pause * 1.5, _LONGEST_PAUSE)


def _may_pass(error: sqlite3.OperationalError) -> bool:
    """Whether others have the file locked. A transaction that reads what is not the latest can never write."""
    code = error.sqlite_errorcode
    return code & 0xFF == sqlite3.SQLITE_BUSY and code != sqlite3.SQLITE_BUSY_SNAPSHOT

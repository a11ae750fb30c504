"""One interleaving of two transactions, made to happen: the first is held at its commit until the second waits for it.

    with LateCommit(store) as late:           # the next writing transaction on this store is held at its commit
        first = Background(lambda: store.complete(work, [], "none"))
        late.wait_until_held()
        second = Background(lambda: other.cancel(run_id, "enough"))
        wait_until(lambda: waiters.count() == 1 or second.is_done, "the second waits")
        late.release()

The second acts on a store object of its own: threads of one take turns on SQLite, and wait before their transaction.
"""

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Generic, Self, TypeVar

from sqlalchemy import Connection, NullPool, create_engine, event, text

from dagabaaz_celery.stores.sql.direct import send_waiting
from dagabaaz_celery.stores.sql.engines import stands_alone
from dagabaaz_celery.stores.sql.store import SqlStore

T = TypeVar("T")

PATIENCE = 60.0
_WAITING = {
    "postgresql": "SELECT count(DISTINCT pid) FROM pg_locks WHERE NOT granted",
    "mysql": "SELECT count(*) FROM information_schema.innodb_trx WHERE trx_state = 'LOCK WAIT'",
    "mariadb": "SELECT count(*) FROM information_schema.innodb_trx WHERE trx_state = 'LOCK WAIT'",
}
#: InnoDB's table is a copy that is not renewed for those who ask more often.
_PAUSE = 0.15


class Background(Generic[T]):
    """A call in a thread of its own."""

    def __init__(self, call: Callable[[], T]) -> None:
        self._call = call
        self._found: list[T] = []
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    @property
    def is_done(self) -> bool:
        """Whether the call has ended."""
        return not self._thread.is_alive()

    def result(self) -> T:
        """What the call returned, or raised; AssertionError when it hangs."""
        self._thread.join(PATIENCE)
        assert self.is_done, f"still waiting after {PATIENCE:g} s: a hang"
        if self._error is not None:
            raise self._error
        return self._found[0]

    def _run(self) -> None:
        try:
            self._found.append(self._call())
        except BaseException as error:
            self._error = error


class LateCommit:
    """Holds the next writing transaction of a store, everything done, at its commit; later ones pass.

    Meanwhile statements that stand alone get a commit that can be held: a server's own commit may be as late.
    """

    def __init__(self, store: SqlStore) -> None:
        self._database = store.database
        self._held = threading.Event()
        self._released = threading.Event()

    def __enter__(self) -> Self:
        write = self._database.write

        @contextmanager
        def write_late() -> Iterator[Connection]:
            with write() as connection:
                yield connection
                self._hold(connection)

        self._database.write = self._database.write_each = write_late  # type: ignore[method-assign]
        return self

    def __exit__(self, *_: object) -> None:
        self.release()
        del self._database.write, self._database.write_each

    def wait_until_held(self) -> None:
        """Until a transaction is held."""
        assert self._held.wait(PATIENCE), "no transaction came to its commit"

    def release(self) -> None:
        """Let it commit."""
        self._released.set()

    def _hold(self, connection: Connection) -> None:
        if not self._held.is_set():
            send_waiting(connection)  # else it would travel with the COMMIT
            self._held.set()
            self._released.wait(PATIENCE)


class Waiters:
    """Who waits for another's transaction: on a server it is asked; on SQLite, who has come to begin one and has not.

    ``others`` are the store objects whose transactions are to wait.
    """

    def __init__(self, *others: SqlStore) -> None:
        self._dialect = others[0].database.engine.dialect.name
        self._others = others
        self._engine = create_engine(others[0].url, poolclass=NullPool) if self._dialect in _WAITING else None
        self._beginning = 0

    def __enter__(self) -> Self:
        for store in self._others if self._engine is None else ():
            event.listen(store.database.engine, "before_cursor_execute", self._begin)
            event.listen(store.database.engine, "after_cursor_execute", self._begun)
        return self

    def __exit__(self, *_: object) -> None:
        for store in self._others if self._engine is None else ():
            event.remove(store.database.engine, "before_cursor_execute", self._begin)
            event.remove(store.database.engine, "after_cursor_execute", self._begun)

    def count(self) -> int:
        """How many wait now."""
        if self._engine is None:
            return self._beginning
        time.sleep(_PAUSE)
        with self._engine.connect() as connection:
            return int(connection.execute(text(_WAITING[self._dialect])).scalar_one())

    def _begin(self, connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        self._beginning += self._begins(connection, statement)

    def _begun(self, connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        self._beginning -= self._begins(connection, statement)

    @staticmethod
    def _begins(connection: Any, statement: str) -> bool:
        """Whether a statement begins to write."""
        return statement == "BEGIN IMMEDIATE" or (stands_alone(connection) and statement.startswith("UPDATE"))


@contextmanager
def run_locked(store: SqlStore, run_id: str) -> Iterator[None]:
    """A run's row locked from elsewhere; on SQLite the whole file, by another process."""
    if store.database.engine.dialect.name == "sqlite":
        with _file_locked(str(store.database.engine.url.database)):
            yield
        return
    with store.database.engine.connect() as connection, connection.begin():
        store.rows.runs.lock(connection, run_id)
        yield


@contextmanager
def _file_locked(path: str) -> Iterator[None]:
    code = (
        "import sqlite3, sys; c = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=30); "
        "c.execute('BEGIN IMMEDIATE'); print('locked', flush=True); sys.stdin.read(); c.execute('COMMIT'); c.close()"
    )
    command = [sys.executable, "-c", code, path]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "locked\n"
            yield
        finally:
            holder.communicate("", timeout=PATIENCE)

"""Transactions on one engine: their beginning and end, what repeats them, and forks."""

import logging
import os
import random
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from sqlalchemy import URL, Connection, Engine, NullPool, func, select
from sqlalchemy.exc import DBAPIError, PendingRollbackError

from dagabaaz_celery.errors import StoreError
from dagabaaz_celery.stores.sql.direct import send_waiting
from dagabaaz_celery.stores.sql.engines import (
    EACH_ALONE,
    IDLE_SINCE,
    LEVEL,
    NO_USE,
    READS,
    begins_by_hand,
    build_engine,
    parse_url,
    stands_alone,
)
from dagabaaz_celery.stores.sql.outages import (
    DATABASE_ERRORS,
    SQLITE_RIGHTS,
    CommitUnanswered,
    is_conflict,
    is_outage,
    leave_unanswered,
    leaves_doubt,
    read_code,
    was_lost_early,
)
from dagabaaz_celery.stores.sql.shared import SharedDatabase

logger = logging.getLogger(__name__)
T = TypeVar("T")
_CONFLICT_TRIES = 10
_SCHEMA_LOCK_SECONDS = 60
#: For how long a connection goes from one transaction to the next without the pool, whose checks take as long as a
#: small statement; and how many do. What the pool looks for in each connection that it lends, it finds so much later.
_KEPT_SECONDS, _MAX_KEPT = 1.0, 5


class _Kept(NamedTuple):
    """A connection that nobody uses, since when, and until when it may be used without the pool (monotonic times)."""

    connection: Connection
    until: float
    since: float

    def give_back(self) -> None:
        """Let the pool have it, which looks at what lay idle before it lends it again."""
        with suppress(DBAPIError, PendingRollbackError):  # it was lost meanwhile
            self.connection.info[IDLE_SINCE] = self.since
        self.connection.close()


class Database:
    """Transactions on one engine, safe across forks.

    No SQLite connection may live in two processes, or a lock that one holds is invisible to the other. So a fork
    waits for the transaction in progress and closes what is pooled; transactions of one process take turns on SQLite,
    where they would anyway. On servers a forked child leaves its parent's connections alone.

    In a ``shared`` database the app may have a transaction open: then that is the one.
    """

    def __init__(self, url: str | URL, shared: SharedDatabase | None = None) -> None:
        self.url = parse_url(url)
        self.shared = shared
        self._engine = build_engine(url) if shared is None else None
        self._is_sqlite = self.url.get_backend_name() == "sqlite"
        self._begins_by_hand = begins_by_hand(self.url)
        #: Connections that nobody uses, the one used last at the end.
        self._kept: list[_Kept] = []
        self._inherited: list[Any] = []
        self._turn = threading.RLock()
        self._turns: AbstractContextManager[Any] = self._turn if self._is_sqlite else nullcontext()
        os.register_at_fork(
            before=call_while_alive(self.before_fork),
            after_in_parent=call_while_alive(self.after_fork_in_parent),
            after_in_child=call_while_alive(self.after_fork_in_child),
        )

    @property
    def engine(self) -> Engine:
        """Connections of the store's own. Raises ConfigurationError."""
        if self._engine is None and self.shared is not None:
            with self._turn:
                self._engine = self._engine or self.shared.build_engine()
        assert self._engine is not None  # noqa: S101  # made here or at the beginning
        return self._engine

    @property
    def makes_round_trips(self) -> bool:
        """Whether each statement waits for another process to answer."""
        return not self._is_sqlite

    @property
    def writes_in_queries(self) -> bool:
        """As ``writes_in_queries`` says of a connection."""
        return self.url.get_backend_name() == "postgresql"

    @contextmanager
    def read(self, *, one_moment: bool = False) -> Iterator[Connection]:
        """A connection in a transaction that only reads; with ``one_moment`` all it reads is of the same moment."""
        if self.shared is not None and self.shared.is_open():
            with self.shared.join(writes=False) as connection:
                yield connection
            return
        level = "REPEATABLE READ" if one_moment and not self._is_sqlite else None  # there it is so anyway
        with self._connect({READS: True, LEVEL: level}) as connection:
            if level is not None and not self._begins_by_hand:
                connection.execution_options(isolation_level=level)
            with connection.begin():
                yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """A connection in one transaction, committed at the end. Raises CommitUnanswered when that is in doubt."""
        if self.shared is not None and self.shared.is_open():
            with self.shared.join(writes=True) as connection:
                yield connection
            return
        with self._connect({}) as connection:
            asked = False
            try:
                with connection.begin():
                    yield connection
                    asked = True
            except DBAPIError as error:
                if asked and leaves_doubt(error):
                    raise leave_unanswered("COMMIT", error) from error
                raise

    @contextmanager
    def write_each(self) -> Iterator[Connection]:
        """A connection for statements that stand alone, as ``transact_each`` says. Raises CommitUnanswered."""
        if not self._begins_by_hand or (self.shared is not None and self.shared.is_open()):
            with self.write() as connection:
                yield connection
            return
        with self._connect({EACH_ALONE: True}) as connection:
            if not stands_alone(connection):  # where a pooler's sessions are of another level
                connection.begin()
            try:
                yield connection
                send_waiting(connection)
                connection.commit()
            except DBAPIError as error:
                if error.connection_invalidated:  # whatever else was answered, nothing was committed
                    raise leave_unanswered(error.statement, error) from error
                raise

    def transact(self, work: Callable[[Connection], T]) -> T:
        """Run ``work`` in one transaction and commit; a deadlock or serialisation victim runs again, whole.

        So it does, once, where its connection turns out to be gone before the commit. ``work`` must have no effect
        outside the transaction. Other errors reach the caller.
        """
        return _repeat_victims(self.write, work, repeats_lost=was_lost_early)

    def transact_each(self, work: Callable[[Connection], T]) -> T:
        """Like ``transact``, for statements each of which stands alone; the whole must bear to be done once more.

        On PostgreSQL, with psycopg 3, each is then a transaction of its own: BEGIN and COMMIT are no round trips.
        """
        return _repeat_victims(self.write_each, work, repeats_lost=lambda error: error.connection_invalidated)

    def transact_alone(self, name: str, work: Callable[[Connection], T]) -> T:
        """Like ``transact``, while nobody else is in here by this name; for changes of the schema.

        Those lock tables in an order of their own, against which workers may stand in each other's way.
        """
        return _repeat_victims(lambda: self._write_alone(name), work, repeats_lost=lambda error: False)

    def close(self) -> None:
        """Close every connection that nobody uses."""
        with self._turns:
            self._dispose()

    def before_fork(self) -> None:
        """Let the transaction in progress end, and keep the next from starting."""
        if self._is_sqlite:
            self._turn.acquire()
            self._dispose()

    def after_fork_in_parent(self) -> None:
        """Go on."""
        if self._is_sqlite:
            self._turn.release()

    def after_fork_in_child(self) -> None:
        """Start with no connections: the parent's stay the parent's."""
        if self._is_sqlite:
            self._turn.release()
            return
        self._inherited.append(self._kept)  # what is forgotten might be closed, and with it the parent's session
        self._kept = []
        if self._engine is not None:
            self._engine.dispose(close=False)

    @contextmanager
    def _write_alone(self, name: str) -> Iterator[Connection]:
        """SQLite lets only one write anyway. PostgreSQL's lock ends with the transaction: PgBouncer keeps no sessions.

        MySQL commits at every DDL statement, so that its lock is held on a connection beside. Raises StoreError when
        others do not leave.
        """
        key = f"dagabaaz schema {name}"
        dialect = self.url.get_backend_name()
        if dialect in ("mysql", "mariadb"):
            with self.engine.connect() as beside, _named_lock(beside, key), self.write() as connection:
                yield connection
            return
        with self.write() as connection:
            if dialect == "postgresql":
                connection.execute(select(func.pg_advisory_xact_lock(func.hashtext(key))))
            yield connection

    @contextmanager
    def _connect(self, use: Mapping[str, Any]) -> Iterator[Connection]:
        """A connection, for what ``use`` says of it; it is kept for a moment, as the next one is soon wanted."""
        with self._turns:
            connection, until = self._take_kept() or (self.engine.connect(), time.monotonic() + _KEPT_SECONDS)
            try:
                connection.info.update({**NO_USE, **use})
                yield connection
            except BaseException:
                is_lost = connection.invalidated
                connection.close()
                if is_lost:  # those beside it may be, too: the pool looks at what it lends after such an error
                    self._give_back_kept()
                raise
            is_idle = not (connection.invalidated or connection.in_transaction())
            if is_idle and len(self._kept) < _MAX_KEPT and not isinstance(self.engine.pool, NullPool):
                self._kept.append(_Kept(connection, until, time.monotonic()))
            else:
                connection.close()

    def _take_kept(self) -> tuple[Connection, float] | None:
        while self._kept:
            with suppress(IndexError):  # another thread may be quicker
                kept = self._kept.pop()
                if time.monotonic() < kept.until:
                    return kept.connection, kept.until
                kept.give_back()
        return None

    def _give_back_kept(self) -> None:
        while self._kept:
            with suppress(IndexError):
                self._kept.pop().give_back()

    def _dispose(self) -> None:
        self._give_back_kept()
        if self._engine is not None:
            self._engine.dispose()


def _repeat_victims(
    enter: Callable[[], AbstractContextManager[Connection]],
    work: Callable[[Connection], T],
    *,
    repeats_lost: Callable[[DBAPIError], bool],
) -> T:
    doubt: CommitUnanswered | None = None
    attempt = 0
    while True:
        attempt += 1
        try:
            with enter() as connection:
                return work(connection)
        except DATABASE_ERRORS as error:
            if doubt is not None and is_outage(error):  # which says nothing of the first time
                raise doubt from error
            if not isinstance(error, DBAPIError):
                raise
            if attempt == 1 and repeats_lost(error):
                doubt = error if isinstance(error, CommitUnanswered) else None
                continue
            if attempt == _CONFLICT_TRIES or not is_conflict(error):
                raise
            logger.debug("transaction lost a conflict (attempt %d), running it again: %s", attempt, error.orig)
        time.sleep(random.uniform(0, 0.01 * 2**attempt))  # noqa: S311  # jitter, not a secret


@contextmanager
def _named_lock(connection: Connection, key: str) -> Iterator[None]:
    """A lock of a MySQL session."""
    if connection.execute(select(func.get_lock(key, _SCHEMA_LOCK_SECONDS))).scalar() != 1:
        raise StoreError(
            f"Another process has been migrating the store for {_SCHEMA_LOCK_SECONDS} s. Wait for it to end, and look "
            "for one that hangs in SHOW PROCESSLIST."
        )
    try:
        yield
    finally:
        with suppress(DBAPIError):  # a session that is gone has no lock, and what was done is committed
            connection.execute(select(func.release_lock(key)))


def call_while_alive(method: Callable[[], None]) -> Callable[[], None]:
    """A handler for forks, which cannot be taken back: it does not keep the method's object alive."""
    reference = weakref.WeakMethod(method)

    def handler() -> None:
        alive = reference()
        if alive is not None:
            alive()

    return handler


def check_sqlite_file(database: Database) -> None:
    """Refuse, with the reason, a SQLite file that is not a database or cannot be written."""
    if database.url.get_backend_name() != "sqlite":
        return
    path = Path(str(database.url.database))
    if not path.parent.is_dir():
        raise StoreError(
            f"The store's directory {str(path.parent)!r} does not exist, so {path.name!r} cannot be made. Create it, "
            "or set dagabaaz_store_url to a file in a directory that exists."
        )
    try:
        with database.write() as connection:
            # A write of nothing: proves that the file is a database and that it, and its directory, can be written.
            version = connection.exec_driver_sql("PRAGMA user_version").scalar_one()
            connection.exec_driver_sql(f"PRAGMA user_version = {int(version)}")
    except DBAPIError as error:
        code = read_code(error.orig)
        if is_outage(error) and isinstance(code, int) and code & 0xFF not in SQLITE_RIGHTS:
            raise  # locked, or full: it passes
        raise StoreError(_explain_sqlite(path, str(error.orig))) from error


def _explain_sqlite(path: Path, reason: str) -> str:
    if "not a database" in reason:
        return (
            f"The store file {str(path)!r} is not a SQLite database ({reason}). "
            "Set dagabaaz_store_url to another file; this one was left as it is."
        )
    if "readonly" in reason or "unable to open" in reason:
        return (
            f"The store file {str(path)!r} cannot be written ({reason}). Give the worker's user the right to write "
            "the file and its directory (SQLite keeps its log beside the file), or set another dagabaaz_store_url."
        )
    return f"The store file {str(path)!r} cannot be used: {reason}."

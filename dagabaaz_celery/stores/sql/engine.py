"""Connections and transactions: what differs between databases stands here, and nowhere else.

Every transaction is READ COMMITTED on servers and BEGIN IMMEDIATE on SQLite (a deferred one that later writes
fails with "database is locked" however long it waits; a plain BEGIN is used for reads).
"""

import logging
import os
import random
import sqlite3
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from sqlalchemy import (
    URL,
    BigInteger,
    ColumnElement,
    Connection,
    Engine,
    ExceptionContext,
    NullPool,
    Select,
    String,
    Table,
    create_engine,
    event,
    func,
    literal_column,
    make_url,
    or_,
    select,
    text,
)
from sqlalchemy.exc import (
    ArgumentError,
    DBAPIError,
    InvalidatePoolError,
    NoSuchModuleError,
    OperationalError,
    PendingRollbackError,
)
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.pool import ConnectionPoolEntry, PoolResetState
from sqlalchemy.sql.functions import FunctionElement

from dagabaaz_celery.errors import ConfigurationError, StoreError
from dagabaaz_celery.stores.sql.direct import Direct, accept_direct, send_together, send_waiting
from dagabaaz_celery.stores.sql.drivers import MULTI_STATEMENTS, PREPARES_ON_REQUEST, find_driver
from dagabaaz_celery.stores.sql.shared import SharedDatabase

logger = logging.getLogger(__name__)
T = TypeVar("T")

#: Deadlock and serialisation victims: PostgreSQL's SQLSTATEs, MySQL's error numbers. Of a deadlock inside a savepoint
#: MySQL's word is 1305: the savepoint went with the transaction before anybody could roll back to it.
_CONFLICTS = ("40001", "40P01", 1213, 1205, 1305)
_CONFLICT_TRIES = 10
_BUSY_TIMEOUT_SECONDS = 30.0
_SCHEMA_LOCK_SECONDS = 60

#: What a call on the database raises: the driver's error, or that no connection of the pool became free.
DATABASE_ERRORS = (DBAPIError, PoolTimeoutError)


class CommitUnanswered(OperationalError):
    """The database went away during a commit: it was made, or it was not. The same call, made again, finds out."""


#: SQLSTATEs, or their beginnings, of a PostgreSQL that is away: no connection, rolled back, out of resources, stopping,
#: failing disks, demoted to a standby; and the timeouts that an administrator set, which waiting for locks exceeds.
_POSTGRESQL_OUTAGES = ("08", "40001", "40P01", "53", "57P", "58", "25006", "25P03", "55P03", "57014")
#: Error numbers of a MySQL or MariaDB that is away, for the same reasons.
_MYSQL_OUTAGES = frozenset(
    (
        *(2002, 2003, 2005, 2006, 2013, 2055, 1042, 1043, 1158, 1159, 1160, 1161),  # no connection, or a broken one
        *(1053, 1077, 1079, 1152, 1317, 1927, 4031),  # shutting down; somebody ended the statement or the connection
        *(1021, 1040, 1041, 1114, 1203, 1226),  # out of disk, memory, connections
        *(1047, 1290, 1836),  # a cluster's node that is not ready, or may only read
        *(1205, 1213, 1305, 1969, 3024),  # lost against others for the last time; took longer than allowed
    )
)
#: Codes of a SQLite file, or its disk, that cannot be used: a connection that met one is not used again, since one that
#: opened the file read-only stays so, and SQLite may have rolled back by itself.
_SQLITE_FILE_OUTAGES = frozenset(
    (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_FULL, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY)
)
#: Those that at the start mean missing rights, which waiting does not bring.
_SQLITE_RIGHTS = frozenset((sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY))
_SQLITE_OUTAGES = _SQLITE_FILE_OUTAGES | {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL}

#: Connections of one process: a few are kept, and a pool of threads may need as many as it has threads.
_POOL = {"pool_size": 5, "max_overflow": 95, "pool_timeout": 15.0}
#: A connection that was not used for so many seconds is asked whether it is still there: asking each time, as a pool's
#: pre-ping does, would be a round trip more for every transaction.
_IDLE_SECONDS = 1.0
#: For how long a connection goes from one transaction to the next without the pool, whose checks take as long as a
#: small statement; and how many do. What the pool looks for in each connection that it lends, it finds so much later.
_KEPT_SECONDS, _MAX_KEPT = 1.0, 5
#: What is known of a connection while it is used: whether its statements stand alone, or only read, or are of a level
#: of their own.
_EACH_ALONE, _READS, _LEVEL = "dagabaaz_each_alone", "dagabaaz_reads", "dagabaaz_level"
_NO_USE: dict[str, Any] = {_EACH_ALONE: False, _READS: False, _LEVEL: None}
#: Since when nobody uses it, by the monotonic clock.
_IDLE_SINCE = "dagabaaz_idle_since"
#: What is known of a connection: whether a statement outside a transaction is read committed; when plans were dropped.
_STANDS_ALONE, _PLANNED_AT = "dagabaaz_stands_alone", "dagabaaz_planned_at"
#: Seconds for which a kept plan may be older than what it reads.
_PLAN_SECONDS = 5.0
#: How transactions begin on SQLite.
_BEGIN_READING, _BEGIN_WRITING = Direct(text("BEGIN")), Direct(text("BEGIN IMMEDIATE"))
#: Seconds until a server that answers nothing at all counts as away, so that no heartbeat waits for it for ever.
_CONNECT_SECONDS = 10
_SILENCE_SECONDS = 30
#: MySQL's protocol has no sign of life while a statement runs: beyond the waits for a lock (50 s, and the schema's).
_MYSQL_ANSWER_SECONDS = 90
_LIBPQ = {
    "connect_timeout": _CONNECT_SECONDS,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 4,
    "tcp_user_timeout": _SILENCE_SECONDS * 1000,
}
_MYSQL_TIMEOUTS = {
    "connect_timeout": _CONNECT_SECONDS,
    "read_timeout": _MYSQL_ANSWER_SECONDS,
    "write_timeout": _SILENCE_SECONDS,
}
#: What each driver is told that the URL does not say itself.
_CONNECT_ARGUMENTS: dict[str, dict[str, Any]] = {
    # PgBouncer in transaction mode gives each transaction another server session: what one prepared, another lacks, or
    # has under the same name as something else.
    "psycopg": {**_LIBPQ, "prepare_threshold": None},
    "psycopg2": _LIBPQ,
    "pymysql": _MYSQL_TIMEOUTS,
    "mysqldb": _MYSQL_TIMEOUTS,
}
#: For each kind of database the extra of this package that brings a driver, and how a URL names that.
_EXTRAS = {
    "postgresql": ("postgres", "postgresql+psycopg"),
    "mysql": ("mysql", "mysql+pymysql"),
    "mariadb": ("mysql", "mariadb+pymysql"),
}


class now(FunctionElement[int]):  # noqa: N801  # reads as the SQL function that it is
    """The database's clock, in microseconds since 1970."""

    type = BigInteger()
    inherit_cache = True
    name = "now"


@compiles(now, "sqlite")
def _now_sqlite(element: Any, compiler: Any, **kw: Any) -> str:
    return "CAST((julianday('now') - 2440587.5) * 86400000000.0 AS INTEGER)"


@compiles(now, "postgresql")
def _now_postgresql(element: Any, compiler: Any, **kw: Any) -> str:
    # statement_timestamp() is stable within a statement, so that an index serves a comparison with it.
    return "CAST(EXTRACT(EPOCH FROM statement_timestamp()) * 1000000 AS BIGINT)"


@compiles(now, "mysql")
@compiles(now, "mariadb")
def _now_mysql(element: Any, compiler: Any, **kw: Any) -> str:
    # In UTC throughout: local time has an hour twice when summer ends.
    return "TIMESTAMPDIFF(MICROSECOND, '1970-01-01', UTC_TIMESTAMP(6))"


class _index_order(FunctionElement[Any]):  # noqa: N801  # reads as the SQL that it is
    """The column after which an index goes on, to order by it."""

    inherit_cache = True
    name = "index_order"


@compiles(_index_order)
def _index_order_plain(element: Any, compiler: Any, **kw: Any) -> str:
    return str(compiler.process(element.clauses, **kw))


@compiles(_index_order, "mysql")
@compiles(_index_order, "mariadb")
def _index_order_mysql(element: Any, compiler: Any, **kw: Any) -> str:
    return "NULL"  # no order


def is_one_of(column: ColumnElement[Any], values: Sequence[str]) -> ColumnElement[bool]:
    """A comparison with each value. Of IN, SQLAlchemy makes the text anew whenever it is sent."""
    return or_(*(column == fixed(value) for value in values))


def fixed(value: str) -> ColumnElement[str]:
    """One of our own words in the text of a statement.

    Where it is bound instead, and a partial index is for some values of its column, SQLite makes its plan anew whenever
    the statement is executed.
    """
    return literal_column(f"'{value}'", String())


def stands_alone(connection: Connection) -> bool:
    """Whether each statement of a connection is a transaction of its own, so that others may come between two."""
    return bool(connection.info.get(_EACH_ALONE) and connection.info[_STANDS_ALONE])


def writes_in_queries(connection: Connection) -> bool:
    """Whether one statement may change several tables and read what it changed (WITH … UPDATE … RETURNING)."""
    return connection.dialect.name == "postgresql"


def updates_two_tables(connection: Connection) -> bool:
    """Whether an UPDATE may change rows of two tables together, each by a condition on the other."""
    return connection.dialect.name in ("mysql", "mariadb")


def prefer_index(statement: Select[Any], table: Table, index_name: str) -> Select[Any]:
    """Tell MySQL and MariaDB which index to use, where they are known to choose worse; others find it."""
    for dialect in ("mysql", "mariadb"):
        statement = statement.with_hint(table, f"FORCE INDEX ({index_name})", dialect)
    return statement


def read_by_index(statement: Select[Any], table: Table, index_name: str, column: ColumnElement[Any]) -> Select[Any]:
    """Have rows with one value for the index's first columns read by it, whatever a database thinks of its statistics.

    ``column`` is the index's next one. To be asked for that order is what PostgreSQL and SQLite need: nothing else
    gives it without sorting. MySQL and MariaDB would sort all the same.
    """
    return prefer_index(statement, table, index_name).order_by(_index_order(column))


def build_engine(url: str | URL, *, pooled: bool = True) -> Engine:
    """An engine for a store URL; ConfigurationError names what is wrong with the URL or which driver is missing.

    Unless it is ``pooled``, no connection stays open when it is not used: its database may then be dropped.
    """
    parsed = _parse_url(url)
    if parsed.get_backend_name() == "sqlite":
        return _build_sqlite_engine(parsed)
    pool: dict[str, Any] = _POOL if pooled else {"poolclass": NullPool}
    try:
        driver = parsed.get_dialect().driver
        given = {k: v for k, v in _CONNECT_ARGUMENTS.get(driver, {}).items() if k not in parsed.query}
        decides = "prepare_threshold" in parsed.query
        if decides:  # psycopg takes no text for it
            given["prepare_threshold"] = _read_prepare_threshold(parsed)
            parsed = parsed.difference_update_query(["prepare_threshold"])
        if driver == "pymysql":
            flags = int(str(parsed.query.get("client_flag", 0))) | MULTI_STATEMENTS
            parsed = parsed.update_query_dict({"client_flag": str(flags)})
        level = "AUTOCOMMIT" if _begins_by_hand(parsed) else "READ COMMITTED"
        # Parameters are the users' data: they stay out of logs and tracebacks.
        engine = create_engine(
            parsed,
            isolation_level=level,
            connect_args=given,
            hide_parameters=True,
            pool_reset_on_return=None,
            **pool,
        )
    except (NoSuchModuleError, ImportError) as error:
        raise ConfigurationError(
            f"The driver of the store URL {describe_url(parsed)!r} is not installed: {error}. {_advise(parsed)}"
        ) from error
    accept_direct(engine)
    _end_abandoned_transactions(engine)
    _ping_idle_connections(engine)
    if _begins_by_hand(parsed):
        send_together(engine)
    if driver == "psycopg":
        _begin_by_hand(engine, ["BEGIN ISOLATION LEVEL {level}"])
        _settle_postgresql(engine, may_prepare=not decides)
    elif _begins_by_hand(parsed):
        _begin_by_hand(engine, ["SET TRANSACTION ISOLATION LEVEL {level}", "BEGIN"])
        _settle_mysql(engine)
    return engine


def _begins_by_hand(url: URL) -> bool:
    """Whether transactions are begun by a statement of ours, so that other statements may stand alone.

    To switch a connection between the two, as a driver does, costs more than what is sent.
    """
    return url.get_backend_name() in ("sqlite", "mysql", "mariadb") or url.get_dialect().driver == "psycopg"


def _begin_by_hand(engine: Engine, statements: Sequence[str]) -> None:
    """Send what begins a transaction, the last of the statements for the usual level, all of them for another one.

    A connection whose statements stand alone sends none.
    """
    begin = Direct(text(statements[-1].format(level="READ COMMITTED")))

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        if stands_alone(connection):
            return
        level = connection.info.get(_LEVEL)
        if level is None:
            begin.later(connection, {})
            return
        try:
            for statement in statements:
                connection.exec_driver_sql(statement.format(level=level))
        except BaseException:  # the next transaction would have the level
            connection.invalidate()
            raise


def _settle_mysql(engine: Engine) -> None:
    @event.listens_for(engine, "connect")
    def _settle(connection: Any, record: ConnectionPoolEntry) -> None:
        cursor = connection.cursor()
        cursor.execute("SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED")
        cursor.close()
        record.info[_STANDS_ALONE] = True


def _settle_postgresql(engine: Engine, *, may_prepare: bool) -> None:
    """Have PostgreSQL keep the plans of what is ``Direct``, in sessions that are one's own.

    No other statement is prepared: a plan for any value does not use an index that is there for some values only. And
    statements that stand alone are read committed there, as transactions are.
    """

    @event.listens_for(engine, "connect")
    def _settle(connection: Any, record: ConnectionPoolEntry) -> None:
        session, level = connection.execute(
            "SELECT pg_backend_pid(), current_setting('default_transaction_isolation')"
        ).fetchone()
        # Who pools sessions between us and the server tells each client a number that it made up itself.
        is_own = session == connection.info.backend_pid
        if is_own:
            connection.execute("SET default_transaction_isolation TO 'read committed'")
        # Ids are text here: to make a UUID of each, and text of that, takes as long as to read a row.
        connection.adapters.register_loader("uuid", engine.dialect.loaded_dbapi.types.string.TextLoader)
        record.info[_STANDS_ALONE] = is_own or level == "read committed"
        record.info[_PLANNED_AT] = time.monotonic()
        if is_own and may_prepare:
            connection.prepare_threshold = PREPARES_ON_REQUEST

    @event.listens_for(engine, "checkout")
    def _plan_again(connection: Any, record: ConnectionPoolEntry, proxy: Any) -> None:
        # A plan that was made while a table was small reads all of it, until the server has looked at the table again.
        if connection.prepare_threshold is not None and time.monotonic() - record.info[_PLANNED_AT] > _PLAN_SECONDS:
            try:
                connection.execute("DISCARD PLANS")
            except engine.dialect.loaded_dbapi.Error as error:
                raise InvalidatePoolError from error
            record.info[_PLANNED_AT] = time.monotonic()

    @event.listens_for(engine, "handle_error")
    def _give_up_session(context: ExceptionContext) -> None:
        code = _read_code(context.original_exception)
        if code == "26000" or (code == "0A000" and "cached plan" in str(context.original_exception)):
            # What sessions have prepared is of no use any more: a column's type was changed, or somebody discarded it.
            context.is_disconnect = True


def _end_abandoned_transactions(engine: Engine) -> None:
    """Roll back what a connection that comes back to the pool is still in the middle of.

    An exception that a signal raises, as Celery's soft time limit does, may come between BEGIN and whoever would end
    it. To roll back each connection, as pools do by themselves, is a round trip for every transaction.
    """
    driver = find_driver(engine.dialect.driver)

    @event.listens_for(engine, "checkin")
    def _forget_use(connection: Any, record: ConnectionPoolEntry) -> None:
        record.info.update(_NO_USE)

    @event.listens_for(engine, "reset")
    def _reset(connection: Any, record: ConnectionPoolEntry, state: PoolResetState) -> None:
        if not state.terminate_only and not driver.is_at_rest(connection):
            connection.rollback()


def _ping_idle_connections(engine: Engine) -> None:
    @event.listens_for(engine, "checkin")
    def _note(connection: Any, record: ConnectionPoolEntry) -> None:
        record.info.setdefault(_IDLE_SINCE, time.monotonic())

    @event.listens_for(engine, "checkout")
    def _ping(connection: Any, record: ConnectionPoolEntry, proxy: Any) -> None:
        now_ = time.monotonic()
        if now_ - record.info.pop(_IDLE_SINCE, now_) < _IDLE_SECONDS:
            return
        try:
            engine.dialect.do_ping(connection)
        except engine.dialect.loaded_dbapi.Error as error:
            raise InvalidatePoolError from error  # the pool makes another one


def _advise(url: URL) -> str:
    """How to get a driver: an extra, and where the URL names another driver than the extra has, what to write."""
    extra, driver = _EXTRAS.get(url.get_backend_name(), ("", ""))
    if not extra:
        return "Install dagabaaz-celery[postgres] or dagabaaz-celery[mysql], and name that driver in the URL."
    if url.drivername == driver:
        return f"Install dagabaaz-celery[{extra}]."
    return f'Install dagabaaz-celery[{extra}] and begin the URL with "{driver}://", or install the driver it names.'


def _read_prepare_threshold(url: URL) -> int | None:
    given = str(url.query["prepare_threshold"])
    if given.lower() == "none":
        return None
    if not given.isdecimal():
        raise ConfigurationError(
            "dagabaaz_store_url has a prepare_threshold that is no number: write how often a statement is sent before "
            "it is prepared (psycopg's own default is 5), or none."
        )
    return int(given)


def describe_url(url: URL) -> str:
    """Which database a URL names, without what may be secret in it: user, password, options."""
    where = f"/{url.database or ''}" if url.get_backend_name() == "sqlite" else url.host or ""
    return f"{url.drivername}://{where}"


def _parse_url(url: str | URL) -> URL:
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        # Nothing of it is shown, the parser's own words neither: any part of it may be of a password.
        raise ConfigurationError(
            "dagabaaz_store_url is not a database URL. Write it as SQLAlchemy does, for example "
            '"postgresql+psycopg://user@host/database" or "sqlite:///runs.sqlite3", with "@", ":" and "/" in a '
            "password as %40, %3A and %2F."
        ) from None
    if isinstance(url, str) and url.count("@") > 1 and parsed.get_backend_name() != "sqlite":
        raise ConfigurationError(
            f'dagabaaz_store_url ({parsed.drivername}) has more than one "@", so that it is unclear where its host '
            'begins. Write "@" in a user name, a password or an option as %40.'
        )
    return parsed


def _build_sqlite_engine(url: URL) -> Engine:
    if not url.database or url.database == ":memory:":
        raise ConfigurationError(
            "A store in SQLite needs a file: worker processes share it. "
            'Write dagabaaz_store_url = "sqlite:////absolute/path/runs.sqlite3".'
        )
    timeout = _read_busy_timeout(url)
    engine = create_engine(
        url,
        connect_args={"timeout": timeout, "check_same_thread": False},
        hide_parameters=True,
        pool_reset_on_return=None,
    )
    accept_direct(engine)
    _end_abandoned_transactions(engine)

    @event.listens_for(engine, "connect")
    def _configure(connection: sqlite3.Connection, record: Any) -> None:
        connection.isolation_level = None  # the driver must not begin transactions of its own
        record.info[_STANDS_ALONE] = True
        cursor = connection.cursor()
        cursor.execute(f"PRAGMA busy_timeout={int(timeout * 1000)}")
        _switch_to_wal(cursor, timeout)
        cursor.execute("PRAGMA synchronous=NORMAL")
        cursor.close()

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        if stands_alone(connection):
            return
        (_BEGIN_READING if connection.info.get(_READS) else _BEGIN_WRITING).change(connection, {})

    @event.listens_for(engine, "handle_error")
    def _drop(context: ExceptionContext) -> None:
        code = _read_code(context.original_exception)
        if isinstance(code, int) and code & 0xFF in _SQLITE_FILE_OUTAGES:
            context.is_disconnect = True
            # A cursor that lives on in the error's traceback would keep the file open, and what a process has open
            # read-only it shares with its next connection.
            if context.execution_context is not None:
                context.execution_context.cursor.close()

    return engine


def _read_busy_timeout(url: URL) -> float:
    """Seconds that a connection waits for others to leave the file."""
    given = str(url.query.get("timeout", _BUSY_TIMEOUT_SECONDS))
    try:
        return float(given)
    except ValueError:
        raise ConfigurationError(
            f"dagabaaz_store_url has the timeout {given!r}: write for how many seconds a process waits while others "
            "write to the file."
        ) from None


def _switch_to_wal(cursor: sqlite3.Cursor, timeout: float) -> None:
    """Set the journal mode, waiting while others do the same.

    SQLite does not wait by itself here: two connections that both read a new file and both want it exclusively would
    wait for each other, so that one is refused at once, whatever its busy timeout.
    """
    deadline = time.monotonic() + timeout
    while True:
        try:
            cursor.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError as error:
            if _read_code(error) != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(random.uniform(0.001, 0.02))  # noqa: S311  # jitter, not a secret
        else:
            return


def is_conflict(error: BaseException) -> bool:
    """Whether a transaction lost against another (deadlock, serialisation) and may simply run again."""
    return isinstance(error, DBAPIError) and _read_code(error.orig) in _CONFLICTS


def is_outage(error: BaseException) -> bool:
    """Whether the database was away (not reached, lost, stopping, locked, full): later the same call may work.

    Anything else that a database says is about the statement, and would be said again.
    """
    if isinstance(error, PoolTimeoutError):
        return True
    if not isinstance(error, DBAPIError):
        return False
    code = _read_code(error.orig)
    if isinstance(error.orig, sqlite3.Error):
        return isinstance(code, int) and code & 0xFF in _SQLITE_OUTAGES  # above are details
    if isinstance(code, str):
        return error.connection_invalidated or code.startswith(_POSTGRESQL_OUTAGES)
    if isinstance(code, int):
        return error.connection_invalidated or code in _MYSQL_OUTAGES
    return error.connection_invalidated or isinstance(error, OperationalError)  # there was nobody to give a code


def _was_lost_early(error: DBAPIError) -> bool:
    """Whether a connection of the pool was gone, so that nothing is done: another may well be there."""
    return error.connection_invalidated and not isinstance(error, CommitUnanswered)


def _leaves_doubt(error: DBAPIError) -> bool:
    """Whether a commit that raised this may have been made: SQLite knows, but for a disk that fails."""
    if isinstance(error.orig, sqlite3.Error):
        code = _read_code(error.orig)
        return isinstance(code, int) and code & 0xFF == sqlite3.SQLITE_IOERR
    return is_outage(error) and not is_conflict(error)


def describe_outage(error: BaseException) -> str:
    """What the database or its driver said, in one line, without the statement."""
    said = str(error.orig if isinstance(error, DBAPIError) else error).strip()
    return said.splitlines()[0] if said else type(error).__name__


def _read_code(error: BaseException | None) -> str | int | None:
    """The database's code for an error: an SQLSTATE (PostgreSQL), a number (MySQL, SQLite), or none."""
    if isinstance(error, sqlite3.Error):
        return getattr(error, "sqlite_errorcode", None)
    first = error.args[0] if error is not None and error.args else None
    if isinstance(first, int):
        return first
    return getattr(error, "sqlstate", None) or getattr(error, "pgcode", None)


class _Kept(NamedTuple):
    """A connection that nobody uses, since when, and until when it may be used without the pool (monotonic times)."""

    connection: Connection
    until: float
    since: float

    def give_back(self) -> None:
        """Let the pool have it, which looks at what lay idle before it lends it again."""
        with suppress(DBAPIError, PendingRollbackError):  # it was lost meanwhile
            self.connection.info[_IDLE_SINCE] = self.since
        self.connection.close()


class Database:
    """Transactions on one engine, safe across forks.

    No SQLite connection may live in two processes, or a lock that one holds is invisible to the other. So a fork
    waits for the transaction in progress and closes what is pooled; transactions of one process take turns on SQLite,
    where they would anyway. On servers a forked child leaves its parent's connections alone.

    In a ``shared`` database the app may have a transaction open: then that is the one.
    """

    def __init__(self, url: str | URL, shared: SharedDatabase | None = None) -> None:
        self.url = _parse_url(url)
        self.shared = shared
        self._engine = build_engine(url) if shared is None else None
        self._is_sqlite = self.url.get_backend_name() == "sqlite"
        self._begins_by_hand = _begins_by_hand(self.url)
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
        with self._connect({_READS: True, _LEVEL: level}) as connection:
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
                if asked and _leaves_doubt(error):
                    raise _leave_unanswered("COMMIT", error) from error
                raise

    @contextmanager
    def write_each(self) -> Iterator[Connection]:
        """A connection for statements that stand alone, as ``transact_each`` says. Raises CommitUnanswered."""
        if not self._begins_by_hand or (self.shared is not None and self.shared.is_open()):
            with self.write() as connection:
                yield connection
            return
        with self._connect({_EACH_ALONE: True}) as connection:
            if not stands_alone(connection):  # where a pooler's sessions are of another level
                connection.begin()
            try:
                yield connection
                send_waiting(connection)
                connection.commit()
            except DBAPIError as error:
                if error.connection_invalidated:  # whatever else was answered, nothing was committed
                    raise _leave_unanswered(error.statement, error) from error
                raise

    def transact(self, work: Callable[[Connection], T]) -> T:
        """Run ``work`` in one transaction and commit; a deadlock or serialisation victim runs again, whole.

        So it does, once, where its connection turns out to be gone before the commit. ``work`` must have no effect
        outside the transaction. Other errors reach the caller.
        """
        return _repeat_victims(self.write, work, repeats_lost=_was_lost_early)

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
                connection.info.update({**_NO_USE, **use})
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


def _leave_unanswered(statement: str | None, error: DBAPIError) -> CommitUnanswered:
    return CommitUnanswered(statement, None, error.orig or error, connection_invalidated=error.connection_invalidated)


def _repeat_victims(
    enter: Callable[[], AbstractContextManager[Connection]],
    work: Callable[[Connection], T],
    *,
    repeats_lost: Callable[[DBAPIError], bool],
) -> T:
    for attempt in range(1, _CONFLICT_TRIES):
        try:
            with enter() as connection:
                return work(connection)
        except DBAPIError as error:
            if attempt == 1 and repeats_lost(error):
                continue
            if not is_conflict(error):
                raise
            logger.debug("transaction lost a conflict (attempt %d), running it again: %s", attempt, error.orig)
        time.sleep(random.uniform(0, 0.01 * 2**attempt))  # noqa: S311  # jitter, not a secret
    with enter() as connection:
        return work(connection)


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
        code = _read_code(error.orig)
        if is_outage(error) and isinstance(code, int) and code & 0xFF not in _SQLITE_RIGHTS:
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

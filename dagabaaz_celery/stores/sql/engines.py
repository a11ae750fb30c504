"""Engines for store URLs: drivers, timeouts, how transactions begin, and what the pool looks for.

Every transaction is READ COMMITTED on servers and BEGIN IMMEDIATE on SQLite (a deferred one that later writes
fails with "database is locked" however long it waits; a plain BEGIN is used for reads).
"""

import time
from collections.abc import Sequence
from typing import Any

from sqlalchemy import URL, Connection, Engine, ExceptionContext, NullPool, create_engine, event, make_url, text
from sqlalchemy.exc import ArgumentError, InvalidatePoolError, NoSuchModuleError
from sqlalchemy.pool import ConnectionPoolEntry, PoolResetState

from dagabaaz_celery.errors import ConfigurationError
from dagabaaz_celery.stores.sql.direct import Direct, accept_direct, send_together
from dagabaaz_celery.stores.sql.drivers import MULTI_STATEMENTS, find_driver, psycopg_driver
from dagabaaz_celery.stores.sql.outages import SQLITE_FILE_OUTAGES, read_code
from dagabaaz_celery.stores.sql.patience import PatientConnection

_BUSY_TIMEOUT_SECONDS = 30.0
#: Connections of one process: a few are kept, and a pool of threads may need as many as it has threads.
_POOL = {"pool_size": 5, "max_overflow": 95, "pool_timeout": 15.0}
#: A connection that was not used for so many seconds is asked whether it is still there: asking each time, as a pool's
#: pre-ping does, would be a round trip more for every transaction.
_IDLE_SECONDS = 1.0
#: What is known of a connection while it is used: whether its statements stand alone, or only read, or are of a level
#: of their own.
EACH_ALONE, READS, LEVEL = "dagabaaz_each_alone", "dagabaaz_reads", "dagabaaz_level"
NO_USE: dict[str, Any] = {EACH_ALONE: False, READS: False, LEVEL: None}
#: Since when nobody uses it, by the monotonic clock.
IDLE_SINCE = "dagabaaz_idle_since"
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


def stands_alone(connection: Connection) -> bool:
    """Whether each statement of a connection is a transaction of its own, so that others may come between two."""
    return bool(connection.info.get(EACH_ALONE) and connection.info[_STANDS_ALONE])


def build_engine(url: str | URL, *, pooled: bool = True) -> Engine:
    """An engine for a store URL; ConfigurationError names what is wrong with the URL or which driver is missing.

    Unless it is ``pooled``, no connection stays open when it is not used: its database may then be dropped.
    """
    parsed = parse_url(url)
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
        level = "AUTOCOMMIT" if begins_by_hand(parsed) else "READ COMMITTED"
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
    if begins_by_hand(parsed):
        send_together(engine)
    if driver == "psycopg":
        _begin_by_hand(engine, ["BEGIN ISOLATION LEVEL {level}"])
        _settle_postgresql(engine, may_prepare=not decides)
    elif begins_by_hand(parsed):
        _begin_by_hand(engine, ["SET TRANSACTION ISOLATION LEVEL {level}", "BEGIN"])
        _settle_mysql(engine)
    return engine


def begins_by_hand(url: URL) -> bool:
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
        level = connection.info.get(LEVEL)
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
            psycopg_driver.prepare_all(connection)

    @event.listens_for(engine, "checkout")
    def _plan_again(connection: Any, record: ConnectionPoolEntry, proxy: Any) -> None:
        # A plan that was made while a table was small reads all of it, until the server has looked at the table again.
        if psycopg_driver.has_prepared(connection) and time.monotonic() - record.info[_PLANNED_AT] > _PLAN_SECONDS:
            try:
                connection.execute("DISCARD PLANS")
            except engine.dialect.loaded_dbapi.Error as error:
                raise InvalidatePoolError from error
            record.info[_PLANNED_AT] = time.monotonic()

    @event.listens_for(engine, "handle_error")
    def _give_up_session(context: ExceptionContext) -> None:
        code = read_code(context.original_exception)
        where = getattr(getattr(context.original_exception, "diag", None), "source_function", None)
        if code == "26000" or (code == "0A000" and where == "RevalidateCachedQuery"):
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
        record.info.update(NO_USE)

    @event.listens_for(engine, "reset")
    def _reset(connection: Any, record: ConnectionPoolEntry, state: PoolResetState) -> None:
        if not state.terminate_only and not driver.is_at_rest(connection):
            connection.rollback()


def _ping_idle_connections(engine: Engine) -> None:
    @event.listens_for(engine, "checkin")
    def _note(connection: Any, record: ConnectionPoolEntry) -> None:
        record.info.setdefault(IDLE_SINCE, time.monotonic())

    @event.listens_for(engine, "checkout")
    def _ping(connection: Any, record: ConnectionPoolEntry, proxy: Any) -> None:
        now_ = time.monotonic()
        if now_ - record.info.pop(IDLE_SINCE, now_) < _IDLE_SECONDS:
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


def parse_url(url: str | URL) -> URL:
    """A store URL. Raises ConfigurationError, which shows nothing that may be secret."""
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
        connect_args={"factory": PatientConnection, "timeout": 0, "check_same_thread": False},
        hide_parameters=True,
        pool_reset_on_return=None,
    )
    accept_direct(engine)
    _end_abandoned_transactions(engine)

    @event.listens_for(engine, "connect")
    def _configure(connection: PatientConnection, record: ConnectionPoolEntry) -> None:
        connection.patience = timeout
        connection.isolation_level = None  # the driver must not begin transactions of its own
        record.info[_STANDS_ALONE] = True
        cursor = connection.cursor()
        # Two that both read a new file are refused at once, and again if neither let go: each try here begins anew.
        cursor.execute("PRAGMA journal_mode=WAL")
        cursor.execute("PRAGMA synchronous=NORMAL")
        cursor.close()

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        if stands_alone(connection):
            return
        (_BEGIN_READING if connection.info.get(READS) else _BEGIN_WRITING).change(connection, {})

    @event.listens_for(engine, "handle_error")
    def _drop(context: ExceptionContext) -> None:
        code = read_code(context.original_exception)
        if isinstance(code, int) and code & 0xFF in SQLITE_FILE_OUTAGES:
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

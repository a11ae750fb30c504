"""Engines: what their URLs may be, what drivers are told, and which errors mean that the database is away."""

import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from sqlalchemy import create_engine, event, select, text
from sqlalchemy.dialects import mysql
from sqlalchemy.exc import DBAPIError, IntegrityError, OperationalError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from dagabaaz_celery.errors import ConfigurationError
from dagabaaz_celery.stores.sql.database import Database
from dagabaaz_celery.stores.sql.dialects import now
from dagabaaz_celery.stores.sql.engines import build_engine
from dagabaaz_celery.stores.sql.outages import DATABASE_ERRORS, CommitUnanswered, is_outage
from dagabaaz_celery.worker.outcome import stop_flag, wait_out

REFUSED = {"postgresql": "postgresql+psycopg://nobody@127.0.0.1:1/none", "mysql": "mysql+pymysql://a@127.0.0.1:1/none"}


def catch(url: str, statement: str) -> SQLAlchemyError:
    """What a statement raises on a database."""
    database = Database(url)
    try:
        with pytest.raises(DATABASE_ERRORS) as caught, database.write() as connection:
            connection.execute(text(statement))
    finally:
        database.close()
    return caught.value


# -- outages


@pytest.mark.parametrize("url", REFUSED.values(), ids=REFUSED)
def test_a_refused_connection_is_an_outage(url: str):
    assert is_outage(catch(url, "SELECT 1"))


def test_no_free_connection_in_the_pool_is_an_outage_that_is_waited_out(tmp_path: Path):
    stop_flag.share()  # lowered: another test's worker has stopped in this process
    engine = create_engine(f"sqlite:///{tmp_path / 'a'}", pool_size=1, max_overflow=0, pool_timeout=0.01)
    taken = engine.connect()
    seen: list[BaseException] = []

    def call() -> str:
        try:
            with engine.connect():
                return "done"
        except DATABASE_ERRORS as error:
            seen.append(error)
            taken.close()
            raise

    assert wait_out(call) == "done"
    assert [type(error) for error in seen] == [PoolTimeoutError]
    engine.dispose()


def test_an_unanswered_commit_is_asked_about_until_there_is_an_answer():
    stop_flag.share()
    answers: list[Exception | str] = [
        CommitUnanswered("COMMIT", None, ConnectionResetError("the answer is lost"), connection_invalidated=True),
        *(OperationalError("BEGIN", None, Exception(2003, "refused")) for _ in range(3)),
        "done",
    ]

    def call() -> str:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    assert wait_out(call, give_up_after=0) == "done"


def test_a_commit_that_fails_is_unanswered_and_a_statement_that_fails_is_not(tmp_path: Path):
    database = Database(f"sqlite:///{tmp_path / 'a'}")
    away = sqlite3.OperationalError("disk I/O error")
    away.sqlite_errorcode = sqlite3.SQLITE_IOERR

    def fail(*_: object) -> None:
        raise away

    with pytest.raises(OperationalError) as caught, database.write() as connection:
        connection.exec_driver_sql("INSERT INTO missing VALUES (1)")
    assert not isinstance(caught.value, CommitUnanswered)

    database.engine.dialect.do_commit = fail  # type: ignore[method-assign]
    with pytest.raises(CommitUnanswered) as caught, database.write() as connection:
        connection.exec_driver_sql("SELECT 1")
    assert is_outage(caught.value)
    database.close()


def test_a_wait_for_a_locked_sqlite_file_is_as_long_as_the_url_says(tmp_path: Path):
    database = open_with_table(tmp_path, "?timeout=0.2")
    with locked(tmp_path / "a"):
        began = time.monotonic()
        with pytest.raises(OperationalError, match="database is locked") as caught, database.write():
            pass
    assert time.monotonic() - began >= 0.2
    assert is_outage(caught.value)
    database.close()


@pytest.mark.parametrize("write", [Database.write, Database.write_each], ids=["a transaction", "a statement alone"])
def test_who_writes_to_a_sqlite_file_waits_for_who_has_it_locked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[[Database], Any]
):
    database = open_with_table(tmp_path)
    pauses = []
    with locked(tmp_path / "a") as other:
        # The other is done while we wait for the third time
        monkeypatch.setattr(
            time, "sleep", lambda seconds: pauses.append(seconds) or (other.commit() if len(pauses) == 3 else None)
        )
        with write(database) as connection:
            connection.exec_driver_sql("INSERT INTO t VALUES (1)")
    assert len(pauses) == 3
    assert max(pauses) < 0.001  # what is waited for takes less than SQLite's own first pause
    with database.read() as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM t").scalar_one() == 1
    database.close()


def test_a_commit_waits_for_who_reads_a_sqlite_file_without_a_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    database = open_with_table(tmp_path)
    with database.write_each() as connection:  # as on a file system that cannot share memory
        assert connection.exec_driver_sql("PRAGMA journal_mode=DELETE").scalar_one() == "delete"
    reader = sqlite3.connect(tmp_path / "a", isolation_level=None)
    reader.execute("BEGIN")
    assert reader.execute("SELECT * FROM t").fetchall() == []
    monkeypatch.setattr(time, "sleep", lambda seconds: reader.commit())
    with database.write() as connection:
        connection.exec_driver_sql("INSERT INTO t VALUES (1)")
    assert reader.execute("SELECT * FROM t").fetchall() == [(1,)]
    reader.close()
    database.close()


def test_a_transaction_that_read_what_is_not_the_latest_does_not_wait_to_write(tmp_path: Path):
    database = open_with_table(tmp_path, "?timeout=600")
    with database.read() as connection:
        connection.exec_driver_sql("SELECT * FROM t")
        with locked(tmp_path / "a") as other:
            other.execute("INSERT INTO t VALUES (1)")
            other.commit()
        with pytest.raises(OperationalError, match="database is locked"):
            connection.exec_driver_sql("INSERT INTO t VALUES (2)")
    database.close()


def open_with_table(directory: Path, query: str = "") -> Database:
    """A SQLite file ``a`` with a table ``t``."""
    database = Database(f"sqlite:///{directory / 'a'}{query}")
    with database.write() as connection:
        connection.exec_driver_sql("CREATE TABLE t (a)")
    return database


@contextmanager
def locked(path: Path) -> Iterator[sqlite3.Connection]:
    """A SQLite file that somebody else is writing to."""
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    try:
        yield other
    finally:
        other.close()


def test_a_timeout_that_is_no_number_is_refused(tmp_path: Path):
    with pytest.raises(ConfigurationError, match="timeout"):
        build_engine(f"sqlite:///{tmp_path / 'a'}?timeout=long")


def test_a_connection_that_found_the_file_read_only_is_not_used_again(tmp_path: Path):
    database = open_with_table(tmp_path)
    with database.write() as connection:
        connection.exec_driver_sql("PRAGMA query_only=1")

    with pytest.raises(OperationalError) as caught, database.write() as connection:
        connection.exec_driver_sql("INSERT INTO t VALUES (1)")

    assert is_outage(caught.value)
    # Nor does the process keep it open, which would share what it may with the next one
    assert not [file for file in psutil.Process().open_files() if file.path.startswith(str(tmp_path / "a"))]
    with database.write() as connection:
        connection.exec_driver_sql("INSERT INTO t VALUES (1)")
    database.close()


def test_a_sqlite_file_that_others_hold_is_an_outage(tmp_path: Path):
    path = tmp_path / "a.sqlite3"
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    engine = create_engine(f"sqlite:///{path}", connect_args={"timeout": 0})

    with pytest.raises(OperationalError) as caught, engine.begin() as connection:
        connection.execute(text("CREATE TABLE t (a)"))

    assert is_outage(caught.value)
    holder.close()
    engine.dispose()


def test_a_sqlite_file_that_cannot_be_opened_is_an_outage(tmp_path: Path):
    assert is_outage(catch(f"sqlite:///{tmp_path / 'missing' / 'a'}", "SELECT 1"))


@pytest.mark.parametrize("statement", ["SELECT * FROM missing", "SELEC 1"])
def test_a_wrong_statement_is_no_outage(tmp_path: Path, statement: str):
    assert not is_outage(catch(f"sqlite:///{tmp_path / 'a'}", statement))


def test_an_error_from_elsewhere_is_no_outage():
    assert not is_outage(ValueError("x"))


class _PostgresError(Exception):
    def __init__(self, sqlstate: str) -> None:
        super().__init__("said by the server")
        self.sqlstate = sqlstate


@pytest.mark.parametrize(
    ("original", "away"),
    [
        (_PostgresError("08006"), True),
        (_PostgresError("53300"), True),
        (_PostgresError("57P01"), True),
        (_PostgresError("25006"), True),
        (_PostgresError("40P01"), True),
        (_PostgresError("22021"), False),
        (_PostgresError("23514"), False),
        (_PostgresError("42P01"), False),
        *((Exception(code, "x"), True) for code in (1040, 1053, 1205, 1213, 1927, 2006, 2013)),
        *((Exception(code, "x"), False) for code in (1064, 1146, 1366, 1406, 3819, 4025)),
        (Exception("connection failed"), True),
    ],
)
def test_the_servers_code_decides(original: Exception, away: bool):
    assert is_outage(OperationalError("SELECT 1", None, original)) is away


def test_a_lost_connection_is_an_outage_whatever_its_code():
    assert is_outage(DBAPIError("SELECT 1", None, _PostgresError("XX000"), connection_invalidated=True))


# -- what drivers are told


class _Asked(Exception):
    pass


def ask_connect_arguments(url: str) -> dict[str, Any]:
    """What a driver would be called with."""
    engine = build_engine(url)
    given: dict[str, Any] = {}

    @event.listens_for(engine, "do_connect")
    def _note(dialect: Any, record: Any, args: Any, arguments: dict[str, Any]) -> None:
        given.update(arguments)
        raise _Asked

    with pytest.raises(_Asked):
        engine.connect()
    return given


def test_postgresql_prepares_nothing_and_notices_a_silent_server():
    given = ask_connect_arguments("postgresql+psycopg://a@db.internal/x")

    assert given["prepare_threshold"] is None
    assert 0 < given["connect_timeout"] <= 30
    assert 0 < given["tcp_user_timeout"] <= 60_000
    assert given["keepalives_idle"] + given["keepalives_interval"] * given["keepalives_count"] <= 60


def test_mysql_notices_a_silent_server():
    given = ask_connect_arguments("mysql+pymysql://a@db.internal/x")

    assert 0 < given["connect_timeout"] <= 30
    assert 0 < given["write_timeout"] <= 120
    assert 60 < given["read_timeout"] <= 120  # a wait for a lock is no silence


def test_what_the_url_says_counts():
    assert ask_connect_arguments("postgresql+psycopg://a@db/x?connect_timeout=77")["connect_timeout"] in (77, "77")


@pytest.mark.parametrize(("text_", "threshold"), [("5", 5), ("0", 0), ("none", None)])
def test_statements_are_prepared_where_the_url_says_so(text_: str, threshold: int | None):
    given = ask_connect_arguments(f"postgresql+psycopg://a@db/x?prepare_threshold={text_}")

    assert given["prepare_threshold"] == threshold


def test_a_prepare_threshold_that_is_no_number_is_refused():
    with pytest.raises(ConfigurationError, match="prepare_threshold"):
        build_engine("postgresql+psycopg://a@db/x?prepare_threshold=often")


def test_a_pool_of_threads_gets_its_connections(tmp_path: Path):
    pool: Any = build_engine("postgresql+psycopg://a@db.internal/x").pool

    assert pool.size() + pool._max_overflow >= 100
    assert pool.timeout() <= 30


def test_users_data_stays_out_of_errors(tmp_path: Path):
    database = Database(f"sqlite:///{tmp_path / 'a'}")
    with database.write() as connection:
        connection.execute(text("CREATE TABLE t (a TEXT CHECK (a = ''))"))

    with pytest.raises(IntegrityError) as caught, database.write() as connection:
        connection.execute(text("INSERT INTO t VALUES (:a)"), {"a": "an-address@example.org"})

    assert "example.org" not in str(caught.value)
    database.close()


# -- URLs


@pytest.mark.parametrize(
    "url",
    [
        "postgresql//user:s3cret@host/db",
        "user:s3cret@host/db",
        "postgresql+psycopg://user:s3cret",
        "postgresql+psycopg://user:p@s3cret@host/db",
        "postgresql+psycopg://user:p@x/s3cret@host/db",
        "postgresql+psycopg://user:p:s3@s3cret/x@host:s3cret/db",
        "nosuch+driver://user:s3cret@host/db?password=s3cret",
        "postgresql+nosuch://user:s3cret@host/db",
    ],
)
def test_a_url_that_is_none_is_refused_without_its_password(url: str):
    with pytest.raises(ConfigurationError) as caught:
        build_engine(url)

    assert "s3cret" not in str(caught.value)
    error: BaseException | None = caught.value
    while error is not None and not error.__suppress_context__:
        error = error.__cause__ or error.__context__
        assert "s3cret" not in str(error)


def test_a_missing_driver_names_the_host_and_the_extra():
    with pytest.raises(ConfigurationError, match=r"nosuch://db\.internal.*dagabaaz-celery\[postgres\]"):
        build_engine("postgresql+nosuch://user:s3cret@db.internal/db")


def test_a_quoted_password_passes():
    assert build_engine("postgresql+psycopg://user:a%40b%2Fc%3Ad@host/db").url.password == "a@b/c:d"


# -- the clock


def test_the_clock_of_mysql_knows_no_local_time():
    statement = str(select(now()).compile(dialect=mysql.dialect()))

    assert "UTC_TIMESTAMP(6)" in statement
    assert "NOW(" not in statement.replace("UTC_TIMESTAMP", "")

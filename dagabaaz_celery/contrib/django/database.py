"""The store in a database of Django's: by connections of its own, and inside Django's transactions by Django's.

SQLAlchemy speaks over Django's raw connection there; that commits, rolls back and closes is left to Django.
"""

import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

from django.db import connections, transaction
from sqlalchemy import URL, Connection, Engine, NullPool
from sqlalchemy.exc import DBAPIError

from dagabaaz_celery.contrib.django.database_url import build_url, is_in_memory
from dagabaaz_celery.errors import ConfigurationError, TransactionOpen
from dagabaaz_celery.stores.sql.database import call_while_alive
from dagabaaz_celery.stores.sql.direct import accept_direct
from dagabaaz_celery.stores.sql.engines import build_engine


class DjangoDatabase:
    """One of DATABASES, as ``stores.sql.shared.SharedDatabase`` describes it."""

    def __init__(self, alias: str) -> None:
        self.alias = alias
        self.migrate_command = "python manage.py migrate" + ("" if alias == "default" else f" --database {alias}")
        #: In tests the transaction that a TestCase wraps around each of them counts as none.
        self.is_in_test = False
        self._first_name = self._settings["NAME"]
        self._url: tuple[Any, URL] | None = None
        self._bridge: Engine | None = None
        self._reset_lock()
        os.register_at_fork(after_in_child=call_while_alive(self._reset_lock))

    def _reset_lock(self) -> None:
        """A forked child starts with a lock that nobody holds."""
        self._building = threading.Lock()

    @property
    def url(self) -> URL:
        """As the database is called now: Django's test runner gives it another name."""
        name = self._settings["NAME"]
        if self._url is None or self._url[0] != name:
            self._url = (name, build_url(self._settings))
        return self._url[1]

    def build_engine(self) -> Engine:
        """Connections of the store's own; none stays open to a test's database, which is going to be dropped."""
        if is_in_memory(self.url):
            raise ConfigurationError(
                f"The database {self.alias!r} is a SQLite database in memory, as Django's tests make it: nobody can "
                "read it beside the connection that has it. Use dagabaaz_celery.contrib.django.test in the test, or "
                f"give the tests a file: DATABASES[{self.alias!r}]['TEST'] = {{'NAME': BASE_DIR / 'test.sqlite3'}}."
            )
        return build_engine(self.url, pooled=self._settings["NAME"] == self._first_name)

    def is_open(self) -> bool:
        """Whether this thread has an atomic block of Django's open."""
        return self.is_in_test or bool(connections[self.alias].in_atomic_block)

    def check(self) -> None:
        """Raise TransactionOpen in a transaction that nothing tells the end of."""
        if _is_manual(connections[self.alias]):
            raise TransactionOpen(
                f"Autocommit of the database {self.alias!r} is off: nothing tells when the transaction of this thread "
                "is committed, and the end of transaction.atomic() does not commit it. Commit, switch autocommit on, "
                "and use transaction.atomic() for what is to be committed together."
            )

    def awaits_commit(self) -> bool:
        """Whether Django is going to commit something in this thread."""
        wrapper = connections[self.alias]
        if not self.is_in_test:
            return bool(wrapper.in_atomic_block)
        return any(not block._from_testcase for block in wrapper.atomic_blocks)

    @contextmanager
    def join(self, *, writes: bool) -> Iterator[Connection]:
        """Django's connection; writes have a savepoint of their own. Errors of the database are Django's."""
        wrapper = connections[self.alias]
        wrapper.validate_no_broken_transaction()
        with transaction.atomic(using=self.alias) if writes else nullcontext(), self.connect() as connection:
            yield connection

    @contextmanager
    def connect(self) -> Iterator[Connection]:
        """SQLAlchemy on the connection that this thread has in Django, in whatever transaction is open there."""
        wrapper = connections[self.alias]
        try:
            with self._open_bridge().connect() as connection, connection.begin():
                yield connection
        except DBAPIError as error:
            with wrapper.wrap_database_errors:
                raise (error.orig or error) from error

    def refresh(self) -> None:
        """Close what is broken, or older than CONN_MAX_AGE."""
        for wrapper in connections.all(initialized_only=True):
            if not wrapper.in_atomic_block:  # as in a test, where the worker's thread is the test's own
                wrapper.close_if_unusable_or_obsolete()

    def after_commit(self, call: Callable[[], object]) -> Callable[[], bool] | None:
        """Have Django call this on commit; tells whether Django still has that before it."""
        if not self.awaits_commit():
            call()
            return None
        wrapper, begun = connections[self.alias], False

        def follow_commit() -> None:
            nonlocal begun
            begun = True
            call()

        transaction.on_commit(follow_commit, using=self.alias, robust=True)
        # A rollback, also to a savepoint, takes it from the list.
        return lambda: not begun and any(follow_commit in entry for entry in list(wrapper.run_on_commit))

    @property
    def _settings(self) -> Mapping[str, Any]:
        settings: Mapping[str, Any] = connections[self.alias].settings_dict
        return settings

    def _open_bridge(self) -> Engine:
        """An engine that takes each thread's own connection of Django's, and what it knows of the server from one."""
        if self._bridge is None:
            with self._building:
                self._bridge = self._bridge or self._build_bridge()
        return self._bridge

    def _build_bridge(self) -> Engine:
        # Put together by hand: create_engine would have the dialect change what it connects to.
        url = self.url
        dialect_class: Any = url.get_dialect()
        given = {"use_native_hstore": False} if dialect_class.driver.startswith("psycopg") else {}
        dialect = dialect_class(dbapi=dialect_class.import_dbapi(), **given)
        for name in ("do_begin", "do_commit", "do_rollback", "do_close", "do_terminate"):
            setattr(dialect, name, _leave_to_django)
        pool = NullPool(self._take_connection, reset_on_return=None, dialect=dialect)
        engine = Engine(pool, dialect, url, hide_parameters=True)
        accept_direct(engine)
        with engine.connect() as connection:
            dialect.initialize(connection)
        return engine

    def _take_connection(self) -> Any:
        wrapper = connections[self.alias]
        wrapper.ensure_connection()
        return wrapper.connection


def _is_manual(wrapper: Any) -> bool:
    """Whether the app itself commits what the connection does, now or from its first query on."""
    if wrapper.in_atomic_block:
        return not wrapper.commit_on_exit
    return not (wrapper.settings_dict["AUTOCOMMIT"] if wrapper.connection is None else wrapper.autocommit)


def _leave_to_django(*_: Any) -> None:
    """Django begins, commits, rolls back and closes."""

"""A barrier by hand, on the raw driver: in as few statements and round trips as each database permits.

The tables are those of the package, with its indexes, under another prefix. A claim is one statement; an outcome is one
transaction of a guard, an artifact and a counter; the counter says to one task of a stage that it was the last. What is
left out makes it quicker than a barrier to be relied on could be: no input is read, what ends a stage is no part of the
transaction that ended it, nothing notes what was published, and nothing is ever mended.
"""

from collections.abc import Callable

from sqlalchemy import NullPool, create_engine, make_url

from dagabaaz_celery.stores.sql.tables import build_tables
from tests.benchmarks.barrier.base import PREFIX, Barrier
from tests.benchmarks.barrier.mariadb import MariaBarrier
from tests.benchmarks.barrier.postgresql import PostgresBarrier
from tests.benchmarks.barrier.sqlite import SqliteBarrier

_BARRIERS = {"sqlite": SqliteBarrier, "postgresql": PostgresBarrier, "mysql": MariaBarrier}


def make_tables(database_url: str) -> None:
    """Make the tables; once, before any barrier is opened."""
    engine = create_engine(database_url, poolclass=NullPool)
    build_tables(PREFIX).metadata.create_all(engine)


def open_barrier(database_url: str, note: Callable[[str], None] | None = None) -> Barrier:
    """A barrier over a connection of this process's own."""
    url = make_url(database_url)
    return _BARRIERS[url.get_backend_name()](url, note)

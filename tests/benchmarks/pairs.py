"""A database and a broker for one pair, each with nothing else in it, and nothing left of it afterwards."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import redis
from kombu import Connection
from sqlalchemy import URL, NullPool, create_engine, make_url

from tests import services

STORES = ("sqlite", "postgresql", "mariadb")
BROKERS = ("redis", "rabbitmq")
PAIRS = tuple(f"{store}-{broker}" for store in STORES for broker in BROKERS)
_KEYS_AT_ONCE = 1000


@dataclass(frozen=True)
class Places:
    """Where a pair's rivals keep what they do: database, broker settings, and Redis for canvas's results."""

    database_url: str
    broker: dict[str, Any]
    backend: dict[str, Any]


@contextmanager
def open_places(pair: str, directory: Path, tag: str, queues: list[str], query: str = "") -> Iterator[Places]:
    """A pair's own places. ``tag`` is part of all names, those of the ``queues`` too.

    ``query`` is added to the URL of a database server. Raises what ``services`` raises where a server is missing.
    """
    store, broker = pair.split("-")
    with (
        _open_database(store, directory, tag, query) as database_url,
        _open_redis(tag) as redis_url,
        _open_rabbitmq(queues) if broker == "rabbitmq" else nullcontext(redis_url) as broker_url,
    ):
        # No prefix of keys for the broker: kombu cannot tell then whether a queue is empty, which our sweep asks.
        prefix = {"global_keyprefix": f"{tag}-results-"}
        yield Places(
            database_url,
            {"broker_url": broker_url},
            {"result_backend": redis_url, "result_backend_transport_options": prefix},
        )


@contextmanager
def _open_database(store: str, directory: Path, tag: str, query: str) -> Iterator[str]:
    if store == "sqlite":
        yield f"sqlite:///{directory / 'runs.sqlite3'}"
        return
    shared = make_url(services.postgres_url() if store == "postgresql" else services.mysql_url())
    name = tag.replace("-", "_")
    _execute(shared, f"CREATE DATABASE {name}")
    try:
        url = shared.set(database=name).update_query_string(query)
        yield url.render_as_string(hide_password=False)
    finally:
        _execute(shared, f"DROP DATABASE {name}" + (" WITH (FORCE)" if store == "postgresql" else ""))


def _execute(url: URL, statement: str) -> None:
    engine = create_engine(url, poolclass=NullPool, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.exec_driver_sql(statement)


@contextmanager
def _open_rabbitmq(queues: list[str]) -> Iterator[str]:
    url = services.rabbitmq_url()
    try:
        yield url
    finally:
        with Connection(url) as connection, connection.channel() as channel:
            for queue in queues:
                channel.queue_delete(queue)
                channel.exchange_delete(queue)


@contextmanager
def _open_redis(tag: str) -> Iterator[str]:
    """Others may use the same database of that server: whatever has the tag in its name goes afterwards."""
    url = services.redis_url()
    try:
        yield url
    finally:
        with redis.Redis.from_url(url) as client:
            keys = list(client.scan_iter(match=f"*{tag}*", count=_KEYS_AT_ONCE))
            for start in range(0, len(keys), _KEYS_AT_ONCE):
                client.unlink(*keys[start : start + _KEYS_AT_ONCE])

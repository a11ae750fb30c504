"""Servers that tests use together: one that is named, one that runs on this machine, or a private one.

    DAGABAAZ_TEST_POSTGRES_URL, DAGABAAZ_TEST_MYSQL_URL, DAGABAAZ_TEST_REDIS_URL, DAGABAAZ_TEST_RABBITMQ_URL

name servers. Others may use the same ones: tests keep to tables, keys and queues under names of their own. What is
found serves the whole test run, each process of pytest-xdist looking for itself. With DAGABAAZ_REQUIRE_SERVICES=1 a
missing server is a failure instead of a skip.
"""

import os
import random
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import cache
from typing import NoReturn, TypeVar

import pytest
import redis
from kombu import Connection
from sqlalchemy import NullPool, create_engine
from sqlalchemy.exc import DBAPIError

from tests.servers import (
    MissingProgram,
    PrivateMariaDB,
    PrivatePgBouncer,
    PrivatePostgres,
    PrivateRabbitMQ,
    PrivateRedis,
    PrivateServer,
    ServerFailed,
)

Server = TypeVar("Server", bound=PrivateServer)

#: Seconds until a server that does not answer counts as missing.
_PATIENCE = 2


# -- where servers are


def postgres_url() -> str:
    """A database of PostgreSQL that tests share; the test is skipped, in one line, where none can be had."""
    return _require(_POSTGRES)


def mysql_url() -> str:
    """Like ``postgres_url``, of MariaDB or MySQL."""
    return _require(_MYSQL)


def redis_url() -> str:
    """Like ``postgres_url``, of Redis."""
    return _require(_REDIS)


def rabbitmq_url() -> str:
    """Like ``postgres_url``, of RabbitMQ."""
    return _require(_RABBITMQ)


@cache
def pgbouncer_url() -> str:
    """A PgBouncer in transaction mode in front of that PostgreSQL, which ends with the test run.

    It is no server that the package needs: where it is not installed the test is skipped, in one line, even where
    services are required.
    """
    pooler = PrivatePgBouncer(postgres_url())
    try:
        pooler.start()
    except MissingProgram as missing:
        pytest.skip(f"a test behind PgBouncer did not run: {missing}")
    return pooler.url


@contextmanager
def open_private(server: Server) -> Iterator[Server]:
    """Start a server that the test may stop, kill and freeze; the test is skipped, in one line, where it cannot."""
    try:
        server.start()
    except MissingProgram as missing:
        miss(f"a test that stops its {server.name}", str(missing))
    with closing(server):
        yield server


@contextmanager
def open_private_redis() -> Iterator[PrivateRedis]:
    """A private Redis whose data outlives it."""
    with open_private(PrivateRedis()) as server:
        yield server


def miss(what: str, why: str) -> NoReturn:
    """Skip, naming in one line what did not run and why; fail where services are required."""
    if os.environ.get("DAGABAAZ_REQUIRE_SERVICES") == "1":
        pytest.fail(f"{what}: {why}")
    pytest.skip(f"{what} did not run: {why.splitlines()[0]}")


# -- a broker of one's own on a shared Redis


@dataclass(frozen=True)
class RedisBroker:
    """A Redis to be used as broker: under ``prefix``, which is emptied afterwards."""

    url: str
    prefix: str

    @property
    def settings(self) -> dict[str, object]:
        """Celery settings; a message that a killed worker held is not given to another before an hour is over."""
        return {
            "broker_url": self.url,
            "broker_transport_options": {"global_keyprefix": self.prefix},
            "task_default_queue": "work",
        }

    def remove_keys(self) -> None:
        """Delete everything under the prefix."""
        with redis.Redis.from_url(self.url) as client:
            for key in client.scan_iter(match=f"{self.prefix}*", count=1000):
                client.delete(key)


@contextmanager
def open_redis_broker() -> Iterator[RedisBroker]:
    """A broker under a prefix of its own; the test is skipped, in one line, where no Redis can be had."""
    broker = RedisBroker(redis_url(), prefix=f"dagabaaz-test-{uuid.uuid4().hex}-")
    try:
        yield broker
    finally:
        broker.remove_keys()


# -- how they are found


@dataclass(frozen=True)
class _Service:
    """A kind of server: who names one, where it usually is, how it is asked, and how a private one is made."""

    name: str
    variable: str
    usual_url: str
    answers: Callable[[str], bool]
    make_private: Callable[[], PrivateServer]


@dataclass(frozen=True)
class _Found:
    """A server's URL, or why there is none."""

    url: str = ""
    problem: str = ""


def _require(service: _Service) -> str:
    found = _find(service)
    if found.problem:
        miss(f"a test on {service.name}", found.problem)
    return found.url


@cache
def _find(service: _Service) -> _Found:
    named = os.environ.get(service.variable)
    if named:
        answers = service.answers(named)
        return _Found(named) if answers else _Found(problem=f"{service.variable} names a server that does not answer")
    if service.answers(service.usual_url):
        return _Found(service.usual_url)
    server = service.make_private()
    try:
        server.start()  # it ends with the test run
    except (MissingProgram, ServerFailed) as error:
        return _Found(problem=f"no server on {service.usual_url}, {service.variable} is not set, and {error}")
    return _Found(server.url)


def _database_answers(url: str) -> bool:
    engine = create_engine(url, poolclass=NullPool, connect_args={"connect_timeout": _PATIENCE})
    try:
        with engine.connect():
            return True
    except DBAPIError:
        return False


def _redis_answers(url: str) -> bool:
    try:
        with redis.Redis.from_url(url, socket_timeout=_PATIENCE, socket_connect_timeout=_PATIENCE) as client:
            return bool(client.ping())
    except redis.RedisError:
        return False


def _rabbitmq_answers(url: str) -> bool:
    connection = Connection(url, connect_timeout=_PATIENCE)
    try:
        with connection:
            connection.connect()
    except (*connection.connection_errors, *connection.channel_errors):
        return False
    return True


_POSTGRES = _Service(
    name="PostgreSQL",
    variable="DAGABAAZ_TEST_POSTGRES_URL",
    usual_url="postgresql+psycopg://postgres@127.0.0.1:5432/test",
    answers=_database_answers,
    make_private=PrivatePostgres,
)
_MYSQL = _Service(
    name="MariaDB or MySQL",
    variable="DAGABAAZ_TEST_MYSQL_URL",
    usual_url="mysql+pymysql://root@127.0.0.1:3306/test",
    answers=_database_answers,
    make_private=PrivateMariaDB,
)
_REDIS = _Service(
    name="Redis",
    variable="DAGABAAZ_TEST_REDIS_URL",
    usual_url=f"redis://127.0.0.1:6379/{random.randint(1, 15)}",  # drawn by lot: each test process another database
    answers=_redis_answers,
    make_private=lambda: PrivateRedis(persistent=False),
)
_RABBITMQ = _Service(
    name="RabbitMQ",
    variable="DAGABAAZ_TEST_RABBITMQ_URL",
    usual_url="amqp://guest:guest@127.0.0.1:5672//",
    answers=_rabbitmq_answers,
    make_private=PrivateRabbitMQ,
)

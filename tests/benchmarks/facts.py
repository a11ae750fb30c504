"""On what the figures were seen: machine, versions, revision, and the settings of workers."""

import os
import platform
import subprocess
from collections.abc import Iterable
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import redis
from kombu import Connection
from sqlalchemy import NullPool, create_engine

from tests import services
from tests.benchmarks.rivals import COMMON
from tests.benchmarks.rivals.ours import SETTINGS
from tests.benchmarks.site import WORKER_ARGUMENTS

_PACKAGES = ("celery", "kombu", "sqlalchemy", "psycopg", "pymysql", "redis", "amqp", "pydantic")


def gather_facts(pairs: Iterable[str]) -> dict[str, Any]:
    """What a reader has to know of a run; servers are asked only where a pair uses them."""
    used = {part for pair in pairs for part in pair.split("-")} | {"redis"}
    return {
        "at": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        "revision": _git("rev-parse", "--short", "HEAD") + ("" if not _git("status", "--porcelain") else ", changed"),
        "cores": len(os.sched_getaffinity(0)),
        "processor": _processor(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "packages": {name: version(name) for name in _PACKAGES},
        "servers": {name: ask() for name, ask in _SERVERS.items() if name in used},
        "workers": f"celery worker {' '.join(WORKER_ARGUMENTS)}",
        "settings": {**COMMON},
        "settings of ours": {**SETTINGS},
        "load": round(os.getloadavg()[0], 2),
    }


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False)
    return done.stdout.strip()


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()


def _sql(url: str, question: str) -> str:
    with create_engine(url, poolclass=NullPool).connect() as connection:
        return str(connection.exec_driver_sql(question).scalar_one())


def _redis() -> str:
    with redis.Redis.from_url(services.redis_url()) as client:
        return str(client.info("server")["redis_version"])


def _rabbitmq() -> str:
    with Connection(services.rabbitmq_url()) as connection:
        connection.connect()
        return str(connection.connection.server_properties["version"])


_SERVERS = {
    "sqlite": lambda: _sql("sqlite://", "SELECT sqlite_version()"),
    "postgresql": lambda: _sql(services.postgres_url(), "SHOW server_version"),
    "mariadb": lambda: _sql(services.mysql_url(), "SELECT version()"),
    "redis": _redis,
    "rabbitmq": _rabbitmq,
}

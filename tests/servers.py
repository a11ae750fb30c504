"""Private servers that a test may kill, freeze and restart: each on a free loopback port, in a directory of its own.

They are started from the programs that are installed; what is missing is named with its Debian package. Seen on two
busy cores on 2026-11-22, from nothing to the first answer, then for a clean restart: Redis 7.0 0.04 s, 0.2 s;
PostgreSQL 15 0.6 to 1.1 s, 0.1 s; MariaDB 10.11 0.9 to 2.1 s, 0.2 to 0.5 s; RabbitMQ 3.10 6 to 10 s, 7 to 10 s.
"""

import atexit
import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Self

import psycopg
import pymysql
import redis
from kombu import Connection
from sqlalchemy import make_url

from tests.processes import ProcessTree, as_user, make_directory, remove_directory

LOOPBACK = "127.0.0.1"
#: Below what systems hand out to clients: a restarted server finds its port free, and no client connects to itself.
_PORTS = range(15_000, 32_000)
_LOG_LINES = 30


class MissingProgram(Exception):
    """A program is not installed; says which, and how to get it on Debian."""


class ServerFailed(Exception):
    """A server did not start; says so with the end of its log."""


class PrivateServer:
    """What the servers have in common. Made by a subclass, started by ``start`` or a ``with`` block.

    The data outlives ``stop`` and ``kill``, and goes with ``close``, the end of the block or of the test run.
    """

    name: ClassVar[str]
    #: The system user that runs the server where the tests run as root.
    user: ClassVar[str | None] = None
    #: The signal of a clean stop that does not wait for clients to leave.
    stop_signal: ClassVar[int] = signal.SIGTERM
    #: Seconds until a server that does not answer counts as failed.
    start_timeout: ClassVar[float] = 60.0

    def __init__(self) -> None:
        self.port = pick_port()
        self.directory: Path | None = None
        self.process: ProcessTree | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def url(self) -> str:
        """What clients connect to; the same for the server's whole life."""
        raise NotImplementedError

    @property
    def is_running(self) -> bool:
        """Whether the server's main process is there, be it frozen."""
        return self.process is not None and self.process.is_running

    @property
    def log(self) -> str:
        """Everything that the server wrote so far."""
        path = self._home / "server.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def start(self) -> None:
        """Start the server, with the data that it has, and wait until it answers.

        Raises MissingProgram, ServerFailed.
        """
        self.find_programs()
        if self.directory is None:
            self.directory = make_directory(self.name, self.user)
            atexit.register(self.close)
            self.prepare()
        self.process = self._spawn(self.command(), env=self.environment())
        self.wait_ready()

    def stop(self) -> None:
        """End the server cleanly; its clients lose their connections."""
        if self.process is not None:
            self.process.end(self.stop_signal)

    def kill(self) -> None:
        """SIGKILL all of the server's processes."""
        if self.process is not None:
            self.process.kill()

    def restart(self) -> None:
        """Stop the server cleanly, unless it is down, and start it on the same port with the same data."""
        self.stop()
        self.start()

    def pause(self) -> None:
        """Freeze the server: it keeps its connections and answers nothing."""
        if self.process is not None:
            self.process.pause()

    def resume(self) -> None:
        """Let a frozen server go on."""
        if self.process is not None:
            self.process.resume()

    def wait_ready(self, timeout: float | None = None) -> None:
        """Wait until the server answers a client. Raises ServerFailed when it ends, or after ``timeout`` seconds."""
        deadline = time.monotonic() + (timeout or self.start_timeout)
        while not self.answers():
            if not self.is_running:
                raise ServerFailed(f"{self.name} ended while it started; the end of its log:\n{self._log_end()}")
            if time.monotonic() > deadline:
                raise ServerFailed(f"{self.name} does not answer on {self.url}; the end of its log:\n{self._log_end()}")
            time.sleep(0.02)

    def close(self) -> None:
        """Stop the server and remove its data. Safe to repeat."""
        atexit.unregister(self.close)
        self.stop()
        if self.directory is not None:
            remove_directory(self.directory)
        self.directory = self.process = None

    # -- what a server of one kind says of itself

    @classmethod
    def find_programs(cls) -> None:
        """Raise MissingProgram unless everything is installed."""
        raise NotImplementedError

    def prepare(self) -> None:
        """Fill the new directory."""

    def command(self) -> list[str | Path]:
        """The command line of the server, which must stay in the foreground."""
        raise NotImplementedError

    def environment(self) -> dict[str, str]:
        """The environment of the server: temporary files in common would be cleared away by the next to start."""
        return os.environ | {"HOME": str(self._home), "TMPDIR": str(self._home)}

    def answers(self) -> bool:
        """Whether a client is served now."""
        raise NotImplementedError

    # -- for subclasses

    @property
    def _home(self) -> Path:
        if self.directory is None:
            raise ServerFailed(f"{self.name} was not started")
        return self.directory

    def _spawn(self, command: Sequence[str | Path], env: dict[str, str]) -> ProcessTree:
        return ProcessTree(command, log=self._home / "server.log", cwd=self._home, env=env, user=self.user)

    def _run(self, command: Sequence[str | Path]) -> None:
        """Run a program that prepares the server, to its end."""
        done = subprocess.run(
            [str(part) for part in command],
            cwd=self._home,
            env=self.environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=self.start_timeout,
            check=False,
            **as_user(self.user),
        )
        if done.returncode != 0:
            raise ServerFailed(f"{self.name} could not be set up: {command[0]} said\n{done.stdout}{done.stderr}")

    def _log_end(self) -> str:
        return "\n".join(self.log.splitlines()[-_LOG_LINES:])


class PrivateRedis(PrivateServer):
    """Redis. Its data outlives a kill when ``persistent``; otherwise every end of the server loses everything."""

    name = "redis"

    def __init__(self, *options: str, persistent: bool = True) -> None:
        super().__init__()
        self._options = (*_REDIS_STORAGE[persistent], *options)

    @property
    def url(self) -> str:
        return f"redis://{LOOPBACK}:{self.port}/0"

    @classmethod
    def find_programs(cls) -> None:
        find_program("redis-server", package="redis-server")

    def command(self) -> list[str | Path]:
        program = find_program("redis-server", package="redis-server")
        return [program, "--bind", LOOPBACK, "--port", str(self.port), "--dir", self._home, *self._options]

    def answers(self) -> bool:
        with redis.Redis(host=LOOPBACK, port=self.port, socket_timeout=1, socket_connect_timeout=1) as client:
            try:
                return bool(client.ping())  # refused while the data is being loaded
            except redis.RedisError:
                return False


_REDIS_STORAGE = {
    True: ("--save", "", "--appendonly", "yes", "--appendfsync", "no"),  # written at once: safe from a killed process
    False: ("--save", "", "--appendonly", "no"),
}


class PrivatePostgres(PrivateServer):
    """PostgreSQL, with a superuser ``postgres`` who needs no password.

    ``fsync=False`` is quicker, and loses nothing but in a power cut. ``options`` are settings, as ``work_mem=1MB``.
    """

    name = "postgres"
    user = "postgres"
    stop_signal = signal.SIGINT  # SIGTERM waits until every client has left

    def __init__(self, *options: str, fsync: bool = False) -> None:
        super().__init__()
        self._options = (f"fsync={'on' if fsync else 'off'}", "max_connections=200", *options)

    @property
    def url(self) -> str:
        return f"postgresql+psycopg://postgres@{LOOPBACK}:{self.port}/postgres"

    @classmethod
    def find_programs(cls) -> None:
        for program in ("initdb", "postgres"):
            _find_postgres_program(program)

    def prepare(self) -> None:
        options = ("--username=postgres", "--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync")
        self._run([_find_postgres_program("initdb"), *options, "-D", self._home / "data"])

    def command(self) -> list[str | Path]:
        settings = (f"listen_addresses={LOOPBACK}", f"port={self.port}", "unix_socket_directories=", *self._options)
        given = [part for setting in settings for part in ("-c", setting)]
        return [_find_postgres_program("postgres"), "-D", self._home / "data", *given]

    def answers(self) -> bool:
        try:
            with psycopg.connect(host=LOOPBACK, port=self.port, user="postgres", connect_timeout=2):
                return True
        except psycopg.OperationalError:
            return False


class PrivateMariaDB(PrivateServer):
    """MariaDB, with a ``root`` who needs no password and a database ``test``. ``options`` are those of mariadbd."""

    name = "mariadb"
    user = "mysql"

    def __init__(self, *options: str) -> None:
        super().__init__()
        self._options = options

    @property
    def url(self) -> str:
        return f"mysql+pymysql://root@{LOOPBACK}:{self.port}/test"

    @classmethod
    def find_programs(cls) -> None:
        for program in ("mariadb-install-db", "mariadbd"):
            find_program(program, package="mariadb-server")

    def prepare(self) -> None:
        program = find_program("mariadb-install-db", package="mariadb-server")
        self._run([program, "--no-defaults", "--auth-root-authentication-method=normal", f"--datadir={self._data}"])

    def command(self) -> list[str | Path]:
        return [
            find_program("mariadbd", package="mariadb-server"),
            "--no-defaults",
            f"--datadir={self._data}",
            f"--socket={self._home / 'socket'}",
            f"--pid-file={self._home / 'pid'}",
            f"--bind-address={LOOPBACK}",
            f"--port={self.port}",
            "--innodb-flush-log-at-trx-commit=2",  # quicker, and loses nothing but in a power cut
            "--max-connections=200",
            *self._options,
        ]

    def answers(self) -> bool:
        try:
            pymysql.connect(
                host=LOOPBACK, port=self.port, user="root", database="test", connect_timeout=2, read_timeout=2
            ).close()
        except pymysql.OperationalError:
            return False
        return True

    @property
    def _data(self) -> Path:
        return self._home / "data"


class PrivateRabbitMQ(PrivateServer):
    """RabbitMQ, a node and a cluster of its own, without plugins, by an epmd of its own: no other node is touched."""

    name = "rabbitmq"
    start_timeout = 90.0

    def __init__(self) -> None:
        super().__init__()
        self._dist_port = pick_port()
        self._epmd_port = pick_port()
        self._epmd: ProcessTree | None = None

    @property
    def url(self) -> str:
        return f"amqp://guest:guest@{LOOPBACK}:{self.port}//"

    @classmethod
    def find_programs(cls) -> None:
        _find_rabbitmq_program()
        find_program("epmd", package="erlang-base")

    def prepare(self) -> None:
        # Given, so that the machine's own configuration is not read.
        (self._home / "rabbitmq.conf").write_text("log.console.level = info\n")
        for name in ("rabbitmq-env.conf", "enabled_plugins"):
            (self._home / name).touch()

    def command(self) -> list[str | Path]:
        if self._epmd is None or not self._epmd.is_running:
            epmd = find_program("epmd", package="erlang-base")
            self._epmd = self._spawn([epmd, "-address", LOOPBACK, "-port", str(self._epmd_port)], dict(os.environ))
        return [_find_rabbitmq_program()]

    def environment(self) -> dict[str, str]:
        return super().environment() | {
            "ERL_EPMD_ADDRESS": LOOPBACK,
            "ERL_EPMD_PORT": str(self._epmd_port),
            "RABBITMQ_NODENAME": f"dagabaaz{self.port}@localhost",
            "RABBITMQ_NODE_IP_ADDRESS": LOOPBACK,
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_DIST_PORT": str(self._dist_port),
            "RABBITMQ_MNESIA_BASE": str(self._home / "mnesia"),
            "RABBITMQ_LOG_BASE": str(self._home / "log"),
            "RABBITMQ_LOGS": "-",
            "RABBITMQ_CONF_ENV_FILE": str(self._home / "rabbitmq-env.conf"),
            "RABBITMQ_CONFIG_FILE": str(self._home / "rabbitmq.conf"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self._home / "enabled_plugins"),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+S 2:2",
        }

    def answers(self) -> bool:
        try:
            with Connection(self.url, connect_timeout=2) as connection:
                connection.connect()
        except OSError:
            return False
        return True

    def close(self) -> None:
        super().close()
        if self._epmd is not None:
            self._epmd.end()
            self._epmd = None


class PrivatePgBouncer(PrivateServer):
    """PgBouncer in transaction mode in front of a PostgreSQL, named by its URL, which it neither starts nor ends.

    Each transaction gets the session that was idle for longest, so that two in a row rarely have the same.
    """

    name = "pgbouncer"
    user = "postgres"

    def __init__(self, behind: str) -> None:
        super().__init__()
        self._behind = make_url(behind)

    @property
    def url(self) -> str:
        return f"postgresql+psycopg://pooled@{LOOPBACK}:{self.port}/{self._behind.database}"

    @classmethod
    def find_programs(cls) -> None:
        find_program("pgbouncer", package="pgbouncer")

    def prepare(self) -> None:
        settings = {
            "listen_addr": LOOPBACK,
            "listen_port": self.port,
            "unix_socket_dir": "",
            "auth_type": "any",
            "pool_mode": "transaction",
            "server_round_robin": 1,
            "max_client_conn": 500,
            "default_pool_size": 20,
        }
        behind = {
            "host": self._behind.host,
            "port": self._behind.port or 5432,
            "user": self._behind.username,
            "password": self._behind.password,
        }
        lines = [
            "[databases]",
            f"* = {' '.join(f'{name}={value}' for name, value in behind.items() if value)}",
            "[pgbouncer]",
            *(f"{name} = {value}" for name, value in settings.items()),
        ]
        (self._home / "pgbouncer.ini").write_text("\n".join(lines) + "\n")

    def command(self) -> list[str | Path]:
        return [find_program("pgbouncer", package="pgbouncer"), self._home / "pgbouncer.ini"]

    def answers(self) -> bool:
        try:
            url = make_url(self.url).set(drivername="postgresql").render_as_string()
            with psycopg.connect(url, connect_timeout=2, prepare_threshold=None):
                return True
        except psycopg.OperationalError:
            return False


def find_program(name: str, *directories: Path, package: str) -> Path:
    """A program in one of the directories, on PATH, or where Debian keeps servers. Raises MissingProgram."""
    places = [*map(str, directories), os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin", "/sbin"]
    found = shutil.which(name, path=os.pathsep.join(places))
    if found is None:
        raise MissingProgram(f"{name} is not installed (Debian, Ubuntu: sudo apt install {package})")
    return Path(found)


def _find_postgres_program(name: str) -> Path:
    """From the newest release that is installed: Debian does not put these on PATH."""
    homes = Path("/usr/lib/postgresql").glob("*/bin")
    newest_first = sorted(homes, key=lambda home: float(home.parent.name), reverse=True)
    return find_program(name, *newest_first, package="postgresql")


def _find_rabbitmq_program() -> Path:
    """Debian's program on PATH is a wrapper that runs the machine's own node only; the real one is elsewhere."""
    return find_program("rabbitmq-server", Path("/usr/lib/rabbitmq/bin"), package="rabbitmq-server")


_picked: set[int] = set()


def pick_port() -> int:
    """A loopback port that nobody listens on, another one at each call."""
    while True:
        port = random.choice(_PORTS)
        if port in _picked:
            continue
        _picked.add(port)
        with socket.socket() as candidate, contextlib.suppress(OSError):
            candidate.bind((LOOPBACK, port))
            return port

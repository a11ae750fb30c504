"""The file in which the embedded broker keeps its messages, shared by every process of one machine.

Plain SQLite in WAL mode: publishing, taking and acknowledging a message are one short transaction each. A message that
is taken stays in the file, marked with its owner, until it is acknowledged. Owners are channels of kombu's connections.

An owner is alive while its process holds the lock on the owner's byte of a second file. The kernel drops that lock with
the process, however the process ends, so the messages of the dead are found at once, without a timeout that a long task
could outlive and without a heartbeat that a busy process could miss; nor can a reused process id be mistaken for its
predecessor. A process that is merely stopped keeps what it took.

SQLite connections do not survive a fork: they are closed before one and opened again on either side.
"""

import fcntl
import functools
import os
import secrets
import sqlite3
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic
from typing import Any, NamedTuple

from dagabaaz_celery.errors import ConfigurationError

#: Seconds that a transaction waits for the other processes' before it gives up.
BUSY_TIMEOUT = 10.0
#: Seconds between two looks for messages whose owner died.
RESCUE_INTERVAL = 1.0

SCHEMA_VERSION = 1
SCHEMA = f"""
CREATE TABLE IF NOT EXISTS message (
    id INTEGER PRIMARY KEY AUTOINCREMENT,  -- never used twice: a late acknowledgement hits nothing else
    queue TEXT NOT NULL,
    owner INTEGER,
    redelivered INTEGER NOT NULL DEFAULT 0,
    payload TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS message_ready ON message (queue, id) WHERE owner IS NULL;
CREATE INDEX IF NOT EXISTS message_owned ON message (owner) WHERE owner IS NOT NULL;
CREATE TABLE IF NOT EXISTS binding (
    exchange TEXT NOT NULL,
    queue TEXT NOT NULL,
    routing_key TEXT NOT NULL,
    pattern TEXT,
    PRIMARY KEY (exchange, queue, routing_key)
);
CREATE TABLE IF NOT EXISTS temporary_queue (
    queue TEXT NOT NULL,
    owner INTEGER NOT NULL,
    PRIMARY KEY (queue, owner)
);
PRAGMA user_version = {SCHEMA_VERSION};
"""
OLDEST_READY = "SELECT id, payload, redelivered FROM message WHERE queue = ? AND owner IS NULL ORDER BY id LIMIT 1"
SETUP_LOCK = 0  # the byte of the owners' file that is locked while the tables are made; owners begin at 1


class Binding(NamedTuple):
    """A queue bound to an exchange; ``pattern`` is the regular expression of a topic's routing key."""

    routing_key: str
    pattern: str | None
    queue: str


class TakenMessage(NamedTuple):
    """A message that its owner holds until it deletes or releases it."""

    id: int
    payload: str
    redelivered: bool


class MessageFile:
    """One file of messages. Thread-safe; get it from ``open_message_file``, so that a process has one for each path."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._mutex = threading.RLock()
        self._db: sqlite3.Connection | None = None
        self._owners_fd: int | None = None
        self._owners: set[int] = set()  # the living ones of this process
        self._next_rescue = 0.0

    # -- messages

    def put(self, queues: Iterable[str], payload: str) -> None:
        """Append a copy of the message to each of the queues."""
        with self._transaction() as db:
            db.executemany("INSERT INTO message (queue, payload) VALUES (?, ?)", [(queue, payload) for queue in queues])

    def take(self, queue: str, owner: int) -> TakenMessage | None:
        """Give the owner the oldest message of the queue that nobody owns."""
        with self._mutex:
            while owner in self._owners and (row := self._connect().execute(OLDEST_READY, (queue,)).fetchone()):
                if self._write("UPDATE message SET owner = ? WHERE id = ? AND owner IS NULL", owner, row[0]):
                    return TakenMessage(row[0], row[1], bool(row[2]))
        return None  # reading first lets an idle consumer look often without waiting for writers

    def delete(self, message_id: int, owner: int) -> None:
        """Forget a message that the owner holds; any other is left alone."""
        if owner in self._owners:
            self._write("DELETE FROM message WHERE id = ? AND owner = ?", message_id, owner)

    def release(self, message_ids: Iterable[int], owner: int) -> None:
        """Give messages that the owner holds back to their queues, in their old places."""
        if owner in self._owners:
            with self._transaction() as db:
                db.executemany(
                    "UPDATE message SET owner = NULL, redelivered = 1 WHERE id = ? AND owner = ?",
                    [(message_id, owner) for message_id in message_ids],
                )

    # -- owners

    def add_owner(self) -> int:
        """A new owner, alive until it is retired or this process ends."""
        with self._mutex:
            owner = 1 + secrets.randbits(48)
            fcntl.lockf(self._open_owners_file(), fcntl.LOCK_EX | fcntl.LOCK_NB, 1, owner)
            self._owners.add(owner)
            return owner

    def retire_owner(self, owner: int) -> None:
        """Give back what the owner holds: now, or by another process's rescue if the file is in trouble."""
        with self._mutex:
            if owner in self._owners:
                self._owners.remove(owner)
                fcntl.lockf(self._open_owners_file(), fcntl.LOCK_UN, 1, owner)
                self._release_all(owner)

    def rescue(self) -> None:
        """Give back what owners held that are dead, with their temporary queues; at most once a second."""
        if monotonic() < self._next_rescue:
            return
        with self._mutex:
            self._next_rescue = monotonic() + RESCUE_INTERVAL
            owners = self._read(
                "SELECT owner FROM message WHERE owner IS NOT NULL UNION SELECT owner FROM temporary_queue"
            )
            for (owner,) in owners:
                if owner not in self._owners and not self._is_alive_elsewhere(owner):
                    self._release_all(owner)

    def _is_alive_elsewhere(self, owner: int) -> bool:
        """Whether another process has the lock; asking for an owner of our own would drop ours."""
        fd = self._open_owners_file()
        try:
            fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, owner)
        except (BlockingIOError, PermissionError):
            return True
        fcntl.lockf(fd, fcntl.LOCK_UN, 1, owner)
        return False

    def _release_all(self, owner: int) -> None:
        with self._transaction() as db:
            db.execute("UPDATE message SET owner = NULL, redelivered = 1 WHERE owner = ?", (owner,))
            queues = db.execute("SELECT queue FROM temporary_queue WHERE owner = ?", (owner,)).fetchall()
            db.execute("DELETE FROM temporary_queue WHERE owner = ?", (owner,))
            for (queue,) in queues:
                if not db.execute("SELECT 1 FROM temporary_queue WHERE queue = ?", (queue,)).fetchone():
                    _delete_queue(db, queue)

    def _open_owners_file(self) -> int:
        """Open once for each process: closing any descriptor of the file would drop the process's locks on it."""
        if self._owners_fd is None:
            self._owners_fd = os.open(f"{self.path}-owners", os.O_RDWR | os.O_CREAT, 0o666)
        return self._owners_fd

    # -- queues

    def count(self, queue: str) -> int:
        """Messages of the queue that nobody owns."""
        ((ready,),) = self._read("SELECT count(*) FROM message WHERE queue = ? AND owner IS NULL", queue)
        return int(ready)

    def purge(self, queue: str) -> int:
        """Delete the messages of the queue that nobody owns; returns how many."""
        return self._write("DELETE FROM message WHERE queue = ? AND owner IS NULL", queue)

    def delete_queue(self, queue: str) -> None:
        """Delete the queue with its messages and bindings."""
        with self._transaction() as db:
            _delete_queue(db, queue)

    def join_temporary_queue(self, queue: str, owner: int) -> None:
        """Let the queue live only as long as an owner that joined it."""
        self._write("INSERT OR IGNORE INTO temporary_queue (queue, owner) VALUES (?, ?)", queue, owner)

    def bind(self, exchange: str, binding: Binding) -> None:
        self._write(
            "INSERT OR IGNORE INTO binding (exchange, routing_key, pattern, queue) VALUES (?, ?, ?, ?)",
            exchange,
            *binding,
        )

    def unbind(self, exchange: str, queue: str, routing_key: str) -> None:
        self._write(
            "DELETE FROM binding WHERE exchange = ? AND queue = ? AND routing_key = ?", exchange, queue, routing_key
        )

    def get_bindings(self, exchange: str) -> list[Binding]:
        rows = self._read("SELECT routing_key, pattern, queue FROM binding WHERE exchange = ?", exchange)
        return [Binding(*row) for row in rows]

    # -- the SQLite connection

    def open(self) -> None:
        """Open the file, which any other method does when needed, and make its tables if it is new.

        Raises ConfigurationError when it is not a file of messages, sqlite3.OperationalError when it cannot be opened.
        """
        with self._mutex:
            self._connect()

    def close(self) -> None:
        """Give the SQLite connection up until it is needed again; messages stay owned."""
        with self._mutex:
            if self._db is not None:
                self._db.close()
                self._db = None

    def _read(self, query: str, *parameters: object) -> list[tuple[Any, ...]]:
        with self._mutex:
            return self._connect().execute(query, parameters).fetchall()

    def _write(self, statement: str, *parameters: object) -> int:
        """Run one statement as a transaction of its own; returns how many rows it changed."""
        with self._mutex:
            return self._connect().execute(statement, parameters).rowcount

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._mutex:
            db = self._connect()
            try:
                db.execute("BEGIN IMMEDIATE")
                yield db
                db.execute("COMMIT")
            except BaseException:  # a signal handler may raise SystemExit here
                db.rollback()
                raise

    def _connect(self) -> sqlite3.Connection:
        if self._db is None:
            db = sqlite3.connect(self.path, timeout=BUSY_TIMEOUT, isolation_level=None, check_same_thread=False)
            try:
                self._prepare(db)
            except BaseException:
                db.close()
                raise
            self._db = db
        return self._db

    def _prepare(self, db: sqlite3.Connection) -> None:
        try:
            db.execute("PRAGMA synchronous = NORMAL")  # a power failure may lose the last commits, never the file
            if _get_schema_version(db) == 0:
                self._create_tables(db)
            version = _get_schema_version(db)
        except sqlite3.OperationalError:
            raise  # it is busy or away: whoever asks may try again
        except sqlite3.DatabaseError as error:
            raise ConfigurationError(
                f"{self.path} cannot be the embedded broker's file: {error}. "
                "Move the file away, or give the broker another directory."
            ) from error
        if version != SCHEMA_VERSION:
            raise ConfigurationError(
                f"{self.path} holds messages in format {version}, and this release reads format {SCHEMA_VERSION}. "
                "Stop every process that uses it and delete it, or give the broker another directory."
            )

    def _create_tables(self, db: sqlite3.Connection) -> None:
        fd = self._open_owners_file()
        fcntl.lockf(fd, fcntl.LOCK_EX, 1, SETUP_LOCK)  # switching to WAL does not wait for others by itself
        try:
            db.execute("PRAGMA journal_mode = WAL")
            db.executescript(SCHEMA)
        finally:
            fcntl.lockf(fd, fcntl.LOCK_UN, 1, SETUP_LOCK)

    # -- forks

    def prepare_fork(self) -> None:
        """Let no transaction be cut in two, and no connection be inherited."""
        self._mutex.acquire()
        self.close()

    def resume_in_parent(self) -> None:
        self._mutex.release()

    def resume_in_child(self) -> None:
        """Own nothing: the owners and their locks are the parent's."""
        if self._owners_fd is not None:
            os.close(self._owners_fd)
        self._owners_fd = None
        self._owners.clear()
        self._next_rescue = 0.0
        self._mutex.release()


def _get_schema_version(db: sqlite3.Connection) -> int:
    version: int = db.execute("PRAGMA user_version").fetchone()[0]
    return version


def _delete_queue(db: sqlite3.Connection, queue: str) -> None:
    db.execute("DELETE FROM message WHERE queue = ?", (queue,))
    db.execute("DELETE FROM binding WHERE queue = ?", (queue,))
    db.execute("DELETE FROM temporary_queue WHERE queue = ?", (queue,))


_files: dict[Path, MessageFile] = {}
_files_mutex = threading.Lock()


def open_message_file(path: Path) -> MessageFile:
    """The process's one object for the path: a second would drop the first one's locks. Opens nothing yet."""
    _watch_forks()
    path = path.resolve()
    with _files_mutex:
        return _files.setdefault(path, MessageFile(path))


@functools.cache
def _watch_forks() -> None:
    os.register_at_fork(before=_prepare_fork, after_in_parent=_resume_in_parent, after_in_child=_resume_in_child)


def _prepare_fork() -> None:
    _files_mutex.acquire()
    for file in _files.values():
        file.prepare_fork()


def _resume_in_parent() -> None:
    for file in _files.values():
        file.resume_in_parent()
    _files_mutex.release()


def _resume_in_child() -> None:
    for file in _files.values():
        file.resume_in_child()
    _files_mutex.release()

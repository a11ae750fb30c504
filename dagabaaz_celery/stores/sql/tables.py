"""The schema: one MetaData per prefix and database schema, and the two column types that databases disagree on.

Times are microseconds since 1970 by the database's clock, as BIGINT: every dialect adds and compares them alike.
Ids are time-ordered UUIDs (RFC 9562, version 7), 16 bytes where the database has no UUID type. Hot tables (task,
artifact) have no foreign keys: on InnoDB those take shared locks on run and node rows that deadlock.
"""

import os
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Dialect,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy.dialects import mysql, postgresql
from sqlalchemy.types import TypeDecorator, TypeEngine

from dagabaaz_celery.constants import RunStatus, TaskStatus

OPEN_TASK_STATUSES = (TaskStatus.PENDING, TaskStatus.QUEUED, TaskStatus.RUNNING)
OPEN_RUN_STATUSES = (RunStatus.PENDING, RunStatus.RUNNING)
NODE_STATUSES = ("blocked", "launching", "launched", "completed", "skipped", "filtered", "failed")
CLOSED_NODE_STATUSES = ("completed", "skipped", "filtered")
#: After a run's end, the times at which tasks of it run: what is open then undoes others, or is a finaliser's.
BUSY_EPILOGUES = ("rollback", "finalisers")


class _Clock:
    """Milliseconds and a counter within each, so that the ids of one process ascend."""

    def __init__(self) -> None:
        self._last = 0
        self.reset()

    def reset(self) -> None:
        """A forked child starts with a lock that nobody holds."""
        self._lock = threading.Lock()

    def tick(self) -> int:
        """48 bits of milliseconds, then 12 bits that count."""
        with self._lock:
            self._last = max(self._last + 1, (time.time_ns() // 1_000_000) << 12)
            return self._last


_ID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)
_clock = _Clock()
os.register_at_fork(after_in_child=_clock.reset)


def new_id() -> str:
    """A time-ordered UUID (RFC 9562, version 7): index pages fill in order, whichever process makes the id."""
    tick = f"{_clock.tick():015x}"
    tail = f"{(int.from_bytes(os.urandom(8), 'big') & (2**62 - 1)) | 2**63:016x}"
    return f"{tick[:8]}-{tick[8:12]}-7{tick[12:]}-{tail[:4]}-{tail[4:]}"


def first_id_at(moment: int) -> str:
    """The smallest id that ``new_id`` makes at a moment, microseconds since 1970; at a later one it makes greater ids.

    0 for a moment before 1970, and the last that there are for one after the year 10889.
    """
    tick = f"{min(max(moment // 1000, 0), 2**48 - 1):012x}"
    return f"{tick[:8]}-{tick[8:]}-7000-8000-000000000000"


def is_id(value: object) -> bool:
    """Whether a value is an id as ``new_id`` writes it."""
    return isinstance(value, str) and _ID.fullmatch(value) is not None


class Id(TypeDecorator[str]):
    """A UUID, a canonical string in Python."""

    impl = LargeBinary(16)
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """The database's own type: uuid, BINARY(16), or a 16-byte blob."""
        if dialect.name == "postgresql":
            return dialect.type_descriptor(postgresql.UUID(as_uuid=False))
        if dialect.name in ("mysql", "mariadb"):
            return dialect.type_descriptor(mysql.BINARY(16))
        return dialect.type_descriptor(LargeBinary(16))

    def bind_processor(self, dialect: Dialect) -> Callable[[str | None], Any] | None:
        """Canonical string to what the driver takes: text on PostgreSQL, bytes elsewhere."""
        return super().bind_processor(dialect) if dialect.name == "postgresql" else _to_bytes

    def result_processor(self, dialect: Dialect, coltype: object) -> Callable[[Any], str | None] | None:
        """What the driver gives to a canonical string."""
        return super().result_processor(dialect, coltype) if dialect.name == "postgresql" else _from_bytes


def _to_bytes(value: str | None) -> bytes | None:
    return None if value is None else bytes.fromhex(value.replace("-", ""))


def _from_bytes(value: bytes | None) -> str | None:
    if value is None:
        return None
    digits = value.hex()
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


#: JSON kept as text: the text that was checked at the door is the text that is stored.
JsonText = Text().with_variant(mysql.LONGTEXT(), "mysql", "mariadb")


@dataclass(frozen=True)
class Tables:
    """The tables of one store."""

    metadata: MetaData
    prefix: str
    store: Table
    definition: Table
    pipeline: Table
    run: Table
    tag: Table
    node: Table
    task: Table
    attempt: Table
    artifact: Table
    owed: Table
    worker: Table


def _one_of(column: str, values: tuple[str, ...]) -> str:
    return f"{column} IN ({', '.join(repr(str(value)) for value in values)})"


@lru_cache(maxsize=8)
def build_tables(prefix: str = "dagabaaz_", schema: str | None = None) -> Tables:
    """The tables under a prefix and in a database schema (None: the connection's default)."""
    metadata = MetaData(schema=schema)

    def table(name: str, *parts: Any) -> Table:
        return Table(f"{prefix}{name}", metadata, *parts, mysql_engine="InnoDB", mysql_collate="utf8mb4_bin")

    def name(constraint: str) -> str:
        return f"{prefix}{constraint}"

    open_tasks = text(_one_of("status", OPEN_TASK_STATUSES))
    busy, limited = text("epilogue IS NOT NULL"), text("deadline_at IS NOT NULL")
    pruned, unused = text("prune_due_at IS NOT NULL"), text("unused_since IS NOT NULL")
    delayed = text(f"status = '{TaskStatus.PENDING}' AND not_before IS NOT NULL")
    return Tables(
        metadata=metadata,
        prefix=prefix,
        store=table("store", Column("id", Id, primary_key=True), Column("created_at", BigInteger, nullable=False)),
        definition=table(
            "definition",
            Column("hash", String(64), primary_key=True),
            Column("body", JsonText, nullable=False),
            Column("created_at", BigInteger, nullable=False),
            # Since when nothing is known to refer to it; null: something does, or nobody has looked.
            Column("unused_since", BigInteger),
            Index(name("definition_unused"), "unused_since", postgresql_where=unused, sqlite_where=unused),
        ),
        pipeline=table(
            "pipeline",
            Column("name", String(200), primary_key=True),
            Column("version", Integer, primary_key=True, autoincrement=False),
            Column("definition_hash", String(64), nullable=False),
            Column("created_at", BigInteger, nullable=False),
        ),
        run=table(
            "run",
            Column("id", Id, primary_key=True),
            Column("pipeline", String(200), nullable=False),
            Column("version", Integer),
            Column("definition_hash", String(64), nullable=False),
            Column("run_key", String(200)),
            Column("input", JsonText, nullable=False),
            Column("options", JsonText, nullable=False),
            Column("status", String(16), nullable=False),
            Column("paused", Boolean, nullable=False, default=False),
            Column("generation", Integer, nullable=False),
            Column("nodes_total", Integer, nullable=False),
            Column("nodes_done", Integer, nullable=False),
            Column("error", JsonText),
            Column("rollback_status", String(16), nullable=False),
            Column("created_at", BigInteger, nullable=False),
            Column("ended_at", BigInteger),
            # What goes on after the end: waiting, rollback or finalisers. Null: nothing.
            Column("epilogue", String(16)),
            # Microseconds that the run may take, and when they are over; none once it has ended.
            Column("timeout", BigInteger),
            Column("deadline_at", BigInteger),
            # When retention gave the run up, and when it is to be looked at next for that: null for all others.
            Column("pruned_at", BigInteger),
            Column("prune_due_at", BigInteger),
            UniqueConstraint("pipeline", "run_key", name=name("run_key")),
            CheckConstraint(_one_of("status", tuple(RunStatus)), name=name("run_status")),
            CheckConstraint("nodes_done BETWEEN 0 AND nodes_total", name=name("run_nodes_done")),
            Index(name("run_of_status"), "status", "id"),
            Index(name("run_of_pipeline"), "pipeline", "id"),
            Index(name("run_in_epilogue"), "epilogue", "id", postgresql_where=busy, sqlite_where=busy),
            Index(name("run_deadline"), "deadline_at", postgresql_where=limited, sqlite_where=limited),
            Index(name("run_to_prune"), "status", "pruned_at", "ended_at"),
            Index(name("run_prune_due"), "prune_due_at", postgresql_where=pruned, sqlite_where=pruned),
            Index(name("run_of_definition"), "definition_hash"),
        ),
        tag=table(
            "tag",
            Column("run_id", Id, primary_key=True),
            Column("name", String(100), primary_key=True),
            Column("value", String(200), nullable=False),
            Index(name("tag_of_runs"), "name", "value", "run_id"),
        ),
        node=table(
            "node",
            Column("run_id", Id, primary_key=True),
            Column("node_index", Integer, primary_key=True, autoincrement=False),
            Column("status", String(16), nullable=False),
            Column("tasks_total", Integer, nullable=False),
            Column("tasks_done", Integer, nullable=False),
            Column("launch_cursor", Integer, nullable=False),
            Column("opened_at", BigInteger),
            Column("closed_at", BigInteger),
            CheckConstraint(_one_of("status", NODE_STATUSES), name=name("node_status")),
            CheckConstraint("tasks_done BETWEEN 0 AND tasks_total", name=name("node_tasks_done")),
        ),
        task=table(
            "task",
            Column("id", Id, primary_key=True),
            Column("run_id", Id, nullable=False),
            Column("node_index", Integer, nullable=False),
            Column("ordinal", Integer, nullable=False),
            Column("status", String(16), nullable=False),
            Column("attempt_id", Id, nullable=False),
            Column("number", Integer, nullable=False),
            Column("retries", Integer, nullable=False),
            Column("recoveries", Integer, nullable=False),
            Column("input_artifact_id", Id),
            Column("origin_artifact_id", Id),
            Column("claim_token", Id),
            Column("worker_id", Id),
            Column("claimed_at", BigInteger),
            Column("not_before", BigInteger),
            Column("lease_until", BigInteger),
            Column("queue", String(255)),
            Column("queued_at", BigInteger),
            Column("resends", Integer, nullable=False),
            Column("ended_at", BigInteger),
            Column("result_shape", String(8)),
            Column("progress_done", BigInteger),
            Column("progress_total", BigInteger),
            # Microseconds that an attempt may run.
            Column("timeout", BigInteger),
            Column("error", JsonText),
            UniqueConstraint("attempt_id", name=name("task_attempt")),
            CheckConstraint(_one_of("status", tuple(TaskStatus)), name=name("task_status")),
            Index(name("task_by_node"), "run_id", "node_index", "ordinal"),
            # Whole on SQLite, which does not see that one of these statuses is one of them.
            Index(name("task_open"), "status", "run_id", "not_before", postgresql_where=open_tasks),
            Index(name("task_delayed"), "status", "not_before", postgresql_where=delayed, sqlite_where=delayed),
        ),
        attempt=table(
            "attempt",
            Column("attempt_id", Id, primary_key=True),
            Column("task_id", Id, nullable=False),
            Column("run_id", Id, nullable=False),
            Column("number", Integer, nullable=False),
            Column("status", String(16), nullable=False),
            Column("claim_token", Id),
            Column("worker_id", Id),
            Column("claimed_at", BigInteger),
            Column("ended_at", BigInteger, nullable=False),
            Column("reason", JsonText, nullable=False),
            Index(name("attempt_by_task"), "run_id", "task_id"),
        ),
        artifact=table(
            "artifact",
            Column("id", Id, primary_key=True),
            Column("run_id", Id, nullable=False),
            Column("node_index", Integer, nullable=False),
            Column("task_id", Id, nullable=False),
            Column("task_ordinal", Integer, nullable=False),
            Column("ordinal", Integer, nullable=False),
            Column("shape", String(8), nullable=False),
            Column("file_path", Text),
            Column("file_name", Text),
            Column("file_size", BigInteger),
            Column("mime_type", String(255)),
            Column("metadata", JsonText, nullable=False),
            Column("origin_artifact_id", Id),
            Index(name("artifact_by_origin"), "run_id", "node_index", "origin_artifact_id"),
        ),
        owed=table(
            "owed",
            Column("id", Id, primary_key=True),
            Column("run_id", Id, nullable=False),
            Column("kind", String(16), nullable=False),
            Column("generation", Integer, nullable=False),
            Column("node_index", Integer, nullable=False),
            Column("status", String(16), nullable=False),
            Column("tries", Integer, nullable=False),
            Column("due_at", BigInteger, nullable=False),
            UniqueConstraint("run_id", "kind", "generation", "node_index", name=name("owed_once")),
            Index(name("owed_due"), "due_at"),
        ),
        worker=table(
            "worker",
            Column("id", Id, primary_key=True),
            Column("hostname", String(255), nullable=False),
            Column("pid", Integer, nullable=False),
            Column("version", String(64), nullable=False),
            Column("beat", BigInteger, nullable=False),
            Column("queues", JsonText, nullable=False),
            Column("plugins", JsonText, nullable=False),
            Column("holding", JsonText, nullable=False),
            Column("started_at", BigInteger, nullable=False),
            Column("seen_at", BigInteger, nullable=False),
        ),
    )

"""What is asked of the store's database, once, before any check looks at it. Nothing is changed."""

import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Select, func, not_, or_, select

from dagabaaz_celery.constants import RunStatus, TaskStatus
from dagabaaz_celery.doctor.connection_limits import Limit, ask_limits
from dagabaaz_celery.pipeline import Definition
from dagabaaz_celery.stores.sql.dialects import now
from dagabaaz_celery.stores.sql.engines import describe_url
from dagabaaz_celery.stores.sql.owed import WorkerRow
from dagabaaz_celery.stores.sql.records import CARRIED
from dagabaaz_celery.stores.sql.schema import Migrations, SchemaState
from dagabaaz_celery.stores.sql.store import SqlStore
from dagabaaz_celery.stores.sql.tables import OPEN_RUN_STATUSES, Tables
from dagabaaz_celery.stores.sql.transaction import MICROSECONDS

#: Definitions of open runs, and saved pipelines, that are looked at.
_MAX_DEFINITIONS = 200
#: Of the runs of one definition, those whose options are looked at.
_MAX_OPTIONS = 50
#: The latest rows that tell how long bodies take, and whether files are passed.
_LATEST = 1000
#: Seconds after which what should be published at once is overdue.
_OVERDUE = 60
#: Times that a callback was called in vain.
_MANY_TRIES = 5


@dataclass(frozen=True)
class SeenWorker:
    """A worker of the store: its row, the seconds since its last heartbeat, and how many tasks it runs."""

    row: WorkerRow
    silent_for: float
    running: int


@dataclass(frozen=True)
class Backlog:
    """Tasks that wait in a queue, and for how many seconds the first of them has."""

    queue: str
    tasks: int
    oldest: float


@dataclass(frozen=True)
class Contents:
    """What the tables hold, as far as a check wants it. Times are seconds."""

    store_id: str | None = None
    workers: list[SeenWorker] = field(default_factory=list)
    #: Latest versions of saved pipelines.
    saved: list[Definition] = field(default_factory=list)
    #: What open runs were started from, each with the options that they were started with.
    running: list[tuple[Definition, dict[str, Any]]] = field(default_factory=list)
    backlogs: list[Backlog] = field(default_factory=list)
    #: Tasks that should have been published, and were not.
    overdue: int = 0
    #: Callbacks that raise again and again.
    failing_callbacks: int = 0
    #: Whether one of the latest artifacts is a file.
    passes_files: bool = False
    #: The longest of the latest bodies, and where it ran.
    longest_body: float | None = None
    longest_body_of: str = ""


@dataclass(frozen=True)
class StoreFacts:
    """The database and, where its tables are ours, what they hold."""

    dialect: str
    where: str
    schema: SchemaState
    #: Seconds by which the database's clock is ahead of ours, and how exactly that is known.
    clock_ahead: float = 0.0
    clock_doubt: float = 0.0
    limits: list[Limit] = field(default_factory=list)
    #: Why limits are not known.
    limits_unknown: str = ""
    contents: Contents | None = None
    #: Whether the app has connections of its own to it.
    is_shared: bool = False


def look_at_store(store: SqlStore) -> StoreFacts:
    """Ask everything. Raises DagabaazError and what the database's driver raises."""
    migrations = Migrations(store.database, store.tables)
    dialect = store.database.url.get_backend_name()
    where = describe_url(store.database.url)
    if dialect == "sqlite":
        path = Path(str(store.database.url.database))
        if path.parent.is_dir() and not path.exists():  # to look would make it
            nothing = SchemaState(None, migrations.head, fits=False, is_newer=False)
            return StoreFacts(dialect, where, nothing, contents=Contents())
    schema = migrations.look()
    with store.database.read() as connection:  # not the store's own, which would refuse its schema, or change it
        ahead, doubt = _compare_clocks(connection)
    limits, unknown = ask_limits(store, dialect)
    contents = _read_contents(store) if schema.fits else Contents() if schema.current is None else None
    is_shared = store.shared is not None
    return StoreFacts(dialect, where, schema, ahead, doubt, limits, unknown, contents, is_shared)


def _compare_clocks(connection: Connection) -> tuple[float, float]:
    connection.execute(select(now()))  # what is built and sent only the first time is not counted
    before = time.time()
    theirs: int = connection.execute(select(now())).scalar_one()
    after = time.time()
    return theirs / MICROSECONDS - (before + after) / 2, (after - before) / 2


# -- the tables


def _read_contents(store: SqlStore) -> Contents:
    tables = store.tables
    with store.read() as connection:
        store_id = connection.execute(select(tables.store.c.id)).scalar_one_or_none()
        workers = _list_workers(connection, store)
        saved = _list_saved(connection, store)
        running = _list_running(connection, store)
        backlogs = _list_backlogs(connection, tables)
        overdue = connection.execute(_count_overdue(tables)).scalar_one()
        failing = connection.execute(_count_failing_callbacks(tables)).scalar_one()
        passes_files = connection.execute(_count_files(tables)).scalar_one() > 0
        longest, longest_of = _find_longest_body(connection, store)
    return Contents(
        store_id=store_id,
        workers=workers,
        saved=saved,
        running=running,
        backlogs=backlogs,
        overdue=overdue,
        failing_callbacks=failing,
        passes_files=passes_files,
        longest_body=longest,
        longest_body_of=longest_of,
    )


def _list_workers(connection: Connection, store: SqlStore) -> list[SeenWorker]:
    worker, task = store.tables.worker, store.tables.task
    ages = dict(_pairs(connection, select(worker.c.id, now() - worker.c.seen_at)))
    busy = dict(
        _pairs(
            connection,
            select(task.c.worker_id, func.count())
            .where(task.c.status == TaskStatus.RUNNING, task.c.worker_id.is_not(None))
            .group_by(task.c.worker_id),
        )
    )
    return [
        SeenWorker(row, ages.get(row.id, 0) / MICROSECONDS, busy.get(row.id, 0))
        for row in store.rows.workers.list_all(connection)
    ]


def _pairs(connection: Connection, statement: Select[Any]) -> list[tuple[Any, Any]]:
    return [(row[0], row[1]) for row in connection.execute(statement)]


def _list_saved(connection: Connection, store: SqlStore) -> list[Definition]:
    found = []
    for name in sorted(store.rows.pipelines.list_names(connection))[:_MAX_DEFINITIONS]:
        latest = store.rows.pipelines.get(connection, name, None)
        if latest is not None:
            found.append(Definition.from_json(latest[1]))
    return found


def _list_running(connection: Connection, store: SqlStore) -> list[tuple[Definition, dict[str, Any]]]:
    run = store.tables.run
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for condition in (run.c.status.in_(OPEN_RUN_STATUSES), run.c.epilogue.is_not(None)):  # each has an index
        hashes = select(run.c.definition_hash).where(condition).distinct().limit(_MAX_DEFINITIONS)
        for digest in connection.execute(hashes).scalars().all():
            of_hash = select(run.c.options).where(condition, run.c.definition_hash == digest).distinct()
            for text in connection.execute(of_hash.limit(_MAX_OPTIONS)).scalars():
                # What travels for observers is another for each run, and no option of Celery's.
                options = {name: value for name, value in json.loads(text).items() if name != CARRIED}
                found[digest, json.dumps(options, sort_keys=True)] = options
    return [(store.definitions.get(connection, digest).definition, options) for (digest, _), options in found.items()]


def _list_backlogs(connection: Connection, tables: Tables) -> list[Backlog]:
    task = tables.task
    rows = connection.execute(
        select(task.c.queue, func.count(), now() - func.min(task.c.queued_at))
        .where(task.c.status == TaskStatus.QUEUED, task.c.queue.is_not(None))
        .group_by(task.c.queue)
    )
    return [Backlog(queue, count, (age or 0) / MICROSECONDS) for queue, count, age in rows]


def _count_overdue(tables: Tables) -> Select[Any]:
    """Owed to the queue, in runs that go on, and leased by nobody for a while."""
    task, run = tables.task, tables.run
    long_ago = now() - _OVERDUE * MICROSECONDS
    return (
        select(func.count())
        .select_from(task)
        .join(run, run.c.id == task.c.run_id)
        .where(
            task.c.status == TaskStatus.PENDING,
            or_(task.c.not_before.is_(None), task.c.not_before < long_ago),
            or_(task.c.lease_until.is_(None), task.c.lease_until < long_ago),
            run.c.status == RunStatus.RUNNING,
            not_(run.c.paused),
            run.c.created_at < long_ago,
        )
    )


def _count_failing_callbacks(tables: Tables) -> Select[Any]:
    owed = tables.owed
    return select(func.count()).select_from(owed).where(owed.c.kind == "callback", owed.c.tries >= _MANY_TRIES)


def _count_files(tables: Tables) -> Select[Any]:
    artifact = tables.artifact
    latest = select(artifact.c.file_path).order_by(artifact.c.id.desc()).limit(_LATEST).subquery()
    return select(func.count()).select_from(latest).where(latest.c.file_path.is_not(None))


def _find_longest_body(connection: Connection, store: SqlStore) -> tuple[float | None, str]:
    task, run = store.tables.task, store.tables.run
    latest = (
        select(task.c.run_id, task.c.node_index, (task.c.ended_at - task.c.claimed_at).label("took"), task.c.status)
        .order_by(task.c.id.desc())
        .limit(_LATEST)
        .subquery()
    )
    row = connection.execute(
        select(latest.c.took, run.c.definition_hash, latest.c.node_index)
        .join(run, run.c.id == latest.c.run_id)
        .where(latest.c.status == TaskStatus.COMPLETED, latest.c.took.is_not(None))
        .order_by(latest.c.took.desc())
        .limit(1)
    ).first()
    if row is None:
        return None, ""
    definition = store.definitions.get(connection, row[1]).definition
    return row[0] / MICROSECONDS, f"node {definition.node_of(row[2]).slug!r} of pipeline {definition.name!r}"

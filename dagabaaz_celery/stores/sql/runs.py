"""Statements on runs and definitions, built once for a store."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Connection,
    Insert,
    Select,
    Table,
    bindparam,
    func,
    insert,
    literal,
    not_,
    select,
    update,
)
from sqlalchemy.exc import IntegrityError

from dagabaaz_celery.constants import RunStatus
from dagabaaz_celery.stores.sql.dialects import is_one_of, now, prefer_index
from dagabaaz_celery.stores.sql.direct import Answer, Direct, savepoint
from dagabaaz_celery.stores.sql.records import Epilogue, RollbackStatus, RunRow
from dagabaaz_celery.stores.sql.tables import OPEN_RUN_STATUSES, OPEN_TASK_STATUSES, Tables, first_id_at
from dagabaaz_celery.stores.sql.tasks import select_first_open

#: An id has the time of the process that made it, a run's row that of the database: microseconds that may be between.
_CLOCK_SKEW = 3600 * 1_000_000


#: What a new run has, beside its times; the rest of its row is null.
_NEW_COLUMNS = (
    *("id", "pipeline", "version", "definition_hash", "run_key", "input", "options", "status", "paused"),
    *("generation", "nodes_total", "nodes_done", "rollback_status"),
)


class RunRows:
    """Runs and the definitions they were started from."""

    def __init__(self, tables: Tables) -> None:
        run, definition = tables.run, tables.definition
        self._columns = list_run_columns(run)
        self._tables = tables
        by_id = run.c.id == bindparam("b_run")
        found = select(*self._columns)
        self._select, self._lock = Direct(found.where(by_id)), Direct(found.where(by_id).with_for_update())
        has_key = (run.c.pipeline == bindparam("b_pipeline"), run.c.run_key == bindparam("b_key"))
        self._by_key = Direct(found.where(*has_key).with_for_update())
        self._input = Direct(select(run.c.input).where(by_id))
        timeout = bindparam("b_timeout", type_=BigInteger())
        new = insert(run).values(created_at=now(), timeout=timeout, deadline_at=now() + timeout)
        self._insert = Direct(new, columns=_NEW_COLUMNS)
        self._insert_definition = insert(definition).values(created_at=now())
        by_hash = definition.c.hash == bindparam("b_hash")
        self._definition = select(definition.c.body).where(by_hash)
        self._unused_since = Direct(select(definition.c.unused_since).where(by_hash))
        self._use_again = update(definition).where(by_hash).values(unused_since=None)
        self._end = Direct(
            update(run)
            .where(by_id, is_one_of(run.c.status, OPEN_RUN_STATUSES))
            .values(
                status=bindparam("b_status"),
                error=bindparam("b_error"),
                ended_at=now(),
                deadline_at=None,
                epilogue=bindparam("b_epilogue"),
                rollback_status=bindparam("b_rollback"),
            )
        )
        self._set_epilogue = (
            update(run).where(by_id).values(epilogue=bindparam("b_epilogue"), rollback_status=bindparam("b_rollback"))
        )
        self._overdue = (
            select(run.c.id)
            .where(run.c.deadline_at <= now(), run.c.status.in_(OPEN_RUN_STATUSES))
            .limit(bindparam("b_limit"))
        )
        self._explain = (
            update(run)
            .where(by_id, run.c.status == RunStatus.FAILED, run.c.error.is_(None))
            .values(error=bindparam("b_error"))
        )
        self._set_options = update(run).where(by_id).values(options=bindparam("b_options"))
        self._progress = Direct(update(run).where(by_id).values(nodes_done=bindparam("b_done")))
        self._pause = update(run).where(by_id, run.c.status.in_(OPEN_RUN_STATUSES)).values(paused=bindparam("b_paused"))
        self._reopen = (
            update(run)
            .where(by_id, run.c.status.not_in(OPEN_RUN_STATUSES))
            .values(
                status=RunStatus.RUNNING,
                generation=run.c.generation + 1,
                error=None,
                ended_at=None,
                paused=literal(False),
                deadline_at=now() + run.c.timeout,
                epilogue=None,
                rollback_status="none",
            )
        )
        task = tables.task
        self._is_overdue = select(run.c.id).where(by_id, run.c.deadline_at <= now())
        self._stalled = (
            select(run.c.id)
            .where(
                run.c.status == RunStatus.RUNNING,
                not_(run.c.paused),
                *(select_first_open(task, run, task.c.status == each).is_(None) for each in OPEN_TASK_STATUSES),
            )
            .limit(bindparam("b_limit"))
        )

    def insert(self, connection: Connection, values: Mapping[str, Any]) -> None:
        """Insert a run. Whoever asks next may be told, by IntegrityError, that its id or key is taken."""
        self._insert.later(connection, values)

    def get(self, connection: Connection, run_id: str) -> RunRow | None:
        """The run, read without a lock."""
        return to_run_or_none(self.ask(connection, run_id).first())

    def ask(self, connection: Connection, run_id: str) -> Answer:
        """The same, asked for with the next statement, for ``to_run_or_none``."""
        return self._select.ask(connection, {"b_run": run_id})

    def lock(self, connection: Connection, run_id: str) -> RunRow | None:
        """The run as committed now, locked until the end of the transaction."""
        return to_run_or_none(self.ask_lock(connection, run_id).first())

    def ask_lock(self, connection: Connection, run_id: str) -> Answer:
        """The same, asked for with the next statement: what ``to_run`` takes."""
        return self._lock.ask(connection, {"b_run": run_id})

    def ask_lock_by_key(self, connection: Connection, pipeline: str, key: str) -> Answer:
        """The run of a pipeline with this key, locked; asked for with the next statement, for ``to_run_or_none``."""
        return self._by_key.ask(connection, {"b_pipeline": pipeline, "b_key": key})

    def get_input_text(self, connection: Connection, run_id: str) -> str:
        """The run's input, canonical JSON."""
        return str(self._input.one(connection, {"b_run": run_id})[0])

    def ask_unused_since(self, connection: Connection, digest: str) -> Answer:
        """Since when a definition is given up, asked for with the next statement, for ``ensure_definition``."""
        return self._unused_since.ask(connection, {"b_hash": digest})

    def ensure_definition(self, connection: Connection, digest: str, body: str, unused_since: Answer) -> None:
        """Store a definition unless it is there; one that was given up is in use again, and not deleted then."""
        found = unused_since.first()
        is_there = found is not None
        if found is not None and found[0] is not None:
            is_there = connection.execute(self._use_again, {"b_hash": digest}).rowcount == 1
        if not is_there:
            insert_or_nothing(connection, self._insert_definition, hash=digest, body=body)

    def get_definition_body(self, connection: Connection, digest: str) -> str | None:
        """A definition's JSON."""
        body: str | None = connection.execute(self._definition, {"b_hash": digest}).scalar_one_or_none()
        return body

    def try_end(
        self,
        connection: Connection,
        run_id: str,
        status: RunStatus,
        error: str | None,
        *,
        epilogue: Epilogue | None = None,
        rollback: RollbackStatus = "none",
    ) -> bool:
        """Move an open run to a terminal status; True if this call did. ``error`` is JSON text."""
        values = {"b_run": run_id, "b_status": status.value, "b_error": error}
        after = {"b_epilogue": epilogue, "b_rollback": rollback}
        return self._end.change(connection, {**values, **after}) == 1

    def set_epilogue(
        self, connection: Connection, run_id: str, epilogue: Epilogue | None, rollback: RollbackStatus
    ) -> None:
        """Record what goes on after the run's end."""
        connection.execute(self._set_epilogue, {"b_run": run_id, "b_epilogue": epilogue, "b_rollback": rollback})

    def set_options(self, connection: Connection, run_id: str, options: Mapping[str, Any]) -> None:
        """Replace a run's options."""
        connection.execute(self._set_options, {"b_run": run_id, "b_options": json.dumps(options)})

    def is_overdue(self, connection: Connection, run_id: str) -> bool:
        """Whether an open run's deadline has passed."""
        return connection.execute(self._is_overdue, {"b_run": run_id}).first() is not None

    def find_overdue(self, connection: Connection, limit: int) -> list[str]:
        """Open runs whose deadline has passed."""
        return list(connection.execute(self._overdue, {"b_limit": limit}).scalars())

    def explain_failure(self, connection: Connection, run_id: str, error: str) -> None:
        """Give a failed run its error if it has none. ``error`` is JSON text."""
        connection.execute(self._explain, {"b_run": run_id, "b_error": error})

    def set_nodes_done(self, connection: Connection, run_id: str, done: int) -> None:
        """Store how many nodes are closed."""
        self._progress.later(connection, {"b_run": run_id, "b_done": done})

    def try_set_paused(self, connection: Connection, run_id: str, paused: bool) -> bool:
        """Hold or release an open run; False when it is not open."""
        return connection.execute(self._pause, {"b_run": run_id, "b_paused": paused}).rowcount == 1

    def try_reopen(self, connection: Connection, run_id: str) -> bool:
        """Make a run that has ended run again, in the next generation."""
        return connection.execute(self._reopen, {"b_run": run_id}).rowcount == 1

    def find_stalled(self, connection: Connection, limit: int) -> list[str]:
        """Running runs that have no open task: something they were owed was lost, or their end is being committed."""
        return list(connection.execute(self._stalled, {"b_limit": limit}).scalars())

    def search(
        self,
        connection: Connection,
        *,
        pipeline: str | None,
        status: str | None,
        tags: Mapping[str, str],
        limit: int,
        before: str | None,
        created_since: int | None,
        created_before: int | None,
    ) -> list[RunRow]:
        """Runs, newest first; those that have all of the tags, and were made in the time, microseconds since 1970.

        Without those that retention has given up.
        """
        run = self._tables.run
        query, run_id = self._join_tags(select(*self._columns), tags)
        if status in OPEN_RUN_STATUSES:
            run_id = run.c.id  # few runs are open: SQLite begins with them, as others do by themselves
        query = query.where(run.c.pruned_at.is_(None)).order_by(run_id.desc()).limit(limit)
        if pipeline is not None:
            query = query.where(run.c.pipeline == pipeline)
        if status is not None:
            query = query.where(run.c.status == status)
        if pipeline is not None and status is not None:
            likely = "pipeline" if status == RunStatus.COMPLETED else "status"  # which of them leaves less to look at
            query = prefer_index(query, run, f"{run.name}_of_{likely}")
        if before is not None:
            query = query.where(run_id < before)
        # There is no index of times: ids ascend with them, so those of the time are read, and what is around them.
        if created_since is not None:
            query = query.where(run_id >= first_id_at(created_since - _CLOCK_SKEW), run.c.created_at >= created_since)
        if created_before is not None:
            query = query.where(run_id < first_id_at(created_before + _CLOCK_SKEW), run.c.created_at < created_before)
        return [to_run(row) for row in connection.execute(query)]

    def list_between(self, connection: Connection, first: str, last: str, limit: int) -> list[str]:
        """Ids of runs from one to another, both included, in order."""
        run = self._tables.run
        query = select(run.c.id).where(run.c.id >= first, run.c.id <= last).order_by(run.c.id).limit(limit)
        return list(connection.execute(query).scalars())

    def find_keys(self, connection: Connection, pipeline: str, keys: Sequence[str]) -> set[str]:
        """Those of these keys that runs of a pipeline have."""
        run = self._tables.run
        query = select(run.c.run_key).where(run.c.pipeline == pipeline, run.c.run_key.in_(keys))
        return set(connection.execute(query).scalars())

    def _join_tags(self, query: Select[Any], tags: Mapping[str, str]) -> tuple[Select[Any], ColumnElement[Any]]:
        """The query for runs with all of the tags, and the column in whose order it is read.

        It is that of a tag's index: a page of the runs with a common tag is read from there, and not sorted.
        """
        run, run_id = self._tables.run, self._tables.run.c.id
        for name, value in tags.items():
            tag = self._tables.tag.alias()
            query = query.join(tag, tag.c.run_id == run.c.id).where(tag.c.name == name, tag.c.value == value)
            run_id = tag.c.run_id
        return query, run_id


class PipelineRows:
    """Pipelines that users saved: name, version, and the definition it stands for."""

    def __init__(self, tables: Tables) -> None:
        pipeline, definition = tables.pipeline, tables.definition
        by_name = pipeline.c.name == bindparam("b_name")
        joined = (
            select(pipeline.c.version, definition.c.body)
            .join(definition, definition.c.hash == pipeline.c.definition_hash)
            .where(by_name)
        )
        self._latest = joined.order_by(pipeline.c.version.desc()).limit(1)
        self._exact = joined.where(pipeline.c.version == bindparam("b_version"))
        self._hash = select(pipeline.c.definition_hash).where(by_name, pipeline.c.version == bindparam("b_version"))
        self._insert = insert(pipeline).values(created_at=now())
        self._names = select(pipeline.c.name, func.max(pipeline.c.version)).group_by(pipeline.c.name)

    def get(self, connection: Connection, name: str, version: int | None) -> tuple[int, str] | None:
        """Version and definition JSON, of the latest version when none is given."""
        statement = self._latest if version is None else self._exact
        row = connection.execute(statement, {"b_name": name, "b_version": version}).first()
        return None if row is None else (row[0], row[1])

    def get_hash(self, connection: Connection, name: str, version: int) -> str | None:
        """The definition hash of one version."""
        digest: str | None = connection.execute(self._hash, {"b_name": name, "b_version": version}).scalar_one_or_none()
        return digest

    def insert_or_nothing(self, connection: Connection, name: str, version: int, digest: str) -> bool:
        """Add a version; False when it is there."""
        return insert_or_nothing(connection, self._insert, name=name, version=version, definition_hash=digest)

    def list_names(self, connection: Connection) -> dict[str, int]:
        """Every saved name with its latest version."""
        return {row[0]: row[1] for row in connection.execute(self._names)}


def insert_or_nothing(connection: Connection, statement: Insert, **values: Any) -> bool:
    """Insert a row in a savepoint; False when its key is taken, which leaves the transaction usable."""
    try:
        with savepoint(connection):
            connection.execute(statement, values)
    except IntegrityError:
        return False
    return True


def list_run_columns(run: Table) -> tuple[ColumnElement[Any], ...]:
    """What a RunRow is made of, in the order that ``to_run`` takes."""
    return (
        run.c.id,
        run.c.pipeline,
        run.c.version,
        run.c.definition_hash,
        run.c.run_key,
        run.c.status,
        run.c.paused,
        run.c.generation,
        run.c.nodes_total,
        run.c.nodes_done,
        run.c.error,
        run.c.options,
        run.c.created_at,
        run.c.ended_at,
        run.c.rollback_status,
        run.c.epilogue,
        run.c.timeout,
        run.c.pruned_at,
    )


def to_run(row: Sequence[Any]) -> RunRow:
    """A run's row as it was read."""
    (
        id_,
        pipeline,
        version,
        digest,
        key,
        status,
        paused,
        generation,
        total,
        done,
        error,
        options,
        created_at,
        ended_at,
        rollback_status,
        epilogue,
        timeout,
        pruned_at,
    ) = row
    return RunRow(
        id=id_,
        pipeline=pipeline,
        version=version,
        definition_hash=digest,
        key=key,
        status=RunStatus(status),
        paused=bool(paused),
        generation=generation,
        nodes_total=total,
        nodes_done=done,
        error=None if error is None else json.loads(error),
        options=json.loads(options),
        created_at=created_at,
        ended_at=ended_at,
        rollback_status=rollback_status,
        epilogue=epilogue,
        timeout=timeout,
        pruned_at=pruned_at,
    )


def to_run_or_none(row: Sequence[Any] | None) -> RunRow | None:
    """A run's row where there is one."""
    return None if row is None else to_run(row)

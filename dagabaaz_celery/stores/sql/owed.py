"""Statements on what is owed after commits, and on workers; built once for a store."""

import json
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, bindparam, delete, insert, select, update

from dagabaaz_celery.constants import RunStatus
from dagabaaz_celery.stores.sql.dialects import now
from dagabaaz_celery.stores.sql.direct import Direct
from dagabaaz_celery.stores.sql.records import Owed
from dagabaaz_celery.stores.sql.runs import insert_or_nothing
from dagabaaz_celery.stores.sql.tables import Tables


class OwedRows:
    """Callbacks, cancellations and unfinished launches: done at least once, then deleted."""

    def __init__(self, tables: Tables) -> None:
        owed = tables.owed
        columns = (
            owed.c.id,
            owed.c.run_id,
            owed.c.kind,
            owed.c.generation,
            owed.c.node_index,
            owed.c.status,
            owed.c.tries,
        )
        new = ("id", "run_id", "kind", "generation", "node_index", "status")
        self._insert = Direct(insert(owed).values(due_at=now() + bindparam("b_delay"), tries=0), columns=new)
        self._due = (
            select(*columns)
            .where(owed.c.due_at <= now(), owed.c.kind.in_(bindparam("b_kinds", expanding=True)))
            .order_by(owed.c.due_at)
            .limit(bindparam("b_limit"))
            .with_for_update(skip_locked=True)
        )
        by_id = owed.c.id == bindparam("b_id")
        self._lease = update(owed).where(by_id).values(due_at=now() + bindparam("b_delay"), tries=owed.c.tries + 1)
        self._extend = update(owed).where(by_id).values(due_at=now() + bindparam("b_delay"))
        self._delete = delete(owed).where(by_id)
        of_run = owed.c.run_id == bindparam("b_run")
        of_kinds = (of_run, owed.c.kind.in_(bindparam("b_kinds", expanding=True)))
        self._of_run = select(*columns).where(*of_kinds).order_by(owed.c.id)
        self._delete_kinds = delete(owed).where(*of_kinds)

    def insert(self, connection: Connection, owed: Owed, *, delay: int) -> None:
        """Owe something from ``delay`` microseconds on: until then the caller itself will do it."""
        self._insert.later(
            connection,
            {
                "id": owed.id,
                "run_id": owed.run_id,
                "kind": owed.kind,
                "generation": owed.generation,
                "node_index": owed.node_index,
                "status": owed.status.value,
                "b_delay": delay,
            },
        )

    def lease_due(self, connection: Connection, kinds: Sequence[str], *, limit: int, lease: int) -> list[Owed]:
        """Take what is due for ``lease`` microseconds."""
        due = connection.execute(self._due, {"b_limit": limit, "b_kinds": list(kinds)})
        found = [_to_owed(row) for row in due]
        for owed in found:
            connection.execute(self._lease, {"b_id": owed.id, "b_delay": lease})
        return found

    def postpone(self, connection: Connection, owed_id: str, delay: int) -> None:
        """Leave it for ``delay`` microseconds."""
        connection.execute(self._extend, {"b_id": owed_id, "b_delay": delay})

    def delete(self, connection: Connection, owed_id: str) -> None:
        """It is done."""
        connection.execute(self._delete, {"b_id": owed_id})

    def list_of_run(self, connection: Connection, run_id: str, kinds: Sequence[str]) -> list[Owed]:
        """What a run still owes, whoever is doing it."""
        return [_to_owed(row) for row in connection.execute(self._of_run, {"b_run": run_id, "b_kinds": list(kinds)})]

    def delete_of_run(self, connection: Connection, run_id: str, kinds: Sequence[str]) -> None:
        """What a retry makes void."""
        connection.execute(self._delete_kinds, {"b_run": run_id, "b_kinds": list(kinds)})


@dataclass(frozen=True, slots=True)
class WorkerRow:
    """A worker process as the store knows it.

    ``beat`` is a counter, not a time; ``holding`` are the ids of the messages that it has taken from the broker and
    not ended.
    """

    id: str
    hostname: str
    pid: int
    version: str
    beat: int
    queues: list[str]
    plugins: list[str]
    holding: list[str]


class WorkerRows:
    """Workers and their heartbeats."""

    def __init__(self, tables: Tables) -> None:
        worker = tables.worker
        by_id = worker.c.id == bindparam("b_id")
        self._insert = insert(worker).values(beat=0, started_at=now(), seen_at=now())
        self._beat = (
            update(worker)
            .where(by_id)
            .values(
                beat=worker.c.beat + 1,
                seen_at=now(),
                queues=bindparam("b_queues"),
                plugins=bindparam("b_plugins"),
                holding=bindparam("b_holding"),
            )
        )
        self._list = select(
            worker.c.id,
            worker.c.hostname,
            worker.c.pid,
            worker.c.version,
            worker.c.beat,
            worker.c.queues,
            worker.c.plugins,
            worker.c.holding,
        )
        self._delete = delete(worker).where(by_id)
        self._bury = self._delete.where(worker.c.beat == bindparam("b_beat"))

    def insert(self, connection: Connection, worker: WorkerRow) -> None:
        """Announce a worker; one that is announced already, by a commit whose answer was lost, stays as it is."""
        insert_or_nothing(
            connection,
            self._insert,
            id=worker.id,
            hostname=worker.hostname,
            pid=worker.pid,
            version=worker.version,
            queues=json.dumps(worker.queues),
            plugins=json.dumps(worker.plugins),
            holding=json.dumps(worker.holding),
        )

    def try_beat(self, connection: Connection, worker_id: str, **lists: Sequence[str]) -> bool:
        """Count one heartbeat; False when others took this worker for dead and removed it."""
        key = {"b_id": worker_id, **{f"b_{name}": json.dumps(list(items)) for name, items in lists.items()}}
        return connection.execute(self._beat, key).rowcount == 1

    def list_all(self, connection: Connection) -> list[WorkerRow]:
        """Every announced worker."""
        return [WorkerRow(*row[:5], *map(json.loads, row[5:])) for row in map(tuple, connection.execute(self._list))]

    def delete(self, connection: Connection, worker_id: str) -> None:
        """Forget a worker."""
        connection.execute(self._delete, {"b_id": worker_id})

    def try_bury(self, connection: Connection, worker_id: str, beat: int) -> bool:
        """Forget a worker that has not beaten since; whether this call did."""
        return connection.execute(self._bury, {"b_id": worker_id, "b_beat": beat}).rowcount == 1


def _to_owed(row: Sequence[object]) -> Owed:
    id_, run_id, kind, generation, node_index, status, tries = row
    return Owed(id_, run_id, kind, generation, node_index, RunStatus(str(status)), tries)  # type: ignore[arg-type]  # a row is untyped

"""Statements that delete old runs, built once for a store.

A run that is to go is marked first: from then on lists leave it out and nothing changes it any more. Then its rows go,
those that may be many in small transactions, and the run's own row comes last. Whoever is at it has the run leased, by
the time at which it is due again; if that process dies, another goes on where it stopped.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import BindParameter, ColumnElement, Connection, bindparam, delete, exists, func, not_, select, update

from dagabaaz_celery.stores.sql.dialects import now, read_by_index
from dagabaaz_celery.stores.sql.tables import Tables

#: Rows of a run that may be many, in the order in which they go: each kind before what it refers to.
Part = Literal["attempt", "artifact", "task"]
PARTS: tuple[Part, ...] = ("attempt", "artifact", "task")
#: Ids in one statement: a bound that every driver takes.
_CHUNK = 500
#: A limit that is none.
_ALL = 2**62
#: What no input begins with: that is JSON.
_FINGERPRINT = "sha256:"


def fingerprint(input_text: str) -> str:
    """What is kept of a deleted run's input, to tell a start with the same key and input from one with another."""
    return f"{_FINGERPRINT}{hashlib.sha256(input_text.encode()).hexdigest()}"


@dataclass(frozen=True, slots=True)
class Page:
    """Ids of some rows of a run; where the next page begins, None when there is none; files among them."""

    ids: list[str]
    next: Any
    files: list[str]


@dataclass(frozen=True, slots=True)
class OldRun:
    """A run that may go, with when it ended: microseconds by the database's clock."""

    id: str
    ended_at: int


@dataclass(frozen=True, slots=True)
class Emptied:
    """A run that was given up; ``is_key_only`` once nothing is left of it but what a start with its key asks for."""

    id: str
    status: str
    definition_hash: str
    has_key: bool
    is_key_only: bool
    pruned_at: int
    nodes: int


class PruneRows:
    """Runs that are old, and everything that belongs to them."""

    def __init__(self, tables: Tables) -> None:
        self._tables = tables
        self._parts = {part: _Part(tables, part) for part in PARTS}
        self._build_marking()
        self._build_ending()
        self._build_definitions()

    def _build_marking(self) -> None:
        run, owed = self._tables.run, self._tables.owed
        owes = exists().where(owed.c.run_id == run.c.id)
        old = select(run.c.id, run.c.ended_at).where(
            run.c.status == bindparam("b_status"),
            run.c.pruned_at.is_(None),
            run.c.ended_at >= bindparam("b_since"),
            run.c.ended_at <= now() - bindparam("b_age"),
            run.c.epilogue.is_(None),
            not_(owes),
        )
        # All of the first column are null: it is named for the databases that order by an index only from its start.
        old = read_by_index(old, run, f"{run.name}_to_prune", run.c.pruned_at).order_by(run.c.ended_at)
        self._old = {
            (undone_only, one_pipeline): old.where(
                *([run.c.rollback_status != "failed"] if undone_only else []),
                *([run.c.pipeline == bindparam("b_pipeline")] if one_pipeline else []),
            ).limit(bindparam("b_limit"))
            for undone_only in (True, False)
            for one_pipeline in (True, False)
        }
        ids: ColumnElement[bool] = run.c.id.in_(bindparam("b_ids", expanding=True))
        lease = now() + bindparam("b_lease")
        self._mark = update(run).where(ids, run.c.pruned_at.is_(None)).values(pruned_at=now(), prune_due_at=lease)
        self._due = (
            select(run.c.id)
            .where(run.c.prune_due_at <= now())
            .order_by(run.c.prune_due_at)
            .limit(bindparam("b_limit"))
            .with_for_update(skip_locked=True)
        )
        self._lease = update(run).where(ids, run.c.pruned_at.is_not(None)).values(prune_due_at=lease)

    def _build_ending(self) -> None:
        run, node, tag = self._tables.run, self._tables.node, self._tables.tag
        ids: BindParameter[Any] = bindparam("b_ids", expanding=True)
        self._emptied = select(
            run.c.id,
            run.c.status,
            run.c.definition_hash,
            run.c.run_key.is_not(None),
            run.c.input.like(f"{_FINGERPRINT}%"),
            run.c.pruned_at,
            run.c.nodes_total,
        ).where(run.c.id.in_(ids), run.c.pruned_at.is_not(None))
        # One run at a time: given a list of them, a planner may think that reading all rows costs less.
        self._delete_nodes = delete(node).where(node.c.run_id == bindparam("b_run"))
        self._delete_tags = delete(tag).where(tag.c.run_id == bindparam("b_run"))
        self._delete_runs = delete(run).where(run.c.id.in_(ids), run.c.pruned_at.is_not(None))
        by_id = run.c.id == bindparam("b_id")
        self._input = select(run.c.input).where(by_id)
        self._keep_key = (
            update(run)
            .where(by_id)
            .values(
                input=bindparam("b_input"),
                options="{}",
                error=None,
                prune_due_at=run.c.pruned_at + bindparam("b_keys"),
            )
        )

    def _build_definitions(self) -> None:
        definition, run, pipeline = self._tables.definition, self._tables.run, self._tables.pipeline
        hashes: BindParameter[Any] = bindparam("b_hashes", expanding=True)
        # The first hash from this one on, as no statistics make a database look for that in all runs.
        at_or_behind = select(run.c.definition_hash).where(run.c.definition_hash >= definition.c.hash)
        first = at_or_behind.order_by(run.c.definition_hash).limit(1).correlate(definition).scalar_subquery()
        of_run = func.coalesce(first, "") == definition.c.hash
        of_pipeline = exists().where(pipeline.c.definition_hash == definition.c.hash)
        self._unreferred = select(definition.c.hash).where(
            definition.c.hash.in_(hashes), not_(of_run), not_(of_pipeline)
        )
        self._give_up = (
            update(definition)
            .where(definition.c.hash.in_(hashes), definition.c.unused_since.is_(None))
            .values(unused_since=now())
        )
        self._unused = (
            select(definition.c.hash)
            .where(definition.c.unused_since <= now() - bindparam("b_grace"))
            .order_by(definition.c.unused_since)
            .limit(bindparam("b_limit"))
            .with_for_update(skip_locked=True)
        )
        self._use_again = update(definition).where(definition.c.hash.in_(hashes)).values(unused_since=None)
        self._delete_definitions = delete(definition).where(definition.c.hash.in_(hashes))

    # -- which runs

    def find_old(
        self,
        connection: Connection,
        status: str,
        *,
        age: int,
        limit: int,
        since: int = 0,
        pipeline: str | None = None,
        failed_rollbacks: bool = False,
        lock: bool = False,
    ) -> list[OldRun]:
        """Runs that ended in a status more than ``age`` microseconds ago and owe nothing, the oldest first.

        Only those that ended at ``since`` or later, a time of the database's. With ``lock`` those that others have
        locked are left out.
        """
        statement = self._old[not failed_rollbacks, pipeline is not None]
        if lock:
            statement = statement.with_for_update(skip_locked=True)
        key = {"b_status": status, "b_age": age, "b_since": since, "b_limit": limit}
        rows = connection.execute(statement, key if pipeline is None else {**key, "b_pipeline": pipeline})
        return [OldRun(*row) for row in rows]

    def count_old(
        self,
        connection: Connection,
        status: str,
        *,
        age: int,
        limit: int | None = None,
        pipeline: str | None = None,
        failed_rollbacks: bool = False,
    ) -> tuple[int, int, int, int]:
        """Those runs in numbers: themselves, their tasks, their artifacts, and the files among these."""
        node, artifact = self._tables.node, self._tables.artifact
        old = self._old[not failed_rollbacks, pipeline is not None].subquery()
        key = {"b_status": status, "b_age": age, "b_since": 0, "b_limit": _ALL if limit is None else limit}
        if pipeline is not None:
            key["b_pipeline"] = pipeline
        runs = connection.execute(select(func.count()).select_from(old), key).scalar_one()
        of_nodes = select(func.sum(node.c.launch_cursor)).select_from(old.join(node, node.c.run_id == old.c.id))
        of_artifacts = select(func.count(), func.count(artifact.c.file_path)).select_from(
            old.join(artifact, artifact.c.run_id == old.c.id)
        )
        artifacts, files = connection.execute(of_artifacts, key).one()
        return runs, int(connection.execute(of_nodes, key).scalar() or 0), artifacts, files

    def mark(self, connection: Connection, run_ids: Sequence[str], lease: int) -> None:
        """Give runs up, and have them for ``lease`` microseconds."""
        if run_ids:
            connection.execute(self._mark, {"b_ids": list(run_ids), "b_lease": lease})

    def take_due(self, connection: Connection, *, limit: int, lease: int) -> list[str]:
        """Runs that were given up and nobody is at, or whose keys have had their time; taken for ``lease`` micros."""
        found = list(connection.execute(self._due, {"b_limit": limit}).scalars())
        self.lease(connection, found, lease)
        return found

    def lease(self, connection: Connection, run_ids: Sequence[str], lease: int) -> None:
        """Have runs that were given up for ``lease`` microseconds from now on."""
        if run_ids:
            connection.execute(self._lease, {"b_ids": list(run_ids), "b_lease": lease})

    # -- their rows

    def read_page(self, connection: Connection, part: Part, run_id: str, begin: Any, limit: int) -> Page:
        """Some rows of a run, from where the page before ended; None: from the start."""
        return self._parts[part].read(connection, run_id, begin, limit)

    def delete_rows(self, connection: Connection, part: Part, ids: Sequence[str]) -> int:
        """Delete rows by their ids; how many there were."""
        statement = self._parts[part].delete
        return sum(connection.execute(statement, {"b_ids": chunk}).rowcount for chunk in _chunks(ids))

    # -- their end

    def list_emptied(self, connection: Connection, run_ids: Sequence[str]) -> list[Emptied]:
        """Those of these runs that are there and were given up."""
        rows = connection.execute(self._emptied, {"b_ids": list(run_ids)})
        return [
            Emptied(id_, status, digest, bool(has_key), bool(is_key_only), pruned_at, nodes)
            for id_, status, digest, has_key, is_key_only, pruned_at, nodes in rows
        ]

    def delete_nodes(self, connection: Connection, run_ids: Sequence[str]) -> None:
        """Delete the nodes and tags of runs."""
        for statement in (self._delete_nodes, self._delete_tags):
            connection.execute(statement, [{"b_run": run_id} for run_id in run_ids])

    def delete_runs(self, connection: Connection, run_ids: Sequence[str]) -> int:
        """Delete runs that were given up; how many were there."""
        return connection.execute(self._delete_runs, {"b_ids": list(run_ids)}).rowcount if run_ids else 0

    def keep_key(self, connection: Connection, run_id: str, keys: int) -> None:
        """Leave of a run what a start with its key asks for, until ``keys`` microseconds after it was given up."""
        text: str | None = connection.execute(self._input, {"b_id": run_id}).scalar_one_or_none()
        if text is not None:
            kept = text if text.startswith(_FINGERPRINT) else fingerprint(text)
            connection.execute(self._keep_key, {"b_id": run_id, "b_input": kept, "b_keys": keys})

    # -- definitions

    def give_up_definitions(self, connection: Connection, hashes: Sequence[str]) -> None:
        """Note since when no run refers to definitions, and no pipeline, where that is so."""
        unreferred = list(connection.execute(self._unreferred, {"b_hashes": list(hashes)}).scalars())
        if unreferred:
            connection.execute(self._give_up, {"b_hashes": unreferred})

    def delete_definitions(self, connection: Connection, *, grace: int, limit: int) -> int:
        """Delete definitions to which nothing has referred for ``grace`` microseconds; how many.

        That is longer than any start takes: one that had seen its definition in use has committed its run by now. A
        later one takes the note away, for which it waits until this transaction has ended.
        """
        unused = list(connection.execute(self._unused, {"b_grace": grace, "b_limit": limit}).scalars())
        if not unused:
            return 0
        unreferred = list(connection.execute(self._unreferred, {"b_hashes": unused}).scalars())
        if in_use := sorted(set(unused) - set(unreferred)):
            connection.execute(self._use_again, {"b_hashes": in_use})
        if not unreferred:
            return 0
        return connection.execute(self._delete_definitions, {"b_hashes": unreferred}).rowcount


class _Part:
    """One kind of rows of a run: pages in the order of an index, so that none reads what those before it deleted."""

    def __init__(self, tables: Tables, part: Part) -> None:
        table, index, by = {
            "attempt": (tables.attempt, "by_task", tables.attempt.c.task_id),
            "artifact": (tables.artifact, "by_origin", tables.artifact.c.node_index),
            "task": (tables.task, "by_node", tables.task.c.node_index),
        }[part]
        key = table.c.attempt_id if part == "attempt" else table.c.id
        files = [table.c.file_path] if part == "artifact" else []
        rows = select(key, by, *files).where(table.c.run_id == bindparam("b_run")).limit(bindparam("b_limit"))
        rows = read_by_index(rows, table, f"{table.name}_{index}", by)
        self._first = rows
        self._next = rows.where(by >= bindparam("b_begin"))
        self.delete = delete(table).where(key.in_(bindparam("b_ids", expanding=True)))

    def read(self, connection: Connection, run_id: str, begin: Any, limit: int) -> Page:
        key = {"b_run": run_id, "b_limit": limit}
        statement = self._first if begin is None else self._next
        rows = connection.execute(statement, key if begin is None else {**key, "b_begin": begin}).all()
        files = [row[2] for row in rows if len(row) > 2 and row[2] is not None]
        return Page([row[0] for row in rows], rows[-1][1] if len(rows) == limit else None, files)


def _chunks(ids: Sequence[str]) -> Iterator[list[str]]:
    return (list(ids[start : start + _CHUNK]) for start in range(0, len(ids), _CHUNK))

"""Completing a task and counting it at its node's barrier: what every task does, in as few round trips as can be.

Guard, artifacts and counter are one statement on PostgreSQL, two or three elsewhere. It may be told to leave alone what
would close its node: then nothing else is to be done, and on PostgreSQL that statement is the whole transaction. Locks
are taken in the order of every outcome, the task first and then its node.
"""

import json
from collections.abc import Callable, Sequence
from typing import Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Connection,
    Integer,
    Select,
    Text,
    bindparam,
    cast,
    column,
    func,
    insert,
    select,
    true,
    update,
)
from sqlalchemy.dialects.postgresql import JSON
from sqlalchemy.exc import OperationalError

from dagabaaz_celery.stores.sql.artifacts import ArtifactRows
from dagabaaz_celery.stores.sql.dialects import updates_two_tables, writes_in_queries
from dagabaaz_celery.stores.sql.direct import Answer, Direct
from dagabaaz_celery.stores.sql.nodes import NodeRows
from dagabaaz_celery.stores.sql.records import Attempt, NodeRow, RunRow
from dagabaaz_celery.stores.sql.runs import RunRows, list_run_columns, to_run
from dagabaaz_celery.stores.sql.tables import Id, Tables
from dagabaaz_celery.stores.sql.tasks import TaskRows, guard_outcome, list_completed_values

#: What an artifact has of its own; the rest it has from its task.
_OWN_COLUMNS: dict[str, Any] = {
    "id": Id(),
    "ordinal": Integer(),
    "shape": Text(),
    "file_path": Text(),
    "file_name": Text(),
    "file_size": BigInteger(),
    "mime_type": Text(),
    "metadata": Text(),
    "origin_artifact_id": Id(),
}
#: What a NodeRow has beside its index, in its fields' order.
_COUNTERS = ("status", "tasks_total", "tasks_done", "launch_cursor")
#: More artifacts, or more text in them, are written before the node is counted: others wait for who has counted it.
_FEW, _SHORT = 50, 100_000


def is_large(artifacts: Sequence[dict[str, Any]]) -> bool:
    """Whether the artifacts of a task take so long to write that no other task of its node is to wait for them."""
    return len(artifacts) > _FEW or sum(len(row["metadata"]) for row in artifacts) > _SHORT


class CompletionRows:
    """Completions of current attempts: of claimed ones by their claim, of tasks that have no claim while open."""

    def __init__(
        self, tables: Tables, tasks: TaskRows, artifacts: ArtifactRows, nodes: NodeRows, runs: RunRows
    ) -> None:
        self._tables = tables
        self._tasks, self._artifacts, self._nodes, self._runs = tasks, artifacts, nodes, runs
        # By whether the attempt is claimed, and whether it may close its node.
        cases = [(is_claimed, may_close) for is_claimed in (True, False) for may_close in (True, False)]
        self._in_one = {case: self._build_in_one(*case) for case in cases}
        self._of_both = {case: self._build_of_both(*case) for case in cases}

    def _at_barrier(self, task: Any, may_close: bool) -> list[ColumnElement[bool]]:
        node = self._tables.node
        of_task = [node.c.run_id == task.c.run_id, node.c.node_index == task.c.node_index]
        return of_task if may_close else [*of_task, node.c.tasks_done + 1 < node.c.tasks_total]

    def _build_in_one(self, is_claimed: bool, may_close: bool) -> Direct:
        """The task is locked, then counted at its node, and only what was counted is completed."""
        task, node, artifact = self._tables.task, self._tables.node, self._tables.artifact
        held = (
            select(task.c.id, task.c.run_id, task.c.node_index, task.c.ordinal)
            .where(*guard_outcome(task, is_claimed=is_claimed))
            .with_for_update()
            .cte("held")
        )
        counters = [node.c[name] for name in _COUNTERS]
        counted = (
            update(node)
            .where(*self._at_barrier(held, may_close))
            .values(tasks_done=node.c.tasks_done + 1)
            .returning(held.c.id, held.c.ordinal, node.c.run_id, node.c.node_index, *counters)
            .cte("counted")
        )
        completed = (
            update(task)
            .where(task.c.id == counted.c.id)
            .values(**list_completed_values())
            .returning(task.c.id)
            .cte("completed")
        )
        made = (
            func.json_to_recordset(cast(bindparam("b_artifacts", type_=Text()), JSON))
            .table_valued(*(column(name, type_) for name, type_ in _OWN_COLUMNS.items()))
            .render_derived("made", with_types=True)
        )
        of_task = {
            "run_id": counted.c.run_id,
            "node_index": counted.c.node_index,
            "task_id": counted.c.id,
            "task_ordinal": counted.c.ordinal,
        }
        rows = select(*of_task.values(), *(made.c[name] for name in _OWN_COLUMNS)).join_from(counted, made, true())
        inserted = insert(artifact).from_select([*of_task, *_OWN_COLUMNS], rows).returning(artifact.c.id)
        found = select(*(counted.c[counter.name] for counter in counters))
        found = found.join(completed, completed.c.id == counted.c.id).add_cte(inserted.cte("inserted"))
        return Direct(self._lock_run_of_last(found, counted) if may_close else found)

    def _lock_run_of_last(self, found: Select[Any], counted: Any) -> Select[Any]:
        """With the run's row, locked, where the task was the last of its node: what follows takes that lock anyway."""
        run = self._tables.run
        is_last = (run.c.id == counted.c.run_id, counted.c.tasks_done == counted.c.tasks_total)
        locked = select(*list_run_columns(run)).where(*is_last).with_for_update(of=run).cte("locked")
        return found.add_columns(*locked.c).outerjoin(locked, true())

    def _build_of_both(self, is_claimed: bool, may_close: bool) -> Direct:
        task, node = self._tables.task, self._tables.node
        values: dict[Any, Any] = {task.c[name]: value for name, value in list_completed_values().items()}
        values[node.c.tasks_done] = node.c.tasks_done + 1
        is_counted = (*guard_outcome(task, is_claimed=is_claimed), *self._at_barrier(task, may_close))
        return Direct(update(task).where(*is_counted).values(values))

    def try_complete(
        self,
        connection: Connection,
        attempt: Attempt,
        artifacts: Sequence[dict[str, Any]],
        shape: str,
        *,
        ask_ahead: Callable[[], object] | None = None,
    ) -> tuple[NodeRow, RunRow | None] | None:
        """Complete an attempt, with the rows of its artifacts, and count it at its node, which is returned.

        With it comes the run where it was locked by the way. None, with nothing written, where the attempt lost its
        guard. Where it is likely that the attempt closes its node, ``ask_ahead`` asks for what is read then: it is
        called after everything here was sent, or is waiting to be, the run's lock included.
        """
        if writes_in_queries(connection) and not is_large(artifacts):
            asked = self._ask_in_one(connection, attempt, artifacts, shape, may_close=True)
            if ask_ahead is not None:
                ask_ahead()
            row = asked.first()
            if row is None:
                return None
            counters, run = row[: len(_COUNTERS)], row[len(_COUNTERS) :]
            return NodeRow(attempt.node_index, *counters), None if run[0] is None else to_run(run)
        if updates_two_tables(connection) and not is_large(artifacts):
            return self._complete_both(connection, attempt, artifacts, shape, ask_ahead)
        if not self._tasks.try_complete(connection, attempt, shape):
            return None
        self._artifacts.insert(connection, artifacts)
        return self._nodes.count_done(connection, attempt.run_id, attempt.node_index), None

    def try_leave_open(
        self, connection: Connection, attempt: Attempt, artifacts: Sequence[dict[str, Any]], shape: str
    ) -> bool:
        """Do the same where the node waits for others, too; False, with nothing written, where it does not.

        So it is where the attempt lost its guard. It is not for artifacts that are large. On PostgreSQL the connection
        may be one whose every statement stands alone. SQLite has no way of its own for it.
        """
        if writes_in_queries(connection):
            return self._ask_in_one(connection, attempt, artifacts, shape, may_close=False).first() is not None
        return self._ask_both(connection, attempt, artifacts, shape, may_close=False)() > 0

    def _ask_in_one(
        self, connection: Connection, attempt: Attempt, artifacts: Sequence[dict[str, Any]], shape: str, may_close: bool
    ) -> Answer:
        own = [{name: row[name] for name in _OWN_COLUMNS} for row in artifacts]
        key = {**_key(attempt, shape), "b_artifacts": json.dumps(own, ensure_ascii=False)}
        return self._in_one[attempt.token is not None, may_close].ask(connection, key)

    def _complete_both(
        self,
        connection: Connection,
        attempt: Attempt,
        artifacts: Sequence[dict[str, Any]],
        shape: str,
        ask_ahead: Callable[[], object] | None,
    ) -> tuple[NodeRow, RunRow | None] | None:
        counted = self._ask_both(connection, attempt, artifacts, shape, may_close=True)
        node = self._nodes.ask(connection, attempt.run_id, attempt.node_index)
        locked = None
        if ask_ahead is not None:
            locked = self._runs.ask_lock(connection, attempt.run_id)
            ask_ahead()
        if counted() == 0:
            return None
        run = None if locked is None else locked.first()
        return NodeRow(*node.one()), None if run is None else to_run(run)

    def _ask_both(
        self, connection: Connection, attempt: Attempt, artifacts: Sequence[dict[str, Any]], shape: str, may_close: bool
    ) -> Callable[[], int]:
        """What it gives tells whether it was done, and has to be asked before the COMMIT.

        With the COMMIT in one text it might be done by half: a server whose client is gone goes on to the end of a
        text, and to every condition by ROW_COUNT() it says no then.
        """
        counted = self._of_both[attempt.token is not None, may_close].ask(connection, _key(attempt, shape))
        inserted: list[Answer] = []
        if not counted.was_sent:
            inserted = self._artifacts.insert_if_changed(connection, artifacts)
        elif counted.changed():  # whoever watches may have sent something since
            self._artifacts.insert(connection, artifacts)

        def read() -> int:
            changed = counted.changed()
            if changed and any(answer.changed() != 1 for answer in inserted):
                connection.invalidate()  # which takes it all back
                lost = ConnectionError("the server did not write the artifacts that it was sent")
                raise OperationalError(None, None, lost, connection_invalidated=True)
            return changed

        return read


def _key(attempt: Attempt, shape: str) -> dict[str, Any]:
    token = {} if attempt.token is None else {"b_token": attempt.token}
    return {"b_attempt": attempt.attempt_id, "b_shape": shape, **token}

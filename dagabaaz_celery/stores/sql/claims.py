"""Claims: who starts the body of an attempt; what is read with it; and how an attempt is given back."""

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from sqlalchemy import Connection, Select, and_, bindparam, exists, or_, select, update

from dagabaaz_celery.constants import RunStatus, TaskStatus
from dagabaaz_celery.stores.sql.artifacts import list_task_columns, to_task_artifact
from dagabaaz_celery.stores.sql.dialects import fixed, is_one_of, now, writes_in_queries
from dagabaaz_celery.stores.sql.direct import Direct
from dagabaaz_celery.stores.sql.records import Attempt, AttemptContext
from dagabaaz_celery.stores.sql.tables import BUSY_EPILOGUES, Id, Tables
from dagabaaz_celery.stores.sql.tasks import UNCLAIMED, list_attempt_columns, may_start, put_off

_ATTEMPT_COLUMNS = len(fields(Attempt))


class ClaimRows:
    """Statements by which attempts are claimed, and given back."""

    def __init__(self, tables: Tables) -> None:
        self._tables = tables
        task, run = tables.task, tables.run
        current = task.c.attempt_id == bindparam("b_attempt", type_=Id())
        token = bindparam("b_token", type_=Id())
        goes_on = or_(run.c.status == RunStatus.RUNNING, is_one_of(run.c.epilogue, BUSY_EPILOGUES))
        is_running = exists().where(run.c.id == task.c.run_id, goes_on)
        claim = (
            update(task)
            .where(
                current,
                is_one_of(task.c.status, UNCLAIMED),
                or_(task.c.not_before.is_(None), task.c.not_before <= now()),
                exists().where(run.c.id == task.c.run_id, may_start(run)),
            )
            .values(
                status=TaskStatus.RUNNING.value,
                claim_token=token,
                worker_id=bindparam("b_worker", type_=Id()),
                claimed_at=now(),
                lease_until=None,
            )
        )
        self._claim = Direct(claim)
        claimed = claim.returning(*list_attempt_columns(task)).cte("claimed")
        self._claim_in_one = Direct(self._select_context(claimed))
        self._find = self._select_context(task).where(current)
        self._find_claim = Direct(
            self._find.where(task.c.claim_token == token, task.c.status == fixed(TaskStatus.RUNNING))
        )
        self._hand_back = (
            update(task)
            .where(current, is_one_of(task.c.status, UNCLAIMED), is_running)
            .values(
                status=TaskStatus.PENDING.value,
                lease_until=None,
                queued_at=None,
                not_before=put_off(task),
            )
        )
        self._lend = (
            update(task)
            .where(current, task.c.status == TaskStatus.RUNNING)
            .values(
                status=TaskStatus.PENDING.value,
                retries=bindparam("b_retries"),
                claim_token=None,
                worker_id=None,
                # ``claimed_at`` stays: the attempt keeps its id, and its body did begin.
                lease_until=now() + bindparam("b_lease"),
            )
        )
        self._why_refused = (
            select(task.c.status, run.c.status, run.c.paused, run.c.epilogue)
            .join(run, run.c.id == task.c.run_id)
            .where(current)
        )

    def _select_context(self, task: Any) -> Select[Any]:
        """What an AttemptContext is made of, for attempts that ``task`` gives: the table, or what was claimed of it."""
        run, node, artifact = self._tables.run, self._tables.node, self._tables.artifact
        of_node = and_(node.c.run_id == task.c.run_id, node.c.node_index == task.c.node_index)
        of_input = and_(artifact.c.id == task.c.input_artifact_id, artifact.c.run_id == task.c.run_id)
        found_with = task.join(run, run.c.id == task.c.run_id).join(node, of_node).outerjoin(artifact, of_input)
        left = node.c.tasks_total - node.c.tasks_done
        columns = (*list_attempt_columns(task), run.c.definition_hash, left, *list_task_columns(artifact))
        return select(*columns).select_from(found_with)

    def try_claim(
        self, connection: Connection, attempt_id: str, token: str, worker_id: str | None
    ) -> AttemptContext | None:
        """Start an attempt if it is current, due and its run runs; None when it may not start.

        A repeat with the same token finds its own claim: the answer to the first may have been lost.
        """
        key = {"b_attempt": attempt_id, "b_token": token, "b_worker": worker_id}
        row = None
        if writes_in_queries(connection):
            row = self._claim_in_one.first(connection, key)
        else:
            self._claim.later(connection, key)
        return self.find_claim(connection, attempt_id, token) if row is None else _to_context(row)

    def find_claim(self, connection: Connection, attempt_id: str, token: str) -> AttemptContext | None:
        """An attempt that is current and claimed by this token."""
        row = self._find_claim.first(connection, {"b_attempt": attempt_id, "b_token": token})
        return None if row is None else _to_context(row)

    def find(self, connection: Connection, attempt_id: str) -> AttemptContext | None:
        """An attempt that is current, claimed or not."""
        row = connection.execute(self._find, {"b_attempt": attempt_id}).one_or_none()
        return None if row is None else _to_context(row)

    def hand_back(self, connection: Connection, attempt_id: str, *, delay: int = 0) -> bool:
        """Owe an attempt again whose message was consumed before it may start, after ``delay`` microseconds."""
        return connection.execute(self._hand_back, {"b_attempt": attempt_id, "b_delay": delay}).rowcount == 1

    def lend(self, connection: Connection, attempt_id: str, *, lease: int, retries: int) -> None:
        """Owe a running attempt again that somebody else publishes within ``lease`` microseconds."""
        connection.execute(self._lend, {"b_attempt": attempt_id, "b_lease": lease, "b_retries": retries})

    def explain_refusal(self, connection: Connection, attempt_id: str) -> str:
        """Why a claim was refused, for the log."""
        row = connection.execute(self._why_refused, {"b_attempt": attempt_id}).one_or_none()
        if row is None:
            return "the attempt was superseded, or its run was deleted"
        task_status, run_status, paused, epilogue = row
        if run_status != RunStatus.RUNNING and epilogue not in BUSY_EPILOGUES:
            return f"its run is {run_status}"
        if paused and run_status == RunStatus.RUNNING:
            return "its run is paused"
        if task_status in UNCLAIMED:
            return "it is not due yet"
        return f"the task is already {task_status}"


def _to_context(row: Sequence[Any]) -> AttemptContext:
    attempt, (digest, left, *artifact) = row[:_ATTEMPT_COLUMNS], row[_ATTEMPT_COLUMNS:]
    has_artifact = artifact[4] is not None  # its metadata
    return AttemptContext(Attempt(*attempt), digest, left, to_task_artifact(artifact) if has_artifact else None)

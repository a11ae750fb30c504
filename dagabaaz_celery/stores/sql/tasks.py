"""Statements on tasks and the history of their attempts, built once for a store.

Every change of state is one conditional statement that carries the expected state, and reports whether it won.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from sqlalchemy import (
    BindParameter,
    ColumnElement,
    CompoundSelect,
    Connection,
    Row,
    ScalarSelect,
    Select,
    Table,
    Update,
    and_,
    bindparam,
    case,
    delete,
    exists,
    func,
    insert,
    not_,
    or_,
    select,
    union_all,
    update,
)

from dagabaaz_celery.constants import RUN_TERMINAL_STATUSES, RunStatus, TaskStatus
from dagabaaz_celery.stores.sql.dialects import fixed, is_one_of, now, read_by_index
from dagabaaz_celery.stores.sql.direct import Direct, DirectByLength
from dagabaaz_celery.stores.sql.records import DEADLINE_EXCEEDED, Attempt, Dispatch, Published, TaskError
from dagabaaz_celery.stores.sql.tables import BUSY_EPILOGUES, OPEN_TASK_STATUSES, Id, Tables

UNCLAIMED = (TaskStatus.PENDING, TaskStatus.QUEUED)
#: Ids in one statement: a bound that every driver takes.
ID_CHUNK = 500
#: What a new task has; the rest of its row is null.
_NEW_COLUMNS = (
    *("id", "run_id", "node_index", "ordinal", "status", "attempt_id", "number", "retries", "recoveries", "resends"),
    *("input_artifact_id", "origin_artifact_id", "timeout", "error"),
)
#: Alternatives in one statement, of which a database looks through half for each row.
_CASES = 100


class TaskRows:
    """Tasks: claims, outcomes, and what is to be published."""

    def __init__(self, tables: Tables) -> None:
        self._tables = tables
        task = tables.task
        self._attempt_columns = list_attempt_columns(task)
        self._build_outcomes()
        self._build_publishing()
        self._insert = Direct(insert(task), columns=_NEW_COLUMNS)
        leased = insert(task).values(lease_until=now() + bindparam("b_lease"))
        self._insert_leased = Direct(leased, columns=_NEW_COLUMNS)
        self._insert_history = insert(tables.attempt).values(ended_at=now())
        self._insert_history_at = insert(tables.attempt)
        by_run = task.c.run_id == bindparam("b_run")
        self._by_attempt = select(*self._attempt_columns).where(task.c.attempt_id == bindparam("b_attempt"))
        self._by_id = select(*self._attempt_columns).where(task.c.id == bindparam("b_task"))
        self._lock_run = select(task.c.id).where(by_run).order_by(task.c.id).with_for_update()
        among_open = (
            task.c.id.in_(bindparam("b_ids", expanding=True)),
            found_otherwise(task.c.status).in_(bindparam("b_statuses", expanding=True)),
        )
        self._some_open: dict[tuple[TaskStatus, ...], CompoundSelect[Any]] = {
            statuses: self._select_some(statuses) for statuses in (OPEN_TASK_STATUSES, UNCLAIMED)
        }
        run = tables.run
        self._running_of = (
            select(task.c.attempt_id)
            .join(run, run.c.id == task.c.run_id)
            .where(
                by_run,
                task.c.status == TaskStatus.RUNNING,
                run.c.generation == bindparam("b_generation"),
                run.c.status.in_(tuple(RUN_TERMINAL_STATUSES)),
                func.coalesce(run.c.epilogue, "").not_in(BUSY_EPILOGUES),
            )
        )
        self._cancel = (
            update(task)
            .where(*among_open)
            .values(status=TaskStatus.CANCELLED.value, ended_at=now(), error=bindparam("b_error"))
        )
        # What is cancelled in its body stays claimed. "IS NOT NULL" is not asked there: SQLite 3.40 says that of every
        # column of a table without an integer key.
        self._cancel_returning = self._cancel.returning(task.c.attempt_id, task.c.claim_token)
        self._cancelled_in_body = select(task.c.attempt_id).where(
            task.c.id.in_(bindparam("b_ids", expanding=True)),
            found_otherwise(task.c.status) == TaskStatus.CANCELLED,
            task.c.claim_token.is_not(None),
        )
        at_nodes = (by_run, task.c.node_index.in_(bindparam("b_nodes", expanding=True)))
        self._at_nodes = (
            select(*self._attempt_columns, task.c.status, task.c.error)
            .where(*at_nodes)
            .order_by(task.c.node_index, task.c.ordinal)
        )
        self._delete_at_nodes = delete(task).where(*at_nodes)
        history = tables.attempt
        self._delete_history_at_nodes = delete(history).where(
            history.c.run_id == bindparam("b_run"), history.c.task_id.in_(select(task.c.id).where(*at_nodes))
        )
        self._reopen_completed = (
            update(task)
            .where(*at_nodes, task.c.status == TaskStatus.COMPLETED)
            .values(status=TaskStatus.CANCELLED.value, error=bindparam("b_error"))
        )
        self._build_undoing(by_run)
        self._delete = delete(task).where(task.c.id.in_(bindparam("b_ids", expanding=True)))
        self._statuses = (
            select(task.c.node_index, task.c.status, func.count())
            .where(by_run)
            .group_by(task.c.node_index, task.c.status)
        )
        self._last_ends = select(task.c.node_index, func.max(task.c.ended_at)).where(by_run).group_by(task.c.node_index)
        self._queues_of_run = (
            select(task.c.queue)
            .where(by_run, task.c.status == TaskStatus.QUEUED, task.c.queue.is_not(None))
            .distinct()
            .order_by(task.c.queue)
        )
        self._statuses_at_node = (
            select(task.c.status, func.count())
            .where(by_run, task.c.node_index == bindparam("b_node"))
            .group_by(task.c.status)
        )
        self._results = (
            select(task.c.id, task.c.status, task.c.result_shape)
            .where(by_run, task.c.node_index == bindparam("b_node"))
            .order_by(task.c.ordinal)
        )
        self._list = (
            select(
                task.c.id,
                task.c.node_index,
                task.c.ordinal,
                task.c.status,
                task.c.attempt_id,
                task.c.number,
                task.c.retries,
                task.c.recoveries,
                task.c.claimed_at,
                task.c.ended_at,
                task.c.progress_done,
                task.c.progress_total,
                task.c.error,
            )
            .where(by_run)
            .order_by(task.c.node_index < 0, task.c.node_index, task.c.ordinal)
        )
        undoes = case((task.c.node_index < 0, 1), else_=0)
        self._bad_ends = (
            select(task.c.id, task.c.node_index, task.c.error)
            .where(by_run, task.c.status.in_((TaskStatus.FAILED, TaskStatus.CRASHED)), task.c.error.is_not(None))
            .order_by(undoes, task.c.node_index, task.c.ordinal)
        )

    def _select_some(self, statuses: Sequence[TaskStatus]) -> CompoundSelect[Any]:
        """Some tasks of a run in these states.

        One statement sees one moment. Of three, a task that goes back from running to pending would escape them all.
        """
        task = self._tables.task
        limit: BindParameter[int] = bindparam("b_limit")
        parts = [
            _by_open_index(select(task.c.id).where(task.c.run_id == bindparam("b_run"), task.c.status == status), task)
            for status in statuses
        ]
        return union_all(*(select(part.limit(limit).subquery().c.id) for part in parts)).limit(limit)

    def _build_undoing(self, by_run: ColumnElement[bool]) -> None:
        task, history = self._tables.task, self._tables.attempt
        # Of EXISTS MariaDB makes a table of all attempts that ever were.
        began_before = (
            select(history.c.attempt_id)
            .where(history.c.run_id == task.c.run_id, history.c.task_id == task.c.id, history.c.claimed_at.is_not(None))
            .limit(1)
            .correlate(task)
            .scalar_subquery()
        )
        is_begun = (task.c.claimed_at.is_not(None), task.c.status == TaskStatus.COMPLETED, began_before.is_not(None))
        begun = or_(*is_begun)
        self._count_begun = (
            select(task.c.node_index, func.count())
            .where(by_run, task.c.node_index.in_(bindparam("b_nodes", expanding=True)), begun)
            .group_by(task.c.node_index)
        )
        of_node = (by_run, task.c.node_index == bindparam("b_node"))
        self._list_begun = (
            select(task.c.ordinal, task.c.input_artifact_id, task.c.origin_artifact_id)
            .where(*of_node, begun, task.c.ordinal > bindparam("b_after"))
            .order_by(task.c.ordinal)
            .limit(bindparam("b_limit"))
        )
        self._last_ordinal = select(func.coalesce(func.max(task.c.ordinal), -1)).where(*of_node)
        ended_badly = (TaskStatus.FAILED, TaskStatus.CRASHED, TaskStatus.CANCELLED)
        self._first_bad = select(task.c.id).where(*of_node, found_otherwise(task.c.status).in_(ended_badly)).limit(1)
        self._one_at_node = select(task.c.id, task.c.result_shape).where(
            *of_node, task.c.ordinal == bindparam("b_ordinal")
        )
        run, worker = self._tables.run, self._tables.worker
        self._expired = (
            select(task.c.attempt_id, task.c.ended_at, worker.c.seen_at, worker.c.holding)
            .join(worker, worker.c.id == task.c.worker_id)
            .where(
                by_run,
                task.c.status == TaskStatus.FAILED,
                task.c.timeout.is_not(None),
                task.c.error.like(f'{{"type": "{DEADLINE_EXCEEDED}"%'),
            )
        )
        self._overdue = (
            select(*self._attempt_columns, run.c.definition_hash, task.c.timeout)
            .join(run, run.c.id == task.c.run_id)
            .where(
                task.c.status == TaskStatus.RUNNING,
                task.c.timeout.is_not(None),
                task.c.claimed_at + task.c.timeout + bindparam("b_grace") <= now(),
            )
            .limit(bindparam("b_limit"))
        )

    def _build_outcomes(self) -> None:
        task = self._tables.task
        current = task.c.attempt_id == bindparam("b_attempt")
        fenced, unfenced = guard_outcome(task, is_claimed=True), guard_outcome(task, is_claimed=False)
        ended: dict[str, Any] = {
            "status": bindparam("b_status"),
            "ended_at": now(),
            "lease_until": None,
            "error": bindparam("b_error"),
        }
        superseded = {
            "status": TaskStatus.PENDING.value,
            "attempt_id": bindparam("b_new", type_=Id()),
            "number": task.c.number + 1,
            "retries": bindparam("b_retries"),
            "recoveries": bindparam("b_recoveries"),
            "claim_token": None,
            "worker_id": None,
            "claimed_at": None,
            "queue": None,
            "queued_at": None,
            "resends": 0,
            "ended_at": None,
            "error": None,
            "result_shape": None,
            "progress_done": None,
            "progress_total": None,
            "not_before": now() + bindparam("b_delay"),
            "lease_until": now() + bindparam("b_lease"),
        }
        complete = update(task).values(**list_completed_values())
        self._complete = {True: Direct(complete.where(*fenced)), False: Direct(complete.where(*unfenced))}
        self._end = _guarded(update(task).values(**ended), fenced, unfenced)
        self._end_unbegun = _guarded(update(task).values(**ended, claimed_at=None), fenced, unfenced)
        self._supersede = _guarded(update(task).values(**superseded), fenced, unfenced)
        del superseded["attempt_id"]
        self._superseding = update(task).values(**superseded)
        self._supersede_many: dict[int, Update] = {}
        self._recorded = select(task.c.status).where(current, task.c.claim_token == bindparam("b_token", type_=Id()))
        self._progress = (
            update(task).where(*fenced).values(progress_done=bindparam("b_done"), progress_total=bindparam("b_total"))
        )
        run = self._tables.run
        self._is_current = (
            select(task.c.id)
            .join(run, run.c.id == task.c.run_id)
            .where(
                current,
                task.c.status.in_(OPEN_TASK_STATUSES),
                or_(run.c.status == RunStatus.RUNNING, run.c.epilogue.is_not(None)),
            )
        )
        self._is_wanted = self._is_current.where(
            or_(run.c.status == RunStatus.RUNNING, run.c.epilogue.in_(BUSY_EPILOGUES))
        )
        history = self._tables.attempt
        self._superseded = select(history.c.attempt_id).where(
            history.c.attempt_id == bindparam("b_attempt"),
            history.c.claim_token == bindparam("b_token", type_=Id()),
            history.c.status == TaskStatus.RUNNING,
        )
        self._settle = (
            update(task).where(task.c.id == bindparam("b_task"), task.c.status.in_(OPEN_TASK_STATUSES)).values(**ended)
        )

    def _build_publishing(self) -> None:
        task, run = self._tables.task, self._tables.run
        may_publish = _select_open_run(task, run).is_not(None)
        owed = (
            task.c.status == TaskStatus.PENDING,
            or_(task.c.lease_until.is_(None), task.c.lease_until < now()),
        )
        undelayed = (*owed, task.c.not_before.is_(None))
        has_due = select_first_open(task, run, *undelayed).is_not(None)
        self._runs_with_due = (
            select(run.c.id)
            .where(run.c.status == RunStatus.RUNNING, not_(run.c.paused), has_due)
            .order_by(run.c.id)
            .limit(ID_CHUNK)
        )
        self._ended_runs_with_due = (
            select(run.c.id).where(run.c.epilogue.in_(BUSY_EPILOGUES), has_due).order_by(run.c.id).limit(ID_CHUNK)
        )
        due_columns = (task.c.attempt_id, task.c.id, task.c.run_id, task.c.node_index, task.c.retries)
        of_run = select(*due_columns).where(task.c.run_id == bindparam("b_run"), *undelayed, may_publish)
        self._due = _by_open_index(of_run, task).limit(bindparam("b_limit")).with_for_update(skip_locked=True)
        self._due_delayed = (
            select(*due_columns)
            .where(*owed, task.c.not_before <= now(), may_publish)
            .order_by(task.c.not_before)
            .limit(bindparam("b_limit"))
            .with_for_update(skip_locked=True)
        )
        self._run_facts = select(run.c.id, run.c.definition_hash, run.c.options).where(
            run.c.id.in_(bindparam("b_runs", expanding=True))
        )
        self._lease = (
            update(task)
            .where(task.c.id.in_(bindparam("b_ids", expanding=True)))
            # Whoever had a lease that ran out may have sent it already. In this order: MariaDB, which goes from left to
            # right, must see the old lease.
            .ordered_values(
                (task.c.resends, task.c.resends + case((task.c.lease_until.is_not(None), 1), else_=0)),
                (task.c.lease_until, now() + bindparam("b_lease")),
            )
        )
        among = (task.c.attempt_id.in_(bindparam("b_attempts", expanding=True)),)
        self._release = (
            update(task).where(*among, found_otherwise(task.c.status) == TaskStatus.PENDING).values(lease_until=None)
        )
        self._postpone = (
            update(task)
            .where(*among, found_otherwise(task.c.status) == TaskStatus.PENDING)
            .values(
                lease_until=None,
                not_before=put_off(task),
            )
        )
        mark = (
            update(task)
            .where(
                found_otherwise(task.c.status) == TaskStatus.PENDING,
                # A claim that was refused meanwhile has consumed the message and given the lease back.
                task.c.lease_until.is_not(None),
            )
            .values(
                status=TaskStatus.QUEUED.value,
                queue=bindparam("b_queue"),
                queued_at=now() - bindparam("b_age"),
                lease_until=now() + bindparam("b_lease"),
            )
        )
        self._mark = DirectByLength(
            lambda names: mark.where(task.c.attempt_id.in_([bindparam(name, type_=Id()) for name in names]))
        )
        self._clock = select(now())
        self._build_resending(may_publish)
        self._running_on = (
            select(*self._attempt_columns, run.c.definition_hash)
            .join(run, run.c.id == task.c.run_id)
            .where(task.c.status == TaskStatus.RUNNING, task.c.worker_id == bindparam("b_worker", type_=Id()))
        )
        worker = self._tables.worker
        self._orphans = (
            select(*self._attempt_columns, run.c.definition_hash)
            .join(run, run.c.id == task.c.run_id)
            .where(
                task.c.status == TaskStatus.RUNNING,
                task.c.worker_id.is_not(None),
                not_(exists().where(worker.c.id == task.c.worker_id)),
            )
        )
        self._next_due = select(func.min(task.c.not_before) - now()).where(
            task.c.status == TaskStatus.PENDING, task.c.not_before > now()
        )

    def _build_resending(self, may_publish: Any) -> None:
        """While a task is queued its lease says when it may be sent again, should its message turn out to be lost."""
        task = self._tables.task
        queued = (task.c.status == TaskStatus.QUEUED, task.c.queue.is_not(None))
        among = (
            task.c.attempt_id.in_(bindparam("b_attempts", expanding=True)),
            found_otherwise(task.c.status) == TaskStatus.QUEUED,
        )
        lease_ends = now() + bindparam("b_within")
        self._waiting_queues = (
            select(task.c.queue, func.count())
            .where(*queued)
            .group_by(task.c.queue)
            .having(func.min(task.c.lease_until) < lease_ends)
        )
        self._queued_among = select(func.count()).select_from(task).where(*among, task.c.queue == bindparam("b_queue"))
        dispatch = (task.c.attempt_id, task.c.id, task.c.run_id, task.c.node_index, task.c.retries)
        self._published = select(*dispatch, task.c.queue, task.c.queued_at, task.c.claimed_at).where(
            task.c.attempt_id.in_(bindparam("b_attempts", expanding=True)),
            task.c.queue.is_not(None),
            task.c.resends == 0,
        )
        self._sent_before = (
            select(*dispatch, task.c.queued_at)
            .where(
                *queued,
                task.c.queue == bindparam("b_queue"),
                task.c.lease_until < lease_ends,
                task.c.queued_at < bindparam("b_before"),
                may_publish,
            )
            .order_by(task.c.queued_at, task.c.id)
            .limit(bindparam("b_limit"))
        )
        self._lost = (
            select(*dispatch)
            .where(
                *among,
                task.c.queue.is_not(None),
                task.c.lease_until < lease_ends,
                may_publish,
            )
            .order_by(task.c.id)
            .with_for_update(skip_locked=True)
        )
        self._resend = (
            update(task)
            .where(task.c.id.in_(bindparam("b_ids", expanding=True)))
            .values(lease_until=now() + bindparam("b_lease") * (task.c.resends + 2), resends=task.c.resends + 1)
        )
        self._mark_resent = (
            update(task)
            .where(*among)
            .values(queued_at=now(), lease_until=now() + bindparam("b_lease") * (task.c.resends + 1))
        )

    # -- making tasks

    def insert(self, connection: Connection, rows: Sequence[dict[str, Any]]) -> None:
        """Insert tasks that ended at their launch."""
        self._insert.later_each(connection, rows)

    def insert_leased(self, connection: Connection, rows: Sequence[dict[str, Any]], lease: int | None) -> None:
        """Insert owed tasks that the caller will publish within ``lease`` microseconds, or that nobody has (None)."""
        self._insert_leased.later_each(connection, [{**row, "b_lease": lease} for row in rows])

    # -- outcome

    def find_attempt(self, connection: Connection, attempt_id: str) -> Attempt | None:
        """The task whose current attempt this is."""
        row = connection.execute(self._by_attempt, {"b_attempt": attempt_id}).one_or_none()
        return None if row is None else Attempt(*tuple(row))

    def find_task(self, connection: Connection, task_id: str) -> Attempt | None:
        """A task with its current attempt."""
        row = connection.execute(self._by_id, {"b_task": task_id}).one_or_none()
        return None if row is None else Attempt(*tuple(row))

    def try_complete(self, connection: Connection, attempt: Attempt, shape: str) -> bool:
        """Complete the current attempt; True if this call did."""
        is_claimed = attempt.token is not None
        key = {"b_attempt": attempt.attempt_id, "b_token": attempt.token, "b_shape": shape}
        return self._complete[is_claimed].change(connection, key) == 1

    def try_end(
        self, connection: Connection, attempt: Attempt, status: TaskStatus, error: str, *, began: bool = True
    ) -> bool:
        """End the current attempt as failed, crashed or cancelled; True if this call did. ``error`` is JSON text.

        Without ``began`` it was claimed in vain, and nothing of it is to be undone.
        """
        statements = self._end if began else self._end_unbegun
        return self._guard(connection, statements, attempt, b_status=status.value, b_error=error)

    def is_recorded(self, connection: Connection, attempt: Attempt, status: TaskStatus) -> bool:
        """Whether this very claim already ended so: a repeat after a lost answer."""
        key = {"b_attempt": attempt.attempt_id, "b_token": attempt.token}
        recorded: str | None = connection.execute(self._recorded, key).scalar_one_or_none()
        return recorded == status

    def is_superseded(self, connection: Connection, attempt: Attempt) -> bool:
        """Whether a later attempt replaced this one, with its claim."""
        key = {"b_attempt": attempt.attempt_id, "b_token": attempt.token}
        return connection.execute(self._superseded, key).first() is not None

    def settle(self, connection: Connection, task_id: str, status: TaskStatus, error: str) -> bool:
        """End a task that is open, whatever its attempt."""
        key = {"b_task": task_id, "b_status": status.value, "b_error": error}
        return connection.execute(self._settle, key).rowcount == 1

    def try_supersede(
        self,
        connection: Connection,
        attempt: Attempt,
        new_attempt_id: str,
        *,
        retries: int,
        recoveries: int,
        delay: int,
        lease: int | None,
        reason: TaskError,
    ) -> bool:
        """Replace the current attempt by a new one, owed after ``delay`` microseconds; True if this call did.

        ``lease``: for so many microseconds the caller itself will publish it (None: the sweep may at once).
        """
        won = self._guard(
            connection,
            self._supersede,
            attempt,
            b_new=new_attempt_id,
            b_retries=retries,
            b_recoveries=recoveries,
            b_delay=delay,
            b_lease=lease,
        )
        if won:
            self.write_history(connection, attempt, TaskStatus.RUNNING, reason)
        return won

    def supersede_ended(
        self,
        connection: Connection,
        replaced: Sequence[tuple[Attempt, str]],
        status: str,
        reason: str,
        *,
        lease: int,
    ) -> None:
        """Give tasks that ended a new attempt each, in a retry of their run. The caller holds the tasks' locks."""
        if not replaced:
            return
        key = {"b_retries": 0, "b_recoveries": 0, "b_delay": 0, "b_lease": lease}
        for start in range(0, len(replaced), _CASES):
            chunk = replaced[start : start + _CASES]
            ids = {f"b_old{place}": attempt.attempt_id for place, (attempt, _) in enumerate(chunk)}
            ids |= {f"b_new{place}": new_attempt_id for place, (_, new_attempt_id) in enumerate(chunk)}
            connection.execute(self._superseding_so_many(len(chunk)), {**key, **ids})
        # A time of its own, as text with a function in it is sent row by row by drivers of MySQL.
        ended = {"ended_at": self.read_clock(connection)}
        history = [{**_history_row(attempt, status, reason), **ended} for attempt, _ in replaced]
        connection.execute(self._insert_history_at, history)

    def _superseding_so_many(self, count: int) -> Update:
        """A statement with a new id for each old one, as not every driver sends many statements at once."""
        if count not in self._supersede_many:
            current = self._tables.task.c.attempt_id
            old = [bindparam(f"b_old{place}", type_=Id()) for place in range(count)]
            new = [bindparam(f"b_new{place}", type_=Id()) for place in range(count)]
            chosen = case(*((current == each, other) for each, other in zip(old, new, strict=True)))
            self._supersede_many[count] = self._superseding.where(current.in_(old)).values(attempt_id=chosen)
        return self._supersede_many[count]

    def write_history(self, connection: Connection, attempt: Attempt, status: str, reason: TaskError) -> None:
        """Keep what a replaced attempt was."""
        connection.execute(self._insert_history, _history_row(attempt, status, json.dumps(asdict(reason))))

    # -- publishing

    def lease_due(self, connection: Connection, *, limit: int, lease: int) -> list[Dispatch]:
        """Lease tasks that are owed to the queue and that nobody is publishing.

        What was delayed comes first. For the rest it begins with the runs: what a paused one owes, which may be much,
        is not looked at.
        """
        due = list(connection.execute(self._due_delayed, {"b_limit": limit}))
        runs: list[str] = []
        if len(due) < limit:
            runs = [*connection.execute(self._ended_runs_with_due).scalars()]
            runs += connection.execute(self._runs_with_due).scalars()
        for run_id in runs:
            due += connection.execute(self._due, {"b_run": run_id, "b_limit": limit - len(due)})
            if len(due) >= limit:
                break
        for chunk in _chunks([row.id for row in due]):
            connection.execute(self._lease, {"b_ids": chunk, "b_lease": lease})
        return self._to_dispatches(connection, due)

    def list_waiting_queues(self, connection: Connection, *, within: int = 0) -> dict[str, int]:
        """Queues in which a published task waits whose lease ends ``within`` microseconds, with all that wait there."""
        return {row[0]: row[1] for row in connection.execute(self._waiting_queues, {"b_within": within})}

    def count_queued_among(self, connection: Connection, queue: str, attempt_ids: Sequence[str]) -> int:
        """How many of these attempts are published to the queue and not claimed."""
        return sum(
            connection.execute(self._queued_among, {"b_queue": queue, "b_attempts": chunk}).scalar_one()
            for chunk in _chunks(attempt_ids)
        )

    def read_clock(self, connection: Connection) -> int:
        """The database's time."""
        time: int = connection.execute(self._clock).scalar_one()
        return time

    def find_published(self, connection: Connection, attempt_ids: Sequence[str]) -> list[Published]:
        """Those of these attempts that were published to a known queue, and once only, whatever became of them since.

        Of one that was sent twice nobody can say which of its messages was given out.
        """
        found: list[Published] = []
        for chunk in _chunks(attempt_ids):
            rows = connection.execute(self._published, {"b_attempts": chunk}).all()
            dispatches = self._to_dispatches(connection, rows)
            found += [
                Published(dispatch, row.queue, row.queued_at, row.claimed_at)
                for dispatch, row in zip(dispatches, rows, strict=True)
            ]
        return found

    def find_sent_before(
        self, connection: Connection, queue: str, before: int, *, limit: int, within: int = 0
    ) -> list[tuple[Dispatch, int]]:
        """Attempts that wait in a queue and were last sent before a time, with when; oldest first.

        Their lease ends ``within`` microseconds.
        """
        key = {"b_queue": queue, "b_before": before, "b_limit": limit, "b_within": within}
        rows = connection.execute(self._sent_before, key).all()
        return list(zip(self._to_dispatches(connection, rows), (row.queued_at for row in rows), strict=True))

    def lease_lost(
        self, connection: Connection, attempt_ids: Sequence[str], lease: int, *, within: int = 0
    ) -> list[Dispatch]:
        """Take attempts whose lease ends ``within`` microseconds to send them again.

        Each time one is taken it waits longer until the next.
        """
        lost: list[Any] = []
        for chunk in _chunks(attempt_ids):
            rows = connection.execute(self._lost, {"b_attempts": chunk, "b_within": within}).all()
            if rows:
                connection.execute(self._resend, {"b_ids": [row.id for row in rows], "b_lease": lease})
            lost += rows
        return self._to_dispatches(connection, lost)

    def mark_resent(self, connection: Connection, attempt_ids: Sequence[str], lease: int) -> None:
        """Record that these attempts were sent again by now."""
        for chunk in _chunks(attempt_ids):
            connection.execute(self._mark_resent, {"b_attempts": chunk, "b_lease": lease})

    def _to_dispatches(self, connection: Connection, due: Sequence[Any]) -> list[Dispatch]:
        facts: dict[str, tuple[str, dict[str, Any]]] = {}
        for chunk in _chunks(list(dict.fromkeys(row.run_id for row in due))):
            for run_id, digest, options in connection.execute(self._run_facts, {"b_runs": chunk}):
                facts[run_id] = (digest, json.loads(options))
        return [
            Dispatch(
                row.attempt_id,
                row.id,
                row.run_id,
                row.node_index,
                facts[row.run_id][0],
                row.retries,
                facts[row.run_id][1],
            )
            for row in due
        ]

    def mark_queued(
        self, connection: Connection, attempt_ids: Sequence[str], queue: str | None, lease: int, age: int
    ) -> None:
        """Record that these attempts were published; those claimed meanwhile stay as they are."""
        self._mark.change(connection, attempt_ids, {"b_queue": queue, "b_lease": lease, "b_age": age})

    def release(self, connection: Connection, attempt_ids: Sequence[str]) -> None:
        """Give back the leases of attempts that could not be published."""
        for chunk in _chunks(attempt_ids):
            connection.execute(self._release, {"b_attempts": chunk})

    def postpone(self, connection: Connection, attempt_ids: Sequence[str], delay: int) -> None:
        """Owe attempts again that could not be published, after ``delay`` microseconds."""
        for chunk in _chunks(attempt_ids):
            connection.execute(self._postpone, {"b_attempts": chunk, "b_delay": delay})

    def set_progress(self, connection: Connection, attempt: Attempt, done: int, total: int) -> None:
        """Show how far a running attempt is."""
        key = {"b_attempt": attempt.attempt_id, "b_token": attempt.token, "b_done": done, "b_total": total}
        connection.execute(self._progress, key)

    def is_current(self, connection: Connection, attempt_id: str) -> bool:
        """Whether an attempt may still report an outcome that counts: it is current, and its run runs or waits."""
        return connection.execute(self._is_current, {"b_attempt": attempt_id}).first() is not None

    def is_wanted(self, connection: Connection, attempt_id: str) -> bool:
        """Whether what an attempt does is still of use: it is current, and its run has not ended around it."""
        return connection.execute(self._is_wanted, {"b_attempt": attempt_id}).first() is not None

    def seconds_to_next_due(self, connection: Connection) -> float | None:
        """How long until the next delayed task is due."""
        micros = connection.execute(self._next_due).scalar_one()
        return None if micros is None else micros / 1e6

    def list_running_on(self, connection: Connection, worker_id: str) -> list[tuple[Attempt, str]]:
        """Attempts that a worker has claimed and not ended, each with its run's definition hash."""
        rows = connection.execute(self._running_on, {"b_worker": worker_id})
        return [(Attempt(*row[:-1]), row[-1]) for row in rows]

    def list_orphans(self, connection: Connection) -> list[tuple[Attempt, str]]:
        """Running attempts of workers that the store no longer knows."""
        return [(Attempt(*row[:-1]), row[-1]) for row in connection.execute(self._orphans)]

    # -- cancelling and retrying

    def lock_of_run(self, connection: Connection, run_id: str) -> None:
        """Lock every task of a run, before its nodes and the run itself."""
        connection.execute(self._lock_run, {"b_run": run_id}).all()

    def cancel_some(
        self,
        connection: Connection,
        run_id: str,
        limit: int,
        error: str,
        statuses: tuple[TaskStatus, ...] = OPEN_TASK_STATUSES,
    ) -> list[str] | None:
        """Cancel up to so many open tasks; gives the attempt ids that were running. None when no task is open.

        ``error`` is JSON text. ``statuses`` may be UNCLAIMED, which leaves out what runs.
        """
        some = self._some_open[statuses]
        found = connection.execute(some, {"b_run": run_id, "b_limit": limit}).scalars().all()
        if not found:
            return None
        # By id, as whoever else locks many of a run; to lock them before they are changed would cost as much again.
        return [
            attempt_id
            for chunk in _chunks(sorted(found))
            for attempt_id in self._cancel_among(connection, {"b_ids": chunk, "b_error": error, "b_statuses": statuses})
        ]

    def _cancel_among(self, connection: Connection, key: dict[str, Any]) -> Sequence[str]:
        if connection.dialect.update_returning:
            cancelled = connection.execute(self._cancel_returning, key)
            return [attempt_id for attempt_id, token in cancelled if token is not None]
        connection.execute(self._cancel, key)
        return connection.execute(self._cancelled_in_body, key).scalars().all()

    def list_at_nodes(
        self, connection: Connection, run_id: str, indices: Sequence[int]
    ) -> list[tuple[Attempt, str, str | None]]:
        """Tasks of nodes in order: (current attempt, status, error JSON)."""
        rows = connection.execute(self._at_nodes, {"b_run": run_id, "b_nodes": list(indices)})
        return [(Attempt(*row[:-2]), row[-2], row[-1]) for row in rows]

    def delete_at_nodes(self, connection: Connection, run_id: str, indices: Sequence[int]) -> None:
        """Delete every task of nodes, with its history."""
        key = {"b_run": run_id, "b_nodes": list(indices)}
        connection.execute(self._delete_history_at_nodes, key)
        connection.execute(self._delete_at_nodes, key)

    def reopen_completed(self, connection: Connection, run_id: str, index: int, error: str) -> None:
        """Set a node's completed tasks cancelled, so that a retry does them again. ``error`` is JSON text."""
        connection.execute(self._reopen_completed, {"b_run": run_id, "b_nodes": [index], "b_error": error})

    # -- undoing and deadlines

    def find_outlasting(self, connection: Connection, run_id: str, generation: int) -> list[str]:
        """The attempts of a run that ended in this generation that are at work all the same.

        Not those that undo it, nor finalisers'.
        """
        key = {"b_run": run_id, "b_generation": generation}
        return list(connection.execute(self._running_of, key).scalars())

    def has_body_beyond_deadline(self, connection: Connection, run_id: str) -> bool:
        """Whether a task that failed by its node's timeout may still be in a body, which not every pool can end.

        It may as long as its worker lives and has not reported since that it does not hold it.
        """
        rows = connection.execute(self._expired, {"b_run": run_id})
        return any(
            seen_at <= ended_at or attempt_id in json.loads(holding) for attempt_id, ended_at, seen_at, holding in rows
        )

    def has_open(self, connection: Connection, run_id: str) -> bool:
        """Whether the run has a task that has not ended; nothing is locked."""
        some = self._some_open[OPEN_TASK_STATUSES]
        return connection.execute(some, {"b_run": run_id, "b_limit": 1}).first() is not None

    def count_begun(self, connection: Connection, run_id: str, indices: Sequence[int]) -> dict[int, int]:
        """For each of these nodes, how many of its tasks had a body that began, in any attempt; nodes without: none."""
        rows = connection.execute(self._count_begun, {"b_run": run_id, "b_nodes": list(indices)})
        return {row[0]: row[1] for row in rows}

    def list_begun(
        self, connection: Connection, run_id: str, index: int, *, after: int, limit: int
    ) -> list[tuple[int, str | None, str | None]]:
        """Those tasks of a node, from behind an ordinal on: (ordinal, input artifact, origin artifact)."""
        key = {"b_run": run_id, "b_node": index, "b_after": after, "b_limit": limit}
        return [(row[0], row[1], row[2]) for row in connection.execute(self._list_begun, key)]

    def last_ordinal(self, connection: Connection, run_id: str, index: int) -> int:
        """The highest ordinal of a node's tasks; -1 where it has none."""
        ordinal: int = connection.execute(self._last_ordinal, {"b_run": run_id, "b_node": index}).scalar_one()
        return ordinal

    def has_ended_badly(self, connection: Connection, run_id: str, index: int) -> bool:
        """Whether a task of the node failed, crashed or was cancelled."""
        return connection.execute(self._first_bad, {"b_run": run_id, "b_node": index}).first() is not None

    def find_at(self, connection: Connection, run_id: str, index: int, ordinal: int) -> tuple[str, str | None] | None:
        """The task at a place: (id, shape of its result)."""
        key = {"b_run": run_id, "b_node": index, "b_ordinal": ordinal}
        row = connection.execute(self._one_at_node, key).one_or_none()
        return None if row is None else (row[0], row[1])

    def find_overdue(self, connection: Connection, *, grace: int, limit: int) -> list[tuple[Attempt, str, int]]:
        """Running attempts that have had their time and ``grace`` microseconds more.

        Each with its run's definition hash and that time.
        """
        rows = connection.execute(self._overdue, {"b_grace": grace, "b_limit": limit})
        return [(Attempt(*row[:-2]), row[-2], row[-1]) for row in rows]

    def delete(self, connection: Connection, task_ids: Sequence[str]) -> None:
        """Delete tasks."""
        for chunk in _chunks(task_ids):
            connection.execute(self._delete, {"b_ids": chunk})

    # -- looking

    def count_by_status(self, connection: Connection, run_id: str) -> dict[int, dict[str, int]]:
        """For each node, how many tasks are in which state."""
        counts: dict[int, dict[str, int]] = {}
        for index, status, number in connection.execute(self._statuses, {"b_run": run_id}):
            counts.setdefault(index, {})[status] = number
        return counts

    def list_queues_of(self, connection: Connection, run_id: str) -> Sequence[str]:
        """The queues in which tasks of a run wait, by name."""
        return connection.execute(self._queues_of_run, {"b_run": run_id}).scalars().all()

    def find_last_ends(self, connection: Connection, run_id: str) -> dict[int, int | None]:
        """For each node, when the last of its tasks that ended did so."""
        return {row[0]: row[1] for row in connection.execute(self._last_ends, {"b_run": run_id})}

    def count_at_node(self, connection: Connection, run_id: str, index: int) -> dict[str, int]:
        """How many of a node's tasks are in which state."""
        rows = connection.execute(self._statuses_at_node, {"b_run": run_id, "b_node": index})
        return {row[0]: row[1] for row in rows}

    def list_results(self, connection: Connection, run_id: str, index: int) -> list[tuple[str, str, str | None]]:
        """Tasks of a node in order: (id, status, result shape)."""
        rows = connection.execute(self._results, {"b_run": run_id, "b_node": index})
        return [(task_id, status, shape) for task_id, status, shape in rows]

    def list_all(
        self,
        connection: Connection,
        run_id: str,
        *,
        node_index: int | None = None,
        status: str | None = None,
        limit: int | None = None,
        offset: int = 0,
    ) -> list[Row[Any]]:
        """Tasks of a run in order, those that undo others last; of a node, those that undo its tasks too."""
        task, query = self._tables.task, self._list
        if node_index is not None:
            query = query.where(task.c.node_index.in_((node_index, ~node_index)))
        if status is not None:
            query = query.where(task.c.status == status)
        if limit is not None:
            query = query.limit(limit).offset(offset)
        return list(connection.execute(query, {"b_run": run_id}))

    def list_bad_ends(self, connection: Connection, run_id: str, limit: int | None = None) -> list[Row[Any]]:
        """Tasks of a run that failed or crashed and say why, in order, those that undo others last."""
        return list(connection.execute(self._bad_ends.limit(limit), {"b_run": run_id}))

    def _guard(
        self, connection: Connection, statements: tuple[Update, Update], attempt: Attempt, **values: Any
    ) -> bool:
        fenced, unfenced = statements
        key = {"b_attempt": attempt.attempt_id, **values}
        if attempt.token is None:
            return connection.execute(unfenced, key).rowcount == 1
        return connection.execute(fenced, {**key, "b_token": attempt.token}).rowcount == 1


def select_first_open(task: Table, run: Table, *where: ColumnElement[bool]) -> ScalarSelect[Any]:
    """An open task of a run, or null: one look into the index of open tasks.

    Of EXISTS databases make a join that begins with every open task, a paused run's among them.
    """
    found = select(task.c.id).where(task.c.run_id == run.c.id, *where)
    return _by_open_index(found, task).limit(1).correlate(run).scalar_subquery()


def _by_open_index(statement: Select[Any], task: Table) -> Select[Any]:
    """Have tasks of one run and status read by the index of open tasks, as far as a limit goes and no further."""
    return read_by_index(statement, task, f"{task.name}_open", task.c.not_before)


def found_otherwise(column: ColumnElement[Any]) -> ColumnElement[Any]:
    """A column as no index has it: where ids say which tasks are meant, databases would rather read all of a status."""
    return func.coalesce(column, "")


def guard_outcome(task: Table, *, is_claimed: bool) -> tuple[ColumnElement[bool], ...]:
    """Whose outcome counts: the current attempt's, by its claim, or while it is open where it has none."""
    current = task.c.attempt_id == bindparam("b_attempt", type_=Id())
    if not is_claimed:
        return current, is_one_of(task.c.status, OPEN_TASK_STATUSES)
    return current, task.c.status == fixed(TaskStatus.RUNNING), task.c.claim_token == bindparam("b_token", type_=Id())


def list_completed_values() -> dict[str, Any]:
    """What a completion writes into its task."""
    return {
        "status": TaskStatus.COMPLETED.value,
        "ended_at": now(),
        "lease_until": None,
        "error": None,
        "result_shape": bindparam("b_shape"),
    }


def put_off(task: Table) -> ColumnElement[Any]:
    """When a task is due that is not to be sent before a delay, nor before it was due anyway."""
    earliest = now() + bindparam("b_delay")
    return case((task.c.not_before > earliest, task.c.not_before), else_=earliest)


def list_attempt_columns(task: Table) -> tuple[ColumnElement[Any], ...]:
    """What an Attempt is made of, in its fields' order."""
    return (
        task.c.attempt_id,
        task.c.claim_token,
        task.c.id,
        task.c.run_id,
        task.c.node_index,
        task.c.ordinal,
        task.c.number,
        task.c.retries,
        task.c.recoveries,
        task.c.worker_id,
        task.c.claimed_at,
        task.c.input_artifact_id,
        task.c.origin_artifact_id,
    )


def may_start(run: Table) -> ColumnElement[bool]:
    """Whether a run's open tasks may be published and claimed. After its end they undo it, or are finalisers'."""
    is_open = and_(run.c.status == RunStatus.RUNNING, not_(run.c.paused))
    return or_(is_open, is_one_of(run.c.epilogue, BUSY_EPILOGUES))


def _select_open_run(task: Table, run: Table) -> ScalarSelect[Any]:
    """A task's run if its tasks may be published, or null; like ``select_first_open`` no join that begins elsewhere."""
    found = select(run.c.id).where(run.c.id == task.c.run_id, may_start(run))
    return found.correlate(task).scalar_subquery()


def _guarded(statement: Update, fenced: Sequence[Any], unfenced: Sequence[Any]) -> tuple[Update, Update]:
    return statement.where(*fenced), statement.where(*unfenced)


def _history_row(attempt: Attempt, status: str, reason: str) -> dict[str, Any]:
    return {
        "attempt_id": attempt.attempt_id,
        "task_id": attempt.task_id,
        "run_id": attempt.run_id,
        "number": attempt.number,
        "status": str(status),
        "claim_token": attempt.token,
        "worker_id": attempt.worker_id,
        "claimed_at": attempt.claimed_at,
        "reason": reason,
    }


def _chunks(items: Sequence[str]) -> list[list[str]]:
    return [list(items[start : start + ID_CHUNK]) for start in range(0, len(items), ID_CHUNK)]

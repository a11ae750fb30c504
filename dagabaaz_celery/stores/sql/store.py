"""The SQL store: every event of the state machine, each one transaction that reports what it owes the world."""

import contextlib
import json
import logging
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

from sqlalchemy import URL, Connection
from sqlalchemy.exc import IntegrityError

from dagabaaz_celery import orchestrator
from dagabaaz_celery.constants import (
    RUN_TERMINAL_STATUSES,
    RunStatus,
    TaskStatus,
)
from dagabaaz_celery.errors import KeyConflict, Remedy, RunStateError, StoreError, UnknownRun
from dagabaaz_celery.filter import assign_origin
from dagabaaz_celery.json_door import find_problem_in_text
from dagabaaz_celery.pipeline import Definition
from dagabaaz_celery.store import TaskInputStore
from dagabaaz_celery.stores.sql import epilogue, reopening
from dagabaaz_celery.stores.sql.completions import is_large
from dagabaaz_celery.stores.sql.database import Database, call_while_alive
from dagabaaz_celery.stores.sql.definitions import CachedDefinition, DefinitionCache
from dagabaaz_celery.stores.sql.direct import Answer, savepoint
from dagabaaz_celery.stores.sql.engines import stands_alone
from dagabaaz_celery.stores.sql.owed import WorkerRow
from dagabaaz_celery.stores.sql.pruning import fingerprint
from dagabaaz_celery.stores.sql.records import (
    DEADLINE_EXCEEDED,
    OWED_KINDS,
    Aftermath,
    Attempt,
    AttemptContext,
    ClaimRefused,
    Dispatch,
    NewArtifact,
    NodeRow,
    Owed,
    OwedKind,
    Published,
    ResultShape,
    RollbackStatus,
    RunRow,
    TaskError,
    plain_value,
    to_result,
)
from dagabaaz_celery.stores.sql.runs import to_run, to_run_or_none
from dagabaaz_celery.stores.sql.schema import open_schema
from dagabaaz_celery.stores.sql.shared import SharedDatabase
from dagabaaz_celery.stores.sql.tables import BUSY_EPILOGUES, OPEN_TASK_STATUSES, build_tables, is_id, new_id
from dagabaaz_celery.stores.sql.tasks import ID_CHUNK, UNCLAIMED
from dagabaaz_celery.stores.sql.transaction import MICROSECONDS, Rows, RunTransaction, StorePolicy, refuse_pruned
from dagabaaz_celery.task_input import build_task_input, resolve_task_bindings

logger = logging.getLogger(__name__)
#: Seconds that a body is given to end by itself when its time is over: Celery's own soft limit comes first.
OVERDUE_GRACE = 1.0
#: Seconds that it has after Celery's soft limit; then a prefork pool kills its process.
KILL_AFTER = 5.0
T = TypeVar("T")

# The store records a run's end with its callback; nothing is called inside a transaction.
_NO_CALLBACKS = orchestrator.OrchestratorCallbacks(*(lambda run_id: None,) * 3)


class _NotOurs(Exception):
    """The open tasks are no part of what ended: a retry made them, or they follow the run's end."""


@dataclass(frozen=True, slots=True)
class Started:
    """The run that a start gave; ``created`` is False when its key was taken by an equal run."""

    run: RunRow
    created: bool
    aftermath: Aftermath


@dataclass(frozen=True, slots=True)
class Work:
    """An attempt with what its outcome needs to be recorded.

    ``left`` tells how many tasks of its node were not done when it was claimed, itself among them; 0 where unknown.
    """

    attempt: Attempt
    definition_hash: str
    input_origin_id: str | None
    left: int = 0


@dataclass(frozen=True, slots=True)
class Claimed:
    """A claim that won: the work and its input, or the reason why the input could not be made."""

    work: Work
    input: dict[str, Any]
    input_error: Exception | None


class SqlStore:
    """Runs and their barriers in a SQL database, behind one SQLAlchemy URL.

    Nothing connects until the first call. Every method is one transaction, or several small ones where it says so.
    """

    def __init__(
        self,
        url: str | URL,
        *,
        prefix: str = "dagabaaz_",
        schema: str | None = None,
        policy: StorePolicy | None = None,
        auto_migrate: bool = True,
        shared: SharedDatabase | None = None,
    ) -> None:
        self.url = url
        self.policy = policy or StorePolicy()
        self.tables = build_tables(prefix, schema)
        self.rows = Rows(self.tables)
        self.shared = shared
        self._database = Database(url, shared)
        self.definitions = DefinitionCache(self.rows.runs)
        self._auto_migrate = auto_migrate
        self._id: str | None = None
        self._reset_lock()
        os.register_at_fork(after_in_child=call_while_alive(self._reset_lock))

    def _reset_lock(self) -> None:
        """A forked child starts with a lock that nobody holds."""
        self._opening = threading.Lock()

    @property
    def database(self) -> Database:
        """Where the rows are; a shared one may be called something else since, as in tests."""
        if self.shared is not None and (url := self.shared.url) is not self._database.url:
            self._database.close()
            self._database, self._id = Database(url, self.shared), None
        return self._database

    @property
    def id(self) -> str:
        """The store's own id; its first use checks the store and, where allowed, brings its schema up to date."""
        database = self.database
        if self._id is None:
            with self._opening:
                self._id = self._id or open_schema(database, self.tables, may_migrate=self._auto_migrate)
        return self._id

    @property
    def is_in_apps_transaction(self) -> bool:
        """Whether what this thread wrote now would be committed with the app's own rows, later, or never."""
        return self.shared is not None and self.shared.awaits_commit()

    def close(self) -> None:
        """Close every pooled connection."""
        self._database.close()

    # -- definitions

    def save_pipeline(self, definition: Definition, version: int | None) -> int:
        """Store a version of a pipeline and return it; None: the next free one, or the latest if nothing changed."""
        digest, body = definition.content_hash(), definition.to_json()

        def work(connection: Connection) -> int:
            self.rows.runs.ensure_definition(
                connection, digest, body, self.rows.runs.ask_unused_since(connection, digest)
            )
            latest = self.rows.pipelines.get(connection, definition.name, None)
            number = version
            if number is None:
                number = 1 if latest is None else latest[0] + 1
                if (
                    latest is not None
                    and self.rows.pipelines.get_hash(connection, definition.name, latest[0]) == digest
                ):
                    return latest[0]
            self.rows.pipelines.insert_or_nothing(connection, definition.name, number, digest)
            if self.rows.pipelines.get_hash(connection, definition.name, number) != digest:
                raise KeyConflict(
                    f"Version {number} of pipeline {definition.name!r} is stored with another definition, and runs may "
                    "use it. Save the change under a new version, or leave the version out to get the next one."
                )
            return number

        return self.transact(work)

    def find_pipeline(self, name: str, version: int | None) -> tuple[int, Definition] | None:
        """A saved pipeline, its latest version when none is given."""
        if find_problem_in_text(name):
            return None
        with self.read() as connection:
            found = self.rows.pipelines.get(connection, name, version)
        return None if found is None else (found[0], Definition.from_json(found[1]))

    def list_pipelines(self) -> dict[str, int]:
        """Saved pipelines with their latest version."""
        with self.read() as connection:
            return self.rows.pipelines.list_names(connection)

    def definition_of(self, digest: str) -> CachedDefinition:
        """The definition that a run was started from."""
        found = self.definitions.peek(digest)
        if found is not None:
            return found
        with self.read() as connection:
            return self.definitions.get(connection, digest)

    # -- start

    def start(
        self,
        definition: Definition,
        input_text: str,
        *,
        run_id: str,
        key: str | None = None,
        version: int | None = None,
        options: dict[str, Any] | None = None,
        timeout: float | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> Started:
        """Create a run and launch its roots; the same key with the same input gives the run that has it.

        ``timeout`` are the seconds that it may take; the definition's where None. ``run_id`` is the caller's, so that a
        repeat after a lost answer finds the run. A run that is there keeps the tags that it has. Raises KeyConflict.
        """
        digest = definition.content_hash()
        cached = self.definitions.put(digest, definition)

        def work(connection: Connection) -> Started:
            run, is_new = self._ensure_run(
                connection,
                definition,
                digest,
                input_text,
                run_id=run_id,
                key=key,
                version=version,
                options=options or {},
                timeout=timeout or definition.timeout,
                tags=tags or {},
            )
            if not is_new:
                self._refuse_other_input(connection, run, input_text)
                return Started(run, run.id == run_id, Aftermath())
            transaction = self.transaction(connection, run_id)
            transaction.note_created(run, cached.topology.roots)
            orchestrator.start_run(transaction, run_id, definition.nodes, topology=cached.topology)
            transaction.flush()
            transaction.aftermath.started = True
            return Started(transaction.run, True, transaction.aftermath)

        return self.transact(work)

    def _ensure_run(
        self, connection: Connection, definition: Definition, digest: str, input_text: str, **given: Any
    ) -> tuple[RunRow, bool]:
        """The run that has the key, or the id, and whether it was made here."""
        runs, pipeline, key = self.rows.runs, definition.name, given["key"]

        def ask() -> Answer:
            if key is None:
                return runs.ask(connection, given["run_id"])
            return runs.ask_lock_by_key(connection, pipeline, key)

        asked, unused_since = ask(), runs.ask_unused_since(connection, digest)
        existing = to_run_or_none(asked.first())
        if existing is not None:
            return existing, False
        runs.ensure_definition(connection, digest, definition.to_json(), unused_since)
        try:
            return self._insert_run(connection, definition, digest, input_text, **given), True
        except IntegrityError:  # somebody else was quicker
            existing = to_run_or_none(ask().first())
            if existing is None:
                raise
            return existing, False

    def _insert_run(
        self, connection: Connection, definition: Definition, digest: str, input_text: str, **given: Any
    ) -> RunRow:
        """The new run with its nodes and tags. Raises IntegrityError where its id or key is taken."""
        row = {
            "id": given["run_id"],
            "pipeline": definition.name,
            "version": given["version"],
            "definition_hash": digest,
            "run_key": given["key"],
            "input": input_text,
            "options": json.dumps(given["options"]),
            "status": RunStatus.RUNNING.value,
            "paused": False,
            "generation": 1,
            "nodes_total": len(definition.nodes) - len(definition.finalisers),
            "nodes_done": 0,
            "rollback_status": "none",
            "b_timeout": None if given["timeout"] is None else int(given["timeout"] * MICROSECONDS),
        }
        with savepoint(connection):
            self.rows.runs.insert(connection, row)
            self.rows.nodes.insert(connection, given["run_id"], dict.fromkeys(range(len(definition.nodes)), 0))
            self.rows.tags.insert(connection, given["run_id"], given["tags"])
            locked = self.rows.runs.ask_lock(connection, given["run_id"])
        return to_run(locked.one())

    def _refuse_other_input(self, connection: Connection, existing: RunRow, input_text: str) -> None:
        if self.rows.runs.get_input_text(connection, existing.id) not in (input_text, fingerprint(input_text)):
            raise KeyConflict(
                f"Pipeline {existing.pipeline!r} already has a run with key {existing.key!r} ({existing.id}), "
                "started with other input. Use another key for other work; the run was left as it is."
            )

    # -- claim

    def claim(
        self, attempt_id: str, token: str, worker_id: str | None, *, may_hand_back: bool = True
    ) -> Claimed | ClaimRefused:
        """Start an attempt's body if nobody did, and read its input, which is what it is from the launch on.

        ``may_hand_back``: an attempt refused for a pause is owed again; not so for one whose body runs all the same.
        """

        def work(connection: Connection) -> Claimed | ClaimRefused:
            found = self.rows.claims.try_claim(connection, attempt_id, token, worker_id)
            if found is None:
                reason = self.rows.claims.explain_refusal(connection, attempt_id)
                if may_hand_back and self.rows.claims.hand_back(connection, attempt_id):
                    reason += "; it is owed again"
                return ClaimRefused(attempt_id, reason)
            claimed, is_whole = self._read_input(connection, found)
            if is_whole or not stands_alone(connection):
                return claimed
            # A retry of the run may have come between what was read: then the claim is gone, too.
            if self.rows.claims.find_claim(connection, attempt_id, token) is None:
                return ClaimRefused(attempt_id, "the attempt was superseded while its input was read")
            return claimed

        return self.transact_each(work)

    def lend_to_celery(self, attempt_id: str, *, delay: float, retries: int) -> None:
        """Celery itself sends a running attempt again after ``delay`` seconds; the sweep does, should that be lost."""
        lease = int(delay * MICROSECONDS) + self._resend_after
        self.transact(lambda connection: self.rows.claims.lend(connection, attempt_id, lease=lease, retries=retries))

    def read_input(self, attempt_id: str) -> Claimed | None:
        """The input of a task that is not fenced, for its message; None when the attempt is not current."""
        with self.read() as connection:
            found = self.rows.claims.find(connection, attempt_id)
            return None if found is None else self._read_input(connection, found)[0]

    def find_work(self, attempt_id: str) -> Work | None:
        """The work whose current attempt this is, as an unfenced outcome needs it."""
        with self.read() as connection:
            found = self.rows.claims.find(connection, attempt_id)
        return None if found is None else _to_work(found)

    def _read_input(self, connection: Connection, found: AttemptContext) -> tuple[Claimed, bool]:
        """The input of an attempt, and whether it is of one moment: only what came with the attempt was read."""
        work, attempt = _to_work(found), found.attempt
        cached = self.definitions.get(connection, work.definition_hash)
        transaction = self.transaction(connection, attempt.run_id)
        if found.artifact is not None and attempt.input_artifact_id is not None:
            transaction.note_artifact(attempt.input_artifact_id, found.artifact)
        try:
            task_input = assemble_input(transaction, attempt, cached)
            if attempt.node_index < 0:
                task_input["result"] = self._read_result(connection, attempt)
            claimed = Claimed(work, task_input, None)
        except (ValueError, LookupError, TypeError) as error:
            claimed = Claimed(work, {}, error)
        return claimed, not transaction.has_read_artifacts and attempt.node_index >= 0

    def _read_result(self, connection: Connection, attempt: Attempt) -> Any:
        """What the task that an attempt undoes has returned; None where it did not complete."""
        index = ~attempt.node_index
        found = self.rows.tasks.find_at(connection, attempt.run_id, index, attempt.ordinal)
        if found is None or found[1] is None:
            return None
        values = self.rows.artifacts.values_of_task(connection, attempt.run_id, index, found[0])
        return to_result([plain_value(artifact, shape) for shape, artifact in values], found[1])

    # -- outcome

    def complete(self, work: Work, artifacts: Sequence[NewArtifact], shape: ResultShape) -> Aftermath | None:
        """Record a success and advance the run; None when the attempt lost its guard and nothing was changed."""

        attempt, rows, completions = work.attempt, self._artifact_rows(work, artifacts), self.rows.completions
        definition = self.definition_of(work.definition_hash)
        leaves_open = self._may_leave_open(work) and not is_large(rows)
        may_be_last = leaves_open or work.left == 1
        is_last = may_be_last and self.database.makes_round_trips and attempt.node_index >= 0

        def transition(connection: Connection) -> Aftermath | None:
            transaction = self.transaction(connection, attempt.run_id)

            def ask_ahead() -> None:
                transaction.ask_ahead(definition, attempt.node_index)

            counted = completions.try_complete(
                connection, attempt, rows, shape, ask_ahead=ask_ahead if is_last else None
            )
            if counted is None:
                return self._answer_repeat(self.rows.tasks.is_recorded(connection, attempt, TaskStatus.COMPLETED))
            return self._go_on(transaction, work, *counted)

        if leaves_open:
            # Where it is one statement, that may stand alone.
            transact = self.transact_each if self.database.writes_in_queries else self.transact
            if transact(lambda connection: completions.try_leave_open(connection, attempt, rows, shape)):
                return Aftermath()
        return self.transact(transition)

    def _may_leave_open(self, work: Work) -> bool:
        """Whether it is worth trying to complete an attempt as one that does not close its node.

        On SQLite nothing is gained: its statements make no round trips.
        """
        definition = self.definition_of(work.definition_hash).definition
        has_epilogue = bool(definition.undoable or definition.finalisers)
        return work.left > 1 and not has_epilogue and self.database.makes_round_trips

    def _count_done(self, connection: Connection, work: Work) -> Aftermath:
        """Count a task at its node's barrier, and go on where that was the last."""
        node = self.rows.nodes.count_done(connection, work.attempt.run_id, work.attempt.node_index)
        return self._go_on(self.transaction(connection, work.attempt.run_id), work, node)

    def _go_on(self, transaction: RunTransaction, work: Work, node: NodeRow, run: RunRow | None = None) -> Aftermath:
        """Close a node where a task that was counted at it was the last; ``run`` where it is locked already."""
        if node.tasks_done < node.tasks_total:
            return self._remind_of_epilogue(transaction.connection, work)
        return self._advance(transaction, work.attempt, node, run)

    def _remind_of_epilogue(self, connection: Connection, work: Work) -> Aftermath:
        """What waits for the last bodies of a run that has ended is told that one is over."""
        definition = self.definitions.get(connection, work.definition_hash).definition
        if not (definition.undoable or definition.finalisers):
            return Aftermath()
        transaction = self.transaction(connection, work.attempt.run_id)
        if self.require_run(connection, work.attempt.run_id).epilogue == "waiting":
            transaction.remind_of_epilogue()
        return transaction.aftermath

    def _advance(self, transaction: RunTransaction, attempt: Attempt, node: NodeRow, run: RunRow | None) -> Aftermath:
        """The completion that closes its node looks at what became ready, the run being locked."""
        if run is not None:
            transaction.note_locked(run)
        transaction.note_settled(attempt)
        if transaction.run.status != RunStatus.RUNNING:
            epilogue.note_node_done(transaction, node)
            transaction.flush()
            return transaction.aftermath
        transaction.note_node(node)
        transaction.close_node(node.index)
        topology = transaction.definition.topology
        children = topology.children[node.index]
        transaction.load_nodes([*children, *(dep for child in children for dep in topology.deps[child])])
        orchestrator.on_task_complete(
            transaction,
            task_id=attempt.task_id,
            callbacks=_NO_CALLBACKS,
            resolve_passthrough=transaction.definition.definition.is_passthrough,
            max_fan_out=self.policy.max_fan_out,
            topology=topology,
        )
        transaction.flush()
        return transaction.aftermath

    def fail(
        self, work: Work, error: TaskError, status: TaskStatus = TaskStatus.FAILED, *, began: bool = True
    ) -> Aftermath | None:
        """Record a failure (or CRASHED, or CANCELLED) and end the run; None when the attempt lost its guard.

        The run goes on where the node's policy says so, and always from a task that runs after its end. ``began``: the
        body was called, so that it may have done what is to be undone.
        """
        attempt = work.attempt
        definition = self.definition_of(work.definition_hash).definition
        node = definition.node_of(attempt.node_index)
        is_after_end = attempt.node_index < 0 or node.run_on is not None
        is_tolerated = node.on_failure != "fail" and status is not TaskStatus.CRASHED and not is_after_end
        if is_tolerated:
            status = TaskStatus.FAILED  # also where it was revoked: only so it counts at the barrier

        def transition(connection: Connection) -> Aftermath | None:
            if not self.rows.tasks.try_end(connection, attempt, status, json.dumps(asdict(error)), began=began):
                return self._answer_repeat(self.rows.tasks.is_recorded(connection, attempt, status))
            if is_after_end or is_tolerated:
                return self._count_done(connection, work)
            transaction = self.transaction(connection, attempt.run_id)
            transaction.note_settled(attempt)
            transaction.explain(error, node=transaction.slug(attempt.node_index), task_id=attempt.task_id)
            message = f"{error.type}: {error.message}" if error.type else error.message
            if status is TaskStatus.CANCELLED:
                orchestrator.abort_run(
                    transaction,
                    run_id=attempt.run_id,
                    reason=message,
                    callbacks=_NO_CALLBACKS,
                    status=RunStatus.CANCELLED,
                )
            elif status is TaskStatus.CRASHED:
                orchestrator.on_task_crashed(
                    transaction, task_id=attempt.task_id, error_message=message, callbacks=_NO_CALLBACKS
                )
            else:
                orchestrator.on_task_failed(
                    transaction, task_id=attempt.task_id, error_message=message, callbacks=_NO_CALLBACKS
                )
            if transaction.run.epilogue == "waiting" and not transaction.aftermath.owed:
                transaction.remind_of_epilogue()
            transaction.flush()
            return transaction.aftermath

        return self.transact(transition)

    def retry_attempt(self, work: Work, *, delay: float, retries: int, error: TaskError) -> Aftermath | None:
        """Replace an attempt by the next one, due after ``delay`` seconds; None when it lost its guard."""
        return self._supersede(work, delay=delay, retries=retries, recoveries=work.attempt.recoveries, reason=error)

    def rescue(self, work: Work, reason: TaskError, max_recoveries: int) -> Aftermath | None:
        """Dispatch lost work again, or crash it when it was lost too often or may not run twice.

        None when the attempt was not lost after all: its guard did not hold.
        """
        on_lost = self.definition_of(work.definition_hash).definition.on_lost_of(work.attempt.node_index)
        if on_lost == "crash":
            return self.fail(work, _with(reason, 'and its node says on_lost="crash"'), TaskStatus.CRASHED)
        if work.attempt.recoveries >= max_recoveries:
            limit = f"and the task was lost {max_recoveries + 1} times (dagabaaz_max_recoveries is {max_recoveries})"
            return self.fail(work, _with(reason, limit), TaskStatus.CRASHED)
        attempt = work.attempt
        return self._supersede(work, delay=0, retries=attempt.retries, recoveries=attempt.recoveries + 1, reason=reason)

    def _supersede(
        self, work: Work, *, delay: float, retries: int, recoveries: int, reason: TaskError
    ) -> Aftermath | None:
        new_attempt_id = new_id()
        attempt = work.attempt
        is_short = delay <= self.policy.short_delay

        def transition(connection: Connection) -> Aftermath | None:
            won = self.rows.tasks.try_supersede(
                connection,
                attempt,
                new_attempt_id,
                retries=retries,
                recoveries=recoveries,
                delay=int(delay * MICROSECONDS),
                # A delay within a sweep's time is left to the broker; should that lose it, the sweep has it then.
                lease=int(delay * MICROSECONDS) + self._lease if is_short else None,
                reason=reason,
            )
            if not won:
                return self._answer_repeat(self.rows.tasks.is_superseded(connection, attempt))
            aftermath = self._remind_of_epilogue(connection, work)
            if not is_short:
                return aftermath
            dispatch = Dispatch(
                new_attempt_id,
                attempt.task_id,
                attempt.run_id,
                attempt.node_index,
                work.definition_hash,
                retries,
                self.require_run(connection, attempt.run_id).options,
                delay,
            )
            aftermath.publish.append(dispatch)
            return aftermath

        return self.transact(transition)

    def _answer_repeat(self, is_own: bool) -> Aftermath | None:
        """A lost guard is done, not refused, when what is recorded is this very call, made before and not answered.

        What its commit owed is leased to nobody for long: the sweep does it.
        """
        return Aftermath() if is_own else None

    def _artifact_rows(self, work: Work, artifacts: Sequence[NewArtifact]) -> list[dict[str, Any]]:
        attempt = work.attempt
        if not artifacts or attempt.node_index < 0:  # what undoes another task produces nothing for others
            return []
        topology = self.definition_of(work.definition_hash).topology
        node = topology.nodes[attempt.node_index]
        rows = []
        for ordinal, new in enumerate(artifacts):
            artifact_id = new_id()
            origin = assign_origin(
                node=node,
                is_root=not topology.deps[attempt.node_index],
                artifact_id=artifact_id,
                input_artifact_id=attempt.input_artifact_id,
                input_origin_id=work.input_origin_id,
                group_origin_id=attempt.origin_artifact_id,
            )
            rows.append(
                {
                    "id": artifact_id,
                    "run_id": attempt.run_id,
                    "node_index": attempt.node_index,
                    "task_id": attempt.task_id,
                    "task_ordinal": attempt.ordinal,
                    "ordinal": ordinal,
                    "shape": new.shape,
                    "file_path": new.artifact.file_path,
                    "file_name": new.artifact.file_name,
                    "file_size": new.artifact.file_size,
                    "mime_type": new.artifact.mime_type,
                    "metadata": new.metadata_json,
                    "origin_artifact_id": origin,
                }
            )
        return rows

    # -- the run as a whole

    def cancel(self, run_id: str, reason: str, *, again: bool = False) -> Aftermath:
        """Cancel an open run alone; its tasks follow by ``cancel_rest``.

        A run that has ended is left as it is; its cancelled tasks are still to follow where they have not. A repeat
        after a lost answer says ``again``: a run that was cancelled for this reason was then ended by that call.
        """

        def work(connection: Connection) -> Aftermath:
            transaction = self.transaction(connection, run_id)
            error = TaskError("Cancelled", reason)
            before = transaction.run
            transaction.explain(error, node=None, task_id=None)
            transaction.aftermath.ended_run = orchestrator.abort_run(
                transaction, run_id=run_id, reason=reason, callbacks=_NO_CALLBACKS, status=RunStatus.CANCELLED
            ) or (again and before.status == RunStatus.CANCELLED and before.error == _whole_run(error))
            transaction.flush()
            if not transaction.aftermath.owed:
                transaction.aftermath.owed += self.rows.owed.list_of_run(connection, run_id, ["cancel"])
            return transaction.aftermath

        return self.transact(work)

    def cancel_rest(self, owed: Owed) -> list[str]:
        """Cancel the open tasks of a run that ended, in batches; returns the attempt ids that were running.

        Where something follows the run's end, what runs is left to come to its own end first.
        """
        running = self._cancel_open(owed)
        self.settle_owed(owed)
        return running

    def _cancel_open(self, owed: Owed) -> list[str]:
        running: list[str] = []
        error = json.dumps(asdict(TaskError("Cancelled", f"the run is {owed.status}")))
        with self.read() as connection:
            ended = self.rows.runs.get(connection, owed.run_id)
            definition = None if ended is None else self._find_definition(connection, ended.definition_hash)
        # By what the definition says, which does not change: the run may end once more before the first batch.
        is_followed = definition is not None and (definition.undoable or definition.finalisers)
        statuses = UNCLAIMED if is_followed else OPEN_TASK_STATUSES

        def batch(connection: Connection) -> bool:
            cancelled = self.rows.tasks.cancel_some(connection, owed.run_id, self.policy.cancel_batch, error, statuses)
            run = self.rows.runs.lock(connection, owed.run_id)
            # What is open in a busy epilogue follows the run's end, and is no part of what ended.
            if run is None or run.status not in RUN_TERMINAL_STATUSES or run.epilogue in BUSY_EPILOGUES:
                raise _NotOurs
            if cancelled is None:
                return False
            running.extend(cancelled)
            return True

        with contextlib.suppress(_NotOurs):  # that batch is taken back
            while self.transact(batch):
                pass
        return running

    def find_outlasting(self, owed: Owed) -> list[str]:
        """The attempt ids of bodies that are at work although their run has ended; not of what follows that end."""
        with self.read() as connection:
            return self.rows.tasks.find_outlasting(connection, owed.run_id, owed.generation)

    def continue_launch(self, owed: Owed, items: Sequence[tuple[str | None, str | None]] | None = None) -> Aftermath:
        """Make the next batch of a wide launch; deletes what was owed when it was the last, or the run has ended.

        ``items`` are those of the batch before, as its aftermath has them: while a launch goes on they stay the same.
        """

        def work(connection: Connection) -> Aftermath:
            transaction = self.transaction(connection, owed.run_id)
            if owed.node_index < 0:
                return self._continue_undoing(transaction, owed)
            run, node = transaction.run, transaction.node(owed.node_index)
            if run.status != RunStatus.RUNNING or run.generation != owed.generation or node.status != "launching":
                self.rows.owed.delete(connection, owed.id)
                return Aftermath()
            planned = self._plan_again(transaction, node) if items is None else items
            if len(planned) != node.tasks_total:
                self._report_changed_launch(transaction, node, len(planned))
                self.rows.owed.postpone(connection, owed.id, self._lease)
                return Aftermath()
            if transaction.continue_launch(owed.node_index, planned):
                self.rows.owed.postpone(connection, owed.id, self._lease)
                transaction.aftermath.owed.append(owed)
                transaction.aftermath.items = planned
            else:
                self.rows.owed.delete(connection, owed.id)
            return transaction.aftermath

        return self.transact(work)

    def _continue_undoing(self, transaction: RunTransaction, owed: Owed) -> Aftermath:
        run = transaction.run
        undoing = self.rows.nodes.get_some(transaction.connection, run.id, [owed.node_index])
        is_due = run.epilogue == "rollback" and run.generation == owed.generation
        if is_due and undoing and undoing[0].status == "launching" and transaction.continue_undoing(undoing[0]):
            self.rows.owed.postpone(transaction.connection, owed.id, self._lease)
            transaction.aftermath.owed.append(owed)
        else:
            self.rows.owed.delete(transaction.connection, owed.id)
        return transaction.aftermath

    def follow_end(self, owed: Owed) -> Aftermath:
        """Begin what follows a run's end, unless a body of the run is still at work: then later."""
        self._cancel_open(owed)  # also what a lost worker or a retry of Celery's has put back meanwhile

        def work(connection: Connection) -> Aftermath:
            transaction = self.transaction(connection, owed.run_id)
            run = transaction.run
            is_due = run.epilogue == "waiting" and run.generation == owed.generation
            tasks = self.rows.tasks
            if is_due and (
                tasks.has_open(connection, owed.run_id) or tasks.has_body_beyond_deadline(connection, owed.run_id)
            ):
                self.rows.owed.postpone(connection, owed.id, int(self.policy.short_delay * MICROSECONDS))
                return Aftermath()
            self.rows.owed.delete(connection, owed.id)
            if is_due:
                epilogue.begin(transaction)
                transaction.flush()
            return transaction.aftermath

        return self.transact(work)

    def roll_back(self, run_id: str, *, after: RollbackStatus | None = None) -> Aftermath:
        """Undo a run that has ended, or try again where that failed. Raises RunStateError, UnknownRun.

        A repeat after a lost answer says ``after`` which status of the rollback it was asked in: if it is another now,
        it is done.
        """

        def work(connection: Connection) -> Aftermath:
            transaction = self.transaction(connection, run_id)
            if self.require_run(connection, run_id).rollback_status == "failed":
                self.rows.tasks.lock_of_run(connection, run_id)  # some get another attempt: the run's lock comes last
                self.rows.nodes.lock_all(connection, run_id)
            if after is not None and transaction.run.rollback_status != after:
                return Aftermath()
            epilogue.start_rollback(transaction)
            transaction.flush()
            return transaction.aftermath

        return self.transact(work)

    # -- deadlines

    def find_overdue_tasks(self, limit: int) -> list[tuple[Work, float]]:
        """Running attempts whose node's timeout is over, each with that timeout in seconds.

        Where runs are undone, a pool that can end bodies is given the time for it: nothing is undone beside them.
        """
        grace = int(OVERDUE_GRACE * MICROSECONDS)
        with self.read() as connection:
            found = self.rows.tasks.find_overdue(connection, grace=grace, limit=limit)
            last = self.rows.tasks.read_clock(connection) - grace - int(KILL_AFTER * MICROSECONDS) if found else 0
            return [
                (Work(attempt, digest, None), timeout / MICROSECONDS)
                for attempt, digest, timeout in found
                if (attempt.claimed_at or 0) + timeout <= last or not self._may_be_undone(connection, digest)
            ]

    def _may_be_undone(self, connection: Connection, digest: str) -> bool:
        definition = self._find_definition(connection, digest)
        return definition is not None and bool(definition.undoable)

    def _find_definition(self, connection: Connection, digest: str) -> Definition | None:
        """None when it was deleted: that is no reason not to look after other runs."""
        try:
            return self.definitions.get(connection, digest).definition
        except StoreError:
            return None

    def find_overdue_runs(self, limit: int) -> list[str]:
        """Open runs that have had their time."""
        with self.read() as connection:
            return self.rows.runs.find_overdue(connection, limit)

    def expire(self, run_id: str) -> Aftermath:
        """Fail a run that has had its time; one that has ended, or was retried meanwhile, is left as it is."""

        def work(connection: Connection) -> Aftermath:
            transaction = self.transaction(connection, run_id)
            timeout = (transaction.run.timeout or 0) / MICROSECONDS
            if not self.rows.runs.is_overdue(connection, run_id):
                return Aftermath()
            reason = f"the run has not ended within its {timeout:g} s"
            transaction.explain(TaskError(DEADLINE_EXCEEDED, reason), node=None, task_id=None)
            orchestrator.abort_run(transaction, run_id=run_id, reason=reason, callbacks=_NO_CALLBACKS)
            transaction.flush()
            return transaction.aftermath

        return self.transact(work)

    def _plan_again(self, transaction: RunTransaction, node: NodeRow) -> list[tuple[str | None, str | None]]:
        """All (input artifact, origin) items of a node that is being launched, in the order of its first plan."""
        plan = orchestrator.plan_node_launch(
            transaction,
            transaction.run_id,
            node.index,
            transaction.definition.topology,
            max_fan_out=node.tasks_total,  # it was judged when the launch began, maybe by another process's setting
        )
        return [(None, item) if plan.kind == "grouped" else (item, None) for item in plan.items]

    def _report_changed_launch(self, transaction: RunTransaction, node: NodeRow, count: int) -> None:
        logger.critical(
            "node %r of run %s was to get %d tasks and would now get %d: artifacts were changed in the database. "
            "The rest of its tasks is not made; restore the artifacts, or cancel the run",
            transaction.slug(node.index),
            transaction.run_id,
            node.tasks_total,
            count,
        )

    def retry(
        self,
        run_id: str,
        *,
        after: int | None = None,
        from_node: str | None = None,
        carried: Mapping[str, str] | None = None,
    ) -> Aftermath:
        """Run again, in the next generation, what did not complete, and ``from_node`` with all that depends on it.

        A repeat after a lost answer says ``after`` which generation it was asked for: if that is past, it is done.
        ``carried`` replaces what travels with the run for observers, where there are any.
        Raises RunStateError, UnknownRun, UnknownNode.
        """

        def work(connection: Connection) -> Aftermath:
            transaction = self.transaction(connection, run_id)
            # Locks in the order task, node, run: outcomes of the old generation may still be arriving.
            self.rows.tasks.lock_of_run(connection, run_id)
            self.rows.nodes.lock_all(connection, run_id)
            if after is not None and transaction.run.generation > after:
                return Aftermath()
            if carried:
                transaction.set_carried(carried)
            reopening.reopen(transaction, from_node)
            self._reconcile(transaction)
            transaction.flush()
            transaction.aftermath.started = True
            return transaction.aftermath

        return self.transact(work)

    def reconcile(self, run_id: str) -> Aftermath:
        """Look at every node of a running run: close what is complete, launch what is ready, end what is over."""

        def work(connection: Connection) -> Aftermath:
            transaction = self.transaction(connection, run_id)
            if transaction.run.status != RunStatus.RUNNING:
                return Aftermath()
            self._reconcile(transaction)
            transaction.flush()
            return transaction.aftermath

        return self.transact(work)

    def _reconcile(self, transaction: RunTransaction) -> None:
        for node in transaction.load_all_nodes():
            if node.status == "launched" and node.tasks_done == node.tasks_total:
                transaction.close_node(node.index)
        orchestrator.reconcile_run(
            transaction,
            transaction.run_id,
            callbacks=_NO_CALLBACKS,
            resolve_passthrough=transaction.definition.definition.is_passthrough,
            max_fan_out=self.policy.max_fan_out,
            topology=transaction.definition.topology,
        )

    def set_paused(self, run_id: str, paused: bool) -> None:
        """Hold or release an open run. Raises RunStateError, UnknownRun."""

        def work(connection: Connection) -> None:
            run = self.require_run(connection, run_id)
            if not self.rows.runs.try_set_paused(connection, run_id, paused):
                raise RunStateError(f"Run {run_id} is {run.status}: only an open run can be paused or resumed.")

        self.transact(work)

    # -- publishing and what is owed

    def lease_due_tasks(self, limit: int) -> list[Dispatch]:
        """Take tasks that are owed to the queue; whoever took them publishes them."""
        return self.transact(lambda connection: self.rows.tasks.lease_due(connection, limit=limit, lease=self._lease))

    def mark_queued(self, attempt_ids: Sequence[str], queue: str | None = None, *, age: float = 0.0) -> None:
        """Record that these attempts were published to a queue (None: unknown, their loss goes unnoticed).

        ``age``: so many seconds ago.
        """
        times = (self._resend_after, int(age * MICROSECONDS))
        for start in range(0, len(attempt_ids), ID_CHUNK):
            chunk = attempt_ids[start : start + ID_CHUNK]
            self.transact_each(lambda c, chunk=chunk: self.rows.tasks.mark_queued(c, chunk, queue, *times))  # type: ignore[misc]

    def list_waiting_queues(self, *, within: float = 0.0) -> dict[str, int]:
        """Queues in which a published task waits whose lease ends ``within`` seconds, with all that wait there."""
        with self.read() as connection:
            return self.rows.tasks.list_waiting_queues(connection, within=int(within * MICROSECONDS))

    def count_queued_among(self, queue: str, attempt_ids: Sequence[str]) -> int:
        """How many of these attempts are published to the queue and not claimed."""
        with self.read() as connection:
            return self.rows.tasks.count_queued_among(connection, queue, attempt_ids)

    def read_clock(self) -> int:
        """The database's time, in microseconds."""
        with self.read() as connection:
            return self.rows.tasks.read_clock(connection)

    def find_published(self, attempt_ids: Sequence[str]) -> list[Published]:
        """Those of these attempts that were published once, to a known queue, whatever became of them since."""
        with self.read() as connection:
            return self.rows.tasks.find_published(connection, attempt_ids)

    def find_sent_before(
        self, queue: str, before: int, limit: int, *, within: float = 0.0
    ) -> list[tuple[Dispatch, int]]:
        """Attempts that wait in a queue, last sent before a time, whose lease ends ``within`` seconds; with when."""
        micros = int(within * MICROSECONDS)
        with self.read() as connection:
            return self.rows.tasks.find_sent_before(connection, queue, before, limit=limit, within=micros)

    def lease_lost_tasks(self, attempt_ids: Sequence[str], *, within: float = 0.0) -> list[Dispatch]:
        """Take attempts whose messages are lost and whose lease ends ``within`` seconds, to send them again."""
        micros = int(within * MICROSECONDS)
        return self.transact(
            lambda connection: self.rows.tasks.lease_lost(connection, attempt_ids, self._resend_after, within=micros)
        )

    def mark_resent(self, attempt_ids: Sequence[str]) -> None:
        """Record that these lost attempts were sent again by now: the order of sending tells what is lost next."""
        self.transact(lambda connection: self.rows.tasks.mark_resent(connection, attempt_ids, self._resend_after))

    def release(self, attempt_ids: Sequence[str]) -> None:
        """These could not be published: whoever sweeps next may."""
        self.transact(lambda connection: self.rows.tasks.release(connection, attempt_ids))

    def postpone(self, attempt_ids: Sequence[str], seconds: float) -> None:
        """These could not be published: whoever sweeps then may."""
        delay = int(seconds * MICROSECONDS)
        self.transact(lambda connection: self.rows.tasks.postpone(connection, attempt_ids, delay))

    def set_progress(self, attempt: Attempt, done: int, total: int) -> None:
        """Show how far a running attempt is."""
        self.transact(lambda connection: self.rows.tasks.set_progress(connection, attempt, done, total))

    def is_current(self, attempt_id: str) -> bool:
        """Whether an attempt may still report an outcome that counts."""
        with self.read() as connection:
            return self.rows.tasks.is_current(connection, attempt_id)

    def is_wanted(self, attempt_id: str) -> bool:
        """Whether what an attempt does is still of use."""
        with self.read() as connection:
            return self.rows.tasks.is_wanted(connection, attempt_id)

    def return_unknown(self, attempt_id: str, pause: float) -> None:
        """Owe an unclaimed attempt again after ``pause`` seconds; one that is not waiting any more is left alone."""
        self.transact(
            lambda connection: self.rows.claims.hand_back(connection, attempt_id, delay=int(pause * MICROSECONDS))
        )

    def lease_owed(self, limit: int, kinds: Sequence[OwedKind] = OWED_KINDS) -> list[Owed]:
        """Take what is due; whoever took it does it."""
        return self.transact(
            lambda connection: self.rows.owed.lease_due(connection, kinds, limit=limit, lease=self._lease)
        )

    def renew_owed(self, owed: Owed) -> None:
        """Whoever took it is still at it."""
        self.transact(lambda connection: self.rows.owed.postpone(connection, owed.id, self._lease))

    def settle_owed(self, owed: Owed) -> None:
        """It is done."""
        self.transact(lambda connection: self.rows.owed.delete(connection, owed.id))

    def postpone_owed(self, owed: Owed, seconds: float) -> None:
        """It failed: try again later."""
        self.transact(lambda connection: self.rows.owed.postpone(connection, owed.id, int(seconds * MICROSECONDS)))

    def find_stalled_runs(self, limit: int) -> list[str]:
        """Running runs with nothing open: to be reconciled."""
        with self.read() as connection:
            return self.rows.runs.find_stalled(connection, limit)

    def seconds_to_next_due(self) -> float | None:
        """How long until the next delayed task is due; None when there is none."""
        with self.read() as connection:
            return self.rows.tasks.seconds_to_next_due(connection)

    # -- workers

    def announce_worker(self, worker: WorkerRow) -> None:
        """Make a worker known before it claims anything."""
        self.transact(lambda connection: self.rows.workers.insert(connection, worker))

    def beat(self, worker_id: str, *, queues: Sequence[str], plugins: Sequence[str], holding: Sequence[str]) -> bool:
        """Count a heartbeat with what the worker holds; False when it was taken for dead."""
        return self.transact(
            lambda connection: self.rows.workers.try_beat(
                connection, worker_id, queues=queues, plugins=plugins, holding=holding
            )
        )

    def list_workers(self) -> list[WorkerRow]:
        """Workers that announced themselves and were not removed."""
        with self.read() as connection:
            return self.rows.workers.list_all(connection)

    def remove_worker(self, worker_id: str) -> None:
        """Forget a worker: what it still runs is an orphan from then on."""
        self.transact(lambda connection: self.rows.workers.delete(connection, worker_id))

    def try_bury_worker(self, worker_id: str, beat: int) -> bool:
        """Forget a worker whose heartbeat still stands there; False when it has come back, or somebody else did."""
        return self.transact(lambda connection: self.rows.workers.try_bury(connection, worker_id, beat))

    def list_running_on(self, worker_id: str) -> list[Work]:
        """What a worker has claimed and not ended."""
        with self.read() as connection:
            found = self.rows.tasks.list_running_on(connection, worker_id)
        return [Work(attempt, digest, None) for attempt, digest in found]

    def list_orphans(self) -> list[Work]:
        """Running attempts of workers that are no longer known."""
        with self.read() as connection:
            return [Work(attempt, digest, None) for attempt, digest in self.rows.tasks.list_orphans(connection)]

    # -- looking

    def get_run(self, run_id: str) -> RunRow:
        """The run as committed, also one that retention has given up. Raises UnknownRun."""
        with self.read() as connection:
            return self.require_run(connection, run_id, also_pruned=True)

    def get_run_input(self, run_id: str) -> dict[str, Any]:
        """What the run was started with. Raises UnknownRun."""
        with self.read() as connection:
            self.require_run(connection, run_id)
            run_input: dict[str, Any] = json.loads(self.rows.runs.get_input_text(connection, run_id))
            return run_input

    def get_run_tags(self, run_id: str) -> dict[str, str]:
        """The tags that the run was started with. Raises UnknownRun."""
        with self.read() as connection:
            self.require_run(connection, run_id)
            return self.rows.tags.get(connection, run_id)

    def find_runs_between(self, first: str, last: str, limit: int) -> list[str]:
        """Ids of runs from one id to another, both included, in order."""
        with self.read() as connection:
            return self.rows.runs.list_between(connection, first, last, limit)

    def find_keys(self, pipeline: str, keys: Sequence[str]) -> set[str]:
        """Those of these keys that runs of a pipeline have."""
        with self.read() as connection:
            return self.rows.runs.find_keys(connection, pipeline, keys)

    def get_tags_of_runs(self, run_ids: Sequence[str]) -> dict[str, dict[str, str]]:
        """The tags of several runs, by run; a run that has none is left out."""
        with self.read() as connection:
            return self.rows.tags.get_of_runs(connection, run_ids)

    def search_runs(
        self,
        *,
        pipeline: str | None = None,
        status: str | None = None,
        tags: Mapping[str, str] | None = None,
        limit: int = 100,
        before: str | None = None,
        created_since: int | None = None,
        created_before: int | None = None,
    ) -> list[RunRow]:
        """Runs, newest first; those that have all of the tags, and were made in the time, microseconds since 1970."""
        if pipeline is not None and find_problem_in_text(pipeline):
            return []  # a database would not answer for a text that it cannot keep
        with self.read() as connection:
            return self.rows.runs.search(
                connection,
                pipeline=pipeline,
                status=status,
                tags=tags or {},
                limit=limit,
                before=before,
                created_since=created_since,
                created_before=created_before,
            )

    def get_nodes(self, run_id: str) -> list[NodeRow]:
        """Every node of a run. Raises UnknownRun."""
        with self.read() as connection:
            self.require_run(connection, run_id)
            return self.rows.nodes.get_all(connection, run_id)

    def read(self, *, one_moment: bool = False) -> AbstractContextManager[Connection]:
        """A connection in a reading transaction, as a context manager; ``one_moment``: all it reads is of one."""
        self.id  # noqa: B018  # opens the store at its first use
        return self.database.read(one_moment=one_moment)

    def transact(self, work: Callable[[Connection], T]) -> T:
        """Run ``work`` in one transaction; conflicts run it again, whole."""
        self.id  # noqa: B018  # opens the store at its first use
        return self.database.transact(work)

    def transact_each(self, work: Callable[[Connection], T]) -> T:
        """Run statements that stand alone; the whole must bear to be done once more."""
        self.id  # noqa: B018  # opens the store at its first use
        return self.database.transact_each(work)

    # -- inside

    @property
    def _lease(self) -> int:
        return int(self.policy.lease * MICROSECONDS)

    @property
    def _resend_after(self) -> int:
        return int(self.policy.resend_after * MICROSECONDS)

    def transaction(self, connection: Connection, run_id: str) -> RunTransaction:
        """The engine's store over an open transaction; ``flush`` it before the commit. Raises UnknownRun."""
        _refuse_other_ids(run_id)
        return RunTransaction(self.rows, connection, self.definitions, self.policy, run_id)

    def require_run(self, connection: Connection, run_id: str, *, also_pruned: bool = False) -> RunRow:
        """The run, read in an open transaction. Raises UnknownRun, and RunPruned for one that retention gave up."""
        _refuse_other_ids(run_id)
        run = self.rows.runs.get(connection, run_id)
        if run is None:
            raise UnknownRun(f"The store has no run {run_id}.", remedy=Remedy.LIST_RUNS)
        if not also_pruned:
            refuse_pruned(run)
        return run


def _refuse_other_ids(run_id: object) -> None:
    """What is no UUID is no run's id; a database would answer it with an error of its own."""
    if not is_id(run_id):
        raise UnknownRun(f"{run_id!r} is no run id, so that no run can have it.", remedy=Remedy.LIST_RUNS)


def _to_work(found: AttemptContext) -> Work:
    origin = None if found.artifact is None else found.artifact.origin_artifact_id
    return Work(found.attempt, found.definition_hash, origin, found.left)


def assemble_input(store: TaskInputStore, attempt: Attempt, cached: CachedDefinition) -> dict[str, Any]:
    """A task's input: its artifacts or the run input, with bindings laid over them."""
    topology = cached.topology
    node_index = max(attempt.node_index, ~attempt.node_index)  # what undoes a task gets the task's own input
    input_data = build_task_input(
        store,
        run_id=attempt.run_id,
        node_index=node_index,
        input_artifact_id=attempt.input_artifact_id,
        nodes=topology.nodes,
        deps=topology.deps,
        origin_artifact_id=attempt.origin_artifact_id,
        passthrough_indices=topology.passthrough_indices,
    )
    node = topology.nodes[node_index]
    if node.bindings:
        resolve_task_bindings(
            store,
            run_id=attempt.run_id,
            node_index=node_index,
            nodes=topology.nodes,
            input_data=input_data,
            node_config=node.config,
            deps=topology.deps,
            input_artifact_id=attempt.input_artifact_id,
            origin_artifact_id=attempt.origin_artifact_id,
            passthrough_indices=topology.passthrough_indices,
        )
    return input_data


def _whole_run(error: TaskError) -> dict[str, Any]:
    """The error of a run that no task is to blame for."""
    return {**asdict(error), "node": None, "task_id": None}


def _with(error: TaskError, addition: str) -> TaskError:
    return TaskError(error.type, f"{error.message}, {addition}", error.traceback)

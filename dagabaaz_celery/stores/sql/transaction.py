"""The engine's store over one transaction on one run: DagStore, TaskInputStore and DagRetryStore in SQL.

What the engine decides is written as it decides where a guard must answer (claims), and gathered until the end where
it need not (new tasks, counters). What must follow the commit is gathered in an Aftermath. The first question about
the run locks its row: the engine is only called when a node closes, and readiness must be read after that lock.
"""

import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import asdict, dataclass, replace
from typing import Any

from sqlalchemy import Connection

from dagabaaz_celery.constants import (
    RUN_TERMINAL_STATUSES,
    TASK_RETRYABLE_STATUSES,
    NodeSummaryStatus,
    RunStatus,
    TaskStatus,
)
from dagabaaz_celery.errors import Remedy, RunPruned, UnknownRun
from dagabaaz_celery.models import DagArtifact, DagNode, RetryableTaskInfo, TaskArtifact, TaskContext
from dagabaaz_celery.stores.sql.artifacts import ArtifactRows, to_dag_artifacts
from dagabaaz_celery.stores.sql.claims import ClaimRows
from dagabaaz_celery.stores.sql.completions import CompletionRows
from dagabaaz_celery.stores.sql.definitions import CachedDefinition, DefinitionCache
from dagabaaz_celery.stores.sql.direct import Answer
from dagabaaz_celery.stores.sql.nodes import NodeRows, to_nodes
from dagabaaz_celery.stores.sql.owed import OwedRows, WorkerRows
from dagabaaz_celery.stores.sql.pruning import PruneRows
from dagabaaz_celery.stores.sql.records import (
    CARRIED,
    Aftermath,
    Attempt,
    Dispatch,
    Epilogue,
    NodeRow,
    Owed,
    OwedKind,
    RollbackStatus,
    RunRow,
    TaskError,
)
from dagabaaz_celery.stores.sql.runs import PipelineRows, RunRows
from dagabaaz_celery.stores.sql.tables import CLOSED_NODE_STATUSES, Tables, new_id
from dagabaaz_celery.stores.sql.tags import TagRows
from dagabaaz_celery.stores.sql.tasks import TaskRows

_SUMMARIES = {
    "completed": NodeSummaryStatus.COMPLETED,
    "filtered": NodeSummaryStatus.COMPLETED,
    "skipped": NodeSummaryStatus.SKIPPED,
}
MICROSECONDS = 1_000_000


@dataclass(frozen=True)
class StorePolicy:
    """Bounds of a store's transactions.

    Tasks made in one, and cancelled in one; seconds that whoever took something that is owed has for it, before others
    take it for dead; seconds that a published task waits before its message may be lost; seconds up to which a retry's
    delay is left to the broker; tasks of one node.
    """

    launch_batch: int = 1000
    cancel_batch: int = 1000
    lease: float = 20.0
    resend_after: float = 30.0
    short_delay: float = 5.0
    max_fan_out: int = 10_000


def refuse_pruned(run: RunRow) -> None:
    """Raise RunPruned for a run that retention has given up: what is still there of it goes, too."""
    if run.pruned_at is not None:
        raise RunPruned(
            f"Run {run.id} was {run.status}, and is deleted by now, as dagabaaz_retention or a prune said: only its "
            "status is left. Start a new run."
        )


class Rows:
    """Every statement of a store."""

    def __init__(self, tables: Tables) -> None:
        self.runs = RunRows(tables)
        self.tags = TagRows(tables)
        self.pipelines = PipelineRows(tables)
        self.nodes = NodeRows(tables)
        self.tasks = TaskRows(tables)
        self.artifacts = ArtifactRows(tables)
        self.claims = ClaimRows(tables)
        self.completions = CompletionRows(tables, self.tasks, self.artifacts, self.nodes, self.runs)
        self.owed = OwedRows(tables)
        self.workers = WorkerRows(tables)
        self.pruning = PruneRows(tables)


@dataclass(frozen=True, slots=True)
class _Planned:
    """A task that the engine dispatched and that is not written yet."""

    task_id: str
    input_artifact_id: str | None
    origin_artifact_id: str | None


class RunTransaction:
    """One transaction on one run."""

    def __init__(
        self, rows: Rows, connection: Connection, definitions: DefinitionCache, policy: StorePolicy, run_id: str
    ) -> None:
        self.rows = rows
        self.connection = connection
        self.policy = policy
        self.run_id = run_id
        self.aftermath = Aftermath(run_id=run_id)
        self._definitions = definitions
        self._run: RunRow | None = None
        self._nodes: dict[int, NodeRow] = {}
        self._nodes_ahead: list[Answer] = []
        self._routing_ahead: dict[int, list[Answer]] = {}
        self._closed: dict[int, str] = {}
        self._planned: dict[int, list[_Planned]] = {}
        self._claimed: set[int] = set()
        self._ended_at_launch: dict[int, str] = {}
        self._pre_terminal: list[dict[str, Any]] = []
        self._reusable: dict[int, dict[str, Attempt]] = {}
        self._half_launched: dict[int, NodeRow] = {}
        self._nodes_done: int | None = None
        self._error: dict[str, Any] | None = None
        self._settled: Attempt | None = None
        self._artifacts: dict[str, TaskArtifact] = {}
        #: Whether artifacts were read for a task's input beside those that were noted.
        self.has_read_artifacts = False

    # -- the run and its definition

    @property
    def run(self) -> RunRow:
        """The run, locked."""
        if self._run is None:
            run = self.rows.runs.lock(self.connection, self.run_id)
            if run is None:
                raise UnknownRun(f"The store has no run {self.run_id}.", remedy=Remedy.LIST_RUNS)
            return self.note_locked(run)
        return self._run

    def note_locked(self, run: RunRow) -> RunRow:
        """The run, which this transaction has just locked. Raises RunPruned."""
        refuse_pruned(run)
        self._run, self._nodes_done = run, run.nodes_done
        return run

    def note_created(self, run: RunRow, roots: Iterable[int]) -> None:
        """The run, which this transaction has just made, with nodes of which none is launched."""
        self.note_locked(run)
        for index in roots:
            self._nodes[index] = NodeRow(index, "blocked", 0, 0)

    @property
    def definition(self) -> CachedDefinition:
        """What the run was started from."""
        return self._definitions.get(self.connection, self.run.definition_hash)

    def explain(self, error: TaskError, *, node: str | None, task_id: str | None) -> None:
        """Give the error that a terminal claim in this transaction records in full."""
        self._error = {**asdict(error), "node": node, "task_id": task_id}

    def note_settled(self, attempt: Attempt) -> None:
        """This task's outcome is already written in this transaction, by its guard."""
        self._settled = attempt

    def note_artifact(self, artifact_id: str, artifact: TaskArtifact) -> None:
        """An artifact that this transaction has just read."""
        self._artifacts[artifact_id] = artifact

    def note_node(self, node: NodeRow) -> None:
        """A node row that this transaction has just read or written."""
        self._nodes[node.index] = node

    def ask_ahead(self, definition: CachedDefinition, node_index: int) -> None:
        """Ask, the run's lock being taken or asked for, what is going to be read when this node closes."""
        topology = definition.topology
        children = topology.children[node_index]
        neighbours = {dep for child in children for dep in topology.deps[child]}.union(children) - {node_index}
        self._nodes_ahead = self.rows.nodes.ask_some(self.connection, self.run_id, neighbours)
        if any(topology.deps[child] == [node_index] for child in children):
            self._routing_ahead[node_index] = self.rows.artifacts.ask_for_routing(
                self.connection, self.run_id, [node_index]
            )

    # -- DagStore: reading

    def get_run_status(self, run_id: str) -> RunStatus:
        return self.run.status

    def get_barrier_state(self, run_id: str, node_index: int) -> tuple[RunStatus, int, int]:
        node = self.node(node_index)
        return self.run.status, node.tasks_total, node.tasks_done

    def get_run_nodes(self, run_id: str) -> list[DagNode] | None:
        return self.definition.definition.nodes

    def get_task_context(self, task_id: str) -> TaskContext | None:
        attempt = self._settled
        if attempt is None or attempt.task_id != task_id:
            attempt = self.rows.tasks.find_task(self.connection, task_id)
        return None if attempt is None else TaskContext(run_id=attempt.run_id, node_index=attempt.node_index)

    def get_completed_node_indices(self, run_id: str) -> AbstractSet[int]:
        return _CompletedNodes(self)

    def get_launched_node_indices(self, run_id: str) -> AbstractSet[int]:
        return _NodeSet(self, _is_launched)

    def get_node_summary(self, run_id: str) -> Mapping[int, NodeSummaryStatus]:
        return _NodeSummary(self)

    def get_artifacts_by_node_indices(self, run_id: str, node_indices: Sequence[int]) -> list[DagArtifact]:
        asked = self._routing_ahead.get(node_indices[0]) if len(node_indices) == 1 else None
        if asked is not None:
            return to_dag_artifacts(asked)
        return self.rows.artifacts.for_routing(self.connection, run_id, node_indices)

    # -- DagStore: writing

    def try_claim_run_terminal(self, run_id: str, status: RunStatus, error: str | None = None) -> bool:
        if self.run.status in RUN_TERMINAL_STATUSES:
            return False
        detail = self._error or (None if error is None else _plain_error(error))
        text = None if detail is None else json.dumps(detail)
        definition = self.definition.definition
        undoes = bool(definition.undoable) and status != RunStatus.COMPLETED
        epilogue: Epilogue | None = "waiting" if undoes or definition.finalisers else None
        rollback: RollbackStatus = "running" if undoes else "none"
        if not self.rows.runs.try_end(self.connection, run_id, status, text, epilogue=epilogue, rollback=rollback):
            return False
        self._run = replace(self.run, status=status, error=detail, epilogue=epilogue, rollback_status=rollback)
        self.owe("callback", status)
        if epilogue is not None:
            self.owe("epilogue", status)
        return True

    def set_run_progress(self, run_id: str, completed_nodes: int) -> None:
        self._nodes_done = completed_nodes

    def try_claim_node_launch(self, run_id: str, node_index: int) -> bool:
        """Whoever launches holds the run's lock: what the node's row says is so until what follows is written."""
        if self.run.status in RUN_TERMINAL_STATUSES or self.node(node_index).status != "blocked":
            return False
        self._nodes[node_index] = NodeRow(node_index, "launching", 0, 0)
        self._claimed.add(node_index)
        return True

    def dispatch_task(self, run_id: str, node_index: int, plugin_name: str, input_artifact_id: str | None) -> str:
        return self._plan(node_index, input_artifact_id, None)

    def dispatch_grouped_task(self, run_id: str, node_index: int, plugin_name: str, origin_artifact_id: str) -> str:
        return self._plan(node_index, None, origin_artifact_id)

    def dispatch_skipped_task(self, run_id: str, node_index: int, plugin_name: str) -> str:
        return self._end_node_at_launch(node_index, "skipped", TaskStatus.SKIPPED)

    def dispatch_filtered_task(self, run_id: str, node_index: int, plugin_name: str) -> str:
        return self._end_node_at_launch(node_index, "filtered", TaskStatus.FILTERED)

    def dispatch_failed_task(self, run_id: str, node_index: int, plugin_name: str, error: str) -> str:
        task_id = self._end_node_at_launch(node_index, "failed", TaskStatus.FAILED, error)
        self.explain(TaskError("LimitExceeded", error), node=self.slug(node_index), task_id=task_id)
        return task_id

    def fail_run(self, run_id: str, error: str) -> None:
        self.rows.runs.explain_failure(self.connection, run_id, json.dumps(_plain_error(error)))

    def mark_task_failed(self, task_id: str, error_message: str) -> None:
        self._settle(task_id, TaskStatus.FAILED, error_message)

    def mark_task_crashed(self, task_id: str, error_message: str) -> None:
        self._settle(task_id, TaskStatus.CRASHED, error_message)

    def cancel_remaining_tasks(self, run_id: str, reason: str) -> int:
        """Owed, not done here: who holds the run's lock must not wait for task rows."""
        self.owe("cancel", self.run.status)
        return 0

    # -- TaskInputStore

    def get_artifact_data(self, artifact_id: str) -> TaskArtifact | None:
        noted = self._artifacts.get(artifact_id)
        if noted is not None:
            return noted
        self.has_read_artifacts = True
        return self.rows.artifacts.get(self.connection, artifact_id)

    def get_task_artifacts_by_node_indices(self, run_id: str, node_indices: Sequence[int]) -> list[TaskArtifact]:
        self.has_read_artifacts = True
        found = self.rows.artifacts.for_tasks(self.connection, run_id, node_indices)
        return [artifact for _, artifact in found]

    def get_grouped_artifacts(self, run_id: str, dep_indices: Sequence[int], origin_id: str) -> list[TaskArtifact]:
        self.has_read_artifacts = True
        return self.rows.artifacts.of_origin(self.connection, run_id, dep_indices, origin_id)

    def get_broadcast_artifacts(self, run_id: str, dep_indices: Sequence[int]) -> list[TaskArtifact]:
        self.has_read_artifacts = True
        return self.rows.artifacts.broadcast(self.connection, run_id, dep_indices)

    def get_run_input(self, run_id: str) -> dict[str, Any]:
        run_input: dict[str, Any] = json.loads(self.rows.runs.get_input_text(self.connection, run_id))
        return run_input

    def get_artifacts_partitioned(self, run_id: str, node_indices: Sequence[int]) -> dict[int, list[TaskArtifact]]:
        self.has_read_artifacts = True
        parts: dict[int, list[TaskArtifact]] = {}
        for index, artifact in self.rows.artifacts.for_tasks(self.connection, run_id, node_indices):
            parts.setdefault(index, []).append(artifact)
        return parts

    def get_artifact_producing_node(self, artifact_id: str) -> int | None:
        self.has_read_artifacts = True
        return self.rows.artifacts.get_producer(self.connection, artifact_id)

    # -- DagRetryStore

    def get_retryable_tasks(self, run_id: str, node_indices: Sequence[int]) -> list[RetryableTaskInfo]:
        nodes = self.definition.definition.nodes
        return [
            RetryableTaskInfo(
                task_id=attempt.task_id,
                node_index=attempt.node_index,
                plugin_name=nodes[attempt.node_index].plugin,
                input_artifact_id=attempt.input_artifact_id,
                origin_artifact_id=attempt.origin_artifact_id,
                dispatched=attempt.number > 0,
            )
            for attempt, status, _ in self.rows.tasks.list_at_nodes(self.connection, run_id, node_indices)
            if status not in (TaskStatus.COMPLETED, TaskStatus.SKIPPED)
        ]

    def delete_non_completed_tasks_at_nodes(self, run_id: str, node_indices: Sequence[int]) -> None:
        """They keep their rows while the same work may be dispatched again here, as a new attempt."""
        for index in node_indices:
            self._reusable[index] = {}
        for attempt, status, _ in self.rows.tasks.list_at_nodes(self.connection, run_id, node_indices):
            if status not in (TaskStatus.COMPLETED, TaskStatus.SKIPPED):
                self._reusable.setdefault(attempt.node_index, {})[_work_of(attempt)] = attempt

    def delete_tasks_at_nodes(self, run_id: str, node_indices: Sequence[int]) -> None:
        self.rows.tasks.delete_at_nodes(self.connection, run_id, node_indices)
        self.rows.artifacts.delete_at_nodes(self.connection, run_id, node_indices)

    def delete_node_launches(self, run_id: str, node_indices: Sequence[int]) -> None:
        self.rows.nodes.reset(self.connection, run_id, node_indices)
        for index in node_indices:
            if index in self._reusable and self.node(index).status == "launching":
                self._half_launched[index] = self.node(index)
            self._nodes[index] = NodeRow(index, "blocked", 0, 0)

    # -- what the app's store asks beyond the protocols

    def slug(self, node_index: int) -> str:
        """A node's slug."""
        return self.definition.definition.nodes[node_index].slug

    def node(self, node_index: int) -> NodeRow:
        """A node row as of this transaction, read with its neighbourhood when it is not at hand."""
        if node_index not in self._nodes:
            deps = self.definition.topology.deps[node_index]
            self.load_nodes([node_index, *deps])
        return self._nodes[node_index]

    def load_nodes(self, indices: Collection[int]) -> None:
        """Read the nodes that are not at hand yet, in one statement."""
        for node in to_nodes(self._nodes_ahead):
            self._nodes.setdefault(node.index, node)
        self._nodes_ahead = []
        missing = [index for index in dict.fromkeys(indices) if index not in self._nodes]
        for node in self.rows.nodes.get_some(self.connection, self.run_id, missing):
            self._nodes[node.index] = node

    def load_all_nodes(self) -> list[NodeRow]:
        """Read every node."""
        self.run  # noqa: B018  # the lock comes first
        for node in self.rows.nodes.get_all(self.connection, self.run_id):
            self._nodes.setdefault(node.index, node)
        return [self._nodes[index] for index in sorted(self._nodes)]

    def close_node(self, node_index: int) -> bool:
        """Close a launched node whose tasks are all done, the run being locked; as skipped where a failure says so.

        What the node's row said when it was read, or counted, under a lock, is so until the end of the transaction.
        """
        done, node = self.nodes_done, self.node(node_index)
        if node.status != "launched" or node.tasks_done != node.tasks_total:
            return False
        says_skip = self.definition.definition.says_skip(node_index)
        status = "skipped" if says_skip and self.has_ended_badly(node_index) else "completed"
        self._nodes[node_index] = replace(node, status=status)
        self._closed[node_index] = status
        self._nodes_done = done + 1
        self.aftermath.closed.append(node_index)
        return True

    def has_ended_badly(self, node_index: int) -> bool:
        """Whether one of a node's tasks failed, crashed or was cancelled."""
        return self.rows.tasks.has_ended_badly(self.connection, self.run_id, node_index)

    @property
    def nodes_done(self) -> int:
        """Closed nodes, as of this transaction."""
        return self.run.nodes_done if self._nodes_done is None else self._nodes_done

    def set_nodes_done(self, done: int) -> None:
        """Correct the count of closed nodes (a retry reopens some)."""
        self._nodes_done = done

    def set_carried(self, carried: Mapping[str, str]) -> None:
        """Replace what travels with the run for observers."""
        self.rows.runs.set_options(self.connection, self.run_id, {**self.run.options, CARRIED: dict(carried)})
        self._run = None

    def set_reopened(self) -> bool:
        """Reopen the run in its next generation."""
        if not self.rows.runs.try_reopen(self.connection, self.run_id):
            return False
        self._run = None
        return True

    def owe(self, kind: OwedKind, status: RunStatus, node_index: int = -1) -> None:
        """Owe something after the commit; this process does it, and the sweep if it dies before."""
        owed = Owed(new_id(), self.run_id, kind, self.run.generation, node_index, status, 0)
        self.rows.owed.insert(self.connection, owed, delay=self._lease)
        self.aftermath.owed.append(owed)

    # -- after the run's end

    def set_epilogue(self, epilogue: Epilogue | None, rollback: RollbackStatus) -> None:
        """Record what goes on after the run's end."""
        self.rows.runs.set_epilogue(self.connection, self.run_id, epilogue, rollback)
        self._run = replace(self.run, epilogue=epilogue, rollback_status=rollback)

    def remind_of_epilogue(self) -> None:
        """Have what follows the run's end looked at after this commit: the body that it waits for may have ended."""
        self.aftermath.owed += self.rows.owed.list_of_run(self.connection, self.run_id, ["epilogue"])

    def launch_after_end(self, node_index: int) -> bool:
        """Claim the launch of a finaliser, or of the undoing of a node, of a run that has ended."""
        won = self.rows.nodes.try_claim_launch(self.connection, self.run_id, node_index)
        if won and node_index >= 0:
            self._nodes[node_index] = NodeRow(node_index, "launching", 0, 0)
        return won

    def continue_undoing(self, node: NodeRow) -> int:
        """Make the next batch of the tasks that undo a node's; how many are left.

        Each has the ordinal of what it undoes. ``node`` is the undoing's own row, whose index is negative.
        """
        rows, connection, limit = self.rows.tasks, self.connection, self.policy.launch_batch
        after = rows.last_ordinal(connection, self.run_id, node.index)
        begun = rows.list_begun(connection, self.run_id, ~node.index, after=after, limit=limit)
        self._write_tasks(node.index, [(ordinal, _Planned(new_id(), *work)) for ordinal, *work in begun])
        cursor = node.launch_cursor + len(begun)
        self.rows.nodes.set_launched(connection, self.run_id, [(node.index, node.tasks_total, cursor)])
        return node.tasks_total - cursor

    def undo_again(self, node_index: int) -> None:
        """Give the tasks that failed to undo a node a new attempt."""
        bad = [
            attempt
            for attempt, status, _ in self.rows.tasks.list_at_nodes(self.connection, self.run_id, [node_index])
            if status in TASK_RETRYABLE_STATUSES
        ]
        self._supersede(bad, "the rollback was retried")
        self._recount(node_index)

    def continue_launch(self, node_index: int, items: Sequence[tuple[str | None, str | None]]) -> int:
        """Make the next batch of a wide launch from all its (input artifact, origin) items; how many are left."""
        node = self.rows.nodes.get_some(self.connection, self.run_id, [node_index])[0]
        self._nodes[node_index] = node
        batch = items[node.launch_cursor : node.launch_cursor + self.policy.launch_batch]
        planned = [_Planned(new_id(), *item) for item in batch]
        self._write_tasks(node_index, list(enumerate(planned, start=node.launch_cursor)))
        cursor = node.launch_cursor + len(batch)
        self.rows.nodes.set_launched(self.connection, self.run_id, [(node_index, len(items), cursor)])
        return len(items) - cursor

    def flush_redispatched(self) -> None:
        """Write what a retry dispatched again, before the run is looked at as a whole."""
        self._write_claims([index for index in self._reusable if index in self._claimed])
        for index in list(self._reusable):
            self._dispatch_again(index, self._planned.pop(index, []))
        self._reusable.clear()

    def flush(self) -> None:
        """Write what was gathered; the last thing before the commit."""
        self.rows.nodes.close(self.connection, self.run_id, self._closed.items())
        # A node is launched, or ended, with what it was launched with; one that has neither is only claimed.
        self._write_claims(self._claimed - self._planned.keys() - self._ended_at_launch.keys())
        self.rows.tasks.insert(self.connection, self._pre_terminal)
        self.rows.nodes.end_at_launch(self.connection, self.run_id, self._ended_at_launch.items())
        launches = []
        for index, planned in self._planned.items():
            batch = planned[: self.policy.launch_batch]
            self._write_tasks(index, list(enumerate(batch)))
            launches.append((index, len(planned), len(batch)))
            if len(batch) < len(planned):
                self.owe("launch", self.run.status, index)
        self.rows.nodes.set_launched(self.connection, self.run_id, launches)
        if self._run is not None and self.nodes_done != self._run.nodes_done:
            self.rows.runs.set_nodes_done(self.connection, self.run_id, self.nodes_done)

    # -- inside

    @property
    def _lease(self) -> int:
        return int(self.policy.lease * MICROSECONDS)

    def _write_claims(self, indices: Collection[int]) -> None:
        for index in indices:
            self.rows.nodes.try_claim_launch(self.connection, self.run_id, index)
        self._claimed.difference_update(indices)

    def _plan(self, node_index: int, input_artifact_id: str | None, origin_artifact_id: str | None) -> str:
        work = _Planned(new_id(), input_artifact_id, origin_artifact_id)
        before = self._reusable.get(node_index, {}).get(_work_of(work))
        if before is not None:
            work = replace(work, task_id=before.task_id)
        self._planned.setdefault(node_index, []).append(work)
        return work.task_id

    def _end_node_at_launch(
        self, node_index: int, node_status: str, task_status: TaskStatus, error: str | None = None
    ) -> str:
        task_id = new_id()
        row = self._task_row(node_index, _Planned(task_id, None, None), 0, task_id)
        row |= {
            "status": task_status.value,
            "number": 0,
            "error": None if error is None else json.dumps(_plain_error(error)),
        }
        self._pre_terminal.append(row)
        self._ended_at_launch[node_index] = node_status
        self.aftermath.closed.append(node_index)
        self._nodes[node_index] = NodeRow(node_index, node_status, 1, int(node_status in CLOSED_NODE_STATUSES))
        return task_id

    def _write_tasks(self, node_index: int, planned: Sequence[tuple[int, _Planned]]) -> None:
        rows = [self._task_row(node_index, work, ordinal, new_id()) for ordinal, work in planned]
        # What a paused run owes is nobody's: the resume has it published.
        self.rows.tasks.insert_leased(self.connection, rows, None if self._is_held else self._lease)
        if not self._is_held:
            self.aftermath.publish += [self._dispatch(row) for row in rows]

    @property
    def _is_held(self) -> bool:
        """Whether a pause keeps tasks from being published; it ends with the run."""
        return self.run.paused and self.run.status not in RUN_TERMINAL_STATUSES

    def _dispatch(self, row: dict[str, Any]) -> Dispatch:
        return Dispatch(
            attempt_id=row["attempt_id"],
            task_id=row["id"],
            run_id=self.run_id,
            node_index=row["node_index"],
            definition_hash=self.run.definition_hash,
            retries=0,
            options=self.run.options,
        )

    def _task_row(self, node_index: int, work: _Planned, ordinal: int, attempt_id: str) -> dict[str, Any]:
        timeout = self.definition.definition.timeout_of(node_index)
        return {
            "id": work.task_id,
            "run_id": self.run_id,
            "node_index": node_index,
            "ordinal": ordinal,
            "status": TaskStatus.PENDING.value,
            "attempt_id": attempt_id,
            "number": 1,
            "retries": 0,
            "recoveries": 0,
            "resends": 0,
            "input_artifact_id": work.input_artifact_id,
            "origin_artifact_id": work.origin_artifact_id,
            "timeout": None if timeout is None else int(timeout * MICROSECONDS),
            "error": None,
        }

    def _dispatch_again(self, node_index: int, planned: Sequence[_Planned]) -> None:
        """A retried node: the same work keeps its row and ordinal, with a new attempt."""
        reusable = self._reusable[node_index]
        self._supersede([reusable.pop(_work_of(work)) for work in planned], "the run was retried")
        self.rows.tasks.delete(self.connection, [attempt.task_id for attempt in reusable.values()])
        self._recount(node_index)

    def _supersede(self, ended: Sequence[Attempt], reason: str) -> None:
        """Give tasks that have ended a new attempt each."""
        replaced = [(before, new_id()) for before in ended]
        self.rows.tasks.supersede_ended(self.connection, replaced, "replaced", reason, lease=self._lease)
        for before, attempt_id in replaced:
            work = _Planned(before.task_id, before.input_artifact_id, before.origin_artifact_id)
            row = self._task_row(before.node_index, work, before.ordinal, attempt_id)
            self.aftermath.publish.append(self._dispatch(row))

    def _recount(self, node_index: int) -> None:
        """Set a node that was closed, or whose launch was cut short, launched, with what is done of it."""
        statuses = self.rows.tasks.count_at_node(self.connection, self.run_id, node_index)
        counts_as_done = self.definition.definition.node_of(node_index).counts_as_done
        done, total = sum(count for status, count in statuses.items() if counts_as_done(status)), sum(statuses.values())
        node = NodeRow(node_index, "launched", total, done, total)
        half = self._half_launched.get(node_index)
        if half is not None:
            node = replace(half, tasks_done=done)
            self.owe("launch", self.run.status, node_index)
        self._nodes[node_index] = node
        self.rows.nodes.recount(self.connection, self.run_id, node)

    def _settle(self, task_id: str, status: TaskStatus, message: str) -> None:
        if self._settled is None or self._settled.task_id != task_id:
            self.rows.tasks.settle(self.connection, task_id, status, json.dumps(_plain_error(message)))


class _NodeSet(AbstractSet[int]):
    """Nodes in a state, asked one by one; iterated only by reading every node."""

    def __init__(self, transaction: RunTransaction, matches: Callable[[NodeRow], bool]) -> None:
        self._transaction = transaction
        self._matches = matches

    def __contains__(self, index: object) -> bool:
        return isinstance(index, int) and self._matches(self._transaction.node(index))

    def __iter__(self) -> Iterator[int]:
        return (node.index for node in self._transaction.load_all_nodes() if self._matches(node))

    def __len__(self) -> int:
        return sum(1 for _ in self)


class _CompletedNodes(_NodeSet):
    """Completed nodes, which the run's counter counts."""

    def __init__(self, transaction: RunTransaction) -> None:
        super().__init__(transaction, _is_completed)

    def __len__(self) -> int:
        return self._transaction.nodes_done


def _is_completed(node: NodeRow) -> bool:
    all_done = node.status == "launched" and 0 < node.tasks_total == node.tasks_done
    return all_done or node.status in CLOSED_NODE_STATUSES


def _is_launched(node: NodeRow) -> bool:
    return node.status != "blocked"


class _NodeSummary(Mapping[int, NodeSummaryStatus]):
    def __init__(self, transaction: RunTransaction) -> None:
        self._transaction = transaction
        self._completed = _CompletedNodes(transaction)

    def __getitem__(self, index: int) -> NodeSummaryStatus:
        if index not in self._completed:
            raise KeyError(index)
        return _SUMMARIES.get(self._transaction.node(index).status, NodeSummaryStatus.COMPLETED)

    def __iter__(self) -> Iterator[int]:
        return iter(self._completed)

    def __len__(self) -> int:
        return len(self._completed)


def _work_of(task: Attempt | _Planned) -> str:
    """What identifies the work of a task within its node: its input artifact, its origin, or neither."""
    return f"{task.input_artifact_id or ''}/{task.origin_artifact_id or ''}"


def _plain_error(message: str) -> dict[str, Any]:
    return {**asdict(TaskError("", message)), "node": None, "task_id": None}

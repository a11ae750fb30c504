"""A store in memory, for tests: of this package and of yours.

It keeps runs, tasks and artifacts in dictionaries, and stands in for the queue and its workers too: what an app does
between the engine's calls is a method here. A whole run in a test::

    store = MemoryStore()
    store.create_run("run-1", nodes, {"url": "https://example.org"})
    orchestrator.start_run(store, "run-1", nodes)
    while tasks := store.open_tasks("run-1"):
        store.claim_task(tasks[0].task_id)
        store.complete_task(tasks[0].task_id, [TaskArtifact(file_name="a.mp4")])
        orchestrator.on_task_complete(
            store, task_id=tasks[0].task_id, callbacks=callbacks, resolve_passthrough=lambda plugin: False
        )
    assert store.run("run-1").status == "completed"

Ids count up (``task-1``, ``artifact-1``, …), so that a test may name them. Nothing is written to disk.
"""

import copy
import functools
import itertools
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar, cast

from dagabaaz_celery.constants import (
    RUN_RETRYABLE_STATUSES,
    RUN_TERMINAL_STATUSES,
    TASK_RETRYABLE_STATUSES,
    TASK_TERMINAL_STATUSES,
    NodeSummaryStatus,
    RunStatus,
    TaskStatus,
)
from dagabaaz_celery.errors import RunStateError, UnknownRun
from dagabaaz_celery.filter import assign_origin
from dagabaaz_celery.graph import resolve_dependency_indices
from dagabaaz_celery.models import DagArtifact, DagNode, RetryableTaskInfo, TaskArtifact, TaskContext

Method = TypeVar("Method", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class MemoryTask:
    """A task as it was when the store was asked; ``dispatched`` is False for one that never went to a queue."""

    task_id: str
    run_id: str
    node_index: int
    plugin_name: str
    status: TaskStatus = TaskStatus.PENDING
    input_artifact_id: str | None = None
    origin_artifact_id: str | None = None
    error: str | None = None
    dispatched: bool = True

    @property
    def is_open(self) -> bool:
        """Whether the task may still run or is running."""
        return self.status not in TASK_TERMINAL_STATUSES


@dataclass(frozen=True, slots=True)
class MemoryRun:
    """A run as it was when the store was asked; ``generation`` counts from 1 and is raised by each reopening."""

    run_id: str
    status: RunStatus
    error: str | None
    generation: int
    completed_nodes: int
    total_nodes: int


@dataclass(frozen=True, slots=True)
class _Artifact:
    id: str
    node_index: int
    data: TaskArtifact

    def for_routing(self) -> DagArtifact:
        return DagArtifact(id=self.id, **self.data.model_dump(exclude={"file_path"}))


@dataclass(slots=True)
class _Run:
    nodes: list[DagNode]
    deps: list[list[int]]
    run_input: dict[str, Any]
    status: RunStatus = RunStatus.RUNNING
    error: str | None = None
    generation: int = 1
    completed_nodes: int = 0
    launched: set[int] = field(default_factory=set)
    tasks: dict[str, MemoryTask] = field(default_factory=dict)
    artifacts: dict[str, list[_Artifact]] = field(default_factory=dict)  # by the task that emitted them

    def tasks_at(self, node_indices: Collection[int]) -> list[MemoryTask]:
        return [task for task in self.tasks.values() if task.node_index in node_indices]

    def artifacts_at(self, node_indices: Collection[int]) -> Iterator[_Artifact]:
        for task in sorted(self.tasks_at(node_indices), key=lambda task: task.node_index):
            yield from self.artifacts.get(task.task_id, [])

    def statuses_by_node(self) -> dict[int, list[TaskStatus]]:
        by_node: dict[int, list[TaskStatus]] = {}
        for task in self.tasks.values():
            by_node.setdefault(task.node_index, []).append(task.status)
        return by_node

    def completed_statuses_by_node(self) -> dict[int, list[TaskStatus]]:
        by_node = self.statuses_by_node().items()
        return {i: found for i, found in by_node if all(map(self.nodes[i].counts_as_done, found))}

    def remove_tasks(self, tasks: Sequence[MemoryTask]) -> None:
        for task in tasks:
            del self.tasks[task.task_id]
            self.artifacts.pop(task.task_id, None)


def _locked(method: Method) -> Method:
    @functools.wraps(method)
    def run_locked(self: "MemoryStore", *args: Any, **kwargs: Any) -> Any:
        with self.lock:
            return method(self, *args, **kwargs)

    return cast(Method, run_locked)


class MemoryStore:
    """DagStore, TaskInputStore and DagRetryStore in one, safe to share between threads.

    Every method is atomic. The engine wants its calls for one run one at a time: a test with several threads holds
    ``store.lock`` around recording an outcome and telling the engine of it. The lock is reentrant.

    What a method of a protocol does is said there, in ``dagabaaz_celery.store``.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self._runs: dict[str, _Run] = {}
        self._run_by_task: dict[str, str] = {}
        self._task_numbers = itertools.count(1)
        self._artifact_numbers = itertools.count(1)

    # -- what an app and its workers would do

    @_locked
    def create_run(self, run_id: str, nodes: Sequence[DagNode], run_input: Mapping[str, Any] | None = None) -> None:
        """Make a running run of a copy of these nodes; ``orchestrator.start_run`` then launches its roots.

        Raises RunStateError when the id is taken.
        """
        if run_id in self._runs:
            raise RunStateError(f"The store already has a run {run_id!r}: give each run an id of its own.")
        self._runs[run_id] = _Run(
            nodes=[node.model_copy(deep=True) for node in nodes],
            deps=resolve_dependency_indices(nodes),
            run_input=copy.deepcopy(dict(run_input or {})),
        )

    @_locked
    def run(self, run_id: str) -> MemoryRun:
        """The run as it is now; raises UnknownRun."""
        run = self._get_run(run_id)
        return MemoryRun(run_id, run.status, run.error, run.generation, run.completed_nodes, len(run.nodes))

    @_locked
    def tasks(self, run_id: str) -> list[MemoryTask]:
        """Every task of the run, in the order of dispatch."""
        return list(self._get_run(run_id).tasks.values())

    @_locked
    def open_tasks(self, run_id: str) -> list[MemoryTask]:
        """The run's tasks that are pending, queued or running, in the order of dispatch."""
        return [task for task in self._get_run(run_id).tasks.values() if task.is_open]

    @_locked
    def claim_task(self, task_id: str) -> bool:
        """Set an open task of a running run running; True for the one worker that may execute it."""
        task = self._find_task(task_id)
        if task is None or self._runs[task.run_id].status != RunStatus.RUNNING:
            return False
        return self._move_task(task_id, {TaskStatus.PENDING, TaskStatus.QUEUED}, TaskStatus.RUNNING)

    @_locked
    def complete_task(self, task_id: str, artifacts: Sequence[TaskArtifact] = ()) -> bool:
        """Complete a claimed task and keep what it emitted, in this order; False if it was not running.

        Ids and origins are given here; an origin that an artifact brings along is ignored.
        """
        task = self._find_task(task_id)
        if task is None or not self._move_task(task_id, {TaskStatus.RUNNING}, TaskStatus.COMPLETED):
            return False
        run = self._runs[task.run_id]
        run.artifacts[task_id] = [self._make_artifact(run, task, artifact) for artifact in artifacts]
        return True

    @_locked
    def release_task(self, task_id: str) -> bool:
        """Set a claimed task pending again, for another attempt; False if it was not running."""
        return self._move_task(task_id, {TaskStatus.RUNNING}, TaskStatus.PENDING)

    @_locked
    def reopen_run(self, run_id: str) -> bool:
        """Set a failed, crashed or cancelled run running, as ``retry.retry_run`` needs it; False for any other."""
        run = self._get_run(run_id)
        if run.status not in RUN_RETRYABLE_STATUSES:
            return False
        run.status, run.error, run.generation = RunStatus.RUNNING, None, run.generation + 1
        return True

    # -- DagStore: state

    @_locked
    def get_run_status(self, run_id: str) -> RunStatus | None:
        run = self._runs.get(run_id)
        return run.status if run else None

    @_locked
    def get_barrier_state(self, run_id: str, node_index: int) -> tuple[RunStatus | None, int, int]:
        run = self._runs.get(run_id)
        if run is None:
            return None, 0, 0
        statuses = [task.status for task in run.tasks_at([node_index])]
        return run.status, len(statuses), sum(map(run.nodes[node_index].counts_as_done, statuses))

    @_locked
    def get_run_nodes(self, run_id: str) -> list[DagNode] | None:
        run = self._runs.get(run_id)
        return list(run.nodes) if run else None

    @_locked
    def try_claim_run_terminal(self, run_id: str, status: RunStatus, error: str | None = None) -> bool:
        run = self._get_run(run_id)
        if run.status in RUN_TERMINAL_STATUSES:
            return False
        run.status, run.error = status, error
        return True

    @_locked
    def set_run_progress(self, run_id: str, completed_nodes: int) -> None:
        self._get_run(run_id).completed_nodes = completed_nodes

    @_locked
    def get_task_context(self, task_id: str) -> TaskContext | None:
        task = self._find_task(task_id)
        return TaskContext(run_id=task.run_id, node_index=task.node_index) if task else None

    @_locked
    def get_completed_node_indices(self, run_id: str) -> set[int]:
        return set(self._get_run(run_id).completed_statuses_by_node())

    @_locked
    def get_launched_node_indices(self, run_id: str) -> set[int]:
        return set(self._get_run(run_id).launched)

    @_locked
    def get_node_summary(self, run_id: str) -> dict[int, NodeSummaryStatus]:
        run = self._get_run(run_id)
        completed = run.completed_statuses_by_node()
        return {index: _summarise_statuses(run.nodes[index], statuses) for index, statuses in completed.items()}

    # -- DagStore: changes

    @_locked
    def try_claim_node_launch(self, run_id: str, node_index: int) -> bool:
        run = self._get_run(run_id)
        if run.status in RUN_TERMINAL_STATUSES or node_index in run.launched:
            return False
        run.launched.add(node_index)
        return True

    def dispatch_task(self, run_id: str, node_index: int, plugin_name: str, input_artifact_id: str | None) -> str:
        return self._add_task(run_id, node_index, plugin_name, input_artifact_id=input_artifact_id)

    def dispatch_grouped_task(self, run_id: str, node_index: int, plugin_name: str, origin_artifact_id: str) -> str:
        return self._add_task(run_id, node_index, plugin_name, origin_artifact_id=origin_artifact_id)

    def dispatch_skipped_task(self, run_id: str, node_index: int, plugin_name: str) -> str:
        return self._add_task(run_id, node_index, plugin_name, status=TaskStatus.SKIPPED, dispatched=False)

    def dispatch_filtered_task(self, run_id: str, node_index: int, plugin_name: str) -> str:
        return self._add_task(run_id, node_index, plugin_name, status=TaskStatus.FILTERED, dispatched=False)

    def dispatch_failed_task(self, run_id: str, node_index: int, plugin_name: str, error: str) -> str:
        return self._add_task(run_id, node_index, plugin_name, status=TaskStatus.FAILED, error=error, dispatched=False)

    @_locked
    def fail_run(self, run_id: str, error: str) -> None:
        run = self._get_run(run_id)
        if run.status == RunStatus.FAILED:
            run.error = error

    def mark_task_failed(self, task_id: str, error_message: str) -> None:
        self._end_open_task(task_id, TaskStatus.FAILED, error_message)

    def mark_task_crashed(self, task_id: str, error_message: str) -> None:
        self._end_open_task(task_id, TaskStatus.CRASHED, error_message)

    @_locked
    def cancel_remaining_tasks(self, run_id: str, reason: str) -> int:
        remaining = self.open_tasks(run_id)
        for task in remaining:
            self._end_open_task(task.task_id, TaskStatus.CANCELLED, reason)
        return len(remaining)

    # -- artifacts: DagStore's view for routing, TaskInputStore's for plugins

    @_locked
    def get_artifacts_by_node_indices(self, run_id: str, node_indices: Sequence[int]) -> list[DagArtifact]:
        return [artifact.for_routing() for artifact in self._get_run(run_id).artifacts_at(node_indices)]

    @_locked
    def get_artifact_data(self, artifact_id: str) -> TaskArtifact | None:
        for run in self._runs.values():
            for artifact in itertools.chain.from_iterable(run.artifacts.values()):
                if artifact.id == artifact_id:
                    return artifact.data
        return None

    @_locked
    def get_task_artifacts_by_node_indices(self, run_id: str, node_indices: Sequence[int]) -> list[TaskArtifact]:
        return [artifact.data for artifact in self._get_run(run_id).artifacts_at(node_indices)]

    def get_grouped_artifacts(self, run_id: str, dep_indices: Sequence[int], origin_id: str) -> list[TaskArtifact]:
        found = self.get_task_artifacts_by_node_indices(run_id, dep_indices)
        return [artifact for artifact in found if artifact.origin_artifact_id == origin_id]

    def get_broadcast_artifacts(self, run_id: str, dep_indices: Sequence[int]) -> list[TaskArtifact]:
        found = self.get_task_artifacts_by_node_indices(run_id, dep_indices)
        return [artifact for artifact in found if artifact.origin_artifact_id is None]

    @_locked
    def get_run_input(self, run_id: str) -> dict[str, Any]:
        return copy.deepcopy(self._get_run(run_id).run_input)

    @_locked
    def get_artifacts_partitioned(self, run_id: str, node_indices: Sequence[int]) -> dict[int, list[TaskArtifact]]:
        by_node: dict[int, list[TaskArtifact]] = {}
        for artifact in self._get_run(run_id).artifacts_at(node_indices):
            by_node.setdefault(artifact.node_index, []).append(artifact.data)
        return by_node

    @_locked
    def get_artifact_producing_node(self, artifact_id: str) -> int | None:
        for run in self._runs.values():
            for artifact in itertools.chain.from_iterable(run.artifacts.values()):
                if artifact.id == artifact_id:
                    return artifact.node_index
        return None

    # -- DagRetryStore

    @_locked
    def delete_node_launches(self, run_id: str, node_indices: Sequence[int]) -> None:
        self._get_run(run_id).launched.difference_update(node_indices)

    @_locked
    def delete_tasks_at_nodes(self, run_id: str, node_indices: Sequence[int]) -> None:
        run = self._get_run(run_id)
        run.remove_tasks(run.tasks_at(node_indices))

    @_locked
    def get_retryable_tasks(self, run_id: str, node_indices: Sequence[int]) -> list[RetryableTaskInfo]:
        return [
            RetryableTaskInfo(
                task_id=task.task_id,
                node_index=task.node_index,
                plugin_name=task.plugin_name,
                input_artifact_id=task.input_artifact_id,
                origin_artifact_id=task.origin_artifact_id,
                dispatched=task.dispatched,
            )
            for task in self._get_run(run_id).tasks_at(node_indices)
            if task.status in TASK_RETRYABLE_STATUSES
        ]

    @_locked
    def delete_non_completed_tasks_at_nodes(self, run_id: str, node_indices: Sequence[int]) -> None:
        kept = {TaskStatus.COMPLETED, TaskStatus.SKIPPED}
        run = self._get_run(run_id)
        run.remove_tasks([task for task in run.tasks_at(node_indices) if task.status not in kept])

    # -- inside

    def _get_run(self, run_id: str) -> _Run:
        if run_id not in self._runs:
            raise UnknownRun(f"The store has no run {run_id!r}: create_run makes one.")
        return self._runs[run_id]

    def _find_task(self, task_id: str) -> MemoryTask | None:
        """None also for a task that a retry removed: word of it may still arrive."""
        run_id = self._run_by_task.get(task_id)
        return None if run_id is None else self._runs[run_id].tasks.get(task_id)

    @_locked
    def _add_task(self, run_id: str, node_index: int, plugin_name: str, **fields: Any) -> str:
        task = MemoryTask(f"task-{next(self._task_numbers)}", run_id, node_index, plugin_name, **fields)
        self._get_run(run_id).tasks[task.task_id] = task
        self._run_by_task[task.task_id] = run_id
        return task.task_id

    def _move_task(
        self, task_id: str, expected: Collection[TaskStatus], status: TaskStatus, error: str | None = None
    ) -> bool:
        task = self._find_task(task_id)
        if task is None or task.status not in expected:
            return False
        self._runs[task.run_id].tasks[task_id] = replace(task, status=status, error=error)
        return True

    @_locked
    def _end_open_task(self, task_id: str, status: TaskStatus, error: str) -> None:
        self._move_task(task_id, set(TaskStatus) - TASK_TERMINAL_STATUSES, status, error)

    def _make_artifact(self, run: _Run, task: MemoryTask, data: TaskArtifact) -> _Artifact:
        artifact_id = f"artifact-{next(self._artifact_numbers)}"
        read = self.get_artifact_data(task.input_artifact_id) if task.input_artifact_id else None
        origin = assign_origin(
            node=run.nodes[task.node_index],
            is_root=not run.deps[task.node_index],
            artifact_id=artifact_id,
            input_artifact_id=task.input_artifact_id,
            input_origin_id=read.origin_artifact_id if read else None,
            group_origin_id=task.origin_artifact_id,
        )
        return _Artifact(artifact_id, task.node_index, data.model_copy(update={"origin_artifact_id": origin}))


def _summarise_statuses(node: DagNode, statuses: Sequence[TaskStatus]) -> NodeSummaryStatus:
    if node.on_failure == "skip" and TaskStatus.FAILED in statuses:
        return NodeSummaryStatus.SKIPPED
    skipped = statuses.count(TaskStatus.SKIPPED)
    if not skipped:
        return NodeSummaryStatus.COMPLETED
    return NodeSummaryStatus.SKIPPED if skipped == len(statuses) else NodeSummaryStatus.PARTIAL

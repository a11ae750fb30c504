"""A store that answers each question of the engine at once, so that what is measured is the engine."""

from collections.abc import Sequence
from itertools import count

from dagabaaz_celery.constants import NodeSummaryStatus, RunStatus
from dagabaaz_celery.models import DagArtifact, DagNode, TaskContext


class FlatStore:
    """The 20 methods of ``store.DagStore`` for one run of tasks that all complete, over dicts and sets."""

    def __init__(self, nodes: Sequence[DagNode]) -> None:
        self.open: list[str] = []
        self._nodes = list(nodes)
        self._status = RunStatus.RUNNING
        self._contexts: dict[str, TaskContext] = {}
        self._totals: dict[int, int] = {}
        self._done: dict[int, int] = {}
        self._artifacts: dict[int, list[DagArtifact]] = {}
        self._launched: set[int] = set()
        self._completed: set[int] = set()
        self._summary: dict[int, NodeSummaryStatus] = {}
        self._numbers = count()

    def complete(self, task_id: str) -> None:
        """Record an outcome with one artifact, as a store does before it asks the engine."""
        index = self._contexts[task_id].node_index
        self._done[index] = self._done.get(index, 0) + 1
        self._artifacts.setdefault(index, []).append(DagArtifact(id=f"artifact of {task_id}"))
        if self._done[index] == self._totals[index]:
            self._completed.add(index)
            self._summary[index] = NodeSummaryStatus.COMPLETED

    def get_run_status(self, run_id: str) -> RunStatus:
        return self._status

    def get_barrier_state(self, run_id: str, node_index: int) -> tuple[RunStatus, int, int]:
        return self._status, self._totals.get(node_index, 0), self._done.get(node_index, 0)

    def get_run_nodes(self, run_id: str) -> list[DagNode]:
        return self._nodes

    def try_claim_run_terminal(self, run_id: str, status: RunStatus, error: str | None = None) -> bool:
        won, self._status = self._status == RunStatus.RUNNING, status
        return won

    def set_run_progress(self, run_id: str, completed_nodes: int) -> None:
        """Nobody looks."""

    def get_task_context(self, task_id: str) -> TaskContext:
        return self._contexts[task_id]

    def get_completed_node_indices(self, run_id: str) -> set[int]:
        return self._completed

    def get_launched_node_indices(self, run_id: str) -> set[int]:
        return self._launched

    def get_node_summary(self, run_id: str) -> dict[int, NodeSummaryStatus]:
        return self._summary

    def try_claim_node_launch(self, run_id: str, node_index: int) -> bool:
        won = node_index not in self._launched
        self._launched.add(node_index)
        return won

    def dispatch_task(self, run_id: str, node_index: int, plugin_name: str, input_artifact_id: str | None) -> str:
        task_id = str(next(self._numbers))
        self._contexts[task_id] = TaskContext(run_id=run_id, node_index=node_index)
        self._totals[node_index] = self._totals.get(node_index, 0) + 1
        self.open.append(task_id)
        return task_id

    def dispatch_grouped_task(self, run_id: str, node_index: int, plugin_name: str, origin_artifact_id: str) -> str:
        return self.dispatch_task(run_id, node_index, plugin_name, origin_artifact_id)

    def get_artifacts_by_node_indices(self, run_id: str, node_indices: Sequence[int]) -> list[DagArtifact]:
        return [artifact for index in node_indices for artifact in self._artifacts.get(index, ())]

    def _refuse(self, *_: object) -> str:
        raise AssertionError("every task of this run completes")

    dispatch_skipped_task = dispatch_filtered_task = dispatch_failed_task = _refuse
    fail_run = mark_task_failed = mark_task_crashed = cancel_remaining_tasks = _refuse

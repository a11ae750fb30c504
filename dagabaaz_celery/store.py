"""The protocols through which the engine talks to a store: 20 methods to advance a run, others for input and retry.

A returned collection is asked only for ``in``, ``len``, ``get`` and iteration where unavoidable, so that a
store may answer lazily. Order matters where lists are returned: artifacts come by node, then by the order of the
tasks that made them, then by the order in which each task emitted them.
"""

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any, Protocol, runtime_checkable

from dagabaaz_celery.constants import NodeSummaryStatus, RunStatus
from dagabaaz_celery.models import DagArtifact, DagNode, RetryableTaskInfo, TaskArtifact, TaskContext


@runtime_checkable
class DagStore(Protocol):
    """What the engine needs to advance a run."""

    def get_run_status(self, run_id: str) -> RunStatus | None:
        """None when there is no such run."""
        ...

    def get_barrier_state(self, run_id: str, node_index: int) -> tuple[RunStatus | None, int, int]:
        """Run status, tasks of the node, and how many of them count as done (``DagNode.counts_as_done``)."""
        ...

    def get_run_nodes(self, run_id: str) -> list[DagNode] | None: ...

    def try_claim_run_terminal(self, run_id: str, status: RunStatus, error: str | None = None) -> bool:
        """Move a run that is not terminal to ``status``; True for the one caller that did."""
        ...

    def set_run_progress(self, run_id: str, completed_nodes: int) -> None: ...

    def get_task_context(self, task_id: str) -> TaskContext | None: ...

    def get_completed_node_indices(self, run_id: str) -> AbstractSet[int]:
        """Nodes that are launched and whose tasks all count as done (``DagNode.counts_as_done``)."""
        ...

    def get_launched_node_indices(self, run_id: str) -> AbstractSet[int]:
        """Nodes whose launch was claimed, whatever became of them."""
        ...

    def get_node_summary(self, run_id: str) -> Mapping[int, NodeSummaryStatus]:
        """How each completed node ended: SKIPPED when all its tasks are, or one failed and its node says "skip"."""
        ...

    def try_claim_node_launch(self, run_id: str, node_index: int) -> bool:
        """True for the one caller that may launch the node."""
        ...

    def dispatch_task(self, run_id: str, node_index: int, plugin_name: str, input_artifact_id: str | None) -> str:
        """Create a task and owe it to the queue; returns its id. None: a root or an aggregate."""
        ...

    def dispatch_skipped_task(self, run_id: str, node_index: int, plugin_name: str) -> str: ...

    def dispatch_filtered_task(self, run_id: str, node_index: int, plugin_name: str) -> str: ...

    def dispatch_failed_task(self, run_id: str, node_index: int, plugin_name: str, error: str) -> str: ...

    def dispatch_grouped_task(self, run_id: str, node_index: int, plugin_name: str, origin_artifact_id: str) -> str:
        """Like dispatch_task, for the group of artifacts of one origin."""
        ...

    def fail_run(self, run_id: str, error: str) -> None:
        """Record why a run failed, after its FAILED claim was won; a run in another state is left alone."""
        ...

    def mark_task_failed(self, task_id: str, error_message: str) -> None: ...

    def mark_task_crashed(self, task_id: str, error_message: str) -> None: ...

    def cancel_remaining_tasks(self, run_id: str, reason: str) -> int:
        """Cancel every task that is not terminal; returns how many (0 where the store does so after its commit)."""
        ...

    def get_artifacts_by_node_indices(self, run_id: str, node_indices: Sequence[int]) -> list[DagArtifact]: ...


@runtime_checkable
class TaskInputStore(Protocol):
    """What assembling a task's input reads."""

    def get_artifact_data(self, artifact_id: str) -> TaskArtifact | None: ...

    def get_task_artifacts_by_node_indices(self, run_id: str, node_indices: Sequence[int]) -> list[TaskArtifact]: ...

    def get_grouped_artifacts(self, run_id: str, dep_indices: Sequence[int], origin_id: str) -> list[TaskArtifact]:
        """Artifacts of these nodes that have this origin."""
        ...

    def get_broadcast_artifacts(self, run_id: str, dep_indices: Sequence[int]) -> list[TaskArtifact]:
        """Artifacts of these nodes that have no origin: every group receives them."""
        ...

    def get_run_input(self, run_id: str) -> dict[str, Any]: ...

    def get_artifacts_partitioned(self, run_id: str, node_indices: Sequence[int]) -> dict[int, list[TaskArtifact]]:
        """Artifacts by producing node; a node without artifacts has no entry or an empty one."""
        ...

    def get_artifact_producing_node(self, artifact_id: str) -> int | None: ...


@runtime_checkable
class DagRetryStore(DagStore, Protocol):
    """What a retry needs beyond DagStore."""

    def delete_node_launches(self, run_id: str, node_indices: Sequence[int]) -> None:
        """Make these nodes launchable again: as if never claimed."""
        ...

    def delete_tasks_at_nodes(self, run_id: str, node_indices: Sequence[int]) -> None:
        """Remove every task of these nodes, with its artifacts."""
        ...

    def get_retryable_tasks(self, run_id: str, node_indices: Sequence[int]) -> list[RetryableTaskInfo]:
        """Tasks of these nodes that are terminal and neither completed nor skipped."""
        ...

    def delete_non_completed_tasks_at_nodes(self, run_id: str, node_indices: Sequence[int]) -> None:
        """Remove the tasks of these nodes that are neither completed nor skipped."""
        ...

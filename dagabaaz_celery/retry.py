"""Running again what a failed, crashed or cancelled run did not complete."""

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass

from dagabaaz_celery.models import DagNode, RetryableTaskInfo
from dagabaaz_celery.store import DagRetryStore

__all__ = ["RetryBoundary", "RetryResult", "RetryableTaskInfo", "compute_retry_boundary", "retry_run"]


@dataclass(frozen=True, slots=True)
class RetryBoundary:
    """Where a retry begins: nodes whose tasks did not all complete, and nodes to be launched afresh; both ascending."""

    failed: list[int]
    downstream: list[int]


@dataclass(frozen=True, slots=True)
class RetryResult:
    """The new task's id by the id of the task that it replaces."""

    replacement_map: dict[str, str]


def compute_retry_boundary(
    completed_nodes: Container[int],
    launched_nodes: Container[int],
    node_count: int,
    node_has_retryable_failure: Mapping[int, bool] | Callable[[int], bool],
) -> RetryBoundary:
    """Sort every node that is not completed into failed (launched, with a retryable task) and downstream (the others).

    ``node_has_retryable_failure`` tells of a node index whether one of its tasks is in TASK_RETRYABLE_STATUSES; in
    a mapping an absent node has none.
    """
    flags = node_has_retryable_failure
    has_failure: Callable[[int], bool | None] = flags.get if isinstance(flags, Mapping) else flags
    unfinished = [index for index in range(node_count) if index not in completed_nodes]
    failed = {index for index in unfinished if index in launched_nodes and has_failure(index)}
    return RetryBoundary(failed=sorted(failed), downstream=[index for index in unfinished if index not in failed])


def retry_run(store: DagRetryStore, run_id: str, nodes: Sequence[DagNode], boundary: RetryBoundary) -> RetryResult:
    """Dispatch the failed nodes' unfinished tasks again and make the nodes downstream launchable; touch nothing else.

    The caller has set the run running, and calls ``reconcile_run`` afterwards, which launches whatever is ready. A
    failed node with a task that never was dispatched (it failed at a limit) is launched afresh with those.
    """
    tasks_by_node = _group_resendable(store.get_retryable_tasks(run_id, boundary.failed))
    resent = [index for index in boundary.failed if index in tasks_by_node]
    relaunched = sorted({*boundary.failed, *boundary.downstream}.difference(resent))
    store.delete_non_completed_tasks_at_nodes(run_id, resent)
    store.delete_tasks_at_nodes(run_id, relaunched)
    store.delete_node_launches(run_id, sorted([*resent, *relaunched]))
    replacement_map: dict[str, str] = {}
    for index in resent:
        if store.try_claim_node_launch(run_id, index):
            for task in tasks_by_node[index]:
                replacement_map[task.task_id] = _dispatch_again(store, run_id, nodes[index].plugin, task)
    return RetryResult(replacement_map)


def _group_resendable(tasks: Sequence[RetryableTaskInfo]) -> dict[int, list[RetryableTaskInfo]]:
    """Tasks by node, less the nodes with a task that never was dispatched."""
    by_node: dict[int, list[RetryableTaskInfo]] = {}
    for task in tasks:
        by_node.setdefault(task.node_index, []).append(task)
    return {index: found for index, found in by_node.items() if all(task.dispatched for task in found)}


def _dispatch_again(store: DagRetryStore, run_id: str, plugin: str, task: RetryableTaskInfo) -> str:
    if task.origin_artifact_id is not None:
        return store.dispatch_grouped_task(run_id, task.node_index, plugin, task.origin_artifact_id)
    return store.dispatch_task(run_id, task.node_index, plugin, task.input_artifact_id)

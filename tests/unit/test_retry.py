"""Retry: where it begins, what it deletes and what it dispatches again."""

from collections.abc import Callable
from typing import Any

import pytest

from dagabaaz_celery.constants import TaskStatus
from dagabaaz_celery.models import DagNode, TaskArtifact
from dagabaaz_celery.retry import RetryableTaskInfo, RetryBoundary, RetryResult, compute_retry_boundary, retry_run
from dagabaaz_celery.stores.memory import MemoryStore

RUN = "run"
NODES = [
    DagNode(slug="a", plugin="fetch"),
    DagNode(slug="b", plugin="work", depends_on=["a"]),
    DagNode(slug="c", plugin="merge", depends_on=["b"]),
]


# -- where a retry begins


@pytest.mark.parametrize(
    ("completed", "launched", "failing", "boundary"),
    [
        (set(), set(), set(), RetryBoundary(failed=[], downstream=[0, 1, 2, 3])),
        ({0}, {0, 1, 2}, {1, 2}, RetryBoundary(failed=[1, 2], downstream=[3])),
        ({0, 2}, {0, 1, 2}, {1}, RetryBoundary(failed=[1], downstream=[3])),
        ({0}, {0, 1}, set(), RetryBoundary(failed=[], downstream=[1, 2, 3])),
        ({0}, {0}, {1}, RetryBoundary(failed=[], downstream=[1, 2, 3])),
        ({0, 1, 2, 3}, {0, 1, 2, 3}, {0}, RetryBoundary(failed=[], downstream=[])),
    ],
    ids=["never begun", "two failed", "one failed", "no failure", "not launched", "all completed"],
)
def test_failed_nodes_are_launched_and_hold_a_failure_all_other_unfinished_ones_are_downstream(
    completed: set[int], launched: set[int], failing: set[int], boundary: RetryBoundary
):
    assert compute_retry_boundary(completed, launched, 4, lambda index: index in failing) == boundary
    assert compute_retry_boundary(completed, launched, 4, dict.fromkeys(failing, True)) == boundary


def test_in_a_mapping_a_node_without_failure_may_say_so():
    assert compute_retry_boundary(set(), {0}, 1, {0: False}) == RetryBoundary(failed=[], downstream=[0])


# -- running again


def make_store() -> MemoryStore:
    store = MemoryStore()
    store.create_run(RUN, NODES)
    return store


def launch(store: MemoryStore, index: int, *inputs: str | None) -> list[str]:
    assert store.try_claim_node_launch(RUN, index)
    return [store.dispatch_task(RUN, index, NODES[index].plugin, artifact_id) for artifact_id in inputs]


def complete(store: MemoryStore, task_id: str, *names: str) -> None:
    assert store.claim_task(task_id)
    assert store.complete_task(task_id, [TaskArtifact(file_name=name) for name in names])


def describe(store: MemoryStore) -> list[tuple[Any, ...]]:
    return [
        (task.node_index, task.plugin_name, task.status, task.input_artifact_id, task.origin_artifact_id)
        for task in store.tasks(RUN)
    ]


def test_unfinished_tasks_are_replaced_and_completed_ones_stay():
    """The first of b's three tasks completed, the second failed, the third was cancelled; c was launched early."""
    store = make_store()
    complete(store, launch(store, 0, None)[0], "x", "y", "z")
    kept, failed, cancelled = launch(store, 1, "artifact-1", "artifact-2", "artifact-3")
    complete(store, kept, "kept")
    store.mark_task_failed(failed, "boom")
    store.cancel_remaining_tasks(RUN, "boom")

    result = retry_run(store, RUN, NODES, RetryBoundary(failed=[1], downstream=[2]))

    assert describe(store) == [
        (0, "fetch", TaskStatus.COMPLETED, None, None),
        (1, "work", TaskStatus.COMPLETED, "artifact-1", None),
        (1, "work", TaskStatus.PENDING, "artifact-2", None),
        (1, "work", TaskStatus.PENDING, "artifact-3", None),
    ]
    new = [task.task_id for task in store.open_tasks(RUN)]
    assert result == RetryResult(dict(zip([failed, cancelled], new, strict=True)))
    assert [artifact.file_name for artifact in store.get_artifacts_by_node_indices(RUN, [0, 1])] == [*"xyz", "kept"]


def test_a_resent_node_is_claimed_and_downstream_ones_can_be_again():
    store = make_store()
    launch(store, 0, None)
    store.try_claim_node_launch(RUN, 1)
    store.cancel_remaining_tasks(RUN, "enough")

    retry_run(store, RUN, NODES, RetryBoundary(failed=[0], downstream=[1, 2]))

    assert store.get_launched_node_indices(RUN) == {0}


def test_downstream_tasks_and_artifacts_are_removed():
    store = make_store()
    complete(store, launch(store, 0, None)[0], "x")
    complete(store, launch(store, 1, "artifact-1")[0], "stale")

    result = retry_run(store, RUN, NODES, RetryBoundary(failed=[], downstream=[1, 2]))

    assert result.replacement_map == {}
    assert [task.node_index for task in store.tasks(RUN)] == [0]
    assert store.get_artifacts_by_node_indices(RUN, [1]) == []


def test_a_grouped_task_is_dispatched_again_as_grouped():
    store = make_store()
    store.try_claim_node_launch(RUN, 1)
    store.dispatch_grouped_task(RUN, 1, "work", "artifact-9")
    store.cancel_remaining_tasks(RUN, "enough")

    retry_run(store, RUN, NODES, RetryBoundary(failed=[1], downstream=[]))

    assert describe(store) == [(1, "work", TaskStatus.PENDING, None, "artifact-9")]


def fail_at_limit(store: MemoryStore) -> None:
    store.dispatch_failed_task(RUN, 1, "work", "Fan-out limit exceeded")


def do_nothing(store: MemoryStore) -> None:
    """A node that was claimed, and whose launcher died before it dispatched anything."""


@pytest.mark.parametrize("happen", [fail_at_limit, do_nothing])
def test_a_failed_node_without_a_task_to_send_again_becomes_launchable(happen: Callable[[MemoryStore], None]):
    store = make_store()
    store.try_claim_node_launch(RUN, 1)
    happen(store)

    result = retry_run(store, RUN, NODES, RetryBoundary(failed=[1], downstream=[2]))

    assert result.replacement_map == {}
    assert store.tasks(RUN) == []
    assert store.get_launched_node_indices(RUN) == set()


def test_a_node_whose_claim_is_lost_is_not_dispatched_by_this_retry():
    class Contended(MemoryStore):
        def try_claim_node_launch(self, run_id: str, node_index: int) -> bool:
            return False

    store = Contended()
    store.create_run(RUN, NODES)
    store.dispatch_task(RUN, 0, "fetch", None)
    store.cancel_remaining_tasks(RUN, "enough")

    assert retry_run(store, RUN, NODES, RetryBoundary(failed=[0], downstream=[])).replacement_map == {}
    assert store.tasks(RUN) == []


def test_what_a_retry_needs_of_a_task_can_be_imported_from_here():
    info = RetryableTaskInfo(task_id="t", node_index=0, plugin_name="fetch")

    assert info.dispatched

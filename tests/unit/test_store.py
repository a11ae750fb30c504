"""The store protocols: what is asked of a store, and that nothing more is."""

import pytest

from dagabaaz_celery.store import DagRetryStore, DagStore, TaskInputStore
from dagabaaz_celery.stores.memory import MemoryStore

DAG_STORE_METHODS = [
    "get_run_status",
    "get_barrier_state",
    "get_run_nodes",
    "try_claim_run_terminal",
    "set_run_progress",
    "get_task_context",
    "get_completed_node_indices",
    "get_launched_node_indices",
    "get_node_summary",
    "try_claim_node_launch",
    "dispatch_task",
    "dispatch_skipped_task",
    "dispatch_filtered_task",
    "dispatch_failed_task",
    "dispatch_grouped_task",
    "fail_run",
    "mark_task_failed",
    "mark_task_crashed",
    "cancel_remaining_tasks",
    "get_artifacts_by_node_indices",
]
TASK_INPUT_METHODS = [
    "get_artifact_data",
    "get_task_artifacts_by_node_indices",
    "get_grouped_artifacts",
    "get_broadcast_artifacts",
    "get_run_input",
    "get_artifacts_partitioned",
    "get_artifact_producing_node",
]
RETRY_METHODS = [
    "delete_node_launches",
    "delete_tasks_at_nodes",
    "get_retryable_tasks",
    "delete_non_completed_tasks_at_nodes",
]


def make_object_with(names: list[str]) -> object:
    return type("Bare", (), dict.fromkeys(names, lambda self, *args: None))()


def test_twenty_methods_make_a_dag_store():
    bare = make_object_with(DAG_STORE_METHODS)

    assert len(DAG_STORE_METHODS) == 20
    assert isinstance(bare, DagStore)
    assert not isinstance(bare, TaskInputStore)
    assert not isinstance(bare, DagRetryStore)


@pytest.mark.parametrize(
    ("protocol", "names"),
    [
        (DagStore, DAG_STORE_METHODS),
        (TaskInputStore, TASK_INPUT_METHODS),
        (DagRetryStore, DAG_STORE_METHODS + RETRY_METHODS),
    ],
)
def test_each_method_is_needed_and_no_other(protocol: type, names: list[str]):
    assert isinstance(make_object_with(names), protocol)
    for missing in names:
        assert not isinstance(make_object_with([name for name in names if name != missing]), protocol), missing


@pytest.mark.parametrize("protocol", [DagStore, TaskInputStore, DagRetryStore])
def test_the_store_in_memory_is_all_three(protocol: type):
    assert isinstance(MemoryStore(), protocol)

"""The store in memory: what it adds to the protocols, for tests that play an app and its workers.

The protocols' own methods are tested with every other store's, in tests/contract.
"""

import textwrap
import threading

import pytest

from dagabaaz_celery import orchestrator
from dagabaaz_celery.constants import NodeSummaryStatus, RunStatus, TaskStatus
from dagabaaz_celery.errors import RunStateError, UnknownRun
from dagabaaz_celery.models import DagNode, TaskArtifact
from dagabaaz_celery.stores import memory
from dagabaaz_celery.stores.memory import MemoryRun, MemoryStore

NODES = [DagNode(slug="a", plugin="fetch"), DagNode(slug="b", plugin="work", depends_on=["a"])]


@pytest.fixture
def store() -> MemoryStore:
    """A store with the run "run", whose root has one open task, "task-1"."""
    store = MemoryStore()
    store.create_run("run", NODES, {"n": [1]})
    assert store.try_claim_node_launch("run", 0)
    assert store.dispatch_task("run", 0, "fetch", None) == "task-1"
    return store


def test_a_whole_run_as_the_module_shows_it():
    told: list[str] = []
    callbacks = orchestrator.OrchestratorCallbacks(told.append, told.append, told.append)
    code = textwrap.dedent(memory.__doc__.partition("::\n\n")[2].partition("\nIds count up")[0])

    exec(code, vars(memory) | {"orchestrator": orchestrator, "nodes": NODES, "callbacks": callbacks})

    assert told == ["run-1"]


def test_a_new_run_is_running_and_nothing_is_done(store: MemoryStore):
    assert store.run("run") == MemoryRun("run", RunStatus.RUNNING, None, 1, 0, 2)


def test_a_run_id_is_taken_once(store: MemoryStore):
    with pytest.raises(RunStateError, match="already has a run 'run'"):
        store.create_run("run", NODES)


def test_a_run_is_a_snapshot_of_its_nodes_and_input():
    nodes, run_input = [DagNode(slug="a", plugin="fetch")], {"n": [1]}
    store = MemoryStore()
    store.create_run("run", nodes, run_input)

    nodes[0].plugin = "edited"
    run_input["n"].append(2)

    assert store.get_run_nodes("run")[0].plugin == "fetch"
    assert store.get_run_input("run") == {"n": [1]}


def test_an_unknown_run_is_none_to_the_engine_and_an_error_to_a_test(store: MemoryStore):
    assert store.get_run_status("?") is None
    assert store.get_barrier_state("?", 0) == (None, 0, 0)
    assert store.get_run_nodes("?") is None
    with pytest.raises(UnknownRun, match="create_run"):
        store.tasks("?")


def test_a_task_is_claimed_once_then_completed_once(store: MemoryStore):
    artifacts = [TaskArtifact(file_name="x", origin_artifact_id="claimed"), TaskArtifact(file_name="y")]

    assert store.complete_task("task-1", artifacts) is False
    assert [store.claim_task("task-1"), store.claim_task("task-1")] == [True, False]
    assert [store.complete_task("task-1", artifacts), store.complete_task("task-1", artifacts)] == [True, False]

    made = store.get_artifacts_by_node_indices("run", [0])
    assert [(a.id, a.file_name, a.origin_artifact_id) for a in made] == [
        ("artifact-1", "x", "artifact-1"),
        ("artifact-2", "y", "artifact-2"),
    ]


def test_only_a_running_run_lets_tasks_be_claimed(store: MemoryStore):
    store.try_claim_run_terminal("run", RunStatus.FAILED)

    assert store.claim_task("task-1") is False


def test_an_unknown_task_is_refused(store: MemoryStore):
    assert store.claim_task("task-9") is False
    assert store.complete_task("task-9") is False
    assert store.get_task_context("task-9") is None


def test_a_task_that_a_retry_removed_is_unknown(store: MemoryStore):
    store.delete_tasks_at_nodes("run", [0])

    assert store.claim_task("task-1") is False
    assert store.get_task_context("task-1") is None


def test_open_tasks_are_those_that_have_not_ended(store: MemoryStore):
    store.dispatch_task("run", 1, "work", "artifact-1")
    store.dispatch_filtered_task("run", 1, "work")
    store.claim_task("task-1")

    assert [(t.task_id, t.status) for t in store.open_tasks("run")] == [
        ("task-1", TaskStatus.RUNNING),
        ("task-2", TaskStatus.PENDING),
    ]
    assert [t.task_id for t in store.tasks("run")] == ["task-1", "task-2", "task-3"]
    assert [t.dispatched for t in store.tasks("run")] == [True, True, False]


def test_a_tasks_error_is_kept(store: MemoryStore):
    store.mark_task_failed("task-1", "boom")
    store.dispatch_failed_task("run", 1, "work", "too wide")

    assert [t.error for t in store.tasks("run")] == ["boom", "too wide"]


def test_a_runs_error_is_that_of_its_claim_until_fail_run_says_more(store: MemoryStore):
    store.fail_run("run", "not failed")
    assert store.run("run").error is None
    store.try_claim_run_terminal("run", RunStatus.FAILED, "boom")
    assert store.run("run").error == "boom"
    store.fail_run("run", "boom, in full")
    assert store.run("run").error == "boom, in full"


def test_progress_is_kept_for_the_test_to_see(store: MemoryStore):
    store.set_run_progress("run", 1)

    run = store.run("run")
    assert (run.completed_nodes, run.total_nodes) == (1, 2)


@pytest.mark.parametrize("status", [RunStatus.FAILED, RunStatus.CRASHED, RunStatus.CANCELLED])
def test_a_run_that_did_not_complete_can_be_reopened_in_its_next_generation(store: MemoryStore, status: RunStatus):
    store.try_claim_run_terminal("run", status, "boom")

    assert [store.reopen_run("run"), store.reopen_run("run")] == [True, False]
    assert store.run("run") == MemoryRun("run", RunStatus.RUNNING, None, 2, 0, 2)


def test_a_completed_run_stays_completed(store: MemoryStore):
    store.try_claim_run_terminal("run", RunStatus.COMPLETED)

    assert store.reopen_run("run") is False


def test_a_node_with_skipped_and_other_tasks_is_partial(store: MemoryStore):
    store.dispatch_skipped_task("run", 1, "work")
    assert store.get_node_summary("run") == {1: NodeSummaryStatus.SKIPPED}

    store.dispatch_filtered_task("run", 1, "work")

    assert store.get_node_summary("run") == {1: NodeSummaryStatus.PARTIAL}


def test_runs_do_not_see_each_others_artifacts(store: MemoryStore):
    store.create_run("other", NODES)
    store.claim_task("task-1")
    store.complete_task("task-1", [TaskArtifact(file_name="x")])

    assert store.get_artifacts_by_node_indices("other", [0]) == []
    assert store.get_artifact_producing_node("artifact-1") == 0
    assert store.get_artifact_data("artifact-1") == TaskArtifact(file_name="x", origin_artifact_id="artifact-1")


def test_who_holds_the_lock_may_use_the_store_and_nobody_else(store: MemoryStore):
    got_it: list[bool] = []
    other = threading.Thread(target=lambda: got_it.append(store.lock.acquire(blocking=False)))

    with store.lock:
        other.start()
        other.join(10)
        assert store.claim_task("task-1") is True

    assert got_it == [False]

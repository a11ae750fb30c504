"""How runs end and begin again: failures, crashes, cancels, limits, duplicates, retries."""

import pytest

from dagabaaz_celery.constants import FanMode, RunStatus
from dagabaaz_celery.models import EdgeFilter, FilterRule
from tests.contract.harness import (
    StoreHarness,
    complete_node,
    data,
    input_names,
    node,
    open_at,
    pass_on,
    run_to_end,
)

FAN = [node("source"), node("work", "source"), node("end", "work", fan_mode=FanMode.AGGREGATE)]


def emit(*names: str):
    return lambda _task: [data(name, size=size) for size, name in enumerate(names, start=1)]


def start_fan(harness: StoreHarness, *names: str) -> str:
    """A run with one open task at "work" for each of these artifacts."""
    run_id = harness.start(FAN)
    complete_node(harness, run_id, "source", emit(*names))
    return run_id


# -- failures


def test_a_failure_ends_the_run_and_cancels_the_siblings(harness: StoreHarness):
    run_id = start_fan(harness, "f1", "f2", "f3")
    first, second, _ = open_at(harness, run_id, "work")
    harness.complete(first)

    harness.fail(second, "boom")

    assert harness.status(run_id) == RunStatus.FAILED
    assert harness.ended(run_id) == [RunStatus.FAILED]
    assert harness.task_statuses(run_id, "work") == ["completed", "failed", "cancelled"]
    assert harness.node_states(run_id) == {"source": "completed", "work": "failed", "end": "blocked"}
    assert harness.open_tasks(run_id) == []


def test_a_crash_ends_the_run_as_crashed(harness: StoreHarness):
    run_id = start_fan(harness, "f1", "f2")

    harness.crash(open_at(harness, run_id, "work")[0], "the worker was lost")

    assert harness.status(run_id) == RunStatus.CRASHED
    assert harness.ended(run_id) == [RunStatus.CRASHED]
    assert harness.task_statuses(run_id, "work") == ["crashed", "cancelled"]


def test_a_cancel_ends_the_run_with_all_its_open_tasks(harness: StoreHarness):
    run_id = start_fan(harness, "f1", "f2")

    harness.cancel(run_id)

    assert harness.status(run_id) == RunStatus.CANCELLED
    assert harness.ended(run_id) == [RunStatus.CANCELLED]
    assert harness.task_statuses(run_id, "work") == ["cancelled", "cancelled"]
    assert harness.node_states(run_id)["end"] == "blocked"


def test_a_failure_cancels_other_branches_too(harness: StoreHarness):
    run_id = harness.start([node("a"), node("b"), node("after_a", "a")])

    harness.fail(open_at(harness, run_id, "b")[0], "boom")

    assert harness.task_statuses(run_id, "a") == ["cancelled"]
    assert harness.node_states(run_id)["after_a"] == "blocked"


def test_a_late_outcome_of_a_cancelled_task_changes_nothing(harness: StoreHarness):
    run_id = start_fan(harness, "f1", "f2")
    first, second = open_at(harness, run_id, "work")
    harness.fail(first, "boom")

    harness.complete(second, [data("late")])
    harness.fail(second, "late too")
    harness.crash(second, "latest")

    assert harness.status(run_id) == RunStatus.FAILED
    assert harness.ended(run_id) == [RunStatus.FAILED]
    assert harness.task_statuses(run_id, "work") == ["failed", "cancelled"]


def test_an_ended_run_cannot_be_cancelled(harness: StoreHarness):
    run_id = harness.start([node("a")])
    complete_node(harness, run_id, "a")

    harness.cancel(run_id)

    assert harness.ended(run_id) == [RunStatus.COMPLETED]


# -- duplicates


def test_completing_a_task_again_changes_nothing(harness: StoreHarness):
    run_id = start_fan(harness, "f1", "f2")
    first, second = open_at(harness, run_id, "work")

    for _ in range(3):
        harness.complete(first, [data("once")])
    assert harness.node_states(run_id)["end"] == "blocked"
    harness.complete(second, [data("twice")])
    for task in (second, first):
        harness.complete(task, [data("again")])

    ends = open_at(harness, run_id, "end")
    assert [input_names(harness.task_input(task)) for task in ends] == [["once", "twice"]]
    complete_node(harness, run_id, "end")
    harness.complete(first)
    harness.complete(ends[0])
    assert harness.ended(run_id) == [RunStatus.COMPLETED]


def test_failing_a_task_that_completed_changes_nothing(harness: StoreHarness):
    run_id = start_fan(harness, "f1", "f2")
    first = open_at(harness, run_id, "work")[0]
    harness.complete(first)

    harness.fail(first, "a message that came twice")

    assert harness.status(run_id) == RunStatus.RUNNING
    assert harness.task_statuses(run_id, "work")[0] == "completed"


# -- fan-out limits


@pytest.mark.parametrize("fan_mode", [FanMode.SINGLE, FanMode.GROUPED])
def test_over_the_fan_out_limit_nothing_is_dispatched_and_the_run_fails(harness: StoreHarness, fan_mode: FanMode):
    run_id = harness.start(
        [
            node("source"),
            node("sibling", "source", fan_mode=FanMode.AGGREGATE),
            node("wide", "source", fan_mode=fan_mode),
        ],
        max_fan_out=2,
    )

    complete_node(harness, run_id, "source", emit("f1", "f2", "f3"))

    assert harness.status(run_id) == RunStatus.FAILED
    assert harness.ended(run_id) == [RunStatus.FAILED]
    assert harness.task_statuses(run_id, "wide") == ["failed"]
    assert harness.task_statuses(run_id, "sibling") == ["cancelled"]
    assert harness.node_states(run_id)["wide"] == "failed"


def test_past_a_limit_no_further_node_is_launched(harness: StoreHarness):
    run_id = harness.start(
        [node("source"), node("wide", "source"), node("sibling", "source", fan_mode=FanMode.AGGREGATE)], max_fan_out=2
    )

    complete_node(harness, run_id, "source", emit("f1", "f2", "f3"))

    assert harness.node_states(run_id) == {"source": "completed", "wide": "failed", "sibling": "blocked"}


@pytest.mark.parametrize("fan_mode", FanMode)
def test_the_limit_itself_is_allowed_and_an_aggregate_has_none(harness: StoreHarness, fan_mode: FanMode):
    names = ["f1", "f2", "f3"] if fan_mode == FanMode.AGGREGATE else ["f1", "f2"]
    run_id = harness.start([node("source"), node("wide", "source", fan_mode=fan_mode)], max_fan_out=2)

    complete_node(harness, run_id, "source", emit(*names))

    assert len(open_at(harness, run_id, "wide")) == (1 if fan_mode == FanMode.AGGREGATE else 2)


def test_a_nodes_own_limit_outranks_the_runs(harness: StoreHarness):
    run_id = harness.start(
        [node("source"), node("wider", "source", max_fan_out=3), node("narrow", "wider", max_fan_out=1)], max_fan_out=2
    )
    complete_node(harness, run_id, "source", emit("f1", "f2", "f3"))
    assert len(open_at(harness, run_id, "wider")) == 3

    complete_node(harness, run_id, "wider", pass_on(harness))

    assert harness.node_states(run_id)["narrow"] == "failed"
    assert harness.status(run_id) == RunStatus.FAILED


def test_grouping_many_artifacts_without_origins_is_no_fan_out(harness: StoreHarness):
    run_id = harness.start(
        [node("side", fan_mode=FanMode.AGGREGATE), node("merge", "side", fan_mode=FanMode.GROUPED)], max_fan_out=1
    )

    complete_node(harness, run_id, "side", emit("f1", "f2", "f3"))

    assert len(open_at(harness, run_id, "merge")) == 1


# -- retries


def test_a_retry_runs_again_what_did_not_complete_and_nothing_else(harness: StoreHarness):
    run_id = start_fan(harness, "f1", "f2", "f3")
    first, second, third = open_at(harness, run_id, "work")
    harness.complete(first, [data("work(f1)")])
    harness.fail(second, "boom")

    replaced = harness.retry(run_id)

    assert harness.status(run_id) == RunStatus.RUNNING
    again = harness.open_tasks(run_id)
    assert {task.slug for task in again} == {"work"}
    assert {task.input_artifact_id for task in again} == {second.input_artifact_id, third.input_artifact_id}
    assert set(replaced) == {second.task_id, third.task_id}
    assert set(replaced.values()) == {task.task_id for task in again}
    assert run_to_end(harness, run_id, pass_on(harness)) == ["work", "work", "end"]
    assert harness.ended(run_id) == [RunStatus.FAILED, RunStatus.COMPLETED]
    assert harness.node_states(run_id) == dict.fromkeys(("source", "work", "end"), "completed")


def test_after_a_retry_downstream_gets_the_old_results_with_the_new(harness: StoreHarness):
    run_id = start_fan(harness, "f1", "f2")
    first, second = open_at(harness, run_id, "work")
    harness.complete(first, [data("kept")])
    harness.crash(second, "lost")

    harness.retry(run_id)
    complete_node(harness, run_id, "work", emit("new"))

    assert [input_names(harness.task_input(task)) for task in open_at(harness, run_id, "end")] == [["kept", "new"]]


def test_grouped_tasks_are_dispatched_again_as_grouped(harness: StoreHarness):
    run_id = harness.start([node("source"), node("merge", "source", fan_mode=FanMode.GROUPED)])
    complete_node(harness, run_id, "source", emit("f1", "f2"))
    first, second = open_at(harness, run_id, "merge")
    harness.complete(first)
    harness.fail(second, "boom")

    harness.retry(run_id)

    again = open_at(harness, run_id, "merge")
    assert [(task.origin_artifact_id, task.input_artifact_id) for task in again] == [(second.origin_artifact_id, None)]
    assert input_names(harness.task_input(again[0])) == ["f2"]


def test_a_cancelled_run_can_be_retried(harness: StoreHarness):
    run_id = start_fan(harness, "f1", "f2")
    harness.complete(open_at(harness, run_id, "work")[0], [data("kept")])
    harness.cancel(run_id)

    harness.retry(run_id)

    assert run_to_end(harness, run_id, pass_on(harness)) == ["work", "end"]
    assert harness.ended(run_id) == [RunStatus.CANCELLED, RunStatus.COMPLETED]


def test_a_failed_root_can_be_retried(harness: StoreHarness):
    run_id = harness.start([node("a"), node("b", "a")], run_input={"n": 1})
    harness.fail(harness.open_tasks(run_id)[0], "boom")

    harness.retry(run_id)

    assert [harness.task_input(task) for task in harness.open_tasks(run_id)] == [{"n": 1}]
    assert run_to_end(harness, run_id, pass_on(harness)) == ["a", "b"]
    assert harness.status(run_id) == RunStatus.COMPLETED


def test_a_retry_can_fail_and_be_retried(harness: StoreHarness):
    run_id = start_fan(harness, "f1")

    for _ in range(2):
        harness.fail(open_at(harness, run_id, "work")[0], "boom")
        harness.retry(run_id)
    run_to_end(harness, run_id, pass_on(harness))

    assert harness.ended(run_id) == [RunStatus.FAILED, RunStatus.FAILED, RunStatus.COMPLETED]


def test_a_retry_keeps_skipped_and_filtered_nodes(harness: StoreHarness):
    videos = EdgeFilter(rules=[FilterRule(field="extension", operator="eq", value=".mp4")])
    run_id = harness.start(
        [
            node("source"),
            node("skipped", "source", fan_mode=FanMode.AGGREGATE, edge_filters={"source": videos}),
            node("filtered", "source", edge_filters={"source": videos}),
            node("work", "source"),
        ]
    )
    complete_node(harness, run_id, "source", emit("a.srt"))
    harness.fail(open_at(harness, run_id, "work")[0], "boom")

    harness.retry(run_id)
    complete_node(harness, run_id, "work")

    assert harness.node_states(run_id) == {
        "source": "completed",
        "skipped": "skipped",
        "filtered": "filtered",
        "work": "completed",
    }
    assert harness.status(run_id) == RunStatus.COMPLETED


def test_a_node_that_failed_at_its_limit_is_launched_afresh_by_a_retry(harness: StoreHarness):
    run_id = harness.start([node("source"), node("wide", "source"), node("end", "wide")], max_fan_out=2)
    complete_node(harness, run_id, "source", emit("f1", "f2", "f3"))

    assert harness.retry(run_id) == {}

    # The artifacts are the same, so it fails again: by the limit, not by a task that could never run.
    assert harness.task_statuses(run_id, "wide") == ["failed"]
    assert harness.ended(run_id) == [RunStatus.FAILED, RunStatus.FAILED]


def test_a_sibling_that_completed_while_the_run_failed_is_not_run_again(harness: StoreHarness):
    """A's success is recorded, but B fails the run before it is advanced: C must start after the retry, A must not."""
    run_id = harness.start([node("a"), node("b"), node("c", "a")])
    a, b = harness.open_tasks(run_id)

    harness.complete_late(a, [data("from a")], meanwhile=lambda: harness.fail(b, "boom"))
    assert harness.status(run_id) == RunStatus.FAILED
    assert harness.node_states(run_id) == {"a": "completed", "b": "failed", "c": "blocked"}

    harness.retry(run_id)
    harness.reconcile(run_id)
    assert sorted(task.slug for task in harness.open_tasks(run_id)) == ["b", "c"]
    assert [input_names(harness.task_input(task)) for task in open_at(harness, run_id, "c")] == [["from a"]]
    run_to_end(harness, run_id, lambda _: [])
    assert harness.ended(run_id) == [RunStatus.FAILED, RunStatus.COMPLETED]


def test_a_sibling_that_was_cancelled_before_it_completed_is_run_again(harness: StoreHarness):
    run_id = harness.start([node("a"), node("b"), node("c", "a")])
    a, b = harness.open_tasks(run_id)

    harness.fail(b, "boom")
    harness.complete(a, [data("too late")])
    assert harness.node_states(run_id)["c"] == "blocked"

    harness.retry(run_id)
    assert sorted(run_to_end(harness, run_id, pass_on(harness))) == ["a", "b", "c"]
    assert harness.status(run_id) == RunStatus.COMPLETED


# -- reconciling


def test_reconciling_a_healthy_run_changes_nothing(harness: StoreHarness):
    run_id = start_fan(harness, "f1", "f2")
    before = harness.open_tasks(run_id), harness.node_states(run_id)

    for _ in range(2):
        harness.reconcile(run_id)

    assert (harness.open_tasks(run_id), harness.node_states(run_id)) == before


def test_reconciling_an_ended_run_changes_nothing(harness: StoreHarness):
    run_id = start_fan(harness, "f1")
    harness.fail(open_at(harness, run_id, "work")[0], "boom")

    harness.reconcile(run_id)

    assert harness.ended(run_id) == [RunStatus.FAILED]
    assert harness.node_states(run_id)["end"] == "blocked"

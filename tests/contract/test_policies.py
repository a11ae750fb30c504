"""Failures that a node tolerates: the run goes on, with what there is or without what is behind."""

import pytest

from dagabaaz_celery.constants import FanMode, RunStatus
from tests.contract.harness import StoreHarness, complete_node, data, input_names, node, open_at, run_to_end


def start_fan(harness: StoreHarness, on_failure: str) -> str:
    """Three tasks at "work", whose node tolerates failures, one that gathers behind it, and one beside it."""
    run_id = harness.start(
        [
            node("source"),
            node("work", "source", on_failure=on_failure),
            node("end", "work", fan_mode=FanMode.AGGREGATE),
            node("beside", "source", fan_mode=FanMode.AGGREGATE),
        ]
    )
    complete_node(harness, run_id, "source", lambda _: [data(f"f{n}") for n in range(3)])
    return run_id


def fail_one(harness: StoreHarness, run_id: str) -> None:
    first, second, third = open_at(harness, run_id, "work")
    harness.complete(first, [data("w0")])
    harness.fail(second, "boom")
    harness.complete(third, [data("w2")])


def test_with_continue_the_node_behind_gets_what_the_others_made(harness: StoreHarness):
    run_id = start_fan(harness, "continue")

    fail_one(harness, run_id)

    assert harness.status(run_id) == RunStatus.RUNNING
    assert harness.task_statuses(run_id, "work") == ["completed", "failed", "completed"]
    (end,) = open_at(harness, run_id, "end")
    assert input_names(harness.task_input(end)) == ["w0", "w2"]
    run_to_end(harness, run_id, lambda _: ())
    assert harness.ended(run_id) == [RunStatus.COMPLETED]


def test_with_continue_and_nothing_made_the_node_behind_is_filtered(harness: StoreHarness):
    run_id = start_fan(harness, "continue")

    for task in open_at(harness, run_id, "work"):
        harness.fail(task, "boom")

    assert harness.node_states(run_id)["end"] == "filtered"
    run_to_end(harness, run_id, lambda _: ())
    assert harness.ended(run_id) == [RunStatus.COMPLETED]


@pytest.mark.parametrize("last", ["fail", "complete"])
def test_with_skip_what_is_behind_is_skipped_once_the_others_have_ended(harness: StoreHarness, last: str):
    run_id = start_fan(harness, "skip")
    first, second, third = open_at(harness, run_id, "work")

    harness.fail(first, "boom")
    harness.complete(second, [data("w1")])
    assert harness.node_states(run_id)["end"] == "blocked"
    if last == "fail":
        harness.fail(third, "boom")
    else:
        harness.complete(third, [data("w2")])

    assert harness.node_states(run_id)["end"] == "skipped"
    assert run_to_end(harness, run_id, lambda _: ()) == ["beside"]
    assert harness.ended(run_id) == [RunStatus.COMPLETED]


@pytest.mark.parametrize("on_failure", ["continue", "skip"])
def test_a_crash_ends_the_run_all_the_same(harness: StoreHarness, on_failure: str):
    run_id = start_fan(harness, on_failure)

    harness.crash(open_at(harness, run_id, "work")[0], "the worker was lost")

    assert harness.ended(run_id) == [RunStatus.CRASHED]


def test_a_retry_does_not_touch_what_was_tolerated(harness: StoreHarness):
    run_id = start_fan(harness, "continue")
    fail_one(harness, run_id)
    harness.fail(open_at(harness, run_id, "end")[0], "boom")
    assert harness.status(run_id) == RunStatus.FAILED

    harness.retry(run_id)

    assert harness.task_statuses(run_id, "work") == ["completed", "failed", "completed"]
    assert sorted(run_to_end(harness, run_id, lambda _: ())) == ["beside", "end"]
    assert harness.ended(run_id) == [RunStatus.FAILED, RunStatus.COMPLETED]


def test_a_finaliser_is_none_of_the_nodes_that_a_run_waits_for(harness: StoreHarness):
    run_id = harness.start([node("a"), node("b", "a"), node("last", "a", run_on="failure")])

    assert run_to_end(harness, run_id, lambda task: [data(task.slug)]) == ["a", "b"]
    assert harness.ended(run_id) == [RunStatus.COMPLETED]

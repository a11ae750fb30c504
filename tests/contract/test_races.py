"""What several workers do at the same instant: one of them wins, and nothing happens twice."""

import pytest

from dagabaaz_celery.constants import FanMode, RunStatus
from tests.contract.harness import StoreHarness, complete_node, data, node, open_at, release_together

RACERS = 6
FAN = [node("source"), node("work", "source"), node("end", "work", fan_mode=FanMode.AGGREGATE)]


def start_fan(harness: StoreHarness, width: int) -> str:
    run_id = harness.start(FAN)
    complete_node(harness, run_id, "source", lambda _: [data(f"f{n}") for n in range(width)])
    return run_id


def test_one_of_many_ends_a_run(harness: StoreHarness):
    run_id = harness.start(FAN)

    won = harness.concurrently(
        run_id, lambda store: store.try_claim_run_terminal(run_id, RunStatus.FAILED, "boom"), RACERS
    )

    assert sorted(won) == [False] * (RACERS - 1) + [True]
    assert harness.status(run_id) == RunStatus.FAILED


def test_one_of_many_launches_a_node(harness: StoreHarness):
    run_id = harness.start(FAN)

    def launch(store) -> bool:
        won = store.try_claim_node_launch(run_id, 1)
        if won:
            store.dispatch_task(run_id, 1, "work", None)
        return won

    assert sorted(harness.concurrently(run_id, launch, RACERS)) == [False] * (RACERS - 1) + [True]
    assert len(open_at(harness, run_id, "work")) == 1


def test_one_of_many_equal_completions_counts(harness: StoreHarness):
    run_id = start_fan(harness, 1)
    task = open_at(harness, run_id, "work")[0]

    release_together([lambda: harness.complete(task, [data("once")])] * RACERS)

    assert harness.task_statuses(run_id, "work") == ["completed"]
    assert len(open_at(harness, run_id, "end")) == 1
    with harness.session(run_id) as store:
        assert [a.file_name for a in store.get_artifacts_by_node_indices(run_id, [1])] == ["once"]


def test_all_tasks_of_a_node_may_complete_at_once(harness: StoreHarness):
    run_id = start_fan(harness, RACERS)

    release_together([lambda task=task: harness.complete(task) for task in open_at(harness, run_id, "work")])

    assert harness.task_statuses(run_id, "work") == ["completed"] * RACERS
    assert harness.node_states(run_id) == {"source": "completed", "work": "completed", "end": "filtered"}
    assert harness.ended(run_id) == [RunStatus.COMPLETED]


def test_parents_that_close_at_once_launch_their_child_once(harness: StoreHarness):
    parents = [f"p{n}" for n in range(RACERS)]
    run_id = harness.start([*map(node, parents), node("child", *parents, fan_mode=FanMode.AGGREGATE)])

    release_together([lambda task=task: harness.complete(task, [data("x")]) for task in harness.open_tasks(run_id)])

    assert len(open_at(harness, run_id, "child")) == 1


def test_of_many_failures_at_once_one_ends_the_run(harness: StoreHarness):
    run_id = start_fan(harness, RACERS)

    release_together([lambda task=task: harness.fail(task, "boom") for task in open_at(harness, run_id, "work")])

    statuses = harness.task_statuses(run_id, "work")
    assert set(statuses) <= {"failed", "cancelled"}
    assert "failed" in statuses
    assert harness.ended(run_id) == [RunStatus.FAILED]


@pytest.mark.parametrize("act", ["fail", "crash", "cancel"])
def test_a_run_that_ends_while_its_last_task_completes_ends_once(harness: StoreHarness, act: str):
    run_id = harness.start([node("a"), node("b", "a")])
    task = harness.open_tasks(run_id)[0]
    end = {
        "fail": lambda: harness.fail(task, "boom"),
        "crash": lambda: harness.crash(task, "lost"),
        "cancel": lambda: harness.cancel(run_id),
    }[act]

    release_together([lambda: harness.complete(task), end])

    assert len(harness.ended(run_id)) == 1
    assert harness.ended(run_id) == [harness.status(run_id)]
    assert harness.open_tasks(run_id) == []


def test_reconciling_at_once_launches_what_is_ready_once(harness: StoreHarness):
    run_id = harness.start([node("a"), node("b"), node("c", "a")])
    a, b = harness.open_tasks(run_id)
    harness.complete_late(a, [data("x")], meanwhile=lambda: harness.fail(b, "boom"))

    harness.retry(run_id)
    release_together([lambda: harness.reconcile(run_id)] * RACERS)

    assert len(open_at(harness, run_id, "c")) == 1

"""Orchestrator: each call's effects, in its order, and what it leaves alone. Whole runs are in tests/contract."""

import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from dagabaaz_celery import orchestrator, topology
from dagabaaz_celery.constants import MAX_FAN_OUT, ArtifactSelector, FanMode, NodeSummaryStatus, RunStatus, TaskStatus
from dagabaaz_celery.errors import PipelineError
from dagabaaz_celery.models import DagNode, EdgeFilter, TaskArtifact
from dagabaaz_celery.orchestrator import LaunchPlan, OrchestratorCallbacks
from dagabaaz_celery.stores.memory import MemoryStore
from dagabaaz_celery.topology import RunTopology

RUN = "run"
NO_SIZE_PASSES = EdgeFilter(select=ArtifactSelector.LARGEST)


def node(slug: str, *depends_on: str, plugin: str = "work", **fields: Any) -> DagNode:
    return DagNode(slug=slug, plugin=plugin, depends_on=list(depends_on), **fields)


def is_gate(plugin: str) -> bool:
    return plugin == "gate"


class RecordingStore:
    """A MemoryStore that notes the calls of the engine: (method, arguments after the run's or task's id)."""

    def __init__(self) -> None:
        self.inner = MemoryStore()
        self.calls: list[tuple[Any, ...]] = []

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            self.calls.append((name, *args[1:]))
            return getattr(self.inner, name)(*args)

        return call

    def names(self) -> list[str]:
        return [name for name, *_ in self.calls]

    def changes(self) -> list[tuple[Any, ...]]:
        return [call for call in self.calls if not call[0].startswith("get_")]


class World:
    """A run of these nodes, its store, and what its callbacks were told."""

    def __init__(self, *nodes: DagNode) -> None:
        self.nodes = list(nodes)
        self.store = RecordingStore()
        self.memory = self.store.inner
        self.told: list[tuple[str, str]] = []
        self.callbacks = OrchestratorCallbacks(
            on_run_completed=lambda run_id: self.told.append(("completed", run_id)),
            on_run_failed=lambda run_id: self.told.append(("failed", run_id)),
            on_run_crashed=lambda run_id: self.told.append(("crashed", run_id)),
            on_run_cancelled=lambda run_id: self.told.append(("cancelled", run_id)),
        )
        self.memory.create_run(RUN, nodes)

    def start(self) -> list[int]:
        return orchestrator.start_run(self.store, RUN, self.nodes)

    def task_at(self, slug: str) -> str:
        """The node's first open task."""
        index = [node.slug for node in self.nodes].index(slug)
        return next(task.task_id for task in self.memory.open_tasks(RUN) if task.node_index == index)

    def record(self, slug: str, *sizes: int | None) -> str:
        """Record that a task succeeded with artifacts of these sizes, without telling the engine."""
        task_id = self.task_at(slug)
        assert self.memory.claim_task(task_id)
        assert self.memory.complete_task(task_id, [TaskArtifact(file_name="f", file_size=size) for size in sizes])
        return task_id

    def complete(self, slug: str, *sizes: int | None, **options: Any) -> str:
        task_id = self.record(slug, *sizes)
        self.advance(task_id, **options)
        return task_id

    def advance(self, task_id: str, **options: Any) -> None:
        self.store.calls.clear()
        orchestrator.on_task_complete(
            self.store, task_id=task_id, callbacks=self.callbacks, resolve_passthrough=is_gate, **options
        )

    def reconcile(self, **options: Any) -> None:
        self.store.calls.clear()
        orchestrator.reconcile_run(self.store, RUN, callbacks=self.callbacks, resolve_passthrough=is_gate, **options)

    def open_slugs(self) -> list[str]:
        return [self.nodes[task.node_index].slug for task in self.memory.open_tasks(RUN)]


@pytest.fixture(autouse=True)
def forget_topology() -> Iterator[None]:
    yield
    topology.evict(RUN)


# -- start_run


def test_starting_claims_and_dispatches_every_root_without_input():
    world = World(node("a"), node("b", "a"), node("c", plugin="other"))

    assert world.start() == [0, 2]

    assert world.store.calls == [
        ("try_claim_node_launch", 0),
        ("dispatch_task", 0, "work", None),
        ("try_claim_node_launch", 2),
        ("dispatch_task", 2, "other", None),
    ]


def test_a_root_that_another_caller_claimed_is_named_but_not_dispatched():
    world = World(node("a"), node("b"))
    world.memory.try_claim_node_launch(RUN, 0)

    assert world.start() == [0, 1]

    assert world.open_slugs() == ["b"]


def test_starting_takes_the_roots_from_a_given_topology():
    world = World(node("a"), node("b", "a"))
    built = RunTopology.build(world.nodes, is_gate)

    assert orchestrator.start_run(world.store, RUN, world.nodes, topology=built) == [0]


@pytest.mark.parametrize("nodes", [[], [node("a", "b"), node("b", "a")]])
def test_a_run_that_nothing_can_start_is_refused(nodes: list[DagNode]):
    world = World(*nodes)

    with pytest.raises(ValueError, match="no root nodes") as refusal:
        world.start()

    assert isinstance(refusal.value, PipelineError)
    assert world.store.calls == []


def test_starting_forgets_what_a_run_of_the_same_id_looked_like():
    World(node("a")).start()
    topology.get_or_build(RUN, lambda: [node("old")], is_gate)
    world = World(node("a"), node("b", "a"))
    world.start()

    world.complete("a", 1)

    assert world.open_slugs() == ["b"]


# -- on_task_complete


def test_closing_a_node_reads_once_launches_its_children_and_tells_progress():
    world = World(node("a"), node("b", "a"), node("c", "b"))
    world.start()

    world.complete("a", 1, 2)

    assert world.store.changes() == [
        ("try_claim_node_launch", 1),
        ("dispatch_task", 1, "work", "artifact-1"),
        ("dispatch_task", 1, "work", "artifact-2"),
        ("set_run_progress", 1),
    ]
    for name in ("get_completed_node_indices", "get_launched_node_indices", "get_node_summary"):
        assert world.store.names().count(name) == 1


def test_while_tasks_of_the_node_are_open_only_the_barrier_is_read():
    world = World(node("a"), node("b", "a"))
    world.start()
    world.complete("a", 1, 2)

    world.complete("b")

    assert world.store.names() == ["get_task_context", "get_barrier_state"]


def test_an_ended_run_is_left_alone():
    world = World(node("a"), node("b", "a"))
    world.start()
    task_id = world.record("a", 1)
    world.memory.try_claim_run_terminal(RUN, RunStatus.CANCELLED)

    world.advance(task_id)

    assert world.store.changes() == []
    assert world.told == []


def test_an_unknown_task_is_logged_and_ignored(caplog: pytest.LogCaptureFixture):
    world = World(node("a"))

    with caplog.at_level(logging.WARNING):
        world.advance("task-unknown")

    assert "task-unknown" in caplog.text
    assert world.store.names() == ["get_task_context"]


def test_a_run_that_lost_its_nodes_is_logged_and_ignored(caplog: pytest.LogCaptureFixture):
    world = World(node("a"))
    world.start()
    task_id = world.record("a")
    world.store.get_run_nodes = lambda run_id: None

    with caplog.at_level(logging.WARNING):
        world.advance(task_id)
        world.reconcile()

    assert caplog.text.count("no nodes") == 2
    assert world.told == []


def test_a_given_topology_is_used_instead_of_fetching_nodes():
    world = World(node("a"), node("b", "a"))
    world.start()

    world.complete("a", 1, topology=RunTopology.build(world.nodes, is_gate))

    assert world.open_slugs() == ["b"]
    assert "get_run_nodes" not in world.store.names()


def test_the_last_node_ends_the_run_once_and_tells_so():
    world = World(node("a"))
    world.start()
    task_id = world.complete("a")

    assert world.store.changes() == [
        ("set_run_progress", 1),
        ("try_claim_run_terminal", RunStatus.COMPLETED, None),
    ]
    world.advance(task_id)
    assert world.told == [("completed", RUN)]


def test_who_loses_a_launch_does_nothing_with_the_node():
    world = World(node("a"), node("b", "a"))
    world.start()
    task_id = world.record("a", 1)
    world.store.try_claim_node_launch = lambda run_id, index: False

    world.advance(task_id)

    assert world.open_slugs() == []
    assert world.told == []


def test_who_loses_the_end_of_the_run_tells_nobody():
    world = World(node("a"))
    world.start()
    task_id = world.record("a")
    world.store.try_claim_run_terminal = lambda run_id, status, error: False

    world.advance(task_id)

    assert world.told == []


def test_a_cascade_of_skipped_nodes_is_decided_without_reading_again():
    world = World(
        node("a"),
        node("dead", "a", fan_mode=FanMode.AGGREGATE, edge_filters={"a": NO_SIZE_PASSES}),
        node("c", "dead"),
        node("d", "c", "a"),
    )
    world.start()

    world.complete("a", None)

    assert world.memory.get_node_summary(RUN) == {
        0: NodeSummaryStatus.COMPLETED,
        1: NodeSummaryStatus.SKIPPED,
        2: NodeSummaryStatus.SKIPPED,
        3: NodeSummaryStatus.SKIPPED,
    }
    assert world.store.names().count("get_artifacts_by_node_indices") == 1
    assert world.store.names().count("get_completed_node_indices") == 1
    assert world.store.changes()[-2] == ("set_run_progress", 4)
    assert world.told == [("completed", RUN)]


def test_a_skip_that_happened_before_this_call_counts_too():
    world = World(
        node("a"),
        node("b"),
        node("dead", "a", fan_mode=FanMode.AGGREGATE, edge_filters={"a": NO_SIZE_PASSES}),
        node("end", "dead", "b"),
    )
    world.start()
    world.complete("a", None)

    world.complete("b", 1)

    assert ("dispatch_skipped_task", 3, "work") in world.store.changes()


@pytest.mark.parametrize(("width", "told"), [(200, []), (201, [("failed", RUN)])])
def test_by_default_two_hundred_tasks_are_the_limit(width: int, told: list[tuple[str, str]]):
    world = World(node("a"), node("b", "a"))
    world.start()

    world.complete("a", *[1] * width)

    assert world.told == told
    assert len(world.open_slugs()) == (0 if told else MAX_FAN_OUT)


@pytest.mark.parametrize(
    ("fan_mode", "start"), [(FanMode.SINGLE, "Fan-out limit"), (FanMode.GROUPED, "Grouped fan-out limit")]
)
def test_over_the_limit_the_run_fails_with_a_clear_error(fan_mode: FanMode, start: str):
    world = World(node("a"), node("wide", "a", fan_mode=fan_mode), node("next", "a"))
    world.start()

    world.complete("a", 1, 2, 3, max_fan_out=2)

    changes = world.store.changes()
    error = changes[1][-1]
    assert error.startswith(start)
    assert "'wide'" in error
    assert "3 tasks" in error
    assert "max_fan_out" in error
    assert changes == [
        ("try_claim_node_launch", 1),
        ("dispatch_failed_task", 1, "work", error),
        ("set_run_progress", 1),
        ("try_claim_run_terminal", RunStatus.FAILED, error),
        ("fail_run", error),
        ("cancel_remaining_tasks", error),
    ]
    assert world.memory.run(RUN).error == error
    assert world.told == [("failed", RUN)]


def test_nodes_launched_before_the_limit_was_met_are_cancelled():
    world = World(node("a"), node("early", "a", fan_mode=FanMode.AGGREGATE), node("wide", "a"))
    world.start()

    world.complete("a", 1, 2, max_fan_out=1)

    statuses = {task.node_index: task.status for task in world.memory.tasks(RUN)}
    assert statuses == {0: TaskStatus.COMPLETED, 1: TaskStatus.CANCELLED, 2: TaskStatus.FAILED}


# -- failures and ends from outside


@pytest.mark.parametrize(
    ("report", "mark", "status"),
    [
        (orchestrator.on_task_failed, "mark_task_failed", RunStatus.FAILED),
        (orchestrator.on_task_crashed, "mark_task_crashed", RunStatus.CRASHED),
    ],
)
def test_a_lost_task_is_marked_then_ends_the_run_then_its_siblings(
    report: Callable[..., None], mark: str, status: RunStatus
):
    world = World(node("a"), node("b"))
    world.start()
    task_id = world.task_at("a")
    world.store.calls.clear()

    report(world.store, task_id=task_id, error_message="boom", callbacks=world.callbacks)

    explained = [("fail_run", "boom")] if status == RunStatus.FAILED else []
    assert world.store.changes() == [
        (mark, "boom"),
        ("try_claim_run_terminal", status, "boom"),
        *explained,
        ("cancel_remaining_tasks", "boom"),
    ]
    assert world.memory.run(RUN).error == "boom"
    assert world.told == [(status.value, RUN)]


@pytest.mark.parametrize("report", [orchestrator.on_task_failed, orchestrator.on_task_crashed])
def test_a_second_failure_ends_nothing_again(report: Callable[..., None]):
    world = World(node("a"), node("b"))
    world.start()
    for task_id in [task.task_id for task in world.memory.open_tasks(RUN)]:
        report(world.store, task_id=task_id, error_message="boom", callbacks=world.callbacks)

    assert len(world.told) == 1
    assert world.store.names().count("cancel_remaining_tasks") == 1


@pytest.mark.parametrize("report", [orchestrator.on_task_failed, orchestrator.on_task_crashed])
def test_a_failure_of_an_unknown_task_is_logged_and_ignored(
    report: Callable[..., None], caplog: pytest.LogCaptureFixture
):
    world = World(node("a"))

    with caplog.at_level(logging.WARNING):
        report(world.store, task_id="task-unknown", error_message="boom", callbacks=world.callbacks)

    assert "task-unknown" in caplog.text
    assert world.store.changes() == []


@pytest.mark.parametrize("status", [RunStatus.FAILED, RunStatus.CRASHED, RunStatus.CANCELLED])
def test_a_run_can_be_ended_from_outside_once(status: RunStatus):
    world = World(node("a"))
    world.start()

    ended = [
        orchestrator.abort_run(world.store, run_id=RUN, reason="enough", callbacks=world.callbacks, status=status)
        for _ in range(2)
    ]

    assert ended == [True, False]
    assert world.told == [(status.value, RUN)]
    assert world.memory.run(RUN).status == status
    assert [task.status for task in world.memory.tasks(RUN)] == [TaskStatus.CANCELLED]


def test_aborting_fails_a_run_unless_told_otherwise():
    world = World(node("a"))

    orchestrator.abort_run(world.store, run_id=RUN, reason="enough", callbacks=world.callbacks)

    assert world.memory.run(RUN).status == RunStatus.FAILED


@pytest.mark.parametrize("status", [RunStatus.COMPLETED, RunStatus.RUNNING, RunStatus.PENDING])
def test_a_run_cannot_be_aborted_into_another_status(status: RunStatus):
    world = World(node("a"))

    with pytest.raises(ValueError, match="failed, crashed or cancelled"):
        orchestrator.abort_run(world.store, run_id=RUN, reason="?", callbacks=world.callbacks, status=status)

    assert world.memory.run(RUN).status == RunStatus.RUNNING


def test_nobody_need_listen_for_cancels():
    world = World(node("a"))
    callbacks = OrchestratorCallbacks(*[lambda run_id: None] * 3)

    assert orchestrator.abort_run(
        world.store, run_id=RUN, reason="enough", callbacks=callbacks, status=RunStatus.CANCELLED
    )


# -- reconcile_run


def test_reconciling_does_what_was_missed_and_then_nothing_more():
    world = World(node("a"), node("b", "a"), node("root_too"))
    world.memory.try_claim_node_launch(RUN, 0)
    world.memory.dispatch_task(RUN, 0, "work", None)
    world.record("a", 1)

    world.reconcile()
    assert world.open_slugs() == ["b", "root_too"]
    world.reconcile()

    assert world.store.changes() == []
    assert world.open_slugs() == ["b", "root_too"]


def test_reconciling_ends_a_run_whose_nodes_are_all_completed():
    world = World(node("a"))
    world.start()
    world.record("a")

    world.reconcile()

    assert world.told == [("completed", RUN)]


def test_reconciling_closes_a_node_that_the_store_does_not_count_yet():
    world = World(node("a"), node("b", "a"))
    world.start()
    world.record("a", 1)
    world.store.get_completed_node_indices = lambda run_id: set()

    world.reconcile()

    assert world.open_slugs() == ["b"]
    assert ("set_run_progress", 1) in world.store.changes()


def test_reconciling_leaves_open_and_empty_launches_alone():
    world = World(node("open"), node("claimed_only"))
    world.memory.try_claim_node_launch(RUN, 1)
    world.start()

    world.reconcile()

    assert world.store.changes() == []


def test_reconciling_an_ended_or_unknown_run_does_nothing():
    world = World(node("a"))
    world.memory.try_claim_run_terminal(RUN, RunStatus.FAILED)

    world.reconcile()
    orchestrator.reconcile_run(world.store, "unknown", callbacks=world.callbacks, resolve_passthrough=is_gate)

    assert world.store.names() == ["get_run_status"] * 2


def test_reconciling_obeys_the_limit_and_a_given_topology():
    world = World(node("a"), node("b", "a"))
    world.start()
    world.record("a", 1, 2)

    world.reconcile(max_fan_out=1, topology=RunTopology.build(world.nodes, is_gate))

    assert world.told == [("failed", RUN)]
    assert "get_run_nodes" not in world.store.names()


# -- plan_node_launch


def plan(world: World, slug: str, **options: Any) -> LaunchPlan:
    world.store.calls.clear()
    built = RunTopology.build(world.nodes, is_gate)
    index = built.slug_to_index[slug]
    made = orchestrator.plan_node_launch(world.store, RUN, index, built, **options)
    assert world.store.changes() == []
    assert made == orchestrator.plan_node_launch(world.store, RUN, index, built, **options)
    return made


def test_plans_of_every_kind():
    """The node "ready" has artifacts 1 and 2, "done" none; "dead" was skipped."""
    from_ready = {"edge_filters": {"ready": NO_SIZE_PASSES}}
    world = World(
        node("ready"),
        node("done"),
        node("dead", "ready", fan_mode=FanMode.AGGREGATE, **from_ready),
        node("single", "ready", "done"),
        node("aggregate", "ready", fan_mode=FanMode.AGGREGATE),
        node("grouped", "ready", fan_mode=FanMode.GROUPED),
        node("filtered", "done"),
        node("filtered_too", "ready", **from_ready),
        node("rejected", "ready", "done", fan_mode=FanMode.AGGREGATE, **from_ready),
        node("below_dead", "ready", "dead"),
    )
    world.start()
    world.complete("ready", None, None)
    world.record("done")

    assert plan(world, "ready") == LaunchPlan("aggregate")
    assert plan(world, "single") == LaunchPlan("single", ("artifact-1", "artifact-2"))
    assert plan(world, "aggregate") == LaunchPlan("aggregate")
    assert plan(world, "grouped") == LaunchPlan("grouped", ("artifact-1", "artifact-2"))
    assert plan(world, "filtered") == plan(world, "filtered_too") == LaunchPlan("filtered")
    assert plan(world, "rejected") == plan(world, "below_dead") == LaunchPlan("skipped")
    assert plan(world, "single", max_fan_out=1).kind == "over_limit"
    assert plan(world, "single", max_fan_out=1).items == ()
    assert plan(world, "single", is_skipped=lambda index: index == 1) == LaunchPlan("skipped")
    assert plan(world, "below_dead", is_skipped=lambda index: False).kind == "single"


def test_a_skipped_dependency_outranks_everything():
    """It would be over the limit, its filter rejects all, and there is nothing on the other edge."""
    world = World(
        node("a"),
        node("b"),
        node("end", "a", "b", fan_mode=FanMode.AGGREGATE, edge_filters={"a": NO_SIZE_PASSES}),
    )
    world.start()
    world.complete("a", None)
    world.record("b")

    assert plan(world, "end", is_skipped=lambda index: index == 1) == LaunchPlan("skipped")
    assert "get_artifacts_by_node_indices" not in world.store.names()


# -- failures that a node tolerates


@pytest.mark.parametrize(("on_failure", "behind"), [("continue", TaskStatus.FILTERED), ("skip", TaskStatus.SKIPPED)])
def test_a_tolerated_failure_is_recorded_and_the_run_goes_on(on_failure: str, behind: TaskStatus):
    world = World(node("a", on_failure=on_failure), node("b", "a"), node("c", "b"))
    world.start()
    task_id = world.task_at("a")

    orchestrator.on_task_failed(world.store, task_id=task_id, error_message="boom", callbacks=world.callbacks)

    assert [task.status for task in world.memory.tasks(RUN)] == [TaskStatus.FAILED, behind, behind]
    assert world.told == [("completed", RUN)]


def test_a_failure_that_came_late_is_recorded_by_whoever_ended_the_run():
    world = World(node("a", on_failure="continue"), node("b"))
    world.start()
    a, b = world.task_at("a"), world.task_at("b")
    orchestrator.on_task_failed(world.store, task_id=b, error_message="boom", callbacks=world.callbacks)

    orchestrator.on_task_failed(world.store, task_id=a, error_message="late", callbacks=world.callbacks)

    assert world.told == [("failed", RUN)]


def test_reconciling_launches_no_finaliser():
    world = World(node("a"), node("end", run_on="always"), node("last", "a", run_on="success"))
    assert world.start() == [0]

    orchestrator.reconcile_run(world.store, RUN, callbacks=world.callbacks, resolve_passthrough=is_gate)

    assert {task.node_index for task in world.memory.tasks(RUN)} == {0}

"""Each method of the three protocols, by what it tells and what it changes.

One session is one call of the engine: tests change things in one session and look at them in the next.
"""

from uuid import uuid4

from dagabaaz_celery.constants import FanMode, NodeSummaryStatus, RunStatus
from dagabaaz_celery.models import EdgeFilter, TaskArtifact, TaskContext
from dagabaaz_celery.store import DagRetryStore, DagStore, TaskInputStore
from tests.contract.harness import StoreHarness, complete_node, data, node, open_at

PAIR = [node("a"), node("b", "a")]
SOURCE, WORK = 0, 1


def start_scattered(harness: StoreHarness, count: int = 3, *more) -> str:
    """A run whose node "work" (index 1) has one open task for each of ``count`` artifacts f0, f1, …"""
    run_id = harness.start([node("source"), node("work", "source"), *more])
    complete_node(harness, run_id, "source", lambda _: [data(f"f{n}", size=n) for n in range(count)])
    return run_id


def test_a_session_satisfies_the_protocols(harness: StoreHarness):
    with harness.session(harness.start(PAIR)) as store:
        assert isinstance(store, DagStore)
        assert isinstance(store, TaskInputStore)
        assert isinstance(store, DagRetryStore)


# -- DagStore: what it tells


def test_a_started_run_is_running(harness: StoreHarness):
    run_id = harness.start(PAIR)

    with harness.session(run_id) as store:
        assert store.get_run_status(run_id) == RunStatus.RUNNING
        assert [(n.slug, n.plugin, n.depends_on) for n in store.get_run_nodes(run_id)] == [
            ("a", "work", []),
            ("b", "work", ["a"]),
        ]


def test_a_run_keeps_the_nodes_that_it_was_started_with(harness: StoreHarness):
    nodes = [node("a"), node("b", "a")]
    run_id = harness.start(nodes)

    nodes[1].plugin = "edited"

    with harness.session(run_id) as store:
        assert store.get_run_nodes(run_id)[1].plugin == "work"


def test_the_barrier_counts_tasks_and_those_that_are_done(harness: StoreHarness):
    run_id = start_scattered(harness)
    first = open_at(harness, run_id, "work")[0]

    harness.complete(first)

    with harness.session(run_id) as store:
        assert store.get_barrier_state(run_id, SOURCE) == (RunStatus.RUNNING, 1, 1)
        assert store.get_barrier_state(run_id, WORK) == (RunStatus.RUNNING, 3, 1)


def test_the_barrier_of_an_unlaunched_node_has_no_tasks(harness: StoreHarness):
    run_id = harness.start(PAIR)

    with harness.session(run_id) as store:
        assert store.get_barrier_state(run_id, 1) == (RunStatus.RUNNING, 0, 0)


def test_a_task_knows_where_it_belongs(harness: StoreHarness):
    run_id = start_scattered(harness)
    task = open_at(harness, run_id, "work")[1]

    with harness.session(run_id) as store:
        assert store.get_task_context(task.task_id) == TaskContext(run_id=run_id, node_index=WORK)
        assert store.get_task_context(str(uuid4())) is None


def test_completed_and_launched_nodes_answer_in_and_len(harness: StoreHarness):
    run_id = start_scattered(harness, 3, node("after", "work"))

    with harness.session(run_id) as store:
        completed = store.get_completed_node_indices(run_id)
        launched = store.get_launched_node_indices(run_id)
        assert [index in completed for index in range(3)] == [True, False, False]
        assert [index in launched for index in range(3)] == [True, True, False]
        assert len(completed) == 1
        assert len(launched) == 2


def test_the_summary_tells_how_completed_nodes_ended(harness: StoreHarness):
    """Nothing passes the filters: the aggregate is skipped, the single node filtered."""
    nothing = {"source": EdgeFilter(select="largest")}
    run_id = harness.start(
        [
            node("source"),
            node("skipped", "source", fan_mode=FanMode.AGGREGATE, edge_filters=nothing),
            node("filtered", "source", edge_filters=nothing),
            node("open", "source"),
        ]
    )
    complete_node(harness, run_id, "source", lambda _: [data("of unknown size")])

    with harness.session(run_id) as store:
        summary = store.get_node_summary(run_id)
        assert summary.get(0) == NodeSummaryStatus.COMPLETED
        assert summary.get(1) == NodeSummaryStatus.SKIPPED
        assert summary.get(2) == NodeSummaryStatus.COMPLETED
        assert summary.get(3) is None


def test_routing_sees_artifacts_by_node_then_by_task_then_as_emitted(harness: StoreHarness):
    run_id = start_scattered(harness, 2)
    first, second = open_at(harness, run_id, "work")

    harness.complete(second, [data("second/0"), data("second/1")])
    harness.complete(first, [data("first/0", size=7, title="T")])

    with harness.session(run_id) as store:
        artifacts = store.get_artifacts_by_node_indices(run_id, [WORK, SOURCE])
        assert [a.file_name for a in artifacts] == ["f0", "f1", "first/0", "second/0", "second/1"]
        assert len({a.id for a in artifacts}) == 5
        assert artifacts[2].file_size == 7
        assert artifacts[2].metadata == {"title": "T"}
        assert artifacts[2].origin_artifact_id == artifacts[0].id
        assert store.get_artifacts_by_node_indices(run_id, []) == []


# -- DagStore: what it changes


def test_the_first_terminal_claim_wins_for_good(harness: StoreHarness):
    run_id = harness.start(PAIR)

    with harness.session(run_id) as store:
        assert store.try_claim_run_terminal(run_id, RunStatus.CRASHED, "lost") is True
        assert store.try_claim_run_terminal(run_id, RunStatus.CRASHED, "lost") is False
    with harness.session(run_id) as store:
        assert store.try_claim_run_terminal(run_id, RunStatus.COMPLETED) is False

    assert harness.status(run_id) == RunStatus.CRASHED


def test_progress_can_be_told_any_number_of_times(harness: StoreHarness):
    run_id = harness.start([node("a")])

    for _ in range(2):
        with harness.session(run_id) as store:
            store.set_run_progress(run_id, 0)
    complete_node(harness, run_id, "a")

    assert harness.status(run_id) == RunStatus.COMPLETED


def test_a_launch_is_claimed_once(harness: StoreHarness):
    run_id = harness.start(PAIR)

    with harness.session(run_id) as store:
        assert store.try_claim_node_launch(run_id, 0) is False
        assert store.try_claim_node_launch(run_id, 1) is True
        assert store.try_claim_node_launch(run_id, 1) is False
        store.dispatch_task(run_id, 1, "work", None)

    assert harness.node_states(run_id) == {"a": "launched", "b": "launched"}


def test_nothing_is_launched_in_a_run_that_has_ended(harness: StoreHarness):
    run_id = harness.start(PAIR)
    harness.cancel(run_id)

    with harness.session(run_id) as store:
        assert store.try_claim_node_launch(run_id, 1) is False

    assert harness.node_states(run_id)["b"] == "blocked"


def test_dispatched_tasks_are_open_with_what_they_were_given(harness: StoreHarness):
    run_id = harness.start([node("source"), node("single", "source"), node("grouped", "source")])
    source = open_at(harness, run_id, "source")[0]

    with harness.session(run_id) as store:
        artifact_id = str(uuid4())
        assert store.try_claim_node_launch(run_id, 1)
        assert store.try_claim_node_launch(run_id, 2)
        single = store.dispatch_task(run_id, 1, "work", artifact_id)
        grouped = store.dispatch_grouped_task(run_id, 2, "work", artifact_id)

    tasks = {task.slug: task for task in harness.open_tasks(run_id)}
    assert tasks["source"] == source
    assert (tasks["single"].task_id, tasks["single"].input_artifact_id) == (single, artifact_id)
    assert tasks["single"].origin_artifact_id is None
    assert (tasks["grouped"].task_id, tasks["grouped"].origin_artifact_id) == (grouped, artifact_id)
    assert tasks["grouped"].input_artifact_id is None


def test_pre_terminal_tasks_are_never_open(harness: StoreHarness):
    run_id = harness.start([node("a"), node("s", "a"), node("f", "a"), node("x", "a")])

    with harness.session(run_id) as store:
        for index in (1, 2, 3):
            assert store.try_claim_node_launch(run_id, index)
        ids = {
            store.dispatch_skipped_task(run_id, 1, "work"),
            store.dispatch_filtered_task(run_id, 2, "work"),
            store.dispatch_failed_task(run_id, 3, "work", "too wide"),
        }

    assert len(ids) == 3
    assert [task.slug for task in harness.open_tasks(run_id)] == ["a"]
    assert harness.node_states(run_id) == {"a": "launched", "s": "skipped", "f": "filtered", "x": "failed"}
    assert [harness.task_statuses(run_id, slug) for slug in ("s", "f", "x")] == [["skipped"], ["filtered"], ["failed"]]
    with harness.session(run_id) as store:
        assert store.get_barrier_state(run_id, 1) == (RunStatus.RUNNING, 1, 1)
        assert store.get_barrier_state(run_id, 2) == (RunStatus.RUNNING, 1, 1)
        assert store.get_barrier_state(run_id, 3) == (RunStatus.RUNNING, 1, 0)


def test_fail_run_explains_a_failed_run_and_leaves_any_other_alone(harness: StoreHarness):
    failed, running = harness.start(PAIR), harness.start(PAIR)

    with harness.session(failed) as store:
        assert store.try_claim_run_terminal(failed, RunStatus.FAILED, "why")
        store.fail_run(failed, "why, at length")
    with harness.session(running) as store:
        store.fail_run(running, "not your time")

    assert harness.status(failed) == RunStatus.FAILED
    assert harness.status(running) == RunStatus.RUNNING


def test_marking_a_task_ends_it_and_its_node_counts_as_failed(harness: StoreHarness):
    run_id = start_scattered(harness)
    first, second, _ = open_at(harness, run_id, "work")

    with harness.session(run_id) as store:
        store.mark_task_failed(first.task_id, "boom")
    with harness.session(run_id) as store:
        store.mark_task_crashed(second.task_id, "lost")

    assert harness.task_statuses(run_id, "work")[:2] == ["failed", "crashed"]
    assert harness.node_states(run_id)["work"] == "failed"
    assert len(open_at(harness, run_id, "work")) == 1


def test_marking_a_task_that_has_ended_changes_nothing(harness: StoreHarness):
    run_id = start_scattered(harness)
    first = open_at(harness, run_id, "work")[0]
    harness.complete(first)

    with harness.session(run_id) as store:
        store.mark_task_failed(first.task_id, "late")
        store.mark_task_crashed(first.task_id, "later")

    assert harness.task_statuses(run_id, "work")[0] == "completed"


def test_remaining_tasks_are_cancelled_and_ended_ones_left_alone(harness: StoreHarness):
    run_id = start_scattered(harness)
    harness.complete(open_at(harness, run_id, "work")[0])

    with harness.session(run_id) as store:
        assert store.try_claim_run_terminal(run_id, RunStatus.CANCELLED, "enough")
        assert store.cancel_remaining_tasks(run_id, "enough") in (0, 2)  # 0: after the commit

    assert harness.task_statuses(run_id, "source") == ["completed"]
    assert harness.task_statuses(run_id, "work") == ["completed", "cancelled", "cancelled"]
    assert harness.open_tasks(run_id) == []


# -- TaskInputStore


def test_an_artifact_is_read_back_whole_with_its_origin(harness: StoreHarness):
    run_id = start_scattered(harness, 1)
    work = open_at(harness, run_id, "work")[0]
    sent = TaskArtifact(
        file_name="out.mp4", mime_type="video/mp4", file_size=9, metadata={"n": 1, "tags": ["x"], "deep": {"y": None}}
    )

    harness.complete(work, [sent])

    with harness.session(run_id) as store:
        artifact_id = store.get_artifacts_by_node_indices(run_id, [WORK])[0].id
        assert store.get_artifact_data(artifact_id) == sent.model_copy(
            update={"origin_artifact_id": work.input_artifact_id}
        )
        assert store.get_artifact_data(str(uuid4())) is None


def test_an_origin_that_a_plugin_claims_is_ignored(harness: StoreHarness):
    run_id = harness.start([node("a")])

    complete_node(harness, run_id, "a", lambda _: [TaskArtifact(file_name="x", origin_artifact_id=str(uuid4()))])

    with harness.session(run_id) as store:
        artifact = store.get_artifacts_by_node_indices(run_id, [0])[0]
        assert artifact.origin_artifact_id == artifact.id


def test_plugins_see_artifacts_in_the_order_that_routing_does(harness: StoreHarness):
    run_id = start_scattered(harness, 2)
    first, second = open_at(harness, run_id, "work")
    harness.complete(second, [data("second")])
    harness.complete(first, [data("first")])

    with harness.session(run_id) as store:
        found = store.get_task_artifacts_by_node_indices(run_id, [SOURCE, WORK])
        assert [artifact.file_name for artifact in found] == ["f0", "f1", "first", "second"]


def test_artifacts_come_partitioned_by_node(harness: StoreHarness):
    run_id = start_scattered(harness, 2, node("idle", "work"))
    complete_node(harness, run_id, "work", lambda task: [data(f"from {task.node_index}")])

    with harness.session(run_id) as store:
        parts = store.get_artifacts_partitioned(run_id, [SOURCE, WORK, 2])
        assert [a.file_name for a in parts[SOURCE]] == ["f0", "f1"]
        assert [a.file_name for a in parts[WORK]] == ["from 1", "from 1"]
        assert not parts.get(2)


def test_artifacts_come_by_origin_or_as_broadcast(harness: StoreHarness):
    run_id = start_scattered(harness, 2, node("side", fan_mode=FanMode.AGGREGATE))
    complete_node(harness, run_id, "side", lambda _: [data("for all")])
    complete_node(
        harness, run_id, "work", lambda task: [data(f"of {harness.task_input(task)['file_name']}"), data("2nd")]
    )

    with harness.session(run_id) as store:
        origin = store.get_artifacts_by_node_indices(run_id, [SOURCE])[1].id
        grouped = store.get_grouped_artifacts(run_id, [WORK, 2], origin)
        broadcast = store.get_broadcast_artifacts(run_id, [WORK, 2])
        assert [a.file_name for a in grouped] == ["of f1", "2nd"]
        assert [a.file_name for a in broadcast] == ["for all"]
        assert store.get_grouped_artifacts(run_id, [WORK], str(uuid4())) == []


def test_the_run_input_is_read_back_and_cannot_be_changed_by_its_reader(harness: StoreHarness):
    run_id = harness.start(PAIR, run_input={"url": "x", "opts": {"n": [1, 2.5, None, True]}})

    with harness.session(run_id) as store:
        store.get_run_input(run_id)["opts"]["n"].append("mine")
    with harness.session(run_id) as store:
        assert store.get_run_input(run_id) == {"url": "x", "opts": {"n": [1, 2.5, None, True]}}


def test_a_run_without_input_has_an_empty_one(harness: StoreHarness):
    run_id = harness.start(PAIR)

    with harness.session(run_id) as store:
        assert store.get_run_input(run_id) == {}


def test_an_artifact_names_the_node_that_made_it(harness: StoreHarness):
    run_id = start_scattered(harness, 1)
    complete_node(harness, run_id, "work", lambda _: [data("x")])

    with harness.session(run_id) as store:
        made = store.get_artifacts_by_node_indices(run_id, [WORK])[0]
        assert store.get_artifact_producing_node(made.id) == WORK
        assert store.get_artifact_producing_node(str(uuid4())) is None


# -- DagRetryStore


def start_half_failed(harness: StoreHarness) -> str:
    """A failed run: of the tasks of "work" the first is completed, the second failed, the third cancelled."""
    run_id = start_scattered(harness, 3)
    first, second, _ = open_at(harness, run_id, "work")
    harness.complete(first, [data("kept")])
    harness.fail(second, "boom")
    return run_id


def test_retryable_tasks_are_those_that_ended_without_completing(harness: StoreHarness):
    run_id = start_half_failed(harness)

    with harness.session(run_id) as store:
        tasks = store.get_retryable_tasks(run_id, [SOURCE, WORK])
        sources = store.get_artifacts_by_node_indices(run_id, [SOURCE])

    assert [(t.node_index, t.plugin_name, t.input_artifact_id) for t in tasks] == [
        (WORK, "work", sources[1].id),
        (WORK, "work", sources[2].id),
    ]
    assert all(task.dispatched and task.origin_artifact_id is None for task in tasks)


def test_a_task_that_failed_at_a_limit_was_never_dispatched(harness: StoreHarness):
    run_id = harness.start([node("source"), node("work", "source")], max_fan_out=1)
    complete_node(harness, run_id, "source", lambda _: [data("x"), data("y")])

    with harness.session(run_id) as store:
        assert [task.dispatched for task in store.get_retryable_tasks(run_id, [WORK])] == [False]


def test_unfinished_tasks_can_be_deleted_beside_completed_ones(harness: StoreHarness):
    run_id = start_half_failed(harness)

    with harness.session(run_id) as store:
        store.delete_non_completed_tasks_at_nodes(run_id, [SOURCE, WORK])

    assert harness.task_statuses(run_id, "source") == ["completed"]
    assert harness.task_statuses(run_id, "work") == ["completed"]
    with harness.session(run_id) as store:
        assert [a.file_name for a in store.get_artifacts_by_node_indices(run_id, [WORK])] == ["kept"]


def test_a_nodes_tasks_are_deleted_with_their_artifacts_and_launch(harness: StoreHarness):
    run_id = start_half_failed(harness)

    with harness.session(run_id) as store:
        store.delete_tasks_at_nodes(run_id, [WORK])
        store.delete_node_launches(run_id, [WORK])

    assert harness.task_statuses(run_id, "work") == []
    assert harness.node_states(run_id) == {"source": "completed", "work": "blocked"}
    with harness.session(run_id) as store:
        assert store.get_barrier_state(run_id, WORK)[1:] == (0, 0)
        assert store.get_artifacts_by_node_indices(run_id, [WORK]) == []
        assert len(store.get_artifacts_by_node_indices(run_id, [SOURCE])) == 3
        assert WORK not in store.get_launched_node_indices(run_id)

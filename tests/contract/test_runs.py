"""Whole runs of every pattern: which tasks are dispatched, with which input, and how the nodes end."""

import pytest

from dagabaaz_celery.constants import ArtifactSelector, FanMode, FilterOperator, RunStatus
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

LARGEST = EdgeFilter(select=ArtifactSelector.LARGEST)


def only(file_type: str) -> EdgeFilter:
    return EdgeFilter(rules=[FilterRule(field="file_type", operator=FilterOperator.EQ, value=file_type)])


def emit(*names: str):
    """A plugin that emits these artifacts whatever it reads; sizes count up from 1."""
    return lambda _task: [data(name, size=size) for size, name in enumerate(names, start=1)]


def inputs_at(harness: StoreHarness, run_id: str, slug: str) -> list[list[str]]:
    """What each open task of a node would read, by file names."""
    return [input_names(harness.task_input(task)) for task in open_at(harness, run_id, slug)]


def assert_completed(harness: StoreHarness, run_id: str) -> None:
    assert harness.status(run_id) == RunStatus.COMPLETED
    assert harness.ended(run_id) == [RunStatus.COMPLETED]
    assert harness.open_tasks(run_id) == []


# -- linear, roots


def test_a_linear_run_does_one_node_after_the_other(harness: StoreHarness):
    run_id = harness.start(
        [node("fetch"), node("transform", "fetch"), node("export", "transform")], run_input={"url": "x"}
    )

    assert [(t.slug, t.input_artifact_id) for t in harness.open_tasks(run_id)] == [("fetch", None)]
    assert harness.task_input(harness.open_tasks(run_id)[0]) == {"url": "x"}
    complete_node(harness, run_id, "fetch", emit("f"))
    assert inputs_at(harness, run_id, "transform") == [["f"]]
    complete_node(harness, run_id, "transform", pass_on(harness))
    assert inputs_at(harness, run_id, "export") == [["transform(f)"]]
    assert harness.status(run_id) == RunStatus.RUNNING
    complete_node(harness, run_id, "export")

    assert harness.node_states(run_id) == dict.fromkeys(("fetch", "transform", "export"), "completed")
    assert_completed(harness, run_id)


def test_a_single_node_is_a_whole_run(harness: StoreHarness):
    run_id = harness.start([node("only")])

    complete_node(harness, run_id, "only")

    assert_completed(harness, run_id)


@pytest.mark.parametrize("fan_mode", FanMode)
def test_a_root_has_one_task_with_the_run_input_whatever_its_fan_mode(harness: StoreHarness, fan_mode: FanMode):
    run_id = harness.start([node("root", fan_mode=fan_mode)], run_input={"n": 1})

    tasks = harness.open_tasks(run_id)

    assert [(task.input_artifact_id, task.origin_artifact_id) for task in tasks] == [(None, None)]
    assert harness.task_input(tasks[0]) == {"n": 1}


def test_all_roots_start_at_once_and_each_advances_its_own_children(harness: StoreHarness):
    run_id = harness.start([node("a"), node("b"), node("after_a", "a"), node("after_b", "b"), node("end", "a", "b")])

    assert [task.slug for task in harness.open_tasks(run_id)] == ["a", "b"]
    complete_node(harness, run_id, "b", emit("from b"))
    assert [task.slug for task in harness.open_tasks(run_id)] == ["a", "after_b"]
    complete_node(harness, run_id, "a", emit("from a"))

    assert inputs_at(harness, run_id, "end") == [["from a"], ["from b"]]
    run_to_end(harness, run_id, lambda _: [])
    assert_completed(harness, run_id)


def test_a_node_waits_for_every_task_of_its_dependency(harness: StoreHarness):
    run_id = harness.start([node("source"), node("work", "source"), node("end", "work", fan_mode=FanMode.AGGREGATE)])
    complete_node(harness, run_id, "source", emit("f1", "f2", "f3"))

    for task in open_at(harness, run_id, "work")[::-1]:
        assert harness.node_states(run_id)["end"] == "blocked"
        harness.complete(task, pass_on(harness)(task))

    assert inputs_at(harness, run_id, "end") == [["work(f1)", "work(f2)", "work(f3)"]]


# -- fan-out and gathering


def test_ten_files_through_two_branches_merge_into_ten_pairs(harness: StoreHarness):
    files = [f"f{n}" for n in range(10)]
    run_id = harness.start(
        [
            node("source"),
            node("branch_a", "source"),
            node("branch_b", "source"),
            node("merge", "branch_a", "branch_b", fan_mode=FanMode.GROUPED),
        ]
    )
    complete_node(harness, run_id, "source", emit(*files))
    sources = {harness.task_input(t)["file_name"]: t.input_artifact_id for t in open_at(harness, run_id, "branch_a")}
    assert complete_node(harness, run_id, "branch_a", pass_on(harness)) == 10
    assert complete_node(harness, run_id, "branch_b", pass_on(harness)) == 10

    merges = open_at(harness, run_id, "merge")
    assert [task.origin_artifact_id for task in merges] == [sources[name] for name in files]
    assert all(task.input_artifact_id is None for task in merges)
    assert inputs_at(harness, run_id, "merge") == [[f"branch_a({name})", f"branch_b({name})"] for name in files]
    complete_node(harness, run_id, "merge")
    assert_completed(harness, run_id)


def test_a_chain_of_single_nodes_keeps_its_origin(harness: StoreHarness):
    run_id = harness.start(
        [node("source"), node("one", "source"), node("two", "one"), node("merge", "two", fan_mode=FanMode.GROUPED)]
    )
    complete_node(harness, run_id, "source", emit("f1", "f2"))
    complete_node(harness, run_id, "one", emit("x", "y"))
    complete_node(harness, run_id, "two", pass_on(harness))

    assert inputs_at(harness, run_id, "merge") == [["two(x)", "two(y)"]] * 2


def test_grouped_artifacts_carry_their_group_to_the_next_grouping(harness: StoreHarness):
    run_id = harness.start(
        [
            node("source"),
            node("merge", "source", fan_mode=FanMode.GROUPED),
            node("again", "merge", "source", fan_mode=FanMode.GROUPED),
        ]
    )
    complete_node(harness, run_id, "source", emit("f1", "f2"))
    complete_node(harness, run_id, "merge", pass_on(harness))

    assert inputs_at(harness, run_id, "again") == [["merge(f1)", "f1"], ["merge(f2)", "f2"]]


def test_grouping_artifacts_without_origins_is_one_task(harness: StoreHarness):
    run_id = harness.start(
        [
            node("source"),
            node("all", "source", fan_mode=FanMode.AGGREGATE),
            node("merge", "all", fan_mode=FanMode.GROUPED),
            node("after", "merge"),
        ]
    )
    complete_node(harness, run_id, "source", emit("f1", "f2"))
    complete_node(harness, run_id, "all", emit("x", "y"))

    tasks = open_at(harness, run_id, "merge")
    assert [(task.input_artifact_id, task.origin_artifact_id) for task in tasks] == [(None, None)]
    assert inputs_at(harness, run_id, "merge") == [["x", "y"]]
    complete_node(harness, run_id, "merge", emit("merged"))
    assert inputs_at(harness, run_id, "after") == [["merged"]]


def test_a_split_below_the_root_can_be_gathered_again(harness: StoreHarness):
    run_id = harness.start(
        [
            node("source"),
            node("split", "source", scatter=True),
            node("work", "split"),
            node("merge", "work", "split", fan_mode=FanMode.GROUPED),
        ]
    )
    complete_node(harness, run_id, "source", emit("book"))
    complete_node(harness, run_id, "split", emit("page 1", "page 2"))
    complete_node(harness, run_id, "work", pass_on(harness))

    assert inputs_at(harness, run_id, "merge") == [["work(page 1)", "page 1"], ["work(page 2)", "page 2"]]


def test_without_scatter_the_split_stays_one_group(harness: StoreHarness):
    run_id = harness.start([node("source"), node("split", "source"), node("merge", "split", fan_mode=FanMode.GROUPED)])
    complete_node(harness, run_id, "source", emit("book"))
    complete_node(harness, run_id, "split", emit("page 1", "page 2"))

    assert inputs_at(harness, run_id, "merge") == [["page 1", "page 2"]]


def test_an_aggregate_root_is_broadcast_into_every_group(harness: StoreHarness):
    run_id = harness.start(
        [
            node("source"),
            node("logo", fan_mode=FanMode.AGGREGATE),
            node("work", "source"),
            node("stamp", "work", "logo", fan_mode=FanMode.GROUPED),
        ]
    )
    complete_node(harness, run_id, "source", emit("f1", "f2"))
    complete_node(harness, run_id, "logo", emit("logo.png"))
    complete_node(harness, run_id, "work", pass_on(harness))

    assert inputs_at(harness, run_id, "stamp") == [["work(f1)", "logo.png"], ["work(f2)", "logo.png"]]


def test_a_single_nodes_artifacts_take_a_broadcast_input_as_their_origin(harness: StoreHarness):
    run_id = harness.start(
        [
            node("side", fan_mode=FanMode.AGGREGATE),
            node("work", "side"),
            node("merge", "work", fan_mode=FanMode.GROUPED),
        ]
    )
    complete_node(harness, run_id, "side", emit("s1", "s2"))
    origins = [task.input_artifact_id for task in open_at(harness, run_id, "work")]
    complete_node(harness, run_id, "work", pass_on(harness))

    assert [task.origin_artifact_id for task in open_at(harness, run_id, "merge")] == origins


def test_in_a_diamond_the_end_waits_for_both_sides_and_runs_once(harness: StoreHarness):
    run_id = harness.start(
        [
            node("top"),
            node("left", "top"),
            node("right", "top"),
            node("bottom", "left", "right", fan_mode=FanMode.AGGREGATE),
        ]
    )
    complete_node(harness, run_id, "top", emit("f"))
    complete_node(harness, run_id, "right", pass_on(harness))
    assert harness.node_states(run_id)["bottom"] == "blocked"
    complete_node(harness, run_id, "left", pass_on(harness))

    assert inputs_at(harness, run_id, "bottom") == [["left(f)", "right(f)"]]  # as depends_on names them
    complete_node(harness, run_id, "bottom")
    assert_completed(harness, run_id)


# -- routing


ROUTING = [
    node("source"),
    node("video", "source", fan_mode=FanMode.AGGREGATE, edge_filters={"source": only("video")}),
    node("subtitle", "source", edge_filters={"source": only("subtitle")}),
]


def test_each_file_goes_to_the_branch_for_its_type(harness: StoreHarness):
    run_id = harness.start(ROUTING)

    complete_node(harness, run_id, "source", emit("a.mp4", "a.srt", "b.mp4", "b.srt"))

    assert inputs_at(harness, run_id, "video") == [["a.mp4", "b.mp4"]]
    assert inputs_at(harness, run_id, "subtitle") == [["a.srt"], ["b.srt"]]
    run_to_end(harness, run_id, lambda _: [])
    assert_completed(harness, run_id)


def test_without_subtitles_their_branch_is_filtered_and_the_run_completes(harness: StoreHarness):
    run_id = harness.start([*ROUTING, node("end", "video", "subtitle", fan_mode=FanMode.AGGREGATE)])

    complete_node(harness, run_id, "source", emit("a.mp4"))
    assert harness.node_states(run_id)["subtitle"] == "filtered"
    assert harness.task_statuses(run_id, "subtitle") == ["filtered"]
    complete_node(harness, run_id, "video", pass_on(harness))

    assert inputs_at(harness, run_id, "end") == [["video(a.mp4)"]]
    complete_node(harness, run_id, "end")
    assert_completed(harness, run_id)


def test_with_subtitles_alone_the_aggregate_is_skipped_and_what_follows_it_too(harness: StoreHarness):
    run_id = harness.start([*ROUTING, node("after_video", "video"), node("end", "after_video", "subtitle")])

    complete_node(harness, run_id, "source", emit("a.srt"))
    complete_node(harness, run_id, "subtitle", emit("parsed"))

    assert harness.node_states(run_id) == {
        "source": "completed",
        "video": "skipped",
        "subtitle": "completed",
        "after_video": "skipped",
        "end": "skipped",
    }
    assert_completed(harness, run_id)


def test_an_aggregate_is_skipped_when_one_of_its_edges_rejects_all(harness: StoreHarness):
    run_id = harness.start(
        [
            node("a"),
            node("b"),
            node("both", "a", "b", fan_mode=FanMode.AGGREGATE, edge_filters={"b": only("video")}),
        ]
    )
    complete_node(harness, run_id, "a", emit("kept.mp4"))
    complete_node(harness, run_id, "b", emit("rejected.srt"))

    assert harness.node_states(run_id)["both"] == "skipped"


def test_an_aggregate_with_a_filtered_edge_that_has_nothing_runs_on_the_others(harness: StoreHarness):
    run_id = harness.start(
        [
            node("a"),
            node("b"),
            node("both", "a", "b", fan_mode=FanMode.AGGREGATE, edge_filters={"b": only("video")}),
        ]
    )
    complete_node(harness, run_id, "a", emit("kept"))
    complete_node(harness, run_id, "b", emit())

    assert inputs_at(harness, run_id, "both") == [["kept"]]


def test_each_edge_has_its_own_filter(harness: StoreHarness):
    run_id = harness.start(
        [node("a"), node("b"), node("end", "a", "b", edge_filters={"a": only("video"), "b": LARGEST})]
    )
    complete_node(harness, run_id, "a", emit("a.mp4", "a.srt"))
    complete_node(harness, run_id, "b", emit("small", "large"))

    assert inputs_at(harness, run_id, "end") == [["a.mp4"], ["large"]]


def test_a_filter_decides_which_groups_there_are_and_what_they_hold(harness: StoreHarness):
    run_id = harness.start(
        [
            node("source"),
            node("work", "source"),
            node(
                "merge",
                "work",
                "source",
                fan_mode=FanMode.GROUPED,
                edge_filters={"work": only("video"), "source": LARGEST},
            ),
        ]
    )
    complete_node(harness, run_id, "source", emit("f1", "f2", "f3"))
    first, second, third = open_at(harness, run_id, "work")
    harness.complete(first, [data("1.mp4"), data("1.srt")])
    harness.complete(second, [data("2.srt")])
    harness.complete(third, [data("3.srt")])

    # f2 passes neither edge; f3, the largest source, passes one.
    assert inputs_at(harness, run_id, "merge") == [["1.mp4"], ["f3"]]


def test_a_grouped_node_whose_filter_rejects_all_is_filtered(harness: StoreHarness):
    run_id = harness.start(
        [node("source"), node("merge", "source", fan_mode=FanMode.GROUPED, edge_filters={"source": only("video")})]
    )

    complete_node(harness, run_id, "source", emit("a.srt"))

    assert harness.node_states(run_id)["merge"] == "filtered"
    assert_completed(harness, run_id)


def test_bindings_see_what_routing_chose(harness: StoreHarness):
    run_id = harness.start(
        [
            node("source"),
            node(
                "end",
                "source",
                fan_mode=FanMode.AGGREGATE,
                edge_filters={"source": LARGEST},
                bindings={
                    "name": {"source": "previous_node", "node": "source", "key": "file_name"},
                    "loud": {"source": "expression", "expression": "{source.file_name | upper}"},
                },
            ),
        ]
    )
    complete_node(harness, run_id, "source", emit("small", "large"))

    task_input = harness.task_input(open_at(harness, run_id, "end")[0])
    assert (task_input["name"], task_input["loud"]) == ("large", "LARGE")
    assert input_names(task_input) == ["large"]


# -- filtered and skipped nodes


def test_a_filtered_node_does_not_cascade_but_gives_nothing(harness: StoreHarness):
    """Two filtered nodes in a row, then one that has another source: all in the completion that began it."""
    run_id = harness.start(
        [
            node("source"),
            node("empty", "source"),
            node("empty_too", "empty"),
            node("other"),
            node("end", "empty_too", "other"),
        ]
    )
    complete_node(harness, run_id, "other", emit("x"))
    complete_node(harness, run_id, "source", emit())

    assert harness.node_states(run_id) == {
        "source": "completed",
        "empty": "filtered",
        "empty_too": "filtered",
        "other": "completed",
        "end": "launched",
    }
    assert inputs_at(harness, run_id, "end") == [["x"]]


def test_a_run_of_filtered_nodes_completes_at_once(harness: StoreHarness):
    run_id = harness.start([node("source"), *(node(f"n{i}", "source" if i == 0 else f"n{i - 1}") for i in range(5))])

    complete_node(harness, run_id, "source", emit())

    assert set(harness.node_states(run_id).values()) == {"completed", "filtered"}
    assert_completed(harness, run_id)


def test_a_skip_cascades_through_every_node_below_it(harness: StoreHarness):
    run_id = harness.start(
        [
            node("source"),
            node("dead", "source", fan_mode=FanMode.AGGREGATE, edge_filters={"source": only("video")}),
            node("left", "dead"),
            node("right", "dead", "source"),
            node("bottom", "left", "right", fan_mode=FanMode.AGGREGATE),
            node("alive", "source"),
        ]
    )
    complete_node(harness, run_id, "source", emit("a.srt"))

    assert harness.node_states(run_id) == {
        "source": "completed",
        "dead": "skipped",
        "left": "skipped",
        "right": "skipped",
        "bottom": "skipped",
        "alive": "launched",
    }
    assert harness.task_statuses(run_id, "bottom") == ["skipped"]
    complete_node(harness, run_id, "alive")
    assert_completed(harness, run_id)


def test_a_node_below_a_skip_waits_for_its_other_dependencies(harness: StoreHarness):
    run_id = harness.start(
        [
            node("source"),
            node("dead", "source", fan_mode=FanMode.AGGREGATE, edge_filters={"source": only("video")}),
            node("slow", "source"),
            node("end", "dead", "slow"),
        ]
    )
    complete_node(harness, run_id, "source", emit("a.srt"))
    assert harness.node_states(run_id)["end"] == "blocked"

    complete_node(harness, run_id, "slow", emit("x"))

    assert harness.node_states(run_id)["end"] == "skipped"
    assert_completed(harness, run_id)


# -- passthrough


def test_a_gate_without_output_lets_the_search_look_behind_it(harness: StoreHarness):
    run_id = harness.start([node("source"), node("gate", "source", plugin="gate"), node("end", "gate")])
    complete_node(harness, run_id, "source", emit("f1", "f2"))
    complete_node(harness, run_id, "gate")

    assert inputs_at(harness, run_id, "end") == [["f1"], ["f2"]]
    run_to_end(harness, run_id, lambda _: [])
    assert_completed(harness, run_id)


def test_gates_behind_gates_are_looked_through_down_to_the_nearest_artifacts(harness: StoreHarness):
    run_id = harness.start(
        [
            node("source"),
            node("work", "source"),
            node("outer", "work", plugin="gate", fan_mode=FanMode.AGGREGATE),
            node("inner", "outer", plugin="gate_keeper", fan_mode=FanMode.AGGREGATE),
            node("end", "inner", edge_filters={"inner": only("video")}),
        ]
    )
    complete_node(harness, run_id, "source", emit("f.mp4"))
    complete_node(harness, run_id, "work", emit("w.mp4", "w.srt"))
    complete_node(harness, run_id, "outer")
    complete_node(harness, run_id, "inner")

    assert inputs_at(harness, run_id, "end") == [["w.mp4"]]


def test_a_gate_with_output_hides_what_is_behind_it(harness: StoreHarness):
    run_id = harness.start([node("source"), node("gate", "source", plugin="gate"), node("end", "gate")])
    complete_node(harness, run_id, "source", emit("f"))
    complete_node(harness, run_id, "gate", emit("stamped"))

    assert inputs_at(harness, run_id, "end") == [["stamped"]]


def test_the_search_does_not_look_behind_a_node_that_processes(harness: StoreHarness):
    run_id = harness.start([node("source"), node("work", "source"), node("end", "work")])
    complete_node(harness, run_id, "source", emit("f"))
    complete_node(harness, run_id, "work")

    assert harness.node_states(run_id)["end"] == "filtered"


def test_what_one_edge_finds_does_not_hide_what_is_behind_anothers_gate(harness: StoreHarness):
    run_id = harness.start(
        [
            node("source"),
            node("gate", "source", plugin="gate"),
            node("work", "source"),
            node("end", "work", "gate", fan_mode=FanMode.AGGREGATE),
        ]
    )
    complete_node(harness, run_id, "source", emit("f"))
    complete_node(harness, run_id, "gate")
    complete_node(harness, run_id, "work", pass_on(harness))

    assert inputs_at(harness, run_id, "end") == [["work(f)", "f"]]


@pytest.mark.parametrize("fan_mode", FanMode)
def test_an_artifact_found_through_two_gates_counts_once(harness: StoreHarness, fan_mode: FanMode):
    run_id = harness.start(
        [
            node("source"),
            node("gate_a", "source", plugin="gate"),
            node("gate_b", "source", plugin="gate"),
            node("end", "gate_a", "gate_b", fan_mode=fan_mode),
        ]
    )
    complete_node(harness, run_id, "source", emit("f"))
    complete_node(harness, run_id, "gate_a")
    complete_node(harness, run_id, "gate_b")

    assert inputs_at(harness, run_id, "end") == [["f"]]


def test_a_filtered_gate_is_looked_through_as_well(harness: StoreHarness):
    run_id = harness.start(
        [
            node("source"),
            node("gate", "source", plugin="gate", edge_filters={"source": only("video")}),
            node("end", "gate"),
        ]
    )
    complete_node(harness, run_id, "source", emit("a.srt"))

    assert harness.node_states(run_id)["gate"] == "filtered"
    assert inputs_at(harness, run_id, "end") == [["a.srt"]]

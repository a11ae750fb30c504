"""Graph: slugs, dependencies, readiness and the search for artifacts upstream."""

import logging

import pytest

from dagabaaz_celery import graph
from dagabaaz_celery.constants import MAX_BFS_DEPTH
from dagabaaz_celery.models import DagArtifact, DagNode, EdgeFilter


def node(slug: str, *depends_on: str, plugin: str = "work", **fields) -> DagNode:
    return DagNode(slug=slug, plugin=plugin, depends_on=list(depends_on), **fields)


DIAMOND = [node("a"), node("b", "a"), node("c", "a"), node("d", "b", "c")]


# -- slugs


def test_missing_slugs_count_from_one_for_each_plugin():
    nodes = [DagNode(plugin="fetch"), DagNode(plugin="fetch"), DagNode(plugin="merge")]

    graph.assign_slugs(nodes)

    assert [n.slug for n in nodes] == ["fetch_1", "fetch_2", "merge_1"]


def test_a_missing_slug_skips_names_in_use_wherever_they_stand():
    nodes = [DagNode(plugin="fetch"), DagNode(plugin="fetch"), DagNode(slug="fetch_1", plugin="other")]

    graph.assign_slugs(nodes)

    assert [n.slug for n in nodes] == ["fetch_2", "fetch_3", "fetch_1"]


def test_assigning_slugs_twice_changes_nothing():
    nodes = [DagNode(plugin="fetch"), node("mine"), DagNode(plugin="fetch")]
    graph.assign_slugs(nodes)
    first = [n.slug for n in nodes]

    graph.assign_slugs(nodes)

    assert [n.slug for n in nodes] == first == ["fetch_1", "mine", "fetch_2"]


def test_slugs_map_to_their_indices_and_nameless_nodes_are_left_out():
    assert graph.build_slug_to_index_map([node("a"), DagNode(plugin="x"), node("c")]) == {"a": 0, "c": 2}


# -- dependencies


def test_dependencies_keep_the_order_in_which_they_are_named():
    assert graph.resolve_dependency_indices([node("a"), node("b"), node("c", "b", "a")]) == [[], [], [1, 0]]


def test_a_dependency_named_twice_counts_once():
    assert graph.resolve_dependency_indices([node("a"), node("b", "a", "a")]) == [[], [0]]


def test_an_unknown_dependency_is_logged_and_dropped(caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING):
        assert graph.resolve_dependency_indices([node("a"), node("b", "ghost", "a")]) == [[], [0]]

    assert "'ghost'" in caplog.text
    assert "'b'" in caplog.text


def test_roots_are_the_nodes_without_dependencies():
    assert graph.find_root_nodes([node("a"), node("b", "a"), node("c")]) == [0, 2]
    assert graph.find_root_nodes([]) == []
    assert graph.find_root_nodes([node("a", "b"), node("b", "a")]) == []


def test_edge_filters_are_rekeyed_by_index_and_unknown_ones_dropped(caplog: pytest.LogCaptureFixture):
    keep = EdgeFilter(select="largest")
    target = node("c", "a", "b", edge_filters={"b": keep, "ghost": EdgeFilter()})

    with caplog.at_level(logging.WARNING):
        assert graph.rekey_edge_filters_by_index(target, {"a": 0, "b": 1, "c": 2}) == {1: keep}

    assert "'ghost'" in caplog.text


def test_children_are_the_dependencies_turned_round():
    assert graph.build_children([[], [0], [0], [1, 2]]) == [[1, 2], [3], [3], []]


# -- readiness


@pytest.mark.parametrize(
    ("completed", "launched", "ready"),
    [
        (set(), set(), [0]),
        (set(), {0}, []),
        ({0}, {0}, [1, 2]),
        ({0, 1}, {0, 1}, [2]),
        ({0, 1, 2}, {0, 1, 2}, [3]),
        ({0, 1, 2, 3}, {0, 1, 2, 3}, []),
    ],
)
def test_a_node_is_ready_when_all_its_dependencies_are_completed_and_it_is_not_launched(completed, launched, ready):
    deps = graph.resolve_dependency_indices(DIAMOND)

    assert graph.find_ready_nodes(deps, completed, launched) == ready


def test_only_children_of_what_changed_are_looked_at():
    deps = [[], [], [1], [0], [0]]
    children = graph.build_children(deps)

    ready = graph.find_ready_nodes(deps, {0, 1}, {0, 1}, children=children, changed_indices={0})

    assert ready == [3, 4]


def test_a_child_of_two_changed_nodes_is_named_once():
    deps = graph.resolve_dependency_indices(DIAMOND)

    ready = graph.find_ready_nodes(
        deps, {0, 1, 2}, {0, 1, 2}, children=graph.build_children(deps), changed_indices=[2, 1]
    )

    assert ready == [3]


@pytest.mark.parametrize("half", [{"children": [[1], []]}, {"changed_indices": {0}}])
def test_either_half_of_the_hint_alone_looks_at_every_node(half):
    assert graph.find_ready_nodes([[], [0]], set(), set(), **half) == [0]


# -- the search upstream


class Levels:
    """A fetch over items by node that remembers what it was asked."""

    def __init__(self, items: dict[int, list[str]]) -> None:
        self.items = items
        self.asked: list[list[int]] = []

    def __call__(self, run_id: str, indices: list[int]) -> list[str]:
        assert run_id == "run"
        self.asked.append(indices)
        return [item for index in indices for item in self.items.get(index, [])]


def test_the_nearest_level_with_items_wins():
    fetch = Levels({0: ["far"], 1: ["near"]})

    assert graph.bfs_collect(fetch, "run", [1], [[], [0]]) == ["near"]
    assert fetch.asked == [[1]]


def test_the_search_walks_up_through_passthrough_nodes_only():
    fetch = Levels({0: ["behind the gate"], 1: ["behind the worker"]})
    deps = [[], [], [0], [1], [2, 3]]  # 2 is a gate, 3 is not

    assert graph.bfs_collect(fetch, "run", [2, 3], deps, passthrough_indices={2}) == ["behind the gate"]
    assert graph.bfs_collect(fetch, "run", [3], deps, passthrough_indices={2}) == []


def test_without_passthrough_indices_every_node_is_walked_through():
    assert graph.bfs_collect(Levels({0: ["x"]}), "run", [2], [[], [0], [1]]) == ["x"]


def test_an_empty_set_of_passthrough_nodes_stops_at_the_given_level():
    assert graph.bfs_collect(Levels({0: ["x"]}), "run", [1], [[], [0]], passthrough_indices=set()) == []


def test_a_node_is_visited_once_however_many_ways_lead_to_it():
    fetch = Levels({0: ["x"]})
    deps = [[], [0], [0], [1, 2]]

    assert graph.bfs_collect(fetch, "run", [3], deps) == ["x"]
    assert fetch.asked == [[3], [1, 2], [0]]


def test_given_nodes_named_twice_are_fetched_once():
    assert graph.bfs_collect(Levels({0: ["x"]}), "run", [0, 0], [[]]) == ["x"]


def test_a_cycle_of_empty_nodes_ends_the_search():
    assert graph.bfs_collect(Levels({}), "run", [0], [[1], [0]]) == []


def test_no_given_nodes_find_nothing_and_ask_nothing():
    fetch = Levels({})

    assert graph.bfs_collect(fetch, "run", [], [[]]) == []
    assert fetch.asked == []


def chain(length: int) -> list[list[int]]:
    return [[]] + [[index] for index in range(length - 1)]


def test_the_search_gives_up_past_the_depth_limit_and_says_so(caplog: pytest.LogCaptureFixture):
    deps = chain(5)
    fetch = Levels({0: ["x"]})

    assert graph.bfs_collect(fetch, "run", [4], deps, max_depth=4) == ["x"]
    with caplog.at_level(logging.WARNING):
        assert graph.bfs_collect(fetch, "run", [4], deps, max_depth=3) == []

    assert "3 levels" in caplog.text


def test_reaching_the_roots_at_the_depth_limit_is_no_cause_for_a_log_line(caplog: pytest.LogCaptureFixture):
    assert graph.bfs_collect(Levels({}), "run", [4], chain(5), max_depth=4) == []

    assert caplog.text == ""


def test_the_default_depth_limit_is_the_constant():
    length = MAX_BFS_DEPTH + 2
    fetch = Levels({0: ["x"]})

    assert graph.bfs_collect(fetch, "run", [length - 2], chain(length)) == ["x"]
    assert graph.bfs_collect(fetch, "run", [length - 1], chain(length)) == []


def test_what_the_fetch_returned_is_not_handed_out_itself():
    held = ["x"]

    assert graph.bfs_collect(lambda _run, _indices: held, "run", [0], [[]]) is not held


def test_upstream_artifacts_come_from_the_store():
    class Store:
        def get_artifacts_by_node_indices(self, run_id, node_indices):
            return [DagArtifact(id=f"{run_id}/{index}") for index in node_indices if index == 0]

    found = graph.collect_upstream_artifacts_bfs(Store(), "run", [1], [[], [0]], passthrough_indices={1})
    too_deep = graph.collect_upstream_artifacts_bfs(Store(), "run", [1], [[], [0]], max_depth=0)

    assert [artifact.id for artifact in found] == ["run/0"]
    assert too_deep == []


# -- depths and descendants


def test_a_node_is_as_deep_as_the_longest_path_to_it():
    deps = graph.resolve_dependency_indices([*DIAMOND, node("e", "a", "d"), node("alone")])

    assert graph.measure_depths(deps) == [0, 1, 1, 2, 3, 0]


def test_descendants_are_found_through_others_each_once():
    children = graph.build_children(graph.resolve_dependency_indices([*DIAMOND, node("e", "d"), node("alone")]))

    assert graph.find_descendants(children, [0]) == {1, 2, 3, 4}
    assert graph.find_descendants(children, [1, 2]) == {3, 4}
    assert graph.find_descendants(children, []) == set()


def test_a_run_does_not_begin_with_finalisers():
    assert graph.find_root_nodes([node("a"), node("b", "a"), node("end", run_on="always")]) == [0]

"""A worker sees exactly what routing chose, and reads no more than that takes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dagabaaz_celery.constants import ArtifactSelector, FanMode, FilterOperator, NodeSummaryStatus
from dagabaaz_celery.models import (
    ConfigSource,
    DagArtifact,
    DagNode,
    EdgeFilter,
    ExpressionError,
    ExpressionSource,
    FilterRule,
    InputBinding,
    NodeSource,
    RuntimeSource,
    TaskArtifact,
)
from dagabaaz_celery.orchestrator import plan_node_launch
from dagabaaz_celery.store import TaskInputStore
from dagabaaz_celery.task_input import (
    build_task_input,
    collect_upstream_task_artifacts_bfs,
    resolve_task_bindings,
)
from dagabaaz_celery.topology import RunTopology

RUN = "run-1"


def art(name: str, origin: str | None = None, **fields: Any) -> TaskArtifact:
    """An artifact that is told by its metadata field ``id``, which is its id in the store too."""
    metadata = {"id": name, **fields.pop("metadata", {})}
    return TaskArtifact(file_name=name, origin_artifact_id=origin, metadata=metadata, **fields)


@dataclass
class FakeStore:
    """Both of the engine's views of some artifacts, by node; it counts the artifacts that it gives away."""

    artifacts: Mapping[int, Sequence[TaskArtifact]] = field(default_factory=dict)
    run_input: dict[str, Any] = field(default_factory=dict)
    reads: list[str] = field(default_factory=list)
    artifacts_read: int = 0

    def _give(self, method: str, found: list[TaskArtifact]) -> list[TaskArtifact]:
        self.reads.append(method)
        self.artifacts_read += len(found)
        return found

    def _at(self, node_indices: Sequence[int]) -> list[TaskArtifact]:
        return [artifact for index in sorted(node_indices) for artifact in self.artifacts.get(index, ())]

    def get_artifact_data(self, artifact_id: str) -> TaskArtifact | None:
        found = [artifact for artifact in self._at(list(self.artifacts)) if artifact.metadata["id"] == artifact_id]
        return next(iter(self._give("data", found)), None)

    def get_task_artifacts_by_node_indices(self, run_id: str, node_indices: Sequence[int]) -> list[TaskArtifact]:
        return self._give("all", self._at(node_indices))

    def get_grouped_artifacts(self, run_id: str, dep_indices: Sequence[int], origin_id: str) -> list[TaskArtifact]:
        return self._give("grouped", [a for a in self._at(dep_indices) if a.origin_artifact_id == origin_id])

    def get_broadcast_artifacts(self, run_id: str, dep_indices: Sequence[int]) -> list[TaskArtifact]:
        return self._give("broadcast", [a for a in self._at(dep_indices) if a.origin_artifact_id is None])

    def get_run_input(self, run_id: str) -> dict[str, Any]:
        self.reads.append("run_input")
        return self.run_input

    def get_artifacts_partitioned(self, run_id: str, node_indices: Sequence[int]) -> dict[int, list[TaskArtifact]]:
        self._give("partitioned", self._at(node_indices))
        return {index: list(self.artifacts[index]) for index in node_indices if index in self.artifacts}

    def get_artifact_producing_node(self, artifact_id: str) -> int | None:
        self.reads.append("producer")
        return next(
            (i for i, found in self.artifacts.items() if artifact_id in [a.metadata["id"] for a in found]), None
        )

    # The routing view

    def get_artifacts_by_node_indices(self, run_id: str, node_indices: Sequence[int]) -> list[DagArtifact]:
        return [DagArtifact(id=a.metadata["id"], **a.model_dump(exclude={"file_path"})) for a in self._at(node_indices)]

    def get_node_summary(self, run_id: str) -> dict[int, NodeSummaryStatus]:
        return {}


def node(slug: str, *depends_on: str, fan_mode: FanMode = FanMode.AGGREGATE, **fields: Any) -> DagNode:
    return DagNode(slug=slug, plugin=slug, depends_on=list(depends_on), fan_mode=fan_mode, **fields)


def only(kind: str) -> EdgeFilter:
    return EdgeFilter(rules=[FilterRule(field="kind", operator=FilterOperator.EQ, value=kind)])


LARGEST = EdgeFilter(select=ArtifactSelector.LARGEST)


def gates(nodes: Sequence[DagNode]) -> set[int]:
    return {index for index, found in enumerate(nodes) if found.slug.startswith("gate")}


def build(store: FakeStore, nodes: Sequence[DagNode], **fields: Any) -> dict[str, Any]:
    """The last node's input, where nodes whose slug begins with "gate" are passthrough."""
    arguments: dict[str, Any] = {"input_artifact_id": None, "passthrough_indices": gates(nodes), **fields}
    return build_task_input(store, run_id=RUN, node_index=len(nodes) - 1, nodes=nodes, **arguments)


def ids(task_input: Mapping[str, Any]) -> list[str]:
    return [artifact["metadata"]["id"] for artifact in task_input["artifacts"]]


def test_the_fake_is_a_task_input_store() -> None:
    assert isinstance(FakeStore(), TaskInputStore)


# One artifact


def test_one_artifact_is_spread_flat_and_its_standard_fields_win() -> None:
    film = TaskArtifact(file_path="/d/f", file_name="f", file_size=3, metadata={"id": "f", "file_name": "x", "n": [1]})
    store = FakeStore({0: [film]})

    assert build(store, [node("a"), node("b", "a")], input_artifact_id="f") == {
        "id": "f",
        "n": [1],
        "file_path": "/d/f",
        "file_name": "f",
        "file_size": 3,
        "mime_type": None,
    }


def test_a_missing_artifact_is_an_empty_input() -> None:
    store = FakeStore({}, run_input={"url": "u"})

    assert build(store, [node("a"), node("b", "a")], input_artifact_id="gone") == {}


# Roots


def test_a_root_gets_a_copy_of_the_run_input() -> None:
    store = FakeStore(run_input={"url": "u"})

    task_input = build(store, [node("a")])
    task_input["more"] = 1

    assert task_input == {"url": "u", "more": 1}
    assert store.run_input == {"url": "u"}


@pytest.mark.parametrize("origin", [None, "o1"])
def test_a_node_with_dependencies_never_falls_back_to_the_run_input(origin: str | None) -> None:
    store = FakeStore(run_input={"url": "u"})

    assert build(store, [node("a"), node("b", "a")], origin_artifact_id=origin) == {"artifacts": []}
    assert build(store, [node("b", "unknown")], origin_artifact_id=origin) == {"artifacts": []}


# All edges


def test_an_aggregate_gets_the_artifacts_of_every_edge_in_the_order_of_its_dependencies() -> None:
    store = FakeStore({0: [art("a1"), art("a2", "o")], 1: [art("b1")]})

    task_input = build(store, [node("a"), node("b"), node("c", "b", "a")])

    assert ids(task_input) == ["b1", "a1", "a2"]
    assert task_input["artifacts"][0] == art("b1").to_input_dict()


def test_a_node_before_the_dependency_is_not_looked_at() -> None:
    store = FakeStore({0: [art("a1")], 1: [art("b1")]})

    assert ids(build(store, [node("a"), node("b", "a"), node("c", "b")])) == ["b1"]


def test_the_search_walks_through_a_gate_and_stops_at_any_other_node() -> None:
    store = FakeStore({0: [art("a1")]})

    assert ids(build(store, [node("a"), node("gate", "a"), node("c", "gate")])) == ["a1"]
    assert ids(build(store, [node("a"), node("b", "a"), node("c", "b")])) == []
    assert ids(build(store, [node("a"), node("b", "a"), node("c", "b")], passthrough_indices=None)) == ["a1"]


def test_one_edges_find_does_not_hide_anothers() -> None:
    store = FakeStore({0: [art("a1")], 2: [art("b1")]})

    assert ids(build(store, [node("a"), node("gate", "a"), node("b"), node("c", "gate", "b")])) == ["a1", "b1"]


def test_edge_filters_hold_for_what_their_own_edge_found() -> None:
    video, text = art("v", metadata={"kind": "video"}), art("t", metadata={"kind": "text"})
    nodes = [node("a"), node("b"), node("c", "a", "b", edge_filters={"a": only("video")})]

    assert ids(build(FakeStore({0: [video, text], 1: [text]}), nodes)) == ["v", "t"]


def test_edge_filters_know_the_type_of_a_file() -> None:
    found = [art("a.srt"), art("b.mp4"), art("c", mime_type="video/webm")]
    is_video = EdgeFilter(rules=[FilterRule(field="file_type", operator=FilterOperator.EQ, value="video")])
    nodes = [node("a"), node("c", "a", edge_filters={"a": is_video})]

    assert ids(build(FakeStore({0: found}), nodes)) == ["b.mp4", "c"]


def test_a_filter_on_a_gates_edge_holds_for_what_was_found_behind_it() -> None:
    found = [art("v", metadata={"kind": "video"}), art("t", metadata={"kind": "text"})]
    nodes = [node("a"), node("gate", "a"), node("c", "gate", edge_filters={"gate": only("text")})]

    assert ids(build(FakeStore({0: found}), nodes)) == ["t"]


def test_an_artifact_found_through_two_gates_counts_once_at_its_first_place() -> None:
    twins = art("same")  # the same content twice: two artifacts all the same
    store = FakeStore({0: [twins, twins, art("a3")]})
    nodes = [node("a"), node("gate1", "a"), node("gate2", "a"), node("c", "gate2", "gate1", "a")]

    assert ids(build(store, nodes)) == ["same", "same", "a3"]
    assert ids(build(store, nodes, origin_artifact_id="o")) == ["same", "same", "a3"]


def test_two_edges_with_their_own_filters_share_what_both_let_through_once() -> None:
    found = [art("small", file_size=1), art("large", file_size=9, metadata={"kind": "video"})]
    nodes = [
        node("a"),
        node("gate1", "a"),
        node("gate2", "a"),
        node("c", "gate1", "gate2", edge_filters={"gate1": LARGEST, "gate2": only("video")}),
    ]

    assert ids(build(FakeStore({0: found}), nodes)) == ["large"]


def test_given_dependency_indices_are_used_as_they_are() -> None:
    store = FakeStore({0: [art("a1")], 1: [art("b1")]})
    nodes = [node("a"), node("b"), node("c", "a")]

    assert ids(build(store, nodes, deps=[[], [], [1]])) == ["b1"]


def test_several_edges_are_read_at_once_and_no_node_twice() -> None:
    store = FakeStore({0: [art("a1")], 1: [art("b1")]})
    nodes = [node("a"), node("b"), node("gate1", "a"), node("gate2", "a"), node("c", "a", "b", "gate1", "gate2")]

    assert ids(build(store, nodes)) == ["a1", "b1"]
    assert store.reads == ["partitioned"]


def test_collecting_is_bfs_over_task_artifacts() -> None:
    store = FakeStore({0: [art("a1")], 1: [art("b1")]})
    deps: list[list[int]] = [[], [], [0, 1], [2]]

    assert collect_upstream_task_artifacts_bfs(store, RUN, [2], deps) == [art("a1"), art("b1")]
    assert collect_upstream_task_artifacts_bfs(store, RUN, [2], deps, passthrough_indices=set()) == []
    assert collect_upstream_task_artifacts_bfs(store, RUN, [2], deps, max_depth=0) == []


# Groups


def test_a_group_gets_the_artifacts_of_its_origin_and_the_broadcast_ones() -> None:
    store = FakeStore({0: [art("x1", "o1"), art("x2", "o2")], 1: [art("y2", "o2"), art("y1", "o1")], 2: [art("all")]})
    nodes = [node("x"), node("y"), node("side"), node("c", "x", "y", "side", fan_mode=FanMode.GROUPED)]

    assert ids(build(store, nodes, origin_artifact_id="o1")) == ["x1", "y1", "all"]


def test_the_one_task_without_an_origin_gets_everything() -> None:
    store = FakeStore({0: [art("x1"), art("x2")]})

    assert ids(build(store, [node("x"), node("c", "x", fan_mode=FanMode.GROUPED)])) == ["x1", "x2"]


def test_edge_filters_hold_for_groups() -> None:
    found = [art("v", "o1", metadata={"kind": "video"}), art("t", "o1"), art("w", "o2", metadata={"kind": "video"})]
    nodes = [node("x"), node("c", "x", fan_mode=FanMode.GROUPED, edge_filters={"x": only("video")})]

    assert ids(build(FakeStore({0: found}), nodes, origin_artifact_id="o1")) == ["v"]


def test_a_selecting_filter_chooses_among_all_groups() -> None:
    found = [art("small", "o1", file_size=1), art("large", "o2", file_size=9)]
    nodes = [node("x"), node("y"), node("c", "x", "y", fan_mode=FanMode.GROUPED, edge_filters={"x": LARGEST})]
    store = FakeStore({0: found, 1: [art("y1", "o1"), art("y2", "o2")]})

    assert ids(build(store, nodes, origin_artifact_id="o1")) == ["y1"]
    assert ids(build(store, nodes, origin_artifact_id="o2")) == ["large", "y2"]


def test_a_group_is_found_through_a_gate() -> None:
    store = FakeStore({0: [art("x1", "o1"), art("x2", "o2")]})
    nodes = [node("x"), node("gate", "x"), node("c", "gate", fan_mode=FanMode.GROUPED)]

    assert ids(build(store, nodes, origin_artifact_id="o1")) == ["x1"]


def test_other_groups_artifacts_in_a_gate_end_the_search() -> None:
    store = FakeStore({0: [art("x1", "o1")], 1: [art("g2", "o2")], 2: [art("y1", "o1")]})
    nodes = [node("x"), node("gate", "x"), node("y"), node("c", "gate", "y", fan_mode=FanMode.GROUPED)]

    assert ids(build(store, nodes, origin_artifact_id="o1")) == ["y1"]


def test_an_artifact_found_through_two_gates_counts_once_in_a_group() -> None:
    found = [art("x2", "o2", file_size=9), art("x1", "o1"), art("x3", "o2"), art("s")]
    nodes = [
        node("x"),
        node("gate1", "x"),
        node("gate2", "x"),
        node("c", "gate1", "gate2", "x", fan_mode=FanMode.GROUPED, edge_filters={"gate2": LARGEST}),
    ]

    assert ids(build(FakeStore({0: found}), nodes, origin_artifact_id="o2")) == ["x2", "x3", "s"]


WIDTH = 500


@pytest.mark.parametrize(
    "nodes",
    [
        [node("x"), node("y"), node("c", "x", "y", fan_mode=FanMode.GROUPED)],
        [node("x"), node("gate", "x"), node("c", "gate", fan_mode=FanMode.GROUPED, edge_filters={"gate": only("k")})],
        [node("x"), node("barren"), node("c", "x", "barren", fan_mode=FanMode.GROUPED)],
    ],
    ids=["edges", "gate", "nothing for this group"],
)
def test_a_task_of_one_group_does_not_read_the_other_groups(nodes: list[DagNode]) -> None:
    wide = [art(f"x{i}", f"o{i}", metadata={"kind": "k"}) for i in range(WIDTH)]
    store = FakeStore({0: wide, 1: [] if nodes[1].slug == "gate" else wide[1:]})

    assert ids(build(store, nodes, origin_artifact_id="o0")) == ["x0"]
    assert store.artifacts_read == 1


# Bindings


def bind(store: FakeStore, nodes: Sequence[DagNode], input_data: dict[str, Any] | None = None, **fields: Any) -> Any:
    """The last node's input after its bindings."""
    data = {} if input_data is None else input_data
    arguments: dict[str, Any] = {"passthrough_indices": gates(nodes), **fields}
    resolve_task_bindings(store, run_id=RUN, node_index=len(nodes) - 1, nodes=nodes, input_data=data, **arguments)
    return data


def bound(*depends_on: str, **bindings: InputBinding) -> DagNode:
    return node("last", *depends_on, bindings=bindings)


def test_bindings_are_laid_over_the_input_in_place() -> None:
    store = FakeStore({0: [art("a1")]}, run_input={"url": "u"})
    last = bound(
        "a",
        title=NodeSource(node="a", key="id"),
        fixed=ConfigSource(value=7),
        url=RuntimeSource(key="url"),
        text=ExpressionSource(expression="{a.id | upper} {input.url} {config.q}"),
        nothing=NodeSource(node="a", key="nothing"),
    )
    data = {"title": "old", "kept": True}

    bind(store, [node("a"), last.model_copy(update={"config": {"q": 80}})], data)

    assert data == {"title": "a1", "kept": True, "fixed": 7, "url": "u", "text": "A1 u 80", "nothing": None}


def test_a_runtime_binding_without_a_key_reads_its_own_name() -> None:
    last = bound(url=RuntimeSource(), other=RuntimeSource(default="d"))

    assert bind(FakeStore(run_input={"url": "u"}), [last]) == {"url": "u", "other": "d"}


def test_a_given_config_stands_in_for_the_nodes() -> None:
    last = bound(q=ExpressionSource(expression="{config.q}")).model_copy(update={"config": {"q": 80}})

    assert bind(FakeStore(), [last]) == {"q": 80}
    assert bind(FakeStore(), [last], node_config={"q": 90}) == {"q": 90}
    assert bind(FakeStore(), [last], node_config={}) == {"q": None}


def test_only_what_bindings_name_is_read() -> None:
    store = FakeStore({0: [art("a1")], 1: [art("b1")]}, run_input={"url": "u"})
    nodes = [node("a"), node("b")]

    bind(store, [*nodes, bound("a", "b")])
    bind(store, [*nodes, bound("a", "b", x=ConfigSource(value=1))], input_artifact_id="a1")
    assert store.reads == []

    assert bind(store, [*nodes, bound("a", "b", x=NodeSource(node="b", key="id"))]) == {"x": "b1"}
    assert store.reads == ["all"]
    assert store.artifacts_read == 1

    bind(store, [*nodes, bound("a", "b", x=ExpressionSource(expression="{input.url}"))])
    assert store.reads == ["all", "run_input"]


def test_a_binding_reads_several_edges_at_once() -> None:
    store = FakeStore({0: [art("a1"), art("a2")], 1: [art("b1")]})
    last = bound("a", "b", x=ExpressionSource(expression="{list(a.id, b.id) | flatten | join(,)}"))

    assert bind(store, [node("a"), node("b"), last]) == {"x": "a1,a2,b1"}
    assert store.reads == ["partitioned"]


def test_a_node_that_is_no_dependency_offers_nothing() -> None:
    assert bind(FakeStore({0: [art("a1")]}), [node("a"), bound(x=NodeSource(node="a", key="id"))]) == {"x": None}


def test_filters_and_gates_hold_for_bindings() -> None:
    found = [art("v", metadata={"kind": "video"}), art("t", metadata={"kind": "text"})]
    last = bound("gate", x=NodeSource(node="gate", key="id"))
    last.edge_filters = {"gate": only("text")}

    assert bind(FakeStore({0: found}), [node("a"), node("gate", "a"), last]) == {"x": "t"}


def test_a_group_is_bound_to_its_own_artifacts() -> None:
    store = FakeStore({0: [art("x1", "o1"), art("x2", "o2"), art("s")], 1: [art("y2", "o2")]})
    nodes = [node("x"), node("y"), bound("x", "y", x=NodeSource(node="x", key="id"), y=NodeSource(node="y", key="id"))]

    assert bind(store, nodes, origin_artifact_id="o1") == {"x": ["x1", "s"], "y": None}
    assert bind(store, nodes, origin_artifact_id="o2") == {"x": ["x2", "s"], "y": "y2"}


def test_deps_may_be_given_to_bindings() -> None:
    store = FakeStore({0: [art("a1")]})
    nodes = [node("a"), bound("a", x=NodeSource(node="a", key="id"))]

    assert bind(store, nodes, deps=[[], [0]]) == {"x": "a1"}
    assert bind(store, nodes, deps=[[], []]) == {"x": None}


def test_a_failing_expression_names_node_and_field() -> None:
    last = bound("a", title=ExpressionSource(expression="{a.id | required}"))

    with pytest.raises(ExpressionError, match=r"^Node 'last', binding 'title': Required value is missing"):
        bind(FakeStore(), [node("a"), last])


# Bindings of a task of one artifact

BOTH = {"x": NodeSource(node="x", key="id"), "y": NodeSource(node="y", key="id")}


def test_the_inputs_own_dependency_offers_just_the_input() -> None:
    store = FakeStore({0: [art("x1", "o1"), art("x2", "o2")], 1: [art("y1", "o1"), art("y2", "o2"), art("s")]})
    nodes = [node("x"), node("y"), bound("x", "y", **BOTH)]

    assert bind(store, nodes, input_artifact_id="x2") == {"x": "x2", "y": ["y2", "s"]}


def test_beside_an_input_without_an_origin_other_dependencies_offer_everything() -> None:
    store = FakeStore({0: [art("x1"), art("x2")], 1: [art("y1", "o1"), art("y2")]})
    nodes = [node("x"), node("y"), bound("x", "y", **BOTH)]

    assert bind(store, nodes, input_artifact_id="x2") == {"x": "x2", "y": ["y1", "y2"]}


def test_a_gate_that_leads_to_the_input_offers_just_the_input() -> None:
    store = FakeStore({0: [art("a1"), art("a2")]})
    nodes = [node("a"), node("gate", "a"), bound("gate", x=NodeSource(node="gate", key="id"))]

    assert bind(store, nodes, input_artifact_id="a2") == {"x": "a2"}


def test_a_gate_with_artifacts_of_its_own_does_not_lead_to_the_input() -> None:
    store = FakeStore({0: [art("a1"), art("a2")], 1: [art("g1"), art("g2")]})
    last = bound("a", "gate", x=NodeSource(node="gate", key="id"))

    assert bind(store, [node("a"), node("gate", "a"), last], input_artifact_id="a2") == {"x": ["g1", "g2"]}


def test_an_edge_whose_filter_rejects_the_input_offers_its_own_find() -> None:
    found = [art("v1", metadata={"kind": "v"}), art("t1", metadata={"kind": "t"}), art("t2", metadata={"kind": "t"})]
    last = bound("gate1", "gate2", videos=NodeSource(node="gate1", key="id"), texts=NodeSource(node="gate2", key="id"))
    last.edge_filters = {"gate1": only("v"), "gate2": only("t")}
    nodes = [node("a"), node("gate1", "a"), node("gate2", "a"), last]

    assert bind(FakeStore({0: found}), nodes, input_artifact_id="v1") == {"videos": "v1", "texts": ["t1", "t2"]}
    assert bind(FakeStore({0: found}), nodes, input_artifact_id="t2") == {"videos": "v1", "texts": "t2"}


def test_a_selecting_edge_offers_the_input_only_when_it_chose_it() -> None:
    store = FakeStore({0: [art("small", file_size=1), art("large", file_size=9)]})
    last = bound("a", "gate", x=NodeSource(node="gate", key="id"))
    last.edge_filters = {"gate": LARGEST}
    nodes = [node("a"), node("gate", "a"), last]

    assert bind(store, nodes, input_artifact_id="small") == {"x": "large"}
    assert bind(store, nodes, input_artifact_id="large") == {"x": "large"}


def test_when_the_input_is_gone_its_bindings_find_nothing() -> None:
    store = FakeStore({0: [art("a1")]})

    assert bind(store, [node("a"), bound("a", x=NodeSource(node="a", key="id"))], input_artifact_id="gone") == {
        "x": None
    }


@pytest.mark.parametrize(
    ("artifact_id", "expected"),
    [("x0", {"x": "x0", "gate": "x0", "y": None}), ("x7", {"x": "x7", "gate": "x7", "y": "y7"})],
)
def test_a_task_of_one_artifact_does_not_read_its_siblings(artifact_id: str, expected: dict[str, Any]) -> None:
    wide = {0: [art(f"x{i}", f"o{i}") for i in range(WIDTH)], 2: [art(f"y{i}", f"o{i}") for i in range(1, WIDTH)]}
    store = FakeStore(wide)
    bindings = {slug: NodeSource(node=slug, key="id") for slug in ("x", "gate", "y")}
    nodes = [node("x"), node("gate", "x"), node("y"), bound("x", "gate", "y", **bindings)]

    assert bind(store, nodes, input_artifact_id=artifact_id) == expected
    assert store.artifacts_read <= 2


# Against the engine


@dataclass(frozen=True)
class Case:
    nodes: list[DagNode]
    store: FakeStore
    passthrough: frozenset[int]


EDGE_FILTERS = st.sampled_from(
    [None, None, only("k"), LARGEST, EdgeFilter(rules=only("k").rules, select=ArtifactSelector.SMALLEST)]
)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """A small graph whose nodes hold some artifacts; the last node is the one that is looked at."""
    count = draw(st.integers(2, 6))
    nodes, artifacts = [], {}
    for index in range(count):
        earlier = [f"n{i}" for i in range(index)]
        least = 1 if index == count - 1 else 0
        chosen = draw(st.permutations(earlier))[: draw(st.integers(least, max(index, least)))] if earlier else []
        filters = {slug: found for slug in chosen if (found := draw(EDGE_FILTERS)) is not None}
        nodes.append(node(f"n{index}", *chosen, edge_filters=filters))
        artifacts[index] = [
            art(f"n{index}-{position}", origin, file_size=size, metadata={"kind": kind})
            for position, (origin, size, kind) in enumerate(
                draw(
                    st.lists(
                        st.tuples(st.sampled_from([None, "o1", "o2"]), st.integers(0, 2), st.sampled_from("kj")),
                        max_size=3,
                    )
                )
            )
        ]
    passthrough = frozenset(draw(st.sets(st.integers(0, count - 1))))
    return Case(nodes, FakeStore(artifacts), passthrough)


def route(case: Case, fan_mode: FanMode, depends_on: Sequence[str] | None = None) -> list[str]:
    """What the engine launches the last node with: artifact ids for SINGLE, origins for GROUPED."""
    last = case.nodes[-1].model_copy(update={"fan_mode": fan_mode})
    if depends_on is not None:
        last.depends_on = list(depends_on)
    nodes = [*case.nodes[:-1], last]
    passthrough_slugs = {nodes[index].plugin for index in case.passthrough}
    topology = RunTopology.build(nodes, passthrough_slugs.__contains__)
    return list(plan_node_launch(case.store, RUN, len(nodes) - 1, topology).items)  # type: ignore[arg-type]


def origin_of(case: Case, artifact_id: str) -> str | None:
    artifact = case.store.get_artifact_data(artifact_id)
    assert artifact is not None
    return artifact.origin_artifact_id


@given(cases())
def test_an_aggregate_sees_exactly_what_routing_chose(case: Case) -> None:
    task_input = build(case.store, case.nodes, passthrough_indices=case.passthrough)

    assert ids(task_input) == route(case, FanMode.SINGLE)


@given(cases())
def test_a_group_sees_exactly_what_routing_chose_for_it(case: Case) -> None:
    chosen = route(case, FanMode.SINGLE)

    for origin in route(case, FanMode.GROUPED):
        task_input = build(case.store, case.nodes, passthrough_indices=case.passthrough, origin_artifact_id=origin)
        expected = [found for found in chosen if origin_of(case, found) in (origin, None)]
        assert sorted(ids(task_input)) == sorted(expected)


@given(cases())
def test_a_task_of_one_artifact_is_bound_to_what_each_edge_offers_it(case: Case) -> None:
    last = case.nodes[-1]
    last.bindings = {slug: NodeSource(node=slug, key="id") for slug in last.depends_on}

    for artifact_id in route(case, FanMode.SINGLE):
        data = bind(case.store, case.nodes, passthrough_indices=case.passthrough, input_artifact_id=artifact_id)
        origin = origin_of(case, artifact_id)
        for slug in last.depends_on:
            offered = route(case, FanMode.SINGLE, [slug])
            if artifact_id in offered:
                offered = [artifact_id]
            elif origin is not None:
                offered = [found for found in offered if origin_of(case, found) in (origin, None)]
            found = data[slug] if isinstance(data[slug], list) else [data[slug]] if data[slug] else []
            assert sorted(found) == sorted(offered)

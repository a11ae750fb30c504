"""Pipelines from graphs of networkx, and back."""

import json
import sys
from typing import Any

import networkx as nx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dagabaaz_celery.constants import ArtifactSelector, FanMode, FilterOperator
from dagabaaz_celery.errors import ConfigurationError, PipelineError
from dagabaaz_celery.models import ConfigSource, DagNode, EdgeFilter, FilterRule, RuntimeSource
from dagabaaz_celery.pipeline import Pipeline

VIDEO = EdgeFilter(rules=[FilterRule(field="file_type", operator=FilterOperator.EQ, value="video")])


def test_a_graph_of_names_is_a_pipeline_of_the_plugins_so_called():
    graph = nx.DiGraph([("fetch", "resize"), ("fetch", "label"), ("resize", "album"), ("label", "album")])

    pipeline = Pipeline.from_networkx(graph, name="photos")

    assert pipeline == Pipeline(
        "photos",
        nodes=[
            DagNode(slug="fetch", plugin="fetch"),
            DagNode(slug="resize", plugin="resize", depends_on=["fetch"]),
            DagNode(slug="label", plugin="label", depends_on=["fetch"]),
            DagNode(slug="album", plugin="album", depends_on=["resize", "label"]),
        ],
    )


def test_attributes_are_the_nodes_fields_and_the_edges_filters():
    graph = nx.DiGraph(name="media", description="Films", default_input={"n": 1}, version=3, edge_default={})
    graph.add_node("source", plugin="fetch", options={"queue": "io"})
    graph.add_node(7, slug="video", plugin="transcode", fan_mode="grouped", scatter=True, bindings={
        "quality": RuntimeSource(key="quality"), "codec": {"source": "config", "value": "av1"},
    })  # fmt: skip
    graph.add_edge("source", 7, edge_filter=VIDEO)
    graph.add_edge("source", ("a", 1), edge_filter=None)
    graph.add_edge(7, ("a", 1), edge_filter={"select": "largest"})
    graph.nodes["a", 1].update(slug="last", plugin="join", on_lost="crash")

    pipeline = Pipeline.from_networkx(graph, description="Short films")

    source, video, last = pipeline.nodes
    assert (pipeline.name, pipeline.description, pipeline.version) == ("media", "Short films", 3)
    assert pipeline.default_input == {"n": 1}
    assert (source.slug, source.plugin, source.options) == ("source", "fetch", {"queue": "io"})
    assert (video.slug, video.fan_mode, video.scatter) == ("video", FanMode.GROUPED, True)
    assert video.bindings == {"quality": RuntimeSource(key="quality"), "codec": ConfigSource(value="av1")}
    assert video.edge_filters == {"source": VIDEO}
    assert (last.depends_on, last.on_lost) == (["source", "video"], "crash")
    assert last.edge_filters == {"video": EdgeFilter(select=ArtifactSelector.LARGEST)}


def test_numbers_are_slugs_too():
    pipeline = Pipeline.from_networkx(nx.DiGraph([(1, 2)]), name="numbers")
    assert [(node.slug, node.plugin, node.depends_on) for node in pipeline.nodes] == [("1", "1", []), ("2", "2", ["1"])]


# -- there and back


NAMES = st.text("abcXYZ_09", min_size=1, max_size=8)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | NAMES,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(NAMES, inner, max_size=2),
    max_leaves=4,
)
RULES = st.builds(FilterRule, field=NAMES, operator=st.sampled_from(FilterOperator), value=NAMES | st.lists(NAMES))
FILTERS = st.builds(EdgeFilter, rules=st.lists(RULES, max_size=2), select=st.none() | st.sampled_from(ArtifactSelector))
FIELDS = st.fixed_dictionaries(
    {"plugin": NAMES},
    optional={
        "name": st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=5),
        "fan_mode": st.sampled_from(FanMode),
        "config": st.dictionaries(NAMES, JSON, max_size=2),
        "bindings": st.dictionaries(NAMES, st.builds(ConfigSource, value=JSON), max_size=2),
        "options": st.fixed_dictionaries({}, optional={"queue": NAMES, "priority": st.integers(0, 9)}),
        "max_fan_out": st.none() | st.integers(1, 10**6),
        "scatter": st.booleans(),
        "on_lost": st.sampled_from([None, "rerun", "crash"]),
    },
)


@st.composite
def pipelines(draw: st.DrawFn) -> Pipeline:
    """Sound pipelines, whose nodes stand in any order."""
    slugs = [f"n{number}" for number in range(draw(st.integers(1, 7)))]
    nodes = []
    for place, slug in enumerate(slugs):
        depends_on = draw(st.lists(st.sampled_from(slugs[:place]), unique=True)) if place else []
        filters = {dependency: draw(FILTERS) for dependency in depends_on if draw(st.booleans())}
        nodes.append(DagNode(slug=slug, depends_on=depends_on, edge_filters=filters, **draw(FIELDS)))
    fields = draw(
        st.fixed_dictionaries(
            {}, optional={"description": NAMES, "version": st.integers(1, 99), "default_input": st.just({"n": [1]})}
        )
    )
    return Pipeline("p", nodes=draw(st.permutations(nodes)), **fields)


@given(pipelines())
def test_every_sound_pipeline_comes_back_the_same(pipeline: Pipeline):
    graph = pipeline.to_networkx()

    back = Pipeline.from_networkx(graph)

    assert back == pipeline
    assert back.to_dict() == pipeline.to_dict()
    assert list(graph.nodes) == [node.slug for node in pipeline.nodes]
    assert nx.is_directed_acyclic_graph(graph)
    # As the JSON of networkx's own, too, which keeps edges in an order of its own
    kept = json.loads(json.dumps(nx.node_link_data(graph, edges="edges")))
    again = Pipeline.from_networkx(nx.node_link_graph(kept, edges="edges"))
    assert [sort_dependencies(node) for node in again.nodes] == [sort_dependencies(node) for node in pipeline.nodes]


def sort_dependencies(node: DagNode) -> DagNode:
    return node.model_copy(update={"depends_on": sorted(node.depends_on)})


def test_a_graph_shares_nothing_with_its_pipeline():
    pipeline = Pipeline("p", nodes=[DagNode(slug="a", plugin="a", config={"list": [1]})])

    pipeline.to_networkx().nodes["a"]["config"]["list"].append(2)

    assert pipeline.nodes[0].config == {"list": [1]}


# -- what is refused


def refused(graph: Any, **given: Any) -> list[str]:
    with pytest.raises(PipelineError, match="The graph cannot be read as a pipeline") as caught:
        Pipeline.from_networkx(graph, **{"name": "p", **given})
    return caught.value.problems


def test_every_problem_is_told_at_once():
    graph = nx.DiGraph()
    graph.add_node("a", plugn="x", depends_on=["b"])
    graph.add_edge("a", "b", weight=3)
    graph.add_edge("b", "a")
    graph.add_edge("c", "c")

    found = refused(graph)

    assert [problem.split(";")[0] for problem in found] == [
        "node 'a': unknown attribute 'plugn'",
        "node 'a': the attribute 'depends_on' is what edges say: add edges, with edge_filter where needed",
        "edge 'a' -> 'b': unknown attribute 'weight'",
        "node 'c': depends on itself: remove it from depends_on",
        "nodes wait for each other in a cycle, a -> b -> a: remove one of these dependencies",
        "no node can start: each depends on another",
    ]
    assert "did you mean plugin?" in found[0]
    assert "known are edge_filter" in found[2]


@pytest.mark.parametrize(
    ("graph", "said"),
    [
        (nx.Graph([("a", "b")]), ["undirected"]),
        (nx.MultiDiGraph([("a", "b"), ("a", "b")]), ["a multigraph"]),
        (nx.MultiGraph([("a", "b")]), ["undirected", "a multigraph"]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_graph_of_another_kind_is_refused_with_what_is_wrong_with_its_nodes(graph: Any, said: list[str]):
    graph.add_node("a", colour="red")

    found = refused(graph)

    assert len(found) == len(said) + 1
    assert all(word in problem for word, problem in zip(said, found, strict=False))
    assert "node 'a': unknown attribute 'colour'" in found[-1]


def test_attributes_of_a_wrong_type_are_refused_by_their_path():
    graph = nx.DiGraph()
    graph.add_node("a", fan_mode="singel", slug=[1], nonsense=1)
    graph.add_edge("a", "b", edge_filter="video")

    found = refused(graph, versoin=1)

    assert "unknown attribute 'nonsense'" in found[0]
    assert any(problem.startswith("nodes[0].fan_mode: one of") for problem in found)
    assert any(problem.startswith("nodes[1].edge_filters.a: ") for problem in found)
    assert any(problem.startswith("versoin: unknown field; did you mean version?") for problem in found)


def test_what_no_expression_can_name_is_no_slug_and_two_nodes_have_two():
    graph = nx.DiGraph()
    graph.add_nodes_from([("a", 1), 1, "1"])

    assert [problem.split(":")[0] for problem in refused(graph)] == ["node '1'", "node \"('a', 1)\""]
    assert refused(nx.DiGraph(), name="") != []


def test_what_is_no_graph_is_refused():
    assert refused([("a", "b")]) == ["it is of type list: pass a networkx.DiGraph"]


def test_a_pipeline_that_is_no_sound_graph_is_not_drawn():
    with pytest.raises(PipelineError, match="no node has this slug"):
        Pipeline("p", nodes=[DagNode(slug="a", plugin="a", depends_on=["b"])]).to_networkx()


def test_without_networkx_the_extra_is_named(monkeypatch: pytest.MonkeyPatch):
    pipeline, graph = Pipeline("p", nodes=[DagNode(slug="a", plugin="a")]), nx.DiGraph()
    monkeypatch.setitem(sys.modules, "networkx", None)

    for ask in (pipeline.to_networkx, lambda: Pipeline.from_networkx(graph)):
        with pytest.raises(ConfigurationError, match=r'pip install "dagabaaz-celery\[networkx\]"'):
            ask()

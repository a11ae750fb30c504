"""Pipelines as graphs of networkx: an edge goes from a node to one that depends on it.

networkx is an extra, and imported where a graph is asked for.
"""

from collections.abc import Hashable, Iterable, Mapping
from typing import Any

from dagabaaz_celery.errors import ConfigurationError, PipelineError, format_problems, suggest_closest
from dagabaaz_celery.models import DagNode
from dagabaaz_celery.pipeline_formats import PipelineDocument, write_data

#: What the edges say.
_OF_EDGES = ("depends_on", "edge_filters")
_NODE_ATTRIBUTES = tuple(field for field in DagNode.model_fields if field not in _OF_EDGES)
_EDGE_ATTRIBUTE = "edge_filter"
#: Of the pipeline itself, kept as attributes of the graph.
_GRAPH_ATTRIBUTES = tuple(field for field in PipelineDocument.model_fields if field != "nodes")


def read_graph(graph: Any) -> tuple[dict[str, Any], list[str]]:
    """A pipeline's fields as a graph tells them, as plain data that is still to be checked; and what is wrong so far.

    Raises ConfigurationError without networkx, and PipelineError for what is no graph.
    """
    networkx = _import_networkx()
    if not isinstance(graph, networkx.Graph):
        problem = f"it is of type {type(graph).__name__}: pass a networkx.DiGraph"
        raise PipelineError(format_problems("The graph cannot be read as a pipeline", [problem]), [problem])
    fields = {field: graph.graph[field] for field in _GRAPH_ATTRIBUTES if field in graph.graph}
    slugs = {node: _make_slug(node, attributes) for node, attributes in graph.nodes(data=True)}
    problems = list(_find_wrong_kind(graph))
    edges_tell = not problems  # of a graph of another kind only the nodes can be looked at
    nodes = []
    for node, attributes in graph.nodes(data=True):
        problems += _find_unknown(f"node {slugs[node]!r}", attributes, _NODE_ATTRIBUTES)
        known = {name: attributes[name] for name in _NODE_ATTRIBUTES if name in attributes}
        edges = _read_edges(graph.pred[node], slugs) if edges_tell else {}
        nodes.append({"slug": slugs[node], "plugin": str(node), **known, **edges})
    for source, target, attributes in graph.edges(data=True) if edges_tell else ():
        problems += _find_unknown(f"edge {slugs[source]!r} -> {slugs[target]!r}", attributes, (_EDGE_ATTRIBUTE,))
    return {**fields, "nodes": nodes}, problems


def write_graph(document: PipelineDocument) -> Any:
    """A ``networkx.DiGraph`` of plain JSON data. Raises ConfigurationError without networkx.

    The document must be sound: every dependency is a node, and named once.
    """
    data = write_data(document)
    nodes: list[dict[str, Any]] = data.pop("nodes")
    graph = _import_networkx().DiGraph(**data)
    for node in nodes:
        graph.add_node(node["slug"], **{name: node[name] for name in _NODE_ATTRIBUTES if name in node})
        del graph.nodes[node["slug"]]["slug"]  # the node's own name
    for node in nodes:
        filters = node.get("edge_filters", {})
        for slug in node.get("depends_on", ()):
            graph.add_edge(slug, node["slug"], **({_EDGE_ATTRIBUTE: filters[slug]} if slug in filters else {}))
    return graph


def _import_networkx() -> Any:
    try:
        import networkx  # noqa: PLC0415  # an extra
    except ImportError as error:
        raise ConfigurationError(
            f"A pipeline as a graph needs networkx, which cannot be imported ({error}). Install the extra: "
            'pip install "dagabaaz-celery[networkx]".'
        ) from error
    return networkx


def _find_wrong_kind(graph: Any) -> Iterable[str]:
    if not graph.is_directed():
        yield "the graph is undirected, so that no edge says which node comes first: make a networkx.DiGraph"
    if graph.is_multigraph():
        yield "the graph is a multigraph, and a node depends on another once: make a networkx.DiGraph"


def _make_slug(node: Hashable, attributes: Mapping[str, Any]) -> str:
    given = attributes.get("slug")
    return given if isinstance(given, str) and given else str(node)  # what else it may be is refused with its field


def _read_edges(incoming: Mapping[Hashable, Mapping[str, Any]], slugs: Mapping[Hashable, Any]) -> dict[str, Any]:
    """What a node depends on, in the order in which its edges were added."""
    filters = {
        slugs[source]: attributes[_EDGE_ATTRIBUTE]
        for source, attributes in incoming.items()
        if attributes.get(_EDGE_ATTRIBUTE) is not None
    }
    return {"depends_on": [slugs[source] for source in incoming], "edge_filters": filters}


def _find_unknown(where: str, attributes: Mapping[str, Any], known: Iterable[str]) -> Iterable[str]:
    for name in attributes:
        if name in _OF_EDGES:
            yield f"{where}: the attribute {name!r} is what edges say: add edges, with {_EDGE_ATTRIBUTE} where needed"
        elif name not in known:
            yield (
                f"{where}: unknown attribute {name!r}{suggest_closest(str(name), known)}; known are {', '.join(known)}"
            )

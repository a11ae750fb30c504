"""The input of one task, as a worker assembles it: what routing chose for the task, then the bindings over it.

Routing looked at each edge of the node on its own: the nearest artifacts upstream, then the edge's filter. The same
is done here, with one difference: a task of one group must not read the artifacts of all groups, because a fan-in
over n origins would then read n times n. Reading only the group gives the same answer where the filter looks at one
artifact at a time; where it selects one of all, the whole edge is read.
"""

from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dagabaaz_celery.bindings import (
    any_binding_requires_run_input,
    extract_node_indices_from_bindings,
    flatten_artifact,
    get_run_input_key,
    resolve_binding,
)
from dagabaaz_celery.constants import MAX_BFS_DEPTH
from dagabaaz_celery.filter import filter_artifacts, filter_artifacts_by_origin
from dagabaaz_celery.graph import (
    bfs_collect,
    build_slug_to_index_map,
    rekey_edge_filters_by_index,
    resolve_dependency_indices,
)
from dagabaaz_celery.models import DagNode, EdgeFilter, ExpressionError, InputBinding, RuntimeSource, TaskArtifact
from dagabaaz_celery.store import TaskInputStore


def build_task_input(
    store: TaskInputStore,
    *,
    run_id: str,
    node_index: int,
    input_artifact_id: str | None,
    nodes: Sequence[DagNode],
    deps: Sequence[Sequence[int]] | None = None,
    origin_artifact_id: str | None = None,
    passthrough_indices: Container[int] | None = None,
) -> dict[str, Any]:
    """The data of one task before bindings.

    A task of one artifact gets its data in one level, or nothing when it is gone; a root's gets a copy of the run
    input; any other ``{"artifacts": [...]}``: those of its origin and the broadcast ones when ``origin_artifact_id``
    names a group, else all. ``deps`` is computed from the nodes when not given; ``passthrough_indices`` are the nodes
    that an artifact search may walk through (None: all).
    """
    if input_artifact_id is not None:
        artifact = store.get_artifact_data(input_artifact_id)
        return {} if artifact is None else flatten_artifact(artifact)
    edges = _open_edges(
        store, run_id=run_id, node_index=node_index, nodes=nodes, deps=deps, passthrough_indices=passthrough_indices
    )
    if not edges.dependencies and not nodes[node_index].depends_on:
        return dict(store.get_run_input(run_id))
    artifacts = _collect_over_edges(edges, origin_artifact_id)
    return {"artifacts": [artifact.to_input_dict() for artifact in artifacts]}


def resolve_task_bindings(
    store: TaskInputStore,
    *,
    run_id: str,
    node_index: int,
    nodes: Sequence[DagNode],
    input_data: dict[str, Any],
    node_config: Mapping[str, Any] | None = None,
    deps: Sequence[Sequence[int]] | None = None,
    input_artifact_id: str | None = None,
    origin_artifact_id: str | None = None,
    passthrough_indices: Container[int] | None = None,
) -> None:
    """Lay the node's bindings over ``input_data``, in place; only what they name is read.

    A dependency offers what its edge offers to this task. To a task of one artifact that is the artifact alone, from
    the dependency that it came from; from another, whatever goes back to the same origin, or everything when the
    artifact has no origin. ``node_config`` is the node's own when not given.

    Raises ExpressionError, naming node and field.
    """
    node = nodes[node_index]
    slug_to_index = build_slug_to_index_map(nodes)
    named = extract_node_indices_from_bindings(node.bindings, slug_to_index)
    edges = _open_edges(
        store, run_id=run_id, node_index=node_index, nodes=nodes, deps=deps, passthrough_indices=passthrough_indices
    )
    dependencies = [dependency for dependency in edges.dependencies if dependency in named]
    artifacts_by_node = _offer_artifacts(edges, dependencies, input_artifact_id, origin_artifact_id)
    run_input = store.get_run_input(run_id) if any_binding_requires_run_input(node.bindings) else {}
    config = node.config if node_config is None else node_config
    for name, binding in node.bindings.items():
        try:
            input_data[name] = resolve_binding(
                _name_run_input_key(binding, name), artifacts_by_node, slug_to_index, run_input, config
            )
        except ExpressionError as error:
            raise ExpressionError(f"Node {node.slug!r}, binding {name!r}: {error}") from error


def collect_upstream_task_artifacts_bfs(
    store: TaskInputStore,
    run_id: str,
    dependency_indices: Sequence[int],
    dep_adjacency: Sequence[Sequence[int]],
    *,
    passthrough_indices: Container[int] | None = None,
    max_depth: int = MAX_BFS_DEPTH,
) -> list[TaskArtifact]:
    """``bfs_collect`` over the worker's view of artifacts."""
    return bfs_collect(
        store.get_task_artifacts_by_node_indices,
        run_id,
        dependency_indices,
        dep_adjacency,
        passthrough_indices=passthrough_indices,
        max_depth=max_depth,
    )


def _name_run_input_key(binding: InputBinding, name: str) -> InputBinding:
    if not isinstance(binding, RuntimeSource):
        return binding
    return binding.model_copy(update={"key": get_run_input_key(binding, name)})


@dataclass(frozen=True, slots=True)
class _Found:
    """An artifact, and what tells it from all others: its node, its origin, its rank among those with both."""

    node_index: int
    rank: int
    artifact: TaskArtifact

    @property
    def identity(self) -> tuple[int, str | None, int]:
        return self.node_index, self.origin_artifact_id, self.rank

    @property
    def file_name(self) -> str | None:
        return self.artifact.file_name

    @property
    def file_size(self) -> int | None:
        return self.artifact.file_size

    @property
    def mime_type(self) -> str | None:
        return self.artifact.mime_type

    @property
    def metadata(self) -> Mapping[str, Any]:
        return self.artifact.metadata

    @property
    def origin_artifact_id(self) -> str | None:
        return self.artifact.origin_artifact_id


@dataclass(frozen=True, slots=True)
class _Edges:
    """The edges that lead to one node, with what it takes to search along them; reads a whole node at most once."""

    store: TaskInputStore
    run_id: str
    deps: Sequence[Sequence[int]]
    dependencies: Sequence[int]
    filters: Mapping[int, EdgeFilter]
    passthrough_indices: Container[int] | None
    known: dict[int, list[_Found]] = field(default_factory=dict)

    def walks_through(self, node_index: int) -> bool:
        return self.passthrough_indices is None or node_index in self.passthrough_indices

    def read_nodes(self, node_indices: Sequence[int]) -> list[_Found]:
        """All artifacts of these nodes, in the store's order."""
        unread = [index for index in node_indices if index not in self.known]
        if len(unread) == 1:
            artifacts = self.store.get_task_artifacts_by_node_indices(self.run_id, unread)
            self.known[unread[0]] = _rank(unread[0], artifacts)
        elif unread:
            by_node = self.store.get_artifacts_partitioned(self.run_id, unread)
            self.known.update((index, _rank(index, by_node.get(index, ()))) for index in unread)
        return [found for index in sorted(node_indices) for found in self.known[index]]

    def read_group(self, node_indices: Sequence[int], origin_id: str) -> list[_Found]:
        """The artifacts of these nodes that a group gets.

        When there are none and the search might walk on, all of them: other groups' artifacts end a search too.
        """
        group: list[_Found] = []
        for index in sorted(node_indices):
            group += _rank(index, self.store.get_grouped_artifacts(self.run_id, [index], origin_id))
            group += _rank(index, self.store.get_broadcast_artifacts(self.run_id, [index]))
        if group or not any(map(self.walks_through, node_indices)):
            return group
        return self.read_nodes(node_indices)


def _open_edges(
    store: TaskInputStore,
    *,
    run_id: str,
    node_index: int,
    nodes: Sequence[DagNode],
    deps: Sequence[Sequence[int]] | None,
    passthrough_indices: Container[int] | None,
) -> _Edges:
    deps = resolve_dependency_indices(nodes) if deps is None else deps
    filters = rekey_edge_filters_by_index(nodes[node_index], build_slug_to_index_map(nodes))
    return _Edges(store, run_id, deps, deps[node_index], filters, passthrough_indices)


def _rank(node_index: int, artifacts: Iterable[TaskArtifact]) -> list[_Found]:
    ranks: Counter[str | None] = Counter()
    found = []
    for artifact in artifacts:
        found.append(_Found(node_index, ranks[artifact.origin_artifact_id], artifact))
        ranks[artifact.origin_artifact_id] += 1
    return found


def _collect_over_edges(edges: _Edges, origin_id: str | None) -> list[TaskArtifact]:
    """What all edges offer, each artifact once: two gates may both lead to the node that made it."""
    if origin_id is None:
        edges.read_nodes(edges.dependencies)  # one read for all, kept for the searches below
    found: dict[tuple[int, str | None, int], TaskArtifact] = {}
    for dependency in edges.dependencies:
        for item in _find_on_edge(edges, dependency, origin_id):
            found.setdefault(item.identity, item.artifact)
    return list(found.values())


def _find_on_edge(edges: _Edges, dependency: int, origin_id: str | None) -> list[_Found]:
    """What one edge offers, all of it or to one group."""
    edge_filter = edges.filters.get(dependency)
    selects_one_of_all = edge_filter is not None and edge_filter.select is not None
    found = _search(edges, dependency, None if selects_one_of_all else origin_id)
    if edge_filter is not None:
        found = filter_artifacts(found, edge_filter)
    return found if origin_id is None else filter_artifacts_by_origin({dependency: found}, origin_id)[dependency]


def _search(edges: _Edges, dependency: int, origin_id: str | None, known: _Found | None = None) -> list[_Found]:
    """The nearest artifacts from a dependency upwards, those of one group where that is enough to know.

    A level with the node of ``known`` is not read: the search ends there, with ``known`` alone.
    """

    def fetch(_run_id: str, node_indices: Sequence[int]) -> list[_Found]:
        if known is not None and known.node_index in node_indices:
            return [known]
        return edges.read_nodes(node_indices) if origin_id is None else edges.read_group(node_indices, origin_id)

    return bfs_collect(fetch, edges.run_id, [dependency], edges.deps, passthrough_indices=edges.passthrough_indices)


# Bindings --------------------------------------------------------------------------------------------------------


def _offer_artifacts(
    edges: _Edges, dependencies: Sequence[int], input_artifact_id: str | None, origin_id: str | None
) -> dict[int, list[TaskArtifact]]:
    """What each of these dependencies offers to the bindings of one task."""
    if not dependencies:
        return {}
    if input_artifact_id is not None:
        source = _find_input(edges, input_artifact_id)
        found = {d: _find_beside_input(edges, d, source) if source else [] for d in dependencies}
    else:
        if origin_id is None:
            edges.read_nodes(dependencies)
        found = {d: _find_on_edge(edges, d, origin_id) for d in dependencies}
    return {dependency: [item.artifact for item in items] for dependency, items in found.items()}


def _find_input(edges: _Edges, artifact_id: str) -> _Found | None:
    artifact = edges.store.get_artifact_data(artifact_id)
    producer = edges.store.get_artifact_producing_node(artifact_id)
    return None if artifact is None or producer is None else _Found(producer, 0, artifact)


def _find_beside_input(edges: _Edges, dependency: int, source: _Found) -> list[_Found]:
    """What an edge offers to a task of one artifact: that artifact, if it came this way, else what belongs to it."""
    if _came_over_edge(edges, dependency, source):
        return [source]
    return _find_on_edge(edges, dependency, source.origin_artifact_id)


def _came_over_edge(edges: _Edges, dependency: int, source: _Found) -> bool:
    """Whether the edge leads to the input's node and lets the input through."""
    if dependency != source.node_index and not edges.walks_through(dependency):
        return False
    if _search(edges, dependency, source.origin_artifact_id, known=source) != [source]:
        return False
    edge_filter = edges.filters.get(dependency)
    if edge_filter is None:
        return True
    if edge_filter.select is None:
        return bool(filter_artifacts([source], edge_filter))
    selected = _find_on_edge(edges, dependency, None)
    return any(item.node_index == source.node_index and item.artifact == source.artifact for item in selected)

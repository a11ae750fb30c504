"""Graph questions: which nodes are roots, which are ready, and where the nearest artifacts upstream are."""

import itertools
import logging
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from typing import TypeVar

from dagabaaz_celery.constants import MAX_BFS_DEPTH
from dagabaaz_celery.models import DagArtifact, DagNode, EdgeFilter
from dagabaaz_celery.store import DagStore

logger = logging.getLogger(__name__)

Item = TypeVar("Item")


def assign_slugs(nodes: Sequence[DagNode]) -> None:
    """Fill missing slugs in place as ``<plugin>_<n>``, n counting from 1 and skipping names in use."""
    used = {node.slug for node in nodes}
    for node in nodes:
        if not node.slug:
            node.slug = next(slug for n in itertools.count(1) if (slug := f"{node.plugin}_{n}") not in used)
            used.add(node.slug)


def build_slug_to_index_map(nodes: Sequence[DagNode]) -> dict[str, int]:
    """Node index by slug; nodes that have no slug yet are left out."""
    return {node.slug: index for index, node in enumerate(nodes) if node.slug}


def resolve_dependency_indices(nodes: Sequence[DagNode]) -> list[list[int]]:
    """For each node the indices it depends on, in ``depends_on`` order, each once.

    An unknown slug is logged and dropped: validation refuses it before a run, and a running engine must not crash.
    """
    slug_to_index = build_slug_to_index_map(nodes)
    for node in nodes:
        _log_unknown_slugs(node, node.depends_on, slug_to_index)
    return [[slug_to_index[slug] for slug in dict.fromkeys(node.depends_on) if slug in slug_to_index] for node in nodes]


def find_root_nodes(nodes: Sequence[DagNode]) -> list[int]:
    """Indices of the nodes that a run begins with, ascending: without dependencies, and no finalisers."""
    deps = resolve_dependency_indices(nodes)
    return [index for index, node in enumerate(nodes) if not deps[index] and node.run_on is None]


def rekey_edge_filters_by_index(node: DagNode, slug_to_index: Mapping[str, int]) -> dict[int, EdgeFilter]:
    """The node's edge filters by dependency index instead of slug; an unknown slug is logged and dropped."""
    _log_unknown_slugs(node, node.edge_filters, slug_to_index)
    return {slug_to_index[slug]: found for slug, found in node.edge_filters.items() if slug in slug_to_index}


def build_children(deps: Sequence[Sequence[int]]) -> list[list[int]]:
    """For each node the indices of the nodes that depend on it, ascending."""
    children: list[list[int]] = [[] for _ in deps]
    for index in range(len(deps)):
        for dependency in deps[index]:
            children[dependency].append(index)
    return children


def find_descendants(children: Sequence[Sequence[int]], starts: Iterable[int]) -> set[int]:
    """Every node that depends on one of these, directly or through others; of the starts themselves only such."""
    found: set[int] = set()
    waiting = list(starts)
    while waiting:
        new = [child for child in children[waiting.pop()] if child not in found]
        found.update(new)
        waiting += new
    return found


def measure_depths(deps: Sequence[Sequence[int]]) -> list[int]:
    """For each node the length of the longest path that leads to it: 0 for a root. What is in a cycle has depth 0."""
    children = build_children(deps)
    missing = [len(dependencies) for dependencies in deps]
    depths = [0] * len(deps)
    waiting = [index for index, count in enumerate(missing) if not count]
    while waiting:
        index = waiting.pop()
        for child in children[index]:
            depths[child] = max(depths[child], depths[index] + 1)
            missing[child] -= 1
            if not missing[child]:
                waiting.append(child)
    return depths


def find_ready_nodes(
    deps: Sequence[Sequence[int]],
    completed: Container[int],
    launched: Container[int],
    *,
    children: Sequence[Sequence[int]] | None = None,
    changed_indices: Iterable[int] | None = None,
) -> list[int]:
    """Nodes that are not launched and whose dependencies are all completed, ascending.

    With ``children`` and ``changed_indices`` only the children of what changed are looked at, so that the cost
    follows the change and not the graph.
    """
    candidates: Iterable[int] = range(len(deps))
    if children is not None and changed_indices is not None:
        candidates = sorted({child for changed in changed_indices for child in children[changed]})
    return [
        index
        for index in candidates
        if index not in launched and all(dependency in completed for dependency in deps[index])
    ]


def bfs_collect(
    fetch: Callable[[str, list[int]], Sequence[Item]],
    run_id: str,
    dependency_indices: Sequence[int],
    dep_adjacency: Sequence[Sequence[int]],
    *,
    passthrough_indices: Container[int] | None = None,
    max_depth: int = MAX_BFS_DEPTH,
) -> list[Item]:
    """What the nearest level upstream holds: the given nodes, else the dependencies of the passthrough ones, and so on.

    Only passthrough nodes are walked through (None: every node): the empty output of any other node is its answer.
    More than ``max_depth`` levels above the given nodes the search gives up with a log line and an empty list.
    Callers go edge by edge, so that what one edge finds never hides what another would.
    """
    level = list(dict.fromkeys(dependency_indices))
    visited = set(level)
    for _ in range(max_depth + 1):
        if not level:
            return []
        items = fetch(run_id, level)
        if items:
            return list(items)
        level = _find_next_level(level, visited, dep_adjacency, passthrough_indices)
        visited.update(level)
    if level:
        logger.warning("run %s: no artifacts within %d levels of nodes %s", run_id, max_depth, list(dependency_indices))
    return []


def collect_upstream_artifacts_bfs(
    store: DagStore,
    run_id: str,
    dependency_indices: Sequence[int],
    dep_adjacency: Sequence[Sequence[int]],
    *,
    passthrough_indices: Container[int] | None = None,
    max_depth: int = MAX_BFS_DEPTH,
) -> list[DagArtifact]:
    """``bfs_collect`` over the store's routing view of artifacts."""
    return bfs_collect(
        store.get_artifacts_by_node_indices,
        run_id,
        dependency_indices,
        dep_adjacency,
        passthrough_indices=passthrough_indices,
        max_depth=max_depth,
    )


def _log_unknown_slugs(node: DagNode, slugs: Iterable[str], slug_to_index: Mapping[str, int]) -> None:
    for slug in slugs:
        if slug not in slug_to_index:
            logger.warning("node %r names node %r, which the pipeline does not have: ignored", node.slug, slug)


def _find_next_level(
    level: Sequence[int],
    visited: Container[int],
    dep_adjacency: Sequence[Sequence[int]],
    passthrough_indices: Container[int] | None,
) -> list[int]:
    walked = [index for index in level if passthrough_indices is None or index in passthrough_indices]
    found = dict.fromkeys(dependency for index in walked for dependency in dep_adjacency[index])
    return [index for index in found if index not in visited]

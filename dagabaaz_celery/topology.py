"""The shape of a run's pipeline, computed once and shared by everything that advances the run."""

import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dagabaaz_celery import graph
from dagabaaz_celery.models import DagNode, EdgeFilter

ResolvePassthrough = Callable[[str], bool]
"""Tells by a plugin's name whether its nodes only route, so that an artifact search may look through them."""


@dataclass(frozen=True, slots=True)
class RunTopology:
    """What the engine asks of a pipeline, each answer by node index.

    ``deps`` and ``children`` hold indices, ``edge_filters`` the filters by dependency index, ``roots`` the nodes
    without dependencies. Finalisers (nodes with ``run_on``), which nothing launches before the run's end, are neither
    children nor roots. Nothing here changes once built: runs and threads share it.
    """

    nodes: list[DagNode]
    deps: list[list[int]]
    slug_to_index: dict[str, int]
    passthrough_indices: frozenset[int]
    children: list[list[int]]
    edge_filters: list[dict[int, EdgeFilter]]
    roots: list[int]
    finalisers: frozenset[int]

    @classmethod
    def build(cls, nodes: Sequence[DagNode], resolve_passthrough: ResolvePassthrough) -> "RunTopology":
        """The topology of these nodes, whose slugs are assigned."""
        slug_to_index = graph.build_slug_to_index_map(nodes)
        deps = graph.resolve_dependency_indices(nodes)
        finalisers = frozenset(index for index, node in enumerate(nodes) if node.run_on is not None)
        children = [[child for child in found if child not in finalisers] for found in graph.build_children(deps)]
        return cls(
            nodes=list(nodes),
            deps=deps,
            slug_to_index=slug_to_index,
            passthrough_indices=frozenset(i for i, node in enumerate(nodes) if resolve_passthrough(node.plugin)),
            children=children,
            edge_filters=[graph.rekey_edge_filters_by_index(node, slug_to_index) for node in nodes],
            roots=graph.find_root_nodes(nodes),
            finalisers=finalisers,
        )


class _TopologyCache:
    """Topologies by key; past its size the one that came first goes first."""

    def __init__(self, max_entries: int) -> None:
        self.reset_lock()
        self._max_entries = max_entries
        self._entries: dict[str, RunTopology] = {}

    def reset_lock(self) -> None:
        """A forked child starts with a lock that nobody holds."""
        self._lock = threading.Lock()

    def get(self, key: str) -> RunTopology | None:
        with self._lock:
            return self._entries.get(key)

    def put_if_absent(self, key: str, topology: RunTopology) -> RunTopology:
        """What the cache now holds for the key: the first comer's topology."""
        with self._lock:
            kept = self._entries.setdefault(key, topology)
            self._drop_oldest()
            return kept

    def remove(self, key: str) -> None:
        with self._lock:
            self._entries.pop(key, None)

    def resize(self, max_entries: int) -> None:
        with self._lock:
            self._max_entries = max_entries
            self._drop_oldest()

    def _drop_oldest(self) -> None:
        while len(self._entries) > self._max_entries:
            del self._entries[next(iter(self._entries))]


_cache = _TopologyCache(max_entries=500)
os.register_at_fork(after_in_child=_cache.reset_lock)


def get_or_build(
    run_id: str, fetch_nodes: Callable[[], Sequence[DagNode] | None], resolve_passthrough: ResolvePassthrough
) -> RunTopology | None:
    """The cached topology under this key, else one built from ``fetch_nodes()``; None when that gives None.

    ``run_id`` may be any key that fixes the nodes: apps use a definition's, so that its runs share one entry. Nodes
    are fetched outside the cache's lock, so that a slow store holds up nobody else; two threads that miss at once
    may both fetch, and both get the same topology.
    """
    found = _cache.get(run_id)
    if found is not None:
        return found
    nodes = fetch_nodes()
    if nodes is None:
        return None
    return _cache.put_if_absent(run_id, RunTopology.build(nodes, resolve_passthrough))


def evict(run_id: str) -> None:
    """Forget the topology under this key, if there is one."""
    _cache.remove(run_id)


def configure_cache_size(max_entries: int) -> None:
    """Set how many topologies are kept (default 500); shrinking drops the oldest at once.

    Raises ValueError for fewer than one.
    """
    if max_entries < 1:
        raise ValueError(f"The topology cache cannot hold {max_entries} entries: give it room for at least 1.")
    _cache.resize(max_entries)

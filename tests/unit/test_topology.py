"""Topology: what is precomputed of a pipeline, and the cache that shares it."""

import threading
from collections.abc import Iterator

import pytest

from dagabaaz_celery import topology
from dagabaaz_celery.models import DagNode, EdgeFilter
from dagabaaz_celery.topology import RunTopology


@pytest.fixture(autouse=True)
def empty_cache() -> Iterator[None]:
    """Shrinking to one entry and evicting that one empties the cache; its default size comes back afterwards."""
    yield
    topology.configure_cache_size(1)
    topology.get_or_build("last", list, never)
    topology.evict("last")
    topology.configure_cache_size(500)


def never(plugin: str) -> bool:
    return False


def nodes_named(*slugs: str) -> list[DagNode]:
    return [DagNode(slug=slug, plugin="work") for slug in slugs]


def get(key: str, *slugs: str) -> RunTopology | None:
    return topology.get_or_build(key, lambda: nodes_named(*slugs), never)


def test_build_answers_by_node_index():
    largest = EdgeFilter(select="largest")
    nodes = [
        DagNode(slug="a", plugin="fetch"),
        DagNode(slug="g", plugin="gate", depends_on=["a"]),
        DagNode(slug="b", plugin="merge", depends_on=["g", "a"], edge_filters={"a": largest}),
    ]

    built = RunTopology.build(nodes, lambda plugin: plugin == "gate")

    assert built.nodes == nodes
    assert built.deps == [[], [0], [1, 0]]
    assert built.children == [[1, 2], [2], []]
    assert built.slug_to_index == {"a": 0, "g": 1, "b": 2}
    assert built.passthrough_indices == {1}
    assert built.edge_filters == [{}, {}, {0: largest}]
    assert built.roots == [0]


def test_a_topology_cannot_be_changed():
    built = RunTopology.build(nodes_named("a"), never)

    with pytest.raises(AttributeError):
        built.nodes = []


def test_a_topology_is_built_once_for_a_key():
    first = get("key", "a")

    assert get("key", "other") is first


def test_keys_do_not_share_topologies():
    assert get("one", "a") is not get("two", "a")


def test_without_nodes_there_is_no_topology_and_nothing_is_cached():
    assert topology.get_or_build("key", lambda: None, never) is None
    assert get("key", "a") is not None


def test_an_evicted_topology_is_built_again():
    first = get("key", "a")

    topology.evict("key")

    assert get("key", "a") is not first


def test_evicting_an_unknown_key_does_nothing():
    topology.evict("unknown")


def test_past_its_size_the_cache_drops_what_came_first():
    topology.configure_cache_size(2)
    first, second = get("1", "a"), get("2", "a")
    get("1", "a")  # being used does not make it younger
    get("3", "a")

    assert get("2", "a") is second
    assert get("1", "a") is not first


def test_by_default_five_hundred_topologies_are_kept():
    first = get("0", "a")
    for number in range(1, 500):
        get(str(number), "a")
    assert get("0", "a") is first

    get("500", "a")

    assert get("0", "a") is not first


def test_shrinking_the_cache_drops_the_oldest_at_once():
    oldest, newest = get("1", "a"), get("2", "a")

    topology.configure_cache_size(1)
    topology.configure_cache_size(10)

    assert get("2", "a") is newest
    assert get("1", "a") is not oldest


@pytest.mark.parametrize("size", [0, -1])
def test_a_cache_without_room_is_refused(size: int):
    with pytest.raises(ValueError, match="at least 1"):
        topology.configure_cache_size(size)


def test_a_slow_fetch_holds_up_nobody_and_the_first_built_is_what_all_get():
    """While one thread fetches the nodes of a key, others use the cache, this very key included."""
    fetching, others_done = threading.Event(), threading.Event()
    results: list[RunTopology | None] = []

    def fetch_slowly() -> list[DagNode]:
        fetching.set()
        assert others_done.wait(10)
        return nodes_named("slow")

    slow = threading.Thread(target=lambda: results.append(topology.get_or_build("key", fetch_slowly, never)))
    slow.start()
    assert fetching.wait(10)
    get("other key", "a")
    quick = get("key", "quick")
    others_done.set()
    slow.join(10)

    assert results == [quick]
    assert results[0] is quick

"""What the engine does when a task completes, in small graphs and in large ones."""

from typing import Any

import pytest

from dagabaaz_celery.topology import RunTopology
from tests.benchmarks.micro.walks import Flat, Memory, Store, Walk, chain, layers, never

#: Name of a graph -> its nodes, and the completions after which it is measured: about half.
GRAPHS = {
    "chain of 10": (chain(10), 3),
    "chain of 1000": (chain(1000), 500),
    "5000 nodes": (layers(100, 49), 2500),
}


@pytest.mark.parametrize("store", [Flat, Memory])
@pytest.mark.parametrize("graph", GRAPHS)
def test_a_completion(benchmark: Any, graph: str, store: type[Store]) -> None:
    walk = Walk(*GRAPHS[graph], store)

    benchmark.pedantic(walk.step, setup=walk.ready, rounds=300, warmup_rounds=5)


@pytest.mark.parametrize("graph", GRAPHS)
def test_building_a_topology(benchmark: Any, graph: str) -> None:
    nodes, _ = GRAPHS[graph]

    benchmark(RunTopology.build, nodes, never)

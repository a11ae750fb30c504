"""Where the nodes of a graph are drawn: in layers by longest path, ordered so that few edges cross.

A layer's items stand along one axis, here called across; layers follow each other along the other. An edge that spans
layers gets a *bend* in each layer between, so that it is led round the nodes that stand there.
"""

import itertools
from bisect import bisect_right, insort
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from dagabaaz_celery.graph import measure_depths

#: Up to so many bends an edge is led round the nodes between; a graph with more is drawn with straight edges.
MAX_BENDS = 3_000
_ORDER_SWEEPS = 8
_PLACE_SWEEPS = 8


@dataclass(frozen=True)
class Layout:
    """``layers`` counts the layers; ``places`` has each node's layer and position across, its middle.

    ``routes`` has for each edge (from, to) the places that it goes through, ends included. ``length`` is the size
    across.
    """

    layers: int
    length: float
    places: list[tuple[int, float]]
    routes: dict[tuple[int, int], list[tuple[int, float]]]


def lay_out(deps: Sequence[Sequence[int]], last: Iterable[int], *, item: float, bend: float) -> Layout:
    """Places for a graph given as each node's dependencies.

    Nodes in ``last`` stand behind all others. ``item`` and ``bend`` are the room that a node and a bend take across.
    """
    depths = _assign_layers(deps, set(last))
    chains, total = _make_chains(deps, depths)
    layer_of = [*depths, *itertools.repeat(0, total - len(depths))]
    before: list[list[int]] = [[] for _ in range(total)]
    after: list[list[int]] = [[] for _ in range(total)]
    for chain in chains.values():
        for position, (one, two) in enumerate(itertools.pairwise(chain), start=1):
            if position < len(chain) - 1:
                layer_of[two] = layer_of[chain[0]] + position
            if layer_of[two] == layer_of[one] + 1:
                before[two].append(one)
                after[one].append(two)
    layers: list[list[int]] = [[] for _ in range(max(layer_of, default=-1) + 1)]
    for index in range(total):
        layers[layer_of[index]].append(index)
    layers = _order(layers, before, after)
    room = [item if index < len(deps) else bend for index in range(total)]
    across = _place(layers, before, after, room)
    spots = [(layer_of[index], across[index]) for index in range(total)]
    return Layout(
        layers=len(layers),
        length=max((across[index] + room[index] / 2 for index in range(total)), default=0.0),
        places=spots[: len(deps)],
        routes={edge: [spots[index] for index in chain] for edge, chain in chains.items()},
    )


def _assign_layers(deps: Sequence[Sequence[int]], last: set[int]) -> list[int]:
    depths = measure_depths(deps)
    if last:
        behind = max((depths[index] for index in range(len(deps)) if index not in last), default=-1) + 1
        first = min(depths[index] for index in last)
        depths = [behind + depth - first if index in last else depth for index, depth in enumerate(depths)]
    return depths


def _make_chains(deps: Sequence[Sequence[int]], depths: Sequence[int]) -> tuple[dict[tuple[int, int], list[int]], int]:
    """For each edge the items that it goes through, and the number of all items: nodes first, then bends."""
    edges = [(one, two) for two in range(len(deps)) for one in deps[two]]
    bends = {(one, two): max(0, depths[two] - depths[one] - 1) for one, two in edges}
    if sum(bends.values()) > MAX_BENDS:
        bends = dict.fromkeys(bends, 0)
    total = len(deps)
    chains = {}
    for one, two in edges:
        chains[one, two] = [one, *range(total, total + bends[one, two]), two]
        total += bends[one, two]
    return chains, total


def _order(layers: list[list[int]], before: Sequence[Sequence[int]], after: Sequence[Sequence[int]]) -> list[list[int]]:
    """Sort each layer by the barycentres of its neighbours, there and back; the order with the fewest crossings."""
    best, fewest = layers, _count_crossings(layers, after)
    for sweep in range(_ORDER_SWEEPS):
        if not fewest:
            break
        forth = sweep % 2 == 0
        layers = _sort_layers(layers, before if forth else after, forth)
        crossings = _count_crossings(layers, after)
        if crossings < fewest:
            best, fewest = layers, crossings
    return best


def _sort_layers(layers: list[list[int]], neighbours: Sequence[Sequence[int]], forth: bool) -> list[list[int]]:
    position: dict[int, float] = {}
    for layer in layers:
        position.update((item, rank) for rank, item in enumerate(layer))
    done = list(layers)
    for number in range(len(layers)) if forth else reversed(range(len(layers))):
        weight = {
            item: _mean([position[neighbour] for neighbour in neighbours[item]], position[item])
            for item in done[number]
        }
        done[number] = sorted(done[number], key=lambda item: weight[item])
        position.update((item, rank) for rank, item in enumerate(done[number]))
    return done


def _count_crossings(layers: Sequence[Sequence[int]], after: Sequence[Sequence[int]]) -> int:
    count = 0
    for layer, following in itertools.pairwise(layers):
        rank = {item: number for number, item in enumerate(following)}
        ends: list[int] = []  # of the edges so far, sorted
        for item in layer:
            targets = sorted(rank[target] for target in after[item])
            count += sum(len(ends) - bisect_right(ends, target) for target in targets)
            for target in targets:
                insort(ends, target)
    return count


def _place(
    layers: Sequence[Sequence[int]],
    before: Sequence[Sequence[int]],
    after: Sequence[Sequence[int]],
    room: Sequence[float],
) -> list[float]:
    """Positions across that bring items near their neighbours and keep order and room."""
    across = [0.0] * len(room)
    for layer in layers:
        size = sum(room[item] for item in layer)
        start = -size / 2
        for item in layer:
            across[item] = start + room[item] / 2
            start += room[item]
    for sweep in range(_PLACE_SWEEPS):
        forth = sweep % 2 == 0
        neighbours = before if forth else after
        for layer in layers if forth else reversed(layers):
            wanted = [_mean([across[one] for one in neighbours[item]], across[item]) for item in layer]
            for item, place in zip(layer, _keep_apart(wanted, [room[item] for item in layer]), strict=True):
                across[item] = place
    start = min((across[item] - room[item] / 2 for item in range(len(room))), default=0.0)
    return [place - start for place in across]


def _keep_apart(wanted: Sequence[float], room: Sequence[float]) -> list[float]:
    """The places nearest to those wanted (least squares) that keep the order and leave each item its room."""
    offsets: list[float] = []
    for index, size in enumerate(room):
        offsets.append(offsets[-1] + (room[index - 1] + size) / 2 if index else 0.0)
    blocks: list[tuple[float, int]] = []  # mean and size of items that touch each other
    for place, offset in zip(wanted, offsets, strict=True):
        mean, size = place - offset, 1
        while blocks and blocks[-1][0] >= mean:
            other, count = blocks.pop()
            mean, size = (mean * size + other * count) / (size + count), size + count
        blocks.append((mean, size))
    means = [mean for mean, size in blocks for _ in range(size)]
    return [mean + offset for mean, offset in zip(means, offsets, strict=True)]


def _mean(values: Sequence[float], default: float) -> float:
    return sum(values) / len(values) if values else default

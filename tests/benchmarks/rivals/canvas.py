"""Celery's canvas: chain, chord, and both in one another, over a Redis result backend, which chords need."""

from typing import Any

from celery import chain, chord, group

from tests.benchmarks.rivals import Side, Surroundings
from tests.benchmarks.shapes import Shape


class Canvas:
    """Every shape as a user of the canvas would write it. Its graphs are fixed when they start: no task makes more."""

    name = "canvas"
    side: Side = "plain"

    def __init__(self, around: Surroundings) -> None:
        app, stamps = around.app, around.stamps
        options = {"shared": False, "ignore_result": False}

        @app.task(name="canvas.work", **options)
        def work(n: int, sample: int, stage: int = 1) -> dict[str, int]:
            stamps.write(sample, stage)
            return {"n": n}

        @app.task(name="canvas.join", **options)
        def join(results: list[Any], sample: int, stage: int = 2) -> dict[str, int]:
            stamps.write(sample, stage)
            return {"n": len(results)}

        @app.task(name="canvas.hop", **options)
        def hop(before: Any, sample: int, stage: int) -> dict[str, int]:
            stamps.write(sample, stage)
            return {"n": stage}

        self._work, self._join, self._hop = work, join, hop
        self._results: list[Any] = []

    def can_do(self, shape: Shape) -> bool:
        return shape.kind != "noop" and shape.width < 100_000

    def bodies(self, shape: Shape) -> int:
        source = 1 if shape.kind in ("fan", "diamond") else 0  # the caller itself knows how many there are
        if shape.kind in ("runs", "pipelines"):
            return shape.runs * (sum(shape.stages) - 1)
        return sum(shape.stages) - source

    def prepare(self, shape: Shape, sample: int) -> None:
        """Nothing."""

    def start(self, shape: Shape, sample: int) -> None:
        self._results = [self._build(shape, sample).apply_async() for _ in range(shape.runs)]

    def settle(self, timeout: float) -> None:
        """The last body's own result is all that is left; what was to await it is let go, which talks to Redis."""
        self._results = []

    def abandon(self) -> None:
        """The messages are purged with the workers' end."""
        self._results = []

    def _build(self, shape: Shape, sample: int) -> Any:
        if shape.kind == "chain":
            first, *others = range(shape.depth)
            return chain(self._hop.s(None, sample, first), *(self._hop.s(sample, stage) for stage in others))
        if shape.kind in ("layers", "nodes"):
            return chain(*(part for layer in range(shape.depth) for part in self._layer(shape, sample, layer)))
        if shape.kind == "diamond":
            return group(
                chord([self._work.si(n, sample), self._work.si(n, sample)], self._join.s(sample))
                for n in range(shape.width)
            )
        return chord([self._work.si(n, sample) for n in range(shape.width)], self._join.s(sample))

    def _layer(self, shape: Shape, sample: int, layer: int) -> tuple[Any, Any]:
        works = group(self._work.si(n, sample, 2 * layer) for n in range(shape.width))
        return works, self._join.s(sample, 2 * layer + 1)

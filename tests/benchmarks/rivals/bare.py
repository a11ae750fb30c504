"""Tasks of Celery with nothing beside them: what broker and workers can do. Nothing joins their results."""

from tests.benchmarks.rivals import Side, Surroundings
from tests.benchmarks.shapes import Shape


class Bare:
    """No-op tasks; a source that publishes them; a task that publishes the next."""

    name = "bare"
    side: Side = "plain"

    def __init__(self, around: Surroundings) -> None:
        app, stamps = around.app, around.stamps

        @app.task(name="bare.noop", shared=False)
        def noop(sample: int, n: int) -> None:
            stamps.write(sample, 1)

        @app.task(name="bare.source", shared=False)
        def source(sample: int, width: int) -> None:
            stamps.write(sample, 0)
            self._publish(sample, width)

        @app.task(name="bare.hop", shared=False)
        def hop(sample: int, n: int, last: int) -> None:
            stamps.write(sample, n)
            if n < last:
                hop.apply_async((sample, n + 1, last), add_to_parent=False)

        self._app, self._noop, self._source, self._hop = app, noop, source, hop

    def _publish(self, sample: int, width: int) -> None:
        with self._app.producer_or_acquire() as producer:
            for n in range(width):
                self._noop.apply_async((sample, n), producer=producer, add_to_parent=False)

    def can_do(self, shape: Shape) -> bool:
        return shape.kind in ("noop", "fan", "chain")

    def bodies(self, shape: Shape) -> int:
        return {"noop": shape.width, "fan": shape.width + 1, "chain": shape.depth}[shape.kind]

    def prepare(self, shape: Shape, sample: int) -> None:
        if shape.kind == "noop":
            self._publish(sample, shape.width)

    def start(self, shape: Shape, sample: int) -> None:
        if shape.kind == "fan":
            self._source.apply_async((sample, shape.width))
        elif shape.kind == "chain":
            self._hop.apply_async((sample, 0, shape.depth - 1))

    def settle(self, timeout: float) -> None:
        """Nothing follows."""

    def abandon(self) -> None:
        """The messages are purged with the workers' end."""

"""This package, as its users write pipelines; with its default settings, but for bounds that a shape exceeds."""

from typing import Any

from dagabaaz_celery.app import Dagabaaz
from dagabaaz_celery.constants import FanMode
from dagabaaz_celery.models import DagNode
from dagabaaz_celery.pipeline import Pipeline
from dagabaaz_celery.run import Run
from tests.benchmarks.rivals import Side, Surroundings
from tests.benchmarks.shapes import Shape

#: The largest fan that is measured is wider than the default settings allow.
SETTINGS = {"dagabaaz_max_fan_out": 100_000, "dagabaaz_max_artifacts": 100_000}
#: Appended to the name of the worker's queue: the source of a shape whose tasks are to wait lies in a queue of its own.
LAUNCH_SUFFIX = "-launch"


class Ours:
    """Every shape as a pipeline; also those that a source makes as wide as its result."""

    name = "ours"
    side: Side = "ours"

    def __init__(self, around: Surroundings) -> None:
        stamps = around.stamps
        self._launch_queue = around.app.conf.task_default_queue + LAUNCH_SUFFIX
        self.dag = dag = Dagabaaz(around.app)
        self._runs: list[Run] = []

        @dag.plugin
        def source(sample: int, count: int) -> list[dict[str, int]]:
            stamps.write(sample, 0)
            return [{"n": n, "sample": sample} for n in range(count)]

        @dag.plugin
        def work(sample: int, n: int = 0) -> dict[str, int]:
            stamps.write(sample, 1)
            return {"n": n, "sample": sample}

        @dag.plugin
        def join(artifacts: list[dict[str, Any]]) -> dict[str, int]:
            sample = artifacts[0]["metadata"]["sample"]
            stamps.write(sample, 2)
            return {"n": len(artifacts), "sample": sample}

        @dag.plugin
        def join_and_split(artifacts: list[dict[str, Any]]) -> list[dict[str, int]]:
            sample = artifacts[0]["metadata"]["sample"]
            stamps.write(sample, 2)
            return [{"n": n, "sample": sample} for n in range(len(artifacts))]

    def can_do(self, shape: Shape) -> bool:
        return True

    def bodies(self, shape: Shape) -> int:
        source = 1 if shape.kind in ("layers", "noop") else 0
        return shape.runs * (sum(shape.stages) + source)

    def prepare(self, shape: Shape, sample: int) -> None:
        self._pipelines = self._build(shape)
        if shape.kind == "noop":
            self._begin(shape, sample)

    def start(self, shape: Shape, sample: int) -> None:
        if shape.kind != "noop":
            self._begin(shape, sample)

    def _begin(self, shape: Shape, sample: int) -> None:
        given: dict[str, Any] = {"sample": sample}
        if shape.kind not in ("chain", "nodes"):
            given["count"] = shape.width
        self._runs = [self.dag.start(self._pipelines[n % len(self._pipelines)], given) for n in range(shape.runs)]

    def settle(self, timeout: float) -> None:
        for run in self._runs:
            status = run.wait(timeout)
            assert status == "completed", f"a run ended as {status}: {run.error}"

    def abandon(self) -> None:
        for run in self._runs:
            if run.status == "running":
                run.cancel()

    def _build(self, shape: Shape) -> list[Pipeline]:
        if shape.kind == "pipelines":
            return [Pipeline(f"{shape.name}-{n}", nodes=_fan(f"work{n}")) for n in range(shape.runs)]
        nodes = {
            "noop": lambda: _fan()[:2],
            "fan": _fan,
            "runs": _fan,
            "chain": lambda: _chain(shape.depth),
            "layers": lambda: _layers(shape.depth),
            "nodes": lambda: _layers_of_nodes(shape.depth, shape.width),
            "diamond": _diamond,
        }[shape.kind]()
        if shape.kind == "noop":
            nodes[0].options["queue"] = self._launch_queue
        return [Pipeline(shape.name, nodes=nodes)]


def _fan(slug: str = "work") -> list[DagNode]:
    return [
        DagNode(slug="source", plugin="source"),
        DagNode(slug=slug, plugin="work", depends_on=["source"]),
        DagNode(slug="join", plugin="join", depends_on=[slug], fan_mode=FanMode.AGGREGATE),
    ]


def _chain(depth: int) -> list[DagNode]:
    before: list[list[str]] = [[]] + [[f"hop{n}"] for n in range(depth - 1)]
    return [DagNode(slug=f"hop{n}", plugin="work", depends_on=before[n]) for n in range(depth)]


def _layers(depth: int) -> list[DagNode]:
    """Each layer is one node, whose join makes the next layer's items."""
    nodes, before = [DagNode(slug="source", plugin="source")], "source"
    for n in range(depth):
        plugin = "join_and_split" if n < depth - 1 else "join"
        nodes.append(DagNode(slug=f"layer{n}", plugin="work", depends_on=[before]))
        nodes.append(DagNode(slug=f"join{n}", plugin=plugin, depends_on=[f"layer{n}"], fan_mode=FanMode.AGGREGATE))
        before = f"join{n}"
    return nodes


def _layers_of_nodes(depth: int, width: int) -> list[DagNode]:
    """Each task of each layer is a node, and so is each join."""
    nodes: list[DagNode] = []
    before: list[str] = []
    for n in range(depth):
        layer = [f"layer{n}x{k}" for k in range(width)]
        nodes += [DagNode(slug=slug, plugin="work", depends_on=before) for slug in layer]
        nodes.append(DagNode(slug=f"join{n}", plugin="join", depends_on=layer, fan_mode=FanMode.AGGREGATE))
        before = [f"join{n}"]
    return nodes


def _diamond() -> list[DagNode]:
    return [
        DagNode(slug="source", plugin="source"),
        DagNode(slug="left", plugin="work", depends_on=["source"]),
        DagNode(slug="right", plugin="work", depends_on=["source"]),
        DagNode(slug="join", plugin="join", depends_on=["left", "right"], fan_mode=FanMode.GROUPED),
    ]

"""The shapes of work that are measured, each told without saying by what means it is done."""

from dataclasses import dataclass
from typing import Literal

Kind = Literal["noop", "fan", "chain", "layers", "nodes", "diamond", "runs", "pipelines"]

#: What each of the runs of "runs" and "pipelines" does: one source, so many tasks, one end.
FAN_OF_EACH_RUN = 5


@dataclass(frozen=True)
class Shape:
    """What is to be done: ``runs`` times a graph of some ``width`` and ``depth``.

    noop: tasks that lie at the broker already; no barrier. fan: a source, tasks, and an end that takes all their
    results. chain: each task starts the next. layers: tasks, and a join that starts the next layer; nodes: the same,
    where each task is a node of its own. diamond: two branches for each item, and a join for each. runs: many small
    fans at once; pipelines: the same, each of a pipeline of its own.
    """

    name: str
    kind: Kind
    width: int = 1
    depth: int = 1
    runs: int = 1
    timeout: float = 120.0
    #: It takes long: not done more often than this.
    most_rounds: int | None = None

    @property
    def stages(self) -> tuple[int, ...]:
        """Tasks of each stage of one run, where a stage begins when the one before it is over."""
        if self.kind == "noop":
            return (self.width,)
        if self.kind in ("fan", "runs", "pipelines"):
            return (1, self.width, 1)
        if self.kind == "chain":
            return (1,) * self.depth
        if self.kind == "diamond":
            return (1, 2 * self.width, self.width)
        return (self.width, 1) * self.depth

    @property
    def tasks(self) -> int:
        """By how many tasks rates and costs are told: those of the widest stages, or all where each is narrow."""
        if self.kind in ("noop", "fan", "runs", "pipelines"):
            return self.width * self.runs
        return sum(self.stages)


ALL = (
    Shape("noop-3000", "noop", width=3000),
    Shape("fan-100", "fan", width=100),
    Shape("fan-100-again", "fan", width=100),  # how far the same thing is from itself
    Shape("fan-1000", "fan", width=1000),
    Shape("fan-10000", "fan", width=10_000, timeout=300),
    Shape("fan-100000", "fan", width=100_000, timeout=2400, most_rounds=2),
    Shape("chain-40", "chain", depth=40),
    Shape("chain-200", "chain", depth=200),
    Shape("layers-10x50", "layers", width=50, depth=10),
    Shape("layers-20x50", "layers", width=50, depth=20),
    Shape("nodes-20x50", "nodes", width=50, depth=20, timeout=300),
    Shape("diamond-10", "diamond", width=10),
    Shape("diamond-1000", "diamond", width=1000, timeout=300),
    Shape("runs-100", "runs", width=FAN_OF_EACH_RUN, runs=100),
    Shape("runs-1000", "runs", width=FAN_OF_EACH_RUN, runs=1000, timeout=600),
    Shape("pipelines-1000", "pipelines", width=FAN_OF_EACH_RUN, runs=1000, timeout=600),
)
BY_NAME = {shape.name: shape for shape in ALL}


def choose(words: list[str]) -> list[Shape]:
    """The shapes of these names, or of all names that begin so: "fan" means every fan. Raises ValueError."""
    chosen: list[Shape] = []
    for word in words:
        found = [BY_NAME[word]] if word in BY_NAME else [shape for shape in ALL if shape.name.startswith(word)]
        if not found:
            raise ValueError(f"there is no shape {word!r}; there are {', '.join(BY_NAME)}")
        chosen += [shape for shape in found if shape not in chosen]
    return chosen

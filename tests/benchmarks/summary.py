"""From samples to figures: medians with their ranges, and ratios within rounds."""

import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from tests.benchmarks import rivals
from tests.benchmarks.sampling import Sample
from tests.benchmarks.shapes import BY_NAME

#: A figure of one sample.
Measure = Callable[[Sample], float]
#: A shape and a rival, by name.
Cell = tuple[str, str]


@dataclass(frozen=True)
class Figure:
    """What several rounds gave."""

    median: float
    least: float
    most: float
    rounds: int

    def text(self, unit: str = "", scale: float = 1.0) -> str:
        """The median, and in brackets the range, in three digits each."""
        median, least, most = (show(value * scale) for value in (self.median, self.least, self.most))
        spread = f" ({least} to {most})" if self.rounds > 1 else ""
        return f"{median}{unit and ' ' + unit}{spread}"


def show(value: float) -> str:
    """Three digits, or all of those before the point."""
    if value == 0:
        return "0"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def summarize(values: Iterable[float]) -> Figure:
    """Median and range. Raises statistics.StatisticsError for none."""
    found = sorted(values)
    return Figure(statistics.median(found), found[0], found[-1], len(found))


class Results:
    """The samples that ended well, by pair, shape and rival."""

    def __init__(self, samples: Iterable[Sample]) -> None:
        self._cells: Mapping[tuple[str, str, str], dict[int, Sample]] = defaultdict(dict)
        self.failures: list[Sample] = []
        for sample in samples:
            if sample.error:
                self.failures.append(sample)
            else:
                self._cells[sample.pair, sample.shape, sample.rival][sample.round] = sample

    @property
    def pairs(self) -> list[str]:
        """In the order in which they were measured."""
        return list(dict.fromkeys(pair for pair, _, _ in self._cells))

    @property
    def shapes(self) -> list[str]:
        """In the order of ``shapes.ALL``."""
        return [name for name in BY_NAME if any(shape == name for _, shape, _ in self._cells)]

    @property
    def rivals(self) -> list[str]:
        """In the order of ``rivals.NAMES``."""
        return [name for name in rivals.NAMES if any(rival == name for _, _, rival in self._cells)]

    def samples(self, pair: str, shape: str, rival: str) -> list[Sample]:
        """Of one cell, by round."""
        return list(self._cells.get((pair, shape, rival), {}).values())

    def all_samples(self) -> list[Sample]:
        """Of all cells."""
        return [sample for cell in self._cells.values() for sample in cell.values()]

    def figure(self, pair: str, shape: str, rival: str, measure: Measure) -> Figure | None:
        """A measure over the rounds of one cell; None where nothing was measured."""
        samples = self.samples(pair, shape, rival)
        return summarize(map(measure, samples)) if samples else None

    def ratio(self, pair: str, above: Cell, below: Cell, measure: Measure) -> Figure | None:
        """A measure of one cell by that of another, for each round in which both were measured."""
        upper, lower = (self._cells.get((pair, *cell), {}) for cell in (above, below))
        both = sorted(upper.keys() & lower.keys())
        return summarize(measure(upper[n]) / measure(lower[n]) for n in both) if both else None

    def noise(self) -> float | None:
        """How far the rounds of a cell are from each other: (most - least) / median, the median of all cells."""
        figures = [summarize(map(seconds, cell.values())) for cell in self._cells.values() if len(cell) > 1]
        return statistics.median((one.most - one.least) / one.median for one in figures) if figures else None


def seconds(sample: Sample) -> float:
    """What a shape took: from its start to its last body, or between bodies where all tasks were there at the start."""
    return sample.span if BY_NAME[sample.shape].kind == "noop" else sample.makespan


def rate(sample: Sample) -> float:
    """Tasks a second."""
    return BY_NAME[sample.shape].tasks / seconds(sample)


def seconds_per_task(sample: Sample) -> float:
    """Of the time on the clock."""
    return seconds(sample) / BY_NAME[sample.shape].tasks


def cpu_per_task(sample: Sample) -> float:
    """Of the worker's processes together."""
    return sample.cpu / BY_NAME[sample.shape].tasks


def growth(sample: Sample) -> float:
    """The memory of the worker's processes together after it, by that before."""
    return sum(sample.memory_after) / sum(sample.memory_before)

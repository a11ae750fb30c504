"""A benchmark run: pairs one after the other, and on each all rivals in turn, round by round."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import pytest

from tests.benchmarks.idle import measure_idle
from tests.benchmarks.sampling import Sample, Sampler
from tests.benchmarks.shapes import BY_NAME, Shape
from tests.benchmarks.site import Site, open_site


@dataclass(frozen=True)
class Plan:
    """What is measured. ``budget``: seconds after which nothing more is begun. ``query``: added to servers' URLs."""

    pairs: Sequence[str]
    shapes: Sequence[Shape]
    rivals: Sequence[str]
    rounds: int
    counting: bool = True
    idle_seconds: float = 30.0
    budget: float | None = None
    query: str = ""


@dataclass
class Findings:
    """What a run found, and what it did not get to."""

    samples: list[Sample] = field(default_factory=list)
    counts: list[dict[str, Any]] = field(default_factory=list)
    idle: list[dict[str, Any]] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)


class Session:
    """Carries a plan out, telling ``say`` how far it is."""

    def __init__(self, plan: Plan, say: Callable[[str], None]) -> None:
        self._plan = plan
        self._say = say
        self._ends_at = math.inf if plan.budget is None else time.monotonic() + plan.budget
        self._pair_ends_at = math.inf
        self.findings = Findings()

    def run(self) -> Findings:
        """Measure every pair. A pair without its server is left out, by name; so is what the budget does not allow."""
        for number, pair in enumerate(self._plan.pairs):
            now = time.monotonic()
            self._pair_ends_at = now + (self._ends_at - now) / (len(self._plan.pairs) - number)
            try:
                self._run_pair(pair)
            except (pytest.skip.Exception, pytest.fail.Exception) as missing:  # the server's, from tests.services
                self.findings.left_out.append(f"{pair}: {missing}")
        return self.findings

    def _run_pair(self, pair: str) -> None:
        with open_site(pair, query=self._plan.query) as site:
            self._warm_up(site)
            if self._plan.idle_seconds:
                self.findings.idle.append(measure_idle(site, self._plan.idle_seconds))
            self._measure(site)
        if self._plan.counting:
            with open_site(pair, query=self._plan.query, counting=True) as site:
                self._warm_up(site)
                self._count(site)

    def _cells(self, site: Site, round_: int) -> Iterator[tuple[Shape, list[str]]]:
        for shape in self._plan.shapes:
            if shape.most_rounds is None or round_ < shape.most_rounds:
                yield shape, [name for name in self._plan.rivals if site.rivals[name].can_do(shape)]

    def _warm_up(self, site: Site) -> None:
        """Connections, caches and tables in memory: the first sample shall not pay for them."""
        sampler = Sampler(site)
        for name in self._plan.rivals:
            sampler.take(BY_NAME["fan-100"], site.rivals[name], -1)

    def _measure(self, site: Site) -> None:
        sampler = Sampler(site)
        for round_ in range(self._plan.rounds):
            for shape, names in self._cells(site, round_):
                if time.monotonic() > self._pair_ends_at:
                    left = f"{site.pair}: round {round_ + 1} from {shape.name} on: the time for this pair was over"
                    self.findings.left_out.append(left)
                    return
                for name in rotate(names, round_):
                    sample = sampler.take(shape, site.rivals[name], round_)
                    self.findings.samples.append(sample)
                    self._say(describe(sample, shape))

    def _count(self, site: Site) -> None:
        sampler = Sampler(site)
        for shape, names in self._cells(site, 0):
            for name in names:
                with site.alone(site.rivals[name].side):
                    site.take_counts()
                    sample = sampler.take(shape, site.rivals[name], 0)
                    counts = site.take_counts()
                if not sample.error:
                    cell = {"pair": site.pair, "shape": shape.name, "rival": name}
                    self.findings.counts.append({**cell, **asdict(counts)})


def rotate(names: Sequence[str], round_: int) -> list[str]:
    """Each round begins with another rival, so that none is always the one after the same."""
    start = round_ % len(names) if names else 0
    return [*names[start:], *names[:start]]


def describe(sample: Sample, shape: Shape) -> str:
    """A line for whoever waits."""
    cell = f"{sample.pair} {sample.shape} round {sample.round + 1} {sample.rival}"
    if sample.error:
        return f"{cell}: {sample.error}"
    seconds = sample.span if shape.kind == "noop" else sample.makespan
    return f"{cell}: {seconds:.3f} s, {shape.tasks / seconds:,.0f} tasks/s, {sample.cpu:.2f} s of CPU"

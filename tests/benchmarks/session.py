"""A benchmark run: pairs one after the other, and on each all rivals in turn, round by round."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import pytest

from tests.benchmarks.sampling import Sample, Sampler
from tests.benchmarks.shapes import Shape
from tests.benchmarks.site import Site, open_site


@dataclass(frozen=True)
class Plan:
    """What is measured. ``budget``: seconds after which nothing more is begun. ``query``: added to servers' URLs."""

    pairs: Sequence[str]
    shapes: Sequence[Shape]
    rivals: Sequence[str]
    rounds: int
    counting: bool = True
    budget: float | None = None
    query: str = ""


@dataclass
class Findings:
    """What a run found, and what it did not get to."""

    samples: list[Sample] = field(default_factory=list)
    counts: list[dict[str, Any]] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)


class Session:
    """Carries a plan out, telling ``say`` how far it is."""

    def __init__(self, plan: Plan, say: Callable[[str], None]) -> None:
        self._plan = plan
        self._say = say
        self._deadline = None if plan.budget is None else time.monotonic() + plan.budget
        self.findings = Findings()

    def run(self) -> Findings:
        """Measure every pair. A pair without its server is left out, by name; so is what the budget does not allow."""
        for pair in self._plan.pairs:
            if self._is_over(f"{pair}: all of it"):
                continue
            try:
                with open_site(pair, query=self._plan.query) as site:
                    self._warm_up(site)
                    self._measure(site)
                if self._plan.counting and not self._is_over(f"{pair}: what is sent for each task"):
                    with open_site(pair, query=self._plan.query, counting=True) as site:
                        self._count(site)
            except (pytest.skip.Exception, pytest.fail.Exception) as missing:  # the server's, from tests.services
                self.findings.left_out.append(f"{pair}: {missing}")
        return self.findings

    def _cells(self, site: Site) -> Iterator[tuple[Shape, list[str]]]:
        for shape in self._plan.shapes:
            yield shape, [name for name in self._plan.rivals if site.rivals[name].can_do(shape)]

    def _warm_up(self, site: Site) -> None:
        """Connections, caches and tables in memory: the first sample shall not pay for them."""
        sampler = Sampler(site)
        for name in self._plan.rivals:
            sampler.take(Shape("fan-100", "fan", width=100), site.rivals[name], -1)

    def _measure(self, site: Site) -> None:
        sampler = Sampler(site)
        for shape, names in self._cells(site):
            for round_ in range(self._plan.rounds):
                if self._is_over(f"{site.pair}: {shape.name}, from round {round_ + 1} on"):
                    break
                for name in rotate(names, round_):
                    sample = sampler.take(shape, site.rivals[name], round_)
                    self.findings.samples.append(sample)
                    self._say(describe(sample, shape))

    def _count(self, site: Site) -> None:
        sampler = Sampler(site)
        self._warm_up(site)
        for shape, names in self._cells(site):
            for name in names:
                with site.alone(site.rivals[name].side):
                    site.take_counts()
                    sample = sampler.take(shape, site.rivals[name], 0)
                    counts = site.take_counts()
                if not sample.error:
                    cell = {"pair": site.pair, "shape": shape.name, "rival": name}
                    self.findings.counts.append({**cell, **asdict(counts)})

    def _is_over(self, what: str) -> bool:
        if self._deadline is None or time.monotonic() < self._deadline:
            return False
        self.findings.left_out.append(f"{what}: the time for this run was over")
        return True


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

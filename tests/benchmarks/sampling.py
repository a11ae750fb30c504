"""One sample: a rival does a shape once, and what that took."""

import os
import time
import traceback
from dataclasses import dataclass, field
from itertools import pairwise

from tests.benchmarks.rivals import Rival
from tests.benchmarks.shapes import Shape
from tests.benchmarks.site import Site
from tests.benchmarks.stamps import Stamp

_LOOK_SECONDS = 0.002
_MEMORY_LOOK_SECONDS = 0.5
#: Bodies that run once more than they should begin within this, if at all while somebody looks.
_SETTLE_SECONDS = 60.0


@dataclass
class Sample:
    """What one rival took for one shape, once; times in seconds, memory in MB."""

    pair: str
    shape: str
    rival: str
    round: int
    #: From the call that starts it to the beginning of its last body.
    makespan: float = 0.0
    #: From the beginning of its first body to that of its last.
    span: float = 0.0
    #: Between the beginnings of two bodies that follow one another, in a chain: least, median, 95 of 100, most.
    hops: dict[str, float] = field(default_factory=dict)
    #: Of all processes of the worker.
    cpu: float = 0.0
    #: Of each process of the worker, the main one first: before, at most meanwhile, and after.
    memory_before: list[float] = field(default_factory=list)
    memory_peak: list[float] = field(default_factory=list)
    memory_after: list[float] = field(default_factory=list)
    #: Bodies beyond one for each task.
    extra_bodies: int = 0
    #: The machine's load when it began.
    load: float = 0.0
    error: str = ""


class Sampler:
    """Takes samples at one site, each under a number of its own."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._number = 0

    def take(self, shape: Shape, rival: Rival, round_: int) -> Sample:
        """Do it once. A sample that does not end, or ends badly, has an error, and the workers are new after it."""
        sample = Sample(self._site.pair, shape.name, rival.name, round_, load=round(os.getloadavg()[0], 2))
        try:
            self._measure(sample, shape, rival)
        except Exception as error:  # whatever it is: the other samples shall not be lost with this one
            what = str(error) if isinstance(error, AssertionError) else traceback.format_exc()
            sample.error = f"{what}\n{self._site.complaints()}".strip()
            rival.abandon()
            self._site.restart_workers()
        return sample

    def _measure(self, sample: Sample, shape: Shape, rival: Rival) -> None:
        site, bodies = self._site, rival.bodies(shape)
        self._number += 1
        first = site.stamps.count()
        waits = shape.kind == "noop"
        if waits:
            site.hold(rival.side)
        rival.prepare(shape, self._number)
        if waits:
            self._wait_for_queue(shape, rival)
        launched = site.stamps.count()
        before = site.usage(rival.side)
        began = time.monotonic()
        if waits:
            site.release(rival.side)
        rival.start(shape, self._number)
        peak = self._wait_for_bodies(first + bodies, shape.timeout, rival)
        rival.settle(_SETTLE_SECONDS)
        after = site.usage(rival.side)
        stamps = [stamp for stamp in site.stamps.read(launched) if stamp.sample == self._number]
        sample.makespan, sample.span = stamps[-1].at - began, stamps[-1].at - stamps[0].at
        sample.hops = _describe_hops(stamps) if shape.kind == "chain" else {}
        sample.cpu = after.cpu - before.cpu
        sample.memory_before, sample.memory_peak, sample.memory_after = before.memory, peak, after.memory
        sample.extra_bodies = site.stamps.count() - first - bodies

    def _wait_for_bodies(self, count: int, timeout: float, rival: Rival) -> list[float]:
        """Wait until so many bodies began; the most memory that each process had meanwhile."""
        site, now = self._site, time.monotonic()
        deadline, next_look = now + timeout, now + _MEMORY_LOOK_SECONDS
        peak = site.usage(rival.side).memory
        while site.stamps.count() < count:
            now = time.monotonic()
            assert now < deadline, f"after {timeout:g} s {count - site.stamps.count()} bodies had not begun"
            if now > next_look:
                next_look = now + _MEMORY_LOOK_SECONDS
                peak = [max(pair) for pair in zip(peak, site.usage(rival.side).memory, strict=False)]
            time.sleep(_LOOK_SECONDS)
        return peak

    def _wait_for_queue(self, shape: Shape, rival: Rival) -> None:
        deadline = time.monotonic() + shape.timeout
        while self._site.depth(rival.side) < shape.width:
            assert time.monotonic() < deadline, f"after {shape.timeout:g} s not all tasks were in the queue"
            time.sleep(0.05)


def _describe_hops(stamps: list[Stamp]) -> dict[str, float]:
    hops = sorted(after.at - before.at for before, after in pairwise(stamps))
    return {
        "least": hops[0],
        "median": hops[len(hops) // 2],
        "95 of 100": hops[int(len(hops) * 0.95)],
        "most": hops[-1],
    }

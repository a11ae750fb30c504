"""What a worker takes that has nothing to do: one without this package beside one with it, over the same seconds."""

import time
from typing import Any

from tests.benchmarks.site import SIDES, Site


def measure_idle(site: Site, seconds: float) -> dict[str, Any]:
    """The share of one core that each worker takes, all its processes together."""
    before = {side: site.usage(side).cpu for side in SIDES}
    began = time.monotonic()
    time.sleep(seconds)
    passed = time.monotonic() - began
    shares = {side: (site.usage(side).cpu - before[side]) / passed for side in SIDES}
    return {"pair": site.pair, "seconds": passed, **shares}

"""The work whose body runs in this thread: what ``self.retry`` and a plugin's context refer to."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from dagabaaz_celery.stores.sql.store import Work

_stack = threading.local()


@contextmanager
def running(work: Work) -> Iterator[None]:
    """Make an attempt this thread's current one; eager tasks nest."""
    stack = _stack.__dict__.setdefault("items", [])
    stack.append(work)
    try:
        yield
    finally:
        stack.pop()


def current_work() -> Work | None:
    """What this thread's body in progress works on."""
    stack: list[Work] | None = _stack.__dict__.get("items")
    return stack[-1] if stack else None


class Throttle:
    """Lets one call through in each interval, in seconds."""

    def __init__(self, interval: float) -> None:
        self._interval = interval
        self._next = 0.0

    def is_open(self) -> bool:
        """Whether this call may go through."""
        now = time.monotonic()
        if now < self._next:
            return False
        self._next = now + self._interval
        return True

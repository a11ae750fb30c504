"""The work whose body runs in this thread, and its secrets: what ``self.retry`` refers to."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from dagabaaz_celery.stores.sql.store import Work
from dagabaaz_celery.worker.secrets import Secrets

_stack = threading.local()


@contextmanager
def running(work: Work, secrets: Secrets) -> Iterator[None]:
    """Make an attempt this thread's current one; eager tasks nest."""
    stack = _stack.__dict__.setdefault("items", [])
    stack.append((work, secrets))
    try:
        yield
    finally:
        stack.pop()


def current_work() -> Work | None:
    """What this thread's body in progress works on."""
    current = _current()
    return None if current is None else current[0]


def redact_current(text: str) -> str:
    """The text without the secrets of this thread's body in progress."""
    current = _current()
    return text if current is None else current[1].redact(text)


def _current() -> tuple[Work, Secrets] | None:
    stack: list[tuple[Work, Secrets]] | None = _stack.__dict__.get("items")
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

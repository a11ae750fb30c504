"""The work whose body runs here, and its secrets: what ``self.retry`` refers to, and what log records name.

A context variable, so that what the body starts on its event loop or by ``asyncio.to_thread`` sees it too.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from dagabaaz_celery.stores.sql.records import TaskError
from dagabaaz_celery.stores.sql.store import Work
from dagabaaz_celery.worker.secrets import Secrets


@dataclass(frozen=True, slots=True)
class AskedRetry:
    """What a body asked for by ``self.retry``: the next attempt after so many seconds, its retries, and why."""

    delay: float
    retries: int
    reason: TaskError


@dataclass(slots=True)
class Active:
    """An attempt whose body is at work; ``slug`` is its node's, ``secrets`` None for a task without a wrapper.

    ``retry`` is recorded when the body has been left: inside it a transaction of the app's may be open, which the
    exception that ends the body would take back, and the retry with it.
    """

    work: Work
    slug: str
    secrets: Secrets | None
    retry: AskedRetry | None = None


_active: ContextVar[Active | None] = ContextVar("dagabaaz_active", default=None)


@contextmanager
def running(active: Active) -> Iterator[None]:
    """Make an attempt the current one; eager tasks nest."""
    token = _active.set(active)
    try:
        yield
    finally:
        _active.reset(token)


def find_active() -> Active | None:
    """The attempt whose body this code runs in."""
    return _active.get()


def current_work() -> Work | None:
    """What the body in progress works on."""
    active = _active.get()
    return None if active is None else active.work


def redact_current(text: str) -> str:
    """The text without the secrets of the body in progress."""
    active = _active.get()
    return text if active is None or active.secrets is None else active.secrets.redact(text)


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

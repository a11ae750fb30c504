"""Who is measured: each does the same shapes of work by its own means, on workers with the same settings."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from tests.benchmarks.shapes import Shape
from tests.benchmarks.stamps import StampFile

#: Which of a pair's two workers runs a rival's tasks: one that has never heard of this package, or one that has it.
Side = Literal["plain", "ours"]

#: All of them, in the order in which tables show them.
NAMES = ("bare", "sql limit", "canvas", "ours")

#: What all workers share, as Celery's settings. The first three are what this package gives its own plugins.
COMMON: Mapping[str, Any] = {
    "task_acks_late": True,
    "task_reject_on_worker_lost": True,
    "task_ignore_result": True,
    "worker_prefetch_multiplier": 4,
    "worker_send_task_events": False,
    "broker_connection_retry_on_startup": True,
    "result_chord_join_timeout": 120.0,
}


@dataclass(frozen=True)
class Surroundings:
    """What a rival is made from, in its workers and in the process that measures them alike."""

    app: Any
    stamps: StampFile
    database_url: str
    #: Told of each statement and commit, where those are counted.
    note: Callable[[str], None] | None = None


class Rival(Protocol):
    """One way to do shapes of work, as the process that measures sees it."""

    name: str
    side: Side

    def can_do(self, shape: Shape) -> bool:
        """Whether the shape means anything here."""

    def bodies(self, shape: Shape) -> int:
        """How many bodies run until it is done."""

    def prepare(self, shape: Shape, sample: int) -> None:
        """What is not part of the time: also putting tasks in a queue that no worker reads so far."""

    def start(self, shape: Shape, sample: int) -> None:
        """Start it, and return once it is on its way."""

    def settle(self, timeout: float) -> None:
        """Wait until what follows the last body is over, too. Raises AssertionError when it ended badly."""

    def abandon(self) -> None:
        """Give up what was started."""

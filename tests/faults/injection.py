"""Points of the product's own code at which a process can be made to fail: killed, frozen, or cut off.

A test arms a point; the next process that reaches it fails there, once for each time that it was armed:

    points.arm("complete commits", "kill")      SIGKILL the pool child between its statements and their commit
    points.arm("published", "kill worker", skip=3)

Points, where OPERATION is a method of SqlStore in ``OPERATIONS``:
    "OPERATION begins"     it was called
    "OPERATION commits"    its statements were made, and the commit was not
    "OPERATION committed"  the commit was made, and its caller was not told
    "publish", "published" before and after a message is handed to the broker
    "body begins", "body ends"  inside the body of a plugin of the app under test

Armed points are files in one directory, taken by unlinking them, so that any number of processes may race for them.
"""

import functools
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from celery.signals import after_task_publish, before_task_publish
from sqlalchemy import Engine, event

from dagabaaz_celery.stores.sql.outages import CommitUnanswered
from dagabaaz_celery.stores.sql.store import SqlStore

#: kill, freeze: this process. kill worker: its parent. lose answer: raise what a broken connection raises. drop: do
#: nothing, and return None (at "OPERATION begins" only).
Action = Literal["kill", "kill worker", "freeze", "lose answer", "drop", "pass"]

OPERATIONS = (
    "start",
    "claim",
    "complete",
    "fail",
    "retry_attempt",
    "rescue",
    "cancel",
    "cancel_rest",
    "continue_launch",
    "follow_end",
    "retry",
    "reconcile",
    "lease_due_tasks",
    "mark_queued",
)
_POINTS = frozenset(
    [f"{operation} {step}" for operation in OPERATIONS for step in ("begins", "commits", "committed")]
    + ["publish", "published", "body begins", "body ends"]
)


@dataclass(frozen=True)
class Fired:
    """A point at which a process failed, on the machine's own clock."""

    point: str
    action: str
    pid: int
    at: float


class FaultPoints:
    """What is armed in a test, and what has happened of it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir(exist_ok=True)
        self._log = directory / "fired"
        self._count = 0

    def arm(self, point: str, action: Action, times: int = 1, skip: int = 0) -> None:
        """Have ``times`` processes fail at a point, after the first ``skip`` that reach it."""
        assert point in _POINTS, f"no point is called {point!r}"
        for what in ["pass"] * skip + [action] * times:
            self._count += 1
            (self.directory / f"{point}.{self._count:06}.{what}").touch()

    def disarm(self) -> None:
        """Let everything pass from now on."""
        for token in self.directory.glob("*.*.*"):
            token.unlink(missing_ok=True)

    def left(self, point: str) -> int:
        """How often a point is still armed."""
        return sum(not token.name.endswith(".pass") for token in self.directory.glob(f"{point}.*"))

    def fired(self) -> list[Fired]:
        """What failed so far, in order."""
        if not self._log.exists():
            return []
        return [Fired(**json.loads(line)) for line in self._log.read_text().splitlines()]

    def reach(self, point: str) -> bool:
        """Fail here if this point is armed; False when what follows is to be dropped."""
        for token in sorted(self.directory.glob(f"{point}.*")):
            try:
                token.unlink()
            except FileNotFoundError:
                continue  # another process took it
            action = token.name.rsplit(".", 1)[1]
            if action != "pass":
                self._fail(point, action)
            return action != "drop"
        return True

    def _fail(self, point: str, action: str) -> None:
        entry = Fired(point, action, os.getpid(), time.monotonic())
        with self._log.open("ab", buffering=0) as file:
            file.write(json.dumps(asdict(entry)).encode() + b"\n")
        if action == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif action == "kill worker":
            os.kill(os.getppid(), signal.SIGKILL)
            signal.pause()  # a child ends with its worker
        elif action == "freeze":
            os.kill(os.getpid(), signal.SIGSTOP)
        elif action == "lose answer":
            raise CommitUnanswered(
                f"injected at {point!r}", None, ConnectionResetError("the answer is lost"), connection_invalidated=True
            )


@contextmanager
def installed(points: FaultPoints) -> Iterator[None]:
    """Have this process reach the points while the block lasts."""
    undo = install(points)
    try:
        yield
    finally:
        undo()


def install(points: FaultPoints) -> Callable[[], None]:
    """Have this process, and those it forks, reach the points; the result takes that back."""
    current = threading.local()
    originals: dict[str, Any] = {name: getattr(SqlStore, name) for name in OPERATIONS}

    def wrap(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def operation(*args: Any, **kwargs: Any) -> Any:
            if not points.reach(f"{name} begins"):
                return None
            outer, current.name = getattr(current, "name", None), name
            try:
                result = original(*args, **kwargs)
            finally:
                current.name = outer
            points.reach(f"{name} committed")
            return result

        return operation

    def before_commit(_: Any) -> None:
        name = getattr(current, "name", None)
        if name is not None:
            points.reach(f"{name} commits")

    def before_publish(**_: Any) -> None:
        points.reach("publish")

    def after_publish(**_: Any) -> None:
        points.reach("published")

    for name, original in originals.items():
        setattr(SqlStore, name, wrap(name, original))
    event.listen(Engine, "commit", before_commit)
    before_task_publish.connect(before_publish, weak=False)
    after_task_publish.connect(after_publish, weak=False)

    def undo() -> None:
        for name, original in originals.items():
            setattr(SqlStore, name, original)
        event.remove(Engine, "commit", before_commit)
        before_task_publish.disconnect(before_publish)
        after_task_publish.disconnect(after_publish)

    return undo

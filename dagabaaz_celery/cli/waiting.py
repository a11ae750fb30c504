"""Runs of which no task runs: the queues that their tasks wait in."""

import time

from dagabaaz_celery.cli.output import clean
from dagabaaz_celery.run import NodeSnapshot, Run, RunSnapshot

_QUEUED, _RUNNING = "queued", "running"
#: Seconds in which nothing runs until somebody who watches is told; workers need some for each task.
_PATIENCE = 5.0


class Patience:
    """How long a watched run has been waiting, to tell it once each time."""

    def __init__(self) -> None:
        self._since: float | None = None
        self._is_told = False

    def look(self, run: Run, seen: RunSnapshot) -> str:
        """What the run has been waiting for, when it is time to tell; else nothing."""
        if not is_waiting(seen):
            self._since, self._is_told = None, False
            return ""
        now = time.monotonic()
        self._since = now if self._since is None else self._since
        if self._is_told or now - self._since < _PATIENCE:
            return ""
        self._is_told = True
        return describe_waiting(run, seen)


def is_waiting(run: RunSnapshot) -> bool:
    """Whether tasks of the run wait in queues while none of it runs."""
    return not (run.paused or run.settled or _count(run, _RUNNING)) and _count(run, _QUEUED) > 0


def describe_waiting(run: Run, seen: RunSnapshot) -> str:
    """Which queues the tasks of a run wait in, and what to type; nothing where it does not wait."""
    if not is_waiting(seen):
        return ""
    store = run._runtime.store
    with store.read() as connection:
        queues = [clean(queue) for queue in store.rows.tasks.list_queues_of(connection, run.id)]
    where = f"the {'queue' if len(queues) == 1 else 'queues'} {', '.join(queues)}" if queues else "their queue"
    count = _count(seen, _QUEUED)
    tasks = "1 task waits" if count == 1 else f"{count:,} tasks wait"
    return f"{tasks} in {where}, and none runs: `doctor` tells whether a worker takes them."


def _count(run: RunSnapshot, status: str) -> int:
    return sum(_of(node, status) for node in run.nodes)


def _of(node: NodeSnapshot, status: str) -> int:
    return node.tasks.get(status, 0) + node.rollback_tasks.get(status, 0)

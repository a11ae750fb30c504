"""Marks of published tasks, written together a moment later: the next body need not wait for them.

A claim says as much as a mark. In a chain each task is claimed before its mark could be written, and then there is
nothing to write. A mark that is lost with its process costs a message: its task's lease ends, and it is sent again.
"""

import logging
import os
import threading

from dagabaaz_celery.stores.sql.database import call_while_alive
from dagabaaz_celery.stores.sql.store import SqlStore

logger = logging.getLogger(__name__)

#: Seconds that a mark waits; short beside the lease of a task that is being published.
_PAUSE = 0.2


class LateMarks:
    """Marks that wait, by queue, and the thread that writes them, which is there as long as some do."""

    def __init__(self, store: SqlStore) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._waiting: dict[str | None, list[str]] = {}
        self._timer: threading.Timer | None = None
        os.register_at_fork(after_in_child=call_while_alive(self._leave_to_parent))

    def add(self, attempt_ids: list[str], queue: str | None) -> None:
        """Have these marked as published to a queue soon."""
        with self._lock:
            self._waiting.setdefault(queue, []).extend(attempt_ids)
            if self._timer is None:
                self._timer = threading.Timer(_PAUSE, self.write)
                self._timer.daemon = True
                self._timer.start()

    def write(self) -> None:
        """Write what waits. What the database does not take now is left to the sweep, which sends it again."""
        with self._lock:
            waiting, self._waiting = self._waiting, {}
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
        for queue, attempt_ids in waiting.items():
            try:
                self._store.mark_queued(attempt_ids, queue)
            except Exception as error:
                logger.warning("%d published tasks are not marked, and are sent again: %s", len(attempt_ids), error)

    def _leave_to_parent(self) -> None:
        """What waits in a process is written by that one."""
        self._lock = threading.Lock()
        self._waiting = {}
        self._timer = None

"""Marks of published tasks, written together a moment later: the next body need not wait for them.

A claim says as much as a mark. In a chain each task is claimed before its mark could be written, and then there is
nothing to write. A mark that is lost with its process costs a message: its task's lease ends, and it is sent again.
"""

import logging
import os
import threading
import time
from dataclasses import dataclass, field

from dagabaaz_celery.stores.sql.database import call_while_alive
from dagabaaz_celery.stores.sql.outages import is_outage
from dagabaaz_celery.stores.sql.store import SqlStore

logger = logging.getLogger(__name__)

#: Seconds that a mark waits; short beside the lease of a task that is being published.
_PAUSE = 0.2


@dataclass
class _Waiting:
    """Tasks of one queue, and when the last of them was sent, by a clock of this process."""

    attempt_ids: list[str] = field(default_factory=list)
    last_sent: float = 0.0


class LateMarks:
    """Marks that wait, by queue, and the thread that writes them, which is there as long as some do."""

    def __init__(self, store: SqlStore) -> None:
        self._store = store
        self._lock = threading.Lock()
        #: Held by who writes, so that whoever asks for that finds it done.
        self._writing = threading.Lock()
        self._waiting: dict[str | None, _Waiting] = {}
        self._thread: threading.Thread | None = None
        self._hurry = threading.Event()
        os.register_at_fork(after_in_child=call_while_alive(self._leave_to_parent))

    def add(self, attempt_ids: list[str], queue: str | None) -> None:
        """Have these marked, which were just published to a queue, soon."""
        with self._lock:
            waiting = self._waiting.setdefault(queue, _Waiting())
            waiting.attempt_ids.extend(attempt_ids)
            waiting.last_sent = time.monotonic()
            # A signal may have ended one as it began.
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._write_while_some_wait, name="dagabaaz-marks", daemon=True)
                try:
                    self._thread.start()
                except RuntimeError as error:  # a process can have so many; the next one that is added tries again
                    logger.warning("published tasks are marked later: %s", error)

    def close(self) -> None:
        """Write what waits, and leave no thread. More may be added later."""
        with self._lock:
            thread = self._thread
        self._hurry.set()
        try:
            if thread is not None and thread.is_alive():
                thread.join()
        finally:
            self._hurry.clear()
        self._write()

    def _write(self) -> None:
        """Write what waits. What the database does not take now is left to the sweep, which sends it again."""
        with self._writing:
            with self._lock:
                left, self._waiting = self._waiting, {}
            while left:
                queue, waiting = left.popitem()
                try:
                    self._store.mark_queued(waiting.attempt_ids, queue, age=time.monotonic() - waiting.last_sent)
                except Exception as error:
                    unmarked = [waiting]
                    if is_outage(error):  # of the others it would say the same, each time after a while
                        unmarked += left.values()
                        left = {}
                    number = sum(len(each.attempt_ids) for each in unmarked)
                    logger.warning("%d published tasks are not marked, and are sent again: %s", number, error)

    def _write_while_some_wait(self) -> None:
        while True:
            self._hurry.wait(_PAUSE)
            self._write()
            with self._lock:
                if not self._waiting:
                    self._thread = None
                    return

    def _leave_to_parent(self) -> None:
        """What waits in a process is written by that one."""
        self._lock, self._writing = threading.Lock(), threading.Lock()
        self._waiting = {}
        self._thread = None
        self._hurry = threading.Event()

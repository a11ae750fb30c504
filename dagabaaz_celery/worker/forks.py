"""Forks that wait for threads which are inside Celery and kombu.

Their objects take locks at almost every access. A pool that forks a child while another thread of the worker's main
process holds one hands the child a lock that nobody will ever release. So our threads go in by a gate, and a fork
waits until they are out; not for long, as one of them may wait for a broker that hangs.
"""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

#: Seconds that a fork waits for threads to come out, and that threads wait for a fork.
_PATIENCE = 2.0


class ForkGate:
    """Any number of threads may be inside; a fork finds, and keeps, it empty."""

    def __init__(self) -> None:
        self._reset()

    def register(self) -> "ForkGate":
        """Have every fork of this process pass through here from now on."""
        os.register_at_fork(before=self.close, after_in_parent=self.open_again, after_in_child=self._reset)
        return self

    @contextmanager
    def inside(self) -> Iterator[None]:
        """Be inside; waits for a fork that is under way. May be nested."""
        depth = getattr(self._own, "depth", 0)
        with self._changed:
            if not depth:
                self._changed.wait_for(lambda: not self._closing, timeout=_PATIENCE)
            self._inside += 1
        self._own.depth = depth + 1
        changed = self._changed
        try:
            yield
        finally:
            if changed is self._changed:  # in a child that was forked in between nobody is inside any more
                self._own.depth = depth
                with changed:
                    self._inside -= 1
                    changed.notify_all()

    def close(self) -> None:
        """Wait until nobody else is inside, and keep others out."""
        own = getattr(self._own, "depth", 0)
        self._changed.acquire()
        self._closing += 1
        self._changed.wait_for(lambda: self._inside <= own, timeout=_PATIENCE)

    def open_again(self) -> None:
        """The fork is done."""
        self._closing -= 1
        self._changed.notify_all()
        self._changed.release()

    def _reset(self) -> None:
        """A forked child starts with nobody inside."""
        self._changed = threading.Condition()
        self._own = threading.local()
        self._inside = 0
        self._closing = 0


#: The gate of this process.
fork_gate = ForkGate().register()

"""No broker is spoken to inside a transaction of a store: what watches over it, in tests and in the workers they start.

A store's transaction that is open in a thread is known by the thread; a message sent, acknowledged or rejected there
raises BrokerInTransaction, and is kept for the test to fail with, should somebody catch it.
"""

import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from kombu import Connection, Producer
from kombu.message import Message

from dagabaaz_celery.stores.sql.database import Database

_local = threading.local()


class BrokerInTransaction(AssertionError):
    """A broker was spoken to while a transaction was open: its commit may wait for the network, or never come."""


@contextmanager
def no_broker_in_transactions() -> Iterator[list[str]]:
    """Refuse it while the block lasts; gives what was refused so far."""
    refused: list[str] = []
    watched = [(Producer, "publish"), (Connection, "ensure_connection"), (Message, "ack"), (Message, "reject")]
    originals: list[tuple[type, str, Callable[..., Any]]] = [
        (owner, name, getattr(owner, name)) for owner, name in watched
    ]
    opening = [(Database, name, getattr(Database, name)) for name in ("read", "write")]
    for owner, name, original in originals:
        setattr(owner, name, _refuse_inside(original, f"{owner.__name__}.{name}", refused))
    for owner, name, original in opening:
        setattr(owner, name, _note_open(original))
    try:
        yield refused
    finally:
        for owner, name, original in (*originals, *opening):
            setattr(owner, name, original)


def _note_open(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    @contextmanager
    def opened(*args: Any, **kwargs: Any) -> Iterator[Any]:
        with original(*args, **kwargs) as found:
            _local.depth = getattr(_local, "depth", 0) + 1
            try:
                yield found
            finally:
                _local.depth -= 1

    return opened


def _refuse_inside(original: Callable[..., Any], name: str, refused: list[str]) -> Callable[..., Any]:
    @functools.wraps(original)
    def call(*args: Any, **kwargs: Any) -> Any:
        if getattr(_local, "depth", 0):
            refused.append(name)
            raise BrokerInTransaction(f"{name} was called inside a transaction of a store")
        return original(*args, **kwargs)

    return call

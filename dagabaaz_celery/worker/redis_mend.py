"""A mend of kombu's Redis transport, in workers: one that loses Redis waits for it instead of ending.

Celery's consumer closes a lost connection twice. The second time kombu (seen in 5.7, with redis-py 8) tries to give
back messages that wait for their late acknowledgement, over a new connection, and asks an object that is gone for the
host's name. Celery connects again after a connection error. This is an AttributeError, and ends the worker.
"""

import functools
import logging
from types import SimpleNamespace
from typing import Any

from celery import Celery

logger = logging.getLogger(__name__)


def mend_redis_transport(app: Celery) -> None:
    """Have a closed channel of the app's transport say so with a connection error, where it is of the faulty kind."""
    transport = app.connection_for_read().transport
    if transport.driver_type != "redis":
        return
    channel = type(transport).Channel
    if _is_faulty(channel):
        _mend(channel, transport.connection_errors[0])


def _is_faulty(channel: Any) -> bool:
    """Whether a channel whose connection is closed stumbles over that."""
    closed = SimpleNamespace(connection=SimpleNamespace(client=None))
    try:
        channel._connparams(closed)
    except AttributeError:
        return True
    except Exception:  # whatever else it raises, it is not this fault
        logger.debug("kombu's Redis transport is not mended", exc_info=True)
    return False


def _mend(channel: Any, connection_error: type[Exception]) -> None:
    find_parameters = channel._connparams

    @functools.wraps(find_parameters)
    def find_parameters_while_open(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.connection.client is None:
            raise connection_error("the connection is closed")
        return find_parameters(self, *args, **kwargs)

    channel._connparams = find_parameters_while_open

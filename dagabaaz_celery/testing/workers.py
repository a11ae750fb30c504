"""A worker in this process, for tests that want the real thing without a server."""

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

from celery import Celery, signals
from celery.contrib.testing import tasks as _tasks  # noqa: F401  # registers celery.ping
from celery.contrib.testing.worker import start_worker
from celery.worker import state as worker_state
from kombu.exceptions import OperationalError

#: Seconds between two looks for messages and for delayed tasks; Celery's own default of one is for production.
_POLLING_INTERVAL = 0.005
#: Seconds between two calls to a worker that is to end.
_WAKING_INTERVAL = 1.0


@contextmanager
def embedded_worker(app: Celery, *, pool: str = "solo", **options: Any) -> Iterator[Any]:
    """Run a worker for ``app`` in a thread of this process while the block lasts; yields Celery's worker.

    Meant for ``broker_url = "memory://"``, with which no store URL is needed; works with any broker. ``options`` go to
    celery.contrib.testing.worker.start_worker (queues=…, concurrency=…).

        with embedded_worker(app):
            assert dag.start("media", {"url": "…"}).wait(10) == "completed"
    """
    if app.connection_for_write().transport_cls == "memory":
        app.conf.broker_transport_options = {
            "polling_interval": _POLLING_INTERVAL,
            **(app.conf.broker_transport_options or {}),
        }
        app.conf.broker_url = "memory://localhost/"
    given = {"perform_ping_check": False, "loglevel": "WARNING", "timer_precision": _POLLING_INTERVAL, **options}
    with ExitStack() as afterwards, start_worker(app, pool=pool, **given) as worker:
        # As a worker process does at its end; Celery's embedded one does not.
        afterwards.callback(signals.worker_shutdown.send, sender=worker)
        try:
            yield worker
        finally:
            worker_state.should_terminate = 0
            if getattr(worker.timer, "running", False):  # the thread of delayed tasks may sleep for a second
                worker.timer.call_repeatedly(_POLLING_INTERVAL, lambda: None)
            # A waiting worker looks at its orders every few seconds, and waits once more after it has seen them.
            for _ in range(2):
                _wake(app)
            # One that got both at once waits still.
            is_over = threading.Event()
            waking = threading.Thread(target=_wake_until, args=(is_over, app), daemon=True)
            waking.start()
            afterwards.callback(waking.join)
            afterwards.callback(is_over.set)


def _wake_until(is_over: threading.Event, app: Celery) -> None:
    while not is_over.wait(_WAKING_INTERVAL):
        with suppress(OperationalError):  # the broker may have gone before its worker
            _wake(app)


def _wake(app: Celery) -> None:
    app.send_task("celery.ping", queue=next(iter(app.amqp.queues.consume_from)), ignore_result=True)

"""For users' own tests: a worker in this process, a checker of what runs left in the store, and the store in memory.

The last is ``stores.memory.MemoryStore``.
"""

import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from celery import Celery, signals
from celery.contrib.testing import tasks as _tasks  # noqa: F401  # registers celery.ping
from celery.contrib.testing.worker import start_worker
from celery.worker import state as worker_state

from dagabaaz_celery.app import Dagabaaz
from dagabaaz_celery.run import Run
from dagabaaz_celery.stores.sql import invariants
from dagabaaz_celery.stores.sql.store import SqlStore

#: Sentences in one assertion's message.
_MAX_SENTENCES = 50
#: Seconds between two looks at a store that is coming to rest.
_REST_INTERVAL = 0.05
#: Seconds between two looks for messages and for delayed tasks; Celery's own default of one is for production.
_POLLING_INTERVAL = 0.005


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
            # A waiting worker looks at its orders every two seconds, and waits once more after it has seen them.
            for _ in range(2):
                app.send_task("celery.ping", queue=next(iter(app.amqp.queues.consume_from)), ignore_result=True)


def find_violations(
    dag: Dagabaaz | SqlStore, runs: Iterable[Run | str] | None = None, *, at_rest: bool = False
) -> list[str]:
    """Whatever contradicts itself in the rows of these runs (None: of every run, and rows without a run).

    Each is a sentence that names its run; none when all is well: counters equal what they count, no node was launched
    before its dependencies were closed, every task has one accepted outcome and the attempts that it counts, and no
    row refers to one that is not there. With ``at_rest`` also: every run has ended, nothing is open, and every
    callback was delivered. Raises UnknownRun.
    """
    if not isinstance(dag, (Dagabaaz, SqlStore)):
        raise TypeError(
            f"find_violations takes a Dagabaaz or a SqlStore, not a {type(dag).__name__}. A MemoryStore keeps no "
            "counters that could be wrong: compare its run() and tasks() with what you expect."
        )
    store = dag if isinstance(dag, SqlStore) else dag._runtime.store
    run_ids = None if runs is None else [run if isinstance(run, str) else run.id for run in runs]
    return invariants.find_violations(store, run_ids, at_rest=at_rest)


def assert_sound(
    dag: Dagabaaz | SqlStore,
    runs: Iterable[Run | str] | None = None,
    *,
    at_rest: bool = True,
    timeout: float = 10.0,
) -> None:
    """Fail with what ``find_violations`` finds.

    The runs are meant to be over, unless ``at_rest`` is False: what is still going on, such as a callback that a worker
    has yet to deliver, has ``timeout`` seconds to end. A contradiction fails at once.
    """
    chosen = None if runs is None else list(runs)
    deadline = time.monotonic() + timeout
    title, found = "The store is not sound:", find_violations(dag, chosen)
    while not found and at_rest:
        found = find_violations(dag, chosen, at_rest=True)
        if not found or time.monotonic() > deadline:
            title = f"The store is sound, and not at rest after {timeout:g} s:"
            break
        time.sleep(_REST_INTERVAL)
        found = find_violations(dag, chosen)
    if found:
        more = f"\n… and {len(found) - _MAX_SENTENCES} more" if len(found) > _MAX_SENTENCES else ""
        raise AssertionError("\n".join([title, *found[:_MAX_SENTENCES]]) + more)

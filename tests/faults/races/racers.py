"""Calls on one store that are let go at the same instant, from threads of several processes.

    with Crew(processes=2) as crew:
        first, second = crew.race(url, prefix, [Call(complete, work), Call(cancel, run_id)])

A call is a function of this module, or of another that processes can import, that takes the ``Dagabaaz`` of its
process first; it does what follows its commits as a worker does. Its result, or what it raised, is that of the race.
"""

import multiprocessing
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any, Self

from celery import Celery

from dagabaaz_celery.app import Dagabaaz
from dagabaaz_celery.constants import TaskStatus
from dagabaaz_celery.errors import RunStateError
from dagabaaz_celery.stores.sql import engines
from dagabaaz_celery.stores.sql.records import Aftermath, ClaimRefused, TaskError
from dagabaaz_celery.stores.sql.store import SqlStore, Work
from dagabaaz_celery.stores.sql.tables import new_id
from tests.integration.sql_stores import records

#: Seconds from the last racer's report that it is ready to the start: beyond what it takes to tell all of them.
_RUN_UP = 0.003
#: Seconds that a race may take on a slow machine, locks of 50 others included; longer is a hang.
PATIENCE = 100.0


# -- what racers do


@dataclass
class Seen:
    """What one call did: whether it won, and the attempts that it launched."""

    won: bool
    launched: list[str] = field(default_factory=list)
    work: Work | None = None
    #: After a cancel: each task's claim token, as of its return.
    tokens: dict[str, str | None] = field(default_factory=dict)


def claim(dag: Dagabaaz, attempt_id: str) -> Seen:
    """Claim an attempt."""
    found = store_of(dag).claim(attempt_id, new_id(), None)
    return Seen(False) if isinstance(found, ClaimRefused) else Seen(True, work=found.work)


def complete(dag: Dagabaaz, work: Work) -> Seen:
    """Report a success with one artifact."""
    store = store_of(dag)
    return _settle(store, store.complete(work, records(1), "one"))


def work_on(dag: Dagabaaz, attempt_id: str) -> Seen:
    """Claim an attempt and report its success at once."""
    claimed = claim(dag, attempt_id)
    return claimed if claimed.work is None else complete(dag, claimed.work)


def fail(dag: Dagabaaz, work: Work) -> Seen:
    """Report a failure."""
    store = store_of(dag)
    return _settle(store, store.fail(work, TaskError("ValueError", "boom")))


def crash(dag: Dagabaaz, work: Work) -> Seen:
    """Report that the work was lost for good."""
    store = store_of(dag)
    return _settle(store, store.fail(work, TaskError("WorkerLost", "it died"), TaskStatus.CRASHED))


def retry_task(dag: Dagabaaz, work: Work) -> Seen:
    """Report that the body asked for another attempt, at once."""
    store = store_of(dag)
    return _settle(store, store.retry_attempt(work, delay=0, retries=1, error=TaskError("Retry", "again")))


def cancel(dag: Dagabaaz, run_id: str) -> Seen:
    """Cancel a run, and note who had claimed what when that returned."""
    dag.run(run_id).cancel()
    return Seen(True, tokens=tokens_of(store_of(dag), run_id))


def retry(dag: Dagabaaz, run_id: str) -> Seen:
    """Retry a run; lost when its state is against it."""
    store = store_of(dag)
    try:
        return _settle(store, store.retry(run_id))
    except RunStateError:
        return Seen(False)


def pause(dag: Dagabaaz, run_id: str) -> Seen:
    """Pause a run."""
    return _do_if_open(dag.run(run_id).pause)


def resume(dag: Dagabaaz, run_id: str) -> Seen:
    """Resume a run."""
    return _do_if_open(dag.run(run_id).resume)


def _do_if_open(act: Callable[[], None]) -> Seen:
    try:
        act()
    except RunStateError:
        return Seen(False)
    return Seen(True)


def store_of(dag: Dagabaaz) -> SqlStore:
    """The store of a process."""
    return dag._runtime.store


def tokens_of(store: SqlStore, run_id: str) -> dict[str, str | None]:
    """Each task's claim token."""
    task = store.tables.task
    with store.read() as connection:
        rows = connection.execute(
            task.select().with_only_columns(task.c.id, task.c.claim_token).where(task.c.run_id == run_id)
        )
        return {row.id: row.claim_token for row in rows}


def callbacks_of(store: SqlStore, run_id: str) -> list[tuple[int, str]]:
    """The ends of a run that its callbacks are owed for: (generation, status)."""
    owed = store.tables.owed
    wanted = owed.select().where(owed.c.run_id == run_id, owed.c.kind == "callback").order_by(owed.c.generation)
    with store.read() as connection:
        return [(row.generation, row.status) for row in connection.execute(wanted)]


def _settle(store: SqlStore, aftermath: Aftermath | None) -> Seen:
    """Do what a commit owes; its callbacks stay owed, for the test to count."""
    if aftermath is None:
        return Seen(False)
    for owed in aftermath.owed:
        if owed.kind == "cancel":
            store.cancel_rest(owed)
        elif owed.kind == "launch":
            while store.continue_launch(owed).owed:
                continue
    return Seen(True, [dispatch.attempt_id for dispatch in aftermath.publish])


# -- the race


@dataclass(frozen=True)
class Call:
    """What one racer calls, and how many seconds after the start."""

    function: Callable[..., Seen]
    argument: Any
    offset: float = 0.0


class Crew:
    """Processes that race; they end with the ``with`` block, or with this process."""

    def __init__(self, processes: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._members: list[tuple[Any, Connection]] = []
        for _ in range(processes):
            ours, theirs = context.Pipe()
            member = context.Process(target=_race_on_command, args=(theirs,), daemon=True)
            member.start()
            theirs.close()
            self._members.append((member, ours))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for member, connection in self._members:
            connection.close()
            member.join(30)
            if member.is_alive():
                member.kill()
                member.join()

    def race(self, url: str, prefix: str, calls: Sequence[Call]) -> list[Seen]:
        """Make the calls at once, dealt out to the processes; raises the first thing that one of them raised."""
        count = len(self._members)
        busy = [(connection, calls[first::count]) for first, (_, connection) in enumerate(self._members)]
        busy = [(connection, dealt) for connection, dealt in busy if dealt]
        for connection, dealt in busy:
            connection.send((url, prefix, dealt))
        for connection, _ in busy:
            _receive(connection)
        start_at = time.monotonic() + _RUN_UP
        for connection, _ in busy:
            connection.send(start_at)
        results: list[Any] = [None] * len(calls)
        for first, (connection, _) in enumerate(busy):
            results[first :: len(busy)] = _receive(connection)
        for result in results:
            if isinstance(result, BaseException):
                raise result
        return results


def _receive(connection: Connection) -> Any:
    assert connection.poll(PATIENCE), f"no racer answered within {PATIENCE:g} s: a hang"
    return connection.recv()


def _race_on_command(connection: Connection) -> None:
    """One process of a crew: races until the other end of its pipe is closed."""
    # Racers start from connections that are there: making one takes longer than a call.
    engines._POOL["pool_size"] = 100
    opened: dict[tuple[str, str], Dagabaaz] = {}
    while True:
        try:
            url, prefix, calls = connection.recv()
            if (url, prefix) not in opened:
                opened[url, prefix] = open_dag(url, prefix)
            _race_here(opened[url, prefix], calls, connection)
        except (EOFError, OSError):
            break
    for dag in opened.values():
        dag.close()


def _race_here(dag: Dagabaaz, calls: Sequence[Call], connection: Connection) -> None:
    results: list[Any] = [None] * len(calls)
    start_at: list[float] = []
    told = threading.Event()
    ready = threading.Barrier(len(calls) + 1)

    def run(number: int, call: Call) -> None:
        ready.wait()
        told.wait()
        wait_for(start_at[0] + call.offset)
        try:
            results[number] = call.function(dag, call.argument)
        except Exception as error:
            results[number] = RuntimeError(f"{call.function.__name__} raised {error!r}")

    threads = [threading.Thread(target=run, args=pair) for pair in enumerate(calls)]
    for thread in threads:
        thread.start()
    ready.wait()
    connection.send("ready")
    start_at.append(connection.recv())
    told.set()
    for thread in threads:
        thread.join()
    connection.send(results)


def wait_for(moment: float) -> None:
    """Until the machine's own clock shows a moment, to the microsecond."""
    while (left := moment - time.monotonic()) > 0:
        time.sleep(left / 2 if left > 0.0005 else 0)


def open_dag(url: str, prefix: str) -> Dagabaaz:
    """An app on a store; its broker, in memory, is nobody's."""
    app = Celery("racers", broker="memory://", set_as_current=False)
    app.conf.update(
        dagabaaz_store_url=url,
        dagabaaz_table_prefix=prefix,
        # What a racer commits it also does: nobody else is to find it owed, however slow the machine.
        dagabaaz_resend_after=3600,
    )
    dag = Dagabaaz(app)
    assert store_of(dag).id  # opened: a race begins with a connection that is there
    return dag

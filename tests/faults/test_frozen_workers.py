"""Workers that are stopped as by SIGSTOP, taken for dead, and come back: whole, their main process, or a child alone.

A virtual machine that is suspended, a debugger, a host that swaps: to the others it looks like a death.
"""

from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import psutil
import pytest
from pytest_celery import CeleryTestWorker
from sqlalchemy import select

from dagabaaz_celery.app import Dagabaaz
from dagabaaz_celery.run import Run
from dagabaaz_celery.stores.sql.store import SqlStore
from tests.faults.app_under_test import Journal
from tests.faults.gated import (
    COUNT,
    PATIENCE,
    bodies_on,
    make_pipeline,
    pids_of,
    start_workers,
    wait_until_held,
)
from tests.processes import wait_until

SHORT = pytest.mark.fault(9)
FULL = pytest.mark.fault(9, full_only=True)
REFUSED = "was refused: the attempt is not current any more"


@pytest.fixture
def gate(tmp_path: Path) -> Path:
    """What bodies wait for."""
    return tmp_path / "held"


@pytest.mark.parametrize(
    "pool",
    [pytest.param("prefork", marks=SHORT), pytest.param("threads", marks=FULL), pytest.param("solo", marks=FULL)],
)
def test_a_frozen_worker_that_comes_back_late_spoils_nothing(
    dag: Dagabaaz, journal: Journal, start_worker: Callable[..., CeleryTestWorker], gate: Path, pool: str
) -> None:
    # Given a worker that is in bodies, has taken more messages, and is frozen
    (frozen,) = start_workers(start_worker, pool)
    run = dag.start(make_pipeline(gate), {"count": COUNT})
    wait_until_held(journal, "held", [frozen])
    wait_until(lambda: is_held_to_capacity(frozen, journal, pool), "it is in as many bodies as it can be", PATIENCE)
    in_hand = {body.task_id for body in bodies_on(frozen, journal)}
    frozen.container.pause()
    # When another one takes over all that it had, so that the run is over
    (other,) = start_workers(start_worker, pool)
    gate.touch()
    assert run.wait(PATIENCE) == "completed", run.error
    assert run.result("total") == sum(range(COUNT))
    before = {task.id: (task.attempt_id, task.status) for task in run.tasks()}
    frozen.container.resume()
    # Then its late results are refused, and said to be
    wait_until(lambda: frozen.logs().count(REFUSED) == len(in_hand), "the late results are refused", PATIENCE)
    assert {task_id for task_id, count in journal.count_bodies().items() if count > 1} == in_hand
    assert recovered(run) == in_hand
    assert {task.id: (task.attempt_id, task.status) for task in run.tasks()} == before
    assert set(reasons_of_earlier_attempts(dag, run)) == in_hand
    # And it is a worker like any other again: the next run is its own
    wait_until(lambda: "announces itself again" in frozen.logs(), "it has announced itself", PATIENCE)
    other.container.stop(PATIENCE)
    works_alone(dag, journal, frozen)


@SHORT
def test_a_frozen_child_keeps_its_task_and_holds_up_no_other(
    dag: Dagabaaz, journal: Journal, start_worker: Callable[..., CeleryTestWorker], gate: Path, conf: dict[str, Any]
) -> None:
    # Given a worker of two processes, one of them frozen in a body
    (worker,) = start_workers(start_worker, "prefork")
    run = dag.start(make_pipeline(gate), {"count": COUNT})
    wait_until(lambda: is_held_to_capacity(worker, journal, "prefork"), "both of its processes are in bodies", PATIENCE)
    body = bodies_on(worker, journal)[0]
    child = psutil.Process(body.pid)
    child.suspend()
    # When the other one goes on, for longer than it takes a worker to be dead
    gate.touch()
    others = COUNT - 1
    wait_until(lambda: [task.status for task in run.tasks()].count("completed") == others + 1, "all others", PATIENCE)
    beats = conf["dagabaaz_dead_after"] / conf["dagabaaz_sweep_interval"]
    start = heartbeats(dag)
    wait_until(lambda: min(heartbeats(dag).values()) > max(start.values()) + 2 * beats, "its worker lives on", PATIENCE)
    assert run.status == "running"
    child.resume()
    # Then its own result is the one that counts
    assert run.wait(PATIENCE) == "completed", run.error
    assert set(journal.count_bodies().values()) == {1}
    assert {(task.attempt, task.recoveries) for task in run.tasks()} == {(1, 0)}


@FULL
def test_a_child_of_a_frozen_main_process_may_end_its_body_while_nobody_has_taken_over(
    dag: Dagabaaz, journal: Journal, start_worker: Callable[..., CeleryTestWorker], gate: Path
) -> None:
    # Given a worker whose main process is frozen while its children are in bodies
    (frozen,) = start_workers(start_worker, "prefork")
    run = dag.start(make_pipeline(gate), {"count": COUNT})
    wait_until(lambda: is_held_to_capacity(frozen, journal, "prefork"), "both children are in bodies", PATIENCE)
    in_hand = {body.task_id for body in bodies_on(frozen, journal)}
    main = psutil.Process(frozen.container.pid)
    main.suspend()
    # When their bodies end with nobody there to take over
    gate.touch()
    wait_until(lambda: in_hand <= completed(run), "their outcomes are accepted", PATIENCE)
    # Then another worker does the rest only, and the frozen one, when it is back, finds nothing to do
    start_workers(start_worker, "prefork")
    assert run.wait(PATIENCE) == "completed", run.error
    main.resume()
    wait_until(lambda: "announces itself again" in frozen.logs(), "it has announced itself", PATIENCE)
    assert set(journal.count_bodies().values()) == {1}
    assert {(task.attempt, task.recoveries) for task in run.tasks()} == {(1, 0)}


@pytest.mark.parametrize("back", [pytest.param("during", marks=SHORT), pytest.param("after", marks=FULL)])
def test_a_child_of_a_frozen_main_process_ends_its_body_too_late(
    dag: Dagabaaz, journal: Journal, start_worker: Callable[..., CeleryTestWorker], gate: Path, back: str
) -> None:
    # Given a worker whose main process is frozen while its children are in bodies, and another one that began them anew
    (frozen,) = start_workers(start_worker, "prefork")
    run = dag.start(make_pipeline(gate), {"count": COUNT})
    wait_until(lambda: is_held_to_capacity(frozen, journal, "prefork"), "both children are in bodies", PATIENCE)
    in_hand = {body.task_id for body in bodies_on(frozen, journal)}
    main = psutil.Process(frozen.container.pid)
    main.suspend()
    (other,) = start_workers(start_worker, "prefork")
    wait_until(lambda: recovered(run) == in_hand, "it was taken over", PATIENCE)
    # When both workers' bodies end, and the frozen process comes back before or after the run is over
    if back == "during":
        main.resume()
    gate.touch()
    assert run.wait(PATIENCE) == "completed", run.error
    if back == "after":
        main.resume()
    # Then one outcome was accepted of each
    wait_until(lambda: frozen.logs().count(REFUSED) == len(in_hand), "the late results are refused", PATIENCE)
    assert run.result("total") == sum(range(COUNT))
    assert {task_id for task_id, count in journal.count_bodies().items() if count > 1} == in_hand
    assert recovered(run) == in_hand
    other.container.stop(PATIENCE)
    works_alone(dag, journal, frozen)


def is_held_to_capacity(worker: CeleryTestWorker, journal: Journal, pool: str) -> bool:
    """Whether every process or thread of a worker's pool is in a held body."""
    return sum(body.slug == "held" for body in bodies_on(worker, journal)) == (1 if pool == "solo" else 2)


def completed(run: Run) -> set[str]:
    """Tasks whose outcome was accepted."""
    return {task.id for task in run.tasks() if task.status == "completed"}


def recovered(run: Run) -> set[str]:
    """Tasks that were given to another worker."""
    return {task.id for task in run.tasks() if task.recoveries}


def works_alone(dag: Dagabaaz, journal: Journal, worker: CeleryTestWorker) -> None:
    """A run, all of which this worker does."""
    run = dag.start("pairs", {"count": 3})
    assert run.wait(PATIENCE) == "completed", run.error
    assert {entry.pid for entry in journal.read(run.id)} <= pids_of(worker)
    assert {(task.attempt, task.recoveries) for task in run.tasks()} == {(1, 0)}


def heartbeats(dag: Dagabaaz) -> dict[str, int]:
    """Where the heartbeat of every known worker stands."""
    with closing(open_store(dag)) as store:
        return {worker.hostname: worker.beat for worker in store.list_workers()}


def reasons_of_earlier_attempts(dag: Dagabaaz, run: Run) -> dict[str, str]:
    """Why attempts of a run were replaced, by their task."""
    with closing(open_store(dag)) as store, store.read() as connection:
        attempt = store.tables.attempt
        rows = connection.execute(select(attempt.c.task_id, attempt.c.reason).where(attempt.c.run_id == run.id))
        return {row.task_id: row.reason for row in rows}


def open_store(dag: Dagabaaz) -> SqlStore:
    """The same store, by a connection of the test's own."""
    return SqlStore(dag.app.conf.dagabaaz_store_url, prefix=dag.app.conf.dagabaaz_table_prefix)

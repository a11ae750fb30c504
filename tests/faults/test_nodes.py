"""The nodes that fault tests stand on: brokers, stores and workers that can be killed under a run."""

import pytest
from pytest_celery import CeleryTestSetup, CeleryTestWorker

from dagabaaz_celery.app import Dagabaaz
from dagabaaz_celery.constants import RUN_TERMINAL_STATUSES
from tests.faults.app_under_test import Journal
from tests.faults.nodes import WorkerContainer
from tests.processes import wait_until

COUNT = 6


@pytest.mark.fault(2)
def test_a_run_outlives_a_killed_worker_and_a_restarted_broker(
    celery_setup: CeleryTestSetup, dag: Dagabaaz, journal: Journal
) -> None:
    # Given a run whose bodies are under way on two workers
    victim, other = celery_setup.worker_cluster
    run = dag.start("pairs", {"count": COUNT, "seconds": 0.3})
    pids = {child.pid for child in victim.container.children()}
    wait_until(lambda: any(body.pid in pids for body in journal.open_bodies()), "the victim is in a body")
    # When that worker is killed and the broker is restarted
    victim.kill()
    assert victim.container.status == "exited"
    celery_setup.broker.restart()
    # Then the run completes, the killed worker is back, and only what a worker had in hand ran twice
    workers = (victim, other)
    wait_until(lambda: keep_up(*workers) and run.status in RUN_TERMINAL_STATUSES, "the run is over", timeout=60)
    assert run.status == "completed", run.error
    assert run.result("total") == 2 * sum(range(COUNT))
    names = {worker.hostname() for worker in workers}
    wait_until(lambda: keep_up(*workers) and answering_workers(dag, limit=2) == names, "both are connected again", 30)
    bodies = journal.count_bodies()
    assert len(bodies) == 1 + 2 * COUNT + COUNT + 1
    in_hand = {entry.task_id for entry in journal.read() if entry.pid in pids} | {
        body.task_id for body in journal.open_bodies()
    }
    assert {task_id for task_id, count in bodies.items() if count > 1} <= in_hand


def keep_up(*workers: CeleryTestWorker) -> bool:
    """Start what has ended again, as a supervisor does; always true.

    Some end without being killed: kombu 5.7 ends a worker whose Redis goes away while it holds messages and waits for
    more.
    """
    for worker in workers:
        worker.container.revive()
    return True


@pytest.mark.parametrize("celery_broker", ["redis"], indirect=True)
@pytest.mark.parametrize("store", ["sqlite"], indirect=True)
def test_a_worker_can_be_hurt_frozen_and_shut_down(celery_worker: CeleryTestWorker, dag: Dagabaaz) -> None:
    worker: WorkerContainer = celery_worker.container
    # When a process of its pool is killed, then another takes its place
    first, second = worker.children()
    worker.kill_child(first.pid)
    wait_until(lambda: len(worker.children()) == 2 and first not in worker.children(), "the pool is whole again")
    assert second in worker.children()
    # When it is frozen, then it does not answer until it is resumed
    worker.pause()
    assert answering_workers(dag, limit=1, timeout=0.5) == set()
    worker.resume()
    assert answering_workers(dag, limit=1) == {celery_worker.hostname()}
    # When it is shut down, warm or cold, then it ends by itself, and can be started again
    worker.stop()
    assert worker.status == "exited"
    celery_worker.restart()
    # (By Redis a worker is "ready" a moment before it has subscribed: a ping of that moment reaches nobody.)
    wait_until(lambda: answering_workers(dag, limit=1, timeout=1) == {celery_worker.hostname()}, "it answers again")
    worker.quit()
    assert worker.status == "exited"


def answering_workers(dag: Dagabaaz, limit: int, timeout: float = 5.0) -> set[str]:
    """Names of the workers that answer, by a new connection: those of the pool may be from before a restart."""
    with dag.app.connection_for_write() as connection:
        replies = dag.app.control.ping(timeout=timeout, limit=limit, connection=connection)
    return {name for reply in replies for name in reply}

"""Fault 11: somebody revokes one task of a run in Celery, as Flower's button does."""

import random
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from pytest_celery import CeleryTestWorker

from dagabaaz_celery.app import Dagabaaz
from dagabaaz_celery.constants import TASK_TERMINAL_STATUSES
from dagabaaz_celery.models import ConfigSource, DagNode
from dagabaaz_celery.pipeline import Pipeline
from tests.faults.app_under_test import Journal
from tests.processes import wait_until

pytestmark = pytest.mark.fault(11)

#: Seconds that a run of a few tasks may take on a slow machine.
PATIENCE = 60.0


def test_a_revoked_body_cancels_its_run_and_no_other(
    celery_worker: CeleryTestWorker, dag: Dagabaaz, journal: Journal
) -> None:
    # Given a run with a body in it that takes long
    run = dag.start("pairs", {"count": 1, "seconds": 10.0})
    wait_until(lambda: any(body.slug == "left" for body in journal.open_bodies()), "a body runs", PATIENCE)
    (task,) = (task for task in run.tasks() if task.node == "left")
    # When that task is revoked
    dag.app.control.revoke(task.attempt_id, terminate=True)
    # Then its run is cancelled, naming it, nothing of it stays open, and the worker goes on
    assert run.wait(PATIENCE) == "cancelled"
    assert run.error is not None
    assert (run.error.type, run.error.node) == ("TaskRevoked", "left")
    wait_until(lambda: all(each.status in TASK_TERMINAL_STATUSES for each in run.tasks()), "nothing is open")
    assert dag.start("pairs", {"count": 2}).wait(PATIENCE) == "completed"


def test_a_task_revoked_at_any_moment_leaves_one_end(
    celery_worker: CeleryTestWorker, dag: Dagabaaz, journal: Journal, scale: Callable[[int, int], int]
) -> None:
    chance = random.Random(11)
    for _ in range(scale(3, 30)):
        # Given a run of short bodies, some of which have begun
        run = dag.start("pairs", {"count": 4, "seconds": 0.05})
        begun = chance.randrange(1, 8)
        wait_until(lambda run=run, begun=begun: count_begun(journal, run.id) >= begun, "bodies have begun", PATIENCE)
        # When one of its tasks is revoked, be it waiting, running or done
        task = chance.choice(run.tasks())
        dag.app.control.revoke(task.attempt_id, terminate=True)
        # Then the run ends, and stays as it ended
        ended = run.wait(PATIENCE)
        assert ended in ("cancelled", "completed")
        wait_until(
            lambda run=run: all(each.status in TASK_TERMINAL_STATUSES for each in run.tasks()), "nothing is open"
        )
        assert run.status == ended


def count_begun(journal: Journal, run_id: str) -> int:
    """How many bodies of a run have begun."""
    return sum(entry.what == "begun" for entry in journal.read(run_id))


# -- runs that are cancelled with the bodies that run


def held(gate: Path) -> Pipeline:
    """Bodies that last until there is a file of this name."""
    bindings = {"gate": ConfigSource(value=str(gate))}
    body = DagNode(slug="body", plugin="hold", depends_on=["source"], bindings=bindings)
    return Pipeline("held", nodes=[DagNode(slug="source", plugin="emit"), body])


def test_a_run_cancelled_with_its_bodies_ends_their_processes_and_no_other(
    start_worker: Callable[..., CeleryTestWorker], dag: Dagabaaz, journal: Journal, tmp_path: Path
) -> None:
    """What Celery does with the message of a body that it ended: it is acknowledged, and comes to nobody again."""
    # Given a run with two bodies in it and more that wait, and another run's body beside them
    worker = start_worker("-c", "3")
    worker.ready()
    gates = [tmp_path / "mine", tmp_path / "other"]
    mine = dag.start(held(gates[0]), {"count": 2})
    wait_until(lambda: len(journal.open_bodies()) == 2, "two bodies run", PATIENCE)
    other = dag.start(held(gates[1]), {"count": 1})
    wait_until(lambda: len(journal.open_bodies()) == 3, "and one of the other run", PATIENCE)
    waiting = dag.start(held(gates[0]), {"count": 2}, tags={"waits": "yes"})
    pids = {entry.pid for entry in journal.open_bodies() if entry.run_id == mine.id}
    (spared,) = {entry.pid for entry in journal.open_bodies() if entry.run_id == other.id}
    # When the run is cancelled, and its bodies with it
    assert dag.cancel(pipeline="held", tags={"waits": "yes"}) == 1
    mine.cancel(terminate=True)
    # Then their processes end, the other run's goes on, and so does the worker
    wait_until(lambda: not any(map(psutil.pid_exists, pids)), "their processes are gone", PATIENCE)
    assert psutil.pid_exists(spared)
    for gate in gates:
        gate.touch()
    assert other.wait(PATIENCE) == "completed"
    assert dag.start("pairs", {"count": 2}).wait(PATIENCE) == "completed"
    # And nothing of it ran again, or counts as lost with its worker
    assert count_begun(journal, mine.id) == 3
    assert count_begun(journal, waiting.id) <= 1
    assert {task.status for task in mine.tasks() if task.node == "body"} == {"cancelled"}
    # And a retry of it completes
    mine.retry()
    assert mine.wait(PATIENCE) == "completed"
    assert [(task.attempt, task.recoveries) for task in mine.tasks()] == [(1, 0), (2, 0), (2, 0)]
    assert [task.recoveries for task in other.tasks()] == [0, 0]
    # And no message was left behind
    worker.container.stop()
    with dag._runtime.broker.link() as link:
        assert link.count_messages(dag.app.conf.task_default_queue) == 0

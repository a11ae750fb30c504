"""Fault 11: somebody revokes one task of a run in Celery, as Flower's button does."""

import random
from collections.abc import Callable

import pytest
from pytest_celery import CeleryTestWorker

from dagabaaz_celery.app import Dagabaaz
from dagabaaz_celery.constants import TASK_TERMINAL_STATUSES
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

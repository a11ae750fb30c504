"""A process dies after its commit and before it has published what that owes, or before it has marked that as done.

Whoever dies, a client that starts or cancels a run, a pool child or a worker's sweep: others do the rest, once.
"""

import json
import os
import sys
import uuid
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pytest_celery import CeleryTestWorker
from sqlalchemy import func, select

from dagabaaz_celery.app import Dagabaaz
from dagabaaz_celery.run import Run
from dagabaaz_celery.stores.sql.dialects import now
from dagabaaz_celery.stores.sql.store import SqlStore
from tests.faults.app_under_test import CONF_VARIABLE, JOURNAL_VARIABLE, POINTS_VARIABLE, Journal
from tests.faults.injection import FaultPoints
from tests.faults.nodes import ROOT
from tests.processes import ProcessTree, wait_until

COUNT = 3
TASKS = 3 * COUNT + 2
PATIENCE = 90.0

#: A mark is one statement, with nothing between it and its commit.
_MARKS = ["mark_queued begins", "mark_queued committed"]
#: Before the commit of a start there is no run.
NOTHING_STARTED = ["start begins", "start commits"]
STARTED = ["start committed", "publish", "published", *_MARKS]
SWEPT = ["published", "lease_due_tasks committed", "publish", "mark_queued begins"]
#: Each with how many processes pass there first, so that some messages of a batch are out.
COMPLETED = [("complete committed", 0), ("publish", 0), ("publish", 3), ("published", 0), ("published", 3)]
CANCELLED = ["cancel committed", "cancel_rest begins", "cancel_rest commits", "cancel_rest committed"]


@pytest.fixture
def more_conf() -> dict[str, Any]:
    """Messages do not get lost here: whatever is found again is so because it was owed."""
    return {"dagabaaz_resend_after": 600.0}


@pytest.fixture
def client_points(tmp_path: Path) -> FaultPoints:
    """Those of the client: a worker may pass the same ones a moment later than one thinks."""
    return FaultPoints(tmp_path / "client-points")


@pytest.fixture
def run_client(
    conf: dict[str, Any], journal: Journal, client_points: FaultPoints, tmp_path: Path
) -> Callable[..., ProcessTree]:
    """Run a client to its end: its arguments; the exit code, negative for a signal."""

    def run(*arguments: str) -> int:
        variables = {
            CONF_VARIABLE: json.dumps(conf),
            JOURNAL_VARIABLE: str(journal.path),
            POINTS_VARIABLE: str(client_points.directory),
        }
        command = [sys.executable, "-m", "tests.faults.client", *arguments]
        return ProcessTree(command, log=tmp_path / "client.log", cwd=ROOT, env={**os.environ, **variables}).wait(60)

    return run


def count_bodies(run: Run, journal: Journal) -> Counter[str]:
    """The run completes; how often the body of each task began."""
    assert run.wait(PATIENCE) == "completed", run.error
    assert run.result("total") == 2 * sum(range(COUNT))
    bodies = Counter(entry.task_id for entry in journal.read(run.id) if entry.what == "begun")
    assert len(bodies) == TASKS
    return bodies


def check_done_once(run: Run, journal: Journal) -> None:
    """The run completes, every body ran once, and no attempt was replaced."""
    assert set(count_bodies(run, journal).values()) == {1}
    assert {task.attempt for task in run.tasks()} == {1}


@pytest.mark.fault(4)
@pytest.mark.timeout(600)
def test_a_process_that_starts_runs_dies_at_it(
    dag: Dagabaaz,
    journal: Journal,
    client_points: FaultPoints,
    celery_worker: CeleryTestWorker,
    run_client: Callable[..., int],
    scale: Callable[[int, int], int],
) -> None:
    for point in NOTHING_STARTED[: scale(0, 2)]:
        # Given a client that is killed before the commit of its start
        client_points.arm(point, "kill")
        assert run_client("start", "none", str(COUNT)) == -9
        # Then there is no run, nor half of one
        assert list(dag.runs()) == [], point
    for point in STARTED[: scale(1, 5)]:
        # Given a client that is killed after that commit
        key = uuid.uuid4().hex
        client_points.arm(point, "kill")
        assert run_client("start", key, str(COUNT)) == -9
        # Then its run completes, and who starts it again by its key gets that one
        (run,) = [run for run in dag.runs() if run.snapshot().key == key]
        assert dag.start("pairs", {"count": COUNT}, key=key) == run
        check_done_once(run, journal)


@pytest.mark.fault(4, full_only=True)
@pytest.mark.timeout(600)
def test_a_process_that_cancels_a_run_dies_at_it(
    conf: dict[str, Any],
    dag: Dagabaaz,
    journal: Journal,
    client_points: FaultPoints,
    celery_worker: CeleryTestWorker,
    run_client: Callable[..., int],
) -> None:
    for point in CANCELLED:
        # Given a run whose messages nobody consumes, and a client that is killed when it has cancelled it
        run = dag.start("pairs", {"count": COUNT}, options={"queue": f"{conf['task_default_queue']}-idle"})
        client_points.arm(point, "kill")
        assert run_client("cancel", run.id) == -9
        # Then the run is cancelled, and so are its tasks, by a worker's sweep
        assert run.status == "cancelled"
        wait_until(lambda run=run: not open_tasks(run), "the rest is cancelled", PATIENCE)
        assert {task.status for task in run.tasks()} == {"cancelled"}
        assert journal.read(run.id) == []


def open_tasks(run: Run) -> list[str]:
    """Statuses of tasks that have not ended."""
    return [task.status for task in run.tasks() if task.status in ("pending", "queued", "running")]


@pytest.mark.fault(4)
@pytest.mark.timeout(600)
def test_a_pool_child_dies_with_what_its_commit_owes(
    dag: Dagabaaz,
    journal: Journal,
    points: FaultPoints,
    celery_worker: CeleryTestWorker,
    scale: Callable[[int, int], int],
) -> None:
    for point, skip in COMPLETED[: scale(2, 5)]:
        points.arm(point, "kill", skip=skip)
        run = dag.start("pairs", {"count": COUNT})
        check_done_once(run, journal)
        assert points.left(point) == 0


@pytest.mark.fault(4)
@pytest.mark.timeout(600)
def test_a_pool_child_dies_while_a_thread_of_its_own_marks_what_it_published(
    dag: Dagabaaz,
    journal: Journal,
    points: FaultPoints,
    celery_worker: CeleryTestWorker,
    scale: Callable[[int, int], int],
) -> None:
    for point in _MARKS[: scale(1, 2)]:
        points.arm(point, "kill")
        run = dag.start("pairs", {"count": COUNT})
        # Then the run completes, and nothing ran twice but what was in hand
        assert count_bodies(run, journal).total() <= TASKS + 1
        wait_until(lambda point=point: points.left(point) == 0, "it is dead", PATIENCE)


@pytest.mark.fault(4)
@pytest.mark.timeout(900)
def test_a_sweep_dies_at_what_it_publishes(
    conf: dict[str, Any],
    dag: Dagabaaz,
    journal: Journal,
    points: FaultPoints,
    client_points: FaultPoints,
    opened: SqlStore,
    start_worker: Callable[..., CeleryTestWorker],
    run_client: Callable[..., int],
    scale: Callable[[int, int], int],
) -> None:
    consuming = None
    for point in SWEPT[: scale(1, 4)]:
        if consuming is not None:
            consuming.stop()
        # Given a run that was committed and not published, by a client that is dead for long enough
        client_points.arm("start committed", "kill")
        key = uuid.uuid4().hex
        assert run_client("start", key, str(COUNT)) == -9
        wait_until(lambda: count_due(opened), "what the client owes is due", PATIENCE)
        # When a worker that consumes another queue sweeps, and dies at it, too
        points.arm(point, "kill")
        sweeping = start_worker("-c", "1", "-Q", f"{conf['task_default_queue']}-idle").container
        wait_until(lambda sweeping=sweeping: sweeping.status == "exited", "the sweeping worker is dead", PATIENCE)
        assert points.left(point) == 0
        # Then the run completes once there is a worker
        consuming = start_worker().container
        consuming.ready()
        run = dag.start("pairs", {"count": COUNT}, key=key)
        check_done_once(run, journal)


def count_due(store: SqlStore) -> int:
    """Tasks that are owed to the queue, and that nobody is publishing."""
    task = store.tables.task
    with store.read() as connection:
        due = select(func.count()).where(task.c.status == "pending", task.c.lease_until < now())
        return connection.execute(due).scalar_one()

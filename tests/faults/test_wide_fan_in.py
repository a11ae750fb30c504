"""A fan-out of 10,000 and its fan-in, with workers killed throughout, and its launch with those who make it killed."""

import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pytest_celery import CeleryTestWorker

from dagabaaz_celery.app import Dagabaaz
from dagabaaz_celery.constants import FanMode
from dagabaaz_celery.models import DagNode
from dagabaaz_celery.pipeline import Pipeline
from dagabaaz_celery.run import Run
from dagabaaz_celery.stores.sql.store import SqlStore
from dagabaaz_celery.stores.sql.transaction import StorePolicy
from tests.faults import wide_app
from tests.faults.app_under_test import Journal
from tests.faults.injection import FaultPoints
from tests.faults.killer import Killer
from tests.faults.nodes import WorkerContainer
from tests.processes import wait_until

WIDE = Pipeline(
    "wide",
    nodes=[
        DagNode(slug="source", plugin="emit"),
        DagNode(slug="each", plugin="work", depends_on=["source"]),
        DagNode(slug="total", plugin="gather", depends_on=["each"], fan_mode=FanMode.AGGREGATE),
    ],
)
TOTAL_INDEX = 2
#: Digits of the process that publishes: all in which two messages for the same node may differ in length.
DIGITS = 8
LAUNCH_BATCH = StorePolicy().launch_batch
TIMEOUT = 3000.0


@pytest.fixture
def more_conf() -> dict[str, Any]:
    """A worker on a busy machine is silent for a while, and alive."""
    return {"dagabaaz_dead_after": 6.0}


@pytest.fixture
def workers(start_worker: Callable[..., CeleryTestWorker]) -> list[WorkerContainer]:
    """Two, which consume."""
    started = [start_worker("-c", "2", app=Path(wide_app.__file__)).container for _ in range(2)]
    for worker in started:
        worker.ready()
    return started


def kill_the_launchers(points: FaultPoints) -> list[str]:
    """Have those die who make the second batch, twice, and then the third: a pool child first, then sweeps."""
    armed = ["continue_launch commits", "continue_launch committed"]
    for point in armed:
        points.arm(point, "kill")
    return armed


@pytest.mark.fault(12)
@pytest.mark.timeout(TIMEOUT + 300)
def test_a_fan_in_completes_while_workers_are_killed(
    dag: Dagabaaz,
    opened: SqlStore,
    journal: Journal,
    points: FaultPoints,
    workers: list[WorkerContainer],
    scale: Callable[[int, int], int],
    record: Callable[[str, float, str], None],
) -> None:
    # Given the size of the message for a narrow fan-in
    narrow = dag.start(WIDE, {"count": 10})
    assert narrow.wait(60) == "completed"
    narrow_size = size_of_total(journal, narrow)
    # When workers and their children are killed while a wide one goes on; in the full form also during its launch
    width = scale(300, 10_000)
    armed = kill_the_launchers(points) if width > LAUNCH_BATCH else []
    run = dag.start(WIDE, {"count": width})
    seed = random.randrange(2**32)
    killer = Killer(opened, journal, workers, seed, most=500, bodies=(5, scale(45, 95)), share_of_mains=1 / 20)
    killer.hunt(run, TIMEOUT)
    # Then it completes, each attempt had one body at most, and only what a killed process held was lost
    assert run.status == "completed", f"seed {seed}: {run.error}"
    assert [points.left(point) for point in armed] == [0] * len(armed)
    assert run.result("total") == sum(range(width))
    tasks = run.tasks()
    bodies = Counter((entry.task_id, entry.attempt) for entry in journal.read(run.id) if entry.what == "begun")
    assert len(tasks) == len({task_id for task_id, _ in bodies}) == width + 2
    assert set(bodies.values()) == {1}
    assert sum(task.recoveries for task in tasks) <= killer.kills.most_lost, f"seed {seed}: {killer.kills}"
    # And the message for the fan-in is as small as before
    wide_size = size_of_total(journal, run)
    assert abs(wide_size - narrow_size) <= DIGITS
    record("message for a fan-in of 10", narrow_size, "bytes")
    record(f"message for a fan-in of {width:,}", wide_size, "bytes")
    record(f"kills under a fan-in of {width:,}", killer.kills.children + killer.kills.mains, "")


def size_of_total(journal: Journal, run: Run) -> int:
    """Bytes of the largest message for the last node, its headers and properties included."""
    lines = [line.split() for line in wide_app.messages_beside(journal.path).read_text().splitlines()]
    return max(int(size) for run_id, index, size in lines if run_id == run.id and int(index) == TOTAL_INDEX)


@pytest.mark.fault(12)
@pytest.mark.timeout(600)
def test_a_launch_is_killed_between_its_batches(
    dag: Dagabaaz, points: FaultPoints, workers: list[WorkerContainer]
) -> None:
    # Given a launch of three batches, and the death of whoever makes the second and the third
    width = 2 * LAUNCH_BATCH + 1
    armed = kill_the_launchers(points)
    run = dag.start(WIDE, {"count": width, "seconds": 0.1})

    def is_launched() -> bool:
        for worker in workers:
            worker.revive()
        return run.snapshot().nodes[1].status == "launched"

    # Then every task is made, once
    wait_until(is_launched, "the whole node is launched", timeout=180)
    assert [points.left(point) for point in armed] == [0] * len(armed)
    assert sorted(task.ordinal for task in run.tasks() if task.node == "each") == list(range(width))
    # And the run, which is long, is as sound as any: the check after each fault looks at it
    run.cancel()

"""A run is undone while processes are killed: all that was done is undone, in reverse, and nothing is left out."""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pytest_celery import CeleryTestWorker

from dagabaaz_celery.app import Dagabaaz
from dagabaaz_celery.run import Run
from tests.faults.app_under_test import Entry, Journal
from tests.faults.catalogue import IS_FULL
from tests.faults.injection import FaultPoints
from tests.faults.undo_app import make_saga, make_undo_dag
from tests.processes import wait_until

APP = Path(__file__).with_name("undo_app.py")
COUNT = 3
PATIENCE = 90.0
#: A point at which the process dies, after the first so many that reach it: from the failure to the last finaliser.
CASES = [
    ("fail committed", 0),
    ("cancel_rest begins", 0),
    ("follow_end begins", 0),
    ("follow_end commits", 0),
    ("follow_end committed", 0),
    ("publish", 0),
    ("published", 1),
    ("mark_queued begins", 0),
    ("claim committed", 1),
    ("body begins", 0),
    ("body begins", COUNT),
    ("body ends", 1),
    ("complete commits", 0),
    ("complete commits", COUNT - 1),
    ("complete committed", COUNT - 1),
    ("complete committed", 2 * COUNT - 1),
    ("body begins", 2 * COUNT),
]
TYPICAL = [("fail committed", 0), ("follow_end commits", 0), ("body begins", 1), ("complete committed", COUNT - 1)]


@pytest.fixture
def dag(conf: dict[str, Any], journal: Journal) -> Iterator[Dagabaaz]:
    dag = make_undo_dag(conf, journal)
    yield dag
    dag.close()
    dag.app.close()


def start_and_wait_for_the_last(dag: Dagabaaz, gate: Path) -> Run:
    """A run of which all is done but the step that is to fail."""
    run = dag.start(make_saga(gate), {"count": COUNT})
    wait_until(
        lambda: any(task.node == "last" and task.status == "running" for task in run.tasks()),
        "the last step has begun",
        timeout=PATIENCE,
    )
    return run


def check_undone(run: Run, journal: Journal, killed: set[int], where: str) -> None:
    """Every step is undone once, the last first; only what a dead process had in hand began twice."""
    tasks = run.tasks()
    undoing = {task.id: task for task in tasks if task.rollback}
    undone = Counter((task.node, task.ordinal) for task in undoing.values() if task.status == "completed")
    assert undone == {(slug, n): 1 for slug in ("first", "second") for n in range(COUNT)}, where
    entries = [entry for entry in journal.read(run.id) if entry.task_id in undoing]
    begun = [entry for entry in entries if entry.what == "begun"]
    assert set(Counter((entry.task_id, entry.attempt) for entry in begun).values()) == {1}, where
    twice = {id_ for id_, count in Counter(entry.task_id for entry in begun).items() if count > 1}
    assert twice <= {entry.task_id for entry in begun if entry.pid in killed}, where
    assert times(begun, "first", min) >= times(entries, "second", max, "ended"), where
    assert [task.status for task in tasks if task.node == "tidy"] == ["completed"], where


def times(entries: list[Entry], slug: str, choose: Callable[[list[float]], float], what: str = "begun") -> float:
    return choose([entry.at for entry in entries if entry.slug == slug and entry.what == what])


@pytest.mark.fault(19, short=["sqlite-redis", "postgresql-rabbitmq", "mariadb-redis"])
@pytest.mark.timeout(900)
def test_processes_are_killed_while_a_run_is_undone(
    dag: Dagabaaz,
    journal: Journal,
    points: FaultPoints,
    start_worker: Callable[..., CeleryTestWorker],
    tmp_path: Path,
    record: Callable[[str, float, str], None],
) -> None:
    worker = start_worker("-c", "2", app=APP)
    worker.ready()
    for number, (point, skip) in enumerate(CASES if IS_FULL else TYPICAL):
        # Given a run of which all is done but the step that is to fail
        gate, before = tmp_path / f"gate-{number}", len(points.fired())
        run = start_and_wait_for_the_last(dag, gate)
        # When a process dies at one step of what follows its failure
        points.arm(point, "kill", skip=skip)
        gate.touch()
        where = f"killed at {point!r}, after {skip}"
        wait_until(lambda before=before: len(points.fired()) > before, where, timeout=PATIENCE)  # type: ignore[misc]
        at = time.monotonic()
        run.wait(PATIENCE, rollback=True)
        # Then everything is undone all the same
        assert (run.status, run.rollback_status) == ("failed", "done"), where
        check_undone(run, journal, {fired.pid for fired in points.fired()[before:]}, where)
        record("a run is undone after a process died", time.monotonic() - at, "s")


@pytest.mark.fault(19, short=["sqlite-redis"])
@pytest.mark.timeout(300)
def test_the_whole_worker_is_killed_while_a_run_is_undone(
    dag: Dagabaaz,
    journal: Journal,
    points: FaultPoints,
    start_worker: Callable[..., CeleryTestWorker],
    tmp_path: Path,
) -> None:
    worker = start_worker("-c", "2", app=APP)
    worker.ready()
    run = start_and_wait_for_the_last(dag, tmp_path / "gate")
    children = {child.pid for child in worker.container.children()}
    points.arm("body begins", "kill worker", skip=1)

    (tmp_path / "gate").touch()
    wait_until(lambda: worker.container.status == "exited", "the worker died", timeout=PATIENCE)
    start_worker("-c", "2", app=APP).ready()

    run.wait(PATIENCE, rollback=True)
    assert (run.status, run.rollback_status) == ("failed", "done")
    check_undone(run, journal, children, "its worker was killed")

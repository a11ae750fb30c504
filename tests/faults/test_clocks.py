"""Workers whose clocks are ten minutes early or late: what is due, and who is dead, is not theirs to tell."""

import shutil
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pytest_celery import CeleryTestWorker

from dagabaaz_celery.app import Dagabaaz
from dagabaaz_celery.models import ConfigSource, DagNode
from dagabaaz_celery.pipeline import Pipeline
from dagabaaz_celery.run import Run
from tests import services
from tests.faults import clock_app
from tests.faults.app_under_test import Entry, Journal
from tests.faults.clock_app import DELAYS, FAILURES, make_clock_dag
from tests.faults.gated import PATIENCE, bodies_on
from tests.processes import wait_until

SKEW = 600
SOURCE = Path(__file__).with_name("skewed_clock.c")
OPTIONS = ("-P", "prefork", "-c", "2", "--prefetch-multiplier", "2")
#: Seconds by which a clock's own ticks may be off between two looks at it.
ROUGHLY = 5.0


@pytest.fixture
def more_conf() -> dict[str, Any]:
    """Workers that are starved of processor time are not dead."""
    return {"dagabaaz_sweep_interval": 1.0, "dagabaaz_dead_after": 6.0}


@pytest.fixture
def dag(conf: dict[str, Any], journal: Journal) -> Iterator[Dagabaaz]:
    """The test's own side of the app, whose clock is right."""
    dag = make_clock_dag(conf, journal)
    yield dag
    dag.close()
    dag.app.close()


@pytest.fixture(scope="session")
def skewed_clock(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library that, preloaded, shifts a process's wall clock."""
    compiler = shutil.which("cc")
    if sys.platform != "linux" or compiler is None:
        services.miss("a test with shifted clocks", "it preloads a library on Linux, made by a C compiler (cc)")
    library = tmp_path_factory.mktemp("clock") / "skewed_clock.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", library, SOURCE, "-ldl"], check=True)
    return library


@pytest.fixture
def start_with_clock(
    start_worker: Callable[..., CeleryTestWorker], skewed_clock: Path
) -> Callable[[int], CeleryTestWorker]:
    """Start a worker whose clock is so many seconds ahead."""

    def start(ahead: int) -> CeleryTestWorker:
        environment = {"LD_PRELOAD": str(skewed_clock), "SKEWED_CLOCK_SECONDS": str(ahead)}
        return start_worker(*OPTIONS, app=Path(clock_app.__file__), environment=environment)

    return start


@pytest.mark.fault(15)
def test_no_attempt_begins_before_its_time_and_nobody_is_taken_for_dead(
    dag: Dagabaaz,
    journal: Journal,
    start_with_clock: Callable[[int], CeleryTestWorker],
    scale: Callable[[int, int], int],
    record: Callable[[str, float, str], None],
) -> None:
    # Given one worker whose clock is early and one whose clock is late
    workers = [start_with_clock(SKEW), start_with_clock(-SKEW)]
    for worker in workers:
        worker.ready()
    # When tasks ask for other attempts in all ways there are
    count = scale(4, 20)
    run = dag.start("retries", {"count": count})
    assert run.wait(2 * PATIENCE) == "completed", run.error
    # Then both clocks were as far off as they should be
    right = time.time() - time.monotonic()
    skews = {
        round((value["ahead"] - right) / SKEW, 1)
        for slug in DELAYS
        for value in run.result(slug)
        if abs(abs(value["ahead"] - right) - SKEW) < ROUGHLY
    }
    assert skews == {1.0, -1.0}
    # And each attempt began when its delay was over, by a clock that only counts; once, and not rescued
    lateness = list(waits_beyond_delay(journal, run))
    assert len(lateness) == count * len(DELAYS) * FAILURES
    assert min(lateness) >= 0
    assert set(journal.count_bodies().values()) == {1, FAILURES + 1}
    assert {(task.retries, task.recoveries) for task in run.tasks()} == {(0, 0), (FAILURES, 0)}
    for worker in workers:
        assert "is dead" not in worker.logs()
        assert "announces itself again" not in worker.logs()
    record("a retry begins after its time, at the latest", max(lateness), "s")


@pytest.mark.parametrize(
    "victim",
    [pytest.param(SKEW, marks=pytest.mark.fault(15)), pytest.param(-SKEW, marks=pytest.mark.fault(15, full_only=True))],
    ids=["early", "late"],
)
def test_a_dead_worker_is_noticed_by_one_with_another_clock(
    dag: Dagabaaz,
    journal: Journal,
    start_with_clock: Callable[[int], CeleryTestWorker],
    tmp_path: Path,
    victim: int,
    record: Callable[[str, float, str], None],
) -> None:
    # Given a body under way on a worker, and another worker, with clocks twenty minutes apart
    gate = tmp_path / "gate"
    doomed = start_with_clock(victim)
    doomed.ready()
    node = DagNode(slug="held", plugin="again", bindings={"gate": ConfigSource(value=str(gate))})
    run = dag.start(Pipeline("held", nodes=[node]))
    wait_until(lambda: bodies_on(doomed, journal), "the body is under way", PATIENCE)
    observer = start_with_clock(-victim)
    observer.ready()
    # When that worker is killed
    doomed.kill()
    died = time.monotonic()
    gate.touch()
    # Then the other one takes over, once
    assert run.wait(PATIENCE) == "completed", run.error
    begun = [entry for entry in journal.read(run.id) if entry.what == "begun"]
    assert len(begun) == 2
    assert [(task.attempt, task.recoveries) for task in run.tasks()] == [(2, 1)]
    record("with dead_after 6 s, a body begins again after its worker died", begun[1].at - died, "s")


def waits_beyond_delay(journal: Journal, run: Run) -> Iterator[float]:
    """For each attempt but a task's first, how much longer it waited than it had been told to, in seconds.

    Counted from where the attempt before began: it asked for the next while its body was still in progress.
    """
    entries: dict[tuple[str, int], dict[str, Entry]] = defaultdict(dict)
    for entry in journal.read(run.id):
        if entry.slug in DELAYS:
            entries[entry.task_id, entry.attempt][entry.what] = entry
    for (task_id, attempt), entry in entries.items():
        before = entries.get((task_id, attempt - 1))
        if before is not None:
            yield entry["begun"].at - before["begun"].at - DELAYS[entry["begun"].slug]

"""Random SIGKILLs, of pool children mostly and of whole workers, under runs of 500 tasks: every run completes.

The short form makes one run, ``make faults`` three on each store by each broker, and ``make soak LOOPS=200`` so many
over all of them, with a line for each run in the file that DAGABAAZ_SOAK_LOG names. The seed of a run's kills is in
that line and in the message of a failure; the instants at which they hit are not repeatable.
"""

import os
import random
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pytest_celery import CeleryTestWorker

from dagabaaz_celery.app import Dagabaaz
from dagabaaz_celery.stores.sql.invariants import find_violations
from dagabaaz_celery.stores.sql.store import SqlStore
from tests.faults.app_under_test import Journal
from tests.faults.catalogue import PAIRS
from tests.faults.killer import Killer
from tests.processes import wait_until

#: With one source, two branches, their pairs and a total: 500 tasks.
COUNT = 166
TASKS = 3 * COUNT + 2
CHILDREN = 2
RUN_TIMEOUT = 240.0
LOOPS_VARIABLE, LOG_VARIABLE = "DAGABAAZ_SOAK_LOOPS", "DAGABAAZ_SOAK_LOG"


@pytest.fixture
def more_conf() -> dict[str, Any]:
    """A worker on a busy machine is silent for a while, and alive."""
    return {"dagabaaz_dead_after": 6.0}


@pytest.fixture
def loops(request: pytest.FixtureRequest, scale: Callable[[int, int], int]) -> int:
    """Runs on this store by this broker: its share of those asked for."""
    given = os.environ.get(LOOPS_VARIABLE)
    if given is None:
        return scale(1, 3)
    params = request.node.callspec.params
    place = PAIRS.index(f"{params['store']}-{params['celery_broker']}")
    return len(range(place, int(given), len(PAIRS)))


@pytest.mark.fault(17)
@pytest.mark.timeout(4 * 3600)
def test_runs_of_500_tasks_outlive_random_kills(
    request: pytest.FixtureRequest,
    dag: Dagabaaz,
    opened: SqlStore,
    journal: Journal,
    start_worker: Callable[..., CeleryTestWorker],
    loops: int,
    record: Callable[[str, float, str], None],
) -> None:
    # Given two workers
    workers = [start_worker("-c", str(CHILDREN)).container for _ in range(2)]
    for worker in workers:
        worker.ready()
    for number in range(loops):
        # When processes of theirs are killed at random while a run goes on
        seed = random.randrange(2**32)
        killer = Killer(opened, journal, workers, seed, most=20, bodies=(5, 35), share_of_mains=1 / 30)
        began = time.monotonic()
        run = dag.start("pairs", {"count": COUNT, "seconds": 0.1})
        killer.hunt(run, RUN_TIMEOUT)
        seconds = time.monotonic() - began
        # Then it completes, each attempt had one body at most, and only what a killed process held was lost
        assert run.status == "completed", f"seed {seed}: {run.error}"
        assert run.result("total") == 2 * sum(range(COUNT))
        tasks = run.tasks()
        bodies = Counter((entry.task_id, entry.attempt) for entry in journal.read(run.id) if entry.what == "begun")
        assert len(tasks) == len({task_id for task_id, _ in bodies}) == TASKS
        assert set(bodies.values()) == {1}
        recoveries = [task.recoveries for task in tasks]
        assert sum(recoveries) <= killer.kills.most_lost, f"seed {seed}: {killer.kills}"
        wait_until(lambda run=run: not find_violations(opened, [run.id], at_rest=True), "the run is at rest and sound")
        record("kills under a run of 500 tasks", killer.kills.children + killer.kills.mains, "")
        record("tasks of 500 done again", sum(recoveries), "")
        write_log(
            f"{request.node.callspec.id} run {number + 1} of {loops}: completed in {seconds:.1f} s, killed "
            f"{killer.kills.children} children and {killer.kills.mains} workers, spared {killer.kills.spared}; "
            f"{sum(recoveries)} tasks lost, most often {max(recoveries)} times; "
            f"{sum(bodies.values()) - TASKS} bodies ran again; seed {seed}"
        )


def write_log(line: str) -> None:
    """Add a line to the log of a soak."""
    path = os.environ.get(LOG_VARIABLE)
    if path:
        with Path(path).open("a") as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S', time.gmtime())} {line}\n")

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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from pytest_celery import CeleryTestWorker

from dagabaaz_celery.app import Dagabaaz
from dagabaaz_celery.constants import RUN_TERMINAL_STATUSES
from dagabaaz_celery.run import Run
from dagabaaz_celery.stores.sql.invariants import find_violations
from dagabaaz_celery.stores.sql.store import SqlStore
from tests.faults.app_under_test import Journal
from tests.faults.catalogue import PAIRS
from tests.faults.nodes import WorkerContainer
from tests.processes import wait_until

#: With one source, two branches, their pairs and a total: 500 tasks.
COUNT = 166
TASKS = 3 * COUNT + 2
CHILDREN = 2
#: Of dagabaaz_max_recoveries, which is 3: a fourth loss would rightly end the run.
MOST_KILLS_OF_A_TASK = 2
MOST_KILLS_OF_A_RUN = 20
SHARE_OF_MAIN_PROCESSES = 1 / 30
SECONDS_BETWEEN_KILLS = (0.05, 0.6)
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


@dataclass
class Kills:
    """What was killed in a run."""

    children: int = 0
    mains: int = 0
    spared: int = 0

    @property
    def most_lost(self) -> int:
        """Tasks that can have been in hand at these kills."""
        return self.children + CHILDREN * self.mains


class Killer:
    """Kills at random, and nothing that holds a task which was lost twice."""

    def __init__(self, store: SqlStore, workers: list[WorkerContainer], seed: int) -> None:
        self._store = store
        self._workers = workers
        self._random = random.Random(seed)
        self.kills = Kills()

    def hunt(self, run: Run) -> None:
        """Kill until the run is over, and revive what was killed."""
        deadline = time.monotonic() + RUN_TIMEOUT
        while run.status not in RUN_TERMINAL_STATUSES:
            assert time.monotonic() < deadline, f"the run did not end in {RUN_TIMEOUT:.0f} s: {run.snapshot()}"
            time.sleep(self._random.uniform(*SECONDS_BETWEEN_KILLS))
            if self.kills.children + self.kills.mains < MOST_KILLS_OF_A_RUN:
                self._strike(self._random.choice(self._workers))
            for worker in self._workers:
                worker.revive()

    def _strike(self, worker: WorkerContainer) -> None:
        worker.pause()  # what it has in hand does not change while the store is asked for it
        children = worker.children()
        if self._holds_what_was_lost_twice(worker.pid):
            self.kills.spared += 1
        elif children and self._random.random() < SHARE_OF_MAIN_PROCESSES:  # without, it has only just started
            self.kills.mains += 1
            worker.kill()
        elif children:
            self.kills.children += 1
            self._random.choice(children).kill()
        worker.resume()
        for child in children:  # those of a killed worker have lost their parent: they end their task, and themselves
            if child.is_running():
                child.resume()

    def _holds_what_was_lost_twice(self, pid: int) -> bool:
        ids = [worker.id for worker in self._store.list_workers() if worker.pid == pid]
        in_hand = [work for id_ in ids for work in self._store.list_running_on(id_)]
        return any(work.attempt.recoveries >= MOST_KILLS_OF_A_TASK for work in in_hand)


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
        killer, began = Killer(opened, workers, seed), time.monotonic()
        run = dag.start("pairs", {"count": COUNT, "seconds": 0.02})
        killer.hunt(run)
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

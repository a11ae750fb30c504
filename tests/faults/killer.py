"""Whoever kills workers at random under a run, and starts them again."""

import contextlib
import random
import time
from dataclasses import dataclass, field

import psutil

from dagabaaz_celery.constants import RUN_TERMINAL_STATUSES
from dagabaaz_celery.run import Run
from dagabaaz_celery.stores.sql.store import SqlStore
from tests.faults.app_under_test import Journal
from tests.faults.nodes import WorkerContainer

#: Of dagabaaz_max_recoveries, which is 3: a fourth loss would rightly end the run.
MOST_KILLS_OF_A_TASK = 2
#: Seconds between two looks at how far the run is: so that kills hit a task anywhere.
LONGEST_PAUSE = 0.1


@dataclass
class Kills:
    """What was killed in a run; ``most_lost`` is how many tasks can have been in hand then."""

    children: int = 0
    mains: int = 0
    spared: int = 0
    most_lost: int = 0


@dataclass
class Killer:
    """Kills at random, of the pools' children mostly, and nothing that holds a task which was lost twice.

    ``most`` kills in all, each after ``bodies`` more have begun, from as few to as many: a busy machine needs longer to
    get on, and is not to be killed more often than it can. Of the kills, ``share_of_mains`` hit a whole worker.
    """

    store: SqlStore
    journal: Journal
    workers: list[WorkerContainer]
    seed: int
    most: int
    bodies: tuple[int, int]
    share_of_mains: float
    kills: Kills = field(default_factory=Kills)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)
        self._read = self._begun = 0

    def hunt(self, run: Run, timeout: float) -> None:
        """Kill until the run is over, and revive what was killed; AssertionError after ``timeout`` seconds."""
        deadline = time.monotonic() + timeout
        next_at = self._count_bodies() + self._random.randint(*self.bodies)
        while run.status not in RUN_TERMINAL_STATUSES:
            assert time.monotonic() < deadline, f"the run did not end in {timeout:.0f} s: {run.snapshot()}"
            time.sleep(self._random.uniform(0.0, LONGEST_PAUSE))
            if self._count_bodies() >= next_at and self.kills.children + self.kills.mains < self.most:
                next_at = self._count_bodies() + self._random.randint(*self.bodies)
                self._strike(self._random.choice(self.workers))
            for worker in self.workers:
                worker.revive()

    def _strike(self, worker: WorkerContainer) -> None:
        worker.pause()  # what it has in hand does not change while the store is asked for it
        children = worker.children()
        recoveries = self._find_recoveries(worker.pid)
        if max(recoveries, default=0) >= MOST_KILLS_OF_A_TASK:
            self.kills.spared += 1
        elif children and self._random.random() < self.share_of_mains:  # without, it has only just started
            self.kills.mains += 1
            self.kills.most_lost += len(children)
            worker.kill()
        elif children:
            self.kills.children += 1
            self.kills.most_lost += 1
            self._random.choice(children).kill()
        worker.resume()
        for child in children:  # those of a killed worker have lost their parent: they end their task, and themselves
            with contextlib.suppress(psutil.NoSuchProcess):
                child.resume()

    def _count_bodies(self) -> int:
        if not self.journal.path.exists():  # before the very first
            return 0
        with self.journal.path.open("rb") as file:
            file.seek(self._read)
            new = file.read()
        self._read += len(new)
        self._begun += new.count(b'"begun"')
        return self._begun

    def _find_recoveries(self, pid: int) -> list[int]:
        """How often each task in a worker's hands was lost before."""
        ids = [worker.id for worker in self.store.list_workers() if worker.pid == pid]
        return [work.attempt.recoveries for id_ in ids for work in self.store.list_running_on(id_)]

"""A process that runs tasks is killed at every step of one: the run completes, and only what was in hand runs twice."""

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from pytest_celery import CeleryTestWorker

from dagabaaz_celery.app import Dagabaaz
from dagabaaz_celery.run import Run
from dagabaaz_celery.settings import Settings
from tests.faults.app_under_test import Journal
from tests.faults.catalogue import IS_FULL
from tests.faults.gated import make_pipeline, start_workers, wait_until_held
from tests.faults.injection import FaultPoints
from tests.faults.nodes import WorkerContainer
from tests.processes import wait_until

COUNT = 3
TASKS = 3 * COUNT + 2
#: Where the settings are those of the tests; a busy machine makes it slower, and nothing depends on it.
PATIENCE = 90.0


@dataclass(frozen=True)
class Case:
    """A point at which the process dies, after the first ``skip`` that reached it.

    ``stage`` are the nodes whose tasks wait for it then; ``again`` tells whether the task's body runs again, and
    ``lost`` whether its attempt counts as lost.
    """

    point: str
    skip: int
    stage: tuple[str, ...]
    again: bool
    lost: bool

    def __str__(self) -> str:
        return self.point if not self.skip else f"{self.point}, after {self.skip}"


_BRANCHES = ("left", "right")
_NOT_CLAIMED = [("claim begins", False, False), ("claim commits", False, False)]
_CLAIMED = [("claim committed", False, True)]
_IN_HAND = [(point, True, True) for point in ("body begins", "body ends", "complete begins", "complete commits")]
_COMMITTED = [("complete committed", False, False)]
_PUBLISHING = [(point, False, False) for point in ("publish", "published")]
#: The task at the root, alone; what follows its outcome is that its branches are published.
AT_THE_ROOT = [
    *(Case(point, 0, ("source",), again, lost) for point, again, lost in _NOT_CLAIMED + _CLAIMED + _IN_HAND),
    *(Case(point, 0, _BRANCHES, again, lost) for point, again, lost in _COMMITTED + _PUBLISHING),
]
#: One of several siblings; and the publisher of several messages, when some are sent.
AMONG_OTHERS = [
    *(Case(point, 3, _BRANCHES, again, lost) for point, again, lost in _NOT_CLAIMED + _CLAIMED + _IN_HAND + _COMMITTED),
    *(Case(point, 3, _BRANCHES, again, lost) for point, again, lost in _PUBLISHING),
]
#: Few that between them wait for each of the ways in which work is found again.
TYPICAL = [case for case in AT_THE_ROOT if case.point in {"claim begins", "claim committed", "complete commits"}] + [
    case for case in AMONG_OTHERS if case.point in {"body begins", "publish"}
]


@dataclass(frozen=True)
class Death:
    """Which process was killed, and when on the machine's own clock."""

    pid: int
    at: float


class Scene:
    """Workers, one run after another, and a process that is killed in each."""

    def __init__(
        self, dag: Dagabaaz, journal: Journal, points: FaultPoints, workers: list[CeleryTestWorker], killed: str
    ) -> None:
        self.dag = dag
        self.journal = journal
        self.points = points
        self.workers: list[WorkerContainer] = [worker.container for worker in workers]
        self.kills_main = killed == "worker"

    def kill_at(self, case: Case) -> tuple[Run, Death]:
        """A run in which a process dies at a point; returns when the run has completed."""
        before = len(self.points.fired())
        self._prepare()
        mains = {worker.pid for worker in self.workers}
        self.points.arm(case.point, "kill", skip=case.skip)
        run = self._complete(self.dag.start("pairs", {"count": COUNT}), str(case))
        (fired,) = self.points.fired()[before:]
        assert (fired.pid in mains) == self.kills_main, f"{case}: it was another process that died"
        return run, Death(fired.pid, fired.at)

    def kill_in_body(self) -> tuple[Run, Death]:
        """A run in which a process dies in the middle of a body, and others with theirs beside it."""
        self._prepare()
        run = self.dag.start("pairs", {"count": COUNT, "seconds": 2.0})
        pids: list[int] = []

        def find_body() -> bool:
            bodies = [body for body in self.journal.open_bodies() if body.run_id == run.id]
            pids.extend(body.pid for body in bodies if body.slug in _BRANCHES)
            return bool(pids)

        wait_until(find_body, "a body is open", timeout=PATIENCE)
        pid, at = pids[0], time.monotonic()
        if self.kills_main:
            next(worker for worker in self.workers if worker.pid == pid).kill()
        else:
            next(worker for worker in self.workers if pid in _child_pids(worker)).kill_child(pid)
        return self._complete(run, "the middle of a body"), Death(pid, at)

    def check(self, case: Case, run: Run, death: Death) -> None:
        """Only what was in the dead process's hands ran twice, and only what was lost counts as lost."""
        assert run.result("total") == 2 * sum(range(COUNT)), case
        entries = [entry for entry in self.journal.read(run.id) if entry.what == "begun"]
        bodies = Counter(entry.task_id for entry in entries)
        assert len(bodies) == TASKS, case
        assert set(Counter((entry.task_id, entry.attempt) for entry in entries).values()) == {1}, case
        in_its_hands = {entry.task_id for entry in entries if entry.pid == death.pid}
        twice = {task_id for task_id, count in bodies.items() if count > 1}
        tasks = {task.id: task for task in run.tasks()}
        lost = {id_ for id_, task in tasks.items() if task.recoveries}
        assert all(task.attempt == 1 + task.recoveries <= 2 for task in tasks.values()), case
        assert twice <= in_its_hands & lost, case
        if self.kills_main:  # another thread of it may have had another task in hand
            assert len(twice) >= case.again, case
            assert len(lost) >= case.lost, case
        else:
            assert (len(twice), len(lost)) == (case.again, case.lost), case

    def seconds_lost(self, case: Case, run: Run, death: Death) -> float | None:
        """From the death to the last body that it held up; None when there was none left to begin."""
        begun = [entry for entry in self.journal.read(run.id) if entry.what == "begun"]
        later = [entry for entry in begun if entry.at > death.at and entry.slug in case.stage]
        if case.again:
            in_its_hands = {entry.task_id for entry in begun if entry.pid == death.pid}
            later = [entry for entry in later if entry.task_id in in_its_hands and entry.attempt > 1]
        return max(entry.at for entry in later) - death.at if later else None

    def _prepare(self) -> None:
        """Every worker is there."""
        for worker in self.workers:
            if worker.status == "exited":
                worker.start()
                worker.ready()

    def _complete(self, run: Run, where: str) -> Run:
        assert run.wait(PATIENCE) == "completed", f"killed at {where}: {run.error}"
        return run


def _child_pids(worker: WorkerContainer) -> set[int]:
    return {child.pid for child in worker.children()}


#: The test deals this death itself.
IN_THE_MIDDLE = Case("the middle of a body", 0, _BRANCHES, again=True, lost=True)


def kill_everywhere(scene: Scene, cases: list[Case], record: Callable[[str, float, str], None], label: str) -> None:
    """A run for each case and one with a death in mid-body, each checked; how long the work waited is recorded."""
    for case in [*cases, IN_THE_MIDDLE]:
        run, death = scene.kill_in_body() if case is IN_THE_MIDDLE else scene.kill_at(case)
        scene.check(case, run, death)
        seconds = scene.seconds_lost(case, run, death)
        if seconds is not None:
            record(label, seconds, "s")


@pytest.mark.fault(1)
@pytest.mark.timeout(1200)
def test_a_pool_child_is_killed_at_every_step(
    dag: Dagabaaz,
    journal: Journal,
    points: FaultPoints,
    start_worker: Callable[..., CeleryTestWorker],
    record: Callable[[str, float, str], None],
) -> None:
    worker = start_worker("-c", "2")
    worker.ready()
    scene = Scene(dag, journal, points, [worker], killed="child")
    kill_everywhere(scene, AT_THE_ROOT + AMONG_OTHERS if IS_FULL else TYPICAL, record, "a child's work goes on after")


class TestAWholeWorker:
    """With threads and solo pools the process that runs tasks is the worker itself, and another takes over."""

    @pytest.fixture
    def more_conf(self) -> dict[str, Any]:
        return {"dagabaaz_dead_after": 5.0}

    @pytest.mark.fault(1, full_only=True)
    @pytest.mark.timeout(1800)
    @pytest.mark.parametrize("pool", ["threads", "solo"])
    def test_a_worker_without_children_is_killed_at_every_step(
        self,
        pool: str,
        dag: Dagabaaz,
        journal: Journal,
        points: FaultPoints,
        start_worker: Callable[..., CeleryTestWorker],
        record: Callable[[str, float, str], None],
    ) -> None:
        workers = [start_worker("-P", pool, "-c", "2") for _ in range(2)]
        for worker in workers:
            worker.ready()
        scene = Scene(dag, journal, points, workers, killed="worker")
        kill_everywhere(scene, AT_THE_ROOT, record, "work of a threads or solo worker goes on after")


class TestDefaultSettings:
    """How long the work of a dead process waits where nobody set anything."""

    @pytest.fixture
    def more_conf(self) -> dict[str, Any]:
        settings = ("sweep_interval", "dead_after", "resend_after")
        return {f"dagabaaz_{name}": getattr(Settings(), name) for name in settings}

    @pytest.mark.fault(1, full_only=True)
    @pytest.mark.timeout(1800)
    def test_a_pool_child_is_killed(
        self,
        dag: Dagabaaz,
        journal: Journal,
        points: FaultPoints,
        start_worker: Callable[..., CeleryTestWorker],
        record: Callable[[str, float, str], None],
    ) -> None:
        worker = start_worker("-c", "2")
        worker.ready()
        scene = Scene(dag, journal, points, [worker], killed="child")
        kill_everywhere(scene, TYPICAL, record, "with default settings, a child's work goes on after")

    @pytest.mark.fault(1, full_only=True)
    @pytest.mark.timeout(1800)
    def test_a_solo_worker_is_killed(
        self,
        dag: Dagabaaz,
        journal: Journal,
        points: FaultPoints,
        start_worker: Callable[..., CeleryTestWorker],
        record: Callable[[str, float, str], None],
    ) -> None:
        workers = [start_worker("-P", "solo") for _ in range(2)]
        for worker in workers:
            worker.ready()
        scene = Scene(dag, journal, points, workers, killed="worker")
        kill_everywhere(scene, TYPICAL, record, "with default settings, a solo worker's work goes on after")


@pytest.mark.fault(1, short=["sqlite-redis"])
def test_what_a_dead_child_had_is_found_although_its_message_waits_behind_others(
    dag: Dagabaaz, journal: Journal, start_worker: Callable[..., CeleryTestWorker], tmp_path: Path
) -> None:
    # Given one worker of two processes, both in bodies that go on, with more messages waiting in it
    gate = tmp_path / "gate"
    (worker,) = start_workers(start_worker, "prefork")
    count = 4  # as many as the worker takes at a time, so that there is room for a message that comes again
    run = dag.start(make_pipeline(gate), {"count": count})
    wait_until_held(journal, "gate", [worker], at_once=2)
    # When one of them is killed, and the broker gives its message back to the same worker
    victim = journal.open_bodies()[0]
    worker.container.kill_child(victim.pid)
    # Then its loss is found while all processes are in other bodies
    wait_until(
        lambda: [task.recoveries for task in run.tasks() if task.id == victim.task_id] == [1], "it is found", PATIENCE
    )
    assert not gate.exists()
    gate.touch()
    assert run.wait(PATIENCE) == "completed", run.error
    assert run.result("total") == sum(range(count))

"""A worker's memory after many tasks: what grows with every task fills a machine in a week."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import psutil
import pytest
from pytest_celery import CeleryTestWorker

from dagabaaz_celery.app import Dagabaaz
from dagabaaz_celery.models import DagNode
from dagabaaz_celery.pipeline import Pipeline

#: Tasks after which every process has done everything at least once, and after which it is measured again.
FEW, MANY = 5_000, 50_000
#: Tasks of one run, and runs at a time.
WIDTH, AT_ONCE = 249, 4
TOLERANCE = 1.10
MEGABYTE = 2**20

WIDE = Pipeline(
    "wide", nodes=[DagNode(slug="source", plugin="emit"), DagNode(slug="each", plugin="work", depends_on=["source"])]
)


@pytest.fixture
def more_conf() -> dict[str, Any]:
    """The default settings: what is sent twice by a publisher in a hurry is refused, at a price in memory."""
    return {"dagabaaz_sweep_interval": None, "dagabaaz_dead_after": None, "dagabaaz_resend_after": None}


@dataclass(frozen=True)
class Memory:
    """Megabytes of a process: all that is resident, and what it shares with no other."""

    resident: float
    unique: float


@pytest.mark.fault(18, full_only=True)
@pytest.mark.timeout(4 * 3600)
def test_a_worker_needs_no_more_memory_after_many_tasks(
    dag: Dagabaaz, start_worker: Callable[..., CeleryTestWorker], record: Callable[[str, float, str], None]
) -> None:
    worker = start_worker("-c", "2")
    worker.ready()
    dag.register(WIDE)
    measured: dict[int, dict[str, Memory]] = {}
    for done in range(FEW, MANY + 1, FEW):
        do_tasks(dag, FEW)
        measured[done] = measure(worker)
    few, many = measured[FEW], measured[MANY]
    for name in few:
        for at, memory in ((FEW, few[name]), (MANY, many[name])):
            record(f"{name} after {at:,} tasks, resident", memory.resident, "MB")
            record(f"{name} after {at:,} tasks, its own", memory.unique, "MB")
    trend = {name: [round(at[name].resident, 1) for at in measured.values()] for name in few}
    for name in few:
        assert many[name].resident <= TOLERANCE * few[name].resident, trend


def do_tasks(dag: Dagabaaz, count: int) -> None:
    """Run so many tasks to their end."""
    for _ in range(count // (AT_ONCE * (WIDTH + 1))):
        runs = [dag.start("wide", {"count": WIDTH}) for _ in range(AT_ONCE)]
        assert [run.wait(600) for run in runs] == ["completed"] * AT_ONCE


def measure(worker: CeleryTestWorker) -> dict[str, Memory]:
    """The memory of a worker's processes, by name; children in the order of their birth."""
    main = psutil.Process(worker.container.pid)
    children = sorted(worker.container.children(), key=lambda child: child.pid)
    named = {"main process": main, **{f"child {number}": child for number, child in enumerate(children, 1)}}
    infos = {name: process.memory_full_info() for name, process in named.items()}
    return {name: Memory(info.rss / MEGABYTE, info.uss / MEGABYTE) for name, info in infos.items()}

"""A SQLite file that cannot be written for a while: locked by others, on a full disk, read-only."""

import resource
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psutil
import pytest
from pytest_celery import CeleryTestWorker

from dagabaaz_celery.app import Dagabaaz
from dagabaaz_celery.errors import StoreUnavailable
from dagabaaz_celery.run import Run
from tests.faults.app_under_test import Journal
from tests.processes import wait_until

pytestmark = pytest.mark.parametrize("store", ["sqlite"], indirect=True)
OBEDIENT_ROOT = Path(__file__).with_name("obedient_root_app.py")
PATIENCE = 60
DEAD_AFTER = 3.0
COUNT = 4
#: Bytes at which files end, below the size of an empty store.
SMALL = 65_536


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Where the store is."""
    directory = tmp_path / "disk"
    directory.mkdir()
    return directory


@pytest.fixture
def disk(directory: Path) -> Iterator[Path]:
    """A small disk of its own there."""
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", directory], capture_output=True, text=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip(f"a disk to fill did not run: {mounted.stderr.strip()}")
    yield directory
    subprocess.run(["umount", "--lazy", directory], check=True)


@pytest.fixture
def more_conf(directory: Path) -> dict[str, Any]:
    return {
        "dagabaaz_store_url": f"sqlite:///{directory / 'runs.sqlite3'}?timeout=1",
        "dagabaaz_dead_after": DEAD_AFTER,
    }


@pytest.mark.fault(14, short=["sqlite-redis"])
def test_a_locked_file_is_waited_for(
    dag: Dagabaaz,
    start_worker: Callable[..., CeleryTestWorker],
    journal: Journal,
    directory: Path,
    scale: Callable[[int, int], int],
) -> None:
    worker = start_worker("-c", "2")
    worker.ready()
    run = dag.start("pairs", {"count": COUNT, "seconds": 0.5})
    wait_until(journal.open_bodies, "a body runs", 60)
    # When another process holds the file, for longer than anybody waits for it
    with closing(sqlite3.connect(directory / "runs.sqlite3", isolation_level=None, timeout=60)) as holder:
        holder.execute("BEGIN EXCLUSIVE")
        with pytest.raises(StoreUnavailable, match="locked"):
            dag.start("pairs", {"count": 1})
        late = start_worker("-c", "1")
        wait_until(lambda: "waiting" in late.logs(), "a new worker waits for the file", 60)
        wait_until(lambda: "database is locked" in worker.logs(), "the worker says what it waits for", 60)
        time.sleep(scale(int(DEAD_AFTER), 60))
        holder.execute("ROLLBACK")
    # Then it goes on
    assert run.wait(PATIENCE) == "completed"
    late.ready()
    assert list(dag.runs()) == [run]
    assert_nothing_was_lost(run, journal)


@pytest.mark.fault(14, short=["sqlite-redis"])
def test_a_full_disk_is_waited_for(
    disk: Path,
    dag: Dagabaaz,
    start_worker: Callable[..., CeleryTestWorker],
    journal: Journal,
    scale: Callable[[int, int], int],
) -> None:
    worker = start_worker("-c", "2")
    worker.ready()
    run = dag.start("pairs", {"count": COUNT, "seconds": 0.5})
    wait_until(journal.open_bodies, "a body runs", 60)
    # When the disk is full
    ballast = disk / "ballast"
    fill(ballast)
    others: list[Run] = []
    with pytest.raises(StoreUnavailable, match="full") as caught:
        start_until_refused(dag, others)
    assert not caught.value.in_doubt
    wait_until(lambda: "database or disk is full" in worker.logs(), "the worker says what it waits for", 60)
    late = start_worker("-c", "1")  # it waits, unless the file has room left for its row
    time.sleep(scale(int(DEAD_AFTER), 60))
    # Then it goes on when there is room again
    ballast.unlink()
    assert {each.wait(PATIENCE) for each in (run, *others)} == {"completed"}
    late.ready()
    assert set(dag.runs()) == {run, *others}
    assert_nothing_was_lost(run, journal)


@pytest.mark.fault(14, short=["sqlite-redis"])
def test_files_that_may_not_grow_are_waited_for(
    dag: Dagabaaz,
    start_worker: Callable[..., CeleryTestWorker],
    journal: Journal,
    directory: Path,
) -> None:
    worker = start_worker("-c", "2")
    worker.ready()
    run = dag.start("pairs", {"count": COUNT, "seconds": 0.5})
    wait_until(journal.open_bodies, "a body runs", 60)
    # When the system lets no process of the worker write beyond the beginning of a file
    processes = [psutil.Process(worker.container.pid), *worker.container.children()]
    before = [resource.prlimit(process.pid, resource.RLIMIT_FSIZE) for process in processes]
    for process, (_, hard) in zip(processes, before, strict=True):
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (SMALL, hard))
    wait_until(
        lambda: "the database is away (disk I/O error)" in worker.logs(), "the worker says what it waits for", 60
    )
    time.sleep(DEAD_AFTER)
    # Then it goes on when they may grow
    for process, limits in zip(processes, before, strict=True):
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, limits)
    assert run.wait(PATIENCE) == "completed"
    assert_nothing_was_lost(run, journal)


@pytest.mark.fault(14, short=["sqlite-redis"])
def test_a_file_that_became_read_only_is_waited_for(
    dag: Dagabaaz, start_worker: Callable[..., CeleryTestWorker], journal: Journal, directory: Path
) -> None:
    # Given a worker that holds the file open, and processes of its pool that do not yet
    worker = start_worker("-c", "2", app=OBEDIENT_ROOT)
    worker.ready()
    run = dag.start("pairs", {"count": COUNT})
    assert run.wait(PATIENCE) == "completed"
    # When the file becomes read-only, and new processes take the place of those that opened it before
    files = list(directory.glob("runs.sqlite3*"))
    for file in files:
        file.chmod(0o444)
    old = worker.container.children()
    for child in old:
        worker.container.kill_child(child.pid)
    wait_until(lambda: len(worker.container.children()) == len(old), "the pool is whole again")
    late = dag.start("pairs", {"count": COUNT})
    wait_until(lambda: "readonly database" in worker.logs(), "the worker says what it waits for", 60)
    time.sleep(DEAD_AFTER)
    assert not journal.read(late.id)
    # Then it goes on when the file can be written, by connections that see it so
    for file in files:
        file.chmod(0o644)
    assert late.wait(PATIENCE) == "completed"
    assert_nothing_was_lost(late, journal)


def start_until_refused(dag: Dagabaaz, runs: list[Run]) -> None:
    """Start runs while there is room in the pages that the file has already."""
    while True:
        runs.append(dag.start("pairs", {"count": 1}))


def fill(path: Path) -> None:
    """Write until the disk is full."""
    with path.open("wb", buffering=0) as file:
        for size in (2**20, 2**12):
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                continue  # full for pieces of this size


def assert_nothing_was_lost(run: Run, journal: Journal) -> None:
    """Each body ran once, each outcome counts, and no task was thought lost."""
    assert run.result("total") == 2 * sum(range(COUNT))
    assert {(task.attempt, task.recoveries) for task in run.tasks()} == {(1, 0)}
    begun = [entry.task_id for entry in journal.read(run.id) if entry.what == "begun"]
    assert len(begun) == len(set(begun)) == 1 + 3 * COUNT + 1

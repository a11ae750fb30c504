"""PostgreSQL and MariaDB go away under runs: restarted, killed, frozen, unreachable; at any moment, for any time."""

import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from pytest_celery import CeleryTestWorker

from dagabaaz_celery.app import Dagabaaz
from dagabaaz_celery.errors import StoreUnavailable
from dagabaaz_celery.models import DagNode
from dagabaaz_celery.pipeline import Pipeline
from dagabaaz_celery.run import Run
from tests.faults.app_under_test import Entry, Journal
from tests.faults.catalogue import IS_FULL
from tests.faults.conftest import StoreUnderTest
from tests.faults.injection import FaultPoints
from tests.faults.proxy import Proxy
from tests.processes import wait_until
from tests.servers import PrivateServer

pytestmark = [
    pytest.mark.parametrize("store", ["postgresql", "mariadb"], indirect=True),
    pytest.mark.timeout(2400 if IS_FULL else 150),
]
PATIENCE = 300 if IS_FULL else 90
DEAD_AFTER = 4.0

CHAIN = Pipeline(
    "chain",
    nodes=[
        DagNode(slug="source", plugin="emit"),
        DagNode(slug="work", plugin="work", depends_on=["source"]),
        DagNode(slug="total", plugin="gather", depends_on=["work"], fan_mode="aggregate"),
    ],
)


@pytest.fixture
def server(store: StoreUnderTest) -> PrivateServer:
    """The database."""
    assert store.server is not None
    return store.server


@pytest.fixture
def line(server: PrivateServer) -> Iterator[Proxy]:
    """What stands between the database and everybody."""
    with Proxy(server.port) as line:
        yield line


@pytest.fixture
def more_conf(request: pytest.FixtureRequest, store: StoreUnderTest, server: PrivateServer) -> dict[str, Any]:
    url = store.url
    if "line" in request.fixturenames:
        line: Proxy = request.getfixturevalue("line")
        url = url.replace(f":{server.port}/", f":{line.port}/")
    return {"dagabaaz_store_url": url, "dagabaaz_dead_after": DEAD_AFTER}


@pytest.fixture
def outage(scale: Callable[[int, int], int]) -> int:
    """Seconds of an outage: longer than a worker may be silent otherwise."""
    return scale(6, 60)


@pytest.mark.fault(5, short=["mariadb-redis"])
def test_runs_go_on_through_restarts(
    dag: Dagabaaz,
    start_worker: Callable[..., CeleryTestWorker],
    journal: Journal,
    server: PrivateServer,
    scale: Callable[[int, int], int],
    record: Callable[[str, float, str], None],
) -> None:
    # Given workers, and runs that a client starts, again and again by its key until it is told that one is started
    for worker in (start_worker("-c", "2"), start_worker("-c", "2")):
        worker.ready()
    count, longest_pause = scale(40, 1000), scale(3, 20)
    keys = [f"order-{number}" for number in range(count)]
    began, restarts = time.monotonic(), 0
    runs: dict[str, Run] = {}
    # When the database is restarted every few seconds, sometimes by force, while they are started and take place
    next_restart = began
    while not (len(runs) == count and restarts >= 2 and count_open(dag) == 0):
        if time.monotonic() >= next_restart and (IS_FULL or restarts < 2):
            server.kill() if random.random() < 0.5 else server.stop()
            try_start(dag, keys[len(runs) % count])  # quick, and without half a run
            server.start()
            restarts += 1
            next_restart = time.monotonic() + random.uniform(longest_pause / 4, longest_pause)
        for key in keys[len(runs) : len(runs) + 10]:
            if (run := try_start(dag, key)) is not None:
                runs[key] = run
        assert time.monotonic() < began + scale(120, 2000), f"{len(runs)} runs started, {count_open(dag)} open"
    record("restarts of the database under the runs", restarts, "")
    record("runs a second through restarts", count / (time.monotonic() - began), "1/s")
    # Then there is one run for each key, all completed, and nothing ran twice
    assert {run.id for run in dag.runs()} == {run.id for run in runs.values()}
    assert {run.status for run in runs.values()} == {"completed"}
    assert_nothing_was_recovered(dag, journal)


@pytest.mark.fault(5, short=["postgresql-redis"])
def test_an_outage_longer_than_a_workers_silence_makes_nobody_dead(
    dag: Dagabaaz,
    start_worker: Callable[..., CeleryTestWorker],
    journal: Journal,
    server: PrivateServer,
    outage: int,
) -> None:
    # Given two workers in bodies
    workers = start_worker("-c", "2"), start_worker("-c", "2")
    for worker in workers:
        worker.ready()
    runs = [dag.start(CHAIN, {"count": 4, "seconds": 2.0}) for _ in range(2)]
    wait_until(lambda: len(journal.open_bodies()) >= 2, "bodies run", 60)
    # When the database is away, longer than a worker may be silent otherwise
    server.stop()
    with pytest.raises(StoreUnavailable, match="no run was started") as caught:
        dag.start(CHAIN, {"count": 1})
    assert not caught.value.in_doubt
    time.sleep(outage)
    server.start()
    # Then the runs complete, and the outcomes that waited count
    assert {run.wait(PATIENCE) for run in runs} == {"completed"}
    assert len(list(dag.runs())) == len(runs)
    assert_nothing_was_recovered(dag, journal)
    assert all("is dead" not in worker.logs() for worker in workers)
    assert any("the database is away" in worker.logs() for worker in workers)


@pytest.mark.fault(5, short=["mariadb-redis"])
def test_a_rescue_that_is_due_when_the_database_goes_away_is_made_later_and_once(
    dag: Dagabaaz,
    start_worker: Callable[..., CeleryTestWorker],
    journal: Journal,
    points: FaultPoints,
    server: PrivateServer,
    outage: int,
) -> None:
    # Given a worker that dies in a body, and two that live
    victim, *others = workers = [start_worker("-c", "1") for _ in range(3)]
    for worker in workers:
        worker.ready()
    pids = {child.pid for child in victim.container.children()}
    points.arm("rescue commits", "freeze")
    run = dag.start(CHAIN, {"count": 6, "seconds": 3.0})
    wait_until(lambda: any(is_of(body, pids) for body in journal.open_bodies()), "the victim is in a body", 60)
    victim.kill()
    lost = {body.task_id for body in journal.open_bodies() if is_of(body, pids)}
    # When the database goes away in the middle of the rescue
    wait_until(points.fired, "a worker is about to commit the rescue", 60)
    server.kill()
    os.kill(points.fired()[0].pid, signal.SIGCONT)
    time.sleep(outage)
    server.start()
    # Then what it had in hand is dispatched again, once, and nothing else
    assert run.wait(PATIENCE) == "completed"
    assert {task.id for task in run.tasks() if task.recoveries} == lost
    assert {task.recoveries for task in run.tasks()} == {0, 1}
    bodies = journal.count_bodies()
    assert {task_id for task_id, count in bodies.items() if count > 1} == lost
    deaths = [line for other in others for line in other.logs().splitlines() if "is dead" in line]
    assert deaths
    assert all(victim.hostname() in line for line in deaths)


@pytest.mark.fault(5, short=["postgresql-redis"])
def test_workers_go_on_when_a_frozen_database_does(
    dag: Dagabaaz,
    start_worker: Callable[..., CeleryTestWorker],
    journal: Journal,
    server: PrivateServer,
    outage: int,
) -> None:
    workers = start_worker("-c", "2"), start_worker("-c", "2")
    for worker in workers:
        worker.ready()
    runs = [dag.start(CHAIN, {"count": 10, "seconds": 0.5}) for _ in range(2)]
    wait_until(lambda: len(journal.open_bodies()) >= 2, "bodies run", 60)
    # When the database takes every statement and connection, and answers nothing
    server.pause()
    time.sleep(outage)
    server.resume()
    # Then nothing was lost, and nobody is taken for dead
    assert {run.wait(PATIENCE) for run in runs} == {"completed"}
    assert_nothing_was_recovered(dag, journal)
    assert all("is dead" not in worker.logs() for worker in workers)


@pytest.mark.fault(5, full_only=True)
def test_a_frozen_database_that_is_killed_is_an_outage_like_others(
    dag: Dagabaaz,
    start_worker: Callable[..., CeleryTestWorker],
    journal: Journal,
    server: PrivateServer,
) -> None:
    worker = start_worker("-c", "2")
    worker.ready()
    run = dag.start(CHAIN, {"count": 10, "seconds": 0.2})
    wait_until(journal.open_bodies, "a body runs", 60)
    server.pause()
    time.sleep(DEAD_AFTER)
    server.kill()
    server.start()
    assert run.wait(PATIENCE) == "completed"
    assert_nothing_was_recovered(dag, journal)


@pytest.mark.fault(5, full_only=True)
def test_workers_go_on_when_a_network_does_that_swallowed_everything(
    line: Proxy,
    dag: Dagabaaz,
    start_worker: Callable[..., CeleryTestWorker],
    journal: Journal,
    scale: Callable[[int, int], int],
) -> None:
    workers = start_worker("-c", "2"), start_worker("-c", "2")
    for worker in workers:
        worker.ready()
    run = dag.start(CHAIN, {"count": 10, "seconds": 0.5})
    wait_until(journal.open_bodies, "a body runs", 60)
    # When connections are taken and nothing comes back, then those that were open break, and new ones are not answered
    line.swallow()
    time.sleep(DEAD_AFTER)
    line.cut()
    time.sleep(scale(2, 60))
    line.pass_on()
    # Then nothing was lost, and nobody is taken for dead
    assert run.wait(PATIENCE) == "completed"
    assert_nothing_was_recovered(dag, journal)
    assert all("is dead" not in worker.logs() for worker in workers)


def try_start(dag: Dagabaaz, key: str) -> Run | None:
    """Start a run; None when the database is away."""
    try:
        return dag.start(CHAIN, {"count": 2}, key=key)
    except StoreUnavailable:
        return None


def count_open(dag: Dagabaaz) -> int:
    """Runs that have not ended."""
    return sum(1 for _ in dag.runs(status="running"))


def is_of(body: Entry, pids: set[int]) -> bool:
    """Whether a body that takes a while runs in one of these processes."""
    return body.slug == "work" and body.pid in pids


def assert_nothing_was_recovered(dag: Dagabaaz, journal: Journal) -> None:
    """No task was thought lost, and no body ran twice."""
    tasks = [task for run in dag.runs() for task in run.tasks()]
    assert {(task.attempt, task.recoveries) for task in tasks} == {(1, 0)}
    assert set(journal.count_bodies().values()) == {1}

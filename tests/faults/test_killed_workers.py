"""Workers that end under their work: killed, quit cold or shut down warm, with messages taken and bodies under way.

Redis gives what a killed worker had taken to nobody before its visibility timeout is over, by default an hour: so what
is seen here within seconds there was sent again by the workers that are left.
"""

import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from pytest_celery import CeleryTestWorker

from dagabaaz_celery.app import Dagabaaz
from dagabaaz_celery.models import ConfigSource, DagNode
from dagabaaz_celery.pipeline import Pipeline
from tests.faults.app_under_test import Journal
from tests.faults.gated import (
    COUNT,
    PATIENCE,
    bodies_on,
    make_pipeline,
    start_workers,
    wait_until_all_taken,
    wait_until_ended,
)
from tests.processes import wait_until

SHORT = pytest.mark.fault(2)
FULL = pytest.mark.fault(2, full_only=True)


@pytest.fixture
def gates(tmp_path: Path) -> tuple[Path, Path]:
    """What bodies wait for: early and late in a run."""
    return tmp_path / "early", tmp_path / "late"


@pytest.mark.parametrize(
    ("number", "victims", "moment", "pool"),
    [
        pytest.param(signal.SIGKILL, "all", "early", "prefork", marks=SHORT),
        pytest.param(signal.SIGKILL, "all", "late", "prefork", marks=FULL),
        pytest.param(signal.SIGKILL, "one", "early", "prefork", marks=FULL),
        pytest.param(signal.SIGKILL, "one", "late", "prefork", marks=FULL),
        pytest.param(signal.SIGQUIT, "all", "early", "prefork", marks=FULL),
        pytest.param(signal.SIGQUIT, "one", "late", "prefork", marks=SHORT),
        pytest.param(signal.SIGKILL, "one", "late", "threads", marks=FULL),
        pytest.param(signal.SIGQUIT, "all", "early", "threads", marks=FULL),
        pytest.param(signal.SIGKILL, "all", "early", "solo", marks=FULL),
        pytest.param(signal.SIGQUIT, "one", "late", "solo", marks=FULL),
    ],
)
def test_what_a_worker_held_when_it_ended_is_done_by_others(
    dag: Dagabaaz,
    journal: Journal,
    start_worker: Callable[..., CeleryTestWorker],
    gates: tuple[Path, Path],
    number: signal.Signals,
    victims: str,
    moment: str,
    pool: str,
) -> None:
    # Given bodies under way on two workers, which have taken all messages
    workers = start_workers(start_worker, pool, pool)
    run = dag.start(make_pipeline(*gates), {"count": COUNT})
    if moment == "late":
        gates[0].touch()
    wait_until_all_taken(dag, journal, run, moment, pool, workers)
    # When one of them, or both, end at once
    ended = workers if victims == "all" else workers[:1]
    in_hand = {body.task_id for worker in ended for body in bodies_on(worker, journal)}
    assert in_hand
    for worker in ended:
        worker.kill(number)
    for gate in gates:
        gate.touch()
    wait_until_ended(*ended)
    if victims == "all":
        workers[0].container.revive()
    # Then the run completes, and only what they had in hand ran twice
    assert run.wait(PATIENCE) == "completed", run.error
    assert run.result("total") == sum(range(COUNT))
    bodies = journal.count_bodies()
    assert len(bodies) == 2 * COUNT + 2
    assert {task_id for task_id, count in bodies.items() if count > 1} <= in_hand
    assert {task.id for task in run.tasks() if task.recoveries} <= in_hand
    assert max(task.recoveries for task in run.tasks()) <= 1
    if number == signal.SIGKILL:
        assert {task.id for task in run.tasks() if task.recoveries} == in_hand


@pytest.mark.parametrize(
    "pool",
    [
        pytest.param("prefork", marks=SHORT),
        pytest.param("threads", marks=FULL),
        pytest.param("solo", marks=FULL),
    ],
)
# Whatever was not given back in order would wait for an hour.
@pytest.mark.parametrize("more_conf", [{"dagabaaz_resend_after": 3600.0}], ids=[""])
def test_a_warm_shutdown_ends_what_runs_and_gives_back_the_rest(
    dag: Dagabaaz,
    journal: Journal,
    start_worker: Callable[..., CeleryTestWorker],
    gates: tuple[Path, Path],
    pool: str,
) -> None:
    # Given bodies under way on two workers, which have taken all messages
    workers = start_workers(start_worker, pool, pool)
    run = dag.start(make_pipeline(*gates), {"count": COUNT})
    wait_until_all_taken(dag, journal, run, "early", pool, workers)
    # When both are told to shut down while they are in bodies, and another one starts
    for worker in workers:
        worker.kill(signal.SIGTERM)
    wait_until(lambda: all("Warm shutdown" in worker.logs() for worker in workers), "they are shutting down", PATIENCE)
    for gate in gates:
        gate.touch()
    wait_until_ended(*workers)
    ended_before = {entry.task_id for entry in journal.read(run.id) if entry.what == "ended"}
    assert not journal.open_bodies()
    workers[0].container.revive()
    # Then nothing is lost, nothing runs twice, and nobody took it for a loss
    assert run.wait(PATIENCE) == "completed", run.error
    assert run.result("total") == sum(range(COUNT))
    assert set(journal.count_bodies().values()) == {1}
    assert ended_before < set(journal.count_bodies())
    assert {(task.attempt, task.recoveries) for task in run.tasks()} == {(1, 0)}


@FULL
@pytest.mark.timeout(600)
@pytest.mark.parametrize("victims", ["one", "all"])
@pytest.mark.parametrize(
    "more_conf",
    [{"dagabaaz_sweep_interval": None, "dagabaaz_dead_after": None, "dagabaaz_resend_after": None}],
    ids=["default"],
)
def test_how_long_it_takes_with_default_settings(
    dag: Dagabaaz,
    journal: Journal,
    start_worker: Callable[..., CeleryTestWorker],
    gates: tuple[Path, Path],
    record: Callable[[str, float, str], None],
    victims: str,
) -> None:
    # Given a worker that has taken all messages, and another one that is idle, or none
    count = 8
    victim = start_worker("-P", "prefork", "-c", "2")
    victim.ready()
    run = dag.start(make_pipeline(*gates), {"count": count})
    wait_until_all_taken(dag, journal, run, "early", "prefork", [victim])
    if victims == "one":
        start_worker("-P", "prefork", "-c", "2").ready()
    in_hand = {body.task_id for body in bodies_on(victim, journal)}
    # When it is killed
    victim.kill()
    there = time.monotonic()
    for gate in gates:
        gate.touch()
    if victims == "all":
        victim.container.revive()
        victim.ready()
        there = time.monotonic()
    # Then what it ran, and what it had taken, is done
    assert run.wait(240) == "completed", run.error
    again = [entry for entry in journal.read(run.id) if entry.what == "begun" and entry.slug == "early"]
    rescued = {entry.task_id: entry.at for entry in again if entry.task_id in in_hand}
    taken = {entry.task_id: entry.at for entry in again if entry.task_id not in in_hand}
    assert len(rescued) == 2
    assert len(taken) == count - 2
    since = "the death" if victims == "one" else "a worker was there"
    record(f"a body that was under way begins again, after {since}", max(rescued.values()) - there, "s")
    record(f"a message that was taken is sent again and begins, after {since}", max(taken.values()) - there, "s")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGQUIT])
@pytest.mark.parametrize(
    ("plugin", "expected"),
    [pytest.param("once", "crashed", marks=FULL), pytest.param("again", "completed", marks=FULL)],
)
def test_a_task_that_is_acknowledged_early_ends_as_its_owner_says(
    dag: Dagabaaz,
    journal: Journal,
    start_worker: Callable[..., CeleryTestWorker],
    gates: tuple[Path, Path],
    number: signal.Signals,
    plugin: str,
    expected: str,
) -> None:
    # Given a body under way of a task that Celery would not run twice
    worker = start_worker("-P", "prefork", "-c", "1")
    worker.ready()
    node = DagNode(slug="only", plugin=plugin, bindings={"gate": ConfigSource(value=str(gates[0]))})
    run = dag.start(Pipeline("early-ack", nodes=[node]))
    wait_until(journal.open_bodies, "the body is under way", PATIENCE)
    # When its worker ends, and comes back
    worker.kill(number)
    wait_until_ended(worker)
    gates[0].touch()
    worker.container.revive()
    # Then its run has crashed, unless its owner said that it may run twice
    assert run.wait(PATIENCE) == expected
    (task,) = run.tasks()
    if expected == "completed":
        assert (journal.count_bodies()[task.id], task.attempt, task.recoveries) == (2, 2, 1)
    else:
        assert (journal.count_bodies()[task.id], task.attempt) == (1, 1)
        assert run.error is not None
        assert 'on_lost="crash"' in run.error.message

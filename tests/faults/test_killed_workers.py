"""Workers that end under their work: killed, quit cold or shut down warm, with messages taken and bodies under way.

Redis gives what a killed worker had taken to nobody before its visibility timeout is over, by default an hour: so what
is seen here within seconds there was sent again by the workers that are left.
"""

import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from kombu import Connection
from pytest_celery import CeleryTestWorker

from dagabaaz_celery.app import Dagabaaz
from dagabaaz_celery.constants import FanMode
from dagabaaz_celery.models import ConfigSource, DagNode
from dagabaaz_celery.pipeline import Pipeline
from dagabaaz_celery.run import Run
from tests.faults.app_under_test import Entry, Journal
from tests.processes import wait_until

#: More than one worker takes at a time, and less than two.
COUNT = 6
PATIENCE = 90.0
SHORT = pytest.mark.fault(2)
FULL = pytest.mark.fault(2, full_only=True)
#: Each takes four messages at a time.
POOLS = {
    "prefork": ("-P", "prefork", "-c", "2", "--prefetch-multiplier", "2"),
    "threads": ("-P", "threads", "-c", "2", "--prefetch-multiplier", "2"),
    "solo": ("-P", "solo", "--prefetch-multiplier", "4"),
}


def make_pipeline(*gates: Path) -> Pipeline:
    """Numbers, held at one gate after another, and their sum."""
    stages = [
        DagNode(
            slug=gate.name,
            plugin="hold",
            depends_on=[before],
            fan_mode=FanMode.SINGLE,
            bindings={"gate": ConfigSource(value=str(gate))},
        )
        for before, gate in zip(["source", *(gate.name for gate in gates[:-1])], gates, strict=True)
    ]
    total = DagNode(slug="total", plugin="gather", depends_on=[gates[-1].name], fan_mode=FanMode.AGGREGATE)
    return Pipeline("gated", nodes=[DagNode(slug="source", plugin="emit"), *stages, total])


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
    workers = start_workers(start_worker, pool)
    run = dag.start(make_pipeline(*gates), {"count": COUNT})
    if moment == "late":
        gates[0].touch()
    wait_until_all_taken(dag, journal, run, moment, workers)
    # When one of them, or both, end at once
    ended = workers if victims == "all" else workers[:1]
    in_hand = {body.task_id for worker in ended for body in bodies_on(worker, journal)}
    assert in_hand
    for worker in ended:
        worker.kill(number)
    for gate in gates:
        gate.touch()
    wait_until(lambda: all(worker.container.status == "exited" for worker in ended), "they have ended", PATIENCE)
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
    workers = start_workers(start_worker, pool)
    run = dag.start(make_pipeline(*gates), {"count": COUNT})
    wait_until_all_taken(dag, journal, run, "early", workers)
    # When both are told to shut down while they are in bodies, and another one starts
    for worker in workers:
        worker.kill(signal.SIGTERM)
    wait_until(lambda: all("Warm shutdown" in worker.logs() for worker in workers), "they are shutting down")
    for gate in gates:
        gate.touch()
    wait_until(lambda: all(worker.container.status == "exited" for worker in workers), "they have ended", PATIENCE)
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
    wait_until_all_taken(dag, journal, run, "early", [victim])
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
    wait_until(journal.open_bodies, "the body is under way")
    # When its worker ends, and comes back
    worker.kill(number)
    wait_until(lambda: worker.container.status == "exited", "it has ended", PATIENCE)
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


def start_workers(start_worker: Callable[..., CeleryTestWorker], pool: str) -> list[CeleryTestWorker]:
    """Two workers, which consume."""
    workers = [start_worker(*POOLS[pool]), start_worker(*POOLS[pool])]
    for worker in workers:
        worker.ready()
    return workers


def wait_until_all_taken(
    dag: Dagabaaz, journal: Journal, run: Run, slug: str, workers: Sequence[CeleryTestWorker]
) -> None:
    """Wait until every worker is in a body of the node, and no message is left in the broker."""
    wait_until(
        lambda: all(any(body.slug == slug for body in bodies_on(worker, journal)) for worker in workers),
        f"bodies of {slug!r} are under way on every worker",
        PATIENCE,
    )
    wait_until(
        lambda: not any(task.status == "pending" for task in run.tasks()) and count_messages(dag) == 0,
        "the workers have taken every message",
        PATIENCE,
    )


def count_messages(dag: Dagabaaz) -> int:
    """How many messages wait in the broker; in Redis, a queue without any is not there."""
    with Connection(dag.app.conf.broker_url) as connection:
        try:
            queue = connection.channel().queue_declare(queue=dag.app.conf.task_default_queue, passive=True)
        except connection.channel_errors:
            return 0
        return queue.message_count


def bodies_on(worker: CeleryTestWorker, journal: Journal) -> list[Entry]:
    """What is under way on a worker."""
    pids = {worker.container.pid, *(child.pid for child in worker.container.children())}
    return [body for body in journal.open_bodies() if body.pid in pids]

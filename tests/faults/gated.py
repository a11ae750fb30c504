"""Runs whose bodies a test holds at gates, and who is in which of them."""

from collections.abc import Callable, Sequence
from pathlib import Path

from kombu import Connection
from pytest_celery import CeleryTestWorker

from dagabaaz_celery.app import Dagabaaz
from dagabaaz_celery.constants import FanMode
from dagabaaz_celery.models import ConfigSource, DagNode
from dagabaaz_celery.pipeline import Pipeline
from dagabaaz_celery.run import Run
from tests.faults.app_under_test import Entry, Journal
from tests.processes import wait_until

#: More messages than one worker of these pools takes, and fewer than two do.
COUNT = 6
#: Each takes four messages at a time.
POOLS = {
    "prefork": ("-P", "prefork", "-c", "2", "--prefetch-multiplier", "2"),
    "threads": ("-P", "threads", "-c", "2", "--prefetch-multiplier", "2"),
    "solo": ("-P", "solo", "--prefetch-multiplier", "4"),
}
#: Seconds for what takes a few on a machine with nothing else to do.
PATIENCE = 90.0


def make_pipeline(*gates: Path) -> Pipeline:
    """Numbers, each held at one gate after another, and their sum."""
    slugs = [gate.name for gate in gates]
    stages = [
        DagNode(
            slug=gate.name,
            plugin="hold",
            depends_on=[before],
            fan_mode=FanMode.SINGLE,
            bindings={"gate": ConfigSource(value=str(gate))},
        )
        for before, gate in zip(["source", *slugs[:-1]], gates, strict=True)
    ]
    total = DagNode(slug="total", plugin="gather", depends_on=slugs[-1:], fan_mode=FanMode.AGGREGATE)
    return Pipeline("gated", nodes=[DagNode(slug="source", plugin="emit"), *stages, total])


def start_workers(start_worker: Callable[..., CeleryTestWorker], *pools: str) -> list[CeleryTestWorker]:
    """Workers of these pools, which consume."""
    workers = [start_worker(*POOLS[pool]) for pool in pools]
    for worker in workers:
        worker.ready()
    return workers


def wait_until_all_taken(
    dag: Dagabaaz, journal: Journal, run: Run, slug: str, pool: str, workers: Sequence[CeleryTestWorker]
) -> None:
    """Wait until every worker is in as many bodies of the node as it can be, and no message is left in the broker.

    A solo worker takes no message from Redis while it is in a body.
    """
    wait_until_held(journal, slug, workers, at_once=1 if pool == "solo" else 2)
    if pool == "solo":
        return
    wait_until(
        lambda: not any(task.status == "pending" for task in run.tasks()) and count_messages(dag) == 0,
        "the workers have taken every message",
        PATIENCE,
    )


def wait_until_held(journal: Journal, slug: str, workers: Sequence[CeleryTestWorker], at_once: int = 1) -> None:
    """Wait until every worker is in so many bodies of the node."""
    wait_until(
        lambda: all(sum(body.slug == slug for body in bodies_on(worker, journal)) >= at_once for worker in workers),
        f"bodies of {slug!r} are under way on every worker",
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
    pids = pids_of(worker)
    return [body for body in journal.open_bodies() if body.pid in pids]


def pids_of(worker: CeleryTestWorker) -> set[int]:
    """The processes of a worker in which bodies may run."""
    return {worker.container.pid, *(child.pid for child in worker.container.children())}


def wait_until_ended(*workers: CeleryTestWorker) -> None:
    """Wait until workers that were told to end have ended."""
    wait_until(lambda: all(worker.container.status == "exited" for worker in workers), "they have ended", PATIENCE)

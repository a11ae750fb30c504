"""Tasks that harm their process, and messages that no worker can read: the run ends or heals, its neighbours go on."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from pytest_celery import CeleryTestWorker

from dagabaaz_celery.app import Dagabaaz
from dagabaaz_celery.constants import RUN_TERMINAL_STATUSES
from dagabaaz_celery.models import DagNode
from dagabaaz_celery.pipeline import Pipeline
from tests.faults.app_under_test import Journal
from tests.faults.poison_app import make_poison_dag
from tests.processes import wait_until

APP = Path(__file__).with_name("poison_app.py")
PATIENCE = 90.0
COUNT = 4


@pytest.fixture
def dag(conf: dict[str, Any], journal: Journal) -> Iterator[Dagabaaz]:
    dag = make_poison_dag(conf, journal)
    yield dag
    dag.close()
    dag.app.close()


def start_poison(dag: Dagabaaz, plugin: str) -> Any:
    name = f"one-{plugin}"
    dag.register(
        Pipeline(
            name,
            nodes=[DagNode(slug="poison", plugin=plugin), DagNode(slug="after", plugin=plugin, depends_on=["poison"])],
        )
    )
    return dag.start(name)


@pytest.mark.fault(13, short=["postgresql-redis", "sqlite-rabbitmq"])
def test_a_poisonous_task_ends_its_own_run_and_no_other(
    dag: Dagabaaz, journal: Journal, start_worker: Callable[..., CeleryTestWorker]
) -> None:
    # Given one worker with two processes
    worker = start_worker(app=APP)
    worker.ready()
    # When poisons run beside each other and beside a run of many tasks
    poisons = {
        "unserialisable": ("failed", "NotJson", "Cannot be kept as JSON"),
        "hungry": ("failed", "MemoryError", ""),
        "bottomless": ("failed", "RecursionError", "maximum recursion depth"),
        "huge": ("failed", "LimitExceeded", "the limit is 262,144"),
        "forgetful": ("failed", "Ignore", "leaves no outcome"),
        "segfault": ("crashed", "WorkerLost", "dagabaaz_max_recoveries is 3"),
        "leaving": ("crashed", "WorkerLost", "dagabaaz_max_recoveries is 3"),
    }
    runs = {plugin: start_poison(dag, plugin) for plugin in poisons}
    neighbour = dag.start("pairs", {"count": COUNT, "seconds": 0.1})
    wait_until(
        lambda: all(run.status in RUN_TERMINAL_STATUSES for run in [*runs.values(), neighbour]), "all is over", PATIENCE
    )
    # Then each run has ended as it should, with the reason
    for plugin, (status, error_type, words) in poisons.items():
        run = runs[plugin]
        assert run.error is not None, plugin
        assert (run.status, run.error.type, run.error.node) == (status, error_type, "poison"), (plugin, run.error)
        assert words in run.error.message, (plugin, run.error.message)
        bodies = [entry for entry in journal.read(run.id) if entry.what == "begun"]
        assert len(bodies) == (4 if status == "crashed" else 1), plugin
    # and the neighbour has completed, each of its bodies once
    assert neighbour.status == "completed", neighbour.error
    assert neighbour.result("total") == 2 * sum(range(COUNT))
    assert {entry.task_id for entry in journal.read(neighbour.id)} <= {
        task_id for task_id, count in journal.count_bodies().items() if count == 1
    }
    # and the worker itself never ended
    assert worker.container.status == "running"


@pytest.mark.fault(13)
def test_a_message_that_was_broken_on_its_way_is_sent_again(
    dag: Dagabaaz, journal: Journal, start_worker: Callable[..., CeleryTestWorker]
) -> None:
    # Given a run whose first message waits in the broker
    broken = dag.start("pairs", {"count": COUNT})
    # When its body becomes what no worker can read
    break_message(dag.app)
    neighbour = dag.start("pairs", {"count": COUNT})
    start_worker(app=APP).ready()
    # Then the task is sent again
    wait_until(lambda: {broken.status, neighbour.status} <= RUN_TERMINAL_STATUSES, "both are over", PATIENCE)
    assert (broken.status, neighbour.status) == ("completed", "completed"), (broken.error, neighbour.error)
    assert set(journal.count_bodies().values()) == {1}


def break_message(app: Celery) -> None:
    """Replace the body of the one message that waits."""
    with app.connection_for_write() as connection:
        queue = app.amqp.queues[app.conf.task_default_queue].bind(connection.default_channel)
        message = queue.get()
        assert message is not None
        connection.Producer(serializer=None).publish(
            '[[], {"cut": ',
            routing_key=queue.routing_key,
            exchange=queue.exchange,
            content_type=message.content_type,
            content_encoding=message.content_encoding,
            headers=message.headers,
            correlation_id=message.properties.get("correlation_id"),
        )
        message.ack()

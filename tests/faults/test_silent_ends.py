"""Ends that Celery shows by no signal: they are found by looking."""

from collections.abc import Callable

import pytest
from pytest_celery import CeleryTestWorker

from dagabaaz_celery.app import Dagabaaz
from tests.faults.app_under_test import Journal
from tests.faults.injection import FaultPoints
from tests.processes import wait_until

PATIENCE = 90.0
COUNT = 4


@pytest.mark.fault(8)
def test_a_task_whose_outcome_was_never_told_is_found(
    dag: Dagabaaz, journal: Journal, points: FaultPoints, start_worker: Callable[..., CeleryTestWorker]
) -> None:
    # Given a worker that forgets to tell, once, how a task ended: Celery acknowledges the message
    points.arm("complete begins", "drop", skip=2)
    start_worker().ready()
    # When a run goes through it
    run = dag.start("pairs", {"count": COUNT})
    # Then the audit finds that nobody has the task in hand, and it runs again
    assert run.wait(PATIENCE) == "completed", run.error
    assert points.left("complete begins") == 0
    assert run.result("total") == 2 * sum(range(COUNT))
    found = [task for task in run.tasks() if task.recoveries]
    assert [task.recoveries for task in found] == [1]
    bodies = journal.count_bodies()
    assert bodies.pop(found[0].id) == 2
    assert len(bodies) == 3 * COUNT + 1
    assert set(bodies.values()) == {1}


@pytest.mark.fault(8, short=["sqlite-rabbitmq"])
@pytest.mark.parametrize("celery_broker", ["rabbitmq"], indirect=True)
@pytest.mark.parametrize("more_conf", [{"faults_queue_arguments": {"x-message-ttl": 2000}}])
def test_messages_that_expired_in_the_broker_are_sent_again(
    dag: Dagabaaz, journal: Journal, start_worker: Callable[..., CeleryTestWorker]
) -> None:
    # Given a queue whose messages RabbitMQ drops after a while, and a run that nobody worked on for longer
    run = dag.start("pairs", {"count": COUNT})
    with dag.app.connection_for_read() as connection:
        queue = dag.app.amqp.queues[dag.app.conf.task_default_queue].bind(connection.default_channel)
        wait_until(lambda: queue.queue_declare(passive=True).message_count == 0, "the message has expired")
    # When a worker comes
    start_worker().ready()
    # Then what the broker dropped is sent again
    assert run.wait(PATIENCE) == "completed", run.error
    assert set(journal.count_bodies().values()) == {1}

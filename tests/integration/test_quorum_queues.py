"""RabbitMQ's quorum queues: Celery holds, or has the broker hold, delayed messages another way there."""

import uuid
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from kombu import Exchange, Queue

from dagabaaz_celery.app import Dagabaaz
from dagabaaz_celery.testing import embedded_worker
from tests import services
from tests.integration.celery_support import node, start, statuses


@pytest.mark.parametrize("kind", ["direct", "topic"])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_run_completes_over_a_quorum_queue_with_its_retries(tmp_path: Path, kind: str):
    # Given a quorum queue; with a topic exchange RabbitMQ itself keeps what is delayed
    name = f"quorum-{uuid.uuid4().hex[:8]}"
    app = Celery("quorum", broker=services.rabbitmq_url(), set_as_current=False)
    app.conf.update(
        task_queues=[
            Queue(name, Exchange(name, type=kind), routing_key=name, queue_arguments={"x-queue-type": "quorum"})
        ],
        task_default_queue=name,
        task_default_exchange=name,
        task_default_exchange_type=kind,
        task_default_routing_key=name,
        worker_hijack_root_logger=False,
        dagabaaz_store_url=f"sqlite:///{tmp_path / 'runs'}",
        dagabaaz_sweep_interval=2.0,
    )
    dag = Dagabaaz(app)
    tries: list[int] = []

    @dag.plugin
    def count() -> list[int]:
        return list(range(20))

    @dag.plugin(bind=True)
    def double(self: Any, value: int) -> int:
        tries.append(value)
        if value == 7 and tries.count(7) < 3:
            raise self.retry(countdown=1.5)
        return value * 2

    try:
        # When a run goes through it, one of whose tasks asks for other attempts, soon enough for the broker to keep
        with embedded_worker(app, pool="threads"):
            run = start(dag, node("count"), node("double", "count"))
            # Then it completes
            assert run.wait(60) == "completed", (run.error, statuses(run))
        assert sorted(run.result("double")) == [value * 2 for value in range(20)]
        assert sorted(tries) == sorted([*range(20), 7, 7])
    finally:
        with app.connection_for_write() as connection:
            connection.default_channel.queue_delete(name)
            connection.default_channel.exchange_delete(name)
        dag.close()
        app.close()

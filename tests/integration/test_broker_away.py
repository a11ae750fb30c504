"""A broker that is away when a run starts, or goes away while it goes on."""

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from celery.exceptions import CPendingDeprecationWarning, SoftTimeLimitExceeded
from kombu.transport.redis import PublishBatch

from dagabaaz_celery.app import Dagabaaz
from dagabaaz_celery.models import ConfigSource
from dagabaaz_celery.testing import embedded_worker
from dagabaaz_celery.worker import publish
from tests.integration.celery_support import PATIENCE, node, start, statuses, wait_until
from tests.integration.shop_plugins import declare_all
from tests.integration.worker_processes import open_site
from tests.servers import PrivateRabbitMQ, PrivateRedis, PrivateServer
from tests.services import open_private, open_private_redis


@pytest.fixture(scope="module")
def broker() -> Iterator[PrivateRedis]:
    with open_private_redis() as server:
        yield server


@pytest.fixture(scope="module")
def rabbitmq() -> Iterator[PrivateRabbitMQ]:
    with open_private(PrivateRabbitMQ()) as server:
        yield server


@pytest.fixture(params=["redis", "rabbitmq"])
def hanging(request: pytest.FixtureRequest) -> Iterator[PrivateServer]:
    """A broker that is up, and can be frozen."""
    server: PrivateServer = request.getfixturevalue({"redis": "broker"}.get(request.param, request.param))
    yield server
    server.resume()


@pytest.fixture
def dag(broker: PrivateRedis, tmp_path: Path) -> Iterator[Dagabaaz]:
    dag = make_dag(broker, tmp_path)
    yield dag
    if not broker.is_running:
        broker.start()
    dag.close()
    dag.app.close()


def make_dag(broker: PrivateServer, directory: Path, **conf: Any) -> Dagabaaz:
    app = Celery("away", broker=broker.url, set_as_current=False)
    app.conf.update(
        {
            "dagabaaz_store_url": f"sqlite:///{directory / 'runs'}",
            "dagabaaz_sweep_interval": 0.1,
            "dagabaaz_dead_after": 5.0,
            "task_default_queue": directory.name,
            "worker_hijack_root_logger": False,
            "worker_prefetch_multiplier": 1,
            **conf,
        }
    )
    dag = Dagabaaz(app)

    @dag.plugin
    def count() -> list[int]:
        return [1, 2, 3]

    @dag.plugin
    def double(value: int) -> int:
        return value * 2

    return dag


def test_a_start_without_a_broker_returns_at_once_and_the_run_completes_when_there_is_one(
    dag: Dagabaaz, broker: PrivateRedis, caplog: pytest.LogCaptureFixture
):
    broker.stop()
    run = start(dag, node("count"), node("double", "count"), key="the same")
    assert "the broker is away" in caplog.text
    assert (run.status, statuses(run)) == ("running", ["pending"])
    assert start(dag, node("count"), node("double", "count"), key="the same") == run

    broker.start()
    with embedded_worker(dag.app):
        assert run.wait(PATIENCE) == "completed"
    assert run.result("double") == [2, 4, 6]


def test_what_a_run_owes_while_the_broker_is_away_is_published_when_it_is_back(dag: Dagabaaz, broker: PrivateRedis):
    gone: list[bool] = []

    @dag.plugin
    def cut() -> list[int]:
        broker.kill()
        gone.append(True)
        return [1, 2, 3]

    with embedded_worker(dag.app, pool="threads", concurrency=1):
        # Celery tells everybody who loses a connection of a coming default, and has itself put first in the filters.
        warnings.simplefilter("ignore", CPendingDeprecationWarning)
        run = start(dag, node("cut"), node("double", "cut"))
        wait_until(lambda: gone, "the broker is gone")
        wait_until(lambda: statuses(run, "cut") == ["completed"], "the outcome is kept")
        cancelled = start(dag, node("count"))
        cancelled.cancel()
        assert cancelled.status == "cancelled"
        broker.start()
        assert run.wait(40) == "completed"
    assert run.result("double") == [2, 4, 6]
    assert [task.attempt for task in run.tasks() if task.node == "double"] == [1, 1, 1]


@pytest.mark.parametrize("options", [{}, {"confirm_publish": True}], ids=["no options", "the app's own confirms"])
def test_a_broker_that_hangs_does_not_keep_a_start_waiting(
    hanging: PrivateServer, tmp_path: Path, options: dict[str, Any]
):
    """A black hole takes connections and bytes, and never answers."""
    dag = make_dag(hanging, tmp_path, broker_transport_options=options)
    assert statuses(start(dag, node("count"))) == ["queued"]
    hanging.pause()

    over_an_old_connection = start(dag, node("count"), node("double", "count"))
    over_a_new_one = start(dag, node("count"), node("double", "count"))
    assert statuses(over_an_old_connection) == statuses(over_a_new_one) == ["pending"]
    over_an_old_connection.cancel()
    assert over_an_old_connection.status == "cancelled"

    hanging.resume()
    with embedded_worker(dag.app):
        assert over_a_new_one.wait(40) == "completed"
    dag.close()
    dag.app.close()


def test_what_was_to_be_sent_together_to_a_broker_that_hangs_is_owed_all_of_it(hanging: PrivateServer, tmp_path: Path):
    dag = make_dag(hanging, tmp_path)
    few = [node(f"count{place}", plugin="count") for place in range(6)]
    assert statuses(start(dag, *few)) == ["queued"] * 6
    hanging.pause()

    run = start(dag, *few)

    assert statuses(run) == ["pending"] * 6
    hanging.resume()
    with embedded_worker(dag.app):
        assert run.wait(40) == "completed"
    dag.close()
    dag.app.close()


def test_what_was_to_be_sent_together_when_a_signal_came_is_owed(
    dag: Dagabaaz, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """As Celery's soft time limit raises it in a body that publishes: it is about none of the tasks."""
    there = [node(f"count{place}", plugin="count") for place in range(2)]
    elsewhere = node("elsewhere", plugin="count", options={"queue": f"{tmp_path.name}-new"})
    assert statuses(start(dag, *there)) == ["queued"] * 2
    flush, calls = PublishBatch.flush, []

    def interrupt(batch: PublishBatch) -> None:
        calls.append(batch)
        if len(calls) == 1:
            raise SoftTimeLimitExceeded
        flush(batch)

    monkeypatch.setattr(PublishBatch, "flush", interrupt)
    # Given that what waits is sent before a message to a queue of which nothing is known
    run = start(dag, *there, elsewhere, node("last", plugin="count"))

    assert statuses(run) == ["pending"] * 4
    assert run.status == "running"


def test_a_restarted_broker_is_found_at_once(hanging: PrivateServer, tmp_path: Path):
    dag = make_dag(hanging, tmp_path)
    assert statuses(start(dag, node("count"))) == ["queued"]

    hanging.restart()
    hanging.wait_ready()

    assert statuses(start(dag, node("count"))) == ["queued"]
    dag.close()
    dag.app.close()


def test_what_no_queue_takes_stays_owed_until_there_is_one(
    rabbitmq: PrivateRabbitMQ, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(publish, "_REFUSED_PAUSE", 0.5)
    dag = make_dag(rabbitmq, tmp_path)
    start(dag, node("count"))
    with dag.app.connection_for_write() as connection:
        connection.default_channel.queue_delete(tmp_path.name)

    run = start(dag, node("count"))
    assert statuses(run) == ["pending"]
    assert "no queue takes messages" in caplog.text

    wait_until(lambda: dag._runtime.publish_due(10) or statuses(run) == ["queued"], "the queue is declared again")
    dag.close()
    dag.app.close()


def test_a_worker_that_holds_messages_when_redis_goes_away_waits_for_it(broker: PrivateRedis, tmp_path: Path):
    with open_site(declare_all) as site:
        settings = {"broker_url": broker.url, "task_default_queue": tmp_path.name, "dagabaaz_resend_after": 3.0}
        site.dag.app.conf.update(settings)
        worker = site.start_worker(concurrency=2, broker_connection_max_retries=None, **settings)
        journal = site.directory / "journal"
        # Given late acknowledgements that are due, and room for more messages
        run = start(
            site.dag,
            node("count"),
            node("hold", "count", bindings={"journal": ConfigSource(value=str(journal))}),
            input={"n": 3},
        )
        wait_until(lambda: journal.exists() and len(journal.read_text().splitlines()) == 2, "two bodies run")
        wait_until(lambda: site.logs().count("hold") >= 3, "the third message has been received")

        broker.kill()
        wait_until(lambda: "Connection to broker lost" in site.logs(), "it has noticed")
        Path(f"{journal}-release").touch()
        broker.start()

        assert run.wait(40) == "completed"
        assert worker.is_running
        assert len(journal.read_text().splitlines()) == 6

"""A broker that is away when a run starts, or goes away while it goes on."""

import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from celery import Celery
from celery.exceptions import CPendingDeprecationWarning

from dagabaaz_celery.app import Dagabaaz
from dagabaaz_celery.testing import embedded_worker
from tests.integration.celery_support import PATIENCE, node, start, statuses, wait_until
from tests.servers import PrivateRedis
from tests.services import open_private_redis


@pytest.fixture(scope="module")
def broker() -> Iterator[PrivateRedis]:
    with open_private_redis() as server:
        yield server


@pytest.fixture
def dag(broker: PrivateRedis, tmp_path: Path) -> Iterator[Dagabaaz]:
    app = Celery("away", broker=broker.url, set_as_current=False)
    app.conf.update(
        dagabaaz_store_url=f"sqlite:///{tmp_path / 'runs'}",
        dagabaaz_sweep_interval=0.1,
        dagabaaz_dead_after=5.0,
        task_default_queue=tmp_path.name,
        worker_hijack_root_logger=False,
        worker_prefetch_multiplier=1,
    )
    dag = Dagabaaz(app)

    @dag.plugin
    def count() -> list[int]:
        return [1, 2, 3]

    @dag.plugin
    def double(value: int) -> int:
        return value * 2

    yield dag
    if not broker.is_running:
        broker.start()
    dag.close()
    app.close()


def test_a_start_without_a_broker_returns_at_once_and_the_run_completes_when_there_is_one(
    dag: Dagabaaz, broker: PrivateRedis, caplog: pytest.LogCaptureFixture
):
    broker.stop()
    began = time.monotonic()
    run = start(dag, node("count"), node("double", "count"), key="the same")
    assert time.monotonic() - began < 3
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

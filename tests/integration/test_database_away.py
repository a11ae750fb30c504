"""A database that goes away while a body runs, a run is waited for, and a worker sweeps."""

import threading
from collections.abc import Iterator

import pytest

from dagabaaz_celery.app import Dagabaaz
from dagabaaz_celery.context import PluginContext
from dagabaaz_celery.testing import embedded_worker
from tests.integration.celery_support import PATIENCE, make_app, node, start, wait_until
from tests.servers import PrivatePostgres
from tests.services import open_private


@pytest.fixture
def database() -> Iterator[PrivatePostgres]:
    with open_private(PrivatePostgres()) as server:
        yield server


def test_bodies_waits_and_sweeps_go_on_when_the_database_is_back(
    database: PrivatePostgres, caplog: pytest.LogCaptureFixture
):
    dag = Dagabaaz(make_app(dagabaaz_store_url=database.url))
    gone = threading.Event()
    seen: list[bool] = []

    @dag.plugin
    def work(context: PluginContext) -> list[int]:
        assert gone.wait(PATIENCE)
        context.progress(1, 2)
        seen.append(context.cancelled)
        return [1, 2]

    @dag.plugin
    def double(value: int) -> int:
        return value * 2

    with embedded_worker(dag.app, pool="threads", concurrency=1):
        run = start(dag, node("work"), node("double", "work"))
        wait_until(lambda: run.tasks()[0].status == "running", "the body runs")
        statuses: list[str] = []
        waiting = threading.Thread(target=lambda: statuses.append(run.wait(60)))
        waiting.start()
        # When the database goes away, and the body shows progress, asks, and ends meanwhile
        database.stop()
        gone.set()
        wait_until(lambda: seen and "waiting" in caplog.text, "the outcome waits for the database")
        database.start()
        # Then nothing was lost, and nothing ran twice
        waiting.join(60)
        assert statuses == ["completed"]
    assert seen == [False]
    assert run.result("double") == [2, 4]
    assert [(task.attempt, task.recoveries) for task in run.tasks()] == [(1, 0)] * 3
    dag.close()
    dag.app.close()

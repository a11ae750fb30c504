"""A rolling deploy: workers of two releases share queue and store, and only the new one has a plugin."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pytest_celery import CeleryTestWorker

from dagabaaz_celery.app import Dagabaaz
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


@pytest.mark.fault(16)
def test_runs_of_both_releases_complete_while_workers_are_replaced(
    dag: Dagabaaz, journal: Journal, start_worker: Callable[..., CeleryTestWorker]
) -> None:
    # Given a worker of the old release, in the midst of a run
    old = start_worker("-c", "2", app=APP, faults_old_release=True)
    old.ready()
    running = dag.start("pairs", {"count": COUNT, "seconds": 0.2})
    # When runs begin that need what only the new release has
    novel = [dag.start("novel", {"count": COUNT}) for _ in range(2)]
    wait_until(lambda: "does not know it" in old.logs(), "the old worker got a task of the new release")
    # and a worker of the new release comes beside the old one, which goes later
    new = start_worker("-c", "2", app=APP)
    new.ready()
    beside = [dag.start(name, {"count": COUNT}) for name in ("novel", "pairs")]
    for run in [running, *novel, *beside]:
        assert run.wait(PATIENCE) == "completed", run.error
    old.container.stop()
    after = dag.start("novel", {"count": COUNT})
    # Then no run fails, and no body ran twice
    assert after.wait(PATIENCE) == "completed", after.error
    assert set(journal.count_bodies().values()) == {1}
    assert [
        task.recoveries for run in [running, *novel, *beside, after] for task in run.tasks() if task.recoveries
    ] == []

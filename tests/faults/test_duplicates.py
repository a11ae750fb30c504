"""Messages that come more than once: each task has one body, and one outcome that counts."""

import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pytest_celery import CeleryTestWorker

from dagabaaz_celery.app import Dagabaaz
from tests.faults import thrice_app
from tests.faults.app_under_test import Journal
from tests.faults.thrice_app import TIMES, make_thrice_dag

PATIENCE = 300.0


def count_deliveries(*workers: CeleryTestWorker) -> int:
    """Messages of tasks that these workers took from the broker."""
    return sum(line.endswith("] received") for worker in workers for line in worker.logs().splitlines())


class TestThreeMessages:
    """Whoever publishes, publishes three times."""

    @pytest.fixture
    def dag(self, conf: dict[str, Any], journal: Journal) -> Iterator[Dagabaaz]:
        """The test's own side, which does so too."""
        dag = make_thrice_dag(conf, journal)
        yield dag
        dag.close()
        dag.app.close()

    @pytest.mark.fault(7)
    def test_of_three_messages_one_runs(
        self,
        dag: Dagabaaz,
        journal: Journal,
        start_worker: Callable[..., CeleryTestWorker],
        scale: Callable[[int, int], int],
        record: Callable[[str, float, str], None],
    ) -> None:
        count = scale(10, 100)
        # Given two workers, which get every message three times
        workers = [start_worker(app=Path(thrice_app.__file__)) for _ in range(2)]
        for worker in workers:
            worker.ready()
        # When a run goes through them
        run = dag.start("pairs", {"count": count})
        # Then each task ran once
        assert run.wait(PATIENCE) == "completed", run.error
        assert run.result("total") == 2 * sum(range(count))
        tasks = 3 * count + 2
        bodies = journal.count_bodies()
        assert (len(bodies), set(bodies.values())) == (tasks, {1})
        assert [task.attempt for task in run.tasks()] == [1] * tasks
        record("messages for a body", TIMES, "")


class TestAShortVisibilityTimeout:
    """Redis gives to others what a worker has had for 2 s, which is looked at every second."""

    @pytest.fixture
    def more_conf(self) -> dict[str, Any]:
        # The books of what was given out have names of their own: kombu lets one worker at a time look, and one that
        # was killed while it did, in a test before, would keep all others from it for five minutes.
        names = {f"unacked_{part}key": f"unacked-{part}{uuid.uuid4().hex}" for part in ("", "index_", "mutex_")}
        sight = {"visibility_timeout": 2, "unacked_restore_interval": 1, "unacked_restore_throttle": 1}
        return {"broker_transport_options": {**sight, **names}}

    @pytest.mark.fault(7, short=["sqlite-redis"])
    @pytest.mark.parametrize("celery_broker", ["redis"], indirect=True)
    def test_a_task_that_outlasts_the_visibility_timeout_runs_once(
        self,
        dag: Dagabaaz,
        journal: Journal,
        start_worker: Callable[..., CeleryTestWorker],
        record: Callable[[str, float, str], None],
    ) -> None:
        # Given workers, and a broker that gives away again after 2 s what was not acknowledged
        workers = [start_worker() for _ in range(2)]
        for worker in workers:
            worker.ready()
        # When tasks take 8 s
        run = dag.start("pairs", {"count": 6, "seconds": 8})
        # Then they come again and again, and run once
        assert run.wait(PATIENCE) == "completed", run.error
        bodies = journal.count_bodies()
        assert (len(bodies), set(bodies.values())) == (20, {1})
        assert Counter(task.attempt for task in run.tasks()) == {1: 20}
        deliveries = count_deliveries(*workers)
        assert deliveries > 20
        record("messages for 20 bodies", deliveries, "")

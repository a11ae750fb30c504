"""``testing.embedded_worker``, which users' own tests build on."""

import threading

import pytest
from celery import Task

from dagabaaz_celery.app import Dagabaaz
from dagabaaz_celery.testing import embedded_worker
from tests.integration.celery_support import PATIENCE, complete, node, start


def own_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("dagabaaz")]


@pytest.mark.parametrize("pool", ["solo", "threads"])
def test_it_ends_with_its_block_and_leaves_no_thread_behind(dag: Dagabaaz, pool: str):
    @dag.plugin(bind=True)
    def flaky(self: Task) -> int:
        if self.request.retries == 0:
            raise self.retry(countdown=0.05)
        return self.request.retries

    with embedded_worker(dag.app, pool=pool):
        complete(dag, node("flaky"))
        assert own_threads()
    assert own_threads() == []


def test_it_ends_when_its_block_raises_and_another_may_follow(dag: Dagabaaz):
    @dag.plugin
    def fine() -> str:
        return "fine"

    run = start(dag, node("fine"), node("second", "fine", plugin="fine"))
    with pytest.raises(KeyError), embedded_worker(dag.app):
        raise KeyError
    assert own_threads() == []
    with embedded_worker(dag.app, pool="threads", concurrency=2):
        assert run.wait(PATIENCE) == "completed"


def test_it_consumes_the_queues_it_is_given(dag: Dagabaaz):
    @dag.plugin(queue="slow")
    def fine() -> str:
        return "fine"

    run = start(dag, node("fine"))
    with embedded_worker(dag.app, queues=["slow"]):
        assert run.wait(PATIENCE) == "completed"

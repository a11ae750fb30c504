"""What workers do beside bodies: publish what is owed, find what was lost, call back; none of it in another's way."""

import gc
import threading
from collections.abc import Callable
from typing import Any

import pytest
from billiard.einfo import ExceptionInfo
from celery import Task
from sqlalchemy import func, select

from dagabaaz_celery.app import Dagabaaz
from dagabaaz_celery.constants import RunStatus
from dagabaaz_celery.context import PluginContext
from dagabaaz_celery.stores.sql.owed import WorkerRow
from dagabaaz_celery.stores.sql.tables import new_id
from dagabaaz_celery.testing import embedded_worker
from dagabaaz_celery.worker.sweeper import Sweeper
from tests.integration.celery_support import node, start, statuses, wait_until

#: Sweeps that come quickly, and leases that end soon.
QUICK = {"dagabaaz_sweep_interval": 0.1, "dagabaaz_dead_after": 2.0, "dagabaaz_resend_after": 0.3}


def nothing() -> None:
    """A body with nothing to do."""


def thirty() -> list[int]:
    return list(range(30))


def echo(value: int) -> int:
    return value


def count_resends(dag: Dagabaaz) -> int:
    store = dag._runtime.store
    with store.read() as connection:
        return connection.execute(select(func.sum(store.tables.task.c.resends))).scalar_one()


def test_a_task_that_can_never_be_published_fails_and_holds_up_no_other(new_dag: Callable[..., Dagabaaz]):
    dag = new_dag(**QUICK)
    dag.plugin(nothing, name="work")

    hopeless = start(dag, node("a", plugin="work"), options={"compression": "no such thing"})
    others = [start(dag, node("a", plugin="work"), name=f"other{n}") for n in range(3)]

    assert hopeless.status == RunStatus.FAILED
    assert "no such thing" in hopeless.error.message
    with embedded_worker(dag.app):
        assert [run.wait(20) for run in others] == ["completed"] * 3


def test_messages_that_the_broker_lost_are_sent_again(new_dag: Callable[..., Dagabaaz]):
    dag = new_dag(**QUICK)
    dag.plugin(nothing, name="work")
    runs = [start(dag, node("a", plugin="work"), name=f"run{n}") for n in range(5)]
    wait_until(lambda: all(statuses(run) == ["queued"] for run in runs), "every task is published")

    assert dag.app.control.purge() == 5

    with embedded_worker(dag.app):
        assert [run.wait(30) for run in runs] == ["completed"] * 5
    assert count_resends(dag) == 5


def test_a_healthy_backlog_is_never_sent_again(new_dag: Callable[..., Dagabaaz]):
    """Thirty tasks wait many times longer than the lease, behind bodies that take their time."""
    dag = new_dag(**QUICK)
    dag.plugin(thirty, name="source")
    pause = threading.Event()

    @dag.plugin(name="work")
    def work(value: int) -> int:
        pause.wait(0.05)
        return value

    with embedded_worker(dag.app):
        run = start(dag, node("source", plugin="source"), node("work", "source", plugin="work"))
        assert run.wait(40) == RunStatus.COMPLETED

    assert count_resends(dag) == 0
    assert run.result("work") == list(range(30))


def test_tasks_that_wait_for_their_rate_limit_are_not_sent_again(new_dag: Callable[..., Dagabaaz]):
    dag = new_dag(**QUICK)
    dag.plugin(thirty, name="source")
    dag.plugin(echo, name="work", rate_limit="15/s")

    with embedded_worker(dag.app, pool="threads"):
        run = start(dag, node("source", plugin="source"), node("work", "source", plugin="work"))
        assert run.wait(40) == RunStatus.COMPLETED

    assert count_resends(dag) == 0


def test_a_callback_that_outlasts_its_lease_is_made_once(new_dag: Callable[..., Dagabaaz]):
    dag = new_dag(**QUICK)
    dag.plugin(nothing, name="work")
    calls: list[str] = []
    enough = threading.Event()

    @dag.on_run_completed
    def slow(run_id: str) -> None:
        calls.append(run_id)
        enough.wait(2.0)  # many sweeps, and several leases

    with embedded_worker(dag.app):
        runs = [start(dag, node("a", plugin="work"), name=f"run{n}") for n in range(2)]
        assert [run.wait(20) for run in runs] == ["completed"] * 2
        wait_until(lambda: len(calls) == 2, "both callbacks were made")
        enough.set()

    assert sorted(calls) == sorted(run.id for run in runs)


def test_when_a_callback_tells_of_a_failure_the_siblings_are_cancelled(new_dag: Callable[..., Dagabaaz]):
    dag = new_dag(**QUICK)
    seen: dict[str, Any] = {}

    @dag.plugin(name="boom")
    def boom() -> None:
        raise ValueError("boom")

    dag.plugin(nothing, name="elsewhere", queue="nobody-consumes-this")

    @dag.on_run_failed
    def look(run_id: str) -> None:
        seen[run_id] = sorted(statuses(dag.run(run_id)))

    with embedded_worker(dag.app):
        run = start(dag, node("bad", plugin="boom"), node("sibling", plugin="elsewhere"))
        run.wait(20)
        wait_until(lambda: run.id in seen, "the callback was made")

    assert seen[run.id] == ["cancelled", "failed"]


def test_what_becomes_ready_while_a_run_is_paused_is_published_at_its_resume(new_dag: Callable[..., Dagabaaz]):
    dag = new_dag(**QUICK)

    @dag.plugin(name="pausing")
    def pausing(context: PluginContext) -> int:
        dag.run(context.run_id).pause()
        return 7

    dag.plugin(echo, name="work")
    with embedded_worker(dag.app):
        run = start(dag, node("first", plugin="pausing"), node("second", "first", plugin="work"))
        wait_until(lambda: statuses(run, "second") == ["pending"], "the second node is launched")
        assert run.snapshot().paused

        run.resume()

        assert run.wait(20) == RunStatus.COMPLETED
    assert run.result("second") == [7]


def test_what_a_worker_claims_before_it_announces_itself_again_stays_its_own(new_dag: Callable[..., Dagabaaz]):
    """It was frozen, taken for dead, and comes back: its first claim may be faster than its heartbeat."""
    dag = new_dag(**QUICK)
    dag.plugin(nothing, name="work")
    run = start(dag, node("a", plugin="work"))
    store = dag._runtime.store
    sweeper = Sweeper(dag._runtime, new_id(), hostname="observer", get_queues=list)
    back = WorkerRow(new_id(), "back", 1, "1", beat=0, queues=[], plugins=[], holding=[])
    attempt_id = run.tasks()[0].attempt_id

    store.claim(attempt_id, new_id(), back.id)
    sweeper.sweep()
    assert [(task.attempt_id, task.recoveries) for task in run.tasks()] == [(attempt_id, 0)]
    store.announce_worker(back)
    sweeper.sweep()
    assert [(task.attempt_id, task.recoveries) for task in run.tasks()] == [(attempt_id, 0)]
    # what nobody ever answers for is lost
    store.remove_worker(back.id)
    sweeper.sweep()
    sweeper.sweep()
    assert [task.recoveries for task in run.tasks()] == [1]


def test_what_a_dead_worker_had_taken_is_sent_again_before_its_lease_ends(new_dag: Callable[..., Dagabaaz]):
    dag = new_dag(**QUICK | {"dagabaaz_resend_after": 3600.0})
    dag.plugin(nothing, name="work")
    runs = [start(dag, node("a", plugin="work"), name=f"run{n}") for n in range(4)]
    wait_until(lambda: all(statuses(run) == ["queued"] for run in runs), "every task is published")
    assert dag.app.control.purge() == 4
    # Given that it reported two of the four messages that it had taken before it died
    reported = [run.tasks()[0].attempt_id for run in runs[:2]]
    queues = [dag.app.conf.task_default_queue]
    dead = WorkerRow(new_id(), "dead", 1, "1", beat=0, queues=queues, plugins=[], holding=reported)
    dag._runtime.store.announce_worker(dead)

    with embedded_worker(dag.app):
        assert [run.wait(30) for run in runs] == ["completed"] * 4

    assert count_resends(dag) == 4


def test_what_a_dead_worker_had_taken_is_sent_again_also_when_the_answer_to_its_burial_was_lost(
    new_dag: Callable[..., Dagabaaz], monkeypatch: pytest.MonkeyPatch
):
    dag = new_dag(**QUICK | {"dagabaaz_resend_after": 3600.0})
    dag.plugin(nothing, name="work")
    run = start(dag, node("a", plugin="work"))
    wait_until(lambda: statuses(run) == ["queued"], "the task is published")
    assert dag.app.control.purge() == 1
    store = dag._runtime.store
    queues = [dag.app.conf.task_default_queue]
    store.announce_worker(WorkerRow(new_id(), "dead", 1, "1", beat=0, queues=queues, plugins=[], holding=[]))
    bury = store.try_bury_worker

    def bury_without_an_answer(worker_id: str, beat: int) -> bool:
        bury(worker_id, beat)
        raise ConnectionError("the connection was lost after the commit")

    monkeypatch.setattr(store, "try_bury_worker", bury_without_an_answer)

    with embedded_worker(dag.app):
        assert run.wait(30) == RunStatus.COMPLETED


def test_an_attempt_that_is_dropped_leaves_no_garbage(new_dag: Callable[..., Dagabaaz]):
    dag = new_dag(**QUICK)

    @dag.plugin(name="work", bind=True, max_retries=5)
    def work(self: Task) -> int:
        if self.request.retries < 5:
            raise self.retry(countdown=0)
        return self.request.retries

    gc.collect()
    gc.disable()
    try:
        with embedded_worker(dag.app):
            run = start(dag, node("a", plugin="work"))
            assert run.wait(30) == RunStatus.COMPLETED
        left = [found for found in gc.get_objects() if type(found) is ExceptionInfo]
    finally:
        gc.enable()

    assert run.result("a") == 5
    assert left == []

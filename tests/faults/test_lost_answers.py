"""The database commits, and nobody hears of it: on servers by a proxy that loses the answer, on SQLite by injection."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pytest_celery import CeleryTestWorker

from dagabaaz_celery.app import Dagabaaz
from dagabaaz_celery.errors import StoreUnavailable
from dagabaaz_celery.run import Run
from tests.faults import lost_answers_app, proxy
from tests.faults.app_under_test import Journal
from tests.faults.conftest import StoreUnderTest
from tests.faults.injection import FaultPoints, installed
from tests.faults.lost_answers_app import make_stumbling_dag
from tests.faults.proxy import Proxy
from tests.processes import wait_until

SERVERS = pytest.mark.parametrize("store", ["postgresql", "mariadb"], indirect=True)
APP = Path(lost_answers_app.__file__)
COUNT = 25
PATIENCE = 60
LONGER_THAN_A_CLAIM_WAITS = 36.0

#: For what takes place on SQLite: the method of the store that commits.
OPERATIONS = {
    proxy.CLAIM: "claim",
    proxy.COMPLETE: "complete",
    proxy.LAUNCH: "complete",
    proxy.FAIL: "fail",
    proxy.RETRY: "retry_attempt",
    proxy.CONTINUE_LAUNCH: "continue_launch",
    proxy.START: "start",
    proxy.CANCEL: "cancel",
    proxy.REOPEN: "retry",
}


@pytest.fixture
def line(store: StoreUnderTest) -> Iterator[Proxy | None]:
    """What stands between the database server and everybody; None for SQLite."""
    if store.server is None:
        yield None
        return
    with Proxy(store.server.port) as line:
        yield line


@pytest.fixture
def more_conf(store: StoreUnderTest, line: Proxy | None) -> dict[str, Any]:
    url = (
        store.url
        if line is None or store.server is None
        else store.url.replace(f":{store.server.port}/", f":{line.port}/")
    )
    # What a lost commit owed is done by a sweep when its lease is over.
    return {"dagabaaz_store_url": url, "dagabaaz_dead_after": 6.0, "dagabaaz_resend_after": 1.0}


@pytest.fixture
def dag(conf: dict[str, Any], journal: Journal) -> Iterator[Dagabaaz]:
    dag = make_stumbling_dag(conf, journal)
    yield dag
    dag.close()
    dag.app.close()


@pytest.fixture
def lose(line: Proxy | None, points: FaultPoints, dag: Dagabaaz) -> Iterator[Callable[..., None]]:
    """``lose(CLAIM, times=2)``: the next such commits take place and are not answered, wherever they are made."""

    def lose(what: bytes, times: int = 1) -> None:
        if line is not None:
            line.lose_answers(what, times)
        else:
            points.arm(f"{OPERATIONS[what]} committed", "lose answer", times=times)

    with installed(points):
        yield lose


@pytest.fixture
def lost(line: Proxy | None, points: FaultPoints) -> Callable[[], int]:
    """How many answers were lost so far."""
    return lambda: len(line.lost) if line is not None else len(points.fired())


@pytest.mark.fault(3, short=["postgresql-redis", "mariadb-redis", "sqlite-redis"])
def test_workers_repeat_what_they_heard_no_answer_to(
    dag: Dagabaaz,
    start_worker: Callable[..., CeleryTestWorker],
    journal: Journal,
    lose: Callable[..., None],
    lost: Callable[[], int],
) -> None:
    start_worker("-c", "2", app=APP).ready()
    # Given answers that will be lost: to claims, retries, closing and other successes, batches of a wide launch
    expected = {proxy.LAUNCH: 1, proxy.CLAIM: 3, proxy.RETRY: 3, proxy.COMPLETE: 3, proxy.CONTINUE_LAUNCH: 1}
    for what, times in expected.items():
        lose(what, times)
    # When a run takes place
    run = dag.start("wide", {"count": COUNT})
    assert run.wait(PATIENCE) == "completed"
    # Then each was lost, and asked again: every body ran as often as it has attempts, and nothing was recovered
    assert lost() == sum(expected.values())
    assert run.result("total") == sum(range(COUNT))
    assert_no_body_twice(run, journal)
    assert {(task.node, task.attempt) for task in run.tasks()} == {("source", 1), ("again", 2), ("total", 1)}


@pytest.mark.fault(3, short=["mariadb-redis"])
def test_a_failure_and_the_retry_of_its_run_are_recorded_once(
    dag: Dagabaaz,
    start_worker: Callable[..., CeleryTestWorker],
    journal: Journal,
    lose: Callable[..., None],
    lost: Callable[[], int],
) -> None:
    start_worker("-c", "1", app=APP).ready()
    # Given a failure that the database does not confirm
    lose(proxy.FAIL)
    run = dag.start("brittle", {"count": 3})
    assert run.wait(PATIENCE) == "failed"
    wait_until(lambda: not any(task.status in ("pending", "queued", "running") for task in run.tasks()), "all is over")
    # When the user retries the run, and hears nothing of that either
    lose(proxy.REOPEN)
    run.retry()
    # Then it was retried once
    assert run.wait(PATIENCE) == "completed"
    assert lost() == 2
    assert run.snapshot().generation == 2
    assert run.result("total") == 3
    assert_no_body_twice(run, journal)


@pytest.mark.fault(3, short=["postgresql-redis", "sqlite-redis"])
def test_a_start_without_an_answer_gives_the_run_that_it_made(
    dag: Dagabaaz,
    start_worker: Callable[..., CeleryTestWorker],
    journal: Journal,
    lose: Callable[..., None],
    lost: Callable[[], int],
) -> None:
    # When starts are not answered, with a key and without
    lose(proxy.START, times=2)
    keyed = dag.start("pairs", {"count": 1}, key="order-1")
    plain = dag.start("pairs", {"count": 1})
    # Then each gave its run, and there are no others
    assert lost() == 2
    assert dag.start("pairs", {"count": 1}, key="order-1") == keyed
    assert set(dag.runs()) == {keyed, plain}
    # When a cancel is not answered, then its tasks are cancelled all the same when it returns
    lose(proxy.CANCEL)
    plain.cancel()
    assert lost() == 3
    assert {task.status for task in plain.tasks()} == {"cancelled"}
    # And the other run takes place once
    start_worker("-c", "1")
    assert keyed.wait(PATIENCE) == "completed"
    assert_no_body_twice(keyed, journal)
    assert plain.status == "cancelled"


@SERVERS
@pytest.mark.fault(3, short=["postgresql-redis"])
@pytest.mark.unfinished
def test_a_start_whose_database_stays_away_tells_that_it_may_have_been_made(
    dag: Dagabaaz, store: StoreUnderTest, line: Proxy, lose: Callable[..., None]
) -> None:
    dag.start("pairs", {"count": 1}, key="before")  # the store is open
    assert store.server is not None
    # When the answer to a start is lost with the database itself
    lose(proxy.START)
    line.on_loss = store.server.stop
    with pytest.raises(StoreUnavailable, match="may have been started") as caught:
        dag.start("pairs", {"count": 1}, key="order-1")
    assert caught.value.in_doubt
    # Then the same key gives the run, once the database is back
    store.server.start()
    run = dag.start("pairs", {"count": 1}, key="order-1")
    assert len(list(dag.runs())) == 2
    assert run.status == "running"


@SERVERS
@pytest.mark.fault(3, full_only=True)
def test_a_claim_without_an_answer_is_kept_for_as_long_as_the_database_is_away(
    dag: Dagabaaz,
    start_worker: Callable[..., CeleryTestWorker],
    journal: Journal,
    store: StoreUnderTest,
    line: Proxy,
    lose: Callable[..., None],
) -> None:
    worker = start_worker("-c", "1", app=APP)
    worker.ready()
    assert store.server is not None
    # When the database goes away with the answer to a claim, for longer than a claim is otherwise waited for
    lose(proxy.CLAIM)
    line.on_loss = store.server.stop
    run = dag.start("pairs", {"count": 1})
    wait_until(lambda: line.lost, "a claim is made")
    time.sleep(LONGER_THAN_A_CLAIM_WAITS)
    store.server.start()
    # Then the message did not go back, and nothing was taken for lost
    assert run.wait(PATIENCE) == "completed"
    assert "goes back" not in worker.logs()
    assert_no_body_twice(run, journal)


def assert_no_body_twice(run: Run, journal: Journal) -> None:
    """Each attempt's body ran once, and no attempt was made because another was thought lost."""
    begun = [(entry.task_id, entry.attempt) for entry in journal.read(run.id) if entry.what == "begun"]
    assert sorted(begun) == sorted(set(begun))
    assert {task.recoveries for task in run.tasks()} == {0}

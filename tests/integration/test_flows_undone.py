"""Flows on real worker processes that fail: what had begun is undone, on each store."""

import asyncio
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from uuid import uuid4

import pytest

from dagabaaz_celery.app import Dagabaaz
from dagabaaz_celery.testing import assert_sound, embedded_worker
from tests.integration.celery_support import PATIENCE, make_app, wait_until
from tests.integration.flow_actions import Trip, declare, flows
from tests.integration.flow_support import fail, find_done, let_go, make_trip, read_journal
from tests.integration.worker_processes import Site, open_site
from tests.services import mysql_url, postgres_url


@pytest.fixture(scope="module", params=["sqlite", "postgresql", "mysql"])
def site(request: pytest.FixtureRequest) -> Iterator[Site]:
    """Two worker processes for all flows, on each store."""
    settings = {}
    if request.param != "sqlite":
        url = {"postgresql": postgres_url, "mysql": mysql_url}[request.param]()
        settings = {"dagabaaz_store_url": url, "dagabaaz_table_prefix": f"flow_{uuid4().hex[:8]}_"}
    with open_site(declare, **settings) as site:
        site.start_worker()
        yield site
        for worker in site.workers:
            worker.kill()
        store = site.dag._runtime.store
        store.tables.metadata.drop_all(store.database.engine)


def assert_undone(trip: Trip, *order: set[str]) -> None:
    """What was done was undone once, in this order, the actions of one set in any; nothing else was."""
    undone = find_done(trip, "undone")
    for names in order:
        assert set(undone[: len(names)]) == names, read_journal(trip)
        undone = undone[len(names) :]
    assert undone == []


def test_what_had_begun_is_undone_in_reverse_order(site: Site, tmp_path: Path):
    given = make_trip(tmp_path, pay="raise")
    (error,) = fail(flows(site.dag).booking, given)
    assert error.args == ("pay has no room", 0)
    assert_undone(given, {"pay"}, {"hotel", "car"}, {"flight"})
    assert_sound(site.dag)


def test_a_rollback_receives_the_list_of_its_action(site: Site, tmp_path: Path):
    given = make_trip(tmp_path, pay="raise")
    fail(flows(site.dag).booking, given)
    undo = {line for line in read_journal(given) if line.startswith("undo ")}
    assert undo == {
        "undo pay flight+hotel,car+flight",
        "undo hotel flight",
        "undo car flight",
        "undo flight -",
    }


def test_what_has_not_begun_is_not_undone(site: Site, tmp_path: Path):
    given = make_trip(tmp_path, flight="raise")
    fail(flows(site.dag).booking, given)
    assert_undone(given, {"flight"})


def test_what_is_running_finishes_and_every_error_is_told(site: Site, tmp_path: Path):
    given = make_trip(tmp_path, hotel="raise after car", car="wait and raise")
    flow = flows(site.dag).booking
    run = flow.start(given)
    wait_until(lambda: any(task.status == "failed" for task in run.tasks()), "the hotel fails")
    assert find_done(given, "undo") == []
    let_go(given)
    with pytest.raises(ExceptionGroup) as caught:
        flow.wait(run, timeout=PATIENCE)
    assert {error.args for error in caught.value.exceptions} == {("hotel has no room", 0), ("car has no room", 1)}
    assert_undone(given, {"hotel", "car"}, {"flight"})


def test_the_error_of_a_rollback_is_told_too(site: Site, tmp_path: Path):
    given = make_trip(tmp_path, pay="raise", undo_car="raise")
    errors = fail(flows(site.dag).booking, given)
    assert {str(error) for error in errors} == {"('pay has no room', 0)", "('undo car has no room', 0)"}
    assert any("rollback" in error.__notes__[0] for error in errors)


def test_a_rollback_whose_worker_is_killed_is_done_again(site: Site, tmp_path: Path):
    given = make_trip(tmp_path, pay="raise", undo_hotel="die once")
    fail(flows(site.dag).booking, given)
    assert find_done(given, "undo").count("hotel") == 2
    assert_undone(given, {"pay"}, {"hotel", "car"}, {"flight"})


def test_a_cancelled_run_is_undone(site: Site, tmp_path: Path):
    given = make_trip(tmp_path, car="wait")
    flow = flows(site.dag).booking
    run = flow.start(given)
    wait_until(lambda: {"done hotel", "do car"} <= set(read_journal(given)), "the car is being booked")
    run.cancel()
    let_go(given)
    with pytest.raises(ExceptionGroup):
        flow.wait(run, timeout=PATIENCE)
    assert set(find_done(given, "undone")) >= {"hotel", "car", "flight"}
    assert find_done(given, "undone")[-1] == "flight"


def test_awaiting_a_flow_waits_for_its_rollbacks(site: Site, tmp_path: Path):
    given = make_trip(tmp_path, hotel="raise")
    with pytest.raises(ExceptionGroup):
        asyncio.run(flows(site.dag).booking.run_async(given, timeout=PATIENCE))
    assert find_done(given, "undone")[-1] == "flight"


@pytest.mark.parametrize("driver", ["wrapper", "signals"])
@pytest.mark.parametrize("pool", ["eager", "solo", "threads"])
def test_flows_run_and_are_undone_in_this_process(pool: str, driver: str, tmp_path: Path):
    dag = Dagabaaz(make_app(task_always_eager=pool == "eager", dagabaaz_wrap_tasks=driver == "wrapper"))
    declare(dag)
    given = make_trip(tmp_path, pay="raise")
    with nullcontext() if pool == "eager" else embedded_worker(dag.app, pool=pool):
        assert flows(dag).sums.run(0, timeout=PATIENCE) == [7, 12]
        (error,) = fail(flows(dag).booking, given)
    assert error.args == ("pay has no room", 0)
    assert_undone(given, {"pay"}, {"hotel", "car"}, {"flight"})
    dag.close()
    dag.app.close()

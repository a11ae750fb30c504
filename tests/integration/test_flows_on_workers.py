"""Flows on real worker processes: results, types and errors."""

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from dagabaaz_celery.errors import (
    RemoteActionError,
    ResultError,
    RunInputError,
    RunStateError,
    WaitRefused,
    WaitTimeout,
)
from tests.integration.celery_support import PATIENCE, wait_until
from tests.integration.flow_actions import (
    Invoice,
    Item,
    NoRoom,
    Order,
    count_items,
    declare,
    flows,
    misfit,
    root,
    write_invoice,
)
from tests.integration.flow_support import fail, let_go, make_trip, read_journal
from tests.integration.worker_processes import Site, open_site


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    """Two worker processes for all flows."""
    with open_site(declare) as site:
        site.start_worker()
        yield site


# Results -------------------------------------------------------------------------------------------------------------


def test_the_seeds_first_example(site: Site):
    assert flows(site.dag).sums.run(input=0, timeout=PATIENCE) == [7, 12]


def test_the_seeds_second_example_as_printed(site: Site):
    """Its actions do nothing, and it runs without input."""
    assert flows(site.dag).empty.run(timeout=PATIENCE) == [None]


def test_a_flow_is_awaited_while_the_loop_goes_on(site: Site):
    async def tick() -> int:
        ticks = 0
        while True:
            try:
                await asyncio.sleep(0.001)
            except asyncio.CancelledError:
                return ticks
            ticks += 1

    async def main() -> tuple[list[Any], int]:
        ticking = asyncio.create_task(tick())
        flow = flows(site.dag).sums
        results = await asyncio.gather(*(flow.run_async(number, timeout=PATIENCE) for number in range(4)))
        ticking.cancel()
        return results, await ticking

    results, ticks = asyncio.run(main())
    assert results == [[7, 12], [8, 14], [9, 16], [10, 18]]
    assert ticks > 20


def test_values_keep_their_types_from_action_to_action(site: Site):
    order = Order(
        UUID(int=7),
        datetime(2026, 3, 1, 12, 30, tzinfo=UTC),
        (Item(name="tea", price=Decimal("2.50")), Item(name="cake", price=Decimal("3.00"))),
        frozenset({"new", "gift"}),
    )
    flow = flows(site.dag).invoice
    run = flow.start(order)
    invoice = Invoice(order, Decimal("5.50"), {"new": {UUID(int=7)}, "gift": {UUID(int=7)}})
    assert flow.wait(run, timeout=PATIENCE) == [(invoice, 2)]
    assert flow.results(run) == [(invoice, 2)]
    assert flow.result(run, write_invoice) == invoice
    assert flow.result(run, count_items) == 2


def test_a_result_of_json_needs_no_declaration(site: Site):
    assert flows(site.dag).undeclared.run("json", timeout=PATIENCE) == [{"a": [1, None]}]


def test_a_run_is_looked_at_from_a_handle(site: Site, tmp_path: Path):
    given = make_trip(tmp_path, flight="wait")
    flow = flows(site.dag).booking
    run = flow.start(given, key=given.journal)
    with pytest.raises(RunStateError, match="has no results yet"):
        flow.results(run)
    with pytest.raises(WaitTimeout, match=run.id):
        flow.wait(run, timeout=0.1)
    with pytest.raises(WaitTimeout):
        asyncio.run(flow.run_async(given, timeout=0.1))
    let_go(given)
    mailed, paid = flow.wait(site.dag.run(run.id), timeout=PATIENCE)
    assert mailed.done == {"flight", "hotel", "mail"}
    assert paid.done == {"flight", "hotel", "car", "pay"}
    assert flow.start(given, key=given.journal) == run


# Errors --------------------------------------------------------------------------------------------------------------


def test_the_exception_of_an_action_is_raised(site: Site, tmp_path: Path):
    (error,) = fail(flows(site.dag).booking, make_trip(tmp_path, hotel="raise"))
    assert type(error) is NoRoom
    assert error.args == ("hotel has no room", 0)
    assert error.__notes__[0].startswith("DagaAction(Hotel), in a worker:\nTraceback")


def test_an_exception_that_cannot_be_made_again_is_named(site: Site, tmp_path: Path):
    (error,) = fail(flows(site.dag).booking, make_trip(tmp_path, hotel="raise hidden"))
    assert isinstance(error, RemoteActionError)
    assert (error.type, error.node) == ("Hidden", "Hotel")
    assert "DagaAction(Hotel) ended with Hidden: hotel fails" in str(error)
    assert 'raise Hidden(f"{name} fails")' in error.traceback


@pytest.mark.parametrize(
    ("flow", "given", "problem"),
    [
        ("misfit", "list", r"The result of DagaAction\(misfit\) cannot be handed on as the set\[str\].*valid set"),
        ("misfit", "number", r"the set\[str\] that it declares: .*valid set"),
        (
            "undeclared",
            "set",
            "as JSON, as it declares no type: a set would come back changed: {'a'} as \\['a'\\].*declare",
        ),
        ("undeclared", "tuple", "would come back changed"),
    ],
)
def test_a_result_that_does_not_fit_is_an_error(site: Site, flow: str, given: str, problem: str):
    (error,) = fail(getattr(flows(site.dag), flow), given)
    assert isinstance(error, ResultError)
    with pytest.raises(ResultError, match=problem):
        raise error


def test_a_result_that_fits_is_none(site: Site):
    flow = flows(site.dag).misfit
    run = flow.start("set")
    assert flow.wait(run, timeout=PATIENCE) == [{"a"}]
    assert flow.result(run, misfit) == {"a"}


def test_an_input_that_does_not_fit_starts_no_run(site: Site):
    flow = flows(site.dag).sums
    before = len(list(site.dag.runs(pipeline=flow.pipeline.name)))
    with pytest.raises(RunInputError, match="takes int"):
        flow.run("three")
    assert len(list(site.dag.runs(pipeline=flow.pipeline.name))) == before


def test_waiting_inside_a_task_is_refused_before_a_run_is_started(site: Site):
    flow = flows(site.dag).sums
    before = len(list(site.dag.runs(pipeline=flow.pipeline.name)))
    (error,) = fail(flows(site.dag).impatient, 1)
    assert isinstance(error, WaitRefused)
    assert len(list(site.dag.runs(pipeline=flow.pipeline.name))) == before


def test_a_cancelled_run_has_an_error_of_its_own(site: Site, tmp_path: Path):
    given = make_trip(tmp_path, flight="wait")
    flow = flows(site.dag).booking
    run = flow.start(given)
    wait_until(lambda: read_journal(given), "the flight is being booked")
    run.cancel("not today")
    let_go(given)
    with pytest.raises(ExceptionGroup) as caught:
        flow.wait(run, timeout=PATIENCE)
    (error,) = caught.value.exceptions
    assert "The run ended with Cancelled: not today" in str(error)


def test_the_result_of_an_action_that_has_none_is_none(site: Site, tmp_path: Path):
    flow = flows(site.dag).sums
    assert flow.result(flow.start(1), root) in (None, 2)

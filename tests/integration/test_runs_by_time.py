"""Runs are found by the time at which they were started, on each database."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import update

from dagabaaz_celery.app import Dagabaaz
from dagabaaz_celery.errors import RunSelectionError
from dagabaaz_celery.run import Run
from dagabaaz_celery.stores.sql.tables import first_id_at, new_id
from tests.integration.celery_support import node, start

NOON = datetime(2026, 3, 4, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)
BeginAt = Callable[..., Run]


@pytest.fixture
def begin_at(stored: Dagabaaz, monkeypatch: pytest.MonkeyPatch) -> BeginAt:
    """Start a run at a moment by the database's clock; its id is of that moment by a client's clock, ``skew`` off."""

    @stored.plugin
    def work() -> None: ...

    def begin(moment: datetime, *, skew: timedelta = timedelta(0), **given: Any) -> Run:
        of_client = int((moment + skew).timestamp() * 1_000_000)
        run_id = first_id_at(of_client)[:18] + new_id()[18:]
        with monkeypatch.context() as patch:
            patch.setattr("dagabaaz_celery.app.new_id", lambda: run_id)
            run = start(stored, node("work"), **given)
        table = stored._runtime.store.tables.run
        with stored._runtime.store.database.write() as connection:
            created = update(table).where(table.c.id == run.id)
            connection.execute(created.values(created_at=int(moment.timestamp() * 1_000_000)))
        return run

    return begin


def test_runs_of_a_time_are_found_newest_first(stored: Dagabaaz, begin_at: BeginAt):
    early, noon, late = (begin_at(NOON + hours * HOUR) for hours in (-5, 0, 5))

    def find(**which: Any) -> list[Run]:
        return list(stored.runs(**which))

    assert find(created_since=NOON) == [late, noon]
    assert find(created_before=NOON) == [early]
    assert find(created_since=NOON, created_before=NOON + HOUR) == [noon]
    assert find(created_since=NOON.timestamp(), created_before=NOON.timestamp() + 1e-6) == [noon]
    assert find(created_since=noon.snapshot().created_at, limit=1) == [late]
    assert find(created_since=NOON + 6 * HOUR) == find(created_before=NOON - 6 * HOUR) == []


def test_a_time_is_one_criterion_among_others(stored: Dagabaaz, begin_at: BeginAt):
    begin_at(NOON - HOUR, tags={"customer": "42"})
    noon = begin_at(NOON, tags={"customer": "42"}, name="invoice")
    begin_at(NOON + HOUR, tags={"customer": "43"}, name="invoice")
    noon.cancel()
    during = {"created_since": NOON, "created_before": NOON + 2 * HOUR}

    assert list(stored.runs(tags={"customer": "42"}, **during)) == [noon]
    assert list(stored.runs(status="cancelled", **during)) == [noon]
    assert list(stored.runs(pipeline="invoice", created_before=NOON + HOUR)) == [noon]
    assert list(stored.runs(pipeline="invoice", status="running", created_before=NOON + HOUR)) == []


@pytest.mark.parametrize("skew", [-HOUR, HOUR])
def test_the_databases_clock_counts_where_a_clients_is_off(stored: Dagabaaz, begin_at: BeginAt, skew: timedelta):
    run = begin_at(NOON, skew=skew)

    assert list(stored.runs(created_since=NOON, created_before=NOON + timedelta(seconds=1))) == [run]
    assert list(stored.runs(created_since=NOON + timedelta(seconds=1))) == []
    assert list(stored.runs(created_before=NOON)) == []


def test_the_runs_of_a_time_are_cancelled(stored: Dagabaaz, begin_at: BeginAt):
    runs = [begin_at(NOON + hours * HOUR) for hours in (-5, 0, 5)]

    assert stored.cancel(created_before=NOON + HOUR) == 2
    assert [run.status for run in runs] == ["cancelled", "cancelled", "running"]


def test_what_is_no_time_is_refused_with_every_problem(dag: Dagabaaz):
    with pytest.raises(RunSelectionError) as caught:
        dag.runs(created_since=datetime(2026, 3, 4), created_before="2h")  # type: ignore[arg-type] # noqa: DTZ001
    assert [problem.split(":")[0] for problem in caught.value.problems] == [
        "created_since is 2026-03-04 00",
        "created_before is '2h'",
    ]
    for wrong in (-1, 1e18, float("nan"), float("inf"), True):
        with pytest.raises(RunSelectionError, match="created_since is"):
            dag.runs(created_since=wrong)

"""Cancelling many runs at once: by pipeline, tags or status."""

import threading
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy.exc import OperationalError

from dagabaaz_celery.app import Dagabaaz
from dagabaaz_celery.errors import RunSelectionError, StoreUnavailable
from dagabaaz_celery.run import Run
from dagabaaz_celery.stores.sql.database import Database
from dagabaaz_celery.stores.sql.outages import CommitUnanswered
from dagabaaz_celery.testing import assert_sound, embedded_worker
from tests.integration.celery_support import PATIENCE, complete, node, start, statuses, wait_until


@pytest.fixture
def dag(stored: Dagabaaz) -> Dagabaaz:
    @stored.plugin
    def work(n: int = 0) -> int:
        return n

    return stored


def begin(dag: Dagabaaz, **given: Any) -> Run:
    return start(dag, node("work"), **given)


def test_the_open_runs_that_match_are_cancelled_and_counted(dag: Dagabaaz):
    mine = [begin(dag, tags={"customer": "42", "n": str(n)}) for n in range(3)]
    others = [begin(dag, tags={"customer": "43"}), begin(dag, name="other")]
    mine[0].cancel("before")

    assert dag.cancel(tags={"customer": "42"}, reason="a customer left") == 2
    assert [run.status for run in (*mine, *others)] == ["cancelled"] * 3 + ["running"] * 2
    assert [run.error.message for run in mine if run.error] == ["before", "a customer left", "a customer left"]
    assert [statuses(run) for run in mine] == [["cancelled"]] * 3
    assert dag.cancel(tags={"customer": "42"}) == 0

    assert dag.cancel(pipeline="other", status="running") == 1
    assert dag.cancel(pipeline="nobody's") == 0
    assert dag.cancel(status="running") == 1
    assert {run.status for run in dag.runs()} == {"cancelled"}
    assert_sound(dag, at_rest=False)


def test_more_runs_than_a_page_holds_are_all_cancelled(dag: Dagabaaz):
    for n in range(405):
        begin(dag, tags={"half": str(n % 2)})

    assert dag.cancel(tags={"half": "1"}) == 202
    assert sum(1 for _ in dag.runs(status="running")) == 203
    assert dag.cancel(status="running") == 203


def test_when_it_has_returned_no_body_of_these_runs_starts(dag: Dagabaaz):
    begun: list[int] = []
    reached, opened = threading.Event(), threading.Event()

    @dag.plugin
    def count() -> list[int]:
        return list(range(5))

    @dag.plugin
    def hold(value: int) -> None:
        begun.append(value)
        reached.set()
        assert opened.wait(PATIENCE)

    with embedded_worker(dag.app, pool="threads", concurrency=1):
        runs = [start(dag, node("count"), node("hold", "count"), name="held") for _ in range(3)]
        assert reached.wait(PATIENCE)
        assert dag.cancel(pipeline="held") == 3
        before = len(begun)
        opened.set()
        complete(dag, node("work"))  # what was still in the queue has been consumed by now
        assert len(begun) == before == 1
        # And nothing is poisoned
        runs[0].retry()
        assert runs[0].wait(PATIENCE) == "completed"
    assert_sound(dag, at_rest=False)


@pytest.mark.parametrize("pool", ["solo", "threads"])
def test_where_a_pool_cannot_end_a_body_it_goes_on_and_its_outcome_is_refused(
    new_dag: Callable[..., Dagabaaz], pool: str
):
    dag = new_dag()
    reached, opened, ended = threading.Event(), threading.Event(), threading.Event()

    @dag.plugin
    def hold() -> str:
        reached.set()
        assert opened.wait(PATIENCE)
        ended.set()
        return "too late"

    @dag.plugin
    def work() -> None: ...

    with embedded_worker(dag.app, pool=pool, concurrency=1):
        run = start(dag, node("hold"))
        assert reached.wait(PATIENCE)
        run.cancel(terminate=True)
        assert (run.status, statuses(run), ended.is_set()) == ("cancelled", ["cancelled"], False)
        opened.set()
        complete(dag, node("work"))
        assert ended.is_set()
        assert (run.status, statuses(run), run.result("hold")) == ("cancelled", ["cancelled"], None)


def test_a_run_that_ends_meanwhile_is_not_counted(dag: Dagabaaz, monkeypatch: pytest.MonkeyPatch):
    first, second = begin(dag), begin(dag)
    store, cancel = dag._runtime.store, dag._runtime.store.cancel

    def cancel_late(run_id: str, *args: Any, **kwargs: Any) -> Any:
        if run_id == second.id:
            cancel(second.id, "somebody was faster")
        return cancel(run_id, *args, **kwargs)

    monkeypatch.setattr(store, "cancel", cancel_late)

    assert dag.cancel(status="running") == 1
    assert [run.error.message for run in (first, second) if run.error] == [
        "cancelled by the app",
        "somebody was faster",
    ]


def test_runs_that_are_cancelled_twice_at_once_are_counted_once(dag: Dagabaaz):
    for _ in range(12):
        begin(dag)
    together, counts = threading.Barrier(3), []

    def cancel() -> None:
        together.wait()
        counts.append(dag.cancel(status="running"))

    threads = [threading.Thread(target=cancel) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sum(counts) == 12
    assert {run.status for run in dag.runs()} == {"cancelled"}
    assert_sound(dag, at_rest=False)


@pytest.mark.parametrize("which", [{}, {"tags": {}}, {"pipeline": None}])
def test_cancelling_everything_must_be_said(dag: Dagabaaz, which: dict[str, Any]):
    run = begin(dag)

    with pytest.raises(RunSelectionError, match='To cancel every run that is open, say status="running"'):
        dag.cancel(**which)
    assert run.status == "running"


@pytest.mark.parametrize("status", ["completed", "failed", "crashed", "cancelled"])
def test_a_status_that_ends_a_run_is_refused(dag: Dagabaaz, status: str):
    with pytest.raises(RunSelectionError, match=f"a run that is {status} has ended, and what has ended is not"):
        dag.cancel(status=status)


def test_what_no_run_can_be_is_refused(dag: Dagabaaz):
    with pytest.raises(RunSelectionError, match="did you mean running"):
        dag.cancel(status="runing")
    with pytest.raises(RunSelectionError, match="a value is text"):
        dag.cancel(tags={"customer": 42})  # type: ignore[dict-item]


# -- a database that goes away


def _go_away(dag: Dagabaaz, monkeypatch: pytest.MonkeyPatch, method: str, after: int) -> None:
    """Have the database be away at a call of the store's and from then on, after some that worked."""
    original: Callable[..., Any] = getattr(dag._runtime.store, method)
    made = iter(range(after))

    def call(*args: Any, **kwargs: Any) -> Any:
        if next(made, None) is None:
            raise OperationalError("ask", None, Exception("gone"), connection_invalidated=True)
        return original(*args, **kwargs)

    monkeypatch.setattr(dag._runtime.store, method, call)


@pytest.mark.parametrize(
    ("method", "after", "said"),
    [
        ("search_runs", 0, "0 runs were cancelled before, and no more were looked for"),
        ("search_runs", 2, "3 runs were cancelled before, and no more were looked for"),
        ("cancel", 0, "0 runs were cancelled before, and run .* was not cancelled. Try again"),
        ("cancel", 1, "1 run was cancelled before, and run .* was not cancelled. Try again"),
        ("cancel_rest", 2, "2 runs were cancelled before, and run .* is cancelled, and no body of it starts"),
    ],
)
def test_with_the_database_away_it_says_how_many_were_cancelled_before(
    dag: Dagabaaz, monkeypatch: pytest.MonkeyPatch, method: str, after: int, said: str
):
    for _ in range(3):
        begin(dag)
    _go_away(dag, monkeypatch, method, after)

    with pytest.raises(StoreUnavailable, match=said):
        dag.cancel(pipeline="work")

    monkeypatch.undo()
    dag.cancel(pipeline="work")
    assert {run.status for run in dag.runs()} == {"cancelled"}


def test_a_cancellation_whose_answer_was_lost_is_counted(dag: Dagabaaz, monkeypatch: pytest.MonkeyPatch):
    run, transact, lost = begin(dag), Database.transact, []

    def lose_first(database: Database, work: Callable[..., Any]) -> Any:
        answer = transact(database, work)
        if not lost:
            lost.append(answer)
            raise CommitUnanswered("COMMIT", None, Exception("no answer"), connection_invalidated=True)
        return answer

    monkeypatch.setattr(Database, "transact", lose_first)

    assert dag.cancel(status="running", reason="lost") == 1
    assert lost[0].ended_run
    wait_until(lambda: statuses(run) == ["cancelled"], "its task is cancelled")

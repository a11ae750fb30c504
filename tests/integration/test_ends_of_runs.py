"""How runs end badly or well: what their error tells, what becomes of the rest, and the callbacks."""

import asyncio
import threading
from collections.abc import Callable

import pytest

from dagabaaz_celery.app import Dagabaaz
from dagabaaz_celery.context import PluginContext
from dagabaaz_celery.models import ConfigSource
from dagabaaz_celery.testing import embedded_worker
from tests.integration.celery_support import (
    PATIENCE,
    complete,
    fail,
    node,
    node_statuses,
    start,
    statuses,
    wait_until,
)

# -- errors


def test_a_body_that_raises_fails_the_run_which_tells_what_where_and_why(shop: Dagabaaz):
    zero = {"price": ConfigSource(value=0)}
    run = fail(
        shop,
        node("fine"),
        node("divide", "fine", plugin="broken", bindings=zero),
        node("last", "divide", plugin="fine"),
    )
    error = run.error
    assert error is not None
    assert (error.type, error.message, error.node) == ("ZeroDivisionError", "division by zero", "divide")
    assert "return 1 / price" in error.traceback
    assert str(error) == "ZeroDivisionError: division by zero (node divide)"
    [task] = [task for task in run.tasks() if task.node == "divide"]
    assert (task.id, task.status, task.error) == (error.task_id, "failed", "division by zero")
    assert node_statuses(run)["last"] == "blocked"
    assert run.snapshot().error == error


def test_an_exception_that_cannot_be_shown_nor_pickled_fails_the_run_all_the_same(shop: Dagabaaz):
    run = fail(shop, node("odd"))
    assert run.error is not None
    assert (run.error.type, run.error.node) == ("OddError", "odd")
    assert "raise OddError" in run.error.traceback


def test_a_long_message_and_a_deep_traceback_are_kept_within_bounds(eager: Dagabaaz):
    @eager.plugin
    def verbose() -> None:
        def deeper(level: int) -> None:
            if level == 0:
                raise ValueError("x" * 100_000)
            deeper(level - 1)

        deeper(300)

    run = fail(eager, node("verbose"))
    assert run.error is not None
    assert run.error.message.startswith("xxx")
    assert len(run.error.message) < 10_000
    assert len(run.error.traceback) < 50_000


def test_what_has_not_started_when_a_sibling_fails_is_cancelled_and_never_starts(dag: Dagabaaz):
    begun: list[int] = []

    @dag.plugin
    def count() -> list[int]:
        return list(range(6))

    @dag.plugin
    def work(value: int) -> None:
        begun.append(value)
        raise ValueError(f"no {value}")

    with embedded_worker(dag.app):
        run = fail(dag, node("count"), node("work", "count"))
        wait_until(lambda: sorted(statuses(run, "work")) == ["cancelled"] * 5 + ["failed"], "the rest is cancelled")
        complete(dag, node("count"))  # what was still in the queue has been consumed by now
    assert begun == [0]


def test_a_sibling_that_runs_when_its_run_fails_is_told_and_advances_nothing(dag: Dagabaaz):
    begun, told = threading.Event(), threading.Event()

    @dag.plugin
    def slow(context: PluginContext) -> str:
        begun.set()
        wait_until(lambda: context.cancelled, "the sibling is told")
        told.set()
        return "too late"

    @dag.plugin
    def quick() -> None:
        assert begun.wait(PATIENCE)
        raise RuntimeError("first")

    with embedded_worker(dag.app, pool="threads", concurrency=2):
        run = fail(dag, node("slow"), node("quick"), node("after", "slow", plugin="quick"))
        assert told.wait(PATIENCE)
        wait_until(lambda: statuses(run, "slow") != ["running"], "its outcome is recorded, or refused")
    # It may end before the run's other tasks are cancelled; that changes nothing for the run.
    assert set(statuses(run, "slow")) < {"completed", "cancelled"}
    assert statuses(run, "quick") == ["failed"]
    assert node_statuses(run, ["after"]) == {"after": "blocked"}


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, GeneratorExit, asyncio.CancelledError])
@pytest.mark.parametrize("pool", ["solo", "threads"])
def test_a_body_that_raises_what_is_no_exception_fails_its_run_alone(dag: Dagabaaz, pool: str, error: type):
    @dag.plugin
    def leave() -> None:
        raise error("out of here")

    @dag.plugin
    def fine() -> None: ...

    with embedded_worker(dag.app, pool=pool, concurrency=1):
        run = fail(dag, node("leave"))
        complete(dag, node("fine"))
    assert run.error is not None
    assert (run.error.type, run.error.message) == (error.__name__, "out of here")


# -- callbacks


class Calls:
    """Callbacks that write down what they are called with."""

    def __init__(self, dag: Dagabaaz) -> None:
        self.made: list[tuple[str, str]] = []
        for kind in ("completed", "failed", "crashed", "cancelled"):
            getattr(dag, f"on_run_{kind}")(self.note(kind))

    def note(self, kind: str) -> Callable[[str], None]:
        return lambda run_id: self.made.append((kind, run_id))


@pytest.mark.parametrize("pool", ["solo", "threads"])
def test_the_callback_for_how_a_run_ended_is_called_with_its_id(dag: Dagabaaz, pool: str):
    calls = Calls(dag)

    @dag.plugin
    def fine() -> None: ...

    @dag.plugin
    def broken() -> None:
        raise ValueError

    @dag.plugin
    def cancelling(context: PluginContext) -> None:
        dag.run(context.run_id).cancel()

    with embedded_worker(dag.app, pool=pool):
        runs = {kind: start(dag, node(kind)) for kind in ("fine", "broken", "cancelling")}
        wait_until(lambda: len(calls.made) == 3, "the callbacks were called")
    assert sorted(calls.made) == sorted(
        [("completed", runs["fine"].id), ("failed", runs["broken"].id), ("cancelled", runs["cancelling"].id)]
    )


@pytest.mark.parametrize("error", [ConnectionError, SystemExit])
def test_a_callback_that_raises_is_called_again_until_it_returns(dag: Dagabaaz, error: type):
    calls: list[str] = []

    @dag.on_run_completed
    def note(run_id: str) -> None:
        calls.append(run_id)
        if len(calls) == 1:
            raise error("the mail server is away")

    @dag.plugin
    def fine() -> None: ...

    with embedded_worker(dag.app):
        run = complete(dag, node("fine"))
        wait_until(lambda: len(calls) == 2, "it was called again")
    assert calls == [run.id] * 2


def test_a_run_that_ends_where_no_worker_is_has_its_callback_called_by_the_next_worker(dag: Dagabaaz):
    calls = Calls(dag)

    @dag.plugin
    def fine() -> None: ...

    run = start(dag, node("fine"))
    run.cancel("changed our mind")
    assert calls.made == []
    with embedded_worker(dag.app):
        wait_until(lambda: calls.made, "the callback was called")
    assert calls.made == [("cancelled", run.id)]
    assert run.error is not None
    assert run.error.message == "changed our mind"


def test_a_retried_run_calls_back_again_in_its_next_generation(dag: Dagabaaz):
    calls = Calls(dag)
    may_pass = threading.Event()

    @dag.plugin
    def gated() -> None:
        if not may_pass.is_set():
            raise RuntimeError("not yet")

    with embedded_worker(dag.app):
        run = fail(dag, node("gated"))
        wait_until(lambda: len(calls.made) == 1, "it failed")
        may_pass.set()
        run.retry()
        wait_until(lambda: len(calls.made) == 2, "it completed")
    assert calls.made == [("failed", run.id), ("completed", run.id)]
    assert run.snapshot().generation == 2


def test_callbacks_may_start_further_runs(dag: Dagabaaz):
    follow_ups: list[str] = []

    @dag.plugin
    def fine() -> None: ...

    @dag.on_run_completed
    def follow_up(run_id: str) -> None:
        if len(follow_ups) < 2:
            follow_ups.append(start(dag, node("fine"), key=run_id).id)

    with embedded_worker(dag.app):
        complete(dag, node("fine"))
        wait_until(lambda: len(follow_ups) == 2, "the runs were started")
        assert [dag.run(run_id).wait(PATIENCE) for run_id in follow_ups] == ["completed", "completed"]

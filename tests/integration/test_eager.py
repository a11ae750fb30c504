"""``task_always_eager``: a start runs the whole graph in place and returns when it has ended.

The documented patterns, retries and failures run eagerly in the tests that have every pool.
"""

import inspect
from pathlib import Path
from typing import Any

import pytest
from celery import Task

from dagabaaz_celery.app import Dagabaaz
from dagabaaz_celery.context import PluginContext
from dagabaaz_celery.errors import WaitRefused
from dagabaaz_celery.models import TaskArtifact
from tests.integration.celery_support import node, start, statuses


def test_a_start_returns_when_the_run_has_ended(eager: Dagabaaz):
    @eager.plugin
    def count() -> list[int]:
        return [1, 2]

    @eager.plugin
    def double(value: int) -> int:
        return value * 2

    run = start(eager, node("count"), node("double", "count"))
    assert run.status == "completed"
    assert run.wait(0) == "completed"
    assert run.result("double") == [2, 4]


def test_a_chain_of_three_hundred_nodes_does_not_recurse(eager: Dagabaaz):
    depths: list[int] = []

    @eager.plugin
    def begin() -> int:
        return 0

    @eager.plugin
    def step(value: int) -> int:
        depths.append(len(inspect.stack(0)))
        return value + 1

    nodes = [node("n0", plugin="begin")]
    nodes += [node(f"n{place}", f"n{place - 1}", plugin="step") for place in range(1, 300)]
    run = start(eager, *nodes)
    assert run.status == "completed"
    assert run.result("n299") == [299]
    assert len(set(depths)) == 1


def test_a_wide_node_in_batches_runs_whole(eager: Dagabaaz):
    seen: list[int] = []

    @eager.plugin
    def count() -> list[int]:
        return list(range(1200))

    @eager.plugin
    def note(value: int) -> None:
        seen.append(value)

    run = start(eager, node("count"), node("note", "count"))
    assert run.status == "completed"
    assert sorted(seen) == list(range(1200))


def test_retries_do_not_wait(eager: Dagabaaz):
    @eager.plugin(bind=True, max_retries=3, default_retry_delay=1000)
    def flaky(self: Task) -> int:
        if self.request.retries < 3:
            raise self.retry(countdown=(None, 1000, 0)[self.request.retries])
        return self.request.retries

    run = start(eager, node("flaky"))
    assert run.result("flaky") == 3


@pytest.mark.parametrize("propagates", [True, False])
def test_a_failing_body_fails_the_run_and_not_the_caller(new_dag: Any, propagates: bool):
    dag = new_dag(task_always_eager=True, task_eager_propagates=propagates)

    @dag.plugin
    def count() -> list[int]:
        return [0, 1, 2]

    @dag.plugin
    def broken(value: int) -> None:
        raise ValueError(f"no {value}")

    run = start(dag, node("count"), node("broken", "count"))
    assert run.status == "failed"
    assert str(run.error) == "ValueError: no 0 (node broken)"
    assert sorted(statuses(run, "broken")) == ["cancelled", "cancelled", "failed"]


def test_callbacks_are_called_before_start_returns(eager: Dagabaaz):
    calls: list[tuple[str, str]] = []
    eager.on_run_completed(lambda run_id: calls.append(("completed", run_id)))
    eager.on_run_failed(lambda run_id: calls.append(("failed", run_id)))
    eager.on_run_cancelled(lambda run_id: calls.append(("cancelled", run_id)))

    @eager.plugin
    def fine() -> None: ...

    @eager.plugin
    def broken() -> None:
        raise ValueError

    @eager.plugin
    def cancelling(context: PluginContext) -> None:
        eager.run(context.run_id).cancel()

    runs = [start(eager, node(plugin)) for plugin in ("fine", "broken", "cancelling")]
    assert calls == [("completed", runs[0].id), ("failed", runs[1].id), ("cancelled", runs[2].id)]


def test_a_run_that_a_body_starts_runs_after_that_body(eager: Dagabaaz):
    order: list[str] = []
    inner: list[Any] = []

    @eager.plugin
    def outer() -> None:
        order.append("outer begins")
        run = start(eager, node("inner"), name="other")
        with pytest.raises(WaitRefused):
            run.wait(1)
        inner.append(run)
        order.append("outer ends")

    @eager.plugin(name="inner")
    def inner_body() -> None:
        order.append("inner")

    run = start(eager, node("outer"), node("last", "outer", plugin="inner"))
    assert [run.status, inner[0].status] == ["completed", "completed"]
    assert order[:3] == ["outer begins", "outer ends", "inner"]


def test_pausing_holds_the_rest_until_the_run_is_resumed(eager: Dagabaaz):
    ran: list[str] = []

    @eager.plugin
    def pausing(context: PluginContext) -> int:
        ran.append("pausing")
        eager.run(context.run_id).pause()
        return 1

    @eager.plugin
    def after(value: int) -> None:
        ran.append("after")

    run = start(eager, node("pausing"), node("after", "pausing"))
    assert (run.status, ran) == ("running", ["pausing"])
    run.resume()
    assert (run.status, ran) == ("completed", ["pausing", "after"])


def test_a_failed_run_is_retried_in_place(eager: Dagabaaz):
    ran: list[str] = []

    @eager.plugin
    def first() -> int:
        ran.append("first")
        return 1

    @eager.plugin
    def second(value: int) -> int:
        ran.append("second")
        if len(ran) == 2:
            raise ValueError("not yet")
        return value + 1

    run = start(eager, node("first"), node("second", "first"))
    assert run.status == "failed"
    run.retry()
    assert run.status == "completed"
    assert ran == ["first", "second", "second"]
    assert run.result("second") == [2]


def test_what_is_not_run_as_a_node_is_eager_as_ever(eager: Dagabaaz):
    @eager.plugin
    def add(a: int, b: int) -> int:
        return a + b

    assert eager.app.tasks[eager.find_plugin("add").task_name].delay(1, 2).get() == 3  # type: ignore[union-attr]


def test_a_task_whose_input_cannot_be_made_does_not_keep_others_from_being_undone(eager: Dagabaaz):
    undone: list[str] = []

    @eager.plugin
    def reserve() -> dict[str, int]:
        return {"seat": 1}

    @eager.plugin
    def release(result: dict[str, int] | None) -> None:
        undone.append("reserve")

    @eager.plugin
    def charge(seat: int, amount: int) -> None: ...

    @eager.plugin
    def refund(seat: int, amount: int) -> None:
        undone.append("charge")

    run = start(eager, node("reserve", rollback="release"), node("charge", "reserve", rollback="refund"))
    assert (run.status, run.error.type) == ("failed", "TaskInputError")
    assert (run.rollback_status, undone) == ("done", ["reserve"])


def test_what_undoes_a_task_gets_its_sole_value_as_the_task_did(eager: Dagabaaz):
    seen: list[tuple[str, int]] = []

    @eager.plugin
    def make() -> int:
        return 5

    @eager.plugin
    def pay(amount: int = 0) -> None:
        seen.append(("pay", amount))
        raise ValueError("no")

    @eager.plugin
    def unpay(result: None = None, amount: int = 0) -> None:
        seen.append(("unpay", amount))

    run = start(eager, node("make"), node("pay", "make", rollback="unpay"))
    assert (run.rollback_status, seen) == ("done", [("pay", 5), ("unpay", 5)])


def test_a_plain_task_can_undo_one_that_made_files(eager: Dagabaaz, tmp_path: Path):
    (tmp_path / "a.txt").write_text("a")
    seen: list[Any] = []

    @eager.plugin
    def make() -> list[TaskArtifact]:
        return [TaskArtifact(file_path=str(tmp_path / "a.txt"))]

    @eager.plugin
    def boom() -> None:
        raise ValueError("no")

    @eager.app.task(name="legacy.remove", shared=False)
    def remove(result: list[dict[str, Any]]) -> None:
        seen.extend(result)

    run = start(eager, node("make", rollback="legacy.remove"), node("boom", "make"))
    assert (run.status, run.rollback_status) == ("failed", "done")
    assert [file["file_path"] for file in seen] == [str(tmp_path / "a.txt")]

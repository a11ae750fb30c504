"""Celery's retries in a run: autoretry_for and self.retry, on every pool and eagerly."""

import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from celery import Task
from celery.exceptions import Ignore, Reject, Retry

from dagabaaz_celery.app import Dagabaaz
from dagabaaz_celery.testing import embedded_worker
from tests.integration.celery_support import PATIENCE, complete, fail, node, start


@dataclass(frozen=True)
class Line:
    """One body as it wrote itself down."""

    time: float
    retries: int
    attempt: int


def read(journal: Path) -> list[Line]:
    words = (line.split() for line in journal.read_text().splitlines())
    return [Line(float(moment), int(retries), int(attempt)) for moment, retries, attempt in words]


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    return tmp_path / "journal"


@pytest.mark.parametrize("plugin", ["automatic", "manual", "speechless"])
def test_a_body_that_asks_for_another_attempt_gets_it_and_sees_which_it_is(shop: Dagabaaz, plugin: str, journal: Path):
    times = 1 if plugin == "speechless" else 2
    run = complete(shop, node(plugin), input={"journal": str(journal), "fail_times": times})
    assert run.result(plugin) == times
    assert [(line.retries, line.attempt) for line in read(journal)] == [(n, n + 1) for n in range(times + 1)]
    [task] = run.tasks()
    assert (task.retries, task.attempt, task.recoveries) == (times, times + 1, 0)


@pytest.mark.parametrize(
    ("plugin", "allowed", "error"),
    [
        ("automatic", 3, ("NotYet", "automatic")),
        ("manual", 2, ("NotYet", "manual")),
        ("speechless", 1, ("MaxRetriesExceededError", "Can't retry")),
    ],
)
def test_past_max_retries_the_run_fails_as_celery_would(
    shop: Dagabaaz, plugin: str, allowed: int, error: tuple[str, str], journal: Path
):
    run = fail(shop, node(plugin), input={"journal": str(journal), "fail_times": 99})
    assert [line.retries for line in read(journal)] == list(range(allowed + 1))
    assert run.error is not None
    assert (run.error.type, run.error.node) == (error[0], plugin)
    assert error[1] in run.error.message
    assert "shop_plugins.py" in run.error.traceback


def test_a_retry_waits_as_long_as_celery_would(shop: Dagabaaz, journal: Path):
    complete(shop, node("backing_off"), input={"journal": str(journal), "fail_times": 1})
    first, second = (line.time for line in read(journal))
    if shop.app.conf.task_always_eager:
        assert second - first < 0.9  # as in Celery, an eager retry does not wait
    else:
        assert 0.99 <= second - first < 6  # its countdown is one second


def test_a_retry_is_due_at_its_eta_or_after_the_default_delay(dag: Dagabaaz):
    begun: dict[str, list[float]] = {"eta": [], "default": []}

    @dag.plugin(bind=True)
    def at_eta(self: Task) -> None:
        begun["eta"].append(time.monotonic())
        if self.request.retries == 0:
            raise self.retry(eta=datetime.now(UTC) + timedelta(seconds=0.4))

    @dag.plugin(bind=True, default_retry_delay=0.3)
    def after_default(self: Task) -> None:
        begun["default"].append(time.monotonic())
        if self.request.retries == 0:
            raise self.retry()

    with embedded_worker(dag.app):
        complete(dag, node("at_eta"), node("after_default"))
    assert begun["eta"][1] - begun["eta"][0] >= 0.38
    assert begun["default"][1] - begun["default"][0] >= 0.29


def test_max_retries_none_retries_without_end(eager: Dagabaaz):
    @eager.plugin(bind=True, max_retries=None)
    def stubborn(self: Task) -> int:
        if self.request.retries < 20:
            raise self.retry()
        return self.request.retries

    assert complete(eager, node("stubborn")).result("stubborn") == 20


def test_what_raised_while_retry_was_called_is_the_reason_that_is_kept(eager: Dagabaaz):
    @eager.plugin(bind=True, max_retries=0)
    def chained(self: Task) -> None:
        try:
            Path("/nowhere/to/be/found").read_text()
        except OSError as error:
            raise self.retry(exc=RuntimeError("could not read")) from error

    run = fail(eager, node("chained"))
    assert run.error is not None
    assert (run.error.type, run.error.message) == ("RuntimeError", "could not read")
    assert "/nowhere/to/be/found" in run.error.traceback


def test_retry_without_throw_ends_the_attempt_when_the_body_returns(eager: Dagabaaz):
    @eager.plugin(bind=True)
    def polite(self: Task) -> str:
        if self.request.retries == 0:
            self.retry(throw=False)
            return "what the first attempt returns is dropped"
        return "kept"

    run = complete(eager, node("polite"))
    assert run.result("polite") == "kept"
    assert len(run.artifacts("polite")) == 1


@pytest.mark.parametrize("when", [None, 0.0, "eta"])
def test_a_body_may_raise_celerys_retry_itself(dag: Dagabaaz, when: Any):
    moment = datetime.now(UTC) + timedelta(seconds=0.1) if when == "eta" else when
    attempts: list[int] = []

    @dag.plugin(bind=True)
    def raising(self: Task) -> None:
        attempts.append(self.request.retries)
        if self.request.retries == 0:
            raise Retry("once more", when=moment)

    with embedded_worker(dag.app):
        complete(dag, node("raising"))
    assert attempts == [0, 1]


@pytest.mark.parametrize("error", [Ignore("nothing to see"), Reject("go away", requeue=False)])
def test_a_body_that_ignores_or_rejects_its_task_fails_the_run_with_the_reason(dag: Dagabaaz, error: Exception):
    @dag.plugin
    def leave() -> None:
        raise error

    with embedded_worker(dag.app):
        run = fail(dag, node("leave"))
    assert run.error is not None
    assert run.error.type == type(error).__name__
    assert "leaves no outcome" in run.error.message


def test_retrying_with_other_arguments_is_refused(eager: Dagabaaz):
    @eager.plugin(bind=True)
    def change(self: Task, n: int) -> None:
        raise self.retry(kwargs={"n": n + 1})

    run = fail(eager, node("change"), input={"n": 1})
    assert run.error is not None
    assert "other arguments" in run.error.message


def test_a_retry_cannot_bring_back_a_run_that_was_cancelled_meanwhile(dag: Dagabaaz):
    attempts: list[int] = []

    @dag.plugin(bind=True)
    def cancelled(self: Task) -> None:
        attempts.append(self.request.retries)
        dag.run(self.request.root_id).cancel()
        raise self.retry(countdown=0)

    with embedded_worker(dag.app):
        run = start(dag, node("cancelled"))
        assert run.wait(PATIENCE) == "cancelled"
    assert attempts == [0]
    assert [task.status for task in run.tasks()] == ["cancelled"]

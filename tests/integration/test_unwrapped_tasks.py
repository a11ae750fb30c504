"""Tasks that run by Celery's signals alone: nobody registered them, and nodes name them by their Celery names."""

import math
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from celery import Task
from celery.exceptions import Ignore, Reject
from celery.worker import state as worker_state
from kombu import Queue

from dagabaaz_celery.app import Dagabaaz
from dagabaaz_celery.models import ConfigSource
from dagabaaz_celery.testing import embedded_worker
from dagabaaz_celery.worker import late_marks
from tests.integration.celery_support import PATIENCE, complete, fail, make_app, node, start, statuses, wait_until

POOLS = ("solo", "threads")


@pytest.fixture
def dag(new_dag: Any) -> Dagabaaz:
    return new_dag(worker_prefetch_multiplier=1)


@pytest.fixture
def task(dag: Dagabaaz) -> Callable[..., Any]:
    """Declare a plain task of the app, which no Dagabaaz is told of."""

    def declare(function: Callable[..., Any] | None = None, **options: Any) -> Any:
        decorate = dag.app.task(**{"shared": False, "ignore_result": True, **options})
        return decorate if function is None else decorate(function)

    return declare


def name_of(task: Any) -> str:
    return str(task.name)


@pytest.mark.parametrize("pool", POOLS)
def test_a_plain_task_runs_between_plugins(dag: Dagabaaz, task: Callable[..., Any], pool: str):
    @dag.plugin
    def count() -> list[int]:
        return [1, 2, 3]

    @task
    def double(number):
        return {"number": number * 2}

    @dag.plugin(fan_mode="aggregate")
    def add(artifacts: list[dict]) -> int:
        return sum(entry["metadata"]["number"] for entry in artifacts)

    with embedded_worker(dag.app, pool=pool):
        run = complete(dag, node("count"), node("double", "count", plugin=name_of(double)), node("add", "double"))
    assert run.result("double") == [{"number": 2}, {"number": 4}, {"number": 6}]
    assert run.result("add") == 12
    assert not dag.find_plugin(name_of(double)).wrapped  # type: ignore[union-attr]


def test_its_input_travels_in_its_message_by_the_names_of_its_parameters(dag: Dagabaaz, task: Callable[..., Any]):
    @task
    def take(first, /, second, *, third="c"): ...

    start(dag, node("take", plugin=name_of(take)), input={"first": 1, "second": 2, "unnamed": 3})
    with dag.app.connection_for_read() as connection:
        message = Queue(dag.app.conf.task_default_queue, channel=connection.default_channel).get(no_ack=True)
    assert message.payload[:2] == [[1], {"second": 2}]


def test_input_that_does_not_fit_fails_the_run_before_anything_is_sent(new_dag: Any):
    dag = new_dag(dagabaaz_max_input_bytes=1000)
    taken: list[str] = []

    @dag.plugin
    def make() -> dict[str, str]:
        return {"test": "x"}

    @dag.app.task(shared=False)
    def take(text):
        taken.append(text)

    too_long = {"text": ConfigSource(value="x" * 1000)}
    with embedded_worker(dag.app):
        missing = fail(dag, node("make"), node("take", "make", plugin=name_of(take)))
        long = fail(dag, node("make"), node("take", "make", plugin=name_of(take), bindings=too_long))
    assert (missing.error.type, missing.error.node) == ("TaskInputError", "take")
    assert "text" in missing.error.message
    assert (long.error.type, long.error.node) == ("LimitExceeded", "take")
    assert "1,000" in long.error.message
    assert taken == []


@pytest.mark.parametrize("pool", POOLS)
def test_its_retries_are_celerys_own_and_nobody_takes_it_for_lost_meanwhile(
    dag: Dagabaaz, task: Callable[..., Any], pool: str
):
    seen: list[tuple[int, float, str]] = []

    @task(bind=True, max_retries=2)
    def flaky(self: Task, fail_times: int) -> int:
        seen.append((self.request.retries, time.monotonic(), self.request.id))
        if self.request.retries < fail_times:
            raise self.retry(exc=OSError("not yet"), countdown=0.7)  # longer than several sweeps
        return self.request.retries

    with embedded_worker(dag.app, pool=pool):
        run = complete(dag, node("flaky", plugin=name_of(flaky)), input={"fail_times": 1})
        assert run.result("flaky") == 1
        assert [retries for retries, _, _ in seen] == [0, 1]
        assert seen[1][1] - seen[0][1] >= 0.69
        [snapshot] = run.tasks()
        assert (snapshot.retries, snapshot.recoveries, snapshot.attempt) == (1, 0, 1)


def test_a_retry_that_comes_soon_after_it_was_published_waits_for_its_time(
    dag: Dagabaaz, task: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(late_marks, "_PAUSE", PATIENCE)

    @dag.plugin
    def first() -> int:
        return 1

    @task(bind=True)
    def second(self, value):
        raise self.retry(countdown=3600)

    with embedded_worker(dag.app):
        run = start(dag, node("first"), node("second", "first", plugin=name_of(second)))
        wait_until(lambda: [each.retries for each in run.tasks() if each.node == "second"] == [1], "it is retried")
        dag._runtime.write_marks()  # of what the first one's body has published
        assert statuses(run, "second") == ["pending"]
        run.cancel()


def test_past_its_max_retries_the_run_fails(dag: Dagabaaz, task: Callable[..., Any]):
    @task(autoretry_for=(OSError,), max_retries=2, retry_kwargs={"countdown": 0})
    def flaky() -> None:
        raise OSError("never")

    with embedded_worker(dag.app):
        run = fail(dag, node("flaky", plugin=name_of(flaky)))
    assert run.error is not None
    assert (run.error.type, run.error.message) == ("OSError", "never")
    assert run.tasks()[0].retries == 2


@pytest.mark.parametrize(
    ("pool", "error"),
    [
        ("solo", ValueError("bad")),
        ("solo", Ignore("forget me")),
        ("solo", Reject("go away", requeue=False)),
        ("threads", ValueError("bad")),
        ("threads", Ignore("forget me")),
        ("threads", Reject("go away", requeue=False)),
        ("threads", GeneratorExit("odd")),  # ends a solo worker, whose tasks others take over
    ],
)
def test_every_bad_end_of_it_fails_the_run(dag: Dagabaaz, task: Callable[..., Any], pool: str, error: BaseException):
    @task
    def leave() -> None:
        raise error

    with embedded_worker(dag.app, pool=pool):
        run = fail(dag, node("leave", plugin=name_of(leave)))
    assert run.error is not None
    assert (run.error.type, run.error.node) == (type(error).__name__, "leave")


def test_one_that_rejects_itself_to_run_again_does(dag: Dagabaaz, task: Callable[..., Any]):
    tries: list[int] = []

    @task(acks_late=True)
    def reject_once() -> str:
        tries.append(1)
        if len(tries) == 1:
            raise Reject("not here", requeue=True)
        return "here"

    with embedded_worker(dag.app):
        run = complete(dag, node("reject", plugin=name_of(reject_once)))
    assert run.result("reject") == "here"


@pytest.mark.parametrize("result", [math.nan, {"when": object()}, b"bytes", {1, 2}, [[[1]]]])
def test_a_result_that_is_no_artifact_fails_the_run(dag: Dagabaaz, task: Callable[..., Any], result: Any):
    @task
    def produce() -> Any:
        return result

    with embedded_worker(dag.app):
        run = fail(dag, node("produce", plugin=name_of(produce)))
    assert run.error is not None
    assert run.error.type in ("ResultError", "NotJson")
    assert "produce" in run.error.message


def test_paused_while_it_waits_it_runs_once(dag: Dagabaaz, task: Callable[..., Any]):
    ran: list[int] = []
    held, release = threading.Event(), threading.Event()

    @task
    def work() -> None:
        ran.append(1)
        held.set()
        assert release.wait(PATIENCE)

    run = start(dag, node("work", plugin=name_of(work)), node("next", "work", plugin=name_of(work)))
    run.pause()
    with embedded_worker(dag.app, pool="threads", concurrency=2):
        assert held.wait(PATIENCE)  # nothing can keep it from running
        run.resume()
        release.set()
        assert run.wait(PATIENCE) == "completed"
    assert len(ran) == 1  # and what it made nothing for is filtered


# -- what befalls messages, of plugins and plain tasks alike


@pytest.mark.parametrize("wrapped", [True, False])
def test_a_task_that_is_revoked_before_it_starts_cancels_its_run(
    dag: Dagabaaz, task: Callable[..., Any], wrapped: bool
):
    started = threading.Event()
    release = threading.Event()
    ran: list[str] = []

    @task(acks_late=True)  # so that the worker takes no other message meanwhile
    def hold() -> None:
        started.set()
        assert release.wait(PATIENCE)

    @task
    def revoked() -> None:
        ran.append("revoked")

    if wrapped:
        dag.plugin(revoked)
    with embedded_worker(dag.app, pool="threads", concurrency=1):
        hold.delay()
        assert started.wait(PATIENCE)
        run = start(dag, node("one", plugin=name_of(revoked)), node("two", plugin=name_of(revoked)))
        attempt_id = run.tasks()[0].attempt_id
        dag.app.control.revoke(attempt_id)
        wait_until(lambda: attempt_id in worker_state.revoked, "the worker knows")
        release.set()
        assert run.wait(PATIENCE) == "cancelled"
        wait_until(lambda: set(statuses(run)) <= {"cancelled", "completed"}, "the rest is cancelled")
    assert run.error is not None
    assert (run.error.type, run.error.node) == ("TaskRevoked", "one")
    assert attempt_id in run.error.message


@pytest.fixture
def two_sites(new_dag: Any, tmp_path: Path) -> tuple[Dagabaaz, Dagabaaz]:
    """Two deployments on one queue and store, the second without the plugin."""
    shared = {"task_default_queue": make_app().conf.task_default_queue, "dagabaaz_store_url": f"sqlite:///{tmp_path}/s"}
    knowing, lacking = new_dag(**shared), new_dag(**shared)

    @knowing.plugin
    def recent() -> str:
        return "deployed"

    return knowing, lacking


def test_a_task_that_came_to_a_worker_without_it_goes_to_one_that_knows_it(
    two_sites: tuple[Dagabaaz, Dagabaaz], caplog: pytest.LogCaptureFixture
):
    knowing, lacking = two_sites
    run = start(knowing, node("recent"))
    with embedded_worker(lacking.app):
        wait_until(lambda: "does not know it" in caplog.text, "the worker says so")
        wait_until(lambda: statuses(run) == ["pending"], "it is owed again")
    with embedded_worker(knowing.app):
        assert run.wait(PATIENCE) == "completed"
    assert run.result("recent") == "deployed"


def test_a_task_that_no_worker_knows_for_long_fails_its_run(
    two_sites: tuple[Dagabaaz, Dagabaaz], monkeypatch: pytest.MonkeyPatch
):
    knowing, lacking = two_sites
    monkeypatch.setattr("dagabaaz_celery.worker.outcome._UNKNOWN_GRACE", 0.5)
    run = start(knowing, node("recent"))
    with embedded_worker(lacking.app):
        assert run.wait(PATIENCE) == "failed"
    assert run.error is not None
    assert run.error.type == "UnknownTask"
    assert "recent" in run.error.message

"""Celery's own options and hooks hold for plugins: queues, priorities, limits, acknowledgement, base classes."""

import time
from typing import Any

import pytest
from celery import Celery, Task
from kombu import Queue

from dagabaaz_celery.app import Dagabaaz
from dagabaaz_celery.testing import embedded_worker
from tests.integration.celery_support import complete, fail, node, start, statuses, wait_until
from tests.integration.worker_processes import Site


def take_message(app: Celery, queue: str) -> Any:
    """The message that waits in a queue."""
    with app.connection_for_read() as connection:
        message = Queue(queue, channel=connection.default_channel).get(no_ack=True)
    assert message is not None, f"nothing in {queue}"
    return message


@pytest.fixture
def routed(new_dag: Any) -> Dagabaaz:
    dag = new_dag(task_routes={"*.routed_task": {"queue": "by-route", "priority": 1}})

    @dag.plugin(name="routed")
    def routed_task() -> None: ...

    @dag.plugin(name="own", queue="by-plugin", priority=2)
    def own_task() -> None: ...

    return dag


@pytest.mark.parametrize(
    ("plugin", "node_options", "start_options", "expected"),
    [
        ("routed", {}, {}, ("by-route", 1)),
        ("own", {}, {}, ("by-plugin", 2)),
        ("own", {"queue": "by-node"}, {}, ("by-node", 2)),
        ("routed", {"queue": "by-node", "priority": 3}, {}, ("by-node", 3)),
        ("own", {"queue": "by-node", "priority": 3}, {"queue": "by-start"}, ("by-start", 3)),
        ("own", {"queue": "by-node"}, {"queue": "by-start", "priority": 4}, ("by-start", 4)),
    ],
)
def test_routes_yield_to_the_plugin_it_to_the_node_and_it_to_the_start(
    routed: Dagabaaz, plugin: str, node_options: dict, start_options: dict, expected: tuple[str, int]
):
    queue, priority = expected
    run = start(routed, node("one", plugin=plugin, options=node_options), options=start_options)
    message = take_message(routed.app, queue)
    assert message.properties["priority"] == priority
    assert message.headers["root_id"] == run.id
    assert message.headers["id"] == run.tasks()[0].attempt_id


def test_a_plugin_goes_to_its_queue_for_every_caller(routed: Dagabaaz):
    routed.app.finalize()
    routed.app.tasks[routed.find_plugin("own").task_name].delay()  # type: ignore[union-attr]
    assert take_message(routed.app, "by-plugin").properties["priority"] == 2


def test_start_options_hold_for_every_task_of_the_run_and_its_retries(new_dag: Any):
    dag = new_dag()
    queues: list[str] = []

    @dag.plugin(bind=True)
    def note(self: Task) -> int:
        queues.append(self.request.delivery_info["routing_key"])
        if self.request.retries == 0:
            raise self.retry(countdown=0)
        return 1

    with embedded_worker(dag.app, queues=["special"]):
        complete(
            dag, node("first", plugin="note"), node("second", "first", plugin="note"), options={"queue": "special"}
        )
    assert queues == ["special"] * 4


def test_a_message_names_the_run_and_the_node_for_those_who_watch(dag: Dagabaaz):
    @dag.plugin
    def watched(url: str) -> None: ...

    run = start(dag, node("fetch-pages", plugin="watched"), input={"url": "secret"})
    message = take_message(dag.app, dag.app.conf.task_default_queue)
    assert message.headers["task"].endswith("watched")
    assert run.id in message.headers["kwargsrepr"]
    assert "fetch-pages" in message.headers["kwargsrepr"]
    assert "secret" not in str(message.body)


def test_a_rate_limit_spaces_the_tasks_of_a_node(dag: Dagabaaz):
    begun: list[float] = []

    @dag.plugin
    def count() -> list[int]:
        return list(range(4))

    @dag.plugin(rate_limit="5/s")
    def limited(value: int) -> None:
        begun.append(time.monotonic())

    with embedded_worker(dag.app, pool="threads", concurrency=4):
        complete(dag, node("count"), node("limited", "count"))
    assert len(begun) == 4
    assert begun[-1] - begun[0] >= 0.5  # three pauses of a fifth of a second, less the first token


def test_existing_tasks_keep_when_they_acknowledge(dag: Dagabaaz):
    unacknowledged: dict[str, bool] = {}

    def is_held(task: Task) -> bool:
        return any(request.id == task.request.id and not request.acknowledged for request in state.active_requests)

    from celery.worker import state

    @dag.app.task(bind=True, shared=False, acks_late=True)
    def late(self: Task) -> None:
        unacknowledged["late"] = is_held(self)

    @dag.app.task(bind=True, shared=False)
    def early(self: Task) -> None:
        unacknowledged["early"] = is_held(self)

    @dag.plugin(bind=True)
    def ours(self: Task) -> None:
        unacknowledged["ours"] = is_held(self)

    for task in (late, early):
        dag.plugin(task)
    with embedded_worker(dag.app, pool="threads"):
        complete(dag, node("late"), node("early"), node("ours"))
    assert unacknowledged == {"late": True, "early": False, "ours": True}
    lost = {name: dag.find_plugin(name).on_lost for name in unacknowledged}  # type: ignore[union-attr]
    assert lost == {"late": "rerun", "early": "crash", "ours": "rerun"}


def test_a_base_class_with_a_call_and_hooks_of_its_own_works_as_ever(shop: Dagabaaz):
    run = complete(shop, node("hooked"))
    assert run.result("hooked") == ["before_start", "__call__", 1, True]


def test_a_before_start_that_raises_fails_the_run(dag: Dagabaaz):
    class Guarded(Task):
        def before_start(self, task_id: str, args: object, kwargs: object) -> None:
            raise PermissionError("not today")

    @dag.plugin(base=Guarded)
    def guarded() -> None: ...

    with embedded_worker(dag.app):
        run = fail(dag, node("guarded"))
    assert run.error is not None
    assert (run.error.type, run.error.message) == ("PermissionError", "not today")


def test_a_class_that_does_not_call_the_body_fails_the_run(dag: Dagabaaz):
    class Closed(Task):
        def __call__(self, *args: object, **kwargs: object) -> str:
            return "not today"

    @dag.plugin(base=Closed)
    def closed() -> None: ...

    with embedded_worker(dag.app):
        run = fail(dag, node("closed"))
    assert run.error is not None
    assert run.error.type == "BodyNotCalled"
    assert "returned without calling the task's body" in run.error.message


def test_the_hooks_of_a_task_run_after_its_outcome(dag: Dagabaaz):
    called: list[str] = []

    class Hooked(Task):
        def on_success(self, retval: object, task_id: str, args: object, kwargs: object) -> None:
            called.append("success")

        def on_failure(self, exc: Exception, task_id: str, args: object, kwargs: object, einfo: object) -> None:
            called.append(f"failure {exc}")

    @dag.plugin(base=Hooked)
    def hooked(number: int) -> float:
        return 1 / number

    with embedded_worker(dag.app):
        complete(dag, node("hooked"), input={"number": 1})
        fail(dag, node("hooked"), input={"number": 0})
        wait_until(lambda: len(called) == 2, "the hooks ran")
    assert called == ["success", "failure division by zero"]


# -- limits, which only prefork workers keep


def test_a_soft_time_limit_fails_the_run_unless_the_body_handles_it(prefork: Site):
    runs = [start(prefork.dag, node("past_soft_limit")), start(prefork.dag, node("tidy"))]
    assert [run.wait(20) for run in runs] == ["failed", "completed"]
    assert runs[0].error is not None
    assert (runs[0].error.type, runs[0].error.node) == ("SoftTimeLimitExceeded", "past_soft_limit")
    assert runs[1].result("tidy") == "tidied up"


def test_a_hard_time_limit_fails_the_run_and_cancels_the_rest(prefork: Site):
    run = fail(prefork.dag, node("past_hard_limit"), node("never", "past_hard_limit", plugin="tidy"))
    assert run.error is not None
    assert (run.error.type, run.error.node) == ("TimeLimitExceeded", "past_hard_limit")
    assert statuses(run) == ["failed"]
    # and its worker goes on
    complete(prefork.dag, node("hooked"))


def test_a_node_may_set_the_time_limit(prefork: Site):
    run = fail(prefork.dag, node("unlimited", options={"soft_time_limit": 0.5}))
    assert run.error is not None
    assert run.error.type == "SoftTimeLimitExceeded"

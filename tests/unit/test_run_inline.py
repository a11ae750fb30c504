"""Whole runs without broker and database: what users' own tests are made of."""

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from celery import Celery
from celery.exceptions import Retry
from celery.schedules import crontab

from dagabaaz_celery.app import Dagabaaz
from dagabaaz_celery.context import PluginContext
from dagabaaz_celery.errors import PipelineError, RunInputError, UnknownNode, UnknownPipeline
from dagabaaz_celery.models import ConfigSource, EdgeFilter, ExpressionSource, FilterRule, TaskArtifact
from dagabaaz_celery.pipeline import Pipeline
from dagabaaz_celery.testing import Clock, fake_plugin, make_artifact, make_node, make_pipeline, run_inline

INVOICE = make_pipeline("lines -> total", nodes={"total": {"fan_mode": "aggregate"}})


def price(items: str) -> list[dict[str, Any]]:
    return [{"item": item, "cents": 250} for item in items.split()]


def add_up(artifacts: list[TaskArtifact]) -> int:
    return sum(artifact.metadata["cents"] for artifact in artifacts)


@pytest.fixture
def dag() -> Dagabaaz:
    """An app as production has it: a broker and a store that are not there."""
    app = Celery("shop", broker="redis://nowhere.invalid/0", set_as_current=False)
    app.conf.dagabaaz_store_url = "postgresql+psycopg://nobody@nowhere.invalid/none"
    return Dagabaaz(app)


# -- how plugins are called, and what becomes of what they return


def test_parameters_are_filled_and_results_become_artifacts():
    run = run_inline(INVOICE, {"items": "tea cake"}, plugins={"lines": price, "total": add_up})
    assert (run.status, run.error, run.errors()) == ("completed", None, [])
    assert run.result("lines") == [{"item": "tea", "cents": 250}, {"item": "cake", "cents": 250}]
    assert run.result("total") == 500
    assert [artifact.metadata["item"] for artifact in run.artifacts("lines")] == ["tea", "cake"]
    assert run.calls_of("lines") == [{"items": "tea cake"}]
    assert [task.status for task in run.tasks()] == ["completed", "completed"]
    assert run.input == {"items": "tea cake"}


def test_a_value_stands_for_a_plugin_that_returns_it_and_an_error_for_one_that_raises():
    run = run_inline(INVOICE, plugins={"lines": [{"cents": 1}, {"cents": 2}], "total": add_up})
    assert run.result("total") == 3
    run = run_inline(INVOICE, plugins={"lines": ValueError("no prices"), "total": 0})
    assert run.status == "failed"
    assert str(run.error) == "ValueError: no prices (node lines)"
    assert run.nodes == {"lines": "failed", "total": "blocked"}
    assert [str(error) for error in run.errors()] == ["ValueError: no prices (node lines)"]


def test_a_mock_and_an_async_function_may_stand_in():
    mock = Mock(return_value={"cents": 5})

    async def add_later(artifacts: list[dict[str, Any]]) -> int:
        await asyncio.sleep(0)
        return len(artifacts)

    run = run_inline(INVOICE, {"items": "tea"}, plugins={"lines": mock, "total": add_later})
    mock.assert_called_once_with(items="tea")
    assert run.result("total") == 1


def test_the_real_plugins_of_an_app_run_where_nothing_stands_in(dag: Dagabaaz):
    @dag.plugin
    def lines(items: str) -> list[str]:
        return items.split()

    @dag.plugin(fan_mode="aggregate")
    def total(artifacts: list[dict[str, Any]], context: PluginContext) -> str:
        return f"{len(artifacts)} at {context.slug}, attempt {context.attempt}"

    pipeline = dag.register(make_pipeline("lines -> total", name="invoice", nodes={"total": {"fan_mode": "aggregate"}}))
    assert run_inline(pipeline, {"items": "tea cake"}, dag=dag).result("total") == "2 at total, attempt 1"
    run = run_inline("invoice", {"items": "tea cake"}, dag=dag, plugins={"lines": ["a"]})
    assert run.result("total") == "1 at total, attempt 1"


def test_what_a_plugin_gives_wrong_is_refused_as_in_a_worker():
    run = run_inline(INVOICE, plugins={"lines": [object()], "total": 0})
    assert run.error is not None
    assert run.error.type == "ResultError"
    run = run_inline(INVOICE, plugins={"lines": [{"cents": 1}], "total": lambda artifacts, price: 0})
    assert run.error is not None
    assert "its input has no price" in run.error.message


def test_what_a_start_refuses_is_refused(dag: Dagabaaz):
    with pytest.raises(RunInputError, match="has no items"):
        run_inline(INVOICE, plugins={"lines": price, "total": add_up})
    with pytest.raises(PipelineError, match="total"):
        run_inline(INVOICE, {"items": ""}, plugins={"lines": price})
    with pytest.raises(PipelineError, match="linse"):
        run_inline(INVOICE, {"items": ""}, dag=dag, plugins={"lines": price, "total": add_up, "linse": 1})
    with pytest.raises(UnknownNode, match="totals"):
        run_inline(INVOICE, {"items": ""}, plugins={"lines": price, "total": add_up}, nodes={"totals": 1})
    with pytest.raises(UnknownPipeline, match="dag="):
        run_inline("invoice")


def test_one_node_of_several_with_a_plugin_may_be_replaced():
    pipeline = Pipeline("twice", nodes=[make_node("a", plugin="say"), make_node("b", plugin="say")])
    run = run_inline(pipeline, plugins={"say": "real"}, nodes={"b": "other"})
    assert (run.result("a"), run.result("b")) == ("real", "other")


def test_files_are_measured_and_go_with_the_run(tmp_path: Path):
    def write(context: PluginContext) -> TaskArtifact:
        path = context.file("tea.txt")
        path.write_text("green")
        context.progress(1, 1)
        return TaskArtifact(file_path=str(path))

    pipeline = make_pipeline("write -> read")
    run = run_inline(pipeline, plugins={"write": write, "read": lambda file_path: Path(file_path).read_text()})
    (artifact,) = run.artifacts("write")
    assert (artifact.file_name, artifact.file_size, artifact.mime_type) == ("tea.txt", 5, "text/plain")
    assert run.result("read") == ["green"]
    assert run.tasks("write")[0].progress == (1, 1)
    path = Path(artifact.file_path or "")
    assert path.exists()
    del run
    assert not path.exists()
    kept = run_inline(pipeline, plugins={"write": write, "read": None}, files_dir=tmp_path)
    assert Path(kept.artifacts("write")[0].file_path or "").is_relative_to(tmp_path)


def test_secrets_are_given_and_kept_out_of_errors():
    def log_in(key: str) -> None:
        raise ValueError(f"the key {key} does not fit")

    pipeline = Pipeline("log in", nodes=[make_node("log_in", bindings={"key": ConfigSource(value="$KEY")})])
    run = run_inline(pipeline, plugins={"log_in": log_in}, secrets={"KEY": "open-sesame"})
    assert run.error is not None
    assert run.error.message == "the key <secret $KEY> does not fit"


# -- routing


def test_fan_out_filters_groups_and_bindings():
    pipeline = Pipeline(
        "album",
        nodes=[
            make_node("photos"),
            make_node("small", "photos", edge_filters={"photos": _only("mime_type", "image/png")}),
            make_node("sum", "photos"),
            make_node("card", "small", "sum", fan_mode="grouped"),
            make_node("films", "photos", edge_filters={"photos": _only("file_type", "video")}),
            make_node("label", "card", bindings={"text": ExpressionSource(expression="{input.album}")}),
        ],
    )
    run = run_inline(
        pipeline,
        {"album": "summer"},
        plugins={
            "photos": [make_artifact("a.png"), make_artifact("b.png"), make_artifact("c.txt")],
            "small": lambda file_name: {"small": file_name},
            "sum": lambda file_name: {"sum": len(file_name)},
            "card": lambda artifacts: sum(1 for _ in artifacts),
            "films": None,
            "label": lambda text, value: f"{text} {value}",
        },
    )
    assert run.status == "completed", run.error
    assert run.nodes["films"] == "filtered"
    assert run.result("small") == [{"small": "a.png"}, {"small": "b.png"}]
    assert sorted(run.result("card")) == [1, 2, 2]
    assert sorted(run.result("label")) == ["summer 1", "summer 2", "summer 2"]


def _only(field: str, value: str) -> EdgeFilter:
    return EdgeFilter(rules=[FilterRule(field=field, operator="eq", value=value)])


def test_a_passthrough_plugin_is_looked_through():
    pipeline = make_pipeline("source -> gate -> work")
    run = run_inline(
        pipeline,
        plugins={"source": [1, 2], "gate": fake_plugin(None, passthrough=True), "work": lambda value: value * 10},
    )
    assert run.result("work") == [10, 20]


def test_a_node_with_too_many_tasks_fails_the_run():
    pipeline = make_pipeline("many -> each", nodes={"each": {"max_fan_out": 2}})
    run = run_inline(pipeline, plugins={"many": [1, 2, 3], "each": None})
    assert run.status == "failed"
    assert run.error is not None
    assert run.error.type == "LimitExceeded"
    assert run.nodes["each"] == "failed"
    assert run.calls_of("each") == []


@pytest.mark.parametrize(
    ("policy", "status", "after"),
    [("fail", "failed", "blocked"), ("continue", "completed", "completed"), ("skip", "completed", "skipped")],
)
def test_failure_policies(policy: str, status: str, after: str):
    pipeline = make_pipeline("source -> work -> after", nodes={"work": {"on_failure": policy}})

    def work(value: int) -> int:
        if value == 1:
            raise ValueError("not this one")
        return value

    run = run_inline(pipeline, plugins={"source": [1, 2], "work": work, "after": lambda value: value})
    assert (run.status, run.nodes["after"]) == (status, after)
    assert run.nodes["work"] == "failed"
    # One after another: where a failure ends the run, what was not begun is cancelled.
    assert [task.status for task in run.tasks("work")] == ["failed", "cancelled" if policy == "fail" else "completed"]


# -- attempts


def test_retries_move_the_clock_in_place_of_waiting(dag: Dagabaaz):
    @dag.plugin(bind=True, max_retries=2, default_retry_delay=60)
    def flaky(self: Any) -> str:
        if self.request.retries < 2:
            raise self.retry(exc=OSError("tired"), countdown=30 if self.request.retries else None)
        return f"after {self.request.retries} retries as {self.request.id}"

    clock = Clock(datetime(2030, 1, 1, tzinfo=UTC))
    run = run_inline(make_pipeline("flaky"), dag=dag, clock=clock)
    (task,) = run.tasks()
    assert run.result("flaky") == f"after 2 retries as {task.attempt_id}"
    assert (task.attempt, task.retries, run.seconds) == (3, 2, 90)
    assert clock.now() == datetime(2030, 1, 1, 0, 1, 30, tzinfo=UTC)


def test_a_stand_in_is_tried_as_often_as_the_real_plugin_would_be(dag: Dagabaaz):
    @dag.plugin(autoretry_for=(OSError,), max_retries=3, retry_backoff=10, retry_jitter=False)
    def fetch() -> None: ...

    fake = Mock(side_effect=[OSError, OSError, "there"])
    run = run_inline(make_pipeline("fetch"), dag=dag, plugins={"fetch": fake})
    assert (run.result("fetch"), fake.call_count, run.seconds) == ("there", 3, 30)
    run = run_inline(make_pipeline("fetch"), dag=dag, plugins={"fetch": OSError("for ever")})
    assert (run.status, run.tasks()[0].attempt) == ("failed", 4)
    assert str(run.error) == "OSError: for ever (node fetch)"


def test_a_retry_at_a_time_of_the_clock(dag: Dagabaaz):
    clock = Clock(datetime(2030, 1, 1, tzinfo=UTC))

    @dag.plugin(bind=True)
    def nightly(self: Any) -> str:
        if clock.now() < datetime(2030, 1, 2, tzinfo=UTC):
            raise self.retry(eta=datetime(2030, 1, 2, tzinfo=UTC))
        return clock.now().isoformat()

    assert run_inline(make_pipeline("nightly"), dag=dag, clock=clock).result("nightly") == "2030-01-02T00:00:00+00:00"


def test_a_body_that_raises_retry_itself_gets_another_attempt():
    fake = Mock(side_effect=[Retry(when=5), "done"])
    run = run_inline(make_pipeline("work"), plugins={"work": fake})
    assert (run.result("work"), run.seconds) == ("done", 5)


def test_what_asks_for_ever_more_attempts_is_stopped():
    with pytest.raises(RuntimeError, match="more than 200 attempts"):
        run_inline(make_pipeline("work"), plugins={"work": Retry(when=1)})


def test_delayed_tasks_let_others_go_first():
    order: list[int] = []

    def work(value: int) -> None:
        order.append(value)
        if value == 1 and order.count(1) == 1:
            raise Retry(when=10)

    run_inline(make_pipeline("source -> work"), plugins={"source": [1, 2, 3], "work": work})
    assert order == [1, 2, 3, 1]


@pytest.mark.parametrize(("deaths", "status", "attempts"), [(1, "completed", 2), (9, "crashed", 4)])
def test_system_exit_stands_for_a_worker_that_died(deaths: int, status: str, attempts: int):
    fake = Mock(side_effect=[*[SystemExit] * deaths, "done"])
    run = run_inline(make_pipeline("work"), plugins={"work": fake})
    assert (run.status, run.tasks()[0].attempt) == (status, attempts)


def test_a_plugin_that_may_not_run_twice_crashes_its_run():
    run = run_inline(make_pipeline("work"), plugins={"work": fake_plugin(SystemExit, on_lost="crash")})
    assert (run.status, run.tasks()[0].attempt) == ("crashed", 1)
    assert run.error is not None
    assert run.error.type == "WorkerLost"


# -- deadlines


def test_a_nodes_timeout_is_judged_by_the_clock():
    clock = Clock()
    pipeline = make_pipeline("slow", nodes={"slow": {"timeout": 10}})
    assert run_inline(pipeline, plugins={"slow": lambda: clock.advance(9)}, clock=clock).status == "completed"
    run = run_inline(pipeline, plugins={"slow": lambda: clock.advance(11)}, clock=clock)
    assert (run.status, run.errors()[0].type) == ("failed", "DeadlineExceeded")


def test_a_runs_timeout_ends_it_between_two_bodies_and_during_a_delay():
    clock = Clock()
    pipeline = make_pipeline("a -> b", timeout=60)
    plugins: dict[str, Any] = {"a": lambda: clock.advance(61) or 1, "b": None}
    run = run_inline(pipeline, plugins=plugins, clock=clock)
    assert (run.status, run.nodes["b"]) == ("failed", "launched")
    assert run.error is not None
    assert run.error.message == "the run has not ended within its 60 s"
    run = run_inline(make_pipeline("a"), plugins={"a": Retry(when=100)}, timeout=30)
    assert (run.status, run.seconds) == ("failed", 30)


def test_a_clock_goes_on_and_never_back():
    clock = Clock(datetime(2030, 1, 1, tzinfo=UTC))
    clock.advance(timedelta(minutes=1))
    clock.move_to(datetime(2029, 1, 1, tzinfo=UTC))
    assert clock.now() == datetime(2030, 1, 1, 0, 1, tzinfo=UTC)
    with pytest.raises(ValueError, match="back"):
        clock.advance(-1)
    with pytest.raises(ValueError, match="time zone"):
        Clock(datetime(2030, 1, 1))  # noqa: DTZ001  # that is what is refused


# -- what follows the end


SAGA = make_pipeline(
    "reserve -> charge -> ship",
    nodes={
        "reserve": {"rollback": "release"},
        "charge": {"rollback": "refund"},
        "ship": {"rollback": "call_back"},
    },
)


def test_what_was_done_is_undone_the_last_first():
    undone: list[Any] = []
    run = run_inline(
        SAGA,
        plugins={
            "reserve": ["tea", "cake"],
            "charge": lambda value: f"paid {value}",
            "ship": ValueError("no post today"),
            "release": lambda result: undone.append(("release", result)),
            "refund": lambda value, result: undone.append(("refund", value, result)),
            "call_back": lambda result: undone.append(("call_back", result)),
        },
    )
    assert (run.status, run.rollback_status) == ("failed", "done")
    assert undone == [
        ("call_back", None),
        ("refund", "tea", "paid tea"),
        ("refund", "cake", "paid cake"),
        ("release", ["tea", "cake"]),
    ]
    assert [task.node for task in run.tasks() if task.rollback] == ["ship", "charge", "charge", "reserve"]


def test_a_rollback_that_fails_ends_the_undoing_and_finalisers_run():
    told: list[tuple[str, str | None, str]] = []

    def tell(context: PluginContext) -> None:
        told.append((context.run_status, context.run_error, context.rollback_status))

    pipeline = Pipeline(
        "saga",
        nodes=[*SAGA.nodes, make_node("tell", run_on="failure"), make_node("cheer", run_on="success")],
    )
    run = run_inline(
        pipeline,
        plugins={
            "reserve": 1,
            "charge": 2,
            "ship": ValueError("no post"),
            "release": None,
            "refund": Mock(side_effect=[Retry(when=3), OSError("the bank is away")]),
            "call_back": None,
            "tell": tell,
            "cheer": AssertionError("nobody cheers"),
        },
    )
    assert (run.status, run.rollback_status) == ("failed", "failed")
    assert told == [("failed", "no post", "failed")]
    assert (run.nodes["tell"], run.nodes["cheer"]) == ("completed", "skipped")
    assert [(error.node, error.rollback) for error in run.errors()] == [("ship", False), ("charge", True)]
    assert run.calls_of("release") == []


def test_a_run_that_completes_is_not_undone():
    run = run_inline(SAGA, plugins={name: 1 for node in SAGA.nodes for name in (node.plugin, node.rollback)})
    assert (run.status, run.rollback_status) == ("completed", "none")


# -- beside the app


def test_a_real_task_is_left_as_it_was(dag: Dagabaaz):
    @dag.plugin(bind=True, max_retries=1)
    def work(self: Any) -> str:
        return "done"

    dag.plugin_names()
    assert work.request.id is None
    before = dict(vars(work._get_current_object()))
    run_inline(make_pipeline("work"), dag=dag)
    assert dict(vars(work._get_current_object())) == before
    assert work.request.id is None


def test_no_tasks_are_left_behind():
    from dagabaaz_celery.testing.fakes import find_app

    run_inline(INVOICE, {"items": "tea"}, plugins={"lines": price, "total": add_up})
    assert not [name for name in find_app().tasks if name.startswith("fake-")]


def test_celerys_schedules_follow_the_clock():
    clock = Clock(datetime(2030, 1, 1, 11, 59, tzinfo=UTC))
    app = Celery("beat", set_as_current=False)
    at_noon = crontab(hour="12", minute="0", nowfun=clock.now, app=app)
    yesterday = datetime(2029, 12, 31, 12, 0, tzinfo=UTC)
    assert not at_noon.is_due(yesterday).is_due
    clock.advance(60)
    assert at_noon.is_due(yesterday).is_due
    assert not at_noon.is_due(clock.now()).is_due

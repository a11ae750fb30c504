"""What is refused, with the error that says so; what is refused leaves no run behind."""

import logging
import math
import sqlite3
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from pydantic import BaseModel, RootModel

from dagabaaz_celery.app import Dagabaaz
from dagabaaz_celery.errors import (
    ConfigurationError,
    KeyConflict,
    PipelineError,
    PluginConflict,
    RunInputError,
    RunStateError,
    StoreError,
    StoreSchemaError,
    StoreUrlMissing,
    UnknownNode,
    UnknownPipeline,
    UnknownRun,
    WaitRefused,
    WaitTimeout,
)
from dagabaaz_celery.models import DagNode, ExpressionSource, RuntimeSource, TaskArtifact
from dagabaaz_celery.pipeline import Pipeline
from dagabaaz_celery.testing import embedded_worker
from tests.integration.celery_support import PATIENCE, complete, fail, make_app, node, start, wait_until

NOBODY = "redis://127.0.0.1:1/0"


@pytest.fixture
def dag(dag: Dagabaaz) -> Dagabaaz:
    @dag.plugin
    def fine(url: str = "") -> str:
        return url

    return dag


def assert_nothing_started(dag: Dagabaaz) -> None:
    assert list(dag.runs()) == []


# -- stores


def test_a_real_broker_without_a_store_is_refused_with_the_line_to_paste():
    dag = Dagabaaz(Celery("media", broker=NOBODY, set_as_current=False))

    @dag.plugin
    def fine() -> None: ...

    with pytest.raises(StoreUrlMissing, match=r"app.conf.dagabaaz_store_url = ") as refused:
        start(dag, node("fine"))
    assert "'media'" in str(refused.value)
    with pytest.raises(StoreUrlMissing):
        list(dag.runs())


@pytest.mark.parametrize(
    ("url", "error", "what"),
    [
        ("sqlite:////nowhere/at/all/runs.sqlite3", StoreError, "does not exist"),
        ("sqlite:///{tmp}/text", StoreError, "is not a SQLite database"),
        ("sqlite:///{tmp}/directory", StoreError, "cannot be"),
        ("sqlite:////proc/version", StoreError, "cannot be|is not"),
        ("sqlite:///{tmp}/newer", StoreSchemaError, "newer than this release"),
        ("sqlite://", ConfigurationError, "needs a file"),
        ("runs.sqlite3", ConfigurationError, "not a database URL"),
        ("oracle+nothing://scott:tiger@here/x", ConfigurationError, "not a database URL|not installed"),
        (
            "postgresql+pg8000://scott:tiger@here/x",
            ConfigurationError,
            r'\[postgres\] and begin.*"postgresql\+psycopg://',
        ),
        ("mysql+asyncmy://scott:tiger@here/x", ConfigurationError, r'\[mysql\] and begin.*"mysql\+pymysql://"'),
    ],
)
def test_a_store_that_cannot_be_used_is_refused_and_left_as_it_was(
    new_dag: Any, tmp_path: Path, url: str, error: type, what: str
):
    (tmp_path / "text").write_text("a letter to a friend, " * 100)
    (tmp_path / "directory").mkdir()
    make_newer_store(tmp_path / "newer")
    dag = new_dag(dagabaaz_store_url=url.format(tmp=tmp_path))

    @dag.plugin
    def fine() -> None: ...

    for _ in range(2):  # and again at every use
        with pytest.raises(error, match=what) as refused:
            start(dag, node("fine"))
        assert "tiger" not in str(refused.value)
    assert (tmp_path / "text").read_text().startswith("a letter")


def make_newer_store(path: Path) -> None:
    dag = Dagabaaz(make_app(dagabaaz_store_url=f"sqlite:///{path}"))
    list(dag.runs())
    dag.close()
    with sqlite3.connect(path) as store:
        store.execute("UPDATE dagabaaz_schema_version SET version_num = '9999'")
    store.close()


def test_a_store_that_may_not_be_migrated_names_the_command_to_run(new_dag: Any, tmp_path: Path):
    dag = new_dag(dagabaaz_store_url=f"sqlite:///{tmp_path}/runs", dagabaaz_auto_migrate=False)
    with pytest.raises(StoreSchemaError, match="dagabaaz_auto_migrate is off: run `"):
        list(dag.runs())


def test_a_worker_on_another_store_says_so_and_gives_the_message_to_the_right_one(
    new_dag: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    queue = make_app().conf.task_default_queue
    right, wrong = (
        new_dag(task_default_queue=queue, dagabaaz_store_url=f"sqlite:///{tmp_path}/{name}")
        for name in ("right", "wrong")
    )
    for dag in (right, wrong):

        @dag.plugin(name="work")
        def work() -> str:
            return "done"

    run = start(right, node("work"))
    with embedded_worker(wrong.app):
        wait_until(lambda: "StoreMismatch" in caplog.text or "belongs to store" in caplog.text, "it says so")
    [record, *_] = [record for record in caplog.records if "belongs to store" in record.getMessage()]
    assert record.levelno == logging.CRITICAL
    assert f"{tmp_path}/wrong" in record.getMessage()
    assert run.status == "running"
    with embedded_worker(right.app):
        assert run.wait(PATIENCE) == "completed"
    assert list(wrong.runs()) == []


# -- settings


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("sweep_interval", 0),
        ("sweep_interval", "fast"),
        ("sweep_interval", math.nan),
        ("dead_after", math.inf),
        ("dead_after", 0.01),
        ("resend_after", -1),
        ("max_fan_out", True),
        ("max_fan_out", 2.5),
        ("max_input_bytes", None),
        ("max_recoveries", -1),
        ("max_recoveries", "3"),
        ("max_recoveries", 1.5),
        ("auto_migrate", "false"),
        ("wrap_tasks", "no"),
        ("store_url", 5),
        ("table_prefix", 5),
        ("table_prefix", "my runs; "),
        ("schema", ["public"]),
        ("files_dir", 5),
    ],
)
def test_a_setting_with_a_bad_value_is_named_at_first_use(new_dag: Any, name: str, value: Any):
    dag = new_dag(**{f"dagabaaz_{name}": value})
    if value is None:
        assert getattr(dag.settings, name) is not None  # as if it were not there
        return
    with pytest.raises(ConfigurationError, match=f"dagabaaz_{name} is "):
        _ = dag.settings


def test_a_misspelt_setting_is_refused_with_the_closest_name(new_dag: Any):
    dag = new_dag(dagabaaz_stor_url="sqlite:///x")

    @dag.plugin
    def fine() -> None: ...

    with pytest.raises(ConfigurationError, match=r"dagabaaz_stor_url; did you mean dagabaaz_store_url"):
        start(dag, node("fine"))


# -- pipelines and plugins


def test_an_unknown_pipeline_is_refused_with_the_closest_name(dag: Dagabaaz):
    dag.register(Pipeline("media", nodes=[node("fine")]))
    dag.save(Pipeline("orders", nodes=[node("fine")]))
    with pytest.raises(UnknownPipeline, match=r"'medai'; did you mean media\? Known here: media, orders"):
        dag.start("medai")
    with pytest.raises(UnknownPipeline, match="version 7 of pipeline 'orders'"):
        dag.start("orders", version=7)
    with pytest.raises(UnknownPipeline, match="version 1 of pipeline 'media'"):
        dag.start("media", version=1)
    assert_nothing_started(dag)


def test_a_node_with_an_unknown_plugin_is_refused_with_the_closest_name(dag: Dagabaaz):
    with pytest.raises(PipelineError, match=r"no plugin is called 'fin'.*did you mean fine"):
        start(dag, node("fin"))
    assert_nothing_started(dag)


def test_two_pipelines_of_one_name_are_refused_and_the_same_twice_is_not(dag: Dagabaaz):
    dag.register(Pipeline("media", nodes=[node("fine")]))
    dag.register(Pipeline("media", nodes=[node("fine")]))
    with pytest.raises(PipelineError, match="Two different pipelines are called 'media'"):
        dag.register(Pipeline("media", nodes=[node("fine"), node("more", plugin="fine")]))


def test_two_plugins_of_one_name_are_refused_where_they_meet(new_dag: Any):
    dag = new_dag()

    @dag.plugin(name="work")
    def one() -> str:
        return "one"

    def two() -> str:
        return "two"

    dag.app.finalize()
    with pytest.raises(PluginConflict, match=r"Two different plugins are called 'work'.*\.one'.*\.two'"):
        dag.plugin(two, name="work")
    # the first one stays, and registering it again is no conflict
    dag.plugin(one, name="work")
    with embedded_worker(dag.app):
        assert complete(dag, node("work")).result("work") == "one"


def test_a_conflict_between_modules_is_told_at_every_use_and_by_the_worker(new_dag: Any):
    dag = new_dag()

    @dag.plugin(name="work")
    def one() -> None: ...

    @dag.plugin(name="work")  # the app is not final yet: nothing is known of its tasks
    def two() -> None: ...

    for _ in range(2):
        with pytest.raises(PluginConflict, match="'work'"):
            start(dag, node("work"))
    with pytest.raises(PluginConflict), embedded_worker(dag.app):
        pass
    assert list(dag.runs()) == []


def test_options_for_an_existing_task_are_refused(dag: Dagabaaz):
    @dag.app.task(shared=False)
    def existing() -> None: ...

    with pytest.raises(ConfigurationError, match="an existing task keeps its own"):
        dag.plugin(existing, queue="other")


@pytest.mark.parametrize("option", ["task_id", "headers", "root_id", "eta", "countdown", "expires", "link", "chord"])
def test_options_that_would_break_identity_or_delivery_are_refused(dag: Dagabaaz, option: str):
    with pytest.raises(PipelineError, match=rf"options\['{option}'\] is refused"):
        start(dag, node("fine", options={option: 1}))
    with pytest.raises(RunInputError, match=rf"start\(options\['{option}'\] is refused"):
        start(dag, node("fine"), options={option: 1})
    assert_nothing_started(dag)


# -- input and keys


@pytest.mark.parametrize(
    ("given", "what"),
    [
        ({}, ["Page address (url) is required", "depth is required"]),
        ({"uri": "u", "depth": 1}, ["url"]),
        ({"url": "u", "depth": datetime(2026, 1, 1)}, ["datetime"]),  # noqa: DTZ001
        ({"url": "u", "depth": math.nan}, ["depth"]),
        ({"url": "u", "depth": {1: "one"}}, ["depth"]),
        ({"url": "u", "depth": b"bytes"}, ["bytes"]),
        ({"url": "x" * 2000, "depth": 1}, ["2,0", "1,000"]),
        (["url"], ["list"]),
        ("url", ["str"]),
    ],
)
def test_input_that_does_not_fit_is_refused_with_every_problem(new_dag: Any, given: Any, what: list[str]):
    dag = new_dag(dagabaaz_max_input_bytes=1000)

    @dag.plugin
    def fetch(url: str, depth: int) -> None: ...

    bindings = {
        "url": RuntimeSource(label="Page address", required=True),
        "depth": ExpressionSource(expression="{input.depth | required}"),
    }
    with pytest.raises(RunInputError) as refused:
        start(dag, node("fetch", bindings=bindings), input=given)
    for part in what:
        assert part in str(refused.value)
    assert_nothing_started(dag)


def test_the_same_key_gives_the_same_run_and_with_other_input_is_refused(dag: Dagabaaz):
    first = start(dag, node("fine"), input={"url": "a"}, key="order-42")
    assert start(dag, node("fine"), input={"url": "a"}, key="order-42") == first
    with pytest.raises(KeyConflict, match=r"order-42.*other input"):
        start(dag, node("fine"), input={"url": "b"}, key="order-42")
    assert list(dag.runs()) == [first]
    assert start(dag, node("fine"), input={"url": "b"}, key="order-42", name="other") != first
    first.cancel()
    assert start(dag, node("fine"), input={"url": "a"}, key="order-42").status == "cancelled"


@pytest.mark.parametrize("key", ["", "x" * 201, 42])
def test_a_key_that_is_no_short_text_is_refused(dag: Dagabaaz, key: Any):
    with pytest.raises(RunInputError, match="key is"):
        start(dag, node("fine"), key=key)
    assert_nothing_started(dag)


# -- results


class Tree(BaseModel):
    child: "Tree | None" = None


class Opaque:
    pass


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = {"deeper": value}
    return value


@pytest.mark.parametrize(
    ("result", "error", "what"),
    [
        (datetime(2026, 1, 1), "ResultError", "datetime"),  # noqa: DTZ001
        ({"when": datetime(2026, 1, 1)}, "NotJson", "when"),  # noqa: DTZ001
        ([1.0, math.nan], "NotJson", "nan"),
        (b"bytes", "ResultError", "bytes"),
        ({"raw": b"bytes"}, "NotJson", "raw"),
        (Opaque(), "ResultError", "Opaque"),
        ({"kept": {"deep": Opaque()}}, "NotJson", "kept.deep"),
        ({1: "one"}, "NotJson", "produce: "),
        ({"text": "nul \0"}, "NotJson", "text"),
        (nested(200), "NotJson|LimitExceeded", "64"),
        ([[1, 2]], "ResultError", "list"),
        ({"a", "b"}, "ResultError", "set"),
        (RootModel[list[int]]([1]), "ResultError", "list"),
        ({"long": "x" * 3000}, "LimitExceeded", "2,000"),
        (list(range(60)), "LimitExceeded", "50 artifacts"),
        (TaskArtifact(metadata={"when": Opaque()}), "NotJson", "when"),
    ],
)
def test_a_result_that_cannot_be_kept_fails_the_run_and_names_the_place(
    new_dag: Any, result: Any, error: str, what: str
):
    dag = new_dag(task_always_eager=True, dagabaaz_max_metadata_bytes=2000, dagabaaz_max_artifacts=50)

    @dag.plugin
    def produce() -> Any:
        return result

    run = fail(dag, node("produce"))
    assert run.error is not None
    assert run.error.type in error.split("|")
    assert what in run.error.message
    assert "produce" in run.error.message
    assert run.artifacts("produce") == []


# -- handles


def test_runs_nodes_and_transitions_that_are_not_there_are_refused(dag: Dagabaaz):
    with pytest.raises(UnknownRun):
        dag.run("01234567-89ab-7cde-8f01-23456789abcd")
    with pytest.raises(UnknownRun):
        dag.run("no id at all")
    run = start(dag, node("fine"))
    with pytest.raises(UnknownNode, match="it has fine"):
        run.result("fin")
    with pytest.raises(UnknownNode):
        run.artifacts("")
    with pytest.raises(RunStateError, match="is running"):
        run.retry()
    run.cancel()
    for refused in (run.pause, run.resume):
        with pytest.raises(RunStateError, match="is cancelled"):
            refused()
    with pytest.raises(ValueError, match="lost"):
        list(dag.runs(status="lost"))


def test_waiting_inside_a_task_is_refused_and_waiting_too_long_tells_what_to_look_at(dag: Dagabaaz):
    @dag.plugin
    def waiting() -> None:
        start(dag, node("fine"), name="other").wait(PATIENCE)

    with pytest.raises(WaitTimeout, match=r"is running after 0.1 s.*queued"):
        start(dag, node("fine")).wait(0.1)
    with embedded_worker(dag.app):
        run = fail(dag, node("waiting"))
    assert run.error is not None
    assert run.error.type == WaitRefused.__name__
    assert isinstance(WaitTimeout("x"), TimeoutError)


def test_what_cannot_be_a_pipeline_is_refused_with_every_problem(dag: Dagabaaz):
    with pytest.raises(PipelineError) as refused:
        start(dag, node("a", "b", plugin="fine"), node("b", "a", plugin="fin"), DagNode(slug="c", plugin="fine"))
    assert len(refused.value.problems) >= 1
    assert "cycle" in str(refused.value)
    assert_nothing_started(dag)

"""What a handle on a run does and shows while workers run it: pause, cancel, retry, results, lists, saved pipelines."""

import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from celery import Celery

from dagabaaz_celery.app import Dagabaaz
from dagabaaz_celery.context import PluginContext
from dagabaaz_celery.errors import KeyConflict
from dagabaaz_celery.models import ConfigSource, TaskArtifact
from dagabaaz_celery.pipeline import Pipeline
from dagabaaz_celery.testing import embedded_worker
from tests.integration.celery_support import PATIENCE, complete, fail, node, node_statuses, start, statuses, wait_until
from tests.integration.worker_processes import ROOT, Site


class Gate:
    """A body that holds until the test lets it go on."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self.opened = threading.Event()

    def pass_through(self) -> None:
        self.reached.set()
        assert self.opened.wait(PATIENCE)


@pytest.fixture
def gate() -> Gate:
    return Gate()


# -- pause, cancel, retry


@pytest.mark.parametrize("pool", ["solo", "threads"])
def test_a_paused_run_starts_no_more_bodies_until_it_is_resumed(dag: Dagabaaz, gate: Gate, pool: str):
    begun: list[str] = []

    @dag.plugin
    def first() -> list[int]:
        begun.append("first")
        gate.pass_through()
        return [1, 2]

    @dag.plugin
    def second(value: int) -> int:
        begun.append("second")
        return value

    @dag.plugin
    def other() -> None: ...

    with embedded_worker(dag.app, pool=pool, concurrency=1):
        run = start(dag, node("first"), node("second", "first"))
        assert gate.reached.wait(PATIENCE)
        run.pause()
        assert run.snapshot().paused
        gate.opened.set()
        # What runs goes on to its end, which is kept; what follows is held
        wait_until(lambda: statuses(run, "second"), "the next node is launched")
        complete(dag, node("other"))
        assert (run.status, begun) == ("running", ["first"])
        run.resume()
        assert run.wait(PATIENCE) == "completed"
    assert begun == ["first", "second", "second"]
    assert run.result("second") == [1, 2]


def test_messages_that_arrive_while_a_run_is_paused_are_owed_again(dag: Dagabaaz):
    @dag.plugin
    def work() -> str:
        return "done"

    run = start(dag, node("work"))
    run.pause()
    with embedded_worker(dag.app):
        wait_until(lambda: statuses(run) == ["pending"], "the message was consumed")
        run.resume()
        assert run.wait(PATIENCE) == "completed"


@pytest.mark.parametrize("pool", ["solo", "threads"])
def test_after_a_cancel_returned_no_body_starts(dag: Dagabaaz, gate: Gate, pool: str):
    begun: list[int] = []

    @dag.plugin
    def count() -> list[int]:
        return list(range(5))

    @dag.plugin
    def work(value: int) -> None:
        begun.append(value)
        gate.pass_through()

    @dag.plugin
    def other() -> None: ...

    with embedded_worker(dag.app, pool=pool, concurrency=1):
        run = start(dag, node("count"), node("work", "count"), node("after", "work", plugin="other"))
        assert gate.reached.wait(PATIENCE)
        run.cancel("a customer called")
        assert (run.status, statuses(run, "work")) == ("cancelled", ["cancelled"] * 5)
        run.cancel("twice is once")
        gate.opened.set()
        complete(dag, node("other"))
    assert begun == [0]
    assert run.error is not None
    assert (run.error.message, run.error.node) == ("a customer called", None)
    assert node_statuses(run, ["after"]) == {"after": "blocked"}


def test_a_retry_runs_again_only_what_failed_or_was_cancelled_and_what_follows(dag: Dagabaaz):
    bodies: Counter[str] = Counter()
    broken = {2}

    @dag.plugin
    def count() -> list[int]:
        bodies["count"] += 1
        return [1, 2, 3]

    @dag.plugin
    def work(value: int) -> int:
        bodies[f"work {value}"] += 1
        if value in broken:
            raise ValueError(f"no {value}")
        return value * 10

    @dag.plugin(fan_mode="aggregate")
    def add(artifacts: list[dict]) -> int:
        bodies["add"] += 1
        return sum(entry["metadata"]["value"] for entry in artifacts)

    with embedded_worker(dag.app):
        run = fail(dag, node("count"), node("work", "count"), node("add", "work"))
        assert bodies == {"count": 1, "work 1": 1, "work 2": 1}
        wait_until(lambda: statuses(run, "work") == ["completed", "failed", "cancelled"], "the rest is cancelled")
        broken.clear()
        run.retry()
        assert run.wait(PATIENCE) == "completed"
    assert bodies == {"count": 1, "work 1": 1, "work 2": 2, "work 3": 1, "add": 1}
    assert run.result("work") == [10, 20, 30]
    assert run.result("add") == 60
    assert run.error is None
    assert [task.attempt for task in run.tasks() if task.node == "work"] == [1, 2, 2]


def test_a_cancelled_run_goes_on_after_a_retry(dag: Dagabaaz, gate: Gate):
    begun: list[int] = []

    @dag.plugin
    def work(context: PluginContext) -> int:
        begun.append(context.attempt)
        gate.pass_through()
        return context.attempt

    with embedded_worker(dag.app, pool="threads"):
        run = start(dag, node("work"))
        assert gate.reached.wait(PATIENCE)
        run.cancel()
        run.retry()
        gate.opened.set()
        assert run.wait(PATIENCE) == "completed"
    # The first attempt's late outcome was refused
    assert run.result("work") == 2
    assert begun == [1, 2]


# -- what it shows


def test_results_come_back_as_they_were_returned(eager: Dagabaaz):
    @eager.plugin
    def produce(kind: str, context: PluginContext) -> Any:
        if kind == "emitted":
            context.emit("early")
            return None
        if kind == "both":
            context.emit("early")
            return "late"
        return {
            "nothing": None,
            "text": "text",
            "number": 1.5,
            "flag": False,
            "record": {"a": [1, {"b": None}]},
            "artifact": TaskArtifact(file_name="a.txt", metadata={"x": 1}),
            "empty list": [],
            "list of one": ["only"],
            "list": [1, "two", {"three": 3}],
            "tuple": (1, 2),
        }[kind]

    expected = {
        "nothing": None,
        "text": "text",
        "number": 1.5,
        "flag": False,
        "record": {"a": [1, {"b": None}]},
        "artifact": TaskArtifact(file_name="a.txt", metadata={"x": 1}),
        "empty list": [],
        "list of one": ["only"],
        "list": [1, "two", {"three": 3}],
        "tuple": [1, 2],
        "emitted": ["early"],
        "both": ["early", "late"],
    }
    for kind, value in expected.items():
        run = complete(eager, node("produce"), input={"kind": kind})
        found = run.result("produce")
        if isinstance(found, TaskArtifact):
            found = found.model_copy(update={"origin_artifact_id": None})
        assert found == value, kind


def test_results_of_nodes_that_fan_out_are_lists_of_their_tasks_results(dag: Dagabaaz):
    @dag.plugin
    def count() -> list[int]:
        return [1, 2]

    @dag.plugin
    def spread(value: int) -> list[int]:
        return [value, value * 10]

    @dag.plugin(fan_mode="grouped")
    def collect(artifacts: list[dict]) -> int:
        return sum(entry["metadata"]["value"] for entry in artifacts)

    @dag.plugin(fan_mode="aggregate")
    def total(artifacts: list[dict]) -> int:
        return sum(entry["metadata"]["value"] for entry in artifacts)

    @dag.plugin
    def silent(value: int) -> None: ...

    run = start(
        dag,
        node("count"),
        node("spread", "count"),
        node("collect", "spread"),
        node("total", "collect"),
        node("silent", "total"),
        node("after", "silent", plugin="silent"),
    )
    assert [run.result("count"), run.result("spread"), run.result("total")] == [None, [], None]  # nothing yet
    with embedded_worker(dag.app):
        assert run.wait(PATIENCE) == "completed"
    assert run.result("count") == [1, 2]
    assert run.result("spread") == [[1, 10], [2, 20]]
    assert run.result("collect") == [11, 22]
    assert run.result("total") == 33
    assert run.result("silent") == [None]
    assert run.result("after") == []  # filtered
    assert [artifact.metadata["value"] for artifact in run.artifacts("spread")] == [1, 10, 2, 20]


def test_a_run_shows_its_nodes_and_tasks(dag: Dagabaaz, gate: Gate):
    @dag.plugin
    def count(n: int) -> list[int]:
        return list(range(n))

    @dag.plugin
    def work(value: int, context: PluginContext) -> None:
        context.progress(1, 4)
        gate.pass_through()

    before = time.time()
    with embedded_worker(dag.app, pool="threads", concurrency=1):
        run = start(dag, node("count", name="Count them"), node("work", "count"), input={"n": 2}, key="k")
        assert gate.reached.wait(PATIENCE)
        wait_until(lambda: run.snapshot().nodes[1].tasks.get("queued"), "the other is marked as published")
        shown = run.snapshot()
        tasks = run.tasks()
        gate.opened.set()
        assert run.wait(PATIENCE) == "completed"
    assert (shown.id, shown.pipeline, shown.version, shown.key) == (run.id, "work", None, "k")
    assert (shown.status, shown.paused, shown.generation, shown.error, shown.ended_at) == (
        "running",
        False,
        1,
        None,
        None,
    )
    count_node, work_node = shown.nodes
    assert (count_node.slug, count_node.name, count_node.plugin, count_node.status) == (
        "count",
        "Count them",
        "count",
        "completed",
    )
    assert (work_node.status, work_node.tasks_total, work_node.tasks_done) == ("launched", 2, 0)
    assert work_node.tasks == {"running": 1, "queued": 1}
    assert before - 5 < shown.created_at <= count_node.started_at <= count_node.ended_at <= work_node.started_at
    assert [(task.node, task.ordinal, task.status, task.progress) for task in tasks] == [
        ("count", 0, "completed", None),
        ("work", 0, "running", (1, 4)),
        ("work", 1, "queued", None),
    ]
    assert run.input == {"n": 2}
    assert run.snapshot().ended_at >= shown.created_at


def test_a_node_that_did_not_complete_took_until_its_last_task_ended(dag: Dagabaaz, gate: Gate):
    @dag.plugin
    def fall() -> None:
        assert gate.reached.wait(PATIENCE)
        raise ValueError("down")

    @dag.plugin
    def hold() -> None:
        gate.pass_through()

    @dag.plugin
    def follow() -> None: ...

    with embedded_worker(dag.app, pool="threads", concurrency=2):
        run = start(dag, node("fall"), node("hold"), node("follow", "fall"))
        assert run.wait(PATIENCE) == "failed"
        gate.opened.set()
        wait_until(lambda: all(task.ended_at for task in run.tasks()), "the body that was held has ended")
        shown = run.snapshot()
        ends = {task.node: task.ended_at for task in run.tasks()}
    fall_node, hold_node, follow_node = shown.nodes
    assert (fall_node.status, hold_node.status) == ("failed", "launched")
    assert (fall_node.ended_at, hold_node.ended_at) == (ends["fall"], ends["hold"])
    assert follow_node.ended_at is None  # it never began


def test_a_node_that_runs_has_no_end_though_a_task_of_it_has(dag: Dagabaaz, gate: Gate):
    @dag.plugin
    def spread() -> list[int]:
        return [0, 1]

    @dag.plugin
    def work(value: int) -> None:
        if value:
            gate.pass_through()

    with embedded_worker(dag.app, pool="threads", concurrency=1):
        run = start(dag, node("spread"), node("work", "spread"))
        assert gate.reached.wait(PATIENCE)
        wait_until(lambda: statuses(run, "work").count("completed") == 1, "the first task is done")
        assert run.snapshot().nodes[1].ended_at is None
        gate.opened.set()
        assert run.wait(PATIENCE) == "completed"


def test_a_handle_is_its_runs_id(dag: Dagabaaz):
    @dag.plugin
    def work() -> None: ...

    run = start(dag, node("work"))
    assert dag.run(run.id) == run
    assert dag.run(run.id.upper().replace("-", "")).id == run.id
    assert {run, dag.run(run.id)} == {run}
    assert run.id in repr(run)
    assert run != start(dag, node("work"))


def test_runs_are_listed_newest_first_by_pipeline_and_status_over_any_number_of_pages(dag: Dagabaaz):
    @dag.plugin
    def work() -> None: ...

    def start_many(name: str, count: int) -> list[str]:
        return [start(dag, node("work"), name=name).id for _ in range(count)]

    first, second = start_many("one", 205), start_many("two", 3)
    dag.run(first[7]).cancel()
    assert [run.id for run in dag.runs()] == [*reversed(second), *reversed(first)]
    assert [run.id for run in dag.runs(pipeline="two")] == [*reversed(second)]
    assert [run.id for run in dag.runs(status="cancelled")] == [first[7]]
    assert [run.id for run in dag.runs(pipeline="two", status="cancelled")] == []
    assert [run.id for run in dag.runs(limit=4)] == [*reversed(second), first[-1]]
    assert len(list(dag.runs(limit=204))) == 204
    assert len(list(dag.runs(limit=0))) == 0
    assert sum(1 for _ in dag.runs(pipeline="one", status="running")) == 204


# -- pipelines


def test_a_saved_pipeline_has_versions_and_runs_keep_theirs(dag: Dagabaaz):
    @dag.plugin
    def say(word: str) -> str:
        return word

    def saying(word: str, **fields: Any) -> Pipeline:
        return Pipeline("greet", nodes=[node("say", bindings={"word": ConfigSource(value=word)})], **fields)

    first = dag.save(saying("hello"))
    assert first.version == 1
    old = dag.start("greet")
    assert dag.save(saying("hello")).version == 1  # nothing changed
    assert dag.save(saying("goodbye")).version == 2
    with pytest.raises(KeyConflict, match="Version 1"):
        dag.save(saying("what", version=1))
    assert dag.pipelines() == {"greet": 2}
    with embedded_worker(dag.app):
        runs = [old, dag.start("greet"), dag.start("greet", version=1)]
        assert [run.wait(PATIENCE) for run in runs] == ["completed"] * 3
    assert [run.result("say") for run in runs] == ["hello", "goodbye", "hello"]
    assert [run.snapshot().version for run in runs] == [1, 2, 1]


START_ELSEWHERE = """
import json, sys
from tests.integration.worker_app import dag
run = dag.start("from-elsewhere", input=json.loads(sys.argv[1]), key="once")
print(run.id)
"""


def test_a_saved_pipeline_is_started_by_name_from_another_process(prefork: Site):
    prefork.dag.save(Pipeline("from-elsewhere", nodes=[node("broken"), node("fine", "broken")]))
    environment = {
        **os.environ,
        "WORKER_APP_SETTINGS": json.dumps(prefork.settings),
        "WORKER_APP_PLUGINS": f"{prefork.declare.__module__}.{prefork.declare.__qualname__}",
    }
    said = subprocess.run(
        [sys.executable, "-c", START_ELSEWHERE, json.dumps({"price": 4})],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    run = prefork.dag.run(said.stdout.strip())
    assert run.wait(PATIENCE) == "completed"
    assert (run.result("broken"), run.result("fine")) == (0.25, ["fine"])
    assert prefork.dag.start("from-elsewhere", input={"price": 4}, key="once") == run


# -- configuration


def test_an_app_may_be_configured_after_everything_is_declared(tmp_path: Path):
    app = Celery("later", set_as_current=False)
    dag = Dagabaaz(app)

    @dag.plugin
    def work(n: int) -> list[int]:
        return list(range(n))

    @dag.plugin
    def each(value: int) -> None: ...

    dag.register(Pipeline("numbers", nodes=[node("work"), node("each", "work")]))

    class Config:
        CELERY_BROKER_URL = "memory://localhost/"
        CELERY_TASK_DEFAULT_QUEUE = tmp_path.name
        CELERY_WORKER_HIJACK_ROOT_LOGGER = False
        CELERY_DAGABAAZ_STORE_URL = f"sqlite:///{tmp_path / 'runs'}"
        CELERY_DAGABAAZ_FILES_DIR = str(tmp_path / "files")
        CELERY_DAGABAAZ_MAX_FAN_OUT = 3
        DAGABAAZ_MAX_INPUT_BYTES = 1  # not in the namespace: not ours

    app.config_from_object(Config, namespace="CELERY")
    assert (dag.settings.max_fan_out, dag.settings.files_dir) == (3, tmp_path / "files")
    assert dag.settings.max_input_bytes == 1_048_576
    with embedded_worker(app):
        runs = [dag.start("numbers", input={"n": n}) for n in (3, 4)]
        assert [run.wait(PATIENCE) for run in runs] == ["completed", "failed"]
    assert runs[1].error is not None
    assert runs[1].error.message.startswith("Fan-out limit")
    assert (tmp_path / "runs").exists()
    dag.close()
    app.close()


def test_several_apps_with_stores_of_their_own_share_a_process(new_dag: Any):
    first, second = new_dag(), new_dag()
    for dag, answer in ((first, "one"), (second, "two")):

        @dag.plugin(name="work")
        def work(answer: str = answer) -> str:
            return answer

    run = start(first, node("work"))
    assert list(second.runs()) == []
    with embedded_worker(second.app):
        assert complete(second, node("work")).result("work") == "two"
    assert run.status == "running"
    with embedded_worker(first.app):
        assert run.wait(PATIENCE) == "completed"
    assert run.result("work") == "one"
    assert len(list(second.runs())) == 1

"""Everything that can be a plugin, run by a worker: how its parameters are filled and what its result becomes."""

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from datetime import date
from pathlib import Path
from typing import Annotated, Any

import pytest
from celery import Celery, Task
from pydantic import BaseModel, Field

from dagabaaz_celery.app import Dagabaaz, shared_plugin
from dagabaaz_celery.context import PluginContext
from dagabaaz_celery.errors import ConfigurationError, PipelineError, RunInputError
from dagabaaz_celery.models import ConfigSource, TaskArtifact
from dagabaaz_celery.testing import embedded_worker
from tests.integration.celery_support import PATIENCE, complete, fail, make_app, node, start, statuses, wait_until

POOLS = ("solo", "threads")


# -- parameters


def test_parameters_are_filled_by_name_and_what_the_body_does_not_name_is_not_passed(dag: Dagabaaz):
    @dag.plugin
    def take(url: str, depth: int = 2, *, strict: bool, limit: int = 10) -> dict[str, Any]:
        return {"url": url, "depth": depth, "strict": strict, "limit": limit}

    with embedded_worker(dag.app):
        run = complete(dag, node("take"), input={"url": "u", "strict": True, "limit": 3, "unnamed": 1})
    assert run.result("take") == {"url": "u", "depth": 2, "strict": True, "limit": 3}


def test_keyword_arguments_take_the_rest(dag: Dagabaaz):
    @dag.plugin
    def take(url: str, **rest: Any) -> dict[str, Any]:
        return {"url": url, "rest": rest}

    with embedded_worker(dag.app):
        run = complete(dag, node("take"), input={"url": "u", "depth": 3, "tags": ["a"]})
    assert run.result("take") == {"url": "u", "rest": {"depth": 3, "tags": ["a"]}}


@pytest.mark.parametrize(
    ("given", "expected"),
    [({"first": 1}, [1, 20, 30]), ({"first": 1, "third": 3}, [1, 20, 3]), ({"first": 1, "second": 2}, [1, 2, 30])],
)
def test_positional_only_parameters_keep_their_places(eager: Dagabaaz, given: dict[str, int], expected: list[int]):
    @eager.plugin
    def take(first: int, second: int = 20, /, third: int = 30) -> list[int]:
        return [first, second, third]

    assert complete(eager, node("take"), input=given).result("take") == expected


def test_a_positional_only_parameter_behind_a_default_that_stays(eager: Dagabaaz):
    @eager.plugin
    def take(first: int = 10, second: int = 20, /) -> list[int]:
        return [first, second]

    assert complete(eager, node("take"), input={"second": 2}).result("take") == [10, 2]


def test_the_sole_value_of_an_artifact_goes_to_the_parameter_that_nothing_else_fills(dag: Dagabaaz):
    @dag.plugin
    def count() -> list[int]:
        return [1, 2]

    @dag.plugin
    def double(number: int) -> int:
        return number * 2

    @dag.plugin
    def scale(number: int, factor: int = 10) -> int:
        return number * factor

    @dag.plugin
    def negate(number: int = 0, /) -> int:
        return -number

    @dag.plugin
    def name(value: int, number: str = "none") -> str:
        return f"{number} {value}"

    factor = {"factor": ConfigSource(value=100)}
    with embedded_worker(dag.app):
        run = complete(
            dag,
            node("count"),
            node("double", "count"),
            node("scale", "count"),
            node("scale-bound", "count", plugin="scale", bindings=factor),
            node("negate", "count"),
            node("name", "count"),
        )
    assert run.result("double") == [2, 4]
    assert run.result("scale") == [10, 20]
    assert run.result("scale-bound") == [100, 200]
    assert run.result("negate") == [-1, -2]
    assert run.result("name") == ["none 1", "none 2"]


class Size(BaseModel):
    width: int
    height: int


def test_values_are_converted_by_their_type_hints_before_the_body_runs(dag: Dagabaaz):
    seen: list[Any] = []

    @dag.plugin
    def take(path: Path, day: date, size: Size, *, tags: set[str], positive: Annotated[int, Field(gt=0)], raw) -> None:
        seen.extend([path, day, size, tags, positive, raw])

    given = {
        "path": "/data/in",
        "day": "2026-02-03",
        "size": {"width": "4", "height": 3},
        "tags": ["a", "a"],
        "positive": "7",
        "raw": {"any": [1]},
    }
    with embedded_worker(dag.app):
        complete(dag, node("take"), input=given)
    expected = [Path("/data/in"), date(2026, 2, 3), Size(width=4, height=3), {"a"}, 7, {"any": [1]}]
    assert seen == expected


def test_a_value_that_does_not_fit_its_type_hint_fails_the_run_before_the_body(dag: Dagabaaz):
    started: list[int] = []

    @dag.plugin
    def take(size: Size, day: date) -> None:
        started.append(1)

    with embedded_worker(dag.app):
        run = fail(dag, node("take"), input={"size": {"width": "wide", "height": 1}, "day": "tomorrow"})
    assert run.error is not None
    assert run.error.type == "TaskInputError"
    assert "size.width" in run.error.message
    assert "day" in run.error.message
    assert started == []


def test_every_parameter_that_cannot_be_filled_is_named(dag: Dagabaaz):
    @dag.plugin
    def take(url: str, token: str, depth: int = 1) -> None: ...

    @dag.plugin
    def give() -> dict[str, str]:
        return {"uri": "u"}

    with embedded_worker(dag.app):
        run = fail(dag, node("give"), node("take", "give"))
    assert run.error is not None
    assert (run.error.type, run.error.node) == ("TaskInputError", "take")
    assert "token, url; did you mean uri?" in run.error.message
    assert "uri)" in run.error.message


def test_a_root_that_cannot_be_filled_is_refused_before_its_run_starts(dag: Dagabaaz):
    @dag.plugin
    def take(url: str, token: str, depth: int = 1) -> None: ...

    with pytest.raises(RunInputError, match=r"node 'take': .* has no token, url; did you mean uri\? \(it has: uri\)"):
        start(dag, node("take"), input={"uri": "u"})

    assert list(dag.runs()) == []


def test_a_misspelt_option_of_a_plugin_is_refused(dag: Dagabaaz):
    with pytest.raises(ConfigurationError, match=r"'onlost'.*did you mean on_lost\?"):
        dag.plugin(onlost="crash")(print)
    with pytest.raises(ConfigurationError, match=r"'groupd'.*did you mean grouped\?"):
        dag.plugin(fan_mode="groupd")(print)
    with pytest.raises(PipelineError, match="takes a Pipeline, not a str"):
        dag.register("media")


class Entry(BaseModel):
    file_name: str | None
    metadata: dict[str, int]


def test_an_aggregate_takes_its_artifacts_as_mappings_as_models_or_as_task_artifacts(dag: Dagabaaz):
    seen: dict[str, Any] = {}

    @dag.plugin
    def make() -> list[dict[str, int]]:
        return [{"n": 1}, {"n": 2}]

    @dag.plugin(fan_mode="aggregate")
    def as_mappings(artifacts: list[dict]) -> None:
        seen["mappings"] = artifacts

    @dag.plugin(fan_mode="aggregate")
    def as_models(artifacts: list[Entry]) -> None:
        seen["models"] = artifacts

    @dag.plugin(fan_mode="aggregate")
    def as_artifacts(artifacts: list[TaskArtifact]) -> None:
        seen["artifacts"] = artifacts

    with embedded_worker(dag.app):
        complete(
            dag, node("make"), node("as_mappings", "make"), node("as_models", "make"), node("as_artifacts", "make")
        )
    assert [entry["metadata"] for entry in seen["mappings"]] == [{"n": 1}, {"n": 2}]
    assert seen["models"] == [Entry(file_name=None, metadata={"n": 1}), Entry(file_name=None, metadata={"n": 2})]
    assert seen["artifacts"] == [TaskArtifact(metadata={"n": 1}), TaskArtifact(metadata={"n": 2})]


def test_one_hint_that_cannot_be_evaluated_leaves_the_others_in_force(eager: Dagabaaz):
    def take(number: "int", missing: "NowhereImported", context: PluginContext) -> dict[str, Any]:  # noqa: F821
        return {"number": number, "missing": missing, "slug": context.slug}

    eager.plugin(take)
    run = complete(eager, node("take"), input={"number": "5", "missing": "kept"})
    assert run.result("take") == {"number": 5, "missing": "kept", "slug": "take"}


# -- kinds of plugins


@pytest.mark.parametrize("pool", POOLS)
def test_async_plugins_of_a_thread_share_one_loop_so_that_what_is_bound_to_it_survives(dag: Dagabaaz, pool: str):
    # Given a client as async libraries have them: made on first use, with a task of its own that serves every later use
    clients: dict[int, asyncio.Queue[asyncio.Future[int]]] = {}

    async def serve(queue: "asyncio.Queue[asyncio.Future[int]]") -> None:
        served = 0
        while True:
            waiting = await queue.get()
            served += 1
            waiting.set_result(served)

    background: list[asyncio.Task[None]] = []

    @dag.plugin
    async def ask() -> int:
        queue = clients.get(threading.get_ident())
        if queue is None:
            queue = clients[threading.get_ident()] = asyncio.Queue()
            background.append(asyncio.create_task(serve(queue)))
        answer: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        await queue.put(answer)
        return await answer

    @dag.plugin
    async def close() -> None:
        background[0].cancel()
        await asyncio.wait(background)

    # When several tasks ask it
    with embedded_worker(dag.app, pool=pool, concurrency=1):
        run = complete(dag, node("one", plugin="ask"), node("two", "one", plugin="ask"), node("three", plugin="ask"))
        # Then it is the same one that answers them all
        answers = [run.result("one"), *run.result("two"), run.result("three")]
        complete(dag, node("close"))
    assert sorted(answers) == [1, 2, 3]
    assert len(clients) == 1


def test_async_plugins_may_be_bound_retried_and_have_type_hints(dag: Dagabaaz):
    @dag.plugin(bind=True, max_retries=1)
    async def ask(self: Task, day: date) -> dict[str, Any]:
        await asyncio.sleep(0)
        if self.request.retries == 0:
            raise self.retry(countdown=0)
        return {"year": day.year, "retries": self.request.retries}

    with embedded_worker(dag.app):
        run = complete(dag, node("ask"), input={"day": "2026-01-01"})
    assert run.result("ask") == {"year": 2026, "retries": 1}


def test_generators_produce_one_artifact_for_each_value(dag: Dagabaaz):
    @dag.plugin
    def count(context: PluginContext) -> Iterator[int]:
        yield from range(3)

    @dag.plugin
    async def stream() -> AsyncIterator[int]:
        for number in range(3):
            await asyncio.sleep(0)
            yield number

    @dag.plugin
    def double(value: int) -> int:
        return value * 2

    with embedded_worker(dag.app):
        run = complete(
            dag,
            node("count"),
            node("stream"),
            node("a", "count", plugin="double"),
            node("b", "stream", plugin="double"),
        )
    assert run.result("count") == run.result("stream") == [0, 1, 2]
    assert run.result("a") == run.result("b") == [0, 2, 4]


def test_a_generator_that_raises_fails_the_run_and_leaves_no_artifact(dag: Dagabaaz):
    @dag.plugin
    def count() -> Iterator[int]:
        yield 1
        raise RuntimeError("no second one")

    with embedded_worker(dag.app):
        run = fail(dag, node("count"))
    assert run.error is not None
    assert (run.error.type, run.error.message) == ("RuntimeError", "no second one")
    assert run.artifacts("count") == []


def test_a_shared_plugin_is_one_of_every_app(new_dag):
    @shared_plugin(name="greet-shared", max_retries=1)
    def greet_everywhere(name: str) -> str:
        return f"hello {name}"

    first, second = new_dag(), new_dag()
    for dag in (first, second):
        with embedded_worker(dag.app):
            run = complete(dag, node("greet", plugin="greet-shared"), input={"name": dag.app.main})
            assert run.result("greet") == f"hello {dag.app.main}"
            assert dag.find_plugin("greet-shared").wrapped


def test_a_plugin_shared_after_the_app_is_final_is_one_of_it_too(dag: Dagabaaz):
    dag.app.finalize()

    @shared_plugin
    def greet_later(name: str) -> str:
        return f"hello {name}"

    with embedded_worker(dag.app):
        run = complete(dag, node("greet", plugin="greet_later"), input={"name": "you"})
    assert run.result("greet") == "hello you"


def test_apps_in_one_process_have_plugins_of_their_own(new_dag):
    first, second = new_dag(), new_dag()

    @first.plugin(name="greet")
    def greet_one() -> str:
        return "one"

    @second.plugin(name="greet")
    def greet_two() -> str:
        return "two"

    @first.plugin
    def only_here() -> None: ...

    # both published before either worker runs: Celery has one worker's app for a process at a time
    runs = [start(dag, node("greet")) for dag in (first, second)]
    for dag, run, answer in zip((first, second), runs, ("one", "two"), strict=True):
        with embedded_worker(dag.app):
            assert run.wait(PATIENCE) == "completed"
        assert run.result("greet") == answer
    assert second.find_plugin("only_here") is None
    assert "only_here" not in second.plugin_names()


def test_the_same_function_names_in_two_apps_stay_apart(new_dag):
    def declare(dag: Dagabaaz, answer: str) -> None:
        @dag.plugin
        def who() -> str:
            return answer

    first, second = new_dag(), new_dag()
    declare(first, "one")
    declare(second, "two")
    with embedded_worker(first.app):
        assert complete(first, node("who")).result("who") == "one"
    with embedded_worker(second.app):
        assert complete(second, node("who")).result("who") == "two"


# -- existing tasks, shared with other callers


@pytest.fixture
def shop() -> Iterator[Celery]:
    app = make_app(result_backend="cache+memory://")
    yield app
    app.close()


def test_an_existing_task_as_a_plugin_serves_its_other_callers_as_before(shop: Celery):
    calls: list[tuple[Any, ...]] = []

    @shop.task(bind=True, shared=False, max_retries=2, default_retry_delay=0)
    def add(self: Task, a: int, b: int = 1, *, fail_times: int = 0) -> int:
        calls.append((self.request.retries, self.request.args, self.request.kwargs))
        if self.request.retries < fail_times:
            raise self.retry(exc=RuntimeError("not yet"), countdown=0)
        return a + b

    dag = Dagabaaz(shop)
    plugin = dag.plugin(add)
    assert plugin is add
    with embedded_worker(shop):
        # Called directly, by delay, and by apply_async with retries and a result that the caller gets
        assert add(2, 3) == 5
        assert add.delay(2).get(PATIENCE) == 3
        calls.clear()
        assert add.apply_async((2,), {"b": 5, "fail_times": 2}).get(PATIENCE) == 7
        assert [retries for retries, _, _ in calls] == [0, 1, 2]
        assert {(tuple(args), tuple(kwargs)) for _, args, kwargs in calls} == {((2,), ("b", "fail_times"))}
        with pytest.raises(RuntimeError, match="not yet"):
            add.apply_async((2,), {"fail_times": 9}).get(PATIENCE)
        with pytest.raises(TypeError):
            add.delay().get(PATIENCE)
        # And in a run beside them
        run = complete(dag, node("add"), input={"a": 40, "b": 2})
        assert run.result("add") == 42
        assert add.delay(1, 1).get(PATIENCE) == 2
    dag.close()


def test_an_existing_task_keeps_its_result_backend_in_a_run(shop: Celery):
    ids: list[str] = []

    @shop.task(bind=True, shared=False)
    def add(self: Task, a: int, b: int) -> int:
        ids.append(self.request.id)
        return a + b

    dag = Dagabaaz(shop)
    dag.plugin(add)
    with embedded_worker(shop):
        complete(dag, node("add"), input={"a": 1, "b": 2})
        assert shop.AsyncResult(ids[0]).get(PATIENCE) == 3
    dag.close()


def test_a_body_may_call_its_own_task_and_others_outside_the_run(shop: Celery):
    @shop.task(bind=True, shared=False, max_retries=3)
    def add_up(self: Task, n: int) -> int:
        if n < 0:
            # called directly by another body, a retry is an error of the caller's, as Celery has it
            raise self.retry(exc=ValueError("direct calls do not retry"))
        return 0 if n == 0 else n + add_up(n - 1)

    dag = Dagabaaz(shop)
    dag.plugin(add_up)

    @dag.plugin
    def call_another() -> int:
        with pytest.raises(ValueError, match="direct calls do not retry"):
            add_up(-1)
        add_up.delay(100)
        return add_up(2) + add_up.apply((3,)).get(disable_sync_subtasks=False)

    with embedded_worker(shop):
        run = complete(dag, node("add_up"), node("call_another"), input={"n": 5})
        assert run.result("add_up") == 15
        assert run.result("call_another") == 9
    dag.close()


def test_a_task_may_be_a_plugin_under_two_names(shop: Celery):
    @shop.task(shared=False)
    def shout(text: str) -> str:
        return text.upper()

    dag = Dagabaaz(shop)
    dag.plugin(shout, name="loud")
    dag.plugin(shout, name="louder", passthrough=True)
    with embedded_worker(shop):
        run = complete(dag, node("loud"), node("louder"), node("by-task-name", plugin=shout.name), input={"text": "hi"})
    assert [run.result(slug) for slug in ("loud", "louder", "by-task-name")] == ["HI"] * 3
    dag.close()


def test_a_class_based_task_with_its_own_call_runs_as_a_node_and_alone(shop: Celery):
    class Counted(Task):
        calls = 0

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            type(self).calls += 1
            return super().__call__(*args, **kwargs)

    class Shout(Counted):
        name = "shout-loudly"

        def run(self, text: str) -> str:
            return text.upper()

    shout = shop.register_task(Shout())
    dag = Dagabaaz(shop)
    dag.plugin(shout, name="shout")
    with embedded_worker(shop):
        assert shout.delay("hi").get(PATIENCE) == "HI"
        assert complete(dag, node("shout"), input={"text": "ho"}).result("shout") == "HO"
    assert Shout.calls == 2
    dag.close()


# -- what the context gives


@pytest.mark.parametrize("pool", POOLS)
def test_the_context_tells_where_a_body_runs_and_takes_what_it_emits(new_dag, tmp_path: Path, pool: str):
    dag = new_dag(dagabaaz_files_dir=str(tmp_path))
    seen: list[PluginContext] = []

    @dag.plugin(bind=True, max_retries=1)
    def work(self: Task, context: PluginContext) -> int:
        seen.append(context)
        context.emit({"early": True})
        (context.scratch / "notes.txt").write_text("kept")
        if context.attempt == 1:
            raise self.retry(countdown=0)
        return 7

    with embedded_worker(dag.app, pool=pool):
        run = complete(dag, node("work"))
    assert [(context.run_id, context.slug, context.attempt) for context in seen] == [
        (run.id, "work", 1),
        (run.id, "work", 2),
    ]
    assert [context.task_id for context in seen] == [run.tasks()[0].id] * 2
    # what the first attempt emitted went with it
    assert run.result("work") == [{"early": True}, 7]
    scratches = [context.scratch for context in seen]
    assert len(set(scratches)) == 2
    assert all(scratch.is_relative_to(tmp_path) and (scratch / "notes.txt").exists() for scratch in scratches)


def test_progress_is_shown_at_most_once_a_second(dag: Dagabaaz):
    release = threading.Event()

    @dag.plugin
    def work(context: PluginContext) -> None:
        for done in range(1, 500):
            context.progress(done, 500)
        assert release.wait(PATIENCE)

    with embedded_worker(dag.app):
        run = start(dag, node("work"))
        wait_until(lambda: run.tasks()[0].progress, "progress is shown")
        progress = run.tasks()[0].progress
        release.set()
        assert run.wait(PATIENCE) == "completed"
    # The first call is written at once; of the hundreds that follow within a second, none.
    assert progress == (1, 500)


def test_a_long_body_is_told_that_its_run_was_cancelled(dag: Dagabaaz):
    told = threading.Event()
    started = threading.Event()

    @dag.plugin
    def work(context: PluginContext) -> None:
        assert not context.cancelled
        started.set()
        wait_until(lambda: context.cancelled, "it is told")
        told.set()

    with embedded_worker(dag.app):
        run = start(dag, node("work"))
        assert started.wait(PATIENCE)
        run.cancel()
        assert told.wait(PATIENCE)
    assert run.status == "cancelled"
    assert statuses(run) in (["cancelled"], ["completed"])  # it may end before the run's open tasks are cancelled


# -- files


def test_a_file_artifact_gets_its_size_and_type_and_reaches_the_next_body(new_dag, tmp_path: Path):
    dag = new_dag(dagabaaz_files_dir=str(tmp_path))
    seen: list[Any] = []

    @dag.plugin
    def write(context: PluginContext) -> TaskArtifact:
        path = context.scratch / "page.html"
        path.write_text("<p>hello</p>")
        return TaskArtifact(file_path=str(path), metadata={"title": "Hello"})

    @dag.plugin
    def read(file_path: Path, file_name: str, file_size: int, mime_type: str, title: str) -> None:
        seen.extend([file_path.read_text(), file_name, file_size, mime_type, title])

    with embedded_worker(dag.app):
        run = complete(dag, node("write"), node("read", "write"))
    assert seen == ["<p>hello</p>", "page.html", 12, "text/html", "Hello"]
    [artifact] = run.artifacts("write")
    assert run.result("write") == artifact
    assert (artifact.file_name, artifact.file_size, artifact.mime_type) == ("page.html", 12, "text/html")


def test_an_artifact_of_a_file_that_was_not_written_fails_its_task(dag: Dagabaaz, tmp_path: Path):
    @dag.plugin
    def write() -> TaskArtifact:
        return TaskArtifact(file_path=str(tmp_path / "never"))

    with embedded_worker(dag.app):
        run = fail(dag, node("write"))
    assert run.error is not None
    assert run.error.type == "MissingFile"
    assert "never" in run.error.message


def test_a_file_that_is_gone_is_named_before_the_body_starts(dag: Dagabaaz, tmp_path: Path):
    path = tmp_path / "short-lived"

    @dag.plugin
    def write() -> TaskArtifact:
        path.write_text("x")
        return TaskArtifact(file_path=str(path))

    @dag.plugin
    def remove() -> list[int]:
        path.unlink()
        return [1]

    @dag.plugin(fan_mode="aggregate")
    def read(artifacts: list[TaskArtifact]) -> None:
        raise AssertionError("the body must not start")

    with embedded_worker(dag.app):
        run = fail(dag, node("write"), node("remove", "write"), node("read", "write", "remove"))
    assert run.error is not None
    assert (run.error.type, run.error.node) == ("MissingFile", "read")
    assert str(path) in run.error.message
    assert "dagabaaz_files_dir" in run.error.message

"""Traces of runs: one tree, run -> node -> task -> what the plugin traces, over whatever processes it goes through."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from opentelemetry.instrumentation.celery import CeleryInstrumentor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ParentBased, Sampler, TraceIdRatioBased
from opentelemetry.trace import StatusCode

from dagabaaz_celery.app import Dagabaaz
from dagabaaz_celery.contrib.otel import instrument
from dagabaaz_celery.errors import ConfigurationError
from dagabaaz_celery.models import ConfigSource
from dagabaaz_celery.run import Run
from dagabaaz_celery.stores.sql.records import TaskError
from dagabaaz_celery.stores.sql.store import Claimed
from dagabaaz_celery.stores.sql.tables import new_id
from dagabaaz_celery.testing import embedded_worker
from dagabaaz_celery.worker.observers import Observer
from tests.integration.celery_support import complete, fail, make_app, node, start, wait_until
from tests.integration.traced_plugins import declare_traced, read_spans
from tests.integration.worker_processes import open_site

PATIENCE = 60.0


class World:
    """An app in this process that is traced and measured in memory."""

    def __init__(self, sampler: Sampler | None = None) -> None:
        self.exporter = InMemorySpanExporter()
        self.provider = TracerProvider(sampler=sampler)
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.tracer = self.provider.get_tracer("web")
        self.reader = InMemoryMetricReader()
        self.dag = Dagabaaz(make_app(task_always_eager=True))
        instrument(self.dag, self.provider, MeterProvider([self.reader]))

    def spans(self, run: Run | None = None) -> list[ReadableSpan]:
        """All spans, or those that name a run."""
        found = self.exporter.get_finished_spans()
        return [span for span in found if run is None or span.attributes["dagabaaz.run.id"] == run.id]

    def span(self, name: str) -> ReadableSpan:
        """The one of this name."""
        (found,) = [span for span in self.spans() if span.name == name]
        return found

    def tree(self) -> dict[str, list[str]]:
        """The names below each name; "" is above those that have no parent."""
        names = {span.context.span_id: span.name for span in self.spans()}
        below: dict[str, list[str]] = {}
        for span in self.spans():
            below.setdefault(names[span.parent.span_id] if span.parent else "", []).append(span.name)
        return {name: sorted(children) for name, children in below.items()}

    def points(self, name: str) -> list[tuple[dict[str, Any], Any]]:
        """The attributes and values of a metric; of a histogram how often and the sum."""
        data = self.reader.get_metrics_data()
        return [
            (dict(point.attributes), getattr(point, "value", None) or (point.count, point.sum))
            for resource in data.resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
            if metric.name == name
            for point in metric.data.data_points
        ]


@pytest.fixture
def new_world() -> Iterator[Callable[..., World]]:
    made: list[World] = []

    def make(*args: Any) -> World:
        made.append(World(*args))
        return made[-1]

    yield make
    for world in made:
        world.dag.close()
        world.dag.app.close()


@pytest.fixture
def world(new_world: Callable[..., World]) -> World:
    return new_world()


# -- the tree


def test_a_run_is_one_tree_below_the_span_that_started_it(world: World):
    @world.dag.plugin
    def words() -> list[str]:
        return ["tea", "cake"]

    @world.dag.plugin
    def weigh(word: str) -> int:
        with world.tracer.start_as_current_span(f"scales {word}"):
            return len(word)

    with world.tracer.start_as_current_span("POST /orders"):
        run = complete(world.dag, node("words"), node("weigh", "words"), name="order")

    assert world.tree() == {
        "": ["POST /orders"],
        "POST /orders": ["run order"],
        "run order": ["node weigh", "node words"],
        "node words": ["task words"],
        "node weigh": ["task weigh", "task weigh"],
        "task weigh": ["scales cake", "scales tea"],
    }
    assert {span.context.trace_id for span in world.spans()} == {world.span("POST /orders").context.trace_id}
    task = world.span("task words")
    assert dict(task.attributes) == {
        "dagabaaz.run.id": run.id,
        "dagabaaz.pipeline": "order",
        "dagabaaz.node": "words",
        "dagabaaz.plugin": "words",
        "dagabaaz.rollback": False,
        "dagabaaz.task.id": run.tasks()[0].id,
        "dagabaaz.attempt": 1,
        "dagabaaz.attempt.id": run.tasks()[0].attempt_id,
    }
    closed = world.span("node weigh")
    assert (closed.attributes["dagabaaz.tasks"], closed.attributes["dagabaaz.status"]) == (2, "completed")


def test_spans_of_run_and_nodes_have_the_times_of_the_store(world: World):
    @world.dag.plugin
    def work() -> None: ...

    run = complete(world.dag, node("work"))
    snapshot = run.snapshot()
    for span, found in ((world.span("run work"), snapshot), (world.span("node work"), snapshot.nodes[0])):
        began = found.created_at if found is snapshot else found.started_at
        assert span.start_time / 1e9 == pytest.approx(began, abs=1e-3)
        assert span.end_time / 1e9 == pytest.approx(found.ended_at, abs=1e-3)


def test_a_run_without_a_starter_is_a_trace_of_its_own(world: World):
    @world.dag.plugin
    def work() -> None: ...

    first, second = complete(world.dag, node("work")), complete(world.dag, node("work"))
    traces = [{span.context.trace_id for span in world.spans(run)} for run in (first, second)]
    assert all(len(trace) == 1 for trace in traces)
    assert traces[0] != traces[1]


def test_skipped_and_filtered_nodes_have_spans_without_tasks(world: World):
    @world.dag.plugin
    def nothing() -> None: ...

    complete(world.dag, node("first", plugin="nothing"), node("second", "first", plugin="nothing"), name="quiet")
    assert world.span("node second").attributes["dagabaaz.status"] == "filtered"
    assert world.tree()["run quiet"] == ["node first", "node second"]
    assert "node second" not in world.tree()


# -- attempts and errors


def test_each_attempt_is_a_span_and_one_that_asks_for_another_says_why(world: World):
    @world.dag.plugin(bind=True, max_retries=1, autoretry_for=(OSError,), retry_backoff=False)
    def flaky(self: Any) -> None:
        if not self.request.retries:
            raise OSError("the disk is tired")

    complete(world.dag, node("flaky"))
    first, second = sorted(
        (span for span in world.spans() if span.name == "task flaky"),
        key=lambda span: span.attributes["dagabaaz.attempt"],
    )
    assert first.attributes["dagabaaz.retried"]
    assert (first.status.status_code, first.status.description) == (StatusCode.ERROR, "OSError: the disk is tired")
    assert second.status.status_code is StatusCode.UNSET
    assert world.span("run work").status.status_code is StatusCode.UNSET


def test_an_error_is_recorded_on_task_node_and_run(world: World):
    @world.dag.plugin
    def broken() -> None:
        raise ValueError("no such tea")

    fail(world.dag, node("broken"), name="order")
    task = world.spans()[-3]
    assert task.name == "task broken"
    (event,) = task.events
    assert event.name == "exception"
    assert (event.attributes["exception.type"], event.attributes["exception.message"]) == ("ValueError", "no such tea")
    assert "raise ValueError" in event.attributes["exception.stacktrace"]
    for span in world.spans()[-3:]:
        assert span.status.status_code is StatusCode.ERROR
        assert span.status.description.startswith("ValueError: no such tea")
    run = world.span("run order")
    assert run.attributes["dagabaaz.status"] == "failed"


def test_no_secret_is_traced(world: World, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TEA_KEY", "open-sesame-1234")

    @world.dag.plugin
    def log_in(key: str) -> None:
        raise ValueError(f"the key {key} does not fit")

    fail(world.dag, node("log_in", bindings={"key": ConfigSource(value="$TEA_KEY")}))
    texts = "".join(span.to_json() for span in world.spans())
    assert "the key <secret $TEA_KEY> does not fit" in texts
    assert "sesame" not in texts


def test_what_undoes_and_finalisers_have_spans_below_the_run(world: World):
    @world.dag.plugin
    def book() -> str:
        return "booked"

    @world.dag.plugin
    def give_back(result: str) -> None: ...

    @world.dag.plugin
    def pay() -> None:
        raise ValueError("no money")

    @world.dag.plugin
    def tidy() -> None: ...

    fail(
        world.dag,
        node("book", rollback="give_back"),
        node("pay", "book", fan_mode="aggregate"),
        node("tidy", run_on="failure"),
        name="saga",
    )
    assert world.tree()["run saga"] == ["node book", "node pay", "node tidy", "rollback node book"]
    assert world.tree()["rollback node book"] == ["rollback task book"]
    assert world.span("rollback task book").attributes["dagabaaz.plugin"] == "give_back"


def test_a_retried_run_has_another_span_that_links_to_the_first(world: World):
    fails = [True]

    @world.dag.plugin
    def source() -> int:
        return 1

    @world.dag.plugin
    def work(value: int) -> None:
        if fails:
            raise ValueError("not yet")

    with world.tracer.start_as_current_span("first request"):
        run = fail(world.dag, node("source"), node("work", "source"))
    fails.clear()
    with world.tracer.start_as_current_span("second request"):
        run.retry()
    assert run.status == "completed"

    first, second = (span for span in world.spans() if span.name == "run work")
    assert [span.attributes["dagabaaz.generation"] for span in (first, second)] == [1, 2]
    assert (first.parent.span_id, second.parent.span_id) == (
        world.span("first request").context.span_id,
        world.span("second request").context.span_id,
    )
    (link,) = second.links
    assert link.context.span_id == first.context.span_id
    assert second.start_time >= first.end_time
    last_task = [span for span in world.spans() if span.name == "task work"][-1]
    assert last_task.context.trace_id == second.context.trace_id


def test_a_task_without_a_wrapper_has_a_span_and_its_own_hang_under_it(world: World):
    @world.dag.app.task(name="plain", shared=False)
    def plain() -> int:
        with world.tracer.start_as_current_span("inside"):
            return 1

    @world.dag.app.task(name="plainly_broken", shared=False)
    def broken() -> None:
        raise ValueError("plainly")

    complete(world.dag, node("plain"), name="plain run")
    assert world.tree()["node plain"] == ["task plain"]
    assert world.tree()["task plain"] == ["inside"]
    fail(world.dag, node("plainly_broken"), name="broken run")
    assert world.span("task plainly_broken").status.description == "ValueError: plainly"


# -- sampling


@pytest.mark.parametrize("sampler", [ALWAYS_OFF, ParentBased(TraceIdRatioBased(0.5))])
def test_a_run_is_traced_whole_or_not_at_all(new_world: Callable[..., World], sampler: Sampler):
    world = new_world(sampler)

    @world.dag.plugin
    def work() -> None:
        with world.tracer.start_as_current_span("inside"):
            pass

    for _ in range(6):
        complete(world.dag, node("work"))
    by_trace: dict[int, list[str]] = {}
    for span in world.spans():
        by_trace.setdefault(span.context.trace_id, []).append(span.name)
    assert all(sorted(names) == ["inside", "node work", "run work", "task work"] for names in by_trace.values())
    if sampler is ALWAYS_OFF:
        assert not by_trace


def test_a_run_follows_the_decision_of_the_request_that_started_it(new_world: Callable[..., World]):
    world = new_world(ParentBased(ALWAYS_OFF))

    @world.dag.plugin
    def work() -> None: ...

    with world.tracer.start_as_current_span("a request that is not sampled"):
        complete(world.dag, node("work"))
    assert world.spans() == []


def test_a_run_that_was_started_where_nobody_traces_is_one_tree_all_the_same(world: World):
    dag = world.dag

    @dag.plugin
    def work() -> None: ...

    observers = dag._runtime.observers
    hidden, observers._all = observers._all, []
    dag.app.conf.task_always_eager = False
    run = start(dag, node("work"))
    observers._all = hidden
    with embedded_worker(dag.app):
        assert run.wait(PATIENCE) == "completed"
        wait_until(lambda: len(world.spans()) == 3, "all spans are there")
    assert world.tree() == {"": ["run work"], "run work": ["node work"], "node work": ["task work"]}


# -- off, and in the way of nobody


def test_what_an_observer_raises_is_logged_and_fails_nothing(dag: Dagabaaz, caplog: pytest.LogCaptureFixture):
    class Broken(Observer):
        def __getattribute__(self, name: str) -> Any:
            if name.startswith("_"):
                return super().__getattribute__(name)
            return self._raise

        def _raise(self, *facts: Any) -> None:
            raise RuntimeError("an observer that is broken")

    dag.app.conf.task_always_eager = True
    dag._runtime.observers.add(Broken())

    @dag.plugin
    def work() -> int:
        return 1

    run = complete(dag, node("work"), node("more", "work", plugin="work"))
    assert run.result("work") == 1
    for what in ("carry", "run_started", "around_body", "node_closed", "run_ended"):
        assert f"an observer's {what} raised" in caplog.text


def test_nothing_is_added_to_messages_and_runs_without_it(dag: Dagabaaz):
    @dag.plugin
    def work() -> None: ...

    run = start(dag, node("work"))
    assert dag._runtime.store.get_run(run.id).options == {}


def test_it_is_said_once(world: World):
    with pytest.raises(ConfigurationError, match="twice"):
        instrument(world.dag)


def test_without_a_provider_it_does_nothing(dag: Dagabaaz):
    instrument(dag)
    dag.app.conf.task_always_eager = True

    @dag.plugin
    def work() -> None: ...

    complete(dag, node("work"))


# -- metrics


def test_runs_nodes_and_waits_are_measured(world: World):
    @world.dag.plugin
    def work() -> None: ...

    @world.dag.plugin
    def broken() -> None:
        raise ValueError

    complete(world.dag, node("work"), name="good")
    complete(world.dag, node("work"), name="good")
    fail(world.dag, node("broken"), name="bad")

    outcomes = {tuple(attributes.values()): value for attributes, value in world.points("dagabaaz.runs")}
    assert outcomes == {("good", "completed"): 2, ("bad", "failed"): 1}
    nodes = {
        (found["dagabaaz.pipeline"], found["dagabaaz.node"], found["dagabaaz.status"]): value[0]
        for found, value in world.points("dagabaaz.node.duration")
    }
    assert nodes == {("good", "work", "completed"): 2, ("bad", "broken", "failed"): 1}
    assert sum(count for _, (count, _) in world.points("dagabaaz.queue.wait")) == 3


def test_what_sweeps_do_is_counted(new_world: Callable[..., World]):
    world = new_world()
    dag = world.dag

    @dag.plugin
    def work() -> None: ...

    dag.on_run_completed(lambda run_id: None)
    dag.app.conf.task_always_eager = False
    run = start(dag, node("work"), node("more", "work", plugin="work"))
    run.pause()
    with embedded_worker(dag.app):
        run.resume()
        run.wait(PATIENCE)
        wait_until(lambda: "callback" in dict(_actions(world)), "the callback was made")


def _actions(world: World) -> list[tuple[str, int]]:
    return [(found["dagabaaz.action"], value) for found, value in world.points("dagabaaz.sweep.actions")]


def test_a_rescue_is_counted_and_the_lost_attempt_has_a_span(world: World):
    dag = world.dag

    @dag.plugin
    def work() -> None: ...

    dag.app.conf.task_always_eager = False
    run = start(dag, node("work"))
    claimed = dag._runtime.store.claim(run.tasks()[0].attempt_id, new_id(), new_id())
    assert isinstance(claimed, Claimed)
    assert dag._runtime.outcome.rescue(claimed.work, TaskError("WorkerLost", "its worker died"))
    assert world.points("dagabaaz.rescues") == [({}, 1)]
    lost = world.span("task work")
    assert (lost.status.status_code, lost.status.description) == (StatusCode.ERROR, "WorkerLost: its worker died")
    assert lost.start_time / 1000 == claimed.work.attempt.claimed_at


# -- worker processes


def test_a_run_over_two_worker_processes_is_one_tree():
    with open_site(declare_traced) as site:
        site.start_worker("-Q", "left", concurrency=1)
        site.start_worker("-Q", "right", concurrency=1)
        with site.dag.app.tracer_provider.get_tracer("web").start_as_current_span("POST /orders"):
            run = start(
                site.dag,
                node("words", options={"queue": "left"}),
                node("weigh", "words", options={"queue": "right"}),
                node("add_up", "weigh", options={"queue": "left"}),
                node("mortal", "add_up", options={"queue": "right"}, fan_mode="aggregate"),
                name="order",
            )
        assert run.wait(PATIENCE) == "completed", run.error
        directory = site.dag.settings.files_dir / "spans"
        wait_until(
            lambda: any(span["name"] == "run order" for span in read_spans(directory)), "the run's span is there"
        )
        spans = read_spans(directory)

    assert len({span["context"]["trace_id"] for span in spans}) == 1
    ids = {span["context"]["span_id"]: span for span in spans}
    assert len(ids) == len(spans)
    above = sorted((span["name"], ids[span["parent_id"]]["name"] if span["parent_id"] else None) for span in spans)
    assert above == [
        ("POST /orders", None),
        ("add", "task add_up"),
        ("before the end", "task mortal"),
        ("before the end", "task mortal"),
        ("node add_up", "run order"),
        ("node mortal", "run order"),
        ("node weigh", "run order"),
        ("node words", "run order"),
        ("read", "task words"),
        ("run order", "POST /orders"),
        ("task add_up", "node add_up"),
        ("task mortal", "node mortal"),
        ("task mortal", "node mortal"),
        ("task weigh", "node weigh"),
        ("task weigh", "node weigh"),
        ("task weigh", "node weigh"),
        ("task words", "node words"),
        ("weigh cake", "task weigh"),
        ("weigh cake", "task weigh"),
        ("weigh tea", "task weigh"),
    ]
    pids = {span["name"]: span["pid"] for span in spans if span["name"].startswith("task ")}
    assert pids["task words"] == pids["task add_up"] != pids["task weigh"]
    lost, survived = sorted(
        (span for span in spans if span["name"] == "task mortal"),
        key=lambda span: span["attributes"]["dagabaaz.attempt"],
    )
    assert lost["status"]["status_code"] == "ERROR"
    assert lost["pid"] != survived["pid"]
    assert survived["status"]["status_code"] == "UNSET"


def test_beside_celerys_own_instrumentation_the_tree_is_the_same(new_world: Callable[..., World]):
    """Its spans, of sending and of receiving messages, are linked; the plugin's own hang under their node."""
    world = new_world()
    dag = world.dag

    @dag.plugin
    def words() -> list[str]:
        return ["tea"]

    @dag.plugin
    def weigh(word: str) -> int:
        with world.tracer.start_as_current_span("scales"):
            return len(word)

    dag.app.conf.task_always_eager = False
    CeleryInstrumentor().instrument(tracer_provider=world.provider)
    try:
        with embedded_worker(dag.app):
            with world.tracer.start_as_current_span("POST /orders"):
                complete(dag, node("words"), node("weigh", "words"), name="order")
            wait_until(lambda: "run order" in {span.name for span in world.spans()}, "the run's span is there")
    finally:
        CeleryInstrumentor().uninstrument()

    tree = world.tree()
    assert tree["run order"] == ["node weigh", "node words"]
    assert (tree["node words"], tree["node weigh"]) == (["task words"], ["task weigh"])
    assert tree["task weigh"] == ["scales"]
    (link,) = world.span("task weigh").links
    received = {span.context.span_id: span.name for span in world.spans()}[link.context.span_id]
    assert received == f"run/{weigh.name}"

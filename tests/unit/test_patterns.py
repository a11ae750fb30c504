"""The patterns that the documentation teaches, defined and run as a reader would, in memory."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest

from dagabaaz_celery.constants import FanMode, FilterOperator, RunStatus, TaskStatus
from dagabaaz_celery.expressions import resolve_expression, validate_expression
from dagabaaz_celery.models import DagNode, EdgeFilter, ExpressionSource, FilterRule, TaskArtifact
from dagabaaz_celery.orchestrator import OrchestratorCallbacks, on_task_complete, on_task_failed, start_run
from dagabaaz_celery.pipeline import Pipeline
from dagabaaz_celery.pipes import BUILTIN_PIPES
from dagabaaz_celery.stores.memory import MemoryStore
from dagabaaz_celery.task_input import build_task_input, resolve_task_bindings

Body = Callable[[dict[str, Any]], Sequence[TaskArtifact]]


class Workers:
    """A queue and its workers for one run: executes what is open, in order, until nothing is."""

    def __init__(self, nodes: Sequence[DagNode], run_input: Mapping[str, Any] | None = None) -> None:
        self.nodes = nodes
        self.store = MemoryStore()
        self.ended: list[tuple[str, str]] = []
        self.received: dict[str, list[dict[str, Any]]] = {}
        self.callbacks = OrchestratorCallbacks(
            on_run_completed=lambda run_id: self.ended.append((run_id, "completed")),
            on_run_failed=lambda run_id: self.ended.append((run_id, "failed")),
            on_run_crashed=lambda run_id: self.ended.append((run_id, "crashed")),
        )
        self.store.create_run("run-1", nodes, run_input)
        self.roots = start_run(self.store, run_id="run-1", nodes=nodes)

    def work_off(self, bodies: Mapping[str, Body]) -> None:
        """Execute tasks by their plugin's body; a plugin without one emits a file that it names after its node."""
        while tasks := self.store.open_tasks("run-1"):
            task = tasks[0]
            slug = self.nodes[task.node_index].slug
            received = self.assemble_input(task.node_index, task.input_artifact_id, task.origin_artifact_id)
            self.received.setdefault(slug, []).append(received)
            emit = bodies.get(task.plugin_name, lambda _, slug=slug: [TaskArtifact(file_name=f"{slug}.out")])
            self.store.claim_task(task.task_id)
            self.store.complete_task(task.task_id, emit(received))
            on_task_complete(
                self.store,
                task_id=task.task_id,
                callbacks=self.callbacks,
                resolve_passthrough=lambda plugin: plugin == "gate",
            )

    def assemble_input(self, node_index: int, artifact_id: str | None, origin_id: str | None) -> dict[str, Any]:
        where = {"run_id": "run-1", "node_index": node_index, "nodes": self.nodes}
        which = {"input_artifact_id": artifact_id, "origin_artifact_id": origin_id}
        data = build_task_input(self.store, **where, **which)
        resolve_task_bindings(self.store, **where, **which, input_data=data)
        return data

    def statuses_of(self, slug: str) -> list[str]:
        index = [node.slug for node in self.nodes].index(slug)
        return [task.status for task in self.store.tasks("run-1") if task.node_index == index]


def files(*names: str) -> list[TaskArtifact]:
    return [TaskArtifact(file_path=f"/data/{name}", file_name=name, file_size=len(name)) for name in names]


def names_in(received: Mapping[str, Any]) -> list[str]:
    return [artifact["file_name"] for artifact in received["artifacts"]]


# -- defining and running


def test_a_first_pipeline_runs_from_source_to_export():
    nodes = [
        DagNode(slug="source", plugin="fetch"),
        DagNode(slug="process", plugin="transform", depends_on=["source"]),
        DagNode(slug="export", plugin="export", depends_on=["process"], fan_mode=FanMode.AGGREGATE),
    ]
    workers = Workers(nodes, run_input={"url": "http://example.org"})

    workers.work_off({"fetch": lambda received: files("a.txt", "b.txt")})

    assert Pipeline("first", nodes=nodes).problems() == []
    assert workers.roots == [0]
    assert workers.received["source"] == [{"url": "http://example.org"}]
    assert [received["file_name"] for received in workers.received["process"]] == ["a.txt", "b.txt"]
    assert names_in(workers.received["export"][0]) == ["process.out", "process.out"]
    assert workers.ended == [("run-1", "completed")]


def test_a_failed_task_fails_its_run_and_cancels_the_rest():
    workers = Workers([DagNode(slug="a", plugin="fetch"), DagNode(slug="b", plugin="fetch")])
    first, second = workers.store.open_tasks("run-1")

    workers.store.claim_task(first.task_id)
    on_task_failed(workers.store, task_id=first.task_id, error_message="no network", callbacks=workers.callbacks)

    assert workers.ended == [("run-1", "failed")]
    assert workers.store.run("run-1").status == RunStatus.FAILED
    assert workers.statuses_of("b") == [TaskStatus.CANCELLED]
    assert not workers.store.claim_task(second.task_id)


def test_linear_steps_run_one_after_another():
    nodes = [
        DagNode(slug="fetch", plugin="fetch"),
        DagNode(slug="transform", plugin="transform", depends_on=["fetch"]),
        DagNode(slug="export", plugin="export", depends_on=["transform"]),
    ]
    workers = Workers(nodes)

    workers.work_off({})

    assert Pipeline("linear", nodes=nodes).problems() == []
    assert list(workers.received) == ["fetch", "transform", "export"]
    assert workers.received["export"][0]["file_name"] == "transform.out"
    assert workers.ended == [("run-1", "completed")]


def test_scattered_files_are_gathered_by_their_origin():
    nodes = [
        DagNode(slug="source", plugin="fetch"),
        DagNode(slug="branch_a", plugin="process_a", depends_on=["source"]),
        DagNode(slug="branch_b", plugin="process_b", depends_on=["source"]),
        DagNode(slug="merge", plugin="merge", depends_on=["branch_a", "branch_b"], fan_mode=FanMode.GROUPED),
    ]
    workers = Workers(nodes)

    workers.work_off(
        {
            "fetch": lambda received: files(*(f"{number}.txt" for number in range(10))),
            "process_a": lambda received: files(f"a-{received['file_name']}"),
            "process_b": lambda received: files(f"b-{received['file_name']}"),
        }
    )

    assert Pipeline("scatter", nodes=nodes).problems() == []
    assert [names_in(received) for received in workers.received["merge"]] == [
        [f"a-{number}.txt", f"b-{number}.txt"] for number in range(10)
    ]
    assert workers.ended == [("run-1", "completed")]


def make_routing_nodes() -> list[DagNode]:
    def only(file_type: str) -> EdgeFilter:
        return EdgeFilter(rules=[FilterRule(field="file_type", operator=FilterOperator.EQ, value=file_type)])

    return [
        DagNode(slug="source", plugin="fetch"),
        DagNode(
            slug="video",
            plugin="transcode",
            depends_on=["source"],
            fan_mode=FanMode.AGGREGATE,
            edge_filters={"source": only("video")},
        ),
        DagNode(slug="subtitle", plugin="parse_subs", depends_on=["source"], edge_filters={"source": only("subtitle")}),
    ]


def test_edge_filters_route_files_by_type():
    nodes = make_routing_nodes()
    workers = Workers(nodes)

    workers.work_off({"fetch": lambda received: files("film.mp4", "film.de.srt", "trailer.mkv", "film.en.srt")})

    assert Pipeline("routing", nodes=nodes).problems() == []
    assert [names_in(received) for received in workers.received["video"]] == [["film.mp4", "trailer.mkv"]]
    assert [received["file_name"] for received in workers.received["subtitle"]] == ["film.de.srt", "film.en.srt"]
    assert workers.ended == [("run-1", "completed")]


def test_a_branch_that_no_file_reaches_is_filtered_and_blocks_nothing():
    nodes = [*make_routing_nodes(), DagNode(slug="after", plugin="report", depends_on=["video", "subtitle"])]
    workers = Workers(nodes)

    workers.work_off({"fetch": lambda received: files("film.mp4")})

    assert workers.statuses_of("subtitle") == [TaskStatus.FILTERED]
    assert [received["file_name"] for received in workers.received["after"]] == ["video.out"]
    assert workers.ended == [("run-1", "completed")]


def test_an_aggregate_whose_filter_rejects_everything_is_skipped_and_so_is_what_follows():
    nodes = [*make_routing_nodes(), DagNode(slug="after", plugin="report", depends_on=["video"])]
    workers = Workers(nodes)

    workers.work_off({"fetch": lambda received: files("film.srt")})

    assert [workers.statuses_of(slug) for slug in ("video", "after")] == [[TaskStatus.SKIPPED]] * 2
    assert len(workers.received["subtitle"]) == 1
    assert workers.ended == [("run-1", "completed")]


def test_a_worker_assembles_the_input_of_one_artifact():
    nodes = [DagNode(slug="source", plugin="fetch"), DagNode(slug="each", plugin="work", depends_on=["source"])]
    workers = Workers(nodes)

    workers.work_off({"fetch": lambda received: [TaskArtifact(file_name="a.txt", metadata={"title": "A", "pages": 3})]})

    assert workers.received["each"] == [
        {"title": "A", "pages": 3, "file_path": None, "file_name": "a.txt", "file_size": None, "mime_type": None}
    ]


# -- expressions


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("{source.file_path}", "/data/film.mp4"),
        ("{source.title | upper | truncate(50)}", "THE LONG WAY HOME"),
        ("{list(branch_a.url, branch_b.url) | join(,)}", "http://a,http://b"),
        ("{input.api_url | required}", "http://api"),
        ("{config.output_format | default(mp4)}", "mkv"),
    ],
)
def test_an_expression_finds_its_values_in_a_checked_pipeline(expression, value):
    sources = ["source", "branch_a", "branch_b"]
    nodes = [
        *(DagNode(slug=slug, plugin="fetch") for slug in sources),
        DagNode(
            slug="reader",
            plugin="read",
            depends_on=sources,
            fan_mode=FanMode.AGGREGATE,
            bindings={"field": ExpressionSource(expression=expression)},
            config={"output_format": "mkv"},
        ),
    ]
    workers = Workers(nodes, run_input={"api_url": "http://api"})
    emitted = iter(
        [
            TaskArtifact(file_path="/data/film.mp4", metadata={"title": "the long way home"}),
            TaskArtifact(metadata={"url": "http://a"}),
            TaskArtifact(metadata={"url": "http://b"}),
        ]
    )

    workers.work_off({"fetch": lambda received: [next(emitted)]})

    assert Pipeline("expressions", nodes=nodes).problems() == []
    assert workers.received["reader"][0]["field"] == value


def test_a_missing_value_takes_the_default_or_is_required():
    assert resolve_expression("{config.output_format | default(mp4)}", lambda namespace, key: None) == "mp4"
    with pytest.raises(ValueError, match=re.escape("'input.api_url'")):
        resolve_expression("{input.api_url | required}", lambda namespace, key: None)


def test_an_expression_is_never_evaluated_as_code():
    expression = "{source.__class__} {source.title}"

    assert resolve_expression(expression, lambda namespace, key: f"<{key}>") == "<__class__> <title>"
    assert validate_expression("{__import__('os').system}") is not None


PIPES_IN_USE = [
    ("{a.v | upper}", "film", "FILM"),
    ("{a.v | lower}", "FILM", "film"),
    ("{a.v | trim}", " film ", "film"),
    ("{a.v | title}", "the film", "The Film"),
    ("{a.v | replace(-, _)}", "a-b-c", "a_b_c"),
    ("{a.v | strip(/)}", "/a/", "a"),
    ("{a.v | lstrip(/)}", "/a/", "a/"),
    ("{a.v | rstrip(/)}", "/a/", "/a"),
    ("{a.v | default(none)}", None, "none"),
    ("{a.v | required}", "here", "here"),
    ("{a.v | first}", ["x", "y"], "x"),
    ("{a.v | last}", ["x", "y"], "y"),
    ("{a.v | nth(1)}", ["x", "y"], "y"),
    ("{a.v | join(;)}", ["x", "y"], "x;y"),
    ("{a.v | basename}", "/data/film.mp4", "film.mp4"),
    ("{a.v | dirname}", "/data/film.mp4", "/data"),
    ("{a.v | stem}", "/data/film.mp4", "film"),
    ("{a.v | ext}", "/data/film.mp4", ".mp4"),
    ("{a.v | urlencode}", "a b&c", "a%20b%26c"),
    ("{a.v | urldecode}", "a%20b", "a b"),
    ("{a.v | int}", "42", 42),
    ("{a.v | string}", 42, "42"),
    ("{a.v | truncate(4)}", "longer", "long"),
    ("{a.v | prepend(no-)}", "film", "no-film"),
    ("{a.v | append(.mp4)}", "film", "film.mp4"),
    (r"{a.v | match(\d+)}", "take 42", "42"),
    ("{a.v | json_get(title)}", '{"title": "Film"}', "Film"),
    ("{a.v | flatten}", [["x"], ["y", "z"]], ["x", "y", "z"]),
    ("{a.v | compact}", ["x", None, "", "y"], ["x", "y"]),
    ("{a.v | pad(3)}", "7", "007"),
]


@pytest.mark.parametrize(("expression", "value", "result"), PIPES_IN_USE)
def test_each_pipe_in_use(expression, value, result):
    assert validate_expression(expression) is None
    assert resolve_expression(expression, lambda namespace, key: value) == result


def test_every_pipe_is_shown_in_use():
    shown = {match[1] for expression, _, _ in PIPES_IN_USE if (match := re.search(r"\| (\w+)", expression))}

    assert shown == set(BUILTIN_PIPES)
    assert len(shown) == 30

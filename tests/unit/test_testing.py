"""Factories, what pipelines decide kept in files, and the pytest plugin."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from celery import Celery

from dagabaaz_celery.app import Dagabaaz
from dagabaaz_celery.errors import PipelineError
from dagabaaz_celery.models import EdgeFilter, FilterRule, TaskArtifact
from dagabaaz_celery.pipeline import Pipeline
from dagabaaz_celery.testing import assert_golden, make_artifact, make_node, make_pipeline, make_plugin_context
from dagabaaz_celery.testing.golden import UPDATE_VARIABLE

# -- factories


def test_an_artifact_of_a_file_or_a_record():
    assert make_artifact("talk.mp4", file_size=7, language="en") == TaskArtifact(
        file_name="talk.mp4", file_size=7, mime_type="video/mp4", metadata={"language": "en"}
    )
    assert make_artifact(cents=3) == TaskArtifact(metadata={"cents": 3})


@pytest.mark.parametrize(
    ("text", "depends_on"),
    [
        ("a", {"a": []}),
        ("a, b", {"a": [], "b": []}),
        ("a -> b -> c", {"a": [], "b": ["a"], "c": ["b"]}),
        ("a -> b, c; b, c -> d", {"a": [], "b": ["a"], "c": ["a"], "d": ["b", "c"]}),
        ("a -> c\nb -> c\n", {"a": [], "c": ["a", "b"], "b": []}),
    ],
)
def test_a_pipeline_from_a_line_of_text(text: str, depends_on: dict[str, list[str]]):
    pipeline = make_pipeline(text)
    pipeline.check()
    assert {node.slug: node.depends_on for node in pipeline.nodes} == depends_on
    assert [node.plugin for node in pipeline.nodes] == list(depends_on)


def test_a_pipelines_nodes_get_further_fields():
    pipeline = make_pipeline("a -> b", name="two", nodes={"b": {"plugin": "work", "fan_mode": "aggregate"}}, timeout=5)
    assert (pipeline.name, pipeline.timeout) == ("two", 5)
    assert (pipeline.nodes[1].plugin, pipeline.nodes[1].fan_mode) == ("work", "aggregate")


@pytest.mark.parametrize("text", ["a ->", "-> a", "a b -> c", "a -> , b"])
def test_what_is_no_graph_is_refused(text: str):
    with pytest.raises(ValueError, match="is no graph"):
        make_pipeline(text)


def test_fields_for_a_node_that_is_not_there_are_refused():
    with pytest.raises(ValueError, match="'c'"):
        make_pipeline("a -> b", nodes={"c": {}})


def test_a_context_for_a_body_that_is_called_by_hand(tmp_path: Path):
    context = make_plugin_context(slug="resize", attempt=2, scratch=tmp_path, cancelled=True, run_status="failed")
    context.emit({"done": 1})
    context.progress(1, 3)
    assert (context.emitted, context.progressed) == ([{"done": 1}], [(1, 3)])
    assert (context.slug, context.attempt, context.scratch) == ("resize", 2, tmp_path)
    assert (context.cancelled, context.run_status, context.run_error) == (True, "failed", None)


# -- what is kept in files


def only(file_type: str) -> dict[str, EdgeFilter]:
    return {"source": EdgeFilter(rules=[FilterRule(field="file_type", operator="eq", value=file_type)])}


MEDIA = Pipeline(
    "media",
    nodes=[
        make_node("source", plugin="fetch"),
        make_node("video", "source", plugin="transcode", edge_filters=only("video")),
        make_node("subtitle", "source", plugin="read", edge_filters=only("subtitle")),
        make_node("report", "video", fan_mode="aggregate"),
    ],
)
CASES = {
    "a film": [make_artifact("talk.mp4"), make_artifact("talk.en.srt"), make_artifact("talk.fr.srt")],
    "no film": [make_artifact("talk.en.srt")],
    "a film that cannot be read": {"source": [make_artifact("talk.mp4")], "video": OSError("broken")},
}


def test_what_a_pipeline_decides_is_kept_and_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    golden = tmp_path / "decisions" / "media.json"
    with pytest.raises(AssertionError, match="--dagabaaz-update-golden"):
        assert_golden(MEDIA, CASES, golden)
    assert not golden.exists()
    monkeypatch.setenv(UPDATE_VARIABLE, "1")
    assert_golden(MEDIA, CASES, golden)
    monkeypatch.delenv(UPDATE_VARIABLE)
    assert_golden(MEDIA, CASES, golden)
    assert json.loads(golden.read_text()) == {
        "pipeline": "media",
        "cases": {
            "a film": {
                "run": "completed",
                "nodes": {
                    "source": "completed, 1 task",
                    "video": "completed, 1 task",
                    "subtitle": "completed, 2 tasks",
                    "report": "completed, 1 task",
                },
            },
            "no film": {
                "run": "completed",
                "nodes": {
                    "source": "completed, 1 task",
                    "video": "filtered",
                    "subtitle": "completed, 1 task",
                    "report": "filtered",
                },
            },
            "a film that cannot be read": {
                "run": "failed",
                "nodes": {
                    "source": "completed, 1 task",
                    "video": "failed, 1 task",
                    "subtitle": "filtered",
                    "report": "blocked",
                },
            },
        },
    }


def test_another_decision_is_shown_as_a_difference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    golden = tmp_path / "media.json"
    monkeypatch.setenv(UPDATE_VARIABLE, "1")
    assert_golden(MEDIA, CASES, golden)
    monkeypatch.delenv(UPDATE_VARIABLE)
    nodes = [node for node in MEDIA.nodes if node.slug != "video"]
    changed = Pipeline("media", nodes=[*nodes[:2], make_node("video", "source"), nodes[2]])
    with pytest.raises(AssertionError) as told:
        assert_golden(changed, CASES, golden)
    assert '-        "video": "completed, 1 task",' in str(told.value)
    assert '+        "video": "completed, 3 tasks",' in str(told.value)


def test_an_apps_plugins_say_how_they_are_routed_and_are_not_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    dag = Dagabaaz(Celery("media", broker="redis://nowhere.invalid/0", set_as_current=False))

    @dag.plugin
    def source(url: str) -> None:
        raise AssertionError("called")

    @dag.plugin(passthrough=True)
    def gate() -> None:
        raise AssertionError("called")

    @dag.plugin(fan_mode="aggregate")
    def report(artifacts: list[TaskArtifact]) -> None:
        raise AssertionError("called")

    pipeline = Pipeline("gated", nodes=[make_node("source"), make_node("gate", "source"), make_node("report", "gate")])
    golden = tmp_path / "gated.json"
    monkeypatch.setenv(UPDATE_VARIABLE, "1")
    assert_golden(pipeline, {"two": [{"n": 1}, {"n": 2}]}, golden, dag=dag)
    nodes = json.loads(golden.read_text())["cases"]["two"]["nodes"]
    assert nodes == {"source": "completed, 1 task", "gate": "completed, 2 tasks", "report": "completed, 1 task"}
    with pytest.raises(PipelineError, match="no nodes"):
        assert_golden(Pipeline("none", nodes=[]), {"some": []}, golden, dag=dag)


# -- the pytest plugin


def test_the_plugin_loads_nothing_before_it_is_used():
    """Whoever has the package installed pays for it at each start of pytest."""
    heavy = ["celery", "sqlalchemy", "pydantic", "dagabaaz_celery.app", "dagabaaz_celery.testing"]
    code = f"import dagabaaz_celery.pytest_plugin, sys; print([name for name in {heavy} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"

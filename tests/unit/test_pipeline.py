"""Pipelines: how they are made, what a run keeps of them, and the input they take."""

import json
import subprocess
import sys
from collections.abc import Iterable

import pytest
from pydantic import BaseModel, ValidationError

from dagabaaz_celery.constants import RUN_TERMINAL_STATUSES, FanMode
from dagabaaz_celery.errors import PipelineError, RunInputError
from dagabaaz_celery.models import DagNode, ExpressionSource, RuntimeSource
from dagabaaz_celery.pipeline import Definition, Pipeline
from dagabaaz_celery.plugins import PluginInfo, PluginInputMeta


class Catalog:
    """Plugins by name."""

    def __init__(self, *plugins: PluginInfo) -> None:
        self.plugins = {plugin.name: plugin for plugin in plugins}

    def find(self, name: str) -> PluginInfo | None:
        return self.plugins.get(name)

    def names(self) -> Iterable[str]:
        return self.plugins


def make_catalog() -> Catalog:
    return Catalog(
        PluginInfo(name="fetch", task_name="media.fetch", options={"queue": "io", "priority": 1}),
        PluginInfo(name="gate", task_name="media.gate", passthrough=True),
        PluginInfo(name="merge", task_name="media.merge", fan_mode=FanMode.GROUPED, on_lost="crash", wrapped=False),
    )


def make_pipeline() -> Pipeline:
    return Pipeline(
        "media",
        nodes=[
            DagNode(slug="source", plugin="fetch", options={"queue": "slow"}),
            DagNode(slug="gate", plugin="gate", depends_on=["source"]),
            DagNode(slug="merge", plugin="merge", depends_on=["gate"]),
            DagNode(slug="each", plugin="merge", depends_on=["gate"], fan_mode=FanMode.SINGLE, on_lost="rerun"),
        ],
        description="Files",
        default_input={"url": "http://example.org"},
    )


# -- making one


def test_name_and_nodes_stand_first():
    nodes = [DagNode(slug="a", plugin="fetch"), {"slug": "b", "plugin": "merge", "depends_on": ["a"]}]

    pipeline = Pipeline("media", nodes, "Files", {"url": 1}, 4)

    assert (pipeline.name, pipeline.description, pipeline.default_input, pipeline.version) == (
        "media",
        "Files",
        {"url": 1},
        4,
    )
    assert pipeline.nodes[1] == DagNode(slug="b", plugin="merge", depends_on=["a"])
    assert pipeline == Pipeline(
        name="media", nodes=tuple(nodes), description="Files", default_input={"url": 1}, version=4
    )


def test_missing_slugs_are_filled_in_copies():
    given = DagNode(plugin="fetch")

    pipeline = Pipeline("media", nodes=[given, DagNode(plugin="fetch"), DagNode(slug="fetch_2", plugin="merge")])

    assert [node.slug for node in pipeline.nodes] == ["fetch_1", "fetch_3", "fetch_2"]
    assert given.slug == ""
    assert given.model_fields_set == {"plugin"}


@pytest.mark.parametrize(
    ("plugin", "slug"), [("shop.tasks.send-mail", "send-mail_1"), ("tasks.größe", "gr__e_1"), ("odd.", "node_1")]
)
def test_a_slug_filled_for_any_plugin_is_one_that_expressions_can_refer_to(plugin, slug):
    pipeline = Pipeline("media", nodes=[DagNode(plugin=plugin)])

    assert [node.slug for node in pipeline.nodes] == [slug]
    assert pipeline.problems() == []


def test_a_pipeline_is_not_changed_after_it_is_made():
    with pytest.raises(ValidationError, match="frozen"):
        make_pipeline().name = "other"


def test_wrong_types_are_told_at_once_with_their_paths():
    with pytest.raises(PipelineError) as caught:
        Pipeline("media", nodes=[{"plugn": "fetch"}, DagNode(plugin="fetch")], default_inputs={})

    assert caught.value.problems == [
        "nodes[0].plugin: required, and not there",
        "nodes[0].plugn: unknown field; did you mean plugin?",
        "default_inputs: unknown field; did you mean default_input?",
    ]
    assert str(caught.value).startswith("[DGB301] Pipeline 'media' cannot be made:\n- ")
    with pytest.raises(PipelineError, match="nodes: Input should be a valid list, not None"):
        Pipeline("media", nodes=None)


def test_a_pipeline_is_a_field_of_other_models():
    class Body(BaseModel):
        pipeline: Pipeline

    assert Body(pipeline={"name": "media", "nodes": [{"plugin": "fetch"}]}).pipeline.nodes[0].slug == "fetch_1"
    for wrong in ({"nodes": 5}, {"name": "media", "nodez": []}):
        with pytest.raises(ValidationError):
            Body.model_validate({"pipeline": wrong})


# -- the definition that a run keeps


def test_resolving_fixes_every_fan_mode():
    definition = make_pipeline().resolve(make_catalog())

    assert [node.fan_mode for node in definition.nodes] == ["single", "single", "grouped", "single"]
    assert all("fan_mode" in node.model_fields_set for node in definition.nodes)


def test_a_definition_tells_what_stores_ask():
    definition = make_pipeline().resolve(make_catalog())

    assert (definition.name, definition.description) == ("media", "Files")
    assert definition.default_input == {"url": "http://example.org"}
    assert definition.passthrough_indices == {1}
    assert [definition.is_passthrough(name) for name in ("fetch", "gate")] == [False, True]
    assert [definition.task_name_of(index) for index in range(4)] == [
        "media.fetch",
        "media.gate",
        "media.merge",
        "media.merge",
    ]
    assert definition.options_of(0) == {"queue": "slow", "priority": 1}
    assert definition.options_of(1) == {}
    assert [definition.on_lost_of(index) for index in range(4)] == ["rerun", "rerun", "crash", "rerun"]
    assert [definition.plugin_of(index).wrapped for index in (0, 2)] == [True, False]


def test_later_edits_change_no_definition():
    pipeline, catalog = make_pipeline(), make_catalog()
    definition = pipeline.resolve(catalog)
    before = definition.to_json()

    pipeline.nodes[0].config["x"] = 1
    pipeline.default_input["url"] = "changed"
    catalog.plugins["fetch"].options["queue"] = "changed"

    assert definition.to_json() == before


def test_a_definition_survives_json():
    definition = make_pipeline().resolve(make_catalog())

    again = Definition.from_json(definition.to_json())

    assert again == definition
    assert again.to_json() == definition.to_json()
    assert again.content_hash() == definition.content_hash()


def test_the_hash_is_of_the_content_alone():
    pipeline, catalog = make_pipeline(), make_catalog()
    definition = pipeline.resolve(catalog)
    newer = Pipeline(pipeline.name, pipeline.nodes, pipeline.description, pipeline.default_input, version=9)
    content = json.loads(definition.to_json())
    reordered = dict(reversed(content.items()))

    assert len(definition.content_hash()) == 64
    assert newer.resolve(catalog).content_hash() == definition.content_hash()
    assert Definition.from_json(json.dumps(reordered)).content_hash() == definition.content_hash()
    for changed in (
        {**content, "name": "other"},
        {**content, "description": "other"},
        {**content, "default_input": {}},
        {**content, "nodes": content["nodes"][:3]},
        {**content, "plugins": {**content["plugins"], "gate": {"task_name": "media.gate"}}},
    ):
        assert Definition.from_json(json.dumps(changed)).content_hash() != definition.content_hash()


def test_the_hash_is_the_same_in_every_process():
    script = (
        "from dagabaaz_celery.pipeline import Definition; import sys;"
        "print(Definition.from_json(sys.stdin.read()).content_hash())"
    )
    definition = make_pipeline().resolve(make_catalog())

    told = subprocess.run(
        [sys.executable, "-c", script], input=definition.to_json(), capture_output=True, text=True, check=True
    )

    assert told.stdout.strip() == definition.content_hash()


def test_only_a_sound_pipeline_is_resolved():
    with pytest.raises(PipelineError, match="no plugin is called 'merge'"):
        make_pipeline().resolve(Catalog(*list(make_catalog().plugins.values())[:2]))
    with pytest.raises(PipelineError, match=r"options\.queue: a set is not JSON"):
        Pipeline("media", [DagNode(plugin="p")]).resolve(
            Catalog(PluginInfo(name="p", task_name="t", options={"queue": {1}}))
        )


def test_a_definition_of_a_newer_release_is_refused():
    content = json.loads(make_pipeline().resolve(make_catalog()).to_json())
    content["nodes"][0]["novelty"] = True
    content["plugins"]["gate"]["novelty"] = True

    with pytest.raises(PipelineError, match="upgrade this process to the release that wrote it") as caught:
        Definition.from_json(json.dumps(content))

    assert caught.value.problems == ["nodes[0].novelty: unknown field", "plugins.gate.novelty: unknown field"]


# -- input


def find_no_plugin(name: str) -> None:
    return None


def make_input_pipeline() -> Pipeline:
    bindings = {
        "url": RuntimeSource(key="url", label="Address", required=True),
        "width": RuntimeSource(key="width", default=640),
        "codec": RuntimeSource(key="codec", default="av1"),
        "title": ExpressionSource(expression="{input.title | upper}"),
        "token": RuntimeSource(key="token", required=True),
    }
    return Pipeline("media", [DagNode(slug="a", plugin="fetch", bindings=bindings)], default_input={"codec": "vp9"})


def test_the_input_schema_lists_what_a_run_may_give():
    names = [field.name for field in make_input_pipeline().input_schema(find_no_plugin)]

    assert names == ["url", "width", "codec", "token", "title"]


def test_the_input_schema_asks_the_plugins():
    catalog = Catalog(
        PluginInfo(
            name="fetch", task_name="t", inputs=(PluginInputMeta(name="depth", description="Depth", required=True),)
        )
    )
    pipeline = Pipeline("media", [DagNode(plugin="fetch")])

    assert [(field.name, field.label, field.required) for field in pipeline.input_schema(catalog.find)] == [
        ("depth", "Depth", True)
    ]


def test_input_is_laid_over_the_defaults():
    prepared = make_input_pipeline().prepare_input({"url": "u", "token": "t", "extra": [1]}, find_no_plugin)

    assert prepared == {"url": "u", "token": "t", "extra": [1], "width": 640, "codec": "vp9"}


def test_none_is_an_empty_input():
    assert make_pipeline().prepare_input(None, find_no_plugin) == {"url": "http://example.org"}


def test_every_missing_field_and_bad_value_is_told_at_once():
    given = {"url": "", "title": {"x": float("nan")}, "note": "a\x00", 5: 1}

    with pytest.raises(RunInputError) as caught:
        make_input_pipeline().prepare_input(given, find_no_plugin)

    assert caught.value.problems == [
        "Address (url) is required: pass input={'url': ...}",
        "token is required: pass input={'token': ...}",
        "input.title.x: nan is not JSON; use null, or text",
        "input.note: contains a NUL character, which databases refuse; remove it",
        "input: the key 5 is not text; JSON keys are strings",
    ]
    assert str(caught.value).startswith("[DGB404] Pipeline 'media' cannot run with this input:\n- Address")


@pytest.mark.parametrize("given", [[1], "text", 5])
def test_an_input_that_is_no_dict_is_refused(given):
    with pytest.raises(
        RunInputError, match=f"the input is of type {type(given).__name__}: pass a dict of names and values"
    ):
        make_pipeline().prepare_input(given, find_no_plugin)


def test_an_input_over_the_limit_is_refused():
    with pytest.raises(RunInputError, match="input is 37 bytes of JSON and the limit is 36"):
        make_pipeline().prepare_input({"x": "ab"}, find_no_plugin, max_bytes=36)
    assert make_pipeline().prepare_input({"x": "ab"}, find_no_plugin, max_bytes=37)


# -- what follows a run's end


def test_a_definition_knows_its_nodes_by_their_undoing_too():
    work = PluginInfo(name="work", task_name="media.work", options={"queue": "io"}, on_lost="crash")
    undo = PluginInfo(name="undo", task_name="media.undo", options={"queue": "slow"})
    nodes = [
        DagNode(slug="a", plugin="work", rollback="undo", options={"priority": 3}, timeout=5.0, on_lost="rerun"),
        DagNode(slug="b", plugin="work", depends_on=["a"], on_failure="skip"),
        DagNode(slug="end", plugin="work", run_on="always"),
    ]
    catalog = Catalog(work, undo)

    found = Pipeline("media", nodes=nodes, timeout=60.0).resolve(catalog)

    assert (found.finalisers, found.undoable, found.timeout) == ({2}, {0}, 60.0)
    assert [found.node_of(index).slug for index in (0, ~0, ~1)] == ["a", "a", "b"]
    assert [found.task_name_of(index) for index in (0, ~0)] == ["media.work", "media.undo"]
    assert [found.options_of(index) for index in (0, ~0)] == [{"queue": "io", "priority": 3}, {"queue": "slow"}]
    assert [found.on_lost_of(index) for index in (0, ~0, 1)] == ["rerun", "rerun", "crash"]
    assert [found.timeout_of(index) for index in (0, ~0, 1)] == [5.0, None, None]
    assert [found.says_skip(index) for index in (0, 1)] == [False, True]
    assert found.nodes[2].fan_mode is FanMode.AGGREGATE


@pytest.mark.parametrize(
    ("run_on", "after"),
    [("success", {"completed"}), ("failure", {"failed", "crashed", "cancelled"}), ("always", RUN_TERMINAL_STATUSES)],
)
def test_a_finaliser_runs_after_the_ends_that_it_is_for(run_on, after):
    finaliser = DagNode(slug="end", plugin="work", run_on=run_on)

    assert {status for status in RUN_TERMINAL_STATUSES if finaliser.runs_on(status)} == after

"""Pipelines as JSON and YAML: what is read back, what a file looks like, and how a bad one is refused."""

import json
import textwrap
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from dagabaaz_celery.constants import ArtifactSelector, FanMode, FilterOperator
from dagabaaz_celery.errors import PipelineError
from dagabaaz_celery.models import (
    ConfigSource,
    DagNode,
    EdgeFilter,
    ExpressionSource,
    FilterRule,
    NodeSource,
    RuntimeSource,
)
from dagabaaz_celery.pipeline import Pipeline
from dagabaaz_celery.pipeline_formats import MAX_PIPELINE_BYTES

MEDIA = Pipeline(
    "media",
    description="Files by kind",
    default_input={"url": "http://example.org/é"},
    nodes=[
        DagNode(slug="source", plugin="fetch", options={"queue": "io"}, on_lost="crash"),
        DagNode(
            slug="video",
            name="Transcode",
            plugin="transcode",
            depends_on=["source"],
            fan_mode=FanMode.AGGREGATE,
            edge_filters={
                "source": EdgeFilter(
                    rules=[
                        FilterRule(field="file_type", operator=FilterOperator.EQ, value="video"),
                        FilterRule(field="file_size", operator=FilterOperator.GT, value=5),
                        FilterRule(field="extension", operator=FilterOperator.IN, value=[".mp4", ".mkv"]),
                    ],
                    select=ArtifactSelector.LARGEST,
                )
            },
            bindings={
                "width": ConfigSource(value=640),
                "api_key": RuntimeSource(key="api_key", required=True),
                "path": NodeSource(node="source"),
                "title": ExpressionSource(expression="{source.title | upper}"),
            },
            config={"codec": {"name": "av1", "passes": [1, 2.5, None, True]}},
            max_fan_out=3,
            scatter=True,
        ),
    ],
)


def node_text(extra: str) -> str:
    return f"name: media\nnodes:\n- slug: a\n  plugin: fetch\n{textwrap.indent(textwrap.dedent(extra), '  ')}"


# -- round trips


def test_a_pipeline_comes_back_equal_from_every_format(tmp_path):
    assert Pipeline.from_json(MEDIA.to_json()) == MEDIA
    assert Pipeline.from_yaml(MEDIA.to_yaml()) == MEDIA
    assert Pipeline.from_dict(MEDIA.to_dict()) == MEDIA
    for name in ("media.json", "media.yaml", "media.YML"):
        MEDIA.dump(tmp_path / name)
        assert Pipeline.load(tmp_path / name) == MEDIA
        assert Pipeline.load(str(tmp_path / name)) == MEDIA


def test_fan_mode_stays_unset_or_set():
    pipeline = Pipeline(
        "fans", nodes=[DagNode(slug="unset", plugin="p"), DagNode(slug="single", plugin="p", fan_mode=FanMode.SINGLE)]
    )

    for again in (Pipeline.from_json(pipeline.to_json()), Pipeline.from_yaml(pipeline.to_yaml())):
        assert ["fan_mode" in node.model_fields_set for node in again.nodes] == [False, True]


def test_a_file_holds_no_defaults_and_keeps_the_order():
    assert MEDIA.to_yaml() == textwrap.dedent(
        """\
        name: media
        description: Files by kind
        default_input:
          url: http://example.org/é
        nodes:
        - slug: source
          plugin: fetch
          options:
            queue: io
          on_lost: crash
        - name: Transcode
          slug: video
          plugin: transcode
          depends_on:
          - source
          edge_filters:
            source:
              rules:
              - field: file_type
                operator: eq
                value: video
              - field: file_size
                operator: gt
                value: 5.0
              - field: extension
                operator: in
                value:
                - .mp4
                - .mkv
              select: largest
          bindings:
            width:
              source: config
              value: 640
            api_key:
              source: runtime
              key: api_key
              required: true
            path:
              source: previous_node
              node: source
            title:
              source: expression
              expression: '{source.title | upper}'
          fan_mode: aggregate
          config:
            codec:
              name: av1
              passes:
              - 1
              - 2.5
              - null
              - true
          max_fan_out: 3
          scatter: true
        """
    )


def test_a_version_is_kept():
    pipeline = Pipeline("media", nodes=[{"plugin": "fetch"}], version=3)

    assert Pipeline.from_yaml(pipeline.to_yaml()).version == 3
    assert "version" not in MEDIA.to_dict()


def test_a_task_object_is_written_as_its_name():
    class Task:
        name = "shop.tasks.fetch"

        def apply_async(self):
            raise AssertionError("never called")

    pipeline = Pipeline("media", nodes=[{"plugin": Task()}, DagNode(slug="b", plugin=Task())])

    assert [node["plugin"] for node in json.loads(pipeline.to_json())["nodes"]] == ["shop.tasks.fetch"] * 2


def test_what_json_cannot_hold_is_not_written():
    pipeline = Pipeline("media", nodes=[DagNode(slug="a", plugin="p", config={"when": {1}})])

    for write in (pipeline.to_dict, pipeline.to_json, pipeline.to_yaml):
        with pytest.raises(PipelineError) as caught:
            write()
        assert caught.value.problems == ["pipeline.nodes[0].config.when: a set is not JSON; make it a list"]


NAMES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=12)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | NAMES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=6,
)
OBJECTS = st.dictionaries(NAMES, JSON, max_size=3)
RULES = st.builds(
    FilterRule,
    field=NAMES,
    operator=st.sampled_from(FilterOperator),
    value=NAMES | st.floats(allow_nan=False, allow_infinity=False) | st.lists(NAMES, max_size=2),
)
FILTERS = st.builds(EdgeFilter, rules=st.lists(RULES, max_size=2), select=st.none() | st.sampled_from(ArtifactSelector))
BINDINGS = (
    st.builds(NodeSource, node=NAMES, key=NAMES)
    | st.builds(ConfigSource, value=JSON)
    | st.builds(RuntimeSource, key=NAMES, label=NAMES, required=st.booleans(), default=JSON)
    | st.builds(ExpressionSource, expression=NAMES)
)
NODES = st.builds(
    DagNode,
    name=NAMES,
    slug=NAMES,
    plugin=NAMES,
    depends_on=st.lists(NAMES, max_size=2),
    edge_filters=st.dictionaries(NAMES, FILTERS, max_size=1),
    bindings=st.dictionaries(NAMES, BINDINGS, max_size=2),
    config=OBJECTS,
    options=OBJECTS,
    max_fan_out=st.none() | st.integers(1, 10**6),
    scatter=st.booleans(),
    on_lost=st.sampled_from([None, "rerun", "crash"]),
)
PIPELINES = st.builds(
    Pipeline,
    NAMES,
    st.lists(NODES, max_size=2),
    description=NAMES,
    default_input=OBJECTS,
    version=st.none() | st.just(7),
)


@settings(max_examples=60)
@given(PIPELINES)
def test_whatever_can_be_written_is_read_back_equal_and_fits_the_schema(pipeline):
    data = pipeline.to_dict()

    Draft202012Validator(Pipeline.json_schema()).validate(data)
    assert Pipeline.from_dict(data) == pipeline
    assert Pipeline.from_json(pipeline.to_json()) == pipeline
    assert Pipeline.from_yaml(pipeline.to_yaml()) == pipeline


# -- refusals


@pytest.mark.parametrize(
    ("text", "problems"),
    [
        (node_text("depend_on: []"), ["nodes[0].depend_on: unknown field; did you mean depends_on?"]),
        ("nmae: media\nnodes: []", ["name: required, and not there", "nmae: unknown field; did you mean name?"]),
        (node_text("zzz: 1"), ["nodes[0].zzz: unknown field"]),
        (
            node_text("fan_mode: agregate"),
            ["nodes[0].fan_mode: one of 'single', 'aggregate' or 'grouped', not 'agregate'"],
        ),
        (node_text("on_lost: ignore"), ["nodes[0].on_lost: one of 'rerun' or 'crash', not 'ignore'"]),
        (
            node_text("bindings: {url: {source: previous_nod, node: a}}"),
            [
                "nodes[0].bindings.url: source is one of previous_node, config, runtime, expression, not previous_nod; "
                "did you mean previous_node?"
            ],
        ),
        (
            node_text("bindings: {url: {node: a}}"),
            [
                "nodes[0].bindings.url: source, one of previous_node, config, runtime, expression, is required, "
                "and not there"
            ],
        ),
        (
            node_text("bindings: {url: {source: previous_node, nod: a}}"),
            [
                "nodes[0].bindings.url.node: required, and not there",
                "nodes[0].bindings.url.nod: unknown field; did you mean node?",
            ],
        ),
        (
            node_text("bindings: {url: {source: runtime, lable: x}}"),
            ["nodes[0].bindings.url.lable: unknown field; did you mean label?"],
        ),
        (
            node_text("edge_filters: {a: {rule: []}}"),
            ["nodes[0].edge_filters.a.rule: unknown field; did you mean rules?"],
        ),
        (
            node_text("edge_filters: {a: {rules: [{field: x, operator: eq, val: {}}]}}"),
            ["nodes[0].edge_filters.a.rules[0].val: unknown field; did you mean value?"],
        ),
        (
            node_text("edge_filters: {a: {rules: [{field: x, operator: eq, value: {}}]}}"),
            ["nodes[0].edge_filters.a.rules[0].value: text, a number or a list of texts, not {}"],
        ),
        (
            node_text("max_fan_out: '5'\nscatter: 1\ndepends_on: b"),
            [
                "nodes[0].depends_on: Input should be a valid array, not 'b'",
                "nodes[0].max_fan_out: Input should be a valid integer, not '5'",
                "nodes[0].scatter: Input should be a valid boolean, not 1",
            ],
        ),
        (node_text("max_fan_out: 0"), ["nodes[0].max_fan_out: Input should be greater than or equal to 1, not 0"]),
        (node_text("config: {x: .nan}"), ["pipeline.nodes[0].config.x: nan is not JSON; use null, or text"]),
        (node_text("config: {1: x}"), ["pipeline.nodes[0].config: the key 1 is not text; JSON keys are strings"]),
        ("- a\n- b", ["a pipeline is a mapping with name and nodes, not ['a', 'b']"]),
        ("", ["a pipeline is a mapping with name and nodes, not None"]),
        ("name: [a\nb: c", ["line 2, column 2: did not find expected ',' or ']'"]),
        (
            node_text("plugin: again"),
            ["line 5, column 3: the key 'plugin' stands here again, first on line 4; keep one"],
        ),
    ],
)
def test_a_bad_yaml_file_is_refused_with_every_problem(text, problems):
    with pytest.raises(PipelineError) as caught:
        Pipeline.from_yaml(text)

    assert sorted(caught.value.problems) == sorted(problems)
    assert "the YAML text cannot be read as a pipeline" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('{"name": "media",\n "nodes": [}', "line 2, column 12: Expecting value"),
        ('{"name": "a", "name": "b", "nodes": []}', "the key 'name' stands in one object twice; keep one"),
        ('{"name": NaN, "nodes": []}', "pipeline.name: nan is not JSON; use null, or text"),
        ("[" * 100_000, "it is nested too deeply"),
        ('{"name": ' + "9" * 5000 + "}", "Exceeds the limit"),
        (b'{"name": "\xff"}', "it is not UTF-8 text"),
        ('{"name": "\ud800"}', "it is not UTF-8 text"),
        ('{"name": "\\ud800", "nodes": []}', "pipeline.name: contains half of a surrogate pair"),
        (" " * (MAX_PIPELINE_BYTES + 1), "it is larger than 4,194,304 bytes; split the pipeline"),
        (
            '{"name": "a", "nodes": [], "default_input": {"a": ' + "[" * 80 + "]" * 80 + "}}",
            "nested deeper than 72 levels",
        ),
        ('"' + "x" * 100 + '"', "not 'xxx"),
    ],
)
def test_a_bad_json_file_is_refused(text, problem):
    with pytest.raises(PipelineError) as caught:
        Pipeline.from_json(text)

    assert len(caught.value.problems) == 1
    assert problem in caught.value.problems[0]


def test_a_byte_order_mark_is_no_part_of_the_text():
    assert Pipeline.from_json(b'\xef\xbb\xbf{"name": "a", "nodes": []}').name == "a"


def test_a_refusal_names_the_file(tmp_path):
    path = tmp_path / "media.yaml"
    path.write_text("name: media\nnodes: [{plugn: fetch}]\n")

    with pytest.raises(PipelineError) as caught:
        Pipeline.load(path)

    assert str(caught.value).startswith(f"[DGB301] {path} cannot be read as a pipeline:\n- nodes[0]")
    assert "nodes[0].plugn: unknown field; did you mean plugin?" in caught.value.problems


def test_a_suffix_names_the_format(tmp_path):
    for use in (Pipeline.load, MEDIA.dump):
        with pytest.raises(PipelineError, match=r"its suffix names no format; use one of \.json, \.yaml, \.yml"):
            use(tmp_path / "media.toml")


def test_a_missing_file_is_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        Pipeline.load(tmp_path / "media.json")


def test_a_yaml_bomb_is_refused():
    laughs = "\n".join(f"  a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 10))

    with pytest.raises(PipelineError, match="with its aliases written out"):
        Pipeline.from_yaml(f"name: a\nnodes: []\ndefault_input:\n  a0: &a0 [lol, lol, lol, lol]\n{laughs}\n")


# -- schema


def test_the_schema_is_a_schema_and_refuses_what_load_refuses():
    schema = Pipeline.json_schema()
    Draft202012Validator.check_schema(schema)
    validator = Draft202012Validator(schema)

    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    for wrong in (
        [],
        {"name": "a"},
        {"name": "a", "nodes": [{}]},
        {"name": "a", "nodes": [{"plugin": "p", "depend_on": []}]},
        {"name": "a", "nodes": [{"plugin": "p", "fan_mode": "all"}]},
        {"name": "a", "nodes": [{"plugin": "p", "bindings": {"x": {"node": "a"}}}]},
        {"name": "a", "nodes": [{"plugin": "p", "max_fan_out": 0}]},
    ):
        assert not validator.is_valid(wrong)
        with pytest.raises(PipelineError):
            Pipeline.from_dict(wrong)


@pytest.mark.parametrize(
    ("text", "is_read", "count"),
    [
        ("name: x\nnodes: [{plugin: make}]\n", True, 0),
        ("name: x\nnodes: [{plugin: make, retries: 3, edge_filters: {a: {rool: 1}}}]\ncolour: red\n", True, 3),
        ("name: x\nnodes: [{plugin: make, bindings: {a: {source: config, key: b, depth: 1}}}]\n", True, 2),
        ("name: x\nnodes: [{plugin: 7, retries: 3}]\n", False, 2),
        ("name: x\ndefault_input: {a: .nan}\ncolour: red\nnodes: []\n", False, 1),
        ("- x\n", False, 1),
        ("name: [\n", False, 1),
    ],
)
def test_a_file_is_looked_at_as_far_as_it_can_be_read(text: str, is_read: bool, count: int, tmp_path: Path):
    file = tmp_path / "p.yaml"
    file.write_text(text)
    pipeline, problems = Pipeline.inspect(file)
    assert (pipeline is not None, len(problems)) == (is_read, count), problems

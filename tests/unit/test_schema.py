"""The form of a pipeline's run input, and how values come together in it."""

from typing import Any

import pytest

from dagabaaz_celery.constants import BindingSource
from dagabaaz_celery.errors import RunInputError
from dagabaaz_celery.graph import build_slug_to_index_map
from dagabaaz_celery.models import (
    ConfigSource,
    DagNode,
    ExpressionError,
    ExpressionSource,
    InputBinding,
    NodeSource,
    RuntimeSource,
)
from dagabaaz_celery.plugins import PluginInfo, PluginInputMeta
from dagabaaz_celery.schema import (
    InputFieldSpec,
    get_pipeline_input_schema,
    merge_run_input,
    validate_binding_references,
)


def schema_of(nodes: list[DagNode], **inputs: list[PluginInputMeta]) -> list[InputFieldSpec]:
    """The schema when plugins by these names declare these inputs."""
    plugins = {name: PluginInfo(name=name, task_name=name, inputs=tuple(found)) for name, found in inputs.items()}
    return get_pipeline_input_schema(nodes, plugins.get)


def node(plugin: str = "p", *, slug: str = "", depends_on: tuple[str, ...] = (), **bindings: InputBinding) -> DagNode:
    return DagNode(plugin=plugin, slug=slug or plugin, depends_on=list(depends_on), bindings=bindings)


# Fields


def test_a_field_has_defaults_for_all_but_name_and_label() -> None:
    field = InputFieldSpec(name="url", label="URL")

    assert (field.placeholder, field.required, field.default) == ("", False, "")


def test_a_plugin_declares_fields() -> None:
    declared = PluginInputMeta(name="url", description="Address", required=True, placeholder="https://")

    assert schema_of([node("fetch")], fetch=[declared]) == [
        InputFieldSpec(name="url", label="Address", placeholder="https://", required=True)
    ]


def test_a_declared_input_without_a_description_is_labelled_by_its_name() -> None:
    assert schema_of([node("fetch")], fetch=[PluginInputMeta(name="url")]) == [InputFieldSpec(name="url", label="url")]


@pytest.mark.parametrize("source", [s for s in BindingSource if s != BindingSource.RUNTIME])
def test_an_input_that_a_plugin_expects_from_elsewhere_is_no_field(source: BindingSource) -> None:
    assert schema_of([node("fetch")], fetch=[PluginInputMeta(name="url", source=source)]) == []


@pytest.mark.parametrize(
    "binding",
    [NodeSource(node="a", key="b"), ConfigSource(value="x"), ExpressionSource(expression="{a.url}")],
)
def test_an_input_that_the_node_binds_from_elsewhere_is_no_field(binding: InputBinding) -> None:
    assert schema_of([node("fetch", url=binding)], fetch=[PluginInputMeta(name="url")]) == []


def test_an_unknown_plugin_declares_nothing() -> None:
    assert schema_of([node("unknown")]) == []


def test_a_runtime_binding_is_a_field() -> None:
    binding = RuntimeSource(key="link", label="Link", placeholder="https://", required=True, default="d")

    assert schema_of([node(url=binding)]) == [
        InputFieldSpec(name="link", label="Link", placeholder="https://", required=True, default="d")
    ]


def test_a_runtime_binding_is_named_and_labelled_by_its_field_when_it_does_not_say() -> None:
    assert schema_of([node(url=RuntimeSource())]) == [InputFieldSpec(name="url", label="url")]
    assert schema_of([node(url=RuntimeSource(key="link"))]) == [InputFieldSpec(name="link", label="link")]


def test_an_input_reference_is_a_field() -> None:
    binding = ExpressionSource(expression="{input.title | upper} by {list(input.first, a.x, input.last) | join}")

    assert schema_of([node(text=binding)]) == [
        InputFieldSpec(name=name, label=name) for name in ("title", "first", "last")
    ]


@pytest.mark.parametrize(
    ("expression", "required"),
    [
        ("{input.url}", False),
        ("{input.url | required}", True),
        ("{input.url | trim | required | default(x)}", True),
        ("{input.url | default(x) | required}", False),
        ("{list(input.url, a.url) | required}", False),
    ],
)
def test_an_input_reference_is_required_when_its_expression_fails_without(expression: str, required: bool) -> None:
    [field] = schema_of([node(text=ExpressionSource(expression=expression))])

    assert field.required is required


def test_references_to_nodes_and_config_are_no_fields() -> None:
    assert schema_of([node(text=ExpressionSource(expression="{a.url} {config.x} input.url"))]) == []


def test_an_expression_that_cannot_be_parsed_is_refused() -> None:
    with pytest.raises(ExpressionError, match=r"^Unclosed"):
        schema_of([node(text=ExpressionSource(expression="{input.url"))])


def test_plugin_declarations_win_over_bindings_then_come_references() -> None:
    nodes = [
        node(
            "first",
            text=ExpressionSource(expression="{input.url} {input.name} {input.extra}"),
            name=RuntimeSource(key="name", label="Bound name"),
            url=RuntimeSource(label="Bound URL", required=True, placeholder="bound", default="https://default"),
        ),
        node("second"),
    ]

    fields = schema_of(nodes, second=[PluginInputMeta(name="url", description="Declared URL")])

    assert fields == [
        InputFieldSpec(name="url", label="Declared URL", default="https://default"),
        InputFieldSpec(name="name", label="Bound name"),
        InputFieldSpec(name="extra", label="extra"),
    ]


def test_a_declared_input_bound_to_another_key_has_the_plugins_words_and_that_key() -> None:
    fields = schema_of(
        [node("fetch", url=RuntimeSource(key="link"))], fetch=[PluginInputMeta(name="url", description="Address")]
    )

    assert fields == [InputFieldSpec(name="link", label="Address")]


def test_a_field_that_two_nodes_name_appears_once_and_is_required_when_either_says_so() -> None:
    nodes = [
        node("one"),
        node("two"),
        node(slug="three", x=RuntimeSource(key="y")),
        node(slug="four", y=RuntimeSource()),
    ]

    fields = schema_of(
        nodes,
        one=[PluginInputMeta(name="url", description="First")],
        two=[PluginInputMeta(name="url", description="Second", required=True)],
    )

    assert fields == [InputFieldSpec(name="url", label="First", required=True), InputFieldSpec(name="y", label="y")]


# Merging


FIELDS = [
    InputFieldSpec(name="url", label="Address", required=True),
    InputFieldSpec(name="quality", label="Quality", default=80),
]


def test_the_user_wins_over_the_pipeline_and_the_pipeline_over_the_binding() -> None:
    given = {"url": "u"}

    assert merge_run_input(FIELDS, {}, given) == {"url": "u", "quality": 80}
    assert merge_run_input(FIELDS, {"quality": 70}, given) == {"url": "u", "quality": 70}
    assert merge_run_input(FIELDS, {"quality": 70}, {**given, "quality": 60}) == {"url": "u", "quality": 60}
    assert merge_run_input(FIELDS, None, given) == merge_run_input(FIELDS, {**given}, None)


@pytest.mark.parametrize("absent", [None, ""])
def test_none_and_empty_text_count_as_absent(absent: Any) -> None:
    assert merge_run_input(FIELDS, {"url": "u", "quality": absent}, {"url": absent, "extra": absent}) == {
        "url": "u",
        "quality": 80,
    }


def test_zero_false_and_empty_lists_are_values() -> None:
    given: dict[str, Any] = {"url": 0, "quality": False, "extra": []}

    assert merge_run_input(FIELDS, {"url": "x", "extra": "y"}, given) == given


def test_keys_that_are_no_field_pass() -> None:
    assert merge_run_input([], {"a": 1}, {"b": 2}) == {"a": 1, "b": 2}


def test_the_given_mappings_are_left_as_they_are() -> None:
    default_input, run_input = {"a": 1}, {"b": 2}

    merge_run_input([], default_input, run_input)["c"] = 3

    assert (default_input, run_input) == ({"a": 1}, {"b": 2})


def test_missing_required_input_is_refused_by_its_labels() -> None:
    fields = [*FIELDS, InputFieldSpec(name="lang", label="Language", required=True)]

    with pytest.raises(ValueError, match="Required input missing: Address, Language") as raised:
        merge_run_input(fields, {}, {"url": ""})
    assert isinstance(raised.value, RunInputError)
    assert raised.value.problems == ["Address is required", "Language is required"]


def test_a_required_field_may_be_filled_by_a_default() -> None:
    required = InputFieldSpec(name="q", label="Q", required=True, default=1)

    assert merge_run_input([required], {}, {}) == {"q": 1}


# References


def problem_in(*nodes: DagNode) -> str | None:
    return validate_binding_references(nodes, build_slug_to_index_map(nodes))


def test_a_binding_may_name_what_its_node_depends_on() -> None:
    last = node(
        slug="last",
        depends_on=("one", "two"),
        a=NodeSource(node="one", key="x"),
        b=ExpressionSource(expression="{two.x} {input.y} {config.z}"),
        c=RuntimeSource(),
        d=ConfigSource(value="{zero.x}"),
    )

    assert problem_in(node(slug="zero"), node(slug="one"), node(slug="two"), last) is None


@pytest.mark.parametrize(
    "binding", [NodeSource(node="zero"), ExpressionSource(expression="{one.x} {list(zero.x) | join}")]
)
def test_a_binding_may_not_name_another_node(binding: InputBinding) -> None:
    problem = problem_in(node(slug="zero"), node(slug="one"), node(slug="two", depends_on=("one",), a=binding))

    assert problem == (
        "Node 'two', binding 'a': 'zero' is not in the node's depends_on. Add it there, or bind from a node that is"
    )


def test_a_binding_may_not_name_a_node_that_is_not_there() -> None:
    problem = problem_in(node(slug="one"), node(slug="two", depends_on=("one",), a=NodeSource(node="onne")))

    assert problem == "Node 'two', binding 'a': no node has the slug 'onne'; did you mean one?"


def test_a_binding_may_not_name_its_own_node() -> None:
    assert "depends_on" in (problem_in(node(slug="one", a=NodeSource(node="one"))) or "")


def test_a_bad_expression_is_told() -> None:
    problem = problem_in(node(slug="one", a=ExpressionSource(expression="{b.c")))

    assert problem is not None
    assert problem.startswith("Node 'one', binding 'a': Unclosed")

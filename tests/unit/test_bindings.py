"""Where the value of a bound field comes from."""

from typing import Any

import pytest

from dagabaaz_celery.bindings import (
    any_binding_requires_run_input,
    build_expression_lookup,
    extract_artifact_field,
    extract_node_indices_from_bindings,
    flatten_artifact,
    get_run_input_key,
    resolve_binding,
)
from dagabaaz_celery.models import (
    ConfigSource,
    ExpressionError,
    ExpressionSource,
    InputBinding,
    NodeSource,
    RuntimeSource,
    TaskArtifact,
)

FILM = TaskArtifact(
    file_path="/d/film.mp4",
    file_name="film.mp4",
    file_size=9,
    mime_type="video/mp4",
    metadata={"lang": "en", "season": 2, "tags": ["x"], "file_name": "hidden"},
)
RECORD = TaskArtifact(metadata={"lang": "de", "season": None, "done": False})
SLUGS = {"source": 0, "other": 1, "third": 2}
BY_NODE = {0: [FILM], 1: [FILM, RECORD]}


def resolve(
    binding: InputBinding, run_input: dict[str, Any] | None = None, config: dict[str, Any] | None = None
) -> Any:
    return resolve_binding(binding, BY_NODE, SLUGS, run_input or {}, config)


# Fields of artifacts


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("file_path", "/d/film.mp4"),
        ("file_name", "film.mp4"),
        ("file_size", 9),
        ("mime_type", "video/mp4"),
        ("lang", "en"),
        ("nothing", None),
    ],
)
def test_a_standard_field_wins_over_metadata_of_its_name(key: str, expected: Any) -> None:
    assert extract_artifact_field([FILM], key) == expected


def test_metadata_keeps_its_json_type() -> None:
    values = {"text": "7", "int": 7, "float": 7.5, "no": False, "list": [1, {"a": None}], "map": {"a": [1]}}
    artifact = TaskArtifact(metadata=values)

    for key, value in values.items():
        found = extract_artifact_field([artifact], key)
        assert found == value
        assert type(found) is type(value)


def test_one_value_comes_bare_several_as_a_list_and_none_as_none() -> None:
    assert extract_artifact_field([], "lang") is None
    assert extract_artifact_field([FILM], "lang") == "en"
    assert extract_artifact_field([FILM, RECORD], "lang") == ["en", "de"]


def test_an_artifact_that_has_nothing_there_adds_nothing() -> None:
    assert extract_artifact_field([FILM, RECORD], "season") == 2
    assert extract_artifact_field([FILM, RECORD], "done") is False
    assert extract_artifact_field([FILM, RECORD, FILM], "file_size") == [9, 9]


def test_an_empty_key_takes_all_data_of_the_artifact() -> None:
    assert extract_artifact_field([FILM], "") == {
        "lang": "en",
        "season": 2,
        "tags": ["x"],
        "file_path": "/d/film.mp4",
        "file_name": "film.mp4",
        "file_size": 9,
        "mime_type": "video/mp4",
    }
    assert extract_artifact_field([FILM, RECORD], "") == [flatten_artifact(FILM), flatten_artifact(RECORD)]


# The four sources


def test_a_node_source_reads_the_artifacts_of_its_node() -> None:
    assert resolve(NodeSource(node="source", key="season")) == 2
    assert resolve(NodeSource(node="other", key="lang")) == ["en", "de"]
    assert resolve(NodeSource(node="source")) == flatten_artifact(FILM)


@pytest.mark.parametrize("slug", ["third", "unknown"])
def test_a_node_without_artifacts_offers_none(slug: str) -> None:
    assert resolve(NodeSource(node=slug, key="lang")) is None
    assert resolve(ExpressionSource(expression=f"{{{slug}.lang}}")) is None


@pytest.mark.parametrize("value", ["text", 7, None, ["a"], {"a": 1}, "{source.lang}"])
def test_a_config_source_is_its_literal_value(value: Any) -> None:
    assert resolve(ConfigSource(value=value)) == value


def test_a_runtime_source_reads_the_run_input_and_falls_back_to_its_default() -> None:
    binding = RuntimeSource(key="url", default="fallback")

    assert resolve(binding, {"url": "given"}) == "given"
    assert resolve(binding, {"url": 0}) == 0
    assert resolve(binding, {"url": False}) is False
    for absent in ({}, {"url": None}, {"url": ""}):
        assert resolve(binding, absent) == "fallback"


def test_a_runtime_source_without_a_key_is_called_as_its_field() -> None:
    assert get_run_input_key(RuntimeSource(), "url") == "url"
    assert get_run_input_key(RuntimeSource(key="link"), "url") == "link"


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("{source.season}", 2),
        ("{source.lang | upper}", "EN"),
        ("{other.lang | join(/)}", "en/de"),
        ("{input.url}", "given"),
        ("{config.quality}", 80),
        ("{source.file_name | stem}-{config.quality}", "film-80"),
        ("{config.nothing | default(x)}", "x"),
        ("{list(source.lang, input.url)}", ["en", "given"]),
    ],
)
def test_an_expression_source_sees_nodes_run_input_and_config(expression: str, expected: Any) -> None:
    assert resolve(ExpressionSource(expression=expression), {"url": "given"}, {"quality": 80}) == expected


def test_an_expression_without_config_finds_none_there() -> None:
    assert resolve(ExpressionSource(expression="{config.quality}")) is None


def test_a_bad_expression_is_refused() -> None:
    with pytest.raises(ExpressionError, match=r"^Unclosed"):
        resolve(ExpressionSource(expression="{source.lang"))
    with pytest.raises(ExpressionError, match=r"^Required"):
        resolve(ExpressionSource(expression="{input.url | required}"))


def test_the_lookup_answers_for_input_config_and_slugs() -> None:
    lookup = build_expression_lookup(BY_NODE, SLUGS, {"url": "u"}, {"quality": 80})

    assert lookup("input", "url") == "u"
    assert lookup("input", "nothing") is None
    assert lookup("config", "quality") == 80
    assert lookup("source", "lang") == "en"
    assert lookup("unknown", "lang") is None


# What bindings read


BINDINGS: dict[str, InputBinding] = {
    "a": NodeSource(node="source", key="lang"),
    "b": ExpressionSource(expression="{third.x} {list(other.y, gone.z)} {config.q}"),
    "c": NodeSource(node="gone"),
    "d": ConfigSource(value="{source.lang}"),
}


def test_node_indices_come_from_node_sources_and_expressions() -> None:
    assert extract_node_indices_from_bindings(BINDINGS, SLUGS) == {0, 1, 2}
    assert extract_node_indices_from_bindings({"d": BINDINGS["d"]}, SLUGS) == set()
    assert extract_node_indices_from_bindings({}, SLUGS) == set()


def test_run_input_is_required_by_runtime_sources_and_input_references() -> None:
    assert not any_binding_requires_run_input(BINDINGS)
    assert not any_binding_requires_run_input({})
    assert any_binding_requires_run_input({**BINDINGS, "e": RuntimeSource(key="url")})
    assert any_binding_requires_run_input({**BINDINGS, "e": ExpressionSource(expression="{list(a.b, input.url)}")})

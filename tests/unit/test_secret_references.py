"""Which texts of a ConfigSource are references to secrets, and what takes their places."""

import pytest

from dagabaaz_celery.models import ConfigSource, DagNode, ExpressionSource, RuntimeSource
from dagabaaz_celery.pipeline import Pipeline
from dagabaaz_celery.secret_references import find_bound_secrets, find_secret_names, resolve_references

KEPT = ["", "$", "$5", "$ 5", "US$", "Bearer $TOKEN", "{config.x}", 7, None, True, [], {}]


@pytest.mark.parametrize("value", KEPT)
def test_other_values_stay_as_they_are(value):
    assert list(find_secret_names(value)) == []
    assert resolve_references({"x": ConfigSource(value=value)}, str.lower).get("x", value) == value


@pytest.mark.parametrize(
    ("value", "resolved"),
    [
        ("$TOKEN", "token"),
        ("$_T0KEN", "_t0ken"),
        ("$$TOKEN", "$TOKEN"),
        ("$$", "$"),
        ("$$5", "$5"),
        (
            {"auth": ["$USER", "$PASSWORD", "$$x", "y"], "$KEY": "$A"},
            {"auth": ["user", "password", "$x", "y"], "$KEY": "a"},
        ),
        ((1, "$B"), [1, "b"]),
    ],
)
def test_references_are_resolved_wherever_they_stand_and_two_dollars_are_one(value, resolved):
    assert resolve_references({"x": ConfigSource(value=value)}, str.lower) == {"x": resolved}


def test_only_a_config_source_refers_to_secrets():
    bindings = {
        "a": RuntimeSource(default="$A"),
        "b": ExpressionSource(expression="$B"),
        "c": ConfigSource(value="$C"),
        "d": ConfigSource(value=["$D", {"e": "$E"}]),
    }
    assert list(find_bound_secrets(bindings)) == [("c", "C"), ("d", "D"), ("d", "E")]
    assert resolve_references(bindings, str.lower) == {"c": "c", "d": ["d", {"e": "e"}]}


@pytest.mark.parametrize("value", ["$my-token", "$TOKEN\n", "$a b", "$a.b", "$A$B", "$" + "A" * 201, ["$ok", "$né"]])
def test_a_reference_that_can_name_no_secret_is_refused_before_a_run(value):
    pipeline = Pipeline("p", nodes=[DagNode(slug="a", plugin="a", bindings={"x": ConfigSource(value=value)})])

    [problem] = pipeline.problems()

    assert problem.startswith("node 'a': bindings['x']: $")
    assert "letters, digits and underscores" in problem
    assert "$$" in problem


def test_a_value_too_deep_to_look_into_is_refused_as_such():
    value: object = "$TOKEN"
    for _ in range(100_000):
        value = [value]
    node = DagNode(slug="a", plugin="a", bindings={"x": ConfigSource.model_construct(source="config", value=value)})

    assert any("nested deeper" in problem for problem in Pipeline("p", nodes=[node]).problems())

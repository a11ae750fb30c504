"""What may enter the store as JSON, and how a refusal reads."""

import json
from collections import OrderedDict
from datetime import date
from enum import StrEnum
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from dagabaaz_celery.errors import LimitExceeded, NotJson
from dagabaaz_celery.json_door import MAX_JSON_DEPTH, MAX_PROBLEMS, check_json

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=8)
LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT
VALUES = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3))


def nest(levels: int) -> object:
    value: object = 0
    for _ in range(levels):
        value = [value]
    return value


@given(VALUES)
def test_any_json_value_passes_and_comes_back_equal(value):
    assert json.loads(check_json(value, "input")) == value


def test_text_is_canonical():
    first = check_json({"b": [1, 2], "a": "é"}, "input")
    second = check_json({"a": "é", "b": (1, 2)}, "input")

    assert first == second == '{"a":"é","b":[1,2]}'


def test_keys_keep_their_order_on_demand():
    assert check_json({"b": 1, "a": 2}, "input", sort_keys=False) == '{"b":1,"a":2}'


def test_subclasses_of_json_types_pass():
    class Colour(StrEnum):
        RED = "red"

    class Point(NamedTuple):
        x: int
        y: int

    value = OrderedDict(colour=Colour.RED, point=Point(1, 2))

    assert json.loads(check_json(value, "input")) == {"colour": "red", "point": [1, 2]}


class Report(BaseModel):
    pages: int = 1


class NumpyLike:
    def tolist(self) -> list[int]:
        return [1]


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ({"a": [1, float("nan")]}, "input.a[1]: nan is not JSON; use null, or text"),
        ({"a": float("-inf")}, "input.a: -inf is not JSON; use null, or text"),
        ({"a": {"b": "x\x00y"}}, "input.a.b: contains a NUL character, which databases refuse; remove it"),
        ("\ud83d", "input: contains half of a surrogate pair, which is not text; decode it with errors='replace'"),
        ({"a\x00": 1}, "input: the key 'a\\x00': contains a NUL character, which databases refuse; remove it"),
        ({"a": {3: 1}}, "input.a: the key 3 is not text; JSON keys are strings"),
        ({3: 1, "a": 1}, "input: the key 3 is not text; JSON keys are strings"),
        ({(1, 2): 1}, "input: the key (1, 2) is not text; JSON keys are strings"),
        ({"odd key": b""}, 'input["odd key"]: a bytes is not JSON; write it to a file, or encode it as text'),
        ({"a": {1}}, "input.a: a set is not JSON; make it a list"),
        ({"a": date(2026, 1, 1)}, "input.a: a date is not JSON; pass value.isoformat()"),
        ({"a": Report()}, "input.a: a Report is not JSON; pass value.model_dump(mode='json')"),
        ({"a": NumpyLike()}, "input.a: a NumpyLike is not JSON; pass value.tolist()"),
        (
            {"a": object()},
            "input.a: an object is not JSON; pass text, a number, true, false, null, a list or an object of those",
        ),
        ({"a": 10**5000}, "input.a: the number has too many digits; pass it as text"),
    ],
)
def test_what_is_not_json_is_named_with_its_path(value, problem):
    with pytest.raises(NotJson) as caught:
        check_json(value, "input")

    assert caught.value.problems == [problem]
    assert problem in str(caught.value)


def test_every_problem_is_told_at_once_up_to_a_bound():
    with pytest.raises(NotJson) as few:
        check_json({"a": {1}, "b": [float("inf")]}, "input")
    with pytest.raises(NotJson) as many:
        check_json([{1}] * 1000, "input")

    assert [problem.partition(":")[0] for problem in few.value.problems] == ["input.a", "input.b[0]"]
    assert "\n- input.a: " in str(few.value)
    assert "\n- input.b[0]: " in str(few.value)
    assert len(many.value.problems) == MAX_PROBLEMS + 1
    assert many.value.problems[-1] == "and more"


def test_a_backslash_before_u0000_is_not_a_nul():
    assert json.loads(check_json({"pattern": "\\u0000"}, "input")) == {"pattern": "\\u0000"}


def test_a_value_that_contains_itself_is_refused():
    value: dict[str, object] = {}
    value["self"] = [value]

    with pytest.raises(NotJson, match=r"input\.self\[0\]: contains itself"):
        check_json(value, "input")


def test_a_value_may_be_nested_up_to_the_limit():
    assert check_json(nest(MAX_JSON_DEPTH), "input")
    with pytest.raises(LimitExceeded, match=r"input\[0\]\[0\].* is nested deeper than 64 levels"):
        check_json(nest(MAX_JSON_DEPTH + 1), "input")
    with pytest.raises(LimitExceeded, match="deeper than 2 levels"):
        check_json({"a": [{}]}, "input", max_depth=2)


def test_a_value_deeper_than_the_encoder_goes_is_refused_alike():
    with pytest.raises(LimitExceeded, match="nested deeper than"):
        check_json(nest(100_000), "input")


def test_size_counts_bytes_of_utf8():
    assert check_json("éé", "metadata", max_bytes=6) == '"éé"'
    with pytest.raises(
        LimitExceeded, match=r"metadata is 6 bytes of JSON and the limit is 5\. Keep large data in a file"
    ):
        check_json("éé", "metadata", max_bytes=5)

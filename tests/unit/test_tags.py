"""Which tags a run may have: what every database keeps and finds again, and a word for everything else."""

import re
from typing import Any

import pytest

from dagabaaz_celery.tags import MAX_NAME_LENGTH, MAX_TAGS, MAX_VALUE_LENGTH, describe_name, find_tag_problems, is_name

SURROGATE = "\ud800"


@pytest.mark.parametrize(
    "tags",
    [
        {},
        {"customer": "42"},
        {"empty": ""},
        {"größe": "🍵 für zwei", "a b.c:d/e": "line\none\ttwo"},
        {"n" * MAX_NAME_LENGTH: "v" * MAX_VALUE_LENGTH},
        {f"name {number}": "" for number in range(MAX_TAGS)},
    ],
    ids=lambda tags: f"{len(tags)} tags",
)
def test_short_texts_without_spaces_at_their_ends_are_tags(tags: dict[str, str]):
    assert list(find_tag_problems(tags)) == []


@pytest.mark.parametrize(
    ("tags", "problem"),
    [
        ("customer=42", "tags are 'customer=42': pass a dict of names and values"),
        ([("customer", "42")], "tags are .*: pass a dict"),
        ({"": "x"}, "the tag name '' must be a text of 1 to 100 characters"),
        ({" a": "x"}, "without spaces at its ends"),
        ({"a\n": "x"}, "the tag name 'a\\\\n' must be"),
        ({"a\x00b": "x"}, "without control characters"),
        ({SURROGATE: "x"}, "without control characters"),
        ({"n" * 101: "x"}, r"the tag name '(n+)\.\.\. must be"),
        ({7: "x"}, "the tag name 7 must be a text"),
        ({"a": 42}, r"tag 'a' is 42: a value is text, so pass str\(value\)"),
        ({"a": None}, "tag 'a' is None: a value is text"),
        ({"a": "v" * 201}, "a value has at most 200 characters, and this one 201"),
        ({"a": "x "}, "tag 'a' is 'x ': remove the spaces at its ends"),
        ({"a": "x\x00y"}, "NUL character"),
        ({"a": SURROGATE}, "surrogate"),
        ({f"n{number}": "" for number in range(21)}, "there are 21 tags: a run has at most 20"),
    ],
)
def test_everything_else_is_refused_with_the_reason(tags: Any, problem: str):
    [found] = find_tag_problems(tags)
    assert re.search(problem, found), found


def test_every_problem_is_told():
    assert len(list(find_tag_problems({"": "x", "a": 1, "b": "fine", "c": "y "}))) == 3


def test_a_name_says_what_it_asks_for():
    assert is_name("order-42", 8)
    assert not is_name("order-42", 7)
    assert describe_name(7).startswith("a text of 1 to 7 characters")

"""YAML from people is read as plain data, and what is not plain is refused where it stands."""

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dagabaaz_celery.yaml_door import parse_yaml, write_yaml


def parse(text: str, max_size: int = 10_000, max_depth: int = 10) -> object:
    return parse_yaml(text, max_size=max_size, max_depth=max_depth)


def test_plain_data_is_read():
    text = "a: 1\nb: [x, 2.5, true, null, ~]\nc: {d: 'yes', e: '2026-01-01'}\n"

    assert parse(text) == {"a": 1, "b": ["x", 2.5, True, None, None], "c": {"d": "yes", "e": "2026-01-01"}}


def test_an_empty_text_is_none():
    assert parse("# nothing here\n") is None


def test_aliases_and_merge_keys_work_within_the_size():
    text = "base: &base {queue: io, priority: 1}\nnode: {<<: *base, priority: 5}\nagain: *base\n"

    data = parse(text)

    assert data["node"] == {"queue": "io", "priority": 5}
    assert data["again"] == {"queue": "io", "priority": 1}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a: [1\nb: 2", "line 2, column 2: did not find expected ',' or ']'"),
        ("a: 1\nb: 2\na: 3", "line 3, column 1: the key 'a' stands here again, first on line 1; keep one"),
        ("x:\n  - {a: 1, a: 2}", "line 2, column 12: the key 'a' stands here again, first on line 2; keep one"),
        ("a: *missing", "line 1, column 4: found undefined alias"),
        ("a: &a [*a]", "line 1, column 4: an alias refers to what contains it"),
        (
            "since: 2026-01-01",
            "line 1, column 8: '2026-01-01' is read as timestamp, which is not plain data; put quotes round it",
        ),
        ("a: !!binary aGk=", "line 1, column 4: 'aGk=' is read as binary, which is not plain data"),
        ("a: !!set {x, y}", "line 1, column 4: the type set is not plain data; use a list or a mapping"),
        ("a: !!python/object/apply:os.getcwd []", "line 1, column 4: the type python/object/apply:os.getcwd is not"),
        ("a: !!python/name:os.system ''", "line 1, column 4: '' is read as python/name:os.system, which is not"),
        ("? [a]\n: b", "line 1, column 3: found unhashable key"),
        ("a: 1\n---\nb: 2", "line 2, column 1: but found another document"),
        ("a: \x07", "unacceptable character #x0007"),
        ("a: !!bool maybe", "a value does not fit its tag"),
        ("a: !!int ''", "a value does not fit its tag"),
        ("a: !!int x", "invalid literal for int()"),
    ],
)
def test_what_is_not_plain_is_refused_with_its_place(text, problem):
    with pytest.raises(ValueError, match=f"^{re.escape(problem)}"):
        parse(text)


def test_a_billion_laughs_is_refused_before_it_is_written_out():
    lines = ["a0: &a0 [lol, lol, lol, lol, lol, lol, lol, lol, lol, lol]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 10)]

    with pytest.raises(ValueError, match=r"line \d+, column \d+: longer than 10,000 characters with its aliases"):
        parse("\n".join(lines))


def test_one_long_text_repeated_by_aliases_is_refused():
    text = f"long: &long {'x' * 1000}\nmany: [{', '.join(['*long'] * 20)}]"

    with pytest.raises(ValueError, match="longer than 10,000 characters with its aliases written out"):
        parse(text)


def test_merge_keys_that_double_are_refused():
    lines = ["m0: &m0 {a: 1, b: 2}"] + [f"m{n}: &m{n} {{<<: [*m{n - 1}, *m{n - 1}]}}" for n in range(1, 30)]

    with pytest.raises(ValueError, match="longer than 10,000 characters"):
        parse("\n".join(lines))


@pytest.mark.parametrize("brackets", ["[", "{a: ", "- "])
def test_deep_nesting_is_refused_and_kills_nobody(brackets):
    with pytest.raises(ValueError, match=r"line 1, column \d+: nested deeper than 10 levels"):
        parse(brackets * 200_000)
    assert parse("[" * 10 + "]" * 10) == [[[[[[[[[[]]]]]]]]]]


@given(
    st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"])), st.text(st.characters(exclude_categories=["Cs"]))
    )
)
@example({"\x85": "a\u2028b\u2029c", "yes": "2026-01-01", "1e3": "~", "<<": "=", "": "- x"})
def test_any_text_is_read_back_as_it_was_written(data):
    assert parse(write_yaml(data)) == data


@given(st.lists(st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.booleans() | st.none()))
@example([1e16, 5e-324, 1.5e300, 10**30, -1])
def test_any_number_is_read_back_as_it_was_written(data):
    assert parse(write_yaml(data)) == data

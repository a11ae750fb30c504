"""The transforms of expressions, called as an expression calls them: the value, then text arguments."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dagabaaz_celery.models import ExpressionError
from dagabaaz_celery.pipes import BUILTIN_PIPES, MAX_LIST_LENGTH, MAX_MATCH_LENGTH, MAX_TEXT_LENGTH, PIPE_ARITY

NO_ARGUMENT = [
    *("upper", "lower", "trim", "title", "required", "first", "last", "basename", "dirname", "stem", "ext"),
    *("urlencode", "urldecode", "int", "string", "flatten", "compact"),
]
ONE_ARGUMENT = [
    *("strip", "lstrip", "rstrip", "default", "nth", "join", "truncate", "prepend", "append", "match"),
    *("json_get", "pad"),
]


def pipe(name: str, value: Any, *args: str) -> Any:
    return BUILTIN_PIPES[name](value, *args)


def test_thirty_pipes_with_their_arity() -> None:
    expected = dict.fromkeys(NO_ARGUMENT, (0, 0)) | dict.fromkeys(ONE_ARGUMENT, (0, 1)) | {"replace": (1, 2)}

    assert expected == PIPE_ARITY
    assert BUILTIN_PIPES.keys() == PIPE_ARITY.keys()
    assert len(BUILTIN_PIPES) == 30


@pytest.mark.parametrize("mapping", [BUILTIN_PIPES, PIPE_ARITY])
def test_the_tables_are_read_only(mapping: Any) -> None:
    with pytest.raises(TypeError):
        mapping["mine"] = str


@pytest.mark.parametrize(
    ("name", "value", "args", "expected"),
    [
        ("upper", "aé", (), "AÉ"),
        ("lower", "AÉ", (), "aé"),
        ("trim", " \ta b\n", (), "a b"),
        ("title", "the long film", (), "The Long Film"),
        ("replace", "a_b_c", ("_", "-"), "a-b-c"),
        ("replace", "a_b_c", ("_",), "abc"),
        ("replace", "abc", ("", "-"), "abc"),
        ("strip", "--a-b--", ("-",), "a-b"),
        ("strip", " a ", (), "a"),
        ("strip", " a ", ("",), "a"),
        ("lstrip", "--a--", ("-",), "a--"),
        ("lstrip", " a ", (), "a "),
        ("rstrip", "--a--", ("-",), "--a"),
        ("rstrip", " a ", (), " a"),
        ("prepend", "b", ("a",), "ab"),
        ("prepend", "b", (), "b"),
        ("append", "b", ("c",), "bc"),
        ("append", "b", (), "b"),
        ("string", 7, (), "7"),
        ("string", None, (), ""),
        ("string", ["a", None, 1], (), "a, 1"),
        ("upper", None, (), ""),
        ("upper", ["a", "b"], (), "A, B"),
    ],
)
def test_text(name: str, value: Any, args: tuple[str, ...], expected: str) -> None:
    assert pipe(name, value, *args) == expected


@pytest.mark.parametrize(
    ("args", "expected"),
    [(("3",), "abc"), (("0",), ""), (("99",), "abcdef"), (("-1",), "abcdef"), (("x",), "abcdef"), ((), "abcdef")],
)
def test_truncate_leaves_the_text_for_a_bad_length(args: tuple[str, ...], expected: str) -> None:
    assert pipe("truncate", "abcdef", *args) == expected


def test_truncate_without_a_length_keeps_255_characters() -> None:
    assert len(pipe("truncate", "x" * 300)) == 255


@pytest.mark.parametrize("value", [0, False, [], "x"])
def test_default_and_required_take_zero_false_and_an_empty_list_for_values(value: object) -> None:
    assert pipe("default", value, "fallback") is value
    assert pipe("required", value) is value


@pytest.mark.parametrize("value", [None, ""])
def test_default_and_required_take_none_and_empty_text_for_missing(value: object) -> None:
    assert pipe("default", value, "fallback") == "fallback"
    assert pipe("default", value) == ""
    with pytest.raises(ExpressionError, match=r"^Required value is missing"):
        pipe("required", value)


@pytest.mark.parametrize(
    ("name", "value", "args", "expected"),
    [
        ("first", ["a", "b"], (), "a"),
        ("first", [], (), None),
        ("first", "abc", (), "abc"),
        ("last", ["a", "b"], (), "b"),
        ("last", [], (), None),
        ("last", 7, (), 7),
        ("nth", ["a", "b"], ("1",), "b"),
        ("nth", ["a", "b"], ("-2",), "a"),
        ("nth", ["a", "b"], (), "a"),
        ("nth", ["a", "b"], ("2",), None),
        ("nth", ["a", "b"], ("-3",), None),
        ("nth", ["a", "b"], ("x",), None),
        ("nth", "abc", ("0",), "abc"),
        ("nth", "abc", ("1",), None),
        ("join", ["a", None, 1, ""], ("-",), "a-1-"),
        ("join", ["a", "b"], (), "a, b"),
        ("join", "abc", ("-",), "abc"),
        ("join", [], ("-",), ""),
        ("flatten", [["a", "b"], "c", [["d"]]], (), ["a", "b", "c", ["d"]]),
        ("flatten", ("a", ("b",)), (), ["a", "b"]),
        ("flatten", "abc", (), "abc"),
        ("compact", ["a", None, "", 0, False, []], (), ["a", 0, False, []]),
        ("compact", "abc", (), "abc"),
    ],
)
def test_lists(name: str, value: Any, args: tuple[str, ...], expected: Any) -> None:
    assert pipe(name, value, *args) == expected


@pytest.mark.parametrize(
    ("path", "basename", "dirname", "stem", "ext"),
    [
        ("/data/film.tar.gz", "film.tar.gz", "/data", "film.tar", ".gz"),
        ("film.MP4", "film.MP4", "", "film", ".MP4"),
        ("/data/.hidden", ".hidden", "/data", ".hidden", ""),
        ("/data/", "", "/data", "", ""),
        ("C:\\data\\film.mp4", "C:\\data\\film.mp4", "", "C:\\data\\film", ".mp4"),
        ("", "", "", "", ""),
    ],
)
def test_paths_are_posix_on_every_platform(path: str, basename: str, dirname: str, stem: str, ext: str) -> None:
    assert [pipe(name, path) for name in ("basename", "dirname", "stem", "ext")] == [basename, dirname, stem, ext]


def test_url_encoding_goes_both_ways() -> None:
    assert pipe("urlencode", "a b/c?é&") == "a%20b%2Fc%3F%C3%A9%26"
    assert pipe("urldecode", "a%20b%2Fc%3F%C3%A9%26") == "a b/c?é&"
    assert pipe("urlencode", "\ud800") == "%3F"
    assert pipe("urldecode", "100%") == "100%"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("42", 42),
        (" -7 ", -7),
        ("3.9", 3),
        (3.9, 3),
        ("12345678901234567890", 12345678901234567890),
        (True, 1),
        ("nonsense", 0),
        ("", 0),
        (None, 0),
        ([], 0),
        ({}, 0),
        ("nan", 0),
        ("inf", 0),
        ("-inf", 0),
        (float("nan"), 0),
        (float("inf"), 0),
        ("9" * 5000, 0),
    ],
)
def test_int_of_nonsense_nan_or_inf_is_zero(value: Any, expected: int) -> None:
    assert pipe("int", value) == expected
    assert type(pipe("int", value)) is int


@pytest.mark.parametrize(
    ("value", "args", "expected"),
    [
        (7, (), "07"),
        ("7", ("3",), "007"),
        (" 7 ", ("3",), "007"),
        (-7, ("3",), "-07"),
        (3.5, ("4",), "03.5"),
        (123, ("2",), "123"),
        ("abc", ("5",), "abc"),
        (True, ("5",), "True"),
        (None, ("5",), ""),
        ("7", ("x",), "7"),
        ("7", ("-3",), "7"),
        ("7", ("1000000000",), "7"),
    ],
)
def test_pad_fills_numbers_with_zeros_and_leaves_other_text(value: Any, args: tuple[str, ...], expected: str) -> None:
    assert pipe("pad", value, *args) == expected


DATA = {"a": {"b": [1, {"c": None}, "x"]}, "n": 0}


@pytest.mark.parametrize(
    ("value", "path", "expected"),
    [
        ('{"a": {"b": [1, 2]}}', "a.b.1", 2),
        ('{"a": 1}', "", {"a": 1}),
        ("[1, 2]", "-1", 2),
        (DATA, "a.b.2", "x"),
        (DATA, "n", 0),
        (DATA, "a.b.1.c", None),
        (DATA, "a.b.9", None),
        (DATA, "a.b.x", None),
        (DATA, "a.z", None),
        (DATA, "n.deeper", None),
        ("{bad json", "a", None),
        ("", "a", None),
        (None, "a", None),
        (7, "a", None),
        ("[" * 200_000, "", None),
        ("9" * 5000, "", None),
    ],
)
def test_json_get_takes_text_or_data_and_gives_none_for_bad_json(value: Any, path: str, expected: Any) -> None:
    assert pipe("json_get", value, path) == expected


def test_json_get_without_a_path_gives_the_whole() -> None:
    assert pipe("json_get", "[1]") == [1]


@pytest.mark.parametrize(
    ("value", "args", "expected"),
    [
        ("Show.S02E05.mkv", (r"S(\d+)E(\d+)",), "02"),
        ("Show.S02E05.mkv", (r"E\d+",), "E05"),
        ("Show.S02E05.mkv", (r"(X\d+)?\.mkv",), ""),
        ("Grüße", (r"\p{Lu}\p{L}+",), "Grüße"),
        ("abc", ("z",), ""),
        ("abc", ("",), ""),
        ("abc", (), ""),
        ("abc", ("(",), ""),
        ("abc", ("(?=b)",), ""),
        ("abc", (r"(a)\1",), ""),
        ("abc", ("a{5000}",), ""),
        ("abc", ("\ud800",), ""),
        ("\ud800abc", ("a",), ""),
        (1234, ("23",), "23"),
        (None, ("a",), ""),
    ],
)
def test_match_gives_the_first_group_or_the_match_and_nothing_for_a_bad_pattern(
    value: Any, args: tuple[str, ...], expected: str
) -> None:
    assert pipe("match", value, *args) == expected


def test_a_bad_pattern_writes_nothing_to_stderr(capfd: pytest.CaptureFixture[str]) -> None:
    pipe("match", "abc", "(unclosed by this test")

    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("pattern", ["(a+)+$", "(a|aa)+$", "(a|a?)+b", "(.*)*x", "(?:a?){30}a{30}b", "([a-zA-Z]+)*!"])
def test_no_catastrophic_pattern_hangs(pattern: str) -> None:  # backtracking would outlast any timeout
    text = "a" * 50_000 + "\n"

    assert pipe("match", text, pattern) == ""


def test_a_pattern_too_large_to_be_fast_is_a_bad_pattern() -> None:
    pattern = "|".join(f"(a.{{900}}b.{{900}}c.{{900}}{digit})" for digit in range(9))

    assert pipe("match", "ab" * 5000, pattern) == ""


def test_match_looks_at_the_beginning_of_a_very_long_text() -> None:
    text = "a" * MAX_MATCH_LENGTH

    assert pipe("match", text + "b", "b") == ""
    assert pipe("match", text + "b", "a+") == text


@pytest.mark.parametrize("name", ["replace", "join", "upper"])
def test_a_text_that_grows_past_the_limit_is_refused_before_it_is_made(name: str) -> None:
    half = "x" * (MAX_TEXT_LENGTH // 2)
    call = {
        "replace": lambda: pipe("replace", half, "x", "y" * 10_000),
        "join": lambda: pipe("join", [""] * 1_000, "y" * 10_000),
        "upper": lambda: pipe("upper", [half] * 10),
    }[name]

    with pytest.raises(ExpressionError, match=r"^Text too long: [\d,]+ characters, and the limit is 1,000,000"):
        call()


def test_a_list_that_grows_past_the_limit_is_refused() -> None:
    with pytest.raises(ExpressionError, match=r"^List too long: 1,000,500 items"):
        pipe("flatten", [[0] * (MAX_LIST_LENGTH // 2000)] * 2001)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=3),
)


@given(
    name=st.sampled_from(sorted(BUILTIN_PIPES.keys() - {"required"})),
    value=VALUES,
    args=st.lists(st.text() | st.integers().map(str), max_size=2),
)
def test_pipes_never_raise_on_odd_input(name: str, value: Any, args: list[str]) -> None:
    fewest, most = PIPE_ARITY[name]
    arguments = (args + [""] * fewest)[: max(fewest, min(most, len(args)))]

    pipe(name, value, *arguments)


def test_what_python_cannot_spell_has_no_text() -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]

    assert pipe("upper", [deep, 10**5000, "a"]) == ", , A"


def test_a_value_of_any_type_keeps_it_where_the_pipe_does_not_touch_it() -> None:
    assert pipe("first", [{"a": 1}]) == {"a": 1}

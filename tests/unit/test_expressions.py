"""Expressions: how they are parsed, what they give, and what is said of a bad one."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dagabaaz_celery.expressions import (
    MAX_EXPRESSION_LENGTH,
    MAX_EXPRESSION_STEPS,
    RESERVED_NAMESPACES,
    PipeCall,
    Token,
    extract_refs,
    resolve_expression,
    tokenize_expression,
    validate_expression,
)
from dagabaaz_celery.models import ExpressionError

VALUES = {
    ("source", "title"): "film",
    ("source", "count"): 3,
    ("source", "tags"): ["a", None, "b"],
    ("source", "empty"): "",
    ("source", "zero"): 0,
    ("source", "no"): False,
    ("source", "none_at_all"): [],
    ("source", "info.lang"): "en",
    ("a", "url"): "u1",
    ("b", "url"): "u2",
    ("input", "api_url"): "https://x",
    ("config", "format"): "mkv",
}


def lookup(namespace: str, key: str) -> Any:
    return VALUES.get((namespace, key))


def resolve(text: str) -> Any:
    return resolve_expression(text, lookup)


# Parsing


def test_an_expression_becomes_text_references_and_calls() -> None:
    tokens = tokenize_expression("Hi {source.title | upper | truncate(50)}: {list(a.url, b.url) | join(,)}!")

    assert tokens == (
        Token("text", "Hi ", ()),
        Token("ref", "source.title", (PipeCall("upper", ()), PipeCall("truncate", ("50",)))),
        Token("text", ": ", ()),
        Token("call", "list", (PipeCall("join", (",",)),), ("a.url", "b.url")),
        Token("text", "!", ()),
    )


def test_empty_text_has_no_tokens() -> None:
    assert tokenize_expression("") == ()


def test_spaces_inside_braces_do_not_count() -> None:
    assert tokenize_expression("{  source.title|upper  | truncate( 5 ) }") == tokenize_expression(
        "{source.title | upper | truncate(5)}"
    )
    assert tokenize_expression("{ list( a.url ,b.url ) }") == tokenize_expression("{list(a.url, b.url)}")


def test_tokens_are_cached() -> None:
    tokenize_expression.cache_clear()

    assert tokenize_expression("{a.url}") is tokenize_expression("{a.url}")
    assert tokenize_expression.cache_info().hits == 1


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("join(,)", (",",)),
        ("join(, )", (", ",)),
        ("join( )", (" ",)),
        ("join()", ()),
        ("join", ()),
        (r"join(\,)", (",",)),
        (r"default(a\, b)", ("a, b",)),
        ("replace(a, b)", ("a", "b")),
        ("replace(_, )", ("_", " ")),
        ("replace(_,)", ("_", "")),
        (r"replace(\{, \})", ("{", "}")),
        (r"match(a\{2\})", ("a{2}",)),
        (r"match(\d+\.(\w+))", (r"\d+\.(\w+)",)),
        ("match(a|b)", ("a|b",)),
        (r"match(\((a|b)\))", (r"\((a|b)\)",)),
        (r"match(\\)", (r"\\",)),
        (r"match(x\\\,y)", (r"x\\,y",)),
        ("append('q')", ("'q'",)),
    ],
)
def test_pipe_arguments(arguments: str, expected: tuple[str, ...]) -> None:
    [token] = tokenize_expression(f"{{source.title | {arguments}}}")

    assert token.pipes[0].args == expected


def test_a_reference_is_split_at_its_first_dot() -> None:
    assert resolve("{source.info.lang}") == "en"
    assert extract_refs("{source.info.lang} {input.a.b}") == ({"source"}, {"a.b"})


def test_parentheses_belong_to_a_key_when_no_function_stands_before_them() -> None:
    assert tokenize_expression("{source.size (kb)}") == (Token("ref", "source.size (kb)", ()),)


# Values


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{source.count}", 3),
        ("{source.tags}", ["a", None, "b"]),
        ("{source.zero}", 0),
        ("{source.no}", False),
        ("{source.empty}", ""),
        ("{source.none_at_all}", []),
        ("{source.missing}", None),
        ("{list(a.url, b.url)}", ["u1", "u2"]),
        ("{list(a.url, b.missing)}", ["u1", None]),
        ("{list(a.url)}", ["u1"]),
        ("{source.title | int}", 0),
        ("{input.api_url}", "https://x"),
        ("{config.format}", "mkv"),
    ],
)
def test_a_lone_reference_or_call_keeps_its_type(text: str, expected: Any) -> None:
    assert resolve(text) == expected
    assert type(resolve(text)) is type(expected)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("n={source.count}", "n=3"),
        ("{source.count} ", "3 "),
        ("{source.count}{source.zero}{source.no}", "30False"),
        ("[{source.missing}]", "[]"),
        ("[{source.tags}]", "[a, b]"),
        ("[{list(a.url, b.missing, b.url)}]", "[u1, u2]"),
        ("plain text", "plain text"),
        (r"\{not.a.ref\} {a.url}", "{not.a.ref} u1"),
        (r"C:\dir\{a.url\}", r"C:\dir{a.url}"),
        ("a\\b \\\\ end\\", "a\\b \\\\ end\\"),
    ],
)
def test_with_anything_beside_it_the_result_is_text(text: str, expected: str) -> None:
    assert resolve(text) == expected


@pytest.mark.parametrize("text", ["", "{source.missing}{source.empty}", "{source.none_at_all}{a.missing | upper}"])
def test_an_all_empty_result_is_none(text: str) -> None:
    assert resolve(text) is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{source.title | upper | truncate(2)}", "FI"),
        ("{list(a.url, b.url) | join(,)}", "u1,u2"),
        ("{config.output | default(mp4)}", "mp4"),
        ("{config.format | default(mp4)}", "mkv"),
        ("{source.missing | upper}", ""),
        ("{source.missing | string}", ""),
        ("{source.tags | nth(9) | default(none)}", "none"),
        ("{source.tags | nth(1) | upper}", ""),
        ("{source.zero | default(9)}", 0),
        ("{source.none_at_all | first | prepend(x)}", "x"),
        ("{list(source.tags, a.url) | flatten | compact | last}", "u1"),
        (r"{source.title | match(f(i|o)) | append(\,)}", "i,"),
    ],
)
def test_pipes_apply_in_order_and_none_becomes_empty_text_before_each(text: str, expected: Any) -> None:
    assert resolve(text) == expected


def test_each_reference_is_looked_up_once() -> None:
    asked: list[tuple[str, str]] = []
    resolve_expression("{a.b.c} {list(x.y, input.z)}", lambda *reference: asked.append(reference))

    assert asked == [("a", "b.c"), ("x", "y"), ("input", "z")]


def test_required_says_what_is_missing() -> None:
    assert resolve("{input.api_url | required}") == "https://x"
    with pytest.raises(ExpressionError, match=r"^Required value is missing .*'input\.nothing'"):
        resolve("{input.nothing | required}")
    with pytest.raises(ExpressionError, match=r"^Required value is missing .*'list\(a\.x, b\.x\)'"):
        resolve("{list(a.x, b.x) | compact | join | required}")


def test_a_reference_that_ends_in_its_dot_fails_when_resolved() -> None:
    assert tokenize_expression("{source.}") == (Token("ref", "source.", ()),)
    assert extract_refs("{source.}") == ({"source"}, set())
    for text in ("{source.}", "{list(source.)}"):
        with pytest.raises(ExpressionError, match="key cannot be empty"):
            resolve(text)
        assert "key cannot be empty" in (validate_expression(text) or "")


# Problems


@pytest.mark.parametrize(
    ("text", "begins"),
    [
        ("abc {source.title", "Unclosed '{' at position 4"),
        ("{", "Unclosed '{' at position 0"),
        ("{source.title\\}", "Unclosed '{'"),
        ("{source.title \\", "Unclosed '{'"),
        ("{source.title | join(}", "Unclosed '('"),
        ("{list(a.url}", "Unclosed '('"),
        ("ab}c", "Unexpected '}' at position 2"),
        ("{a.url}}", "Unexpected '}' at position 7"),
        ("{source.title | upper)}", "Unexpected ')'"),
        ("{source.title | join(a)b}", "Unexpected 'b'"),
        ("{source.title | join(a)(b)}", "Unexpected ')'"),
        ("{source.title | join(a\\)}", "Unclosed '('"),
        ("{source.title | join(a) \\)}", "Unexpected ')'"),
        ("{list(a.url) b.url}", "Unexpected ' b.url'"),
        ("{}", "Empty reference at position 0"),
        ("ab{  }", "Empty reference at position 2"),
        ("{| upper}", "Empty reference"),
        ("{list()}", "Empty reference"),
        ("{list(a.url, )}", "Empty reference"),
        ("{a.url | }", "Empty pipe"),
        ("{a.url || upper}", "Empty pipe"),
        ("{title}", "Invalid reference 'title' at position 0: expected 'namespace.key'"),
        ("x {.key}", "Invalid reference '.key' at position 2: expected 'namespace.key'"),
        ("{list(a.url, b)}", "Invalid reference 'b' at position 0: expected 'namespace.key'"),
        ("{max(a.url)}", "Unknown function 'max'"),
        ("{a.url | uper}", "Unknown pipe 'uper'"),
        ("{a.url | (x)}", "Unknown pipe ''"),
        ("{a.url | upper(x)}", "Pipe 'upper' expects 0 arg(s), got 1"),
        ("{a.url | truncate(1, 2)}", "Pipe 'truncate' expects 0-1 arg(s), got 2"),
        ("{a.url | replace}", "Pipe 'replace' expects 1-2 arg(s), got 0"),
        ("{a.url | replace()}", "Pipe 'replace' expects 1-2 arg(s), got 0"),
        ("{a.url | replace(a, b, c)}", "Pipe 'replace' expects 1-2 arg(s), got 3"),
        ("{a.{b.c}}", "Nested braces not supported at position 3"),
        ("{{a.url}}", "Nested braces not supported at position 1"),
        ("x" * (MAX_EXPRESSION_LENGTH + 1), "Expression too long: 10,001 characters, and the limit is 10,000"),
        ("{a.b}" * (MAX_EXPRESSION_STEPS + 1), "Expression too long: 501 references and pipes, and the limit is 500"),
        ("{a.b" + "|trim" * MAX_EXPRESSION_STEPS + "}", "Expression too long: 501 references and pipes"),
        ("{list(a.b" + ", a.b" * MAX_EXPRESSION_STEPS + ")}", "Expression too long: 501 references and pipes"),
    ],
)
def test_a_bad_expression_is_refused_everywhere_and_the_message_starts_with_what_is_wrong(
    text: str, begins: str
) -> None:
    assert (validate_expression(text) or "").startswith(begins)
    for use in (tokenize_expression, resolve, extract_refs):
        with pytest.raises(ExpressionError) as raised:
            use(text)
        assert str(raised.value) == validate_expression(text)


def test_an_unknown_pipe_comes_with_a_suggestion() -> None:
    assert "did you mean upper?" in (validate_expression("{a.url | uper}") or "")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "text",
        "{a.url}",
        "{a.url | upper}",
        r"\{",
        "x" * MAX_EXPRESSION_LENGTH,
        "{a.b}" * MAX_EXPRESSION_STEPS,
        "{list(a.url, b.url) | join(,)}",
    ],
)
def test_a_good_expression_has_no_problem(text: str) -> None:
    assert validate_expression(text) is None


@pytest.mark.parametrize(
    "text",
    ["{" + "(" * 9_000 + "}", "{a.b" + "|upper" * 1_600 + "}", "{list(" + "a.b," * 2_000 + "a.b)}", "\\" * 9_999],
)
def test_long_expressions_are_parsed_in_no_time(text: str) -> None:
    validate_expression(text)


def test_values_cannot_be_grown_without_bound() -> None:
    doubling = "{source.title" + " | replace(i,iiiiiiiiii)" * 300 + "}"

    with pytest.raises(ExpressionError, match=r"^Text too long"):
        resolve(doubling)
    with pytest.raises(ExpressionError, match=r"^Text too long"):
        resolve_expression("{a.b}{a.b}", lambda *_: "x" * 600_000)
    with pytest.raises(ExpressionError, match=r"^Text too long: 1,000,001 .*\(pipe 'append' of 'a\.b'\)"):
        resolve_expression("{a.b | append(y)}", lambda *_: "x" * 1_000_000)


# References


def test_extract_refs_tells_nodes_from_run_input() -> None:
    text = "{a.url} {list(b.url, input.x) | join} {input.y} {config.z} {a.name} \\{c.url\\}"

    assert extract_refs(text) == ({"a", "b"}, {"x", "y"})
    assert extract_refs("no references") == (set(), set())


def test_reserved_namespaces() -> None:
    assert set(RESERVED_NAMESPACES) == {"input", "config"}


# Properties


@given(st.text(alphabet="{}()|,.\\ ab\n", max_size=40))
def test_any_text_parses_or_is_refused_with_an_expression_error(text: str) -> None:
    problem = validate_expression(text)

    if problem is None:
        assert resolve_expression(text, lambda *_: "v") is not None or text == ""
    else:
        with pytest.raises(ExpressionError):
            resolve_expression(text, lambda *_: "v")


@given(st.text())
def test_escaped_text_comes_out_as_it_went_in(text: str) -> None:
    escaped = text.replace("\\", "").replace("{", r"\{").replace("}", r"\}")

    assert resolve_expression(escaped, lookup) == (text.replace("\\", "") or None)

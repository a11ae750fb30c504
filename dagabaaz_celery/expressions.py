r"""Templates such as ``{source.title | upper | truncate(50)}``: parsed here, checked on save, evaluated in workers.

    text        anything; ``\{`` and ``\}`` are literal braces
    {ns.key}    a reference: a node's slug, ``input`` or ``config``, then everything behind the first dot
    {list(a.x, b.y)}    the values of several references
    {… | pipe(arg, arg)}    pipes.py has them; ``\,`` is a literal comma, ``(,)`` one comma

Spaces around an argument do not count, unless it is nothing but spaces. Parentheses in arguments come in pairs,
or behind a backslash, which stays: that is what a pattern for ``match`` needs.
"""

import re
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any, Literal, NamedTuple

from dagabaaz_celery.errors import suggest_closest
from dagabaaz_celery.models import ExpressionError
from dagabaaz_celery.pipes import BUILTIN_PIPES, PIPE_ARITY, join_texts, to_text

Lookup = Callable[[str, str], Any]

#: Namespaces that no node's slug may have: the run input, and the node's own config.
RESERVED_NAMESPACES = frozenset({"input", "config"})
FUNCTIONS = frozenset({"list"})
#: Characters in one expression.
MAX_EXPRESSION_LENGTH = 10_000
#: References and pipes in one expression.
MAX_EXPRESSION_STEPS = 500


class PipeCall(NamedTuple):
    """A pipe with its arguments, as text."""

    name: str
    args: tuple[str, ...]


class Token(NamedTuple):
    """A piece of an expression.

    ``value`` is the text, the reference ``namespace.key``, or the function called on ``refs``.
    """

    kind: Literal["text", "ref", "call"]
    value: str
    pipes: tuple[PipeCall, ...]
    refs: tuple[str, ...] = ()


@lru_cache(maxsize=1024)
def tokenize_expression(text: str) -> tuple[Token, ...]:
    """The pieces of an expression, in order. Raises ExpressionError, which begins with what is wrong."""
    if len(text) > MAX_EXPRESSION_LENGTH:
        raise ExpressionError(
            f"Expression too long: {len(text):,} characters, and the limit is {MAX_EXPRESSION_LENGTH:,}. "
            "Pass long text as run input or config and refer to it."
        )
    tokens: list[Token] = []
    position = 0
    while position < len(text):
        if text[position] == "{":
            end = _find_closing_brace(text, position)
            tokens.append(_parse_braces(text[position + 1 : end], position))
            position = end + 1
        else:
            end = _find_end_of_text(text, position)
            tokens.append(Token("text", re.sub(r"\\([{}])", r"\1", text[position:end]), ()))
            position = end
    steps = sum(max(len(token.refs), 1) + len(token.pipes) for token in tokens if token.kind != "text")
    if steps > MAX_EXPRESSION_STEPS:
        raise ExpressionError(
            f"Expression too long: {steps:,} references and pipes, and the limit is {MAX_EXPRESSION_STEPS:,}. "
            "Have a plugin make the value and refer to it."
        )
    return tuple(tokens)


def resolve_expression(text: str, lookup: Lookup) -> Any:
    """The value of an expression, with ``lookup(namespace, key)`` giving the values of its references.

    A lone reference or call keeps its type. With anything beside it the result is text, and None when that is empty.
    Raises ExpressionError for a bad expression, a ``required`` value that is missing, and text past its limit.
    """
    tokens = tokenize_expression(text)
    values = [_evaluate(token, lookup) for token in tokens]
    if len(tokens) == 1 and tokens[0].kind != "text":
        return values[0]
    return join_texts(map(to_text, values), "") or None


def validate_expression(text: str) -> str | None:
    """What is wrong with an expression, or None."""
    try:
        for reference in iter_references(tokenize_expression(text)):
            _split_reference(reference)
    except ExpressionError as error:
        return str(error)
    return None


def extract_refs(text: str) -> tuple[set[str], set[str]]:
    """The node slugs and the run input keys that an expression refers to. Raises ExpressionError."""
    references = [reference.partition(".") for reference in iter_references(tokenize_expression(text))]
    slugs = {namespace for namespace, _, _ in references if namespace not in RESERVED_NAMESPACES}
    return slugs, {key for namespace, _, key in references if namespace == "input"}


def _split_reference(reference: str) -> tuple[str, str]:
    """Namespace and key, split at the first dot. Raises ExpressionError for a reference that ends there."""
    namespace, _, key = reference.partition(".")
    if not key:
        raise ExpressionError(f"Reference {reference!r}: key cannot be empty. Write '{namespace}.key'.")
    return namespace, key


def iter_references(tokens: tuple[Token, ...]) -> Iterator[str]:
    """Every reference in the tokens, those inside calls too, in order and as often as they stand there."""
    for token in tokens:
        yield from (token.value,) if token.kind == "ref" else token.refs


# Evaluating ------------------------------------------------------------------------------------------------------


def _evaluate(token: Token, lookup: Lookup) -> Any:
    if token.kind == "text":
        return token.value
    if token.kind == "ref":
        value = lookup(*_split_reference(token.value))
    else:
        value = [lookup(*_split_reference(reference)) for reference in token.refs]
    for pipe in token.pipes:
        value = _apply_pipe(pipe, value, token)
    return value


def _apply_pipe(pipe: PipeCall, value: Any, token: Token) -> Any:
    try:
        result = BUILTIN_PIPES[pipe.name]("" if value is None else value, *pipe.args)
        return to_text(result) if isinstance(result, str) else result  # to_text holds the limit of length
    except ExpressionError as error:
        named = token.value if token.kind == "ref" else f"{token.value}({', '.join(token.refs)})"
        raise ExpressionError(f"{error} (pipe {pipe.name!r} of {named!r})") from error


# Parsing ---------------------------------------------------------------------------------------------------------


def _find_end_of_text(text: str, start: int) -> int:
    position = start
    while position < len(text) and text[position] != "{":
        if text[position] == "}":
            raise ExpressionError(f"Unexpected '}}' at position {position}: write '\\}}' for a literal brace")
        position += 2 if text[position : position + 2] in ("\\{", "\\}") else 1
    return position


def _find_closing_brace(text: str, opening: int) -> int:
    position = opening + 1
    while position < len(text) and text[position] != "}":
        if text[position] == "{":
            raise ExpressionError(
                f"Nested braces not supported at position {position}: write '\\{{' for a literal brace"
            )
        position += 2 if text[position] == "\\" else 1
    if position >= len(text):
        raise ExpressionError(f"Unclosed '{{' at position {opening}: add '}}', or write '\\{{' for a literal brace")
    return position


def _parse_braces(body: str, position: int) -> Token:
    head, *pipes = (part.strip() for part in _split_outside_parentheses(body, "|", position))
    calls = tuple(_parse_pipe(pipe, position) for pipe in pipes)
    function = re.match(r"(\w+)\s*\(", head)
    if function is None:
        return Token("ref", _parse_reference(head, position), calls)
    name, arguments = _parse_call(head, position)
    if name not in FUNCTIONS:
        raise ExpressionError(f"Unknown function {name!r} at position {position}: the only function is 'list'")
    parts = _split_outside_parentheses(arguments, ",", position)
    return Token("call", name, calls, tuple(_parse_reference(part.strip(), position) for part in parts))


def _parse_reference(text: str, position: int) -> str:
    if not text:
        raise ExpressionError(f"Empty reference at position {position}: expected 'namespace.key'")
    if text.find(".") < 1:
        raise ExpressionError(f"Invalid reference {text!r} at position {position}: expected 'namespace.key'")
    return _unescape(text)


def _parse_pipe(text: str, position: int) -> PipeCall:
    if not text:
        raise ExpressionError(f"Empty pipe at position {position}: expected a pipe's name after '|'")
    name, arguments = _parse_call(text, position)
    if name not in BUILTIN_PIPES:
        raise ExpressionError(f"Unknown pipe {name!r} at position {position}{suggest_closest(name, BUILTIN_PIPES)}")
    call = PipeCall(name, _parse_arguments(arguments, position))
    fewest, most = PIPE_ARITY[name]
    if not fewest <= len(call.args) <= most:
        expected = f"{fewest}" if fewest == most else f"{fewest}-{most}"
        raise ExpressionError(f"Pipe {name!r} expects {expected} arg(s), got {len(call.args)} at position {position}")
    return call


def _parse_call(text: str, position: int) -> tuple[str, str]:
    """Name and argument text of ``name`` or ``name(arguments)``, whose parentheses are known to be in pairs."""
    name, opening, rest = text.partition("(")
    arguments, closing, behind = rest.rpartition(")")
    if opening and (not closing or behind):
        raise ExpressionError(f"Unexpected {behind or rest!r} at position {position}: a call ends with ')'")
    return name.rstrip(), arguments


def _parse_arguments(text: str, position: int) -> tuple[str, ...]:
    if not text:
        return ()
    if text.strip() == ",":  # join(,) and join(, ) separate with it; two empty arguments would say nothing
        return (text,)
    parts = _split_outside_parentheses(text, ",", position)
    return tuple(_unescape(part.strip() or part) for part in parts)


def _split_outside_parentheses(text: str, separator: str, position: int) -> list[str]:
    """The parts of the text between separators that are neither in parentheses nor behind a backslash."""
    parts = [""]
    depth = 0
    for piece in re.findall(r"\\.|.", text, flags=re.DOTALL):
        depth += (piece == "(") - (piece == ")")
        if depth < 0:
            raise ExpressionError(f"Unexpected ')' in the braces at position {position}")
        if piece == separator and not depth:
            parts.append("")
        else:
            parts[-1] += piece
    if depth:
        raise ExpressionError(f"Unclosed '(' in the braces at position {position}")
    return parts


def _unescape(text: str) -> str:
    """Without the backslashes before braces and commas; any other backslash stays, for patterns."""
    return re.sub(r"\\(.)", lambda pair: pair[1] if pair[1] in "{}," else pair[0], text, flags=re.DOTALL)

"""The 30 transforms that an expression may apply to a value.

A pipe is called with the value and its arguments, which are text. Pipes never raise on odd input: each says below
what it makes of it. ``required`` is the exception; and what grows past a limit is refused, with ExpressionError.

The text of a value is as in a template: nothing for None, the items joined with a comma for a list.
"""

import contextlib
import json
import posixpath
import re
from collections.abc import Callable, Iterable, Mapping
from itertools import chain
from types import MappingProxyType
from typing import Any
from urllib.parse import quote, unquote

import re2

from dagabaaz_celery.models import ExpressionError

Pipe = Callable[..., Any]

#: Characters in any text that an expression makes: chained pipes could grow one without bound.
MAX_TEXT_LENGTH = 1_000_000
#: Items in a list that ``flatten`` makes.
MAX_LIST_LENGTH = 1_000_000
#: Characters that ``match`` looks at. Its time is linear, in the text times the pattern: both need a bound.
MAX_MATCH_LENGTH = 100_000
#: Bytes for a compiled pattern. Room for Unicode classes, not for what takes minutes on a long text.
MAX_PATTERN_MEMORY = 1 << 20
#: Digits that ``pad`` fills up to.
MAX_PAD_WIDTH = 1_000

_NUMBER = re.compile(r"[+-]?[0-9]+(\.[0-9]+)?")


def to_text(value: Any) -> str:
    """The text of a value in a template. Raises ExpressionError past MAX_TEXT_LENGTH."""
    if isinstance(value, list | tuple):
        return join_texts(value, ", ")
    return join_texts([value], "")


def join_texts(items: Iterable[Any], separator: str) -> str:
    """The texts of the items that are not None. Raises ExpressionError past MAX_TEXT_LENGTH."""
    texts = [_spell(item) for item in items if item is not None]
    _check_length(sum(map(len, texts)) + len(separator) * max(len(texts) - 1, 0))
    return separator.join(texts)


def _spell(value: Any) -> str:
    try:
        return str(value)
    except (ValueError, RecursionError):  # more digits, or deeper nested, than Python spells
        return ""


def _check_length(length: int) -> None:
    if length > MAX_TEXT_LENGTH:
        raise ExpressionError(
            f"Text too long: {length:,} characters, and the limit is {MAX_TEXT_LENGTH:,}. "
            "Shorten it with truncate, or pass large data as a file."
        )


def _is_absent(value: Any) -> bool:
    return value is None or value == ""


def _parse_index(text: str) -> int | None:
    try:
        return int(text)
    except ValueError:
        return None


# Text ------------------------------------------------------------------------------------------------------------


def _upper(value: Any) -> str:
    return to_text(value).upper()


def _lower(value: Any) -> str:
    return to_text(value).lower()


def _title(value: Any) -> str:
    return to_text(value).title()


def _trim(value: Any) -> str:
    return to_text(value).strip()


def _strip(value: Any, characters: str = "") -> str:
    """Without these characters at both ends; white space, when none are given."""
    return to_text(value).strip(characters or None)


def _lstrip(value: Any, characters: str = "") -> str:
    return to_text(value).lstrip(characters or None)


def _rstrip(value: Any, characters: str = "") -> str:
    return to_text(value).rstrip(characters or None)


def _replace(value: Any, old: str, new: str = "") -> str:
    """Every ``old`` by ``new``; an empty ``old`` leaves the text."""
    text = to_text(value)
    if not old:
        return text
    _check_length(len(text) + text.count(old) * (len(new) - len(old)))
    return text.replace(old, new)


def _truncate(value: Any, length: str = "255") -> str:
    """The first ``length`` characters; a length that is not a number, or negative, leaves the text."""
    text, end = to_text(value), _parse_index(length)
    return text if end is None or end < 0 else text[:end]


def _prepend(value: Any, prefix: str = "") -> str:
    return prefix + to_text(value)


def _append(value: Any, suffix: str = "") -> str:
    return to_text(value) + suffix


def _pad(value: Any, width: str = "2") -> str:
    """A number with zeros before it up to ``width`` characters (1000 at most); any other text as it is."""
    text, size = to_text(value), _parse_index(width)
    if size is None or size > MAX_PAD_WIDTH or not _NUMBER.fullmatch(text.strip()):
        return text
    return text.strip().zfill(size)


def _match(value: Any, pattern: str = "") -> str:
    """The pattern's first group in its first match, or the whole match; "" without one, or for a bad pattern."""
    options = re2.Options()
    options.log_errors = False
    options.max_mem = MAX_PATTERN_MEMORY
    try:
        expression = re2.compile(pattern, options=options)
        found = expression.search(to_text(value)[:MAX_MATCH_LENGTH])
    except (re2.error, UnicodeError):  # UnicodeError: half of a surrogate pair has no UTF-8
        return ""
    if not pattern or found is None:
        return ""
    return found.group(1 if expression.groups else 0) or ""


# Presence --------------------------------------------------------------------------------------------------------


def _default(value: Any, fallback: str = "") -> Any:
    """The fallback in place of None and ""; 0, False and [] are values."""
    return fallback if _is_absent(value) else value


def _required(value: Any) -> Any:
    """Raise ExpressionError for None and ""."""
    if _is_absent(value):
        raise ExpressionError("Required value is missing")
    return value


# Lists: any other value is taken as a list of one ----------------------------------------------------------------


def _as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


def _nth(value: Any, index: str = "0") -> Any:
    """The item at ``index``, from 0, or from the end when negative; None out of range or for a bad index."""
    items, position = _as_list(value), _parse_index(index)
    if position is None or not -len(items) <= position < len(items):
        return None
    return items[position]


def _first(value: Any) -> Any:
    return _nth(value, "0")


def _last(value: Any) -> Any:
    return _nth(value, "-1")


def _join(value: Any, separator: str = ", ") -> str:
    """The items that are not None as one text."""
    return join_texts(_as_list(value), separator)


def _flatten(value: Any) -> Any:
    """The items of lists in the list in place of those lists, one level deep. Refuses to exceed MAX_LIST_LENGTH."""
    if not isinstance(value, list | tuple):
        return value
    lists = [_as_list(member) for member in value]
    length = sum(map(len, lists))
    if length > MAX_LIST_LENGTH:
        raise ExpressionError(f"List too long: {length:,} items, and the limit is {MAX_LIST_LENGTH:,}. List fewer.")
    return list(chain.from_iterable(lists))


def _compact(value: Any) -> Any:
    """The list without None and ""."""
    if not isinstance(value, list | tuple):
        return value
    return [item for item in value if not _is_absent(item)]


# Paths: POSIX on every platform ----------------------------------------------------------------------------------


def _basename(value: Any) -> str:
    return posixpath.basename(to_text(value))


def _dirname(value: Any) -> str:
    return posixpath.dirname(to_text(value))


def _stem(value: Any) -> str:
    return posixpath.splitext(_basename(value))[0]


def _ext(value: Any) -> str:
    """The extension with its dot, as written."""
    return posixpath.splitext(to_text(value))[1]


# Conversion ------------------------------------------------------------------------------------------------------


def _urlencode(value: Any) -> str:
    """Percent-encoded, the slash too: ready to be one part of a path or query."""
    return quote(to_text(value), safe="", errors="replace")


def _urldecode(value: Any) -> str:
    return unquote(to_text(value))


def _int(value: Any) -> int:
    """The number that the value is or spells, cut at its decimal point; 0 for anything else, nan and inf too."""
    number = value if isinstance(value, bool | int | float) else to_text(value)
    for parse in (int, float):
        with contextlib.suppress(ValueError, OverflowError):
            return int(parse(number))
    return 0


def _json_get(value: Any, path: str = "") -> Any:
    """What is at ``path`` (``key.0.key``) in JSON text or data; None when nothing is, or the JSON is bad."""
    try:
        found = json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError):
        return None
    for step in path.split(".") if path else ():
        if isinstance(found, dict):
            found = found.get(step)
        elif isinstance(found, list) and _parse_index(step) is not None:
            found = _nth(found, step)
        else:
            return None
    return found


BUILTIN_PIPES: Mapping[str, Pipe] = MappingProxyType(
    {
        "upper": _upper,
        "lower": _lower,
        "trim": _trim,
        "title": _title,
        "replace": _replace,
        "strip": _strip,
        "lstrip": _lstrip,
        "rstrip": _rstrip,
        "default": _default,
        "required": _required,
        "first": _first,
        "last": _last,
        "nth": _nth,
        "join": _join,
        "basename": _basename,
        "dirname": _dirname,
        "stem": _stem,
        "ext": _ext,
        "urlencode": _urlencode,
        "urldecode": _urldecode,
        "int": _int,
        "string": to_text,
        "truncate": _truncate,
        "prepend": _prepend,
        "append": _append,
        "match": _match,
        "json_get": _json_get,
        "flatten": _flatten,
        "compact": _compact,
        "pad": _pad,
    }
)

#: Fewest and most arguments of each pipe, beside the value.
PIPE_ARITY: Mapping[str, tuple[int, int]] = MappingProxyType(
    dict.fromkeys(BUILTIN_PIPES, (0, 0))
    | dict.fromkeys(("strip", "lstrip", "rstrip", "truncate", "prepend", "append", "pad"), (0, 1))
    | dict.fromkeys(("default", "nth", "join", "match", "json_get"), (0, 1))
    | {"replace": (1, 2)}
)

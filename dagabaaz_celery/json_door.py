"""The door through which values enter the store: what passes is JSON that every database keeps unchanged."""

import json
import math
import re
from collections.abc import Iterator
from typing import Any

from dagabaaz_celery.errors import LimitExceeded, NotJson, format_problems

#: Levels of nesting a value may have, where the caller names no other limit.
MAX_JSON_DEPTH = 64
#: Problems told of one value: more would not help whoever has to read them.
MAX_PROBLEMS = 20
#: Characters shown of one key.
_MAX_KEY_SHOWN = 80

_CONTAINERS = (dict, list, tuple)
_SURROGATE = re.compile("[\ud800-\udfff]")
# Built once: json.dumps with any option builds an encoder at each call, which doubles the cost of a small value.
_SORTED = json.JSONEncoder(allow_nan=False, ensure_ascii=False, separators=(",", ":"), sort_keys=True)
_AS_GIVEN = json.JSONEncoder(allow_nan=False, ensure_ascii=False, separators=(",", ":"))


def check_json(
    value: object,
    what: str,
    *,
    max_bytes: int | None = None,
    setting: str = "",
    max_depth: int = MAX_JSON_DEPTH,
    sort_keys: bool = True,
) -> str:
    """JSON text of ``value``: canonical (sorted keys, no spaces, real Unicode), or with the keys in the order given.

    ``what`` names the value in messages ("run input"); ``max_bytes`` counts UTF-8 bytes of the text, and ``setting``
    is what raises it. Tuples pass as lists. Refused, because some database or parser would refuse or change them: NaN
    and infinities, NUL and lone surrogates in strings, keys that are not strings, objects of any other type.

    Raises NotJson, with every problem and its path, and LimitExceeded.
    """
    encoder = _SORTED if sort_keys else _AS_GIVEN
    text, size = _encode(value, what, max_depth, encoder)
    # An escaped backslash before "u0000" looks like a NUL in the text: then the exact look decides.
    if "\\u0000" in text or not _is_shallow_with_string_keys(value, max_depth):
        _refuse(value, what, max_depth)
    if max_bytes is not None and size > max_bytes:
        raise LimitExceeded(
            f"{what} is {size:,} bytes of JSON and the limit is {max_bytes:,}{f' ({setting})' if setting else ''}. "
            "Keep large data in a file or a database and pass its path or id."
        )
    if not _is_plain(value, max_depth):
        # A subclass may tell the encoder other things than us, a key twice or more levels: what it told is what counts.
        plain = json.loads(text)
        text, _ = _encode(plain, what, max_depth, encoder)
        if "\\u0000" in text or not _is_shallow_with_string_keys(plain, max_depth):
            _refuse(plain, what, max_depth)
    return text


def _encode(value: object, what: str, max_depth: int, encoder: json.JSONEncoder) -> tuple[str, int]:
    """JSON text and its size in bytes."""
    try:
        text = encoder.encode(value)
        return text, len(text.encode())
    except (TypeError, ValueError, RecursionError) as error:
        # Not JSON, NaN, circular, a surrogate; or too deep for the encoder.
        _refuse(value, what, max_depth)
        problem = f"{what}: another look at it finds something else than the first ({type(error).__name__})"
        raise NotJson(format_problems("Cannot be kept as JSON", [problem]), [problem]) from error


def _is_plain(value: object, max_depth: int) -> bool:
    """Whether all containers are of the built-in types themselves, on all levels that ``max_depth`` allows."""
    level: list[Any] = [value] if isinstance(value, _CONTAINERS) else []
    for _ in range(max_depth):
        if not all(type(container) in _CONTAINERS for container in level):
            return False
        children = (c.values() if type(c) is dict else c for c in level)
        level = [child for among in children for child in among if isinstance(child, _CONTAINERS)]
        if not level:
            break
    return True


def _is_shallow_with_string_keys(value: object, max_depth: int) -> bool:
    """Look only at containers, level by level: json.dumps turns other keys into text without a word."""
    level: list[Any] = [value] if isinstance(value, _CONTAINERS) else []
    for _ in range(max_depth):
        if not level:
            return True
        below: list[Any] = []
        for container in level:
            if isinstance(container, dict) and not all(isinstance(key, str) for key in container):
                return False
            children = container.values() if isinstance(container, dict) else container
            below += [child for child in children if isinstance(child, _CONTAINERS)]
        level = below
    return not level


def _refuse(value: object, what: str, max_depth: int) -> None:
    """Raise for what is wrong with ``value``; return when nothing is."""
    problems: list[str] = []
    for problem in _find_problems(value, what, max_depth, frozenset()):
        if len(problems) == MAX_PROBLEMS:
            problems.append("and more")
            break
        problems.append(problem)
    if problems:
        raise NotJson(format_problems("Cannot be kept as JSON", problems), problems)


def _find_problems(value: object, path: str, max_depth: int, parents: frozenset[int]) -> Iterator[str]:
    if not isinstance(value, _CONTAINERS):
        if problem := _find_problem_in_leaf(value):
            yield f"{path}: {problem}"
    elif id(value) in parents:
        yield f"{path}: contains itself; JSON has no references"
    elif len(parents) == max_depth:
        raise LimitExceeded(f"{path} is nested deeper than {max_depth} levels. Flatten it, or pass it as text.")
    elif isinstance(value, dict):
        yield from _find_problems_in_object(value, path, max_depth, parents | {id(value)})
    else:
        for index, child in enumerate(value):
            yield from _find_problems(child, f"{path}[{index}]", max_depth, parents | {id(value)})


def _find_problems_in_object(
    value: dict[Any, Any], path: str, max_depth: int, parents: frozenset[int]
) -> Iterator[str]:
    for key, child in value.items():
        if not isinstance(key, str):
            yield f"{path}: the key {_show_key(key)} is not text; JSON keys are strings"
        elif problem := find_problem_in_text(key):
            yield f"{path}: the key {str.__str__(key)[:_MAX_KEY_SHOWN]!a}: {problem}"
        else:
            yield from _find_problems(child, join_path(path, key), max_depth, parents)


def join_path(path: str, key: str) -> str:
    """``path.key``, or ``path["odd key"]`` where a dot would mislead; a long key is cut."""
    key = str.__str__(key)
    if len(key) > _MAX_KEY_SHOWN:
        key = f"{key[:_MAX_KEY_SHOWN]}..."
    return f"{path}.{key}" if key.replace("-", "_").isidentifier() else f"{path}[{json.dumps(key)}]"


def _show_key(key: object) -> str:
    try:
        return repr(key)[:_MAX_KEY_SHOWN]
    except Exception:  # its own code may raise: it is refused all the same
        return f"of type {type(key).__name__}"


def _find_problem_in_leaf(value: object) -> str | None:
    if isinstance(value, str):
        return find_problem_in_text(value)
    if isinstance(value, float):
        return None if math.isfinite(value) else f"{float.__repr__(value)} is not JSON; use null, or text"
    if isinstance(value, int):
        return None if _is_printable(value) else "the number has too many digits; pass it as text"
    return None if value is None else f"{_describe(value)} is not JSON; {_suggest(value)}"


def _is_printable(number: int) -> bool:
    try:
        int.__repr__(number)
    except ValueError:  # past Python's limit of digits (sys.set_int_max_str_digits)
        return False
    return True


def find_problem_in_text(text: str) -> str | None:
    """Why some database would refuse this text; None when every one takes it."""
    if "\x00" in text:
        return "contains a NUL character, which databases refuse; remove it"
    if _SURROGATE.search(text):
        return "contains half of a surrogate pair, which is not text; decode it with errors='replace'"
    return None


def _describe(value: object) -> str:
    name = type(value).__name__
    return f"{'an' if name[0] in 'aeiouAEIOU' else 'a'} {name}"


def _suggest(value: object) -> str:
    if isinstance(value, (bytes, bytearray, memoryview)):
        return "write it to a file, or encode it as text"
    if isinstance(value, (set, frozenset)):
        return "make it a list"
    if hasattr(value, "tolist"):  # NumPy's numbers and arrays
        return "pass value.tolist()"
    if hasattr(value, "isoformat"):
        return "pass value.isoformat()"
    if hasattr(value, "model_dump"):
        return "pass value.model_dump(mode='json')"
    return "pass text, a number, true, false, null, a list or an object of those"

"""``$NAME`` in a ConfigSource: a secret that a worker looks up just before the body. Nothing here knows its value.

A text is a reference as a whole or not at all: ``Bearer $TOKEN`` is that text. ``$5`` is text too, as no name begins
with a digit, and ``$$`` at the beginning of a text stands for one dollar. Texts inside lists and objects count alike.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from dagabaaz_celery.models import ConfigSource, InputBinding

_REFERENCE = re.compile(r"\$([A-Za-z_].*)", re.DOTALL)
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,199}")


def find_secret_names(value: object) -> Iterator[str]:
    """Every name that a ConfigSource's value refers to, in order, as often as it stands there."""
    for text in _find_texts(value):
        if reference := _REFERENCE.fullmatch(text):
            yield reference[1]


def find_bound_secrets(bindings: Mapping[str, InputBinding]) -> Iterator[tuple[str, str]]:
    """Each bound field that refers to a secret, with the secret's name."""
    for field, binding in bindings.items():
        if isinstance(binding, ConfigSource):
            yield from ((field, name) for name in find_secret_names(binding.value))


def explain_bad_name(name: str) -> str | None:
    """Why this cannot be the name of a secret; None when it can."""
    if _NAME.fullmatch(name):
        return None
    return (
        f"${name[:60]} cannot be a secret: a name has up to 200 letters, digits and underscores. For text that begins "
        "with a dollar write two: $$"
    )


def resolve_references(bindings: Mapping[str, InputBinding], resolve: Callable[[str], str]) -> dict[str, Any]:
    """The bound fields whose value has a reference or an escaped dollar, with ``resolve(name)`` in their places."""
    return {
        field: _replace(binding.value, resolve)
        for field, binding in bindings.items()
        if isinstance(binding, ConfigSource) and any(text.startswith("$") for text in _find_texts(binding.value))
    }


def _find_texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, (list, tuple, dict)):
        for child in value.values() if isinstance(value, dict) else value:
            yield from _find_texts(child)


def _replace(value: Any, resolve: Callable[[str], str]) -> Any:
    if isinstance(value, dict):
        return {key: _replace(child, resolve) for key, child in value.items()}
    if isinstance(value, (list, tuple)):
        return [_replace(child, resolve) for child in value]
    if not isinstance(value, str):
        return value
    reference = _REFERENCE.fullmatch(value)
    if reference:
        return resolve(reference[1])
    return value[1:] if value.startswith("$$") else value

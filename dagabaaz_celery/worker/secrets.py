"""The secrets of one body: looked up just before it, and kept out of whatever leaves it."""

import base64
import json
import os
import traceback
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import quote, quote_plus

from celery.exceptions import Ignore, Reject

from dagabaaz_celery.errors import MissingSecret, SecretExposed
from dagabaaz_celery.models import DagNode
from dagabaaz_celery.secret_references import resolve_references
from dagabaaz_celery.stores.sql.records import NewArtifact

#: Gives a secret's value by its name; None, or a LookupError, for one that is not there.
SecretResolver = Callable[[str], str | None]

#: Pieces of a secret from this length on are taken out of texts too: other programs cut and wrap what they show.
_FRAGMENT = 12
#: Values shorter than this are not looked for in results: "true" or "8080" would be found in honest ones.
_SHORTEST_IN_RESULTS = 8
#: A longer text of an exception is not searched, but replaced as if it showed a secret.
_LONGEST_SEARCHED = 200_000


def read_environment(name: str) -> str | None:
    """The resolver of an app that names none: the worker's environment variables."""
    return os.environ.get(name)


class Secrets:
    """What one attempt's body was given in place of ``$NAME``."""

    def __init__(self, resolver: SecretResolver) -> None:
        self._resolver = resolver
        self._values: dict[str, str] = {}

    def fill(self, node: DagNode, task_input: dict[str, Any]) -> dict[str, Any]:
        """A task's input with the secrets that its node's bindings refer to. Raises MissingSecret."""
        return {**task_input, **resolve_references(node.bindings, self._resolve)}

    def redact(self, text: str) -> str:
        """The text with ``<secret $NAME>`` in place of each value, however it is spelt there, and of its pieces."""
        return _redact(text, self._values) if self._values else text

    def refuse_in(self, artifact: NewArtifact, owner: str) -> None:
        """Raise SecretExposed for an artifact that would carry a secret into the store."""
        file = artifact.artifact
        texts = (artifact.metadata_json, file.file_path, file.file_name, file.mime_type)
        for name, value in self._values.items():
            if len(value) < _SHORTEST_IN_RESULTS:
                continue
            if any(spelling in text for text in texts if text for spelling in _spell(value)):
                raise SecretExposed(
                    f"Plugin {owner!r} produced an artifact that contains the value of ${name}: it would be stored for "
                    "everybody to read. Leave it out of what the body emits and returns."
                )

    def shield(self, error: BaseException) -> BaseException:
        """What may be raised out of the body's task in place of ``error``: itself, unless it shows a secret.

        Celery logs it, sends it to monitors and may store it.
        """
        if not self._values or not self._shows_in(error):
            return error
        kind, text = type(error).__name__, self.redact(_read_text(error)[:_LONGEST_SEARCHED])
        order: BaseException | None = None
        if isinstance(error, Reject):
            order = Reject(text, requeue=error.requeue)
        elif isinstance(error, Ignore):
            order = Ignore(text)
        if order is not None:
            return order
        if isinstance(error, SystemExit):
            return SystemExit(self.redact(error.code) if isinstance(error.code, str) else error.code)
        if isinstance(error, KeyboardInterrupt):
            return KeyboardInterrupt(text)
        return SecretExposed(f"The body raised {kind}, whose text showed a secret: {text}")

    def _resolve(self, name: str) -> str:
        if name not in self._values:
            self._values[name] = self._look_up(name)
        return self._values[name]

    def _look_up(self, name: str) -> str:
        problem = "its value is empty"
        try:
            value = self._resolver(name)
        except LookupError:
            value = None
        except Exception as error:  # its text may show what the resolver knows
            problem, value = f"the app's resolver raised {type(error).__name__}", ""
        if isinstance(value, str) and value:
            return value
        if value is None:
            problem = "there is no such secret"
        elif not isinstance(value, str):
            problem = f"the app's resolver gave an object of type {type(value).__name__} and not text"
        where = (
            "as an environment variable of this worker"
            if self._resolver is read_environment
            else "where the app's resolver, Dagabaaz(app, secrets=...), finds it"
        )
        raise MissingSecret(
            f"The secret ${name} could not be had: {problem}. Set {name} {where}, then retry the run; for text that "
            "begins with a dollar write two ($$)."
        )

    def _shows_in(self, error: BaseException) -> bool:
        texts = [_format(error), *(_show(one) for one in _find_chain(error))]
        return any(len(text) > _LONGEST_SEARCHED or self.redact(text) != text for text in texts)


# Looking for a value ---------------------------------------------------------------------------------------------


def _spell(value: str) -> set[str]:
    """A value as it stands in texts, in Python's and JSON's quotes, in URLs, and in base64."""
    data = value.encode("utf-8", "surrogatepass")
    spellings = {
        value,
        repr(value)[1:-1],
        ascii(value)[1:-1],
        json.dumps(value)[1:-1],
        json.dumps(value, ensure_ascii=False)[1:-1],
        quote(data),
        quote(data, safe=""),
        quote_plus(data),
        base64.b64encode(data).decode().rstrip("="),
        base64.urlsafe_b64encode(data).decode().rstrip("="),
    }
    return spellings - {""}


def _redact(text: str, values: dict[str, str]) -> str:
    found = sorted(span for name, value in values.items() for span in _find_spans(text, name, value))
    parts, position = [], 0
    for start, end, name in found:
        if start >= position:
            parts += [text[position:start], f"<secret ${name}>"]
        position = max(position, end)
    return "".join([*parts, text[position:]])


def _find_spans(text: str, name: str, value: str) -> Iterator[tuple[int, int, str]]:
    """Where a value stands in a text, and where a piece of it does."""
    spellings = _spell(value)
    for spelling in spellings:
        start = text.find(spelling)
        while start >= 0:
            yield start, start + len(spelling), name
            start = text.find(spelling, start + 1)
    pieces = {piece for spelling in spellings for piece in _cut(spelling)}
    if pieces:
        yield from ((at, at + _FRAGMENT, name) for at, piece in enumerate(_cut(text)) if piece in pieces)


def _cut(text: str) -> Iterator[str]:
    """Every piece of ``_FRAGMENT`` characters, in order."""
    return (text[at : at + _FRAGMENT] for at in range(len(text) - _FRAGMENT + 1))


# Looking at exceptions, whose own code may raise -----------------------------------------------------------------


def _find_chain(error: BaseException) -> Iterator[BaseException]:
    """An exception, what caused it and what it groups."""
    waiting, seen = [error], set[int]()
    while waiting:
        one = waiting.pop()
        if id(one) not in seen:
            seen.add(id(one))
            yield one
            waiting += [other for other in (one.__cause__, one.__context__) if other is not None]
            waiting += one.exceptions if isinstance(one, BaseExceptionGroup) else ()


def _format(error: BaseException) -> str:
    return _attempt(lambda: "".join(traceback.format_exception(error)))


def _show(error: BaseException) -> str:
    return _attempt(lambda: repr(error))


def _read_text(error: BaseException) -> str:
    return _attempt(lambda: str(error))


def _attempt(read: Callable[[], str]) -> str:
    try:
        return read()
    except Exception as second:
        return f"<no text: reading it raised {type(second).__name__}>"

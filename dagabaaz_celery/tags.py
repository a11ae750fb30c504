"""Names and values that users give to runs: which of them every database keeps, and finds again, unchanged."""

import unicodedata
from collections.abc import Iterator, Mapping

from dagabaaz_celery.json_door import find_problem_in_text

MAX_TAGS = 20
MAX_NAME_LENGTH = 100
MAX_VALUE_LENGTH = 200
#: Characters shown of what is refused.
_MAX_SHOWN = 80


def find_tag_problems(tags: object) -> Iterator[str]:
    """What is wrong with the tags of a run, or of a search for runs."""
    if not isinstance(tags, Mapping):
        yield f'tags are {_show(tags)}: pass a dict of names and values, such as {{"customer": "42"}}'
        return
    if len(tags) > MAX_TAGS:
        yield f"there are {len(tags)} tags: a run has at most {MAX_TAGS}; keep further data in its input"
    for name, value in tags.items():
        if not is_name(name, MAX_NAME_LENGTH):
            yield f"the tag name {_show(name)} must be {describe_name(MAX_NAME_LENGTH)}"
        elif problem := _find_value_problem(value):
            yield f"tag {name!r} is {_show(value)}: {problem}"


def is_name(text: object, max_length: int) -> bool:
    """Whether all databases can keep this text and compare it in the same way."""
    # They disagree on whether "k" and "k " are equal.
    return (
        isinstance(text, str)
        and 0 < len(text) <= max_length
        and text == text.strip()
        and not any(unicodedata.category(character) in ("Cc", "Cs") for character in text)
    )


def describe_name(max_length: int) -> str:
    """What ``is_name`` asks for."""
    return f"a text of 1 to {max_length} characters, without control characters, and without spaces at its ends"


def _find_value_problem(value: object) -> str | None:
    if not isinstance(value, str):
        return "a value is text, so pass str(value)"
    if len(value) > MAX_VALUE_LENGTH:
        return f"a value has at most {MAX_VALUE_LENGTH} characters, and this one {len(value)}"
    if value != value.strip():
        return "remove the spaces at its ends"  # as for names
    return find_problem_in_text(value)


def _show(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _MAX_SHOWN else f"{text[: _MAX_SHOWN - 3]}..."

"""Values of a declared type as JSON data, and back: what comes back is what was sent, or there is an error."""

import json
import math
from typing import Any, get_args

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic_core import PydanticSerializationError

#: For every type but the models that bring a configuration of their own.
_CONFIG = ConfigDict(ser_json_bytes="base64", val_json_bytes="base64", ser_json_inf_nan="strings")
_SORTED = json.JSONEncoder(sort_keys=True)
#: What pydantic puts above the problems that it finds while it writes.
_WARNING_HEADING = "Pydantic serializer warnings:"


class TypedJson:
    """Carries values of one type as JSON data. None passes whatever the type is: it stands for nothing at all.

    With ``Any`` only what JSON itself has comes back as it was. Raises PydanticUserError for a type that pydantic
    cannot carry.
    """

    def __init__(self, hint: Any) -> None:
        self.hint = hint
        # Boxed, because a dataclass alone takes no configuration.
        self._adapter: TypeAdapter[tuple[Any]] = TypeAdapter(tuple[hint], config=_CONFIG)

    def __str__(self) -> str:
        is_class = isinstance(self.hint, type) and not get_args(self.hint)
        return self.hint.__qualname__ if is_class else str(self.hint).replace("typing.", "")

    def encode(self, value: Any) -> Any:
        """JSON data from which ``decode`` makes an equal value of the same type; the same data in every process.

        Raises ValueError, saying what does not fit.
        """
        if value is None:
            return None
        try:
            text = self._adapter.dump_json((value,), warnings="error")
            (back,) = self._adapter.validate_json(text)
        except ValidationError as error:
            raise ValueError(_describe(error)) from None
        except PydanticSerializationError as error:
            raise ValueError(self._explain(value, error)) from None
        if not _is_same(value, back):
            raise ValueError(f"a {type(value).__name__} would come back changed: {_shorten(value)} as {_shorten(back)}")
        return _sort_sets(value, json.loads(text)[0])

    def decode(self, data: Any) -> Any:
        """The value that ``encode`` was given. Raises ValueError, saying what does not fit."""
        if data is None:
            return None
        try:
            (value,) = self._adapter.validate_json(json.dumps([data]))
        except ValidationError as error:
            raise ValueError(_describe(error)) from None
        return value

    def _explain(self, value: Any, error: PydanticSerializationError) -> str:
        """Why a value could not be written; checking it says that in fewer words than writing it does."""
        try:
            self._adapter.validate_python((value,), strict=True)
        except ValidationError as invalid:
            return _describe(invalid)
        return " ".join(str(error).removeprefix(_WARNING_HEADING).split())


def _sort_sets(value: Any, data: Any) -> Any:
    """The data of a value, where what was a set is in an order that does not depend on the process's hashes."""
    if isinstance(data, list) and isinstance(value, (list, tuple, set, frozenset)):
        parts = list(map(_sort_sets, value, data))
        return sorted(parts, key=_SORTED.encode) if isinstance(value, (set, frozenset)) else parts
    if isinstance(data, dict) and isinstance(value, dict):
        return dict(zip(data, map(_sort_sets, value.values(), data.values()), strict=True))
    if isinstance(data, dict):
        return {name: _sort_sets(getattr(value, name, None), part) for name, part in data.items()}
    return data


def _is_same(sent: Any, back: Any) -> bool:
    """Whether a value came back as it was; of what cannot be compared, whether its parts did."""
    if sent is back or sent == back:
        return True
    if type(sent) is not type(back):
        return False
    if isinstance(sent, float):
        return math.isnan(sent) and math.isnan(back)
    if isinstance(sent, dict):
        return sent.keys() == back.keys() and all(_is_same(value, back[key]) for key, value in sent.items())
    if isinstance(sent, (list, tuple)):
        return len(sent) == len(back) and all(map(_is_same, sent, back))
    if hasattr(back, "__dict__"):
        return all(_is_same(vars(sent).get(name), value) for name, value in vars(back).items())
    return "__eq__" not in {name for cls in type(sent).__mro__[:-1] for name in vars(cls)}


def _describe(error: ValidationError) -> str:
    """Every problem with its place, without the URLs that pydantic adds."""
    problems = []
    for detail in error.errors(include_url=False, include_context=False, include_input=False):
        place = ".".join(map(str, detail["loc"][1:]))  # less its place in the box
        problems.append(f"{place}: {detail['msg']}" if place else detail["msg"])
    return "; ".join(problems)


def _shorten(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."

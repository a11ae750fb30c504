"""Filling a body's parameters by name from its task's input, checked and converted by its type hints."""

import inspect
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, get_args

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.errors import PydanticSchemaGenerationError

from dagabaaz_celery.context import PluginContext
from dagabaaz_celery.errors import TaskInputError, suggest_closest

_BY_NAME = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


@dataclass(frozen=True)
class Parameters:
    """A body's signature, read once when it is registered."""

    owner: str
    names: tuple[str, ...]
    positional_only: tuple[str, ...]
    defaults: Mapping[str, Any]
    context_names: tuple[str, ...]
    takes_rest: bool
    adapters: Mapping[str, TypeAdapter[Any]]

    @classmethod
    def of(cls, function: Callable[..., Any], owner: str) -> "Parameters":
        """Read a function's signature (a bound ``self`` is not part of it)."""
        hints = _read_hints(function)
        names, positional_only, context_names = [], [], []
        defaults: dict[str, Any] = {}
        adapters: dict[str, TypeAdapter[Any]] = {}
        takes_rest = False
        for parameter in inspect.signature(function).parameters.values():
            hint = hints.get(parameter.name, Any)
            if parameter.kind is inspect.Parameter.VAR_KEYWORD:
                takes_rest = True
            elif parameter.kind in _BY_NAME and _is_context(hint):
                context_names.append(parameter.name)
            elif parameter.kind in _BY_NAME:
                names.append(parameter.name)
                if parameter.kind is inspect.Parameter.POSITIONAL_ONLY:
                    positional_only.append(parameter.name)
                if parameter.default is not inspect.Parameter.empty:
                    defaults[parameter.name] = parameter.default
                adapters[parameter.name] = _build_adapter(hint)
        return cls(
            owner=owner,
            names=tuple(names),
            positional_only=tuple(positional_only),
            defaults=defaults,
            context_names=tuple(context_names),
            takes_rest=takes_rest,
            adapters=adapters,
        )

    @property
    def takes_artifacts(self) -> bool:
        """Whether the body names the list that an aggregate or grouped task receives."""
        return "artifacts" in self.names

    def select(self, task_input: Mapping[str, Any], *, undoes: bool = False) -> dict[str, Any]:
        """What of a task's input the body takes, unchecked; raises TaskInputError naming every one that is missing.

        The sole value of an artifact (``{"value": 7}``) goes to the one parameter that lacks a value, else to the first
        of a body that the input names no parameter of, as a positional argument would. To a body that ``undoes`` it
        goes as if there were no ``result`` beside it.
        """
        beside = ("result",) if undoes else ()
        given = {name: task_input[name] for name in self.names if name in task_input}
        rest = {name: value for name, value in task_input.items() if name not in self.names}
        missing = [name for name in self.names if name not in given and name not in self.defaults]
        is_named = any(name not in beside for name in given)
        first = [name for name in self.names if name not in beside][:1]
        takers = missing if missing or is_named or self.takes_rest else first
        if len(takers) == 1 and "value" in rest:
            given[takers[0]] = rest.pop("value")
            missing = []
        if missing:
            available = ", ".join(sorted(task_input)) or "nothing"
            named = ", ".join(f"{name}{suggest_closest(name, rest)}" for name in sorted(missing))
            raise TaskInputError(
                f"Plugin {self.owner!r} cannot be called: its input has no {named} (it has: {available}). Pass it to "
                "start() for a root, bind that name on the node, produce it upstream, or give the parameter a default."
            )
        return given | rest if self.takes_rest else given

    def fill(
        self, task_input: Mapping[str, Any], context: PluginContext | None, *, undoes: bool
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Positional and keyword arguments for the body, which may take no ``context``. Raises TaskInputError."""
        checked = self.select(task_input, undoes=undoes)
        problems = []
        for name in self.names:
            if name in checked:
                try:
                    checked[name] = self.adapters[name].validate_python(checked[name])
                except ValidationError as error:
                    problems += [f"{_place(name, detail['loc'])}: {detail['msg']}" for detail in error.errors()]
        if problems:
            raise TaskInputError(
                f"Plugin {self.owner!r} cannot be called: {'; '.join(problems)}. Correct what is produced upstream or "
                "bound to the node, or widen the parameter's type hint."
            )
        return self.split(checked | dict.fromkeys(self.context_names, context))

    def split(self, given: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """What goes by position, up to the last positional-only parameter that is given, and what goes by name."""
        count = max((place for place, name in enumerate(self.positional_only, start=1) if name in given), default=0)
        by_position = self.positional_only[:count]
        positional = tuple(given[name] if name in given else self.defaults[name] for name in by_position)
        return positional, {name: value for name, value in given.items() if name not in by_position}


def _read_hints(function: Callable[..., Any]) -> dict[str, Any]:
    """A function's type hints; one that cannot be evaluated leaves its own parameter unchecked."""
    function = inspect.unwrap(function)
    hints: dict[str, Any] = {}
    for name, annotation in inspect.get_annotations(function).items():
        one = SimpleNamespace(__annotations__={name: annotation})
        try:
            hints |= typing.get_type_hints(one, globalns=function.__globals__, include_extras=True)
        except (NameError, TypeError, AttributeError):
            continue
    return hints


def _is_context(hint: Any) -> bool:
    return hint is PluginContext or PluginContext in get_args(hint)


def _build_adapter(hint: Any) -> TypeAdapter[Any]:
    try:
        return TypeAdapter(hint)
    except PydanticSchemaGenerationError:
        return TypeAdapter(hint, config=ConfigDict(arbitrary_types_allowed=True))


def _place(name: str, location: tuple[int | str, ...]) -> str:
    return ".".join(str(part) for part in (name, *location))

"""``DagaAction``: one action of a ``DagaFlow``, and what undoes it."""

import inspect
import logging
import typing
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from functools import cached_property
from types import SimpleNamespace
from typing import Any, Generic, final

from pydantic import PydanticUserError
from typing_extensions import TypeVar

from dagabaaz_celery.errors import ActionConflict, PipelineError
from dagabaaz_celery.typed_json import TypedJson

Input = TypeVar("Input", default=Any)
Output = TypeVar("Output", default=Any)
AsyncFunction = Callable[..., Awaitable[Any]]

#: What a parameter that takes a list may be annotated with.
_LISTS = frozenset({list, Sequence, Collection, Iterable})
#: Every action of this process, by its full name.
_actions: "dict[str, DagaAction[Any, Any]]" = {}


class DagaAction(Generic[Input, Output]):
    """An action of a flow: an async function, or a subclass with an async ``__call__``.

        @DagaAction[set[str], set[str]]
        async def reserve(predecessors_results: list[set[str]]) -> set[str]: ...

        class Reserve(DagaAction[set[str], set[str]]):
            async def __call__(self, predecessors_results): ...

    ``Input`` is the type of what each predecessor hands over, and of the run's input for an action without any;
    ``Output`` is the type of the result. Where they are not given, the function's annotations say them
    (``predecessors_results: list[Input]``, ``-> Output``); where there are none either, values must be JSON.

    An action may be awaited directly, as in a test. Its full name (module and qualified name) is registered once in a
    process. Raises ActionConflict for a second action of that name, PipelineError for what is not async.
    """

    _wrapped_action_instance: "DagaAction[Any, Any] | None" = None
    _in_flow = False
    log = logging.getLogger(__name__)

    def __init_subclass__(cls, **given: Any) -> None:
        super().__init_subclass__(**given)
        if "__init__" in vars(cls):
            raise PipelineError(
                f"The action {cls.__name__} has an __init__ of its own: workers make it too, and do not know what it "
                "is given. Let it take what it needs from its input, or from where all processes find it."
            )

    @final
    def __init__(self, wrapped: AsyncFunction | None = None) -> None:
        self.is_decorator_action = wrapped is not None
        source = type(self).__call__ if wrapped is None else wrapped
        named = type(self) if wrapped is None else wrapped
        if source is DagaAction.__call__ or not _is_async_function(source):
            raise PipelineError(f"{_describe_wrong_body(self, wrapped)}. Write it with `async def`.")
        self.wrapped_func: AsyncFunction = self.__call__ if wrapped is None else wrapped
        self.__name__: str = named.__name__
        self.__qualname__: str = named.__qualname__
        self.__module__: str = named.__module__
        self.__doc__ = named.__doc__ if named is not DagaAction else None
        self._source = inspect.unwrap(source)
        _register(self)

    # Any arguments for mypy, so that a subclass may name and type the one that there is.
    def __call__(self, *predecessors_results: Any, **named: Any) -> Any:
        """Run the action with the results of its predecessors, a list; without arguments with None. Awaitable."""
        given = predecessors_results if predecessors_results or named else (None,)
        return self.wrapped_func(*given, **named)

    @final
    @property
    def name(self) -> str:
        """The full name: module and qualified name."""
        return f"{self.__module__}.{self.__qualname__}"

    @final
    @property
    def rollback_action(self) -> "DagaAction[Any, Any] | None":
        """What undoes this action, or None."""
        return self._wrapped_action_instance

    @final
    async def rollback(self, predecessors_results: list[Any]) -> Any:
        """Undo this action, given what it was given: the rollback's result, or True where that is nothing.

        An action without a rollback has nothing to undo: a warning is logged.
        """
        undo = self._wrapped_action_instance
        if undo is None:
            self.log.warning("%r has no rollback", self)
            return True
        self.log.info("%r is rolled back by %r", self, undo)
        return await undo(predecessors_results) or True

    @final
    def register_function_as_rollback(
        self, wrapped_rollback_func: "AsyncFunction | DagaAction[Any, Any]"
    ) -> "DagaAction[Any, Any]":
        """Have an async function, decorated or not, undo this action; also a decorator. Returns it as an action.

        It gets the list that the action got. Raises ActionConflict for a second rollback, PipelineError for what is
        not async, and for an action that a flow was already built of.
        """
        self._refuse_rollback(self._wrapped_action_instance, self._in_flow, self.__name__)
        self._wrapped_action_instance = to_action(wrapped_rollback_func)
        return self._wrapped_action_instance

    @final
    @classmethod
    def register_class_as_rollback(cls, wrapped_rollback_class: "type[DagaAction[Any, Any]]") -> "DagaAction[Any, Any]":
        """Have a class's instance undo the instance of this class; also a decorator. Returns the instance made.

        Raises like ``register_function_as_rollback``.
        """
        if cls is DagaAction:
            raise PipelineError(
                "register_class_as_rollback was called on DagaAction itself, or on a decorated function: it would undo "
                "every action. Call it on the action's own class; a decorated function takes "
                "register_function_as_rollback(Class()) instead."
            )
        cls._refuse_rollback(cls.__dict__.get("_wrapped_action_instance"), cls._in_flow, cls.__name__)
        if not (isinstance(wrapped_rollback_class, type) and issubclass(wrapped_rollback_class, DagaAction)):
            raise PipelineError(
                f"{cls.__name__}.register_class_as_rollback got {wrapped_rollback_class!r}: pass a subclass of "
                "DagaAction."
            )
        cls._wrapped_action_instance = wrapped_rollback_class()
        return cls._wrapped_action_instance

    @final
    def __repr__(self) -> str:
        return f"DagaAction({self.__name__})"

    @final
    def __str__(self) -> str:
        return repr(self)

    @final
    def __hash__(self) -> int:
        return hash(self.name)

    # -- inside: what a flow asks of its actions

    @final
    @cached_property
    def takes(self) -> TypedJson:
        """Carries what each predecessor hands over. Raises PipelineError for a type that cannot be carried."""
        return self._carry(0, "Input")

    @final
    @cached_property
    def gives(self) -> TypedJson:
        """Carries the result. Raises PipelineError for a type that cannot be carried."""
        return self._carry(1, "Output")

    @final
    def _carry(self, index: int, what: str) -> TypedJson:
        try:
            return TypedJson(_read_declared_types(self)[index])
        except (PydanticUserError, NameError, TypeError, AttributeError) as error:
            problem = str(error).partition("\n")[0]
            raise PipelineError(
                f"{self!r} declares a type for its {what} that cannot be carried as JSON: {problem}. Declare one that "
                "pydantic knows and that can be found when the flow is built: DagaAction[Input, Output], or the "
                "function's annotations."
            ) from error

    @final
    @staticmethod
    def _refuse_rollback(present: "DagaAction[Any, Any] | None", in_flow: bool, name: str) -> None:
        if present is not None:
            raise ActionConflict(f"{name} is undone by {present!r} already. Have that one do all of it.")
        if in_flow:
            raise PipelineError(
                f"A rollback for {name} comes too late: a flow was built of it, and workers know its tasks. Register "
                "rollbacks above the line that makes the DagaFlow."
            )


def to_action(target: "AsyncFunction | DagaAction[Any, Any]") -> DagaAction[Any, Any]:
    """An action as it is, an async function as one: the same each time. Raises PipelineError, ActionConflict."""
    if isinstance(target, DagaAction):
        return target
    if not _is_async_function(target):
        raise PipelineError(describe_non_action(target))
    known = _actions.get(f"{target.__module__}.{target.__qualname__}")
    return known if known is not None and known.wrapped_func is target else DagaAction(target)


def mark_in_flow(action: DagaAction[Any, Any]) -> None:
    """From now on a rollback for the action comes too late: workers would not know it."""
    action._in_flow = True
    if not action.is_decorator_action:
        type(action)._in_flow = True


def describe_non_action(target: object) -> str:
    """Why this is no action, and what to do."""
    if isinstance(target, type) and issubclass(target, DagaAction):
        return f"{target.__name__} is the class of an action: make its instance once, {target.__name__}()"
    if callable(target):
        return f"{target!r} is not an async function: write it with `async def`, or make it a DagaAction"
    return f"{target!r} is of type {type(target).__name__}: use DagaActions and async functions"


def _is_async_function(target: object) -> bool:
    return inspect.iscoroutinefunction(target) and hasattr(target, "__qualname__")


def _describe_wrong_body(action: DagaAction[Any, Any], wrapped: object) -> str:
    if wrapped is not None:
        return f"DagaAction takes an async function, and {wrapped!r} is none"
    if type(action) is DagaAction:
        return "DagaAction() got no function"
    return f"The action {type(action).__name__} has no async method __call__(self, predecessors_results)"


# Names ---------------------------------------------------------------------------------------------------------------


def _register(action: DagaAction[Any, Any]) -> None:
    other = _actions.get(action.name)
    if other is not None and not _is_made_again(other, action):
        raise ActionConflict(
            f"There is an action {action.name!r} already. Names tell actions apart in messages and logs: give this one "
            "another, or use the one that there is."
        )
    _actions[action.name] = action


def _is_made_again(other: DagaAction[Any, Any], action: DagaAction[Any, Any]) -> bool:
    """Whether the same lines were run again, by a reload or in a function that makes an app."""
    code, other_code = action._source.__code__, other._source.__code__
    is_same_place = (code.co_filename, code.co_firstlineno) == (other_code.co_filename, other_code.co_firstlineno)
    return is_same_place and action._source is not other._source


# Types ---------------------------------------------------------------------------------------------------------------


def _read_declared_types(action: DagaAction[Any, Any]) -> tuple[Any, Any]:
    """Input and output as ``DagaAction[I, O]`` or else the annotations say; Any for what neither does."""
    module_names = action._source.__globals__
    aliases = [getattr(action, "__orig_class__", None)]
    aliases += [base for cls in type(action).__mro__ for base in cls.__dict__.get("__orig_bases__", ())]
    for alias in aliases:
        arguments = typing.get_args(alias) if typing.get_origin(alias) is DagaAction else ()
        if arguments and not any(isinstance(argument, typing.TypeVar) for argument in arguments):
            hints = _evaluate({"input": arguments[0], "output": arguments[1]}, module_names)
            return hints["input"], hints["output"]
    return _read_annotations(action._source, module_names)


def _read_annotations(source: Callable[..., Any], module_names: Mapping[str, Any]) -> tuple[Any, Any]:
    annotations = dict(inspect.get_annotations(source))
    parameters = [name for name in inspect.signature(source).parameters if name != "self"]
    named = {name: annotations[name] for name in (*parameters[:1], "return") if name in annotations}
    hints = _evaluate(named, module_names)
    given = hints.get(parameters[0]) if parameters else None
    items = typing.get_args(given) if typing.get_origin(given) in _LISTS else ()
    return items[0] if len(items) == 1 else Any, hints.get("return", Any)


def _evaluate(annotations: Mapping[str, Any], module_names: Mapping[str, Any]) -> dict[str, Any]:
    """Type hints of which some may be texts. Raises NameError for a name that is not there when the program runs."""
    return typing.get_type_hints(
        SimpleNamespace(__annotations__=dict(annotations)), globalns=dict(module_names), include_extras=True
    )

"""Stand-ins for plugins: functions, values, errors."""

import inspect
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal

from celery import Celery, Task

from dagabaaz_celery.constants import FanMode
from dagabaaz_celery.plugins import PluginInfo
from dagabaaz_celery.worker.coroutines import make_sync
from dagabaaz_celery.worker.parameters import Parameters
from dagabaaz_celery.worker.registry import Plugin, build_plugin

#: What of a real task decides how often its body is tried, and when.
_RETRY_OPTIONS = (
    *("max_retries", "default_retry_delay", "autoretry_for", "dont_autoretry_for"),
    *("retry_backoff", "retry_backoff_max", "retry_jitter", "retry_kwargs"),
)
_numbers = itertools.count(1)


@dataclass(frozen=True)
class FakePlugin:
    """A stand-in with what ``dag.plugin`` would have been told of it."""

    stands_in: Any
    passthrough: bool = False
    fan_mode: FanMode | None = None
    on_lost: Literal["rerun", "crash"] = "rerun"
    task_options: dict[str, Any] = field(default_factory=dict)


def fake_plugin(
    stands_in: Any,
    *,
    passthrough: bool = False,
    fan_mode: FanMode | Literal["single", "aggregate", "grouped"] | None = None,
    on_lost: Literal["rerun", "crash"] = "rerun",
    **task_options: Any,
) -> FakePlugin:
    """A stand-in for a plugin that no Dagabaaz of the test knows, with the options of ``dag.plugin`` that count here.

    ``task_options`` are Celery's own on retries: max_retries, autoretry_for, default_retry_delay, …
    """
    mode = None if fan_mode is None else FanMode(fan_mode)
    return FakePlugin(stands_in, passthrough, mode, on_lost, task_options)


def build_fake(name: str, given: Any, real: Plugin | None) -> Plugin:
    """A plugin of that name with the stand-in's body; what ``given`` does not say of it is as the real one has it."""
    if isinstance(given, Task):
        return build_plugin(given, name=name)
    options: dict[str, Any] = {}
    if real is not None:
        options = {option: getattr(real.task, option) for option in _RETRY_OPTIONS if hasattr(real.task, option)}
    stands_in = given
    if isinstance(given, FakePlugin):
        stands_in, options = given.stands_in, given.task_options
    body = make_sync(_to_function(stands_in))
    parameters = Parameters.of(body, name)
    task = _make_task(body, options)
    if real is not None and not isinstance(given, FakePlugin):
        known = {"task_name": task.name, "takes_artifacts": parameters.takes_artifacts}
        return Plugin(task, real.info.model_copy(update=known), parameters)
    said = given if isinstance(given, FakePlugin) else FakePlugin(given)
    info = PluginInfo(
        name=name,
        task_name=task.name,
        fan_mode=said.fan_mode,
        passthrough=said.passthrough,
        takes_artifacts=parameters.takes_artifacts,
        on_lost=said.on_lost,
    )
    return Plugin(task, info, parameters)


@cache
def find_app() -> Celery:
    """The app to which the stand-ins belong; it never connects to anything."""
    app = Celery("dagabaaz-inline", broker="memory://localhost/", set_as_current=False)
    app.finalize()
    return app


def forget_fakes(plugins: list[Plugin]) -> None:
    """Their tasks were made for one run."""
    for plugin in plugins:
        find_app().tasks.pop(plugin.task.name, None)


def _to_function(stands_in: Any) -> Callable[..., Any]:
    if isinstance(stands_in, BaseException) or (inspect.isclass(stands_in) and issubclass(stands_in, BaseException)):

        def fail(**anything: Any) -> None:
            # One error raised again and again would show every time before.
            raise stands_in.with_traceback(None) if isinstance(stands_in, BaseException) else stands_in

        return fail
    if callable(stands_in):
        return stands_in  # type: ignore[no-any-return]  # whatever it is

    def answer(**anything: Any) -> Any:
        return stands_in

    return answer


def _make_task(body: Callable[..., Any], options: dict[str, Any]) -> Task:
    def run(*args: Any, **kwargs: Any) -> Any:
        return body(*args, **kwargs)

    return find_app().task(name=f"fake-{next(_numbers)}", shared=False, **options)(run)

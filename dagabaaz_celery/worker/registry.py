"""Which Celery tasks are plugins of an app, and by which names pipelines call them."""

from dataclasses import dataclass
from typing import Any, Literal

from celery import Celery, Task

from dagabaaz_celery.errors import PluginConflict
from dagabaaz_celery.plugins import PluginInfo
from dagabaaz_celery.worker.parameters import Parameters

#: Celery's own options of a task that fix how it is published.
_PUBLISH_OPTIONS = ("queue", "routing_key", "exchange", "priority", "compression", "delivery_mode")


@dataclass(frozen=True)
class Plugin:
    """A Celery task that nodes may run. ``wrapped`` is False for a task that nobody registered."""

    task: Task
    info: PluginInfo
    parameters: Parameters


class PluginRegistry:
    """Plugins by the name that pipelines use, and by the name of their Celery task."""

    def __init__(self) -> None:
        self._by_name: dict[str, Plugin] = {}
        self._by_task_name: dict[str, Plugin] = {}
        self._unregistered: dict[str, Plugin] = {}

    def add(self, plugin: Plugin) -> Plugin:
        """Register a plugin; the same one twice is fine. Raises PluginConflict."""
        other = self._by_name.get(plugin.info.name)
        if other is not None and other.info != plugin.info:
            raise PluginConflict(
                f"Two different plugins are called {plugin.info.name!r}: the tasks {other.info.task_name!r} and "
                f"{plugin.info.task_name!r}. Give one another name: @dag.plugin(name=...). The first one stays."
            )
        if other is None:
            self._by_name[plugin.info.name] = plugin
            self._by_task_name[plugin.info.task_name] = plugin
        return other or plugin

    def find(self, name: str) -> Plugin | None:
        """A plugin by its own or its task's name."""
        return self._by_name.get(name) or self._by_task_name.get(name)

    def find_task(self, app: Celery, name: str) -> Plugin | None:
        """A plugin by either name, else any other task of the app, which then runs by Celery's signals alone."""
        found = self.find(name) or self._unregistered.get(name)
        if found is None and name in app.tasks and not name.startswith("celery."):
            found = self._unregistered[name] = build_plugin(app.tasks[name], wrapped=False)
        return found

    def names(self) -> list[str]:
        """Every plugin's name, sorted."""
        return sorted(self._by_name)


def build_plugin(
    task: Task,
    *,
    name: str | None = None,
    wrapped: bool = True,
    on_lost: Literal["rerun", "crash"] | None = None,
    **declared: Any,
) -> Plugin:
    """The plugin that a finalized task stands for.

    ``on_lost`` defaults to what Celery itself would do: run a late-acknowledged task again, and an early-acknowledged
    one not.
    """
    parameters = Parameters.of(task.run, name or task.name)
    options = {key: value for key in _PUBLISH_OPTIONS if (value := getattr(task, key, None)) is not None}
    info = PluginInfo(
        name=name or task.name,
        task_name=task.name,
        takes_artifacts=parameters.takes_artifacts,
        wrapped=wrapped,
        on_lost=on_lost or ("rerun" if task.acks_late else "crash"),
        options={**options, "ignore_result": bool(task.ignore_result)},
        **declared,
    )
    return Plugin(task, info, parameters)


def short_name(task_name: str) -> str:
    """The last part of a task's dotted name."""
    return task_name.rpartition(".")[2]

"""What words of a command mean: durations, names with values, pipelines, runs. Shells complete names and runs."""

import re
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any

import click
from celery.app.utils import find_app
from click.shell_completion import CompletionItem

from dagabaaz_celery.app import Dagabaaz
from dagabaaz_celery.cli.references import LAST, find_run
from dagabaaz_celery.selection import read_selection
from dagabaaz_celery.summary import iterate_summaries

_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)([smhdw]?)")
#: Runs that a shell is offered.
_MAX_RUNS = 50

Completer = Callable[[Dagabaaz, click.Context], Iterable[CompletionItem]]


class Duration(click.ParamType):  # type: ignore[type-arg]  # generic since click 8.4 alone
    """``90``, ``30s``, ``10m``, ``1h30m``, ``3d`` or ``2w``, in seconds."""

    name = "duration"

    def __init__(self, *, needs_unit: bool = False) -> None:
        self._needs_unit = needs_unit

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The seconds."""
        if isinstance(value, (int, float)):
            return float(value)
        parts = _DURATION.findall(value)
        if not parts or "".join(number + unit for number, unit in parts) != value:
            self.fail(f"{value!r} is no duration: write a number and a unit, such as 30s, 10m, 2h or 3d.", param, ctx)
        if self._needs_unit and not all(unit for _, unit in parts):
            self.fail(f"{value!r} has no unit: write {value}d for days, {value}h for hours, or {value}s.", param, ctx)
        return sum(float(number) * _UNITS[unit] for number, unit in parts)


class NamedValue(click.ParamType):  # type: ignore[type-arg]  # generic since click 8.4 alone
    """``name=value``, as a pair."""

    name = "name=value"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:
        """The name and the value."""
        if isinstance(value, tuple):
            return value
        name, is_there, text = value.partition("=")
        if not is_there or not name:
            self.fail(f"{value!r} has no name and value: write it as name=value.", param, ctx)
        return name, text


class _Completed(click.ParamType):  # type: ignore[type-arg]  # generic since click 8.4 alone
    """Text that a shell completes from what the app has."""

    def __init__(self, name: str, complete: Completer) -> None:
        self.name = name
        self._complete = complete

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """What begins as the word does; nothing where the app or its store cannot be asked."""
        try:
            found = list(self._complete(_find_dag_to_complete(ctx), ctx))
        except Exception:
            return []  # a shell in which a key was pressed is no place for an error
        return [item for item in found if item.value.startswith(incomplete)]


def _find_dag_to_complete(ctx: click.Context) -> Dagabaaz:
    """The Dagabaaz of the app that ``-A`` names; while a shell completes, Celery has not loaded it."""
    given = ctx.find_root().params.get("app")
    app = find_app(given) if isinstance(given, str) else given or ctx.obj.app
    app.loader.import_default_modules()
    return Dagabaaz.of(app)


def _list_pipelines(dag: Dagabaaz, ctx: click.Context) -> Iterable[CompletionItem]:
    return [CompletionItem(name) for name in sorted(dag.pipelines())]


def _list_runs(dag: Dagabaaz, ctx: click.Context) -> Iterable[CompletionItem]:
    yield CompletionItem(LAST, help="the newest run")
    for run in islice(iterate_summaries(dag._runtime, read_selection(None, None, None)), _MAX_RUNS):
        yield CompletionItem(run.id, help=f"{run.pipeline} {run.status}")


def _list_pipelines_and_runs(dag: Dagabaaz, ctx: click.Context) -> Iterable[CompletionItem]:
    return [*_list_pipelines(dag, ctx), *_list_runs(dag, ctx)]


def _list_nodes(dag: Dagabaaz, ctx: click.Context) -> Iterable[CompletionItem]:
    # Where an option waits for its value, click has not yet given the words before it to the arguments.
    run = find_run(dag, ctx.params.get("run") or ctx.args[0])
    return [CompletionItem(node.slug, help=node.status) for node in run.snapshot().nodes]


DURATION = Duration()
NAMED_VALUE = NamedValue()
PIPELINE = _Completed("name", _list_pipelines)
RUN = _Completed("run", _list_runs)
PIPELINE_OR_RUN = _Completed("pipeline or run", _list_pipelines_and_runs)
NODE = _Completed("slug", _list_nodes)

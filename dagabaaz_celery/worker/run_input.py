"""The input that a run starts with, checked against what its first bodies need."""

from collections.abc import Callable, Mapping
from typing import Any

from dagabaaz_celery.errors import RunInputError, TaskInputError, format_problems
from dagabaaz_celery.json_door import check_json
from dagabaaz_celery.pipeline import Definition, Pipeline
from dagabaaz_celery.worker.registry import Plugin

FindPlugin = Callable[[str], Plugin | None]


def prepare_run_input(
    definition: Definition, given: Mapping[str, Any] | None, find_plugin: FindPlugin, *, max_bytes: int
) -> str:
    """The run's whole input as canonical JSON. Raises RunInputError."""
    pipeline = Pipeline(definition.name, definition.nodes, default_input=definition.default_input)
    run_input = dict(given) if isinstance(given, Mapping) else given
    prepared = pipeline.prepare_input(
        run_input, lambda name: found.info if (found := find_plugin(name)) else None, max_bytes=max_bytes
    )
    _refuse_unfillable_roots(definition, prepared, find_plugin)
    return check_json(prepared, "input", max_bytes=max_bytes, setting="dagabaaz_max_input_bytes")


def _refuse_unfillable_roots(definition: Definition, run_input: Mapping[str, Any], find_plugin: FindPlugin) -> None:
    """A root gets the run input and nothing else: what its body would miss is missing now."""
    problems = []
    for node in definition.nodes:
        given = {**run_input, **dict.fromkeys(node.bindings)}
        bodies = [(node.plugin, given, False), (node.rollback, {**given, "result": None}, True)]
        for name, task_input, undoes in [] if node.depends_on else bodies:
            plugin = find_plugin(name) if name else None
            try:
                if plugin is not None:
                    plugin.parameters.select(task_input, undoes=undoes)
            except TaskInputError as error:
                of = "the rollback of node" if undoes else "node"
                problems.append(f"{of} {node.slug!r}: {error.message}")
    if problems:
        heading = f"Pipeline {definition.name!r} cannot run with this input"
        raise RunInputError(format_problems(heading, problems), problems)

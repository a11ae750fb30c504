"""``run_inline``: a whole run in the calling thread, with stand-ins for plugins, without broker and database."""

import json
import shutil
import tempfile
import uuid
import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from dagabaaz_celery.app import Dagabaaz
from dagabaaz_celery.errors import PipelineError, UnknownNode, UnknownPipeline, suggest_closest
from dagabaaz_celery.pipeline import Definition, Pipeline
from dagabaaz_celery.plugins import PluginInfo
from dagabaaz_celery.settings import Settings
from dagabaaz_celery.stores.sql.definitions import CachedDefinition
from dagabaaz_celery.testing.clock import Clock
from dagabaaz_celery.testing.fakes import build_fake, find_app, forget_fakes
from dagabaaz_celery.testing.inline_engine import InlineEngine
from dagabaaz_celery.testing.inline_run import InlineRun
from dagabaaz_celery.worker.registry import Plugin
from dagabaaz_celery.worker.run_input import prepare_run_input
from dagabaaz_celery.worker.secrets import read_environment


def run_inline(
    pipeline: Pipeline | str,
    input: Mapping[str, Any] | None = None,
    *,
    plugins: Mapping[str, Any] | None = None,
    nodes: Mapping[str, Any] | None = None,
    dag: Dagabaaz | None = None,
    clock: Clock | None = None,
    timeout: float | None = None,
    secrets: Mapping[str, str] | Callable[[str], str | None] | None = None,
    files_dir: Path | None = None,
) -> InlineRun:
    """Run a pipeline here and now, and return it when it, its undoing and its finalisers are over.

    ``plugins`` has stand-ins by plugin name, ``nodes`` by a node's slug: a function, whose parameters are filled by
    name like a plugin's; an exception, which is raised; any other value, which is the result; or a ``fake_plugin``.
    Plugins without a stand-in are the real ones of ``dag``, whose settings and secrets count, too; with it ``pipeline``
    may be a name.

    No test waits: a delay moves the ``clock`` on, and what a body takes is what it moves it. ``timeout``, in place of
    the pipeline's, and nodes' timeouts are judged by it. A body that raises SystemExit stands for a worker that died.
    ``files_dir`` is for scratch files, by default a directory that goes with the run that is returned.

    Raises PipelineError and RunInputError as ``dag.start`` does.
    """
    bench = _Bench(dag, plugins or {})
    try:
        definition = _find_pipeline(pipeline, dag).resolve(bench)
        bodies = bench.find_bodies(definition, nodes or {})
        settings = dag.settings if dag is not None else Settings()
        text = prepare_run_input(definition, input, bench.find_plugin, max_bytes=settings.max_input_bytes)
        directory = files_dir or Path(tempfile.gettempdir()) / f"dagabaaz-inline-{uuid.uuid4().hex}"
        clock = clock or Clock()
        began = clock.time()
        engine = InlineEngine(
            CachedDefinition.build(definition),
            bodies,
            json.loads(text),
            app=find_app(),
            settings=replace(settings, files_dir=directory),
            secrets=_choose_secrets(secrets, dag),
            clock=clock,
            timeout=timeout or definition.timeout,
        )
        engine.run()
    finally:
        forget_fakes(bench.fakes)
    run = InlineRun(
        id=engine.store.run_id,
        pipeline=definition.name,
        status=engine.store.status,
        rollback_status=engine.store.rollback_status,
        error=engine.store.error,
        input=json.loads(text),
        nodes=engine.store.describe_nodes(),
        calls=engine.calls,
        seconds=clock.time() - began,
        _tasks=engine.store.tasks,
        _fans_out={node.slug: bool(node.depends_on) and node.fan_mode != "aggregate" for node in definition.nodes},
    )
    if files_dir is None:
        weakref.finalize(run, shutil.rmtree, directory, ignore_errors=True)
    return run


def _find_pipeline(pipeline: Pipeline | str, dag: Dagabaaz | None) -> Pipeline:
    if isinstance(pipeline, Pipeline):
        return pipeline
    if dag is None:
        raise UnknownPipeline(f"run_inline got the name {pipeline!r} and no dag that could know it: pass dag=..., too.")
    return dag.pipeline(pipeline)


class _Bench:
    """The plugins of one run: stand-ins, and where there is none the real ones. A catalog for validation, too."""

    def __init__(self, dag: Dagabaaz | None, given: Mapping[str, Any]) -> None:
        self._dag = dag
        self._given = given
        self._found: dict[str, Plugin | None] = {}
        self.fakes: list[Plugin] = []

    def find_plugin(self, name: str) -> Plugin | None:
        if name not in self._found:
            real = None if self._dag is None else self._dag._find_plugin(name)
            self._found[name] = self._fake(name, self._given[name], real) if name in self._given else real
        return self._found[name]

    def find(self, name: str) -> PluginInfo | None:
        found = self.find_plugin(name)
        return None if found is None else found.info

    def names(self) -> Iterable[str]:
        return [*self._given, *(self._dag.plugin_names() if self._dag is not None else ())]

    def find_bodies(self, definition: Definition, by_node: Mapping[str, Any]) -> dict[int, Plugin]:
        """By node index, and of what undoes a node by ``~index``. Raises UnknownNode, and PipelineError for a slip."""
        self._refuse_unused(definition, by_node)
        bodies: dict[int, Plugin] = {}
        for index, node in enumerate(definition.nodes):
            for at, name in ((index, node.plugin), (~index, node.rollback)):
                plugin = self.find_plugin(name) if name else None
                if plugin is not None:
                    bodies[at] = plugin
            if node.slug in by_node:
                bodies[index] = self._fake(node.plugin, by_node[node.slug], bodies[index])
        return bodies

    def _refuse_unused(self, definition: Definition, by_node: Mapping[str, Any]) -> None:
        slugs = [node.slug for node in definition.nodes]
        for slug in by_node:
            if slug not in slugs:
                raise UnknownNode(f"nodes has a stand-in for {slug!r}, and the pipeline has {', '.join(slugs)}.")
        if self._dag is None:
            return
        for name in self._given:
            if name not in definition.plugins and self._dag.find_plugin(name) is None:
                known = [*definition.plugins, *self._dag.plugin_names()]
                raise PipelineError(
                    f"plugins has a stand-in for {name!r}, which neither the pipeline nor the Dagabaaz has"
                    f"{suggest_closest(name, known) or '.'} Correct the name: the real plugin would be called instead."
                )

    def _fake(self, name: str, given: Any, real: Plugin | None) -> Plugin:
        fake = build_fake(name, given, real)
        if fake.task.app is find_app():
            self.fakes.append(fake)
        return fake


def _choose_secrets(
    given: Mapping[str, str] | Callable[[str], str | None] | None, dag: Dagabaaz | None
) -> Callable[[str], str | None]:
    if isinstance(given, Mapping):
        return given.get
    if given is not None:
        return given
    return read_environment if dag is None else dag._runtime.secret_resolver

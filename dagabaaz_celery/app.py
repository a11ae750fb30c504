"""``Dagabaaz(app)``: pipelines on a Celery app."""

import logging
import threading
import uuid
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal, TypeVar

from celery import Celery, Task, shared_task
from celery.local import Proxy
from celery.schedules import BaseSchedule

from dagabaaz_celery.cancellation import CANCELLED_BY_APP, cancel_runs
from dagabaaz_celery.constants import FanMode, RunStatus
from dagabaaz_celery.errors import (
    ConfigurationError,
    PipelineError,
    RunInputError,
    UnknownPipeline,
    UnknownRun,
    format_problems,
    suggest_closest,
)
from dagabaaz_celery.models import is_timeout
from dagabaaz_celery.pipeline import Definition, Pipeline
from dagabaaz_celery.pipeline_validation import KNOWN_OPTIONS, find_option_problems
from dagabaaz_celery.plugins import PluginInfo, PluginInputMeta
from dagabaaz_celery.retention import PruneReport, choose_ages
from dagabaaz_celery.run import Run, iterate_runs
from dagabaaz_celery.schedules import Schedules
from dagabaaz_celery.selection import Moment, read_selection
from dagabaaz_celery.settings import Settings
from dagabaaz_celery.stores.sql.shared import SharedDatabase
from dagabaaz_celery.stores.sql.store import Started
from dagabaaz_celery.stores.sql.tables import new_id
from dagabaaz_celery.tags import describe_name, find_tag_problems, is_name
from dagabaaz_celery.worker.callbacks import RunCallback, check_callback
from dagabaaz_celery.worker.coroutines import make_sync
from dagabaaz_celery.worker.foreground import call_now
from dagabaaz_celery.worker.plugin_task import is_wrapped, wrap_plugin
from dagabaaz_celery.worker.pruning import prune_now
from dagabaaz_celery.worker.registry import Plugin, build_plugin, short_name
from dagabaaz_celery.worker.run_input import prepare_run_input
from dagabaaz_celery.worker.runtime import Runtime
from dagabaaz_celery.worker.secrets import SecretResolver, read_environment
from dagabaaz_celery.worker.signals import SignalReceivers
from dagabaaz_celery.worker.sweeper import build_sweep_step

logger = logging.getLogger(__name__)
Target = TypeVar("Target")

#: What our own plugins get where their author says nothing: an outcome that outlives a crash, and no result backend.
_PLUGIN_DEFAULTS = {"acks_late": True, "reject_on_worker_lost": True, "ignore_result": True}
#: Kept from the task until it is made: Celery deprecates them as arguments, and follows them as attributes.
_ROUTING_OPTIONS = frozenset({"queue", "exchange", "exchange_type", "routing_key", "delivery_mode", "priority"})
_MAX_KEY_LENGTH = 200
#: What Celery's task decorator takes beside a task's attributes.
_DECORATOR_OPTIONS = (
    "autoretry_for",
    "base",
    "bind",
    "dont_autoretry_for",
    "lazy",
    "pydantic",
    "retry_backoff",
    "retry_backoff_max",
    "retry_jitter",
    "retry_kwargs",
    "shared",
)

#: Plugins of reusable apps, by their task's name: every Dagabaaz takes them.
_shared_plugins: dict[str, dict[str, Any]] = {}
_all: "weakref.WeakSet[Dagabaaz]" = weakref.WeakSet()


class Dagabaaz:
    """Pipelines on a Celery app: ``dag = Dagabaaz(app)``.

    Reads no setting and opens no store before its first use, so that the app may be configured later. Settings are
    the app's own, ``dagabaaz_*`` (with a namespace ``CELERY``: ``CELERY_DAGABAAZ_*``). ``secrets`` is called in
    workers with the name behind the dollar of each ``ConfigSource(value="$NAME")`` and gives the secret's value, or
    None; the worker's environment variables where none is given.
    """

    def __init__(self, app: Celery, *, secrets: SecretResolver = read_environment) -> None:
        if not callable(secrets):
            raise ConfigurationError(
                f"Dagabaaz(app, secrets=...) got an object of type {type(secrets).__name__}: pass a function that "
                "takes a secret's name and returns its value or None, such as a mapping's .get."
            )
        self.app = app
        self._runtime = Runtime(app, secrets)
        self._pipelines: dict[str, Pipeline] = {}
        self._unresolved: list[tuple[Any, dict[str, Any]]] = []
        self._known_shared: set[str] = set()
        self._resolving = threading.RLock()
        self._schedules = Schedules(self._runtime, self.start)
        self._signals = SignalReceivers(self._runtime)
        self._signals.connect()
        app.on_after_finalize.connect(self._on_finalize)
        app.steps["worker"].add(build_sweep_step(self._runtime, prepare=self._resolve_plugins))
        _all.add(self)

    @classmethod
    def embedded(
        cls,
        app: Celery | None = None,
        directory: str | Path = ".dagabaaz",
        *,
        secrets: SecretResolver = read_environment,
    ) -> "Dagabaaz":
        """One machine, no server: a SQLite store and a broker that worker processes share as files in ``directory``.

        Every process must use the same directory. Raises ConfigurationError for an app that has another broker.
        """
        from dagabaaz_celery.brokers import embedded  # noqa: PLC0415  # costs nothing where it is not used

        app = app or Celery("dagabaaz")
        path = Path(directory).absolute()
        embedded.configure(app, path)
        app.conf.dagabaaz_store_url = f"sqlite:///{path / 'runs.sqlite3'}"
        app.conf.dagabaaz_files_dir = str(path / "files")
        logger.info("store, broker and files are in %s: for one machine only", path)
        return cls(app, secrets=secrets)

    @classmethod
    def of(cls, app: Celery) -> "Dagabaaz":
        """The Dagabaaz of a Celery app. Raises ConfigurationError where it has none, or more than one."""
        found = [dag for dag in _all if dag.app is app]
        if len(found) == 1:
            return found[0]
        raise ConfigurationError(
            f"The app {app.main!r} has no Dagabaaz. Write dag = Dagabaaz(app) in the module that makes it."
            if not found
            else f"The app {app.main!r} has {len(found)} Dagabaaz objects: keep one, and import it where it is used."
        )

    @property
    def settings(self) -> Settings:
        """The app's settings, as read at first use. Raises ConfigurationError."""
        return self._runtime.settings

    # -- plugins

    def plugin(
        self,
        target: Any = None,
        /,
        *,
        name: str | None = None,
        fan_mode: FanMode | Literal["single", "aggregate", "grouped"] | None = None,
        passthrough: bool = False,
        on_lost: Literal["rerun", "crash"] | None = None,
        inputs: Iterable[PluginInputMeta] = (),
        worker_only: bool = False,
        **task_options: Any,
    ) -> Any:
        """Make a function, an async function or a task of the app a plugin; also a decorator, with or without options.

        ``name`` is what pipelines call it (default: the function's). ``fan_mode`` is the default for nodes that
        leave theirs unset. ``passthrough`` marks a plugin that only routes: artifacts are searched for behind it.
        ``on_lost`` says what to do when a worker dies in its body. ``task_options`` are Celery's own (queue,
        autoretry_for, …); a function gets late acknowledgement and no stored result unless they say otherwise.
        An existing task keeps its options, and its other callers notice nothing. Returns the task.
        """
        declared: dict[str, Any] = {
            "name": name,
            "fan_mode": _read_fan_mode(fan_mode),
            "passthrough": passthrough,
            "on_lost": on_lost,
            "inputs": tuple(inputs),
            "worker_only": worker_only,
        }
        _refuse_misspelt_options(task_options)

        def register(target: Any) -> Any:
            if _is_task(target):
                _refuse_task_options(target, task_options)
                task = target
            else:
                # Not shared: Celery would give this task to every app of the process, and theirs of that name to this.
                options, declared["routing"] = _split_off_routing({"shared": False, **task_options})
                task = self.app.task(**options)(make_sync(target))
            self._declare(task, declared)
            return task

        return register if target is None else register(target)

    def find_plugin(self, name: str) -> PluginInfo | None:
        """A plugin by its name or its task's name; also any other task of the app, which then runs unfenced."""
        plugin = self._find_plugin(name)
        return None if plugin is None else plugin.info

    def plugin_names(self) -> list[str]:
        """Every registered plugin's name, sorted."""
        self._resolve_plugins()
        return self._runtime.registry.names()

    # -- pipelines

    def register(self, pipeline: Pipeline) -> Pipeline:
        """Make a pipeline startable by name in this process; checked once the app's tasks are known.

        Raises PipelineError at once for what is wrong whatever the plugins are, and for another pipeline of that name.
        """
        if not isinstance(pipeline, Pipeline):
            raise PipelineError(
                f"dag.register takes a Pipeline, not a {type(pipeline).__name__}. Make one, or Pipeline.load() one."
            )
        pipeline.check()
        other = self._pipelines.get(pipeline.name)
        if other is not None and other.to_dict() != pipeline.to_dict():
            raise PipelineError(
                f"Two different pipelines are called {pipeline.name!r}. Give one another name, or save versions with "
                "dag.save()."
            )
        self._pipelines[pipeline.name] = pipeline
        if self.app.finalized:
            pipeline.check(_Catalog(self))
        return pipeline

    def check(self) -> None:
        """Check every registered pipeline against the plugins; raises PipelineError with all problems of the first."""
        for pipeline in self._pipelines.values():
            pipeline.check(_Catalog(self))

    def problems(self, pipeline: Pipeline) -> list[str]:
        """What is wrong with a pipeline, for the plugins of this app: each problem with its node and what to do."""
        return pipeline.problems(_Catalog(self))

    def save(self, pipeline: Pipeline) -> Pipeline:
        """Store a pipeline, so that any process may start it by name; returns it with its version.

        Without a version it gets the next one, or keeps the latest when nothing changed. Raises PipelineError, and
        KeyConflict for a version that is stored with another definition.
        """
        self._runtime.check_transaction()
        version = self._runtime.store.save_pipeline(pipeline.resolve(_Catalog(self)), pipeline.version)
        return pipeline.model_copy(update={"version": version})

    def pipelines(self) -> dict[str, int | None]:
        """Every startable pipeline: registered ones with None, saved ones with their latest version."""
        return {**self._runtime.store.list_pipelines(), **dict.fromkeys(self._pipelines)}

    def pipeline(self, name: str, version: int | None = None) -> Pipeline:
        """What ``start`` starts by this name, as it is registered or saved. Raises UnknownPipeline."""
        if version is None and name in self._pipelines:
            return self._pipelines[name]
        found, definition = self._find_saved(name, version)
        return Pipeline(
            definition.name,
            nodes=definition.nodes,
            version=found,
            description=definition.description,
            default_input=definition.default_input,
            timeout=definition.timeout,
        )

    # -- runs

    def start(
        self,
        pipeline: str | Pipeline,
        input: Mapping[str, Any] | None = None,
        *,
        key: str | None = None,
        version: int | None = None,
        options: Mapping[str, Any] | None = None,
        timeout: float | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> Run:
        """Start a run and return its handle at once, also when the broker is away: it is published when it is back.

        ``pipeline`` is a Pipeline, or the name of a registered or saved one (a ``version`` is looked up among the
        saved). The same ``key`` gives the same run, whatever became of it. ``options`` are Celery options for every
        task of the run. ``timeout``, in place of the pipeline's own, are the seconds after which the run fails.
        ``tags`` are names with text values by which ``runs`` finds it; a run that the key gives keeps its own.

        Raises UnknownPipeline, PipelineError, RunInputError, KeyConflict, and StoreUnavailable with the database away.
        """
        _refuse_bad_start(key, options or {}, timeout, {} if tags is None else tags)
        self._runtime.check_transaction()
        run_id = new_id()

        def start(again: bool) -> Started:
            definition, found_version = self._find_definition(pipeline, version)
            checked = self._prepare_input(definition, input)
            return self._runtime.store.start(
                definition,
                checked,
                run_id=run_id,
                key=key,
                version=found_version,
                options=self._runtime.with_carried(run_id, definition.name, options or {}),
                timeout=timeout,
                tags=dict(tags or {}),
            )

        started = call_now(
            start,
            not_done="no run was started. Start it again when the database is back.",
            in_doubt=f"run {run_id} may have been started. "
            + (
                f"When the database is back, dag.run({run_id!r}) tells."
                if key is None
                else "Start it again with the same key when the database is back: that gives the run, or starts it."
            ),
        )
        if started.created:
            self._runtime.settle_start(started.run.id, started.aftermath)
        return Run(self._runtime, started.run.id)

    def run(self, run_id: str) -> Run:
        """A handle on a run. Raises UnknownRun."""
        try:
            canonical = str(uuid.UUID(run_id))
        except (ValueError, AttributeError, TypeError):
            raise UnknownRun(f"{run_id!r} is no run id: pass the id of a run, as run.id gives it.") from None
        self._runtime.store.get_run(canonical)
        return Run(self._runtime, canonical)

    def runs(
        self,
        *,
        pipeline: str | None = None,
        status: RunStatus | str | None = None,
        tags: Mapping[str, str] | None = None,
        created_since: Moment | None = None,
        created_before: Moment | None = None,
        limit: int | None = None,
    ) -> Iterator[Run]:
        """Runs, newest first; with ``tags``, those that have all of them.

        ``created_since`` and ``created_before`` are seconds since 1970 by the database's clock, or datetimes with a
        time zone; a run made at the second is not among them. Raises RunSelectionError.
        """
        wanted = read_selection(pipeline, status, tags, created_since, created_before)
        return iterate_runs(self._runtime, wanted, limit=limit)

    def cancel(
        self,
        *,
        pipeline: str | None = None,
        tags: Mapping[str, str] | None = None,
        status: RunStatus | str | None = None,
        created_since: Moment | None = None,
        created_before: Moment | None = None,
        reason: str = CANCELLED_BY_APP,
        terminate: bool = False,
    ) -> int:
        """Cancel every open run that matches, as ``run.cancel`` does; returns how many this call cancelled.

        At least one criterion is required: ``status="running"`` means every run that is open. A run that ends
        meanwhile is not counted; one that is started meanwhile may go on. Raises RunSelectionError, and
        StoreUnavailable with the database away, which says how many were cancelled before.
        """
        wanted = read_selection(pipeline, status, tags, created_since, created_before)
        return cancel_runs(self._runtime, wanted, reason, terminate=terminate)

    # -- callbacks

    def on_run_completed(self, callback: Callable[[str], Target]) -> Callable[[str], Target]:
        """Have a worker call this with the id of every run that completed: at least once, also across a crash.

        A Celery signature (``notify.s()``) is not called but sent, with the run's id before its own arguments; an
        immutable one (``notify.si()``) as it is.
        """
        return self._on_end(RunStatus.COMPLETED, callback)

    def on_run_failed(self, callback: Callable[[str], Target]) -> Callable[[str], Target]:
        """Like on_run_completed, for runs that failed."""
        return self._on_end(RunStatus.FAILED, callback)

    def on_run_crashed(self, callback: Callable[[str], Target]) -> Callable[[str], Target]:
        """Like on_run_completed, for runs that crashed."""
        return self._on_end(RunStatus.CRASHED, callback)

    def on_run_cancelled(self, callback: Callable[[str], Target]) -> Callable[[str], Target]:
        """Like on_run_completed, for runs that were cancelled."""
        return self._on_end(RunStatus.CANCELLED, callback)

    def share_database(self, database: SharedDatabase) -> None:
        """Keep the runs in a database that the app uses by itself, and take part in its transactions.

        For integrations with frameworks, before the first use; ``dagabaaz_store_url``, where it is set, outranks it.
        """
        self._runtime.shared_database = database

    # -- schedules

    def schedule(
        self,
        pipeline: str | Pipeline,
        when: BaseSchedule | float | timedelta,
        *,
        input: Mapping[str, Any] | None = None,
        name: str | None = None,
        catch_up: bool = False,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        """Have Celery's beat start a run at each slot of a schedule: one for each, under any number of beats.

        ``when`` is a crontab or another schedule of Celery's, or an interval, whose slots are its multiples since 1970.
        ``name`` (default: the pipeline's) tells schedules apart. A run is tagged with ``schedule``, this name, and
        ``slot``, the slot's time in UTC. Slots that were missed are left out but for the last; with ``catch_up`` they
        are started too, up to 100. Raises ConfigurationError, PipelineError and RunInputError.
        """
        if isinstance(pipeline, Pipeline):
            pipeline = self.register(pipeline).name
        self._schedules.add(
            pipeline, when, input=input, name=name or pipeline, catch_up=catch_up, tags={} if tags is None else tags
        )

    # -- old runs

    def prune(
        self,
        *,
        older_than: float | timedelta | None = None,
        status: RunStatus | str | None = None,
        pipeline: str | None = None,
        failed_rollbacks: bool = False,
        limit: int | None = None,
        dry_run: bool = False,
    ) -> PruneReport:
        """Delete runs that ended more than ``older_than`` seconds ago, the oldest first; returns what was deleted.

        Without ``older_than`` the ages of ``dagabaaz_retention`` hold. ``limit`` is the most runs to delete. Runs with
        a rollback that failed are left alone unless ``failed_rollbacks`` is true. ``dry_run`` deletes nothing.

        Raises RunSelectionError for ages and statuses that say of no run that it goes, and StoreUnavailable with the
        database away: then call it again.
        """
        return prune_now(
            self._runtime,
            choose_ages(self.settings.retention, older_than, status, limit, dry_run=dry_run),
            pipeline=pipeline,
            failed_rollbacks=failed_rollbacks,
            limit=limit,
            dry_run=dry_run,
        )

    def on_files_pruned(self, callback: Callable[[str, list[str]], Target]) -> Callable[[str, list[str]], Target]:
        """Have whoever deletes a run call this with its id and the paths of files that its artifacts name.

        At least once for each file, some at a time, before the store forgets them. When it raises, the run is kept,
        and tried again later.
        """
        self._runtime.file_callbacks.append(callback)
        return callback

    def close(self) -> None:
        """Close the store's connections. The object stays usable."""
        self._runtime.close()

    # -- inside

    def _on_end(self, status: RunStatus, callback: RunCallback) -> RunCallback:
        check_callback(callback)
        self._runtime.callbacks.setdefault(status, []).append(callback)
        return callback

    def _on_finalize(self, **_: Any) -> None:
        self._resolve_plugins()

    def _declare(self, task: Any, declared: dict[str, Any]) -> None:
        self._unresolved.append((task, declared))
        if self.app.finalized:
            try:
                self._resolve_plugins()
            except Exception:
                self._unresolved.pop()
                raise

    def _resolve_plugins(self) -> None:
        """Turn what was declared into plugins: their tasks exist once the app is finalized.

        What cannot become one stays declared and is told again at every use: Celery only logs what is raised while
        an app is finalized. Raises PluginConflict, ConfigurationError.
        """
        self.app.finalize()
        with self._resolving:
            while self._unresolved:
                task, declared = self._unresolved[0]
                self._add_plugin(self.app.tasks[task.name], declared)
                del self._unresolved[0]
            for task_name, declared in list(_shared_plugins.items()):
                if task_name not in self._known_shared and task_name in self.app.tasks:
                    self._add_plugin(self.app.tasks[task_name], declared)
                    self._known_shared.add(task_name)

    def _add_plugin(self, task: Task, declared: dict[str, Any]) -> None:
        given = {**declared, "name": declared["name"] or short_name(task.name)}
        for option, value in given.pop("routing", {}).items():
            setattr(task, option, value)
        plugin = build_plugin(task, wrapped=self.settings.wrap_tasks, **given)
        self._runtime.registry.add(plugin)
        if plugin.info.wrapped and not is_wrapped(task):
            wrap_plugin(self._runtime, plugin)

    def _find_plugin(self, name: str) -> Plugin | None:
        self._resolve_plugins()
        return self._runtime.registry.find_task(self.app, name)

    def _find_definition(self, pipeline: str | Pipeline, version: int | None) -> tuple[Definition, int | None]:
        if isinstance(pipeline, Pipeline):
            return pipeline.resolve(_Catalog(self)), pipeline.version
        if version is None and pipeline in self._pipelines:
            return self._pipelines[pipeline].resolve(_Catalog(self)), None
        found, definition = self._find_saved(pipeline, version)
        return definition, found

    def _find_saved(self, name: str, version: int | None) -> tuple[int, Definition]:
        """A saved pipeline's version, the latest by default, and what it stands for. Raises UnknownPipeline."""
        found = self._runtime.store.find_pipeline(name, version)
        if found is None:
            known = self.pipelines()
            names = ", ".join(sorted(known)) or "none"
            wanted = f"pipeline {name!r}" if version is None else f"version {version} of pipeline {name!r}"
            raise UnknownPipeline(
                f"There is no {wanted}{suggest_closest(name, known) or '.'} Known here: {names}. "
                "Import the module that registers it, or dag.save() it once."
            )
        return found

    def _prepare_input(self, definition: Definition, given: Mapping[str, Any] | None) -> str:
        return prepare_run_input(definition, given, self._find_plugin, max_bytes=self.settings.max_input_bytes)


def live_dagabaaz() -> list[Dagabaaz]:
    """Every Dagabaaz of this process."""
    return list(_all)


class _Catalog:
    """An app's plugins as validation sees them."""

    def __init__(self, dag: Dagabaaz) -> None:
        self._dag = dag

    def find(self, name: str) -> PluginInfo | None:
        return self._dag.find_plugin(name)

    def names(self) -> Iterable[str]:
        own = [name for name in self._dag.app.tasks if not name.startswith(("celery.", "dagabaaz."))]
        return [*self._dag.plugin_names(), *own]


def shared_plugin(target: Any = None, /, **options: Any) -> Any:
    """``Dagabaaz.plugin`` for reusable apps, as Celery's ``shared_task``: a plugin of every app that has a Dagabaaz."""
    declared = {key: options.pop(key, default) for key, default in _SHARED_DEFAULTS.items()}
    declared["fan_mode"] = _read_fan_mode(declared["fan_mode"])
    _refuse_misspelt_options(options)
    declared["inputs"] = tuple(declared["inputs"])

    def register(function: Callable[..., Any]) -> Any:
        task_name = f"{function.__module__}.{function.__name__}"
        task_options, declared["routing"] = _split_off_routing({**options, "name": task_name})
        _shared_plugins[task_name] = declared
        task = shared_task(**task_options)(make_sync(function))
        for dag in _all:
            if dag.app.finalized:
                dag._resolve_plugins()
        return task

    return register if target is None else register(target)


_SHARED_DEFAULTS: dict[str, Any] = {
    "name": None,
    "fan_mode": None,
    "passthrough": False,
    "on_lost": None,
    "inputs": (),
    "worker_only": False,
}


def _read_fan_mode(given: str | None) -> FanMode | None:
    try:
        return None if given is None else FanMode(given)
    except ValueError:
        choices = [mode.value for mode in FanMode]
        suggestion = suggest_closest(str(given), choices)
        raise ConfigurationError(
            f"A plugin's fan_mode is {given!r}{suggestion}. Choose one of {', '.join(choices)}."
        ) from None


def _refuse_misspelt_options(options: Mapping[str, Any]) -> None:
    """Celery takes any option, for custom task classes; one that nearly is a known one is a slip of the pen."""
    known = [
        *_SHARED_DEFAULTS,
        *KNOWN_OPTIONS,
        *(name for name in dir(Task) if not name.startswith("_")),
        *_DECORATOR_OPTIONS,
    ]
    for option in options:
        suggestion = "" if option in known else suggest_closest(option, known)
        if suggestion:
            raise ConfigurationError(
                f"A plugin got the option {option!r}, which neither Celery nor this package knows{suggestion}. "
                "Correct the name; nothing was registered."
            )


def _is_task(target: Any) -> bool:
    # isinstance would evaluate Celery's lazy proxy, and with it the app, before its time.
    return issubclass(type(target), (Task, Proxy))


def _refuse_task_options(task: Any, options: Mapping[str, Any]) -> None:
    if options:
        raise ConfigurationError(
            f"dag.plugin(existing_task) got task options ({', '.join(sorted(options))}): an existing task keeps its "
            "own. Give them where the task is declared, or to the node (DagNode.options)."
        )


def _split_off_routing(options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """A new task's options with our defaults, and those that say where it is sent."""
    routing = {option: value for option, value in options.items() if option in _ROUTING_OPTIONS}
    return {**_PLUGIN_DEFAULTS, **{k: v for k, v in options.items() if k not in routing}}, routing


def _refuse_bad_start(key: str | None, options: Mapping[str, Any], timeout: object, tags: Mapping[str, str]) -> None:
    problems = [f"start({problem})" for problem in find_option_problems(options)]
    if timeout is not None and not is_timeout(timeout):
        problems.append(f"timeout is {timeout!r}: it must be a number of seconds greater than 0")
    if key is not None and not is_name(key, _MAX_KEY_LENGTH):
        problems.append(f"key is {key!r}: it must be {describe_name(_MAX_KEY_LENGTH)}")
    problems += find_tag_problems(tags)
    if problems:
        raise RunInputError(format_problems("The run cannot start", problems), problems)

"""``DagaFlow``: a graph of actions, undone when one of them fails, on an app's Celery workers.

Needs the extra ``networkx``.
"""

import asyncio
import itertools
import re
import weakref
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Generic

try:
    import networkx as nx
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        'dagabaaz_celery.flow needs networkx, the library of its graphs: pip install "dagabaaz-celery[networkx]"'
    ) from error
from typing_extensions import TypeVar

from dagabaaz_celery.actions import AsyncFunction, DagaAction, describe_non_action, mark_in_flow, to_action
from dagabaaz_celery.app import Dagabaaz, live_dagabaaz
from dagabaaz_celery.constants import FanMode, RunStatus
from dagabaaz_celery.errors import (
    ActionConflict,
    ConfigurationError,
    PipelineError,
    ResultError,
    RunInputError,
    RunStateError,
    TaskInputError,
    WaitTimeout,
    format_problems,
)
from dagabaaz_celery.expressions import RESERVED_NAMESPACES
from dagabaaz_celery.models import DagNode
from dagabaaz_celery.pipeline import Pipeline
from dagabaaz_celery.remote_errors import rebuild_error
from dagabaaz_celery.run import Run, RunError, refuse_wait_in_task

__all__ = ["DagaAction", "DagaFlow"]

Input = TypeVar("Input", default=Any)
Output = TypeVar("Output", default=Any)
Action = DagaAction[Any, Any]
#: Actions by the names of their Celery tasks, with the options of those.
Tasks = dict[str, tuple[Action, Mapping[str, Any]]]

#: The name under which a run's input travels, and those that an action's result travels under.
_INPUT, _VALUE, _PRODUCER = "input", "value", "action"
_MAX_SLUG_LENGTH = 90
_MAX_NAME_LENGTH = 200
_tasks: "weakref.WeakKeyDictionary[Dagabaaz, Tasks]" = weakref.WeakKeyDictionary()


class DagaFlow(Generic[Input, Output]):
    """A graph of actions as a pipeline: ``flow = DagaFlow(graph)``, then ``flow.run(input)``.

    ``graph`` is a networkx.DiGraph whose nodes are DagaActions and async functions. ``dag`` is the app's Dagabaaz; the
    only one of the process when it is not given. ``name`` is the pipeline's (default: the first action's full name).
    ``task_options`` are Celery's own, for the tasks of all actions and rollbacks (queue, autoretry_for, …).

    Making a flow registers its actions as Celery tasks, so make it where workers import it, at the top of a module.
    Raises PipelineError for a graph that cannot run, ActionConflict for two actions of one name, ConfigurationError
    when it is not clear which Dagabaaz is meant.
    """

    def __init__(
        self, graph: Any, dag: Dagabaaz | None = None, *, name: str | None = None, **task_options: Any
    ) -> None:
        actions = _read_graph(graph)
        self.dag = _find_only_dagabaaz() if dag is None else dag
        #: The actions by generation: each depends on those before it. In a generation they are in the graph's order.
        self.generations = _find_generations(graph, actions)
        #: Each action's node in the pipeline.
        self.slugs = _make_slugs(actions.values())
        self._predecessors = {
            action: [actions[predecessor] for predecessor in graph.predecessors(node)]
            for node, action in actions.items()
        }
        self.pipeline = self._register_pipeline(name, task_options)

    def __repr__(self) -> str:
        return f"DagaFlow({self.pipeline.name!r}, {len(self.slugs)} actions)"

    def run(self, input: Input | None = None, *, timeout: float | None = None) -> list[Output]:
        """Start a run, wait for its end and return the results of the last generation, in the graph's order.

        Actions without predecessors receive ``[input]``. Raises ExceptionGroup("DagaFlowError") with every error when
        the run ends badly, once everything is rolled back; RunInputError; WaitTimeout after ``timeout`` seconds, while
        the run goes on; and WaitRefused inside a task.
        """
        refuse_wait_in_task(f"{self!r}.run()")
        return self.wait(self.start(input), timeout=timeout)

    async def run_async(self, input: Input | None = None, *, timeout: float | None = None) -> list[Output]:
        """Like ``run``, for an event loop, which goes on meanwhile. The run goes on if this is cancelled."""
        refuse_wait_in_task(f"{self!r}.run_async()")
        run = await asyncio.to_thread(self.start, input)
        looks = run.watch(timeout, rollback=True)
        while (look := await asyncio.to_thread(next, looks, None)) is not None:
            await asyncio.sleep(look.pause)
        return await asyncio.to_thread(self.results, run)

    def start(
        self, input: Input | None = None, *, key: str | None = None, tags: Mapping[str, str] | None = None
    ) -> Run:
        """Start a run and return its handle at once. The same ``key`` gives the same run. Raises like dag.start."""
        return self.dag.start(self.pipeline.name, {_INPUT: self._encode_input(input)}, key=key, tags=tags)

    def wait(self, run: Run, *, timeout: float | None = None) -> list[Output]:
        """Wait for the end of a run of this flow, rollbacks included, and give its results. Raises like ``run``."""
        run.wait(timeout, rollback=True)
        return self.results(run)

    def results(self, run: Run) -> list[Output]:
        """The results of the last generation, of a run that is over. Raises like ``run``, and RunStateError."""
        try:
            status = next(run.watch(0, rollback=True)).status
        except WaitTimeout:
            raise RunStateError(
                f"Run {run.id} is not over, or is being undone: it has no results yet. Wait for it with "
                "flow.wait(run), or look again later."
            ) from None
        if status == RunStatus.COMPLETED:
            return [self.result(run, action) for action in self.generations[-1]]
        failed = ExceptionGroup("DagaFlowError", [self._rebuild(error) for error in run.errors()])
        failed.add_note(f"run {run.id} of {self!r}: dag.run({run.id!r}) is its handle; rollback: {run.rollback_status}")
        raise failed

    def result(self, run: Run, action: AsyncFunction | Action) -> Any:
        """What one of the flow's actions returned; None as long as it has not. Raises PipelineError for another's."""
        slug = self.slugs.get(to_action(action))
        if slug is None:
            raise PipelineError(f"{action!r} is no action of {self!r}: it has {', '.join(map(repr, self.slugs))}.")
        stored = run.result(slug)
        return None if stored is None else to_action(action).gives.decode(stored[_VALUE])

    # -- inside

    def _register_pipeline(self, name: str | None, task_options: Mapping[str, Any]) -> Pipeline:
        tasks = {action: _register(self.dag, action, task_options) for action in self.slugs}
        nodes = [
            DagNode(
                slug=slug,
                plugin=tasks[action],
                fan_mode=FanMode.AGGREGATE,
                depends_on=[self.slugs[predecessor] for predecessor in self._predecessors[action]],
                rollback="" if action.rollback_action is None else _name_rollback(tasks[action]),
            )
            for action, slug in self.slugs.items()
        ]
        default = re.sub(r"[^\w.]+", "_", nodes[0].plugin).strip("._")[-_MAX_NAME_LENGTH:]
        try:
            return self.dag.register(Pipeline(default if name is None else name, nodes))
        except PipelineError as error:
            if name is not None:
                raise
            advice = 'A flow without a name is called like its first action; give it one: DagaFlow(graph, name="...").'
            raise PipelineError(f"{error.message} {advice}", error.problems) from error

    def _encode_input(self, given: Input | None) -> Any:
        """The run's input as JSON data, the same for every action that receives it. Raises RunInputError."""
        encoded, problems = [], []
        for action in self.generations[0]:
            try:
                encoded.append(action.takes.encode(given))
            except ValueError as error:
                problems.append(f"{action!r} takes {action.takes}, and the input does not fit: {error}")
        if not problems and any(data != encoded[0] for data in encoded):
            roots = ", ".join(f"{action!r}: {action.takes}" for action in self.generations[0])
            problems.append(f"the actions that receive the input declare different types for it ({roots}): declare one")
        if problems:
            raise RunInputError(format_problems(f"{self!r} cannot run with this input", problems), problems)
        return encoded[0]

    def _rebuild(self, error: RunError) -> Exception:
        action = next((action for action, slug in self.slugs.items() if slug == error.node), None)
        if action is None:
            return rebuild_error(error, None)
        return rebuild_error(error, f"The rollback of {action!r}" if error.rollback else repr(action))


# From a graph to a pipeline ------------------------------------------------------------------------------------------


def _read_graph(graph: Any) -> dict[Any, Action]:
    """Each node's action, in the graph's order. Raises PipelineError with every problem."""
    if not isinstance(graph, nx.DiGraph) or graph.is_multigraph():
        hint = "; add_edges_from returns None, so keep the graph and pass that" if graph is None else ""
        raise PipelineError(
            f"A DagaFlow is made of a networkx.DiGraph, and this is of type {type(graph).__name__}{hint}."
        )
    problems = list(_find_graph_problems(graph))
    if problems:
        raise PipelineError(format_problems("A DagaFlow cannot be made of this graph", problems), problems)
    actions = {node: to_action(node) for node in graph}
    for action in actions.values():  # types that cannot be carried are told here, not by a worker
        _ = action.takes, action.gives
    if len(set(actions.values())) < len(actions):
        raise PipelineError("An action is in the graph twice, as a function and as its DagaAction. Use the DagaAction.")
    return actions


def _find_graph_problems(graph: Any) -> Iterator[str]:
    if not graph:
        yield "it has no nodes: add at least one action"
    for node in graph:
        if not isinstance(node, DagaAction):
            try:
                to_action(node)
            except ActionConflict:
                raise
            except PipelineError:
                yield f"node {describe_non_action(node)}"
    if not nx.is_directed_acyclic_graph(graph):
        cycle = [edge[0] for edge in nx.find_cycle(graph)]
        path = " -> ".join(getattr(node, "__name__", repr(node)) for node in [*cycle, cycle[0]])
        yield f"its actions wait for each other in a cycle, {path}: remove one of these edges"


def _find_generations(graph: Any, actions: Mapping[Any, Action]) -> list[list[Action]]:
    place = {node: place for place, node in enumerate(graph)}
    return [
        [actions[node] for node in sorted(generation, key=place.__getitem__)]
        for generation in nx.topological_generations(graph)
    ]


def _make_slugs(actions: Iterable[Action]) -> dict[Action, str]:
    """A slug for each action: its name, with a number behind it where that is taken."""
    slugs: dict[Action, str] = {}
    used = set(RESERVED_NAMESPACES)
    for action in actions:
        base = re.sub(r"[^A-Za-z0-9_-]", "_", action.__name__)[:_MAX_SLUG_LENGTH]
        names = itertools.chain([base], (f"{base}_{number}" for number in itertools.count(2)))
        slugs[action] = next(name for name in names if name not in used)
        used.add(slugs[action])
    return slugs


def _find_only_dagabaaz() -> Dagabaaz:
    found = live_dagabaaz()
    if len(found) == 1:
        return found[0]
    if not found:
        raise ConfigurationError(
            "A DagaFlow was made before there is a Dagabaaz in this process. Make dag = Dagabaaz(app) above it, or "
            "import one and pass it: DagaFlow(graph, dag)."
        )
    apps = ", ".join(sorted(repr(dag.app.main) for dag in found))
    raise ConfigurationError(
        f"This process has {len(found)} Dagabaaz objects (of the apps {apps}), so that it is not clear whose workers "
        "are to run this flow. Pass the one: DagaFlow(graph, dag)."
    )


# What workers run ----------------------------------------------------------------------------------------------------


def _register(dag: Dagabaaz, action: Action, options: Mapping[str, Any]) -> str:
    """Make an action, and what undoes it, tasks of the app; the same ones again are fine. Returns its task's name."""
    tasks = _tasks.setdefault(dag, {})
    # Asked of Celery: in a program's main module, the name is not the one that its workers have for the module.
    name: str = dag.app.gen_task_name(action.__qualname__, action.__module__)
    if tasks.get(name) != (action, options):
        _add_task(dag, name, action, options, _make_body(tasks, action, name))
        if action.rollback_action is not None:
            _add_task(dag, _name_rollback(name), action, options, _make_rollback_body(tasks, action))
    mark_in_flow(action)
    return name


def _add_task(dag: Dagabaaz, name: str, action: Action, options: Mapping[str, Any], body: AsyncFunction) -> None:
    tasks = _tasks[dag]
    if name in tasks:  # Celery would answer with the task that it has, without a word
        raise ActionConflict(
            f"The app {dag.app.main!r} has a task {name!r} already, of another action or with other options. Give the "
            "action another name, or the same options in each flow; where its module was loaded again, start the "
            "process again."
        )
    body.__module__, _, body.__name__ = name.rpartition(".")  # Celery puts the task's name together from these
    body.__doc__ = action.__doc__
    dag.plugin(body, name=name, **options)
    tasks[name] = (action, options)


def _name_rollback(name: str) -> str:
    return f"{name}.rollback"


def _make_body(tasks: Tasks, action: Action, name: str) -> AsyncFunction:
    async def body(**task_input: Any) -> dict[str, Any]:
        result = await action(_read_predecessors_results(tasks, action, task_input))
        return {_PRODUCER: name, _VALUE: _encode_result(action, result)}

    return body


def _make_rollback_body(tasks: Tasks, action: Action) -> AsyncFunction:
    async def body(**task_input: Any) -> None:
        await action.rollback(_read_predecessors_results(tasks, action, task_input))

    return body


def _encode_result(action: Action, result: Any) -> Any:
    try:
        return action.gives.encode(result)
    except ValueError as error:
        is_declared = action.gives.hint is not Any
        wanted = f"the {action.gives} that it declares" if is_declared else "JSON, as it declares no type"
        raise ResultError(
            f"The result of {action!r} cannot be handed on as {wanted}: {error}. Return that, or declare what it "
            "returns: DagaAction[Input, Output], or the function's annotations."
        ) from None


def _read_predecessors_results(tasks: Tasks, action: Action, task_input: Mapping[str, Any]) -> list[Any]:
    """What an action receives: what each predecessor returned, in the graph's order, or the run's input alone."""
    try:
        if "artifacts" not in task_input:
            return [action.takes.decode(task_input.get(_INPUT))]
        stored = [artifact["metadata"] for artifact in task_input["artifacts"]]
        return [tasks[value[_PRODUCER]][0].gives.decode(value[_VALUE]) for value in stored]
    except (ValueError, LookupError, TypeError) as error:
        raise TaskInputError(
            f"What {action!r} is to receive cannot be read: {type(error).__name__}: {error}. It was written for other "
            "code than this worker has: do not change an action's name and types while runs of it go on."
        ) from None

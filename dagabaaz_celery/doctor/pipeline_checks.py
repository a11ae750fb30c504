"""Checks of pipelines: whether their plugins and queues have workers, and whether their runs go on."""

import shlex
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping

from dagabaaz_celery.doctor.facts import Facts
from dagabaaz_celery.doctor.findings import Check, NotChecked, Said, advise, count, fail, ok, warn
from dagabaaz_celery.doctor.routes import Route
from dagabaaz_celery.doctor.store_facts import Backlog
from dagabaaz_celery.errors import DagabaazError, PipelineError

#: Names in one finding.
_SHOWN = 8


def check_pipelines(facts: Facts) -> Iterator[Said]:
    """Pipelines that are registered can be started."""
    if facts.plugins_problem is not None and facts.settings_problem is None:
        yield fail(
            facts.plugins_problem.message,
            "A worker with this code does not start, and no run can be.",
            '@dag.plugin(name="another_name")   # for one of the two',
        )
        return
    facts.routes  # noqa: B018  # raises where plugins cannot be read
    is_well = True
    for name in sorted(facts.dag._pipelines):
        try:
            facts.dag._find_definition(name, None)
        except DagabaazError as error:
            is_well = False
            problems = error.problems if isinstance(error, PipelineError) else [error.message]
            yield fail(
                f"pipeline {name!r} cannot run: {'; '.join(problems[:3])}",
                "start() refuses it.",
                "Import the module that has the plugin where the app is made, or correct the name in the pipeline.",
            )
    if is_well:
        total = len(facts.dag._pipelines)
        yield ok(f"{count(total, 'registered pipeline')} can run" if total else "no pipeline is registered here")


def check_queues(facts: Facts) -> Iterator[Said]:
    """Every queue that nodes are sent to has a live worker."""
    for route in facts.routes:
        if route.problem:
            yield fail(
                f"{route.where} cannot be sent: {route.problem}",
                "Its tasks fail, and with them the run.",
                f'app.conf.task_routes = {{"{route.task}": {{"queue": "{facts.app.conf.task_default_queue}"}}}}',
            )
    consumed = {queue for worker in facts.living for queue in worker.queues}
    missing: dict[str, list[str]] = defaultdict(list)
    for route in facts.routes:
        if route.queues is not None and not consumed.intersection(route.queues):
            missing[route.queues[0]].append(route.where)
    waiting = {backlog.queue: backlog for backlog in facts.contents.backlogs}
    for queue in waiting:
        if queue not in consumed and queue not in missing:
            missing[queue] = ["tasks that were published"]
    doubt = _doubt_consumers(facts) if missing else ""
    options = f"-Q {shlex.quote(','.join(sorted(missing)))} {facts.name_another_worker(min(missing, default=''))}"
    for queue, sources in sorted(missing.items()) if not doubt else ():
        backlog = waiting.get(queue)
        wait = f"; {_tell_wait(backlog)}" if backlog else ""
        yield fail(
            f"no live worker consumes the queue {queue!r}, which is used by {_shorten(sources)}{wait}",
            "Tasks that are sent there wait, and their runs with them.",
            f"{facts.command} worker {options}",
        )
    unknown = sorted({route.where for route in facts.routes if route.queues is None and not route.problem})
    if unknown:
        yield advise(
            f"it cannot be told which queues get {_shorten(unknown)}",
            "They are sent to an exchange that this app binds no queue to.",
            'app.conf.task_queues = [Queue("name", exchange=Exchange("..."), routing_key="...")]',
        )
    if not missing and not unknown:
        queues = sorted({queue for route in facts.routes for queue in route.queues or ()})
        yield ok(f"every queue has a live worker: {', '.join(queues)}" if queues else "no pipeline uses a queue")
    if doubt:
        raise NotChecked(
            f"it cannot be told whether a worker consumes {', '.join(map(repr, sorted(missing)))}: {doubt}"
        )


def _doubt_consumers(facts: Facts) -> str:
    """Why a queue of which no live worker told may be consumed all the same; nothing where it is not."""
    if facts.shared_names:
        names = "; ".join(f"{number} live workers are called {name}" for name, number in facts.shared_names.items())
        return f"{names}, and one answers for all of that name (see names)"
    return f"no answer from {_shorten(facts.unheard)} (see workers)" if facts.unheard else ""


def check_plugins(facts: Facts) -> Iterator[Said]:
    """Workers know what pipelines name, and so does this process."""
    is_well = True
    for said in _find_unknown_to_workers(facts):
        is_well = False
        yield said
    known_here = set(facts.app.tasks)
    foreign = {route.task: route for route in facts.routes if route.task not in known_here}
    for task, route in sorted(foreign.items()):
        is_well = False
        yield warn(
            f"task {task} is not known here, and is used by {route.where}",
            "Runs of that pipeline cannot be started or checked in this process.",
            f"import {_module_of(task)}   # in the module that makes the app, or app.conf.imports",
        )
    elsewhere = {task for worker in facts.living for task in worker.report.get("plugins", {}).values()}
    missing_here = sorted(elsewhere - known_here - foreign.keys())
    if missing_here:
        is_well = False
        yield advise(
            f"workers have plugins that are not known here: {_shorten(missing_here)}",
            "A pipeline that names them can be started elsewhere only.",
            f"import {_module_of(missing_here[0])}   # in the module that makes the app",
        )
    if is_well:
        yield ok("workers and this process know the same plugins")


def _find_unknown_to_workers(facts: Facts) -> Iterator[Said]:
    """Tasks of pipelines that no worker of their queue knows, or not every one; plugins that no worker knows.

    One finding for what one module lacks in the same workers: one fix mends it.
    """
    nowhere: dict[tuple[str, frozenset[str]], dict[str, Route]] = defaultdict(dict)
    somewhere: dict[tuple[str, frozenset[str]], dict[str, Route]] = defaultdict(dict)
    used: dict[str, Route] = {}
    for route in facts.routes:
        used.setdefault(route.task, route)
        users = [worker for worker in facts.workers if set(worker.queues).intersection(route.queues or ())]
        lacking = frozenset(worker.name for worker in users if route.task not in worker.tasks)
        if lacking and used[route.task] is route:
            found = nowhere if len(lacking) == len({worker.name for worker in users}) else somewhere
            found[_module_of(route.task), lacking][route.task] = route
    unused = _find_unused(facts, used)
    for (module, lacking), routes in sorted(nowhere.items(), key=_by_module):
        others = unused.pop(module, [])
        besides = f"; nor {_name_many('plugin', others)}, which no pipeline names yet" if others else ""
        yield fail(
            f"no live worker knows {_name_many('task', routes)} of {_name_places(routes)}{besides}",
            "A worker that gets it sends it back for ten minutes, then its run fails.",
            _have_imported(facts, module, lacking),
        )
    for (module, lacking), routes in sorted(somewhere.items(), key=_by_module):
        queues = sorted({queue for route in routes.values() for queue in route.queues or ()})
        yield warn(
            f"{_shorten(sorted(lacking))} {'consumes' if len(lacking) == 1 else 'consume'} {', '.join(queues)} and "
            f"{'does' if len(lacking) == 1 else 'do'} not know {_name_many('task', routes)} of {_name_places(routes)}",
            "What goes there of it is sent back until another worker has it.",
            _have_imported(facts, module, lacking),
        )
    for module, names in sorted(unused.items()):
        yield warn(
            f"{_name_many('plugin', names)} of {module} {'is' if len(names) == 1 else 'are'} known here, and to no "
            "live worker",
            "A pipeline that names one can be started here, and its tasks go back and forth until they fail.",
            _have_imported(facts, module, frozenset(worker.name for worker in facts.workers)),
        )


def _find_unused(facts: Facts, used: Collection[str]) -> dict[str, list[str]]:
    """Plugins that no pipeline names and no live worker knows, by the module that has their tasks."""
    known = {task for worker in facts.workers for task in worker.tasks}
    unused: dict[str, list[str]] = defaultdict(list)
    for name in facts.dag.plugin_names() if facts.workers else []:
        info = facts.dag.find_plugin(name)
        if info is not None and info.task_name not in known and info.task_name not in used:
            unused[_module_of(info.task_name)].append(name)
    return unused


def _have_imported(facts: Facts, module: str, lacking: Collection[str]) -> str:
    """How workers get to know the tasks of a module: most often they run code that is older than it."""
    restart = facts.stop_workers(lacking) + "   # then start again what has ended, with the code that is here"
    if facts.is_imported_by_workers(module, lacking):
        return restart
    return f"{restart}\napp.conf.imports = [{module!r}]   # before that, if no module of the app imports it"


def _by_module(item: tuple[tuple[str, frozenset[str]], object]) -> tuple[str, list[str]]:
    (module, lacking), _ = item
    return module, sorted(lacking)


def _module_of(task: str) -> str:
    return task.rpartition(".")[0] or task


def _name_places(routes: Mapping[str, Route]) -> str:
    return _shorten([route.where for route in routes.values()])


def _name_many(noun: str, names: Collection[str]) -> str:
    return f"{noun}{'' if len(names) == 1 else 's'} {_shorten(sorted(names))}"


def _tell_wait(backlog: Backlog) -> str:
    if backlog.tasks == 1:
        return f"1 task waits there, for {backlog.oldest:.0f} s"
    return f"{backlog.tasks} tasks wait there, the first for {backlog.oldest:.0f} s"


def _was(number: int) -> str:
    return "was" if number == 1 else "were"


def check_overdue(facts: Facts) -> Iterator[Said]:
    """What is owed to the queue gets there."""
    overdue = facts.contents.overdue
    if overdue:
        yield warn(
            f"{count(overdue, 'task')} should have been published a minute ago, and {_was(overdue)} not",
            "No live worker sweeps, the broker refuses them, or it is away. The log of a worker says which.",
            facts.worker_command,
        )
    else:
        yield ok("nothing that should have been published waits")


def check_callbacks(facts: Facts) -> Iterator[Said]:
    """Callbacks for the ends of runs return."""
    failing = facts.contents.failing_callbacks
    if failing:
        yield warn(
            f"{count(failing, 'callback')} for ends of runs {'has' if failing == 1 else 'have'} raised again and again",
            "They are called until they return. The log of a worker has the traceback.",
            f"{facts.worker_command}   # search its log for: the callback",
        )
    else:
        yield ok("no callback fails again and again")


def _shorten(names: list[str]) -> str:
    unique = list(dict.fromkeys(names))
    more = f" and {len(unique) - _SHOWN} more" if len(unique) > _SHOWN else ""
    return ", ".join(unique[:_SHOWN]) + more


CHECKS: tuple[Check[Facts], ...] = (
    Check("pipelines", "Can every registered pipeline run?", check_pipelines),
    Check("queues", "Does a live worker consume every queue that pipelines use?", check_queues),
    Check("plugins", "Do workers and this process know the same plugins?", check_plugins),
    Check("overdue", "Is everything published that should be?", check_overdue),
    Check("callbacks", "Do callbacks for the ends of runs return?", check_callbacks),
)

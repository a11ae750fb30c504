"""Checks of the workers: who is alive, who is a stranger, and on what they disagree."""

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from dagabaaz_celery import __version__
from dagabaaz_celery.doctor.broker_facts import Answer
from dagabaaz_celery.doctor.facts import Facts, Worker
from dagabaaz_celery.doctor.findings import Check, Said, advise, fail, ok, warn
from dagabaaz_celery.worker.report import MARK

#: Heartbeats that a worker may miss before another takes it for dead.
_MISSED_BEATS = 3


def check_workers(facts: Facts) -> Iterator[Said]:
    """Somebody runs the tasks."""
    if facts.app.conf.task_always_eager:
        yield ok("no worker is needed: task_always_eager is on")
        return
    if not facts.workers:
        yield fail(
            f"no worker of this store is alive ({facts.store.where})",
            "Runs that are started wait: workers run their tasks, and publish what could not be published.",
            f"{facts.command} worker --loglevel INFO{_name_queues(facts)}",
        )
        return
    yield ok(f"{len(facts.workers)} alive: {'; '.join(map(_describe, facts.workers))}")
    silent = [worker for worker in facts.workers if not worker.report]
    mute = [worker.name for worker in silent]
    if not mute or not facts.app.conf.worker_enable_remote_control or facts.broker_problem is not None:
        return
    if len(mute) == len(facts.workers):
        yield warn(
            f"no worker answers through the broker: {'; '.join(map(_tell_last_beat, silent))}",
            "They may be dead, as when they were killed: a worker counts as alive for "
            f"{facts.settings.dead_after:g} s after its last heartbeat (dagabaaz_dead_after). Or they use another "
            "broker or virtual host than this process, and then get none of the tasks that it publishes.",
            f"{_look_for(silent)}\n{facts.command} inspect ping   # there: answers mean another broker_url than here",
        )
    else:
        yield advise(
            f"these workers beat and did not answer: {', '.join(mute)}",
            "A worker of the solo pool does not answer during a body. Others may have died just now, have "
            "worker_enable_remote_control off, or an older release. What only they know was not checked.",
            f"{facts.command} inspect ping --destination {mute[0]}\n{_look_for(silent)}",
        )


def _tell_last_beat(worker: Worker) -> str:
    ago = f" (last heartbeat {worker.seen.silent_for:.0f} s ago)" if worker.seen is not None else ""
    return f"{worker.name}{ago}"


def _look_for(workers: Sequence[Worker]) -> str:
    """A command that tells whether they are there at all."""
    pids = [str(worker.seen.row.pid) for worker in workers if worker.seen is not None]
    hosts = sorted({host for worker in workers for host in worker.hosts})
    return f"ps -p {','.join(pids)}   # on {', '.join(hosts)}: who is not listed is dead; start it again"


def _name_queues(facts: Facts) -> str:
    """An option for the queues that pipelines use, where Celery's default does not do."""
    used = {queue for route in facts.routes for queue in route.queues or ()}
    return f" -Q {','.join(sorted(used))}" if used - {facts.app.conf.task_default_queue} else ""


def _describe(worker: Worker) -> str:
    if worker.seen is None:
        return worker.name
    report = worker.report
    pool = f", {report.get('pool')} x {report.get('concurrency')}" if report else ""
    return f"{worker.name} ({worker.seen.row.version}, pid {worker.seen.row.pid}{pool})"


def check_versions(facts: Facts) -> Iterator[Said]:
    """One release everywhere, but for the minutes of a roll-out."""
    versions: dict[str, list[str]] = defaultdict(list)
    for worker in facts.living:
        if worker.seen is not None:
            versions[worker.seen.row.version].append(worker.name)
    others = {version: names for version, names in versions.items() if version != __version__}
    for version, names in sorted(others.items()):
        yield warn(
            f"dagabaaz-celery is {version} on {', '.join(names)}, and {__version__} here",
            "Releases share a store while one replaces the other. It is not meant to stay so: what a newer one "
            "records, an older one may not know.",
            f"pip install 'dagabaaz-celery=={max(__version__, version, key=_order)}'"
            "   # then start those processes again",
        )
    for package in ("celery", "kombu", "python"):
        found = {worker.name: worker.report.get("versions", {}).get(package) for worker in facts.workers}
        told = {name: version for name, version in found.items() if version}
        if len(set(told.values())) > 1:
            yield advise(
                f"workers have different releases of {package}: {_list(told)}",
                "What works on one may not on the other.",
                "python --version"
                if package == "python"
                else f"pip install '{package}=={max(told.values(), key=_order)}'",
            )
    if not others:
        yield ok(f"every worker has {__version__}")


def check_names(facts: Facts) -> Iterator[Said]:
    """Node names are unique: by them workers are told to end a body."""
    for name, count in facts.shared_names.items():
        yield warn(
            f"{count} live workers have the node name {name}",
            "Remote control reaches a worker by its name. Of two with one name only one gets each order, as to end "
            "the body of a run that was cancelled.",
            f"{facts.command} worker {facts.name_another_worker(name.partition('@')[0])}"
            "   # in place of one of them, with its other options",
        )
    if not facts.shared_names:
        yield ok("every worker has a name of its own")


def check_strangers(facts: Facts) -> Iterator[Said]:
    """Nobody else takes the tasks of our pipelines, or looks after our runs."""
    used = {queue for route in facts.routes for queue in route.queues or ()}
    count = 0
    for node, queues, answer in facts.strangers:
        shared = sorted(used.intersection(queues))
        if shared:
            count += 1
            yield _describe_stranger(facts, node, shared, answer)
    apps = sorted({worker.report["app"] for worker in facts.workers if "app" in worker.report})
    if len(apps) > 1:
        count += 1
        yield warn(
            f"workers of several apps have this store: {', '.join(apps)}",
            "A worker publishes whatever its store owes, with its own routing, and takes over what a dead worker of "
            "another app ran, whose tasks it may not know.",
            f'app.conf.dagabaaz_table_prefix = "{apps[-1]}_dagabaaz_"   # in the app {apps[-1]!r}: a store of its own',
        )
    if not count:
        yield ok("every worker that takes tasks of pipelines has this store")


def _describe_stranger(facts: Facts, node: str, shared: list[str], answer: Answer | None) -> Said:
    where = f"{node} consumes {', '.join(shared)}"
    report: dict[str, Any] = (answer.report if answer else None) or {}
    if not report:
        return fail(
            f"{where}, and has no Dagabaaz: no heartbeat of it is in the store, and it does not know our question",
            "It takes tasks of pipelines and cannot run them: they wait until they are sent again, or fail.",
            f"{facts.command} control cancel_consumer {shared[0]} --destination {node}"
            "   # then start it with -Q and its own queues",
        )
    if report.get("store") != facts.contents.store_id:
        return fail(
            f"{where}, and keeps its runs in another store ({report.get('store_at')})",
            "It takes tasks of runs that it cannot find, and its own runs are not seen here.",
            _part_from(facts, str(report.get("app") or "other")),
        )
    return advise(
        f"{where}, has this store, and no heartbeat of late",
        "It has just started, or has lost the database.",
        f"{facts.command} dagabaaz doctor   # again in a minute",
    )


def _part_from(facts: Facts, other: str) -> str:
    """Two projects want their messages apart; two processes of one project want one store."""
    here = facts.app.main
    name = re.sub(r"[^\w.-]", "-", other)
    if facts.broker.transport == "redis":
        apart = f'app.conf.broker_transport_options = {{"global_keyprefix": "{name}-"}}'
        means = "or another Redis database, or a queue name"
    else:
        apart, means = f'app.conf.task_default_queue = "{name}"', "or another virtual host"
    apart = f"{apart}   # in every process of the other project; {means} of its own"
    if other != here:
        return apart
    if facts.migrate_command is not None:
        same = "python manage.py diffsettings   # if it is this project: compare DATABASES and DAGABAAZ_DATABASE there"
    else:
        same = "app.conf.dagabaaz_store_url = ...   # if it is this project: the same database, prefix and schema"
    return f"{same}\n{apart}"


def check_worker_settings(facts: Facts) -> Iterator[Said]:
    """Workers of one store agree on who is dead, and on what a task may do."""
    told = {worker.name: worker.report.get("settings", {}) for worker in facts.reporting}
    intervals = {name: given["sweep_interval"] for name, given in told.items() if "sweep_interval" in given}
    judges = {name: given["dead_after"] for name, given in told.items() if "dead_after" in given}
    hasty, slow = min(judges, key=judges.__getitem__, default=""), max(intervals, key=intervals.__getitem__, default="")
    deadly = bool(hasty and slow) and judges[hasty] < _MISSED_BEATS * intervals[slow]
    if deadly:
        yield fail(
            f"{hasty} takes a worker for dead after {judges[hasty]:g} s (dagabaaz_dead_after), and {slow} beats every "
            f"{intervals[slow]:g} s (dagabaaz_sweep_interval)",
            "It takes live workers for dead: their tasks are sent again, and their outcomes refused.",
            f"app.conf.dagabaaz_sweep_interval = {min(intervals.values()):g}\n"
            f"app.conf.dagabaaz_dead_after = {max(*judges.values(), 4 * min(intervals.values())):g}"
            "   # the same in every worker",
        )
    here = asdict(facts.settings)
    names = sorted({name for given in told.values() for name in given if name in here})
    for name in names:
        values = {"here": here[name], **{worker: given[name] for worker, given in told.items() if name in given}}
        if len(set(values.values())) > 1 and not (deadly and name in ("sweep_interval", "dead_after")):
            yield warn(
                f"dagabaaz_{name} differs: {_list(values)}",
                "What becomes of a task depends on which process looks after it.",
                f"app.conf.dagabaaz_{name} = {values['here']!r}   # the same in every process",
            )
            deadly = deadly or name in ("sweep_interval", "dead_after")
    if len({tuple(sorted(given.items())) for given in (*told.values(), {n: here[n] for n in names})}) == 1:
        yield ok("workers and this process have the same settings")


def check_remote_control(facts: Facts) -> Iterator[Said]:
    """Workers can be told to end a body."""
    if facts.app.conf.worker_enable_remote_control:
        yield ok("workers can be reached by remote control")
    else:
        yield advise(
            "worker_enable_remote_control is off",
            "run.cancel(terminate=True) does not reach a body that runs, what was cancelled waits in the memory of "
            "workers, and half of these checks cannot be made.",
            "app.conf.worker_enable_remote_control = True",
        )


def check_files(facts: Facts) -> Iterator[Said]:
    """Hosts that share runs share the directory of their files."""
    shared: dict[str, list[Worker]] = defaultdict(list)
    for worker in facts.reporting:
        files = worker.report.get("files", {})
        if files.get("id"):
            shared[files["id"]].append(worker)
        else:
            yield fail(
                f"{worker.name} cannot use its files directory {files.get('directory')}: {files.get('problem')}",
                "Every body there that asks for a scratch directory fails.",
                f"mkdir -p '{files.get('directory')}'   # on {worker.report.get('host')}, writable for its user",
            )
    if len(shared) < 2:
        if shared:
            yield ok("every worker that answered has the same files directory")
        return
    places = "; ".join(
        f"{worker.report['files']['directory']} of {worker.name} (host {worker.report.get('host')})"
        for workers in shared.values()
        for worker in workers
    )
    found = f"workers do not share their files directory, there are {len(shared)} of them: {places}"
    fix = 'app.conf.dagabaaz_files_dir = "/mnt/shared/dagabaaz"   # one network file system, mounted on every host'
    if facts.contents.passes_files:
        yield fail(
            found,
            "Tasks pass files to each other: one that runs on another host than the task before it fails with "
            "MissingFile.",
            fix,
        )
    else:
        yield warn(
            found,
            "No file was passed lately. The first plugin that returns one fails its run when the next task gets to "
            f"another host. (The file {MARK} tells the directories apart.)",
            fix,
        )


def _list(values: dict[str, Any]) -> str:
    return ", ".join(f"{name}: {value}" for name, value in values.items())


CHECKS: tuple[Check[Facts], ...] = (
    Check("workers", "Is a worker alive, of which version, and does it answer?", check_workers),
    Check("versions", "Is the same release everywhere?", check_versions),
    Check("names", "Has every worker a name of its own?", check_names),
    Check("strangers", "Do workers of other apps or stores take part?", check_strangers),
    Check("worker-settings", "Do the workers' settings agree?", check_worker_settings),
    Check("remote-control", "Can workers be reached by remote control?", check_remote_control),
    Check("files", "Do all workers share the files directory?", check_files),
)


def _order(version: str) -> list[int]:
    """A release's numbers, which are compared one by one."""
    return [int(number) for number in re.findall(r"\d+", version)]

"""Checks of settings, the store, its schema, and what the database's server allows."""

from collections.abc import Iterator
from pathlib import Path

from sqlalchemy import URL

from dagabaaz_celery.doctor.facts import NOT_INSTALLED, Facts, Worker, explain
from dagabaaz_celery.doctor.findings import Check, NotChecked, Said, advise, count, fail, ok, warn
from dagabaaz_celery.errors import StoreUrlMissing
from dagabaaz_celery.worker.django_project import DJANGO_APP, lacks_django_app

#: Connections that a worker's main process may hold at once: sweep, heartbeat, callbacks, and one to spare.
_MAIN_PROCESS = 4
#: The part of a limit that is in use when it is time to say so.
_NEARLY_FULL = 0.8
#: Seconds by which clocks may differ before it shows.
_MAX_SKEW = 2.0


def check_settings(facts: Facts) -> Iterator[Said]:
    """Settings that cannot be read stop every process that has them."""
    problem = facts.settings_problem
    if problem is None and isinstance(facts.store_problem, StoreUrlMissing):
        problem = facts.store_problem
    if problem is None:
        yield ok("the settings can be read")
    elif isinstance(problem, StoreUrlMissing):
        yield fail(
            "the app has a broker, and no store is named for its runs",
            "Nothing can be started, and no worker of this app starts.",
            f'INSTALLED_APPS += ["{DJANGO_APP}"]   # in the settings of Django; then python manage.py migrate'
            if lacks_django_app()
            else 'app.conf.dagabaaz_store_url = "postgresql+psycopg://user@host/database"',
        )
    else:
        yield fail(
            problem.message,
            "Nothing can be started, and no worker of this app starts.",
            "Correct that line in the app's configuration. The settings are in docs/reference/settings.md.",
        )


def check_store(facts: Facts) -> Iterator[Said]:
    """The database is there."""
    facts.settings  # noqa: B018  # without settings there is no store to ask
    problem = facts.store_problem
    if problem is None:
        yield ok(f"{facts.store.where} answers")
    elif isinstance(problem, StoreUrlMissing):
        raise NotChecked("no store is named (see settings)")
    elif isinstance(problem, NOT_INSTALLED) and isinstance(facts.broker_problem, NOT_INSTALLED):
        raise NotChecked("no store is named, and without the broker's library it is not known whether to (see broker)")
    else:
        yield fail(
            f"the store cannot be used: {explain(problem)}",
            "No run can be started, and workers wait with every outcome until it is back.",
            _how_to_reach(facts),
        )


def _how_to_reach(facts: Facts) -> str:
    try:
        url = facts.dag._runtime.store.database.url
    except Exception:  # the URL itself is wrong, which was told
        return 'app.conf.dagabaaz_store_url = "postgresql+psycopg://user@host/database"'
    return _ask_server(url)


def _ask_server(url: URL) -> str:
    kind = url.get_backend_name()
    if kind == "sqlite":
        parent = Path(str(url.database)).absolute().parent
        return f"mkdir -p '{parent}'" if not parent.exists() else f"ls -ld '{parent}' '{url.database}'"
    if kind == "postgresql":
        return f"pg_isready -h {url.host or 'localhost'} -p {url.port or 5432}   # and compare dagabaaz_store_url"
    return f"mysqladmin ping -h {url.host or 'localhost'} -P {url.port or 3306}   # and compare dagabaaz_store_url"


def check_schema(facts: Facts) -> Iterator[Said]:
    """The tables are there, and are those of this release."""
    schema, where = facts.store.schema, facts.store.where
    migrate = facts.migrate_command or f"{facts.command} dagabaaz migrate"
    if schema.fits:
        yield ok(f"{where} has schema {schema.current}")
    elif schema.is_newer:
        yield fail(
            f"{where} has schema {schema.current}, which is newer than this release knows (up to {schema.head})",
            "This process can neither start runs nor look at them.",
            "pip install --upgrade dagabaaz-celery",
        )
    elif facts.settings.store_url is None and facts.migrate_command is None:
        yield ok("the store is made at its first use, and ends with its process")
    else:
        has = f"schema {schema.current}" if schema.current else "no tables"
        found = f"{where} has {has}, and this release needs schema {schema.head}"
        if facts.settings.auto_migrate and facts.migrate_command is None:
            why = "The first process that uses the store changes it, if its database user may: better do it before."
            yield warn(found, why, migrate)
        else:
            yield fail(found, "Workers do not start, and nothing can be started.", migrate)


def check_connections(facts: Facts) -> Iterator[Said]:
    """The server takes as many connections as the workers may open."""
    if facts.store.dialect == "sqlite":
        yield ok("a SQLite file has no limit of connections")
        return
    if facts.store.limits_unknown:
        raise NotChecked(facts.store.limits_unknown)
    wanted, unknown = 0, 0
    for worker in facts.living:
        # Where the app's own database is the store, a process has a connection of the app's besides.
        wanted += _count_connections(worker) * (2 if facts.store.is_shared else 1)
        unknown += not worker.report
    for limit in facts.store.limits:
        open_now = f"{limit.used} of {limit.allowed} connections of {limit.what} are open"
        if wanted > limit.allowed:
            yield fail(
                f"{count(len(facts.workers), 'live worker')} may open {wanted} connections, and {limit.what} allows "
                f"{limit.allowed}",
                "Tasks wait for a connection, or fail to record their outcome and run again. Web processes need some "
                "besides. Fewer processes (-c), a pooler such as PgBouncer, or a higher limit help.",
                limit.raise_it,
            )
        elif limit.used > _NEARLY_FULL * limit.allowed:
            yield warn(open_now, "The next processes to start are refused.", limit.raise_it)
        else:
            counted = f"; the live workers may want {wanted}" if facts.workers else ""
            yield ok(open_now + counted + (f" ({unknown} of them did not tell)" if unknown else ""))


def _count_connections(worker: Worker) -> int:
    """A child process needs one, a thread too; the main process has some of its own."""
    concurrency = worker.report.get("concurrency")
    return _MAIN_PROCESS + (concurrency if isinstance(concurrency, int) else 1)


def check_sqlite_hosts(facts: Facts) -> Iterator[Said]:
    """A SQLite file is for one machine."""
    if facts.store.dialect != "sqlite":
        yield ok(f"the store is on a server ({facts.store.dialect})")
        return
    hosts = sorted({host for worker in facts.living for host in worker.hosts})
    machines = {worker.report.get("machine") for worker in facts.living}
    if len(hosts) < 2:
        yield ok("the store is a SQLite file, and its workers are on one host")
        return
    found = f"the store is a SQLite file, and its workers are on {len(hosts)} hosts: {', '.join(hosts)}"
    fix = 'app.conf.dagabaaz_store_url = "postgresql+psycopg://user@host/database"'
    if len(machines) == 1 and None not in machines:
        yield warn(
            f"{found}; they answered from one machine",
            "Containers and names on one machine may share a file on a local disk. On two machines each has a file of "
            "its own, or one that a network file system spoils: SQLite's locks do not reach that far.",
            fix,
        )
    else:
        yield fail(
            found,
            "Either each host has a file of its own, and workers do not see each other's runs, or the file is on a "
            "network file system, where SQLite's locks do not hold and the file gets corrupted.",
            fix,
        )


def check_clocks(facts: Facts) -> Iterator[Said]:
    """Clocks agree with the database's: Celery's delays are times of one host, read on another."""
    ahead, doubt = facts.store.clock_ahead, facts.store.clock_doubt
    skewed = []
    if abs(ahead) - doubt > _MAX_SKEW:
        skewed.append(("this process", -ahead))
    seen = 0
    for worker in facts.workers:
        report, answer = worker.report, worker.answer
        if answer is None or not isinstance(report.get("clock"), (int, float)):
            continue
        seen += 1
        early, late = report["clock"] - answer.answered_at, report["clock"] - answer.asked_at  # by our clock
        nearest = 0.0 if early <= ahead <= late else min((early - ahead, late - ahead), key=abs)
        if abs(nearest) - doubt > _MAX_SKEW:
            skewed.append((f"worker {worker.name} (host {report.get('host')})", nearest))
    for who, seconds in skewed:
        direction = "ahead of" if seconds > 0 else "behind"
        yield warn(
            f"the clock of {who} is {abs(seconds):.1f} s {direction} the database's",
            "Retries with a delay begin that much too early or too late, expiry dates are missed, and runs are "
            "listed in a wrong order. What is due and who is dead is told by the database's clock, and stays right.",
            "timedatectl set-ntp true   # on that host",
        )
    if not skewed:
        of_workers = f" and {'that' if seen == 1 else 'those'} of {count(seen, 'worker')} agree" if seen else " agrees"
        yield ok(f"the clock here{of_workers} with the database's")


def check_dead_workers(facts: Facts) -> Iterator[Said]:
    """Rows of workers that went without a word, and that nobody took over."""
    for seen in facts.silent:
        found = f"worker {seen.row.hostname} (pid {seen.row.pid}) has been silent for {seen.silent_for:.0f} s"
        if seen.running:
            yield warn(
                f"{found}, and {count(seen.running, 'task')} {'is' if seen.running == 1 else 'are'} still its own",
                "It died or is frozen. Another worker takes its tasks over; there is none, or it cannot.",
                facts.worker_command,
            )
        else:
            yield advise(
                found,
                "It died, or lost the database. The next worker that starts removes it from the list.",
                facts.worker_command,
            )
    if not facts.silent:
        yield ok("no dead worker waits to be buried")


CHECKS: tuple[Check[Facts], ...] = (
    Check("settings", "Can the settings be read?", check_settings),
    Check("store", "Does the store's database answer?", check_store),
    Check("schema", "Are its tables those of this release?", check_schema),
    Check("connections", "Does the server allow as many connections as the workers may open?", check_connections),
    Check("sqlite-hosts", "Is a SQLite store used by workers on one host only?", check_sqlite_hosts),
    Check("clocks", "Do the clocks here and of the workers agree with the database's?", check_clocks),
    Check("dead-workers", "Are there dead workers that nobody took over?", check_dead_workers),
)

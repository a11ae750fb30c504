"""``diagnose(dag)``: what is wrong with a set-up, each with its fix. Nothing is changed, and nothing hangs."""

from collections.abc import Collection, Iterator

from dagabaaz_celery.app import Dagabaaz
from dagabaaz_celery.doctor import broker_checks, pipeline_checks, store_checks, worker_checks
from dagabaaz_celery.doctor.facts import Facts
from dagabaaz_celery.doctor.findings import Check, Finding, Level, NotChecked, Said, fail, ok
from dagabaaz_celery.stores.sql.invariants import iterate_violations

__all__ = ["CHECKS", "RUNS_CHECK", "Check", "Finding", "Level", "diagnose"]

#: Contradictions that are told one by one; the rest is counted.
_SHOWN = 20


def _check_runs(facts: Facts) -> Iterator[Said]:
    """Rows of runs do not contradict each other; takes as long as the store is large."""
    if not facts.store.schema.fits:
        raise NotChecked("the store's tables cannot be read (see schema)")
    why = "Rows contradict each other: a database that was edited, restored in part, or a fault of this package."
    fix = f"{facts.command} dagabaaz show RUN   # then retry or cancel the run, and report it"
    count = 0
    for sentence in iterate_violations(facts.dag._runtime.store):
        count += 1
        if count <= _SHOWN:
            yield fail(sentence, why, fix)
    if count > _SHOWN:
        yield fail(f"… and {count - _SHOWN} more", why, fix)
    if not count:
        yield ok("no run contradicts itself")


#: Every check that is made by default, in the order in which they are told.
CHECKS: tuple[Check[Facts], ...] = (
    *store_checks.CHECKS,
    *broker_checks.CHECKS,
    *worker_checks.CHECKS,
    *pipeline_checks.CHECKS,
)
#: Reads every run, so that it is made only when asked for.
RUNS_CHECK: Check[Facts] = Check("runs", "Do the rows of every run agree with each other?", _check_runs)


def diagnose(
    dag: Dagabaaz, *, runs: bool = False, ignore: Collection[str] = (), command: str = "celery -A proj"
) -> list[Finding]:
    """What every check finds, in the order of ``CHECKS``; within some ten seconds whatever is away.

    ``runs`` adds a look at every run, which takes as long as there are many. ``ignore`` names checks that are not
    made. ``command`` is what stands before ``worker`` in commands to be pasted.
    """
    facts = Facts(dag, command=command)
    facts.gather()
    checks = (*CHECKS, RUNS_CHECK) if runs else CHECKS
    return [finding for check in checks if check.name not in ignore for finding in check.run(facts)]

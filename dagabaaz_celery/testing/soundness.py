"""Whether what runs left behind in a store contradicts itself."""

import time
from collections.abc import Iterable

from dagabaaz_celery.app import Dagabaaz
from dagabaaz_celery.run import Run
from dagabaaz_celery.stores.sql import invariants
from dagabaaz_celery.stores.sql.store import SqlStore

#: Sentences in one assertion's message.
_MAX_SENTENCES = 50
#: Seconds between two looks at a store that is coming to rest.
_REST_INTERVAL = 0.05


def find_violations(
    dag: Dagabaaz | SqlStore, runs: Iterable[Run | str] | None = None, *, at_rest: bool = False
) -> list[str]:
    """Whatever contradicts itself in the rows of these runs (None: of every run, and rows without a run).

    Each is a sentence that names its run; none when all is well: counters equal what they count, no node was launched
    before its dependencies were closed, every task has one accepted outcome and the attempts that it counts, and no
    row refers to one that is not there. With ``at_rest`` also: every run has ended, nothing is open, and every
    callback was delivered. Raises UnknownRun.
    """
    if not isinstance(dag, (Dagabaaz, SqlStore)):
        raise TypeError(
            f"find_violations takes a Dagabaaz or a SqlStore, not a {type(dag).__name__}. A MemoryStore keeps no "
            "counters that could be wrong: compare its run() and tasks() with what you expect."
        )
    store = dag if isinstance(dag, SqlStore) else dag._runtime.store
    run_ids = None if runs is None else [run if isinstance(run, str) else run.id for run in runs]
    return invariants.find_violations(store, run_ids, at_rest=at_rest)


def assert_sound(
    dag: Dagabaaz | SqlStore,
    runs: Iterable[Run | str] | None = None,
    *,
    at_rest: bool = True,
    timeout: float = 10.0,
) -> None:
    """Fail with what ``find_violations`` finds.

    The runs are meant to be over, unless ``at_rest`` is False: what is still going on, such as a callback that a worker
    has yet to deliver, has ``timeout`` seconds to end. A contradiction fails at once.
    """
    chosen = None if runs is None else list(runs)
    deadline = time.monotonic() + timeout
    title, found = "The store is not sound:", find_violations(dag, chosen)
    while not found and at_rest:
        found = find_violations(dag, chosen, at_rest=True)
        if not found or time.monotonic() > deadline:
            title = f"The store is sound, and not at rest after {timeout:g} s:"
            break
        time.sleep(_REST_INTERVAL)
        found = find_violations(dag, chosen)
    if found:
        more = f"\n… and {len(found) - _MAX_SENTENCES} more" if len(found) > _MAX_SENTENCES else ""
        raise AssertionError("\n".join([title, *found[:_MAX_SENTENCES]]) + more)

"""Which run is meant: by its id, by the beginning of it, or as the last one."""

import re

from dagabaaz_celery.app import Dagabaaz
from dagabaaz_celery.errors import UnknownRun
from dagabaaz_celery.run import Run

LAST = "@last"
_BEGINNING = re.compile(r"[0-9a-f]{4,32}")
_DIGITS = 32
_SHOWN = 3


def find_run(dag: Dagabaaz, reference: str) -> Run:
    """The run with this id or the only one whose id begins so (4 digits at least); ``@last`` is the newest.

    Raises UnknownRun.
    """
    if reference == LAST:
        newest = next(dag.runs(limit=1), None)
        if newest is None:
            raise UnknownRun("The store has no run yet, so there is no last one.")
        return newest
    digits = reference.lower().replace("-", "")
    if not _BEGINNING.fullmatch(digits):
        raise UnknownRun(
            f"{reference!r} is no run: write a run's id, at least 4 digits of its beginning, or {LAST} for the newest."
        )
    if len(digits) == _DIGITS:
        return dag.run(digits)
    found = dag._runtime.store.find_runs_between(_to_id(digits, "0"), _to_id(digits, "f"), _SHOWN + 1)
    if not found:
        raise UnknownRun(f"No run's id begins with {reference}: `runs` lists them.")
    if len(found) > 1:
        more = ", …" if len(found) > _SHOWN else ""
        raise UnknownRun(
            f"The ids of several runs begin with {reference}: {', '.join(found[:_SHOWN])}{more}. Write more of it."
        )
    return dag.run(found[0])


def _to_id(beginning: str, fill: str) -> str:
    digits = beginning.ljust(_DIGITS, fill)
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"

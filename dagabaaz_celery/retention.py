"""How long runs are kept after their end: what ``dagabaaz_retention`` says, and which runs a deletion means."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import timedelta

from dagabaaz_celery.constants import RUN_TERMINAL_STATUSES, RunStatus
from dagabaaz_celery.errors import Remedy, RunSelectionError, format_problems, suggest_closest

#: The statuses of runs that have ended, in the order in which they are told.
ENDED = tuple(status for status in RunStatus if status in RUN_TERMINAL_STATUSES)
_KEYS = "keys"


@dataclass(frozen=True)
class Retention:
    """For each status of runs that have ended the seconds for which they are kept; without one, for ever.

    ``keys`` are the seconds for which the key of a deleted run is still known.
    """

    ages: Mapping[RunStatus, float] = field(default_factory=dict, hash=False)
    keys: float = 0.0


@dataclass(frozen=True)
class PruneReport:
    """What was deleted, or with ``dry_run`` would be: runs by status, and their tasks, artifacts and files."""

    runs: dict[str, int]
    tasks: int
    artifacts: int
    files: int
    dry_run: bool = False

    @property
    def runs_total(self) -> int:
        """Runs of every status."""
        return sum(self.runs.values())


def to_seconds(age: object) -> float | None:
    """An age in seconds; None for what is none: seconds from 0 on, or a timedelta."""
    seconds = age.total_seconds() if isinstance(age, timedelta) else age
    if not isinstance(seconds, (int, float)) or isinstance(seconds, bool):
        return None
    return float(seconds) if 0 <= seconds < math.inf else None


def find_retention_problems(given: object) -> Iterator[str]:
    """What is wrong with a value for ``dagabaaz_retention``."""
    if not isinstance(given, Mapping):
        yield f'it is {given!r}: pass a dict of statuses and ages, such as {{"completed": timedelta(days=30)}}'
        return
    names = [*(status.value for status in ENDED), _KEYS]
    for name, age in given.items():
        if name not in names:
            known = f"{', '.join(names[:-1])} or {_KEYS}"
            yield f"{name!r} is no status in which a run has ended: write {known}{suggest_closest(str(name), names)}"
        elif to_seconds(age) is None:
            yield f"{name!r} is {age!r}: an age is a number of seconds, 0 or more, or a timedelta"


def read_retention(given: Mapping[str, object]) -> Retention:
    """The retention that a mapping without problems means."""
    ages = {RunStatus(name): to_seconds(age) or 0.0 for name, age in given.items() if name != _KEYS}
    return Retention(ages, to_seconds(given.get(_KEYS, 0.0)) or 0.0)


def choose_ages(
    retention: Retention | None,
    older_than: object,
    status: str | None,
    limit: object = None,
    *,
    dry_run: bool = False,
) -> dict[RunStatus, float]:
    """Which runs a call means, by status: those that ended more than so many seconds ago.

    ``older_than`` is for every status; without it the setting's ages hold. Raises RunSelectionError, which says of a
    ``dry_run`` that nothing was counted.
    """
    statuses = [each.value for each in ENDED]
    problems = []
    if status is not None and status not in statuses:
        problems.append(
            f"status is {status!r}: only a run that has ended can be deleted, so write one of {', '.join(statuses)}"
            f"{suggest_closest(str(status), statuses)}"
        )
    seconds = to_seconds(older_than)
    if older_than is not None and seconds is None:
        problems.append(f"older_than is {older_than!r}: it must be a number of seconds, 0 or more, or a timedelta")
    if limit is not None and (not isinstance(limit, int) or isinstance(limit, bool) or limit < 0):
        problems.append(f"limit is {limit!r}: it must be a whole number, 0 or more")
    wanted = [each for each in ENDED if status in (None, each.value)]
    ages = (retention.ages if retention else {}) if seconds is None else dict.fromkeys(ENDED, seconds)
    chosen = {each: ages[each] for each in wanted if each in ages}
    heading = f"No run was {'counted' if dry_run else 'deleted'}"
    if problems:
        raise RunSelectionError(format_problems(heading, problems), problems)
    if not chosen:
        of = "" if status is None else f" that are {status}"
        problem = f"dagabaaz_retention says nothing of runs{of}, so that they are kept for ever."
        raise RunSelectionError(f"{heading}: {problem}", [problem], remedy=Remedy.SAY_AGE)
    return chosen

"""Which runs a call on many runs means."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from dagabaaz_celery.constants import RunStatus
from dagabaaz_celery.errors import RunSelectionError, format_problems, suggest_closest
from dagabaaz_celery.tags import find_tag_problems

_MICROSECONDS = 1_000_000
#: Microseconds since 1970 that ids can tell: 48 bits of milliseconds.
_LAST_MOMENT = (2**48 - 1) * 1000


class PointInTime(Protocol):
    """A ``datetime``: this module is of the engine, which asks no clock and imports none."""

    @property
    def tzinfo(self) -> Any:
        """Its time zone."""

    def timestamp(self) -> float:
        """Seconds since 1970."""


#: Seconds since 1970, or a ``datetime`` with a time zone.
Moment = float | PointInTime


@dataclass(frozen=True, slots=True)
class RunSelection:
    """Runs of one pipeline, in one status, with all of some tags, made in some time: as far as each is named.

    ``created_since`` and ``created_before`` are microseconds since 1970; the first belongs to the time, the second not.
    """

    pipeline: str | None
    status: RunStatus | None
    tags: dict[str, str]
    created_since: int | None = None
    created_before: int | None = None

    @property
    def is_everything(self) -> bool:
        """Whether no criterion is named."""
        times = (self.created_since, self.created_before)
        return self.pipeline is None and self.status is None and not self.tags and times == (None, None)


def read_selection(
    pipeline: str | None,
    status: str | None,
    tags: Mapping[str, str] | None,
    created_since: Moment | None = None,
    created_before: Moment | None = None,
) -> RunSelection:
    """What these criteria mean. Raises RunSelectionError, with every problem, for what no run can be."""
    problems = [] if tags is None else list(find_tag_problems(tags))
    statuses = [each.value for each in RunStatus]
    if status is not None and status not in statuses:
        problems.append(
            f"a run's status is one of {', '.join(statuses)}, not {status!r}{suggest_closest(str(status), statuses)}"
        )
    since = _read_moment("created_since", created_since, problems)
    before = _read_moment("created_before", created_before, problems)
    if problems:
        raise RunSelectionError(format_problems("No run can be like this", problems), problems)
    return RunSelection(pipeline, None if status is None else RunStatus(status), dict(tags or {}), since, before)


def _read_moment(name: str, given: object, problems: list[str]) -> int | None:
    """A moment in microseconds since 1970; None for none, and for one that is none, which is a problem."""
    what = "seconds since 1970, or a datetime with a time zone"
    if given is None:
        return None
    if callable(timestamp := getattr(given, "timestamp", None)):
        if getattr(given, "tzinfo", None) is None:
            problems.append(f"{name} is {given}, which has no time zone: it is {what}")
            return None
        given = timestamp()
    if isinstance(given, bool) or not isinstance(given, (int, float)):
        problems.append(f"{name} is {given!r}: it is {what}")
        return None
    if not 0 <= given * _MICROSECONDS <= _LAST_MOMENT:
        problems.append(f"{name} is {given!r}, before 1970 or after the year 10000: it is {what}")
        return None
    return round(given * _MICROSECONDS)

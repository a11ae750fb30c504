"""The moments at which a schedule of Celery's is due: its slots.

Every process that looks gets the same slots, whenever it was started. Of a crontab they are what Celery makes of it, in
its time zone, on days with a change of clocks too. Of an interval they are its multiples since 1970.
"""

import copy
from collections import deque
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from math import floor
from typing import Any
from zoneinfo import ZoneInfo

from celery import Celery
from celery.schedules import BaseSchedule, crontab, schedstate, schedule

from dagabaaz_celery.errors import ConfigurationError

_SLOT = "%Y-%m-%dT%H:%M:%SZ"
_FIELDS = ("minute", "hour", "day_of_week", "day_of_month", "month_of_year")
#: How far back a slot is looked for at first, and at last: a leap day comes every eight years, at times.
_FIRST_LOOK, _LAST_LOOK = timedelta(minutes=1), timedelta(days=9 * 366)


class Every(schedule):  # type: ignore[misc]  # Celery ships no types
    """An interval whose slots do not depend on when beat was started."""

    def remaining_estimate(self, last_run_at: datetime) -> timedelta:
        """Until the first slot after the last run."""
        last, step = self.maybe_make_aware(last_run_at).timestamp(), self.seconds
        now: datetime = self.maybe_make_aware(self.now())
        return datetime.fromtimestamp((floor(last / step) + 1) * step, UTC) - now

    def is_due(self, last_run_at: datetime) -> Any:
        """Whether a slot has come since the last run, and the seconds until the next one."""
        left = self.remaining_estimate(last_run_at).total_seconds()
        if left > 0:
            return schedstate(is_due=False, next=left)
        return schedstate(is_due=True, next=max(self.remaining_estimate(self.now()).total_seconds(), 0))


def read_schedule(when: object, app: Celery) -> BaseSchedule:
    """What ``dag.schedule`` was given, as a schedule of this app. Raises ConfigurationError."""
    if isinstance(when, BaseSchedule):
        if type(when) is schedule:
            return read_schedule(when.run_every, app)
        own = copy.copy(when)
        own.app = when._app or app
        return own
    seconds = when.total_seconds() if isinstance(when, timedelta) else when
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or seconds < 1 or seconds != floor(seconds):
        raise ConfigurationError(
            f"dag.schedule got {when!r} to say when: pass a whole number of seconds from 1 on, a timedelta of as many, "
            "or one of Celery's schedules, such as crontab(hour=3, minute=30)."
        )
    return Every(timedelta(seconds=seconds), app=app)


def describe_schedule(when: BaseSchedule) -> dict[str, Any] | None:
    """What JSON can hold of a crontab or an interval, for ``build_schedule``; None for any other schedule."""
    if isinstance(when, schedule):
        return {"every": when.seconds}
    if isinstance(when, crontab):
        fields = {name: getattr(when, name) for name in _FIELDS}
        return {**{name: sorted(values) for name, values in fields.items()}, "timezone": str(when.tz)}
    return None


def build_schedule(described: Mapping[str, Any], app: Celery) -> BaseSchedule:
    """The schedule that was described."""
    if "every" in described:
        return Every(timedelta(seconds=described["every"]), app=app)
    fields: dict[str, Any] = {name: set(described[name]) for name in _FIELDS}
    for name, size in (("day_of_month", 31), ("month_of_year", 12)):
        if len(fields[name]) == size:
            fields[name] = "*"  # which Celery reckons otherwise than all days, named one by one
    when = crontab(**fields, app=app)
    when.tz = app.timezone if described["timezone"] == str(app.timezone) else ZoneInfo(described["timezone"])
    return when


def format_slot(slot: datetime) -> str:
    """A slot as keys and tags have it: UTC, to the second."""
    return slot.astimezone(UTC).strftime(_SLOT)


def parse_slot(text: str) -> datetime:
    """The slot that was written so."""
    return datetime.strptime(text, _SLOT).replace(tzinfo=UTC)


def find_slot(when: BaseSchedule, until: datetime) -> datetime | None:
    """The last slot that is not after a moment; None where there was none for years."""
    found = find_slots(when, until, 1)
    return found[-1] if found else None


def find_slots(when: BaseSchedule, until: datetime, limit: int) -> list[datetime]:
    """The last slots that are not after a moment, up to so many, in order."""
    if isinstance(when, schedule):
        step = max(when.seconds, 1)
        last = floor(until.timestamp() / step)
        return [datetime.fromtimestamp(number * step, UTC) for number in range(last - limit + 1, last + 1)]
    look, found = _FIRST_LOOK, deque[datetime](maxlen=limit)
    while len(found) < limit and look <= _LAST_LOOK:
        found = deque(_iterate(when, until - look, until), maxlen=limit)
        # A thing that is done each day of a week is looked for in a day, or in two, and not in nine years.
        look *= max(2, min(limit // len(found), 100)) if found else 2
    return list(found)


def _iterate(when: BaseSchedule, after: datetime, until: datetime) -> Iterator[datetime]:
    """Every slot behind a moment, up to another."""
    clock = after
    own = copy.copy(when)
    own.app, own.tz, own.nowfun = when.app, when.tz, lambda: clock
    while True:
        slot = (clock + own.remaining_estimate(clock)).astimezone(UTC)
        if not clock < slot <= until:
            return
        yield slot
        clock = slot

"""The slots of a schedule: the same for every process that looks, and those at which Celery's beat sends."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from celery import Celery
from celery.schedules import crontab, schedule

from dagabaaz_celery.errors import ConfigurationError
from dagabaaz_celery.slots import (
    Every,
    build_schedule,
    describe_schedule,
    find_slot,
    find_slots,
    format_slot,
    parse_slot,
    read_schedule,
)


def make_app(zone: str = "UTC") -> Celery:
    app = Celery("slots", set_as_current=False)
    app.conf.timezone = zone
    return app


APP = make_app()


def at(text: str) -> datetime:
    return datetime.strptime(text, "%Y-%m-%d %H:%M:%S").replace(tzinfo=UTC)


def find(when: Any, until: str, limit: int = 1, app: Celery = APP) -> list[str]:
    return [f"{slot:%Y-%m-%d %H:%M:%S}" for slot in find_slots(read_schedule(when, app), at(until), limit)]


@pytest.mark.parametrize(
    ("when", "until", "slots"),
    [
        (crontab(), "2026-05-01 10:00:00", ["2026-05-01 09:59:00", "2026-05-01 10:00:00"]),
        (crontab(), "2026-05-01 10:00:59", ["2026-05-01 09:59:00", "2026-05-01 10:00:00"]),
        (crontab(minute="*/15"), "2026-05-01 10:14:59", ["2026-05-01 09:45:00", "2026-05-01 10:00:00"]),
        (crontab(hour=3, minute=30), "2026-05-01 03:29:59", ["2026-04-29 03:30:00", "2026-04-30 03:30:00"]),
        (crontab(0, 0, day_of_week="mon"), "2026-05-01 00:00:00", ["2026-04-20 00:00:00", "2026-04-27 00:00:00"]),
        (crontab(0, 0, day_of_month=31), "2026-07-01 00:00:00", ["2026-03-31 00:00:00", "2026-05-31 00:00:00"]),
        (crontab(0, 0, day_of_month=1, month_of_year=1), "2026-05-01 00:00:00",
         ["2025-01-01 00:00:00", "2026-01-01 00:00:00"]),
        (60, "2026-05-01 10:00:59", ["2026-05-01 09:59:00", "2026-05-01 10:00:00"]),
        (timedelta(hours=6), "2026-05-01 11:00:00", ["2026-05-01 00:00:00", "2026-05-01 06:00:00"]),
        (schedule(timedelta(seconds=90)), "2026-05-01 00:02:00", ["2026-05-01 00:00:00", "2026-05-01 00:01:30"]),
    ],
)  # fmt: skip
def test_the_last_slots_are_found(when: Any, until: str, slots: list[str]):
    assert find(when, until, 2) == slots
    assert find(when, until) == slots[-1:]


def test_a_leap_day_is_found_and_a_day_of_a_year_that_is_past_years_ago_too():
    leap = crontab(0, 0, day_of_month=29, month_of_year=2)

    assert find(leap, "2031-05-01 00:00:00") == ["2028-02-29 00:00:00"]


def test_many_slots_of_a_rare_hour_are_found():
    nightly = crontab(minute="*/5", hour=3)

    slots = find(nightly, "2026-05-01 10:00:00", 100)

    assert len(slots) == 100
    assert slots[-1] == "2026-05-01 03:55:00"
    assert slots[0] == "2026-04-23 03:40:00"


@pytest.mark.parametrize(
    "when", [crontab(minute="*/7"), crontab(0, 4, day_of_week="1-5"), crontab(5, 0, day_of_month=3)]
)
def test_a_schedule_that_travelled_has_the_same_slots(when: Any):
    app = make_app("America/New_York")
    own = read_schedule(when, app)

    built = build_schedule(describe_schedule(own), make_app("Asia/Tokyo"))

    assert find_slots(built, at("2026-05-01 10:00:00"), 20) == find_slots(own, at("2026-05-01 10:00:00"), 20)
    assert build_schedule(describe_schedule(read_schedule(90, app)), app) == timedelta(seconds=90)


def test_a_slot_is_written_in_utc_to_the_second():
    assert format_slot(at("2026-05-01 10:00:00").astimezone(make_app("Asia/Tokyo").timezone)) == "2026-05-01T10:00:00Z"
    assert parse_slot("2026-05-01T10:00:00Z") == at("2026-05-01 10:00:00")


# -- as beat does


def list_beats(when: Any, begin: str, minutes: int) -> list[datetime]:
    """When beat sends, if it looks every minute: it asks with the time of its last message."""
    now = last = at(begin)
    sent = []
    own = read_schedule(when, make_app("Europe/Berlin"))
    own.nowfun = lambda: now
    for _ in range(minutes):
        now += timedelta(minutes=1)
        if own.is_due(last).is_due:
            last = now
            sent.append(now)
    return sent


@pytest.mark.parametrize("day", ["2026-03-28 22:00:00", "2026-10-24 22:00:00", "2026-06-01 22:00:00"])
@pytest.mark.parametrize(
    "when",
    [crontab(minute=30, hour=2), crontab(minute=0, hour="1,2,3"), crontab(minute="*/30"), crontab(minute=15), 1800],
    ids=str,
)
def test_what_beat_sends_is_for_the_slot_of_that_moment_on_days_with_a_change_of_clocks_too(when: Any, day: str):
    app = make_app("Europe/Berlin")
    sent = list_beats(when, day, 30 * 60)

    slots = [find_slot(read_schedule(when, app), moment + timedelta(milliseconds=700)) for moment in sent]

    assert slots == sent
    assert len(sent) >= 1


def test_local_time_is_that_of_the_app():
    daily = crontab(hour=3, minute=0)

    assert find(daily, "2026-06-01 12:00:00", app=make_app("Europe/Berlin")) == ["2026-06-01 01:00:00"]
    assert find(daily, "2026-12-01 12:00:00", app=make_app("Europe/Berlin")) == ["2026-12-01 02:00:00"]


def test_an_interval_is_due_at_its_multiples_whenever_beat_was_started():
    now = at("2026-05-01 10:00:41")
    every = Every(timedelta(minutes=1), nowfun=lambda: now, app=APP)

    assert every.is_due(at("2026-05-01 10:00:07")) == (False, 19.0)
    assert every.is_due(at("2026-05-01 09:59:59")) == (True, 19.0)
    assert every.is_due(at("2026-05-01 10:00:00")) == (False, 19.0)


@pytest.mark.parametrize("when", [0, -5, 0.5, 1.5, timedelta(milliseconds=1500), "daily", None, True, crontab])
def test_what_is_no_schedule_is_refused(when: Any):
    with pytest.raises(ConfigurationError, match=r"dag\.schedule got .* to say when: pass a whole number of seconds"):
        read_schedule(when, APP)

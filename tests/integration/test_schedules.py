"""Pipelines on beat's schedule: each slot is one run, however many messages it has, and whenever they come."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from celery import Celery, signals
from celery.beat import Scheduler, Service
from celery.schedules import crontab

from dagabaaz_celery.app import Dagabaaz
from dagabaaz_celery.errors import ConfigurationError, NotJson, PipelineError, RunInputError, UnknownPipeline
from dagabaaz_celery.models import DagNode
from dagabaaz_celery.pipeline import Pipeline
from dagabaaz_celery.schedules import MAX_CATCH_UP, TASK
from dagabaaz_celery.slots import describe_schedule, parse_slot
from dagabaaz_celery.testing import embedded_worker
from tests.integration.beat_app import SETTINGS_VARIABLE, make_dag
from tests.integration.celery_support import wait_until
from tests.processes import ProcessTree

ROOT = Path(__file__).resolve().parents[2]
HOURLY = crontab(minute=0)


def tick(word: str = "tea") -> str:
    if word == "sour milk":
        raise ValueError(word)
    return word


def add_pipeline(dag: Dagabaaz, name: str = "report") -> Pipeline:
    dag.plugin(tick, name="tick")
    return dag.register(Pipeline(name, nodes=[DagNode(slug="tick", plugin="tick")]))


def entry_of(dag: Dagabaaz, name: str = "report") -> dict[str, Any]:
    return dag.app.conf.beat_schedule[f"dagabaaz.{name}"]


def slots_of(dag: Dagabaaz, **tags: str) -> list[str | None]:
    """The slots of the runs that a schedule started, in order."""
    return sorted(run.tags.get("slot", "none") for run in dag.runs(tags=tags or None))


class Clock:
    """The store's clock, and the moment that it shows."""

    def __init__(self, dag: Dagabaaz, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(dag._runtime.store, "read_clock", lambda: int(self.now.timestamp() * 1_000_000))
        self._dag = dag

    def deliver(self, sent_for: str, now: str, name: str = "report") -> list[str]:
        """Have the message for a slot come at another time; the slots of the runs that this started or found."""
        self.now = parse_slot(now)
        entry = entry_of(self._dag, name)
        headers = {"dagabaaz_slot": sent_for, "dagabaaz_schedule": describe_schedule(entry["schedule"])}
        ids = self._dag.app.tasks[TASK].apply(kwargs=json.loads(json.dumps(entry["kwargs"])), headers=headers).get()
        return [self._dag.run(run_id).tags["slot"] for run_id in ids]


@pytest.fixture
def clock(dag: Dagabaaz, monkeypatch: pytest.MonkeyPatch) -> Clock:
    """A clock that is moved by hand."""
    return Clock(dag, monkeypatch)


# -- what beat is given


def test_a_schedule_is_an_entry_of_beat_also_where_the_app_is_configured_later():
    app = Celery("later", broker="memory://", set_as_current=False)
    dag = Dagabaaz(app)
    dag.schedule(add_pipeline(dag), HOURLY, input={"word": "jam"}, tags={"a": "b"})
    assert not app.configured

    app.config_from_object({"CELERY_TIMEZONE": "Europe/Berlin", "CELERY_BEAT_SCHEDULE": {}}, namespace="CELERY")

    entry = entry_of(dag)
    kwargs = {"name": "report", "pipeline": "report", "input": {"word": "jam"}, "tags": {"a": "b"}, "catch_up": False}
    assert (entry["task"], entry["kwargs"]) == (TASK, kwargs)
    assert str(entry["schedule"].tz) == "Europe/Berlin"
    dag.close()


def test_one_pipeline_may_have_several_schedules_by_different_names(dag: Dagabaaz):
    add_pipeline(dag)
    dag.schedule("report", HOURLY)
    dag.schedule("report", 60, name="often", input={"word": "jam"})

    with pytest.raises(ConfigurationError, match="Two schedules are called 'often'"):
        dag.schedule("report", 90, name="often")
    assert {"dagabaaz.report", "dagabaaz.often"} <= set(dag.app.conf.beat_schedule)


@pytest.mark.parametrize(
    ("given", "error", "what"),
    [
        ({"name": " x"}, RunInputError, "name is ' x'"),
        ({"name": "x" * 101}, RunInputError, "name is"),
        ({"tags": {"slot": "x"}}, RunInputError, "the tag 'slot' is set by the schedule itself"),
        ({"tags": {"a": 5}}, RunInputError, "tag 'a' is 5"),
        ({"input": ["tea"]}, RunInputError, "input is"),
        ({"input": {"when": datetime.now(UTC)}}, NotJson, "when"),
    ],
)
def test_what_no_run_can_be_started_with_is_refused_at_once(
    dag: Dagabaaz, given: dict[str, Any], error: type[Exception], what: str
):
    add_pipeline(dag)
    with pytest.raises(error, match=what):
        dag.schedule("report", HOURLY, **given)


def test_a_pipeline_that_cannot_be_is_refused_too(dag: Dagabaaz):
    with pytest.raises(PipelineError):
        dag.schedule(Pipeline("p", nodes=[DagNode(slug="a", plugin="x", depends_on=["b"])]), HOURLY)


# -- slots


def test_a_slot_has_one_run_however_often_its_message_comes(dag: Dagabaaz, clock: Clock):
    add_pipeline(dag)
    dag.schedule("report", HOURLY, tags={"a": "b"})

    for now in ("2026-05-01T10:00:00Z", "2026-05-01T10:00:03Z", "2026-05-01T10:40:00Z", "2026-05-01T09:59:58Z"):
        assert clock.deliver("2026-05-01T10:00:00Z", now) == ["2026-05-01T10:00:00Z"]

    (run,) = dag.runs()
    assert run.tags == {"a": "b", "schedule": "report", "slot": "2026-05-01T10:00:00Z"}


def test_messages_that_waited_start_the_latest_slot_alone(dag: Dagabaaz, clock: Clock):
    add_pipeline(dag)
    dag.schedule("report", HOURLY)

    for hour in range(5, 11):
        clock.deliver(f"2026-05-01T{hour:02}:00:00Z", "2026-05-01T10:20:00Z")

    assert slots_of(dag) == ["2026-05-01T10:00:00Z"]


def test_missed_slots_are_caught_up_from_the_last_one_that_has_a_run(dag: Dagabaaz, clock: Clock):
    add_pipeline(dag)
    dag.schedule("report", HOURLY, catch_up=True)

    assert clock.deliver("2026-05-01T10:00:00Z", "2026-05-01T10:00:01Z") == ["2026-05-01T10:00:00Z"]
    caught_up = [f"2026-05-01T{hour}:00:00Z" for hour in (11, 12, 13)]
    assert clock.deliver("2026-05-01T13:00:00Z", "2026-05-01T13:00:01Z") == caught_up
    assert clock.deliver("2026-05-01T12:00:00Z", "2026-05-01T13:00:02Z") == []
    assert slots_of(dag) == ["2026-05-01T10:00:00Z", *caught_up]


def test_a_first_slot_catches_nothing_up(dag: Dagabaaz, clock: Clock):
    add_pipeline(dag)
    dag.schedule("report", HOURLY, catch_up=True)

    assert clock.deliver("2026-05-01T10:00:00Z", "2026-05-01T11:30:00Z") == ["2026-05-01T11:00:00Z"]


def test_no_more_than_a_bound_is_caught_up(dag: Dagabaaz, clock: Clock):
    add_pipeline(dag)
    dag.schedule("report", timedelta(minutes=1), catch_up=True)
    clock.deliver("2026-05-01T10:00:00Z", "2026-05-01T10:00:00Z")

    assert len(clock.deliver("2026-05-01T11:38:00Z", "2026-05-01T11:38:00Z")) == 98
    assert clock.deliver("2026-05-09T10:00:00Z", "2026-05-09T10:00:00Z") == ["2026-05-09T10:00:00Z"]
    assert MAX_CATCH_UP == 100


@pytest.mark.parametrize(
    ("keys", "caught_up"),
    [(0, ["11:00", "12:00"]), (7200, ["10:00", "11:00", "12:00"])],
    ids=["keys go with their runs", "keys are kept for longer"],
)
def test_slots_whose_runs_and_keys_retention_may_have_deleted_do_not_run_again(
    new_dag: Callable[..., Dagabaaz], monkeypatch: pytest.MonkeyPatch, keys: float, caught_up: list[str]
):
    """The run of 05:00 failed and is kept for ever; those behind it completed, and are kept for an hour and a half."""
    dag = new_dag(task_always_eager=True, dagabaaz_retention={"completed": 5400, "keys": keys})
    add_pipeline(dag)
    dag.schedule("report", HOURLY, catch_up=True)
    clock = Clock(dag, monkeypatch)
    entry_of(dag)["kwargs"]["input"] = {"word": "sour milk"}
    clock.deliver("2026-05-01T05:00:00Z", "2026-05-01T05:00:00Z")
    entry_of(dag)["kwargs"]["input"] = {"word": "tea"}
    for hour in (6, 7, 8, 9):
        clock.deliver(f"2026-05-01T0{hour}:00:00Z", f"2026-05-01T0{hour}:00:00Z")
    assert dag.prune(older_than=0, status="completed").runs == {"completed": 4}

    started = clock.deliver("2026-05-01T12:00:00Z", "2026-05-01T12:10:00Z")

    assert started == [f"2026-05-01T{time}:00Z" for time in caught_up]


def test_a_slot_whose_run_had_other_input_is_left_at_that(dag: Dagabaaz, clock: Clock):
    """While a new release of the app is rolled out, two beats may say different things."""
    add_pipeline(dag)
    dag.schedule("report", HOURLY)
    clock.deliver("2026-05-01T10:00:00Z", "2026-05-01T10:00:00Z")

    entry_of(dag)["kwargs"]["input"] = {"word": "jam"}

    assert clock.deliver("2026-05-01T10:00:00Z", "2026-05-01T10:00:01Z") == []
    assert len(list(dag.runs())) == 1


def test_a_message_that_somebody_sends_by_hand_starts_a_run_at_once(dag: Dagabaaz):
    add_pipeline(dag)
    dag.schedule("report", HOURLY)
    kwargs = entry_of(dag)["kwargs"]

    for _ in range(2):
        dag.app.tasks[TASK].apply(kwargs=kwargs, task_id="the same message")

    (run,) = dag.runs()
    assert run.tags == {"schedule": "report"}


def test_a_pipeline_that_is_not_there_fails_the_message(dag: Dagabaaz, clock: Clock):
    dag.schedule("nobody's", HOURLY)
    with pytest.raises(UnknownPipeline):
        clock.deliver("2026-05-01T10:00:00Z", "2026-05-01T10:00:00Z", "nobody's")


# -- in beat


class MemoryScheduler(Scheduler):
    """Celery's own, less the file."""

    def setup_schedule(self) -> None:
        self.update_from_dict(self.app.conf.beat_schedule)


def begin_beat(dag: Dagabaaz) -> Service:
    """A beat that has just begun, and does not tick by itself."""
    service = Service(dag.app, scheduler_cls=MemoryScheduler)
    signals.beat_init.send(sender=service)
    return service


def test_beat_writes_the_slot_and_the_schedule_that_it_goes_by_into_the_message(
    dag: Dagabaaz, monkeypatch: pytest.MonkeyPatch
):
    add_pipeline(dag)
    dag.schedule("report", HOURLY)
    scheduler = begin_beat(dag).scheduler
    entry = scheduler.schedule["dagabaaz.report"]
    entry.schedule = crontab(minute="*/5", app=dag.app, nowfun=lambda: parse_slot("2026-05-01T10:07:03Z"))
    sent: list[dict[str, Any]] = []
    monkeypatch.setattr(dag.app.tasks[TASK], "apply_async", lambda args, kwargs, **options: sent.append(options))

    scheduler.apply_async(entry, advance=False)

    headers = sent[0]["headers"]
    assert headers["dagabaaz_slot"] == "2026-05-01T10:05:00Z"
    assert headers["dagabaaz_schedule"]["minute"] == list(range(0, 60, 5))
    assert "dagabaaz_slot" not in entry.options.get("headers", {}), "beat keeps the entry as it was"


def test_entries_that_a_later_setting_replaced_are_put_back(dag: Dagabaaz):
    add_pipeline(dag)
    dag.schedule("report", HOURLY)
    dag.app.conf.beat_schedule = {"mine": {"task": "mine", "schedule": 5.0}}

    assert set(begin_beat(dag).scheduler.schedule) == {"mine", "dagabaaz.report"}


def test_the_beat_of_another_app_is_left_alone(new_dag: Callable[..., Dagabaaz]):
    ours, theirs = new_dag(), new_dag()
    add_pipeline(ours)
    ours.schedule("report", HOURLY)
    assert set(begin_beat(theirs).scheduler.schedule) == set()


def test_a_message_of_beat_becomes_a_run_in_a_worker(dag: Dagabaaz):
    add_pipeline(dag)
    dag.schedule("report", 1)
    scheduler = begin_beat(dag).scheduler

    with embedded_worker(dag.app):
        scheduler.apply_async(scheduler.schedule["dagabaaz.report"])
        (run,) = wait_until(lambda: list(dag.runs(status="completed")), "a run of the slot completed")

    assert abs((parse_slot(run.tags["slot"]) - datetime.now(UTC)).total_seconds()) < 600
    assert run.snapshot().key == f"report@{run.tags['slot']}"


def test_two_beats_and_a_worker_give_one_run_for_each_slot(tmp_path: Path):
    """Each beat is started at another moment, and sends at the slots all the same."""
    given = {"directory": str(tmp_path / "site"), "every": 1}
    environment = {**os.environ, SETTINGS_VARIABLE: json.dumps(given)}
    command = [sys.executable, "-m", "celery", "-A", "tests.integration.beat_app"]
    dag = make_dag(tmp_path / "site", 1)
    processes = []

    def run(*arguments: str) -> ProcessTree:
        log = tmp_path / f"{len(processes)}.log"
        processes.append(ProcessTree([*command, *arguments], log=log, cwd=ROOT, env=environment))
        return processes[-1]

    def count_sent() -> list[int]:
        return [(tmp_path / f"{n}.log").read_text().count("Sending due task dagabaaz.tick") for n in (0, 1)]

    try:
        for number in (0, 1):
            run("beat", "-s", str(tmp_path / f"beat-{number}"), "-l", "INFO", "--pidfile=")
        wait_until(lambda: min(count_sent()) >= 2, "both beats send", timeout=60)
        run("worker", "-P", "solo", "-l", "INFO")
        more = [count + 2 for count in count_sent()]
        wait_until(lambda: all(a >= b for a, b in zip(count_sent(), more, strict=True)), "both go on", timeout=60)
        wait_until(lambda: len(list(dag.runs(status="completed"))) >= 3, "slots have runs", timeout=60)
        slots = slots_of(dag)
        assert len(slots) == len(set(slots))
        assert sum(count_sent()) > len(slots)
        assert all(run.snapshot().key == f"tick@{run.tags['slot']}" for run in dag.runs())
    finally:
        for process in processes:
            process.kill()
        dag.close()


def test_a_slot_of_a_daily_schedule_is_the_same_on_days_with_a_change_of_clocks(
    new_dag: Callable[..., Dagabaaz], monkeypatch: pytest.MonkeyPatch
):
    dag = new_dag(timezone="Europe/Berlin")
    add_pipeline(dag)
    dag.schedule("report", crontab(hour=2, minute=30), catch_up=True)
    clock = Clock(dag, monkeypatch)

    clock.deliver("2026-10-24T00:30:00Z", "2026-10-24T00:30:00Z")
    clock.deliver("2026-10-27T01:30:00Z", "2026-10-27T01:30:05Z")

    assert slots_of(dag) == [
        "2026-10-24T00:30:00Z",
        "2026-10-25T00:30:00Z",
        "2026-10-26T01:30:00Z",
        "2026-10-27T01:30:00Z",
    ]


def test_django_celery_beat_takes_schedules_and_what_is_edited_there_holds(tmp_path: Path):
    """In a process with Django's settings; what is edited is the code's again when beat starts, as for any entry."""
    command = [sys.executable, "-m", "tests.integration.django_beat", str(tmp_path)]

    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=90, check=False)

    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert set(said["rows"]) == {"dagabaaz.tick", "dagabaaz.hourly"}
    assert "0 3 * * * (m/h/d/dM/MY), Europe/Berlin" in said["rows"]["dagabaaz.tick"]
    first = {"schedule": "tick", "slot": "2026-05-01T01:00:00Z", "word": "tea"}
    edited = {"schedule": "tick", "slot": "2026-05-01T01:10:00Z", "word": "jam"}
    own = {"schedule": "own", "slot": "2026-05-01T01:10:00Z", "word": "cake"}
    assert said["as written"] == [first]
    assert said["edited"] == [edited, first]
    assert said["made there"] == [own, edited, first]
    assert said["after a restart"]["enabled"] == ["dagabaaz.tick", "made in the admin"]
    assert said["after a restart"]["crontab"].startswith("0 3 * * *")

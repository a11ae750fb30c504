"""What django-celery-beat does with a schedule of a pipeline, as JSON: run in a process that has Django's settings."""

import json
import sys
from pathlib import Path
from typing import Any

import django
from celery import Celery, signals
from celery.beat import Service
from celery.schedules import crontab
from django.conf import settings
from django.core.management import call_command

from dagabaaz_celery.app import Dagabaaz
from dagabaaz_celery.models import DagNode
from dagabaaz_celery.pipeline import Pipeline
from dagabaaz_celery.slots import parse_slot

directory = Path(sys.argv[1])
settings.configure(
    INSTALLED_APPS=["django_celery_beat"],
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": str(directory / "django.sqlite3")}},
    USE_TZ=True,
)
django.setup()

from django_celery_beat.models import CrontabSchedule, PeriodicTask, PeriodicTasks  # noqa: E402  # needs the settings

app = Celery("django_beat")
app.conf.update(
    task_always_eager=True,
    timezone="Europe/Berlin",
    beat_scheduler="django_celery_beat.schedulers:DatabaseScheduler",
    dagabaaz_store_url=f"sqlite:///{directory / 'runs.sqlite3'}",
)
dag = Dagabaaz(app)


@dag.plugin
def tick(word: str) -> str:
    return word


PIPELINE = Pipeline("tick", nodes=[DagNode(slug="tick", plugin="tick")])
dag.schedule(PIPELINE, crontab(hour=3, minute=0), input={"word": "tea"})
dag.schedule("tick", 3600, name="hourly", input={"word": "tea"})


def begin_beat() -> Any:
    service = Service(app, scheduler_cls=app.conf.beat_scheduler)
    signals.beat_init.send(sender=service)
    return service.scheduler


def send(scheduler: Any, name: str, now: str) -> list[dict[str, Any]]:
    """Have an entry sent as if it were another time; every run that there is now, with its input."""
    moment = parse_slot(now)
    entry = scheduler.schedule[name]
    entry.schedule.nowfun = lambda: moment
    dag._runtime.store.read_clock = lambda: int(moment.timestamp() * 1_000_000)  # type: ignore[method-assign]
    scheduler.apply_async(entry, advance=False)
    return [{**run.tags, **run.input} for run in dag.runs()]


call_command("migrate", verbosity=0)
said: dict[str, Any] = {}
scheduler = begin_beat()
made = PeriodicTask.objects.filter(task="dagabaaz.start_scheduled")
said["rows"] = {row.name: " ".join(str(row.schedule).split()) for row in made}
said["as written"] = send(scheduler, "dagabaaz.tick", "2026-05-01T01:00:04Z")

row = PeriodicTask.objects.get(name="dagabaaz.tick")
row.crontab = CrontabSchedule.objects.create(minute="*/10", hour="*", timezone="Asia/Tokyo")
row.kwargs = json.dumps({**json.loads(row.kwargs), "input": {"word": "jam"}})
row.save()
PeriodicTask.objects.create(
    name="made in the admin",
    task="dagabaaz.start_scheduled",
    crontab=row.crontab,
    kwargs=json.dumps({"name": "own", "pipeline": "tick", "input": {"word": "cake"}}),
)
PeriodicTasks.update_changed()
said["edited"] = send(scheduler, "dagabaaz.tick", "2026-05-01T01:17:00Z")
said["made there"] = send(scheduler, "made in the admin", "2026-05-01T01:17:00Z")

PeriodicTask.objects.filter(name="dagabaaz.hourly").update(enabled=False)
again = begin_beat()
said["after a restart"] = {
    "enabled": sorted(name for name in again.schedule if not name.startswith("celery.")),
    "crontab": str(PeriodicTask.objects.get(name="dagabaaz.tick").crontab),
}
sys.stdout.write(json.dumps(said))

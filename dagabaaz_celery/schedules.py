"""``dag.schedule``: pipelines on the schedule of Celery's beat, each slot one run, under any number of beats.

Beat sends a message for each slot, as for any task. What starts the run gives it a key made of the schedule's name and
the slot, so that a second message for the slot finds the run there. Which slot a message is for is written into it when
it is sent, by the schedule that beat goes by: in a table of django-celery-beat that may be another than the code's.
"""

import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from celery import Celery, signals
from celery.schedules import BaseSchedule

from dagabaaz_celery.errors import ConfigurationError, KeyConflict, RunInputError, format_problems
from dagabaaz_celery.json_door import check_json
from dagabaaz_celery.run import MICROSECONDS, Run
from dagabaaz_celery.slots import (
    build_schedule,
    describe_schedule,
    find_slot,
    find_slots,
    format_slot,
    parse_slot,
    read_schedule,
)
from dagabaaz_celery.tags import MAX_NAME_LENGTH, describe_name, find_tag_problems, is_name
from dagabaaz_celery.worker.runtime import Runtime

logger = logging.getLogger(__name__)

#: The task that starts scheduled runs.
TASK = "dagabaaz.start_scheduled"
#: Slots that are looked at for those that were missed.
MAX_CATCH_UP = 100
#: In a message: the slot, and the schedule that it is one of.
_SLOT, _SCHEDULE = "dagabaaz_slot", "dagabaaz_schedule"
#: Tags that tell which schedule started a run, and for which slot.
_TAGS = ("schedule", "slot")
_OPTIONS = {"shared": False, "bind": True, "acks_late": True, "reject_on_worker_lost": True, "ignore_result": True}

Start = Callable[..., Run]


@dataclass(frozen=True)
class Scheduled:
    """What a message of beat asks for."""

    name: str
    pipeline: str
    input: Mapping[str, Any] | None
    tags: Mapping[str, str]
    catch_up: bool


class Schedules:
    """The schedules of an app's pipelines: entries for beat, and the task that they have it send."""

    def __init__(self, runtime: Runtime, start: Start) -> None:
        self._app: Celery = runtime.app
        self._runtime = runtime
        self._start = start
        self._entries: dict[str, dict[str, Any]] = {}
        # Known without a schedule in the code, too: django-celery-beat's tables may have some of their own.
        self._app.task(name=TASK, **_OPTIONS)(self._make_body())
        signals.beat_init.connect(self._on_beat)

    def add(
        self,
        pipeline: str,
        when: object,
        *,
        input: Mapping[str, Any] | None,
        name: str,
        catch_up: bool,
        tags: Mapping[str, str],
    ) -> None:
        """Have beat send a message for each slot. Raises ConfigurationError, RunInputError."""
        self._refuse(name, input, tags)
        schedule = read_schedule(when, self._app)
        entry = f"dagabaaz.{name}"
        kwargs = {"name": name, "pipeline": pipeline, "input": input, "tags": dict(tags), "catch_up": bool(catch_up)}
        self._entries[entry] = {"task": TASK, "schedule": schedule, "kwargs": kwargs}
        self._app.add_periodic_task(schedule, self._app.signature(TASK, kwargs=kwargs), name=entry)

    def _refuse(self, name: str, input: Mapping[str, Any] | None, tags: Mapping[str, str]) -> None:
        if f"dagabaaz.{name}" in self._entries:
            raise ConfigurationError(
                f"Two schedules are called {name!r}: each slot of a name is one run. Give one another name, "
                "dag.schedule(..., name=...)."
            )
        problems = [] if is_name(name, MAX_NAME_LENGTH) else [f"name is {name!r}: it must be {describe_name(100)}"]
        problems += find_tag_problems(tags)
        problems += [f"the tag {tag!r} is set by the schedule itself" for tag in _TAGS if tag in tags]
        if input is not None and not isinstance(input, Mapping):
            problems.append(f"input is {input!r}: pass a dict, or None")
        if problems:
            raise RunInputError(format_problems("The schedule cannot be used", problems), problems)
        if input is not None:
            # Its size is looked at by each start: no setting is read here, as the app may be configured later.
            check_json(dict(input), "input", max_bytes=sys.maxsize, setting="dagabaaz_max_input_bytes")

    # -- in beat

    def _on_beat(self, sender: Any, **_: Any) -> None:
        """Have this process's beat write slots into messages; see to entries that a later setting has replaced."""
        scheduler = sender.scheduler
        if scheduler.app is not self._app:
            return
        missing = {name: entry for name, entry in self._entries.items() if name not in self._app.conf.beat_schedule}
        if missing:
            scheduler.update_from_dict(missing)
        send = scheduler.apply_async

        def send_with_slot(entry: Any, *args: Any, **kwargs: Any) -> Any:
            return send(_with_slot(entry) if entry.task == TASK else entry, *args, **kwargs)

        scheduler.apply_async = send_with_slot

    # -- in workers

    def _make_body(self) -> Callable[..., list[str]]:
        def start_scheduled(
            task: Any,
            name: str,
            pipeline: str,
            input: Mapping[str, Any] | None = None,
            tags: Mapping[str, str] | None = None,
            catch_up: bool = False,
        ) -> list[str]:
            """Start the runs that are due; their ids."""
            asked = Scheduled(name, pipeline, input, tags or {}, catch_up)
            # An app that runs tasks in place has headers apart from the other facts of a message.
            headers = {**(task.request.headers or {}), **vars(task.request)}
            slot = headers.get(_SLOT)
            if slot is None:  # somebody sent it by hand, and wants a run now
                return [self._start_now(asked, task.request.id)]
            return self.start_due(asked, parse_slot(slot), self._find_schedule(name, headers.get(_SCHEDULE)))

        return start_scheduled

    def _find_schedule(self, name: str, described: Mapping[str, Any] | None) -> BaseSchedule | None:
        if described is not None:
            return build_schedule(described, self._app)
        entry = self._entries.get(f"dagabaaz.{name}")
        return None if entry is None else entry["schedule"]

    def start_due(self, asked: Scheduled, slot: datetime, schedule: BaseSchedule | None) -> list[str]:
        """Start a run for a slot, and what else is due of its schedule; the ids of all these runs.

        A message that waited for long is for the slots of its time up to now: the last of them, or with ``catch_up``
        those behind the last one that has a run.
        """
        slots: Sequence[datetime] = [slot]
        if schedule is not None:
            now = datetime.fromtimestamp(self._runtime.store.read_clock() / MICROSECONDS, UTC)
            until = max(find_slot(schedule, now) or slot, slot)
            slots = self._find_missed(asked, find_slots(schedule, until, MAX_CATCH_UP)) if asked.catch_up else [until]
        return [run_id for each in slots if (run_id := self._start_slot(asked, each)) is not None]

    def _find_missed(self, asked: Scheduled, slots: Sequence[datetime]) -> Sequence[datetime]:
        """Those behind the last slot that has a run; of a schedule that has none yet, the last."""
        keys = [_key(asked.name, slot) for slot in slots]
        known = self._runtime.store.find_keys(asked.pipeline, keys)
        last = max((place for place, key in enumerate(keys) if key in known), default=len(keys) - 2)
        missed = slots[last + 1 :]
        # Of a run that retention has deleted not even the key may be known: what is as old as that counts as done.
        oldest = self._find_oldest_key()
        return [*(slot for slot in missed[:-1] if slot.timestamp() > oldest), *missed[-1:]]

    def _find_oldest_key(self) -> float:
        """The time behind which the key of every run is known, whatever retention has deleted; since 1970."""
        retention = self._runtime.settings.retention
        if retention is None or not retention.ages:
            return 0.0
        kept = min(retention.ages.values()) + retention.keys
        return self._runtime.store.read_clock() / MICROSECONDS - kept

    def _start_slot(self, asked: Scheduled, slot: datetime) -> str | None:
        at = format_slot(slot)
        try:
            return self._start(
                asked.pipeline,
                asked.input,
                key=_key(asked.name, slot),
                tags={**asked.tags, "schedule": asked.name, "slot": at},
            ).id
        except KeyConflict:
            logger.info("the slot %s of schedule %r has a run already, with other input", at, asked.name)
            return None

    def _start_now(self, asked: Scheduled, message_id: str) -> str:
        tags = {**asked.tags, "schedule": asked.name}
        return self._start(asked.pipeline, asked.input, key=f"{asked.name}@{message_id}", tags=tags).id


def _key(name: str, slot: datetime) -> str:
    return f"{name}@{format_slot(slot)}"


def _with_slot(entry: Any) -> Any:
    """A beat entry, as it is now, whose message says for which slot it is sent."""
    now = entry.schedule.maybe_make_aware(entry.schedule.now()).astimezone(UTC)
    headers = {
        **entry.options.get("headers", {}),
        _SLOT: format_slot(find_slot(entry.schedule, now) or now),
        _SCHEDULE: describe_schedule(entry.schedule),
    }
    sent = object.__new__(type(entry))  # copy.copy would make an entry anew, which a table's entry cannot be
    sent.__dict__.update(vars(entry), options={**entry.options, "headers": headers})
    return sent

"""What may be done to runs in the admin: to those chosen in the list, or to the one of a page."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from dagabaaz_celery.constants import RUN_TERMINAL_STATUSES, RunStatus
from dagabaaz_celery.contrib.django.models import Run
from dagabaaz_celery.errors import RunStateError
from dagabaaz_celery.run import Run as RunHandle


@dataclass(frozen=True)
class Step:
    """Something that is done to a run: ``call`` gets its handle and who asks; ``suits`` tells whether it makes sense.

    ``done`` follows "was" in a message.
    """

    name: str
    label: str
    done: str
    explanation: str
    call: Callable[[RunHandle, str], None]
    suits: Callable[[Run], bool]

    @property
    def permission(self) -> str:
        """What a user needs for it."""
        return f"dagabaaz.{self.name}_run"


def _retry(run: RunHandle, who: str) -> None:
    run.retry()


def _cancel(run: RunHandle, who: str) -> None:
    status = run.status
    if status in RUN_TERMINAL_STATUSES:
        raise RunStateError(f"Run {run.id} is {status}: only a run that has not ended can be cancelled.")
    run.cancel(f"cancelled by {who} in the admin")


def _roll_back(run: RunHandle, who: str) -> None:
    run.rollback()


def _has_rollback(run: Run) -> bool:
    return any(node.get("rollback") for node in run.definition.body["nodes"])


STEPS = {
    step.name: step
    for step in [
        Step(
            "retry",
            "Retry",
            "retried",
            "What failed or was cancelled runs again, and everything behind it. What completed does not run again.",
            _retry,
            lambda run: (
                run.status in (RunStatus.FAILED, RunStatus.CRASHED, RunStatus.CANCELLED)
                and run.rollback_status != "running"
            ),
        ),
        Step(
            "cancel",
            "Cancel",
            "cancelled",
            "No further task of the run starts. Bodies that run go on to their end, which then counts for nothing. "
            "What its tasks did is undone, where their nodes have a rollback.",
            _cancel,
            lambda run: run.status not in RUN_TERMINAL_STATUSES,
        ),
        Step(
            "rollback",
            "Roll back",
            "sent to be rolled back",
            "What the run's tasks did is undone by the rollbacks of their nodes, the last first.",
            _roll_back,
            lambda run: (
                run.status in RUN_TERMINAL_STATUSES and run.rollback_status in ("none", "failed") and _has_rollback(run)
            ),
        ),
    ]
}


def list_steps(user: Any, run: Run) -> list[Step]:
    """What this user may do to this run, and makes sense now."""
    return [step for step in STEPS.values() if step.suits(run) and user.has_perm(step.permission)]

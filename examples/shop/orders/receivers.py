"""How an order learns what became of its run. These are called in a worker, at least once: they set, and do not add."""

from typing import Any

from django.dispatch import receiver

from dagabaaz_celery.constants import RunStatus
from dagabaaz_celery.contrib.django.signals import run_cancelled, run_completed, run_crashed, run_failed
from dagabaaz_celery.run import Run
from orders.models import Order

STATES = {
    RunStatus.COMPLETED: Order.Status.SHIPPED,
    RunStatus.FAILED: Order.Status.FAILED,
    RunStatus.CRASHED: Order.Status.FAILED,
    RunStatus.CANCELLED: Order.Status.CANCELLED,
}


@receiver([run_completed, run_failed, run_crashed, run_cancelled], dispatch_uid="orders.follow_run")
def follow_run(run: Run, **kwargs: Any) -> None:
    """Set the order's status to what the run says now: after a retry in the admin that may be another than before."""
    error = run.error
    status = STATES.get(run.status, Order.Status.PLACED)
    Order.objects.filter(run_id=run.id).update(status=status, problem="" if error is None else error.message)

"""How an order learns what became of its run. These are called in a worker, at least once: they set, and do not add."""

from typing import Any

from django.dispatch import receiver

from dagabaaz_celery.contrib.django.signals import run_cancelled, run_completed, run_crashed, run_failed
from dagabaaz_celery.run import Run
from orders.models import Order
from orders.progress import STATUS_AFTER


@receiver([run_completed, run_failed, run_crashed, run_cancelled], dispatch_uid="orders.follow_run")
def follow_run(run: Run, **kwargs: Any) -> None:
    """Set the order's status to what the run says now: after a retry in the admin that may be another than before."""
    snapshot = run.snapshot()
    Order.objects.filter(run_id=run.id).update(
        status=STATUS_AFTER.get(snapshot.status, Order.Status.PLACED),
        problem="" if snapshot.error is None else snapshot.error.message,
    )

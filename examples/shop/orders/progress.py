"""What an order's page tells: how its run goes, and what was done and undone so far."""

from typing import Any

from dagabaaz_celery.constants import RunStatus
from dagabaaz_celery.contrib.django import dag
from dagabaaz_celery.errors import UnknownRun
from dagabaaz_celery.run import RunSnapshot
from orders.models import Order, Payment, Shipment, count_by_status

#: What has become of an order whose run ended like that.
STATUS_AFTER = {
    RunStatus.COMPLETED: Order.Status.SHIPPED,
    RunStatus.FAILED: Order.Status.FAILED,
    RunStatus.CRASHED: Order.Status.FAILED,
    RunStatus.CANCELLED: Order.Status.CANCELLED,
}
SHIPMENTS_SHOWN = 8


def tell_progress(order: Order) -> dict[str, Any]:
    """For the templates. ``settled`` tells that nothing more is going to change by itself."""
    run = look_at_run(order)
    shipments = count_by_status(order.shipments)
    return {
        "run": run,
        # An order whose run was retried in the admin is failed no more, and not shipped yet.
        "status": order.status if run is None or run.status in STATUS_AFTER else Order.Status.PLACED,
        "settled": run is None or (run.settled and order.status == STATUS_AFTER[run.status]),
        "reserved": order.lines.filter(reserved=True).exists(),
        "payments": order.payments.all(),
        "refunded": order.payments.filter(status=Payment.Status.REFUNDED).exists(),
        "shipments": order.shipments.all()[:SHIPMENTS_SHOWN],
        "parcels_sent": shipments.get(Shipment.Status.SENT, 0),
        "parcels_recalled": shipments.get(Shipment.Status.RECALLED, 0),
        "parcels_more": max(sum(shipments.values()) - SHIPMENTS_SHOWN, 0),
    }


def look_at_run(order: Order) -> RunSnapshot | None:
    """How the order's run stands; None for one that was deleted, as old runs may be."""
    try:
        return dag.run(order.run_id).snapshot()
    except UnknownRun:
        return None

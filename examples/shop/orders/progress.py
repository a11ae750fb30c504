"""What an order's page tells: how its run goes, and what was done and undone so far."""

from typing import Any

from dagabaaz_celery.contrib.django import dag
from orders.models import Order, Payment, Shipment, count_by_status

SHIPMENTS_SHOWN = 8


def tell_progress(order: Order) -> dict[str, Any]:
    """For the templates. ``settled`` tells that nothing more is going to change."""
    snapshot = dag.run(order.run_id).snapshot()
    shipments = count_by_status(order.shipments)
    return {
        "run": snapshot,
        "settled": snapshot.settled and order.status != Order.Status.PLACED,
        "payments": order.payments.all(),
        "refunded": order.payments.filter(status=Payment.Status.REFUNDED).exists(),
        "shipments": order.shipments.all()[:SHIPMENTS_SHOWN],
        "parcels_sent": shipments.get(Shipment.Status.SENT, 0),
        "parcels_recalled": shipments.get(Shipment.Status.RECALLED, 0),
        "parcels_more": max(sum(shipments.values()) - SHIPMENTS_SHOWN, 0),
    }

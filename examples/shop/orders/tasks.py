"""What is done for an order, and how each step is undone.

A body runs at least once: when a worker dies between its last line and the commit of its outcome, it runs again. So
each is safe to repeat. It changes a row only from the state in which that has to be, or asks with the same key again.
"""

from collections.abc import Iterator
from typing import Any

from django.db import transaction
from django.db.models import F

from dagabaaz_celery.contrib.django import dag
from orders import outside
from orders.models import Order, OrderLine, Payment, Product, Shipment


class OutOfStock(Exception):
    """There is not enough of a product."""


@dag.plugin
def reserve(order: int) -> dict[str, Any]:
    """Take all of the order from the stock, or nothing."""
    with transaction.atomic():
        for line in OrderLine.objects.filter(order=order, reserved=False).select_related("product"):
            if not OrderLine.objects.filter(pk=line.pk, reserved=False).update(reserved=True):
                continue
            in_stock = Product.objects.filter(pk=line.product_id, stock__gte=line.quantity)
            if not in_stock.update(stock=F("stock") - line.quantity):
                raise OutOfStock(f"There are not {line.quantity:,} of {line.product.name} left.")
    return {"reserved": order}


@dag.plugin
def release(order: int) -> None:
    """Give back to the stock what was taken from it."""
    with transaction.atomic():
        for line in OrderLine.objects.filter(order=order, reserved=True):
            if OrderLine.objects.filter(pk=line.pk, reserved=True).update(reserved=False):
                Product.objects.filter(pk=line.product_id).update(stock=F("stock") + line.quantity)


@dag.plugin
def charge(order: int) -> dict[str, Any]:
    """Have the bank take the money. A charge after a refund is another one, with a key of its own."""
    placed = Order.objects.get(pk=order)
    refunds = placed.payments.filter(status=Payment.Status.REFUNDED).count()
    key = f"order-{order}-{refunds + 1}"
    amount = placed.total
    outside.charge_card(placed.card, amount, key=key)
    Payment.objects.get_or_create(key=key, defaults={"order": placed, "amount": amount})
    return {"payment": key}


@dag.plugin
def refund(order: int) -> None:
    """Give the money back."""
    for payment in Payment.objects.filter(order=order, status=Payment.Status.CHARGED):
        outside.refund_card(key=payment.key)
        Payment.objects.filter(pk=payment.pk).update(status=Payment.Status.REFUNDED)


@dag.plugin
def pack(order: int) -> Iterator[dict[str, Any]]:
    """The order's parcels: each becomes a task of the next node."""
    parcel = 0
    for line in OrderLine.objects.filter(order=order).select_related("product"):
        for first in range(0, line.quantity, line.product.units_per_parcel):
            parcel += 1
            units = min(line.product.units_per_parcel, line.quantity - first)
            yield {"parcel": parcel, "content": f"{units} \u00d7 {line.product.name}"}


@dag.plugin
def ship(order: int, parcel: int, content: str) -> dict[str, Any]:
    """Give one parcel to a carrier."""
    tracking = outside.send_parcel(Order.objects.get(pk=order).city, key=f"{order}-{parcel}")
    Shipment.objects.update_or_create(
        order_id=order,
        number=parcel,
        defaults={"content": content, "tracking": tracking, "status": Shipment.Status.SENT},
    )
    return {"tracking": tracking}


@dag.plugin
def recall(order: int, parcel: int) -> None:
    """Have a parcel brought back, if it was sent."""
    for shipment in Shipment.objects.filter(order=order, number=parcel, status=Shipment.Status.SENT):
        outside.recall_parcel(shipment.tracking)
        Shipment.objects.filter(pk=shipment.pk).update(status=Shipment.Status.RECALLED)

"""Plugins where Celery looks for tasks."""

from django.db.models import F

from dagabaaz_celery.contrib.django import dag
from tests.django_project.orders.models import Order


@dag.plugin(ignore_result=False)
def pack(order: int) -> str:
    """Pack an order."""
    Order.objects.filter(pk=order).update(packed=F("packed") + 1)
    return f"packed {order}"


@dag.plugin
def refuse(order: int) -> None:
    """Fail."""
    raise ValueError(f"no {order}")

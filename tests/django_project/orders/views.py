"""Pages that place orders: each order with its run, or neither."""

from django.db import transaction
from django.http import HttpRequest, JsonResponse

from dagabaaz_celery.contrib.django import dag
from tests.django_project.orders.models import Order


@transaction.atomic
def place_order(request: HttpRequest) -> JsonResponse:
    """Place an order, and tell how its run was before the commit."""
    order = Order.objects.create(item=request.POST["item"])
    run = dag.start("order", {"order": order.pk}, tags={"item": order.item})
    order.run_id = run.id
    order.save()
    return JsonResponse({"run": run.id, "status": run.status})


@transaction.atomic
def place_order_unless(request: HttpRequest) -> JsonResponse:
    """Begin like ``place_order``, and fail."""
    place_order(request)
    raise ValueError("something else went wrong")

"""Pages of the shop."""

from django.db import transaction
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.utils.crypto import get_random_string
from django.views.decorators.http import require_GET, require_http_methods

from dagabaaz_celery.contrib.django import dag
from orders.forms import OrderForm
from orders.models import Order
from orders.progress import tell_progress


@require_http_methods(["GET", "POST"])
def catalogue(request: HttpRequest) -> HttpResponse:
    """What there is to buy, and the form that orders it."""
    form = OrderForm(request.POST or None)
    if request.method == "POST" and form.is_valid():
        return redirect("order", place_order(form, get_visitor(request)).pk)
    return render(request, "orders/catalogue.html", {"form": form})


def place_order(form: OrderForm, visitor: str) -> Order:
    """The order and the run that carries it out are committed together, or neither is there."""
    with transaction.atomic():
        order = form.save_for(visitor)
        run = dag.start("order", {"order": order.pk}, tags={"order": str(order.pk)})
        order.run_id = run.id
        order.save(update_fields=["run_id"])
    return order


@require_GET
def list_orders(request: HttpRequest) -> HttpResponse:
    """The visitor's own orders."""
    orders = Order.objects.filter(visitor=get_visitor(request)).prefetch_related("lines__product")
    return render(request, "orders/orders.html", {"orders": orders})


@require_GET
def show_order(request: HttpRequest, number: int) -> HttpResponse:
    """An order of the visitor, with its progress."""
    return render(
        request, "orders/order.html", {"order": (order := find_order(request, number)), **tell_progress(order)}
    )


@require_GET
def show_progress(request: HttpRequest, number: int) -> HttpResponse:
    """The part of the order's page that changes, for the page to fetch again and again."""
    return render(
        request, "orders/progress.html", {"order": (order := find_order(request, number)), **tell_progress(order)}
    )


def find_order(request: HttpRequest, number: int) -> Order:
    """An order that is the visitor's own; Http404 for any other."""
    return get_object_or_404(Order.objects.prefetch_related("lines__product"), pk=number, visitor=get_visitor(request))


def get_visitor(request: HttpRequest) -> str:
    """Who it is, as far as a session tells: this shop has no accounts."""
    if "visitor" not in request.session:
        request.session["visitor"] = get_random_string(32)
    visitor: str = request.session["visitor"]
    return visitor

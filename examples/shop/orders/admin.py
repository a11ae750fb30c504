"""The shop in the admin; runs have their own pages there, from dagabaaz_celery.contrib.django."""

from django.contrib import admin
from django.urls import reverse
from django.utils.html import format_html

from orders.models import Order, OrderLine, Payment, Product, Shipment


class OrderLineInline(admin.TabularInline):
    """Lines of an order."""

    model = OrderLine
    extra = 0
    readonly_fields = ("reserved",)


class PaymentInline(admin.TabularInline):
    """Payments of an order."""

    model = Payment
    extra = 0
    readonly_fields = ("key", "amount", "status")
    can_delete = False


@admin.register(Product)
class ProductAdmin(admin.ModelAdmin):
    """Products and their stock."""

    list_display = ("name", "price", "stock", "units_per_parcel")
    list_editable = ("stock",)


@admin.register(Order)
class OrderAdmin(admin.ModelAdmin):
    """Orders. Correct an address here, then have the run retried."""

    list_display = ("__str__", "name", "city", "status", "problem", "placed_at")
    list_filter = ("status",)
    readonly_fields = ("status", "problem", "run", "placed_at")
    inlines = (OrderLineInline, PaymentInline)

    @admin.display
    def run(self, order: Order) -> str:
        """A link to the page of its run, which has its graph and the button that retries it."""
        return format_html(
            '<a href="{}">{}</a>', reverse("admin:dagabaaz_run_change", args=[order.run_id]), order.run_id
        )


@admin.register(Shipment)
class ShipmentAdmin(admin.ModelAdmin):
    """Parcels."""

    list_display = ("tracking", "order", "content", "status")
    list_filter = ("status",)
    list_select_related = ("order",)

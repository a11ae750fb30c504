"""The shop in the admin; runs have their own pages there, from dagabaaz_celery.contrib.django."""

from django.contrib import admin

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
    readonly_fields = ("status", "problem", "run_id", "placed_at")
    inlines = (OrderLineInline, PaymentInline)


@admin.register(Shipment)
class ShipmentAdmin(admin.ModelAdmin):
    """Parcels."""

    list_display = ("tracking", "order", "content", "status")
    list_filter = ("status",)
    list_select_related = ("order",)

"""What the shop knows: products, orders, and what was done for each order."""

from typing import Any

from django.core.validators import MinValueValidator
from django.db import models


class Product(models.Model):
    """Something to buy. ``units_per_parcel`` is how many of them fit into a parcel; ``price`` is in cents."""

    name = models.CharField(max_length=100, unique=True)
    description = models.CharField(max_length=200)
    price = models.PositiveIntegerField(validators=[MinValueValidator(1)])
    stock = models.PositiveIntegerField()
    units_per_parcel = models.PositiveIntegerField(default=1, validators=[MinValueValidator(1)])
    hue = models.PositiveSmallIntegerField(default=0)

    class Meta:
        ordering = ("pk",)

    def __str__(self) -> str:
        return self.name


class Order(models.Model):
    """An order as it was placed. ``visitor`` is whose it is, ``run_id`` the run that carries it out."""

    class Status(models.TextChoices):
        """What became of it."""

        PLACED = "placed"
        SHIPPED = "shipped"
        FAILED = "failed"
        CANCELLED = "cancelled"

    class Card(models.TextChoices):
        """What a bank's form in the browser would give in place of a card's number: the shop never sees that."""

        GOOD = "card-good", "a card that works"
        EMPTY = "card-empty", "a card that the bank declines"

    visitor = models.CharField(max_length=32, db_index=True, editable=False)
    placed_at = models.DateTimeField(auto_now_add=True)
    name = models.CharField("your name", max_length=100)
    street = models.CharField(max_length=100)
    city = models.CharField(max_length=100, help_text='Carriers go everywhere but to "Nowhere".')
    card = models.CharField("pay with", max_length=20, choices=Card.choices, default=Card.GOOD)
    status = models.CharField(max_length=10, choices=Status.choices, default=Status.PLACED)
    problem = models.TextField(blank=True)
    run_id = models.CharField(max_length=36, editable=False)

    class Meta:
        ordering = ("-pk",)

    def __str__(self) -> str:
        return f"Order {self.pk}"

    @property
    def total(self) -> int:
        """What all of it costs, in cents."""
        return sum(line.price * line.quantity for line in self.lines.all())


class OrderLine(models.Model):
    """A product of an order, at the price of that day; ``reserved`` tells that it was taken from the stock."""

    order = models.ForeignKey(Order, on_delete=models.CASCADE, related_name="lines")
    product = models.ForeignKey(Product, on_delete=models.PROTECT)
    quantity = models.PositiveIntegerField(validators=[MinValueValidator(1)])
    price = models.PositiveIntegerField()
    reserved = models.BooleanField(default=False)

    class Meta:
        ordering = ("product_id",)  # every order takes its products in the same order: no two wait for each other
        unique_together = (("order", "product"),)

    def __str__(self) -> str:
        return f"{self.quantity} \u00d7 {self.product}"


class Payment(models.Model):
    """Money that the bank took. It takes it once for each ``key``, however often it is asked."""

    class Status(models.TextChoices):
        """Where the money is."""

        CHARGED = "charged"
        REFUNDED = "refunded"

    order = models.ForeignKey(Order, on_delete=models.CASCADE, related_name="payments")
    key = models.CharField(max_length=64, unique=True)
    amount = models.PositiveIntegerField()
    status = models.CharField(max_length=10, choices=Status.choices, default=Status.CHARGED)

    class Meta:
        ordering = ("pk",)

    def __str__(self) -> str:
        return self.key


class Shipment(models.Model):
    """A parcel that was given to a carrier. ``number`` counts the parcels of an order from 1."""

    class Status(models.TextChoices):
        """Where the parcel is."""

        SENT = "sent"
        RECALLED = "recalled"

    order = models.ForeignKey(Order, on_delete=models.CASCADE, related_name="shipments")
    number = models.PositiveIntegerField()
    content = models.CharField(max_length=120)
    tracking = models.CharField(max_length=40)
    status = models.CharField(max_length=10, choices=Status.choices, default=Status.SENT)

    class Meta:
        ordering = ("number",)
        unique_together = (("order", "number"),)

    def __str__(self) -> str:
        return self.tracking


def count_by_status(rows: Any) -> dict[str, int]:
    """How many rows there are of each status."""
    return dict(rows.order_by("status").values_list("status").annotate(models.Count("pk")))

"""The form by which an order is placed: how many of each product, where to, and how it is paid."""

from typing import Any

from django import forms
from django.db import transaction

from orders.models import Order, OrderLine, Product

MOST_UNITS = 5000


class OrderForm(forms.ModelForm):
    """An order with its lines: a field for each product, and the fields of the order itself."""

    class Meta:
        model = Order
        fields = ("name", "street", "city", "card")
        widgets = {"card": forms.RadioSelect}

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.products = list(Product.objects.all())
        for product in self.products:
            self.fields[_field(product)] = forms.IntegerField(
                label=f"How many of {product.name}", min_value=0, max_value=MOST_UNITS, initial=0, required=False
            )

    def rows(self) -> list[tuple[Product, Any]]:
        """Each product with its field."""
        return [(product, self[_field(product)]) for product in self.products]

    def clean(self) -> dict[str, Any]:
        """An order of nothing is none."""
        cleaned: dict[str, Any] = super().clean() or self.cleaned_data
        if not self.errors and not any(cleaned.get(_field(product)) for product in self.products):
            raise forms.ValidationError("Choose how many you want of something.")
        return cleaned

    def save_for(self, visitor: str) -> Order:
        """Store the order with its lines."""
        with transaction.atomic():
            order: Order = self.save(commit=False)
            order.visitor = visitor
            order.save()
            for product in self.products:
                if quantity := self.cleaned_data[_field(product)]:
                    OrderLine.objects.create(order=order, product=product, quantity=quantity, price=product.price)
        return order


def _field(product: Product) -> str:
    return f"quantity-{product.pk}"

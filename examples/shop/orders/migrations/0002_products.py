"""Something to sell."""

from typing import Any

from django.db import migrations

PRODUCTS = [
    # name, description, cents, stock, units in a parcel, hue of its picture
    ("Assam", "100 g of black tea, malty and strong.", 650, 40, 2, 18),
    ("Sencha", "100 g of green tea, from the first harvest.", 980, 25, 2, 110),
    ("Teapot", "A litre of stoneware. Each in a box of its own.", 3400, 12, 1, 205),
    ("Sample", "A cup of something new, by letter. Some order it by the thousand.", 50, 10_000, 1, 280),
]


def add_products(apps: Any, schema_editor: Any) -> None:
    """Fill the shelves."""
    product = apps.get_model("orders", "Product")
    for name, description, price, stock, units, hue in PRODUCTS:
        product.objects.create(
            name=name, description=description, price=price, stock=stock, units_per_parcel=units, hue=hue
        )


class Migration(migrations.Migration):
    """The products of the example."""

    dependencies = [("orders", "0001_initial")]
    operations = [migrations.RunPython(add_products, migrations.RunPython.noop)]

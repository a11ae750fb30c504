"""Tables of the shop."""

import django.core.validators
import django.db.models.deletion
from django.db import migrations, models


class Migration(migrations.Migration):
    initial = True

    dependencies = []

    operations = [
        migrations.CreateModel(
            name="Order",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("visitor", models.CharField(db_index=True, editable=False, max_length=32)),
                ("placed_at", models.DateTimeField(auto_now_add=True)),
                ("name", models.CharField(max_length=100, verbose_name="your name")),
                ("street", models.CharField(max_length=100)),
                ("city", models.CharField(help_text='Carriers go everywhere but to "Nowhere".', max_length=100)),
                (
                    "card",
                    models.CharField(
                        choices=[("card-good", "a card that works"), ("card-empty", "a card that the bank declines")],
                        default="card-good",
                        max_length=20,
                        verbose_name="pay with",
                    ),
                ),
                (
                    "status",
                    models.CharField(
                        choices=[
                            ("placed", "Placed"),
                            ("shipped", "Shipped"),
                            ("failed", "Failed"),
                            ("cancelled", "Cancelled"),
                        ],
                        default="placed",
                        max_length=10,
                    ),
                ),
                ("problem", models.TextField(blank=True)),
                ("run_id", models.CharField(editable=False, max_length=36)),
            ],
            options={
                "ordering": ("-pk",),
            },
        ),
        migrations.CreateModel(
            name="Product",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("name", models.CharField(max_length=100, unique=True)),
                ("description", models.CharField(max_length=200)),
                ("price", models.PositiveIntegerField(validators=[django.core.validators.MinValueValidator(1)])),
                ("stock", models.PositiveIntegerField()),
                (
                    "units_per_parcel",
                    models.PositiveIntegerField(default=1, validators=[django.core.validators.MinValueValidator(1)]),
                ),
                ("hue", models.PositiveSmallIntegerField(default=0)),
            ],
            options={
                "ordering": ("pk",),
            },
        ),
        migrations.CreateModel(
            name="Payment",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("key", models.CharField(max_length=64, unique=True)),
                ("amount", models.PositiveIntegerField()),
                (
                    "status",
                    models.CharField(
                        choices=[("charged", "Charged"), ("refunded", "Refunded")], default="charged", max_length=10
                    ),
                ),
                (
                    "order",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.CASCADE, related_name="payments", to="orders.order"
                    ),
                ),
            ],
            options={
                "ordering": ("pk",),
            },
        ),
        migrations.CreateModel(
            name="OrderLine",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("quantity", models.PositiveIntegerField(validators=[django.core.validators.MinValueValidator(1)])),
                ("price", models.PositiveIntegerField()),
                ("reserved", models.BooleanField(default=False)),
                (
                    "order",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.CASCADE, related_name="lines", to="orders.order"
                    ),
                ),
                ("product", models.ForeignKey(on_delete=django.db.models.deletion.PROTECT, to="orders.product")),
            ],
            options={
                "ordering": ("product_id",),
                "unique_together": {("order", "product")},
            },
        ),
        migrations.CreateModel(
            name="Shipment",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("number", models.PositiveIntegerField()),
                ("content", models.CharField(max_length=120)),
                ("tracking", models.CharField(max_length=40)),
                (
                    "status",
                    models.CharField(
                        choices=[("sent", "Sent"), ("recalled", "Recalled")], default="sent", max_length=10
                    ),
                ),
                (
                    "order",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.CASCADE, related_name="shipments", to="orders.order"
                    ),
                ),
            ],
            options={
                "ordering": ("number",),
                "unique_together": {("order", "number")},
            },
        ),
    ]

"""What the views write beside their runs."""

from django.db import models


class Order(models.Model):
    """An order; ``packed`` counts the bodies that packed it."""

    item = models.CharField(max_length=100)
    run_id = models.CharField(max_length=36, default="")
    packed = models.IntegerField(default=0)

    def __str__(self) -> str:
        return self.item

"""The app config: connects what has to know of the ends of runs."""

from django.apps import AppConfig


class OrdersConfig(AppConfig):
    """Orders, and what becomes of them."""

    name = "orders"

    def ready(self) -> None:
        """Receivers are connected when they are imported."""
        import orders.receivers  # noqa: F401, PLC0415  # imports models, which are not there before

"""A Django app: add ``dagabaaz_celery.contrib.django`` to INSTALLED_APPS.

``from dagabaaz_celery.contrib.django import dag`` gives the Dagabaaz of the project's Celery app.
"""

from typing import Any

from dagabaaz_celery.app import Dagabaaz

dag: Dagabaaz


def __getattr__(name: str) -> Any:
    """Find the project's Dagabaaz at its first use: this module is imported before the settings are read."""
    if name == "dag":
        from dagabaaz_celery.contrib.django.project import get_dag  # noqa: PLC0415  # reads the settings

        return get_dag()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

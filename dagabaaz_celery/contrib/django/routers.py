"""Keeps the store's tables in the store's database, and out of the others."""

from typing import Any

from dagabaaz_celery.contrib.django.project import get_alias

_LABEL = "dagabaaz"


class StoreRouter:
    """Says of this app's models where they are, and nothing of others; the app adds it to the project's routers."""

    def db_for_read(self, model: Any, **hints: Any) -> str | None:
        """The store's database."""
        return get_alias() if model._meta.app_label == _LABEL else None

    db_for_write = db_for_read

    def allow_migrate(self, db: str, app_label: str, **hints: Any) -> bool | None:
        """Nowhere else."""
        return db == get_alias() if app_label == _LABEL else None

"""What ``manage.py check`` says of the app's settings."""

from typing import Any

from django.core.checks import Error

from dagabaaz_celery.contrib.django.names import get_prefix, get_schema
from dagabaaz_celery.contrib.django.project import get_dag, get_database
from dagabaaz_celery.errors import DagabaazError


def check_settings(app_configs: Any, **kwargs: Any) -> list[Error]:
    """The Celery app is found, its settings will do, and models and store have the same tables."""
    try:
        settings = get_dag().settings
        if settings.store_url is None:
            get_database().url  # noqa: B018  # refuses a database that the store cannot be in
    except DagabaazError as error:
        return [Error(error.message, id="dagabaaz.E001")]
    if (settings.table_prefix, settings.schema) != (get_prefix(), get_schema()):
        return [
            Error(
                "The Celery app's dagabaaz_table_prefix and dagabaaz_schema are not those of Django's settings.",
                hint="Set CELERY_DAGABAAZ_TABLE_PREFIX and CELERY_DAGABAAZ_SCHEMA in Django's settings, where "
                'migrations find them, and configure the app by app.config_from_object("django.conf:settings", '
                'namespace="CELERY").',
                id="dagabaaz.E002",
            )
        ]
    return []

"""The app config: finds the project's Celery app, and the pipelines and plugins of its apps."""

import logging
from typing import Any

from django.apps import AppConfig
from django.core.checks import register
from django.db import router
from django.db.migrations.loader import MigrationLoader
from django.db.models.signals import pre_migrate
from django.utils.module_loading import autodiscover_modules

from dagabaaz_celery.contrib.django.checks import check_settings
from dagabaaz_celery.contrib.django.routers import StoreRouter
from dagabaaz_celery.contrib.django.signals import connect_signals
from dagabaaz_celery.errors import ConfigurationError

logger = logging.getLogger(__name__)


class DagabaazConfig(AppConfig):
    """Pipelines of a Django project."""

    name = "dagabaaz_celery.contrib.django"
    label = "dagabaaz"
    verbose_name = "Pipelines"

    def ready(self) -> None:
        """Have every process of the project know its pipelines: workers, and web processes that start runs by name."""
        from dagabaaz_celery.contrib.django.project import get_dag  # noqa: PLC0415  # the settings are read by now

        register(check_settings)
        pre_migrate.connect(_make_tables_without_migrations, sender=self)
        if not any(isinstance(each, StoreRouter) for each in router.routers):
            router.routers.insert(0, StoreRouter())
        try:
            dag = get_dag()
        except ConfigurationError as error:
            logger.warning("%s", error)  # manage.py check says it too, and whoever uses it gets it raised
            return
        # Celery imports tasks in workers only; a web process has to know plugins as well, to check a run's input.
        autodiscover_modules("tasks")
        for module in dag.app.loader.default_modules:
            dag.app.loader.import_task_module(module)
        autodiscover_modules("pipelines")
        connect_signals(dag)


def _make_tables_without_migrations(sender: Any, using: str, **kwargs: Any) -> None:
    """Tests that run without migrations (MIGRATION_MODULES) get the store's tables all the same.

    Before Django makes them of the models, which are but a picture of them.
    """
    from dagabaaz_celery.contrib.django.project import get_database  # noqa: PLC0415  # the settings are read by now
    from dagabaaz_celery.contrib.django.revisions import open_migrations  # noqa: PLC0415

    database = get_database()
    if using != database.alias or MigrationLoader.migrations_module(sender.label)[0] is not None:
        return
    migrations = open_migrations()
    with database.connect() as connection:
        migrations.step(connection, migrations.head)

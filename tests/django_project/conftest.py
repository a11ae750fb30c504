"""What scenarios in the project begin with: its tables, made by ``migrate``, and none of the last one's rows."""

import os
from collections.abc import Iterator

import django
import pytest
from sqlalchemy import delete

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.django_project.settings")
django.setup()

from django.contrib.auth.models import User  # noqa: E402  # Django is set up by now
from django.core.management import call_command  # noqa: E402  # Django is set up by now
from django.db import connections  # noqa: E402
from django_celery_results.models import TaskResult  # noqa: E402

from dagabaaz_celery.contrib.django import dag  # noqa: E402
from tests.django_project.orders.models import Order  # noqa: E402


@pytest.fixture(scope="session", autouse=True)
def tables() -> Iterator[None]:
    for alias in connections:
        call_command("migrate", run_syncdb=True, verbosity=0, database=alias)
    yield
    dag.close()
    connections.close_all()


@pytest.fixture(autouse=True)
def no_rows() -> Iterator[None]:
    """Not by ``flush``, which takes a second on a server."""
    yield
    store = dag._runtime.store
    with store.database.write() as connection:
        for table in reversed(store.tables.metadata.sorted_tables):
            if table is not store.tables.store:
                connection.execute(delete(table))
    for model in (Order, TaskResult, User):
        model.objects.all().delete()
    dag.app.control.purge()


@pytest.fixture
def eager() -> Iterator[None]:
    """Runs complete in place, on connections of the store's own."""
    dag.app.conf.task_always_eager = True
    yield
    dag.app.conf.task_always_eager = False

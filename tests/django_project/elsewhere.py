"""A project whose store is in its second database, under another prefix; and how a project's Celery app is found."""

import contextlib
from typing import Any

import pytest
from celery import Celery
from celery.bin.celery import celery
from django.core.management import call_command
from django.core.management.base import CommandError
from django.db import connections, transaction
from django.test import override_settings

from dagabaaz_celery.contrib.django import dag, models
from dagabaaz_celery.contrib.django.checks import check_settings
from dagabaaz_celery.contrib.django.management.commands.dagabaaz import Command
from dagabaaz_celery.contrib.django.project import find_celery_app
from dagabaaz_celery.errors import ConfigurationError
from tests.django_project.celery import app
from tests.django_project.orders.models import Order

another = Celery("another", set_as_current=False)


def names_of(alias: str) -> list[str]:
    return [name for name in connections[alias].introspection.table_names() if name.startswith(("shop_", "dagabaaz_"))]


def test_only_the_named_database_has_the_tables():
    assert names_of("default") == []
    assert {"shop_run", "shop_task", "shop_schema_version"} < set(names_of("runs"))
    call_command("makemigrations", check=True, dry_run=True, verbosity=0)


def test_models_read_from_it():
    run = dag.start("order", {"order": 1})

    row = models.Run.objects.get()
    assert (row.id, row._state.db, row._meta.db_table) == (run.id, "runs", "shop_run")
    assert [node.slug for node in row.nodes.all()] == ["pack", "ship"]


def test_a_start_is_part_of_a_transaction_of_that_database_alone():
    with contextlib.suppress(ZeroDivisionError), transaction.atomic():
        Order.objects.create(item="tea")
        started = dag.start("order", {"order": 1})
        raise ZeroDivisionError
    assert (Order.objects.count(), started.status) == (0, "running")

    with transaction.atomic(using="runs"):
        run = dag.start("order", {"order": 1})
        assert run.status == "pending"
    assert run.status == "running"


def test_the_command_is_celerys(capsys: pytest.CaptureFixture[str]):
    dag.start("order", {"order": 1})

    outputs = []
    for call in (
        lambda: Command().run_from_argv(
            ["manage.py", "dagabaaz", "runs", "--settings=tests.django_project.settings", "--json"]
        ),
        lambda: celery.main(["-A", "tests.django_project", "dagabaaz", "runs", "--json"]),
    ):
        with pytest.raises(SystemExit) as ended:
            call()
        assert not ended.value.code
        outputs.append(capsys.readouterr().out)
    assert '"order"' in outputs[0]
    assert outputs[0].split("age")[0] == outputs[1].split("age")[0]

    call_command("dagabaaz", "pipelines")
    assert "refusal" in capsys.readouterr().out
    with pytest.raises(CommandError, match="exit code"):
        call_command("dagabaaz", "show", "no-such-run")


@pytest.mark.parametrize(
    ("named", "problem"),
    [
        ("no.such.module:app", "There is no module 'no.such.module'"),
        ("tests.django_project.celery:nothing", "has no Celery app 'nothing'"),
        ("tests.django_project.settings:SECRET_KEY", "is no Celery app but a str"),
    ],
)
def test_an_app_that_is_not_there_is_named(named: str, problem: str):
    with override_settings(DAGABAAZ_CELERY_APP=named), pytest.raises(ConfigurationError, match=problem):
        find_celery_app()


def test_the_app_is_the_projects_unless_the_settings_name_another():
    assert find_celery_app() is app is dag.app
    with override_settings(DAGABAAZ_CELERY_APP="tests.django_project.elsewhere:another"):
        assert find_celery_app() is another


def test_a_project_without_a_celery_module_has_the_current_app(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("DJANGO_SETTINGS_MODULE", "tests.processes")

    assert find_celery_app() is app


def test_check_tells_of_names_that_models_and_store_do_not_share(monkeypatch: pytest.MonkeyPatch):
    assert check_settings(None) == []
    with override_settings(CELERY_DAGABAAZ_TABLE_PREFIX="other_"):
        problems: list[Any] = check_settings(None)
    assert [problem.id for problem in problems] == ["dagabaaz.E002"]

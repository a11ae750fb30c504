"""The pages of a Django project that show runs: on each kind of database, and in a real browser."""

from pathlib import Path

import pytest

from tests.integration.test_django import database, run_in_project  # noqa: F401  # a fixture

pytestmark = pytest.mark.timeout(300)
#: What asks the database in other words than another one.
ON_SERVERS = "every_link or lists_cost or runs_are_found or counts_only or actions_in_the_list or wide_run"
SETTINGS = {
    "ROOT_URLCONF": "tests.django_project.page_urls",
    "STATIC_URL": "/static/",
    "INSTALLED_APPS": [
        "django.contrib.contenttypes",
        "django.contrib.auth",
        "django.contrib.sessions",
        "django.contrib.messages",
        "django.contrib.admin",
        "django.contrib.staticfiles",
        "django_celery_results",
        "tests.django_project.orders",
        "dagabaaz_celery.contrib.django",
    ],
    "MIDDLEWARE": [
        "django.contrib.sessions.middleware.SessionMiddleware",
        "django.middleware.csrf.CsrfViewMiddleware",
        "django.contrib.auth.middleware.AuthenticationMiddleware",
        "django.contrib.messages.middleware.MessageMiddleware",
    ],
}


def test_pages_of_runs(database: str):  # noqa: F811  # the fixture
    chosen = [] if database.startswith("sqlite") else ["-k", ON_SERVERS]
    done = run_in_project(
        *("-m", "pytest", "-p", "no:xdist", "tests/django_project/pages.py", *chosen),
        databases={"default": database},
        **SETTINGS,
    )

    assert done.returncode == 0, done.stdout


def test_pages_of_runs_in_a_browser(tmp_path: Path):
    done = run_in_project(
        *("-m", "pytest", "-p", "no:xdist", "-rs", "tests/django_project/in_browser.py"),
        databases={"default": f"sqlite:///{tmp_path / 'project.sqlite3'}"},
        **SETTINGS,
    )

    assert done.returncode == 0, done.stdout
    if " skipped" in done.stdout:
        pytest.skip(next(line for line in done.stdout.splitlines() if line.startswith("SKIPPED")))

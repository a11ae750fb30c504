"""A Django project, on each kind of database: in processes of their own, as Django's settings are a process's."""

import json
import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, make_url, text

from tests import services

ROOT = Path(__file__).resolve().parents[2]
SERVERS = {"postgresql": services.postgres_url, "mariadb": services.mysql_url}

pytestmark = pytest.mark.timeout(300)


@contextmanager
def open_database(kind: str, directory: Path) -> Iterator[str]:
    """The URL of a database of one's own."""
    if kind == "sqlite":
        yield f"sqlite:///{directory / 'project.sqlite3'}"
        return
    server, name = make_url(SERVERS[kind]()), f"dj_{uuid.uuid4().hex[:12]}"
    engine = create_engine(server, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    try:
        yield server.set(database=name).render_as_string(hide_password=False)
    finally:
        with engine.connect() as connection:
            connection.execute(text(f"DROP DATABASE {name}{' WITH (FORCE)' if kind == 'postgresql' else ''}"))
        engine.dispose()


@pytest.fixture(params=["sqlite", *SERVERS])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    with open_database(request.param, tmp_path) as url:
        yield url


def run_in_project(*arguments: str, databases: dict[str, str], **settings: Any) -> subprocess.CompletedProcess[str]:
    """Run Python in the project; its output is one text."""
    project = {"databases": databases, "settings": settings}
    environment = {
        **os.environ,
        "DJANGO_PROJECT": json.dumps(project),
        "DJANGO_SETTINGS_MODULE": "tests.django_project.settings",
        "PYTHONPATH": str(ROOT),
    }
    environment.pop("PYTEST_XDIST_WORKER", None)
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=280,
        check=False,
    )


def test_runs_belong_to_the_projects_transactions(database: str):
    files = [f"tests/django_project/{name}.py" for name in ("scenarios", "in_transactions", "history")]
    done = run_in_project("-m", "pytest", "-p", "no:xdist", *files, databases={"default": database})

    assert done.returncode == 0, done.stdout


def test_workers_do_what_the_project_committed(database: str):
    with services.open_redis_broker() as broker:
        done = run_in_project(
            *("-m", "pytest", "-p", "no:xdist", "tests/django_project/with_workers.py"),
            databases={"default": database},
            **{f"CELERY_{name.upper()}": value for name, value in broker.settings.items()},
        )

    assert done.returncode == 0, done.stdout


def test_the_store_may_be_in_another_of_the_projects_databases(tmp_path: Path):
    done = run_in_project(
        *("-m", "pytest", "-p", "no:xdist", "tests/django_project/elsewhere.py"),
        databases={name: f"sqlite:///{tmp_path / name}.sqlite3" for name in ("default", "runs")},
        DAGABAAZ_DATABASE="runs",
        CELERY_DAGABAAZ_TABLE_PREFIX="shop_",
    )

    assert done.returncode == 0, done.stdout


def test_a_projects_own_tests_see_runs_complete(database: str):
    done = run_in_project(
        "-W",
        "error",
        "-m",
        "django",
        "test",
        "tests.django_project.orders",
        "--noinput",
        databases={"default": database},
    )

    assert done.returncode == 0, done.stdout

"""What ``init`` writes and shows.

Plugins and pipelines have one name in the whole project: ``prefix`` keeps those of a Django app apart from others'.
"""

from pathlib import Path

import click

_PIPELINE = '''@dag.plugin
def {prefix}find_names(name: str) -> list[dict]:
    """Every artifact that is returned becomes a task of the next node."""
    return [{{"name": word}} for word in name.split()]


@dag.plugin
def {prefix}greet(name: str) -> dict:
    return {{"greeting": f"Hello, {{name}}!"}}


@dag.plugin
def {prefix}collect(artifacts: list[TaskArtifact]) -> str:
    """An aggregate gets all that the node before it produced."""
    return " ".join(artifact.metadata["greeting"] for artifact in artifacts)


dag.register(
    Pipeline(
        "{prefix}hello",
        nodes=[
            DagNode(slug="names", plugin="{prefix}find_names"),
            DagNode(slug="greet", plugin="{prefix}greet", depends_on=["names"]),
            DagNode(slug="collect", plugin="{prefix}collect", depends_on=["greet"], fan_mode="aggregate"),
        ],
    )
)
'''

STARTER = (
    '''"""A Celery app with a pipeline: names are looked up, and each is greeted by a task of its own.

`Dagabaaz.embedded` keeps runs and messages in the folder .dagabaaz: for one machine, without a server. With a broker
and a database of your own, write in its place:

    app = Celery("{module}", broker="redis://localhost:6379/0")
    app.conf.dagabaaz_store_url = "postgresql+psycopg://user@host/database"
    dag = Dagabaaz(app)
"""

from celery import Celery

from dagabaaz_celery.app import Dagabaaz
from dagabaaz_celery.models import DagNode, TaskArtifact
from dagabaaz_celery.pipeline import Pipeline

app = Celery("{module}")
dag = Dagabaaz.embedded(app)


'''
    + _PIPELINE
)

ADDED_STORE = """app.conf.dagabaaz_store_url = "postgresql+psycopg://user@host/database"
"""

_IMPORTS = """from dagabaaz_celery.models import DagNode
from dagabaaz_celery.pipeline import Pipeline
"""

_ONE_NODE = """
@dag.plugin
def greet(name: str) -> str:
    return f"Hello, {name}!"


dag.register(Pipeline("hello", nodes=[DagNode(slug="greet", plugin="greet")]))
"""

#: For an app that has a Dagabaaz and no pipeline; and for one that has none.
ADDED_PIPELINE = f"{_IMPORTS}\n{_ONE_NODE}"
ADDED_LINES = f"""from dagabaaz_celery.app import Dagabaaz
{_IMPORTS}
{ADDED_STORE}dag = Dagabaaz(app)

{_ONE_NODE}"""


DJANGO_INIT = """from .celery import app as celery_app

__all__ = ["celery_app"]
"""

DJANGO_CELERY = '''"""The project's Celery app: settings that begin with CELERY_ are its own."""

import os

from celery import Celery

from dagabaaz_celery.app import Dagabaaz

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "{project}.settings")

app = Celery("{project}")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks()
dag = Dagabaaz(app)
'''

DJANGO_PIPELINES = (
    '''"""Plugins and pipelines of this app."""

from dagabaaz_celery.contrib.django import dag
from dagabaaz_celery.models import DagNode, TaskArtifact
from dagabaaz_celery.pipeline import Pipeline


'''
    + _PIPELINE
)

DJANGO_APP = "dagabaaz_celery.contrib.django"
DJANGO_BROKER = 'CELERY_BROKER_URL = "redis://localhost:6379/0"'


def write_new(path: Path, text: str) -> bool:
    """Write a new file, and say so; whether there was none. Raises click's UsageError where it cannot be written."""
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        return False
    except OSError as error:
        raise click.UsageError(f"{path} cannot be written: {error.strerror}.") from None
    click.echo(f"Wrote {path}.")
    return True

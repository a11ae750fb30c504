"""What ``init`` writes and shows."""

_PIPELINE = '''@dag.plugin
def find_names(name: str) -> list[dict]:
    """Every artifact that is returned becomes a task of the next node."""
    return [{{"name": word}} for word in name.split()]


@dag.plugin
def greet(name: str) -> dict:
    return {{"greeting": f"Hello, {{name}}!"}}


@dag.plugin
def collect(artifacts: list[TaskArtifact]) -> str:
    """An aggregate gets all that the node before it produced."""
    return " ".join(artifact.metadata["greeting"] for artifact in artifacts)


dag.register(
    Pipeline(
        "hello",
        nodes=[
            DagNode(slug="names", plugin="find_names"),
            DagNode(slug="greet", plugin="greet", depends_on=["names"]),
            DagNode(slug="collect", plugin="collect", depends_on=["greet"], fan_mode="aggregate"),
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

ADDED_LINES = """from dagabaaz_celery.app import Dagabaaz
from dagabaaz_celery.models import DagNode
from dagabaaz_celery.pipeline import Pipeline

app.conf.dagabaaz_store_url = "postgresql+psycopg://user@host/database"
dag = Dagabaaz(app)


@dag.plugin
def greet(name: str) -> str:
    return f"Hello, {name}!"


dag.register(Pipeline("hello", nodes=[DagNode(slug="greet", plugin="greet")]))
"""

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

DJANGO_SETTINGS = """INSTALLED_APPS += [
    "dagabaaz_celery.contrib.django",
{own}
]
CELERY_BROKER_URL = "redis://localhost:6379/0"
"""

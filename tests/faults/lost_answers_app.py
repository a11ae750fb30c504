"""The app under test with bodies that stumble, and launches in batches of ten, so that a small one takes several."""

import os
from collections.abc import Mapping
from functools import partial
from typing import Any

from dagabaaz_celery.app import Dagabaaz
from dagabaaz_celery.context import PluginContext
from dagabaaz_celery.models import DagNode
from dagabaaz_celery.pipeline import Pipeline
from dagabaaz_celery.stores.sql.transaction import StorePolicy
from dagabaaz_celery.worker import runtime
from tests.faults.app_under_test import CONF_VARIABLE, Journal, make_dag, open_app

#: A wide launch in three batches, a Celery retry of each of its tasks, and a sum.
WIDE = Pipeline(
    "wide",
    nodes=[
        DagNode(slug="source", plugin="emit"),
        DagNode(slug="again", plugin="stumble", depends_on=["source"]),
        DagNode(slug="total", plugin="gather", depends_on=["again"], fan_mode="aggregate"),
    ],
)
#: Fails unless it is retried.
BRITTLE = Pipeline(
    "brittle",
    nodes=[
        DagNode(slug="source", plugin="emit"),
        DagNode(slug="once", plugin="break_once", depends_on=["source"]),
        DagNode(slug="total", plugin="gather", depends_on=["once"], fan_mode="aggregate"),
    ],
)


def make_stumbling_dag(conf: Mapping[str, Any], journal: Journal) -> Dagabaaz:
    """The app under test with two more plugins."""
    dag = make_dag(conf, journal)

    @dag.plugin(autoretry_for=(OSError,), max_retries=1, default_retry_delay=0)
    def stumble(context: PluginContext, value: int) -> dict[str, Any]:
        """The same number, at the second attempt."""
        with journal.body(context):
            if context.attempt == 1:
                raise OSError("the first attempt")
            return {"value": value}

    @dag.plugin
    def break_once(context: PluginContext, value: int) -> dict[str, Any]:
        """The same number, when the run is retried."""
        with journal.body(context):
            if context.attempt == 1:
                raise ValueError("the first attempt")
            return {"value": value}

    dag.register(WIDE)
    dag.register(BRITTLE)
    return dag


if CONF_VARIABLE in os.environ:
    runtime.StorePolicy = partial(StorePolicy, launch_batch=10)  # type: ignore[assignment,misc]
    app = open_app(make_stumbling_dag)

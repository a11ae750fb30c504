"""The app under test, with plugins that ask for another attempt in every way that Celery has, and tell their clock."""

import os
import time
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from celery import Task

from dagabaaz_celery.app import Dagabaaz
from dagabaaz_celery.context import PluginContext
from dagabaaz_celery.models import DagNode
from dagabaaz_celery.pipeline import Pipeline
from tests.faults.app_under_test import CONF_VARIABLE, Journal, make_dag, open_app

#: Seconds until the next attempt: less than a sweep's interval, so that a message with an ETA is sent, and more.
SHORT_DELAY, LONG_DELAY = 0.8, 2.5
#: Attempts that fail before one succeeds.
FAILURES = 2
DELAYS = {"countdown": SHORT_DELAY, "automatic": SHORT_DELAY, "eta": LONG_DELAY}

RETRIES = Pipeline(
    "retries",
    nodes=[
        DagNode(slug="source", plugin="emit"),
        *(DagNode(slug=name, plugin=name, depends_on=["source"]) for name in DELAYS),
        DagNode(slug="total", plugin="gather", depends_on=list(DELAYS), fan_mode="aggregate"),
    ],
)


def make_clock_dag(conf: Mapping[str, Any], journal: Journal) -> Dagabaaz:
    """The app with impatient plugins, in a worker and in the test alike."""
    dag = make_dag(conf, journal)

    @dag.plugin(bind=True, max_retries=FAILURES)
    def countdown(self: Task, context: PluginContext, value: int) -> dict[str, float]:
        with journal.body(context):
            if self.request.retries < FAILURES:
                raise self.retry(countdown=SHORT_DELAY)
            return tell(value)

    @dag.plugin(bind=True, max_retries=FAILURES)
    def eta(self: Task, context: PluginContext, value: int) -> dict[str, float]:
        with journal.body(context):
            if self.request.retries < FAILURES:
                raise self.retry(eta=datetime.now(UTC) + timedelta(seconds=LONG_DELAY))
            return tell(value)

    @dag.plugin(bind=True, autoretry_for=(OSError,), max_retries=FAILURES, default_retry_delay=SHORT_DELAY)
    def automatic(self: Task, context: PluginContext, value: int) -> dict[str, float]:
        with journal.body(context):
            if self.request.retries < FAILURES:
                raise OSError("not yet")
            return tell(value)

    dag.register(RETRIES)
    return dag


def tell(value: int) -> dict[str, float]:
    """The number, and how far this process's wall clock is ahead of the machine's counter."""
    return {"value": value, "ahead": time.time() - time.monotonic()}


if CONF_VARIABLE in os.environ:
    app = open_app(make_clock_dag)

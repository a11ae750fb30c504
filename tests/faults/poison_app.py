"""The app under test, with plugins that harm their process, and one that only a new release has.

FAULTS_CONF decides which release a worker is of: ``faults_old_release`` leaves out what is new.
"""

import ctypes
import os
from collections.abc import Mapping
from typing import Any

from celery.exceptions import Ignore

from dagabaaz_celery.app import Dagabaaz
from dagabaaz_celery.context import PluginContext
from dagabaaz_celery.models import DagNode
from dagabaaz_celery.pipeline import Pipeline
from tests.faults.app_under_test import CONF_VARIABLE, Journal, make_dag, open_app

HUGE_BYTES = 100 * 1024 * 1024

#: Known to every release, and at its end to the new one only.
NOVEL = Pipeline(
    "novel",
    nodes=[
        DagNode(slug="source", plugin="emit"),
        DagNode(slug="changed", plugin="novel", depends_on=["source"]),
        DagNode(slug="total", plugin="gather", depends_on=["changed"], fan_mode="aggregate"),
    ],
)


def make_poison_dag(conf: Mapping[str, Any], journal: Journal) -> Dagabaaz:
    """The app with poisons, in a worker and in the test alike."""
    dag = make_dag(conf, journal)

    @dag.plugin
    def unserialisable(context: PluginContext) -> Any:
        with journal.body(context):
            return {"value": object()}

    @dag.plugin
    def segfault(context: PluginContext) -> None:
        with journal.body(context):
            ctypes.string_at(0)

    @dag.plugin
    def hungry(context: PluginContext) -> None:
        with journal.body(context):
            bytearray(1 << 60)

    @dag.plugin
    def bottomless(context: PluginContext) -> None:
        def fall() -> None:
            fall()

        with journal.body(context):
            fall()

    @dag.plugin
    def huge(context: PluginContext) -> dict[str, str]:
        with journal.body(context):
            return {"value": "x" * HUGE_BYTES}

    @dag.plugin
    def forgetful(context: PluginContext) -> None:
        with journal.body(context):
            raise Ignore

    @dag.plugin
    def leaving(context: PluginContext) -> None:
        with journal.body(context):
            os._exit(0)

    if not conf.get("faults_old_release"):

        @dag.plugin
        def novel(context: PluginContext, value: int) -> dict[str, int]:
            with journal.body(context):
                return {"value": value}

        dag.register(NOVEL)
    return dag


if CONF_VARIABLE in os.environ:
    app = open_app(make_poison_dag)

"""The app under test, with steps that can be undone and a last one that fails when a file says so."""

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dagabaaz_celery.app import Dagabaaz
from dagabaaz_celery.constants import FanMode
from dagabaaz_celery.context import PluginContext
from dagabaaz_celery.models import ConfigSource, DagNode
from dagabaaz_celery.pipeline import Pipeline
from tests.faults.app_under_test import CONF_VARIABLE, Journal, make_dag, open_app

#: Seconds between two looks for the file.
_PAUSE = 0.05


def make_saga(gate: Path, rollback: str = "unwork") -> Pipeline:
    """Numbers, two steps for each that can be undone, and an end that fails once there is a file of this name."""
    return Pipeline(
        "saga",
        nodes=[
            DagNode(slug="source", plugin="emit"),
            DagNode(slug="first", plugin="work", depends_on=["source"], rollback=rollback),
            DagNode(slug="second", plugin="work", depends_on=["first"], rollback=rollback),
            DagNode(
                slug="last",
                plugin="fail_at",
                depends_on=["second"],
                fan_mode=FanMode.AGGREGATE,
                bindings={"gate": ConfigSource(value=str(gate))},
            ),
            DagNode(slug="tidy", plugin="tidy", run_on="always"),
        ],
    )


def make_undo_dag(conf: Mapping[str, Any], journal: Journal) -> Dagabaaz:
    """The app with what undoes, in a worker and in the test alike."""
    dag = make_dag(conf, journal)

    @dag.plugin
    def unwork(context: PluginContext, value: int, result: dict[str, Any] | None) -> None:
        """Undo ``work``, of which the number came in and the result went out."""
        assert context.undoes
        assert result is None or result["value"] == value
        with journal.body(context):
            pass

    @dag.plugin
    def fail_at(gate: str) -> None:
        while not Path(gate).exists():
            time.sleep(_PAUSE)
        raise RuntimeError("this run is to be undone")

    @dag.plugin
    def tidy(context: PluginContext) -> None:
        with journal.body(context):
            assert context.run_status == "failed"

    return dag


if CONF_VARIABLE in os.environ:
    app = open_app(make_undo_dag)

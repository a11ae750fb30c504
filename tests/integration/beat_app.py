"""An app whose pipeline is started by beat, imported by the beats and workers that tests start."""

import json
import os
from pathlib import Path

from celery import Celery

from dagabaaz_celery.app import Dagabaaz
from dagabaaz_celery.models import DagNode
from dagabaaz_celery.pipeline import Pipeline

SETTINGS_VARIABLE = "BEAT_APP"


def make_dag(directory: Path, every: float) -> Dagabaaz:
    """A Dagabaaz whose broker and store are in the directory, with a pipeline that is due every so many seconds."""
    app = Celery("beat_app", set_as_current=False)
    dag = Dagabaaz.embedded(app, directory)
    app.conf.update(dagabaaz_sweep_interval=0.5, worker_redirect_stdouts=False)

    @dag.plugin
    def tick(word: str) -> str:
        return word

    dag.schedule(Pipeline("tick", nodes=[DagNode(slug="tick", plugin="tick")]), every, input={"word": "tea"})
    return dag


if SETTINGS_VARIABLE in os.environ:
    given = json.loads(os.environ[SETTINGS_VARIABLE])
    dag = make_dag(Path(given["directory"]), given["every"])
    app = dag.app

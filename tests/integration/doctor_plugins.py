"""What the apps that the doctor looks at can do."""

from pathlib import Path

from dagabaaz_celery.app import Dagabaaz
from dagabaaz_celery.context import PluginContext
from dagabaaz_celery.models import DagNode, TaskArtifact
from dagabaaz_celery.pipeline import Pipeline

WRITE = Pipeline(
    "write", nodes=[DagNode(slug="write", plugin="write"), DagNode(slug="read", plugin="read", depends_on=["write"])]
)


def declare_nothing(dag: Dagabaaz) -> None:
    """An app whose code is older than its pipelines."""


def declare_all(dag: Dagabaaz) -> None:
    """Two plugins that pass a file, and their pipeline."""

    @dag.plugin(name="write", time_limit=30)
    def write(context: PluginContext) -> TaskArtifact:
        path = context.scratch / "note.txt"
        path.write_text("tea")
        return TaskArtifact(file_path=str(path))

    @dag.plugin(name="read", time_limit=30)
    def read(file_path: str) -> str:
        return Path(file_path).read_text()

    dag.register(WRITE)

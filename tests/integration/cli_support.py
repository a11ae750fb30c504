"""Commands typed in this process, on an app with the embedded broker and a worker beside."""

import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from celery.bin.base import CLIContext
from click.testing import CliRunner, Result

from dagabaaz_celery.app import Dagabaaz
from dagabaaz_celery.cli import dagabaaz
from dagabaaz_celery.models import DagNode
from dagabaaz_celery.pipeline import Pipeline
from dagabaaz_celery.run import Run
from dagabaaz_celery.testing import embedded_worker

#: Bodies of the node "held" wait for this.
gate = threading.Event()


def make_dag(directory: Path) -> Dagabaaz:
    """An app with an embedded broker and a store in a directory, and pipelines that end in each way."""
    app = Celery("cli", set_as_current=False)
    dag = Dagabaaz.embedded(app, directory)
    app.conf.update(worker_hijack_root_logger=False, dagabaaz_sweep_interval=0.2, dagabaaz_dead_after=5.0)

    @dag.plugin
    def make(n: int = 1, word: str = "tea") -> list[dict[str, Any]]:
        return [{"n": number, "word": word} for number in range(n)]

    @dag.plugin
    def double(n: int) -> dict[str, Any]:
        return {"n": 2 * n}

    @dag.plugin
    def spoil(n: int) -> None:
        raise ValueError(f"number {n % 2} is [red]spoilt[/red]")

    @dag.plugin
    def hold(n: int = 1) -> int:
        gate.wait(30)
        return n

    @dag.plugin
    def undo(result: Any) -> None: ...

    @dag.plugin
    def undo_badly(result: Any) -> None:
        raise OSError("it stays done")

    made, held = DagNode(slug="made", plugin="make", rollback="undo"), DagNode(slug="held", plugin="hold")
    dag.register(
        Pipeline("good", nodes=[made, DagNode(slug="doubled", plugin="double", depends_on=["made"])], description="Two")
    )
    dag.register(Pipeline("bad", nodes=[made, DagNode(slug="spoilt", plugin="spoil", depends_on=["made"])]))
    dag.register(Pipeline("slow", nodes=[held]))
    dag.register(Pipeline("stuck", nodes=[DagNode(slug="made", plugin="make", rollback="undo_badly")]))
    return dag


@dataclass
class Shell:
    """Types commands behind ``celery -A proj dagabaaz``."""

    dag: Dagabaaz

    def type(self, *words: str, code: int = 0, given: str | None = None, no_color: bool = False) -> str:
        """The standard output of a command that ends with this code."""
        result = self.run(*words, given=given, no_color=no_color)
        assert result.exit_code == code, result.output
        return result.stdout

    def refuse(self, *words: str, code: int = 1, given: str | None = None) -> str:
        """The standard error output of a command that is refused with this code."""
        result = self.run(*words, given=given)
        assert result.exit_code == code, result.output
        assert "Traceback" not in result.output
        return result.stderr

    def read(self, *words: str, code: int = 0) -> Any:
        """What a command prints with --json."""
        return json.loads(self.type(*words, "--json", code=code))

    def run(self, *words: str, given: str | None = None, no_color: bool = False) -> Result:
        """Type a command; an error that is none of ours is raised here."""
        context = CLIContext(app=self.dag.app, no_color=no_color, workdir=None)
        return CliRunner().invoke(dagabaaz, list(words), obj=context, input=given, catch_exceptions=False)


def start(dag: Dagabaaz, pipeline: str, **given: Any) -> Run:
    """Start a run and see it to its end, and what follows that."""
    run = dag.start(pipeline, **given)
    run.wait(30, rollback=True)
    return run


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dagabaaz]:
    """A Dagabaaz whose runs a worker in this process runs, for all tests of a module."""
    dag = make_dag(tmp_path_factory.mktemp("cli"))
    with embedded_worker(dag.app, pool="threads", concurrency=2):
        yield dag
    dag.close()
    dag.app.close()


@pytest.fixture
def shell(worker: Dagabaaz) -> Iterator[Shell]:
    """A shell where a worker runs what is started."""
    gate.clear()
    yield Shell(worker)
    gate.set()


@pytest.fixture
def quiet_shell(tmp_path: Path) -> Iterator[Shell]:
    """A shell with a store of its own, and no worker."""
    dag = make_dag(tmp_path / "quiet")
    yield Shell(dag)
    dag.close()
    dag.app.close()

"""The app whose workers fault tests kill: every body writes to a journal when it begins and when it ends.

``worker_app.py`` opens it in workers. A test that needs other plugins adds them to what ``make_dag`` makes, and has a
file of its own like that one, for ``start_worker(app=...)``.
"""

import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from celery import Celery
from kombu import Queue

from dagabaaz_celery.app import Dagabaaz
from dagabaaz_celery.constants import FanMode
from dagabaaz_celery.context import PluginContext
from dagabaaz_celery.models import DagNode
from dagabaaz_celery.pipeline import Pipeline
from tests.faults.injection import FaultPoints, install

CONF_VARIABLE = "FAULTS_CONF"
JOURNAL_VARIABLE = "FAULTS_JOURNAL"
POINTS_VARIABLE = "FAULTS_POINTS"

#: Ten files through two branches, in pairs again, and one sum: every fan mode.
PAIRS = Pipeline(
    "pairs",
    nodes=[
        DagNode(slug="source", plugin="emit"),
        DagNode(slug="left", plugin="work", depends_on=["source"]),
        DagNode(slug="right", plugin="work", depends_on=["source"]),
        DagNode(slug="pair", plugin="gather", depends_on=["left", "right"], fan_mode=FanMode.GROUPED),
        DagNode(slug="total", plugin="gather", depends_on=["pair"], fan_mode=FanMode.AGGREGATE),
    ],
)


def make_dag(conf: Mapping[str, Any], journal: "Journal") -> Dagabaaz:
    """The app with its plugins, in a worker and in the test alike."""
    app = Celery("faults", set_as_current=False)
    app.conf.update(conf)
    if "faults_queue_arguments" in conf:  # what the broker knows the queue by; it has no setting of its own
        name = app.conf.task_default_queue
        app.conf.task_queues = [Queue(name, routing_key=name, queue_arguments=conf["faults_queue_arguments"])]
    dag = Dagabaaz(app)

    @dag.plugin
    def emit(context: PluginContext, count: int, seconds: float = 0.0) -> list[dict[str, Any]]:
        """So many numbers, each to be worked on for so many seconds."""
        with journal.body(context):
            return [{"value": value, "seconds": seconds} for value in range(count)]

    @dag.plugin
    def work(context: PluginContext, value: int, seconds: float = 0.0) -> dict[str, Any]:
        """The same number, later."""
        with journal.body(context):
            time.sleep(seconds)
            return {"value": value, "seconds": seconds}

    @dag.plugin
    def gather(context: PluginContext, artifacts: list[dict[str, Any]]) -> int:
        """The sum of the numbers."""
        with journal.body(context):
            return sum(artifact["metadata"]["value"] for artifact in artifacts)

    @dag.plugin
    def hold(context: PluginContext, value: int, gate: str) -> dict[str, Any]:
        """The same number, once there is a file of this name."""
        with journal.body(context):
            while not Path(gate).exists():
                time.sleep(0.05)
            return {"value": value}

    @app.task(name="once", shared=False)
    def hold_once(context: PluginContext, gate: str) -> None:
        """A task of the app's own, which Celery acknowledges before it runs."""
        with journal.body(context):
            while not Path(gate).exists():
                time.sleep(0.05)

    @app.task(name="again", shared=False)
    def hold_again(context: PluginContext, gate: str) -> None:
        """The same; its owner says that it may run twice."""
        hold_once.run(context, gate)

    dag.plugin(hold_once)
    dag.plugin(hold_again, on_lost="rerun")
    dag.register(PAIRS)
    return dag


@dataclass(frozen=True)
class Entry:
    """A body that began, ended or raised: of which task and attempt, in which process, on the machine's own clock."""

    what: Literal["begun", "ended", "raised"]
    run_id: str
    slug: str
    task_id: str
    attempt: int
    pid: int
    at: float


class Journal:
    """A file that every worker process appends to, a line at once: it outlives all of them."""

    def __init__(self, path: Path, points: FaultPoints) -> None:
        self.path = path
        self._points = points

    @contextmanager
    def body(self, context: PluginContext) -> Iterator[None]:
        """Write down the beginning and the end of a body; one that was killed has no end."""
        self._write("begun", context)
        self._points.reach("body begins")
        try:
            yield
        except BaseException:
            self._write("raised", context)
            raise
        self._points.reach("body ends")
        self._write("ended", context)

    def read(self, run_id: str | None = None) -> list[Entry]:
        """Everything that happened so far, in order; of one run or of all."""
        if not self.path.exists():
            return []
        entries = [Entry(**json.loads(line)) for line in self.path.read_text().splitlines()]
        return [entry for entry in entries if run_id in (None, entry.run_id)]

    def count_bodies(self) -> Counter[str]:
        """How many bodies began for each task, by its id."""
        return Counter(entry.task_id for entry in self.read() if entry.what == "begun")

    def open_bodies(self) -> list[Entry]:
        """Where bodies began that have not ended; of killed ones too."""
        begun: dict[tuple[str, int, int], Entry] = {}
        for entry in self.read():
            key = (entry.task_id, entry.attempt, entry.pid)
            if entry.what == "begun":
                begun[key] = entry
            else:
                del begun[key]
        return list(begun.values())

    def _write(self, what: Literal["begun", "ended", "raised"], context: PluginContext) -> None:
        entry = Entry(
            what, context.run_id, context.slug, context.task_id, context.attempt, os.getpid(), time.monotonic()
        )
        with self.path.open("ab", buffering=0) as file:
            file.write(json.dumps(asdict(entry)).encode() + b"\n")


def open_app(make: Callable[[Mapping[str, Any], Journal], Dagabaaz]) -> Celery:
    """A worker's app, as ``open_dag`` makes it."""
    return open_dag(make).app


def open_dag(make: Callable[[Mapping[str, Any], Journal], Dagabaaz]) -> Dagabaaz:
    """The app as a process's environment says.

    FAULTS_CONF are Celery settings as JSON, FAULTS_JOURNAL is a path, FAULTS_POINTS the directory of points at which
    processes are to fail.
    """
    points = FaultPoints(Path(os.environ[POINTS_VARIABLE]))
    install(points)
    return make(json.loads(os.environ[CONF_VARIABLE]), Journal(Path(os.environ[JOURNAL_VARIABLE]), points))

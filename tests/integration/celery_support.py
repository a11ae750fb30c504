"""Apps, pipelines and bounded waiting for tests that run real Celery workers."""

import time
import uuid
from collections.abc import Callable, Sequence
from typing import Any

from celery import Celery

from dagabaaz_celery.app import Dagabaaz
from dagabaaz_celery.models import DagNode
from dagabaaz_celery.pipeline import Pipeline
from dagabaaz_celery.run import Run

#: Seconds that a run of a few quick tasks may take on a busy machine.
PATIENCE = 20.0


def make_app(name: str = "shop", **conf: Any) -> Celery:
    """An app of its own: queues of the in-memory broker are shared by name in a process, so its name is unique."""
    app = Celery(name, broker="memory://localhost/", set_as_current=False)
    app.conf.update(
        {
            "task_default_queue": f"{name}-{uuid.uuid4().hex}",
            "worker_hijack_root_logger": False,
            "dagabaaz_sweep_interval": 0.1,
            "dagabaaz_dead_after": 5.0,
            **conf,
        }
    )
    return app


def node(slug: str, *depends_on: str, **fields: Any) -> DagNode:
    """A node that runs the plugin of its own name, unless another is given."""
    return DagNode(slug=slug, depends_on=list(depends_on), **{"plugin": slug, **fields})


def start(dag: Dagabaaz, *nodes: DagNode, name: str = "work", **given: Any) -> Run:
    """Start a run of these nodes."""
    return dag.start(Pipeline(name, nodes=nodes), **given)


def complete(dag: Dagabaaz, *nodes: DagNode, **given: Any) -> Run:
    """Start a run of these nodes and see it through to a good end."""
    run = start(dag, *nodes, **given)
    assert run.wait(PATIENCE) == "completed", run.error
    return run


def fail(dag: Dagabaaz, *nodes: DagNode, **given: Any) -> Run:
    """Start a run of these nodes and see it fail."""
    run = start(dag, *nodes, **given)
    assert run.wait(PATIENCE) == "failed"
    return run


def wait_until(is_true: Callable[[], Any], what: str, timeout: float = PATIENCE) -> Any:
    """Poll until something holds; returns it."""
    deadline = time.monotonic() + timeout
    while not (found := is_true()):
        assert time.monotonic() < deadline, f"not within {timeout} s: {what}"
        time.sleep(0.01)
    return found


def statuses(run: Run, slug: str | None = None) -> list[str]:
    """The statuses of a run's tasks, of one node or of all."""
    return [task.status for task in run.tasks() if slug in (None, task.node)]


def node_statuses(run: Run, slugs: Sequence[str] = ()) -> dict[str, str]:
    """Each node's status by slug, of some nodes or of all."""
    return {found.slug: found.status for found in run.snapshot().nodes if not slugs or found.slug in slugs}

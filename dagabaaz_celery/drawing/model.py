"""What is drawn: the nodes of a pipeline or a run, with what a picture shows of each."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from dagabaaz_celery.constants import RUN_TERMINAL_STATUSES
from dagabaaz_celery.drawing.states import UNDOING
from dagabaaz_celery.pipeline import Pipeline


@dataclass(frozen=True)
class DrawnNode:
    """A node in a picture. ``status`` and ``tasks`` are a run's (see NodeSnapshot), None and empty for a pipeline's.

    ``state`` is the word that people read: the status, said with regard to the node's tasks and the run's end.
    ``run_on`` tells when a finaliser runs; None for every other node.
    """

    slug: str
    name: str
    plugin: str
    depends_on: tuple[str, ...] = ()
    status: str | None = None
    state: str | None = None
    tasks_total: int = 0
    tasks_done: int = 0
    tasks: Mapping[str, int] = field(default_factory=dict)
    started_at: float | None = None
    ended_at: float | None = None
    rollback: str | None = None
    run_on: str | None = None

    @property
    def label(self) -> str:
        """What the node is called in a picture."""
        return self.name or self.slug

    @property
    def words(self) -> str:
        """The state in words, with what of many tasks went wrong and what is undone; empty for a pipeline's node."""
        bad = [f"{self.tasks[one]:,} {one}" for one in ("crashed", "failed") if self.tasks.get(one)]
        if self.state in ("failed", "crashed") and self.tasks_total > 1 and bad:
            running = self.tasks.get("running")
            parts = [*bad, f"{running:,} running" if running else ""]
        else:
            parts = [self.state or ""]
        parts.append(UNDOING.get(self.rollback, self.rollback) if self.rollback else "")
        return ", ".join(part for part in parts if part)

    @property
    def counts(self) -> str:
        """Tasks done of all, as ``1,340 / 2,000``; empty for a node that has one task or none."""
        return f"{self.tasks_done:,} / {self.tasks_total:,}" if self.tasks_total > 1 else ""


@dataclass(frozen=True)
class Drawing:
    """A pipeline, or a run at one moment, as it is drawn; ``status`` is None for a pipeline."""

    title: str
    status: str | None
    nodes: tuple[DrawnNode, ...]


class NodeLike(Protocol):
    """What is drawn of a node of a run, as NodeSnapshot has it."""

    @property
    def slug(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def plugin(self) -> str: ...
    @property
    def depends_on(self) -> tuple[str, ...]: ...
    @property
    def status(self) -> str: ...
    @property
    def tasks_total(self) -> int: ...
    @property
    def tasks_done(self) -> int: ...
    @property
    def tasks(self) -> Mapping[str, int]: ...
    @property
    def started_at(self) -> float | None: ...
    @property
    def ended_at(self) -> float | None: ...
    @property
    def rollback(self) -> str | None: ...
    @property
    def run_on(self) -> str | None: ...


class RunLike(Protocol):
    """What is drawn of a run, as RunSnapshot has it."""

    @property
    def id(self) -> str: ...
    @property
    def pipeline(self) -> str: ...
    @property
    def status(self) -> str: ...
    @property
    def nodes(self) -> Sequence[NodeLike]: ...


def draw_pipeline(pipeline: Pipeline) -> Drawing:
    """A pipeline as it is defined; also one that cannot run."""
    return Drawing(
        title=pipeline.name,
        status=None,
        nodes=tuple(
            DrawnNode(node.slug, node.name, node.plugin, tuple(node.depends_on), run_on=node.run_on)
            for node in pipeline.nodes
        ),
    )


def draw_run(snapshot: RunLike) -> Drawing:
    """A run as its snapshot (``run.snapshot()``) has it."""
    ended = snapshot.status in RUN_TERMINAL_STATUSES
    return Drawing(
        title=f"{snapshot.pipeline}, run {snapshot.id}",
        status=str(snapshot.status),
        nodes=tuple(
            DrawnNode(
                slug=node.slug,
                name=node.name,
                plugin=node.plugin,
                depends_on=tuple(node.depends_on),
                status=node.status,
                state=_find_word(node, ended),
                tasks_total=node.tasks_total,
                tasks_done=node.tasks_done,
                tasks=dict(node.tasks),
                started_at=node.started_at,
                ended_at=node.ended_at,
                rollback=node.rollback,
                run_on=node.run_on,
            )
            for node in snapshot.nodes
        ),
    )


def _find_word(node: NodeLike, ended: bool) -> str:
    """A node's state for people: what its open tasks do tells more than that it was launched."""
    if node.status == "failed" and node.tasks.get("crashed"):
        return "crashed"
    if node.status == "blocked":
        # A finaliser has its turn when the run has ended.
        return "not run" if ended and node.run_on is None else "waiting"
    if node.status not in ("launching", "launched"):
        return node.status
    if node.tasks.get("running"):
        return "running"
    if node.tasks.get("queued") or node.tasks.get("pending"):
        return "running" if node.tasks_done else "queued"
    return "cancelled" if node.tasks.get("cancelled") or ended else "running"

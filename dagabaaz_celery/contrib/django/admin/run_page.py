"""What a run's page shows, read in a number of statements that does not grow with its tasks."""

from dataclasses import dataclass
from typing import Any

from django.urls import reverse
from django.utils.safestring import SafeString, mark_safe

from dagabaaz_celery.constants import RUN_TERMINAL_STATUSES, TaskStatus
from dagabaaz_celery.contrib.django.admin import show
from dagabaaz_celery.contrib.django.admin.steering import Step, list_steps
from dagabaaz_celery.contrib.django.models import Run
from dagabaaz_celery.drawing import DrawnNode, draw_run, format_seconds, to_svg
from dagabaaz_celery.drawing.states import UNDOING
from dagabaaz_celery.errors import DagabaazError
from dagabaaz_celery.run import NodeSnapshot, RunSnapshot

#: Seconds between two looks of a page at a run that goes on.
POLL_SECONDS = 2
_OPEN = (TaskStatus.PENDING, TaskStatus.QUEUED, TaskStatus.RUNNING)
_BAD_ENDS = (TaskStatus.FAILED, TaskStatus.CRASHED)


@dataclass(frozen=True)
class NodeLine:
    """A node in the table of a run's page; ``tasks`` are status, count, and the list of those tasks."""

    node: NodeSnapshot
    url: str
    state: SafeString
    bar: SafeString
    tasks: list[tuple[str, str, str]]
    artifacts: tuple[str, str] | None
    started: str
    took: str


@dataclass(frozen=True)
class RunPage:
    """A run as its page shows it; ``problem`` is why there is no more to see of it than its row."""

    run: Run
    steps: list[Step]
    snapshot: RunSnapshot | None = None
    graph: SafeString | None = None
    lines: tuple[NodeLine, ...] = ()
    tasks_total: int = 0
    artifacts_total: int = 0
    bad_tasks: tuple[tuple[str, str, str], ...] = ()
    problem: str = ""

    poll_seconds = POLL_SECONDS

    @property
    def is_over(self) -> bool:
        """Whether nothing of it changes by itself any more."""
        if self.snapshot is None:
            return True
        return self.snapshot.settled and not any(_count(node, one) for node in self.snapshot.nodes for one in _OPEN)

    @property
    def live_url(self) -> str:
        """Where the page looks for what is new."""
        return str(reverse("admin:dagabaaz_run_live", args=[self.run.pk]))

    @property
    def state(self) -> SafeString:
        """Where the run is in its life."""
        status = self.run.status if self.snapshot is None else self.snapshot.status
        paused = self.run.paused and status not in RUN_TERMINAL_STATUSES
        return show.state(str(status), ", paused" if paused else "")

    @property
    def pipeline_url(self) -> str:
        """The pipeline as the run keeps it."""
        return str(reverse("admin:dagabaaz_pipeline_definition", args=[self.run.definition_id]))

    @property
    def facts(self) -> list[tuple[str, Any]]:
        """Names and values beside the graph."""
        run = self.run
        version = "" if run.version is None else f" (version {run.version})"
        facts: list[tuple[str, Any]] = [
            ("Pipeline", show.link(self.pipeline_url, f"{run.pipeline}{version}")),
            ("Run", run.pk),
            ("Started", show.when(run.created_at)),
            ("Ended", f"{show.when(run.ended_at)}, after {show.took(run.created_at, run.ended_at)}"),
            ("Deadline", show.when(run.deadline_at)),
            ("Try", run.generation),
            ("Key", run.key),
            ("Rollback", run.rollback_status),
        ]
        unwanted = {
            "Ended": run.ended_at is None,
            "Deadline": run.deadline_at is None or run.ended_at is not None,
            "Try": run.generation == 1,
            "Key": run.key is None,
            "Rollback": run.rollback_status == "none",
        }
        return [(name, value) for name, value in facts if not unwanted.get(name)]

    @property
    def tags(self) -> list[tuple[str, str]]:
        """Each tag, and the list of runs that have it."""
        words = [f"{tag.name}={tag.value}" for tag in self.run.tags.all()]
        return [(one, show.list_url("run", tag=one)) for one in words]

    @property
    def counts(self) -> dict[str, str]:
        """How many parts there are of each kind."""
        counts = {"nodes": self.run.nodes_total, "tasks": self.tasks_total, "artifacts": self.artifacts_total}
        return {name: f"{count:,}" for name, count in counts.items()}

    @property
    def tasks_url(self) -> str:
        """The list of its tasks."""
        return show.list_url("task", run=self.run.pk)

    @property
    def artifacts_url(self) -> str:
        """The list of its artifacts."""
        return show.list_url("artifact", run=self.run.pk)

    @property
    def nodes_url(self) -> str:
        """The list of its nodes."""
        return show.list_url("node", run=self.run.pk)

    @property
    def error(self) -> Any:
        """Why it ended badly."""
        return show.as_error(self.run.error)

    @property
    def input(self) -> SafeString:
        """What it was started with."""
        return show.as_json(self.run.input)


def read_page(run: Run, user: Any) -> RunPage:
    """A run's page as of now, for this user."""
    steps = list_steps(user, run)
    try:
        handle = run.handle
        snapshot, artifacts = handle.snapshot(), handle.count_artifacts()
    except DagabaazError as error:
        return RunPage(run, steps, problem=error.message)
    drawing = draw_run(snapshot)
    urls = {node.slug: show.page_url("node", f"{run.pk}:{index}") for index, node in enumerate(snapshot.nodes)}
    bad = {status: sum(_count(node, status) for node in snapshot.nodes) for status in _BAD_ENDS}
    return RunPage(
        run,
        steps,
        snapshot,
        graph=mark_safe(to_svg(drawing, urls.get)),  # noqa: S308  # it escapes what it is given
        lines=tuple(
            _read_line(run, index, node, drawn, urls[node.slug], artifacts.get(node.slug, 0))
            for index, (node, drawn) in enumerate(zip(snapshot.nodes, drawing.nodes, strict=True))
        ),
        tasks_total=sum(sum(node.tasks.values()) + sum(node.rollback_tasks.values()) for node in snapshot.nodes),
        artifacts_total=sum(artifacts.values()),
        bad_tasks=tuple(
            (str(status), f"{count:,}", show.list_url("task", run=run.pk, status__exact=status.value))
            for status, count in bad.items()
            if count
        ),
    )


def _read_line(run: Run, index: int, node: NodeSnapshot, drawn: DrawnNode, url: str, artifacts: int) -> NodeLine:
    ended = node.ended_at
    return NodeLine(
        node=node,
        url=url,
        state=show.state(drawn.state or "", f", {UNDOING.get(node.rollback, node.rollback)}" if node.rollback else ""),
        bar=show.bar(node.tasks_done, node.tasks_total),
        tasks=[
            (status, f"{count:,}", show.list_url("task", run=run.pk, node=index, status__exact=status))
            for status, count in sorted(node.tasks.items())
        ],
        artifacts=(f"{artifacts:,}", show.list_url("artifact", run=run.pk, node=index)) if artifacts else None,
        started=show.when(node.started_at),
        took=show.NOTHING
        if node.started_at is None or ended is None
        else format_seconds(max(0.0, ended - node.started_at)),
    )


def _count(node: NodeSnapshot, status: str) -> int:
    return node.tasks.get(status, 0) + node.rollback_tasks.get(status, 0)

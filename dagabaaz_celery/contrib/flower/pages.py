"""What the pages show, read from the store: plain values for the templates."""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from dagabaaz_celery.app import Dagabaaz
from dagabaaz_celery.constants import RunStatus, TaskStatus
from dagabaaz_celery.drawing import draw_run, to_svg
from dagabaaz_celery.errors import UnknownNode
from dagabaaz_celery.run import Run, RunSnapshot, TaskSnapshot
from dagabaaz_celery.selection import read_selection
from dagabaaz_celery.summary import RunSummary, iterate_summaries

TASKS_ON_A_PAGE = 50
RUNS_ON_A_PAGE = 100
_OPEN = (TaskStatus.PENDING, TaskStatus.QUEUED, TaskStatus.RUNNING)


@dataclass(frozen=True)
class TaskQuery:
    """Which of a run's tasks are shown: of a node (a slug), in a status, and the number of the page, from 1."""

    node: str | None = None
    status: str | None = None
    page: int = 1

    @classmethod
    def read(cls, given: Mapping[str, str]) -> "TaskQuery":
        """What the query of a URL asks for; what makes no sense is as if it were not there."""
        page = given.get("page", "")
        return cls(
            node=given.get("node") or None,
            status=given.get("status") if given.get("status") in set(TaskStatus) else None,
            page=max(1, int(page)) if page.isascii() and page.isdigit() and len(page) < 9 else 1,
        )

    def url(self, **changes: Any) -> str:
        """A link, relative to the run's page, with some of this changed; another choice begins at the first page."""
        chosen = {"node": self.node, "status": self.status, **changes}
        return "?" + urlencode({name: value for name, value in chosen.items() if value}) + "#tasks"


@dataclass(frozen=True)
class RunPage:
    """A run as its page shows it. ``statuses`` counts the tasks of the chosen node, or of all, by status."""

    run: RunSnapshot
    graph: str
    query: TaskQuery
    statuses: dict[str, int]
    tasks: list[TaskSnapshot]
    total: int
    pages: int

    @property
    def is_over(self) -> bool:
        """Whether nothing of it will change by itself any more."""
        return self.run.settled and not any(self._count_open())

    @property
    def first(self) -> int:
        """The number of the first task shown, from 1."""
        return (self.query.page - 1) * TASKS_ON_A_PAGE + 1

    def _count_open(self) -> list[int]:
        return [
            counts.get(status, 0)
            for node in self.run.nodes
            for counts in (node.tasks, node.rollback_tasks)
            for status in _OPEN
        ]


def read_run(dag: Dagabaaz, run: Run, query: TaskQuery) -> RunPage:
    """A run's page as of now. Raises UnknownRun, UnknownNode."""
    snapshot = run.snapshot()
    if query.node is not None and query.node not in {node.slug for node in snapshot.nodes}:
        raise UnknownNode(f"Run {run.id} has no node {query.node!r}: choose one in the run's graph.")
    counts: Counter[str] = Counter()
    for node in snapshot.nodes:
        if query.node in (None, node.slug):
            counts.update(node.tasks)
            counts.update(node.rollback_tasks)
    total = counts.total() if query.status is None else counts[query.status]
    pages = max(1, math.ceil(total / TASKS_ON_A_PAGE))
    query = TaskQuery(query.node, query.status, min(query.page, pages))
    return RunPage(
        run=snapshot,
        graph=to_svg(draw_run(snapshot), lambda slug: TaskQuery(node=slug).url()),
        query=query,
        statuses={status.value: counts[status] for status in TaskStatus if counts[status]},
        tasks=run.tasks(
            node=query.node,
            status=query.status,
            limit=TASKS_ON_A_PAGE,
            offset=(query.page - 1) * TASKS_ON_A_PAGE,
        ),
        total=total,
        pages=pages,
    )


def find_place(dag: Dagabaaz, attempt_id: str) -> tuple[str, str] | None:
    """The run and the node (a slug) of a task whose current attempt this is; None for anything else."""
    store = dag._runtime.store
    with store.read() as connection:
        attempt = store.rows.tasks.find_attempt(connection, attempt_id)
        if attempt is None:
            return None
        run = store.require_run(connection, attempt.run_id)
    definition = store.definition_of(run.definition_hash).definition
    return run.id, definition.node_of(attempt.node_index).slug


@dataclass(frozen=True)
class ListPage:
    """Runs, newest first, of a pipeline and in a status where these are given."""

    runs: list[RunSummary]
    pipeline: str | None
    status: str | None

    @property
    def is_cut(self) -> bool:
        """Whether there may be more."""
        return len(self.runs) == RUNS_ON_A_PAGE

    def url(self, **changes: Any) -> str:
        """A link, relative to the list, with some of this changed."""
        chosen = {"pipeline": self.pipeline, "status": self.status, **changes}
        return "?" + urlencode({name: value for name, value in chosen.items() if value})


def read_list(dag: Dagabaaz, given: Mapping[str, str]) -> ListPage:
    """The list of runs as of now."""
    pipeline = given.get("pipeline") or None
    status = given.get("status") if given.get("status") in set(RunStatus) else None
    wanted = read_selection(pipeline, status, None)
    return ListPage(list(iterate_summaries(dag._runtime, wanted, limit=RUNS_ON_A_PAGE)), pipeline, status)

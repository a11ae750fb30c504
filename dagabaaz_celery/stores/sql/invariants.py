"""What must hold of every run in a store, checked on the rows themselves: foreign keys and more, without their locks.

Meant for tests after a fault, and for whoever suspects a store. It reads each run as of one moment, so that a run in
flight may be looked at too.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

from sqlalchemy import Connection, exists, func, not_, select

from dagabaaz_celery.constants import RUN_TERMINAL_STATUSES, TASK_DONE_STATUSES, RunStatus, TaskStatus
from dagabaaz_celery.stores.sql.store import SqlStore
from dagabaaz_celery.stores.sql.tables import CLOSED_NODE_STATUSES, OPEN_TASK_STATUSES


def find_violations(store: SqlStore, run_ids: Sequence[str] | None = None, *, at_rest: bool = False) -> list[str]:
    """Every broken invariant, each as a sentence that names its run; empty when all is well.

    ``at_rest``: nothing is meant to be going on any more, so that every run has ended and nothing is owed.
    """
    with store.read() as connection:
        wanted = run_ids if run_ids is not None else list(connection.execute(select(store.tables.run.c.id)).scalars())
        found = list(_find_orphans(store, connection))
        for run_id in wanted:
            found += [f"run {run_id}: {problem}" for problem in _RunCheck(store, connection, run_id).problems(at_rest)]
    return found


def _find_orphans(store: SqlStore, connection: Connection) -> Iterator[str]:
    tables = store.tables
    for child in (tables.node, tables.task, tables.attempt, tables.artifact, tables.owed):
        orphans = select(func.count()).select_from(child).where(not_(exists().where(tables.run.c.id == child.c.run_id)))
        if count := connection.execute(orphans).scalar_one():
            yield f"table {child.name} has {count} rows of runs that are not there"
    artifact, task = tables.artifact, tables.task
    no_task = select(func.count()).select_from(artifact).where(not_(exists().where(task.c.id == artifact.c.task_id)))
    if count := connection.execute(no_task).scalar_one():
        yield f"{count} artifacts belong to tasks that are not there"


class _RunCheck:
    """One run's rows, and what is wrong with them."""

    def __init__(self, store: SqlStore, connection: Connection, run_id: str) -> None:
        tables = store.tables
        self._run = store.require_run(connection, run_id)
        self._topology = store.definitions.get(connection, self._run.definition_hash).topology

        def rows_of(table: Any) -> list[Any]:
            return list(connection.execute(select(table).where(table.c.run_id == run_id)))

        self._nodes = {row.node_index: row for row in rows_of(tables.node)}
        self._tasks = rows_of(tables.task)
        self._history = Counter(row.task_id for row in rows_of(tables.attempt))
        self._artifacts = Counter(row.task_id for row in rows_of(tables.artifact))
        self._owed = rows_of(tables.owed)

    def problems(self, at_rest: bool) -> Iterator[str]:
        """Each broken invariant of the run."""
        yield from self._check_run()
        yield from self._check_nodes()
        for task in self._tasks:
            yield from (f"task {task.id}: {problem}" for problem in self._check_task(task))
        if at_rest:
            yield from self._check_rest()

    def _check_run(self) -> Iterator[str]:
        run = self._run
        closed = sum(node.status in CLOSED_NODE_STATUSES for node in self._nodes.values())
        if len(self._nodes) != run.nodes_total:
            yield f"has {len(self._nodes)} node rows of {run.nodes_total}"
        if run.nodes_done != closed:
            yield f"counts {run.nodes_done} nodes as done, and {closed} are closed"
        if (run.ended_at is not None) != (run.status in RUN_TERMINAL_STATUSES):
            yield f"is {run.status} and its end is {run.ended_at}"
        if run.status == RunStatus.COMPLETED and closed != run.nodes_total:
            yield f"is completed with {closed} of {run.nodes_total} nodes closed"

    def _check_nodes(self) -> Iterator[str]:
        by_node: dict[int, list[Any]] = defaultdict(list)
        for task in self._tasks:
            by_node[task.node_index].append(task)
        for index, node in self._nodes.items():
            tasks = by_node[index]
            slug = self._topology.nodes[index].slug
            yield from (f"node {slug!r} ({node.status}): {problem}" for problem in self._check_node(node, tasks))

    def _check_node(self, node: Any, tasks: list[Any]) -> Iterator[str]:
        done = sum(task.status in TASK_DONE_STATUSES for task in tasks)
        if node.tasks_done != done:
            yield f"counts {node.tasks_done} tasks as done, and {done} are"
        if node.status == "blocked" and tasks:
            yield f"has {len(tasks)} tasks before its launch"
        if node.status not in ("blocked", "launching") and len(tasks) != node.tasks_total:
            yield f"has {len(tasks)} tasks of {node.tasks_total}"
        if len(tasks) != node.launch_cursor:
            yield f"has {len(tasks)} tasks and made {node.launch_cursor}"
        if sorted(task.ordinal for task in tasks) != list(range(len(tasks))):
            yield "has tasks whose ordinals are not 0, 1, 2, …"
        if node.status in CLOSED_NODE_STATUSES and done != node.tasks_total:
            yield f"is closed with {done} of {node.tasks_total} tasks done"
        if node.status in ("skipped", "filtered") and [task.status for task in tasks] != [node.status]:
            yield f"has tasks {[task.status for task in tasks]}"
        if node.status != "blocked":
            open_deps = [
                self._topology.nodes[dep].slug
                for dep in self._topology.deps[node.node_index]
                if self._nodes[dep].status not in CLOSED_NODE_STATUSES
            ]
            if open_deps:
                yield f"was launched while {', '.join(open_deps)} is not closed"

    def _check_task(self, task: Any) -> Iterator[str]:
        if task.status == TaskStatus.RUNNING and task.claim_token is None:
            yield "runs and nobody claimed it"
        if task.status in (TaskStatus.PENDING, TaskStatus.QUEUED) and task.claim_token is not None:
            yield f"is {task.status} and claimed"
        if self._artifacts[task.id] and task.status != TaskStatus.COMPLETED:
            yield f"is {task.status} and has {self._artifacts[task.id]} artifacts"
        if self._history[task.id] != max(task.number - 1, 0):
            yield f"is at attempt {task.number} and its history has {self._history[task.id]}"
        if task.recoveries + task.retries > task.number - 1 and task.number > 0:
            yield f"counts {task.recoveries} recoveries and {task.retries} retries in {task.number} attempts"

    def _check_rest(self) -> Iterator[str]:
        if self._run.status not in RUN_TERMINAL_STATUSES:
            yield f"is {self._run.status} and nothing goes on"
        open_tasks = [task for task in self._tasks if task.status in OPEN_TASK_STATUSES]
        if open_tasks:
            yield f"has {len(open_tasks)} open tasks and nothing goes on"
        for owed in self._owed:
            yield f"is still owed a {owed.kind} ({owed.status}, tried {owed.tries} times)"

"""Handles on runs: what a web view or a script holds of a run that goes on in workers."""

import json
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple, TypeVar

from celery._state import get_current_worker_task

from dagabaaz_celery.cancellation import CANCELLED_BY_APP, cancel_run
from dagabaaz_celery.constants import RUN_TERMINAL_STATUSES, RunStatus, TaskStatus
from dagabaaz_celery.errors import Remedy, UnknownNode, WaitRefused, WaitTimeout
from dagabaaz_celery.models import TaskArtifact
from dagabaaz_celery.selection import RunSelection
from dagabaaz_celery.stores.sql.outages import DATABASE_ERRORS, is_outage
from dagabaaz_celery.stores.sql.records import Aftermath, NodeRow, RollbackStatus, RunRow, plain_value, to_result
from dagabaaz_celery.stores.sql.tables import OPEN_TASK_STATUSES
from dagabaaz_celery.stores.sql.transaction import refuse_pruned
from dagabaaz_celery.worker.foreground import call_now
from dagabaaz_celery.worker.runtime import Runtime

logger = logging.getLogger(__name__)
Answer = TypeVar("Answer")

_FIRST_PAUSE = 0.01
_LONGEST_PAUSE = 0.25
_OPEN_REASONS = {
    "running": "in a body",
    "queued": "a worker that consumes their queue and is free has to come to them",
    "pending": "waiting for the broker, for a delay, for a resume, or for a worker that knows their plugin",
}
_PUBLISH_BATCH = 500
MICROSECONDS = 1_000_000


@dataclass(frozen=True)
class RunError:
    """Why a run ended badly: the exception's type, message and traceback, and where it was raised.

    ``node`` and ``task_id`` are None when no task is to blame, as for a cancelled run. ``module``, ``qualname`` and
    ``args`` are what the exception can be made of again; empty, and None, where that is not known. ``rollback`` tells
    that it came up when the node's tasks were undone.
    """

    type: str
    message: str
    traceback: str
    node: str | None
    task_id: str | None
    module: str = ""
    qualname: str = ""
    args: list[Any] | None = field(default=None, hash=False)
    rollback: bool = False

    def __str__(self) -> str:
        of = "rollback of node" if self.rollback else "node"
        place = f" ({of} {self.node})" if self.node else ""
        return f"{self.type}: {self.message}{place}" if self.type else f"{self.message}{place}"


@dataclass(frozen=True)
class NodeSnapshot:
    """A node at one moment. ``tasks`` counts its tasks by status; times are seconds since 1970, database clock.

    ``status`` is failed when one of its tasks failed or crashed, also where the run goes on. ``rollback`` tells how far
    the node's undoing is: "blocked" until it is its turn, "running", "completed" or "failed"; None where there is none.
    ``rollback_tasks`` counts the tasks that undo by status. ``depends_on`` are slugs. ``run_on`` tells when a finaliser
    runs: "success", "failure" or "always"; None for any other node. ``ended_at`` of a node that did not complete is
    when its last task ended, once the run has.
    """

    slug: str
    name: str
    plugin: str
    depends_on: tuple[str, ...]
    status: str
    tasks_total: int
    tasks_done: int
    tasks: dict[str, int]
    started_at: float | None
    ended_at: float | None
    rollback: str | None
    rollback_tasks: dict[str, int]
    run_on: str | None


@dataclass(frozen=True)
class TaskSnapshot:
    """A task at one moment.

    ``rollback`` tells that the task undoes the one of the same node and ordinal. ``attempt`` counts from 1, and
    ``attempt_id`` is the Celery task id of the current one. ``progress`` is what its body last showed, (done, total).
    ``started_at`` is when the current attempt's body began, ``ended_at`` when it ended; seconds since 1970, database
    clock.
    """

    id: str
    node: str
    ordinal: int
    status: str
    attempt: int
    attempt_id: str
    retries: int
    recoveries: int
    progress: tuple[int, int] | None
    error: str | None
    started_at: float | None
    ended_at: float | None
    rollback: bool


@dataclass(frozen=True)
class RunSnapshot:
    """A run at one moment, read in one go.

    ``settled`` tells that it has ended, and so has what follows: the undoing of its tasks, and finalisers.
    """

    id: str
    pipeline: str
    version: int | None
    key: str | None
    tags: dict[str, str]
    status: RunStatus
    paused: bool
    generation: int
    rollback_status: RollbackStatus
    nodes: list[NodeSnapshot]
    error: RunError | None
    created_at: float
    ended_at: float | None
    settled: bool


class Look(NamedTuple):
    """How far a run is at one look, in words, and the seconds to pause before the next."""

    status: str
    pause: float


class Run:
    """A run, by id. Every property reads the store anew; raises UnknownRun for a run that is not there.

    Of one that retention deletes, ``status``, ``rollback_status`` and ``wait`` tell the end as long as its key is kept;
    everything else raises RunPruned, an UnknownRun.
    """

    def __init__(self, runtime: Runtime, run_id: str) -> None:
        self._runtime = runtime
        self.id = run_id

    def __repr__(self) -> str:
        return f"Run({self.id!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Run) and other.id == self.id

    def __hash__(self) -> int:
        return hash(self.id)

    @property
    def status(self) -> RunStatus:
        """Where the run is in its life; pending as long as the transaction of the app that started it is open."""
        if self._runtime.is_uncommitted(self.id):
            return RunStatus.PENDING
        return self._row().status

    @property
    def error(self) -> RunError | None:
        """Why the run ended badly; None for one that runs or completed."""
        return read_run_error(self._whole_row())

    @property
    def input(self) -> dict[str, Any]:
        """What the run was started with, defaults included."""
        return self._runtime.store.get_run_input(self.id)

    @property
    def rollback_status(self) -> RollbackStatus:
        """How far the undoing of the run is: "none", "running", "done" or "failed"."""
        return self._row().rollback_status

    @property
    def tags(self) -> dict[str, str]:
        """The tags that the run was started with."""
        return self._runtime.store.get_run_tags(self.id)

    def wait(self, timeout: float | None = None, *, rollback: bool = False) -> RunStatus:
        """Wait until the run has ended, however it did; returns its status. A database that is away is waited out.

        With ``rollback`` it waits for all that follows the end, too: the undoing of tasks, and finalisers.

        Raises WaitTimeout after ``timeout`` seconds (the run goes on), and WaitRefused inside a task, whose worker
        might be the very one that the run waits for, and inside a transaction of the app that hides how the run goes
        on.
        """
        refuse_wait_in_task(f"wait() for run {self.id}")
        for look in self.watch(timeout, rollback=rollback):
            time.sleep(look.pause)
        return RunStatus(look.status)

    def watch(self, timeout: float | None = None, *, rollback: bool = False) -> Iterator[Look]:
        """What ``wait`` does, for a program that pauses in its own way, such as an event loop.

        At the last look there is nothing more to wait for. Raises WaitTimeout, WaitRefused.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        pause = _FIRST_PAUSE
        while (status := self._look(deadline, rollback)) not in RUN_TERMINAL_STATUSES:
            self._refuse_wait_in_transaction()
            if deadline is not None and time.monotonic() >= deadline:
                raise WaitTimeout(
                    f"Run {self.id} is {status} after {timeout} s; it goes on. {self._describe_open_tasks()}",
                    remedy=Remedy.LOOK_AT_RUN,
                )
            yield Look(status, pause)
            pause = min(pause * 1.5, _LONGEST_PAUSE)
        yield Look(status, 0.0)

    def _refuse_wait_in_transaction(self) -> None:
        shared = self._runtime.store.shared
        if shared is not None and shared.awaits_commit():
            raise WaitRefused(
                f"Run {self.id} was waited for inside a transaction that this thread has open on the store's database: "
                "what is started in it begins after its commit, and what others do may not be seen in it. Leave the "
                "transaction first."
            )

    def _look(self, deadline: float | None, whole: bool) -> str:
        """The status, with ``whole`` also of what follows the end; while the database is away, as if the run ran."""
        try:
            row = self._row()
            return row.status if row.epilogue is None or not whole else f"{row.status}, in its {row.epilogue} phase,"
        except DATABASE_ERRORS as error:
            if not is_outage(error) or (deadline is not None and time.monotonic() >= deadline):
                raise
            logger.warning("the database is away while run %s is waited for: %s", self.id, error)
            return RunStatus.RUNNING

    def _describe_open_tasks(self) -> str:
        """What a run that does not end waits for, as far as its tasks tell."""
        counts = Counter[str]()
        for node in self.snapshot().nodes:
            counts.update(node.tasks)
            counts.update(node.rollback_tasks)
        reasons = [f"{counts[status]} {status} ({why})" for status, why in _OPEN_REASONS.items() if counts[status]]
        return (
            f"Its open tasks: {', '.join(reasons)}." if reasons else "It has no open tasks: a worker's sweep ends it."
        )

    def snapshot(self) -> RunSnapshot:
        """The run and its nodes as they are now."""
        store = self._runtime.store
        with store.read() as connection:
            run = store.require_run(connection, self.id)
            tags = store.rows.tags.get(connection, self.id)
            nodes = store.rows.nodes.get_all(connection, self.id)
            undoing = {~node.index: node for node in store.rows.nodes.get_undoing(connection, self.id)}
            counts = store.rows.tasks.count_by_status(connection, self.id)
            is_any_unclosed = run.ended_at is not None and any(_is_unclosed(node) for node in nodes)
            last_ends = store.rows.tasks.find_last_ends(connection, self.id) if is_any_unclosed else {}
            definition = store.definitions.get(connection, run.definition_hash).definition
        uncommitted = self._runtime.is_uncommitted(self.id)
        return RunSnapshot(
            id=run.id,
            pipeline=run.pipeline,
            version=run.version,
            key=run.key,
            tags=tags,
            status=RunStatus.PENDING if uncommitted else run.status,
            paused=run.paused,
            generation=run.generation,
            rollback_status=run.rollback_status,
            nodes=[
                NodeSnapshot(
                    slug=definition.nodes[node.index].slug,
                    name=definition.nodes[node.index].name,
                    plugin=definition.nodes[node.index].plugin,
                    depends_on=tuple(definition.nodes[node.index].depends_on),
                    status=_describe_node(node.status, counts.get(node.index, {})),
                    tasks_total=node.tasks_total,
                    tasks_done=node.tasks_done,
                    tasks=counts.get(node.index, {}),
                    started_at=_seconds(node.opened_at),
                    ended_at=_seconds(_find_end(run, node, counts.get(node.index, {}), last_ends.get(node.index))),
                    rollback=_describe_undoing(undoing.get(node.index)),
                    rollback_tasks=counts.get(~node.index, {}),
                    run_on=definition.nodes[node.index].run_on,
                )
                for node in nodes
            ],
            error=read_run_error(run),
            created_at=run.created_at / MICROSECONDS,
            ended_at=_seconds(run.ended_at),
            settled=run.status in RUN_TERMINAL_STATUSES and run.epilogue is None,
        )

    def tasks(
        self,
        *,
        node: str | None = None,
        status: TaskStatus | str | None = None,
        limit: int | None = None,
        offset: int = 0,
    ) -> list[TaskSnapshot]:
        """Tasks of the run, by node and order; those that undo others come last.

        Every task, or those of one node (a slug) or in one status; with ``limit`` at most so many of them, after the
        first ``offset``. Raises UnknownNode.
        """
        index = None if node is None else self._find_node(node)[0]
        store = self._runtime.store
        with store.read() as connection:
            run = store.require_run(connection, self.id)
            definition = store.definitions.get(connection, run.definition_hash).definition
            rows = store.rows.tasks.list_all(
                connection, self.id, node_index=index, status=status, limit=limit, offset=offset
            )
        return [
            TaskSnapshot(
                id=row.id,
                node=definition.node_of(row.node_index).slug,
                ordinal=row.ordinal,
                status=row.status,
                attempt=row.number,
                attempt_id=row.attempt_id,
                retries=row.retries,
                recoveries=row.recoveries,
                progress=None if row.progress_done is None else (row.progress_done, row.progress_total),
                error=None if row.error is None else json.loads(row.error)["message"],
                started_at=_seconds(row.claimed_at),
                ended_at=_seconds(row.ended_at),
                rollback=row.node_index < 0,
            )
            for row in rows
        ]

    def errors(self, limit: int | None = None) -> list[RunError]:
        """Why tasks of the run ended badly, by node and order, then why rollbacks did; the first ones, with a limit.

        The run's own error where no task of it ended badly, as in a cancelled one.
        """
        store = self._runtime.store
        with store.read() as connection:
            run = store.require_run(connection, self.id)
            definition = store.definitions.get(connection, run.definition_hash).definition
            rows = store.rows.tasks.list_bad_ends(connection, self.id, limit)
        found = [
            _read_error(
                json.loads(row.error),
                node=definition.node_of(row.node_index).slug,
                task_id=row.id,
                rollback=row.node_index < 0,
            )
            for row in rows
        ]
        own = read_run_error(run)
        if own is not None and all(error.rollback for error in found):
            found.insert(0, own)
        return found[:limit]

    def artifacts(self, slug: str, limit: int | None = None) -> list[TaskArtifact]:
        """What a node produced so far, in order; the first ones, with a limit. Raises UnknownNode."""
        index, _ = self._find_node(slug)
        with self._runtime.store.read() as connection:
            found = self._runtime.store.rows.artifacts.values(connection, self.id, index, limit)
        return [artifact for _, _, artifact in found]

    def count_artifacts(self) -> dict[str, int]:
        """How many artifacts each node produced so far, by slug."""
        store = self._runtime.store
        with store.read() as connection:
            run = store.require_run(connection, self.id)
            counts = store.rows.artifacts.count_by_node(connection, self.id)
            nodes = store.definitions.get(connection, run.definition_hash).definition.nodes
        return {node.slug: counts.get(index, 0) for index, node in enumerate(nodes)}

    def result(self, slug: str) -> Any:
        """What a node's bodies returned, as plain values: files as TaskArtifact.

        A node of one task that fans nothing out gives that task's value; one that has a task for each artifact or
        group gives a list with each task's value. Raises UnknownNode.
        """
        index, fans_out = self._find_node(slug)
        store = self._runtime.store
        # Of one moment, or a task may be seen to have completed without its artifacts. Inside a transaction of
        # Django's, which may be of another isolation level, the order does that, unless a retry comes between.
        with store.read(one_moment=True) as connection:
            tasks = store.rows.tasks.list_results(connection, self.id, index)
            found = store.rows.artifacts.values(connection, self.id, index)
        by_task: dict[str, list[Any]] = {}
        for task_id, shape, artifact in found:
            by_task.setdefault(task_id, []).append(plain_value(artifact, shape))
        values = [
            to_result(by_task.get(task_id, []), shape) for task_id, status, shape in tasks if status == "completed"
        ]
        return values if fans_out else next(iter(values), None)

    def cancel(self, reason: str = CANCELLED_BY_APP, *, terminate: bool = False) -> None:
        """Cancel the run if it has not ended; once this returns, no body of it starts any more.

        Bodies that run go on to their end, which is then refused; ``context.cancelled`` tells them. With ``terminate``
        a prefork worker ends the process of each by SIGTERM; other pools let them go on. Raises StoreUnavailable with
        the database away.
        """
        cancel_run(self._runtime, self.id, reason, terminate=terminate)

    def retry(self, *, from_node: str | None = None) -> None:
        """Run again what failed or was cancelled, and everything downstream of it; no completed body runs again.

        With ``from_node``, a slug, that node and everything downstream of it run again too, even where they completed;
        then a completed run can be retried. What was undone runs again in any case.

        Raises RunStateError unless the run failed, crashed or was cancelled, and while it is being undone or a part of
        it could not be; UnknownNode; StoreUnavailable with the database away.
        """
        store = self._runtime.store
        before: RunRow | None = None
        carried: Mapping[str, str] = {}

        def retry(again: bool) -> Aftermath:
            nonlocal before, carried
            if before is None:
                before = store.get_run(self.id)
                carried = self._runtime.carry_again(before)
            after = before.generation if again else None
            return store.retry(self.id, after=after, from_node=from_node, carried=carried)

        self._runtime.settle(self._ask("retried", retry))

    def rollback(self) -> None:
        """Undo what the run's tasks did, by the rollbacks of their nodes, the last first; returns when that has begun.

        A run that ends badly is undone by itself: this is for one that completed, and for another try where a rollback
        failed. Raises RunStateError for a run that has not ended, has nothing that can be undone, is being undone or
        was, and StoreUnavailable with the database away.
        """
        store, before = self._runtime.store, None

        def roll_back(again: bool) -> Aftermath:
            nonlocal before
            before = before or store.get_run(self.id).rollback_status
            return store.roll_back(self.id, after=before if again else None)

        self._runtime.settle(self._ask("undone", roll_back))

    def pause(self) -> None:
        """Start no more bodies until ``resume``; those that run go on.

        Raises RunStateError when the run has ended, and StoreUnavailable with the database away.
        """
        self._ask("paused", lambda again: self._runtime.store.set_paused(self.id, True))

    def resume(self) -> None:
        """Go on after ``pause``.

        Raises RunStateError when the run has ended, and StoreUnavailable with the database away.
        """
        self._ask("resumed", lambda again: self._runtime.store.set_paused(self.id, False))
        self._runtime.after_commit(self._go_on)

    def _go_on(self) -> None:
        try:
            self._runtime.settle(self._runtime.store.reconcile(self.id))
            while self._runtime.publish_due(_PUBLISH_BATCH):
                continue
        except DATABASE_ERRORS as error:
            if not is_outage(error):
                raise
            logger.warning("run %s goes on by the next sweep: the database is away (%s)", self.id, error)

    def _ask(self, done: str, call: Callable[[bool], Answer]) -> Answer:
        self._runtime.check_transaction()
        return call_now(
            call,
            not_done=f"run {self.id} was not {done}. Try again when the database is back.",
            in_doubt=f"run {self.id} may have been {done}. Look at it when the database is back.",
        )

    def _row(self) -> RunRow:
        return self._runtime.store.get_run(self.id)

    def _whole_row(self) -> RunRow:
        """Like ``_row``; raises RunPruned where what it tells of is gone."""
        row = self._row()
        refuse_pruned(row)
        return row

    def _find_node(self, slug: str) -> tuple[int, bool]:
        """A node's index, and whether it has a task for each artifact or group."""
        topology = self._runtime.store.definition_of(self._whole_row().definition_hash).topology
        index = topology.slug_to_index.get(slug)
        if index is None:
            raise UnknownNode(f"Run {self.id} has no node {slug!r}: it has {', '.join(topology.slug_to_index)}.")
        return index, bool(topology.deps[index]) and topology.nodes[index].fan_mode != "aggregate"


def refuse_wait_in_task(what: str) -> None:
    """Raise WaitRefused inside a task: its worker might be the very one that the run waits for."""
    if get_current_worker_task() is not None:
        raise WaitRefused(
            f"{what} was called inside a task: with every worker waiting so, none is left to run it. Register a "
            "callback with dag.on_run_completed, or make the work after it a node of the pipeline."
        )


def iterate_runs(runtime: Runtime, wanted: RunSelection, *, limit: int | None = None) -> Iterator[Run]:
    """Runs, newest first, read a page at a time."""
    for rows in iterate_pages(runtime, wanted, limit=limit):
        yield from (Run(runtime, row.id) for row in rows)


def iterate_pages(runtime: Runtime, wanted: RunSelection, *, limit: int | None = None) -> Iterator[list[RunRow]]:
    """The rows of runs, newest first, in pages; the next is read when it is asked for."""
    before: str | None = None
    left = limit
    while left is None or left > 0:
        page = 200 if left is None else min(left, 200)
        rows = runtime.store.search_runs(
            pipeline=wanted.pipeline,
            status=wanted.status,
            tags=wanted.tags,
            limit=page,
            before=before,
            created_since=wanted.created_since,
            created_before=wanted.created_before,
        )
        if rows:
            yield rows
        if len(rows) < page:
            return
        before = rows[-1].id
        left = None if left is None else left - len(rows)


def _describe_node(status: str, tasks: dict[str, int]) -> str:
    """A node's state as people see it: failed when one of its tasks did, whatever that meant for the run."""
    return "failed" if "failed" in tasks or "crashed" in tasks else status


def _is_unclosed(node: NodeRow) -> bool:
    return node.opened_at is not None and node.closed_at is None


def _find_end(run: RunRow, node: NodeRow, tasks: Mapping[str, int], last_end: int | None) -> int | None:
    """When a node ended. One that did not complete is not closed: in a run that is over, its last task ended it.

    One that had no task yet ended with the run; a finaliser begins after that, and so ends when it begins.
    """
    if run.ended_at is None or not _is_unclosed(node) or node.opened_at is None:
        return node.closed_at
    is_open = any(tasks.get(status) for status in OPEN_TASK_STATUSES)
    if is_open or (not tasks and run.epilogue is not None):
        return None
    return max(node.opened_at, run.ended_at if last_end is None else last_end)


def _describe_undoing(node: NodeRow | None) -> str | None:
    if node is None:
        return None
    return "running" if node.status in ("launching", "launched") else node.status


def read_run_error(row: RunRow) -> RunError | None:
    """Why a run ended badly, of its row."""
    return None if row.error is None else _read_error(row.error)


def _read_error(stored: Mapping[str, Any], **place: Any) -> RunError:
    """An error as some release of this package stored it."""
    known = {one.name: stored[one.name] for one in fields(RunError) if one.name in stored}
    return RunError(**{**known, **place})


def _seconds(micros: int | None) -> float | None:
    return None if micros is None else micros / MICROSECONDS

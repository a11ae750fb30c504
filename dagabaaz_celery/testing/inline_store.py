"""Where ``run_inline`` keeps a run: the store in memory, with what a SQL store would add to it and Celery would do.

It is asked what a body's execution in a worker asks of its store, and told what that tells of outcomes.
"""

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from dagabaaz_celery import orchestrator
from dagabaaz_celery.constants import (
    RUN_TERMINAL_STATUSES,
    TASK_DONE_STATUSES,
    TASK_TERMINAL_STATUSES,
    RunStatus,
    TaskStatus,
)
from dagabaaz_celery.run import RunError
from dagabaaz_celery.settings import Settings
from dagabaaz_celery.stores.memory import MemoryStore
from dagabaaz_celery.stores.sql.definitions import CachedDefinition
from dagabaaz_celery.stores.sql.records import (
    DEADLINE_EXCEEDED,
    Attempt,
    NewArtifact,
    ResultShape,
    RollbackStatus,
    RunRow,
    TaskError,
)
from dagabaaz_celery.stores.sql.store import Claimed, Work, assemble_input
from dagabaaz_celery.stores.sql.tables import new_id
from dagabaaz_celery.testing.clock import Clock
from dagabaaz_celery.testing.inline_run import InlineTask, to_run_error
from dagabaaz_celery.worker.outcome import describe_deadline

#: Attempts at one task, beyond which a body asks for ever more of them.
_MAX_ATTEMPTS = 200
_MICROSECONDS = 1_000_000
_BAD_ENDS = (TaskStatus.FAILED, TaskStatus.CRASHED)
_CALLBACKS = orchestrator.OrchestratorCallbacks(*(lambda run_id: None,) * 3)


class InlineStore:
    """One run and its tasks."""

    id = "inline"

    #: There is no database, and no transaction on it.
    is_in_apps_transaction = False

    def __init__(self, cached: CachedDefinition, run_input: dict[str, Any], settings: Settings, clock: Clock) -> None:
        self.run_id = new_id()
        self.error: RunError | None = None
        self.rollback_status: RollbackStatus = "none"
        self.started_at = clock.time()
        self._cached = cached
        self._clock = clock
        self._max_recoveries = settings.max_recoveries
        self._tasks: dict[str, InlineTask] = {}
        self._begun_before = False
        self._memory = MemoryStore()
        self._memory.create_run(self.run_id, cached.definition.nodes, run_input)
        self._engine: dict[str, Any] = {
            "callbacks": _CALLBACKS,
            "resolve_passthrough": cached.definition.is_passthrough,
            "max_fan_out": settings.max_fan_out,
            "topology": cached.topology,
        }

    # -- what whoever makes the run asks

    @property
    def status(self) -> RunStatus:
        """The run's status."""
        return self._memory.run(self.run_id).status

    @property
    def is_over(self) -> bool:
        """Whether the run has ended; what it undoes, and finalisers, follow."""
        return self.status in RUN_TERMINAL_STATUSES

    @property
    def tasks(self) -> list[InlineTask]:
        """Every task by node and order; those that undo others come last, the last node's first."""
        return sorted(self._tasks.values(), key=lambda task: (task.undoes, task.node_index, task.ordinal))

    def describe_nodes(self) -> dict[str, str]:
        """Each node's status by slug."""
        by_slug: dict[str, list[TaskStatus]] = {node.slug: [] for node in self._cached.definition.nodes}
        for task in self._tasks.values():
            if not task.undoes:
                by_slug[task.slug].append(task.status)
        return {slug: _describe_node(statuses) for slug, statuses in by_slug.items()}

    def start(self) -> None:
        """Launch the roots."""
        nodes = self._cached.definition.nodes
        orchestrator.start_run(self._memory, self.run_id, nodes, topology=self._cached.topology)
        self._look_for_tasks()

    def expire(self, timeout: float) -> None:
        """The run has had its time, in seconds."""
        error = TaskError(DEADLINE_EXCEEDED, f"the run has not ended within its {timeout:g} s")
        self.error = to_run_error(error, None)
        orchestrator.abort_run(self._memory, run_id=self.run_id, reason=error.message, callbacks=_CALLBACKS)
        self._look_for_tasks()

    def add_undoing(self, task: InlineTask) -> InlineTask:
        """A task that undoes this one."""
        undoing = self._add_task(new_id(), ~task.node_index, task.ordinal)
        undoing.input_artifact_id, undoing.origin_artifact_id = task.input_artifact_id, task.origin_artifact_id
        return undoing

    def add_finaliser(self, index: int) -> InlineTask:
        """The task of a finaliser, skipped where this end is none of its business."""
        task = self._add_task(new_id(), index, 0)
        if not self._cached.definition.nodes[index].runs_on(self.status):
            task.status, task.number = TaskStatus.SKIPPED, 0
        return task

    def find_work(self, attempt_id: str) -> Work:
        """The work whose current attempt this is."""
        return self._work_of(self._find(attempt_id))

    # -- what a body's execution asks of a store

    def definition_of(self, digest: str) -> CachedDefinition:
        return self._cached

    def claim(self, attempt_id: str, token: str, worker_id: str | None) -> Claimed:
        task = self._find(attempt_id)
        self._memory.claim_task(task.id)
        self._begun_before, task.began = task.began, True
        task.status, task.started_at = TaskStatus.RUNNING, self._clock.time()
        work = self._work_of(task)
        try:
            task_input = assemble_input(self._memory, work.attempt, self._cached)
            if task.undoes:
                task_input["result"] = self._find_undone(task).result()
            return Claimed(work, task_input, None)
        except (ValueError, LookupError, TypeError) as error:
            return Claimed(work, {}, error)

    def set_progress(self, attempt: Attempt, done: int, total: int) -> None:
        self._tasks[attempt.task_id].progress = (done, total)

    def is_wanted(self, attempt_id: str) -> bool:
        return True  # nothing else happens while a body runs

    def get_run(self, run_id: str) -> RunRow:
        run, definition = self._memory.run(run_id), self._cached.definition
        return RunRow(
            id=run_id,
            pipeline=definition.name,
            version=None,
            definition_hash="",
            key=None,
            status=run.status,
            paused=False,
            generation=run.generation,
            nodes_total=run.total_nodes,
            nodes_done=run.completed_nodes,
            error=None if self.error is None else asdict(self.error),
            options={},
            created_at=int(self.started_at * _MICROSECONDS),
            ended_at=None,
            rollback_status=self.rollback_status,
            epilogue=None,
            timeout=None,
        )

    # -- what it tells of an outcome

    def complete(self, work: Work, artifacts: list[NewArtifact], shape: ResultShape) -> bool:
        task = self._tasks[work.attempt.task_id]
        if (deadline := self._find_deadline(task)) is not None:
            self.fail(work, deadline)
            return False
        task.shape, task.artifacts = shape, [] if task.undoes else artifacts
        self._end(task, TaskStatus.COMPLETED)
        if self._memory.complete_task(task.id, [new.artifact for new in artifacts]):
            orchestrator.on_task_complete(self._memory, task_id=task.id, **self._engine)
            self._look_for_tasks()
        return True

    def fail(self, work: Work, error: TaskError, *, began: bool = True) -> bool:
        task = self._tasks[work.attempt.task_id]
        task.error = self._find_deadline(task) or error
        task.began = began or self._begun_before
        self._end(task, TaskStatus.FAILED)
        if self._is_part_of_run(task):
            orchestrator.on_task_failed(
                self._memory, task_id=task.id, error_message=_sum_up(task.error), **self._engine
            )
            self._look_for_tasks(task)
        return True

    def retry(self, work: Work, *, delay: float, retries: int, error: TaskError) -> bool:
        task = self._tasks[work.attempt.task_id]
        if (deadline := self._find_deadline(task)) is not None:
            return self.fail(work, deadline)
        if task.number >= _MAX_ATTEMPTS:
            raise RuntimeError(
                f"Node {task.slug!r} asked for more than {_MAX_ATTEMPTS} attempts at one task; the last time because "
                f"of: {_sum_up(error)}. Give its plugin max_retries, or its fake a way to end."
            )
        self._try_again(task, delay)
        task.retries = retries
        return True

    def rescue(self, work: Work, reason: TaskError) -> bool:
        """The body ended with its process."""
        task = self._tasks[work.attempt.task_id]
        limit = self._max_recoveries
        if self._cached.definition.on_lost_of(task.node_index) == "rerun" and task.recoveries < limit:
            self._try_again(task, 0.0)
            task.recoveries += 1
            return True
        task.error = reason
        self._end(task, TaskStatus.CRASHED)
        if self._is_part_of_run(task):
            orchestrator.on_task_crashed(
                self._memory, task_id=task.id, error_message=_sum_up(reason), callbacks=_CALLBACKS
            )
            self._look_for_tasks(task)
        return True

    # -- inside

    def _try_again(self, task: InlineTask, delay: float) -> None:
        self._memory.release_task(task.id)
        task.status, task.attempt_id, task.number = TaskStatus.PENDING, new_id(), task.number + 1
        task.due_at, task.started_at, task.progress = self._clock.time() + delay, None, None

    def _end(self, task: InlineTask, status: TaskStatus) -> None:
        task.status, task.ended_at = status, self._clock.time()

    def _find_deadline(self, task: InlineTask) -> TaskError | None:
        """Why the task failed, where its body took longer by the clock than its node allows."""
        timeout = self._cached.definition.timeout_of(task.node_index)
        taken = self._clock.time() - (task.started_at or 0.0)
        return describe_deadline(timeout) if timeout is not None and taken > timeout else None

    def _is_part_of_run(self, task: InlineTask) -> bool:
        """Not so for what undoes others, and for finalisers: nothing of it changes how the run ended."""
        return task.node_index >= 0 and task.node_index not in self._cached.definition.finalisers

    def _look_for_tasks(self, culprit: InlineTask | None = None) -> None:
        """Take over what the engine did: new tasks, cancelled ones, and the run's end."""
        for found in self._memory.tasks(self.run_id):
            task = self._tasks.get(found.task_id)
            if task is None:
                ordinal = sum(other.node_index == found.node_index for other in self._tasks.values())
                task = self._add_task(found.task_id, found.node_index, ordinal)
                task.input_artifact_id, task.origin_artifact_id = found.input_artifact_id, found.origin_artifact_id
                task.number = int(found.dispatched)
                task.error = None if found.error is None else TaskError("", found.error)
            if found.status in TASK_TERMINAL_STATUSES and task.status not in TASK_TERMINAL_STATUSES:
                self._end(task, found.status)
                if found.status == TaskStatus.CANCELLED:
                    task.error = TaskError("Cancelled", f"the run is {self.status}")
        if self.status in (RunStatus.FAILED, RunStatus.CRASHED) and self.error is None:
            culprit = culprit or next(task for task in self._tasks.values() if task.status in _BAD_ENDS)
            error = culprit.error or TaskError("", "")
            self.error = to_run_error(error if culprit.number else replace(error, type="LimitExceeded"), culprit)

    def _add_task(self, task_id: str, index: int, ordinal: int) -> InlineTask:
        slug = self._cached.definition.node_of(index).slug
        task = InlineTask(task_id, index, slug, ordinal, new_id(), self._clock.time())
        self._tasks[task_id] = task
        return task

    def _find(self, attempt_id: str) -> InlineTask:
        return next(task for task in self._tasks.values() if task.attempt_id == attempt_id)

    def _find_undone(self, task: InlineTask) -> InlineTask:
        place = (~task.node_index, task.ordinal)
        return next(other for other in self._tasks.values() if (other.node_index, other.ordinal) == place)

    def _work_of(self, task: InlineTask) -> Work:
        attempt = Attempt(
            attempt_id=task.attempt_id,
            token=None,
            task_id=task.id,
            run_id=self.run_id,
            node_index=task.node_index,
            ordinal=task.ordinal,
            number=task.number,
            retries=task.retries,
            recoveries=task.recoveries,
            worker_id=None,
            claimed_at=None if task.started_at is None else int(task.started_at * _MICROSECONDS),
            input_artifact_id=task.input_artifact_id,
            origin_artifact_id=task.origin_artifact_id,
        )
        return Work(attempt, "", None)


def _sum_up(error: TaskError) -> str:
    return f"{error.type}: {error.message}" if error.type else error.message


def _describe_node(statuses: Sequence[TaskStatus]) -> str:
    """As a run's snapshot has it."""
    found = set(statuses)
    if not found:
        return "blocked"
    if found & set(_BAD_ENDS):
        return "failed"
    for only in (TaskStatus.SKIPPED, TaskStatus.FILTERED):
        if found == {only}:
            return only.value
    return "completed" if found <= TASK_DONE_STATUSES else "launched"

"""What a run came to that ``run_inline`` made: asked like a run handle."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from dagabaaz_celery.constants import RunStatus, TaskStatus
from dagabaaz_celery.errors import UnknownNode
from dagabaaz_celery.models import TaskArtifact
from dagabaaz_celery.run import RunError, TaskSnapshot
from dagabaaz_celery.stores.sql.records import (
    NewArtifact,
    ResultShape,
    RollbackStatus,
    TaskError,
    plain_value,
    to_result,
)


class Call(NamedTuple):
    """A call of a body: of which node, in which attempt of its task, with which arguments by name."""

    node: str
    plugin: str
    attempt: int
    arguments: dict[str, Any]


@dataclass
class InlineTask:
    """A task as the runner keeps it; times are the clock's, in seconds since 1970."""

    id: str
    node_index: int
    slug: str
    ordinal: int
    attempt_id: str
    due_at: float
    input_artifact_id: str | None = None
    origin_artifact_id: str | None = None
    status: TaskStatus = TaskStatus.PENDING
    number: int = 1
    retries: int = 0
    recoveries: int = 0
    began: bool = False
    progress: tuple[int, int] | None = None
    started_at: float | None = None
    ended_at: float | None = None
    error: TaskError | None = None
    shape: ResultShape | None = None
    artifacts: list[NewArtifact] = field(default_factory=list)

    @property
    def undoes(self) -> bool:
        """Whether it undoes the task with the same node and ordinal."""
        return self.node_index < 0

    def result(self) -> Any:
        """What its body returned; None where it did not complete."""
        if self.status != TaskStatus.COMPLETED:
            return None
        return to_result([plain_value(new.artifact, new.shape) for new in self.artifacts], self.shape)


@dataclass(frozen=True)
class InlineRun:
    """A run that is over.

    ``nodes`` has each node's status by slug, as a run's snapshot has it. ``seconds`` are what it took by its clock.
    """

    id: str
    pipeline: str
    status: RunStatus
    rollback_status: RollbackStatus
    error: RunError | None
    input: dict[str, Any]
    nodes: Mapping[str, str]
    calls: Sequence[Call]
    seconds: float
    _tasks: Sequence[InlineTask] = field(repr=False)
    _fans_out: Mapping[str, bool] = field(repr=False)

    def tasks(self, slug: str | None = None) -> list[TaskSnapshot]:
        """Every task, or one node's, by node and order; those that undo others come last, the last node's first."""
        if slug is not None:
            self._find_node(slug)
        return [_show(task) for task in self._tasks if slug in (None, task.slug)]

    def errors(self) -> list[RunError]:
        """Why tasks ended badly, by node and order, then why rollbacks did; the run's own where no task is to blame."""
        bad = [task for task in self._tasks if task.status in (TaskStatus.FAILED, TaskStatus.CRASHED) and task.error]
        found = [to_run_error(task.error, task) for task in bad if task.error is not None]
        return [self.error, *found] if self.error and all(error.rollback for error in found) else found

    def artifacts(self, slug: str) -> list[TaskArtifact]:
        """What a node produced, in order. Raises UnknownNode."""
        return [new.artifact for task in self._of(slug) for new in task.artifacts]

    def result(self, slug: str) -> Any:
        """What a node's bodies returned, as ``run.result`` gives it. Raises UnknownNode."""
        values = [task.result() for task in self._of(slug) if task.status == TaskStatus.COMPLETED]
        return values if self._fans_out[slug] else next(iter(values), None)

    def calls_of(self, plugin: str) -> list[dict[str, Any]]:
        """With which arguments a plugin's body was called, each time."""
        return [call.arguments for call in self.calls if call.plugin == plugin]

    def _of(self, slug: str) -> list[InlineTask]:
        self._find_node(slug)
        return [task for task in self._tasks if task.slug == slug and not task.undoes]

    def _find_node(self, slug: str) -> None:
        if slug not in self.nodes:
            raise UnknownNode(f"The run has no node {slug!r}: it has {', '.join(self.nodes)}.")


def to_run_error(error: TaskError, task: InlineTask | None) -> RunError:
    """A task's error as a run tells it; of no task's where none is to blame."""
    return RunError(
        type=error.type,
        message=error.message,
        traceback=error.traceback,
        node=None if task is None else task.slug,
        task_id=None if task is None else task.id,
        module=error.module,
        qualname=error.qualname,
        args=error.args,
        rollback=task is not None and task.undoes,
    )


def _show(task: InlineTask) -> TaskSnapshot:
    return TaskSnapshot(
        id=task.id,
        node=task.slug,
        ordinal=task.ordinal,
        status=task.status.value,
        attempt=task.number,
        attempt_id=task.attempt_id,
        retries=task.retries,
        recoveries=task.recoveries,
        progress=task.progress,
        error=None if task.error is None else task.error.message,
        started_at=task.started_at,
        ended_at=task.ended_at,
        rollback=task.undoes,
    )

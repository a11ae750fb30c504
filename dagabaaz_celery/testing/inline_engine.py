"""One run without broker and database: its tasks one after another, each when it is due by a clock that tests move.

What runs next is decided by the engine, over the store in memory; what a body is given and what becomes of its result
by the same code as in a worker. This stands in for Celery between the two.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import Any, cast

from celery import Celery, Task

from dagabaaz_celery.constants import TASK_TERMINAL_STATUSES, RunStatus, TaskStatus
from dagabaaz_celery.graph import measure_depths
from dagabaaz_celery.settings import Settings
from dagabaaz_celery.stores.sql.definitions import CachedDefinition
from dagabaaz_celery.stores.sql.records import TaskError
from dagabaaz_celery.testing.clock import Clock
from dagabaaz_celery.testing.inline_run import Call, InlineTask
from dagabaaz_celery.testing.inline_store import InlineStore
from dagabaaz_celery.worker.active import find_active
from dagabaaz_celery.worker.observers import Observers
from dagabaaz_celery.worker.plugin_task import Execution, retry_in_run
from dagabaaz_celery.worker.registry import Plugin
from dagabaaz_celery.worker.runtime import Runtime
from dagabaaz_celery.worker.secrets import SecretResolver

_BAD_ENDS = (TaskStatus.FAILED, TaskStatus.CRASHED)


@dataclass
class _Runtime:
    """What a body's execution asks of an app's runtime."""

    app: Celery
    settings: Settings
    secret_resolver: SecretResolver
    store: InlineStore
    outcome: InlineStore
    observers: Observers = field(default_factory=Observers)
    worker_id: str | None = None


class InlineEngine:
    """A run from start to end; ``plugins`` by node index, those that undo by ``~index``."""

    def __init__(
        self,
        cached: CachedDefinition,
        plugins: Mapping[int, Plugin],
        run_input: dict[str, Any],
        *,
        app: Celery,
        settings: Settings,
        secrets: SecretResolver,
        clock: Clock,
        timeout: float | None,
    ) -> None:
        self.calls: list[Call] = []
        self.store = InlineStore(cached, run_input, settings, clock)
        self._definition = cached.definition
        self._depths = measure_depths(cached.topology.deps)
        self._plugins = plugins
        self._clock = clock
        self._timeout = timeout
        self._runtime = cast(Runtime, _Runtime(app, settings, secrets, self.store, self.store))

    def run(self) -> None:
        """See the run through to its end, and all that follows it."""
        store = self.store
        store.start()
        while not store.is_over:
            task = min((task for task in store.tasks if task.status not in TASK_TERMINAL_STATUSES), key=_due)
            if self._is_late(max(task.due_at, self._clock.time())):
                self._wait_until(store.started_at + (self._timeout or 0.0))
                store.expire(self._timeout or 0.0)
            else:
                self._execute(task)
        if self._definition.undoable and store.status != RunStatus.COMPLETED:
            store.rollback_status = "running"
            store.rollback_status = "done" if self._roll_back() else "failed"
        self._execute_all([store.add_finaliser(index) for index in sorted(self._definition.finalisers)])

    def _is_late(self, moment: float) -> bool:
        return self._timeout is not None and moment >= self.store.started_at + self._timeout

    def _roll_back(self) -> bool:
        """Undo what began, the last level first; False when a level could not be undone."""
        undoable, depths = self._definition.undoable, self._depths
        for depth in sorted({depths[index] for index in undoable}, reverse=True):
            level = [task for task in self.store.tasks if task.node_index in undoable and task.began]
            undoing = [self.store.add_undoing(task) for task in level if depths[task.node_index] == depth]
            self._execute_all(undoing)
            if any(task.status in _BAD_ENDS for task in undoing):
                return False
        return True

    def _execute_all(self, tasks: Sequence[InlineTask]) -> None:
        while still_open := [task for task in tasks if task.status not in TASK_TERMINAL_STATUSES]:
            self._execute(min(still_open, key=_due))

    def _execute(self, task: InlineTask) -> None:
        self._wait_until(task.due_at)
        plugin, store = self._plugins[task.node_index], self.store
        header = {"store": store.id, "run": store.run_id, "node": task.node_index, "task": task.id}
        with _requested(plugin.task, task, partial(self._retry_by_clock, plugin.task)):
            try:
                Execution(self._runtime, plugin, self._note_call(plugin, task)).run(header)
            except KeyboardInterrupt:
                raise
            except SystemExit:  # as where the process ends
                lost = TaskError("WorkerLost", f"attempt {task.number} was lost: its process ended")
                store.rescue(store.find_work(task.attempt_id), lost)
            except BaseException:  # it is recorded by now, as Celery would hear of it
                if task.status == TaskStatus.RUNNING:
                    raise

    def _note_call(self, plugin: Plugin, task: InlineTask) -> Callable[..., Any]:
        parameters = plugin.parameters

        def call(*args: Any, **kwargs: Any) -> Any:
            named = {**dict(zip(parameters.positional_only, args, strict=False)), **kwargs}
            given = {name: value for name, value in named.items() if name not in parameters.context_names}
            self.calls.append(Call(task.slug, plugin.info.name, task.number, given))
            return plugin.task.run(*args, **kwargs)

        return call

    def _retry_by_clock(self, celery_task: Task, *args: Any, eta: datetime | None = None, **kwargs: Any) -> Any:
        if eta is not None:
            kwargs["countdown"] = max((eta - self._clock.now()).total_seconds(), 0.0)
        active = find_active()
        assert active is not None  # noqa: S101  # only bodies call this
        return retry_in_run(self._runtime, celery_task, active, *args, **kwargs)

    def _wait_until(self, moment: float) -> None:
        self._clock.advance(max(moment - self._clock.time(), 0.0))


@contextmanager
def _requested(celery_task: Task, task: InlineTask, retry: Callable[..., Any]) -> Iterator[None]:
    """Have a Celery task see the request of this attempt, and ask us for another one."""
    has_own = "retry" in vars(celery_task)
    before = celery_task.retry
    celery_task.push_request(id=task.attempt_id, retries=task.retries, called_directly=False, is_eager=True)
    celery_task.retry = retry
    try:
        yield
    finally:
        if has_own:
            celery_task.retry = before
        else:
            del celery_task.retry
        celery_task.pop_request()


def _due(task: InlineTask) -> float:
    return task.due_at

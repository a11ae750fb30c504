"""The store in memory behind the suite's harness, as itself or as a store that has 20 methods and nothing more."""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from dagabaaz_celery import orchestrator
from dagabaaz_celery.constants import MAX_FAN_OUT, RunStatus, TaskStatus
from dagabaaz_celery.models import DagNode, TaskArtifact
from dagabaaz_celery.retry import compute_retry_boundary, retry_run
from dagabaaz_celery.store import DagStore
from dagabaaz_celery.stores.memory import MemoryStore
from dagabaaz_celery.task_input import build_task_input, resolve_task_bindings
from tests.contract.harness import OpenTask, RunStore, StoreHarness, is_passthrough


class MemoryHarness(StoreHarness):
    """``view`` makes of the store what the engine is given to advance runs."""

    def __init__(self, view: Callable[[MemoryStore], DagStore] = lambda store: store) -> None:
        self._store = MemoryStore()
        self._engine_store = view(self._store)
        self._run_numbers = itertools.count(1)
        self._ended: dict[str, list[RunStatus]] = {}
        self._max_fan_out: dict[str, int] = {}
        self._callbacks = orchestrator.OrchestratorCallbacks(
            on_run_completed=lambda run_id: self._ended[run_id].append(RunStatus.COMPLETED),
            on_run_failed=lambda run_id: self._ended[run_id].append(RunStatus.FAILED),
            on_run_crashed=lambda run_id: self._ended[run_id].append(RunStatus.CRASHED),
            on_run_cancelled=lambda run_id: self._ended[run_id].append(RunStatus.CANCELLED),
        )

    def start(
        self, nodes: Sequence[DagNode], run_input: Mapping[str, Any] | None = None, max_fan_out: int = MAX_FAN_OUT
    ) -> str:
        run_id = f"run-{next(self._run_numbers)}"
        self._ended[run_id] = []
        self._max_fan_out[run_id] = max_fan_out
        self._store.create_run(run_id, nodes, run_input)
        orchestrator.start_run(self._engine_store, run_id, nodes)
        return run_id

    def open_tasks(self, run_id: str) -> list[OpenTask]:
        nodes = self._nodes(run_id)
        return [
            OpenTask(
                task.task_id,
                task.node_index,
                nodes[task.node_index].slug,
                task.input_artifact_id,
                task.origin_artifact_id,
            )
            for task in self._store.open_tasks(run_id)
        ]

    def task_input(self, task: OpenTask) -> dict[str, Any]:
        run_id = self._run_of(task)
        nodes = self._nodes(run_id)
        where: dict[str, Any] = {
            "run_id": run_id,
            "node_index": task.node_index,
            "nodes": nodes,
            "input_artifact_id": task.input_artifact_id,
            "origin_artifact_id": task.origin_artifact_id,
        }
        passthrough = {index for index, node in enumerate(nodes) if is_passthrough(node.plugin)}
        input_data = build_task_input(self._store, passthrough_indices=passthrough, **where)
        resolve_task_bindings(self._store, input_data=input_data, node_config=nodes[task.node_index].config, **where)
        return input_data

    def complete(self, task: OpenTask, artifacts: Sequence[TaskArtifact] = ()) -> None:
        with self._store.lock:
            self._record_success(task, artifacts)
            self._advance(task)

    def complete_late(self, task: OpenTask, artifacts: Sequence[TaskArtifact], meanwhile: Callable[[], None]) -> None:
        self._record_success(task, artifacts)
        meanwhile()
        self._advance(task)

    def fail(self, task: OpenTask, message: str) -> None:
        with self._store.lock:
            if self._store.claim_task(task.task_id):
                orchestrator.on_task_failed(
                    self._engine_store, task_id=task.task_id, error_message=message, callbacks=self._callbacks
                )

    def crash(self, task: OpenTask, message: str) -> None:
        with self._store.lock:
            if self._store.claim_task(task.task_id):
                orchestrator.on_task_crashed(
                    self._engine_store, task_id=task.task_id, error_message=message, callbacks=self._callbacks
                )

    def cancel(self, run_id: str) -> None:
        with self._store.lock:
            orchestrator.abort_run(
                self._engine_store,
                run_id=run_id,
                reason="cancelled by a user",
                callbacks=self._callbacks,
                status=RunStatus.CANCELLED,
            )

    def retry(self, run_id: str) -> dict[str, str]:
        store = self._store
        with store.lock:
            nodes = self._nodes(run_id)
            boundary = compute_retry_boundary(
                store.get_completed_node_indices(run_id),
                store.get_launched_node_indices(run_id),
                len(nodes),
                lambda index: bool(store.get_retryable_tasks(run_id, [index])),
            )
            assert store.reopen_run(run_id)
            result = retry_run(store, run_id, nodes, boundary)
            self.reconcile(run_id)
            return result.replacement_map

    def reconcile(self, run_id: str) -> None:
        with self._store.lock:
            orchestrator.reconcile_run(
                self._engine_store,
                run_id,
                callbacks=self._callbacks,
                resolve_passthrough=is_passthrough,
                max_fan_out=self._max_fan_out[run_id],
            )

    def status(self, run_id: str) -> RunStatus:
        return self._store.run(run_id).status

    def node_states(self, run_id: str) -> dict[str, str]:
        launched = self._store.get_launched_node_indices(run_id)
        return {
            node.slug: _describe_node(self.task_statuses(run_id, node.slug)) if index in launched else "blocked"
            for index, node in enumerate(self._nodes(run_id))
        }

    def task_statuses(self, run_id: str, slug: str) -> list[str]:
        nodes = self._nodes(run_id)
        return [task.status.value for task in self._store.tasks(run_id) if nodes[task.node_index].slug == slug]

    def ended(self, run_id: str) -> list[RunStatus]:
        return list(self._ended[run_id])

    @contextmanager
    def session(self, run_id: str) -> Iterator[RunStore]:
        yield self._store

    def _nodes(self, run_id: str) -> list[DagNode]:
        nodes = self._store.get_run_nodes(run_id)
        assert nodes is not None
        return nodes

    def _run_of(self, task: OpenTask) -> str:
        context = self._store.get_task_context(task.task_id)
        assert context is not None
        return context.run_id

    def _record_success(self, task: OpenTask, artifacts: Sequence[TaskArtifact]) -> None:
        self._store.claim_task(task.task_id)
        self._store.complete_task(task.task_id, artifacts)

    def _advance(self, task: OpenTask) -> None:
        """Also for a task that lost its claim: the engine, too, must bear being told twice."""
        context = self._store.get_task_context(task.task_id)
        with self._store.lock:
            orchestrator.on_task_complete(
                self._engine_store,
                task_id=task.task_id,
                callbacks=self._callbacks,
                resolve_passthrough=is_passthrough,
                max_fan_out=MAX_FAN_OUT if context is None else self._max_fan_out[context.run_id],
            )


@contextmanager
def open_memory_harness() -> Iterator[StoreHarness]:
    """The store in memory as it is."""
    yield MemoryHarness()


def _describe_node(statuses: Sequence[str]) -> str:
    found = set(statuses)
    if found & {TaskStatus.FAILED, TaskStatus.CRASHED}:
        return "failed"
    if found in ({TaskStatus.SKIPPED}, {TaskStatus.FILTERED}, {TaskStatus.COMPLETED}):
        return found.pop()
    return "launched"

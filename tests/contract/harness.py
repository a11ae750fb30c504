"""What the contract suite needs of a store: enough to start whole runs in it and to play their workers.

A new store joins the suite with a StoreHarness of its own and a line in conftest.py.
"""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from dagabaaz_celery.constants import MAX_FAN_OUT, RunStatus
from dagabaaz_celery.models import DagNode, TaskArtifact
from dagabaaz_celery.store import DagRetryStore, TaskInputStore

T = TypeVar("T")

PATIENCE = 30.0  # seconds until what is stuck counts as deadlocked


@dataclass(frozen=True)
class OpenTask:
    """A dispatched task that has not ended."""

    task_id: str
    node_index: int
    slug: str
    input_artifact_id: str | None
    origin_artifact_id: str | None


class RunStore(DagRetryStore, TaskInputStore, Protocol):
    """Everything the engine and the input assembly ask of a store."""


class StoreHarness(Protocol):
    """A store with its workers: each method is one thing that happens to a run, told to the engine as the app would."""

    def start(
        self, nodes: Sequence[DagNode], run_input: Mapping[str, Any] | None = None, max_fan_out: int = MAX_FAN_OUT
    ) -> str:
        """Start a run of these nodes, whose plugins are passthrough as ``is_passthrough`` says; returns its id."""

    def open_tasks(self, run_id: str) -> list[OpenTask]:
        """Tasks that have not ended, in the order in which they were dispatched."""

    def task_input(self, task: OpenTask) -> dict[str, Any]:
        """What the task's plugin would get: build_task_input, then its bindings."""

    def complete(self, task: OpenTask, artifacts: Sequence[TaskArtifact] = ()) -> None:
        """Claim the task, record its success, advance the run; a task that is not open is refused as in production."""

    def complete_late(self, task: OpenTask, artifacts: Sequence[TaskArtifact], meanwhile: Callable[[], None]) -> None:
        """Like ``complete``, but ``meanwhile`` happens after the success is recorded and before the run is advanced."""

    def fail(self, task: OpenTask, message: str) -> None:
        """Claim the task and let its body fail."""

    def crash(self, task: OpenTask, message: str) -> None:
        """Claim the task and lose its worker for good."""

    def cancel(self, run_id: str) -> None:
        """Cancel the run, open tasks included."""

    def retry(self, run_id: str) -> dict[str, str]:
        """Retry the ended run, the reconciliation after it included; returns new task ids by those they replace."""

    def reconcile(self, run_id: str) -> None:
        """Let the engine look at the whole run."""

    def status(self, run_id: str) -> RunStatus:
        """The run's status."""

    def node_states(self, run_id: str) -> dict[str, str]:
        """By slug: blocked, launched, completed, skipped, filtered, or failed when one of its tasks failed or crashed.

        A launched node whose tasks were cancelled stays launched.
        """

    def task_statuses(self, run_id: str, slug: str) -> list[str]:
        """Statuses of the node's tasks, in the order of dispatch."""

    def ended(self, run_id: str) -> list[RunStatus]:
        """What the run's callbacks were told, oldest first; each ending tells one of them once."""

    def session(self, run_id: str) -> AbstractContextManager[RunStore]:
        """The store as the engine sees it within one call; what it changed holds once the session is left."""

    def concurrently(self, run_id: str, work: Callable[[RunStore], T], n: int) -> list[T]:
        """Do the same work in n threads at the same instant, each in a session of its own."""

        def work_alone() -> T:
            with self.session(run_id) as store:
                return work(store)

        return release_together([work_alone] * n)


HarnessFactory = Callable[[], AbstractContextManager[StoreHarness]]


def is_passthrough(plugin: str) -> bool:
    """The suite's convention: plugins whose names start with "gate" only route."""
    return plugin.startswith("gate")


def release_together(calls: Sequence[Callable[[], T]]) -> list[T]:
    """Run each call in a thread of its own, released at the same instant; results in order, or the first error."""
    barrier = threading.Barrier(len(calls))
    results: list[T | None] = [None] * len(calls)
    errors: list[BaseException] = []

    def run(index: int) -> None:
        try:
            barrier.wait(PATIENCE)
            results[index] = calls[index]()
        except BaseException as error:  # told to the test's own thread below
            errors.append(error)

    threads = [threading.Thread(target=run, args=(index,), daemon=True) for index in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert not any(thread.is_alive() for thread in threads), "threads are stuck: a deadlock?"
    if errors:
        raise errors[0]
    return results  # type: ignore[return-value]


# -- words that the tests are written in


def node(slug: str, *depends_on: str, plugin: str = "work", **fields: Any) -> DagNode:
    """A node; plugin names starting with "gate" make it passthrough."""
    return DagNode(slug=slug, plugin=plugin, depends_on=list(depends_on), **fields)


def data(name: str, size: int | None = None, **metadata: Any) -> TaskArtifact:
    """An artifact known by its file name."""
    return TaskArtifact(file_name=name, file_size=size, metadata=metadata)


def open_at(harness: StoreHarness, run_id: str, slug: str) -> list[OpenTask]:
    """The node's open tasks, in the order of dispatch."""
    return [task for task in harness.open_tasks(run_id) if task.slug == slug]


def complete_node(
    harness: StoreHarness, run_id: str, slug: str, produce: Callable[[OpenTask], Sequence[TaskArtifact]] = lambda _: ()
) -> int:
    """Complete the node's open tasks with what ``produce`` gives for each; how many there were."""
    tasks = open_at(harness, run_id, slug)
    for task in tasks:
        harness.complete(task, produce(task))
    return len(tasks)


def input_names(task_input: Mapping[str, Any]) -> list[str]:
    """File names in a task's input: one for a single artifact, all of a list."""
    if "artifacts" in task_input:
        return [artifact["file_name"] for artifact in task_input["artifacts"]]
    return [task_input["file_name"]] if "file_name" in task_input else []


def run_to_end(harness: StoreHarness, run_id: str, produce: Callable[[OpenTask], Sequence[TaskArtifact]]) -> list[str]:
    """Complete whatever is open until nothing is; the slugs in the order of execution."""
    return [task.slug for task in _execute_all(harness, run_id, produce)]


def _execute_all(
    harness: StoreHarness, run_id: str, produce: Callable[[OpenTask], Sequence[TaskArtifact]]
) -> Iterator[OpenTask]:
    while tasks := harness.open_tasks(run_id):
        harness.complete(tasks[0], produce(tasks[0]))
        yield tasks[0]


def pass_on(harness: StoreHarness) -> Callable[[OpenTask], list[TaskArtifact]]:
    """A plugin that emits one artifact, named after the node and what it read: ``branch_a(f1)``."""

    def produce(task: OpenTask) -> list[TaskArtifact]:
        return [data(f"{task.slug}({','.join(input_names(harness.task_input(task)))})")]

    return produce

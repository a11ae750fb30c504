"""Runs that are walked through one completion after the other, by the engine, in memory."""

from collections.abc import Callable, Sequence

from dagabaaz_celery import orchestrator
from dagabaaz_celery.constants import FanMode
from dagabaaz_celery.models import DagNode, TaskArtifact
from dagabaaz_celery.stores.memory import MemoryStore
from dagabaaz_celery.topology import RunTopology
from tests.benchmarks.micro.flat_store import FlatStore

RUN = "run"
_CALLBACKS = orchestrator.OrchestratorCallbacks(*[lambda run_id: None] * 3)


def never(plugin: str) -> bool:
    """No plugin only routes."""
    return False


def chain(length: int) -> list[DagNode]:
    """Each node starts the next."""
    return [DagNode(slug=f"n{i}", plugin="p", depends_on=[f"n{i - 1}"] if i else []) for i in range(length)]


def layers(count: int, width: int) -> list[DagNode]:
    """So many layers of so many nodes and a join: each layer begins when all of the one before is over."""
    nodes: list[DagNode] = []
    before: list[str] = []
    for n in range(count):
        slugs = [f"n{n}x{i}" for i in range(width)]
        nodes += [DagNode(slug=slug, plugin="p", depends_on=before) for slug in slugs]
        nodes.append(DagNode(slug=f"j{n}", plugin="p", depends_on=slugs, fan_mode=FanMode.AGGREGATE))
        before = [f"j{n}"]
    return nodes


class Walk:
    """A run that goes on by ``step``; when it is over it begins anew, at the same place."""

    def __init__(self, nodes: Sequence[DagNode], start_at: int, make: "Callable[[Sequence[DagNode]], Store]") -> None:
        self._nodes = nodes
        self._start_at = start_at
        self._make = make
        self._topology = RunTopology.build(nodes, never)
        self._begin()

    def ready(self) -> tuple[tuple[str], dict[str, object]]:
        """The arguments of a step, whose task has completed in the store."""
        if not self._store.has_open():
            self._begin()
        return (self._store.complete_next(),), {}

    def step(self, task_id: str) -> None:
        """What the engine does about a completion."""
        orchestrator.on_task_complete(
            self._store.dag_store,
            task_id=task_id,
            callbacks=_CALLBACKS,
            resolve_passthrough=never,
            topology=self._topology,
        )

    def _begin(self) -> None:
        self._store = self._make(self._nodes)
        orchestrator.start_run(self._store.dag_store, RUN, self._nodes, topology=self._topology)
        for _ in range(self._start_at):
            self.step(self._store.complete_next())


class Flat:
    """A run in a ``FlatStore``."""

    def __init__(self, nodes: Sequence[DagNode]) -> None:
        self.dag_store = FlatStore(nodes)

    def has_open(self) -> bool:
        return bool(self.dag_store.open)

    def complete_next(self) -> str:
        """Complete the oldest task; its id."""
        task_id = self.dag_store.open.pop(0)
        self.dag_store.complete(task_id)
        return task_id


class Memory:
    """A run in the package's own store for tests, which looks through all tasks for many an answer."""

    def __init__(self, nodes: Sequence[DagNode]) -> None:
        self.dag_store = MemoryStore()
        self.dag_store.create_run(RUN, nodes)

    def has_open(self) -> bool:
        return bool(self.dag_store.open_tasks(RUN))

    def complete_next(self) -> str:
        """Complete the oldest task; its id."""
        task_id = self.dag_store.open_tasks(RUN)[0].task_id
        self.dag_store.claim_task(task_id)
        self.dag_store.complete_task(task_id, [TaskArtifact(file_name="x")])
        return task_id


Store = Flat | Memory

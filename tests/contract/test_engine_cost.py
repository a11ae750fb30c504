"""What closing a node costs: the same questions and changes, however large the graph."""

from dagabaaz_celery import orchestrator
from dagabaaz_celery.models import TaskArtifact
from dagabaaz_celery.stores.memory import MemoryStore
from dagabaaz_celery.topology import RunTopology
from tests.contract.bare_store import BareStore
from tests.contract.harness import node

CALLBACKS = orchestrator.OrchestratorCallbacks(*[lambda run_id: None] * 3)


def calls_to_close_the_middle(length: int) -> list[str]:
    """Every call and every question to a collection when a node in the middle of a chain closes."""
    nodes = [node("n0"), *(node(f"n{i}", f"n{i - 1}") for i in range(1, length))]
    topology = RunTopology.build(nodes, lambda plugin: False)
    store = MemoryStore()
    store.create_run("run", nodes)
    for index in range(length // 2):
        store.try_claim_node_launch("run", index)
        task_id = store.dispatch_task("run", index, "work", None)
        store.claim_task(task_id)
        store.complete_task(task_id, [TaskArtifact(file_name="x")])

    bare = BareStore(store)
    orchestrator.on_task_complete(
        bare, task_id=task_id, callbacks=CALLBACKS, resolve_passthrough=lambda plugin: False, topology=topology
    )

    assert [task.node_index for task in store.open_tasks("run")] == [length // 2]
    return bare.calls


def test_closing_a_node_asks_the_same_in_a_long_chain_as_in_a_short_one():
    short, long = calls_to_close_the_middle(10), calls_to_close_the_middle(1000)

    assert long == short
    assert len(short) < 20

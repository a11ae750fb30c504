"""A retry of a run that has ended: what runs again, and what has to go for that."""

import json
from collections.abc import Collection
from dataclasses import asdict, replace

from dagabaaz_celery.constants import RUN_RETRYABLE_STATUSES, RUN_TERMINAL_STATUSES, TASK_RETRYABLE_STATUSES
from dagabaaz_celery.errors import Remedy, RunStateError, UnknownNode
from dagabaaz_celery.graph import find_descendants
from dagabaaz_celery.retry import compute_retry_boundary, retry_run
from dagabaaz_celery.stores.sql.records import NodeRow, TaskError
from dagabaaz_celery.stores.sql.tables import CLOSED_NODE_STATUSES
from dagabaaz_celery.stores.sql.transaction import RunTransaction


def reopen(transaction: RunTransaction, from_node: str | None) -> None:
    """Set a run running in its next generation, with new attempts for what is to run again.

    That is what did not complete, what was undone, the node ``from_node``, and everything that depends on these. The
    caller holds the run's tasks and nodes, and has the run looked at as a whole afterwards. Raises RunStateError,
    UnknownNode.
    """
    from_index = None if from_node is None else _find_node(transaction, from_node)
    _refuse(transaction, from_node)
    undone = {~node.index for node in transaction.rows.nodes.get_undoing(transaction.connection, transaction.run_id)}
    transaction.set_reopened()
    transaction.rows.owed.delete_of_run(transaction.connection, transaction.run_id, ["cancel", "launch", "epilogue"])
    _cancel_leftovers(transaction)
    _forget(transaction, undone, from_index)
    _redispatch(transaction)


def _find_node(transaction: RunTransaction, slug: str) -> int:
    topology = transaction.definition.topology
    index = topology.slug_to_index.get(slug)
    if index is None:
        known = ", ".join(topology.slug_to_index)
        raise UnknownNode(f"Run {transaction.run_id} has no node {slug!r} to be retried from: it has {known}.")
    return index


def _refuse(transaction: RunTransaction, from_node: str | None) -> None:
    run = transaction.run
    if from_node is None and run.status not in RUN_RETRYABLE_STATUSES:
        raise RunStateError(
            f"Run {run.id} is {run.status}: only a run that failed, crashed or was cancelled can be retried.",
            remedy=Remedy.NAME_NODE,
        )
    if run.status not in RUN_TERMINAL_STATUSES:
        raise RunStateError(f"Run {run.id} is {run.status}: it can be retried once it has ended. Wait, or cancel it.")
    if run.rollback_status == "running":
        raise RunStateError(
            f"Run {run.id} is being undone: a retry would do again what is undone at the same time.",
            remedy=Remedy.WAIT_FOR_ROLLBACK,
        )
    if run.rollback_status == "failed":
        raise RunStateError(
            f"A part of run {run.id} could not be undone, so that nobody knows what a retry would begin with.",
            remedy=Remedy.UNDO_AGAIN,
        )


def _cancel_leftovers(transaction: RunTransaction) -> None:
    """Tasks that the old generation's cancellation had not reached yet, and finalisers in progress."""
    rows, connection, run_id = transaction.rows.tasks, transaction.connection, transaction.run_id
    error = json.dumps(asdict(TaskError("Cancelled", "the run was retried")))
    while rows.cancel_some(connection, run_id, transaction.policy.cancel_batch, error) is not None:
        continue


def _forget(transaction: RunTransaction, undone: Collection[int], from_index: int | None) -> None:
    """Make blocked again what begins afresh: what was undone, finalisers, and what depends on where it begins."""
    connection, run_id, rows = transaction.connection, transaction.run_id, transaction.rows
    topology = transaction.definition.topology
    starts = [*undone] if from_index is None else [*undone, from_index]
    afresh = {*undone, *find_descendants(topology.children, starts), *topology.finalisers}
    if from_index is not None and from_index not in afresh and not _repeat_node(transaction, from_index):
        afresh.add(from_index)
    indices = sorted(afresh)
    rows.tasks.delete_at_nodes(connection, run_id, [*indices, *(~index for index in undone)])
    rows.artifacts.delete_at_nodes(connection, run_id, indices)
    rows.nodes.reset(connection, run_id, indices)
    rows.nodes.delete_undoing(connection, run_id)


def _repeat_node(transaction: RunTransaction, index: int) -> bool:
    """Have every task of a node done again; False when it had none that was ever sent: it is launched afresh."""
    connection, run_id, rows = transaction.connection, transaction.run_id, transaction.rows
    node = rows.nodes.get_some(connection, run_id, [index])[0]
    if node.status not in ("completed", "launched", "launching"):
        return False
    error = json.dumps(asdict(TaskError("Cancelled", "the run was retried from this node")))
    rows.tasks.reopen_completed(connection, run_id, index, error)
    rows.artifacts.delete_at_nodes(connection, run_id, [index])
    status = "launching" if node.launch_cursor < node.tasks_total else "launched"
    repeated = NodeRow(index, status, node.tasks_total, 0, node.launch_cursor)
    rows.nodes.recount(connection, run_id, repeated)
    return True


def _redispatch(transaction: RunTransaction) -> None:
    nodes = transaction.load_all_nodes()
    finalisers = transaction.definition.topology.finalisers
    completed = {*transaction.get_completed_node_indices(transaction.run_id), *finalisers}
    counts = transaction.rows.tasks.count_by_status(transaction.connection, transaction.run_id)

    def has_failure(index: int) -> bool:
        return any(status in counts.get(index, ()) for status in TASK_RETRYABLE_STATUSES)

    boundary = compute_retry_boundary(
        completed, {node.index for node in nodes if node.status != "blocked"}, len(nodes), has_failure
    )
    # A launch that the run's end cut short, its tasks so far completed, has nothing to repeat: it goes on.
    resumed = [node.index for node in nodes if node.status == "launching" and not has_failure(node.index)]
    for index in resumed:
        transaction.owe("launch", transaction.run.status, index)
    boundary = replace(boundary, downstream=[index for index in boundary.downstream if index not in resumed])
    transaction.set_nodes_done(
        sum(node.status in CLOSED_NODE_STATUSES for node in nodes if node.index not in finalisers)
    )
    retry_run(transaction, transaction.run_id, transaction.definition.definition.nodes, boundary)
    transaction.flush_redispatched()

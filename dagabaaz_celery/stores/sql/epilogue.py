"""What follows a run's end, in this order: its last bodies end, what was done is undone, and its finalisers run.

It goes on in transactions of its own, after the run's end is committed, and changes nothing of that end. The run's
``epilogue`` says how far it is:

- ``waiting``: bodies that ran when the run ended go on to their end. Nothing else of the run starts.
- ``rollback``: tasks undo others. They stand beside the run's nodes: the tasks that undo node ``i`` have the node
  index ``~i`` and the ordinals of those that they undo, and a node row of their own counts them. Levels of the graph
  are undone one after the other, the last first. What cannot be undone ends the rollback, once its level has ended.
- ``finalisers``: each runs once; its failure is shown and changes nothing.

Every step is ``proceed``, the run being locked: whoever ends the last task of something calls it, in the transaction of
that end. While a run waits for its last bodies, its owed row has every sweep look whether they have ended.
"""

from dataclasses import replace

from dagabaaz_celery.constants import RUN_TERMINAL_STATUSES
from dagabaaz_celery.errors import Remedy, RunStateError
from dagabaaz_celery.graph import measure_depths
from dagabaaz_celery.stores.sql.records import NodeRow
from dagabaaz_celery.stores.sql.transaction import RunTransaction

_OPEN = ("launching", "launched")


def begin(transaction: RunTransaction) -> None:
    """The last body of a run that has ended is over: see what is to be undone, and go on."""
    if transaction.run.rollback_status == "running":
        _plan_rollback(transaction)
    proceed(transaction)


def note_node_done(transaction: RunTransaction, node: NodeRow) -> None:
    """The tasks of a node of a run that has ended are all over: go on with what follows, if there is anything."""
    run = transaction.run
    if run.epilogue == "waiting":
        transaction.remind_of_epilogue()
    elif run.epilogue is not None and (node.index < 0 or node.index in transaction.definition.topology.finalisers):
        status = "failed" if transaction.has_ended_badly(node.index) else "completed"
        if transaction.rows.nodes.try_close(transaction.connection, run.id, node.index, status):
            transaction.aftermath.closed.append(node.index)
        transaction.note_node(replace(node, status=status))
        proceed(transaction)


def start_rollback(transaction: RunTransaction) -> None:
    """Undo a run that has ended because somebody asks for it. Raises RunStateError."""
    _refuse_rollback(transaction)
    if transaction.run.rollback_status == "failed":
        _roll_back_again(transaction)
    else:
        transaction.set_epilogue("waiting", "running")
        transaction.owe("epilogue", transaction.run.status)


def _refuse_rollback(transaction: RunTransaction) -> None:
    run = transaction.run
    if not transaction.definition.definition.undoable:
        raise RunStateError(
            f"Nothing of run {run.id} can be undone: no node of pipeline {run.pipeline!r} has a rollback. Give the "
            "nodes that can be undone one (DagNode.rollback); runs that are started then have it."
        )
    if run.status not in RUN_TERMINAL_STATUSES:
        raise RunStateError(f"Run {run.id} is {run.status}: it can be undone once it has ended. Cancel it first.")
    if run.rollback_status in ("running", "done"):
        is_so = "is being undone" if run.rollback_status == "running" else "was undone already"
        raise RunStateError(f"Run {run.id} {is_so}: there is nothing to do.", remedy=Remedy.LOOK_AT_ROLLBACK)
    if run.epilogue is not None:
        raise RunStateError(
            f"The finalisers of run {run.id} are at work, and may use what would be undone.",
            remedy=Remedy.WAIT_FOR_FINALISERS,
        )


def _roll_back_again(transaction: RunTransaction) -> None:
    """Undo once more what could not be undone, and then what is still to be."""
    for node in transaction.rows.nodes.get_undoing(transaction.connection, transaction.run_id):
        if node.status == "failed":
            transaction.undo_again(node.index)
    transaction.set_epilogue("rollback", "running")
    proceed(transaction)


def proceed(transaction: RunTransaction) -> None:
    """Do whatever is due after the run's end; doing it again is harmless."""
    if transaction.run.status not in RUN_TERMINAL_STATUSES:
        return
    if transaction.run.rollback_status == "running" and not _finish_rollback(transaction):
        return
    _run_finalisers(transaction)


def _plan_rollback(transaction: RunTransaction) -> None:
    """Note which tasks are to be undone: those whose bodies began, in whatever attempt, and however they ended."""
    indices = sorted(transaction.definition.definition.undoable)
    counts = transaction.rows.tasks.count_begun(transaction.connection, transaction.run_id, indices)
    totals = {~index: count for index, count in counts.items()}
    if totals:
        transaction.rows.nodes.insert(transaction.connection, transaction.run_id, totals)
    transaction.set_epilogue("rollback", "running")


def _finish_rollback(transaction: RunTransaction) -> bool:
    """Undo the next level; True when there is none, or when one could not be undone."""
    nodes = transaction.rows.nodes.get_undoing(transaction.connection, transaction.run_id)
    if any(node.status in _OPEN for node in nodes):
        return False
    blocked = {node.index: node for node in nodes if node.status == "blocked"}
    if any(node.status == "failed" for node in nodes):
        transaction.set_epilogue("finalisers", "failed")
        return True
    if not blocked:
        transaction.set_epilogue("finalisers", "done")
        return True
    depths = measure_depths(transaction.definition.topology.deps)
    deepest = max(depths[~index] for index in blocked)
    for index, node in blocked.items():
        is_next = depths[~index] == deepest and transaction.launch_after_end(index)
        if is_next and transaction.continue_undoing(node):
            transaction.owe("launch", transaction.run.status, index)
    return False


def _run_finalisers(transaction: RunTransaction) -> None:
    """Launch the finalisers that this end is for, skip the others; when all are over, so is everything."""
    run, definition = transaction.run, transaction.definition.definition
    finalisers = sorted(definition.finalisers)
    transaction.load_nodes(finalisers)
    for index in finalisers:
        if transaction.node(index).status != "blocked" or not transaction.launch_after_end(index):
            continue
        node = definition.nodes[index]
        if node.runs_on(run.status):
            transaction.dispatch_task(run.id, index, node.plugin, None)
        else:
            transaction.dispatch_skipped_task(run.id, index, node.plugin)
    is_over = all(transaction.node(index).status not in _OPEN for index in finalisers)
    transaction.set_epilogue(None if is_over else "finalisers", run.rollback_status)

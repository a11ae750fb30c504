"""What runs next: the engine's answer to each thing that happens to a run.

Every function is one step: it reads through the store, decides, writes through the store, and keeps nothing. Calls
for one run must come one at a time (a lock or transaction of the caller's): claims keep two callers from doing the
same thing, but only an order among them lets the later one see what the earlier one closed.
"""

import logging
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass
from typing import Literal

from dagabaaz_celery.constants import (
    MAX_FAN_OUT,
    RUN_TERMINAL_STATUSES,
    FanMode,
    NodeSummaryStatus,
    RunStatus,
)
from dagabaaz_celery.errors import PipelineError
from dagabaaz_celery.filter import filter_artifacts, group_by_origin
from dagabaaz_celery.graph import collect_upstream_artifacts_bfs, find_ready_nodes, find_root_nodes
from dagabaaz_celery.models import DagArtifact, DagNode
from dagabaaz_celery.store import DagStore
from dagabaaz_celery.topology import ResolvePassthrough, RunTopology, evict, get_or_build

logger = logging.getLogger(__name__)

RunCallback = Callable[[str], object]


def _do_nothing(run_id: str) -> None:
    """Most callers cancel runs themselves and need not be told."""


@dataclass(frozen=True, slots=True)
class OrchestratorCallbacks:
    """Called with the run id by the one caller that ended the run, after everything else of that ending."""

    on_run_completed: RunCallback
    on_run_failed: RunCallback
    on_run_crashed: RunCallback
    on_run_cancelled: RunCallback = _do_nothing

    def deliver(self, run_id: str, status: RunStatus) -> None:
        """Call the one callback for this terminal status."""
        by_status = {
            RunStatus.COMPLETED: self.on_run_completed,
            RunStatus.FAILED: self.on_run_failed,
            RunStatus.CRASHED: self.on_run_crashed,
            RunStatus.CANCELLED: self.on_run_cancelled,
        }
        by_status[status](run_id)


@dataclass(frozen=True, slots=True)
class LaunchPlan:
    """What launching a node comes to.

    ``single``: one task for each artifact id in ``items``. ``grouped``: one task for each origin id in ``items``, or
    one task without an origin when there are none. ``aggregate``: one task. ``skipped`` and ``filtered``: the node
    closes without running. ``over_limit``: nothing is dispatched and the run fails with ``error``.
    """

    kind: Literal["skipped", "filtered", "single", "aggregate", "grouped", "over_limit"]
    items: tuple[str, ...] = ()
    error: str | None = None


def start_run(
    store: DagStore, run_id: str, nodes: Sequence[DagNode], *, topology: RunTopology | None = None
) -> list[int]:
    """Claim and dispatch every root node of a new run; returns all root indices, also those another caller claimed.

    Raises PipelineError (a ValueError) when no node can start.
    """
    evict(run_id)  # an id used before may have had other nodes
    roots = topology.roots if topology is not None else find_root_nodes(nodes)
    if not roots:
        raise PipelineError(
            f"Run {run_id!r} cannot start: it has no root nodes. Give at least one node an empty depends_on."
        )
    for index in roots:
        if store.try_claim_node_launch(run_id, index):
            store.dispatch_task(run_id, index, nodes[index].plugin, None)
    return list(roots)


def on_task_complete(
    store: DagStore,
    *,
    task_id: str,
    callbacks: OrchestratorCallbacks,
    resolve_passthrough: ResolvePassthrough,
    max_fan_out: int = MAX_FAN_OUT,
    topology: RunTopology | None = None,
) -> None:
    """Advance the run of a task that the store has recorded as completed: launch what became ready, or end the run.

    Does nothing while other tasks of the node are open or when the run is terminal; doing it again is harmless.
    ``max_fan_out`` holds for nodes that set no limit of their own. ``topology`` saves looking it up.
    """
    context = store.get_task_context(task_id)
    if context is None:
        logger.warning("task %s completed, but the store does not know it: ignored", task_id)
        return
    run_id, node_index = context.run_id, context.node_index
    status, total, done = store.get_barrier_state(run_id, node_index)
    if _is_over(status) or done < total:
        return
    topology = topology or get_or_build(run_id, lambda: store.get_run_nodes(run_id), resolve_passthrough)
    if topology is None:
        logger.warning("task %s completed, but its run %s has no nodes: ignored", task_id, run_id)
        return
    advance = _Advance(store, run_id, topology, max_fan_out)
    advance.close_node(node_index)
    advance.launch_ready_nodes([node_index])
    advance.finish(callbacks)


def reconcile_run(
    store: DagStore,
    run_id: str,
    *,
    callbacks: OrchestratorCallbacks,
    resolve_passthrough: ResolvePassthrough,
    max_fan_out: int = MAX_FAN_OUT,
    topology: RunTopology | None = None,
) -> None:
    """Do whatever is due in a run: close and launch nodes, end the run.

    Like ``on_task_complete``, but it looks at every node once instead of at the children of one, and so finds what
    an event missed while the run was failed or paused. Idempotent; to be called after a retry or resume and
    whenever in doubt.
    """
    if _is_over(store.get_run_status(run_id)):
        return
    topology = topology or get_or_build(run_id, lambda: store.get_run_nodes(run_id), resolve_passthrough)
    if topology is None:
        logger.warning("run %s has no nodes: nothing to reconcile", run_id)
        return
    advance = _Advance(store, run_id, topology, max_fan_out)
    advance.close_finished_nodes()
    advance.launch_ready_nodes(None)
    advance.finish(callbacks)


def on_task_failed(
    store: DagStore,
    *,
    task_id: str,
    error_message: str,
    callbacks: OrchestratorCallbacks,
    resolve_passthrough: ResolvePassthrough = lambda plugin: False,
    max_fan_out: int = MAX_FAN_OUT,
    topology: RunTopology | None = None,
) -> None:
    """Record that a task's body failed, and fail its run: its open tasks are cancelled.

    A node with another policy (``on_failure``) goes on instead, as after a task that completed: the store counts the
    task as done (``DagNode.counts_as_done``). For that the last three arguments are what ``on_task_complete`` takes.
    """
    context = store.get_task_context(task_id)
    if context is None:
        logger.warning("task %s failed, but the store does not know it: ignored", task_id)
        return
    store.mark_task_failed(task_id, error_message)
    nodes = store.get_run_nodes(context.run_id)
    if nodes is not None and nodes[context.node_index].on_failure != "fail":
        on_task_complete(
            store,
            task_id=task_id,
            callbacks=callbacks,
            resolve_passthrough=resolve_passthrough,
            max_fan_out=max_fan_out,
            topology=topology,
        )
        return
    _end_run(store, context.run_id, RunStatus.FAILED, error_message, callbacks)


def on_task_crashed(store: DagStore, *, task_id: str, error_message: str, callbacks: OrchestratorCallbacks) -> None:
    """Record that a task's worker was lost for good, and crash its run: its open tasks are cancelled."""
    context = store.get_task_context(task_id)
    if context is None:
        logger.warning("task %s crashed, but the store does not know it: ignored", task_id)
        return
    store.mark_task_crashed(task_id, error_message)
    _end_run(store, context.run_id, RunStatus.CRASHED, error_message, callbacks)


def abort_run(
    store: DagStore,
    *,
    run_id: str,
    reason: str,
    callbacks: OrchestratorCallbacks,
    status: RunStatus = RunStatus.FAILED,
) -> bool:
    """End a run from outside as failed, crashed or cancelled; True when this call did.

    Raises ValueError for any other status.
    """
    if status not in RUN_TERMINAL_STATUSES - {RunStatus.COMPLETED}:
        raise ValueError(f"A run cannot be aborted as {status!r}: use failed, crashed or cancelled.")
    return _end_run(store, run_id, status, reason, callbacks)


def plan_node_launch(
    store: DagStore,
    run_id: str,
    node_index: int,
    topology: RunTopology,
    *,
    is_skipped: Callable[[int], bool] | None = None,
    max_fan_out: int = MAX_FAN_OUT,
) -> LaunchPlan:
    """Decide how to launch a node whose dependencies are all completed; only reads.

    The answer follows the store's order of artifacts and is the same however often it is asked, so that a launch
    written in parts can be resumed. ``is_skipped`` tells of a dependency whether it was skipped (None: by the
    store's summary).
    """
    node = topology.nodes[node_index]
    dependencies = topology.deps[node_index]
    if not dependencies:
        return LaunchPlan("aggregate")
    if any(map(is_skipped or _read_skips(store, run_id), dependencies)):
        return LaunchPlan("skipped")
    artifacts = _collect_over_edges(store, run_id, node_index, topology)
    if artifacts is None:
        return LaunchPlan("skipped")
    if not artifacts:
        return LaunchPlan("filtered")
    return _plan_tasks(node, artifacts, max_fan_out)


def _plan_tasks(node: DagNode, artifacts: Sequence[DagArtifact], max_fan_out: int) -> LaunchPlan:
    if node.fan_mode == FanMode.AGGREGATE:
        return LaunchPlan("aggregate")
    limit = node.max_fan_out if node.max_fan_out is not None else max_fan_out
    if node.fan_mode == FanMode.GROUPED:
        items = tuple(group_by_origin(artifacts).groups)
        plan = LaunchPlan("grouped", items)
    else:
        items = tuple(artifact.id for artifact in artifacts)
        plan = LaunchPlan("single", items)
    return plan if len(items) <= limit else LaunchPlan("over_limit", error=_describe_excess(node, len(items), limit))


def _describe_excess(node: DagNode, count: int, limit: int) -> str:
    what = "Grouped fan-out limit" if node.fan_mode == FanMode.GROUPED else "Fan-out limit"
    return (
        f"{what} exceeded: node {node.slug!r} would get {count} tasks and may have {limit}. "
        "Raise max_fan_out of the node, or dagabaaz_max_fan_out for the app, or filter what reaches the node."
    )


def _collect_over_edges(
    store: DagStore, run_id: str, node_index: int, topology: RunTopology
) -> list[DagArtifact] | None:
    """The node's artifacts, edge by edge, each once; None when an aggregate's filter rejected all that an edge had."""
    found: dict[str, DagArtifact] = {}
    for dependency in topology.deps[node_index]:
        artifacts = collect_upstream_artifacts_bfs(
            store, run_id, [dependency], topology.deps, passthrough_indices=topology.passthrough_indices
        )
        edge_filter = topology.edge_filters[node_index].get(dependency)
        passed = artifacts if edge_filter is None else filter_artifacts(artifacts, edge_filter)
        if artifacts and not passed and topology.nodes[node_index].fan_mode == FanMode.AGGREGATE:
            return None
        for artifact in passed:
            found.setdefault(artifact.id, artifact)
    return list(found.values())


def _read_skips(store: DagStore, run_id: str) -> Callable[[int], bool]:
    summary = store.get_node_summary(run_id)
    return lambda index: summary.get(index) == NodeSummaryStatus.SKIPPED


def _dispatch_plan(store: DagStore, run_id: str, node_index: int, plugin: str, plan: LaunchPlan) -> None:
    if plan.kind == "skipped":
        store.dispatch_skipped_task(run_id, node_index, plugin)
    elif plan.kind == "filtered":
        store.dispatch_filtered_task(run_id, node_index, plugin)
    elif plan.kind == "over_limit":
        store.dispatch_failed_task(run_id, node_index, plugin, plan.error or "")
    elif not plan.items:
        store.dispatch_task(run_id, node_index, plugin, None)
    elif plan.kind == "grouped":
        for origin_id in plan.items:
            store.dispatch_grouped_task(run_id, node_index, plugin, origin_id)
    else:
        for artifact_id in plan.items:
            store.dispatch_task(run_id, node_index, plugin, artifact_id)


def _is_over(status: RunStatus | None) -> bool:
    return status is None or status in RUN_TERMINAL_STATUSES


def _end_run(
    store: DagStore, run_id: str, status: RunStatus, error: str | None, callbacks: OrchestratorCallbacks
) -> bool:
    if not store.try_claim_run_terminal(run_id, status, error):
        return False
    evict(run_id)
    if status == RunStatus.FAILED:
        store.fail_run(run_id, error or "")
    if status != RunStatus.COMPLETED:
        store.cancel_remaining_tasks(run_id, error or "")
    callbacks.deliver(run_id, status)
    return True


class _Overlay(Container[int]):
    """Node indices that the store named, with those that this call added; the store's are only asked ``in``."""

    def __init__(self, stored: Container[int]) -> None:
        self._stored = stored
        self.added: set[int] = set()

    def __contains__(self, index: object) -> bool:
        return index in self.added or index in self._stored


class _Advance:
    """One call's work on one run: what the store said when it began, and what the call changed since.

    The store's collections are read once and may be lazy, so everything this call changes is remembered here.
    """

    def __init__(self, store: DagStore, run_id: str, topology: RunTopology, max_fan_out: int) -> None:
        self._store = store
        self._run_id = run_id
        self._topology = topology
        self._max_fan_out = max_fan_out
        completed = store.get_completed_node_indices(run_id)
        self._completed = _Overlay(completed)
        self._completed_count = len(completed)  # now: asked later, a lazy store would count this call's own changes
        self._launched = _Overlay(store.get_launched_node_indices(run_id))
        self._was_skipped = _read_skips(store, run_id)
        self._skipped: set[int] = set()
        self._limit_error: str | None = None
        self._has_closed = False

    def close_node(self, index: int) -> None:
        """Count a node whose tasks are done as completed, unless the store already does."""
        self._has_closed = True
        if index not in self._completed:
            self._add_to_completed(index)

    def close_finished_nodes(self) -> None:
        """Close every launched node whose tasks are all done and which the store does not count as completed."""
        for index in range(len(self._topology.nodes)):
            if index in self._launched and index not in self._completed:
                _, total, done = self._store.get_barrier_state(self._run_id, index)
                if 0 < total <= done:
                    self.close_node(index)

    def launch_ready_nodes(self, changed: Sequence[int] | None) -> None:
        """Launch the ready children of what changed (None: every ready node), and those of nodes that so close."""
        topology = self._topology
        while changed is None or changed:
            ready = find_ready_nodes(
                topology.deps, self._completed, self._launched, children=topology.children, changed_indices=changed
            )
            changed = [index for index in ready if index not in topology.finalisers and self._launch_node(index)]

    def _launch_node(self, index: int) -> bool:
        """Launch one node, unless a limit stopped this call or another caller has it; True when it closed at once."""
        if self._limit_error is not None:
            return False
        self._launched.added.add(index)
        if not self._store.try_claim_node_launch(self._run_id, index):
            return False
        plan = plan_node_launch(
            self._store,
            self._run_id,
            index,
            self._topology,
            is_skipped=self._is_skipped,
            max_fan_out=self._max_fan_out,
        )
        _dispatch_plan(self._store, self._run_id, index, self._topology.nodes[index].plugin, plan)
        self._limit_error = plan.error
        if plan.kind == "skipped":
            self._skipped.add(index)
        if plan.kind not in ("skipped", "filtered"):
            return False
        self._has_closed = True
        self._add_to_completed(index)  # unasked: a lazy store may answer by the task that was just dispatched
        return True

    def _add_to_completed(self, index: int) -> None:
        self._completed.added.add(index)
        self._completed_count += 1

    def _is_skipped(self, index: int) -> bool:
        return index in self._skipped or self._was_skipped(index)

    def finish(self, callbacks: OrchestratorCallbacks) -> None:
        """Report progress, and end the run when it failed at a limit or every node is completed."""
        total = len(self._topology.nodes) - len(self._topology.finalisers)
        if self._has_closed:
            self._store.set_run_progress(self._run_id, self._completed_count)
        if self._limit_error is not None:
            _end_run(self._store, self._run_id, RunStatus.FAILED, self._limit_error, callbacks)
        elif self._completed_count >= total:
            _end_run(self._store, self._run_id, RunStatus.COMPLETED, None, callbacks)

"""A reference model of runs: what each event does to a run, written from the tables of states and from nothing else.

It shares no code with the engine or a store. Artifacts are known by their names, tasks by what they work on, attempts
by their number. Times are seconds on the tests' own clock.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from dagabaaz_celery.models import DagNode, EdgeFilter, FilterRule

#: Seconds for whoever took something; seconds until a published task is suspected to be lost.
LEASE = 20.0
RESEND_AFTER = 30.0
SHORT_DELAY = 5.0
MAX_FAN_OUT = 6
MAX_RECOVERIES = 2

DONE = frozenset({"completed", "skipped", "filtered"})
OPEN = frozenset({"pending", "queued", "running"})
WAITING = frozenset({"pending", "queued"})
CLOSED = frozenset({"completed", "skipped", "filtered"})
OVER = frozenset({"completed", "failed", "crashed", "cancelled"})
_KINDS = {".mp4": "video", ".srt": "subtitle", ".bin": "other"}


class Item(NamedTuple):
    """What a task works on: one artifact, one group, or neither."""

    artifact: str | None = None
    group: str | None = None


class Key(NamedTuple):
    """A logical task."""

    node: int
    item: Item


class AttemptKey(NamedTuple):
    """An attempt at a logical task."""

    key: Key
    number: int


class OwedKey(NamedTuple):
    """Something that a committed change owes."""

    kind: str
    generation: int
    node: int = -1


@dataclass(frozen=True)
class Emitted:
    """An artifact: who made it, and the artifact that it goes back to (None: a broadcast one)."""

    name: str
    size: int | None
    is_even: bool
    node: int
    origin: str | None

    @property
    def kind(self) -> str:
        return _KINDS[self.name[self.name.rindex(".") :]]


@dataclass
class TaskModel:
    """A logical task with its current attempt."""

    key: Key
    status: str = "pending"
    number: int = 1
    retries: int = 0
    recoveries: int = 0
    token: str | None = None
    worker: str | None = None
    not_before: float = 0.0
    lease: float | None = None
    resends: int = 0
    emitted: tuple[Emitted, ...] = ()
    #: Tokens of attempts that a retry of Celery's or a rescue replaced.
    superseded: set[str] = field(default_factory=set)

    @property
    def attempt(self) -> AttemptKey:
        return AttemptKey(self.key, self.number)

    def renew(self, now: float, *, delay: float = 0.0, retries: int = 0, recoveries: int = 0) -> None:
        """Replace the attempt by the next one."""
        if self.token is not None:
            self.superseded.add(self.token)
        self.status, self.number, self.token, self.worker = "pending", self.number + 1, None, None
        self.retries, self.recoveries, self.resends = retries, recoveries, 0
        self.not_before = now + delay
        self.lease = now + delay + LEASE if delay <= SHORT_DELAY else None


@dataclass
class NodeModel:
    """A node; ``items`` are all that it is to work on, ``tasks`` those made so far."""

    status: str = "blocked"
    items: Sequence[Item] = ()
    tasks: list[TaskModel] = field(default_factory=list)

    @property
    def done(self) -> int:
        return sum(task.status in DONE for task in self.tasks)

    @property
    def has_all_done(self) -> bool:
        return self.status == "launched" and self.done == len(self.items)


@dataclass(frozen=True)
class Plan:
    """How a node is launched."""

    kind: Literal["skipped", "filtered", "failed", "tasks"]
    items: Sequence[Item] = ()


Outcome = Literal["done", "repeat", "refused"]


class RunModel:
    """One run.

    ``launch_batch``: tasks made in one go (None: all). ``cancels_at_once``: a run that ends takes its open tasks with
    it; otherwise they are owed their cancellation.
    """

    def __init__(
        self, nodes: Sequence[DagNode], now: float, *, launch_batch: int | None, cancels_at_once: bool
    ) -> None:
        self.definition = nodes
        index_of = {node.slug: index for index, node in enumerate(nodes)}
        self.deps = [[index_of[slug] for slug in node.depends_on] for node in nodes]
        self.filters = [{index_of[slug]: found for slug, found in node.edge_filters.items()} for node in nodes]
        self.status = "running"
        self.is_paused = False
        self.generation = 1
        self.nodes = [NodeModel() for _ in nodes]
        self.owed: dict[OwedKey, str] = {}
        #: What was told of by callbacks: (generation, status).
        self.endings: list[tuple[int, str]] = []
        #: Attempts that the last event gave to its caller to publish.
        self.to_publish: list[AttemptKey] = []
        self._launch_batch = launch_batch
        self._cancels_at_once = cancels_at_once
        for index, dependencies in enumerate(self.deps):
            if not dependencies:
                self._make_tasks(index, [Item()], now)

    # -- looking

    @property
    def is_over(self) -> bool:
        return self.status in OVER

    def tasks(self) -> Iterator[TaskModel]:
        for node in self.nodes:
            yield from node.tasks

    def find(self, key: Key) -> TaskModel | None:
        return next((task for task in self.nodes[key.node].tasks if task.key == key), None)

    def find_current(self, attempt: AttemptKey) -> TaskModel | None:
        """The task whose current attempt this is."""
        task = self.find(attempt.key)
        return task if task is not None and task.number == attempt.number else None

    def closed_count(self) -> int:
        return sum(node.status in CLOSED for node in self.nodes)

    # -- what flows along edges

    def route(self, index: int) -> list[Emitted] | None:
        """What reaches a node, each artifact once; None when it is to be skipped."""
        if any(self.nodes[dependency].status == "skipped" for dependency in self.deps[index]):
            return None
        reached: dict[str, Emitted] = {}
        for dependency in self.deps[index]:
            offered = self._look_upstream(dependency)
            passed = _apply(self.filters[index].get(dependency), offered)
            if offered and not passed and self.definition[index].fan_mode == "aggregate":
                return None
            reached.update((artifact.name, artifact) for artifact in passed if artifact.name not in reached)
        return list(reached.values())

    def plan(self, index: int) -> Plan:
        """How a node whose dependencies are closed is launched."""
        if not self.deps[index]:
            return Plan("tasks", [Item()])
        reached = self.route(index)
        if reached is None:
            return Plan("skipped")
        if not reached:
            return Plan("filtered")
        node = self.definition[index]
        if node.fan_mode == "aggregate":
            return Plan("tasks", [Item()])
        if node.fan_mode == "single":
            items = [Item(artifact=artifact.name) for artifact in reached]
        else:
            items = [Item(group=name) for name in dict.fromkeys(artifact.origin for artifact in reached) if name]
        limit = MAX_FAN_OUT if node.max_fan_out is None else node.max_fan_out
        return Plan("failed") if len(items) > limit else Plan("tasks", items or [Item()])

    def input_names(self, key: Key) -> list[str]:
        """Names of the artifacts that a task reads, sorted; of a root task none."""
        if key.item.artifact is not None:
            return [key.item.artifact]
        if not self.deps[key.node]:
            return []
        reached = self.route(key.node) or []
        group = key.item.group
        return sorted(artifact.name for artifact in reached if group is None or artifact.origin in (group, None))

    def find_origin(self, key: Key, name: str) -> str | None:
        """What an artifact of this name, made by this task, goes back to."""
        node = self.definition[key.node]
        if node.scatter:
            return name
        if node.fan_mode == "aggregate":
            return None
        if not self.deps[key.node]:
            return name
        if node.fan_mode == "grouped":
            return key.item.group
        read = next(a for task in self.tasks() for a in task.emitted if a.name == key.item.artifact)
        return read.origin or read.name

    def _look_upstream(self, dependency: int) -> list[Emitted]:
        """The artifacts of a dependency, or the nearest ones behind it when it is a gate that let everything go by."""
        level, seen = [dependency], {dependency}
        while level:
            found = [a for index in sorted(level) for task in self.nodes[index].tasks for a in task.emitted]
            if found:
                return found
            behind = [d for index in level if self.definition[index].plugin == "gate" for d in self.deps[index]]
            level = [index for index in dict.fromkeys(behind) if index not in seen]
            seen.update(level)
        return []

    # -- events

    def publish(self, attempt: AttemptKey, now: float) -> None:
        """It is known to be published."""
        task = self.find_current(attempt)
        if task is not None and task.status == "pending" and task.lease is not None:
            task.status, task.lease = "queued", now + RESEND_AFTER

    def release(self, attempt: AttemptKey) -> None:
        """It could not be published."""
        task = self.find_current(attempt)
        if task is not None and task.status == "pending":
            task.lease = None

    def list_due(self, now: float) -> list[AttemptKey]:
        """What a sweep has to publish."""
        if self.status != "running" or self.is_paused:
            return []
        return [
            task.attempt
            for task in self.tasks()
            if task.status == "pending" and task.not_before <= now and (task.lease is None or task.lease < now)
        ]

    def lease(self, attempts: Iterable[AttemptKey], now: float) -> None:
        """A sweep took these to publish them."""
        for task in map(self._get, attempts):
            task.resends += task.lease is not None
            task.lease = now + LEASE

    def list_suspects(self, now: float) -> list[AttemptKey]:
        """Published long ago and not claimed."""
        if self.status != "running" or self.is_paused:
            return []
        return [t.attempt for t in self.tasks() if t.status == "queued" and t.lease is not None and t.lease < now]

    def lease_again(self, attempts: Iterable[AttemptKey], now: float) -> None:
        """A sweep took these to send them again; each time it waits longer until the next."""
        for task in map(self._get, attempts):
            task.lease = now + RESEND_AFTER * (task.resends + 2)
            task.resends += 1

    def mark_resent(self, attempt: AttemptKey, now: float) -> None:
        """It is known to be sent again."""
        task = self.find_current(attempt)
        if task is not None and task.status == "queued":
            task.lease = now + RESEND_AFTER * (task.resends + 1)

    def claim(self, attempt: AttemptKey, token: str, worker: str, now: float) -> bool:
        """Whether the body of an attempt begins, or has begun by this very claim."""
        task = self.find_current(attempt)
        if task is None:
            return False
        if task.status == "running" and task.token == token:
            return True
        if task.status not in WAITING or self.status != "running":
            return False
        if self.is_paused or task.not_before > now:
            self._hand_back(task, now)
            return False
        task.status, task.token, task.worker, task.lease = "running", token, worker, None
        return True

    def return_unknown(self, attempt: AttemptKey, pause: float, now: float) -> None:
        """A worker got a task that it does not know."""
        task = self.find_current(attempt)
        if task is not None and task.status in WAITING and self.status == "running":
            self._hand_back(task, now + pause)

    def complete(self, attempt: AttemptKey, token: str, artifacts: Sequence[Emitted], now: float) -> Outcome:
        task = self.find_current(attempt)
        if not _may_report(task, token):
            return _answer(task, token, "completed")
        task.status, task.emitted, task.lease = "completed", tuple(artifacts), None
        if self.nodes[attempt.key.node].has_all_done and self.status == "running":
            self.nodes[attempt.key.node].status = "completed"
            self._go_on(now)
        return "done"

    def fail(self, attempt: AttemptKey, token: str, status: str) -> Outcome:
        """The body failed, crashed for good, or was revoked (cancelled)."""
        task = self.find_current(attempt)
        if not _may_report(task, token):
            return _answer(task, token, status)
        task.status, task.lease = status, None
        self._end(status)
        return "done"

    def retry_attempt(self, attempt: AttemptKey, token: str, delay: float, now: float) -> Outcome:
        """The body asked for another attempt."""
        task = self.find_current(attempt)
        if not _may_report(task, token):
            return self._answer_superseded(attempt, token)
        task.renew(now, delay=delay, retries=task.retries + 1, recoveries=task.recoveries)
        if delay <= SHORT_DELAY:
            self.to_publish.append(task.attempt)
        return "done"

    def rescue(self, attempt: AttemptKey, token: str, recoveries: int, now: float) -> Outcome:
        """The attempt's worker is gone; ``recoveries`` are those that the attempt had when it was found lost."""
        if self.definition[attempt.key.node].on_lost == "crash" or recoveries >= MAX_RECOVERIES:
            return self.fail(attempt, token, "crashed")
        task = self.find_current(attempt)
        if not _may_report(task, token):
            return self._answer_superseded(attempt, token)
        task.renew(now, retries=task.retries, recoveries=recoveries + 1)
        self.to_publish.append(task.attempt)
        return "done"

    def cancel(self) -> None:
        self._end("cancelled")

    def list_to_cancel(self) -> list[TaskModel]:
        """What a cancellation would cancel now."""
        return [task for task in self.tasks() if task.status in OPEN] if self.is_over else []

    def cancel_rest(self, owed: OwedKey) -> None:
        for task in self.list_to_cancel():
            task.status = "cancelled"
        self.owed.pop(owed, None)

    def continue_launch(self, owed: OwedKey, now: float) -> bool:
        """Make the next batch of a wide launch; whether there is more."""
        node = self.nodes[owed.node]
        if self.status == "running" and self.generation == owed.generation and node.status == "launching":
            self._make_tasks(owed.node, node.items, now)
            if node.status == "launching":
                return True
        self.owed.pop(owed, None)
        return False

    def set_paused(self, is_paused: bool) -> bool:
        """False when it is too late for that."""
        if self.is_over:
            return False
        self.is_paused = is_paused
        return True

    def reconcile(self, now: float) -> None:
        if self.status == "running":
            self._go_on(now)

    def retry(self, now: float) -> bool:
        """Run again what did not complete; False for a run that is not over or that completed."""
        if not self.is_over or self.status == "completed":
            return False
        self.status, self.is_paused, self.generation = "running", False, self.generation + 1
        self.owed = {key: status for key, status in self.owed.items() if key.kind == "callback"}
        for task in self.tasks():
            if task.status in OPEN:
                task.status = "cancelled"
        for index, node in enumerate(self.nodes):
            if node.status == "failed":  # at its limit: launched afresh
                self.nodes[index] = NodeModel()
            else:
                self._run_again(index, node, now)
        self._go_on(now)
        return True

    # -- inside

    def _get(self, attempt: AttemptKey) -> TaskModel:
        task = self.find_current(attempt)
        assert task is not None
        return task

    def _hand_back(self, task: TaskModel, not_before: float) -> None:
        task.status, task.lease, task.not_before = "pending", None, max(task.not_before, not_before)

    def _answer_superseded(self, attempt: AttemptKey, token: str) -> Outcome:
        task = self.find(attempt.key)
        return "repeat" if task is not None and token in task.superseded else "refused"

    def _run_again(self, index: int, node: NodeModel, now: float) -> None:
        for task in node.tasks:
            if task.status not in DONE:
                superseded = set(task.superseded)
                task.renew(now)
                task.superseded, task.emitted = superseded, ()  # a generation's end is no attempt's end
                self.to_publish.append(task.attempt)
        if node.status == "launching":
            self.owed[OwedKey("launch", self.generation, index)] = "running"

    def _go_on(self, now: float) -> None:
        """Close what is done, launch what is ready, wave by wave, and end the run when nothing is left."""
        for node in self.nodes:
            if node.has_all_done:
                node.status = "completed"
        while ready := [index for index in range(len(self.nodes)) if self._is_ready(index)]:
            for index in ready:
                if not self._launch(index, now):
                    self._end("failed")
                    return
        if self.closed_count() == len(self.nodes):
            self._end("completed")

    def _is_ready(self, index: int) -> bool:
        is_blocked = self.nodes[index].status == "blocked"
        return is_blocked and all(self.nodes[dependency].status in CLOSED for dependency in self.deps[index])

    def _launch(self, index: int, now: float) -> bool:
        """Launch one node; False when it has more to do than it may."""
        plan = self.plan(index)
        if plan.kind == "tasks":
            self._make_tasks(index, plan.items, now)
            return True
        only = TaskModel(Key(index, Item()), status=plan.kind, number=0)
        self.nodes[index] = NodeModel(plan.kind, [Item()], [only])
        return plan.kind != "failed"

    def _make_tasks(self, index: int, items: Sequence[Item], now: float) -> None:
        """The next batch of a node's tasks."""
        node = self.nodes[index]
        made = len(node.tasks)
        batch = items[made:] if self._launch_batch is None else items[made : made + self._launch_batch]
        new = [TaskModel(Key(index, item), lease=None if self.is_paused else now + LEASE) for item in batch]
        node.items, node.tasks = items, [*node.tasks, *new]
        node.status = "launched" if len(node.tasks) == len(items) else "launching"
        if node.status == "launching":
            self.owed.setdefault(OwedKey("launch", self.generation, index), "running")
        if not self.is_paused:
            self.to_publish += [task.attempt for task in new]

    def _end(self, status: str) -> None:
        if self.is_over:
            return
        self.status = status
        self.endings.append((self.generation, status))
        self.owed[OwedKey("callback", self.generation)] = status
        if status == "completed":
            return
        self.owed[OwedKey("cancel", self.generation)] = status
        if self._cancels_at_once:
            self.cancel_rest(OwedKey("cancel", self.generation))


def find_results(run: RunModel) -> list[tuple[str, list[tuple[Key, list[str]]]]]:
    """A completed run once more, from its roots: what each node should have come to, by what its tasks made.

    For each node how it ended, and each of its tasks with the names that it emitted.
    """
    accepted: Mapping[Key, tuple[Emitted, ...]] = {task.key: task.emitted for task in run.tasks()}
    again = RunModel(run.definition, 0, launch_batch=None, cancels_at_once=True)
    again.nodes = [NodeModel() for _ in run.nodes]
    results: list[tuple[str, list[tuple[Key, list[str]]]]] = []
    for index in range(len(again.nodes)):  # a node depends on those before it only
        plan = again.plan(index)
        ending = "completed" if plan.kind == "tasks" else plan.kind
        tasks = [TaskModel(Key(index, item), ending, emitted=accepted.get(Key(index, item), ())) for item in plan.items]
        again.nodes[index] = NodeModel(ending, plan.items, tasks)
        results.append((ending, sorted((task.key, [a.name for a in task.emitted]) for task in tasks)))
    return results


def _may_report(task: TaskModel | None, token: str) -> Any:
    return task is not None and task.status == "running" and task.token == token


def _answer(task: TaskModel | None, token: str, status: str) -> Outcome:
    """To an outcome that changes nothing: it is this very one, recorded before, or it comes too late."""
    return "repeat" if task is not None and task.token == token and task.status == status else "refused"


def _apply(edge_filter: EdgeFilter | None, artifacts: Sequence[Emitted]) -> list[Emitted]:
    if edge_filter is None:
        return list(artifacts)
    passed = [artifact for artifact in artifacts if all(_holds(rule, artifact) for rule in edge_filter.rules)]
    if edge_filter.select is None:
        return passed
    by_size = sorted((a for a in passed if a.size is not None), key=lambda a: a.size or 0)
    return by_size[-1:] if edge_filter.select == "largest" else by_size[:1]


def _holds(rule: FilterRule, artifact: Emitted) -> bool:
    if rule.field == "even":
        return artifact.is_even
    if rule.field == "file_type":
        return (artifact.kind == rule.value) == (rule.operator == "eq")
    assert rule.field == "file_size", f"the model does not know the field {rule.field!r}"
    if artifact.size is None:
        return False
    limit = float(str(rule.value))
    return artifact.size > limit if rule.operator == "gt" else artifact.size <= limit

"""Publishing what committed transactions owe to the queue, and nothing before its commit."""

import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from typing import Any

from celery import Celery
from celery.exceptions import SoftTimeLimitExceeded

from dagabaaz_celery.errors import SecretExposed
from dagabaaz_celery.json_door import check_json
from dagabaaz_celery.models import TaskArtifact
from dagabaaz_celery.pipeline import Definition
from dagabaaz_celery.secret_references import resolve_references
from dagabaaz_celery.stores.sql.outages import is_outage
from dagabaaz_celery.stores.sql.records import CARRIED, Dispatch, TaskError
from dagabaaz_celery.stores.sql.store import KILL_AFTER, SqlStore
from dagabaaz_celery.worker.broker import BROKER_ERRORS, Broker, Link, Refused, Target
from dagabaaz_celery.worker.forks import fork_gate
from dagabaaz_celery.worker.late_marks import LateMarks
from dagabaaz_celery.worker.observers import Observers
from dagabaaz_celery.worker.registry import PluginRegistry

logger = logging.getLogger(__name__)

#: The message header that makes a task ours: {"store", "run", "node", "task"}; with observers also "carried", "due".
HEADER = "dagabaaz"
#: Seconds added to a delay: a message must not come before the database's clock says that it is due.
_CLOCK_MARGIN = 0.05

#: How we send whatever an app's options say: a broker that refuses is left to the sweep, as waiting here would hold up
#: whoever called; and RabbitMQ gives back what no queue takes.
_OUR_OPTIONS = {"retry": False, "retry_policy": None, "mandatory": True}
#: Messages sent before the broker's word for them is awaited and they are marked. Few, so that marks come soon.
_BATCH = 200
#: Seconds until what the broker refused is sent again: its queue has to be mended by somebody.
_REFUSED_PAUSE = 30.0
#: Messages of a batch that one target may refuse before the others for it are not tried.
_MAX_REFUSALS = 3

FailTask = Callable[[str, TaskError], object]


class Publisher:
    """Sends tasks to Celery under their attempt ids, in batches."""

    def __init__(
        self,
        app: Celery,
        broker: Broker,
        store: SqlStore,
        registry: PluginRegistry,
        *,
        max_input_bytes: int,
        fail_task: FailTask,
        observers: Observers,
    ) -> None:
        self._app = app
        self._broker = broker
        self._store = store
        self._registry = registry
        self._max_input_bytes = max_input_bytes
        self._fail_task = fail_task
        self._observers = observers
        self._eager = _EagerQueue()
        self._late_marks = LateMarks(store)

    def publish(self, dispatches: Sequence[Dispatch]) -> bool:
        """Publish and mark as queued; False with the broker away: they stay owed, and the next sweep tries again.

        What a broker refuses that is there stays owed for a later sweep, and holds up nothing else.
        """
        if self._app.conf.task_always_eager:
            self._eager.run([self._call_eagerly(dispatch) for dispatch in dispatches])
            return True
        parent = self._app.current_worker_task
        for start in range(0, len(dispatches), _BATCH):
            batch = _Batch(dispatches[start : start + _BATCH], parent)
            try:
                self._send_batch(batch)
            finally:
                self._mark(batch)
            if batch.error is not None:
                owed = [dispatch.attempt_id for dispatch in (*batch.unsent(), *dispatches[start + _BATCH :])]
                logger.warning(
                    "the broker is away (%s): %d tasks stay owed, the sweep publishes them", batch.error, len(owed)
                )
                self._store.release(owed)
                return False
        return True

    def write_marks(self) -> None:
        """Have nothing to do any more: what was published by bodies is marked."""
        self._late_marks.close()

    def _send_batch(self, batch: "_Batch") -> None:
        """Send tasks over one link. What can never be sent is set aside, so that it holds up no other."""
        try:
            with self._broker.link() as link:
                try:
                    self._send_unsent(batch, link)
                except Refused:  # which of those that were sent together, RabbitMQ does not say
                    batch.forget(link.take_unconfirmed())
                    self._send_unsent(batch, link, one_by_one=True)
                finally:
                    batch.forget(link.take_unconfirmed())
                    for attempt_id, reason in link.take_refused().items():
                        batch.refuse(attempt_id, reason)
        except BROKER_ERRORS as error:
            batch.error = error

    def _send_unsent(self, batch: "_Batch", link: Link, *, one_by_one: bool = False) -> None:
        for dispatch in batch.unsent():
            self._send_or_set_aside(dispatch, link, batch, one_by_one=one_by_one)
        link.confirm()

    def _send_or_set_aside(self, dispatch: Dispatch, link: Link, batch: "_Batch", *, one_by_one: bool) -> None:
        attempt_id = dispatch.attempt_id
        try:
            with link.library_errors():
                target, publish = self._prepare(dispatch, self._find_parent_id(batch), link.known_targets)
                batch.targets[attempt_id] = target
                if batch.refusals[target] >= _MAX_REFUSALS:
                    batch.refuse(attempt_id, "it refused others")
                elif one_by_one or target not in link.known_targets:
                    self._send_alone(attempt_id, publish, link, batch)
                else:
                    link.send(publish, attempt_id)
        except Exception as error:
            batch.forget([attempt_id])
            # A signal's comes at any moment, and is about none of the tasks.
            if isinstance(error, (*BROKER_ERRORS, SoftTimeLimitExceeded)) or is_outage(error):
                raise
            batch.hopeless[attempt_id] = error

    def _send_alone(self, attempt_id: str, publish: Callable[[Any], object], link: Link, batch: "_Batch") -> None:
        """Send with nothing else under way: a refusal is then of this message, and nothing else is in doubt."""
        link.confirm()
        target = batch.targets[attempt_id]
        try:
            link.send(publish, attempt_id)
            link.confirm()
        except Refused as error:
            link.known_targets.discard(target)
            link.take_unconfirmed()  # that it is refused is known
            batch.refusals[target] += 1
            batch.refuse(attempt_id, str(error))
        else:
            link.known_targets.add(target)

    def _mark(self, batch: "_Batch") -> None:
        """Record what became of a batch; a delayed task stays pending, as nothing is lost before it is due."""
        by_queue: dict[tuple[str, bool], list[str]] = {}
        for dispatch in batch.dispatches:
            target = batch.targets.get(dispatch.attempt_id)
            if target is not None and not dispatch.delay:
                is_late = batch.parent is not None and self._is_claimed_by_wrapper(dispatch)
                by_queue.setdefault((target.queue, is_late), []).append(dispatch.attempt_id)
        for (queue, is_late), attempt_ids in by_queue.items():
            mark = self._late_marks.add if is_late else self._store.mark_queued
            mark(attempt_ids, queue or None)
        for (target, reason), attempt_ids in batch.refused.items():
            logger.warning(
                "the broker refuses %d tasks for %s (%s): they stay owed, and are sent again in %.0f s",
                len(attempt_ids),
                target,
                reason,
                _REFUSED_PAUSE,
            )
            self._store.postpone(attempt_ids, _REFUSED_PAUSE)
        runs = {dispatch.attempt_id: dispatch.run_id for dispatch in batch.dispatches} if batch.hopeless else {}
        for attempt_id, error in batch.hopeless.items():
            logger.warning(
                "attempt %s of run %s cannot be published, its task fails: %s", attempt_id, runs[attempt_id], error
            )
            self._fail_task(attempt_id, TaskError(type(error).__name__, str(error)))

    def _is_claimed_by_wrapper(self, dispatch: Dispatch) -> bool:
        """Else Celery may send the same attempt once more, for a retry, before a mark that comes late."""
        definition = self._store.definition_of(dispatch.definition_hash).definition
        return definition.plugin_of(dispatch.node_index).wrapped

    def _find_parent_id(self, batch: "_Batch") -> str | None:
        """The id of the task whose body publishes, which Celery would otherwise find for each message."""
        if self._app.conf.task_inherit_parent_priority or batch.parent is None:
            return None  # where it is found for it, a message gets its priority, too
        return str(batch.parent.request.id)

    def _prepare(
        self, dispatch: Dispatch, parent_id: str | None, known: Container[Target]
    ) -> tuple[Target, Callable[[Any], object]]:
        """Where one task is sent, and what sends it by a producer."""
        definition = self._store.definition_of(dispatch.definition_hash).definition
        args, kwargs = self._message_arguments(dispatch)
        name = definition.task_name_of(dispatch.node_index)
        options = self._route(dispatch, args, kwargs)
        ours = {
            "args": args,
            "kwargs": kwargs,
            "task_id": dispatch.attempt_id,
            "root_id": dispatch.run_id,
            "parent_id": parent_id,
            "result_cls": _Receipt,
            "headers": {HEADER: self._header(dispatch)},
            "retries": dispatch.retries,
            "countdown": dispatch.delay + _CLOCK_MARGIN if dispatch.delay else None,
            "argsrepr": "()",
            "kwargsrepr": repr({"run": dispatch.run_id, "node": definition.node_of(dispatch.node_index).slug}),
            "add_to_parent": False,
            "serializer": "json",  # whatever the app sends its own messages as
            **_OUR_OPTIONS,
        }
        target = Target(name_of(options.get("queue")), name_of(options.get("exchange")))
        if target in known:
            options.setdefault("declare", [])  # over this link it was
        # A route may name any option: ours win.
        return target, lambda producer: self._app.send_task(name, **{**options, **ours, "producer": producer})

    def priority_of(self, dispatch: Dispatch) -> Any:
        """With what priority a task is sent; None where nothing says."""
        with fork_gate.inside():
            return self._route(dispatch, (), {}).get("priority")

    def _route(self, dispatch: Dispatch, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """A task's options, with the queue and whatever else routing says."""
        definition = self._store.definition_of(dispatch.definition_hash).definition
        given = {option: value for option, value in dispatch.options.items() if option != CARRIED}
        return route_node(self._app, definition, dispatch.node_index, given, args, kwargs)

    def _header(self, dispatch: Dispatch) -> dict[str, Any]:
        header: dict[str, Any] = {
            "store": self._store.id,
            "run": dispatch.run_id,
            "node": dispatch.node_index,
            "task": dispatch.task_id,
        }
        if CARRIED in dispatch.options:
            header["carried"] = dispatch.options[CARRIED]
        if self._observers:
            header["due"] = time.time() + dispatch.delay
        return header

    def _message_arguments(self, dispatch: Dispatch) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Nothing for a wrapped plugin, which reads its input from the store; the input itself for any other task.

        That is what the task's parameters name, or everything where this process does not know the task.
        """
        definition = self._store.definition_of(dispatch.definition_hash).definition
        claimed = None
        if not definition.plugin_of(dispatch.node_index).wrapped:
            claimed = self._store.read_input(dispatch.attempt_id)
        if claimed is None:
            return (), {}
        if claimed.input_error is not None:
            raise claimed.input_error
        plugin = self._registry.find_task(self._app, definition.task_name_of(dispatch.node_index))
        node = definition.node_of(dispatch.node_index)
        task_input = {**claimed.input, **resolve_references(node.bindings, _refuse_secret)}
        undoes = dispatch.node_index < 0
        if undoes:
            task_input["result"] = _to_plain(task_input["result"])
        given = task_input if plugin is None else plugin.parameters.select(task_input, undoes=undoes)
        check_json(
            given,
            f"the input of node {node.slug!r}, which travels in its message",
            max_bytes=self._max_input_bytes,
            setting="dagabaaz_max_input_bytes",
        )
        return ((), given) if plugin is None else plugin.parameters.split(given)

    def _call_eagerly(self, dispatch: Dispatch) -> Callable[[], None]:
        def call() -> None:
            definition = self._store.definition_of(dispatch.definition_hash).definition
            try:
                args, kwargs = self._message_arguments(dispatch)
                task = self._app.tasks[definition.task_name_of(dispatch.node_index)]
            except (ValueError, LookupError, TypeError) as error:
                self._fail_task(dispatch.attempt_id, TaskError(type(error).__name__, str(error)))
                return
            task.apply(
                args=args,
                kwargs=kwargs,
                task_id=dispatch.attempt_id,
                retries=dispatch.retries,
                headers={HEADER: self._header(dispatch)},
                throw=False,
            )

        return call


def route_node(
    app: Celery,
    definition: Definition,
    node_index: int,
    run_options: dict[str, Any],
    args: tuple[Any, ...] = (),
    kwargs: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """With which options a node's tasks are sent: its own, the run's, its time limits, and what routing adds."""
    name = definition.task_name_of(node_index)
    task = app.tasks.get(name)
    chosen = definition.options_of(node_index) | run_options
    chosen |= _time_limits(definition.timeout_of(node_index), task, chosen)
    options: dict[str, Any] = app.amqp.router.route(chosen, name, args, kwargs or {}, task)
    return options


def _time_limits(timeout: float | None, task: Any, chosen: Mapping[str, Any]) -> dict[str, float]:
    """Celery's limits for a node's timeout, where the pool has them: the body is told, and killed if it does not mind.

    Those that were chosen for it, or are the task's own, hold where they are shorter.
    """
    if timeout is None:
        return {}
    wanted = {"soft_time_limit": timeout, "time_limit": timeout + KILL_AFTER}
    return {name: min(limit, chosen.get(name) or getattr(task, name, None) or limit) for name, limit in wanted.items()}


def name_of(entity: Any) -> str:
    """Of a queue or an exchange in a task's options."""
    return "" if entity is None else str(getattr(entity, "name", entity))


def _to_plain(result: Any) -> Any:
    """A task's result as a message can hold it: files as an aggregate gets them."""
    if isinstance(result, list):
        return [_to_plain(value) for value in result]
    return result.to_input_dict() if isinstance(result, TaskArtifact) else result


def _refuse_secret(name: str) -> str:
    raise SecretExposed(
        f"The node names the secret ${name}, and its task runs by Celery's signals alone: its input travels in a "
        "message, which is no place for a secret. Register the task with dag.plugin(task), then start another run."
    )


class _Receipt:
    """What ``send_task`` gives back of a task whose result nobody here asks for: to make Celery's own takes time."""

    def __init__(self, task_id: str) -> None:
        self.id = task_id


class _Batch:
    """Tasks that are sent together, and what became of them."""

    def __init__(self, dispatches: Sequence[Dispatch], parent: Any) -> None:
        self.dispatches = dispatches
        #: Celery's task whose body publishes these, if one does.
        self.parent = parent
        #: Where those are that the broker has, by attempt id.
        self.targets: dict[str, Target] = {}
        #: Why others can never be sent, by attempt id.
        self.hopeless: dict[str, Exception] = {}
        #: Those that the broker refused, by target and reason.
        self.refused: dict[tuple[Target, str], list[str]] = {}
        #: How often each target was tried in vain.
        self.refusals: Counter[Target] = Counter()
        self.error: Exception | None = None

    def refuse(self, attempt_id: str, reason: str) -> None:
        """The broker does not take this one."""
        target = self.targets.pop(attempt_id, None)
        if target is not None:
            self.refused.setdefault((target, reason), []).append(attempt_id)

    def forget(self, attempt_ids: Iterable[str]) -> None:
        """The broker does not have these, after all."""
        for attempt_id in attempt_ids:
            self.targets.pop(attempt_id, None)

    def unsent(self) -> list[Dispatch]:
        """Those that are to be sent again."""
        refused = {attempt_id for attempt_ids in self.refused.values() for attempt_id in attempt_ids}
        known = {*self.targets, *self.hopeless, *refused}
        return [dispatch for dispatch in self.dispatches if dispatch.attempt_id not in known]


class _EagerQueue:
    """What ``task_always_eager`` runs in place of a broker: after each commit, one after another, never nested."""

    def __init__(self) -> None:
        self._local = threading.local()

    def run(self, calls: Sequence[Callable[[], None]]) -> None:
        """Run these calls and whatever they add; a call from within only adds."""
        waiting: deque[Callable[[], None]] | None = getattr(self._local, "waiting", None)
        if waiting is not None:
            waiting.extend(calls)
            return
        self._local.waiting = waiting = deque(calls)
        try:
            while waiting:
                waiting.popleft()()
        finally:
            del self._local.waiting

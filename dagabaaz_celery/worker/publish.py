"""Publishing what committed transactions owe to the queue, and nothing before its commit."""

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from celery import Celery
from kombu.exceptions import KombuError, OperationalError

from dagabaaz_celery.errors import SecretExposed
from dagabaaz_celery.json_door import check_json
from dagabaaz_celery.secret_references import resolve_references
from dagabaaz_celery.stores.sql.engine import is_outage
from dagabaaz_celery.stores.sql.records import Dispatch, TaskError
from dagabaaz_celery.stores.sql.store import SqlStore
from dagabaaz_celery.worker.registry import PluginRegistry

logger = logging.getLogger(__name__)

#: The message header that makes a task ours: {"store", "run", "node", "task"}.
HEADER = "dagabaaz"
#: Seconds added to a delay: a message must not come before the database's clock says that it is due.
_CLOCK_MARGIN = 0.05
#: What a broker that is away raises; the sweep publishes later.
BROKER_ERRORS = (OperationalError, KombuError, OSError)

FailTask = Callable[[str, TaskError], object]


class Publisher:
    """Sends tasks to Celery under their attempt ids, over one producer for a batch."""

    def __init__(
        self, app: Celery, store: SqlStore, registry: PluginRegistry, *, max_input_bytes: int, fail_task: FailTask
    ) -> None:
        self._app = app
        self._store = store
        self._registry = registry
        self._max_input_bytes = max_input_bytes
        self._fail_task = fail_task
        self._eager = _EagerQueue()

    def publish(self, dispatches: Sequence[Dispatch]) -> bool:
        """Publish and mark as queued; False with the broker away: they stay owed, and the next sweep tries again."""
        if not dispatches:
            return True
        if self._app.conf.task_always_eager:
            self._eager.run([self._call_eagerly(dispatch) for dispatch in dispatches])
            return True
        sent: dict[str, list[str]] = {}
        handled = 0
        try:
            with self._app.producer_or_acquire() as producer:
                for dispatch in dispatches:
                    queue = self._send_or_fail(dispatch, producer)
                    if queue is not None and not dispatch.delay:
                        sent.setdefault(queue, []).append(dispatch.attempt_id)
                    handled += 1
        except BROKER_ERRORS as error:
            owed = [dispatch.attempt_id for dispatch in dispatches[handled:]]
            logger.warning("the broker is away (%s): %d tasks stay owed, the sweep publishes them", error, len(owed))
            self._store.release(owed)
        finally:
            for queue, attempt_ids in sent.items():
                self._store.mark_queued(attempt_ids, queue or None)
        return handled == len(dispatches)

    def _send_or_fail(self, dispatch: Dispatch, producer: Any) -> str | None:
        """Send one task, or fail it where it can never be sent, so that it does not stand in the way of others.

        The queue that it went to, "" where routing names an exchange only; None for a task that failed.
        """
        connection = producer.connection
        broker_errors = (*BROKER_ERRORS, *connection.connection_errors, *connection.channel_errors)
        try:
            return self._send(dispatch, producer)
        except broker_errors as error:
            raise OperationalError(str(error)) from error
        except Exception as error:
            if is_outage(error):
                raise
            logger.warning("task %s cannot be published and fails: %s", dispatch.task_id, error)
            self._fail_task(dispatch.attempt_id, TaskError(type(error).__name__, str(error)))
            return None

    def _send(self, dispatch: Dispatch, producer: Any) -> str:
        definition = self._store.definition_of(dispatch.definition_hash).definition
        args, kwargs = self._message_arguments(dispatch)
        name = definition.task_name_of(dispatch.node_index)
        chosen = definition.options_of(dispatch.node_index) | dispatch.options
        options = self._app.amqp.router.route(chosen, name, args, kwargs, self._app.tasks.get(name))
        self._app.send_task(
            name,
            args=args,
            kwargs=kwargs,
            task_id=dispatch.attempt_id,
            root_id=dispatch.run_id,
            headers={HEADER: self._header(dispatch)},
            retries=dispatch.retries,
            countdown=dispatch.delay + _CLOCK_MARGIN if dispatch.delay else None,
            argsrepr="()",
            kwargsrepr=repr({"run": dispatch.run_id, "node": definition.nodes[dispatch.node_index].slug}),
            producer=producer,
            add_to_parent=False,
            serializer="json",  # whatever the app sends its own messages as
            # A broker that refuses is left to the sweep: waiting here would hold up whoever called.
            retry_policy={"max_retries": 0},
            **options,
        )
        queue = options.get("queue")
        return "" if queue is None else str(getattr(queue, "name", queue))

    def _header(self, dispatch: Dispatch) -> dict[str, Any]:
        return {
            "store": self._store.id,
            "run": dispatch.run_id,
            "node": dispatch.node_index,
            "task": dispatch.task_id,
        }

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
        node = definition.nodes[dispatch.node_index]
        task_input = {**claimed.input, **resolve_references(node.bindings, _refuse_secret)}
        given = task_input if plugin is None else plugin.parameters.select(task_input)
        check_json(
            given, f"the input of node {node.slug!r}, which travels in its message", max_bytes=self._max_input_bytes
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


def _refuse_secret(name: str) -> str:
    raise SecretExposed(
        f"The node names the secret ${name}, and its task runs by Celery's signals alone: its input travels in a "
        "message, which is no place for a secret. Register the task with dag.plugin(task), then start another run."
    )


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

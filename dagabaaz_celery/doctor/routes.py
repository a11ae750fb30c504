"""Where the tasks of a node are sent: by the routing that the publisher itself uses."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from celery import Celery

from dagabaaz_celery.pipeline import Definition
from dagabaaz_celery.worker.publish import name_of, route_node


@dataclass(frozen=True)
class Route:
    """Where one node's tasks go. ``queues`` is None where that cannot be told; ``problem`` where they cannot be sent.

    ``time_limit`` are the seconds after which Celery kills a body, None where nothing does.
    """

    source: str
    slug: str
    task: str
    queues: tuple[str, ...] | None
    time_limit: float | None
    wrapped: bool
    problem: str = ""

    @property
    def where(self) -> str:
        """The node, for people."""
        return f"node {self.slug!r} of {self.source}"


def find_routes(app: Celery, definition: Definition, options: dict[str, Any], source: str) -> Iterator[Route]:
    """Routes of every node, and of the tasks that undo nodes; ``options`` are those of a run."""
    for index in [*range(len(definition.nodes)), *(~index for index in sorted(definition.undoable))]:
        yield _find_route(app, definition, index, options, source)


def _find_route(app: Celery, definition: Definition, index: int, options: dict[str, Any], source: str) -> Route:
    slug = definition.node_of(index).slug if index >= 0 else f"{definition.node_of(index).slug} (its rollback)"
    task_name, wrapped = definition.task_name_of(index), definition.plugin_of(index).wrapped
    queues: tuple[str, ...] | None = None
    limit: float | None = None
    problem = ""
    try:
        routed = route_node(app, definition, index, options)
        queues = _find_queues(app, routed)
        limit = routed.get("time_limit") or getattr(app.tasks.get(task_name), "time_limit", None)
    except Exception as error:  # a router is the user's own code, and Celery's raises what it likes
        problem = f"{type(error).__name__}: {error}"
    return Route(source, slug, task_name, queues, limit or app.conf.task_time_limit, wrapped, problem)


def _find_queues(app: Celery, options: dict[str, Any]) -> tuple[str, ...] | None:
    """The queue that is named, or those that this app binds to the exchange that is."""
    if queue := name_of(options.get("queue")):
        return (queue,)
    exchange, key = name_of(options.get("exchange")), options.get("routing_key")
    bound = [
        queue.name
        for queue in app.amqp.queues.values()
        if queue.exchange is not None and queue.exchange.name == exchange and queue.routing_key == key
    ]
    return tuple(bound) or None

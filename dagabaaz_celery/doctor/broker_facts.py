"""What is asked of the broker, and of workers through it, once, before any check looks at it."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from celery import Celery

from dagabaaz_celery.worker.broker import BROKER_ERRORS, Broker, Link
from dagabaaz_celery.worker.report import COMMAND


@dataclass(frozen=True)
class Answer:
    """What one worker answered, and between which two moments of our clock it did.

    ``report`` is None where the worker has no Dagabaaz, or one of a release that does not know the question.
    """

    node: str
    report: dict[str, Any] | None
    asked_at: float
    answered_at: float


@dataclass(frozen=True)
class BrokerFacts:
    """The broker, the queues of every Celery worker that answered, and the reports of those that were asked for one."""

    transport: str
    #: By node name, the queues that it consumes.
    consumed: dict[str, list[str]] = field(default_factory=dict)
    answers: list[Answer] = field(default_factory=list)
    #: What Redis says of its memory, such as ``maxmemory_policy``.
    redis_memory: dict[str, Any] = field(default_factory=dict)


def look_at_broker(
    app: Celery, *, patience: float, choose: Callable[[dict[str, list[str]]], Iterable[str]]
) -> BrokerFacts:
    """Ask everything; ``patience`` are the seconds that workers have for each answer.

    ``choose`` says, of the workers that answered with their queues, which to ask for a report: one without a Dagabaaz
    would log an error. Raises what ``BROKER_ERRORS`` are.
    """
    broker = Broker(app)
    try:
        with broker.link() as link:
            transport = str(link.connection.transport.driver_type)
            memory = _ask_redis(link) if transport == "redis" else {}
            if not app.conf.worker_enable_remote_control:
                return BrokerFacts(transport, redis_memory=memory)
            queues = _broadcast(app, link, "active_queues", patience=patience)
            consumed = {answer.node: _names(answer.said) for answer in queues}
            chosen = sorted(choose(consumed))
            reports = _broadcast(app, link, COMMAND, patience=patience, to=chosen) if chosen else []
            return BrokerFacts(
                transport,
                consumed=consumed,
                answers=[Answer(a.node, _read_report(a.said), a.asked_at, a.at) for a in reports],
                redis_memory=memory,
            )
    finally:
        broker.close()


@dataclass(frozen=True)
class _Reply:
    node: str
    said: Any
    asked_at: float
    at: float


def _broadcast(app: Celery, link: Link, command: str, *, patience: float, to: list[str] | None = None) -> list[_Reply]:
    """Have workers answer, over a channel of its own; when all that are named have, it ends early."""
    replies: list[_Reply] = []
    asked_at = time.time()

    def note(reply: dict[str, Any]) -> None:
        now = time.time()
        replies.extend(_Reply(str(node), said, asked_at, now) for node, said in reply.items())

    channel = link.connection.channel()
    try:
        app.control.broadcast(
            command,
            destination=to,
            reply=True,
            timeout=patience,
            callback=note,
            connection=link.connection,
            channel=channel,
        )
    finally:
        channel.close()
    return replies


def _names(queues: Any) -> list[str]:
    if not isinstance(queues, list):
        return []
    return sorted(str(queue["name"]) for queue in queues if isinstance(queue, dict) and "name" in queue)


def _read_report(said: Any) -> dict[str, Any] | None:
    return said if isinstance(said, dict) and "store" in said else None


def _ask_redis(link: Link) -> dict[str, Any]:
    """Nothing where the user may not ask."""
    try:
        with link.library_errors():
            client = link.connection.default_channel.client
            return {str(name): value for name, value in client.info("memory").items()}
    except BROKER_ERRORS:
        return {}

"""The embedded broker as Celery sees it: a kombu transport over a file of messages.

It derives from kombu's virtual transport, which does AMQP's exchanges, prefetch limits and message properties, and
keeps in the file what processes must share: messages, who took them, and bindings (so that remote control, a fanout
exchange with a queue for the replies, works between processes).
"""
# kombu is typed in part, and more so with each release.
# mypy: allow-untyped-calls, allow-subclassing-any

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import Empty
from typing import Any
from urllib.parse import unquote, urlsplit

from kombu.transport import virtual
from kombu.utils import json

from dagabaaz_celery.brokers.message_file import Binding, open_message_file

#: Messages delivered in one turn of a worker's event loop, so that timers and results are served too.
MESSAGES_PER_TURN = 100
#: Seconds until the next turn after one that delivered something.
SHORTEST_PAUSE = 0.001


class QoS(virtual.QoS):
    """What a channel has delivered and not acknowledged; a delivery tag is the message's id in the file.

    Other threads than the consuming one may acknowledge.
    """

    def ack(self, delivery_tag: str) -> None:
        with self._losing_the_connection_on_error():
            self.channel.file.delete(int(delivery_tag), self.channel.owner)
        super().ack(delivery_tag)

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:
        if requeue:
            with self._losing_the_connection_on_error():
                self.channel.file.release([int(delivery_tag)], self.channel.owner)
            super().ack(delivery_tag)
        else:
            self.ack(delivery_tag)

    def restore_unacked(self) -> list[tuple[Exception, virtual.Message]]:
        """Give everything back at once; returns what could not be, which is nothing: it is all or an exception."""
        self._flush()
        self.channel.file.release([int(tag) for tag in self._delivered], self.channel.owner)
        self._delivered.clear()
        return []

    @contextmanager
    def _losing_the_connection_on_error(self) -> Iterator[None]:
        """Make the worker connect anew. Celery only logs the error, and would wait for the message's slot for ever."""
        try:
            yield
        except sqlite3.OperationalError as error:
            self.channel.failure = error
            raise


class Channel(virtual.Channel):
    """What publishes to the file, and owns the messages that it took from it."""

    QoS = QoS
    supports_fanout = True
    do_restore = False  # not message by message: the owner retires

    def __init__(self, connection: "Transport", **kwargs: Any) -> None:
        super().__init__(connection, **kwargs)
        self.file = connection.file  # kept after close: a task may end later than the connection it came by
        self.failure: sqlite3.OperationalError | None = None  # an acknowledgement that could not be written
        self._temporary_queues: set[str] = set()
        self._owner: int | None = None

    @property
    def owner(self) -> int:
        if self._owner is None:
            self._owner = self.file.add_owner()
        return self._owner

    def close(self) -> None:
        try:
            super().close()
        finally:
            if self._owner is not None:
                self.file.retire_owner(self._owner)

    # -- messages

    def _put(self, queue: str, message: dict[str, Any], **kwargs: Any) -> None:
        self.file.put([queue], json.dumps(message))

    def _put_fanout(self, exchange: str, message: dict[str, Any], routing_key: str, **kwargs: Any) -> None:
        self.file.put([binding.queue for binding in self.get_table(exchange)], json.dumps(message))

    def _get(self, queue: str, timeout: float | None = None) -> dict[str, Any]:
        taken = self.file.take(queue, self.owner)
        if taken is None:
            raise Empty
        message: dict[str, Any] = json.loads(taken.payload)
        message["properties"]["delivery_tag"] = str(taken.id)
        if taken.redelivered:
            message["properties"]["delivery_info"]["redelivered"] = True
        return message

    def _size(self, queue: str) -> int:
        return self.file.count(queue)

    def _purge(self, queue: str) -> int:
        return self.file.purge(queue)

    def drain_events(self, timeout: float | None = None, callback: Callable[..., Any] | None = None) -> Any:
        if self.failure is not None:
            raise self.failure
        self.file.rescue()
        return super().drain_events(timeout=timeout, callback=callback)

    # -- consumers; one that does not acknowledge is answered for, as the file knows only messages that are owned

    def basic_consume(
        self, queue: str, no_ack: bool, callback: Callable[..., Any], consumer_tag: str, **kwargs: Any
    ) -> None:
        def ack_and_call(message: virtual.Message) -> Any:
            self.basic_ack(message.delivery_tag)
            return callback(message)

        super().basic_consume(queue, False, ack_and_call if no_ack else callback, consumer_tag, **kwargs)
        if queue in self._temporary_queues:
            self.file.join_temporary_queue(queue, self.owner)

    def basic_get(self, queue: str, no_ack: bool = False, **kwargs: Any) -> virtual.Message | None:
        message: virtual.Message | None = super().basic_get(queue, no_ack=False, **kwargs)
        if message is not None and no_ack:
            self.basic_ack(message.delivery_tag)
        return message

    # -- queues and bindings

    def _new_queue(self, queue: str, auto_delete: bool = False, **kwargs: Any) -> None:
        if auto_delete:
            self._temporary_queues.add(queue)

    def queue_delete(self, queue: str, if_unused: bool = False, if_empty: bool = False, **kwargs: Any) -> None:
        if not (if_empty and self._size(queue)):
            self.file.delete_queue(queue)

    def queue_bind(
        self, queue: str, exchange: str | None = None, routing_key: str = "", arguments: Any = None, **kwargs: Any
    ) -> None:
        exchange = exchange or "amq.direct"
        key, pattern, _ = self.typeof(exchange).prepare_bind(queue, exchange, routing_key, arguments)
        self.file.bind(exchange, Binding(key or "", pattern, queue))

    def queue_unbind(
        self, queue: str, exchange: str | None = None, routing_key: str = "", arguments: Any = None, **kwargs: Any
    ) -> None:
        self.file.unbind(exchange or "amq.direct", queue, routing_key or "")

    def get_table(self, exchange: str) -> list[Binding]:
        return self.file.get_bindings(exchange)


class Transport(virtual.Transport):
    """Connections to the file that a URL such as ``dagabaaz:///var/lib/media/broker.sqlite3`` names."""

    Channel = Channel
    can_parse_url = True
    driver_type = "sqlite"
    driver_name = "dagabaaz"
    connection_errors: Any = (*virtual.Transport.connection_errors, sqlite3.OperationalError)
    implements = virtual.Transport.implements.extend(
        asynchronous=True, exchange_type=frozenset({"direct", "topic", "fanout"})
    )
    #: Seconds between two looks at the queues while nothing happens: half of it is the mean latency of an idle worker.
    polling_interval = 0.08

    def __init__(self, client: Any, **kwargs: Any) -> None:
        super().__init__(client, **kwargs)
        self.file = open_message_file(Path(unquote(urlsplit(client.hostname).path)))
        self._leave_event_loop: Callable[[], None] | None = None

    def driver_version(self) -> str:
        return sqlite3.sqlite_version

    def as_uri(self, uri: str, include_password: bool = False, mask: str = "**") -> str:
        return uri

    def establish_connection(self) -> Any:
        self.file.open()
        return super().establish_connection()

    def close_connection(self, connection: Any) -> None:
        if self._leave_event_loop is not None:
            self._leave_event_loop()
        super().close_connection(connection)
        self.file.close()

    def register_with_event_loop(self, connection: Any, loop: Any) -> None:
        """Look at the queues at each turn of a worker's loop: after an acknowledgement, and at the latest when idle.

        The loop does not see what a turn leaves to the next one, such as the acknowledgements of a solo pool. So a turn
        that delivered something is followed by another at once, and the pauses then grow to the polling interval.
        """
        pause = self.polling_interval
        timer: Any = None

        def look() -> None:
            nonlocal pause
            if self._deliver_ready_messages():
                pause = SHORTEST_PAUSE

        def turn() -> None:
            nonlocal pause, timer
            timer = loop.call_later(pause, turn)
            pause = min(2 * pause, self.polling_interval)

        def leave() -> None:
            loop.on_tick.discard(look)
            timer.cancel()

        turn()
        loop.on_tick.add(look)
        self._leave_event_loop = leave

    def _deliver_ready_messages(self) -> int:
        cycle: Any = self.cycle
        for delivered in range(MESSAGES_PER_TURN):
            try:
                cycle.get(self._deliver)
            except Empty:
                return delivered
        return MESSAGES_PER_TURN

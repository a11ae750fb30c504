"""The app's broker as our own threads use it: every call bounded in time, over connections of our own.

What the app set for its connections is kept. Added is only what bounds a wait where nothing did: a socket that hangs
is given up, and RabbitMQ has to confirm what it took. Neither touches the app's other connections.
"""

import contextlib
import logging
import os
import selectors
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import amqp
from amqp.method_framing import frame_writer
from amqp.serialization import dumps
from celery import Celery
from kombu.exceptions import KombuError, OperationalError
from kombu.messaging import Producer
from kombu.transport import virtual

from dagabaaz_celery.stores.sql.database import call_while_alive
from dagabaaz_celery.worker.forks import fork_gate

logger = logging.getLogger(__name__)

#: What a broker that is away raises, whatever its kind.
BROKER_ERRORS = (OperationalError, KombuError, OSError)

#: Seconds without a word from the broker after which it is taken to be away.
_PATIENCE = 5.0
#: Connections kept open between two uses.
_MAX_IDLE = 10
#: In place of broker_pool_limit where that is 0 or None.
_UNLIMITED = 2**20
#: What waits to be written to RabbitMQ together, in bytes: some fifty small messages.
_MAX_UNWRITTEN = 32_768
#: Where the app says nothing, a socket of Redis waits for ever.
_REDIS_BOUNDS = {"socket_timeout": _PATIENCE, "socket_connect_timeout": _PATIENCE}


class Refused(OperationalError):
    """The broker is there, and does not take a message: what it says of the queue or the exchange."""


class Target(NamedTuple):
    """Where a message goes; "" for what routing does not name."""

    queue: str
    exchange: str

    def __str__(self) -> str:
        return f"the exchange {self.exchange!r}" if self.exchange else f"the queue {self.queue!r}"


class Link:
    """One open connection, with a producer, for one thread at a time."""

    def __init__(self, connection: Any) -> None:
        self.connection = connection
        #: What has taken a message over this link.
        self.known_targets: set[Target] = set()
        self._errors = (*connection.connection_errors, *connection.channel_errors)
        with self.library_errors():
            # Each of the app's alternative servers once: who sweeps next tries again.
            tries = max(len(connection.alt or ()), 1)
            connection.ensure_connection(max_retries=tries - 1, interval_start=0, interval_step=0, timeout=_PATIENCE)
            self._raw: Any = connection.connection
            self._bound_socket()
            self.producer: Any = Producer(connection)  # type: ignore[no-untyped-call]  # as most of kombu
            channel = self.producer.channel
            self._confirms: _Confirms | _RedisBatch | None = None
            if isinstance(channel, amqp.Channel):
                self._confirms = _Confirms(channel, self.known_targets)
            elif getattr(self.producer, "supports_batch_publish", False):  # kombu has it since 5.7
                self._confirms = _RedisBatch(self.producer)

    @contextmanager
    def library_errors(self) -> Iterator[None]:
        """Whatever the transport raises of its connection, as kombu's OperationalError."""
        try:
            yield
        except OperationalError:
            raise
        except (*BROKER_ERRORS, *self._errors) as error:
            raise OperationalError(f"{type(error).__name__}: {error}") from error

    def send(self, publish: Callable[[Any], object], key: str | None = None) -> None:
        """Publish one message, called ``key``; it is not known to be taken before ``confirm``.

        Raises Refused where the broker does not take this message, or one that was sent since the last ``confirm``.
        """
        with self._refusals():
            if self._confirms is not None:
                self._confirms.announce(key)
            publish(self.producer)

    def confirm(self) -> None:
        """Wait until everything sent is confirmed. Raises Refused, too."""
        if self._confirms is not None:
            with self._refusals():
                self._confirms.wait()

    def take_unconfirmed(self) -> set[str]:
        """Keys of what was sent since the last call and not confirmed."""
        return set() if self._confirms is None else self._confirms.take_unconfirmed()

    def take_refused(self) -> dict[str, str]:
        """Keys of what was sent since the last call and came back, each with the broker's reason."""
        return {} if self._confirms is None else self._confirms.take_refused()

    @contextmanager
    def _refusals(self) -> Iterator[None]:
        """RabbitMQ closes the channel of whoever sends what it refuses; the connection stays good."""
        with self.library_errors():
            try:
                yield
            except (amqp.ChannelError, OperationalError) as error:
                cause = error.__cause__ if isinstance(error, OperationalError) else error
                is_refusal = isinstance(cause, amqp.ChannelError) and self.connection.connected
                if not isinstance(self._confirms, _Confirms) or not is_refusal:
                    raise
                self._confirms.begin()
                raise Refused(str(cause)) from error

    def is_alive(self) -> bool:
        """Whether an idle link can be used: RabbitMQ may have ended it meanwhile."""
        raw = self.connection.connection
        if not isinstance(raw, amqp.Connection):
            return True  # redis-py looks for itself
        try:
            with selectors.DefaultSelector() as selector:
                selector.register(raw.sock, selectors.EVENT_READ)
                while selector.select(0):
                    raw.blocking_read(_PATIENCE)
        except (*BROKER_ERRORS, *self._errors):
            return False
        return True

    def count_messages(self, queue: str) -> int:
        """Messages that wait in a queue; one that is gone has none. Raises OperationalError where it is not known."""
        with self.library_errors():
            channel = self.connection.channel()  # RabbitMQ closes the channel that asked for a queue that is gone
            try:
                if isinstance(channel, virtual.Channel):
                    # kombu asks Redis for a queue without the global_keyprefix, and would find none.
                    return int(channel._size(queue))  # type: ignore[no-untyped-call]
                return int(channel.queue_declare(queue=queue, passive=True).message_count)
            except amqp.ChannelError as error:
                if "no queue" not in str(error):  # RabbitMQ says 404 of one that is on a node that is down, too
                    raise
                return 0
            finally:
                channel.close()

    def revoke(self, app: Celery, attempt_ids: list[str], *, terminate: bool = False) -> None:
        """Tell every worker to drop these; with ``terminate`` also to end, by SIGTERM, those that it runs."""
        channel = self.connection.channel()  # the producer's own counts what is confirmed on it
        try:
            app.control.revoke(attempt_ids, terminate=terminate, connection=self.connection, channel=channel)
        finally:
            channel.close()

    def discard(self) -> None:
        """Drop the connection without a word to a broker that may not answer."""
        with contextlib.suppress(Exception):
            if isinstance(self._raw, amqp.Connection):
                self._raw.collect()  # kombu's own would connect anew first, where the connection is lost
            else:
                self.connection.release()

    def close(self) -> None:
        """Close an idle connection."""
        with contextlib.suppress(Exception):
            self.connection.release()

    def _bound_socket(self) -> None:
        """py-amqp waits for ever where no call says for how long, and retries what its own read_timeout ends."""
        raw = self.connection.connection
        if isinstance(raw, amqp.Connection) and raw.sock.gettimeout() is None:
            raw.sock.settimeout(_PATIENCE)


class _Unwritten:
    """What is to be written over a connection of py-amqp's, which would write each message by itself."""

    def __init__(self, transport: Any) -> None:
        self._transport = transport
        self._bytes = bytearray()

    def write(self, frames: memoryview | bytes) -> None:
        self._bytes += frames
        if len(self._bytes) > _MAX_UNWRITTEN:
            self.flush()

    def clear(self) -> None:
        self._bytes = bytearray()

    def flush(self) -> None:
        unwritten, self._bytes = self._bytes, bytearray()
        if unwritten:
            self._transport.write(unwritten)


class _Confirms:
    """Messages to RabbitMQ over one channel, written and confirmed many at once.

    The app's own way, ``confirm_publish``, waits for each message: a third of the speed.
    """

    def __init__(self, channel: amqp.Channel, known_targets: set[Target]) -> None:
        self._channel = channel
        self._known_targets = known_targets
        self._unwritten = _Unwritten(channel.connection.transport)
        self._write_frames = frame_writer(channel.connection, self._unwritten)
        self._last = 0
        self._open: dict[int, str | None] = {}
        self._lost: set[str | None] = set()
        self._refused: dict[str | None, str] = {}
        channel.basic_publish = self._publish
        channel.events["basic_ack"].add(self._on_ack)
        channel.events["basic_nack"].add(self._on_nack)
        channel.events["basic_return"].add(self._on_return)
        self.begin()

    def begin(self) -> None:
        """The channel is new, or open again after the broker closed it: that counts from one."""
        self._lost.update(self._open.values())
        self._open.clear()
        self._unwritten.clear()
        self._last = 0
        self._channel.confirm_select()

    def announce(self, key: str | None) -> None:
        """Nothing to note: messages have ids, which a returned one has still."""

    def wait(self) -> None:
        """Until all are confirmed; raises OSError when the broker says nothing for too long."""
        self._unwritten.flush()
        while self._open:
            self._channel.connection.drain_events(timeout=_PATIENCE)

    def take_unconfirmed(self) -> set[str]:
        """Attempt ids that RabbitMQ did not confirm."""
        unconfirmed, self._lost = {*self._open.values(), *self._lost}, set()
        return {key for key in unconfirmed if key is not None}

    def take_refused(self) -> dict[str, str]:
        """Attempt ids that RabbitMQ refused, with its reasons."""
        refused, self._refused = self._refused, {}
        return {key: reason for key, reason in refused.items() if key is not None}

    def _publish(
        self, message: amqp.Message, exchange: str, routing_key: str, mandatory: bool, immediate: bool, **bounds: Any
    ) -> None:
        """What ``basic_publish`` does, but for the bounds of its waits: there are none here.

        With task_send_sent_event Celery publishes an event after each task, which RabbitMQ confirms as well.
        """
        if self._channel.connection is None:
            raise amqp.RecoverableConnectionError("the connection is closed")
        arguments = dumps("Bssbb", (0, exchange, routing_key, mandatory, immediate))
        self._last += 1
        self._open[self._last] = message.properties.get("correlation_id")
        try:
            self._write_frames(1, self._channel.channel_id, amqp.spec.Basic.Publish, arguments, message)
        except Exception:  # it cannot be sent, or the connection is at its end
            self._open.pop(self._last, None)
            self._last -= 1
            raise

    def _on_ack(self, delivery_tag: int, multiple: bool) -> None:
        for tag in self._tags(delivery_tag, multiple):
            self._open.pop(tag, None)

    def _on_nack(self, delivery_tag: int, multiple: bool) -> None:
        for tag in self._tags(delivery_tag, multiple):
            self._refused[self._open.pop(tag, None)] = "it was not accepted (basic.nack): the queue may be full"

    def _on_return(self, error: Exception, exchange: str, routing_key: str, message: amqp.Message) -> None:
        """No queue takes it. RabbitMQ confirms it all the same, after this."""
        reason = f"no queue takes messages for {routing_key!r} by exchange {exchange!r}: {error}"
        self._refused[message.properties.get("correlation_id")] = reason
        # The queue was deleted: it is declared anew.
        self._channel.connection.client.declared_entities.clear()
        self._known_targets.clear()

    def _tags(self, delivery_tag: int, multiple: bool) -> list[int]:
        return [tag for tag in self._open if tag <= delivery_tag] if multiple else [delivery_tag]


class _RedisBatch:
    """What waits to be sent to Redis together: one round trip for a batch.

    https://docs.celeryq.dev/projects/kombu/en/stable/reference/kombu.html (``Producer.batch``)
    """

    def __init__(self, producer: Any) -> None:
        self._producer = producer
        self._context: Any = None
        self._open: set[str | None] = set()
        self._lost: set[str | None] = set()

    def announce(self, key: str | None) -> None:
        """The next message is called so."""
        if self._context is None:
            self._context = self._producer.batch()
            self._context.__enter__()
        self._open.add(key)

    def wait(self) -> None:
        """Send them. Where that fails, any of them may be in a queue, or none."""
        context, self._context = self._context, None
        waiting, self._open = self._open, set()
        self._lost |= waiting  # as long as it is not known to be done, whatever ends it
        if context is not None:
            context.__exit__(None, None, None)
        self._lost -= waiting

    def take_unconfirmed(self) -> set[str]:
        """Keys of what was not sent, or may not have been."""
        context, self._context = self._context, None
        if context is not None:
            context.__exit__(OperationalError, None, None)  # nothing that waits is sent later
        unconfirmed = self._open | self._lost
        self._open, self._lost = set(), set()
        return {key for key in unconfirmed if key is not None}

    def take_refused(self) -> dict[str, str]:
        """Redis refuses nothing."""
        return {}


class Broker:
    """Links to an app's broker, kept and lent.

    After a failure nobody tries again for as long as the failure took: what hangs must not take up every caller.
    """

    def __init__(self, app: Celery) -> None:
        self._app = app
        self._idle: list[Link] = []
        self._inherited: list[list[Link]] = []
        self._slots: threading.BoundedSemaphore | None = None
        self._rests_until = 0.0
        #: Links that were given up after an error: while it stands still, the broker was never seen to be away.
        self.lost_links = 0
        os.register_at_fork(after_in_child=call_while_alive(self._leave_links_to_parent))

    @contextmanager
    def link(self) -> Iterator[Link]:
        """A link, which after an error is not lent again. Raises OperationalError for a broker that is away."""
        if time.monotonic() < self._rests_until:
            raise OperationalError("it did not answer a moment ago")
        began = time.monotonic()
        try:
            with fork_gate.inside(), self._slot():
                link = self._take()
                try:
                    with link.library_errors():
                        yield link
                except BaseException:
                    self._give_up(link)
                    raise
                self._put_back(link)
        except OperationalError:
            now = time.monotonic()
            self._rests_until = now + min(now - began, _PATIENCE)
            raise

    def close(self) -> None:
        """Close what is open and not lent. More is opened when it is needed."""
        while self._idle:
            self._idle.pop().close()

    @contextmanager
    def _slot(self) -> Iterator[None]:
        """The app's own limit of connections, broker_pool_limit, holds for ours too."""
        if self._slots is None:
            self._slots = threading.BoundedSemaphore(self._app.conf.broker_pool_limit or _UNLIMITED)
        slots = self._slots
        if not slots.acquire(timeout=_PATIENCE):
            raise OperationalError(f"no connection became free within {_PATIENCE:.0f} s (broker_pool_limit)")
        try:
            yield
        finally:
            slots.release()

    def _take(self) -> Link:
        while self._idle:
            link = self._idle.pop()
            if link.is_alive():
                return link
            self._give_up(link)
        return self._open()

    def _give_up(self, link: Link) -> None:
        self.lost_links += 1
        link.discard()

    def _put_back(self, link: Link) -> None:
        if len(self._idle) < _MAX_IDLE:
            self._idle.append(link)
        else:
            link.close()

    def _open(self) -> Link:
        connection = self._app.connection_for_write()
        driver = connection.transport.driver_type
        if driver == "redis":
            connection.transport_options = {**_REDIS_BOUNDS, **connection.transport_options}
        elif driver == "amqp":
            # Nobody would send ours from a link that lies idle, and RabbitMQ's count as a word in every wait.
            connection.transport_options = {**connection.transport_options, "heartbeat": 0}
        return Link(connection)

    def _leave_links_to_parent(self) -> None:
        """A forked child opens connections of its own. Kept, as closing these would end the parent's."""
        self._inherited.append(self._idle)
        self._idle = []
        self._slots = None

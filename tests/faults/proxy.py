"""A TCP proxy in front of a server, which does to connections what networks do.

    with Proxy(port) as proxy:
        proxy.cut()                         break every connection
        proxy.swallow(); proxy.pass_on()    take connections and bytes and say nothing, like a frozen server; go on
        proxy.delay = 0.2                   seconds that every answer takes longer
        proxy.lose_answers(CLAIM, times=2)  let the next two such commits through, and lose what the server says to them

The last is for PostgreSQL and MariaDB, without encryption: clients there send COMMIT alone or with what goes before it.
A change that is sent outside a transaction is its own commit.
"""

import re
import socket
import struct
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Self

LOOPBACK = "127.0.0.1"
_CHUNK = 65_536
#: How a client says COMMIT: PostgreSQL's simple query, MySQL's COM_QUERY, of it alone or at the end of a text.
_COMMITS = (b"Q\x00\x00\x00\x0bCOMMIT\x00", b"\x07\x00\x00\x00\x03COMMIT", b"; COMMIT")
_ROLLBACKS = (b"Q\x00\x00\x00\x0dROLLBACK\x00", b"\x09\x00\x00\x00\x03ROLLBACK")
#: PostgreSQL's: the end of what is asked at once, a statement that is prepared, one that is executed.
_SYNC = b"S\x00\x00\x00\x04"
_PARSE = re.compile(rb"P.{4}((?:_pg3|dagabaaz)_\d+)\x00([^\x00]*)\x00", re.DOTALL)
_BIND = re.compile(rb"B.{4}\x00((?:_pg3|dagabaaz)_\d+|)\x00", re.DOTALL)
#: MySQL's.
_BEGIN = re.compile(rb"..\x00\x00\x03BEGIN", re.DOTALL)
#: A change as a client of MySQL's sends it.
_CHANGE = re.compile(rb"..\x00\x00\x03(?:UPDATE|INSERT|DELETE) ", re.DOTALL)
_NOW = rb"(?:CAST|TIMESTAMPDIFF)\("
#: On MariaDB a completion counts at its node in the same statement.
_OF_TASK = rb"UPDATE \w*task(?:, \w*node)? SET (?:\S*tasks_done=[^,]*, )?"
_ENDS = _OF_TASK + rb"\S*status=\S+ \S*lease_until=\S+ \S*ended_at=" + _NOW + rb"[^=]*"

#: Transactions of the store, by a statement that only they have.
CLAIM = rb"UPDATE \w*task SET status=\S+ claim_token=\S+ worker_id=\S+ claimed_at=" + _NOW
COMPLETE = _ENDS + rb"result_shape="
LAUNCH = COMPLETE + rb".*INSERT INTO \w*task "
FAIL = _ENDS + rb"error=.*UPDATE \w*run SET status="
RETRY = rb"INSERT INTO \w*attempt "
CONTINUE_LAUNCH = rb"\A(?!.*result_shape=|.*INSERT INTO \w*run ).*INSERT INTO \w*task "
START = rb"INSERT INTO \w*run "
CANCEL = rb"\A(?!.*UPDATE \w*task ).*UPDATE \w*run SET status=\S+ error=.*?ended_at=" + _NOW
REOPEN = rb"UPDATE \w*run SET [^;]*generation=\("
ANNOUNCE = rb"INSERT INTO \w*worker "


@dataclass(eq=False)
class _Loss:
    """Commits whose answers are to be lost."""

    pattern: re.Pattern[bytes]
    left: int


@dataclass(eq=False)
class _Link:
    """One client's connection and ours to the server."""

    client: socket.socket
    server: socket.socket
    said: bytearray = field(default_factory=bytearray)
    prepared: dict[bytes, bytes] = field(default_factory=dict)
    is_in_transaction: bool = False
    loses_answer: bool = False

    def cut(self) -> None:
        """Break both ends at once, as a reset by the peer."""
        for end in (self.client, self.server):
            with suppress(OSError):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()


class Proxy:
    """Listens on a port of its own for as long as the ``with`` block lasts."""

    def __init__(self, port: int) -> None:
        self._target = (LOOPBACK, port)
        self._listener = socket.create_server((LOOPBACK, 0))
        self._links: set[_Link] = set()
        self._losses: list[_Loss] = []
        self._lock = threading.Lock()
        self._passing = threading.Event()
        self._passing.set()
        self.delay = 0.0
        #: Statements of the transactions whose answer was lost, one text each.
        self.lost: list[bytes] = []
        #: Called when a commit took place and before its client hears that the connection broke.
        self.on_loss: Callable[[], object] = lambda: None

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, name="proxy", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        # A thread in accept() keeps a closed socket listening; shutdown wakes it.
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.pass_on()
        self.cut()

    @property
    def port(self) -> int:
        """Where clients connect to."""
        port: int = self._listener.getsockname()[1]
        return port

    def cut(self) -> None:
        """Break every connection; new ones are served."""
        with self._lock:
            links, self._links = self._links, set()
        for link in links:
            link.cut()

    def swallow(self) -> None:
        """From now on accept connections and bytes, and pass nothing on."""
        self._passing.clear()

    def pass_on(self) -> None:
        """Pass on what was held back, and all that follows."""
        self._passing.set()

    def lose_answers(self, pattern: bytes, times: int = 1) -> None:
        """Have the next commits of transactions with such statements take place without an answer."""
        with self._lock:
            self._losses.append(_Loss(re.compile(pattern, re.DOTALL), times))

    def answers_to_lose(self) -> int:
        """How many more answers are to be lost."""
        with self._lock:
            return sum(loss.left for loss in self._losses)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return  # closed
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        self._passing.wait()
        try:
            server = socket.create_connection(self._target, timeout=10)
        except OSError:  # the server is down: the client is told so by the end of its connection
            client.close()
            return
        server.settimeout(None)
        for end in (client, server):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        link = _Link(client, server)
        with self._lock:
            self._links.add(link)
        back = threading.Thread(target=self._pump, args=(link, server, client, self._answer), daemon=True)
        back.start()
        self._pump(link, client, server, self._ask)
        back.join()
        with self._lock:
            self._links.discard(link)

    def _pump(
        self, link: _Link, source: socket.socket, target: socket.socket, look: Callable[[_Link, bytes], bool]
    ) -> None:
        """Pass bytes on until one end closes; ``look`` says whether they may pass."""
        try:
            while data := source.recv(_CHUNK):
                self._passing.wait()
                if not look(link, data):
                    break
                target.sendall(data)
        except OSError:
            pass  # an end was closed while the other was written to: so ends the link
        link.cut()

    def _ask(self, link: _Link, data: bytes) -> bool:
        """What a client says: at a COMMIT it is decided whether it will be answered."""
        link.said += data
        link.prepared.update(_PARSE.findall(data))
        executed = [link.prepared.get(name, b"") for name in _BIND.findall(data)]
        link.said += b"".join(executed)
        begins = _BEGIN.match(data) is not None or any(text.startswith(b"BEGIN") for text in executed)
        link.is_in_transaction = link.is_in_transaction or begins
        is_whole = bool(executed and data.endswith(_SYNC)) or _CHANGE.match(data) is not None
        stands_alone = is_whole and not link.is_in_transaction
        commits = data.endswith(_COMMITS) or b"COMMIT" in executed[-1:]
        if stands_alone or commits:
            link.loses_answer = self._take_loss(bytes(link.said))
        if stands_alone or commits or data.endswith(_ROLLBACKS):
            link.said.clear()
            link.is_in_transaction = False
        return True

    def _answer(self, link: _Link, data: bytes) -> bool:
        if self.delay:
            time.sleep(self.delay)
        if link.loses_answer:
            self.on_loss()
        return not link.loses_answer

    def _take_loss(self, said: bytes) -> bool:
        with self._lock:
            for loss in self._losses:
                if loss.left and loss.pattern.search(said):
                    loss.left -= 1
                    self.lost.append(said)
                    return True
        return False

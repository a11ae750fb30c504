"""What drivers of databases do each in their own way: hand over statements, and several of them in one round trip."""

import re
import sys
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import count
from types import NoneType
from typing import Any, NamedTuple

#: Where a connection of psycopg's has its ``_LibpqSession``, which goes with it.
_SESSION = "dagabaaz_session"
#: SQLSTATEs after which it is prepared anew: not supported (of a plan that is cached), unknown, wrong.
_OF_THE_STATEMENT = ("0A", "26", "42")
#: Statements that are sent together of one that is executed for each of many values.
_MANY = 500
#: The flag of MySQL's protocol by which a server says that a transaction is open.
_IN_TRANSACTION = 1
#: The flag by which a client asks to send several statements as one text.
MULTI_STATEMENTS = 1 << 16


class Sent(NamedTuple):
    """A statement's text and values, and whether it returns rows: psycopg takes long to tell."""

    text: str
    values: Any
    returns_rows: bool


class Reply(NamedTuple):
    """The rows that the driver gave, and how many it says that were changed."""

    rows: Sequence[Any]
    changed: int


class Driver:
    """A driver of which nothing is known beyond DB-API 2.0."""

    def send(self, cursor: Any, text: str, values: Any) -> None:
        """Execute one statement."""
        cursor.execute(text, values)

    def can_send_together(self, connection: Any) -> bool:
        """Whether several statements make one round trip on a connection of the driver's."""
        return False

    def send_together(self, cursor: Any, batch: Sequence[Sent]) -> list[Reply]:
        """Execute several in order, up to the first that fails, whose error is raised."""
        return [self.send_one(cursor, sent) for sent in batch]

    def send_one(self, cursor: Any, sent: Sent) -> Reply:
        """Execute one, and read its answer."""
        self.send(cursor, sent.text, sent.values)
        return _read(cursor, sent)

    def send_each(self, cursor: Any, text: str, values: Sequence[Any]) -> None:
        """Execute one that returns no rows for each of many values."""
        cursor.executemany(text, values)

    def is_at_rest(self, connection: Any) -> bool:
        """Whether the driver knows that its connection is in no transaction; one that cannot tell does not."""
        return False


class _Sqlite(Driver):
    def is_at_rest(self, connection: Any) -> bool:
        return not connection.in_transaction


class _Psycopg(Driver):
    """psycopg 3. In a session that may prepare, statements are handed to libpq: a cursor takes longer than most do."""

    def prepare_all(self, connection: Any) -> None:
        """Have what is sent over a connection prepared, by which psycopg prepares nothing: its session is one's own."""
        is_utf8 = connection.pgconn.parameter_status(b"client_encoding") == b"UTF8"
        if is_utf8 and connection.prepare_threshold is None and self.can_send_together(connection):
            setattr(connection, _SESSION, _LibpqSession(connection))

    def has_prepared(self, connection: Any) -> bool:
        """Whether there are statements whose plans the server keeps."""
        return connection.prepare_threshold is not None or hasattr(connection, _SESSION)

    def can_send_together(self, connection: Any) -> bool:
        return bool(_import_psycopg().Pipeline.is_supported())  # libpq 14 and later

    def send_one(self, cursor: Any, sent: Sent) -> Reply:
        replies = self._hand_over(cursor.connection, [sent])
        return super().send_one(cursor, sent) if replies is None else replies[0]

    def send_together(self, cursor: Any, batch: Sequence[Sent]) -> list[Reply]:
        replies = self._hand_over(cursor.connection, batch)
        return self._send_by_cursors(cursor.connection, batch) if replies is None else replies

    def send_each(self, cursor: Any, text: str, values: Sequence[Any]) -> None:
        for start in range(0, len(values), _MANY):
            self.send_together(cursor, [Sent(text, each, False) for each in values[start : start + _MANY]])

    def is_at_rest(self, connection: Any) -> bool:
        return bool(connection.pgconn.transaction_status == 0)  # IDLE

    def _hand_over(self, connection: Any, batch: Sequence[Sent]) -> list[Reply] | None:
        """None where a cursor has to do it."""
        session: _LibpqSession | None = getattr(connection, _SESSION, None)
        values = None if session is None else _encode_all(batch)
        return None if session is None or values is None else session.send(batch, values)

    def _send_by_cursors(self, connection: Any, batch: Sequence[Sent]) -> list[Reply]:
        """https://www.psycopg.org/psycopg3/docs/advanced/pipeline.html"""
        library, before = _import_psycopg(), sys.exc_info()[1]
        try:
            with connection.pipeline():
                cursors = [connection.cursor() for _ in batch]
                for each, sent in zip(cursors, batch, strict=True):
                    self.send(each, sent.text, sent.values)
        except library.Error as error:
            # A pipeline that a signal cuts off raises its own trouble in place of what the signal raised.
            cause = error.__context__
            while cause is not before and isinstance(cause, library.Error):
                cause = cause.__context__
            if cause is not None and cause is not before:
                raise cause from None
            raise
        replies = []
        for each, sent in zip(cursors, batch, strict=True):
            replies.append(_read(each, sent))
            each.close()
        return replies


class _LibpqSession:
    """A session whose statements are prepared when they are first sent, and sent in libpq's pipeline mode.

    https://www.postgresql.org/docs/current/libpq-pipeline-mode.html. Whoever is interrupted here has to close the
    connection. psycopg must prepare nothing there: after a ROLLBACK it would have the server forget all that is.
    """

    def __init__(self, connection: Any) -> None:
        self._library = _import_psycopg()
        self._pgconn = connection.pgconn
        self._wait = connection.wait
        self._transformer = self._library.adapt.Transformer(connection)
        self._prepared: dict[str, bytes] = {}
        #: Not used again.
        self._names = (b"dagabaaz_%d" % number for number in count())

    def send(self, batch: Sequence[Sent], values: Sequence[list[bytes | None]]) -> list[Reply]:
        """Send statements, up to the first that fails, whose error of psycopg's is raised."""
        pgconn, new = self._pgconn, dict[str, bytes]()
        sends: list[str | None] = []  # what is prepared; None for what is executed
        pgconn.enter_pipeline_mode()
        for sent, encoded in zip(batch, values, strict=True):
            name = self._prepared.get(sent.text) or new.get(sent.text)
            if name is None:
                name = new[sent.text] = next(self._names)
                pgconn.send_prepare(name, _number_places(sent.text).text)
                sends.append(sent.text)
            pgconn.send_query_prepared(name, encoded)
            sends.append(None)
        pgconn.pipeline_sync()
        self._wait(self._library.generators.send(pgconn))
        results, failed = self._read_results()
        answers = []
        for text, result in zip(sends, results, strict=False):  # shorter where the connection was lost
            if text is None:
                answers.append(result)
            elif result.status == self._library.pq.ExecStatus.COMMAND_OK:
                self._prepared[text] = new[text]
        if failed is not None:
            error = self._library.errors.error_from_result(failed)
            if (error.sqlstate or "").startswith(_OF_THE_STATEMENT):  # a table that is another than it was
                for sent in batch:
                    self._prepared.pop(sent.text, None)
            raise error
        replies = [self._to_reply(result, sent) for result, sent in zip(answers, batch, strict=True)]
        self._transformer.set_pgresult(None)
        return replies

    def _read_results(self) -> tuple[list[Any], Any]:
        """A result for each thing that was sent, and the one that failed, or None."""
        status, pgconn = self._library.pq.ExecStatus, self._pgconn
        results: list[Any] = []
        failed = None
        try:
            while not results or results[-1].status != status.PIPELINE_SYNC:
                # Nothing is between two statements' results.
                results += self._wait(self._library.generators.fetch_many(pgconn))
                failed = failed or next((each for each in results if each.status == status.FATAL_ERROR), None)
        except self._library.Error:
            if failed is None:
                raise
        else:
            pgconn.exit_pipeline_mode()
        return results, failed

    def _to_reply(self, result: Any, sent: Sent) -> Reply:
        changed = result.command_tuples
        rows: Sequence[Any] = ()
        if sent.returns_rows:
            self._transformer.set_pgresult(result)
            rows = self._transformer.load_rows(0, result.ntuples, tuple)
        return Reply(rows, -1 if changed is None else changed)


class _Numbered(NamedTuple):
    """A statement as PostgreSQL's protocol has it, and the names of the values in the order of its places."""

    text: bytes
    names: tuple[str, ...]


@lru_cache(1024)
def _number_places(text: str) -> _Numbered:
    """Of psycopg's ``%(name)s``, where ``%%`` is a percent sign: ``$1``."""
    names: dict[str, int] = {}

    def number(found: re.Match[str]) -> str:
        return "%" if found[1] is None else f"${names.setdefault(found[1], len(names) + 1)}"

    return _Numbered(_PLACE.sub(number, text).encode(), tuple(names))


def _encode_all(batch: Sequence[Sent]) -> list[list[bytes | None]] | None:
    """The values of statements in PostgreSQL's text format; None where psycopg has to see to one."""
    try:
        return [
            [_ENCODE[type(value)](value) for value in map(sent.values.__getitem__, _number_places(sent.text).names)]
            for sent in batch
        ]
    except (KeyError, ValueError):
        return None


def _encode_text(value: str) -> bytes:
    if "\0" in value:  # libpq would end it there; psycopg refuses it
        raise ValueError
    return value.encode()


_PLACE = re.compile(r"%\((\w+)\)s|%%")
_ENCODE: dict[type, Callable[[Any], bytes | None]] = {
    str: _encode_text,
    int: lambda value: b"%d" % value,
    bool: lambda value: b"t" if value else b"f",
    NoneType: lambda value: None,
}


class _PyMysql(Driver):
    """PyMySQL, which writes the values into the text: several statements can be one text."""

    def can_send_together(self, connection: Any) -> bool:
        return bool(connection.client_flag & MULTI_STATEMENTS)

    def send_together(self, cursor: Any, batch: Sequence[Sent]) -> list[Reply]:
        replies: list[Reply] = []
        cursor.execute("; ".join(cursor.mogrify(sent.text, sent.values) for sent in batch))
        for sent in batch:
            if replies and not cursor.nextset():
                raise RuntimeError(f"The server answered {len(replies)} of {len(batch)} statements.")
            replies.append(_read(cursor, sent))
        return replies

    def is_at_rest(self, connection: Any) -> bool:
        return not getattr(connection, "server_status", _IN_TRANSACTION) & _IN_TRANSACTION  # what the server said last


psycopg_driver = _Psycopg()
_DRIVERS = {"pysqlite": _Sqlite(), "psycopg": psycopg_driver, "pymysql": _PyMysql()}
_ANY = Driver()


def find_driver(name: str) -> Driver:
    """A driver by SQLAlchemy's name for it."""
    return _DRIVERS.get(name, _ANY)


def _read(cursor: Any, sent: Sent) -> Reply:
    """What a cursor has of the statement that it executed last."""
    return Reply(cursor.fetchall() if sent.returns_rows else (), cursor.rowcount)


def _import_psycopg() -> Any:
    import psycopg  # noqa: PLC0415  # who has a connection of it has it installed
    import psycopg.generators  # noqa: PLC0415

    return psycopg

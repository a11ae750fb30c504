"""What drivers of databases do each in their own way: hand over statements, and several of them in one round trip."""

import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

#: What psycopg's prepare_threshold is in a session in which only those statements are prepared that are sent here.
PREPARES_ON_REQUEST = sys.maxsize
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
        return Reply(cursor.fetchall() if sent.returns_rows else (), cursor.rowcount)

    def is_at_rest(self, connection: Any) -> bool:
        """Whether the driver knows that its connection is in no transaction; one that cannot tell does not."""
        return False


class _Sqlite(Driver):
    def is_at_rest(self, connection: Any) -> bool:
        return not connection.in_transaction


class _Psycopg(Driver):
    """psycopg 3: https://www.psycopg.org/psycopg3/docs/advanced/pipeline.html"""

    def send(self, cursor: Any, text: str, values: Any) -> None:
        # In sessions that were given another threshold psycopg does as it was told.
        cursor.execute(text, values, prepare=cursor.connection.prepare_threshold == PREPARES_ON_REQUEST or None)

    def can_send_together(self, connection: Any) -> bool:
        return bool(_import_psycopg().Pipeline.is_supported())  # libpq 14 and later

    def send_together(self, cursor: Any, batch: Sequence[Sent]) -> list[Reply]:
        connection, library, before = cursor.connection, _import_psycopg(), sys.exc_info()[1]
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
            replies.append(Reply(each.fetchall() if sent.returns_rows else (), each.rowcount))
            each.close()
        return replies

    def is_at_rest(self, connection: Any) -> bool:
        return bool(connection.pgconn.transaction_status == 0)  # IDLE


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
            replies.append(Reply(cursor.fetchall() if sent.returns_rows else (), cursor.rowcount))
        return replies

    def is_at_rest(self, connection: Any) -> bool:
        return not getattr(connection, "server_status", _IN_TRANSACTION) & _IN_TRANSACTION  # what the server said last


_DRIVERS = {"pysqlite": _Sqlite(), "psycopg": _Psycopg(), "pymysql": _PyMysql()}
_ANY = Driver()


def find_driver(name: str) -> Driver:
    """A driver by SQLAlchemy's name for it."""
    return _DRIVERS.get(name, _ANY)


def _import_psycopg() -> Any:
    import psycopg  # noqa: PLC0415  # who has a connection of it has it installed

    return psycopg

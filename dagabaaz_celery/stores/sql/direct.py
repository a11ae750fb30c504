"""Statements that every task sends: compiled once, and handed to the driver without SQLAlchemy's execution.

For such small statements that execution takes longer than the database does. Connections, transactions and errors stay
SQLAlchemy's, and it executes by itself where somebody listens to an engine's before_cursor_execute or
after_cursor_execute, as those do who trace or count statements.
"""

import logging
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from enum import Enum
from typing import Any

from sqlalchemy import Connection, Dialect, Engine, ExecutionContext, event
from sqlalchemy.exc import DBAPIError

#: Where SQLAlchemy writes what it executes.
_sql_log = logging.getLogger("sqlalchemy.engine.Engine")
#: The execution option that says how a statement is handed to its cursor.
_SEND = "dagabaaz_send"
#: What psycopg's prepare_threshold is in a session in which no statements are prepared but those here.
PREPARES_ON_REQUEST = sys.maxsize
#: Lengths of lists for which there is a text, as the text has a place for each value.
_LENGTHS = tuple(2**power for power in range(10))

Send = Callable[[Any, str, Any], object]
Convert = Callable[[Any], Any]


def accept_direct(engine: Engine) -> None:
    """Have an engine execute as statements here say."""

    @event.listens_for(engine, "do_execute")
    def _execute(cursor: Any, text: str, values: Any, context: ExecutionContext) -> bool:
        send: Send | None = context.execution_options.get(_SEND)
        if send is None:
            return False
        send(cursor, text, values)
        return True


class Direct:
    """A statement that takes the same parameters each time, on a connection on which a transaction has begun.

    Where there is none, each statement stands alone. ``columns`` are those that an INSERT is given. Like SQLAlchemy's
    execution it raises DBAPIError.
    """

    def __init__(self, statement: Any, *, columns: Sequence[str] | None = None) -> None:
        self._statement = statement
        self._columns = columns
        self._compiled: dict[str, _Compiled] = {}

    def change(self, connection: Connection, key: Mapping[str, Any]) -> int:
        """Execute a statement that returns no rows; how many it changed."""
        compiled = self._compile(connection)
        return compiled.execute(connection, compiled.bind(key))[1]

    def change_each(self, connection: Connection, keys: Sequence[Mapping[str, Any]]) -> None:
        """Execute it for each of many; for one, drivers know a shorter way."""
        if len(keys) == 1:
            self.change(connection, keys[0])
        elif keys:
            compiled = self._compile(connection)
            compiled.execute_each(connection, [compiled.bind(key) for key in keys])

    def first(self, connection: Connection, key: Mapping[str, Any]) -> Sequence[Any] | None:
        """The only row that it returns, or None."""
        rows = self.all(connection, key)
        return rows[0] if rows else None

    def one(self, connection: Connection, key: Mapping[str, Any]) -> Sequence[Any]:
        """The row that it always returns."""
        (row,) = self.all(connection, key)
        return row

    def all(self, connection: Connection, key: Mapping[str, Any]) -> list[Sequence[Any]]:
        """The rows that it returns."""
        compiled = self._compile(connection)
        rows = compiled.execute(connection, compiled.bind(key))[0]
        return compiled.convert(rows)

    def _compile(self, connection: Connection) -> "_Compiled":
        dialect = connection.dialect
        compiled = self._compiled.get(dialect.driver)
        if compiled is None:
            compiled = self._compiled[dialect.driver] = _Compiled(self._statement, dialect, self._columns)
        return compiled


@contextmanager
def in_one_go(connection: Connection) -> Iterator[None]:
    """Changes of which nobody asks how much they changed: they make one round trip where the driver knows how to."""
    library: Any = connection.dialect.loaded_dbapi
    knows_how = connection.dialect.driver == "psycopg" and library.Pipeline.is_supported()  # libpq 14 and later
    if not knows_how or _is_watched(connection):
        yield
        return
    driver: Any = connection.connection.dbapi_connection
    try:
        with driver.pipeline():
            yield
    except library.Error as error:
        raise _translate(connection, "", (), error) from error


class DirectByLength:
    """Statements that differ in how many values a list has, which ``build`` makes from the names of so many binds.

    There are few of them: a shorter list is filled up with its last value, and one of more than 512 values takes
    several statements.
    """

    def __init__(self, build: Callable[[list[str]], Any]) -> None:
        self._build = build
        self._built: dict[int, Direct] = {}

    def all(self, connection: Connection, values: Sequence[Any], key: Mapping[str, Any]) -> list[Sequence[Any]]:
        """The rows that are returned for a list, in order where the statement orders by its values first."""
        rows: list[Sequence[Any]] = []
        for statement, chunk in self._bind(sorted(values)):
            rows += statement.all(connection, {**key, **chunk})
        return rows

    def change(self, connection: Connection, values: Sequence[Any], key: Mapping[str, Any]) -> None:
        """Execute a statement that returns no rows for a list."""
        for statement, chunk in self._bind(values):
            statement.change(connection, {**key, **chunk})

    def _bind(self, values: Sequence[Any]) -> Iterator[tuple[Direct, dict[str, Any]]]:
        for start in range(0, len(values), _LENGTHS[-1]):
            yield self._bind_chunk(values[start : start + _LENGTHS[-1]])

    def _bind_chunk(self, values: Sequence[Any]) -> tuple[Direct, dict[str, Any]]:
        length = next(length for length in _LENGTHS if length >= len(values))
        names = [f"b_item{place}" for place in range(length)]
        if length not in self._built:
            self._built[length] = Direct(self._build(names))
        filled = [*values, *[values[-1]] * (length - len(values))]
        return self._built[length], dict(zip(names, filled, strict=True))


class _Compiled:
    """A statement's text for one driver, and what its values go through."""

    def __init__(self, statement: Any, dialect: Dialect, columns: Sequence[str] | None) -> None:
        compiled: Any = statement.compile(dialect=dialect, column_keys=columns)
        self._text = str(compiled)
        self._is_positional = bool(compiled.positional)
        names = compiled.positiontup if self._is_positional else list(compiled.params)
        self._places = [self._place(compiled, name, dialect) for name in names]
        self._names = names
        returned = list(getattr(statement, "exported_columns", ()))
        self._returns_rows = bool(returned)  # psycopg takes long to tell
        found = [(place, _find_result_processor(column.type, dialect)) for place, column in enumerate(returned)]
        self._conversions = [(place, convert) for place, convert in found if convert is not None]
        self._send: Send = _send_by_psycopg if dialect.driver == "psycopg" else _send_plain

    @staticmethod
    def _place(compiled: Any, name: str, dialect: Dialect) -> tuple[str | None, Convert | None, Any]:
        """The parameter of a place with its conversion, or no parameter and the value that is always there."""
        bind = compiled.binds[name]
        convert = bind.type.dialect_impl(dialect).bind_processor(dialect)
        if bind.required:
            return bind.key, convert, None
        value = bind.effective_value.value if isinstance(bind.effective_value, Enum) else bind.effective_value
        return None, None, value if convert is None else convert(value)

    def bind(self, key: Mapping[str, Any]) -> Any:
        values = [
            value if name is None else key[name] if convert is None else convert(key[name])
            for name, convert, value in self._places
        ]
        return tuple(values) if self._is_positional else dict(zip(self._names, values, strict=True))

    def convert(self, rows: Sequence[Any]) -> list[Any]:
        if not self._conversions:
            return list(rows)
        converted = []
        for row in rows:
            values = list(row)
            for place, convert in self._conversions:
                values[place] = convert(values[place])
            converted.append(values)
        return converted

    def execute(self, connection: Connection, values: Any) -> tuple[Sequence[Any], int]:
        """The rows that the driver gives, and how many it says that there were, or were changed."""
        if _is_watched(connection):
            result = connection.exec_driver_sql(self._text, values, {_SEND: self._send})
            return [tuple(row) for row in result] if self._returns_rows else [], result.rowcount
        cursor = connection.connection.cursor()
        try:
            self._send(cursor, self._text, values)
            rows: Sequence[Any] = cursor.fetchall() if self._returns_rows else []
        except connection.dialect.loaded_dbapi.Error as error:
            cursor.close()  # it lives on in the error's traceback: a file, or a result, would stay open
            raise _translate(connection, self._text, values, error) from error
        except BaseException:
            _give_up(connection, cursor)
            raise
        changed = cursor.rowcount
        cursor.close()
        return rows, changed

    def execute_each(self, connection: Connection, values: list[Any]) -> None:
        if _is_watched(connection):
            connection.exec_driver_sql(self._text, values)
            return
        cursor = connection.connection.cursor()
        try:
            cursor.executemany(self._text, values)
        except connection.dialect.loaded_dbapi.Error as error:
            cursor.close()
            raise _translate(connection, self._text, values[0], error) from error
        except BaseException:
            _give_up(connection, cursor)
            raise
        cursor.close()


def _translate(connection: Connection, text: str, values: Any, error: Exception) -> Exception:
    """An error as SQLAlchemy raises it, which finds out what it means for the connection."""

    def fail(cursor: Any, text: str, values: Any) -> None:
        raise error

    try:
        connection.exec_driver_sql(text, values, {_SEND: fail})
    except DBAPIError as translated:
        return translated
    return error


def _give_up(connection: Connection, cursor: Any) -> None:
    """Have a connection closed on which a statement was cut off, as by Celery's soft time limit.

    Nothing is known of it then: what the server answers may be still to come, and be taken for the next answer.
    """
    with suppress(Exception):
        cursor.close()
    connection.invalidate()


def _is_watched(connection: Connection) -> bool:
    events: Any = connection.engine.dispatch
    listens = events.before_cursor_execute or events.after_cursor_execute
    return bool(listens) or _sql_log.isEnabledFor(logging.INFO)


def _send_plain(cursor: Any, text: str, values: Any) -> None:
    cursor.execute(text, values)


def _send_by_psycopg(cursor: Any, text: str, values: Any) -> None:
    # In sessions that were given another threshold psycopg does as it was told.
    cursor.execute(text, values, prepare=cursor.connection.prepare_threshold == PREPARES_ON_REQUEST or None)


def _find_result_processor(type_: Any, dialect: Dialect) -> Convert | None:
    return type_.dialect_impl(dialect).result_processor(dialect, None)  # type: ignore[no-any-return]

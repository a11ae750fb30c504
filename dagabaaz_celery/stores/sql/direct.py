"""Statements that every task sends: compiled once, and handed to the driver without SQLAlchemy's execution.

For such small statements that execution takes longer than the database does. And where statements make round trips,
several of them can make one: what is asked by ``ask``, or left for ``later``, is sent together with what is executed
next, a COMMIT included, in the order in which it was given.

Connections, transactions and errors stay SQLAlchemy's, and it executes by itself where somebody listens to an engine's
before_cursor_execute or after_cursor_execute, as those do who trace or count statements. Then nothing waits.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from enum import Enum
from typing import Any

from sqlalchemy import Connection, Dialect, Engine, ExecutionContext, event, text
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.pool import ConnectionPoolEntry, PoolProxiedConnection

from dagabaaz_celery.stores.sql.drivers import Driver, Reply, Sent, find_driver

#: Where SQLAlchemy writes what it executes.
_sql_log = logging.getLogger("sqlalchemy.engine.Engine")
#: The execution option that says what hands a statement to its cursor.
_SEND = "dagabaaz_send"
#: What is known of a connection: what waits to be sent over it.
_OUTBOX = "dagabaaz_outbox"
#: Lengths of lists for which there is a text, as the text has a place for each value.
_LENGTHS = tuple(2**power for power in range(10))
#: More rows are not left for later, but sent as drivers send many.
_FEW = 8

Convert = Callable[[Any], Any]


def accept_direct(engine: Engine) -> None:
    """Have an engine execute as statements here say, and after what waits to be sent."""

    dialect: Any = engine.dialect

    @event.listens_for(engine, "do_execute")
    def _execute(cursor: Any, text: str, values: Any, context: ExecutionContext) -> bool:
        send: Callable[[Any, str, Any], object] | None = context.execution_options.get(_SEND)
        with _after_waiting(context, cursor):
            if send is None:
                dialect.do_execute(cursor, text, values, context)
            else:
                send(cursor, text, values)
        return True

    @event.listens_for(engine, "do_executemany")
    def _execute_many(cursor: Any, text: str, values: Any, context: ExecutionContext) -> bool:
        with _after_waiting(context, cursor):
            dialect.do_executemany(cursor, text, values, context)
        return True

    @event.listens_for(engine, "do_execute_no_params")
    def _execute_bare(cursor: Any, text: str, context: ExecutionContext) -> bool:
        with _after_waiting(context, cursor):
            dialect.do_execute_no_params(cursor, text, context)
        return True


@contextmanager
def _after_waiting(context: ExecutionContext, cursor: Any) -> Iterator[None]:
    """Have what waits sent first; a connection on which a signal cuts the statement off is given up."""
    connection = context.root_connection
    try:
        outbox = connection.info.get(_OUTBOX)
    except NotImplementedError:  # the connection by which a dialect gets to know its server
        yield
        return
    if outbox:
        outbox.send(connection)
    try:
        yield
    except connection.dialect.loaded_dbapi.Error:
        raise
    except BaseException:
        _give_up(connection, cursor)
        raise


def send_together(engine: Engine) -> None:
    """Have statements wait for each other on an engine's connections, where the driver knows how to send several.

    Transactions have to be begun by ``Direct.later``, and are ended here.
    """
    driver, commit = find_driver(engine.dialect.driver), Direct(text("COMMIT"))

    @event.listens_for(engine, "connect")
    def _open(connection: Any, record: ConnectionPoolEntry) -> None:
        if driver.can_send_together(connection):
            record.info[_OUTBOX] = _Outbox(driver)

    @event.listens_for(engine, "commit")
    def _commit(connection: Connection) -> None:
        outbox = connection.info.get(_OUTBOX)
        if outbox:
            commit.change(connection, {})

    @event.listens_for(engine, "rollback")
    def _forget(connection: Connection) -> None:
        outbox = None if connection.invalidated else connection.info.get(_OUTBOX)
        if outbox:
            outbox.forget()

    @event.listens_for(engine, "checkin")
    def _forget_too(connection: Any, record: ConnectionPoolEntry) -> None:
        outbox = record.info.get(_OUTBOX)
        if outbox:
            outbox.forget()

    def end_by(end: Callable[[Any], None]) -> Callable[[Any], None]:
        def end_if_open(connection: PoolProxiedConnection) -> None:
            if driver.is_at_rest(connection):  # what was sent together had its COMMIT with it
                return
            try:
                end(connection)
            except engine.dialect.loaded_dbapi.Error:
                raise
            except BaseException:  # a signal cut it off: the answer is still to come
                connection.invalidate()
                raise

        return end_if_open

    dialect: Any = engine.dialect
    dialect.do_commit, dialect.do_rollback = end_by(dialect.do_commit), end_by(dialect.do_rollback)


def send_waiting(connection: Connection) -> None:
    """Send what waits, and nothing else."""
    outbox = connection.info.get(_OUTBOX)
    if outbox:
        outbox.send(connection)


class Direct:
    """A statement that takes the same parameters each time, on a connection on which a transaction has begun.

    Where there is none, each statement stands alone. ``columns`` are those that an INSERT is given. Like SQLAlchemy's
    execution it raises DBAPIError.
    """

    def __init__(self, statement: Any, *, columns: Sequence[str] | None = None) -> None:
        self._statement = statement
        self._columns = columns
        self._compiled: dict[str, _Compiled] = {}

    def ask(self, connection: Connection, key: Mapping[str, Any]) -> "Answer":
        """Have it sent with the next statement, or when its answer is read."""
        compiled = self._compile(connection)
        return compiled.ask(connection, compiled.bind(key))

    def later(self, connection: Connection, key: Mapping[str, Any]) -> None:
        """Have it sent with the next statement, or with the COMMIT; nobody asks what it changes."""
        self.ask(connection, key)

    def later_each(self, connection: Connection, keys: Sequence[Mapping[str, Any]]) -> None:
        """The same for each of many; where they are more than a few, they are executed now."""
        if len(keys) > _FEW:
            self.change_each(connection, keys)
            return
        for key in keys:
            self.later(connection, key)

    def change(self, connection: Connection, key: Mapping[str, Any]) -> int:
        """Execute a statement that returns no rows; how many it changed."""
        return self.ask(connection, key).changed()

    def change_each(self, connection: Connection, keys: Sequence[Mapping[str, Any]]) -> None:
        """Execute it for each of many; for one, drivers know a shorter way."""
        if len(keys) == 1:
            self.change(connection, keys[0])
        elif keys:
            compiled = self._compile(connection)
            compiled.execute_each(connection, [compiled.bind(key) for key in keys])

    def first(self, connection: Connection, key: Mapping[str, Any]) -> Sequence[Any] | None:
        """The only row that it returns, or None."""
        return self.ask(connection, key).first()

    def one(self, connection: Connection, key: Mapping[str, Any]) -> Sequence[Any]:
        """The row that it always returns."""
        return self.ask(connection, key).one()

    def all(self, connection: Connection, key: Mapping[str, Any]) -> list[Sequence[Any]]:
        """The rows that it returns."""
        return self.ask(connection, key).all()

    def _compile(self, connection: Connection) -> "_Compiled":
        dialect = connection.dialect
        compiled = self._compiled.get(dialect.driver)
        if compiled is None:
            compiled = self._compiled[dialect.driver] = _Compiled(self._statement, dialect, self._columns)
        return compiled


_SAVEPOINT, _RELEASE = Direct(text("SAVEPOINT dagabaaz")), Direct(text("RELEASE SAVEPOINT dagabaaz"))
_ROLL_BACK = Direct(text("ROLLBACK TO SAVEPOINT dagabaaz"))


@contextmanager
def savepoint(connection: Connection) -> Iterator[None]:
    """Send what is executed here together with what it may have to be undone to, where a key is taken."""
    _SAVEPOINT.later(connection, {})
    try:
        yield
        _RELEASE.change(connection, {})
    except IntegrityError:
        outbox = connection.info.get(_OUTBOX)
        if outbox:
            outbox.forget()
        _ROLL_BACK.change(connection, {})
        raise


class Answer:
    """What the database answers to a statement. To read it has the statement sent; all its errors are raised then."""

    __slots__ = ("_connection", "_convert", "_reply")

    def __init__(
        self, connection: Connection, convert: Callable[[Sequence[Any]], list[Any]], reply: Reply | None = None
    ) -> None:
        self._connection = connection
        self._convert = convert
        self._reply = reply

    def note(self, reply: Reply) -> None:
        """It was sent, and this is what came."""
        self._reply = reply

    @property
    def was_sent(self) -> bool:
        """Whether it is known; else the statement waits, and what is asked next is sent right after it."""
        return self._reply is not None

    def changed(self) -> int:
        """How many rows were changed."""
        return self._read().changed

    def all(self) -> list[Sequence[Any]]:
        """The rows."""
        return self._convert(self._read().rows)

    def first(self) -> Sequence[Any] | None:
        """The only row, or None."""
        rows = self.all()
        return rows[0] if rows else None

    def one(self) -> Sequence[Any]:
        """The row that is always there."""
        (row,) = self.all()
        return row

    def _read(self) -> Reply:
        if self._reply is None:
            send_waiting(self._connection)
        assert self._reply is not None, "the statement was given up with its transaction"  # noqa: S101
        return self._reply


class _Outbox:
    """Statements that wait to be sent over one connection."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._waiting: list[tuple[Sent, Answer]] = []

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def put(self, sent: Sent, answer: Answer) -> None:
        self._waiting.append((sent, answer))

    def forget(self) -> None:
        self._waiting = []

    def send(self, connection: Connection) -> None:
        waiting, self._waiting = self._waiting, []
        batch = [sent for sent, _ in waiting]
        # Which of them an error is about, the driver does not say.
        whole = batch[0] if len(batch) == 1 else Sent("; ".join(sent.text for sent in batch), (), False)
        with _Cursor(connection, whole) as cursor:
            if len(batch) == 1:
                replies = [self._driver.send_one(cursor, batch[0])]
            else:
                replies = self._driver.send_together(cursor, batch)
        for (_, answer), reply in zip(waiting, replies, strict=True):
            answer.note(reply)


class DirectByLength:
    """Statements that differ in how many values a list has, which ``build`` makes from the names of so many binds.

    There are few of them: a shorter list is filled up with its last value, and one of more than 512 values takes
    several statements.
    """

    def __init__(self, build: Callable[[list[str]], Any]) -> None:
        self._build = build
        self._built: dict[int, Direct] = {}

    def ask(self, connection: Connection, values: Sequence[Any], key: Mapping[str, Any]) -> list[Answer]:
        """Have them sent as ``Direct.ask`` does; in order where the statement orders by its values first."""
        return [statement.ask(connection, {**key, **chunk}) for statement, chunk in self._bind(sorted(values))]

    def all(self, connection: Connection, values: Sequence[Any], key: Mapping[str, Any]) -> list[Sequence[Any]]:
        """The rows that are returned for a list, in that order."""
        return read_all(self.ask(connection, values, key))

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


def read_all(answers: Sequence[Answer]) -> list[Sequence[Any]]:
    """The rows of several answers."""
    return [row for answer in answers for row in answer.all()]


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
        self._returns_rows = bool(returned)
        found = [(place, _find_result_processor(column.type, dialect)) for place, column in enumerate(returned)]
        self._conversions = [(place, convert) for place, convert in found if convert is not None]
        self._driver = find_driver(dialect.driver)

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

    def ask(self, connection: Connection, values: Any) -> Answer:
        outbox = connection.info.get(_OUTBOX)
        if _is_watched(connection):
            return Answer(connection, self._convert, self._execute_watched(connection, values))
        sent = Sent(self._text, values, self._returns_rows)
        if outbox is not None:
            answer = Answer(connection, self._convert)
            outbox.put(sent, answer)
            return answer
        with _Cursor(connection, sent) as cursor:
            reply = self._driver.send_one(cursor, sent)
        return Answer(connection, self._convert, reply)

    def execute_each(self, connection: Connection, values: list[Any]) -> None:
        send_waiting(connection)
        if _is_watched(connection):
            connection.exec_driver_sql(self._text, values)
            return
        with _Cursor(connection, Sent(self._text, values[0], False)) as cursor:
            self._driver.send_each(cursor, self._text, values)

    def _execute_watched(self, connection: Connection, values: Any) -> Reply:
        result = connection.exec_driver_sql(self._text, values, {_SEND: self._driver.send})
        return Reply([tuple(row) for row in result] if self._returns_rows else [], result.rowcount)

    def _convert(self, rows: Sequence[Any]) -> list[Any]:
        if not self._conversions:
            return list(rows)
        converted = []
        for row in rows:
            values = list(row)
            for place, convert in self._conversions:
                values[place] = convert(values[place])
            converted.append(values)
        return converted


class _Cursor:
    """A cursor of the driver's, closed in the end; errors are those that SQLAlchemy raises.

    A class of its own: a generator takes a microsecond more, a dozen times for each task.
    """

    def __init__(self, connection: Connection, sent: Sent) -> None:
        self._connection = connection
        self._sent = sent
        self._cursor = connection.connection.cursor()

    def __enter__(self) -> Any:
        return self._cursor

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if error is None:
            self._cursor.close()
        elif isinstance(error, self._connection.dialect.loaded_dbapi.Error):
            self._cursor.close()  # it lives on in the error's traceback: a file, or a result, would stay open
            raise _translate(self._connection, self._sent, error) from error
        else:
            _give_up(self._connection, self._cursor)


def _translate(connection: Connection, sent: Sent, error: Exception) -> Exception:
    """An error as SQLAlchemy raises it, which finds out what it means for the connection."""

    def fail(cursor: Any, text: str, values: Any) -> None:
        raise error

    try:
        connection.exec_driver_sql(sent.text, sent.values, {_SEND: fail})
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


def _find_result_processor(type_: Any, dialect: Dialect) -> Convert | None:
    return type_.dialect_impl(dialect).result_processor(dialect, None)  # type: ignore[no-any-return]

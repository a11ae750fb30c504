"""SQL that databases say each in their own way, and what their statements can."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import BigInteger, ColumnElement, Connection, Select, String, Table, literal_column, or_
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement


class now(FunctionElement[int]):  # noqa: N801  # reads as the SQL function that it is
    """The database's clock, in microseconds since 1970."""

    type = BigInteger()
    inherit_cache = True
    name = "now"


@compiles(now, "sqlite")
def _now_sqlite(element: Any, compiler: Any, **kw: Any) -> str:
    return "CAST((julianday('now') - 2440587.5) * 86400000000.0 AS INTEGER)"


@compiles(now, "postgresql")
def _now_postgresql(element: Any, compiler: Any, **kw: Any) -> str:
    # statement_timestamp() is stable within a statement, so that an index serves a comparison with it.
    return "CAST(EXTRACT(EPOCH FROM statement_timestamp()) * 1000000 AS BIGINT)"


@compiles(now, "mysql")
@compiles(now, "mariadb")
def _now_mysql(element: Any, compiler: Any, **kw: Any) -> str:
    # In UTC throughout: local time has an hour twice when summer ends.
    return "TIMESTAMPDIFF(MICROSECOND, '1970-01-01', UTC_TIMESTAMP(6))"


class _index_order(FunctionElement[Any]):  # noqa: N801  # reads as the SQL that it is
    """The column after which an index goes on, to order by it."""

    inherit_cache = True
    name = "index_order"


@compiles(_index_order)
def _index_order_plain(element: Any, compiler: Any, **kw: Any) -> str:
    return str(compiler.process(element.clauses, **kw))


@compiles(_index_order, "mysql")
@compiles(_index_order, "mariadb")
def _index_order_mysql(element: Any, compiler: Any, **kw: Any) -> str:
    return "NULL"  # no order


def is_one_of(column: ColumnElement[Any], values: Sequence[str]) -> ColumnElement[bool]:
    """A comparison with each value. Of IN, SQLAlchemy makes the text anew whenever it is sent."""
    return or_(*(column == fixed(value) for value in values))


def fixed(value: str) -> ColumnElement[str]:
    """One of our own words in the text of a statement.

    Where it is bound instead, and a partial index is for some values of its column, SQLite makes its plan anew whenever
    the statement is executed.
    """
    return literal_column(f"'{value}'", String())


def writes_in_queries(connection: Connection) -> bool:
    """Whether one statement may change several tables and read what it changed (WITH … UPDATE … RETURNING)."""
    return connection.dialect.name == "postgresql"


def updates_two_tables(connection: Connection) -> bool:
    """Whether an UPDATE may change rows of two tables together, each by a condition on the other."""
    return connection.dialect.name in ("mysql", "mariadb")


def prefer_index(statement: Select[Any], table: Table, index_name: str) -> Select[Any]:
    """Tell MySQL and MariaDB which index to use, where they are known to choose worse; others find it."""
    for dialect in ("mysql", "mariadb"):
        statement = statement.with_hint(table, f"FORCE INDEX ({index_name})", dialect)
    return statement


def read_by_index(statement: Select[Any], table: Table, index_name: str, column: ColumnElement[Any]) -> Select[Any]:
    """Have rows with one value for the index's first columns read by it, whatever a database thinks of its statistics.

    ``column`` is the index's next one. To be asked for that order is what PostgreSQL and SQLite need: nothing else
    gives it without sorting. MySQL and MariaDB would sort all the same.
    """
    return prefer_index(statement, table, index_name).order_by(_index_order(column))

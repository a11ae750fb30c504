"""What revisions are made of, and how one is made.

A released revision is not changed: what comes next is a new one, with a test in tests/integration/test_migrations.py.
Its name is its number, with the number of the oldest revision behind it whose releases work with its tables as well
(``0003_0001``). That holds while they find every table, column and value that they know, and may leave out what is new:
new columns may be null, or have a default in the database. One for which it does not hold has its number alone.

Several tables are changed in the order task, node, run, in which workers lock their rows. MySQL and MariaDB commit at
every step: those that were done already are left out, so that the next start goes on where one that was killed stopped.
"""

from collections.abc import Sequence
from typing import Any

from alembic import context, op
from sqlalchemy import TableClause, column, inspect, table


def name(part: str) -> str:
    """The name of a table or index, with the store's prefix."""
    return f"{context.config.attributes['prefix']}{part}"


def rows_of(table_name: str, *columns: str) -> TableClause:
    """A table, named without its prefix, for a statement on its rows."""
    return table(name(table_name), *map(column, columns), schema=_schema())


def create_table(table: str, *parts: Any) -> None:
    """Create a table, named without its prefix."""
    op.create_table(
        name(table),
        *parts,
        schema=_schema(),
        if_not_exists=None if context.is_offline_mode() else True,
        mysql_engine="InnoDB",
        mysql_collate="utf8mb4_bin",
    )


def drop_table(table: str) -> None:
    """Drop a table, named without its prefix."""
    op.drop_table(name(table), schema=_schema(), if_exists=None if context.is_offline_mode() else True)


def create_index(index: str, table: str, columns: Sequence[str], **options: Any) -> None:
    """Create an index; its name and its table's come without the prefix."""
    if not _has_index(index, table):
        op.create_index(name(index), name(table), columns, schema=_schema(), **options)


def drop_index(index: str, table: str) -> None:
    """Drop an index; its name and its table's come without the prefix."""
    if context.is_offline_mode() or _has_index(index, table):
        op.drop_index(name(index), name(table), schema=_schema())


def add_column(table: str, column: Any) -> None:
    """Add a column; its table's name comes without the prefix."""
    if not _has_column(table, column.name):
        op.add_column(name(table), column, schema=_schema())


def drop_column(table: str, column: str) -> None:
    """Drop a column; its table's name comes without the prefix."""
    if context.is_offline_mode() or _has_column(table, column):
        op.drop_column(name(table), column, schema=_schema())


def _has_column(table: str, column: str) -> bool:
    """Like ``_has_index``."""
    if context.is_offline_mode():
        return False
    return any(each["name"] == column for each in inspect(op.get_bind()).get_columns(name(table), schema=_schema()))


def _has_index(index: str, table: str) -> bool:
    """Whether the database has it; what is written for others to run does not ask, and takes it to be not there."""
    if context.is_offline_mode():
        return False
    found = inspect(op.get_bind()).get_indexes(name(table), schema=_schema())
    return any(each["name"] == name(index) for each in found)


def _schema() -> str | None:
    schema: str | None = context.config.attributes["schema"]
    return schema

"""Statements that are handed to the driver: what they give back, and what of SQLAlchemy's they keep."""

from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import Column, Connection, Integer, MetaData, String, Table, bindparam, event, insert, select, update
from sqlalchemy.exc import IntegrityError

from dagabaaz_celery.stores.sql.direct import Direct, DirectByLength
from dagabaaz_celery.stores.sql.engines import build_engine

THING = Table("thing", MetaData(), Column("id", Integer, primary_key=True), Column("name", String(20)))
ADD = Direct(insert(THING), columns=("id", "name"))
GET = Direct(select(THING.c.id, THING.c.name).where(THING.c.id == bindparam("b_id")))
RENAME = Direct(update(THING).where(THING.c.id >= bindparam("b_from")).values(name=bindparam("b_name")))
SOME = DirectByLength(
    lambda names: select(THING.c.id).where(THING.c.id.in_([bindparam(name) for name in names])).order_by(THING.c.id)
)


@pytest.fixture
def connection(tmp_path: Any) -> Iterator[Connection]:
    engine = build_engine(f"sqlite:///{tmp_path / 'things.sqlite3'}")
    THING.metadata.create_all(engine)
    with engine.connect() as connection, connection.begin():
        yield connection
    engine.dispose()


def add(connection: Connection, count: int) -> None:
    ADD.change_each(connection, [{"id": number, "name": f"thing {number}"} for number in range(count)])


def test_rows_and_counts_are_the_drivers(connection: Connection):
    add(connection, 3)

    assert GET.first(connection, {"b_id": 1}) == (1, "thing 1")
    assert GET.first(connection, {"b_id": 7}) is None
    assert RENAME.change(connection, {"b_from": 1, "b_name": "other"}) == 2


def test_one_means_one(connection: Connection):
    with pytest.raises(ValueError, match="not enough values"):
        GET.one(connection, {"b_id": 1})


@pytest.mark.parametrize("count", [0, 1, 2, 3, 5, 512, 513, 1500])
def test_a_list_of_any_length_is_read_in_order_and_each_value_once(connection: Connection, count: int):
    add(connection, 2000)

    found = SOME.all(connection, list(reversed(range(count))), {})

    assert [row[0] for row in found] == list(range(count))


def test_an_error_is_sqlalchemys_and_leaves_the_transaction_usable(connection: Connection):
    add(connection, 1)

    with pytest.raises(IntegrityError) as error:
        add(connection, 1)

    assert error.value.orig is not None
    assert GET.first(connection, {"b_id": 0}) == (0, "thing 0")


def test_whoever_listens_sees_every_statement(connection: Connection):
    seen: list[tuple[str, bool]] = []

    def note(connection: Connection, cursor: Any, statement: str, parameters: Any, context: Any, many: bool) -> None:
        seen.append((statement.split(maxsplit=1)[0], many))

    event.listen(connection.engine, "before_cursor_execute", note)
    add(connection, 2)
    found = GET.first(connection, {"b_id": 1})
    renamed = RENAME.change(connection, {"b_from": 0, "b_name": "other"})
    event.remove(connection.engine, "before_cursor_execute", note)

    assert seen == [("INSERT", True), ("SELECT", False), ("UPDATE", False)]
    assert (found, renamed) == ((1, "thing 1"), 2)

"""A result that is asked for while its task completes: there is none yet, or all of it is there."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import event

from dagabaaz_celery.app import Dagabaaz
from tests.faults.races.racers import store_of
from tests.integration.sql_stores import attempts_of, claim, node, records, start

pytestmark = pytest.mark.timeout(300)


def test_a_result_is_not_seen_by_half(here: Dagabaaz, there: Dagabaaz) -> None:
    looks = []
    for place in range(20):
        # Given a task in hand
        started = start(store_of(here), node("work"))
        work = claim(store_of(here), *attempts_of(started))
        # When it completes between any two statements that look for its result
        with before_statement(here, place, lambda work=work: store_of(there).complete(work, records(1), "one")) as sent:
            looks.append(here.run(started.run.id).result("work"))
        if len(sent) <= place:
            break
        # Then all of the result is seen, or none of it
        assert looks[-1] in (None, {"n": 0})
    else:
        raise AssertionError("looking for one result takes 20 statements")
    assert {str(look) for look in looks} == {"None", "{'n': 0}"}


@contextmanager
def before_statement(dag: Dagabaaz, place: int, act: Any) -> Iterator[list[str]]:
    """Do something before the app sends its so-manieth statement. Gives those that it sent."""
    sent: list[str] = []

    def note(connection: Any, cursor: Any, statement: str, parameters: Any, context: Any, executemany: bool) -> None:
        sent.append(statement)
        if len(sent) == place + 1:
            act()

    engine = store_of(dag).database.engine
    event.listen(engine, "before_cursor_execute", note)
    try:
        yield sent
    finally:
        event.remove(engine, "before_cursor_execute", note)

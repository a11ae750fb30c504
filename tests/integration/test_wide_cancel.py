"""A run of ten thousand queued tasks is cancelled and retried on each database: what it costs, and that it goes on."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import text

from dagabaaz_celery.stores.sql.invariants import find_violations
from dagabaaz_celery.stores.sql.records import Aftermath, ClaimRefused
from dagabaaz_celery.stores.sql.store import SqlStore
from dagabaaz_celery.stores.sql.tables import new_id
from tests import services
from tests.integration.sql_stores import attempts_of, claim, counting_statements, node, records, start

WIDTH = 10_000
SERVERS = {"postgresql": services.postgres_url, "mariadb": services.mysql_url}
IS_FULL = os.environ.get("DAGABAAZ_FAULTS") == "full"

pytestmark = pytest.mark.timeout(1200)


@pytest.fixture(params=["sqlite", *SERVERS])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[SqlStore]:
    url = SERVERS[request.param]() if request.param in SERVERS else f"sqlite:///{tmp_path / 'runs.sqlite3'}"
    made = SqlStore(url, prefix=f"w{new_id()[-8:]}_")
    yield made
    with made.database.write() as connection:
        made.tables.metadata.drop_all(connection)
        connection.execute(text(f"DROP TABLE {made.tables.prefix}schema_version"))
    made.close()


@pytest.fixture
def run_id(store: SqlStore) -> str:
    """A run whose second node has so many tasks, each published and not claimed."""
    started = start(store, node("source"), node("work", "source"))
    launched = store.complete(claim(store, attempts_of(started)[0]), records(WIDTH), "many")
    queue(store, launched)
    return started.run.id


def queue(store: SqlStore, aftermath: Aftermath | None) -> list[str]:
    """Have all that is owed published, as far as the store knows."""
    queued: list[str] = []
    while aftermath is not None:
        queued += attempts_of(aftermath)
        aftermath = store.continue_launch(aftermath.owed[0]) if aftermath.owed else None
    store.mark_queued(queued, "work")
    return queued


def count_tasks(store: SqlStore, run_id: str) -> dict[str, int]:
    with store.read() as connection:
        return store.rows.tasks.count_by_status(connection, run_id)[1]


def list_attempts(store: SqlStore, run_id: str) -> list[str]:
    with store.read() as connection:
        return [row.attempt_id for row in store.rows.tasks.list_all(connection, run_id)]


def test_ten_thousand_queued_tasks_are_cancelled_retried_and_completed(store: SqlStore, run_id: str):
    before = list_attempts(store, run_id)
    running = [claim(store, attempt_id) for attempt_id in before[1:4]]
    assert count_tasks(store, run_id) == {"queued": WIDTH - 3, "running": 3}

    # When the run is cancelled, some hundred statements do it, in whatever state the tasks are
    with counting_statements(store) as sent:
        [owed] = [each for each in store.cancel(run_id, "enough").owed if each.kind == "cancel"]
        were_running = store.cancel_rest(owed)
    batches = WIDTH // store.policy.cancel_batch
    assert len(sent) < 6 * batches + 20, sent
    # Then those whose bodies ran are told of, nobody claims or completes one, and no time is lost on it again
    assert sorted(were_running) == sorted(work.attempt.attempt_id for work in running)
    assert count_tasks(store, run_id) == {"cancelled": WIDTH}
    assert all(isinstance(store.claim(attempt_id, new_id(), None), ClaimRefused) for attempt_id in before[::500])
    assert [store.complete(work, records(1), "one") for work in running] == [None] * 3
    assert find_violations(store, [run_id]) == []

    # When it is retried, it is the same with as few statements
    with counting_statements(store) as sent:
        retried = store.retry(run_id)
    assert len(sent) < WIDTH / 50
    again = queue(store, retried)
    assert (len(set(again)), set(again) & set(before)) == (WIDTH, set())
    assert list_attempts(store, run_id)[1:] == again
    assert count_tasks(store, run_id) == {"queued": WIDTH}
    assert find_violations(store, [run_id]) == []

    # Then the old attempts stay refused, and the new ones are worked on
    assert all(isinstance(store.claim(attempt_id, new_id(), None), ClaimRefused) for attempt_id in before[::500])
    is_sqlite = store.database.engine.dialect.name == "sqlite"
    to_complete = again if is_sqlite or IS_FULL else again[:100]
    for attempt_id in to_complete:
        store.complete(claim(store, attempt_id), [], "none")
    assert store.get_run(run_id).status == ("completed" if to_complete is again else "running")
    assert find_violations(store, [run_id]) == []


def test_a_cancellation_that_comes_to_a_run_that_runs_again_takes_itself_back(store: SqlStore):
    started = start(store, node("a"), node("b"))
    [owed] = [each for each in store.cancel(started.run.id, "enough").owed if each.kind == "cancel"]
    retried = store.retry(started.run.id)

    assert store.cancel_rest(owed) == []

    for attempt_id in attempts_of(retried):
        store.complete(claim(store, attempt_id), [], "none")
    assert store.get_run(started.run.id).status == "completed"
    assert find_violations(store) == []

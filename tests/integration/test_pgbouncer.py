"""PgBouncer in transaction mode: workers behind it, and prepared statements, which are for those that are not.

The tests of the store and of its migrations run behind it as well.
"""

from collections.abc import Iterator

import pytest
from sqlalchemy import text

from dagabaaz_celery.models import DagNode
from dagabaaz_celery.pipeline import Pipeline
from dagabaaz_celery.stores.sql.invariants import find_violations
from dagabaaz_celery.stores.sql.store import SqlStore
from dagabaaz_celery.stores.sql.tables import new_id
from tests import services
from tests.integration.pattern_plugins import declare_patterns
from tests.integration.sql_stores import attempts_of, claim, node, start
from tests.integration.worker_processes import open_site

pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def prefix() -> Iterator[str]:
    """Tables of one's own, dropped in the end."""
    made = f"b{new_id()[-8:]}_"
    yield made
    store = SqlStore(services.postgres_url(), prefix=made)
    with store.database.write() as connection:
        store.tables.metadata.drop_all(connection)
        connection.execute(text(f"DROP TABLE IF EXISTS {made}schema_version"))
    store.close()


def test_workers_run_pipelines_behind_it(prefix: str):
    url = services.pgbouncer_url()
    patient = {"dagabaaz_dead_after": 60.0}  # a worker on a busy machine is slow, not dead
    with open_site(declare_patterns, dagabaaz_store_url=url, dagabaaz_table_prefix=prefix, **patient) as site:
        nodes = [
            DagNode(slug="source", plugin="fetch"),
            DagNode(slug="halves", plugin="split", depends_on=["source"]),
            DagNode(slug="all", plugin="merge", depends_on=["halves"], fan_mode="aggregate"),
        ]
        site.dag.register(Pipeline("files", nodes=nodes))
        site.start_worker(concurrency=4)
        names = [[f"{number}.txt" for number in range(width)] for width in range(1, 9)]
        runs = [site.dag.start("files", input={"names": given}) for given in names]
        for run in runs:
            run.wait(timeout=90)

        assert [run.error for run in runs] == [None] * len(runs)
        halves = [[" ".join(f"{name}#{half}" for name in given for half in range(2))] for given in names]
        assert [run.result("all") for run in runs] == halves


def count_prepared(url: str, prefix: str) -> list[str]:
    """Drive a run, many times the same statements, and ask its session which it has prepared."""
    store = SqlStore(url, prefix=prefix)
    try:
        for _ in range(10):
            store.complete(claim(store, attempts_of(start(store, node("a")))[0]), [], "none")
        assert find_violations(store) == []
        with store.read() as connection:
            return list(connection.execute(text("SELECT statement FROM pg_prepared_statements")).scalars())
    finally:
        store.close()


def test_what_every_task_sends_is_prepared_where_the_session_is_our_own(prefix: str):
    direct = count_prepared(services.postgres_url(), prefix)

    assert any(f"UPDATE {prefix}task" in statement for statement in direct)
    assert not any("LIMIT" in statement for statement in direct)  # a sweep's, which needs the index for one status
    assert count_prepared(services.pgbouncer_url(), prefix) == []


def test_the_url_says_otherwise(prefix: str):
    assert count_prepared(f"{services.postgres_url()}?prepare_threshold=none", prefix) == []

    prepared = count_prepared(f"{services.postgres_url()}?prepare_threshold=5", prefix)

    assert any(f"INSERT INTO {prefix}run" in statement for statement in prepared)

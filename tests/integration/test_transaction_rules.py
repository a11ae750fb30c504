"""The rules that every transaction of a SQL store keeps to, whatever it is about."""

from collections.abc import Callable, Iterator
from contextlib import closing

import pytest
from sqlalchemy import inspect, text

from dagabaaz_celery.app import Dagabaaz
from dagabaaz_celery.stores.sql.store import SqlStore
from dagabaaz_celery.stores.sql.tables import build_tables, new_id
from tests import services
from tests.integration.celery_support import node, start
from tests.transactions import BrokerInTransaction, no_broker_in_transactions

#: A server, how a session of it is made serializable before the store comes, and how it is asked what it is.
SERVERS: dict[str, tuple[Callable[[], str], str, str]] = {
    "postgresql": (
        services.postgres_url,
        "?options=-c%20default_transaction_isolation=serializable",
        "SHOW transaction_isolation",
    ),
    "mariadb": (
        services.mysql_url,
        "?init_command=SET%20SESSION%20TRANSACTION%20ISOLATION%20LEVEL%20SERIALIZABLE",
        "SELECT @@tx_isolation",
    ),
}


@pytest.fixture(params=SERVERS)
def strict(request: pytest.FixtureRequest) -> Iterator[tuple[SqlStore, str]]:
    """A store on a server whose sessions are serializable unless they are told otherwise, and how to ask one."""
    find_url, option, question = SERVERS[request.param]
    store = SqlStore(find_url() + option, prefix=f"i{new_id()[-8:]}_")
    with closing(store):
        yield store, question


def test_every_transaction_on_a_server_is_read_committed(strict: tuple[SqlStore, str]):
    store, question = strict
    for open_transaction in (store.database.read, store.database.write, store.database.write_each):
        with open_transaction() as connection:
            level = connection.execute(text(question)).scalar_one()
        assert level.replace("-", " ").lower() == "read committed"


def test_no_table_refers_to_another():
    """On InnoDB a foreign key takes shared locks on the row that it names, and those deadlock."""
    tables = build_tables().metadata.tables.values()
    assert [key for table in tables for key in table.foreign_keys] == []


def test_no_migration_made_a_table_refer_to_another(tmp_path):
    with closing(SqlStore(f"sqlite:///{tmp_path / 'runs.sqlite3'}")) as store, store.read() as connection:
        looked_at = inspect(connection)
        names = looked_at.get_table_names()
        assert store.tables.task.name in names
        assert [key for name in names for key in looked_at.get_foreign_keys(name)] == []


def test_a_message_sent_inside_a_transaction_is_noticed(dag: Dagabaaz):
    """What watches over every test in this directory sees what it should."""

    @dag.plugin
    def work() -> None: ...

    run = start(dag, node("work"))
    store = dag._runtime.store
    with no_broker_in_transactions() as refused, store.read(), pytest.raises(BrokerInTransaction):
        dag.app.send_task("work")
    assert refused == ["Producer.publish"]
    with no_broker_in_transactions() as refused:
        run.cancel()
    assert refused == []

"""What every test with a Celery app begins and ends with."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import create_engine, text

from dagabaaz_celery.app import Dagabaaz
from dagabaaz_celery.stores.sql.tables import build_tables, new_id
from dagabaaz_celery.testing import embedded_worker
from dagabaaz_celery.worker.secrets import SecretResolver, read_environment
from tests import services
from tests.integration.celery_support import make_app
from tests.integration.shop_plugins import declare_all
from tests.integration.worker_processes import Site, open_site
from tests.transactions import no_broker_in_transactions

SERVERS = {"postgresql": services.postgres_url, "mariadb": services.mysql_url}


@pytest.fixture(autouse=True)
def broker_stays_outside() -> Iterator[None]:
    """No test, nor a worker in its process, speaks to a broker inside a store's transaction."""
    with no_broker_in_transactions() as refused:
        yield
    assert refused == []


@pytest.fixture
def new_dag() -> Iterator[Callable[..., Dagabaaz]]:
    """Make a Dagabaaz on an app of its own, with these settings and secrets; closed after the test."""
    made: list[Dagabaaz] = []

    def make(*, secrets: SecretResolver = read_environment, **conf: Any) -> Dagabaaz:
        made.append(Dagabaaz(make_app(**conf), secrets=secrets))
        return made[-1]

    yield make
    for dag in made:
        dag.close()
        dag.app.close()


@pytest.fixture
def dag(new_dag: Callable[..., Dagabaaz]) -> Dagabaaz:
    """A Dagabaaz on an app with the in-memory broker and a store of its own."""
    return new_dag()


@pytest.fixture
def eager(new_dag: Callable[..., Dagabaaz]) -> Dagabaaz:
    """A Dagabaaz on an app that runs every task in place."""
    return new_dag(task_always_eager=True)


@pytest.fixture(params=["sqlite", *SERVERS])
def stored(request: pytest.FixtureRequest, new_dag: Callable[..., Dagabaaz]) -> Iterator[Dagabaaz]:
    """A Dagabaaz with the in-memory broker and a store on each kind of database, under tables of its own."""
    if request.param == "sqlite":
        yield new_dag()
        return
    url, prefix = SERVERS[request.param](), f"d{new_id()[-8:]}_"
    yield new_dag(dagabaaz_store_url=url, dagabaaz_table_prefix=prefix)
    engine, tables = create_engine(url), build_tables(prefix)
    with engine.begin() as connection:
        tables.metadata.drop_all(connection)
        connection.execute(text(f"DROP TABLE IF EXISTS {prefix}schema_version"))
    engine.dispose()


@pytest.fixture(scope="session")
def prefork() -> Iterator[Site]:
    """A prefork worker process that tests share, which runs every plugin of ``shop_plugins``."""
    with open_site(declare_all) as site:
        site.start_worker()
        yield site


@pytest.fixture(params=["eager", "solo", "threads", "prefork"])
def shop(request: pytest.FixtureRequest, new_dag: Callable[..., Dagabaaz]) -> Iterator[Dagabaaz]:
    """A Dagabaaz with every plugin of ``shop_plugins`` and a worker of each pool that runs them."""
    if request.param == "prefork":
        yield request.getfixturevalue("prefork").dag
        return
    dag = new_dag(task_always_eager=request.param == "eager")
    declare_all(dag)
    if request.param == "eager":
        yield dag
        return
    with embedded_worker(dag.app, pool=request.param):
        yield dag

"""Brokers, stores and workers as processes that a test may kill, behind pytest-celery's fixtures.

A test that asks for ``celery_setup`` runs on every store by every broker. The servers are private, start once in a
test run, and are up again at the beginning of each test. To use pytest-celery's containers, override ``celery_broker``
with one of its own.
"""

import json
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from celery._state import get_current_app
from pytest_celery import CeleryBrokerCluster, CeleryTestBroker, CeleryTestWorker, CeleryWorkerCluster

from dagabaaz_celery.app import Dagabaaz
from dagabaaz_celery.stores.sql.invariants import find_violations
from dagabaaz_celery.stores.sql.store import SqlStore
from tests import services
from tests.faults.app_under_test import CONF_VARIABLE, JOURNAL_VARIABLE, POINTS_VARIABLE, Journal, make_dag
from tests.faults.catalogue import IS_FULL
from tests.faults.injection import FaultPoints
from tests.faults.nodes import ServerContainer, WorkerContainer
from tests.processes import wait_until
from tests.servers import PrivateMariaDB, PrivatePostgres, PrivateRabbitMQ, PrivateRedis, PrivateServer

BROKERS: dict[str, type[PrivateServer]] = {"redis": PrivateRedis, "rabbitmq": PrivateRabbitMQ}
STORES: dict[str, type[PrivateServer] | None] = {
    "sqlite": None,
    "postgresql": PrivatePostgres,
    "mariadb": PrivateMariaDB,
}
_LOG_LINES = 80
_WORKER_APP = Path(__file__).with_name("worker_app.py")


@dataclass(frozen=True)
class StoreUnderTest:
    """Where a test's runs are kept: in tables of its own; ``server`` may be killed, and is None for SQLite."""

    url: str
    prefix: str
    server: PrivateServer | None


@pytest.fixture(scope="session")
def private_server() -> Iterator[Callable[[type[PrivateServer]], PrivateServer]]:
    """The one server of a kind, up and running whatever the test before did to it."""
    with ExitStack() as opened:

        @cache
        def open_server(kind: type[PrivateServer]) -> PrivateServer:
            return opened.enter_context(services.open_private(kind()))

        def revive(kind: type[PrivateServer]) -> PrivateServer:
            server = open_server(kind)
            server.resume()
            if not server.is_running:
                server.start()
            server.wait_ready()
            return server

        yield revive


# -- pytest-celery's fixtures


@pytest.fixture(params=BROKERS)
def celery_broker(
    request: pytest.FixtureRequest, private_server: Callable[[type[PrivateServer]], PrivateServer]
) -> CeleryTestBroker:
    """A broker that the test may kill, freeze and restart."""
    return CeleryTestBroker(ServerContainer(private_server(BROKERS[request.param])))


@pytest.fixture
def celery_backend() -> None:
    """None: runs need no result backend."""


@pytest.fixture
def celery_backend_cluster() -> None:
    """None: runs need no result backend."""


@pytest.fixture
def celery_worker(start_worker: Callable[..., CeleryTestWorker]) -> CeleryTestWorker:
    """One worker, which consumes."""
    worker = start_worker()
    worker.ready()
    return worker


@pytest.fixture
def celery_worker_cluster(start_worker: Callable[..., CeleryTestWorker]) -> CeleryWorkerCluster:
    """Two workers, which consume."""
    cluster = CeleryWorkerCluster(start_worker(), start_worker())
    cluster.ready()
    return cluster


@pytest.fixture
def celery_setup_app(dag: Dagabaaz) -> Iterator[Celery]:
    """The app of the test's own process. pytest-celery makes it the current one: that ends with the test."""
    before = get_current_app()
    yield dag.app
    before.set_current()


# -- what is under test


@pytest.fixture(params=STORES)
def store(
    request: pytest.FixtureRequest, tmp_path: Path, private_server: Callable[[type[PrivateServer]], PrivateServer]
) -> StoreUnderTest:
    """A store without runs."""
    return make_store(request.param, tmp_path, private_server)


def make_store(
    name: str, directory: Path, private_server: Callable[[type[PrivateServer]], PrivateServer]
) -> StoreUnderTest:
    """A place for runs, on a server or in a directory, without tables so far."""
    kind = STORES[name]
    if kind is None:
        return StoreUnderTest(f"sqlite:///{directory / 'runs.sqlite3'}", "dagabaaz_", None)
    server = private_server(kind)
    return StoreUnderTest(server.url, f"t{uuid.uuid4().hex[:8]}_", server)


@pytest.fixture
def more_conf() -> dict[str, Any]:
    """Celery settings in which a test differs; override it."""
    return {}


@pytest.fixture
def conf(
    store: StoreUnderTest,
    celery_broker_cluster: CeleryBrokerCluster,
    more_conf: dict[str, Any],
    tmp_path: Path,
) -> dict[str, Any]:
    """Settings of the workers and of the test's own process: everything is noticed and mended within seconds."""
    return {
        "broker_url": celery_broker_cluster.config()["host_urls"][0],
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,
        "task_default_queue": f"faults-{uuid.uuid4().hex[:8]}",
        "dagabaaz_store_url": store.url,
        "dagabaaz_table_prefix": store.prefix,
        "dagabaaz_files_dir": str(tmp_path / "files"),
        "dagabaaz_sweep_interval": 0.5,
        "dagabaaz_dead_after": 3.0,
        "dagabaaz_resend_after": 3.0,
        **more_conf,
    }


@pytest.fixture
def points(tmp_path: Path) -> FaultPoints:
    """Where processes are to fail: reached by every worker, and by the test's own where it installs them."""
    return FaultPoints(tmp_path / "points")


@pytest.fixture
def journal(tmp_path: Path, points: FaultPoints) -> Journal:
    """What bodies wrote down, in every worker."""
    return Journal(tmp_path / "journal", points)


@pytest.fixture
def dag(conf: dict[str, Any], journal: Journal) -> Iterator[Dagabaaz]:
    """The test's own side of the app."""
    dag = make_dag(conf, journal)
    yield dag
    dag.close()
    dag.app.close()


@pytest.fixture
def start_worker(
    conf: dict[str, Any], journal: Journal, points: FaultPoints, tmp_path: Path
) -> Iterator[Callable[..., CeleryTestWorker]]:
    """Start one more worker: ``start_worker("-P", "solo", app=file, environment={}, **settings)``, all optional.

    What is left of the workers is killed afterwards. The end of their logs is shown with a test that failed.
    """
    started: list[WorkerContainer] = []

    def start(
        *options: str, app: Path = _WORKER_APP, environment: Mapping[str, str] | None = None, **settings: Any
    ) -> CeleryTestWorker:
        container = WorkerContainer(
            app,
            {
                CONF_VARIABLE: json.dumps(conf | settings),
                JOURNAL_VARIABLE: str(journal.path),
                POINTS_VARIABLE: str(points.directory),
                **(environment or {}),
            },
            *(options or ("-c", "2")),
            queue=conf["task_default_queue"],
            directory=tmp_path,
            name=f"w{len(started) + 1}",
        )
        started.append(container)
        container.start()
        return CeleryTestWorker(container, None)

    yield start
    for container in started:
        container.teardown()
        lines = container.logs().splitlines()[-_LOG_LINES:]
        sys.stderr.write("\n".join([f"-- {container.nodename}", *lines, ""]))


@pytest.fixture
def opened(dag: Dagabaaz) -> Iterator[SqlStore]:
    """The store, to look into."""
    conf = dag.app.conf
    with closing(SqlStore(conf.dagabaaz_store_url, prefix=conf.dagabaaz_table_prefix)) as store:
        store.id  # noqa: B018  # opening it writes, and must not wait for a worker that a test has frozen
        yield store


# -- what holds for every fault


@pytest.fixture
def scale() -> Callable[[int, int], int]:
    """``scale(short, full)``: how much of something this form of the suite does."""
    return lambda short, full: full if IS_FULL else short


@pytest.fixture
def record(request: pytest.FixtureRequest) -> Callable[[str, float, str], None]:
    """``record("dispatched again after", 4.2, "s")``: a figure for the table of results, never asserted."""
    return lambda label, value, unit: request.node.user_properties.append(("figure", (label, value, unit)))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """Let ``soundness`` know whether the test passed."""
    report = yield
    if call.when == "call":
        item.stash[_PASSED] = call.excinfo is None
    return report


_PASSED = pytest.StashKey[bool]()


@pytest.fixture(autouse=True)
def soundness(request: pytest.FixtureRequest) -> Iterator[None]:
    """Whatever happened, nothing is left undone and no invariant of the store is broken, once its workers had time.

    ``@pytest.mark.unfinished`` tells of a test that leaves runs open on purpose: then only invariants count.
    """
    if "dag" not in request.fixturenames:
        yield
        return
    dag: Dagabaaz = request.getfixturevalue("dag")
    if "start_worker" in request.fixturenames:
        request.getfixturevalue("start_worker")  # so that workers outlive this check
    yield
    if not request.node.stash.get(_PASSED, False):
        return
    at_rest = request.node.get_closest_marker("unfinished") is None
    found: list[str] = []
    with closing(SqlStore(dag.app.conf.dagabaaz_store_url, prefix=dag.app.conf.dagabaaz_table_prefix)) as store:

        def look() -> bool:
            found[:] = find_violations(store, at_rest=at_rest)
            return not found

        try:
            wait_until(look, "the store is at rest and sound", timeout=30)
        except AssertionError as error:
            raise AssertionError("\n".join([str(error), *found[:20]])) from None

"""The suite runs once for each harness named here.

Tables take long to make on a server: there its tests share one set of them, each with runs of its own.
"""

import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from functools import cache

import pytest

from tests import services
from tests.contract.bare_store import BareStore
from tests.contract.harness import HarnessFactory, StoreHarness
from tests.contract.memory_harness import MemoryHarness, open_memory_harness
from tests.contract.sql_harness import SqlHarness, open_sqlite_harness

HARNESSES: dict[str, HarnessFactory] = {
    "memory": open_memory_harness,
    "sqlite": open_sqlite_harness,
}
SERVERS: dict[str, Callable[[], str]] = {
    "postgresql": services.postgres_url,
    "mariadb": services.mysql_url,
}


@pytest.fixture(params=[*HARNESSES, *SERVERS])
def harness(request: pytest.FixtureRequest) -> Iterator[StoreHarness]:
    """A store: of the test's own, or with the runs of other tests beside its own."""
    if request.param in SERVERS:
        yield request.getfixturevalue("harness_on")(request.param)
        return
    with HARNESSES[request.param]() as opened:
        yield opened


@pytest.fixture(scope="module", params=HARNESSES)
def shared_harness(request: pytest.FixtureRequest) -> Iterator[StoreHarness]:
    """One store for many runs, where a test starts more runs than there can be stores."""
    with HARNESSES[request.param]() as opened:
        yield opened


@pytest.fixture(scope="session", params=SERVERS)
def server_harness(request: pytest.FixtureRequest, harness_on: Callable[[str], StoreHarness]) -> StoreHarness:
    """Like ``shared_harness``, on a server, where every run takes longer."""
    return harness_on(request.param)


@pytest.fixture(scope="session")
def harness_on() -> Iterator[Callable[[str], StoreHarness]]:
    """The one store on the server so named, under tables of its own, which are dropped in the end."""
    with ExitStack() as opened:

        @cache
        def open_harness(name: str) -> StoreHarness:
            harness = SqlHarness(SERVERS[name](), prefix=f"t{uuid.uuid4().hex[:8]}_")
            return opened.enter_context(closing(harness))

        yield open_harness


@pytest.fixture(scope="module")
def bare_harness() -> StoreHarness:
    """The engine over 20 methods and lazy collections."""
    return MemoryHarness(view=BareStore)

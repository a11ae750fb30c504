"""A store that the races of a module share, seen as two processes see it, and a crew of more of them."""

from collections.abc import Callable, Iterator
from contextlib import closing

import pytest

from dagabaaz_celery.app import Dagabaaz
from tests.faults.conftest import STORES, StoreUnderTest, make_store
from tests.faults.races.racers import Crew, open_dag
from tests.servers import PrivateServer


@pytest.fixture(scope="module", params=STORES)
def store(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    private_server: Callable[[type[PrivateServer]], PrivateServer],
) -> StoreUnderTest:
    """One for many races, each with a run of its own: making tables takes longer than a race."""
    return make_store(request.param, tmp_path_factory.mktemp("store"), private_server)


@pytest.fixture(scope="module")
def crew() -> Iterator[Crew]:
    """Processes that race: one alone would take turns on SQLite."""
    with Crew(processes=3) as opened:
        yield opened


@pytest.fixture(scope="module")
def here(store: StoreUnderTest) -> Iterator[Dagabaaz]:
    """The test's own side of the store."""
    with closing(open_dag(store.url, store.prefix)) as opened:
        yield opened


@pytest.fixture(scope="module")
def there(store: StoreUnderTest) -> Iterator[Dagabaaz]:
    """A second store object, as another process has one."""
    with closing(open_dag(store.url, store.prefix)) as opened:
        yield opened

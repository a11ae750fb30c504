"""Fixtures and an option for pytest, there wherever the package is installed; nothing is imported before it is used."""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

_UPDATE = "--dagabaaz-update-golden"
#: Asked for by dagabaaz_celery.testing.golden.
_VARIABLE = "DAGABAAZ_UPDATE_GOLDEN"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option that has golden files written."""
    parser.getgroup("dagabaaz").addoption(
        _UPDATE, action="store_true", help="write what assert_golden compares, in place of comparing it"
    )


def pytest_configure(config: pytest.Config) -> None:
    """Hand the option on to where it is asked for, in the processes of pytest-xdist too."""
    if config.getoption(_UPDATE, default=False):
        os.environ[_VARIABLE] = "1"


def pytest_unconfigure(config: pytest.Config) -> None:
    """Leave nothing behind."""
    if config.getoption(_UPDATE, default=False):
        os.environ.pop(_VARIABLE, None)


@pytest.fixture
def embedded_worker() -> Iterator[Callable[..., Any]]:
    """Start a worker in this process that ends with the test: ``embedded_worker(app)``."""
    from dagabaaz_celery.testing import workers  # noqa: PLC0415  # costs nothing where it is not used

    with ExitStack() as started:
        yield lambda app, **options: started.enter_context(workers.embedded_worker(app, **options))


@pytest.fixture
def dagabaaz_clock() -> Any:
    """A clock that the test moves, for ``run_inline(clock=...)``."""
    from dagabaaz_celery.testing.clock import Clock  # noqa: PLC0415  # costs nothing where it is not used

    return Clock()

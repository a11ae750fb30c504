"""What holds for every test."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

# Here, because under xdist the process that reports reads no other conftest.
from tests.faults.catalogue import (  # noqa: F401
    pytest_collection_modifyitems,
    pytest_runtest_logreport,
    pytest_terminal_summary,
)


@pytest.fixture(scope="session", autouse=True)
def temporary_files() -> Iterator[None]:
    """Temporary stores go where this fixture clears up: a test process does not always end as its exit handlers hope.

    The directory is open to other users, as which some tests run database servers.
    """
    before, directory = tempfile.tempdir, Path(tempfile.mkdtemp(prefix="dagabaaz-tests-"))
    directory.chmod(0o755)
    tempfile.tempdir = str(directory)
    yield
    tempfile.tempdir = before
    shutil.rmtree(directory, ignore_errors=True)

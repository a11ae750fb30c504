"""What holds for every test."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# Here, because under xdist the process that reports reads no other conftest.
from tests.faults.catalogue import (  # noqa: F401
    pytest_collection_modifyitems,
    pytest_runtest_logreport,
    pytest_terminal_summary,
)

# How long an example takes is the machine's affair, on which others may be busy.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")


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

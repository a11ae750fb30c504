"""Random graphs through random orders of everything that may happen to a run, beside a small model of what is to come.

A short search runs with every ``make test``; ``DAGABAAZ_FAULTS=full`` makes it long.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.stateful.memory_machine import MemoryMachine
from tests.stateful.sql_machine import POLICY, SqlMachine
from tests.stateful.worlds import Clock, LossyStore

IS_FULL = os.environ.get("DAGABAAZ_FAULTS") == "full"
PATIENCE = 3600 if IS_FULL else 600


def search(examples: int, steps: int) -> settings:
    """So many stories of so many steps; in full many more of twice the length."""
    return settings(
        max_examples=examples * 20 if IS_FULL else examples,
        stateful_step_count=steps * 2 if IS_FULL else steps,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        print_blob=True,
    )


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(tmp_path: Path, clock: Clock) -> Iterator[LossyStore]:
    opened = LossyStore(f"sqlite:///{tmp_path / 'runs.sqlite3'}", clock, policy=POLICY)
    yield opened
    opened.close()


@pytest.mark.timeout(PATIENCE)
def test_the_sqlite_store_does_what_the_model_says(store: LossyStore, clock: Clock):
    run_state_machine_as_test(lambda: SqlMachine(store, clock), settings=search(15, 40))


@pytest.mark.timeout(PATIENCE)
def test_the_store_in_memory_does_what_the_model_says():
    run_state_machine_as_test(MemoryMachine, settings=search(40, 40))

"""What tests of flows give their actions, and what they make of their journal."""

from pathlib import Path
from typing import Any

import pytest

from dagabaaz_celery.flow import DagaFlow
from tests.integration.celery_support import PATIENCE
from tests.integration.flow_actions import Trip


def make_trip(directory: Path, **misbehave: str) -> Trip:
    """The input of a booking with a journal in the directory: who misbehaves in which way (undo_car: its undoing)."""
    named = {name.replace("_", " "): how for name, how in misbehave.items()}
    return Trip(journal=str(directory / "journal"), misbehave=named)


def let_go(trip: Trip) -> None:
    """Let the actions go on that wait."""
    Path(f"{trip.journal}.go").touch()


def read_journal(trip: Trip) -> list[str]:
    """What the actions wrote so far."""
    journal = Path(trip.journal)
    return journal.read_text().splitlines() if journal.exists() else []


def find_done(trip: Trip, verb: str) -> list[str]:
    """The actions of which the journal says this, in order."""
    return [line.split()[1] for line in read_journal(trip) if line.split()[0] == verb]


def fail(flow: DagaFlow[Any, Any], given: Any) -> tuple[Exception, ...]:
    """The errors of a run that fails."""
    with pytest.raises(ExceptionGroup) as caught:
        flow.run(given, timeout=PATIENCE)
    assert caught.value.message == "DagaFlowError"
    return caught.value.exceptions

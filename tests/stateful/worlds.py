"""What the machines need beyond a store: a clock that they move, answers that get lost, and the artifacts of bodies."""

import itertools
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from sqlalchemy import Connection, event, select

from dagabaaz_celery.models import DagNode, TaskArtifact
from dagabaaz_celery.stores.sql.dialects import now
from dagabaaz_celery.stores.sql.store import SqlStore
from tests.stateful.model import Emitted, Key, RunModel

T = TypeVar("T")
Row = TypeVar("Row")

_DAYS_TO_1970 = 2440587.5
_SECONDS_IN_A_DAY = 86_400.0


class Clock:
    """The database's clock, in seconds; it goes on only when told to."""

    def __init__(self) -> None:
        self.now = 1_700_000_000.0

    def tick(self, seconds: float = 0.001) -> float:
        self.now += seconds
        return self.now

    def julian_day(self, _moment: str) -> float:
        """SQLite's function of this name, for this clock."""
        return _DAYS_TO_1970 + self.now / _SECONDS_IN_A_DAY


class AnswerLost(Exception):
    """A transaction committed, and whoever asked for it does not hear of that."""


class LossyStore(SqlStore):
    """A store in SQLite on the test's clock, whose answers get lost when the test wants it."""

    def __init__(self, url: str, clock: Clock, **options: Any) -> None:
        super().__init__(url, **options)
        self._commits_left: int | None = None
        self.commits = 0

        @event.listens_for(self.database.engine, "connect")
        def use_clock(connection: sqlite3.Connection, _record: Any) -> None:
            connection.create_function("julianday", 1, clock.julian_day)

        with self.read() as connection:
            told = connection.execute(select(now())).scalar_one()
        assert abs(told / 1e6 - clock.now) < 0.001, "the store does not tell the time by julianday any more"

    def lose_answer(self, call: Callable[[], object], *, commits: int = 1) -> bool:
        """Make a call whose answer is lost at its so many-th commit; whether there were so many."""
        self._commits_left = commits
        try:
            call()
        except AnswerLost:
            return True
        finally:
            self._commits_left = None
        return False

    def transact(self, work: Callable[[Connection], T]) -> T:
        result = super().transact(work)
        self.commits += 1
        if self._commits_left is not None:
            self._commits_left -= 1
            if self._commits_left == 0:
                raise AnswerLost
        return result

    def clear(self) -> None:
        """Forget every run."""
        tables = self.tables
        with self.database.write() as connection:
            for table in (tables.run, tables.node, tables.task, tables.attempt, tables.artifact, tables.owed):
                connection.execute(table.delete())
            connection.execute(tables.worker.delete())


class Producer:
    """Makes what bodies emit: no two artifacts of one name, no two sizes alike."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)

    def emit(self, run: RunModel, nodes: Sequence[DagNode], key: Key, traits: Sequence[int]) -> list[Emitted]:
        """One artifact for each trait, which chooses its kind."""
        made = []
        for trait in traits:
            number = next(self._numbers)
            name = f"{nodes[key.node].slug}{number}{('.mp4', '.srt', '.bin')[trait % 3]}"
            size = None if trait == 11 else number * 97 % 10_007
            made.append(Emitted(name, size, number % 2 == 0, key.node, run.find_origin(key, name)))
        return made


def to_artifacts(emitted: Sequence[Emitted]) -> list[TaskArtifact]:
    """What a plugin returns for these."""
    return [
        TaskArtifact(
            file_name=artifact.name, file_size=artifact.size, metadata={"even": True} if artifact.is_even else {}
        )
        for artifact in emitted
    ]


def read_names(given: Mapping[str, Any], run_input: Mapping[str, Any]) -> list[str]:
    """Names of the artifacts in a task's input, sorted; none when it is the run input."""
    if "artifacts" in given:
        return sorted(artifact["file_name"] for artifact in given["artifacts"])
    if "file_name" in given:
        return [given["file_name"]]
    assert given == run_input
    return []


def pick(rows: Sequence[Row], number: int) -> Row:
    """One of these, by a number that may be larger than there are."""
    return rows[number % len(rows)]

"""What a barrier does, whatever the database; and what its rows are."""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from dagabaaz_celery.stores.sql.tables import new_id
from tests.benchmarks.counts import COMMIT, STATEMENT

PREFIX = "limit_"
#: The columns of each table that a launch fills; the others are null.
COLUMNS = {
    "node": ("run_id", "node_index", "status", "tasks_total", "tasks_done", "launch_cursor"),
    "task": (
        *("id", "run_id", "node_index", "ordinal", "status", "attempt_id"),
        *("number", "retries", "recoveries", "resends"),
    ),
    "artifact": ("id", "run_id", "node_index", "task_id", "task_ordinal", "ordinal", "shape", "metadata"),
}
_IDS = {"id", "run_id", "task_id", "attempt_id"}


@dataclass(frozen=True)
class Row:
    """A task that was launched."""

    task_id: str
    run_id: str
    stage: int
    attempt_id: str


class Barrier(ABC):
    """Claims, outcomes and launches on one connection, which belongs to one process."""

    def __init__(self, note: Callable[[str], None] | None = None) -> None:
        self._note = note

    def start(self, stages: Sequence[int]) -> list[Row]:
        """A run whose first stage is launched."""
        run_id = new_id()
        self.insert("node", [(run_id, stage, "launched", width, 0, width) for stage, width in enumerate(stages)])
        return self.launch(run_id, 0, stages[0])

    def launch(self, run_id: str, stage: int, width: int) -> list[Row]:
        """The tasks of a stage, and what each is to take where they are many."""
        rows = [Row(new_id(), run_id, stage, new_id()) for _ in range(width)]
        if width > 1:
            self.insert("artifact", [self._source_artifact(row, ordinal) for ordinal, row in enumerate(rows)])
        self.insert(
            "task",
            [
                (row.task_id, run_id, stage, ordinal, "pending", row.attempt_id, 1, 0, 0, 0)
                for ordinal, row in enumerate(rows)
            ],
        )
        return rows

    @abstractmethod
    def claim(self, attempt_id: str, token: str) -> bool:
        """Whether this is the one who may run the attempt."""

    @abstractmethod
    def complete(self, row: Row, token: str, metadata: str) -> int:
        """Record the outcome with one artifact; how many tasks of the stage are done by now, 0 when refused."""

    @abstractmethod
    def insert(self, table: str, rows: Sequence[tuple[Any, ...]]) -> None:
        """Insert many rows at once."""

    def _source_artifact(self, row: Row, ordinal: int) -> tuple[Any, ...]:
        return (new_id(), row.run_id, row.stage - 1, row.task_id, 0, ordinal, "many", json.dumps({"n": ordinal}))

    def _count(self, statements: int, commits: int = 1) -> None:
        if self._note is not None:
            for _ in range(statements):
                self._note(STATEMENT)
            for _ in range(commits):
                self._note(COMMIT)


def build_insert(table: str, mark: str) -> str:
    """INSERT of one row into a table, with the driver's mark for each value."""
    columns = COLUMNS[table]
    return f"INSERT INTO {PREFIX}{table} ({', '.join(columns)}) VALUES ({', '.join([mark] * len(columns))})"


def to_raw_ids(table: str, row: Sequence[Any]) -> tuple[Any, ...]:
    """A row whose ids are as databases keep them that have no type for ids."""
    return tuple(to_raw(value) if column in _IDS else value for column, value in zip(COLUMNS[table], row, strict=True))


def to_raw(value: str) -> bytes:
    """The 16 bytes of an id."""
    return bytes.fromhex(value.replace("-", ""))

"""Counting what processes send: messages with their bytes, statements and commits. Never while time is measured."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kombu.messaging import Producer
from sqlalchemy import Engine, event

#: What is counted, each with the letter that stands for it in the file.
MESSAGE, STATEMENT, COMMIT = "m", "s", "c"


@dataclass(frozen=True)
class Counts:
    """What was sent: to the broker, with bodies and headers as they travel, and to the database.

    BEGIN and COMMIT are no statements here, and one that is sent with many rows is one.
    """

    messages: int = 0
    message_bytes: int = 0
    statements: int = 0
    commits: int = 0


class CountFile:
    """A file to which every process appends what it sends, a line for each."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def note(self, what: str, size: int = 0) -> None:
        """Count one more."""
        os.write(self._file, f"{what} {size}\n".encode())

    def take(self) -> Counts:
        """What was counted since the last call."""
        lines = [line.split() for line in self.path.read_text().splitlines()]
        os.truncate(self.path, 0)
        sizes: dict[str, list[int]] = {MESSAGE: [], STATEMENT: [], COMMIT: []}
        for what, size in lines:
            sizes[what].append(int(size))
        return Counts(len(sizes[MESSAGE]), sum(sizes[MESSAGE]), len(sizes[STATEMENT]), len(sizes[COMMIT]))


@contextmanager
def count_sent(file: CountFile) -> Iterator[None]:
    """Count everything that this process sends meanwhile, whoever sends it."""
    publish = Producer._publish

    def note_statement(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        if not statement.startswith("BEGIN"):
            file.note(STATEMENT)

    def note_commit(connection: Any) -> None:
        file.note(COMMIT)

    def counted(self: Producer, body: Any, priority: Any, content_type: Any, content_encoding: Any, *more: Any) -> Any:
        headers, properties = more[0], more[1]
        text = body if isinstance(body, bytes) else str(body).encode()
        file.note(MESSAGE, len(text) + len(json.dumps([headers, properties], default=str)))
        return publish(self, body, priority, content_type, content_encoding, *more)

    Producer._publish = counted
    event.listen(Engine, "before_cursor_execute", note_statement)
    event.listen(Engine, "commit", note_commit)
    try:
        yield
    finally:
        Producer._publish = publish
        event.remove(Engine, "before_cursor_execute", note_statement)
        event.remove(Engine, "commit", note_commit)

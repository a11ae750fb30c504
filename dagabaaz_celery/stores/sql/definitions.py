"""Definitions by content hash, parsed once for a process: a thousand runs of one pipeline share one entry."""

import os
import threading
from dataclasses import dataclass

from sqlalchemy import Connection

from dagabaaz_celery.errors import StoreError
from dagabaaz_celery.pipeline import Definition
from dagabaaz_celery.stores.sql.database import call_while_alive
from dagabaaz_celery.stores.sql.runs import RunRows
from dagabaaz_celery.topology import RunTopology


@dataclass(frozen=True, slots=True)
class CachedDefinition:
    """A definition and the topology computed from it."""

    definition: Definition
    topology: RunTopology

    @classmethod
    def build(cls, definition: Definition) -> "CachedDefinition":
        """Compute the topology once."""
        return cls(definition, RunTopology.build(definition.nodes, definition.is_passthrough))


class DefinitionCache:
    """Read-through cache of definitions; past its size the one that came first goes first."""

    def __init__(self, runs: RunRows, max_entries: int = 500) -> None:
        self._runs = runs
        self._max_entries = max_entries
        self._entries: dict[str, CachedDefinition] = {}
        self._reset_lock()
        os.register_at_fork(after_in_child=call_while_alive(self._reset_lock))

    def _reset_lock(self) -> None:
        """A forked child starts with a lock that nobody holds."""
        self._lock = threading.Lock()

    def peek(self, digest: str) -> CachedDefinition | None:
        """The definition if it is at hand."""
        return self._entries.get(digest)

    def get(self, connection: Connection, digest: str) -> CachedDefinition:
        """The definition with this hash, which a run refers to."""
        found = self._entries.get(digest)
        if found is not None:
            return found
        body = self._runs.get_definition_body(connection, digest)
        if body is None:
            raise StoreError(
                f"The store has runs of a definition {digest[:12]}… that it does not hold: "
                "rows were deleted by hand. Restore the definition table from a backup."
            )
        return self.put(digest, Definition.from_json(body))

    def put(self, digest: str, definition: Definition) -> CachedDefinition:
        """Keep a definition that is at hand."""
        entry = CachedDefinition.build(definition)
        with self._lock:
            self._entries[digest] = entry
            while len(self._entries) > self._max_entries:
                del self._entries[next(iter(self._entries))]
        return entry

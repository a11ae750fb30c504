"""A store with the 20 methods of DagStore and nothing more, whose collections are lazy."""

from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from typing import Any

from dagabaaz_celery.store import DagStore

DAG_STORE_METHODS = (
    "get_run_status",
    "get_barrier_state",
    "get_run_nodes",
    "try_claim_run_terminal",
    "set_run_progress",
    "get_task_context",
    "get_completed_node_indices",
    "get_launched_node_indices",
    "get_node_summary",
    "try_claim_node_launch",
    "dispatch_task",
    "dispatch_skipped_task",
    "dispatch_filtered_task",
    "dispatch_failed_task",
    "dispatch_grouped_task",
    "fail_run",
    "mark_task_failed",
    "mark_task_crashed",
    "cancel_remaining_tasks",
    "get_artifacts_by_node_indices",
)


class LazyNodes:
    """Answers ``in`` and ``len`` by the store as it is at that moment, and cannot be read in any other way."""

    def __init__(self, read: Callable[[], AbstractSet[int]], note: Callable[[str], None]) -> None:
        self._read = read
        self._note = note

    def __contains__(self, index: object) -> bool:
        self._note("in")
        return index in self._read()

    def __len__(self) -> int:
        self._note("len")
        return len(self._read())

    __iter__ = None  # not even by index: ``in`` and ``len`` are all there is


class LazySummary:
    """A mapping that can only be asked ``get``, by the store as it is at that moment."""

    def __init__(self, read: Callable[[], Mapping[int, Any]], note: Callable[[str], None]) -> None:
        self._read = read
        self._note = note

    def get(self, index: int) -> Any:
        self._note("get")
        return self._read().get(index)


class BareStore:
    """DagStore's methods over another store; ``calls`` names every call and every question to a collection."""

    def __init__(self, inner: DagStore) -> None:
        self._inner = inner
        self.calls: list[str] = []


def _add_method(name: str) -> None:
    def call(self: BareStore, *args: Any) -> Any:
        self.calls.append(name)
        method = getattr(self._inner, name)
        if name in ("get_completed_node_indices", "get_launched_node_indices"):
            return LazyNodes(lambda: method(*args), self.calls.append)
        if name == "get_node_summary":
            return LazySummary(lambda: method(*args), self.calls.append)
        return method(*args)

    setattr(BareStore, name, call)


for _name in DAG_STORE_METHODS:
    _add_method(_name)

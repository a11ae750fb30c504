"""A SQL store in a file, and words to drive it."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import event

from dagabaaz_celery.constants import FanMode
from dagabaaz_celery.json_door import check_json
from dagabaaz_celery.models import DagNode, TaskArtifact
from dagabaaz_celery.pipeline import Definition, PluginSnapshot
from dagabaaz_celery.stores.sql.drivers import Driver, Sent, find_driver
from dagabaaz_celery.stores.sql.records import NewArtifact
from dagabaaz_celery.stores.sql.store import Claimed, SqlStore, Started, Work
from dagabaaz_celery.stores.sql.tables import new_id


def define(*nodes: DagNode) -> Definition:
    """A definition whose plugins are named in its nodes."""
    plugins = {node.plugin: PluginSnapshot(task_name=node.plugin) for node in nodes}
    return Definition(name="p", nodes=list(nodes), plugins=plugins)


def node(slug: str, *depends_on: str, fan_mode: FanMode = FanMode.SINGLE, **fields: Any) -> DagNode:
    """A node of the plugin "work"."""
    return DagNode(slug=slug, plugin="work", depends_on=list(depends_on), fan_mode=fan_mode, **fields)


def start(store: SqlStore, *nodes: DagNode, **given: Any) -> Started:
    """Start a run of these nodes."""
    return store.start(define(*nodes), "{}", run_id=given.pop("run_id", None) or new_id(), **given)


def claim(store: SqlStore, attempt_id: str, worker_id: str | None = None) -> Work:
    """Claim an attempt that must be claimable."""
    claimed = store.claim(attempt_id, new_id(), worker_id)
    assert isinstance(claimed, Claimed), claimed
    return claimed.work


def records(count: int) -> list[NewArtifact]:
    """So many artifacts."""
    return [
        NewArtifact(TaskArtifact(metadata={"n": n}), "record", check_json({"n": n}, "metadata")) for n in range(count)
    ]


@contextmanager
def counting_statements(store: SqlStore) -> Iterator[list[str]]:
    """The statements that the store sends meanwhile, BEGIN and COMMIT left out; an executemany counts once."""
    sent: list[str] = []

    def note(connection: Any, cursor: Any, statement: str, parameters: Any, context: Any, executemany: bool) -> None:
        if not statement.startswith("BEGIN"):
            sent.append(" ".join(statement.split()))

    event.listen(store.database.engine, "before_cursor_execute", note)
    try:
        yield sent
    finally:
        event.remove(store.database.engine, "before_cursor_execute", note)


def attempts_of(started_or_aftermath: Any) -> Sequence[str]:
    """Attempt ids that are to be published."""
    aftermath = getattr(started_or_aftermath, "aftermath", started_or_aftermath)
    return [dispatch.attempt_id for dispatch in aftermath.publish]


@contextmanager
def noting_round_trips(note: Callable[[Sequence[Sent]], object]) -> Iterator[None]:
    """Hand over what was sent together, after each time; what ``note`` raises cuts the sender off."""

    def wrap(kind: type[Driver], name: str, read_batch: Callable[[Any], Sequence[Sent]]) -> None:
        original = getattr(kind, name)

        def send(driver: Driver, cursor: Any, given: Any) -> Any:
            answer = original(driver, cursor, given)
            note(read_batch(given))
            return answer

        patched.setattr(kind, name, send)

    with pytest.MonkeyPatch.context() as patched:
        for driver in ("pysqlite", "psycopg", "pymysql"):
            wrap(type(find_driver(driver)), "send_one", lambda sent: [sent])
        for driver in ("psycopg", "pymysql"):
            wrap(type(find_driver(driver)), "send_together", list)
        yield

"""Children that are forked while another thread of their parent holds a lock."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dagabaaz_celery import topology
from dagabaaz_celery.models import DagNode
from dagabaaz_celery.pipeline import Definition, PluginSnapshot
from dagabaaz_celery.stores.sql.store import SqlStore


def define() -> Definition:
    return Definition(
        name="p", nodes=[DagNode(slug="a", plugin="work")], plugins={"work": PluginSnapshot(task_name="work")}
    )


def fork_and_do(work: Callable[[], object]) -> int:
    """The exit status of a forked child that does something: 0 when it could."""
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException:
            os._exit(1)
        os._exit(0)
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return -signal.SIGKILL


@pytest.fixture
def store(tmp_path: Path) -> Any:
    made = SqlStore(f"sqlite:///{tmp_path / 'runs.sqlite3'}")
    yield made
    made.close()


def test_a_child_caches_definitions(store: SqlStore):
    with store.definitions._lock:
        assert fork_and_do(lambda: store.definitions.put("digest", define())) == 0


def test_a_child_opens_its_store(store: SqlStore):
    with store._opening:
        assert fork_and_do(lambda: store.id) == 0


def test_a_child_caches_topologies():
    nodes = define().nodes
    with topology._cache._lock:
        assert fork_and_do(lambda: topology.get_or_build("forked", lambda: nodes, lambda name: False)) == 0

"""Children that are forked while another thread of their parent holds a lock."""

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from celery.signals import before_task_publish

from dagabaaz_celery import topology
from dagabaaz_celery.app import Dagabaaz
from dagabaaz_celery.models import DagNode
from dagabaaz_celery.pipeline import Definition, Pipeline, PluginSnapshot
from dagabaaz_celery.stores.sql.store import SqlStore
from dagabaaz_celery.worker import forks
from dagabaaz_celery.worker.forks import fork_gate


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


def test_a_child_uses_celery_whatever_a_thread_that_publishes_holds(tmp_path: Path):
    """Celery's and kombu's objects share a lock for each of their cached properties."""
    app = Celery("forks", broker="memory://localhost/", set_as_current=False)
    app.conf.update(dagabaaz_store_url=f"sqlite:///{tmp_path / 'runs.sqlite3'}", task_default_queue=tmp_path.name)
    dag = Dagabaaz(app)
    dag.plugin(define, name="work")
    held, never = threading.Event(), threading.Event()

    def hold_a_lock(**_: Any) -> None:
        with Celery.amqp.lock:
            held.set()
            never.wait(0.5)

    before_task_publish.connect(hold_a_lock)
    starting = threading.Thread(target=lambda: dag.start(Pipeline("p", nodes=[DagNode(slug="a", plugin="work")])))
    starting.start()
    assert held.wait(10)

    assert fork_and_do(lambda: app.amqp.queues) == 0

    starting.join()
    before_task_publish.disconnect(hold_a_lock)
    dag.close()
    app.close()


def test_a_fork_does_not_wait_for_ever_for_a_thread_that_hangs(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(forks, "_PATIENCE", 0.1)
    inside, leave = threading.Event(), threading.Event()

    def hang() -> None:
        with fork_gate.inside():
            inside.set()
            leave.wait(30)

    hanging = threading.Thread(target=hang)
    hanging.start()
    assert inside.wait(10)

    assert fork_and_do(fork_gate.inside().__enter__) == 0

    leave.set()
    hanging.join()
    with fork_gate.inside():
        assert fork_and_do(lambda: None) == 0

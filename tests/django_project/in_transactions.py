"""Transactions of the project's: around what is asked of runs, and inside the bodies of plugins; in-memory broker."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import Task
from django.db import OperationalError, connection, transaction
from django.db.models import F
from sqlalchemy import event
from sqlalchemy.engine import Engine

from dagabaaz_celery.context import PluginContext
from dagabaaz_celery.contrib.django import dag, models
from dagabaaz_celery.errors import TransactionOpen
from dagabaaz_celery.models import DagNode, TaskArtifact
from dagabaaz_celery.pipeline import Pipeline
from dagabaaz_celery.run import Run
from dagabaaz_celery.stores.sql import drivers
from dagabaaz_celery.testing import assert_sound, embedded_worker
from dagabaaz_celery.worker.observers import Observer, Observers, RunFacts
from tests.django_project.orders.models import Order
from tests.processes import wait_until


class Gate:
    """Where a body waits inside its transaction."""

    def __init__(self) -> None:
        self.is_reached, self.is_open = threading.Event(), threading.Event()
        #: Whether it was opened before the body had enough of waiting.
        self.was_opened: bool | None = None

    def pass_through(self) -> None:
        self.is_reached.set()
        self.was_opened = self.is_open.wait(8)


_gates: list[Gate] = []


class AtomicTask(Task):  # type: ignore[misc]  # Celery ships no types
    """A base class that puts every body into a transaction."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with transaction.atomic():
            return super().__call__(*args, **kwargs)


class SilentTask(AtomicTask):
    """One that moreover lets no error out."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with contextlib.suppress(Exception):
            return super().__call__(*args, **kwargs)


def count_packed(order: int) -> None:
    Order.objects.filter(pk=order).update(packed=F("packed") + 1)


@dag.plugin(bind=True)
def pack_again(self: Task, order: int, throw: bool) -> str:
    """Pack in a transaction, from which the first attempt asks for another; without ``throw`` it raises by itself."""
    with transaction.atomic():
        count_packed(order)
        if not self.request.retries:
            self.retry(countdown=0, throw=throw)
            raise ValueError("something else goes wrong")
    return "packed"


@dag.plugin
def hold_open(order: int, context: PluginContext) -> None:
    """Tell how far it is inside a transaction, which stays open for a while, and again behind it."""
    with transaction.atomic():
        Order.objects.count()
        context.progress(1, 2)
        _gates[-1].pass_through()
    context.progress(2, 2)


@dag.plugin(base=AtomicTask)
def pack_atomic(order: int) -> None:
    """Pack in the transaction of the task's class."""
    count_packed(order)


@dag.plugin(base=SilentTask)
def pack_silently(order: int) -> None:
    """The same."""
    count_packed(order)


@dag.plugin
def look(order: int) -> int:
    """Read, and end the transaction that this began where autocommit is off."""
    count = Order.objects.count()
    if not connection.get_autocommit():
        transaction.commit()
    return count


@dag.plugin
def name_file(path: str) -> TaskArtifact:
    """Say that a file is the run's."""
    return TaskArtifact(file_path=path, file_name="label")


for name in ("pack_again", "hold_open", "pack_atomic", "pack_silently", "look", "name_file"):
    dag.register(Pipeline(name, nodes=[DagNode(slug="it", plugin=name)]))


@pytest.fixture
def gate() -> Iterator[Gate]:
    _gates.append(Gate())
    yield _gates[-1]
    _gates.pop().is_open.set()


@pytest.fixture
def no_autocommit() -> Iterator[None]:
    """DATABASES with AUTOCOMMIT off, in a thread that has asked nothing yet."""
    connection.close()
    connection.settings_dict["AUTOCOMMIT"] = False
    yield
    connection.close()
    connection.settings_dict["AUTOCOMMIT"] = True


# -- inside bodies


@pytest.mark.parametrize("throw", [True, False], ids=["raised by retry", "raised by the body"])
def test_a_retry_that_is_asked_for_in_a_transaction_outlives_its_rollback(throw: bool):
    order = Order.objects.create(item="tea")
    with embedded_worker(dag.app):
        run = dag.start("pack_again", {"order": order.pk, "throw": throw})
        assert run.wait(30) == "completed"
        assert_sound(dag)

    order.refresh_from_db()
    assert order.packed == 1, "the first attempt's was rolled back"
    (task,) = run.tasks()
    assert (task.attempt, task.retries, task.recoveries) == (2, 1, 0)


def test_progress_inside_a_transaction_is_passed_over_and_shown_behind_it(gate: Gate):
    gate.is_open.set()
    with embedded_worker(dag.app):
        run = dag.start("hold_open", {"order": 1})
        assert run.wait(30) == "completed"

    assert run.tasks()[0].progress == (2, 2)


def test_progress_inside_a_transaction_stands_in_nobodys_way(gate: Gate):
    with embedded_worker(dag.app):
        run = dag.start("hold_open", {"order": 1})
        wait_until(gate.is_reached.is_set, "the body is inside its transaction")
        with transaction.atomic():
            Order.objects.create(item="coffee")  # where SQLite would find its file locked
            assert models.Task.objects.select_for_update(nowait=True).get(run_id=run.id).status == "running"
        gate.is_open.set()
        assert run.wait(30) == "completed"

    assert gate.was_opened


@pytest.mark.parametrize("pipeline", ["pack_atomic", "pack_silently"])
def test_a_task_whose_class_opens_a_transaction_around_the_body_fails_and_says_what_to_do(pipeline: str):
    order = Order.objects.create(item="tea")
    with embedded_worker(dag.app):
        run = dag.start(pipeline, {"order": order.pk})
        assert run.wait(10) == "failed"
        assert_sound(dag)

    order.refresh_from_db()
    assert order.packed == 0
    assert run.error is not None
    assert run.error.type == "TransactionOpen"
    assert "Open it in the body: with transaction.atomic()" in run.error.message
    (task,) = run.tasks()
    assert (task.attempt, task.status) == (1, "failed")


# -- without autocommit


def test_without_autocommit_bodies_run_and_what_they_come_to_is_committed(no_autocommit: None):
    connection.settings_dict["AUTOCOMMIT"] = True  # for this thread's first query, not for the worker's
    run = dag.start("look", {"order": 1})
    connection.settings_dict["AUTOCOMMIT"] = False
    with embedded_worker(dag.app):
        assert run.wait(30) == "completed"
    assert run.result("it") == 0


@pytest.mark.parametrize(
    "change",
    [
        lambda run: dag.start("order", {"order": 2}),
        lambda run: dag.save(Pipeline("new", nodes=[DagNode(slug="it", plugin="look")])),
        lambda run: dag.cancel(pipeline="order"),
        lambda run: run.cancel(),
        lambda run: run.retry(),
        lambda run: run.rollback(),
        lambda run: run.pause(),
        lambda run: run.resume(),
    ],
    ids=["start", "save", "cancel many", "cancel", "retry", "rollback", "pause", "resume"],
)
def test_without_autocommit_nothing_is_changed(change: Callable[[Run], object], no_autocommit: None):
    """With the thread's first query still to come, and in an atomic block, whose end then commits nothing."""
    connection.settings_dict["AUTOCOMMIT"] = True
    run = dag.start("order", {"order": 1})
    connection.close()
    connection.settings_dict["AUTOCOMMIT"] = False

    with pytest.raises(TransactionOpen, match="Commit, switch autocommit on"):
        change(run)
    with pytest.raises(TransactionOpen, match="Commit, switch autocommit on"), transaction.atomic():
        change(run)

    assert (run.status, list(dag.runs()), "new" in dag.pipelines()) == ("running", [run], False)


# -- around what is asked


class Counted(list[Any]):
    """A list that counts how often somebody goes through it."""

    times = 0

    def __iter__(self) -> Iterator[Any]:
        self.times += 1
        return super().__iter__()


def test_many_starts_in_one_transaction_cost_no_more_each_than_few():
    """Each looks at the others of its transaction now and then only, and asks the database what the first asked."""
    starts, statements, costs = 200, 0, []

    def count(*_: Any) -> None:
        nonlocal statements
        statements += 1

    dag.start("order", {"order": 0})  # knows the definition from now on
    event.listen(Engine, "before_cursor_execute", count)
    try:
        with transaction.atomic():
            connection.run_on_commit = waiting = Counted(connection.run_on_commit)
            for number in range(starts):
                before = statements
                dag.start("order", {"order": number})
                costs.append(statements - before)
            assert len(waiting) == starts, "of each its commit's"
            looks = waiting.times
    finally:
        event.remove(Engine, "before_cursor_execute", count)

    assert max(costs[1:]) == min(costs[1:]), costs
    assert looks <= 2 * starts


def test_an_error_of_the_driver_reaches_the_app_as_djangos(monkeypatch: pytest.MonkeyPatch):
    """What is handed to the driver is not sent a second time to find out what its error means."""
    run = dag.start("order", {"order": 1})
    sent: list[str] = []

    def fail(driver: Any, cursor: Any, text: str, values: Any) -> None:
        sent.append(text)
        raise connection.Database.OperationalError("lost")

    with monkeypatch.context() as patched:
        for kind in (drivers.Driver, type(drivers.find_driver("psycopg"))):
            patched.setattr(kind, "send", fail)
        with pytest.raises(OperationalError, match="lost"), transaction.atomic():
            run.cancel()

    assert len(sent) == 1
    assert run.status == "running"


def test_prune_is_no_part_of_a_transaction(eager: None):
    run = dag.start("order", {"order": 1})
    with transaction.atomic():
        with pytest.raises(TransactionOpen, match="Nothing was deleted"):
            dag.prune(older_than=0)
        assert dag.prune(older_than=0, dry_run=True).runs == {"completed": 1}
    assert run.status == "completed"

    assert dag.prune(older_than=0).runs == {"completed": 1}


def test_a_callback_for_files_has_a_connection_of_its_own_time(
    eager: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A worker's thread lives for days: what is older than CONN_MAX_AGE goes before the callback, and after it."""
    seen: list[Any] = []

    def forget(run_id: str, paths: list[str]) -> None:
        Order.objects.count()
        seen.append((connection.connection, paths))

    monkeypatch.setattr(dag._runtime, "file_callbacks", [])
    dag.on_files_pruned(forget)
    (file := tmp_path / "label.txt").touch()
    dag.start("name_file", {"path": str(file)})
    connection.ensure_connection()
    old = connection.connection

    assert dag.prune(older_than=0).files == 1

    ((used, paths),) = seen
    assert paths == [str(file)]
    assert used is not old
    assert connection.connection is None


class Heard(Observer):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.ends: list[tuple[str, str]] = []

    def run_ended(self, run: RunFacts) -> None:
        self.ends.append((run.id, run.status.value))


def test_observers_hear_of_a_cancellation_once_it_is_committed(monkeypatch: pytest.MonkeyPatch):
    heard, observers = Heard(), Observers()
    observers.add(heard)
    monkeypatch.setattr(dag._runtime, "observers", observers)
    run = dag.start("order", {"order": 1})

    with contextlib.suppress(ZeroDivisionError), transaction.atomic():
        run.cancel()
        raise ZeroDivisionError
    assert (run.status, heard.ends) == ("running", [])

    with transaction.atomic():
        run.cancel()
        assert (run.status, heard.ends) == ("cancelled", [])
    assert heard.ends == [(run.id, "cancelled")]

"""Runs that are started in a project's transactions, and looked at through its models; in-memory broker."""

import contextlib
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.db import OperationalError, connection, connections, transaction
from django.test import Client

from dagabaaz_celery.app import Dagabaaz
from dagabaaz_celery.constants import RunStatus
from dagabaaz_celery.contrib.django import dag, models, signals
from dagabaaz_celery.doctor import diagnose
from dagabaaz_celery.errors import (
    KeyConflict,
    RunStateError,
    StoreReadOnly,
    TransactionOpen,
    UnknownRun,
    WaitRefused,
)
from dagabaaz_celery.stores.sql.owed import WorkerRow
from dagabaaz_celery.stores.sql.tables import new_id
from dagabaaz_celery.testing import assert_sound, embedded_worker
from tests.django_project.orders.models import Order


def count_messages() -> int:
    """How many messages wait in the broker."""
    with dag.app.connection_for_write() as broker:
        return broker.default_channel.queue_declare(queue="celery", passive=False).message_count


# -- started in a transaction


def test_a_view_that_raises_leaves_no_run_and_no_message():
    with pytest.raises(ValueError, match="something else"):
        Client().post("/orders/unless/", {"item": "tea"})

    assert (Order.objects.count(), models.Run.objects.count(), list(dag.runs()), count_messages()) == (0, 0, [], 0)


def test_a_view_that_commits_starts_its_run_once():
    answer = Client().post("/orders/", {"item": "tea"}).json()

    assert answer["status"] == "pending"
    assert count_messages() == 1
    run = dag.run(answer["run"])
    assert run.status == "running"
    with embedded_worker(dag.app):
        assert run.wait(30) == "completed"
        order = Order.objects.get(run_id=run.id)
        assert (order.packed, run.result("ship")) == (1, [f"shipped, packed {order.pk}"])
        assert_sound(dag)


def test_until_the_commit_a_run_is_pending_and_is_not_waited_for():
    with transaction.atomic():
        run = dag.start("order", {"order": 1}, key="k")
        assert [run.status, run.snapshot().status, dag.run(run.id).status] == [RunStatus.PENDING] * 3
        assert dag.start("order", {"order": 1}, key="k").status == "pending"
        with pytest.raises(WaitRefused, match="Leave the transaction"):
            run.wait(5)
        with pytest.raises(WaitRefused, match="Leave the transaction"):
            next(run.watch(5))
        assert count_messages() == 0
    assert run.status == "running"
    assert count_messages() == 1


def test_others_do_not_see_it_before_the_commit():
    seen: list[object] = []

    def look() -> None:
        seen.extend(dag.runs())
        dag.close()

    with transaction.atomic():
        dag.start("order", {"order": 1})
        look_elsewhere = threading.Thread(target=look)
        look_elsewhere.start()
        look_elsewhere.join(20)

    assert seen == []


def test_a_savepoint_takes_its_run_with_it(eager: None):
    with transaction.atomic():
        kept = dag.start("order", {"order": 1})
        with contextlib.suppress(ZeroDivisionError), transaction.atomic():
            gone = dag.start("order", {"order": 2})
            assert gone.status == "pending"
            raise ZeroDivisionError
        with pytest.raises(UnknownRun):
            gone.status  # noqa: B018
        with transaction.atomic():
            inner = dag.start("order", {"order": 3})
        assert [kept.status, inner.status] == ["pending", "pending"]

    assert [kept.status, inner.status] == ["completed", "completed"]
    assert {run.id for run in dag.runs()} == {kept.id, inner.id}


def test_a_rollback_leaves_unknown_runs(eager: None):
    with contextlib.suppress(ZeroDivisionError), transaction.atomic():
        run = dag.start("order", {"order": 1})
        raise ZeroDivisionError

    for look in (lambda: run.status, run.snapshot, run.cancel, run.wait):
        with pytest.raises(UnknownRun):
            look()


def test_a_key_gives_the_run_that_is_there(eager: None):
    there = dag.start("order", {"order": 1}, key="k")
    with transaction.atomic():
        run = dag.start("order", {"order": 1}, key="k")
        assert (run, run.status, run.wait(5)) == (there, "completed", "completed")
        with pytest.raises(KeyConflict):
            dag.start("order", {"order": 2}, key="k")
        Order.objects.create(item="the transaction goes on")

    assert Order.objects.count() == 1
    assert list(dag.runs()) == [there]


def test_a_key_that_was_rolled_back_is_free(eager: None):
    with contextlib.suppress(ZeroDivisionError), transaction.atomic():
        dag.start("order", {"order": 1}, key="k")
        raise ZeroDivisionError

    assert dag.start("order", {"order": 2}, key="k").status == "completed"


def test_of_two_requests_with_one_key_the_second_gets_the_run_of_the_first():
    if connection.vendor == "sqlite":
        pytest.skip("SQLite lets no two transactions write at the same time")
    inside, given = threading.Event(), []

    def start_too() -> None:
        inside.wait(20)
        with transaction.atomic():
            given.append(dag.start("order", {"order": 1}, key="k"))
        connections.close_all()

    second = threading.Thread(target=start_too)
    second.start()
    with transaction.atomic():
        first = dag.start("order", {"order": 1}, key="k")
        inside.set()
    second.join(20)

    assert given == [first]
    assert count_messages() == 1


def test_what_else_is_asked_of_runs_is_part_of_the_transaction(eager: None):
    run = dag.start("refusal", {"order": 1})
    with contextlib.suppress(ZeroDivisionError), transaction.atomic():
        run.retry()
        assert (run.status, run.snapshot().generation) == ("running", 2)
        raise ZeroDivisionError
    assert (run.status, run.snapshot().generation) == ("failed", 1)

    with transaction.atomic():
        run.retry()
        started = dag.start("order", {"order": 1})
        started.cancel("changed my mind")
        with pytest.raises(RunStateError):
            dag.start("order", {"order": 2}).retry()
    assert (run.status, run.snapshot().generation) == ("failed", 2)
    assert (started.status, str(started.error)) == ("cancelled", "Cancelled: changed my mind")
    assert_sound(dag, [run, started])


def test_a_pipeline_is_saved_with_the_transaction():
    pipeline = dag._pipelines["order"].model_copy(update={"name": "saved"})
    with contextlib.suppress(ZeroDivisionError), transaction.atomic():
        dag.save(pipeline)
        assert dag.start("saved", {"order": 1}, version=1).status == "pending"
        raise ZeroDivisionError
    assert "saved" not in dag.pipelines()

    with transaction.atomic():
        dag.save(pipeline)
    assert dag.pipelines()["saved"] == 1


def test_a_deadlock_in_the_views_transaction_is_djangos_error_and_repeated_by_nobody():
    """Two requests change an order and a run in opposite order; on SQLite the second finds the file locked."""
    order, calls, errors = Order.objects.create(item="tea"), [], []
    met, refused = (threading.Barrier(2, timeout=20) for _ in range(2))
    timeout = connection.settings_dict["OPTIONS"].get("timeout")

    def run(*steps: Callable[[], object]) -> None:
        try:
            with transaction.atomic():
                steps[0]()
                met.wait()
                calls.append(steps[1])
                steps[1]()
                if connection.vendor == "sqlite":
                    refused.wait()
        except OperationalError as error:
            errors.append(error)
            refused.abort()
        except threading.BrokenBarrierError:
            pass
        finally:
            connections.close_all()

    def start() -> object:
        return dag.start("order", {"order": 1}, key="k")

    def save() -> object:
        return Order.objects.filter(pk=order.pk).update(item="coffee")

    first, second = ((start, save), (save, start))
    if connection.vendor == "sqlite":
        connection.settings_dict["OPTIONS"]["timeout"] = 0.1
        first, second = ((start, lambda: None), (lambda: None, start))
    threads = [threading.Thread(target=run, args=steps) for steps in (first, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    if connection.vendor == "sqlite":
        connection.settings_dict["OPTIONS"]["timeout"] = timeout

    assert [type(error) for error in errors] == [OperationalError]
    assert len(calls) == 2


def test_without_autocommit_and_atomic_nothing_is_started():
    transaction.set_autocommit(False)
    try:
        with pytest.raises(TransactionOpen, match="atomic"):
            dag.start("order", {"order": 1})
    finally:
        transaction.rollback()
        transaction.set_autocommit(True)
    assert list(dag.runs()) == []


# -- models


def test_models_show_what_is_in_the_store(eager: None):
    before = datetime.now(UTC) - timedelta(minutes=1)
    run = dag.start("order", {"order": 7}, key="k", tags={"customer": "acme"})

    row = models.Run.objects.get(pk=run.id)
    assert (row.handle, row.status, row.key, row.input, row.paused) == (run, "completed", "k", {"order": 7}, False)
    assert before < row.created_at <= row.ended_at < before + timedelta(hours=1)
    assert [(tag.name, tag.value) for tag in row.tags.all()] == [("customer", "acme")]
    assert [(node.slug, node.status, node.tasks_done) for node in row.nodes.all()] == [
        ("pack", "completed", 1),
        ("ship", "completed", 1),
    ]
    (first, second) = models.Task.objects.filter(run=row)
    assert [first.id, second.id] == [task.id for task in run.tasks()]
    assert [artifact.metadata["value"] for artifact in first.artifacts.all()] == ["packed 7"]
    assert row.definition.body["name"] == "order"
    assert (
        models.Run.objects.filter(created_at__gt=before, created_at__lt=row.ended_at + timedelta(seconds=1)).get()
        == row
    )
    assert list(models.Run.objects.filter(created_at__gt=row.ended_at)) == []
    assert models.Node.objects.filter(run__key="k", index=1).get().slug == "ship"


def test_a_key_of_two_columns_is_one_value(eager: None):
    run = dag.start("order", {"order": 7})
    for _ in range(2):
        dag.start("order", {"order": 8})
    dag.save(dag._pipelines["order"])

    node = models.Node.objects.get(pk=f"{run.id}:1")
    assert (node.pk, node.slug, node.run_id) == (f"{run.id}:1", "ship", run.id)
    assert models.Node.objects.in_bulk([f"{run.id}:0", f"{run.id}:1"]).keys() == {f"{run.id}:0", f"{run.id}:1"}
    assert models.Node.objects.filter(pk__in=[f"{run.id}:0", f"{run.id}:7"]).count() == 1
    assert models.Pipeline.objects.get(pk="order:1").name == "order"
    assert list(models.Node.objects.values_list("pk", flat=True).filter(run_id=run.id)) == [
        f"{run.id}:0",
        f"{run.id}:1",
    ]
    with pytest.raises(models.Node.DoesNotExist):
        models.Node.objects.get(pk=f"{run.id}:2")


def test_nothing_is_changed_through_models(eager: None):
    row = models.Run.objects.get(pk=dag.start("order", {"order": 7}).id)
    everything = models.Run.objects.all()
    changes: list[Callable[[], Any]] = [
        row.save,
        row.delete,
        everything.delete,
        lambda: everything.update(status="failed"),
        lambda: models.Run.objects.create(id=row.id),
        lambda: models.Run.objects.bulk_create([row]),
    ]
    for change in changes:
        with pytest.raises(StoreReadOnly, match=r"run\.handle"):
            change()


# -- signals


def test_signals_tell_how_runs_end_and_again_where_a_receiver_raises():
    told: list[tuple[str, str]] = []

    def receive(sender: Dagabaaz, run: Any, run_id: str, **kwargs: Any) -> None:
        assert (sender, run.id) == (dag, run_id)
        told.append((run.status, run.snapshot().pipeline))
        if len(told) == 1:
            raise ValueError("not now")

    for signal in (signals.run_completed, signals.run_failed, signals.run_cancelled):
        signal.connect(receive)
    try:
        cancelled = dag.start("order", {"order": 1})
        cancelled.cancel()
        with embedded_worker(dag.app):
            dag.start("refusal", {"order": 1}).wait(30)
            dag.start("order", {"order": 1}).wait(30)
            assert_sound(dag, timeout=30)
    finally:
        for signal in (signals.run_completed, signals.run_failed, signals.run_cancelled):
            signal.disconnect(receive)

    assert set(told) == {("cancelled", "order"), ("failed", "refusal"), ("completed", "order")}
    assert len(told) == 4


# -- the doctor


def test_the_doctor_counts_djangos_connections_of_a_worker_beside_the_stores():
    if connection.vendor == "sqlite":
        pytest.skip("a SQLite file has no limit of connections")
    dag._runtime.store.announce_worker(WorkerRow(new_id(), "one@host", 1, "0.1.0", 0, [], [], []))

    (finding,) = [each for each in diagnose(dag) if each.check == "connections"]

    assert finding.found.partition("; ")[2].startswith("the live workers may want 10 ("), finding

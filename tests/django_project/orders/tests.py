"""The project's own tests, as its authors write them; ``manage.py test`` runs them."""

from django.db import connection, transaction
from django.test import TestCase, TransactionTestCase

from dagabaaz_celery.contrib.django import dag
from dagabaaz_celery.contrib.django.models import Run
from dagabaaz_celery.contrib.django.test import EagerRunsMixin, capture_runs
from dagabaaz_celery.errors import UnknownRun, WaitRefused
from tests.django_project.orders.models import Order


class Captured(TestCase):
    """A TestCase, whose transaction is never committed."""

    def test_a_view_that_commits_has_its_run_completed(self) -> None:
        with capture_runs() as runs:
            answer = self.client.post("/orders/", {"item": "tea"}).json()
            self.assertEqual(answer["status"], "pending")
        self.assertEqual([run.id for run in runs], [answer["run"]])
        self.assertEqual((runs[0].status, runs[0].wait(1)), ("completed", "completed"))
        order = Order.objects.get()
        self.assertEqual(order.packed, 1)
        self.assertEqual(runs[0].result("ship"), [f"shipped, packed {order.pk}"])
        self.assertEqual(Run.objects.get().status, "completed")

    def test_a_view_that_raises_has_none(self) -> None:
        with capture_runs() as runs, self.assertRaises(ValueError):
            self.client.post("/orders/unless/", {"item": "tea"})
        self.assertEqual((runs, Order.objects.count(), Run.objects.count()), ([], 0, 0))

    def test_what_one_test_started_is_not_there_in_the_next(self) -> None:
        self.assertEqual(Run.objects.count(), 0)

    def test_without_it_nothing_is_committed(self) -> None:
        run = dag.start("order", {"order": 1})
        self.assertEqual(run.status, "pending")
        with self.assertRaises(WaitRefused):
            run.wait(1)


class Eager(EagerRunsMixin, TestCase):
    """With the mixin a start outside of atomic() returns with the run at its end."""

    def test_a_start_completes(self) -> None:
        order = Order.objects.create(item="tea")
        run = dag.start("order", {"order": order.pk}, key="once")
        self.assertEqual(run.status, "completed")
        self.assertEqual(dag.start("order", {"order": order.pk}, key="once"), run)

    def test_a_run_that_failed_is_retried(self) -> None:
        run = dag.start("refusal", {"order": 1})
        self.assertEqual((run.status, run.error.type), ("failed", "ValueError"))
        run.retry()
        self.assertEqual((run.status, run.snapshot().generation), ("failed", 2))

    def test_what_is_rolled_back_is_gone(self) -> None:
        with self.assertRaises(ZeroDivisionError), transaction.atomic():
            run = dag.start("order", {"order": 1})
            raise ZeroDivisionError
        with self.assertRaises(UnknownRun):
            run.status  # noqa: B018

    def test_captured_in_the_middle(self) -> None:
        with self.capture_runs() as runs, transaction.atomic():
            dag.start("refusal", {"order": 1})
        self.assertEqual([run.status for run in runs], ["failed"])


class Committed(EagerRunsMixin, TransactionTestCase):
    """A TransactionTestCase commits, and empties the tables behind each test."""

    def test_a_run_completes_when_the_block_commits(self) -> None:
        with transaction.atomic():
            run = dag.start("order", {"order": Order.objects.create(item="tea").pk})
            self.assertEqual(run.status, "pending")
        self.assertEqual(run.status, "completed")

    def test_the_next_one_finds_no_run(self) -> None:
        self.assertEqual((Run.objects.count(), list(dag.runs())), (0, []))


class WithConnectionsOfItsOwn(TransactionTestCase):
    """Without the mixin the store has connections of its own to the test's database, unless that is in memory."""

    def test_a_run_is_there_for_others(self) -> None:
        if connection.vendor == "sqlite" and connection.is_in_memory_db():
            with self.assertRaisesMessage(ValueError, "SQLite database in memory"):
                dag.start("order", {"order": 1})
            return
        run = dag.start("order", {"order": 1})
        self.assertEqual(run.status, "running")
        self.assertEqual(Run.objects.get().handle, run)

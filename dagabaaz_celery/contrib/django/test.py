"""For tests of a Django project: runs that complete in place, inside the transaction that a TestCase rolls back.

with capture_runs() as runs:
    self.client.post("/orders/", {"item": "tea"})
self.assertEqual(runs[0].status, "completed")
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from django.test import TestCase

from dagabaaz_celery.contrib.django.project import get_dag, get_database
from dagabaaz_celery.run import Run


@contextmanager
def eager_runs() -> Iterator[None]:
    """Have a run complete in place, in this thread and on Django's connection, before its start returns.

    The transaction that a TestCase wraps around each test counts as none; one that the code under test opens does: what
    is started in that begins on commit, which in a TestCase only ``capture_runs`` (or captureOnCommitCallbacks) makes
    happen.
    """
    conf, database = get_dag().app.conf, get_database()
    before = conf.task_always_eager, database.is_in_test
    conf.task_always_eager, database.is_in_test = True, True
    try:
        yield
    finally:
        conf.task_always_eager, database.is_in_test = before


@contextmanager
def capture_runs() -> Iterator[list[Run]]:
    """Like ``eager_runs``; at the end of the block also what waited for a commit is done, as in production.

    The list then has every run that was started in the block, in order. Whatever else was to be called on commit in the
    store's database is called as well.
    """
    runs: list[Run] = []
    with eager_runs():
        dag = get_dag()
        newest = next((run.id for run in dag.runs(limit=1)), "")
        with TestCase.captureOnCommitCallbacks(using=get_database().alias, execute=True):
            yield runs
        for run in dag.runs():
            if run.id <= newest:
                break
            runs.insert(0, run)


class EagerRunsMixin:
    """For a TestCase or TransactionTestCase: runs complete in place in every test of the class."""

    def setUp(self) -> None:  # unittest's name
        """Begin with runs that complete in place."""
        super().setUp()  # type: ignore[misc]  # of the TestCase beside this class
        context = ExitStack()
        context.enter_context(eager_runs())
        self.addCleanup(context.close)  # type: ignore[attr-defined]  # of the TestCase beside this class

    def capture_runs(self) -> Any:
        """``capture_runs``, as a method."""
        return capture_runs()

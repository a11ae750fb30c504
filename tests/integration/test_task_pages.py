"""A run's tasks, asked for by node, status and page; what a snapshot says of finalisers and of all being over."""

import pytest

from dagabaaz_celery.app import Dagabaaz
from dagabaaz_celery.errors import UnknownNode
from dagabaaz_celery.testing import embedded_worker
from tests.integration.celery_support import PATIENCE, node, start


def test_tasks_are_given_by_node_by_status_and_in_pages(stored: Dagabaaz):
    @stored.plugin
    def numbers() -> list[int]:
        return list(range(7))

    @stored.plugin
    def undo() -> None: ...

    @stored.plugin
    def odd(value: int) -> None:
        if value % 2 == 0:
            raise ValueError(f"{value} is even")

    @stored.plugin
    def mail() -> None: ...

    run = start(
        stored,
        node("numbers", rollback="undo"),
        node("odd", "numbers", on_failure="continue"),
        node("last", "odd", plugin="mail"),
        node("mail", run_on="always"),
    )
    with embedded_worker(stored.app):
        run.wait(PATIENCE, rollback=True)
        run.rollback()
        run.wait(PATIENCE, rollback=True)

    everything = run.tasks()
    assert [(task.node, task.ordinal) for task in everything] == [
        ("numbers", 0),
        *(("odd", ordinal) for ordinal in range(7)),
        ("last", 0),
        ("mail", 0),
        ("numbers", 0),
    ]
    assert run.tasks(node="odd") == everything[1:8]
    assert [task.rollback for task in run.tasks(node="numbers")] == [False, True]
    assert [task.ordinal for task in run.tasks(node="odd", status="failed")] == [0, 2, 4, 6]
    assert run.tasks(limit=4) + run.tasks(limit=4, offset=4) + run.tasks(limit=4, offset=8) == everything
    assert run.tasks(status="crashed") == []
    with pytest.raises(UnknownNode):
        run.tasks(node="even")
    snapshot = run.snapshot()
    assert [found.run_on for found in snapshot.nodes] == [None, None, None, "always"]
    assert (snapshot.status, snapshot.settled) == ("completed", True)


def test_a_run_that_is_still_to_be_undone_is_not_settled(dag: Dagabaaz):
    @dag.plugin
    def work() -> None: ...

    run = start(dag, node("work", rollback="work"))
    assert not run.snapshot().settled
    with embedded_worker(dag.app):
        assert run.wait(PATIENCE) == "completed"
    run.rollback()

    assert (run.snapshot().status, run.snapshot().settled) == ("completed", False)

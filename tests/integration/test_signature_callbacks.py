"""Celery signatures for the end of a run: sent by a worker, at least once, whatever comes in between."""

from typing import Any

import pytest
from celery import Task, chain, group
from kombu.exceptions import OperationalError

from dagabaaz_celery.app import Dagabaaz
from dagabaaz_celery.errors import ConfigurationError
from dagabaaz_celery.testing import assert_sound, embedded_worker
from dagabaaz_celery.worker.broker import Broker
from tests.integration.celery_support import complete, fail, node, start, wait_until
from tests.integration.signature_plugins import declare_notified
from tests.integration.worker_processes import open_site

PATIENCE = 40.0


class Notes:
    """A task that notes what it is called with, under which id; and plugins to end runs with."""

    def __init__(self, dag: Dagabaaz) -> None:
        self.made: list[tuple[Any, ...]] = []
        self.requests: list[tuple[str, str]] = []

        @dag.app.task(bind=True, shared=False, name="note")
        def note(task: Task, *args: Any) -> None:
            self.made.append(args)
            self.requests.append((task.request.id, task.request.root_id))

        self.note = note

        @dag.plugin
        def work() -> int:
            return 7

        @dag.plugin
        def broken() -> None:
            raise ValueError("broken")


def test_a_signature_is_sent_with_the_runs_id_before_its_own_arguments(dag: Dagabaaz):
    notes = Notes(dag)
    dag.on_run_completed(notes.note.s("well", 1))
    dag.on_run_completed(notes.note.si("as it is"))
    dag.on_run_completed(chain(notes.note.s("first"), notes.note.si("then")))
    dag.on_run_completed(group(notes.note.s("one"), notes.note.s("two")))
    dag.on_run_failed(notes.note.s("badly"))

    with embedded_worker(dag.app):
        run = complete(dag, node("work"))
        wait_until(lambda: len(notes.made) == 6, "every signature was run")
        assert sorted(notes.made) == sorted(
            [(run.id, "well", 1), ("as it is",), (run.id, "first"), ("then",), (run.id, "one"), (run.id, "two")]
        )
        assert {root for _, root in notes.requests} == {run.id}
        other = fail(dag, node("broken"))
        wait_until(lambda: len(notes.made) == 7, "the one for a failure was run")
        assert notes.made[-1] == (other.id, "badly")
        assert_sound(dag)


def test_what_was_sent_and_not_noted_is_sent_again_under_the_same_id(dag: Dagabaaz, monkeypatch: pytest.MonkeyPatch):
    notes = Notes(dag)
    dag.on_run_completed(notes.note.s("well"))
    store, lost = dag._runtime.store, []
    settle, postpone = store.settle_owed, store.postpone_owed

    def lose_once(owed: Any) -> None:
        if owed.kind == "callback" and not lost:
            lost.append(owed)
            postpone(owed, 0)  # its lease, which a process that died leaves behind, is over
            raise RuntimeError("nobody notes that it was sent")
        settle(owed)

    monkeypatch.setattr(store, "settle_owed", lose_once)
    with embedded_worker(dag.app):
        run = complete(dag, node("work"))
        wait_until(lambda: len(notes.made) == 2, "it was sent again")
        assert_sound(dag)
    assert notes.made == [(run.id, "well")] * 2
    assert len(set(notes.requests)) == 1


def test_with_the_broker_away_a_signature_is_sent_later(dag: Dagabaaz, monkeypatch: pytest.MonkeyPatch):
    notes = Notes(dag)
    dag.on_run_completed(notes.note.s("well"))
    with embedded_worker(dag.app):
        run = complete(dag, node("work"))
        wait_until(lambda: notes.made, "it was sent")
    refused: list[str] = []
    link = Broker.link

    def refuse_once(broker: Broker) -> Any:
        if not refused:
            refused.append("once")
            raise OperationalError("nobody is there")
        return link(broker)

    owed = next(iter(dag._runtime.store.cancel(start(dag, node("work")).id, "enough").owed))
    dag.on_run_cancelled(notes.note.s("cancelled"))
    monkeypatch.setattr(Broker, "link", refuse_once)
    dag._runtime.deliver(owed)
    assert len(notes.made) == 1
    dag._runtime.store.postpone_owed(owed, 0)
    with embedded_worker(dag.app):
        wait_until(lambda: len(notes.made) == 2, "it was sent once the broker was back")
    assert notes.made == [(run.id, "well"), (owed.run_id, "cancelled")]


def test_a_task_that_this_process_does_not_know_is_sent_by_its_name(dag: Dagabaaz):
    notes = Notes(dag)
    others = f"others-{dag.app.conf.task_default_queue}"  # Celery drops what a worker gets and does not know
    unknown = dag.app.signature("note", args=("by name",), options={"queue": others})
    dag.on_run_completed(unknown)
    known = dag.app.tasks.pop("note")
    with embedded_worker(dag.app, queues=[dag.app.conf.task_default_queue]):
        run = start(dag, node("work"))
        assert run.wait(PATIENCE) == "completed"
        dag.app.tasks.register(known)
    with embedded_worker(dag.app, queues=[dag.app.conf.task_default_queue, others]):
        wait_until(lambda: notes.made == [(run.id, "by name")], "a worker that knows it ran it")


def test_eager_signatures_run_before_start_returns(eager: Dagabaaz):
    notes = Notes(eager)
    eager.on_run_completed(notes.note.s("well"))
    run = complete(eager, node("work"))
    assert notes.made == [(run.id, "well")]


def test_what_can_neither_be_called_nor_sent_is_refused(dag: Dagabaaz):
    with pytest.raises(ConfigurationError, match=r"notify\.s"):
        dag.on_run_completed("notify")  # type: ignore[arg-type]


def test_a_worker_that_dies_after_sending_leaves_it_to_another():
    with open_site(declare_notified) as site:
        site.dag.settings.files_dir.mkdir()
        (site.dag.settings.files_dir / "deadly").touch()
        queue = site.dag.app.conf.task_default_queue
        doomed = site.start_worker("-Q", queue, concurrency=1)
        run = start(site.dag, node("work"))
        wait_until(lambda: not doomed.is_running, "it died", timeout=PATIENCE)
        assert run.status == "completed"
        site.start_worker("-Q", f"{queue},notices", concurrency=1)
        notified = site.dag.settings.files_dir / "notified"
        wait_until(
            lambda: notified.exists() and len(notified.read_text().splitlines()) == 2, "sent twice", timeout=PATIENCE
        )
        assert_sound(site.dag)
        first, second = notified.read_text().splitlines()
        assert first == second
        assert first.startswith(f"{run.id} well ")

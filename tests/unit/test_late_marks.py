"""Marks that wait a moment: none is lost while its process lives, and none is written for another process."""

import os
import threading

import pytest

from dagabaaz_celery.worker.late_marks import LateMarks
from tests.processes import wait_until


class Marked:
    """In place of a store: what was marked, each time."""

    def __init__(self) -> None:
        self.calls: list[tuple[str | None, list[str]]] = []

    def mark_queued(self, attempt_ids: list[str], queue: str | None, *, age: float) -> None:
        assert age >= 0
        if queue == "bad":
            raise OSError("the database is away")
        self.calls.append((queue, attempt_ids))


def late_marks(marked: Marked) -> LateMarks:
    """Marks that are written there."""
    return LateMarks(marked)  # type: ignore[arg-type]


def test_marks_are_written_together_by_themselves():
    marked = Marked()
    marks = late_marks(marked)
    for number in range(3):
        marks.add([f"a{number}"], "one")
    marks.add(["b0", "b1"], None)
    wait_until(lambda: len(marked.calls) == 2, "all are written")
    assert dict(marked.calls) == {"one": ["a0", "a1", "a2"], None: ["b0", "b1"]}

    marks.add(["a3"], "one")
    wait_until(lambda: len(marked.calls) == 3, "what came later is written, too")


def test_marks_are_written_at_once_before_a_process_ends():
    marked = Marked()
    marks = late_marks(marked)
    threads = threading.active_count()
    marks.add(["a"], "one")
    marks.close()
    assert marked.calls == [("one", ["a"])]
    assert threading.active_count() == threads  # nothing is left that would write
    marks.close()
    assert len(marked.calls) == 1


def test_a_mark_that_fails_is_logged_and_the_others_are_written(caplog: pytest.LogCaptureFixture):
    marked = Marked()
    marks = late_marks(marked)
    marks.add(["a", "b"], "bad")
    marks.add(["c"], "good")
    marks.close()
    assert marked.calls == [("good", ["c"])]
    assert "2 published tasks are not marked, and are sent again: the database is away" in caplog.text


def test_a_forked_child_leaves_its_parents_marks_alone():
    marked = Marked()
    marks = late_marks(marked)
    marks.add(["a"], "one")
    child = os.fork()
    if not child:
        marks.close()
        marks.add(["b"], "one")
        marks.close()
        os._exit(0 if marked.calls == [("one", ["b"])] else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    marks.close()
    assert marked.calls == [("one", ["a"])]


def test_where_no_thread_can_be_started_the_next_one_that_is_added_tries_again(monkeypatch: pytest.MonkeyPatch):
    marked = Marked()
    marks = late_marks(marked)

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        marks.add(["a"], "one")
    marks.add(["b"], "one")
    wait_until(lambda: marked.calls, "both are written")
    assert marked.calls == [("one", ["a", "b"])]


def test_whoever_asks_for_marks_finds_those_written_that_are_being_written():
    begun, may_end, marked = threading.Event(), threading.Event(), Marked()

    class Slow(Marked):
        def mark_queued(self, attempt_ids: list[str], queue: str | None, *, age: float) -> None:
            begun.set()
            assert may_end.wait(10)
            marked.mark_queued(attempt_ids, queue, age=age)

    marks = late_marks(Slow())
    marks.add(["a"], "one")
    assert begun.wait(10)
    asking = threading.Thread(target=marks.close)
    asking.start()
    assert not marked.calls
    may_end.set()
    asking.join()
    assert marked.calls == [("one", ["a"])]

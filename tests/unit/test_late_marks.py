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

    def mark_queued(self, attempt_ids: list[str], queue: str | None) -> None:
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
    assert marked.calls == [("one", ["a0", "a1", "a2"]), (None, ["b0", "b1"])]

    marks.add(["a3"], "one")
    wait_until(lambda: len(marked.calls) == 3, "what came later is written, too")


def test_marks_are_written_at_once_before_a_process_ends():
    marked = Marked()
    marks = late_marks(marked)
    threads = threading.active_count()
    marks.add(["a"], "one")
    marks.write()
    assert marked.calls == [("one", ["a"])]
    wait_until(lambda: threading.active_count() == threads, "nothing is left that would write")
    marks.write()
    assert len(marked.calls) == 1


def test_a_mark_that_fails_is_logged_and_the_others_are_written(caplog: pytest.LogCaptureFixture):
    marked = Marked()
    marks = late_marks(marked)
    marks.add(["a", "b"], "bad")
    marks.add(["c"], "good")
    marks.write()
    assert marked.calls == [("good", ["c"])]
    assert "2 published tasks are not marked, and are sent again: the database is away" in caplog.text


def test_a_forked_child_leaves_its_parents_marks_alone():
    marked = Marked()
    marks = late_marks(marked)
    marks.add(["a"], "one")
    child = os.fork()
    if not child:
        marks.write()
        marks.add(["b"], "one")
        marks.write()
        os._exit(0 if marked.calls == [("one", ["b"])] else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    marks.write()
    assert marked.calls == [("one", ["a"])]

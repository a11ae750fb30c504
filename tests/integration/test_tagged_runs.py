"""Tags: names and values that a run is started with, and found by."""

import threading
from typing import Any

import pytest

from dagabaaz_celery.app import Dagabaaz
from dagabaaz_celery.errors import KeyConflict, RunInputError, RunSelectionError
from dagabaaz_celery.run import Run
from dagabaaz_celery.testing import find_violations
from tests.integration.celery_support import node, start


@pytest.fixture
def dag(stored: Dagabaaz) -> Dagabaaz:
    @stored.plugin
    def work(n: int = 0) -> int:
        return n

    return stored


def begin(dag: Dagabaaz, **given: Any) -> Run:
    return start(dag, node("work"), **given)


def test_a_run_shows_the_tags_that_it_was_started_with(dag: Dagabaaz):
    tags = {"customer": "42", "größe": "🍵 für zwei", "empty": "", "n" * 100: "v" * 200}

    run = begin(dag, tags=tags)

    assert run.tags == run.snapshot().tags == dag.run(run.id).tags == tags
    assert begin(dag).tags == begin(dag, tags={}).snapshot().tags == {}
    assert find_violations(dag) == []


def test_runs_are_found_by_all_of_the_tags_newest_first(dag: Dagabaaz):
    first = begin(dag, tags={"customer": "42", "kind": "invoice"})
    second = begin(dag, tags={"customer": "42", "kind": "reminder"}, name="other")
    third = begin(dag, tags={"customer": "43", "kind": "invoice"})
    begin(dag)
    third.cancel()

    def find(**which: Any) -> list[Run]:
        return list(dag.runs(**which))

    assert find(tags={"customer": "42"}) == [second, first]
    assert find(tags={"kind": "invoice"}) == [third, first]
    assert find(tags={"kind": "invoice", "customer": "42"}) == [first]
    assert find(tags={"kind": "invoice"}, status="cancelled") == [third]
    assert find(tags={"customer": "42"}, pipeline="other", status="running") == [second]
    assert find(tags={"customer": "42"}, limit=1) == [second]
    assert find(tags={"customer": "4"}) == find(tags={"Customer": "42"}) == find(tags={"kind": "Invoice"}) == []
    assert len(find(tags={})) == 4


def test_more_runs_than_a_page_holds_are_all_found(dag: Dagabaaz):
    runs = [begin(dag, tags={"kind": "many", "half": str(n % 2)}) for n in range(410)]

    assert list(dag.runs(tags={"kind": "many"})) == runs[::-1]
    assert list(dag.runs(tags={"kind": "many", "half": "1"})) == runs[1::2][::-1]


def test_the_same_key_with_other_tags_gives_the_run_as_it_is(dag: Dagabaaz):
    first = begin(dag, key="k", tags={"customer": "42"})

    assert begin(dag, key="k", tags={"customer": "43", "more": "x"}) == first
    assert begin(dag, key="k") == first
    assert first.tags == {"customer": "42"}
    with pytest.raises(KeyConflict):
        begin(dag, key="k", tags={"lost": "x"}, input={"n": 1})
    assert list(dag.runs(tags={"lost": "x"})) == []


def test_starts_with_one_key_at_once_keep_the_tags_of_one(dag: Dagabaaz):
    begin(dag)  # the tables are made
    together, runs = threading.Barrier(4), []

    def begin_with(number: int) -> None:
        together.wait()
        runs.append(begin(dag, key="k", tags={"by": str(number), f"only {number}": ""}))

    threads = [threading.Thread(target=begin_with, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(set(runs)) == 1
    tags = runs[0].tags
    assert tags == {"by": tags["by"], f"only {tags['by']}": ""}
    assert find_violations(dag) == []


def test_what_is_no_tag_is_refused_with_every_problem_and_starts_nothing(dag: Dagabaaz):
    with pytest.raises(RunInputError) as caught:
        begin(dag, key="", tags={"customer": 42, " ": "x"})  # type: ignore[dict-item]
    assert len(caught.value.problems) == 3
    assert "tag 'customer' is 42: a value is text" in str(caught.value)
    assert list(dag.runs()) == []


def test_a_search_for_what_no_run_can_be_is_refused_with_every_problem(dag: Dagabaaz):
    with pytest.raises(RunSelectionError) as caught:
        dag.runs(tags={"customer": 42}, status="runing")  # type: ignore[dict-item]
    assert [problem.split(":")[0] for problem in caught.value.problems] == [
        "tag 'customer' is 42",
        "a run's status is one of pending, running, completed, failed, crashed, cancelled, not 'runing'; "
        "did you mean running?",
    ]
    with pytest.raises(RunSelectionError, match="No run can be like this: tags are 'customer=42': pass a dict"):
        dag.runs(tags="customer=42")  # type: ignore[arg-type]

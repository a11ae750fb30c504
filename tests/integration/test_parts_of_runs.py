"""What is read of a run without the rest of it: first errors, first artifacts, counts; and pipelines by their names."""

from collections.abc import Iterator
from typing import Any

import pytest

from dagabaaz_celery.app import Dagabaaz
from dagabaaz_celery.errors import UnknownNode, UnknownPipeline
from dagabaaz_celery.models import DagNode
from dagabaaz_celery.pipeline import Pipeline
from dagabaaz_celery.testing import embedded_worker
from tests.integration.celery_support import PATIENCE, complete, node, start


@pytest.fixture
def dag(stored: Dagabaaz) -> Iterator[Dagabaaz]:
    @stored.plugin
    def make(n: int) -> list[dict[str, Any]]:
        return [{"n": number} for number in range(n)]

    @stored.plugin
    def work(n: int) -> dict[str, Any]:
        return {"n": n}

    @stored.plugin
    def spoil(n: int) -> None:
        raise ValueError(f"number {n}")

    @stored.plugin
    def undo(result: Any) -> None:
        raise OSError("it stays done")

    with embedded_worker(stored.app):
        yield stored


def test_the_first_artifacts_of_a_node_are_read_and_all_are_counted(dag: Dagabaaz):
    nodes = (node("make"), node("work", "make"), node("none", "make", plugin="work", max_fan_out=9))
    run = complete(dag, *nodes[:2], input={"n": 7})

    assert [artifact.metadata["n"] for artifact in run.artifacts("work", 3)] == [0, 1, 2]
    assert len(run.artifacts("work")) == len(run.artifacts("work", 8)) == 7
    assert run.count_artifacts() == {"make": 7, "work": 7}
    assert complete(dag, *nodes, input={"n": 0}).count_artifacts() == {"make": 0, "work": 0, "none": 0}
    with pytest.raises(UnknownNode):
        run.artifacts("nothing", 1)


def test_the_first_errors_are_read_in_order_those_of_rollbacks_last(dag: Dagabaaz):
    run = start(dag, node("make", rollback="undo"), node("spoil", "make", on_failure="continue"), input={"n": 3})
    assert run.wait(PATIENCE) == "completed"
    run.rollback()
    run.wait(PATIENCE, rollback=True)

    messages = ["number 0", "number 1", "number 2", "it stays done"]
    assert [error.message for error in run.errors()] == messages
    assert [error.message for error in run.errors(2)] == messages[:2]
    assert [error.rollback for error in run.errors(10)] == [False, False, False, True]
    assert run.errors(0) == []


def test_a_pipeline_is_found_by_its_name(dag: Dagabaaz):
    registered = dag.register(Pipeline("registered", nodes=[DagNode(slug="a", plugin="make")]))
    given = Pipeline(
        "saved", nodes=[DagNode(slug="a", plugin="make")], description="Kept", default_input={"n": 2}, timeout=60
    )
    first = dag.save(given)
    second = dag.save(Pipeline("saved", nodes=[DagNode(slug="b", plugin="make")]))

    assert dag.pipeline("registered") == registered
    assert dag.pipeline("saved") == second
    assert dag.pipeline("saved", first.version) == first
    with pytest.raises(UnknownPipeline, match="did you mean saved"):
        dag.pipeline("savd")
    with pytest.raises(UnknownPipeline, match="version 9 of pipeline"):
        dag.pipeline("saved", 9)


def test_what_is_wrong_with_a_pipeline_is_told_for_an_apps_plugins(dag: Dagabaaz):
    assert dag.problems(Pipeline("p", nodes=[DagNode(slug="a", plugin="make")])) == []
    problems = dag.problems(Pipeline("p", nodes=[DagNode(slug="a", plugin="mak")]))
    assert len(problems) == 1
    assert "did you mean make" in problems[0]

"""A run that ``run_inline`` makes comes to what the same run comes to on a store: users' tests tell the truth."""

from typing import Any

import pytest

from dagabaaz_celery.app import Dagabaaz
from dagabaaz_celery.context import PluginContext
from dagabaaz_celery.models import ConfigSource, EdgeFilter, FilterRule, TaskArtifact
from dagabaaz_celery.pipeline import Pipeline
from dagabaaz_celery.run import Run
from dagabaaz_celery.testing import InlineRun, make_node, run_inline


def declare(dag: Dagabaaz) -> None:
    """Plugins that tell by their results what they were given."""

    @dag.plugin
    def count(n: int) -> list[int]:
        return list(range(n))

    @dag.plugin
    def files() -> list[TaskArtifact]:
        return [TaskArtifact(file_name=name) for name in ("a.mp4", "b.srt", "c.srt")]

    @dag.plugin
    def double(value: int) -> int:
        return value * 2

    @dag.plugin
    def name(file_name: str) -> str:
        return file_name.upper()

    @dag.plugin
    def odd_fails(value: int) -> int:
        if value % 2:
            raise ValueError(f"{value} is odd")
        return value

    @dag.plugin(bind=True, max_retries=2)
    def flaky(self: Any, value: int, context: PluginContext) -> str:
        if self.request.retries < value:
            raise self.retry(countdown=0)
        return f"{value} in attempt {context.attempt}"

    @dag.plugin(fan_mode="aggregate")
    def gather(artifacts: list[dict[str, Any]]) -> list[str]:
        return sorted(str(artifact["metadata"] or artifact["file_name"]) for artifact in artifacts)

    @dag.plugin(passthrough=True)
    def gate() -> None: ...

    @dag.plugin
    def undo(result: Any = None, value: Any = None) -> str:
        return f"undone {value} {result}"

    @dag.plugin
    def cannot_undo() -> None:
        raise OSError("the bank is away")

    @dag.plugin
    def sum_up(context: PluginContext) -> str:
        return f"{context.run_status} {context.run_error} {context.rollback_status}"


def only(**rule: Any) -> EdgeFilter:
    return EdgeFilter(rules=[FilterRule(**rule)])


VIDEO = only(field="file_type", operator="eq", value="video")
SMALL = only(field="metadata.value", operator="lt", value=2)
THREE = {"value": ConfigSource(value=3)}
BIG = only(field="file_size", operator="gt", value=1)
PIPELINES = {
    "fan out and gather": [
        make_node("count"),
        make_node("double", "count"),
        make_node("again", "count", plugin="double", edge_filters={"count": SMALL}),
        make_node("pairs", "double", "again", plugin="gather", fan_mode="grouped"),
        make_node("all", "double", "again", plugin="gather", fan_mode="aggregate"),
    ],
    "route": [
        make_node("files"),
        make_node("video", "files", plugin="name", edge_filters={"files": VIDEO}),
        make_node("other", "files", plugin="name", edge_filters={"files": BIG}),
        make_node("behind", "other", plugin="double"),
        make_node("gate", "files"),
        make_node("after", "gate", plugin="name"),
    ],
    "scattered": [
        make_node("count"),
        make_node("split", "count", plugin="double", scatter=True),
        make_node("left", "split", plugin="double"),
        make_node("join", "split", "left", plugin="gather", fan_mode="grouped"),
    ],
    "flaky": [
        make_node("count"),
        make_node("flaky", "count"),
        make_node("all", "flaky", plugin="gather", fan_mode="aggregate"),
    ],
    "bound": [
        make_node("count"),
        make_node("named", "count", plugin="double", bindings=THREE),
    ],
    "too wide": [make_node("count"), make_node("double", "count", max_fan_out=2)],
    **{
        f"a failure says {policy}": [
            make_node("count"),
            make_node("odd_fails", "count", on_failure=policy),
            make_node("after", "odd_fails", plugin="double"),
            make_node("all", "after", plugin="gather", fan_mode="aggregate"),
        ]
        for policy in ("fail", "continue", "skip")
    },
    "undone": [
        make_node("count", rollback="undo"),
        make_node("double", "count", rollback="undo"),
        make_node("odd_fails", "double", plugin="odd_fails", bindings=THREE, rollback="undo"),
        make_node("on_failure", plugin="sum_up", run_on="failure"),
        make_node("on_success", plugin="sum_up", run_on="success"),
    ],
    "cannot be undone": [
        make_node("count", rollback="undo"),
        make_node("double", "count", rollback="cannot_undo"),
        make_node("odd_fails", "double", bindings=THREE),
        make_node("always", plugin="sum_up", run_on="always"),
    ],
    "well ended": [make_node("count", rollback="undo"), make_node("on_success", plugin="sum_up", run_on="success")],
    "a finaliser fails": [make_node("count"), make_node("last", plugin="cannot_undo", run_on="always")],
}


def describe(run: Run | InlineRun, nodes: dict[str, str]) -> dict[str, Any]:
    """What users can ask of both, ids and times left out."""
    tasks = [(t.node, t.ordinal, t.status, t.attempt, t.retries, t.error, t.rollback) for t in run.tasks()]
    errors = [(error.type, error.message, error.node, error.rollback, error.args) for error in run.errors()]
    error = None if run.error is None else (run.error.type, run.error.message, run.error.node)
    return {
        "status": run.status,
        "rollback_status": run.rollback_status,
        "error": error,
        "errors": errors,
        "nodes": nodes,
        "tasks": tasks,
        "results": {slug: without_origins(run.result(slug)) for slug in nodes},
        "input": run.input,
    }


def without_origins(result: Any) -> Any:
    """Those are ids of the store's."""
    if isinstance(result, list):
        return [without_origins(value) for value in result]
    return result.model_copy(update={"origin_artifact_id": None}) if isinstance(result, TaskArtifact) else result


@pytest.mark.parametrize("name", PIPELINES)
def test_a_run_comes_to_the_same(eager: Dagabaaz, name: str):
    declare(eager)
    pipeline = Pipeline(name, nodes=PIPELINES[name], default_input={"n": 3})
    run = eager.start(pipeline)
    inline = run_inline(pipeline, dag=eager)
    stored = {node.slug: node.status for node in run.snapshot().nodes}
    assert describe(inline, dict(inline.nodes)) == describe(run, stored)

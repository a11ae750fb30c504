"""Every documented pattern on real workers: each pool, by the plugins' wrapper and by Celery's signals alone."""

from collections.abc import Iterator
from typing import Any

import pytest

from dagabaaz_celery.app import Dagabaaz
from dagabaaz_celery.models import ConfigSource, DagNode, EdgeFilter, ExpressionSource, FilterRule, RuntimeSource
from dagabaaz_celery.testing import embedded_worker
from tests.integration.celery_support import complete, fail, make_app, node, node_statuses, statuses
from tests.integration.pattern_plugins import declare_patterns
from tests.integration.worker_processes import open_site

MODES = [f"{pool}-{driver}" for pool in ("eager", "solo", "threads", "prefork") for driver in ("wrapper", "signals")]


@pytest.fixture(scope="module", params=MODES)
def dag(request: pytest.FixtureRequest) -> Iterator[Dagabaaz]:
    """A Dagabaaz whose plugins run in this mode."""
    pool, driver = request.param.split("-")
    settings = {"dagabaaz_wrap_tasks": driver == "wrapper"}
    if pool == "prefork":
        with open_site(declare_patterns, **settings) as site:
            site.start_worker()
            yield site.dag
        return
    dag = Dagabaaz(make_app(task_always_eager=pool == "eager", **settings))
    declare_patterns(dag)
    if pool == "eager":
        yield dag
    else:
        with embedded_worker(dag.app, pool=pool):
            yield dag
    dag.close()
    dag.app.close()


def tagged(slug: str, *depends_on: str, **fields: Any) -> DagNode:
    """A node that puts its slug before the name of what it gets."""
    return node(slug, *depends_on, plugin="tag", bindings={"tag": ConfigSource(value=slug)}, **fields)


def merging(slug: str, *depends_on: str, fan_mode: str = "aggregate", **fields: Any) -> DagNode:
    return node(slug, *depends_on, plugin="merge", fan_mode=fan_mode, **fields)


def only(field: str, value: str) -> EdgeFilter:
    return EdgeFilter(rules=[FilterRule(field=field, operator="eq", value=value)])


def names(run: Any, slug: str) -> list[str | None]:
    return sorted(artifact.file_name for artifact in run.artifacts(slug))


def names_given(*given: str) -> dict[str, Any]:
    return {"names": list(given)}


def test_linear(dag: Dagabaaz):
    run = complete(dag, node("fetch"), tagged("a", "fetch"), tagged("b", "a"), input=names_given("x", "y"))
    assert names(run, "b") == ["b/a/x", "b/a/y"]
    assert node_statuses(run) == dict.fromkeys(("fetch", "a", "b"), "completed")


def test_scatter_and_gather(dag: Dagabaaz):
    run = complete(
        dag,
        node("fetch"),
        tagged("a", "fetch"),
        tagged("b", "fetch"),
        merging("merge", "a", "b", fan_mode="grouped"),
        input=names_given("x", "y", "z"),
    )
    assert run.result("merge") == [["a/x b/x"], ["a/y b/y"], ["a/z b/z"]]


@pytest.mark.parametrize(
    ("given", "ends", "video"),
    [
        (["a.mp4", "b.srt", "c.mp4"], {"video": "completed", "subtitle": "completed"}, ["a.mp4 c.mp4"]),
        (["b.srt"], {"video": "skipped", "subtitle": "completed"}, None),
        (["a.mp4"], {"video": "completed", "subtitle": "filtered"}, ["a.mp4"]),
    ],
)
def test_conditional_routing(dag: Dagabaaz, given: list[str], ends: dict[str, str], video: list[str] | None):
    run = complete(
        dag,
        node("fetch"),
        merging("video", "fetch", edge_filters={"fetch": only("file_type", "video")}),
        tagged("subtitle", "fetch", edge_filters={"fetch": only("file_type", "subtitle")}),
        input=names_given(*given),
    )
    assert node_statuses(run, ["video", "subtitle"]) == ends
    assert run.result("video") == video


def test_diamond(dag: Dagabaaz):
    run = complete(
        dag,
        node("fetch"),
        tagged("left", "fetch"),
        tagged("right", "fetch"),
        merging("end", "left", "right"),
        input=names_given("x", "y"),
    )
    assert run.result("end") == ["left/x left/y right/x right/y"]


def test_nested_passthrough(dag: Dagabaaz):
    run = complete(
        dag,
        node("fetch"),
        node("outer", "fetch", plugin="gate"),
        node("inner", "outer", plugin="gate"),
        tagged("single", "inner"),
        merging("all", "inner", "outer"),
        input=names_given("x", "y"),
    )
    assert names(run, "single") == ["single/x", "single/y"]
    assert run.result("all") == ["x y"]


def test_a_processing_node_without_output_is_no_gate(dag: Dagabaaz):
    run = complete(dag, node("fetch"), node("drop", "fetch"), tagged("after", "drop"), input=names_given("x", "y"))
    assert node_statuses(run, ["drop", "after"]) == {"drop": "completed", "after": "filtered"}


def test_broadcast(dag: Dagabaaz):
    run = complete(
        dag,
        node("fetch"),
        node("settings", fan_mode="aggregate"),
        tagged("a", "fetch"),
        merging("merge", "a", "settings", fan_mode="grouped"),
        input={**names_given("x", "y"), "language": "fr"},
    )
    assert run.result("merge") == [["a/x fr"], ["a/y fr"]]


def test_grouped_filter(dag: Dagabaaz):
    run = complete(
        dag,
        node("fetch"),
        tagged("a", "fetch"),
        tagged("b", "fetch"),
        merging("merge", "a", "b", fan_mode="grouped", edge_filters={"b": only("extension", ".srt")}),
        input=names_given("x.mp4", "y.srt"),
    )
    assert run.result("merge") == [["a/x.mp4"], ["a/y.srt b/y.srt"]]


def test_skips_cascade_and_filtered_nodes_do_not(dag: Dagabaaz):
    run = complete(
        dag,
        node("fetch"),
        merging("video", "fetch", edge_filters={"fetch": only("file_type", "video")}),
        merging("after-video", "video"),
        merging("last", "after-video", "fetch"),
        tagged("subtitle", "fetch", edge_filters={"fetch": only("file_type", "subtitle")}),
        merging("after-subtitle", "subtitle", "fetch"),
        input=names_given("x.txt"),
    )
    assert node_statuses(run) == {
        "fetch": "completed",
        "video": "skipped",
        "after-video": "skipped",
        "last": "skipped",
        "subtitle": "filtered",
        "after-subtitle": "completed",
    }
    assert run.result("after-subtitle") == ["x.txt"]


def test_several_roots(dag: Dagabaaz):
    run = complete(
        dag,
        node("one", plugin="fetch"),
        node("two", plugin="fetch"),
        node("alone", plugin="settings"),
        merging("all", "one", "two"),
        input=names_given("x"),
    )
    assert run.result("all") == ["x x"]
    assert run.result("alone") == {"language": "en"}


def test_a_split_below_the_root_is_gathered_by_its_parts(dag: Dagabaaz):
    run = complete(
        dag,
        node("fetch"),
        node("split", "fetch", scatter=True),
        tagged("a", "split"),
        tagged("b", "split"),
        merging("merge", "a", "b", fan_mode="grouped"),
        input=names_given("x"),
    )
    assert run.result("merge") == [["a/x#0 b/x#0"], ["a/x#1 b/x#1"]]


def test_bindings(dag: Dagabaaz):
    bindings = {
        "tag": ExpressionSource(expression="{input.prefix | upper}-{config.suffix}"),
        "file_name": RuntimeSource(key="name"),
    }
    run = complete(
        dag,
        node("settings"),
        node("named", "settings", plugin="tag", bindings=bindings, config={"suffix": "s"}),
        input={"prefix": "p", "name": "given"},
    )
    assert names(run, "named") == ["P-s/given"]


def test_failure(dag: Dagabaaz):
    run = fail(
        dag,
        node("fetch"),
        node("refuse", "fetch"),
        tagged("never", "refuse"),
        input=names_given("x", "y", "z"),
    )
    assert run.error is not None
    assert (run.error.type, run.error.node) == ("ValueError", "refuse")
    assert run.error.message.endswith("cannot be read")
    assert "raise ValueError" in run.error.traceback
    assert statuses(run, "never") == []
    assert set(statuses(run, "refuse")) <= {"failed", "cancelled", "pending", "queued", "running"}

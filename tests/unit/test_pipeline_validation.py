"""Everything that is wrong with a pipeline is told at once, each with its node and what to do."""

from collections.abc import Iterable

import pytest

from dagabaaz_celery.constants import FanMode, FilterOperator
from dagabaaz_celery.errors import PipelineError
from dagabaaz_celery.models import (
    ConfigSource,
    DagNode,
    EdgeFilter,
    ExpressionSource,
    FilterRule,
    InputBinding,
    NodeSource,
    RuntimeSource,
)
from dagabaaz_celery.pipeline import MAX_PROBLEMS, Pipeline
from dagabaaz_celery.pipeline_validation import REFUSED_OPTIONS
from dagabaaz_celery.plugins import PluginInfo


class Catalog:
    """Plugins by name."""

    def __init__(self, *plugins: PluginInfo) -> None:
        self._plugins = {plugin.name: plugin for plugin in plugins}

    def find(self, name: str) -> PluginInfo | None:
        return self._plugins.get(name)

    def names(self) -> Iterable[str]:
        return self._plugins


def node(slug: str, *depends_on: str, plugin: str = "work", **fields) -> DagNode:
    return DagNode(slug=slug, plugin=plugin, depends_on=list(depends_on), **fields)


def problems_of(*nodes: DagNode) -> list[str]:
    return Pipeline("media", nodes=nodes).problems()


def problems_of_binding(binding: InputBinding, **fields) -> list[str]:
    """Problems of a node `b` that depends on `a`, beside a node `other`."""
    return problems_of(node("a"), node("other"), node("b", "a", bindings={"url": binding}, **fields))


def test_a_sound_pipeline_has_no_problems():
    pipeline = Pipeline("media", nodes=[node("a"), node("b", "a"), node("c", "a", "b")])

    assert pipeline.problems() == []
    assert pipeline.problems(Catalog(PluginInfo(name="work", task_name="media.work"))) == []
    pipeline.check()


def test_every_problem_is_raised_at_once_one_a_line():
    pipeline = Pipeline("", nodes=[node("a", "bb"), node("b", options={"eta": 5}), node("c", "c", plugin="")])

    with pytest.raises(PipelineError) as caught:
        pipeline.check()

    assert caught.value.problems == [
        "the pipeline has no name: give it one",
        "node 'a': depends_on names 'bb', and no node has this slug; did you mean b?",
        "node 'b': options['eta'] is refused: the run decides when a task is sent; remove it",
        "node 'c': names no plugin: set plugin",
        "node 'c': depends on itself: remove it from depends_on",
    ]
    assert str(caught.value) == "\n- ".join(["[DGB301] Pipeline '' cannot run:", *caught.value.problems])


def test_a_flood_of_problems_is_cut():
    problems = problems_of(*(node(f"n{index}", "missing") for index in range(3000)))

    assert len(problems) == MAX_PROBLEMS + 1
    assert problems[-1] == "and more: mend these first"


# -- names and slugs


@pytest.mark.parametrize("name", ["media", "a", "Media 2: nightly-run_v1.2", "große Dateien", "x" * 200])
def test_names_that_can_be_used(name):
    assert Pipeline(name, nodes=[node("a")]).problems() == []


@pytest.mark.parametrize("name", [" media", "media.", "a/b", "a\nb", "-", "x" * 201, "a\x00b"])
def test_names_that_cannot_be_used(name):
    (problem,) = Pipeline(name, nodes=[node("a")]).problems()

    assert problem.startswith(f"the pipeline name {name!r} cannot be used: take 1 to 200 letters")


def test_a_pipeline_without_nodes():
    assert problems_of() == ["the pipeline has no nodes: add at least one DagNode"]


@pytest.mark.parametrize("slug", ["a.b", "a b", "-a", "a|b", "a{b", "é", "x" * 101])
def test_slugs_that_expressions_cannot_refer_to(slug):
    assert problems_of(node(slug)) == [
        f"node {slug!r}: expressions cannot refer to this slug: take 1 to 100 of A-Z a-z 0-9 _ -, not beginning with -"
    ]


@pytest.mark.parametrize("slug", ["a", "_", "a-b_2", "2a", "x" * 100])
def test_slugs_that_expressions_can_refer_to(slug):
    binding = ExpressionSource(expression=f"{{{slug}.url | upper}} {{list({slug}.a, {slug}.b)}}")

    assert problems_of(node(slug), node("reader", slug, bindings={"url": binding})) == []


@pytest.mark.parametrize("slug", ["input", "config"])
def test_reserved_slugs(slug):
    assert problems_of(node(slug)) == [f"node {slug!r}: this slug has its own meaning in expressions: choose another"]


def test_repeated_slugs():
    assert problems_of(node("a"), node("b"), node("a"), node("a")) == [
        "node 'a': nodes[0] and nodes[2] and nodes[3] have this slug: give each its own"
    ]


# -- dependencies


def test_unknown_and_repeated_dependencies():
    assert problems_of(node("source"), node("b", "sorce", "xyz", "source", "source")) == [
        "node 'b': depends_on names 'sorce', and no node has this slug; did you mean source?",
        "node 'b': depends_on names 'xyz', and no node has this slug: add that node",
        "node 'b': depends_on names 'source' 2 times: once is enough",
    ]


def test_each_cycle_is_told_once_from_its_first_node():
    problems = problems_of(
        node("root"), node("c", "b"), node("a", "c", "root"), node("b", "a"), node("x", "y"), node("y", "x")
    )

    assert problems == [
        "nodes wait for each other in a cycle, c -> a -> b -> c: remove one of these dependencies",
        "nodes wait for each other in a cycle, x -> y -> x: remove one of these dependencies",
    ]


def test_cycles_that_share_nodes_are_told_each():
    problems = problems_of(node("root"), node("a", "root", "b", "c"), node("b", "a"), node("c", "b"))

    assert [problem.partition(", ")[2].partition(":")[0] for problem in problems] == ["a -> b -> a", "a -> b -> c -> a"]


def test_a_diamond_is_no_cycle():
    assert problems_of(node("a"), node("b", "a"), node("c", "a"), node("d", "b", "c"), node("e", "d", "a")) == []


def test_a_pipeline_in_which_nothing_can_start():
    assert problems_of(node("a", "b"), node("b", "a")) == [
        "nodes wait for each other in a cycle, a -> b -> a: remove one of these dependencies",
        "no node can start: each depends on another; remove the dependencies of the one that begins",
    ]


def test_a_long_chain_and_a_long_cycle():
    chain = [node("n0"), *(node(f"n{i}", f"n{i - 1}") for i in range(1, 3000))]
    assert problems_of(*chain) == []

    chain[0] = node("n0", "n2999")
    cycle, _ = problems_of(*chain)
    assert "n0 -> n1 -> n2 -> n3 -> n4 -> n5 -> n6 -> n7 -> n8 -> n9 -> (2980 more) -> n2990" in cycle


def test_an_edge_filter_needs_its_dependency():
    found = EdgeFilter(rules=[FilterRule(field="file_type", operator=FilterOperator.EQ, value="video")])

    problems = problems_of(node("source"), node("b", "source", edge_filters={"sourc": found, "x": found}))

    assert problems == [
        "node 'b': edge_filters names 'sourc', which is not in depends_on; did you mean source?",
        "node 'b': edge_filters names 'x', which is not in depends_on: add it there, or remove the filter",
    ]


def test_an_edge_filter_holds_json():
    found = EdgeFilter(rules=[FilterRule(field="file_size", operator=FilterOperator.GT, value=float("inf"))])

    assert problems_of(node("a"), node("b", "a", edge_filters={"a": found})) == [
        "node 'b': edge_filters.a.rules[0].value: inf is not JSON; use null, or text"
    ]


# -- bindings


@pytest.mark.parametrize(
    "binding",
    [
        NodeSource(node="a", key="url"),
        ConfigSource(value={"a": [1]}),
        RuntimeSource(key="url", default=[1]),
        ExpressionSource(expression="{a.url | upper}"),
        ExpressionSource(expression="{list(a.url, input.url) | join(,)}"),
        ExpressionSource(expression="{config.format} {config.missing | default(mp4)}"),
        ExpressionSource(expression="no reference"),
    ],
)
def test_bindings_that_hold(binding):
    assert problems_of_binding(binding, config={"format": "mp4"}) == []


@pytest.mark.parametrize(
    ("binding", "problem"),
    [
        (NodeSource(node="other"), "names node 'other', which is not in depends_on: add it there"),
        (NodeSource(node="othr"), "names node 'othr', and no node has this slug; did you mean other?"),
        (NodeSource(node="xyz"), "names node 'xyz', and no node has this slug: name a dependency"),
        (NodeSource(node="b"), "names the node itself, whose artifacts are not there yet: name a dependency"),
        (ConfigSource(value={1}), "value: a set is not JSON; make it a list"),
        (RuntimeSource(default=b""), "default: a bytes is not JSON; write it to a file, or encode it as text"),
        (ExpressionSource(expression="{other.url}"), "names node 'other', which is not in depends_on: add it there"),
        (
            ExpressionSource(expression="{list(a.url, othr.url)}"),
            "names node 'othr', and no node has this slug; did you mean other?",
        ),
        (
            ExpressionSource(expression="{config.formt | required}"),
            "config.formt is not in the node's config; did you mean format?",
        ),
        (
            ExpressionSource(expression="{config.formt | required | default(x)}"),
            "config.formt is not in the node's config; did you mean format?",
        ),
        (
            ExpressionSource(expression="{config.zzz}"),
            "config.zzz is not in the node's config: add it, or give the expression a value with | default(…)",
        ),
    ],
)
def test_bindings_that_name_what_they_may_not(binding, problem):
    assert problems_of_binding(binding, config={"format": "mp4"}) == [f"node 'b': bindings['url']: {problem}"]


@pytest.mark.parametrize(
    ("expression", "start"),
    [
        ("{a.url", "Unclosed"),
        ("{a.url | uper}", "Unknown pipe 'uper'"),
        ("{url}", "Invalid reference 'url'"),
        ("{a.}", "Reference 'a.': key cannot be empty"),
    ],
)
def test_a_malformed_expression_is_told_with_its_field(expression, start):
    (problem,) = problems_of_binding(ExpressionSource(expression=expression))

    assert problem.startswith(f"node 'b': bindings['url']: {start}")
    assert problem.endswith(f", in {expression!r}")


# -- config, options, input


def test_config_options_and_default_input_are_json():
    nodes = [node("a", config={"x": {1}}, options={"queue": b"io", "headers": object()})]

    assert Pipeline("media", nodes=nodes, default_input={"y": float("nan")}).problems() == [
        "default_input.y: nan is not JSON; use null, or text",
        "node 'a': config.x: a set is not JSON; make it a list",
        "node 'a': options['headers'] is refused: the engine sends its own and reads them in the worker; remove it",
        "node 'a': options.queue: a bytes is not JSON; write it to a file, or encode it as text",
    ]


def test_config_is_not_endlessly_deep():
    deep: dict[str, object] = {}
    for _ in range(70):
        deep = {"x": deep}

    (problem,) = problems_of(node("a", config=deep))

    assert "is nested deeper than 64 levels. Flatten it" in problem


@pytest.mark.parametrize("option", sorted(REFUSED_OPTIONS))
def test_options_that_break_identity_or_delivery_are_refused_with_the_reason(option):
    assert problems_of(node("a", options={option: 1})) == [
        f"node 'a': options[{option!r}] is refused: {REFUSED_OPTIONS[option]}"
    ]


def test_the_options_that_must_be_refused_are():
    assert REFUSED_OPTIONS.keys() >= {
        *("task_id", "headers", "root_id", "parent_id", "eta", "countdown", "expires", "link", "link_error", "chord"),
        *("group_id", "serializer", "reply_to", "correlation_id", "shadow"),
    }


def test_other_options_pass_and_misspelt_ones_do_not():
    assert problems_of(node("a", options={"queue": "io", "priority": 3, "time_limit": 60, "app_id": "x"})) == []
    assert problems_of(node("a", options={"queu": "io"})) == [
        "node 'a': options['queu'] is no option of Celery's; did you mean queue?"
    ]


# -- plugins


def test_unknown_plugins():
    catalog = Catalog(PluginInfo(name="transcode", task_name="media.transcode"))
    pipeline = Pipeline("media", nodes=[node("a", plugin="transcod"), node("b", plugin="xyz")])

    assert pipeline.problems(catalog) == [
        "node 'a': no plugin is called 'transcod': correct the name, or import the module that registers the plugin "
        "before this one; did you mean transcode?",
        "node 'b': no plugin is called 'xyz': correct the name, or import the module that registers the plugin before "
        "this one",
    ]


def check_artifacts(child: DagNode, default: FanMode | None = None) -> list[str]:
    catalog = Catalog(
        PluginInfo(name="work", task_name="media.work"),
        PluginInfo(name="merge", task_name="media.merge", takes_artifacts=True, fan_mode=default),
    )
    return Pipeline("media", nodes=[node("a"), child]).problems(catalog)


@pytest.mark.parametrize(
    ("child", "default"),
    [
        (node("b", "a", plugin="merge"), None),
        (node("b", "a", plugin="merge"), FanMode.SINGLE),
        (node("b", "a", plugin="merge", fan_mode=FanMode.SINGLE), FanMode.AGGREGATE),
    ],
)
def test_artifacts_on_a_single_node_is_refused_with_the_fan_mode_to_use(child, default):
    assert check_artifacts(child, default) == [
        "node 'b': plugin 'merge' takes `artifacts`, and with fan mode single a task receives one artifact's own "
        "fields: set fan_mode to aggregate (all artifacts) or grouped (those of one origin)"
    ]


@pytest.mark.parametrize("fan_mode", [None, FanMode.AGGREGATE])
def test_artifacts_on_a_root_is_refused(fan_mode):
    root = node("b", plugin="merge", **({"fan_mode": fan_mode} if fan_mode else {}))

    assert check_artifacts(root) == [
        "node 'b': plugin 'merge' takes `artifacts`, and a root receives the run input instead: add depends_on, or "
        "bind the field `artifacts`"
    ]


@pytest.mark.parametrize(
    ("child", "default"),
    [
        (node("b", "a", plugin="merge", fan_mode=FanMode.AGGREGATE), None),
        (node("b", "a", plugin="merge", fan_mode=FanMode.GROUPED), FanMode.SINGLE),
        (node("b", "a", plugin="merge"), FanMode.AGGREGATE),
        (node("b", "a", plugin="merge", bindings={"artifacts": NodeSource(node="a")}), None),
        (node("b", plugin="merge", bindings={"artifacts": RuntimeSource()}), None),
    ],
)
def test_artifacts_where_a_task_receives_them(child, default):
    assert check_artifacts(child, default) == []


# -- what follows a run's end


def test_no_node_can_depend_on_a_finaliser():
    assert problems_of(
        node("a"), node("end", run_on="always"), node("b", "end"), node("c", "end", run_on="success")
    ) == [
        f"node {slug!r}: depends_on names the finaliser 'end', which runs when every other node is over: remove it "
        "there, or remove run_on from that node"
        for slug in ("b", "c")
    ]


def test_a_finaliser_has_one_task_and_neither_policy_nor_rollback():
    finaliser = {"run_on": "failure", "fan_mode": FanMode.GROUPED, "on_failure": "skip", "rollback": "undo"}

    assert problems_of(node("a"), node("end", "a", **finaliser)) == [
        "node 'end': a finaliser has one task, with all that its dependencies produced: leave out fan_mode, or set it "
        "to aggregate",
        "node 'end': a finaliser's failure never changes its run's end: leave out on_failure",
        "node 'end': a finaliser runs after everything was undone: leave out rollback, or run_on",
    ]
    assert problems_of(node("a"), node("end", "a", run_on="always", fan_mode=FanMode.AGGREGATE)) == []


def test_finalisers_alone_are_no_pipeline():
    assert problems_of(node("end", run_on="always")) == [
        "no node can start: finalisers run when every other node is over; add a node without run_on"
    ]


def test_a_finaliser_may_take_artifacts_without_a_fan_mode():
    takes = PluginInfo(name="work", task_name="media.work", takes_artifacts=True)
    pipeline = Pipeline("media", nodes=[node("a", plugin="plain"), node("end", "a", run_on="always")])

    assert pipeline.problems(Catalog(takes, PluginInfo(name="plain", task_name="media.plain"))) == []


def test_a_rollback_is_a_plugin_that_fits_what_it_undoes():
    work = PluginInfo(name="work", task_name="media.work")
    undo = PluginInfo(name="undo", task_name="media.undo", takes_artifacts=True)
    pipeline = Pipeline("media", nodes=[node("a"), node("b", "a", rollback="unwork"), node("c", "a", rollback="undo")])

    assert pipeline.problems(Catalog(work, undo)) == [
        "node 'b': rollback names 'unwork', and no plugin is called so: correct the name, or import the module that "
        "registers the plugin before this one; did you mean work?",
        "node 'c': plugin 'undo' takes `artifacts`, and with fan mode single a task receives one artifact's own "
        "fields: set fan_mode to aggregate (all artifacts) or grouped (those of one origin)",
    ]


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), float("inf"), 1e10])
def test_a_timeout_is_a_time(timeout):
    with pytest.raises(ValueError, match="timeout"):
        node("a", timeout=timeout)
    with pytest.raises(PipelineError, match="timeout"):
        Pipeline("media", nodes=[node("a")], timeout=timeout)

"""Everything that can be wrong with a pipeline before it runs, told at once: what, in which node, and what to do."""

import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from dagabaaz_celery.constants import FanMode
from dagabaaz_celery.errors import LimitExceeded, NotJson, suggest_closest
from dagabaaz_celery.expressions import (
    RESERVED_NAMESPACES,
    Token,
    iter_references,
    tokenize_expression,
    validate_expression,
)
from dagabaaz_celery.graph import build_children, build_slug_to_index_map
from dagabaaz_celery.json_door import check_json
from dagabaaz_celery.models import ConfigSource, DagNode, InputBinding, NodeSource, RuntimeSource
from dagabaaz_celery.plugins import PluginCatalog, PluginInfo
from dagabaaz_celery.secret_references import explain_bad_name, find_bound_secrets, find_secret_names

#: Letters, digits, spaces and . _ : -, so that a name fits a URL, a command line and an index of every database.
PIPELINE_NAME = re.compile(r"\w(?:[\w .:-]{0,198}\w)?")
#: What an expression can refer to: its reference is split at the first dot and ends at a space, comma, pipe or brace.
SLUG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,99}")

_IDENTITY = "the run's tasks are told apart by it; remove it"
_DELIVERY = "the run decides when a task is sent; remove it"
_CANVAS = "the graph decides what runs next; remove it and add a node that depends on this one"
_PAYLOAD = "the engine sends its own and reads them in the worker; remove it"
#: Celery publish options that would break the identity or delivery of a task, with the reason.
REFUSED_OPTIONS: Mapping[str, str] = {
    **dict.fromkeys(("task_id", "root_id", "parent_id", "group_id", "group_index", "correlation_id"), _IDENTITY),
    **dict.fromkeys(("message_id", "retries"), _IDENTITY),
    **dict.fromkeys(("eta", "countdown", "expires"), _DELIVERY),
    **dict.fromkeys(("link", "link_error", "chord", "chain"), _CANVAS),
    **dict.fromkeys(("args", "kwargs", "headers", "stamped_headers", "serializer"), _PAYLOAD),
    **dict.fromkeys(("content_type", "content_encoding"), _PAYLOAD),
    **dict.fromkeys(("shadow", "argsrepr", "kwargsrepr"), "monitors find a run's tasks by the engine's own; remove it"),
    "reply_to": "results are kept in the store; remove it and read run.result(slug)",
    **dict.fromkeys(("producer", "connection", "publisher"), "the app's own is used; remove it"),
}
#: Options that nodes usually carry; others pass on to the transport, unless they look like one of these misspelt.
KNOWN_OPTIONS = (
    *("queue", "routing_key", "exchange", "exchange_type", "priority", "time_limit", "soft_time_limit"),
    *("retry", "retry_policy", "compression", "delivery_mode", "mandatory", "ignore_result", "add_to_parent"),
)


def find_structural_problems(name: str, nodes: Sequence[DagNode], default_input: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with a pipeline whatever its plugins are. Nodes have slugs."""
    if not name:
        yield "the pipeline has no name: give it one"
    elif not PIPELINE_NAME.fullmatch(name):
        yield (
            f"the pipeline name {name!r} cannot be used: take 1 to 200 letters, digits, spaces and . _ : -, "
            "with a letter, digit or underscore at both ends"
        )
    yield from _find_json_problems(default_input, "default_input")
    if not nodes:
        yield "the pipeline has no nodes: add at least one DagNode"
        return
    slugs = build_slug_to_index_map(nodes)
    yield from _find_repeated_slugs(nodes)
    for node in nodes:
        for problem in _find_node_problems(node, slugs):
            yield f"node {node.slug!r}: {problem}"
    # Unlike the engine's resolve_dependency_indices, which logs what is told above and keeps what depends on itself.
    deps = [
        [slugs[slug] for slug in dict.fromkeys(node.depends_on) if slug in slugs and slug != node.slug]
        for node in nodes
    ]
    yield from _find_cycles(nodes, deps)
    yield from _find_finaliser_problems(nodes)
    if all(node.run_on for node in nodes):
        yield "no node can start: finalisers run when every other node is over; add a node without run_on"
    elif all(node.depends_on or node.run_on for node in nodes):
        yield "no node can start: each depends on another; remove the dependencies of the one that begins"


def find_plugin_problems(nodes: Sequence[DagNode], catalog: PluginCatalog) -> Iterator[str]:
    """What is wrong with nodes given the plugins that this process knows."""
    for node in nodes:
        plugin = catalog.find(node.plugin)
        if plugin is None:
            advice = "correct the name, or import the module that registers the plugin before this one"
            suggestion = suggest_closest(node.plugin, catalog.names())
            yield f"node {node.slug!r}: no plugin is called {node.plugin!r}: {advice}{suggestion}"
            continue
        fan_mode = get_effective_fan_mode(node, plugin)
        yield from _find_body_problems(node, plugin, fan_mode)
        if node.rollback:
            yield from _find_rollback_problems(node, fan_mode, catalog)


def _find_body_problems(node: DagNode, plugin: PluginInfo, fan_mode: FanMode) -> Iterator[str]:
    if not plugin.wrapped:
        yield from _find_secret_problems(node, plugin)
    if plugin.takes_artifacts and "artifacts" not in node.bindings:
        yield from _find_artifacts_problem(node, plugin, fan_mode)


def _find_rollback_problems(node: DagNode, fan_mode: FanMode, catalog: PluginCatalog) -> Iterator[str]:
    """The plugin that undoes a node's tasks gets their input."""
    plugin = catalog.find(node.rollback)
    if plugin is None:
        advice = "correct the name, or import the module that registers the plugin before this one"
        suggestion = suggest_closest(node.rollback, catalog.names())
        yield f"node {node.slug!r}: rollback names {node.rollback!r}, and no plugin is called so: {advice}{suggestion}"
    else:
        yield from _find_body_problems(node, plugin, fan_mode)


def get_effective_fan_mode(node: DagNode, plugin: PluginInfo) -> FanMode:
    """The node's own fan mode, else its plugin's default, else single; a finaliser gets all that there is."""
    if node.run_on is not None:
        return FanMode.AGGREGATE
    if "fan_mode" in node.model_fields_set:
        return node.fan_mode
    return plugin.fan_mode or FanMode.SINGLE


def _find_secret_problems(node: DagNode, plugin: PluginInfo) -> Iterator[str]:
    for field, name in find_bound_secrets(node.bindings):
        yield (
            f"node {node.slug!r}: bindings[{field!r}] names the secret ${name}, and task {plugin.task_name!r} runs by "
            "Celery's signals alone, so that its input travels in a message: register it with dag.plugin(task)"
        )


def _find_artifacts_problem(node: DagNode, plugin: PluginInfo, fan_mode: FanMode) -> Iterator[str]:
    if not node.depends_on:
        yield (
            f"node {node.slug!r}: plugin {plugin.name!r} takes `artifacts`, and a root receives the run input instead: "
            "add depends_on, or bind the field `artifacts`"
        )
    elif fan_mode is FanMode.SINGLE:
        yield (
            f"node {node.slug!r}: plugin {plugin.name!r} takes `artifacts`, and with fan mode single a task receives "
            "one artifact's own fields: set fan_mode to aggregate (all artifacts) or grouped (those of one origin)"
        )


def _find_finaliser_problems(nodes: Sequence[DagNode]) -> Iterator[str]:
    finalisers = {node.slug for node in nodes if node.run_on}
    for node in nodes:
        for slug in dict.fromkeys(node.depends_on):
            if slug in finalisers and slug != node.slug:
                yield (
                    f"node {node.slug!r}: depends_on names the finaliser {slug!r}, which runs when every other node is "
                    "over: remove it there, or remove run_on from that node"
                )
        if node.run_on is None:
            continue
        if "fan_mode" in node.model_fields_set and node.fan_mode is not FanMode.AGGREGATE:
            yield (
                f"node {node.slug!r}: a finaliser has one task, with all that its dependencies produced: leave out "
                "fan_mode, or set it to aggregate"
            )
        if node.on_failure != "fail":
            yield f"node {node.slug!r}: a finaliser's failure never changes its run's end: leave out on_failure"
        if node.rollback:
            yield f"node {node.slug!r}: a finaliser runs after everything was undone: leave out rollback, or run_on"


def _find_repeated_slugs(nodes: Sequence[DagNode]) -> Iterator[str]:
    indices: dict[str, list[int]] = {}
    for index, node in enumerate(nodes):
        indices.setdefault(node.slug, []).append(index)
    for slug, found in indices.items():
        if len(found) > 1:
            places = " and ".join(f"nodes[{index}]" for index in found)
            yield f"node {slug!r}: {places} have this slug: give each its own"


def _find_node_problems(node: DagNode, slugs: Collection[str]) -> Iterator[str]:
    if node.slug in RESERVED_NAMESPACES:
        yield "this slug has its own meaning in expressions: choose another"
    elif not SLUG.fullmatch(node.slug):
        yield "expressions cannot refer to this slug: take 1 to 100 of A-Z a-z 0-9 _ -, not beginning with -"
    if not node.plugin:
        yield "names no plugin: set plugin"
    yield from _find_dependency_problems(node, slugs)
    for field, binding in node.bindings.items():
        for problem in _find_binding_problems(binding, node, slugs):
            yield f"bindings[{field!r}]: {problem}"
    yield from _find_json_problems(node.config, "config")
    yield from find_option_problems(node.options)
    yield from _find_json_problems(
        {slug: found.model_dump(warnings=False) for slug, found in node.edge_filters.items()}, "edge_filters"
    )


def _find_dependency_problems(node: DagNode, slugs: Collection[str]) -> Iterator[str]:
    for slug, count in Counter(node.depends_on).items():
        if slug == node.slug:
            yield "depends on itself: remove it from depends_on"
        elif slug not in slugs:
            yield f"depends_on names {slug!r}, and no node has this slug{_advise(slug, slugs, 'add that node')}"
        if count > 1:
            yield f"depends_on names {slug!r} {count} times: once is enough"
    for slug in node.edge_filters:
        if slug not in node.depends_on:
            advice = _advise(slug, node.depends_on, "add it there, or remove the filter")
            yield f"edge_filters names {slug!r}, which is not in depends_on{advice}"


def _find_binding_problems(binding: InputBinding, node: DagNode, slugs: Collection[str]) -> Iterator[str]:
    if isinstance(binding, NodeSource):
        yield from _find_reference_problem(binding.node, node, slugs)
    elif isinstance(binding, ConfigSource):
        problems = list(_find_json_problems(binding.value, "value"))
        names = () if problems else find_secret_names(binding.value)  # what is no JSON may be deeper than we can look
        yield from problems
        yield from (problem for name in names if (problem := explain_bad_name(name)))
    elif isinstance(binding, RuntimeSource):
        yield from _find_json_problems(binding.default, "default")
    elif message := validate_expression(binding.expression):
        yield f"{message}, in {binding.expression!r}"
    else:
        for token in tokenize_expression(binding.expression):
            for reference in iter_references((token,)):
                yield from _find_expression_problem(reference, token, node, slugs)


def _find_expression_problem(reference: str, token: Token, node: DagNode, slugs: Collection[str]) -> Iterator[str]:
    namespace, _, key = reference.partition(".")
    if namespace not in RESERVED_NAMESPACES:
        yield from _find_reference_problem(namespace, node, slugs)
    elif namespace == "config" and key not in node.config and not _has_default(token):
        advice = _advise(key, node.config, "add it, or give the expression a value with | default(…)")
        yield f"{reference} is not in the node's config{advice}"


def _has_default(token: Token) -> bool:
    """Whether a missing value gets a default before anything requires it."""
    return next((pipe.name for pipe in token.pipes if pipe.name in ("default", "required")), None) == "default"


def _find_reference_problem(slug: str, node: DagNode, slugs: Collection[str]) -> Iterator[str]:
    """A task sees the artifacts of its node's dependencies and of no other node."""
    if slug == node.slug:
        yield "names the node itself, whose artifacts are not there yet: name a dependency"
    elif slug not in slugs:
        yield f"names node {slug!r}, and no node has this slug{_advise(slug, slugs, 'name a dependency')}"
    elif slug not in node.depends_on:
        yield f"names node {slug!r}, which is not in depends_on: add it there"


def find_option_problems(options: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with Celery publish options, a node's or those of any other place that may give them."""
    for option in options:
        if option in REFUSED_OPTIONS:
            yield f"options[{option!r}] is refused: {REFUSED_OPTIONS[option]}"
        elif option not in KNOWN_OPTIONS and (suggestion := suggest_closest(option, KNOWN_OPTIONS)):
            yield f"options[{option!r}] is no option of Celery's{suggestion}"
    yield from _find_json_problems(
        {key: value for key, value in options.items() if key not in REFUSED_OPTIONS}, "options"
    )


def _find_json_problems(value: object, what: str) -> Iterator[str]:
    try:
        check_json(value, what)
    except NotJson as error:
        yield from error.problems
    except LimitExceeded as error:
        yield error.message


def _find_cycles(nodes: Sequence[DagNode], deps: Sequence[Sequence[int]]) -> Iterator[str]:
    """One cycle for each edge that closes one: without those edges none is left. Graphs may be deep: no recursion."""
    children = build_children(deps)
    visited: set[int] = set()
    for start in range(len(nodes)):
        path: dict[int, Iterator[int]] = {} if start in visited else {start: iter(children[start])}
        while path:
            index, unseen = next(reversed(path.items()))
            visited.add(index)
            child = next(unseen, None)
            if child is None:
                del path[index]
            elif child in path:
                found = list(path)
                yield _describe_cycle([nodes[i].slug for i in _rotate(found[found.index(child) :])])
            elif child not in visited:
                path[child] = iter(children[child])


def _rotate(cycle: list[int]) -> list[int]:
    """The same cycle, begun at the node that stands first in the pipeline."""
    first = cycle.index(min(cycle))
    return cycle[first:] + cycle[:first]


def _describe_cycle(slugs: list[str]) -> str:
    shown = slugs if len(slugs) <= 20 else [*slugs[:10], f"({len(slugs) - 20} more)", *slugs[-10:]]
    path = " -> ".join([*shown, slugs[0]])
    return f"nodes wait for each other in a cycle, {path}: remove one of these dependencies"


def _advise(name: str, known: Collection[str], otherwise: str) -> str:
    return suggest_closest(name, known) or f": {otherwise}"

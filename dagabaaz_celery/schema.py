"""The form of a pipeline's run input: which fields it has, and how defaults and a user's values come together."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict

from dagabaaz_celery.bindings import get_run_input_key
from dagabaaz_celery.constants import BindingSource
from dagabaaz_celery.errors import RunInputError, suggest_closest
from dagabaaz_celery.expressions import extract_refs, iter_references, tokenize_expression
from dagabaaz_celery.models import DagNode, ExpressionError, ExpressionSource, InputBinding, NodeSource, RuntimeSource
from dagabaaz_celery.plugins import PluginLookup


class InputFieldSpec(BaseModel):
    """One field of a run's input. ``name`` is its key, ``label`` what a form shows beside it."""

    model_config = ConfigDict(frozen=True)

    name: str
    label: str
    placeholder: str = ""
    required: bool = False
    default: Any = ""


def get_pipeline_input_schema(nodes: Sequence[DagNode], plugin_lookup: PluginLookup) -> list[InputFieldSpec]:
    """The fields that a run of these nodes takes, each once.

    First come the inputs that plugins declare, then runtime bindings, then ``input.key`` in expressions; the first
    to name a field words it, and a binding's default holds in any case. What a node binds from elsewhere is no field.
    Raises ExpressionError for an expression that cannot be parsed.
    """
    declared = _collect_fields(_iter_declared_fields(nodes, plugin_lookup))
    bound = _collect_fields(_iter_bound_fields(nodes))
    referenced = _collect_fields(_iter_referenced_fields(nodes))
    fields = dict(declared)
    for name, field in bound.items():
        fields[name] = fields.get(name, field).model_copy(update={"default": field.default})
    for name, field in referenced.items():
        fields.setdefault(name, field)
    return list(fields.values())


def merge_run_input(
    schema_fields: Iterable[InputFieldSpec],
    default_input: Mapping[str, Any] | None,
    run_input: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """The input a run starts with: a field's default, over it the pipeline's, over it the user's.

    None and "" count as absent, everywhere. Keys that are no field pass. Raises RunInputError (a ValueError), which
    names by their labels the required fields that nobody gave.
    """
    fields = list(schema_fields)
    merged: dict[str, Any] = {}
    for layer in ({field.name: field.default for field in fields}, default_input or {}, run_input or {}):
        merged.update({key: value for key, value in layer.items() if not _is_absent(value)})
    missing = [field.label for field in fields if field.required and field.name not in merged]
    if missing:
        raise RunInputError(
            f"Required input missing: {', '.join(missing)}. Give each of them a value when starting the run.",
            [f"{label} is required" for label in missing],
        )
    return merged


def validate_binding_references(nodes: Sequence[DagNode], slug_to_index: Mapping[str, int]) -> str | None:
    """The first binding that names a node which its own node does not depend on, in words, or None."""
    for node in nodes:
        for field, binding in node.bindings.items():
            problem = _find_reference_problem(node, binding, slug_to_index)
            if problem:
                return f"Node {node.slug!r}, binding {field!r}: {problem}"
    return None


def _is_absent(value: Any) -> bool:
    return value is None or value == ""


def _collect_fields(fields: Iterable[InputFieldSpec]) -> dict[str, InputFieldSpec]:
    """Fields by name: the first to name one words it, and any may require it."""
    collected: dict[str, InputFieldSpec] = {}
    for field in fields:
        known = collected.setdefault(field.name, field)
        if field.required and not known.required:
            collected[field.name] = known.model_copy(update={"required": True})
    return collected


def _iter_declared_fields(nodes: Sequence[DagNode], plugin_lookup: PluginLookup) -> Iterator[InputFieldSpec]:
    for node in nodes:
        plugin = plugin_lookup(node.plugin)
        for declared in plugin.get_effective_inputs() if plugin else ():
            binding = node.bindings.get(declared.name, RuntimeSource())
            if declared.source != BindingSource.RUNTIME or not isinstance(binding, RuntimeSource):
                continue
            yield InputFieldSpec(
                name=get_run_input_key(binding, declared.name),
                label=declared.description or declared.name,
                placeholder=declared.placeholder,
                required=declared.required,
            )


def _iter_bound_fields(nodes: Sequence[DagNode]) -> Iterator[InputFieldSpec]:
    for node in nodes:
        for field, binding in node.bindings.items():
            if isinstance(binding, RuntimeSource):
                name = get_run_input_key(binding, field)
                yield InputFieldSpec(
                    name=name,
                    label=binding.label or name,
                    placeholder=binding.placeholder,
                    required=binding.required,
                    default=binding.default,
                )


def _iter_referenced_fields(nodes: Sequence[DagNode]) -> Iterator[InputFieldSpec]:
    for node in nodes:
        for binding in node.bindings.values():
            if isinstance(binding, ExpressionSource):
                yield from _iter_fields_of_expression(binding.expression)


def _iter_fields_of_expression(expression: str) -> Iterator[InputFieldSpec]:
    for token in tokenize_expression(expression):
        decisive = next((pipe.name for pipe in token.pipes if pipe.name in ("default", "required")), None)
        for reference in iter_references((token,)):
            namespace, _, key = reference.partition(".")
            if namespace == "input" and key:
                # One missing member of a list is not a missing list.
                required = token.kind == "ref" and decisive == "required"
                yield InputFieldSpec(name=key, label=key, required=required)


def _find_reference_problem(node: DagNode, binding: InputBinding, slug_to_index: Mapping[str, int]) -> str | None:
    try:
        slugs = _list_slugs(binding)
    except ExpressionError as error:
        return str(error)
    for slug in slugs:
        if slug not in slug_to_index:
            return f"no node has the slug {slug!r}{suggest_closest(slug, slug_to_index)}"
        if slug not in node.depends_on:
            return f"{slug!r} is not in the node's depends_on. Add it there, or bind from a node that is"
    return None


def _list_slugs(binding: InputBinding) -> list[str]:
    if isinstance(binding, NodeSource):
        return [binding.node]
    return sorted(extract_refs(binding.expression)[0]) if isinstance(binding, ExpressionSource) else []

"""How a task's input field gets its value: from upstream artifacts, a literal, the run input or an expression."""

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

from dagabaaz_celery.constants import ARTIFACT_STANDARD_FIELDS
from dagabaaz_celery.expressions import extract_refs, resolve_expression
from dagabaaz_celery.models import (
    ConfigSource,
    ExpressionSource,
    InputBinding,
    NodeSource,
    RuntimeSource,
    TaskArtifact,
)


def flatten_artifact(artifact: TaskArtifact) -> dict[str, Any]:
    """All of an artifact's data in one level: the metadata, under the standard fields, which win."""
    standard = artifact.to_input_dict()
    return {**standard.pop("metadata"), **standard}


def extract_artifact_field(artifacts: Sequence[TaskArtifact], key: str) -> Any:
    """What the artifacts hold under ``key``: None, one value bare, or a list of several; "" takes all their data.

    Metadata keeps its JSON type. An artifact that has nothing there adds nothing.
    """
    found = (_get_field(artifact, key) for artifact in artifacts)
    values = [value for value in found if value is not None]
    return values if len(values) > 1 else next(iter(values), None)


def resolve_binding(
    binding: InputBinding,
    artifacts_by_node: Mapping[int, Sequence[TaskArtifact]],
    slug_to_node_index: Mapping[str, int],
    run_input: Mapping[str, Any],
    node_config: Mapping[str, Any] | None = None,
) -> Any:
    """The value of a bound field; None when an upstream node offers none.

    A run input that is None or "" gives way to the binding's default. Raises ExpressionError.
    """
    match binding:
        case NodeSource():
            return _extract_from_node(artifacts_by_node, slug_to_node_index, binding.node, binding.key)
        case ConfigSource():
            return binding.value
        case RuntimeSource():
            value = run_input.get(binding.key)
            return binding.default if value is None or value == "" else value
        case ExpressionSource():
            lookup = build_expression_lookup(artifacts_by_node, slug_to_node_index, run_input, node_config)
            return resolve_expression(binding.expression, lookup)


def build_expression_lookup(
    artifacts_by_node: Mapping[int, Sequence[TaskArtifact]],
    slug_to_node_index: Mapping[str, int],
    run_input: Mapping[str, Any],
    node_config: Mapping[str, Any] | None = None,
) -> Callable[[str, str], Any]:
    """``lookup(namespace, key)`` over artifacts, run input and node config; what is not there is None.

    It remembers its answers: a template may name one field of a wide node many times.
    """
    named_values = {"input": run_input, "config": node_config or {}}

    @cache
    def lookup(namespace: str, key: str) -> Any:
        if namespace in named_values:
            return named_values[namespace].get(key)
        return _extract_from_node(artifacts_by_node, slug_to_node_index, namespace, key)

    return lookup


def get_run_input_key(binding: RuntimeSource, field: str) -> str:
    """The run input's key for a bound field: the binding's own, or the field's name."""
    return binding.key or field


def extract_node_indices_from_bindings(
    bindings: Mapping[str, InputBinding], slug_to_node_index: Mapping[str, int]
) -> set[int]:
    """Indices of the nodes whose artifacts the bindings read; a slug that no node has is left out."""
    slugs: set[str] = set()
    for binding in bindings.values():
        if isinstance(binding, NodeSource):
            slugs.add(binding.node)
        elif isinstance(binding, ExpressionSource):
            slugs |= extract_refs(binding.expression)[0]
    return {slug_to_node_index[slug] for slug in slugs if slug in slug_to_node_index}


def any_binding_requires_run_input(bindings: Mapping[str, InputBinding]) -> bool:
    """Whether a binding reads the run input, itself or in an expression."""
    return any(
        isinstance(binding, RuntimeSource)
        or (isinstance(binding, ExpressionSource) and bool(extract_refs(binding.expression)[1]))
        for binding in bindings.values()
    )


def _extract_from_node(
    artifacts_by_node: Mapping[int, Sequence[TaskArtifact]],
    slug_to_node_index: Mapping[str, int],
    slug: str,
    key: str,
) -> Any:
    index = slug_to_node_index.get(slug)
    return None if index is None else extract_artifact_field(artifacts_by_node.get(index, ()), key)


def _get_field(artifact: TaskArtifact, key: str) -> Any:
    if not key:
        return flatten_artifact(artifact)
    return getattr(artifact, key) if key in ARTIFACT_STANDARD_FIELDS else artifact.metadata.get(key)

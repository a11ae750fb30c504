"""A pipeline as its author writes it, and the definition that a run keeps of it."""

import hashlib
import itertools
import re
from collections.abc import Iterable, Mapping
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from dagabaaz_celery import pipeline_formats as formats
from dagabaaz_celery import pipeline_networkx as graphs
from dagabaaz_celery import pipeline_validation as validation
from dagabaaz_celery.errors import LimitExceeded, NotJson, PipelineError, RunInputError, format_problems
from dagabaaz_celery.graph import assign_slugs
from dagabaaz_celery.json_door import check_json
from dagabaaz_celery.models import DagNode, Seconds
from dagabaaz_celery.plugins import PluginCatalog, PluginInfo, PluginLookup
from dagabaaz_celery.schema import InputFieldSpec, get_pipeline_input_schema, merge_run_input

#: Problems told of one pipeline at once.
MAX_PROBLEMS = 100


class Pipeline(formats.PipelineDocument):
    """Nodes under a name: ``Pipeline("media", nodes=[DagNode(slug="source", plugin="fetch"), ...])``.

    Nodes may be given as mappings. Those without a slug get one, in the pipeline's own copies: the given nodes stay as
    they are. ``default_input`` fills what a run's input leaves out. ``timeout`` are the seconds that a run may take.
    ``version`` is set by the store that keeps the pipeline. Making one checks only the types; ``check`` tells the rest.

    Raises PipelineError with every problem at once.
    """

    def __init__(
        self,
        name: str = "",
        nodes: Iterable[DagNode | Mapping[str, Any]] = (),
        description: str = "",
        default_input: Mapping[str, Any] | None = None,
        version: int | None = None,
        timeout: float | None = None,
        **unknown: Any,
    ) -> None:
        texts = {"name": name, "description": description}
        given = {**texts, "nodes": nodes, "version": version, "timeout": timeout, **unknown}
        try:
            super().__init__(default_input={} if default_input is None else default_input, **given)
        except ValidationError as error:
            problems = formats.describe_validation_error(error)
            raise PipelineError(format_problems(f"Pipeline {name!r} cannot be made", problems), problems) from None

    @field_validator("nodes")
    @classmethod
    def _copy_with_slugs(cls, nodes: list[DagNode]) -> list[DagNode]:
        named = [DagNode(slug=node.slug, plugin=_make_slug_base(node.plugin)) for node in nodes]
        assign_slugs(named)
        return [node.model_copy(update={"slug": name.slug}) for node, name in zip(nodes, named, strict=True)]

    def problems(self, catalog: PluginCatalog | None = None) -> list[str]:
        """What is wrong with this pipeline, each with its node and what to do; with a catalog, its plugins too."""
        found = validation.find_structural_problems(self.name, self.nodes, self.default_input)
        if catalog is not None:
            found = itertools.chain(found, validation.find_plugin_problems(self.nodes, catalog))
        problems = list(itertools.islice(found, MAX_PROBLEMS))
        return problems if next(found, None) is None else [*problems, "and more: mend these first"]

    def check(self, catalog: PluginCatalog | None = None) -> None:
        """Raise PipelineError, whose ``problems`` lists them all, where ``problems()`` finds any."""
        if problems := self.problems(catalog):
            raise PipelineError(format_problems(f"Pipeline {self.name!r} cannot run", problems), problems)

    def resolve(self, catalog: PluginCatalog) -> "Definition":
        """Check the pipeline and fix what its plugins decide for it, so that later edits to them change no run of it.

        Raises PipelineError.
        """
        self.check(catalog)
        names = dict.fromkeys(name for node in self.nodes for name in (node.plugin, node.rollback) if name)
        plugins = {name: plugin for name in names if (plugin := catalog.find(name))}
        definition = Definition(
            name=self.name,
            description=self.description,
            default_input=self.default_input,
            timeout=self.timeout,
            nodes=[
                node.model_copy(update={"fan_mode": validation.get_effective_fan_mode(node, plugins[node.plugin])})
                for node in self.nodes
            ],
            plugins={name: PluginSnapshot.take(plugin) for name, plugin in plugins.items()},
        )
        return Definition.from_json(definition.to_json())  # shares nothing with what the caller may still change

    def input_schema(self, plugin_lookup: PluginLookup) -> list[InputFieldSpec]:
        """The fields of a run's input, as plugins, bindings and expressions declare them (pass ``catalog.find``)."""
        return get_pipeline_input_schema(self.nodes, plugin_lookup)

    def prepare_input(
        self, run_input: object, plugin_lookup: PluginLookup, *, max_bytes: int | None = None
    ) -> dict[str, Any]:
        """The input that a run starts with: a field's default < the pipeline's default input < ``run_input``.

        None stands for an empty input; ``max_bytes`` bounds the result as UTF-8 JSON. Raises RunInputError with every
        problem at once: required fields left out, and values that are not JSON, each with its path.
        """
        given = {} if run_input is None else run_input
        if not isinstance(given, dict):
            raise self._refuse_input([f"the input is of type {type(given).__name__}: pass a dict of names and values"])
        fields = self.input_schema(plugin_lookup)
        optional = [field.model_copy(update={"required": False}) for field in fields]  # what is missing is told below
        merged = merge_run_input(optional, self.default_input, given)
        problems = [_describe_missing(field) for field in fields if field.required and field.name not in merged]
        try:
            check_json(merged, "input", max_bytes=max_bytes, setting="dagabaaz_max_input_bytes")
        except NotJson as error:
            problems += error.problems
        except LimitExceeded as error:
            problems.append(error.message)
        if problems:
            raise self._refuse_input(problems)
        return merged

    def _refuse_input(self, problems: list[str]) -> RunInputError:
        return RunInputError(format_problems(f"Pipeline {self.name!r} cannot run with this input", problems), problems)

    @classmethod
    def load(cls, path: str | PathLike[str]) -> Self:
        """The pipeline in a ``.json``, ``.yaml`` or ``.yml`` file. Raises PipelineError, and OSError as open() does."""
        return cls._from_document(formats.read_file(Path(path)))

    @classmethod
    def inspect(cls, path: str | PathLike[str]) -> tuple[Self | None, list[str]]:
        """The pipeline in a file, and what is wrong with the file itself; None for one that cannot be read.

        A file with unknown fields is read without them, to look for what else is wrong. Raises OSError as open() does.
        """
        document, problems = formats.inspect_file(Path(path))
        return None if document is None else cls._from_document(document), problems

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """The pipeline that a JSON text describes. Raises PipelineError with line and column, or with paths."""
        return cls._from_document(formats.read_json(text))

    @classmethod
    def from_yaml(cls, text: str | bytes) -> Self:
        """The pipeline that a YAML text describes. Raises PipelineError with line and column, or with paths."""
        return cls._from_document(formats.read_yaml(text))

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """The pipeline that plain JSON data describes. Raises PipelineError with every problem and its path."""
        return cls._from_document(formats.read_data(data))

    @classmethod
    def from_networkx(cls, graph: Any, name: str | None = None, **fields: Any) -> Self:
        """The pipeline that a ``networkx.DiGraph`` draws: an edge goes from a node to one that depends on it.

        A node's name is its slug, and its plugin unless an attribute says otherwise; other attributes are DagNode's
        fields. An edge may have an ``edge_filter``. ``name`` and other fields of a pipeline are the graph's attributes
        where they are not given. The pipeline is checked as ``check`` does. Raises PipelineError with every problem,
        and ConfigurationError without networkx.
        """
        given, problems = graphs.read_graph(graph)
        given |= fields if name is None else {"name": name, **fields}
        try:
            pipeline = cls(**given)
            problems += pipeline.problems()
        except PipelineError as error:
            problems += error.problems
        if problems:
            raise PipelineError(format_problems("The graph cannot be read as a pipeline", problems), problems)
        return pipeline

    def to_networkx(self) -> Any:
        """The pipeline as a ``networkx.DiGraph`` that ``from_networkx`` reads back; its attributes are plain JSON data.

        Raises PipelineError for a pipeline that is no sound graph, and ConfigurationError without networkx.
        """
        self.check()
        return graphs.write_graph(self)

    def dump(self, path: str | PathLike[str]) -> None:
        """Write the pipeline to a file in the format that its suffix names."""
        formats.write_file(self, Path(path))

    def to_json(self) -> str:
        """The pipeline as indented JSON without its defaults."""
        return formats.write_json(self)

    def to_yaml(self) -> str:
        """The pipeline as YAML without its defaults."""
        return formats.write_yaml(self)

    def to_dict(self) -> dict[str, Any]:
        """The pipeline as plain JSON data without its defaults."""
        return formats.write_data(self)

    @staticmethod
    def json_schema() -> dict[str, Any]:
        """JSON Schema (2020-12) of a pipeline file: it accepts what ``load`` accepts."""
        return formats.build_json_schema()

    @classmethod
    def _from_document(cls, document: formats.PipelineDocument) -> Self:
        return cls(**{field: getattr(document, field) for field in formats.PipelineDocument.model_fields})


class PluginSnapshot(BaseModel):
    """What a definition keeps of a plugin (see PluginInfo)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    task_name: str
    passthrough: bool = False
    wrapped: bool = True
    options: dict[str, Any] = {}
    on_lost: Literal["rerun", "crash"] = "rerun"

    @classmethod
    def take(cls, plugin: PluginInfo) -> Self:
        """What a run needs of the plugin, as it is now."""
        return cls(**{field: getattr(plugin, field) for field in cls.model_fields})


class Definition(BaseModel):
    """A pipeline with everything decided, as its runs keep it: fan modes set, plugins by what they were.

    Where a node index is taken, ``~index`` (that is, -1 - index) stands for the undoing of that node.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    description: str = ""
    default_input: dict[str, Any] = {}
    timeout: Seconds | None = None
    nodes: list[DagNode]
    plugins: dict[str, PluginSnapshot]

    @cached_property
    def passthrough_indices(self) -> frozenset[int]:
        """Nodes whose plugin only routes."""
        return frozenset(index for index, node in enumerate(self.nodes) if self.is_passthrough(node.plugin))

    def is_passthrough(self, plugin_name: str) -> bool:
        """Whether the plugin only routes (what the engine calls resolve_passthrough)."""
        return self.plugins[plugin_name].passthrough

    @cached_property
    def finalisers(self) -> frozenset[int]:
        """Nodes that run when everything else is over."""
        return frozenset(index for index, node in enumerate(self.nodes) if node.run_on is not None)

    @cached_property
    def undoable(self) -> frozenset[int]:
        """Nodes whose tasks can be undone."""
        return frozenset(index for index, node in enumerate(self.nodes) if node.rollback)

    def node_of(self, node_index: int) -> DagNode:
        """A node, also by the index of its undoing."""
        return self.nodes[max(node_index, ~node_index)]

    def says_skip(self, node_index: int) -> bool:
        """Whether a failed task of the node means that those behind it are skipped."""
        return self.node_of(node_index).on_failure == "skip"

    def plugin_of(self, node_index: int) -> PluginSnapshot:
        """The plugin behind a node, or the one that undoes it."""
        node = self.node_of(node_index)
        return self.plugins[node.plugin if node_index >= 0 else node.rollback]

    def task_name_of(self, node_index: int) -> str:
        """The Celery task that runs a node."""
        return self.plugin_of(node_index).task_name

    def options_of(self, node_index: int) -> dict[str, Any]:
        """A node's Celery publish options: its plugin's, overlaid by its own; an undoing has its plugin's alone."""
        own = self.nodes[node_index].options if node_index >= 0 else {}
        return {**self.plugin_of(node_index).options, **own}

    def timeout_of(self, node_index: int) -> float | None:
        """Seconds that an attempt at a node's task may run; undoing may take its time."""
        return self.nodes[node_index].timeout if node_index >= 0 else None

    def on_lost_of(self, node_index: int) -> Literal["rerun", "crash"]:
        """What to do when a worker dies in a body of the node: as the node says, else as its plugin says."""
        own = self.nodes[node_index].on_lost if node_index >= 0 else None
        return own or self.plugin_of(node_index).on_lost

    def to_json(self) -> str:
        """JSON text that ``from_json`` reads back. Raises PipelineError for what JSON cannot hold."""
        return self._dump(sort_keys=False)

    def content_hash(self) -> str:
        """SHA-256 of the content in hex: the same for the same content, whatever the order of keys."""
        return hashlib.sha256(self._dump(sort_keys=True).encode()).hexdigest()

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """The definition that ``to_json`` wrote. Raises PipelineError for one that this release cannot read."""
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            problems = formats.describe_validation_error(error)
            heading = "The stored definition cannot be read; upgrade this process to the release that wrote it"
            raise PipelineError(format_problems(heading, problems), problems) from None

    def _dump(self, *, sort_keys: bool) -> str:
        # Defaults are left out, so that a release with one more field gives an unchanged pipeline the same hash.
        data = self.model_dump(exclude={"nodes"}, exclude_defaults=True, warnings=False)
        data["nodes"] = [formats.write_node(node) for node in self.nodes]
        return formats.dump_json(data, f"Pipeline {self.name!r} cannot be kept", sort_keys=sort_keys)


def _make_slug_base(plugin: str) -> str:
    """The plugin's name for a slug: expressions could not refer to the dots of a Celery task's name."""
    return re.sub(r"[^A-Za-z0-9_-]", "_", plugin.rpartition(".")[2]).lstrip("-") or "node"


def _describe_missing(field: InputFieldSpec) -> str:
    named = field.name if field.label in ("", field.name) else f"{field.label} ({field.name})"
    return f"{named} is required: pass input={{{field.name!r}: ...}}"

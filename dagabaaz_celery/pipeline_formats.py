"""Pipelines as text: JSON and YAML files, read strictly and written readably."""

import functools
import json
import operator
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from dagabaaz_celery import yaml_door
from dagabaaz_celery.errors import LimitExceeded, NotJson, PipelineError, format_problems, suggest_closest
from dagabaaz_celery.json_door import MAX_JSON_DEPTH, check_json, join_path
from dagabaaz_celery.models import (
    ConfigSource,
    DagNode,
    EdgeFilter,
    ExpressionSource,
    FilterRule,
    NodeSource,
    RuntimeSource,
    Seconds,
)

#: Size of a pipeline file, in bytes of UTF-8, and of a YAML file with its aliases written out.
MAX_PIPELINE_BYTES = 4 * 1024 * 1024
#: Levels of nesting of a pipeline file: those that a node's config may have, and what stands above it.
MAX_PIPELINE_DEPTH = MAX_JSON_DEPTH + 8

Format = TypeVar("Format", bound=Callable[..., object])

_BINDING_MODELS: dict[str, type[BaseModel]] = {
    "previous_node": NodeSource,
    "config": ConfigSource,
    "runtime": RuntimeSource,
    "expression": ExpressionSource,
}


class PipelineDocument(BaseModel):
    """What a pipeline file holds: these fields, in the order in which they are written."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    version: int | None = None
    description: str = ""
    default_input: dict[str, Any] = {}
    timeout: Seconds | None = None
    nodes: list[DagNode]


def read_file(path: Path) -> PipelineDocument:
    """The pipeline in a ``.json``, ``.yaml`` or ``.yml`` file. Raises PipelineError, and OSError as open() does."""
    return read_data(_parse_file(path), str(path))


def inspect_file(path: Path) -> tuple[PipelineDocument | None, list[str]]:
    """The pipeline in a file, and what is wrong with the file: one whose only fault are unknown fields is read all the
    same, without them. Raises OSError as open() does.
    """
    try:
        data = _parse_file(path)
    except PipelineError as error:
        return None, error.problems
    try:
        return read_data(data, str(path)), []
    except PipelineError as error:
        return _read_known_fields(data), error.problems


def _read_known_fields(data: object) -> PipelineDocument | None:
    """The pipeline without its unknown fields; None where something else is wrong with the data, too."""
    if not isinstance(data, Mapping):
        return None
    try:
        text = dump_json(dict(data), "")
        rest = json.loads(text)
        for field in _find_unknown_fields(text):
            *place, name = field
            functools.reduce(operator.getitem, place, rest).pop(name, None)
        return PipelineDocument.model_validate_json(json.dumps(rest), strict=True)
    except (PipelineError, ValidationError):
        return None


def _find_unknown_fields(text: str) -> list[tuple[int | str, ...]]:
    """The paths of fields that a pipeline has not."""
    try:
        PipelineDocument.model_validate_json(text, strict=True)
    except ValidationError as error:
        return [_strip_tags(found["loc"]) for found in error.errors() if found["type"] == "extra_forbidden"]
    return []


def _parse_file(path: Path) -> object:
    parse = _find_format(path, {".json": _parse_json, ".yaml": _parse_yaml, ".yml": _parse_yaml})
    with path.open("rb") as file:
        return parse(file.read(MAX_PIPELINE_BYTES + 1), str(path))


def write_file(document: PipelineDocument, path: Path) -> None:
    """Write the pipeline in the format that the suffix names."""
    write = _find_format(path, {".json": write_json, ".yaml": write_yaml, ".yml": write_yaml})
    path.write_bytes(write(document).encode())


def _find_format(path: Path, formats: Mapping[str, Format]) -> Format:
    try:
        return formats[path.suffix.lower()]
    except KeyError:
        raise _refuse(str(path), [f"its suffix names no format; use one of {', '.join(formats)}"]) from None


def read_json(text: str | bytes, source: str = "the JSON text") -> PipelineDocument:
    """The pipeline that ``text`` describes; ``source`` names the text in messages."""
    return read_data(_parse_json(text, source), source)


def _parse_json(text: str | bytes, source: str) -> object:
    text = _decode(text, source)
    try:
        return json.loads(text, object_pairs_hook=_build_object)
    except json.JSONDecodeError as error:
        raise _refuse(source, [f"line {error.lineno}, column {error.colno}: {error.msg}"]) from None
    except RecursionError:
        raise _refuse(source, ["it is nested too deeply"]) from None
    except ValueError as error:  # a repeated key, or a number with too many digits
        raise _refuse(source, [str(error)]) from None


def read_yaml(text: str | bytes, source: str = "the YAML text") -> PipelineDocument:
    """The pipeline that ``text`` describes; ``source`` names the text in messages."""
    return read_data(_parse_yaml(text, source), source)


def _parse_yaml(text: str | bytes, source: str) -> object:
    text = _decode(text, source)
    try:
        return yaml_door.parse_yaml(text, max_size=MAX_PIPELINE_BYTES, max_depth=MAX_PIPELINE_DEPTH)
    except ValueError as error:
        raise _refuse(source, [str(error)]) from None


def read_data(data: object, source: str = "the data") -> PipelineDocument:
    """The pipeline that plain JSON data describes: every field by its exact type, nothing coerced.

    Raises PipelineError with every problem at once, each with its path.
    """
    if not isinstance(data, Mapping):
        raise _refuse(source, [f"a pipeline is a mapping with name and nodes, not {_shorten(data)}"])
    text = dump_json(dict(data), _head(source))
    try:
        return PipelineDocument.model_validate_json(text, strict=True)
    except ValidationError as error:
        raise _refuse(source, describe_validation_error(error)) from None


def write_json(document: PipelineDocument) -> str:
    """The pipeline as indented JSON."""
    return json.dumps(write_data(document), indent=2, ensure_ascii=False) + "\n"


def write_yaml(document: PipelineDocument) -> str:
    """The pipeline as YAML."""
    return yaml_door.write_yaml(write_data(document))


def write_data(document: PipelineDocument) -> dict[str, Any]:
    """The pipeline as plain JSON data without its defaults. Raises PipelineError for what JSON cannot hold."""
    data = document.model_dump(exclude={"nodes"}, exclude_defaults=True, warnings=False)
    data["nodes"] = [write_node(node) for node in document.nodes]
    plain: dict[str, Any] = json.loads(dump_json(data, f"Pipeline {document.name!r} cannot be written"))
    return plain


def write_node(node: DagNode) -> dict[str, Any]:
    """The node's fields that are not their defaults; a fan mode that the author set always, since it is a decision."""
    data = node.model_dump(exclude_defaults=True, warnings=False)
    if "fan_mode" in node.model_fields_set:
        data["fan_mode"] = node.fan_mode
    if node.bindings:
        data["bindings"] = {
            field: {"source": binding.source, **binding.model_dump(exclude_defaults=True, warnings=False)}
            for field, binding in node.bindings.items()
        }
    return {field: data[field] for field in DagNode.model_fields if field in data}


def dump_json(data: Mapping[str, Any], heading: str, *, sort_keys: bool = False) -> str:
    """JSON text of a definition. Raises PipelineError, under ``heading``, for what JSON or a definition cannot hold."""
    try:
        return check_json(
            data, "pipeline", max_bytes=MAX_PIPELINE_BYTES, max_depth=MAX_PIPELINE_DEPTH, sort_keys=sort_keys
        )
    except NotJson as error:
        raise PipelineError(format_problems(heading, error.problems), error.problems) from None
    except LimitExceeded as error:
        raise PipelineError(format_problems(heading, [error.message]), [error.message]) from None


def build_json_schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of a pipeline file."""
    schema = PipelineDocument.model_json_schema()
    for model in _BINDING_MODELS.values():  # each has its source as a default, and a file must still name it
        definition = schema["$defs"][model.__name__]
        definition["required"] = ["source", *definition.get("required", [])]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "Pipeline"}


def describe_validation_error(error: ValidationError) -> list[str]:
    """Each problem that pydantic found as ``path: what is wrong``, once."""
    problems = (f"{_format_path(_strip_tags(found['loc']))}: {_explain(found)}" for found in error.errors())
    return list(dict.fromkeys(problems))


def _explain(found: ErrorDetails) -> str:
    loc, given = found["loc"], found["input"]
    match found["type"]:
        case "extra_forbidden":
            return f"unknown field{suggest_closest(str(loc[-1]), _known_fields(loc[:-1]))}"
        case "missing":
            return "required, and not there"
        case "union_tag_not_found":
            return f"source, one of {', '.join(_BINDING_MODELS)}, is required, and not there"
        case "union_tag_invalid":
            tag = str(found["ctx"]["tag"])
            return f"source is one of {', '.join(_BINDING_MODELS)}, not {tag}{suggest_closest(tag, _BINDING_MODELS)}"
        case "enum" | "literal_error":
            return f"one of {found['ctx']['expected']}, not {_shorten(given)}"
        case _ if _is_rule_value(loc):
            return f"text, a number or a list of texts, not {_shorten(given)}"
        case _:
            return f"{found['msg'].removeprefix('Value error, ')}, not {_shorten(given)}"


def _known_fields(loc: tuple[int | str, ...]) -> Iterable[str]:
    """The fields of the part of a pipeline that stands at ``loc``."""
    match loc:
        case ():
            return PipelineDocument.model_fields
        case ("nodes", int()):
            return DagNode.model_fields
        case ("nodes", int(), "edge_filters", str()):
            return EdgeFilter.model_fields
        case ("nodes", int(), "edge_filters", str(), "rules", int()):
            return FilterRule.model_fields
        case ("nodes", int(), "bindings", str(), str(tag)):
            return _BINDING_MODELS[tag].model_fields
        case _:
            return ()


def _is_rule_value(loc: tuple[int | str, ...]) -> bool:
    return loc[:1] == ("nodes",) and loc[2:3] == ("edge_filters",) and loc[6:7] == ("value",)


def _strip_tags(loc: tuple[int | str, ...]) -> tuple[int | str, ...]:
    """A path without the members of unions that pydantic writes into it, which no file contains."""
    if _is_rule_value(loc):
        return loc[:7]
    if loc[:1] == ("nodes",) and loc[2:3] == ("bindings",):
        return loc[:4] + loc[5:]
    return loc


def _format_path(loc: tuple[int | str, ...]) -> str:
    path = ""
    for step in loc:
        path = f"{path}[{step}]" if isinstance(step, int) else join_path(path, step)
    return path.removeprefix(".") or "the pipeline"


def _build_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    built = dict(pairs)
    if len(built) < len(pairs):
        (repeated, _), *_ = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"the key {repeated!r} stands in one object twice; keep one")
    return built


def _decode(text: str | bytes, source: str) -> str:
    """Text within the size of a pipeline. Raises PipelineError for more, and for what is not UTF-8."""
    try:
        raw = text.encode() if isinstance(text, str) else text
        if len(raw) > MAX_PIPELINE_BYTES:
            raise _refuse(source, [f"it is larger than {MAX_PIPELINE_BYTES:,} bytes; split the pipeline"])
        return raw.decode("utf-8-sig")
    except UnicodeError as error:
        raise _refuse(source, [f"it is not UTF-8 text: {error}"]) from None


def _refuse(source: str, problems: list[str]) -> PipelineError:
    return PipelineError(format_problems(_head(source), problems), problems)


def _head(source: str) -> str:
    return f"{source} cannot be read as a pipeline"


def _shorten(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."

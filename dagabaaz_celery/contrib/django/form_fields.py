"""The fields of a pipeline's input for a form: their types are those of the parameters that take them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date, datetime, time
from typing import Any
from uuid import UUID

from django import forms
from pydantic import TypeAdapter, ValidationError
from pydantic.errors import PydanticInvalidForJsonSchema

from dagabaaz_celery.app import Dagabaaz
from dagabaaz_celery.bindings import get_run_input_key
from dagabaaz_celery.models import DagNode, RuntimeSource
from dagabaaz_celery.pipeline import Definition, Pipeline
from dagabaaz_celery.schema import InputFieldSpec

Schema = Mapping[str, Any]

#: Fields that are made of text by Django, and kept as text of their ISO form.
_TEXT_FIELDS: dict[str, type[forms.Field]] = {
    "date": forms.DateField,
    "date-time": forms.DateTimeField,
    "time": forms.TimeField,
    "uuid": forms.UUIDField,
    "email": forms.EmailField,
}


@dataclass(frozen=True)
class InputField:
    """One field of a run's input. ``adapters`` check its value, one for each parameter that takes it.

    ``schema`` is the JSON Schema of the first of them; empty where nothing is known of the type.
    """

    name: str
    label: str
    placeholder: str = ""
    help_text: str = ""
    required: bool = False
    default: Any = None
    schema: Schema = field(default_factory=dict)
    adapters: tuple[TypeAdapter[Any], ...] = ()

    @property
    def type(self) -> Schema:
        """The part of the schema that says what a value is like, without references and without null."""
        return _resolve(self.schema, self.schema)

    def read(self, value: Any) -> tuple[Any, list[str]]:
        """A form's value as JSON data, None for none, and what is wrong with it."""
        if value is None or value == "":
            return None, []
        plain = value.isoformat() if isinstance(value, (date, datetime, time)) else value
        plain = str(plain) if isinstance(plain, UUID) else plain
        for adapter in self.adapters:
            try:
                adapter.validate_python(plain)
            except ValidationError as error:
                return None, [_describe(detail) for detail in error.errors()]
        return plain, []


def list_input_fields(dag: Dagabaaz, definition: Definition) -> list[InputField]:
    """What a run of this pipeline takes: its input schema, and the other parameters of its roots."""
    pipeline = Pipeline(definition.name, definition.nodes, default_input=definition.default_input)
    declared = {spec.name: spec for spec in pipeline.input_schema(dag.find_plugin)}
    takers = _find_takers(dag, definition, set(declared))
    specs = [*declared.values(), *(InputFieldSpec(name=name, label=name) for name in takers if name not in declared)]
    return [_describe_field(spec, takers.get(spec.name, []), definition.default_input) for spec in specs]


def make_field(spec: InputField) -> forms.Field:
    """Django's field for it."""
    schema = spec.type
    given: dict[str, Any] = {
        "label": _label(spec.label),
        "required": spec.required,
        "initial": spec.default,
        "help_text": spec.help_text,
    }
    made = _make_choice(schema, given) or _make_plain(schema, given)
    if spec.placeholder:
        made.widget.attrs["placeholder"] = spec.placeholder
    return made


@dataclass(frozen=True)
class _Taker:
    """A parameter that takes a field of the input; ``default`` is a tuple of it, or empty."""

    adapter: TypeAdapter[Any]
    default: tuple[Any, ...]
    is_root: bool


def _find_takers(dag: Dagabaaz, definition: Definition, declared: set[str]) -> dict[str, list[_Taker]]:
    """The parameters that take each field of the input, by the field's name."""
    takers: dict[str, list[_Taker]] = {}
    for node in definition.nodes:
        plugin = dag._find_plugin(node.plugin)
        if plugin is None:
            continue
        parameters = plugin.parameters
        own = {meta.name for meta in plugin.info.get_effective_inputs()}
        for name in parameters.names:
            key = _find_key(node, name, name in own and name in declared)
            if key is not None and name != "artifacts":
                default = (parameters.defaults[name],) if name in parameters.defaults else ()
                taker = _Taker(parameters.adapters[name], default, not node.depends_on and not node.bindings.get(name))
                takers.setdefault(key, []).append(taker)
    return takers


def _find_key(node: DagNode, name: str, is_declared: bool) -> str | None:
    """The field of the input that fills a parameter; None for one that is filled otherwise."""
    binding = node.bindings.get(name)
    if isinstance(binding, RuntimeSource):
        return get_run_input_key(binding, name)
    if binding is not None:
        return None
    return name if is_declared or not node.depends_on else None


def _describe_field(spec: InputFieldSpec, takers: list[_Taker], default_input: Mapping[str, Any]) -> InputField:
    adapters = tuple(taker.adapter for taker in takers)
    schema = _read_schema(adapters[0]) if adapters else {}
    layers = [taker.default[0] for taker in takers if taker.default]
    given = default_input.get(spec.name, spec.default if spec.default not in ("", None) else None)
    default = given if given is not None else next(iter(layers), None)
    missed = any(taker.is_root and not taker.default for taker in takers)
    return InputField(
        name=spec.name,
        label=spec.label,
        placeholder=spec.placeholder,
        help_text=str(schema.get("description", "")) if "properties" not in schema else "",
        required=(spec.required or missed) and given is None,
        default=_plain_default(adapters, default),
        schema=schema,
        adapters=adapters,
    )


def _read_schema(adapter: TypeAdapter[Any]) -> Schema:
    """Empty for a type that has none, such as one of the user's own."""
    try:
        return adapter.json_schema()
    except PydanticInvalidForJsonSchema:
        return {}


def _plain_default(adapters: tuple[TypeAdapter[Any], ...], default: Any) -> Any:
    """A default as JSON has it: an enum's value, a date as text."""
    if default is None or not adapters:
        return default
    return adapters[0].dump_python(default, mode="json", warnings=False)


def _resolve(schema: Schema, root: Schema) -> Schema:
    """Without references, and without the null of what may be left out."""
    if "$ref" in schema:
        found = root.get("$defs", {}).get(str(schema["$ref"]).rpartition("/")[2], {})
        return _resolve(found, root)
    choices = [each for each in schema.get("anyOf", ()) if each.get("type") != "null"]
    if len(choices) == 1:
        return _resolve(choices[0], root)
    if {each.get("type") for each in choices} == {"integer", "number"}:
        return {"type": "number"}
    return schema


def _make_choice(schema: Schema, given: dict[str, Any]) -> forms.Field | None:
    """A choice of values, each as it is written: a number stays a number."""
    values = [schema["const"]] if "const" in schema else schema.get("enum")
    if not values or any(isinstance(value, (list, dict)) for value in values):
        return None
    by_text = {str(value): value for value in values}
    empty = [] if given["required"] and given["initial"] is not None else [("", "---------")]
    return forms.TypedChoiceField(
        choices=[*empty, *((text, text) for text in by_text)],
        coerce=lambda text: by_text.get(text, text),
        empty_value=None,
        **given,
    )


def _make_plain(schema: Schema, given: dict[str, Any]) -> forms.Field:
    kind = schema.get("type")
    if kind == "boolean":
        return forms.BooleanField(**{**given, "required": False})
    if kind in ("integer", "number"):
        bounds = {"min_value": schema.get("minimum"), "max_value": schema.get("maximum")}
        return (forms.IntegerField if kind == "integer" else forms.FloatField)(**bounds, **given)
    if kind == "string" and schema.get("format") in _TEXT_FIELDS:
        return _TEXT_FIELDS[schema["format"]](**given)
    if kind == "string" or not (schema.keys() - {"title", "description", "default"}):
        lengths = {"min_length": schema.get("minLength"), "max_length": schema.get("maxLength")}
        return forms.CharField(empty_value=None, **lengths, **given)
    return forms.JSONField(**given) if kind in ("array", "object") else _JsonOrText(**given)


class _JsonOrText(forms.JSONField):
    """A value of several types, as one writes it: JSON where it is JSON, and text otherwise."""

    def to_python(self, value: Any) -> Any:
        """The value."""
        try:
            return super().to_python(value)
        except forms.ValidationError:
            return value


def _label(words: str) -> str:
    """As Django writes the names of fields."""
    return words.replace("_", " ").strip().capitalize() if words.isidentifier() else words


def _describe(detail: Any) -> str:
    place = ".".join(str(part) for part in detail["loc"])
    return f"{place}: {detail['msg']}" if place else str(detail["msg"])

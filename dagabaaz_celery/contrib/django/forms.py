"""A form for a pipeline's input: ``pipeline_form("media")`` is a form class whose cleaned data a run starts with."""

from collections.abc import Mapping
from typing import Any

from django import forms

from dagabaaz_celery.app import Dagabaaz
from dagabaaz_celery.contrib.django.form_fields import InputField, list_input_fields, make_field
from dagabaaz_celery.contrib.django.project import get_dag
from dagabaaz_celery.errors import RunInputError
from dagabaaz_celery.pipeline import Definition, Pipeline
from dagabaaz_celery.run import Run


class PipelineForm(forms.Form):
    """The input of a run. ``cleaned_data`` is JSON data, without what was left empty: defaults take its place."""

    pipeline: str | Pipeline
    version: int | None = None
    #: The input of a run, once the form is valid: ``cleaned_data`` without what a subclass added.
    run_input: Mapping[str, Any]
    _definition: Definition
    _inputs: Mapping[str, InputField]

    def clean(self) -> dict[str, Any]:
        """What ``dag.start`` takes; what it would refuse is told beside the field that it is about."""
        super().clean()
        given = {}
        for name, value in list(self.cleaned_data.items()):  # add_error takes what is wrong out of it
            spec = self._inputs.get(name)
            if spec is None:  # a field that a subclass added is its own business
                continue
            plain, problems = spec.read(value)
            if problems:
                self.add_error(name, problems)
            elif plain is not None:
                given[name] = plain
        if not self.errors:
            self._check(given)
        extra = {name: value for name, value in self.cleaned_data.items() if name not in self._inputs}
        self.run_input = given
        return {**extra, **given}

    def start(self, **options: Any) -> Run:
        """Start a run of the pipeline with a valid form's input; ``options`` are those of ``dag.start``.

        Raises ValueError for a form that is not valid, and whatever ``dag.start`` does.
        """
        if not self.is_valid():
            raise ValueError("The form is not valid: show it again, with its errors, in place of starting a run.")
        if self.version is not None:
            options.setdefault("version", self.version)
        return get_dag().start(self.pipeline, self.run_input, **options)

    def _check(self, given: dict[str, Any]) -> None:
        try:
            get_dag()._prepare_input(self._definition, given)
        except RunInputError as error:
            for problem in error.problems or [error.message]:
                self.add_error(self._find_field(problem), problem)

    def _find_field(self, problem: str) -> str | None:
        """The field that a problem names first."""
        for name, spec in self._inputs.items():
            if problem.startswith((f"{spec.label} ", f"{name} ", f"input.{name}:", f"input.{name}.", f"input.{name}[")):
                return name
        return None


def pipeline_form(
    pipeline: str | Pipeline, *, version: int | None = None, base: type[PipelineForm] = PipelineForm
) -> type[PipelineForm]:
    """A form class with a field for each input of a pipeline, typed as the plugins that take it have it.

    ``pipeline`` is a Pipeline, or the name of a registered or saved one. ``base`` is what the class inherits from; it
    may declare fields in place of those made here. Raises UnknownPipeline, PipelineError.
    """
    dag: Dagabaaz = get_dag()
    definition, _ = dag._find_definition(pipeline, version)
    inputs = list_input_fields(dag, definition)
    members: dict[str, Any] = {spec.name: make_field(spec) for spec in inputs if spec.name not in base.base_fields}
    members |= {
        "__module__": base.__module__,
        "pipeline": pipeline,
        "version": version,
        "_definition": definition,
        "_inputs": {spec.name: spec for spec in inputs},
    }
    return type(f"{_camel(definition.name)}Form", (base,), members)


def _camel(name: str) -> str:
    parts = "".join(letter if letter.isalnum() else " " for letter in name).split()
    return "".join(part[:1].upper() + part[1:] for part in parts) or "Pipeline"

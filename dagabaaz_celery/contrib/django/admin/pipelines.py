"""Pipelines: those that were saved, those that are registered in this process, and what a run keeps of its own."""

from collections.abc import Mapping
from typing import Any

from django.contrib import admin
from django.core.exceptions import PermissionDenied
from django.http import Http404
from django.template.response import TemplateResponse
from django.urls import path, reverse
from django.utils.safestring import mark_safe

from dagabaaz_celery.contrib.django.admin import show
from dagabaaz_celery.contrib.django.admin.base import StoreAdmin
from dagabaaz_celery.contrib.django.models import Definition, Pipeline
from dagabaaz_celery.contrib.django.project import get_dag
from dagabaaz_celery.drawing import draw_pipeline, format_seconds, to_svg
from dagabaaz_celery.errors import DagabaazError
from dagabaaz_celery.pipeline import Pipeline as WrittenPipeline


class PipelineAdmin(StoreAdmin):
    """Saved pipelines, with those of this process above them."""

    list_display = ("name", "version", "size", "saved", "runs")
    search_fields = ("name",)
    ordering = ("name", "-version")
    fields = ("name",)
    change_list_template = "admin/dagabaaz/pipeline/change_list.html"
    change_form_template = "admin/dagabaaz/pipeline/change_form.html"

    def get_queryset(self, request: Any) -> Any:
        """With each content once."""
        return super().get_queryset(request).prefetch_related("definition")

    @admin.display(description="nodes")
    def size(self, pipeline: Pipeline) -> int:
        """How many."""
        return len(pipeline.definition.body["nodes"])

    @admin.display(description="saved")
    def saved(self, pipeline: Pipeline) -> str:
        """When."""
        return show.when(pipeline.created_at)

    @admin.display(description="runs")
    def runs(self, pipeline: Pipeline) -> Any:
        """Those of the pipeline, of any version."""
        return show.link(show.list_url("run", pipeline=pipeline.name), "runs")

    def get_urls(self) -> list[Any]:
        """Pages of pipelines that are no rows of their own, before those that take any id."""
        view = self.admin_site.admin_view
        return [
            path("registered/<path:name>/", view(self.registered_view), name="dagabaaz_pipeline_registered"),
            path("definition/<str:content>/", view(self.definition_view), name="dagabaaz_pipeline_definition"),
            *super().get_urls(),
        ]

    def changelist_view(self, request: Any, extra_context: Any = None) -> Any:
        """With the registered ones."""
        registered = [
            (name, reverse("admin:dagabaaz_pipeline_registered", args=[name])) for name in sorted(_registered())
        ]
        return super().changelist_view(request, {"registered": registered, **(extra_context or {})})

    def render_change_form(self, request: Any, context: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """A saved version's page."""
        saved = kwargs["obj"]
        page = describe(saved.definition.body, version=saved.version, since=saved.created_at)
        return super().render_change_form(request, {**context, "page": page}, *args, **kwargs)

    def registered_view(self, request: Any, name: str) -> Any:
        """A registered pipeline's page."""
        found = _registered().get(name)
        if found is None:
            raise Http404(f"No pipeline {name!r} is registered in this process.")
        return self._show(request, describe(found.to_dict(), registered=True))

    def definition_view(self, request: Any, content: str) -> Any:
        """The pipeline that runs keep, by its hash."""
        found = Definition.objects.filter(pk=content).first()
        if found is None:
            raise Http404("No run has such a pipeline.")
        return self._show(request, describe(found.body, since=found.created_at))

    def _show(self, request: Any, page: dict[str, Any]) -> Any:
        if not self.has_view_permission(request):
            raise PermissionDenied
        context = {
            **self.admin_site.each_context(request),
            "opts": self.opts,
            "title": page["name"],
            "page": page,
            "media": self.media,
        }
        return TemplateResponse(request, "admin/dagabaaz/pipeline/show.html", context)


def describe(
    body: Mapping[str, Any], *, version: int | None = None, registered: bool = False, since: Any = None
) -> dict[str, Any]:
    """What the page of a pipeline shows, of the pipeline as plain data."""
    known = {field: body[field] for field in ("name", "nodes", "description", "timeout") if field in body}
    pipeline = WrittenPipeline(**known)
    facts = [
        ("Version", version),
        ("Where", "registered in this process" if registered else None),
        ("Since", None if since is None else show.when(since)),
        ("Time limit", None if pipeline.timeout is None else format_seconds(pipeline.timeout)),
        ("Nodes", len(pipeline.nodes)),
    ]
    return {
        "name": pipeline.name,
        "description": pipeline.description,
        "facts": [(name, value) for name, value in facts if value is not None],
        "graph": mark_safe(to_svg(draw_pipeline(pipeline))),  # noqa: S308  # it escapes what it is given
        "nodes": pipeline.nodes,
        "default_input": show.as_json(body["default_input"]) if body.get("default_input") else None,
        "definition": show.as_json({name: value for name, value in body.items() if name != "plugins"}),
        "runs_url": show.list_url("run", pipeline=pipeline.name),
    }


def _registered() -> dict[str, WrittenPipeline]:
    """The pipelines of this process; none where the project's Celery app was not found, which ``check`` tells."""
    try:
        return dict(get_dag()._pipelines)
    except DagabaazError:
        return {}

"""The list of runs, a run's page, and what may be done to runs there."""

from typing import Any
from uuid import UUID

from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.http import Http404, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import path
from django.utils.html import format_html, format_html_join
from django.utils.safestring import mark_safe

from dagabaaz_celery.contrib.django.admin import show
from dagabaaz_celery.contrib.django.admin.base import StoreAdmin
from dagabaaz_celery.contrib.django.admin.filters import (
    AgeFilter,
    PipelineFilter,
    TagFilter,
    find_tagged,
    list_pipelines_of_runs,
)
from dagabaaz_celery.contrib.django.admin.run_page import read_page
from dagabaaz_celery.contrib.django.admin.steering import STEPS, Step, list_steps
from dagabaaz_celery.contrib.django.models import Run, Task
from dagabaaz_celery.errors import DagabaazError

#: Runs that one action is done to; for more there is dag.cancel() and the command line.
MAX_CHOSEN = 500
#: Refusals that are told one by one.
_MAX_TOLD = 5


class RunAdmin(StoreAdmin):
    """Runs."""

    list_display = ("named", "state", "nodes", "started", "took", "marks", "problem")
    list_filter = ("status", PipelineFilter, AgeFilter, TagFilter)
    search_fields = ("id",)
    search_help_text = "The id of a run or of a task of it, a key, or a tag as name=value"
    ordering = ("-id",)
    fields = ("pipeline",)
    actions = ("retry", "cancel", "rollback")
    change_form_template = "admin/dagabaaz/run/change_form.html"

    class Media:
        js = ("dagabaaz/progress.js",)

    def get_queryset(self, request: Any) -> Any:
        """Without what a list does not show, which may be large; a run's page reads it when it comes to it."""
        return super().get_queryset(request).filter(pruned_at=None).defer("input", "options").prefetch_related("tags")

    def get_search_results(self, request: Any, queryset: Any, search_term: str) -> tuple[Any, bool]:
        """Runs by something that an index finds."""
        term = search_term.strip()
        if not term:
            return queryset, False
        if (given := _read_id(term)) is not None:
            of_tasks = [
                *Task.objects.filter(pk=given).values_list("run_id", flat=True),
                *Task.objects.filter(attempt_id=given).values_list("run_id", flat=True),
            ]
            return queryset.filter(pk__in=[given, *of_tasks]), False
        if "=" not in term:
            keys = Run.objects.filter(pipeline__in=list_pipelines_of_runs(), key=term).order_by()
            if found := list(keys.values_list("pk", flat=True)[:1000]):
                return queryset.filter(pk__in=found), False
        return queryset.filter(pk__in=find_tagged(term)), False

    # -- columns

    @admin.display(description="run")
    def named(self, run: Run) -> Any:
        """Its pipeline and its id."""
        return format_html('{} <code class="dagabaaz-id">{}</code>', run.pipeline, run.pk)

    @admin.display(description="status")
    def state(self, run: Run) -> Any:
        """Where it is in its life."""
        paused = ", paused" if run.paused and run.ended_at is None else ""
        undone = "" if run.rollback_status == "none" else f", rollback {run.rollback_status}"
        return show.state(run.status, paused + undone)

    @admin.display(description="nodes")
    def nodes(self, run: Run) -> Any:
        """How many are over."""
        return show.bar(run.nodes_done, run.nodes_total)

    @admin.display(description="key and tags")
    def marks(self, run: Run) -> Any:
        """By what it is found; a tag leads to the runs that have it."""
        tags = [f"{tag.name}={tag.value}" for tag in run.tags.all()]
        links = [show.link(show.list_url("run", tag=tag), tag) for tag in tags]
        return format_html_join(mark_safe("<br>"), "{}", [(mark,) for mark in (run.key, *links) if mark])

    @admin.display(description="started")
    def started(self, run: Run) -> str:
        """When."""
        return show.when(run.created_at)

    @admin.display(description="took")
    def took(self, run: Run) -> str:
        """How long."""
        return show.took(run.created_at, run.ended_at)

    @admin.display(description="error")
    def problem(self, run: Run) -> str:
        """Its beginning."""
        line = show.error_line(run.error)
        return line if len(line) <= 120 else f"{line[:120]}…"

    # -- a run's page

    def get_urls(self) -> list[Any]:
        """The page's own addresses, before those that take any id."""
        view = self.admin_site.admin_view
        return [
            path("<str:run_id>/live/", view(self.live_view), name="dagabaaz_run_live"),
            path("<str:run_id>/steer/<str:step>/", view(self.steer_view), name="dagabaaz_run_steer"),
            *super().get_urls(),
        ]

    def render_change_form(self, request: Any, context: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """With all that the page shows."""
        page = read_page(kwargs["obj"], request.user)
        return super().render_change_form(request, {**context, "page": page}, *args, **kwargs)

    def live_view(self, request: Any, run_id: str) -> Any:
        """What changes of the page, as it is now."""
        run = self._get_run(request, run_id)
        response = TemplateResponse(request, "admin/dagabaaz/run/live.html", {"page": read_page(run, request.user)})
        response["Cache-Control"] = "no-store"
        return response

    def steer_view(self, request: Any, run_id: str, step: str) -> Any:
        """Ask whether it shall be done, and do it."""
        run = self._get_run(request, run_id)
        if step not in STEPS:
            raise Http404(f"Nothing is called {step!r}.")
        chosen = STEPS[step]
        if not request.user.has_perm(chosen.permission):
            raise PermissionDenied
        if request.method == "POST":
            self._steer(request, [run], chosen)
            return HttpResponseRedirect(show.page_url("run", run.pk))
        context = {
            **self.admin_site.each_context(request),
            "opts": self.opts,
            "title": f"{chosen.label}?",
            "run": run,
            "step": chosen,
            "suits": chosen in list_steps(request.user, run),
            "back": show.page_url("run", run.pk),
        }
        return TemplateResponse(request, "admin/dagabaaz/run/steer.html", context)

    def _get_run(self, request: Any, run_id: str) -> Run:
        if not self.has_view_permission(request):
            raise PermissionDenied
        run = self.get_object(request, run_id)
        if run is None:
            raise Http404(f"There is no run {run_id!r}.")
        return run  # type: ignore[no-any-return]  # Django's admin has no types

    # -- actions

    @admin.action(description="Retry selected runs", permissions=["retry"])
    def retry(self, request: Any, queryset: Any) -> None:
        """Run again what did not complete."""
        self._steer_all(request, queryset, STEPS["retry"])

    @admin.action(description="Cancel selected runs", permissions=["cancel"])
    def cancel(self, request: Any, queryset: Any) -> None:
        """End them."""
        self._steer_all(request, queryset, STEPS["cancel"])

    @admin.action(description="Roll back selected runs", permissions=["rollback"])
    def rollback(self, request: Any, queryset: Any) -> None:
        """Undo what they did."""
        self._steer_all(request, queryset, STEPS["rollback"])

    def has_retry_permission(self, request: Any) -> bool:
        """Whether the action is offered, and done."""
        return bool(request.user.has_perm(STEPS["retry"].permission))

    def has_cancel_permission(self, request: Any) -> bool:
        """Whether the action is offered, and done."""
        return bool(request.user.has_perm(STEPS["cancel"].permission))

    def has_rollback_permission(self, request: Any) -> bool:
        """Whether the action is offered, and done."""
        return bool(request.user.has_perm(STEPS["rollback"].permission))

    def _steer_all(self, request: Any, queryset: Any, step: Step) -> None:
        runs = list(queryset.prefetch_related(None)[: MAX_CHOSEN + 1])
        if len(runs) > MAX_CHOSEN:
            words = f"More than {MAX_CHOSEN} runs were chosen, and none was {step.done}: choose fewer at once."
            self.message_user(request, words, messages.ERROR)
            return
        self._steer(request, runs, step)

    def _steer(self, request: Any, runs: list[Run], step: Step) -> None:
        """Do it to each, and tell what became of it."""
        who, done, refusals = request.user.get_username(), 0, []
        for run in runs:
            try:
                step.call(run.handle, who)
            except DagabaazError as error:
                refusals.append(error.message)
            else:
                self.log_change(request, run, f"{step.label}: asked for in the admin.")
                done += 1
        if done:
            words = f"Run {runs[0].pk} was {step.done}." if len(runs) == 1 else f"{done} of {len(runs)} {step.done}."
            self.message_user(request, words, messages.SUCCESS)
        for refusal in refusals[:_MAX_TOLD]:
            self.message_user(request, refusal, messages.ERROR)
        if len(refusals) > _MAX_TOLD:
            self.message_user(request, f"… and {len(refusals) - _MAX_TOLD} more were refused.", messages.ERROR)


def _read_id(term: str) -> str | None:
    try:
        return str(UUID(term))
    except ValueError:
        return None

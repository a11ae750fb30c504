"""The parts of a run: its nodes, its tasks, and what they produced. The run's page links to lists of its own."""

from typing import Any
from uuid import UUID

from django.contrib import admin
from django.db.models import Case, Count, Exists, F, Max, OuterRef, Prefetch, Subquery, When
from django.urls import reverse
from django.utils.html import format_html, format_html_join

from dagabaaz_celery.constants import RUN_TERMINAL_STATUSES
from dagabaaz_celery.contrib.django.admin import show
from dagabaaz_celery.contrib.django.admin.base import StoreAdmin
from dagabaaz_celery.contrib.django.admin.filters import NodeFilter, RunFilter, find_run
from dagabaaz_celery.contrib.django.models import Artifact, Node, Run, Task, Worker
from dagabaaz_celery.stores.sql.tables import OPEN_TASK_STATUSES


class PartAdmin(StoreAdmin):
    """A part of a run. Without a run the list begins with what is newest, as the primary key has it."""

    newest_first: tuple[str, ...] = ("-id",)
    in_order: tuple[str, ...] = ()

    def get_queryset(self, request: Any) -> Any:
        """With each run once, and each pipeline once: a list's rows are mostly of one."""
        runs = Run.objects.defer("input", "options", "error")
        return super().get_queryset(request).prefetch_related(Prefetch("run", runs), "run__definition")

    def get_ordering(self, request: Any) -> tuple[str, ...]:
        """A run's parts in their order."""
        return self.newest_first if find_run(request) is None else self.in_order

    def get_list_display(self, request: Any) -> list[str]:
        """The run only where there are several."""
        shown = super().get_list_display(request)
        return list(shown) if find_run(request) is None else [name for name in shown if name != "of_run"]

    @admin.display(description="id")
    def named(self, part: Any) -> Any:
        """In small letters: it is long."""
        return format_html('<code class="dagabaaz-id">{}</code>', part.pk)

    @admin.display(description="run")
    def of_run(self, part: Any) -> Any:
        """Its page."""
        return show.page_link("run", part.run_id, str(part.run))

    @admin.display(description="pipeline")
    def of_pipeline(self, part: Any) -> Any:
        """As the run keeps it."""
        url = reverse("admin:dagabaaz_pipeline_definition", args=[part.run.definition_id])
        return show.link(url, part.run.pipeline)

    @admin.display(description="node")
    def of_node(self, part: Any) -> Any:
        """Its page."""
        words = f"{part.slug} (undoes)" if part.node_index < 0 else part.slug
        return show.page_link("node", f"{part.run_id}:{part.node_index}", words)

    @admin.display(description="status")
    def state(self, part: Any) -> Any:
        """With its shape."""
        return show.state(part.status)


class NodeAdmin(PartAdmin):
    """Nodes of runs."""

    list_display = ("name", "of_run", "state", "counted", "opened", "took")
    list_filter = (RunFilter, "status")
    newest_first = ("-run_id", "-index")
    in_order = ("run_id", "index")
    fieldsets = (
        (None, {"fields": ("name", "of_run", "of_pipeline", "plugin", "state", "behind", "before")}),
        ("Tasks", {"fields": ("counted", "tasks", "artifacts")}),
        ("Times", {"fields": ("opened", "closed", "took")}),
        ("As the pipeline has it", {"fields": ("definition",)}),
    )

    def get_queryset(self, request: Any) -> Any:
        """With when each ended: one that did not complete did so with its last task, once its run is over."""
        of_node = Task.objects.filter(run_id=OuterRef("run_id"), node_index=OuterRef("index")).order_by()
        last = of_node.values("node_index").annotate(last=Max("ended_at")).values("last")
        is_left = When(
            Exists(Run.objects.filter(pk=OuterRef("run_id"), ended_at__isnull=False))
            & ~Exists(of_node.filter(status__in=[each.value for each in OPEN_TASK_STATUSES])),
            closed_at__isnull=True,
            opened_at__isnull=False,
            then=Subquery(last),
        )
        return super().get_queryset(request).annotate(over_at=Case(is_left, default=F("closed_at")))

    @admin.display(description="node")
    def name(self, node: Node) -> str:
        """What the pipeline calls it."""
        return f"{node.slug} (undoes)" if node.undoes else node.slug

    @admin.display(description="status")
    def state(self, node: Node) -> Any:
        """In the words of the graph, as far as the node alone tells."""
        is_over = node.run.status in RUN_TERMINAL_STATUSES
        if node.status == "blocked":
            return show.state("not run" if is_over else "waiting")
        if node.status in ("launching", "launched"):
            return show.state("not completed" if is_over and not node.undoes else "running")
        return show.state(node.status)

    @admin.display(description="plugin")
    def plugin(self, node: Node) -> str:
        """What its tasks run."""
        written = _written(node)
        return str(written["rollback"] if node.undoes else written["plugin"])

    @admin.display(description="depends on")
    def behind(self, node: Node) -> Any:
        """The nodes that it waits for."""
        return _link_nodes(node, _written(node).get("depends_on", []))

    @admin.display(description="needed by")
    def before(self, node: Node) -> Any:
        """The nodes that wait for it."""
        own = _written(node)["slug"]
        return _link_nodes(node, [one["slug"] for one in _all(node) if own in one.get("depends_on", [])])

    @admin.display(description="done")
    def counted(self, node: Node) -> Any:
        """Tasks done of all."""
        return show.bar(node.tasks_done, node.tasks_total)

    @admin.display(description="tasks")
    def tasks(self, node: Node) -> Any:
        """How many in which status, each with its list."""
        tasks = Task.objects.filter(run_id=node.run_id, node_index=node.index)
        counts = tasks.order_by("status").values_list("status").annotate(count=Count("pk"))
        links = [
            (show.link(show.list_url("task", run=node.run_id, node=node.index, status__exact=one), f"{many:,} {one}"),)
            for one, many in counts
        ]
        return format_html_join(", ", "{}", links) or show.NOTHING

    @admin.display(description="artifacts")
    def artifacts(self, node: Node) -> Any:
        """The list of them."""
        return show.link(show.list_url("artifact", run=node.run_id, node=node.index), "what it produced")

    @admin.display(description="opened")
    def opened(self, node: Node) -> str:
        """When its first tasks were made."""
        return show.when(node.opened_at)

    @admin.display(description="closed")
    def closed(self, node: Any) -> str:
        """When its last task was done."""
        return show.when(node.over_at)

    @admin.display(description="took")
    def took(self, node: Any) -> str:
        """From the one to the other."""
        return show.took(node.opened_at, node.over_at)

    @admin.display(description="node")
    def definition(self, node: Node) -> Any:
        """Its bindings, filters and options."""
        return show.as_json(_written(node))


class TaskAdmin(PartAdmin):
    """Tasks of runs, with their current attempts."""

    list_display = (
        "named",
        "of_node",
        "ordinal",
        "state",
        "attempted",
        "progress",
        "began",
        "took",
        "problem",
        "of_run",
    )
    list_filter = (RunFilter, NodeFilter, "status")
    search_fields = ("id",)
    search_help_text = "The id of a task, or of its current attempt in Celery"
    in_order = ("node_index", "ordinal")
    fieldsets = (
        (None, {"fields": ("id", "of_run", "of_pipeline", "of_node", "ordinal", "state", "progress", "error_shown")}),
        (
            "Attempts",
            {"fields": ("attempt_id", "attempted", "retries", "recoveries", "earlier", "queue", "worker", "resends")},
        ),
        ("Times", {"fields": ("queued", "began", "ended", "took", "due")}),
        ("Artifacts", {"fields": ("got", "origin", "produced")}),
    )

    def get_search_results(self, request: Any, queryset: Any, search_term: str) -> tuple[Any, bool]:
        """By an id."""
        if not search_term.strip():
            return queryset, False
        try:
            given = str(UUID(search_term.strip()))
        except ValueError:
            return queryset.none(), False
        attempts = Task.objects.filter(attempt_id=given).order_by().values_list("pk", flat=True)
        return queryset.filter(pk__in=[given, *attempts]), False

    @admin.display(description="attempt")
    def attempted(self, task: Task) -> str:
        """Which one it is at."""
        return f"{task.number}, after {task.recoveries} lost" if task.recoveries else str(task.number)

    @admin.display(description="progress")
    def progress(self, task: Task) -> Any:
        """As its body showed last."""
        known = task.progress_done is not None and task.progress_total is not None
        return show.bar(task.progress_done, task.progress_total) if known else show.NOTHING

    @admin.display(description="began")
    def began(self, task: Task) -> str:
        """When its body did."""
        return show.when(task.claimed_at)

    @admin.display(description="ended")
    def ended(self, task: Task) -> str:
        """When its body did."""
        return show.when(task.ended_at)

    @admin.display(description="queued")
    def queued(self, task: Task) -> str:
        """When it was sent to its queue."""
        return show.when(task.queued_at)

    @admin.display(description="not before")
    def due(self, task: Task) -> str:
        """When a delayed attempt is due."""
        return show.when(task.not_before)

    @admin.display(description="took")
    def took(self, task: Task) -> str:
        """How long its body ran."""
        return show.took(task.claimed_at, task.ended_at)

    @admin.display(description="error")
    def problem(self, task: Task) -> str:
        """Its beginning."""
        line = show.error_line(task.error)
        return line if len(line) <= 120 else f"{line[:120]}…"

    @admin.display(description="error")
    def error_shown(self, task: Task) -> Any:
        """All of it."""
        return show.as_error(task.error)

    @admin.display(description="worker")
    def worker(self, task: Task) -> str:
        """Who runs it, or did."""
        if task.worker_id is None:
            return show.NOTHING
        found = Worker.objects.filter(pk=task.worker_id).first()
        return str(task.worker_id) if found is None else f"{found.hostname} (process {found.pid})"

    @admin.display(description="earlier attempts")
    def earlier(self, task: Task) -> Any:
        """What became of them."""
        attempts = task.attempts.filter(run_id=task.run_id).order_by("number")[:100]
        lines = [(one.number, one.status, show.when(one.ended_at), show.as_error(one.reason)) for one in attempts]
        return format_html_join("", "<p>{}: {} at {} {}</p>", lines) or show.NOTHING

    @admin.display(description="got")
    def got(self, task: Task) -> Any:
        """The artifact that it is about."""
        return show.page_link("artifact", task.input_artifact_id)

    @admin.display(description="origin")
    def origin(self, task: Task) -> Any:
        """The artifact that everything it is about goes back to."""
        return show.page_link("artifact", task.origin_artifact_id)

    @admin.display(description="produced")
    def produced(self, task: Task) -> Any:
        """The list of it."""
        url = show.list_url("artifact", run=task.run_id, node=task.node_index, task__id__exact=task.pk)
        return show.link(url, "what it produced")


class ArtifactAdmin(PartAdmin):
    """What tasks produced."""

    list_display = ("named", "of_node", "place", "file_name", "size", "beginning", "of_run")
    list_filter = (RunFilter, NodeFilter)
    search_fields = ("id",)
    search_help_text = "The id of an artifact; with a run chosen, also a part of a file's name"
    in_order = ("node_index", "task_ordinal", "ordinal")
    fieldsets = (
        (None, {"fields": ("id", "of_run", "of_pipeline", "of_node", "of_task", "place", "shape", "origin")}),
        ("File", {"fields": ("file_name", "file_path", "size", "mime_type")}),
        ("Data", {"fields": ("data",)}),
    )

    def get_search_results(self, request: Any, queryset: Any, search_term: str) -> tuple[Any, bool]:
        """By an id, or by a name within a run."""
        term = search_term.strip()
        if not term:
            return queryset, False
        try:
            return queryset.filter(pk=str(UUID(term))), False
        except ValueError:
            in_run = find_run(request) is not None
            return queryset.filter(file_name__contains=term) if in_run else queryset.none(), False

    @admin.display(description="task")
    def of_task(self, artifact: Artifact) -> Any:
        """The task that produced it."""
        return show.page_link("task", artifact.task_id)

    @admin.display(description="place")
    def place(self, artifact: Artifact) -> str:
        """The number of its task, and its own within that."""
        return f"{artifact.task_ordinal}.{artifact.ordinal}"

    @admin.display(description="size")
    def size(self, artifact: Artifact) -> str:
        """In bytes."""
        return show.NOTHING if artifact.file_size is None else f"{artifact.file_size:,} bytes"

    @admin.display(description="data")
    def beginning(self, artifact: Artifact) -> Any:
        """The first of it."""
        text = ", ".join(f"{name}: {value}" for name, value in artifact.metadata.items())
        return format_html('<span class="dagabaaz-text">{}</span>', text if len(text) <= 80 else f"{text[:80]}…")

    @admin.display(description="data")
    def data(self, artifact: Artifact) -> Any:
        """All of it."""
        return show.as_json(artifact.metadata)

    @admin.display(description="origin")
    def origin(self, artifact: Artifact) -> Any:
        """The artifact that it goes back to."""
        return show.page_link("artifact", artifact.origin_artifact_id)


def _all(node: Node) -> list[dict[str, Any]]:
    nodes: list[dict[str, Any]] = node.run.definition.body["nodes"]
    return nodes


def _written(node: Node) -> dict[str, Any]:
    """The node as the pipeline has it."""
    index: int = max(node.index, ~node.index)
    return _all(node)[index]


def _link_nodes(node: Node, slugs: list[str]) -> Any:
    indices = {one["slug"]: index for index, one in enumerate(_all(node))}
    links = [(show.page_link("node", f"{node.run_id}:{indices[slug]}", slug),) for slug in slugs]
    return format_html_join(", ", "{}", links) or show.NOTHING

"""Filters of lists; each reads from an index, or has few choices to offer."""

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

from django.contrib.admin import SimpleListFilter
from django.core.exceptions import ValidationError
from django.db import connections
from django.utils import timezone

from dagabaaz_celery.contrib.django.models import Run, Tag
from dagabaaz_celery.contrib.django.project import get_alias
from dagabaaz_celery.stores.sql.tables import first_id_at

#: Pipelines that the filter offers.
_MAX_PIPELINES = 100
#: How wrong the clock of whoever made an id may be.
_CLOCK_SKEW = timedelta(hours=1)


class PipelineFilter(SimpleListFilter):
    """Runs of a pipeline."""

    title = "pipeline"
    parameter_name = "pipeline"

    def lookups(self, request: Any, model_admin: Any) -> list[tuple[str, str]]:
        """The pipelines that runs are of."""
        return [(name, name) for name in list_pipelines_of_runs()]

    def queryset(self, request: Any, queryset: Any) -> Any:
        """Of the chosen one."""
        return queryset if self.value() is None else queryset.filter(pipeline=self.value())

    def has_output(self) -> bool:
        """Also with one pipeline alone, where it was chosen."""
        return bool(self.lookup_choices)


class AgeFilter(SimpleListFilter):
    """Runs started in the last while: ids ascend with time, so the primary key finds them."""

    title = "start"
    parameter_name = "started"
    _ages = {  # noqa: RUF012  # nobody changes it
        "hour": ("In the last hour", timedelta(hours=1)),
        "day": ("In the last 24 hours", timedelta(days=1)),
        "week": ("In the last 7 days", timedelta(days=7)),
        "month": ("In the last 30 days", timedelta(days=30)),
        "before": ("Before that", timedelta(days=30)),
    }

    def lookups(self, request: Any, model_admin: Any) -> list[tuple[str, str]]:
        """How long ago."""
        return [(name, words) for name, (words, _) in self._ages.items()]

    def queryset(self, request: Any, queryset: Any) -> Any:
        """Of that time."""
        if self.value() not in self._ages:
            return queryset
        bound = timezone.now() - self._ages[self.value()][1]
        if self.value() == "before":
            return queryset.filter(created_at__lt=bound, id__lt=_first_id(bound + _CLOCK_SKEW))
        return queryset.filter(created_at__gte=bound, id__gte=_first_id(bound - _CLOCK_SKEW))


class TagFilter(SimpleListFilter):
    """Runs with a tag, which is written and not chosen: there may be as many as runs."""

    title = "tag"
    parameter_name = "tag"
    template = "admin/dagabaaz/tag_filter.html"

    def lookups(self, request: Any, model_admin: Any) -> list[tuple[str, str]]:
        """None."""
        return []

    def has_output(self) -> bool:
        """Always: there is something to write into."""
        return True

    def queryset(self, request: Any, queryset: Any) -> Any:
        """With the tag; with any value of it where only its name is given."""
        return queryset if not self.value() else queryset.filter(pk__in=find_tagged(self.value()))

    def choices(self, changelist: Any) -> Iterator[dict[str, Any]]:
        """What the form sends beside the tag, and the way back to all."""
        others = [
            (name, value)
            for name, values in changelist.get_filters_params().items()
            if name != self.parameter_name
            for value in values
        ]
        if changelist.query:
            others.append(("q", changelist.query))
        yield {
            "selected": not self.value(),
            "query_string": changelist.get_query_string(remove=[self.parameter_name]),
            "value": self.value() or "",
            "others": others,
        }


class RunFilter(SimpleListFilter):
    """What belongs to a run; the run's page links to it."""

    title = "run"
    parameter_name = "run"

    def lookups(self, request: Any, model_admin: Any) -> list[tuple[str, str]]:
        """The chosen one: "All" leads away from it."""
        run = find_run(request)
        return [] if run is None else [(run.pk, str(run))]

    def has_output(self) -> bool:
        """Where a run is named, also one that is not there."""
        return self.value() is not None

    def queryset(self, request: Any, queryset: Any) -> Any:
        """Of the run; nothing for a run that is not there."""
        if self.value() is None:
            return queryset
        try:
            return queryset.filter(run_id=Run._meta.pk.to_python(self.value()))
        except ValidationError:
            return queryset.none()


class NodeFilter(SimpleListFilter):
    """What belongs to a node of the chosen run."""

    title = "node"
    parameter_name = "node"

    def lookups(self, request: Any, model_admin: Any) -> list[tuple[str, str]]:
        """The nodes of the run that the list is of, and those that undo one."""
        run = find_run(request)
        if run is None:
            return []
        nodes = list(enumerate(run.definition.body["nodes"]))
        undoing = [(str(~index), f"{node['slug']} (undoes)") for index, node in nodes if node.get("rollback")]
        return [*((str(index), node["slug"]) for index, node in nodes), *undoing]

    def queryset(self, request: Any, queryset: Any) -> Any:
        """Of the node."""
        if self.value() not in dict(self.lookup_choices):
            return queryset
        return queryset.filter(node_index=int(self.value()))


def find_run(request: Any) -> Run | None:
    """The run that a list is filtered by; read once for all filters of the page."""
    if not hasattr(request, "_dagabaaz_run"):
        given = request.GET.get(RunFilter.parameter_name)
        request._dagabaaz_run = None
        if given is not None:
            try:
                runs = Run.objects.select_related("definition").defer("input", "options", "error")
                request._dagabaaz_run = runs.filter(pk=Run._meta.pk.to_python(given)).first()
            except ValidationError:
                return None
    found: Run | None = request._dagabaaz_run
    return found


def find_tagged(words: str) -> Any:
    """The ids of runs with a tag, written ``name=value`` or ``name``."""
    name, equals, value = words.partition("=")
    tags = Tag.objects.filter(name=name.strip())
    return (tags.filter(value=value.strip()) if equals else tags).values("run_id")


def list_pipelines_of_runs() -> list[str]:
    """The names of the pipelines that there are runs of: one step in the index for each, and not one for each run."""
    connection = connections[get_alias()]
    run, column = connection.ops.quote_name(Run._meta.db_table), connection.ops.quote_name("pipeline")
    statement = (
        f"WITH RECURSIVE found (name) AS (SELECT MIN({column}) FROM {run} "  # noqa: S608  # names of our own
        f"UNION ALL SELECT (SELECT MIN({column}) FROM {run} WHERE {column} > found.name) "
        "FROM found WHERE found.name IS NOT NULL) "
        f"SELECT name FROM found WHERE name IS NOT NULL LIMIT {_MAX_PIPELINES}"
    )
    with connection.cursor() as cursor:
        cursor.execute(statement)
        return [name for (name,) in cursor.fetchall()]


def _first_id(moment: Any) -> str:
    return first_id_at(int(moment.timestamp() * 1_000_000))

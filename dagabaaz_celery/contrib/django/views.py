"""A run's progress, as a fragment of a page or as JSON."""

from typing import Any

from django.http import Http404, JsonResponse
from django.shortcuts import render
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe

from dagabaaz_celery.contrib.django.progress import Progress, find_rule, read_look
from dagabaaz_celery.contrib.django.project import get_dag
from dagabaaz_celery.errors import UnknownRun


@require_safe
@never_cache
def run_progress(request: Any, run_id: Any) -> Any:
    """What ``{% run_progress %}`` shows, as it is now; JSON for ``?format=json`` and those who accept only that.

    404 for a run that is not there, and for one that the request may not see: it is told neither.
    """
    try:
        run = get_dag().run(str(run_id))
        if not find_rule()(request, run):
            raise Http404(f"This request may not see run {run_id}, or its address is too old.")
        # The address stays as it is: one that was signed gets no older by being looked at, and no younger.
        progress = Progress(read_look(request, run.id), run.snapshot(), request.get_full_path())
    except UnknownRun as error:
        raise Http404(error.message) from error
    if request.GET.get("format") == "json" or request.headers.get("Accept") == "application/json":
        return JsonResponse(progress.to_json())
    return render(request, "dagabaaz/progress.html", {"progress": progress})

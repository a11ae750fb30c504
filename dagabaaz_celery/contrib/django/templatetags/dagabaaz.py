"""``{% load dagabaaz %}``: a run's progress in any page."""

from typing import Any

from django import template

from dagabaaz_celery.contrib.django.progress import Look, Progress, make_url
from dagabaaz_celery.contrib.django.project import get_dag
from dagabaaz_celery.errors import UnknownRun

register = template.Library()


@register.inclusion_tag("dagabaaz/run_progress.html")
def run_progress(
    run: Any, *, graph: bool = True, errors: bool = False, seconds: float = 2.0, assets: bool = True
) -> dict[str, Any]:
    """A run's status, steps and error, which keep themselves up to date until it ends.

    ``run`` is a run's handle, its row, or its id. ``graph=False`` shows a list of bars. ``errors=True`` shows why it
    failed, in the words of the exception. Whoever gets the page may look at this run for a while, and at no other.
    ``assets=False`` leaves out the script and the style sheet, for a page that has them.
    """
    run_id = str(getattr(run, "pk", None) or getattr(run, "id", None) or run)
    try:
        handle = get_dag().run(run_id)
        look = Look(handle.id, bool(graph), bool(errors), float(seconds))
        progress = Progress(look, handle.snapshot(), make_url(look))
    except UnknownRun:
        progress = None
    return {"progress": progress, "assets": assets}

"""The project's pages with those that show runs: the admin, the progress of runs, and a page of its own that has it."""

from typing import Any

from django.contrib import admin
from django.http import HttpResponse
from django.template import engines
from django.urls import include, path

import tests.django_project.gallery  # noqa: F401  # its pipelines

_PAGE = """{% load dagabaaz %}<!doctype html><html lang="en"><head><title>Your album</title></head><body>
<h1>Your album</h1>{% if style == "list" %}{% run_progress run graph=False errors=True seconds=0.2 %}{% else %}
{% run_progress run seconds=0.2 %}{% endif %}</body></html>"""


def watch(request: Any, run_id: Any) -> HttpResponse:
    """A customer's page, under a strict policy: nothing but the site's own files."""
    context = {"run": str(run_id), "style": request.GET.get("style")}
    answer = HttpResponse(engines["django"].from_string(_PAGE).render(context, request))
    answer["Content-Security-Policy"] = "default-src 'self'; base-uri 'none'"
    return answer


urlpatterns = [
    path("admin/", admin.site.urls),
    path("runs/", include("dagabaaz_celery.contrib.django.urls")),
    path("watch/<uuid:run_id>/", watch, name="watch"),
]

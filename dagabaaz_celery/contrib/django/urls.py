"""To be included: ``path("runs/", include("dagabaaz_celery.contrib.django.urls"))``."""

from django.urls import path

from dagabaaz_celery.contrib.django.views import run_progress

app_name = "dagabaaz"
urlpatterns = [path("<uuid:run_id>/progress/", run_progress, name="progress")]

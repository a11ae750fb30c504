"""The shop, its runs' progress, and the admin, which shows them too."""

from django.contrib import admin
from django.urls import include, path

urlpatterns = [
    path("admin/", admin.site.urls),
    path("runs/", include("dagabaaz_celery.contrib.django.urls")),  # where {% run_progress %} looks
    path("", include("orders.urls")),
]

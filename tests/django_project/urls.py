"""The project's pages."""

from django.contrib import admin
from django.urls import path

from tests.django_project.orders import views

urlpatterns = [
    path("admin/", admin.site.urls),
    path("orders/", views.place_order),
    path("orders/unless/", views.place_order_unless),
]

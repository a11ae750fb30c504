"""Addresses of the shop's pages."""

from django.urls import path

from orders import views

urlpatterns = [
    path("", views.catalogue, name="catalogue"),
    path("orders/", views.list_orders, name="orders"),
    path("orders/<int:number>/", views.show_order, name="order"),
    path("orders/<int:number>/progress/", views.show_progress, name="progress"),
]

"""A Django project as users have one; DJANGO_PROJECT says, in JSON, which database and Celery settings it has."""

from tests.django_project.celery import app as celery_app

__all__ = ["celery_app"]

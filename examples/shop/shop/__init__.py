"""The project. Its Celery app is here, so that every process that loads Django has it."""

from shop.celery import app

__all__ = ["app"]

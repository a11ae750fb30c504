"""The project's settings; DATABASES are made of the SQLAlchemy URL that the tests have."""

import json
import os
from typing import Any

from sqlalchemy import make_url

_project: dict[str, Any] = json.loads(os.environ["DJANGO_PROJECT"])


def _database(text: str) -> dict[str, Any]:
    url = make_url(text)
    if url.get_backend_name() == "sqlite":
        return {"ENGINE": "django.db.backends.sqlite3", "NAME": url.database, "OPTIONS": {"timeout": 5}}
    if url.get_backend_name() == "mysql":
        import pymysql

        pymysql.install_as_MySQLdb()
    engine = {"postgresql": "postgresql", "mysql": "mysql"}[url.get_backend_name()]
    return {
        "ENGINE": f"django.db.backends.{engine}",
        "NAME": url.database,
        "USER": url.username or "",
        "PASSWORD": url.password or "",
        "HOST": url.host or "",
        "PORT": str(url.port or ""),
    }


SECRET_KEY = "of the tests"
USE_TZ = True
TIME_ZONE = "UTC"  # MariaDB knows no others unless they are loaded
ALLOWED_HOSTS = ["*"]
ROOT_URLCONF = "tests.django_project.urls"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
INSTALLED_APPS = [
    "django.contrib.contenttypes",
    "django.contrib.auth",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.admin",
    "django_celery_results",
    "tests.django_project.orders",
    "dagabaaz_celery.contrib.django",
]
#: Only ours is looked at; the others' tables are made in one go.
MIGRATION_MODULES = {app.rpartition(".")[2]: None for app in INSTALLED_APPS if app != "dagabaaz_celery.contrib.django"}
MIDDLEWARE = [
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
]
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ]
        },
    }
]
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
DATABASES = {alias: _database(url) for alias, url in _project["databases"].items()}
CELERY_BROKER_URL = "memory://"
CELERY_RESULT_BACKEND = "django-db"
CELERY_RESULT_EXTENDED = True
CELERY_DAGABAAZ_SWEEP_INTERVAL = 0.2
CELERY_DAGABAAZ_DEAD_AFTER = 2.0
globals().update(_project.get("settings", {}))

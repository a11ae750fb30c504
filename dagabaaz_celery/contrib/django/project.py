"""The project's Celery app and its Dagabaaz, as the settings name them."""

import importlib
import importlib.util
import os
from collections.abc import Iterator
from functools import cache

from celery import Celery, _state
from celery.app.utils import find_app
from django.conf import settings

from dagabaaz_celery.app import Dagabaaz, live_dagabaaz
from dagabaaz_celery.contrib.django.database import DjangoDatabase
from dagabaaz_celery.errors import ConfigurationError


def get_alias() -> str:
    """Which of the settings' DATABASES the store is in."""
    alias: str = getattr(settings, "DAGABAAZ_DATABASE", "default")
    if alias not in settings.DATABASES:
        raise ConfigurationError(
            f"DAGABAAZ_DATABASE is {alias!r}, which DATABASES does not have: name one of "
            f"{', '.join(settings.DATABASES)}."
        )
    return alias


@cache
def get_database() -> DjangoDatabase:
    """The project's database that the store is in."""
    return DjangoDatabase(get_alias())


@cache
def get_dag() -> Dagabaaz:
    """The Dagabaaz of the project's Celery app; where that has none, one is made. Raises ConfigurationError."""
    app = find_celery_app()
    dag = Dagabaaz.of(app) if any(dag.app is app for dag in live_dagabaaz()) else Dagabaaz(app)
    dag.share_database(get_database())
    return dag


def find_celery_app() -> Celery:
    """The app that DAGABAAZ_CELERY_APP names, else that of the project's ``celery`` module, else the current one.

    Raises ConfigurationError.
    """
    named = getattr(settings, "DAGABAAZ_CELERY_APP", None)
    if named is not None:
        return _load(named)
    for module in _guess_modules():
        if _exists(module):
            return _load(module)
    current = getattr(_state._tls, "current_app", None) or _state.default_app
    if current is not None:
        return _unwrap(current)
    raise ConfigurationError(
        "The project's Celery app was not found: there is no module "
        f"{' or '.join(_guess_modules()) or 'beside the settings'}, and no app was made yet. Write "
        'DAGABAAZ_CELERY_APP = "proj.celery:app" into the settings, with the module and the name of your app.'
    )


def _guess_modules() -> Iterator[str]:
    """``proj.celery`` for settings in ``proj.settings``; for ``proj.settings.live`` what is nearest."""
    package = os.environ.get("DJANGO_SETTINGS_MODULE", "")
    while "." in package:
        package = package.rpartition(".")[0]
        yield f"{package}.celery"


def _exists(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # a parent is a module and no package
        return False


def _load(name: str) -> Celery:
    module, _, attribute = str(name).partition(":")
    try:
        imported = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if not f"{module}.".startswith(f"{error.name}."):
            raise  # the module is there, and imports one that is not
        raise ConfigurationError(
            f"There is no module {module!r} to take the Celery app from ({error}). Correct DAGABAAZ_CELERY_APP."
        ) from error
    try:
        found = getattr(imported, attribute) if attribute else find_app(module)
    except AttributeError as error:
        raise ConfigurationError(
            f"The module {module!r} has no Celery app{f' {attribute!r}' if attribute else ''} ({error}). Name it, as "
            'in DAGABAAZ_CELERY_APP = "proj.celery:app". In the module that makes the app write dag = Dagabaaz(app): '
            "dagabaaz_celery.contrib.django has it only once that module is imported."
        ) from error
    app = _unwrap(found)
    if not isinstance(app, Celery):
        raise ConfigurationError(
            f"DAGABAAZ_CELERY_APP names {name!r}, which is no Celery app but a {type(app).__name__}. "
            'Name the app, as in "proj.celery:app".'
        )
    return app


def _unwrap(app: Celery) -> Celery:
    """The app itself, not a proxy of it."""
    unwrapped: Celery = getattr(app, "_get_current_object", lambda: app)()
    return unwrapped

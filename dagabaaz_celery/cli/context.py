"""What commands begin with: the Dagabaaz of the app that ``-A`` names, and its store's clock."""

import click

from dagabaaz_celery.app import Dagabaaz
from dagabaaz_celery.errors import ConfigurationError
from dagabaaz_celery.run import MICROSECONDS


def find_dag(ctx: click.Context) -> Dagabaaz:
    """The Dagabaaz of the app, with all modules imported that a worker would import.

    Raises ConfigurationError where there is none, and click's UsageError where no app was named.
    """
    app = ctx.obj.app
    app.loader.import_default_modules()
    try:
        return Dagabaaz.of(app)
    except ConfigurationError:
        if not is_app_named(ctx):
            raise click.UsageError(
                "no app was named, so there are no pipelines. Name the module that has yours in front: "
                f"celery -A proj dagabaaz {ctx.info_name}"
            ) from None
        raise


def is_app_named(ctx: click.Context) -> bool:
    """Whether ``-A`` or CELERY_APP names an app, or whoever called the group gave one."""
    given = ctx.find_root().params
    return "app" not in given or bool(given["app"])


def read_clock(dag: Dagabaaz) -> float:
    """The database's time, in seconds since 1970: that of every run."""
    return dag._runtime.store.read_clock() / MICROSECONDS

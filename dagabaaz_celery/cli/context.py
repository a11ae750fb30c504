"""What each command begins with: the Dagabaaz of the app that ``-A`` names."""

import click

from dagabaaz_celery.app import Dagabaaz
from dagabaaz_celery.errors import ConfigurationError


def find_dag(ctx: click.Context) -> Dagabaaz:
    """The Dagabaaz of the app, with all modules imported that a worker would import.

    Raises ConfigurationError where there is none, and click's UsageError where no app was named.
    """
    app = ctx.obj.app
    app.loader.import_default_modules()
    try:
        return Dagabaaz.of(app)
    except ConfigurationError:
        if "app" in ctx.find_root().params and not ctx.find_root().params["app"]:
            raise click.UsageError(
                "no app was named, so there are no pipelines. Name the module that has yours in front: "
                f"celery -A proj dagabaaz {ctx.info_name}"
            ) from None
        raise

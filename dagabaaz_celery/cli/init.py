"""``init``: a starter file for a project that has none, and what an app or a Django project lacks."""

from pathlib import Path

import click
from celery.bin.base import CeleryCommand

from dagabaaz_celery.app import Dagabaaz, live_dagabaaz
from dagabaaz_celery.cli.context import is_app_named
from dagabaaz_celery.cli.init_django import start_in_django
from dagabaaz_celery.cli.output import ExitCode, say_error
from dagabaaz_celery.cli.starters import ADDED_LINES, ADDED_PIPELINE, ADDED_STORE, STARTER, write_new
from dagabaaz_celery.errors import StoreUrlMissing


@click.command(cls=CeleryCommand)
@click.argument("name", default="")
@click.pass_context
def init(ctx: click.Context, name: str) -> None:
    """Write a starter file with an app, plugins and a pipeline, and say what comes next.

    NAME is the module to make, "proj" if left out. In a Django project, where manage.py is, NAME is the Django app that
    gets a pipelines.py. Elsewhere -A has it write nothing, and say what the app that is there lacks. No file is ever
    overwritten.

    \b
    Examples:
      celery dagabaaz init shop
      celery -A shop dagabaaz start hello --input name=World --watch
    """
    if Path("manage.py").is_file():
        start_in_django(ctx, name)
    elif "app" in ctx.find_root().params and is_app_named(ctx):
        _say_what_is_missing(ctx)
    else:
        _start_module(ctx, name or "proj")


def _start_module(ctx: click.Context, name: str) -> None:
    module = name.removesuffix(".py")
    if not module.isidentifier():
        raise click.BadParameter(f"{name!r} is no name of a Python module: take letters, digits and _.")
    path = Path(f"{module}.py")
    if not write_new(path, STARTER.format(module=module, prefix="")):
        say_error(f"{path} is there, and stays as it is. Name another: celery dagabaaz init NAME")
        ctx.exit(ExitCode.REFUSED)
    click.echo(
        f"\nNext, start a worker in one terminal, and a run in another:\n\n"
        f"  celery -A {module} worker\n"
        f"  celery -A {module} dagabaaz start hello --input name=World --watch"
    )


def _say_what_is_missing(ctx: click.Context) -> None:
    app = ctx.obj.app
    app.loader.import_default_modules()
    if not any(dag.app is app for dag in live_dagabaaz()):
        click.echo(f"Add this to the module of your app:\n\n{ADDED_LINES}")
        return
    dag = Dagabaaz.of(app)
    missing = [ADDED_STORE] if _lacks_store(dag) else []
    missing += [] if dag._pipelines else [ADDED_PIPELINE]
    if missing:
        click.echo("Your app has a Dagabaaz. Add this to its module:\n\n" + "\n".join(missing))
    else:
        click.echo("Your app has what it needs: `pipelines` lists what can be started, `doctor` checks the set-up.")


def _lacks_store(dag: Dagabaaz) -> bool:
    try:
        dag._runtime.store  # noqa: B018  # without a URL it cannot be made
    except StoreUrlMissing:
        return True
    return False

"""``init``: a starter file for a project that has none, and what a Django project needs."""

import re
from pathlib import Path

import click
from celery.bin.base import CeleryCommand

from dagabaaz_celery.cli.context import is_app_named
from dagabaaz_celery.cli.output import ExitCode, say_error
from dagabaaz_celery.cli.starters import (
    ADDED_LINES,
    DJANGO_CELERY,
    DJANGO_INIT,
    DJANGO_PIPELINES,
    DJANGO_SETTINGS,
    STARTER,
)

_SETTINGS_MODULE = re.compile(r"""DJANGO_SETTINGS_MODULE["'],\s*["']([\w.]+)["']""")


@click.command(cls=CeleryCommand)
@click.argument("name", default="")
@click.pass_context
def init(ctx: click.Context, name: str) -> None:
    """Write a starter file with an app, plugins and a pipeline, and say what comes next.

    NAME is the module to make, "proj" if left out. In a Django project, where manage.py is, NAME is the Django app
    that gets a pipelines.py. With -A it says what to add to the app that is there. No file is ever overwritten.

    \b
    Examples:
      celery dagabaaz init shop
      celery -A shop dagabaaz start hello --input name=World --watch
    """
    if Path("manage.py").is_file():
        _start_in_django(ctx, name)
    elif "app" in ctx.find_root().params and is_app_named(ctx):
        click.echo(f"Add this to the module of your app:\n\n{ADDED_LINES}")
    else:
        _start_module(ctx, name or "proj")


def _start_module(ctx: click.Context, name: str) -> None:
    module = name.removesuffix(".py")
    if not module.isidentifier():
        raise click.BadParameter(f"{name!r} is no name of a Python module: take letters, digits and _.")
    path = Path(f"{module}.py")
    if not _write(path, STARTER.format(module=module)):
        say_error(f"{path} is there, and stays as it is. Name another: celery dagabaaz init NAME")
        ctx.exit(ExitCode.REFUSED)
    click.echo(
        f"\nNext, start a worker in one terminal, and a run in another:\n\n"
        f"  celery -A {module} worker\n"
        f"  celery -A {module} dagabaaz start hello --input name=World --watch"
    )


def _start_in_django(ctx: click.Context, name: str) -> None:
    project = _find_project()
    apps = sorted(path.parent.name for path in Path().glob("*/apps.py"))
    name = name or (apps[0] if len(apps) == 1 else "")
    if name and not Path(name).is_dir():
        say_error(f"There is no Django app {name} here. Make it first: python manage.py startapp {name}")
        ctx.exit(ExitCode.REFUSED)
    _write_unless_there(Path(project, "celery.py"), DJANGO_CELERY.format(project=project))
    package = Path(project, "__init__.py")
    is_empty = package.exists() and not package.read_text(encoding="utf-8").strip()
    if is_empty:
        package.write_text(DJANGO_INIT, encoding="utf-8")
        click.echo(f"Wrote {package}, which was empty.")
    if name:
        _write_unless_there(Path(name, "pipelines.py"), DJANGO_PIPELINES.format())
    _say_what_django_needs(project, name, package=None if is_empty else package)


def _find_project() -> str:
    """The package of the settings that manage.py names."""
    found = _SETTINGS_MODULE.search(Path("manage.py").read_text(encoding="utf-8"))
    package = found[1].partition(".")[0] if found else ""
    if not package or not Path(package).is_dir():
        raise click.UsageError(
            "manage.py does not say in which package here the settings are, so it is not clear where celery.py goes. "
            "Follow docs/howto/command-line.md by hand."
        )
    return package


def _say_what_django_needs(project: str, name: str, *, package: Path | None) -> None:
    if package is not None and "celery" not in package.read_text(encoding="utf-8"):
        click.echo(f"\nAdd to {package}:\n\n{DJANGO_INIT}")
    own = f'    "{name}",' if name else '    "your_app",  # python manage.py startapp your_app'
    click.echo(f"\nAdd to the settings:\n\n{DJANGO_SETTINGS.format(own=own)}")
    if not name:
        click.echo("Then have an app's pipelines.py written: celery dagabaaz init your_app\n")
        return
    click.echo(
        f"Next, make the tables, start a worker in one terminal, and a run in another:\n\n"
        f"  python manage.py migrate\n"
        f"  celery -A {project} worker\n"
        f"  celery -A {project} dagabaaz start hello --input name=World --watch"
    )


def _write_unless_there(path: Path, text: str) -> None:
    if not _write(path, text):
        click.echo(f"{path} is there, and stays as it is.")


def _write(path: Path, text: str) -> bool:
    """Write a new file; whether there was none."""
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        return False
    except OSError as error:
        raise click.UsageError(f"{path} cannot be written: {error.strerror}.") from None
    click.echo(f"Wrote {path}.")
    return True

"""``init`` in a Django project: what it lacks is written, or said where a file of its own would change."""

import re
from pathlib import Path

import click

from dagabaaz_celery.cli.output import ExitCode, say_error
from dagabaaz_celery.cli.starters import (
    DJANGO_APP,
    DJANGO_BROKER,
    DJANGO_CELERY,
    DJANGO_INIT,
    DJANGO_PIPELINES,
    write_new,
)

_SETTINGS_MODULE = re.compile(r"""DJANGO_SETTINGS_MODULE["'],\s*["']([\w.]+)["']""")

_INSTALLED_APPS = re.compile(r"INSTALLED_APPS[^\])]*")


def start_in_django(ctx: click.Context, name: str) -> None:
    """Write the project's celery.py and an app's pipelines.py, and say what else there is to do."""
    settings = _find_settings()
    project = settings.partition(".")[0]
    apps = sorted(path.parent.name for path in Path().glob("*/apps.py"))
    path = Path(name or (apps[0] if len(apps) == 1 else ""))
    if path.name and not path.is_dir():
        say_error(f"There is no Django app {path} here. Make it first: python manage.py startapp {path}")
        ctx.exit(ExitCode.REFUSED)
    _write_unless_there(Path(project, "celery.py"), DJANGO_CELERY.format(project=project))
    _say_or_write_init(Path(project, "__init__.py"))
    is_new = bool(path.name) and _write_unless_there(
        Path(path, "pipelines.py"), DJANGO_PIPELINES.format(prefix=f"{path.name}_")
    )
    _say_what_settings_lack(_read_settings(settings), ".".join(path.parts))
    _say_what_is_next(project, path.name, is_new=is_new)


def _find_settings() -> str:
    """The module of the settings that manage.py names."""
    found = _SETTINGS_MODULE.search(Path("manage.py").read_text(encoding="utf-8"))
    if not found or not Path(found[1].partition(".")[0]).is_dir():
        raise click.UsageError(
            "manage.py does not say in which package here the settings are, so it is not clear where celery.py goes. "
            "Follow docs/howto/command-line.md by hand."
        )
    return found[1]


def _read_settings(module: str) -> str:
    """The text of the settings, without comments; of all modules beside them where they are a package's."""
    path = Path(*module.split("."))
    is_single = path.parent == Path(module.partition(".")[0]) and path.with_suffix(".py").is_file()
    files = [path.with_suffix(".py")] if is_single else [*path.parent.glob("*.py"), *path.glob("*.py")]
    lines = [line for file in files for line in file.read_text(encoding="utf-8").splitlines()]
    return "\n".join(line for line in lines if not line.lstrip().startswith("#"))


def _say_or_write_init(package: Path) -> None:
    text = package.read_text(encoding="utf-8") if package.exists() else None
    if text is not None and not text.strip():
        package.write_text(DJANGO_INIT, encoding="utf-8")
        click.echo(f"Wrote {package}, which was empty.")
    elif text is None or "celery" not in text:
        click.echo(f"\nAdd to {package}:\n\n{DJANGO_INIT}")


def _say_what_settings_lack(text: str, app: str) -> None:
    installed = "".join(_INSTALLED_APPS.findall(text))
    apps = [f'    "{one}",' for one in (DJANGO_APP, app) if one and not _is_named(one, installed)]
    apps += [] if app else ['    "your_app",  # python manage.py startapp your_app']
    lines = ["INSTALLED_APPS += [", *apps, "]"] if apps else []
    lines += [] if re.search(r"\bCELERY_BROKER_(READ_|WRITE_)?URL\b", text) else [DJANGO_BROKER]
    if lines:
        click.echo("\nAdd to the settings:\n\n{}\n".format("\n".join(lines)))


def _is_named(app: str, installed: str) -> bool:
    """Whether an app is there, by its name or by its AppConfig."""
    return re.search(rf"""["']{re.escape(app)}(\.apps\.\w+)?["']""", installed) is not None


def _say_what_is_next(project: str, app: str, *, is_new: bool) -> None:
    if not app:
        click.echo("Then have an app's pipelines.py written: celery dagabaaz init your_app\n")
        return
    first = f"start {app}_hello --input name=World --watch" if is_new else "pipelines"
    click.echo(
        f"\nNext, make the tables, start a worker in one terminal, and "
        f"{'a run' if is_new else 'see what can be started'} in another:\n\n"
        f"  python manage.py migrate\n"
        f"  celery -A {project} worker\n"
        f"  celery -A {project} dagabaaz {first}"
    )


def _write_unless_there(path: Path, text: str) -> bool:
    is_new = write_new(path, text)
    if not is_new:
        click.echo(f"{path} is there, and stays as it is.")
    return is_new

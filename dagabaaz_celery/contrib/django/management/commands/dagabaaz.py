"""``manage.py dagabaaz …``: what ``celery -A proj dagabaaz …`` does, for the project's Celery app."""

import argparse
import os
from collections.abc import Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from celery.bin.base import CLIContext
from django.core.management.base import BaseCommand, CommandError

from dagabaaz_celery.contrib.django.project import find_celery_app


class Command(BaseCommand):
    """Hands its arguments on as they are."""

    help = "Pipelines: start runs, look at them, and steer them. The same as: celery -A proj dagabaaz"
    requires_system_checks: Sequence[str] = ()

    def run_from_argv(self, argv: list[str]) -> None:
        """From the command line. What Django itself takes from it is left out."""
        parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        for option in ("--settings", "--pythonpath"):
            parser.add_argument(option)
        _, arguments = parser.parse_known_args(argv[2:])
        program = Path(argv[0]).name.replace("__main__.py", "python -m django")
        self._delegate(arguments, f"{program} {argv[1]}")

    def add_arguments(self, parser: Any) -> None:
        """For call_command("dagabaaz", "runs", "--json")."""
        parser.add_argument("arguments", nargs=argparse.REMAINDER)

    def handle(self, *args: Any, **options: Any) -> None:
        """From call_command. Raises CommandError where the command would end with another exit code than 0."""
        try:
            self._delegate(options["arguments"], "manage.py dagabaaz")
        except SystemExit as ended:
            if ended.code:
                code = ended.code if isinstance(ended.code, int) else 1
                raise CommandError(f"dagabaaz ended with exit code {code}", returncode=code) from None

    def _delegate(self, arguments: list[str], name: str) -> None:
        (found,) = entry_points(group="celery.commands", name="dagabaaz")
        context = CLIContext(app=find_celery_app(), no_color="NO_COLOR" in os.environ, workdir=None)
        found.load().main(args=arguments, prog_name=name, obj=context)

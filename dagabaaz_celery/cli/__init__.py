"""``celery -A proj dagabaaz …``: the group that Celery's command line finds by its entry point.

Celery imports this module at the start of every one of its commands, workers too. So it imports nothing but click, and
each command's module when that command is wanted.
"""

from copy import copy
from importlib import import_module
from typing import Any, TypeVar

import click
from celery.bin.base import handle_preload_options
from click_didyoumean import DYMGroup

#: Each command by the module and name where it is, in the order in which ``--help`` shows them.
COMMANDS = {
    "init": "dagabaaz_celery.cli.init:init",
    "migrate": "dagabaaz_celery.cli.migrate:migrate",
    "pipelines": "dagabaaz_celery.cli.pipelines:pipelines",
    "validate": "dagabaaz_celery.cli.pipelines:validate",
    "graph": "dagabaaz_celery.cli.pipelines:graph",
    "start": "dagabaaz_celery.cli.start:start",
    "runs": "dagabaaz_celery.cli.runs:runs",
    "show": "dagabaaz_celery.cli.show:show",
    "watch": "dagabaaz_celery.cli.start:watch",
    "artifacts": "dagabaaz_celery.cli.show:artifacts",
    "retry": "dagabaaz_celery.cli.steer:retry",
    "cancel": "dagabaaz_celery.cli.steer:cancel",
    "rollback": "dagabaaz_celery.cli.steer:rollback",
    "pause": "dagabaaz_celery.cli.steer:pause",
    "resume": "dagabaaz_celery.cli.steer:resume",
    "doctor": "dagabaaz_celery.cli.doctor:doctor",
    "prune": "dagabaaz_celery.cli.prune:prune",
}


AnyCommand = TypeVar("AnyCommand", bound=click.Command)

#: ExitCode.INTERRUPTED, which may not be imported yet.
_INTERRUPTED = 130

#: How examples in ``--help`` begin.
_EXAMPLE = "celery -A proj dagabaaz"


class LazyGroup(DYMGroup):  # type: ignore[misc]  # click_didyoumean ships no types
    """A group whose commands are imported when they are asked for; what they raise on purpose is told in a line."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Every command's name, in the order of ``COMMANDS``."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of this name, imported."""
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name].partition(":")
        command: click.Command = getattr(import_module(module), attribute)
        return _name_as_called(command, ctx)

    def get_help(self, ctx: click.Context) -> str:
        """The help, with an example that begins as the command did."""
        return str(click.Group.get_help(_name_as_called(self, ctx), ctx))

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command. A DagabaazError, a database that is away and Ctrl-C end it with a message and a code."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            click.echo("\nInterrupted.", err=True)
            ctx.exit(_INTERRUPTED)
        except Exception as error:
            from dagabaaz_celery.cli.output import report_error  # noqa: PLC0415  # not for workers

            code = report_error(error)
            if code is None:
                raise
            ctx.exit(code)


def _name_as_called(command: AnyCommand, ctx: click.Context) -> AnyCommand:
    """The command, with examples for who called the group by another program than celery, as by manage.py."""
    called = ctx.find_root().info_name or ""
    if not called.endswith(" dagabaaz"):
        return command
    named = copy(command)
    named.help = (command.help or "").replace(_EXAMPLE, called)
    return named


@click.group(cls=LazyGroup)
@click.pass_context
@handle_preload_options  # type: ignore[untyped-decorator]  # celery ships no types
def dagabaaz(ctx: click.Context, **_: Any) -> None:
    """Pipelines: start runs, look at them, and steer them.

    \b
    Example:
      celery -A proj dagabaaz runs --status failed --since 2h
    """

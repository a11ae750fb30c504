"""``retry``, ``cancel``, ``rollback``, ``pause`` and ``resume``."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

import click
from celery.bin.base import CeleryCommand

from dagabaaz_celery.app import Dagabaaz
from dagabaaz_celery.cancellation import CANCELLED_BY_APP
from dagabaaz_celery.cli.context import find_dag
from dagabaaz_celery.cli.following import follow
from dagabaaz_celery.cli.output import ExitCode, clean, open_console, print_line
from dagabaaz_celery.cli.references import LAST, find_run
from dagabaaz_celery.cli.types import NAMED_VALUE, NODE, PIPELINE, RUN
from dagabaaz_celery.constants import RunStatus
from dagabaaz_celery.run import Run
from dagabaaz_celery.stores.sql.tables import OPEN_RUN_STATUSES

#: Runs that are counted before somebody is asked whether to cancel them.
_MAX_COUNTED = 1000


@click.command(cls=CeleryCommand)
@click.argument("run", type=RUN)
@click.option("--from", "from_node", type=NODE, help="Run this node and all behind it again, also what completed.")
@click.option("--watch", "is_watched", is_flag=True, help="Show it to its end, which gives the exit code.")
@click.option("--yes", is_flag=True, help="Do not ask, at a terminal, whether @last is the run that is meant.")
@click.pass_context
def retry(ctx: click.Context, run: str, from_node: str | None, is_watched: bool, yes: bool) -> None:
    """Run again what failed or was cancelled in a run, and everything behind it.

    Of @last it says at a terminal which run that is, and asks.

    \b
    Example:
      celery -A proj dagabaaz retry @last --from thumbnail --watch
    """
    (found,) = _find_named(find_dag(ctx), [run], "Retry", yes=yes)
    found.retry(from_node=from_node)
    _tell_or_follow(ctx, found, f"Run {found.id} runs again.", is_watched=is_watched)


@click.command(cls=CeleryCommand)
@click.argument("run", type=RUN)
@click.option("--watch", "is_watched", is_flag=True, help="Show it until it is done.")
@click.option("--yes", is_flag=True, help="Do not ask, at a terminal, whether @last is the run that is meant.")
@click.pass_context
def rollback(ctx: click.Context, run: str, is_watched: bool, yes: bool) -> None:
    """Undo what a run did, by the rollbacks of its nodes; or try again what could not be undone.

    Of @last it says at a terminal which run that is, and asks.

    With --watch the exit code is 0 when all is undone, and 3 when a part could not be.

    \b
    Example:
      celery -A proj dagabaaz rollback 01a22bc9 --watch
    """
    (found,) = _find_named(find_dag(ctx), [run], "Undo", yes=yes)
    found.rollback()
    _tell_or_follow(ctx, found, f"Run {found.id} is being undone.", is_watched=is_watched, is_undone=True)


def _find_named(dag: Dagabaaz, references: Sequence[str], what: str, *, yes: bool) -> list[Run]:
    """The runs with these names. Somebody at a terminal is asked about ``@last``: another may have started since."""
    found = [find_run(dag, each) for each in references]
    if not yes and sys.stdin.isatty():
        for run in [run for run, name in zip(found, references, strict=True) if name == LAST]:
            seen = run.snapshot()
            has = "has" if seen.status in (RunStatus.FAILED, RunStatus.CRASHED) else "is"
            click.confirm(f"{what} run {run.id} of {clean(seen.pipeline)}, which {has} {seen.status}?", abort=True)
    return found


def _tell_or_follow(ctx: click.Context, run: Run, done: str, *, is_watched: bool, is_undone: bool = False) -> None:
    if not is_watched:
        print_line(open_console(ctx), done)
        return
    code = follow(ctx, run)
    if is_undone and code is not ExitCode.INTERRUPTED:
        code = ExitCode.FAILED if run.rollback_status == "failed" else ExitCode.DONE
    ctx.exit(code)


@click.command(cls=CeleryCommand)
@click.argument("run", type=RUN)
@click.pass_context
def pause(ctx: click.Context, run: str) -> None:
    """Start no more tasks of a run; those that run go on.

    \b
    Example:
      celery -A proj dagabaaz pause @last
    """
    found = find_run(find_dag(ctx), run)
    found.pause()
    print_line(open_console(ctx), f"Run {found.id} is paused: `resume {found.id}` has it go on.")


@click.command(cls=CeleryCommand)
@click.argument("run", type=RUN)
@click.pass_context
def resume(ctx: click.Context, run: str) -> None:
    """Have a paused run go on.

    \b
    Example:
      celery -A proj dagabaaz resume @last
    """
    found = find_run(find_dag(ctx), run)
    found.resume()
    print_line(open_console(ctx), f"Run {found.id} goes on.")


@click.command(cls=CeleryCommand)
@click.argument("runs", metavar="[RUN]...", type=RUN, nargs=-1)
@click.option("--pipeline", type=PIPELINE, help="Every open run of this pipeline.")
@click.option("--tag", "tags", type=NAMED_VALUE, multiple=True, help="Every open run with this tag; several: with all.")
@click.option(
    "--status",
    type=click.Choice([RunStatus.RUNNING.value]),
    help="Every open run: only those can be cancelled.",
)
@click.option("--reason", default=CANCELLED_BY_APP, show_default=True, help="Why, as the run's error says it.")
@click.option("--terminate", is_flag=True, help="End the bodies that run, too, where their pool can.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.pass_context
def cancel(
    ctx: click.Context,
    runs: tuple[str, ...],
    pipeline: str | None,
    tags: tuple[tuple[str, str], ...],
    status: str | None,
    reason: str,
    terminate: bool,
    yes: bool,
) -> None:
    """Cancel runs: those that are named, every open one of a pipeline or with a tag, or every open one.

    Before it cancels every run of a kind it says how many there are, and asks. Of @last it says at a terminal which run
    that is, and asks. What has ended stays as it is.

    \b
    Examples:
      celery -A proj dagabaaz cancel 01a22bc9 --reason "wrong file"
      celery -A proj dagabaaz cancel --pipeline media --tag customer=42
    """
    which = _Which(pipeline, dict(tags), status)
    if runs and which.is_given:
        raise click.UsageError("Name runs, or say which by --pipeline, --tag or --status; not both.")
    if not runs and not which.is_given:
        raise click.UsageError(
            "Name runs, or say which by --pipeline or --tag. To cancel every run that is open, say --status running."
        )
    dag = find_dag(ctx)
    console = open_console(ctx)
    for run in _find_named(dag, runs, "Cancel", yes=yes):
        run.cancel(reason, terminate=terminate)
        print_line(console, f"Run {run.id}: {run.status}")
    if runs:
        return
    if which.is_given and not yes:
        _ask(dag, which)
    count = dag.cancel(
        pipeline=which.pipeline, tags=which.tags, status=which.status, reason=reason, terminate=terminate
    )
    print_line(console, f"{_count(count)} cancelled.")


@dataclass(frozen=True)
class _Which:
    """Which runs are meant, where they are not named."""

    pipeline: str | None
    tags: dict[str, str]
    status: str | None

    @property
    def is_given(self) -> bool:
        return bool(self.pipeline is not None or self.tags or self.status)


def _ask(dag: Dagabaaz, which: _Which) -> None:
    """Say how many runs are meant, and go on only if that is wanted."""
    count = 0
    for status in OPEN_RUN_STATUSES:
        found = dag.runs(pipeline=which.pipeline, tags=which.tags, status=status)
        count += sum(1 for _ in islice(found, _MAX_COUNTED))
    if count:
        click.confirm(f"Cancel {_count(count)}{' or more' if count >= _MAX_COUNTED else ''}?", abort=True)


def _count(runs: int) -> str:
    return "1 run" if runs == 1 else f"{runs:,} runs"

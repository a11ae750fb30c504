"""``runs``: a list of runs, newest first."""

import time
from dataclasses import asdict

import click
from celery.bin.base import CeleryCommand
from rich.text import Text

from dagabaaz_celery.cli.context import find_dag
from dagabaaz_celery.cli.output import (
    Cell,
    Column,
    clean,
    format_duration,
    open_console,
    print_json,
    print_line,
    print_table,
    style_status,
)
from dagabaaz_celery.constants import RunStatus
from dagabaaz_celery.selection import read_selection
from dagabaaz_celery.summary import RunSummary, iterate_summaries

_COLUMNS = [
    Column("RUN"),
    Column("PIPELINE"),
    Column("STATUS"),
    Column("AGE", right=True),
    Column("TOOK", optional=True, right=True),
    Column("NODES", optional=True, right=True),
    Column("KEY", optional=True),
    Column("TAGS", optional=True),
]


@click.command(cls=CeleryCommand)
@click.option("--status", type=click.Choice([each.value for each in RunStatus]), help="Only runs in this status.")
@click.option("--pipeline", metavar="NAME", help="Only runs of this pipeline.")
@click.option("--limit", type=click.IntRange(min=1), default=20, show_default=True, help="At most so many.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def runs(ctx: click.Context, status: str | None, pipeline: str | None, limit: int, as_json: bool) -> None:
    """List runs, newest first.

    \b
    Example:
      celery -A proj dagabaaz runs --status failed --limit 5
    """
    dag = find_dag(ctx)
    wanted = read_selection(pipeline, status, None)
    found = list(iterate_summaries(dag._runtime, wanted, limit=limit))
    if as_json:
        print_json([asdict(run) for run in found])
        return
    console = open_console(ctx)
    if not found:
        print_line(console, "No runs." if wanted.is_everything else "No such runs.")
        return
    print_table(console, _COLUMNS, [_show(run, time.time()) for run in found])


def _show(run: RunSummary, now: float) -> list[Cell]:
    status = style_status(run.status)
    if run.paused:
        status = Text.assemble(status, (" (paused)", "yellow"))
    return [
        run.id,
        clean(run.pipeline),
        status,
        format_duration(now - run.created_at),
        format_duration((run.ended_at or now) - run.created_at),
        f"{run.nodes_done}/{run.nodes_total}",
        clean(run.key or ""),
        clean(" ".join(f"{name}={value}" for name, value in run.tags.items())),
    ]

"""``runs``: a list of runs, newest first."""

from dataclasses import asdict

import click
from celery.bin.base import CeleryCommand
from rich.text import Text

from dagabaaz_celery.cli.context import find_dag, read_clock
from dagabaaz_celery.cli.output import (
    Cell,
    Column,
    clean,
    format_duration,
    format_tags,
    open_console,
    print_json,
    print_line,
    print_table,
    style_state,
)
from dagabaaz_celery.cli.types import DURATION, NAMED_VALUE, PIPELINE
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
@click.option("--pipeline", type=PIPELINE, help="Only runs of this pipeline.")
@click.option("--tag", "tags", type=NAMED_VALUE, multiple=True, help="Only runs with this tag; several: with all.")
@click.option("--since", "--age", type=DURATION, help="Only runs that are younger, such as 30m, 2h or 3d.")
@click.option("--older-than", type=DURATION, help="Only runs that are older.")
@click.option("--limit", type=click.IntRange(min=1), default=20, show_default=True, help="At most so many.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def runs(
    ctx: click.Context,
    status: str | None,
    pipeline: str | None,
    tags: tuple[tuple[str, str], ...],
    since: float | None,
    older_than: float | None,
    limit: int,
    as_json: bool,
) -> None:
    """List runs, newest first.

    \b
    Example:
      celery -A proj dagabaaz runs --status failed --since 2h --tag customer=42
    """
    dag = find_dag(ctx)
    now = read_clock(dag)
    wanted = read_selection(
        pipeline,
        status,
        dict(tags),
        None if since is None else max(now - since, 0),
        None if older_than is None else max(now - older_than, 0),
    )
    found = list(iterate_summaries(dag._runtime, wanted, limit=limit))
    if as_json:
        print_json([asdict(run) for run in found])
        return
    console = open_console(ctx)
    if not found:
        print_line(console, "No runs." if wanted.is_everything else "No such runs.")
        return
    print_table(console, _COLUMNS, [_show(run, now) for run in found])


def _show(run: RunSummary, now: float) -> list[Cell]:
    status = style_state(run.status)
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
        format_tags(run.tags),
    ]

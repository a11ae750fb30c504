"""``prune``: deletes old runs."""

from dataclasses import asdict
from typing import Any

import click
from celery.bin.base import CeleryCommand

from dagabaaz_celery.cli.context import find_dag
from dagabaaz_celery.cli.output import open_console, print_json, print_line
from dagabaaz_celery.cli.types import PIPELINE, Duration
from dagabaaz_celery.retention import ENDED, PruneReport


@click.command(cls=CeleryCommand)
@click.option(
    "--older-than", type=Duration(needs_unit=True), help="How long ago they ended; else as dagabaaz_retention says."
)
@click.option("--status", type=click.Choice([each.value for each in ENDED]), help="Only runs that ended like this.")
@click.option("--pipeline", type=PIPELINE, help="Only runs of this pipeline.")
@click.option("--failed-rollbacks", is_flag=True, help="Runs that could not be undone, too.")
@click.option("--limit", type=click.IntRange(min=1), help="At most so many, the oldest first.")
@click.option("--dry-run", is_flag=True, help="Only count what would be deleted.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON; needs --yes or --dry-run.")
@click.pass_context
def prune(
    ctx: click.Context,
    older_than: float | None,
    status: str | None,
    pipeline: str | None,
    failed_rollbacks: bool,
    limit: int | None,
    dry_run: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """Delete runs that ended long ago, with their tasks, artifacts and files.

    It says how many runs there are, and asks.

    \b
    Examples:
      celery -A proj dagabaaz prune --older-than 30d --dry-run
      celery -A proj dagabaaz prune --status completed --older-than 30d --yes
    """
    if as_json and not (yes or dry_run):
        raise click.UsageError("With --json nobody is asked: add --yes to delete, or --dry-run to count.")
    dag = find_dag(ctx)
    which: dict[str, Any] = {
        "older_than": older_than,
        "status": status,
        "pipeline": pipeline,
        "failed_rollbacks": failed_rollbacks,
        "limit": limit,
    }
    if not (yes or dry_run):
        found = dag.prune(**which, dry_run=True)
        if found.runs:
            click.confirm(f"Delete {describe(found)}?", abort=True)
    report = dag.prune(**which, dry_run=dry_run)
    if as_json:
        print_json({**asdict(report), "runs_total": report.runs_total})
        return
    done = "would be deleted" if dry_run else "deleted"
    print_line(open_console(ctx), f"{describe(report)} {done}.")


def describe(report: PruneReport) -> str:
    """``3 runs (2 completed, 1 failed) with 30 tasks, 60 artifacts and 4 files``."""
    by_status = ", ".join(f"{count:,} {status}" for status, count in report.runs.items())
    runs = _count(report.runs_total, "run") + (f" ({by_status})" if by_status else "")
    if not report.runs:
        return runs
    parts = (_count(report.tasks, "task"), _count(report.artifacts, "artifact"), _count(report.files, "file"))
    return f"{runs} with {parts[0]}, {parts[1]} and {parts[2]}"


def _count(count: int, what: str) -> str:
    return f"{count:,} {what}" + ("" if count == 1 else "s")

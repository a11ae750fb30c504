"""``show`` and ``artifacts``: one run, and what its nodes produced."""

import json
from dataclasses import asdict
from typing import Any

import click
from celery.bin.base import CeleryCommand
from rich.console import Console
from rich.text import Text

from dagabaaz_celery.cli.context import find_dag, read_clock
from dagabaaz_celery.cli.output import (
    Cell,
    Column,
    clean,
    draw_bar,
    format_duration,
    format_tags,
    format_time,
    is_unicode,
    open_console,
    print_json,
    print_line,
    print_table,
    style_state,
)
from dagabaaz_celery.cli.references import find_run
from dagabaaz_celery.cli.types import NODE, RUN
from dagabaaz_celery.cli.waiting import describe_waiting
from dagabaaz_celery.drawing import DrawnNode, draw_run
from dagabaaz_celery.models import TaskArtifact
from dagabaaz_celery.run import RunError, RunSnapshot

_NODES = [
    Column("NODE"),
    Column("STATE"),
    Column("TASKS", right=True),
    Column("TOOK", right=True),
    Column("", optional=True),
    Column("STARTED", optional=True),
    Column("PLUGIN", optional=True),
]
_ARTIFACTS = [
    Column("#", right=True),
    Column("METADATA"),
    Column("FILE", optional=True),
    Column("BYTES", optional=True, right=True),
    Column("TYPE", optional=True),
]
_COUNTS = [Column("NODE"), Column("ARTIFACTS", right=True)]
#: Characters of an input or of metadata in a line.
_MAX_SHOWN = 200


@click.command(cls=CeleryCommand)
@click.argument("run", type=RUN)
@click.option("--traceback", is_flag=True, help="Show where errors were raised.")
@click.option(
    "--errors", "limit", type=click.IntRange(min=0), default=10, show_default=True, help="At most so many errors."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def show(ctx: click.Context, run: str, traceback: bool, limit: int, as_json: bool) -> None:
    """Show a run: its nodes with their states and times, and why it failed.

    RUN is a run's id, the beginning of one, or @last for the newest.

    \b
    Example:
      celery -A proj dagabaaz show @last --traceback
    """
    dag = find_dag(ctx)
    found = find_run(dag, run)
    snapshot, run_input = found.snapshot(), found.input
    errors = found.errors(limit + 1)
    if as_json:
        print_json({**asdict(snapshot), "input": run_input, "errors": [asdict(error) for error in errors[:limit]]})
        return
    console = open_console(ctx)
    now = read_clock(dag)
    _print_head(console, snapshot, run_input, now)
    print_line(console)
    unicode = is_unicode(console)
    print_table(console, _NODES, [_show_node(node, now, unicode=unicode) for node in draw_run(snapshot).nodes])
    if waiting := describe_waiting(found, snapshot):
        print_line(console)
        print_line(console, Text(waiting, "yellow"))
    _print_errors(console, errors[:limit], traceback=traceback, more=len(errors) > limit)


def _print_head(console: Console, run: RunSnapshot, run_input: dict[str, Any], now: float) -> None:
    status = Text.assemble(style_state(run.status), (" (paused)" if run.paused else "", "yellow"))
    version = "" if run.version is None else f" (version {run.version})"
    took = format_duration((run.ended_at or now) - run.created_at)
    shown: dict[str, Cell] = {
        "run": run.id,
        "pipeline": clean(run.pipeline) + version,
        "status": status,
        "rollback": "" if run.rollback_status == "none" else run.rollback_status,
        "retries": str(run.generation - 1) if run.generation > 1 else "",
        "started": f"{format_time(run.created_at)}, {format_duration(now - run.created_at)} ago",
        "ended": f"{format_time(run.ended_at)}, after {took}" if run.ended_at else f"not yet, after {took}",
        "key": clean(run.key or ""),
        "tags": format_tags(run.tags),
        "input": _shorten(run_input),
    }
    width = max(map(len, shown))
    for name, value in shown.items():
        if value:
            print_line(console, Text.assemble((name.ljust(width), "bold"), "  ", value))


def _show_node(node: DrawnNode, now: float, *, unicode: bool) -> list[Cell]:
    style = style_state(node.state or "").style
    took = None if node.started_at is None else (node.ended_at or now) - node.started_at
    return [
        clean(node.slug),
        style_state(node.state or "", node.words),
        f"{node.tasks_done:,}/{node.tasks_total:,}" if node.tasks_total else "",
        format_duration(took),
        Text(draw_bar(node.tasks_done, node.tasks_total, unicode=unicode), style),
        format_time(node.started_at),
        clean(node.plugin),
    ]


def _print_errors(console: Console, errors: list[RunError], *, traceback: bool, more: bool) -> None:
    """Print errors; those that say the same of one node are told once, with their number."""
    counts: dict[tuple[str, str], list[RunError]] = {}
    for error in errors:
        counts.setdefault((str(error), error.traceback if traceback else ""), []).append(error)
    if errors:
        print_line(console)
        print_line(console, Text("Errors", "bold"))
    for (words, trace), alike in counts.items():
        times = f" ({len(alike)} times)" if len(alike) > 1 else ""
        print_line(console, Text(f"- {clean(words, lines=True)}{times}", "red"))
        if trace:
            print_line(console, clean(trace.rstrip(), lines=True))
    if more:
        print_line(console, f"… and more: --errors {2 * max(len(errors), 50)} shows them.")


def _shorten(value: Any) -> str:
    """Data as JSON in one line, as much of it as a line takes; nothing for empty data."""
    text = json.dumps(value, ensure_ascii=False) if value else ""
    return clean(text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}…")


@click.command(cls=CeleryCommand)
@click.argument("run", type=RUN)
@click.argument("node", type=NODE, required=False)
@click.option("--limit", type=click.IntRange(min=1), default=50, show_default=True, help="At most so many.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def artifacts(ctx: click.Context, run: str, node: str | None, limit: int, as_json: bool) -> None:
    """Show how many artifacts each node of a run produced, or those of one node.

    \b
    Example:
      celery -A proj dagabaaz artifacts @last thumbnail
    """
    found = find_run(find_dag(ctx), run)
    console = open_console(ctx)
    if node is None:
        counts = found.count_artifacts()
        if as_json:
            print_json(counts)
            return
        print_table(console, _COUNTS, [(clean(slug), f"{count:,}") for slug, count in counts.items()])
        return
    produced = found.artifacts(node, limit + 1)
    if as_json:
        print_json([one.to_input_dict() for one in produced[:limit]])
        return
    if not produced:
        print_line(console, "No artifacts.")
        return
    print_table(console, _ARTIFACTS, [_show_artifact(*numbered) for numbered in enumerate(produced[:limit])])
    if len(produced) > limit:
        print_line(console, f"… and more: --limit {2 * limit} shows them.")


def _show_artifact(number: int, artifact: TaskArtifact) -> list[Cell]:
    return [
        str(number),
        _shorten(artifact.metadata),
        clean(artifact.file_path or artifact.file_name or ""),
        "" if artifact.file_size is None else f"{artifact.file_size:,}",
        clean(artifact.mime_type or ""),
    ]

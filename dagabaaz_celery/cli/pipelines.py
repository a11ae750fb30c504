"""``pipelines``, ``validate`` and ``graph``: what can be started, whether it can run, and how it looks."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
from celery.bin.base import CeleryCommand

from dagabaaz_celery.app import Dagabaaz
from dagabaaz_celery.cli.context import find_dag
from dagabaaz_celery.cli.output import (
    Column,
    ExitCode,
    clean,
    is_unicode,
    open_console,
    print_json,
    print_line,
    print_table,
)
from dagabaaz_celery.cli.references import find_run
from dagabaaz_celery.cli.remedies import phrase
from dagabaaz_celery.cli.tree import draw_tree
from dagabaaz_celery.cli.types import PIPELINE, PIPELINE_OR_RUN
from dagabaaz_celery.drawing import Drawing, draw_pipeline, draw_run, to_dot, to_json, to_mermaid, to_svg
from dagabaaz_celery.errors import UnknownPipeline, UnknownRun
from dagabaaz_celery.pipeline import Pipeline

_COLUMNS = [
    Column("PIPELINE"),
    Column("VERSION", right=True),
    Column("NODES", right=True),
    Column("DESCRIPTION", optional=True),
]
_SUFFIXES = (".json", ".yaml", ".yml")


@click.command(cls=CeleryCommand)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def pipelines(ctx: click.Context, as_json: bool) -> None:
    """List what can be started: pipelines that modules register, and saved ones with their latest version.

    \b
    Example:
      celery -A proj dagabaaz pipelines
    """
    dag = find_dag(ctx)
    found = [(dag.pipeline(name), version) for name, version in sorted(dag.pipelines().items())]
    if as_json:
        print_json([_describe(pipeline, version) for pipeline, version in found])
        return
    console = open_console(ctx)
    if not found:
        print_line(console, "No pipelines. Register one with dag.register(Pipeline(...)), or dag.save() it.")
        return
    rows = [
        (clean(one.name), "" if version is None else str(version), str(len(one.nodes)), clean(one.description))
        for one, version in found
    ]
    print_table(console, _COLUMNS, rows)


def _describe(pipeline: Pipeline, version: int | None) -> dict[str, Any]:
    return {
        "name": pipeline.name,
        "version": version,
        "description": pipeline.description,
        "nodes": [node.slug for node in pipeline.nodes],
    }


@click.command(cls=CeleryCommand)
@click.argument("name", metavar="[NAME|FILE]", type=PIPELINE, required=False)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def validate(ctx: click.Context, name: str | None, as_json: bool) -> None:
    """Check pipelines against the app's plugins: every one, the one of this name, or the one in a file.

    Every problem is told, with its place; of a file that cannot be read those that keep it from that. Exit code 1 if
    there is any.

    \b
    Example:
      celery -A proj dagabaaz validate media.yaml
    """
    found = list(_find_problems(find_dag(ctx), name))
    if as_json:
        print_json([{"pipeline": one, "problems": problems} for one, problems in found])
    else:
        console = open_console(ctx)
        for one, problems in found:
            what = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
            print_line(console, f"{clean(one)}: {what if problems else 'fine'}")
            for problem in problems:
                print_line(console, f"- {clean(problem, lines=True)}")
        if not found:
            print_line(console, "No pipelines.")
    ctx.exit(ExitCode.REFUSED if any(problems for _, problems in found) else ExitCode.DONE)


def _find_problems(dag: Dagabaaz, name: str | None) -> Iterator[tuple[str, list[str]]]:
    """Each pipeline that is meant, or its file, with its problems."""
    if name is not None and name not in dag.pipelines() and (Path(name).suffix in _SUFFIXES or Path(name).exists()):
        try:
            pipeline, problems = Pipeline.inspect(name)
            yield name, problems + ([] if pipeline is None else dag.problems(pipeline))
        except OSError as error:
            raise click.BadParameter(f"{name} cannot be read: {error.strerror}.", param_hint="FILE") from None
        return
    for one in sorted(dag.pipelines()) if name is None else [name]:
        yield one, dag.problems(dag.pipeline(one))


@click.command(cls=CeleryCommand)
@click.argument("what", metavar="PIPELINE|RUN", type=PIPELINE_OR_RUN)
@click.option(
    "--format",
    "form",
    type=click.Choice(["tree", "mermaid", "dot", "json", "svg"]),
    default="tree",
    show_default=True,
    help="How to draw it.",
)
@click.option("--json", "as_json", is_flag=True, help="The same as --format json.")
@click.pass_context
def graph(ctx: click.Context, what: str, form: str, as_json: bool) -> None:
    """Draw a pipeline, or a run with the states of its nodes.

    \b
    Examples:
      celery -A proj dagabaaz graph media
      celery -A proj dagabaaz graph @last --format svg > run.svg
    """
    drawing = _find_drawing(find_dag(ctx), what)
    if as_json or form == "json":
        print_json(to_json(drawing))
    elif form != "tree":
        draw = {"mermaid": to_mermaid, "dot": to_dot, "svg": to_svg}[form]
        open_console(ctx).out(draw(drawing), highlight=False)
    else:
        console = open_console(ctx)
        print_line(console, f"{clean(drawing.title)}{f': {drawing.status}' if drawing.status else ''}")
        for line in draw_tree(drawing, unicode=is_unicode(console)):
            print_line(console, line)


def _find_drawing(dag: Dagabaaz, what: str) -> Drawing:
    try:
        return draw_pipeline(dag.pipeline(what))
    except UnknownPipeline as no_pipeline:
        try:
            return draw_run(find_run(dag, what).snapshot())
        except UnknownRun as no_run:
            raise UnknownRun(f"{phrase(no_run)} {phrase(no_pipeline)}") from None

"""``start`` and ``watch``."""

import json
import sys
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from celery.bin.base import CeleryCommand

from dagabaaz_celery.cli.context import find_dag
from dagabaaz_celery.cli.following import follow
from dagabaaz_celery.cli.output import open_console, print_json, print_line
from dagabaaz_celery.cli.references import find_run
from dagabaaz_celery.cli.types import DURATION, NAMED_VALUE, PIPELINE, RUN
from dagabaaz_celery.json_door import MAX_JSON_DEPTH
from dagabaaz_celery.run import Run
from dagabaaz_celery.yaml_door import parse_yaml


@click.command(cls=CeleryCommand)
@click.argument("pipeline", type=PIPELINE)
@click.option(
    "--input",
    "inputs",
    type=NAMED_VALUE,
    multiple=True,
    help="A field of the input; repeat it for more. The value is read as JSON where it is JSON, else as text.",
)
@click.option("--input-file", metavar="FILE", help="The input as JSON or YAML; - is the standard input. --input wins.")
@click.option("--key", help="The same key gives the same run, whatever became of it.")
@click.option("--tag", "tags", type=NAMED_VALUE, multiple=True, help="A tag by which `runs` finds it; repeatable.")
@click.option("--version", type=int, help="The version of a saved pipeline; the latest by default.")
@click.option("--timeout", type=DURATION, help="The run fails after so long, such as 10m; by default as its pipeline.")
@click.option("--watch", "is_watched", is_flag=True, help="Show it to its end, which gives the exit code.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def start(
    ctx: click.Context,
    pipeline: str,
    inputs: tuple[tuple[str, str], ...],
    input_file: str | None,
    key: str | None,
    tags: tuple[tuple[str, str], ...],
    version: int | None,
    timeout: float | None,
    is_watched: bool,
    as_json: bool,
) -> None:
    """Start a run and print its id.

    \b
    Examples:
      celery -A proj dagabaaz start media --input url=https://x.org --input sizes='[64, 128]'
      celery -A proj dagabaaz start media --input-file job.yaml --tag customer=42 --watch
    """
    dag = find_dag(ctx)
    run = dag.start(
        pipeline,
        _read_input(inputs, input_file, dag.settings.max_input_bytes),
        key=key,
        version=version,
        timeout=timeout,
        tags=dict(tags),
    )
    if not is_watched:
        _tell(ctx, run, as_json=as_json)
        return
    ctx.exit(follow(ctx, run, as_json=as_json))


def _tell(ctx: click.Context, run: Run, *, as_json: bool) -> None:
    if as_json:
        print_json(asdict(run.snapshot()))
        return
    # A script reads the id and nothing else.
    print_line(open_console(ctx), run.id)
    hints = open_console(ctx, stderr=True)
    if hints.is_terminal:
        print_line(hints, f"It runs. `watch {run.id}` shows it.")


def _read_input(inputs: Iterable[tuple[str, str]], file: str | None, max_size: int) -> dict[str, Any]:
    given = {} if file is None else _read_input_file(file, max_size)
    return {**given, **{name: _read_value(text) for name, text in inputs}}


def _read_value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _read_input_file(file: str, max_size: int) -> dict[str, Any]:
    try:
        text = sys.stdin.read() if file == "-" else Path(file).read_text(encoding="utf-8")
    except OSError as error:
        raise click.BadParameter(f"{file} cannot be read: {error.strerror}.", param_hint="--input-file") from None
    except UnicodeDecodeError:
        raise click.BadParameter(f"{file} is no text in UTF-8.", param_hint="--input-file") from None
    given = _parse(file, text, max_size)
    if not isinstance(given, dict):
        raise click.BadParameter(
            f"{file} has {type(given).__name__ if given is not None else 'nothing'} in it: an input is names with "
            "values.",
            param_hint="--input-file",
        )
    return given


def _parse(file: str, text: str, max_size: int) -> Any:
    """JSON or YAML, whichever it is; a file whose name says JSON is nothing else."""
    try:
        return json.loads(text)
    except ValueError as error:
        if file.endswith(".json"):
            raise click.BadParameter(f"{file} is no JSON: {error}.", param_hint="--input-file") from None
    try:
        return parse_yaml(text, max_size=max_size, max_depth=MAX_JSON_DEPTH)
    except ValueError as error:
        raise click.BadParameter(f"{file} is neither JSON nor YAML: {error}.", param_hint="--input-file") from None


@click.command(cls=CeleryCommand)
@click.argument("run", type=RUN)
@click.option("--timeout", type=DURATION, help="Watch for so long, such as 10m; the run goes on afterwards.")
@click.option("--json", "as_json", is_flag=True, help="Print a line of JSON for each change.")
@click.pass_context
def watch(ctx: click.Context, run: str, timeout: float | None, as_json: bool) -> None:
    """Show a run until it has ended, and what follows its end; the exit code says how it ended.

    0 completed, 3 failed, 4 crashed, 5 cancelled, 6 not ended within the timeout. Ctrl-C leaves the run going.

    \b
    Example:
      celery -A proj dagabaaz watch @last --timeout 10m
    """
    ctx.exit(follow(ctx, find_run(find_dag(ctx), run), timeout=timeout, as_json=as_json))

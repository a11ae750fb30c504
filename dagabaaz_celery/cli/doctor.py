"""``doctor``: what is wrong with the set-up, with the fix of each."""

import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import click
from celery.bin.base import CeleryCommand
from rich.console import Console
from rich.text import Text

from dagabaaz_celery.cli.context import find_dag
from dagabaaz_celery.cli.output import ExitCode, clean, open_console, print_json, print_line
from dagabaaz_celery.doctor import CHECKS, RUNS_CHECK, Finding, Level, diagnose

#: Most important last: that is next to the prompt.
_LEVELS = (Level.OK, Level.ADVICE, Level.WARNING, Level.ERROR)
_STYLES = {Level.OK: "green", Level.ADVICE: "cyan", Level.WARNING: "yellow", Level.ERROR: "bold red"}
_NAMES = [check.name for check in (*CHECKS, RUNS_CHECK)]
_INDENT = " " * 9


@click.command(cls=CeleryCommand)
@click.option("--runs", is_flag=True, help="Also look for contradictions in every run; takes long in a large store.")
@click.option(
    "--ignore",
    type=click.Choice(_NAMES),
    multiple=True,
    metavar="CHECK",
    help="Leave out the check of this name; may be repeated.",
)
@click.option(
    "--fail-on",
    type=click.Choice([Level.ADVICE.value, Level.WARNING.value, Level.ERROR.value]),
    default=Level.WARNING.value,
    show_default=True,
    help="The mildest finding with which the exit code is 1.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def doctor(ctx: click.Context, runs: bool, ignore: tuple[str, ...], fail_on: str, as_json: bool) -> None:
    """Look for what is wrong with settings, store, broker, workers and pipelines; each finding comes with its fix.

    Nothing is changed. It takes some seconds, and at most ten whatever is away. The exit code is 0 when nothing is
    worse than advice, else 1.

    \b
    Examples:
      celery -A proj dagabaaz doctor
      celery -A proj dagabaaz doctor --runs --json
      celery -A proj dagabaaz doctor --ignore sqlite-hosts --fail-on error
    """
    findings = diagnose(find_dag(ctx), runs=runs, ignore=ignore, command=_find_command())
    if as_json:
        print_json({"level": _find_worst(findings), "findings": [asdict(finding) for finding in findings]})
    else:
        _print_findings(open_console(ctx), findings)
    is_bad = any(_LEVELS.index(each.level) >= _LEVELS.index(Level(fail_on)) for each in findings if each.checked)
    ctx.exit(ExitCode.REFUSED if is_bad else ExitCode.DONE)


def _find_worst(findings: Sequence[Finding]) -> Level:
    return max((each.level for each in findings), key=_LEVELS.index, default=Level.OK)


def _print_findings(console: Console, findings: Sequence[Finding]) -> None:
    for finding in findings:
        if finding.level is Level.OK:
            _print_heading(console, "ok", "green", finding.check, finding.found)
    unknown: dict[str, list[str]] = {}
    for finding in findings:
        if not finding.checked:
            unknown.setdefault(finding.found, []).append(finding.check)
    for reason, names in unknown.items():
        _print_heading(console, "unknown", "magenta", ", ".join(names), reason)
    for level in _LEVELS[1:]:
        for finding in findings:
            if finding.level is level and finding.checked:
                print_line(console)
                _print_problem(console, finding)
    print_line(console)
    print_line(console, _summarize(findings))


def _print_heading(console: Console, word: str, style: str, name: str, found: str) -> None:
    print_line(console, Text.assemble((f"{word:<9}", style), (f"{name}: ", "bold"), clean(found)))


def _print_problem(console: Console, finding: Finding) -> None:
    _print_heading(console, finding.level, _STYLES[finding.level], finding.check, finding.found)
    print_line(console, Text(_INDENT + clean(finding.why), "dim"))
    for number, line in enumerate(finding.fix.splitlines()):
        print_line(console, Text.assemble(_INDENT, "     " if number else "fix: ", clean(line)))


def _summarize(findings: Sequence[Finding]) -> Text:
    looked = [finding for finding in findings if finding.checked]
    counted = [(level, sum(each.level is level for each in looked)) for level in reversed(_LEVELS[1:])]
    parts = [_count(level, number) for level, number in counted if number]
    unknown = len(findings) - len(looked)
    if unknown:
        parts.append(f"{unknown} {'check' if unknown == 1 else 'checks'} could not be made")
    style = _STYLES[_find_worst(looked)]
    return Text(", ".join(parts) + "." if parts else "Everything that was checked is well.", style)


def _count(level: Level, number: int) -> str:
    if level is Level.ADVICE:
        return f"{number} {'piece' if number == 1 else 'pieces'} of advice"
    return f"{number} {level}{'' if number == 1 else 's'}"


def _find_command() -> str:
    """``celery -A proj`` as it was typed, so that fixes can be pasted; in a Django project by its settings' package."""
    arguments = sys.argv[1:]
    for place, argument in enumerate(arguments):
        if argument in ("-A", "--app") and place + 1 < len(arguments):
            return f"celery -A {arguments[place + 1]}"
        if argument.startswith("--app="):
            return f"celery -A {argument.removeprefix('--app=')}"
    if named := os.environ.get("CELERY_APP"):
        return f"celery -A {named}"
    if Path(sys.argv[0]).name == "manage.py":
        return f"celery -A {os.environ.get('DJANGO_SETTINGS_MODULE', 'proj').partition('.')[0]}"
    return "celery -A proj"

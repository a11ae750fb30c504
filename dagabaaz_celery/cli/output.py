"""What commands print: tables and lines that fit a terminal, a pipe and a reader of JSON; errors; exit codes."""

import enum
import json
import re
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import click
from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from dagabaaz_celery.cli.remedies import phrase
from dagabaaz_celery.constants import RunStatus
from dagabaaz_celery.errors import DagabaazError, StoreUnavailable
from dagabaaz_celery.stores.sql.outages import DATABASE_ERRORS, is_outage

Cell = str | Text

#: Control characters, and those that turn the direction of writing: what is shown must not steer the terminal.
_UNSAFE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")
_GAP = 2
_STYLES = {
    "completed": "green",
    "failed": "red",
    "crashed": "red",
    "cancelled": "yellow",
    "running": "cyan",
    "queued": "cyan",
    "paused": "yellow",
}


class ExitCode(enum.IntEnum):
    """How a command ended, for the shell. docs/reference/cli.md lists them."""

    DONE = 0
    REFUSED = 1
    WRONG_CALL = 2
    FAILED = 3
    CRASHED = 4
    CANCELLED = 5
    NOT_ENDED = 6
    #: As Celery's own commands have it for a broker that is away: EX_UNAVAILABLE of sysexits.h.
    UNAVAILABLE = 69
    INTERRUPTED = 130

    @classmethod
    def of_run(cls, status: str) -> "ExitCode":
        """What ``watch`` ends with."""
        return _OUTCOMES.get(RunStatus(status), cls.NOT_ENDED)


_OUTCOMES = {
    RunStatus.COMPLETED: ExitCode.DONE,
    RunStatus.FAILED: ExitCode.FAILED,
    RunStatus.CRASHED: ExitCode.CRASHED,
    RunStatus.CANCELLED: ExitCode.CANCELLED,
}


# -- where it is printed


def open_console(ctx: click.Context | None = None, *, stderr: bool = False) -> Console:
    """A console on the standard output, as it is now; plain text and no colours where that is not a terminal.

    What the output's encoding has no sign for is shown as ``\\xe9``.
    """
    stream = sys.stderr if stderr else sys.stdout
    if hasattr(stream, "reconfigure"):
        stream.reconfigure(errors="backslashreplace")
    no_color = True if ctx is not None and getattr(ctx.obj, "no_color", False) else None
    return Console(file=stream, no_color=no_color, markup=False, highlight=False, emoji=False)


def is_unicode(console: Console) -> bool:
    """Whether the output takes more than ASCII."""
    return console.encoding.lower().startswith("utf")


def print_line(console: Console, line: Cell = "") -> None:
    """Print a line; a terminal folds a long one, a pipe gets it whole."""
    console.print(line, soft_wrap=True)


def print_json(value: Any) -> None:
    """Print a value as JSON, in ASCII: every terminal, pipe and parser takes it."""
    click.echo(json.dumps(value, indent=2))


def print_json_line(value: Any) -> None:
    """Print a value as one line of JSON."""
    click.echo(json.dumps(value))


def clean(value: object, *, lines: bool = False) -> str:
    """A text from a user or a store as it may be shown: control characters escaped, line ends too without ``lines``."""
    shown = _UNSAFE.sub(lambda found: found[0].encode("unicode_escape").decode(), str(value))
    return shown if lines else shown.replace("\n", "\\n").replace("\t", "\\t")


def style_state(state: str, words: str | None = None) -> Text:
    """A state of a run or a node in its colour, or other words about it."""
    return Text(state if words is None else words, style=_STYLES.get(state, "dim"))


def format_tags(tags: Mapping[str, str]) -> str:
    """Tags as they are written on the command line."""
    return clean(" ".join(f"{name}={value}" for name, value in tags.items()))


def draw_bar(done: int, total: int, *, width: int = 10, unicode: bool = True) -> str:
    """A bar of so many signs, filled as far as something is done; nothing where there is nothing to do."""
    if not total:
        return ""
    filled = min(width, done * width // total)
    full, empty = ("█", "░") if unicode else ("#", ".")
    return full * filled + empty * (width - filled)


# -- tables


@dataclass(frozen=True)
class Column:
    """A column of a table. One that is ``optional`` is left out in a terminal where it does not fit."""

    heading: str
    optional: bool = False
    right: bool = False


def print_table(console: Console, columns: Sequence[Column], rows: Iterable[Sequence[Cell]]) -> None:
    """Print rows below headings, aligned, each in a line.

    A pipe gets every column at its full width. In a terminal optional columns go that are empty, and where it is too
    narrow others too, the last first; where the rest does not fit either, each row is a block of lines.
    """
    cells = [[cell if isinstance(cell, Text) else Text(cell) for cell in row] for row in rows]
    widths = [
        max([cell_len(column.heading), *(cell_len(row[place].plain) for row in cells)])
        for place, column in enumerate(columns)
    ]
    empty = [all(not row[place].plain for row in cells) for place in range(len(columns))]
    shown = _choose_columns(console, columns, widths, empty)
    if not shown:
        _print_blocks(console, columns, cells)
        return
    print_line(console, _join([Text(columns[place].heading, "bold") for place in shown], columns, widths, shown))
    for row in cells:
        print_line(console, _join([row[place] for place in shown], columns, widths, shown))


def _choose_columns(
    console: Console, columns: Sequence[Column], widths: Sequence[int], empty: Sequence[bool]
) -> list[int]:
    shown = list(range(len(columns)))
    if not console.is_terminal:
        return shown
    shown = [place for place in shown if not (columns[place].optional and empty[place])]
    while sum(widths[place] + _GAP for place in shown) - _GAP > console.width:
        optional = [place for place in shown if columns[place].optional]
        if not optional:
            return []
        shown.remove(optional[-1])
    return shown


def _join(cells: Sequence[Text], columns: Sequence[Column], widths: Sequence[int], shown: Sequence[int]) -> Text:
    line = Text()
    for cell, place in zip(cells, shown, strict=True):
        padding = " " * (widths[place] - cell_len(cell.plain))
        line.append(padding if columns[place].right else "")
        line.append_text(cell)
        line.append(("" if columns[place].right else padding) + " " * _GAP)
    line.rstrip()
    return line


def _print_blocks(console: Console, columns: Sequence[Column], rows: Sequence[Sequence[Text]]) -> None:
    for number, row in enumerate(rows):
        if number:
            print_line(console)
        for column, cell in zip(columns, row, strict=True):
            if cell.plain:
                print_line(console, Text.assemble((f"{column.heading}: ", "bold"), cell))


# -- times


def format_time(seconds: float | None) -> str:
    """A moment, seconds since 1970, on the clock on the wall here; nothing for None."""
    return "" if seconds is None else time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def format_clock(seconds: float) -> str:
    """A moment as ``format_time`` has it, without the day where that is today."""
    day, _, clock = format_time(seconds).partition(" ")
    return clock if day == format_time(time.time()).partition(" ")[0] else f"{day} {clock}"


def format_duration(seconds: float | None) -> str:
    """So many seconds in the two largest units, ``1h02m``; nothing for None."""
    if seconds is None:
        return ""
    whole = int(max(seconds, 0))
    if whole < 10:
        return f"{max(seconds, 0):.1f}s"
    for size, unit, less, smaller in ((86400, "d", 3600, "h"), (3600, "h", 60, "m"), (60, "m", 1, "s")):
        if whole >= size:
            return f"{whole // size}{unit}{whole % size // less:02d}{smaller}"
    return f"{whole}s"


# -- errors


def report_error(error: Exception) -> int | None:
    """Print an error that users can do something about, and return the exit code; None for any other."""
    if isinstance(error, DagabaazError):
        say_error(f"Error [{error.code}]: {phrase(error)}")
        return ExitCode.UNAVAILABLE if isinstance(error, StoreUnavailable) else ExitCode.REFUSED
    if isinstance(error, DATABASE_ERRORS):
        reason = str(getattr(error, "orig", None) or error).strip().splitlines()[0]
        if is_outage(error):
            say_error(
                f"Error [{StoreUnavailable.code}]: the store's database is away: {reason}. Nothing was changed; try "
                "again when it is back."
            )
            return ExitCode.UNAVAILABLE
        say_error(f"Error [DGB201]: the store's database refused what was asked of it: {reason}")
        return ExitCode.REFUSED
    return None


def say_error(message: str) -> None:
    """Print to the standard error output."""
    print_line(open_console(stderr=True), clean(message, lines=True))

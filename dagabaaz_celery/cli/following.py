"""Following a run to its end: what changed since the last look, how fast it goes, and the exit code."""

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import click

from dagabaaz_celery.cli.bars import LiveBars
from dagabaaz_celery.cli.output import (
    ExitCode,
    clean,
    format_clock,
    format_duration,
    open_console,
    print_json_line,
    print_line,
    say_error,
)
from dagabaaz_celery.cli.remedies import phrase
from dagabaaz_celery.cli.waiting import Patience
from dagabaaz_celery.drawing import DrawnNode, draw_run
from dagabaaz_celery.errors import WaitTimeout
from dagabaaz_celery.run import Run, RunSnapshot
from dagabaaz_celery.stores.sql.outages import DATABASE_ERRORS, is_outage

#: A look at a run of very many tasks takes a while: a pause is at least so many times as long.
_REST = 4.0
_TENTHS = 10


class View(Protocol):
    """What shows a run again and again."""

    def show(self, run: RunSnapshot) -> None:
        """Show the run as it is now."""

    def warn(self, words: str) -> None:
        """Say what it waits for."""


def follow(ctx: click.Context, run: Run, *, timeout: float | None = None, as_json: bool = False) -> ExitCode:
    """Show a run until it and all that follows its end are over; the exit code says how it ended.

    A terminal gets bars, anything else a line for each change. An interrupt or the timeout leave the run going.
    """
    try:
        with _open_view(ctx, as_json=as_json) as view:
            status = _watch(run, view, timeout)
    except WaitTimeout as error:
        say_error(f"Error [{error.code}]: {phrase(error)}")
        return ExitCode.NOT_ENDED
    except KeyboardInterrupt:
        say_error(f"\nRun {run.id} goes on. `watch {run.id}` shows it again, `cancel {run.id}` ends it.")
        return ExitCode.INTERRUPTED
    return ExitCode.of_run(status)


def _watch(run: Run, view: View, timeout: float | None) -> str:
    status, patience = "", Patience()
    for look in run.watch(timeout, rollback=True):
        began, status = time.monotonic(), look.status
        try:
            seen = run.snapshot()
            if words := patience.look(run, seen):
                view.warn(words)
            view.show(seen)
        except DATABASE_ERRORS as error:
            if not is_outage(error):
                raise
        time.sleep(max(look.pause, _REST * (time.monotonic() - began)) if look.pause else 0.0)
    return status


def _open_view(ctx: click.Context, *, as_json: bool) -> AbstractContextManager[View]:
    console = open_console(ctx)
    if console.is_terminal and not as_json:
        return LiveBars(console)
    return Lines(ctx, as_json=as_json)


# -- changes, a line each


@dataclass(frozen=True)
class Change:
    """A node (or, without one, the run) that is in another state than before, or another tenth of its tasks on."""

    run: str
    node: str | None
    status: str
    tasks_done: int
    tasks_total: int
    at: float


class Lines(AbstractContextManager["Lines"]):
    """A run as lines of text or of JSON: one for each change."""

    def __init__(self, ctx: click.Context, *, as_json: bool) -> None:
        self._console = open_console(ctx)
        self._as_json = as_json
        self._seen: dict[str | None, tuple[str, int]] = {}
        self._over: set[str | None] = set()

    def __exit__(self, *_: object) -> None: ...

    def show(self, run: RunSnapshot) -> None:
        """Print what changed."""
        for change in self._find_changes(run):
            if self._as_json:
                print_json_line(change.__dict__)
            else:
                print_line(self._console, _describe(change, run))
                self._console.file.flush()

    def warn(self, words: str) -> None:
        """Say it beside the changes, which a program may read."""
        say_error(words)

    def _find_changes(self, run: RunSnapshot) -> Iterator[Change]:
        drawing = draw_run(run)
        done, total = (sum(getattr(node, name) for node in run.nodes) for name in ("tasks_done", "tasks_total"))
        own = [(None, _describe_run(run), done, total, 0, run.ended_at)]
        nodes = [
            (node.slug, node.words or "", node.tasks_done, node.tasks_total, _count_tenths(node), node.ended_at)
            for node in drawing.nodes
        ]
        ended = run.ended_at is not None
        for slug, status, done, total, tenths, ended_at in [*nodes, *own] if ended else [*own, *nodes]:
            before = self._seen.get(slug)
            self._seen[slug] = (status, tenths)
            at = self._find_moment(slug, ended_at or (run.ended_at if before is None and run.settled else None))
            if before != (status, tenths) and (before is not None or slug is None or status != "waiting"):
                yield Change(run.id, slug, status, done, total, at)

    def _find_moment(self, slug: str | None, ended_at: float | None) -> float:
        """When a node or the run came to be as it is: at its end, and what is seen of it later at this look."""
        if ended_at is None:
            self._over.discard(slug)
        elif slug not in self._over:
            self._over.add(slug)
            return ended_at
        return time.time()


def _count_tenths(node: DrawnNode) -> int:
    return node.tasks_done * _TENTHS // node.tasks_total if node.tasks_total >= _TENTHS else 0


def _describe_run(run: RunSnapshot) -> str:
    undoing = "" if run.rollback_status == "none" else f", rollback {run.rollback_status}"
    return f"{run.status}{' (paused)' if run.paused else ''}{undoing}"


def _describe(change: Change, run: RunSnapshot) -> str:
    at = format_clock(change.at)
    if change.node is None:
        took = f" after {format_duration(run.ended_at - run.created_at)}" if run.ended_at else ""
        why = f": {clean(run.error)}" if run.error else ""
        return f"{at}  run {run.id} of {clean(run.pipeline)}: {change.status}{took}{why}"
    counts = f" {change.tasks_done:,}/{change.tasks_total:,}" if change.tasks_total > 1 else ""
    return f"{at}  {clean(change.node)}: {change.status}{counts}"

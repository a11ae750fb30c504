"""The faults that the suite makes happen, which of them a test makes, and the table of what became of them.

A test says which fault it makes, ``@pytest.mark.fault(7)``, and notes what it saw with the ``record`` fixture. Tests
that ask for ``store`` and ``celery_broker`` run on every store by every broker when DAGABAAZ_FAULTS is "full", as
``make faults`` sets it; otherwise on one pair for each fault, or on those named: ``@pytest.mark.fault(7, short=
["sqlite-redis"])``. ``full_only=True`` leaves a test to the full form.

The table goes to the terminal, and into the file that DAGABAAZ_FAULTS_REPORT names, between two marks there: the rows
of faults that ran take the place of their older ones, the others stay, each with its day and revision.
"""

import os
import statistics
import subprocess
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

STORES = ("sqlite", "postgresql", "mariadb")
BROKERS = ("redis", "rabbitmq")
PAIRS = tuple(f"{store}-{broker}" for store in STORES for broker in BROKERS)
IS_FULL = os.environ.get("DAGABAAZ_FAULTS", "short") == "full"
REPORT_VARIABLE = "DAGABAAZ_FAULTS_REPORT"
_BEGIN, _END = "<!-- results of make faults: begin -->", "<!-- results of make faults: end -->"


@dataclass(frozen=True)
class Fault:
    """What happens to a run, and what has to hold then."""

    what: str
    passes_when: str


FAULTS = {
    1: Fault(
        "a pool child is killed, at every step of a task", "done again within 30 s; only what was in hand ran twice"
    ),
    2: Fault(
        "a worker's main process is killed or quits cold, one and all of them", "the same, once a worker is there"
    ),
    3: Fault("the database commits and its answer is lost", "the repeat changes nothing; no body runs twice"),
    4: Fault("a crash between commit and publish, or between publish and its mark", "nothing lost, nothing runs twice"),
    5: Fault("the database restarts again and again, or is away for a minute", "no run stranded, no recovery counted"),
    6: Fault(
        "the broker loses everything, or restarts; a backlog of 20,000", "what was lost is sent again, the rest not"
    ),
    7: Fault("every message comes three times; a visibility timeout shorter than a task", "one body, one outcome each"),
    8: Fault("an end that no signal shows: a dropped outcome, Ignore, a broken message", "found by the sweep"),
    9: Fault("a worker is frozen, and comes back after its work was taken over", "its late result is refused"),
    10: Fault("the last parents complete at the same instant", "the successor launches once"),
    11: Fault("two ends of a run at the same instant", "one terminal state, no claim after a cancel, no hang"),
    12: Fault("workers are killed throughout a fan-in of 10,000, and during its launch", "complete"),
    13: Fault("a poisonous task", "its run ends with a clear error, its neighbours go on"),
    14: Fault("a full, read-only or locked disk under SQLite", "loud, waits, resumes"),
    15: Fault("workers' clocks are ten minutes off", "no early or missed rescue, no early retry"),
    16: Fault("an old and a new release at once", "no run fails"),
    17: Fault("random kills, at most two for a task", "complete, and sound"),
    18: Fault("50,000 tasks through one worker", "its memory within 10 % of that after 5,000"),
    19: Fault("processes are killed while a run is undone", "all is undone, in reverse; only what was in hand twice"),
}


def is_chosen(item: pytest.Item) -> bool:
    """Whether a test of a fault belongs to this form of the suite."""
    marker = item.get_closest_marker("fault")
    if marker is None or IS_FULL:
        return True
    if marker.kwargs.get("full_only"):
        return False
    store, broker = _params(item)
    if store is None or broker is None:
        return True
    number = marker.args[0]
    return f"{store}-{broker}" in marker.kwargs.get("short", [PAIRS[number % len(PAIRS)]])


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what the short form does not run, and label the rest."""
    left_out = [item for item in items if not is_chosen(item)]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if is_chosen(item)]
    for item in items:
        marker = item.get_closest_marker("fault")
        if marker is not None:
            store, broker = _params(item)
            item.user_properties.append(("fault", (marker.args[0], store, broker)))


def _params(item: pytest.Item) -> tuple[str | None, str | None]:
    params: dict[str, Any] = item.callspec.params if hasattr(item, "callspec") else {}
    return params.get("store"), params.get("celery_broker")


@dataclass
class Results:
    """What became of the tests of each fault."""

    cells: dict[tuple[int, str | None, str | None], Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    figures: dict[tuple[int, str, str], list[float]] = field(default_factory=lambda: defaultdict(list))

    def add(self, report: pytest.TestReport) -> None:
        """Count one phase of one test."""
        properties = dict(report.user_properties)
        if "fault" not in properties:
            return
        number, store, broker = properties["fault"]
        cell = self.cells[number, store, broker]
        if report.failed:
            cell["failed"] += 1
        elif report.skipped:
            cell["skipped"] += 1
        elif report.when == "call":
            cell["passed"] += 1
        if report.when == "teardown":
            for name, (label, value, unit) in report.user_properties:
                if name == "figure":
                    self.figures[number, label, unit].append(value)

    def outcomes(self, when: str) -> dict[str, str]:
        """A row of the table for each fault that ran, by what it begins with."""
        rows = {}
        for number in sorted({number for number, _, _ in self.cells}):
            fault = FAULTS[number]
            cells = [self._cell(number, *pair.split("-")) for pair in PAIRS] + [self._others(number)]
            start = f"| {number} | {fault.what} | {fault.passes_when} |"
            rows[start] = f"{start} {' | '.join(cells)} | {when} |"
        return rows

    def seen(self, when: str) -> dict[str, str]:
        """A row for each figure, by what it begins with."""
        rows = {}
        for (number, label, unit), values in sorted(self.figures.items()):
            shown = [f"{value:,.4g} {unit}".strip() for value in (min(values), statistics.median(values), max(values))]
            start = f"| {number} | {label} |"
            rows[start] = f"{start} {len(values)} | {' | '.join(shown)} | {when} |"
        return rows

    def _cell(self, number: int, store: str, broker: str) -> str:
        return _word(self.cells.get((number, store, broker), Counter()))

    def _others(self, number: int) -> str:
        """Tests that run on a store alone, or make their own."""
        shown = [
            f"{store or broker or 'any'}: {_word(cell)}"
            for (of, store, broker), cell in self.cells.items()
            if of == number and (store is None or broker is None)
        ]
        return "; ".join(sorted(shown)) or ""


def _word(cell: Counter[str]) -> str:
    return ", ".join(f"{cell[what]} {what}" for what in ("passed", "failed", "skipped") if cell[what])


_results = Results()


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Collect in the process that the user sees, also with tests in several."""
    _results.add(report)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print the table, and write it down where asked to."""
    if not _results.cells:
        return
    when = f"{datetime.now(UTC):%Y-%m-%d}, {_revision()}"
    tables = (_OUTCOME_HEAD, _results.outcomes(when)), (_FIGURE_HEAD, _results.seen(when))
    terminalreporter.section("faults", sep="=")
    for head, rows in tables:
        if rows:
            terminalreporter.write_line("\n".join([_markdown_head(head), *rows.values(), ""]))
    path = os.environ.get(REPORT_VARIABLE)
    if path:
        write_report(Path(path), *tables)


_OUTCOME_HEAD = ("#", "fault", "passes when", *(pair.replace("-", ", ") for pair in PAIRS), "other", "seen on")
_FIGURE_HEAD = ("#", "figure", "times", "least", "median", "most", "seen on")


def write_report(path: Path, *tables: tuple[Sequence[str], dict[str, str]]) -> None:
    """Put the rows between the two marks, in place of older ones that begin alike; a new file gets the marks."""
    text = path.read_text() if path.exists() else f"{_BEGIN}\n{_END}\n"
    head, old, tail = *text[: text.index(_END)].split(_BEGIN), text[text.index(_END) :]
    sections = old.strip().split("\n\n") if old.strip() else []
    lines = [head + _BEGIN]
    for names, new in tables:
        title = _markdown_head(names)
        kept = [line for section in sections if section.startswith(title) for line in section.splitlines()[2:]]
        rows = [row for row in kept if not any(row.startswith(start) for start in new)] + list(new.values())
        if rows:
            lines += [title, *sorted(rows, key=lambda row: int(row.split("|")[1])), ""]
    path.write_text("\n".join([*lines, tail]))


def _markdown_head(names: Sequence[str]) -> str:
    return f"| {' | '.join(names)} |\n|{'---|' * len(names)}"


def _revision() -> str:
    done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"

"""Tables of what was found, as Markdown: for the terminal, for a file, and for a page between two marks."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tests.benchmarks import summary
from tests.benchmarks.shapes import BY_NAME
from tests.benchmarks.summary import Figure, Results

#: What this package is held against, and how: by speed against a floor, by time against what it would replace.
LIMIT, CANVAS, OURS = "sql limit", "canvas", "ours"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def times(results: Results) -> str:
    """What each rival took for each shape, and ours against two of them: medians of the rounds' own ratios."""
    rivals = results.rivals
    head = ["store, broker", "shape", *rivals, "speed by SQL limit", "time by canvas"]
    rows = []
    for pair in results.pairs:
        for shape in results.shapes:
            figures = [results.figure(pair, shape, rival, summary.seconds) for rival in rivals]
            if not any(figures):
                continue
            by_limit = results.ratio(pair, shape, (LIMIT, OURS), summary.seconds)
            by_canvas = results.ratio(pair, shape, (OURS, CANVAS), summary.seconds)
            cells = [_cell(figure, "s") for figure in figures]
            rows.append([_words(pair), shape, *cells, _cell(by_limit), _cell(by_canvas)])
    return table(head, rows)


def rates(results: Results) -> str:
    """Tasks a second."""
    rows = [
        [_words(pair), shape, *(_cell(results.figure(pair, shape, rival, summary.rate)) for rival in results.rivals)]
        for pair in results.pairs
        for shape in results.shapes
        if BY_NAME[shape].kind in ("noop", "fan", "runs", "pipelines")
    ]
    return table(["tasks/s on", "shape", *results.rivals], rows) if rows else ""


def hops(results: Results) -> str:
    """Milliseconds for each hop of a chain: the whole by its hops, and how single hops differ within a round."""
    rows = []
    for pair in results.pairs:
        for shape in results.shapes:
            if BY_NAME[shape].kind != "chain":
                continue
            for rival in results.rivals:
                samples = results.samples(pair, shape, rival)
                if samples:
                    whole = summary.summarize(map(summary.seconds_per_task, samples))
                    spread = [
                        summary.summarize(sample.hops[name] for sample in samples).median for name in samples[0].hops
                    ]
                    shown = [summary.show(value * 1000) for value in spread]
                    rows.append([_words(pair), shape, rival, whole.text(scale=1000), *shown])
    head = ["ms per hop on", "shape", "", "whole / hops", "least", "median", "95 of 100", "most"]
    return table(head, rows) if rows else ""


def costs(results: Results) -> str:
    """Milliseconds of the workers' CPU for each task."""
    rows = []
    for pair in results.pairs:
        for shape in results.shapes:
            found = [results.figure(pair, shape, rival, summary.cpu_per_task) for rival in results.rivals]
            if any(found):
                rows.append([_words(pair), shape, *("" if one is None else one.text(scale=1000) for one in found)])
    return table(["CPU ms per task on", "shape", *results.rivals], rows) if rows else ""


def sent(counts: Sequence[Mapping[str, Any]]) -> str:
    """What is sent for each task, to the broker and to the database."""
    rows = []
    for cell in counts:
        tasks = BY_NAME[cell["shape"]].tasks
        per_task = [cell[name] / tasks for name in ("messages", "message_bytes", "statements", "commits")]
        total = f"{cell['message_bytes'] / 1e6:,.2f}"
        shown = [summary.show(value) for value in per_task]
        rows.append([_words(cell["pair"]), cell["shape"], cell["rival"], *shown, total])
    head = ["per task on", "shape", "", "messages", "bytes", "statements", "commits", "MB in all"]
    return table(head, rows) if rows else ""


def memory(results: Results) -> str:
    """Resident memory of a worker's processes together, around the last round of each shape."""
    rows = []
    for pair in results.pairs:
        for shape in results.shapes:
            for rival in results.rivals:
                samples = results.samples(pair, shape, rival)
                if samples and BY_NAME[shape].tasks >= 5000:
                    last = samples[-1]
                    at = [sum(part) for part in (last.memory_before, last.memory_peak, last.memory_after)]
                    shown = [summary.show(value) for value in at]
                    rows.append([_words(pair), shape, rival, *shown, f"{summary.growth(last):.2f}"])
    return table(["MB on", "shape", "", "before", "at most", "after", "after / before"], rows) if rows else ""


def failures(results: Results) -> str:
    """Samples that did not end well, a line for each."""
    return "\n".join(
        f"- {_words(sample.pair)}: {sample.shape}, round {sample.round + 1}, {sample.rival}: {line}"
        for sample in results.failures
        for line in sample.error.splitlines()[:1]
    )


def _cell(figure: Figure | None, unit: str = "") -> str:
    return "" if figure is None else figure.text(unit)


def _words(pair: str) -> str:
    return pair.replace("-", ", ")

"""Tables of what was found, as Markdown: for the terminal, for a file, and for a page between two marks."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tests.benchmarks import summary
from tests.benchmarks.shapes import BY_NAME
from tests.benchmarks.summary import Figure, Results

#: What this package is held against, and how: by speed against a floor, by time against what it would replace.
LIMIT, CANVAS, OURS = "sql limit", "canvas", "ours"


#: Shapes whose tasks should cost the same; the second shape of the first row is the first one again: noise.
_COMPARED = (
    ("fan-100-again", "fan-100"),
    ("fan-10000", "fan-100"),
    ("fan-10000", "fan-1000"),
    ("fan-100000", "fan-10000"),
    ("chain-200", "chain-40"),
    ("layers-20x50", "layers-10x50"),
    ("nodes-20x50", "layers-20x50"),
    ("diamond-1000", "diamond-10"),
    ("runs-1000", "runs-100"),
    ("pipelines-1000", "runs-1000"),
)
#: Of which a shape says something about memory.
_MANY_TASKS = 5000


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; nothing where it has no rows."""
    if not rows:
        return ""
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def times(results: Results) -> str:
    """What each rival took for each shape, and ours against two of them: medians of the rounds' own ratios."""
    head = ["store, broker", "shape", *results.rivals, "speed by SQL limit", "time by canvas"]
    rows = []
    for pair, shape in _cells(results):
        figures = [results.figure(pair, shape, rival, summary.seconds) for rival in results.rivals]
        by_limit = results.ratio(pair, (shape, LIMIT), (shape, OURS), summary.seconds)
        by_canvas = results.ratio(pair, (shape, OURS), (shape, CANVAS), summary.seconds)
        ratios = [_cell(by_limit), _cell(by_canvas)]
        rows.append([_words(pair), shape, *(_cell(figure, "s") for figure in figures), *ratios])
    return table(head, rows)


def rates(results: Results) -> str:
    """Tasks a second."""
    rows = [
        [_words(pair), shape, *(_cell(results.figure(pair, shape, rival, summary.rate)) for rival in results.rivals)]
        for pair, shape in _cells(results)
        if BY_NAME[shape].kind in ("noop", "fan", "runs", "pipelines")
    ]
    return table(["tasks/s on", "shape", *results.rivals], rows)


def hops(results: Results) -> str:
    """Milliseconds for each hop of a chain: the whole by its hops, and how single hops differ within a round."""
    rows = []
    for pair, shape in _cells(results):
        if BY_NAME[shape].kind != "chain":
            continue
        by_canvas = results.ratio(pair, (shape, OURS), (shape, CANVAS), summary.seconds)
        for rival in results.rivals:
            samples = results.samples(pair, shape, rival)
            if not samples:
                continue
            whole = results.figure(pair, shape, rival, summary.seconds_per_task)
            spread = [summary.summarize(sample.hops[name] for sample in samples).median for name in samples[0].hops]
            shown = [summary.show(value * 1000) for value in spread]
            ratio = _cell(by_canvas) if rival == OURS else ""
            rows.append([_words(pair), shape, rival, _cell(whole, scale=1000), *shown, ratio])
    head = ["ms per hop on", "shape", "", "whole / hops", "least", "median", "95 of 100", "most", "by canvas"]
    return table(head, rows)


def costs(results: Results) -> str:
    """Milliseconds of the workers' CPU for each task."""
    rows = []
    for pair, shape in _cells(results):
        found = [results.figure(pair, shape, rival, summary.cpu_per_task) for rival in results.rivals]
        rows.append([_words(pair), shape, *(_cell(figure, scale=1000) for figure in found)])
    return table(["CPU ms per task on", "shape", *results.rivals], rows)


def scaling(results: Results) -> str:
    """What a task costs in a larger shape, by what it costs in a smaller one."""
    rows = []
    for pair in results.pairs:
        for large, small in _COMPARED:
            for rival in results.rivals:
                cells = (large, rival), (small, rival)
                on_clock = results.ratio(pair, *cells, summary.seconds_per_task)
                of_cpu = results.ratio(pair, *cells, summary.cpu_per_task)
                if on_clock is not None:
                    rows.append([_words(pair), f"{large} / {small}", rival, _cell(on_clock), _cell(of_cpu)])
    return table(["on", "a task of", "", "time", "CPU"], rows)


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
    return table(head, rows)


def memory(results: Results) -> str:
    """Resident memory of a worker's processes together, around the last round of each large shape."""
    rows = []
    for pair, shape in _cells(results):
        for rival in results.rivals:
            samples = results.samples(pair, shape, rival)
            if samples and BY_NAME[shape].tasks >= _MANY_TASKS:
                last = samples[-1]
                at = [sum(part) for part in (last.memory_before, last.memory_peak, last.memory_after)]
                shown = [summary.show(value) for value in at]
                rows.append([_words(pair), shape, rival, *shown, f"{summary.growth(last):.2f}"])
    return table(["MB on", "shape", "", "before", "at most", "after", "after / before"], rows)


def idle(found: Sequence[Mapping[str, Any]]) -> str:
    """What idle workers take of a core."""
    rows = [
        [
            _words(cell["pair"]),
            f"{cell['seconds']:.0f} s",
            *(f"{share:.2%}" for share in (cell["plain"], cell["ours"], cell["ours"] - cell["plain"])),
        ]
        for cell in found
    ]
    return table(["idle on", "for", "Celery alone", "with this package", "more"], rows)


def peers(found: Sequence[Mapping[str, Any]]) -> str:
    """What other libraries took, and what ours took in the same rounds."""
    rows = []
    for cell in found:
        start = [f"{cell['peer']} {cell['version']}", cell["shape"]]
        if cell["error"]:
            rows.append([*start, f"did not run: {cell['error']}", "", ""])
            continue
        ratio = summary.summarize(theirs / ours for theirs, ours in zip(cell["seconds"], cell["ours"], strict=True))
        took = [summary.summarize(cell[name]).text("s") for name in ("seconds", "ours")]
        rows.append([*start, *took, ratio.text()])
    return table(["peer", "shape", "took", "ours", "peer / ours"], rows)


def failures(results: Results) -> str:
    """Samples that did not end well, and bodies that ran more than once, a line for each."""
    told = [(sample, sample.error.splitlines()[0]) for sample in results.failures]
    told += [(one, f"{one.extra_bodies} bodies ran again") for one in results.all_samples() if one.extra_bodies]
    return "\n".join(
        f"- {_words(sample.pair)}: {sample.shape}, round {sample.round + 1}, {sample.rival}: {what}"
        for sample, what in told
    )


def _cells(results: Results) -> Iterator[tuple[str, str]]:
    """Pairs and shapes of which anything was measured."""
    for pair in results.pairs:
        for shape in results.shapes:
            if any(results.samples(pair, shape, rival) for rival in results.rivals):
                yield pair, shape


def _cell(figure: Figure | None, unit: str = "", scale: float = 1.0) -> str:
    return "" if figure is None else figure.text(unit, scale)


def _words(pair: str) -> str:
    return pair.replace("-", ", ")

"""Plots of what was found, as SVG files. matplotlib is in the dependency group ``bench``."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")

import matplotlib.pyplot as plt  # reads what is set above

from tests.benchmarks import summary
from tests.benchmarks.document import read_results
from tests.benchmarks.shapes import BY_NAME
from tests.benchmarks.summary import Figure, Measure, Results

_COLOURS = {"bare": "#9a9a9a", "sql limit": "#1f77b4", "canvas": "#d98c00", "ours": "#1b7f4b"}
_FANS = ("fan-100", "fan-1000", "fan-10000", "fan-100000")
#: Shapes of one run, by how many nodes its graph has.
_GRAPHS = {"chain-40": 40, "chain-200": 200, "nodes-20x50": 1020}
_COLUMNS = 2
_PANEL_INCHES = (5.0, 3.2)

Panel = Callable[[Any, str], None]


def draw_all(data: Mapping[str, Any], directory: Path) -> list[Path]:
    """Draw what there is something to draw of; the files, in ``directory``."""
    directory.mkdir(parents=True, exist_ok=True)
    results, counts = read_results(data), data.get("counts", [])
    plots = {
        "makespan-by-width": lambda: _draw_lines(results, _widths(), summary.seconds, "width", "s"),
        "cost-by-width": lambda: _draw_lines(results, _widths(), _milliseconds_per_task, "width", "ms per task"),
        "cost-by-graph": lambda: _draw_lines(results, _GRAPHS, _milliseconds_per_task, "nodes", "ms per task"),
        "bytes-per-task": lambda: _draw_bars(results.pairs, counts, "message_bytes", "bytes per task"),
        "statements-per-task": lambda: _draw_bars(results.pairs, counts, "statements", "statements per task"),
        "memory": lambda: _draw_lines(results, _widths(), _most_memory, "width", "MB, all processes", scale="linear"),
    }
    drawn = []
    with plt.rc_context({"svg.hashsalt": "bench", "font.size": 9}):  # the same figures give the same file
        for name, draw in plots.items():
            figure = draw()
            if figure is not None:
                drawn.append(directory / f"{name}.svg")
                figure.savefig(drawn[-1], metadata={"Date": None})
                plt.close(figure)
    return drawn


def _widths() -> dict[str, int]:
    return {name: BY_NAME[name].width for name in _FANS}


def _milliseconds_per_task(sample: Any) -> float:
    return summary.seconds_per_task(sample) * 1000


def _most_memory(sample: Any) -> float:
    return sum(sample.memory_peak)


def _draw_lines(
    results: Results, sizes: Mapping[str, int], measure: Measure, x: str, y: str, scale: str = "log"
) -> Any:
    """A panel for each pair, a line for each rival, with the range of the rounds."""
    pairs = [pair for pair in results.pairs if any(True for _ in _lines(results, pair, sizes, measure))]

    def draw(axes: Any, pair: str) -> None:
        for rival, points in _lines(results, pair, sizes, measure):
            at = [size for size, _ in points]
            medians = [figure.median for _, figure in points]
            spread = [
                [figure.median - figure.least for _, figure in points],
                [figure.most - figure.median for _, figure in points],
            ]
            axes.errorbar(at, medians, yerr=spread, marker="o", capsize=3, color=_COLOURS[rival], label=rival)
        axes.set(xscale="log", yscale=scale, xlabel=x, ylabel=y)
        if scale == "linear":
            axes.set_ylim(bottom=0)

    return _draw_panels(pairs, draw)


def _lines(
    results: Results, pair: str, sizes: Mapping[str, int], measure: Measure
) -> Iterator[tuple[str, list[tuple[int, Figure]]]]:
    """Rivals with at least two points."""
    for rival in results.rivals:
        found = [(size, results.figure(pair, shape, rival, measure)) for shape, size in sizes.items()]
        points = [(size, figure) for size, figure in found if figure is not None]
        if len(points) > 1:
            yield rival, points


def _draw_bars(pairs: Sequence[str], counts: Sequence[Mapping[str, Any]], name: str, y: str) -> Any:
    """A panel for each pair: a group of bars for each shape."""
    measured = [pair for pair in pairs if any(cell["pair"] == pair for cell in counts)]

    def draw(axes: Any, pair: str) -> None:
        cells = [cell for cell in counts if cell["pair"] == pair]
        shapes = list(dict.fromkeys(cell["shape"] for cell in cells))
        rivals = [rival for rival in _COLOURS if any(cell["rival"] == rival for cell in cells)]
        wide = 0.8 / len(rivals)
        for n, rival in enumerate(rivals):
            mine = {
                cell["shape"]: cell[name] / BY_NAME[cell["shape"]].tasks for cell in cells if cell["rival"] == rival
            }
            at = [place + n * wide for place, shape in enumerate(shapes) if shape in mine]
            axes.bar(at, [mine[shape] for shape in shapes if shape in mine], wide, color=_COLOURS[rival], label=rival)
        middle = 0.4 - wide / 2
        axes.set_xticks([place + middle for place in range(len(shapes))], shapes, rotation=60, ha="right")
        axes.set(yscale="log" if name == "message_bytes" else "linear", ylabel=y)

    return _draw_panels(measured, draw)


def _draw_panels(pairs: Sequence[str], draw: Panel) -> Any:
    if not pairs:
        return None
    columns = min(_COLUMNS, len(pairs))
    rows = -(-len(pairs) // columns)
    width, height = _PANEL_INCHES
    figure, panels = plt.subplots(
        rows, columns, figsize=(width * columns, height * rows), squeeze=False, layout="constrained"
    )
    for axes in panels.flat[len(pairs) :]:
        axes.set_axis_off()
    for axes, pair in zip(panels.flat, pairs, strict=False):
        draw(axes, pair)
        axes.set_title(pair.replace("-", ", "))
        axes.grid(visible=True, alpha=0.3)
    panels[0][0].legend()
    return figure

"""A picture as SVG, drawn here: it needs no script, no style sheet and no font of its own.

Everything is said in attributes of the elements, so that a page with a strict content security policy shows it.
"""

import unicodedata
from collections.abc import Callable, Iterator, Mapping
from html import escape

from dagabaaz_celery.drawing.layout import Layout, lay_out
from dagabaaz_celery.drawing.model import Drawing, DrawnNode
from dagabaaz_celery.drawing.states import STATES, State, find_state

Link = Callable[[str], str | None]
Point = tuple[float, float]

_WIDTH, _HEIGHT = 196.0, 66.0
_GAP_ALONG, _GAP_ACROSS, _BEND, _MARGIN = 52.0, 18.0, 14.0, 10.0
_PAD = 10.0
#: A picture that is not wider than this runs from left to right; a wider one takes the way that is narrower.
_READABLE_WIDTH = 1_300.0
_TEXT, _FAINT, _EDGE = "#1a1f24", "#4a5563", "#7a8591"
_FONT = "system-ui, 'Segoe UI', 'Helvetica Neue', Arial, sans-serif"
#: Parts of a bar in order: its statuses, its colour, and its height in the bar's 8 units, by which it is told apart.
_BAR_PARTS = (
    (("completed",), "completed", 8.0),
    (("running",), "running", 5.0),
    (("failed", "crashed"), "failed", 8.0),
    (("skipped", "filtered", "cancelled"), "skipped", 3.0),
)


def to_svg(drawing: Drawing, link: Link | None = None) -> str:
    """An ``svg`` element with a viewBox, as wide and high as it reads well: a page may scale it.

    ``link`` gives the URL behind a node's box by the node's slug, or None. Each box is a group of class
    ``dagabaaz-node`` with ``data-node`` (the slug) and ``data-state``.
    """
    indices = {node.slug: index for index, node in enumerate(drawing.nodes)}
    deps = [[indices[slug] for slug in dict.fromkeys(node.depends_on) if slug in indices] for node in drawing.nodes]
    last = [index for index, node in enumerate(drawing.nodes) if node.run_on]
    sideways = lay_out(deps, last, item=_HEIGHT + _GAP_ACROSS, bend=_BEND)
    width = sideways.layers * (_WIDTH + _GAP_ALONG)
    downwards = lay_out(deps, last, item=_WIDTH + _GAP_ACROSS, bend=_BEND) if width > _READABLE_WIDTH else None
    if downwards is not None and downwards.length < width:
        return _Canvas(downwards, sideways=False).draw(drawing, link)
    return _Canvas(sideways, sideways=True).draw(drawing, link)


def to_icon(state: str) -> str:
    """A state's shape in its colour as a small ``svg`` element; its word goes beside it."""
    drawn = find_state(state)
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" class="dagabaaz-icon" viewBox="0 0 14 14" width="14" height="14" '
        f'aria-hidden="true"><path d="{drawn.shape}" fill="{drawn.line}" fill-rule="evenodd"/></svg>'
    )


class _Canvas:
    """Turns places of a layout into points, and nodes into elements."""

    def __init__(self, layout: Layout, *, sideways: bool) -> None:
        self._layout = layout
        self._sideways = sideways
        self._along, self._across = (_WIDTH, _HEIGHT) if sideways else (_HEIGHT, _WIDTH)

    def draw(self, drawing: Drawing, link: Link | None) -> str:
        length = max(1, self._layout.layers) * (self._along + _GAP_ALONG) - _GAP_ALONG
        across = max(self._layout.length - _GAP_ACROSS, self._across)
        width, height = (length, across) if self._sideways else (across, length)
        size = f"{width + 2 * _MARGIN:.0f}", f"{height + 2 * _MARGIN:.0f}"
        parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" class="dagabaaz-graph" viewBox="0 0 {size[0]} {size[1]}" '
            f'width="{size[0]}" height="{size[1]}" font-family="{_FONT}" font-size="12">',
            f"<title>{_escape(_title(drawing))}</title>",
        ]
        if not drawing.nodes:
            parts.append(_text(_MARGIN + _PAD, _MARGIN + 20, "no nodes", _FAINT))
        parts += [self._draw_edge(route) for route in self._layout.routes.values()]  # first: behind the nodes
        for node, place in zip(drawing.nodes, self._layout.places, strict=True):
            x, y = self._middle(place)
            parts.append(_draw_node(node, x - _WIDTH / 2, y - _HEIGHT / 2, link(node.slug) if link else None))
        return "".join([*parts, "</svg>"])

    def _middle(self, place: tuple[int, float]) -> Point:
        layer, across = place
        along = _MARGIN + layer * (self._along + _GAP_ALONG) + self._along / 2
        across += _MARGIN - _GAP_ACROSS / 2
        return (along, across) if self._sideways else (across, along)

    def _shift(self, point: Point, along: float) -> Point:
        return (point[0] + along, point[1]) if self._sideways else (point[0], point[1] + along)

    def _draw_edge(self, route: list[tuple[int, float]]) -> str:
        """From the side of one box to the side of another; at a bend it goes straight through the layer."""
        middles = [self._middle(place) for place in route]
        reach = self._along / 2
        path, here = "", self._shift(middles[0], reach)
        path = f"M{here[0]:.1f} {here[1]:.1f}"
        for number, middle in enumerate(middles[1:], start=2):
            end = number == len(middles)
            there = self._shift(middle, -reach - (7.0 if end else 0.0))
            near, far = self._shift(here, _GAP_ALONG / 2), self._shift(there, -_GAP_ALONG / 2)
            path += f"C{near[0]:.1f} {near[1]:.1f} {far[0]:.1f} {far[1]:.1f} {there[0]:.1f} {there[1]:.1f}"
            here = there
            if not end:
                here = self._shift(middle, reach)
                path += f"L{here[0]:.1f} {here[1]:.1f}"
        wings = "l-1 -4l8 4l-8 4Z" if self._sideways else "l-4 -1l4 8l4 -8Z"
        return (
            f'<path class="dagabaaz-edge" d="{path}" fill="none" stroke="{_EDGE}" stroke-width="1.5"/>'
            f'<path d="M{here[0]:.1f} {here[1]:.1f}{wings}" fill="{_EDGE}"/>'
        )


def _draw_node(node: DrawnNode, x: float, y: float, url: str | None) -> str:
    state = find_state(node.state)
    dashes = ' stroke-dasharray="5 3"' if state.dashed else ""
    box = "".join(
        [
            f"<title>{_escape(_tooltip(node))}</title>",
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{_WIDTH:.0f}" height="{_HEIGHT:.0f}" rx="8" '
            f'fill="{state.fill}" stroke="{state.line}" stroke-width="1.5"{dashes}/>',
            *_draw_inside(node, state, x + _PAD, y),
        ]
    )
    if url is not None:
        box = f'<a href="{_escape(url)}">{box}</a>'
    return (
        f'<g class="dagabaaz-node" data-node="{_escape(node.slug)}" data-state="{_escape(node.state or "")}">{box}</g>'
    )


def _draw_inside(node: DrawnNode, state: State, x: float, y: float) -> Iterator[str]:
    """Three lines: shape and name; the state in words, or the plugin; bar and counts, or what else there is to say."""
    width = _WIDTH - 2 * _PAD
    indent = 0.0
    if state.shape:
        indent = 20.0
        yield (
            f'<path transform="translate({x:.1f} {y + 9:.1f})" d="{state.shape}" fill="{state.line}" '
            'fill-rule="evenodd"/>'
        )
    yield _text(x + indent, y + 20, _fit(node.label, width - indent, 8.0), _TEXT, ' font-size="13" font-weight="600"')
    lines = [node.words, _say_last(node), node.plugin if node.plugin != node.label else ""]
    second, third, *_ = [*filter(None, lines), "", ""]
    yield _text(x, y + 38, _fit(second, width, 6.6), _TEXT if node.words else _FAINT)
    if node.counts:
        size = 6.6 * len(node.counts)
        yield from _draw_bar(node, x, y + 48, width - size - 8)
        yield _text(x + width, y + 56, node.counts, _TEXT, ' text-anchor="end"')
    else:
        yield _text(x, y + 56, _fit(third, width, 6.6), _FAINT)


def _draw_bar(node: DrawnNode, x: float, y: float, width: float) -> Iterator[str]:
    yield (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="8" fill="#ffffff" '
        f'stroke="{_EDGE}" stroke-width="0.75"/>'
    )
    total = max(node.tasks_total, sum(node.tasks.values()))
    for statuses, name, height in _BAR_PARTS:
        count = sum(node.tasks.get(status, 0) for status in statuses)
        if count:
            part = width * count / total
            yield (
                f'<rect class="dagabaaz-bar" data-part="{name}" x="{x:.1f}" y="{y + 8 - height:.1f}" '
                f'width="{max(part, 1.5):.1f}" height="{height:.0f}" fill="{STATES[name].line}"/>'
            )
            x += part


def _text(x: float, y: float, text: str, colour: str, more: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" fill="{colour}"{more}>{_escape(text)}</text>' if text else ""


def _title(drawing: Drawing) -> str:
    return drawing.title if drawing.status is None else f"{drawing.title}: {drawing.status}"


def _tooltip(node: DrawnNode) -> str:
    lines = [
        node.label if node.label == node.slug else f"{node.label} ({node.slug})",
        f"plugin {node.plugin}",
        _say_last(node),
        node.words,
        _describe_tasks(node.tasks),
        _describe_time(node),
    ]
    return "\n".join(line for line in lines if line)


def _say_last(node: DrawnNode) -> str:
    return f"runs last, on {node.run_on}" if node.run_on else ""


def _describe_tasks(tasks: Mapping[str, int]) -> str:
    return "tasks: " + ", ".join(f"{count:,} {status}" for status, count in sorted(tasks.items())) if tasks else ""


def _describe_time(node: DrawnNode) -> str:
    if node.started_at is None or node.ended_at is None:
        return ""
    return f"took {format_seconds(node.ended_at - node.started_at)}"


def format_seconds(seconds: float) -> str:
    """A time that something took, as ``0.42 s``, ``12.3 s``, ``4 min 5 s`` or ``3 h 20 min``."""
    if seconds < 59.95:
        return f"{seconds:.2f} s" if seconds < 9.995 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60:,} h {minutes % 60} min"


def _fit(text: str, width: float, letter: float) -> str:
    """As much of the text as fits, by a letter's mean width: no font is measured here. The tooltip has it all."""
    room = width / letter
    used = 0
    for position, character in enumerate(text):
        used += 2 if unicodedata.east_asian_width(character) in "WF" else 1
        if used > room:
            return text[: max(1, position - 1)] + "…"
    return text


def _escape(text: str) -> str:
    """Text for XML, which has no way to write most control characters."""
    kept = (one if one == "\n" or one.isprintable() else " " for one in text)
    return escape("".join(kept))

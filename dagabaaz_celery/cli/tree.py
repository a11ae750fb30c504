"""A graph as lines for a terminal: every node once, below the dependency that is deepest."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.text import Text

from dagabaaz_celery.cli.output import clean, style_state
from dagabaaz_celery.drawing import Drawing, DrawnNode


@dataclass(frozen=True)
class _Signs:
    branch: str
    last: str
    pass_by: str
    then: str


_UNICODE = _Signs("├─ ", "└─ ", "│  ", "↓ ")
_ASCII = _Signs("|- ", "`- ", "|  ", "v ")


def draw_tree(drawing: Drawing, *, unicode: bool = True) -> Iterator[Text]:
    """A line for each node. What follows alone is not indented, so that long chains stay legible."""
    signs = _UNICODE if unicode else _ASCII
    parents, children = _make_tree(drawing.nodes)
    waiting = [(root, "", "") for root in reversed(children[None])]
    while waiting:
        node, lead, rest = waiting.pop()
        yield Text.assemble((lead, "dim"), _describe(node, parents[node.slug]))
        below = children[node.slug]
        if len(below) == 1:
            waiting.append((below[0], rest + signs.then, rest))
            continue
        for child in reversed(below):
            is_last = child is below[-1]
            beside = " " * len(signs.pass_by) if is_last else signs.pass_by
            waiting.append((child, rest + (signs.last if is_last else signs.branch), rest + beside))


def _make_tree(nodes: Sequence[DrawnNode]) -> tuple[dict[str, str | None], dict[str | None, list[DrawnNode]]]:
    """For each node the dependency that it is shown below, and for each of those what is shown there."""
    depths = _measure_depths(nodes)
    parents: dict[str, str | None] = {}
    children: dict[str | None, list[DrawnNode]] = {None: [], **{node.slug: [] for node in nodes}}
    for node in nodes:
        known = [slug for slug in node.depends_on if slug in depths] if node.slug in depths else []
        parents[node.slug] = max(known, key=lambda slug: depths[slug], default=None)
        children[parents[node.slug]].append(node)
    return parents, children


def _measure_depths(nodes: Sequence[DrawnNode]) -> dict[str, int]:
    """How many nodes come before each, on the longest way; those of a circle, and behind it, have none."""
    missing = {node.slug: set(node.depends_on) for node in nodes}
    depths: dict[str, int] = {}
    layer = [slug for slug, deps in missing.items() if not deps]
    followers: dict[str, list[str]] = {}
    for node in nodes:
        for slug in node.depends_on:
            followers.setdefault(slug, []).append(node.slug)
    depth = 0
    while layer:
        depths |= dict.fromkeys(layer, depth)
        ready = []
        for slug in layer:
            for follower in followers.get(slug, ()):
                missing[follower].discard(slug)
                if not missing[follower] and follower not in ready:
                    ready.append(follower)
        layer, depth = ready, depth + 1
    return depths


def _describe(node: DrawnNode, parent: str | None) -> Text:
    line = Text(clean(node.slug), "bold")
    if node.name and node.name != node.slug:
        line.append(f" {clean(node.name)}", "")
    if node.plugin != node.slug:
        line.append(f" ({clean(node.plugin)})", "dim")
    if node.state is not None:
        line.append_text(
            Text.assemble("  ", style_state(node.state, node.words), f" {node.counts}" * bool(node.counts))
        )
    others = [clean(slug) for slug in node.depends_on if slug != parent]
    if others:
        line.append(f"  also after {', '.join(others)}", "dim")
    if node.run_on is not None:
        line.append(f"  finaliser, on {clean(node.run_on)}", "dim")
    return line

"""Pictures as text that other programs draw: Mermaid, DOT and JSON."""

import json
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from dagabaaz_celery.drawing.model import Drawing, DrawnNode
from dagabaaz_celery.drawing.states import State, find_state

# Mermaid reads "#name;" and "#number;" inside quotes as that character.
_MERMAID = {ord(character): f"#{ord(character)};" for character in '#"&<>`\\'}


def to_mermaid(drawing: Drawing) -> str:
    """A Mermaid flowchart, as GitHub shows it in a ``mermaid`` block. Every state is a colour and a word."""
    ids = _number(drawing)
    lines = ["---", f"title: {json.dumps(_clean(drawing.title), ensure_ascii=False)}", "---", "flowchart LR"]
    for node in drawing.nodes:
        label = "<br/>".join(_clean(line).translate(_MERMAID) for line in _describe(node))
        lines.append(f'    {ids[node.slug]}["{label}"]')
    lines += [f"    {one} --> {two}" for one, two in _edges(drawing, ids)]
    for state, members in _group_by_state(drawing, ids):
        name = "".join(one if one.isalnum() else "_" for one in state.word)
        dashes = ",stroke-dasharray:4 3" if state.dashed else ""
        lines.append(f"    classDef {name} fill:{state.fill},stroke:{state.line},color:#1a1f24{dashes}")
        lines.append(f"    class {','.join(members)} {name}")
    return "\n".join(lines) + "\n"


def to_dot(drawing: Drawing) -> str:
    """A graph in the language of Graphviz's ``dot``. Every state is a colour and a word."""
    ids = _number(drawing)
    lines = [
        f"digraph {_quote_dot(drawing.title)} {{",
        "    rankdir=LR;",
        f"    label={_quote_dot(drawing.title)};",
        "    labelloc=t;",
        '    node [shape=box, style="rounded,filled", fontname="sans-serif", fontsize=11];',
        '    edge [color="#7a8591"];',
    ]
    for node in drawing.nodes:
        state = find_state(node.state)
        style = ', style="rounded,filled,dashed"' if state.dashed else ""
        lines.append(
            f"    {ids[node.slug]} [label={_quote_dot(*_describe(node))}, tooltip={_quote_dot(node.slug)}, "
            f'fillcolor="{state.fill}", color="{state.line}"{style}];'
        )
    lines += [f"    {one} -> {two};" for one, two in _edges(drawing, ids)]
    return "\n".join([*lines, "}"]) + "\n"


def to_json(drawing: Drawing) -> dict[str, Any]:
    """The drawing as plain JSON data, with the fields of Drawing and DrawnNode."""
    data = asdict(drawing)
    data["nodes"] = [{**node, "depends_on": list(node["depends_on"])} for node in data["nodes"]]
    return data


def _describe(node: DrawnNode) -> list[str]:
    """The lines inside a node's box."""
    last = f"last, on {node.run_on}" if node.run_on else ""
    state = " ".join(part for part in (node.words, node.counts) if part)
    return [line for line in (node.label, node.plugin if node.plugin != node.label else "", last, state) if line]


def _number(drawing: Drawing) -> dict[str, str]:
    """Ids that need no quoting, by slug."""
    return {node.slug: f"n{number}" for number, node in enumerate(drawing.nodes)}


def _edges(drawing: Drawing, ids: dict[str, str]) -> Iterator[tuple[str, str]]:
    for node in drawing.nodes:
        for slug in dict.fromkeys(node.depends_on):
            if slug in ids:  # a pipeline that cannot run is drawn as far as it can be
                yield ids[slug], ids[node.slug]


def _group_by_state(drawing: Drawing, ids: dict[str, str]) -> list[tuple[State, list[str]]]:
    members: dict[str, list[str]] = {}
    for node in drawing.nodes:
        if node.state is not None:
            members.setdefault(node.state, []).append(ids[node.slug])
    return [(find_state(name), found) for name, found in members.items()]


def _clean(text: str) -> str:
    """The text on one line, without what no output can hold: control characters, halves of surrogate pairs."""
    return "".join(character if character.isprintable() else " " for character in text)


def _quote_dot(*lines: str) -> str:
    escaped = (
        _clean(line).replace("\\", "\\\\").replace('"', '\\"').replace("&", "&amp;")  # dot reads entities in labels
        for line in lines
    )
    return '"' + "\\n".join(escaped) + '"'

"""All tables of a run as one text, and its place between two marks of a page."""

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from tests.benchmarks import report
from tests.benchmarks.sampling import Sample
from tests.benchmarks.summary import Results

BEGIN, END = "<!-- results of make bench: begin -->", "<!-- results of make bench: end -->"


def build_text(data: Mapping[str, Any]) -> str:
    """What a run found, as Markdown, from what its file says. What was not measured has no table."""
    results = read_results(data)
    sections = {
        "Time": report.times(results),
        "Tasks a second": report.rates(results),
        "Chains": report.hops(results),
        "CPU": report.costs(results),
        "Larger shapes by smaller ones": report.scaling(results),
        "What is sent": report.sent(data.get("counts", [])),
        "Memory": report.memory(results),
        "Idle workers": report.idle(data.get("idle", [])),
        "Peers": report.peers(data.get("peers", [])),
        "What did not go well": report.failures(results),
        "What was not measured": "\n".join(f"- {what}" for what in data.get("left_out", [])),
    }
    parts = ["\n".join(_tell_facts(data, results))]
    parts += [f"### {title}\n\n{text}" for title, text in sections.items() if text]
    return "\n\n".join(parts)


def read_results(data: Mapping[str, Any]) -> Results:
    """The samples of a file; fields that are unknown by now are left out."""
    known = {field.name for field in fields(Sample)}
    return Results(Sample(**{name: value for name, value in one.items() if name in known}) for one in data["samples"])


def load(path: Path) -> dict[str, Any]:
    """What ``save`` wrote."""
    data: dict[str, Any] = json.loads(path.read_text())
    return data


def merge(found: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """What several runs found, one after the other; what is said of machine and versions is the first one's."""
    runs = list(found)
    merged: dict[str, Any] = {"facts": {**runs[0]["facts"]}}
    merged["facts"]["command"] = "`, `".join(run["facts"]["command"] for run in runs)
    for name in ("samples", "counts", "idle", "peers", "left_out"):
        merged[name] = [item for run in runs for item in run.get(name, [])]
    return merged


def write_page(page: Path, text: str, pictures: Sequence[Path] = ()) -> None:
    """Put a text and pictures between the two marks of a page, in place of what is there.

    Raises ValueError without the marks.
    """
    old = page.read_text()
    if BEGIN not in old or END not in old:
        raise ValueError(f"{page} has no marks {BEGIN!r} and {END!r}")
    head, tail = old[: old.index(BEGIN)], old[old.index(END) :]
    links = [f"![{path.stem.replace('-', ' ')}]({os.path.relpath(path, page.parent)})" for path in pictures]
    page.write_text("\n\n".join([head + BEGIN, text, *links, tail]))


def save(data: Mapping[str, Any], directory: Path) -> None:
    """Write ``results.json`` and ``results.md``."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "results.json").write_text(json.dumps(data, indent=1) + "\n")
    (directory / "results.md").write_text(build_text(data) + "\n")


def _tell_facts(data: Mapping[str, Any], results: Results) -> Iterator[str]:
    facts = data["facts"]
    yield f"- {facts['at']}, revision {facts['revision']}: `{facts['command']}`"
    yield f"- {facts['cores']} cores ({facts['processor']}), {facts['system']}, load {facts['load']} at the end"
    servers = ", ".join(f"{name} {version}" for name, version in facts["servers"].items())
    yield f"- Python {facts['python']}; {servers}"
    yield f"- {', '.join(f'{name} {version}' for name, version in facts['packages'].items())}"
    yield f"- workers: `{facts['workers']}` with {_tell_settings(facts['settings'])}"
    yield f"- ours also with {_tell_settings(facts['settings of ours'])}"
    noise = results.noise()
    if noise is not None:
        yield f"- noise: within a cell the rounds' times lie {noise:.0%} of their median apart (median of all cells)"


def _tell_settings(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"`{name}={value}`" for name, value in settings.items())

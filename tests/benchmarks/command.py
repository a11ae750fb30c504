"""What the command line says, and what is done about it."""

import argparse
import shlex
import signal
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from tests.benchmarks import document, rivals
from tests.benchmarks.facts import gather_facts
from tests.benchmarks.pairs import PAIRS
from tests.benchmarks.session import Plan, Session
from tests.benchmarks.shapes import ALL, choose


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description="Measure what runs cost.")
    parser.add_argument("--pairs", default=",".join(PAIRS), help="stores and brokers (all: %(default)s)")
    parser.add_argument("--shapes", default=",".join(shape.name for shape in ALL), help="or beginnings of their names")
    parser.add_argument("--rivals", default=",".join(rivals.NAMES), help="who is measured (all: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="how often each does each shape (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("build/benchmarks"), help="directory of results (%(default)s)")
    parser.add_argument("--budget", type=float, help="seconds that are shared among the pairs: then nothing is begun")
    parser.add_argument(
        "--idle", type=float, default=30, help="seconds for which idle workers are watched (%(default)s)"
    )
    parser.add_argument("--no-counts", action="store_true", help="leave out what is sent for each task")
    parser.add_argument("--query", default="", help="added to the URL of a database server: prepare_threshold=5")
    parser.add_argument(
        "--from", type=Path, nargs="+", dest="source", help="measure nothing: tell what these results.json say together"
    )
    parser.add_argument("--page", type=Path, help="a page that gets the tables, between its two marks")
    parser.add_argument("--plots", type=Path, help="directory of plots; they need the dependency group bench")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str]) -> int:
    """Measure, or read what was measured; then write it down."""
    given = parse(arguments)
    data = document.merge(map(document.load, given.source)) if given.source else measure(given, arguments)
    text = document.build_text(data)
    click.echo(f"\n{text}")
    if not given.source:
        document.save(data, given.out)
    drawn = []
    if given.plots:
        from tests.benchmarks.plots import draw_all  # not everybody who measures has matplotlib

        drawn = draw_all(data, given.plots)
    if given.page:
        document.write_page(given.page, text, drawn)
    return 1 if any(sample["error"] for sample in data["samples"]) else 0


def measure(given: argparse.Namespace, arguments: Sequence[str]) -> dict[str, Any]:
    """Carry the plan out; what was found, ready for a file."""
    plan = Plan(
        pairs=given.pairs.split(","),
        shapes=choose(given.shapes.split(",")),
        rivals=given.rivals.split(","),
        rounds=given.rounds,
        counting=not given.no_counts,
        idle_seconds=given.idle,
        budget=given.budget,
        query=given.query,
    )
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # databases and queues are removed
    found = Session(plan, click.echo).run()
    samples = [asdict(sample) for sample in found.samples]
    facts = gather_facts(sorted({sample.pair for sample in found.samples}))
    facts["command"] = shlex.join(["python", "-m", "tests.benchmarks", *arguments])
    return {
        "facts": facts,
        "samples": samples,
        "counts": found.counts,
        "idle": found.idle,
        "left_out": found.left_out,
    }

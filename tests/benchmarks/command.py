"""What the command line says, and what is done about it."""

import argparse
import json
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import click

from tests.benchmarks import report, rivals
from tests.benchmarks.pairs import PAIRS
from tests.benchmarks.session import Plan, Session
from tests.benchmarks.shapes import ALL, choose
from tests.benchmarks.summary import Results


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description="Measure what runs cost.")
    parser.add_argument("--pairs", default=",".join(PAIRS), help="stores and brokers (all: %(default)s)")
    parser.add_argument("--shapes", default=",".join(shape.name for shape in ALL), help="or beginnings of their names")
    parser.add_argument("--rivals", default=",".join(rivals.NAMES), help="who is measured (all: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="how often each does each shape (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("build/benchmarks"), help="directory of results (%(default)s)")
    parser.add_argument("--budget", type=float, help="seconds after which nothing more is begun")
    parser.add_argument("--no-counts", action="store_true", help="leave out what is sent for each task")
    parser.add_argument("--query", default="", help="added to the URL of a database server: prepare_threshold=5")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str]) -> int:
    """Measure, and write down what was found."""
    given = parse(arguments)
    plan = Plan(
        pairs=given.pairs.split(","),
        shapes=choose(given.shapes.split(",")),
        rivals=given.rivals.split(","),
        rounds=given.rounds,
        counting=not given.no_counts,
        budget=given.budget,
        query=given.query,
    )
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # databases and queues go before
    findings = Session(plan, click.echo).run()
    results = Results(findings.samples)
    parts = [report.times(results), report.hops(results), report.rates(results), report.costs(results)]
    parts += [report.sent(findings.counts), report.memory(results), report.failures(results)]
    text = "\n\n".join([part for part in parts if part] + [f"- left out: {what}" for what in findings.left_out])
    click.echo(f"\n{text}")
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "results.md").write_text(f"{text}\n")
    data = {"samples": [sample.to_json() for sample in findings.samples], "counts": findings.counts}
    (given.out / "results.json").write_text(json.dumps(data, indent=1))
    return 1 if any(sample.error for sample in findings.samples) else 0

"""The command: ``python -m tests.benchmarks.peers --help``."""

import argparse
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click

from tests import services
from tests.benchmarks.document import build_text, save
from tests.benchmarks.facts import gather_facts
from tests.benchmarks.pairs import open_places
from tests.benchmarks.peers.environments import PEERS, CannotInstall, Environment, Peer, make_environment
from tests.benchmarks.peers.measuring import DidNotRun, run_peer
from tests.benchmarks.sampling import Sampler
from tests.benchmarks.session import rotate
from tests.benchmarks.shapes import Shape
from tests.benchmarks.site import open_site
from tests.processes import make_directory, remove_directory

PAIR = "postgresql-redis"


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.peers", description="Measure other libraries.")
    parser.add_argument("--peers", default=",".join(PEERS), help="which (all: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="how often each does each shape (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("build/benchmarks/peers"), help="directory of results")
    parser.add_argument("--environments", type=Path, default=Path("build/peers"), help="directory of environments")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str]) -> int:
    """Measure the peers that can be had, and write down what was found."""
    given = parse(arguments)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    cells, left_out = [], []
    for name in given.peers.split(","):
        peer = PEERS[name]
        try:
            environment = make_environment(peer, given.environments.absolute())
        except CannotInstall as reason:
            left_out.append(f"{name}: {reason}")
            continue
        cells += [_measure(peer, environment, shape, given.rounds) for shape in peer.shapes]
    facts = gather_facts([PAIR])
    facts["command"] = " ".join(["python -m tests.benchmarks.peers", *arguments])
    data = {"facts": facts, "samples": [], "peers": cells, "left_out": left_out}
    click.echo(f"\n{build_text(data)}")
    save(data, given.out)
    return 1 if left_out or any(cell["error"] for cell in cells) else 0


def _measure(peer: Peer, environment: Environment, shape: str, rounds: int) -> dict[str, Any]:
    """A peer and this package in turn, for one shape; an error ends it."""
    cell: dict[str, Any] = {"peer": peer.name, "version": environment.version, "shape": shape, "error": ""}
    cell |= {"seconds": [], "ours": []}
    with ExitStack() as opened:
        site = opened.enter_context(open_site(PAIR))
        sampler, ours = Sampler(site), site.rivals["ours"]
        sampler.take(Shape("fan-100", "fan", width=100), ours, -1)
        kind, _, size = shape.partition("-")
        graph = Shape(shape, "fan", width=int(size)) if kind == "fan" else Shape(shape, "chain", depth=int(size))

        def take_ours(round_: int) -> None:
            sample = sampler.take(graph, ours, round_)
            if sample.error:
                raise DidNotRun(f"ours: {sample.error}")
            cell["ours"].append(sample.makespan)

        def take_theirs(round_: int) -> None:
            cell["seconds"].append(_run_alone(peer, environment, shape))

        takes: dict[str, Callable[[int], None]] = {"ours": take_ours, peer.name: take_theirs}
        try:
            for round_ in range(rounds):
                for name in rotate(list(takes), round_):
                    takes[name](round_)
        except DidNotRun as reason:
            cell["error"] = str(reason)
    click.echo(f"{peer.name} {shape}: {cell['error'] or cell['seconds']}, ours {cell['ours']}")
    return cell


def _run_alone(peer: Peer, environment: Environment, shape: str) -> float:
    """In a database and a Redis that nobody else has."""
    directory = make_directory("peers")
    try:
        with (
            open_places(PAIR, directory, f"dagabaaz-bench-{directory.name[-8:].lower()}", []) as places,
            services.open_private_redis() as redis,
        ):
            return run_peer(peer, environment, shape, places.database_url, redis.url)
    finally:
        remove_directory(directory)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

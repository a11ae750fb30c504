"""A peer's program, run once: in a database, a Redis and a directory of its own, all its processes ended after it."""

import os
import subprocess
from pathlib import Path

from sqlalchemy import make_url

from tests.benchmarks.peers.environments import Environment, Peer
from tests.processes import ProcessTree, make_directory, remove_directory

_SECONDS = 300.0
_OUTPUT_LINES = 5


class DidNotRun(Exception):
    """What a peer's program said in place of a time."""


def run_peer(peer: Peer, environment: Environment, shape: str, database_url: str, redis_url: str) -> float:
    """The seconds that it took. Raises DidNotRun."""
    directory = make_directory("peer")
    plain = make_url(database_url).set(drivername="postgresql", query={})
    log = directory / "log"
    try:
        program = ProcessTree(
            [environment.python, peer.program, shape],
            log=log,
            cwd=directory,
            env={
                **os.environ,
                "PEER_DATABASE": plain.render_as_string(hide_password=False),
                "PEER_REDIS": redis_url,
                "PEER_DIRECTORY": str(directory),
                "PYTHONWARNINGS": "ignore",
            },
        )
        try:
            return _read_seconds(program, log)
        finally:
            program.end(timeout=5)
    finally:
        remove_directory(directory)


def _read_seconds(program: ProcessTree, log: Path) -> float:
    try:
        code = program.wait(_SECONDS)
    except subprocess.TimeoutExpired as error:
        raise DidNotRun(f"not within {_SECONDS:g} s: {_last_lines(log)}") from error
    numbers = [line for line in log.read_text().splitlines() if line.replace(".", "", 1).isdigit()]
    if code or not numbers:
        raise DidNotRun(_last_lines(log))
    return float(numbers[-1])


def _last_lines(log: Path) -> str:
    return " / ".join(log.read_text().strip().splitlines()[-_OUTPUT_LINES:])

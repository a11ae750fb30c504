"""An environment for each peer, made once by pip."""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

_INSTALL_SECONDS = 900
_PROGRAMS = Path(__file__).with_name("programs")


@dataclass(frozen=True)
class Peer:
    """A library, the shapes that it is measured with, and what pip is asked for.

    ``fan`` tasks, and a ``chain`` of so many hops: fewer where one takes seconds.
    """

    name: str
    requirement: str
    fan: int = 1000
    chain: int = 40
    more_requirements: tuple[str, ...] = ()

    @property
    def program(self) -> Path:
        """What runs in its environment."""
        return _PROGRAMS / f"{self.name}.py"

    @property
    def shapes(self) -> tuple[str, str]:
        """Their names."""
        return f"fan-{self.fan}", f"chain-{self.chain}"


PEERS = {
    peer.name: peer
    for peer in (
        Peer("dbos", "dbos"),
        Peer("director", "celery-director"),
        Peer("prefect", "prefect"),
        Peer("dyrygent", "celery-dyrygent", fan=200, chain=5, more_requirements=("celery[redis]", "packaging")),
    )
}


class CannotInstall(Exception):
    """Why a peer has no environment."""


@dataclass(frozen=True)
class Environment:
    """A virtual environment with one peer in it."""

    python: Path
    version: str


def make_environment(peer: Peer, directory: Path) -> Environment:
    """Make it, or take the one that is there. Raises CannotInstall with pip's last line."""
    place = directory / peer.name
    python = place / "bin" / "python"
    if not python.exists():
        _run([sys.executable, "-m", "venv", str(place)])
    if not _version(python, peer):
        pip = [str(python), "-m", "pip", "--disable-pip-version-check", "--quiet", "install"]
        _run([*pip, peer.requirement, *peer.more_requirements])
    return Environment(python, _version(python, peer))


def _version(python: Path, peer: Peer) -> str:
    ask = f"import importlib.metadata as m; print(m.version({peer.requirement!r}))"
    done = subprocess.run([str(python), "-c", ask], capture_output=True, text=True, check=False)
    return done.stdout.strip()


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_INSTALL_SECONDS)
    except subprocess.TimeoutExpired as error:
        raise CannotInstall(f"not installed within {_INSTALL_SECONDS} s") from error
    if done.returncode:
        raise CannotInstall((done.stderr.strip().splitlines() or ["no reason given"])[-1])

"""Runs the shop: makes its tables, starts a worker and the web server, and ends both on Ctrl-C.

python run.py
"""

import argparse
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType

import django
from django.contrib.auth import get_user_model
from django.core.management import call_command
from django.db import connections

HERE = Path(__file__).resolve().parent
PATIENCE_SECONDS = 10.0
ADMIN = "admin"


class Ended(Exception):
    """A process of the shop ended by itself; the message tells which, and what it wrote last."""


class Process:
    """A program of the shop, in a session of its own: a Ctrl-C of the terminal reaches only this script."""

    def __init__(self, name: str, arguments: list[str], state: Path) -> None:
        self.name = name
        self.log = state / f"{name}.log"
        with self.log.open("wb") as output:
            self.process = subprocess.Popen(  # noqa: S603  # our own interpreter, our own arguments
                [sys.executable, *arguments],
                cwd=HERE,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def check(self) -> None:
        """Raise Ended when it is not there any more."""
        if self.process.poll() is not None:
            lines = self.log.read_text(errors="replace").strip().splitlines()[-15:]
            raise Ended("\n".join([f"The {self.name} ended early, with code {self.process.returncode}:", *lines]))

    def stop(self) -> None:
        """SIGTERM, and SIGKILL to all that it started when that takes too long."""
        self.process.terminate()
        try:
            self.process.wait(PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


class StopSignals:
    """Remembers SIGINT, SIGTERM and SIGHUP, so that nothing is left half-started."""

    def __init__(self) -> None:
        self.seen: int | None = None
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._remember)

    def _remember(self, number: int, _frame: FrameType | None) -> None:
        self.seen = self.seen or number


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="A tea shop in Django whose orders are pipelines.")
    parser.add_argument("--port", type=int, default=8000, help="of the web server; 0 for any (default: %(default)s)")
    parser.add_argument("--state", type=Path, default=HERE / ".dagabaaz", help="where database, broker and logs are")
    parser.add_argument("--workers", type=int, default=4, help="processes of the worker (default: %(default)s)")
    parser.add_argument("--pace", type=float, default=1.0, help="seconds that the bank thinks (default: %(default)s)")
    return parser.parse_args()


def manage(*arguments: str) -> list[str]:
    """A call of manage.py."""
    return [str(HERE / "manage.py"), *arguments]


def make_tables() -> None:
    """Migrate, and have somebody who may enter the admin, as two calls of manage.py would do."""
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "shop.settings")
    django.setup()
    call_command("migrate", verbosity=0)
    users = get_user_model().objects
    if not users.filter(username=ADMIN).exists():
        users.create_superuser(ADMIN, password=ADMIN)
    connections.close_all()


def find_port(wanted: int) -> int:
    """The port, or a free one for 0. Raises OSError for one that is taken."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", wanted))
        port: int = listener.getsockname()[1]
    return port


def answers(port: int) -> bool:
    """Whether the web server takes connections."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


def run(options: argparse.Namespace, port: int, stop: StopSignals) -> None:
    """Start what the shop is made of, and wait for a signal. Raises Ended."""
    worker = ["-m", "celery", "-A", "shop", "worker", "-c", str(options.workers), "--loglevel", "INFO"]
    processes: list[Process] = []
    try:
        processes.append(Process("worker", [*worker, "-n", f"shop-{os.getpid()}@%h"], options.state))
        processes.append(Process("web", manage("runserver", "--noreload", f"127.0.0.1:{port}"), options.state))
        told = False
        while stop.seen is None:
            for process in processes:
                process.check()
            if not told and answers(port):
                print(f"The shop is open: http://127.0.0.1:{port}/")
                print(f"Its admin: http://127.0.0.1:{port}/admin/ (name and password: {ADMIN})")
                print(f"Logs are in {options.state}. Ctrl-C closes it.", flush=True)
                told = True
            time.sleep(0.1)
    finally:
        for process in reversed(processes):
            process.stop()


def main() -> int:
    """The exit code: 0 after a signal, 1 when the shop ended by itself, 2 for a port that is taken."""
    options = parse_arguments()
    options.state = options.state.expanduser().resolve()
    options.state.mkdir(parents=True, exist_ok=True)
    os.environ |= {"SHOP_STATE": str(options.state), "SHOP_PACE": str(options.pace)}
    try:
        port = find_port(options.port)
    except OSError as error:
        print(f"Port {options.port} cannot be used: {error.strerror}. Take another, or any with --port 0.")
        return 2
    stop = StopSignals()
    try:
        make_tables()
        run(options, port, stop)
    except Ended as ended:
        print(ended)
        return 1
    print("The shop is closed.")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Runs the library pipeline over a folder with worker processes of its own, and shows how it goes.

python demo.py --dir ~/Pictures
"""

import argparse
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from report import KINDS, count, human_size
from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from dagabaaz_celery.constants import RUN_TERMINAL_STATUSES, RunStatus
from dagabaaz_celery.errors import DagabaazError

HERE = Path(__file__).resolve().parent
POLL_SECONDS = 0.2
PATIENCE_SECONDS = 10.0
WORDS = {
    "blocked": "waiting",
    "launching": "running",
    "launched": "running",
    "completed": "done",
    "filtered": "filtered: nothing to do",
    "skipped": "skipped",
    "failed": "failed",
}
COLORS = {"done": "green", "running": "cyan", "failed": "red", "waiting": "dim"}


class Stopped(Exception):
    """Someone asked the demo to stop; ``signal_number`` says how."""

    def __init__(self, signal_number: int) -> None:
        self.signal_number = signal_number
        super().__init__(signal.Signals(signal_number).name)


class DemoFailed(Exception):
    """The run did not complete; the message holds why and what the workers said last."""


class StopSignals:
    """Remembers SIGINT, SIGTERM and SIGHUP; the demo looks when it can be stopped, so nothing is left half-done."""

    def __init__(self) -> None:
        self.seen: list[int] = []
        self.before: dict[int, Any] = {}

    def __enter__(self) -> "StopSignals":
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            self.before[number] = signal.signal(number, self._remember)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _remember(self, number: int, _frame: FrameType | None) -> None:
        self.seen.append(number)

    def check(self) -> None:
        """Raise Stopped when a signal has come."""
        if self.seen:
            raise Stopped(self.seen[0])


class Workers:
    """Celery worker processes, each in a session of its own: a Ctrl-C of the terminal reaches only the demo."""

    def __init__(self, number: int, state: Path) -> None:
        self.logs = [state / f"worker-{n}.log" for n in range(1, number + 1)]
        # What a worker that had to be killed leaves goes with the rest.
        self._environment = {**os.environ, "TMPDIR": str(state)}
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        """Start every worker; each writes to its log."""
        for number, log in enumerate(self.logs, start=1):
            command = [sys.executable, "-m", "celery", "--quiet", "-A", "tasks", "worker", "-c", "2", "-P", "prefork"]
            command += ["-n", f"library{number}-{os.getpid()}@%h", "--loglevel", "WARNING"]
            with log.open("wb") as output:
                worker = subprocess.Popen(  # noqa: S603  # our own interpreter, our own arguments
                    command,
                    cwd=HERE,
                    env=self._environment,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            self.processes.append(worker)

    def check(self) -> None:
        """Raise DemoFailed when all of them ended; one alone is enough to go on."""
        if all(process.poll() is not None for process in self.processes):
            raise DemoFailed(f"every worker process ended early\n{self.last_words()}")

    def stop(self, signals: StopSignals) -> None:
        """SIGTERM to each; SIGKILL to its whole session after a wait, or at once when a second signal comes."""
        for process in self.processes:
            process.terminate()
        asked = len(signals.seen)
        deadline = time.monotonic() + PATIENCE_SECONDS
        while any(process.poll() is None for process in self.processes):
            if time.monotonic() > deadline or len(signals.seen) > asked:
                break
            time.sleep(0.05)
        for process in self.processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    def last_words(self, lines: int = 15) -> str:
        """The end of each log, for when something went wrong."""
        tails = (log.read_text(errors="replace").strip().splitlines()[-lines:] for log in self.logs if log.exists())
        return "\n".join(line for tail in tails for line in tail)


class Bars:
    """A bar for each node, redrawn in place."""

    def __init__(self, console: Console) -> None:
        self.live = Live(console=console, refresh_per_second=8, transient=True)

    def __enter__(self) -> "Bars":
        self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.live.stop()

    def show(self, snapshot: Any) -> None:
        """Draw the run as it is now."""
        table = Table.grid(padding=(0, 2))
        for node in snapshot.nodes:
            word = WORDS[node.status]
            bar = ProgressBar(
                total=max(node.tasks_total, 1), completed=node.tasks_done if is_at_work(node) else 0, width=32
            )
            table.add_row(node.slug, bar, tasks_of(node), word, style=COLORS.get(word.partition(":")[0], "yellow"))
        self.live.update(table)


class Lines:
    """A line for each change, for logs and pipes."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.shown: dict[str, str] = {}

    def __enter__(self) -> "Lines":
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def show(self, snapshot: Any) -> None:
        """Print the nodes whose state changed since the last time; progress alone is no change."""
        for node in snapshot.nodes:
            word = WORDS[node.status]
            if self.shown.get(node.slug, "waiting") != word:
                self.shown[node.slug] = word
                self.console.print(f"{node.slug:<10} {word} {tasks_of(node)}".rstrip())


def is_at_work(node: Any) -> bool:
    """Whether the node's count of tasks says anything: a filtered one has a single stand-in."""
    return WORDS[node.status] in {"running", "done", "failed"}


def tasks_of(node: Any) -> str:
    """``3/7`` for a node that has tasks."""
    return f"{node.tasks_done:,}/{node.tasks_total:,}" if is_at_work(node) else ""


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """The command line, with paths made absolute; a wrong one ends the program with code 2."""
    parser = argparse.ArgumentParser(description="Catalogue a folder of real files with a pipeline on Celery workers.")
    parser.add_argument("--dir", default=str(HERE / "sample"), help="the folder to look at (default: the sample)")
    parser.add_argument("--out", default=str(HERE / "report"), help="where report.html goes (default: %(default)s)")
    parser.add_argument("--limit", type=int, default=5000, help="files to look at, at most (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=2, help="worker processes, two children each (default: 2)")
    parser.add_argument("--plain", action="store_true", help="lines instead of bars (the default without a terminal)")
    parser.add_argument("--state", help="keep the run's store and worker logs here (default: a temporary directory)")
    options = parser.parse_args(arguments)
    for name, value in (("--limit", options.limit), ("--workers", options.workers)):
        if value < 1:
            parser.error(f"{name} is {value}, and has to be 1 or more")
    options.dir = Path(options.dir).expanduser().resolve()
    options.out = Path(options.out).expanduser().resolve()
    if not options.dir.is_dir():
        parser.error(f"--dir: {options.dir} is no folder; name one that exists, as in --dir ~/Pictures")
    if not os.access(options.dir, os.R_OK | os.X_OK):
        parser.error(f"--dir: {options.dir} may not be read by you; name another, or change its permissions")
    try:
        str(options.dir).encode()
        options.out.mkdir(parents=True, exist_ok=True)
    except UnicodeEncodeError:
        parser.error("--dir: the folder's name is not valid UTF-8; rename it")
    except OSError as error:
        parser.error(f"--out: {options.out} cannot be made: {error.strerror}; name another place for the report")
    return options


@contextlib.contextmanager
def state_directory(wanted: str | None, console: Console) -> Iterator[Path]:
    """Where the store, the broker file and the logs live: kept when asked for or when something went wrong."""
    if wanted:
        state = Path(wanted).expanduser().resolve()
        state.mkdir(parents=True, exist_ok=True)
        yield state
        return
    state = Path(tempfile.mkdtemp(prefix="dagabaaz-library-"))
    try:
        yield state
    except Stopped:
        shutil.rmtree(state, ignore_errors=True)
        raise
    except BaseException:
        console.print(f"The store and the logs of the workers were left in {state}", soft_wrap=True)
        raise
    shutil.rmtree(state, ignore_errors=True)


def follow(run: Any, workers: Workers, display: Bars | Lines, signals: StopSignals) -> None:
    """Show the run until it ends; when asked to stop, or without workers, cancel it first."""
    with display:
        try:
            while True:
                snapshot = run.snapshot()
                display.show(snapshot)
                if snapshot.status in RUN_TERMINAL_STATUSES:
                    return
                signals.check()
                workers.check()
                time.sleep(POLL_SECONDS)
        except (Stopped, DemoFailed):
            run.cancel()
            raise


def summarise(run: Any, seconds: float, console: Console) -> None:
    """What each node came to, what was found, and where the report is."""
    snapshot = run.snapshot()
    table = Table("node", "outcome", "tasks", box=None, header_style="dim", padding=(0, 2, 0, 0))
    for node in snapshot.nodes:
        word = WORDS[node.status]
        table.add_row(node.slug, {"running": "unfinished", "waiting": "not reached"}.get(word, word), tasks_of(node))
    console.print(table)
    console.print(f"\nThe run {snapshot.status} in {seconds:.1f} s.")
    if snapshot.status != RunStatus.COMPLETED:
        return
    reports = run.artifacts("report")
    if not reports:
        console.print("No files were found, so there is no report.")
        return
    totals = reports[0].metadata
    by_kind = totals["kinds"]
    kinds = ", ".join(f"{KINDS[kind].lower()} {by_kind[kind]['files']:,}" for kind in KINDS if kind in by_kind)
    told = f"{count(totals['files'], 'file')}, {human_size(totals['bytes'])}: {kinds}."
    console.print(told, soft_wrap=True)
    if totals["problems"]:
        console.print(f"{count(totals['problems'], 'file')} with a problem; the report says which.")
    if totals["cut"]:
        console.print(
            f"The folder has more files: the report has the first {totals['files']:,}. Raise --limit for more."
        )
    console.print(f"Report: {Path(reports[0].file_path).as_uri()}", soft_wrap=True)


def run_demo(options: argparse.Namespace, state: Path, signals: StopSignals, console: Console) -> None:
    """Start the run and its workers, follow it to its end, and stop the workers, whatever happens."""
    os.environ["LIBRARY_STATE"] = str(state)
    from tasks import dag  # noqa: PLC0415  # it reads LIBRARY_STATE when it is imported

    began = time.monotonic()
    run = dag.start("library", input={"folder": str(options.dir), "out": str(options.out), "limit": options.limit})
    told = count(options.workers, "worker process", "worker processes")
    console.print(f"Looking at {options.dir} with {told}.", soft_wrap=True)
    workers = Workers(options.workers, state)
    try:
        workers.start()
        follow(run, workers, Lines(console) if options.plain or not console.is_terminal else Bars(console), signals)
        summarise(run, time.monotonic() - began, console)
    finally:
        workers.stop(signals)
    if run.status != RunStatus.COMPLETED:
        raise DemoFailed(f"the run {run.status}: {run.error}")


def main(arguments: list[str] | None = None) -> int:
    """The exit code: 0 done, 1 failed, 2 a wrong argument, 128 + n stopped by signal n (130 for Ctrl-C)."""
    sys.stdout.reconfigure(errors="replace")
    console = Console(markup=False, highlight=False)
    options = parse_arguments(arguments)
    try:
        with StopSignals() as signals, state_directory(options.state, console) as state:
            run_demo(options, state, signals, console)
    except Stopped as stopped:
        console.print(f"Stopped by {stopped}: the run is cancelled and its workers have ended.")
        return 128 + stopped.signal_number
    except (DemoFailed, DagabaazError) as error:
        console.print(f"The demo failed: {error}", soft_wrap=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

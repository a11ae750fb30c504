"""``celery -A … dagabaaz`` typed in processes of its own, with a worker process beside."""

import contextlib
import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.cli_support import make_dag
from tests.processes import ProcessTree, make_directory, remove_directory, wait_until

ROOT = Path(__file__).resolve().parents[2]
CELERY = [sys.executable, "-m", "celery", "-A", "tests.integration.cli_app"]
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith(("CELERY", "NO_COLOR", "TTY_"))}
ENVIRONMENT |= {"PYTHONPATH": str(ROOT), "TERM": "xterm", "COLUMNS": "100", "LINES": "30"}


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """A folder in which a worker of the app runs."""
    directory = make_directory("cli")
    log = directory / "worker.log"
    words = [*CELERY, "worker", "-P", "threads", "-c", "2", "-l", "INFO"]
    worker = ProcessTree(words, log=log, cwd=directory, env=ENVIRONMENT)
    try:
        wait_until(lambda: "ready." in log.read_text() or not worker.is_running, "the worker is ready", timeout=90)
        assert worker.is_running, log.read_text()
        yield directory
    finally:
        worker.kill()
        remove_directory(directory)


def type_words(folder: Path, *words: str, **environment: str) -> "subprocess.CompletedProcess[bytes]":
    return subprocess.run(
        [*CELERY, "dagabaaz", *words],
        cwd=folder,
        env={**ENVIRONMENT, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=90,
        check=False,
    )


def test_a_run_is_started_and_watched_to_its_end_in_ascii_where_that_is_all_there_is(folder: Path):
    ended = type_words(folder, "start", "good", "--input", "word=größe", "--watch", PYTHONIOENCODING="ascii")
    assert (ended.returncode, ended.stderr) == (0, b"")
    lines = ended.stdout.decode("ascii").splitlines()
    assert re.search(r"run \S+ of good: completed after \S+$", lines[-1])
    assert "\x1b" not in ended.stdout.decode()


def test_a_run_that_fails_gives_its_code_and_its_error(folder: Path):
    ended = type_words(folder, "start", "bad", "--watch", "--json")
    assert (ended.returncode, ended.stderr) == (3, b"")
    assert b'"status": "failed, rollback done"' in ended.stdout.splitlines()[-1]


def test_an_interrupt_leaves_a_watched_run_going(folder: Path):
    """Given a terminal in which a run is shown by bars, when Ctrl-C is pressed, then the run goes on."""
    dag = make_dag(folder / ".dagabaaz")
    run = dag.start("slow")
    with at_terminal(folder, "watch", run.id, stderr=subprocess.PIPE) as (watcher, terminal):
        shown = read_until(terminal, b"running")
        watcher.send_signal(signal.SIGINT)
        said = watcher.communicate(timeout=60)[1].decode()
        assert run.status == "running"
        assert watcher.returncode == 130
        assert f"Run {run.id} goes on." in said
        assert "Traceback" not in said
        assert "held" in shown
        assert "━" in shown
        assert "0/1 tasks" in shown + read_rest(terminal)
    run.cancel()
    dag.close()
    dag.app.close()


def test_somebody_at_a_terminal_is_asked_whether_the_last_run_is_meant(folder: Path):
    """Given two runs, when the last is cancelled without its name, then it is named and nothing done before a yes."""
    dag = make_dag(folder / ".dagabaaz")
    first, last = dag.start("slow"), dag.start("slow")
    for answer, status in ((b"n\n", "running"), (b"y\n", "cancelled")):
        with at_terminal(folder, "cancel", first.id, "@last") as (asking, terminal):
            shown = read_until(terminal, b"[y/N]")
            assert f"Cancel run {last.id} of slow, which is running?" in shown
            assert (first.status, last.status) == ("running", "running")
            os.write(terminal, answer)
            asking.wait(60)
        assert (first.status, last.status) == (status, status)
    dag.close()
    dag.app.close()


@contextlib.contextmanager
def at_terminal(
    folder: Path, *words: str, stderr: int | None = None
) -> Iterator[tuple["subprocess.Popen[bytes]", int]]:
    """A command that is typed at a terminal, and our side of that."""
    ours, theirs = pty.openpty()
    typed = subprocess.Popen(
        [*CELERY, "dagabaaz", *words],
        cwd=folder,
        env=ENVIRONMENT,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs if stderr is None else stderr,
        start_new_session=True,
    )
    os.close(theirs)
    try:
        yield typed, ours
    finally:
        if typed.poll() is None:
            typed.kill()
        typed.communicate()
        os.close(ours)


def read_until(terminal: int, wanted: bytes) -> str:
    """What a program writes to a terminal, up to something that it must write."""
    shown = b""
    while wanted not in shown:
        shown += os.read(terminal, 65536)
    return shown.decode()


def read_rest(terminal: int) -> str:
    """What is left in a terminal that no program has open any more."""
    shown = b""
    with contextlib.suppress(OSError):
        while more := os.read(terminal, 65536):
            shown += more
    return shown.decode()

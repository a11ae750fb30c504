"""Processes that tests start, freeze and kill: each with all that it forked, ended by pid, none left behind.

What a test run started ends when the run does. Should the run itself be killed, a guard process, which waits for the
other end of its pipe to close, ends what is left and removes the directories.
"""

import atexit
import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

#: The system's own, whatever a test run later sets for itself.
_TEMPORARY = tempfile.gettempdir()
#: Seconds between two looks at what is waited for.
_PAUSE = 0.02


def wait_until(is_true: Callable[[], object], what: str, timeout: float = 20.0) -> None:
    """Look again and again until it is so; AssertionError naming ``what`` after ``timeout`` seconds."""
    deadline = time.monotonic() + timeout
    while not is_true():
        assert time.monotonic() < deadline, f"not within {timeout:g} s: {what}"
        time.sleep(_PAUSE)


class ProcessTree:
    """A program and whatever it forks; what they write goes to the end of a log file.

    A ``user`` is taken on only by root, for programs that refuse to run as root.
    """

    def __init__(
        self,
        command: Sequence[str | Path],
        *,
        log: Path,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        user: str | None = None,
    ) -> None:
        with log.open("ab") as output:
            self._popen = subprocess.Popen(
                [str(part) for part in command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=cwd,
                env=env,
                start_new_session=True,  # an interrupt at the terminal is for the tests alone
                **as_user(user),
            )
        self._main = psutil.Process(self._popen.pid)
        self._orphans: list[psutil.Process] = []
        _leftovers.add_process(self)

    @property
    def pid(self) -> int:
        """Of the main process."""
        return self._popen.pid

    @property
    def is_running(self) -> bool:
        """Whether the main process has not ended; a frozen one has not."""
        return self._popen.poll() is None

    def children(self) -> list[psutil.Process]:
        """Every living descendant of the main process."""
        with contextlib.suppress(psutil.NoSuchProcess):
            return self._main.children(recursive=True)
        return []

    def send(self, number: int) -> None:
        """Send a signal to the main process alone."""
        if self.is_running:
            self._popen.send_signal(number)

    def pause(self) -> None:
        """Freeze every process; connections stay open and nothing answers."""
        for process in (self._main, *self.children()):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.suspend()

    def resume(self) -> None:
        """Let every process go on."""
        for process in (*self.children(), self._main):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.resume()

    def kill_main(self) -> None:
        """SIGKILL the main process, as the out-of-memory killer does; what its descendants do then is up to them."""
        self.send(signal.SIGSTOP)  # what is frozen forks no more
        self._orphans += self.children()
        self.send(signal.SIGKILL)
        self._popen.wait()

    def kill(self) -> None:
        """SIGKILL every process."""
        self.kill_main()
        for orphan in self._orphans:
            with contextlib.suppress(psutil.NoSuchProcess):
                orphan.kill()
        _wait_until_gone(self._orphans)
        self._orphans.clear()
        _leftovers.remove_process(self)

    def end(self, number: int = signal.SIGTERM, timeout: float = 15.0) -> bool:
        """Ask the main process to end, frozen or not, and kill what is left after ``timeout`` seconds.

        Returns whether it ended by itself.
        """
        self.resume()
        self._orphans += self.children()
        self.send(number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._popen.wait(timeout)
        ended = not self.is_running
        self.kill()
        return ended

    def wait(self, timeout: float) -> int:
        """The exit code of the main process, negative for a signal. Raises subprocess.TimeoutExpired."""
        return self._popen.wait(timeout)


def as_user(name: str | None) -> dict[str, Any]:
    """Arguments with which subprocess starts a program as a user, where the tests run as root; none elsewhere."""
    if name is None or os.geteuid() != 0:
        return {}
    account = pwd.getpwnam(name)
    return {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}


def make_directory(name: str, user: str | None = None) -> Path:
    """A temporary directory that goes with the test run, or before by ``remove_directory``.

    It is not below pytest's own, which no other user may enter.
    """
    directory = Path(tempfile.mkdtemp(prefix=f"dagabaaz-{name}-", dir=_TEMPORARY))
    ids = as_user(user)
    if ids:
        os.chown(directory, ids["user"], ids["group"])
    _leftovers.add_directory(directory)
    return directory


def remove_directory(directory: Path) -> None:
    """Remove a directory of ``make_directory``."""
    shutil.rmtree(directory, ignore_errors=True)
    _leftovers.remove_directory(directory)


def _wait_until_gone(processes: Sequence[psutil.Process], timeout: float = 10.0) -> None:
    """Wait until no killed process runs; whoever inherited them may leave them unreaped for a while."""
    deadline = time.monotonic() + timeout
    while any(map(_lives, processes)) and time.monotonic() < deadline:
        time.sleep(_PAUSE)


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


class _Leftovers:
    """What this test run has started and not ended yet; also told to the guard."""

    def __init__(self) -> None:
        self._processes: dict[int, ProcessTree] = {}
        self._directories: set[Path] = set()
        self._guard: subprocess.Popen[str] | None = None
        self._owner = os.getpid()

    def add_process(self, tree: ProcessTree) -> None:
        self._processes[tree.pid] = tree
        self._tell("process", tree.pid)

    def remove_process(self, tree: ProcessTree) -> None:
        self._processes.pop(tree.pid, None)

    def add_directory(self, directory: Path) -> None:
        self._directories.add(directory)
        self._tell("directory", directory)

    def remove_directory(self, directory: Path) -> None:
        self._directories.discard(directory)

    def end_all(self) -> None:
        """End every process, youngest first, then remove every directory."""
        if os.getpid() != self._owner:
            return  # a fork of the test run that ends
        for tree in reversed(list(self._processes.values())):
            tree.kill()
        for directory in list(self._directories):
            remove_directory(directory)
        if self._guard is not None:
            self._guard.communicate(timeout=10)

    def _tell(self, kind: str, what: object) -> None:
        if self._guard is None:
            self._guard = subprocess.Popen(
                [sys.executable, __file__], stdin=subprocess.PIPE, text=True, start_new_session=True
            )
            atexit.register(self.end_all)
        assert self._guard.stdin is not None
        self._guard.stdin.write(f"{kind} {what}\n")
        self._guard.stdin.flush()


_leftovers = _Leftovers()


def guard() -> None:
    """Read what was started until the test run closes the pipe or dies, then end whatever of it is left."""
    processes: list[psutil.Process] = []
    directories: list[str] = []
    for line in sys.stdin:
        kind, what = line.rstrip("\n").split(" ", 1)
        if kind == "directory":
            directories.append(what)
            continue
        with contextlib.suppress(psutil.NoSuchProcess):
            processes.append(psutil.Process(int(what)))
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.is_running():  # and not another one that got its pid
                for descendant in (*process.children(recursive=True), process):
                    descendant.kill()
    _wait_until_gone(processes)
    for directory in directories:
        shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    guard()

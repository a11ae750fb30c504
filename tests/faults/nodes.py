"""Processes where pytest-celery expects Docker containers, for its stock node classes.

    CeleryTestBroker(ServerContainer(PrivateRedis()))       kill, restart, logs, ready, config
    CeleryTestWorker(WorkerContainer(...), app)             the same; its ``container`` can do more to it

Only what the stock nodes ask of a container stands in the base class, so that a test which keeps to the nodes' own
methods runs over containers as well, given fixtures that hand those over.
"""

import os
import signal
import sys
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import celery
import psutil

from tests.processes import ProcessTree, wait_until
from tests.servers import PrivateServer

ROOT = Path(__file__).resolve().parents[2]
_SIGKILL = signal.SIGKILL  # the methods that pytest-celery calls with signal=… hide the module's name


class ProcessContainer:
    """What pytest-celery's nodes ask of their container."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.id = uuid.uuid4().hex[:12]

    @property
    def process(self) -> ProcessTree | None:
        """The processes, once started."""
        raise NotImplementedError

    @property
    def status(self) -> str:
        """As Docker words it."""
        return "running" if self.process is not None and self.process.is_running else "exited"

    def ready(self) -> bool:
        """Wait until it serves; raises when it does not."""
        raise NotImplementedError

    def logs(self) -> str:
        """Everything written so far, restarts included."""
        raise NotImplementedError

    def kill(self, signal: str | int = "SIGKILL") -> None:
        """Send a signal to the main process; SIGKILL is waited for."""
        raise NotImplementedError

    def restart(self, timeout: float = 60) -> None:
        """Stop it cleanly within ``timeout`` seconds, unless it is down, and start it again."""
        raise NotImplementedError

    def reload(self) -> None:
        """The status is read from the system at each look."""

    def teardown(self) -> None:
        """Whoever made the processes ends them."""


class ServerContainer(ProcessContainer):
    """A private server; ``server`` can be stopped, frozen and resumed."""

    def __init__(self, server: PrivateServer) -> None:
        super().__init__(server.name)
        self.server = server

    @property
    def process(self) -> ProcessTree | None:
        return self.server.process

    @property
    def celeryconfig(self) -> dict[str, Any]:
        """Where clients find the server: here and in workers alike."""
        return {"url": self.server.url, "host_url": self.server.url, "port": self.server.port}

    def ready(self) -> bool:
        self.server.wait_ready()
        return True

    def logs(self) -> str:
        return self.server.log

    def kill(self, signal: str | int = "SIGKILL") -> None:
        number = signal_number(signal)
        if number == _SIGKILL:
            self.server.kill()
        elif self.server.process is not None:
            self.server.process.send(number)

    def restart(self, timeout: float = 60) -> None:
        self.server.restart()


class WorkerContainer(ProcessContainer):
    """A ``celery worker`` of a Celery app in a file, which takes its configuration from these variables.

    The log is a file in ``directory``, called by the worker's name.
    """

    def __init__(
        self, app: Path, variables: Mapping[str, str], *options: str, queue: str, directory: Path, name: str = "worker"
    ) -> None:
        super().__init__(name)
        self._app = app
        self._variables = variables
        self._options = options
        self._queue = queue
        self._log = directory / f"{name}.log"
        self._process: ProcessTree | None = None
        self._started_at = 0

    @property
    def process(self) -> ProcessTree | None:
        return self._process

    @property
    def pid(self) -> int:
        """Of the main process."""
        return self._running().pid

    @property
    def nodename(self) -> str:
        """What Celery calls the worker; pytest-celery makes the same name of the container's."""
        return f"{self.name}@{self.id}"

    def start(self) -> None:
        """Start the worker; ``ready`` waits for it."""
        self._started_at = len(self.logs())
        module, cwd = locate_module(self._app)
        celery_command = [sys.executable, "-m", "celery", "-A", module, "worker"]
        options = ["-n", self.nodename, "-Q", self._queue, "-l", self.log_level(), *self._options]
        # An app elsewhere may build on the app in this package.
        environment = {**os.environ, "PYTHONPATH": str(ROOT), **self._variables}
        self._process = ProcessTree([*celery_command, *options], log=self._log, cwd=cwd, env=environment)

    def revive(self) -> None:
        """Start the worker if it has ended, as whoever supervises it in production does."""
        if self.status == "exited":
            self.start()

    def ready(self) -> bool:
        """Wait until the worker consumes; AssertionError with its log when it ends before, or after a minute."""
        running = self._running()
        wait_until(lambda: "ready." in self._new_logs() or not running.is_running, f"{self.nodename} is ready", 60)
        assert running.is_running, f"{self.nodename} ended while it started:\n{self._new_logs()}"
        return True

    def logs(self) -> str:
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    def children(self) -> list[psutil.Process]:
        """The processes of its pool."""
        return self._running().children()

    def kill(self, signal: str | int = "SIGKILL") -> None:
        number = signal_number(signal)
        if number == _SIGKILL:
            self._running().kill_main()
        else:
            self._running().send(number)

    def kill_child(self, pid: int) -> None:
        """SIGKILL one process of the pool."""
        next(child for child in self.children() if child.pid == pid).kill()

    def stop(self, timeout: float = 30) -> None:
        """A warm shutdown: what runs ends, what waits goes back. AssertionError when it takes longer."""
        assert self._running().end(signal.SIGTERM, timeout), f"no warm shutdown in {timeout} s:\n{self._new_logs()}"

    def quit(self, timeout: float = 30) -> None:
        """A cold shutdown, by SIGQUIT: what runs is dropped. AssertionError when it takes longer."""
        assert self._running().end(signal.SIGQUIT, timeout), f"no cold shutdown in {timeout} s:\n{self._new_logs()}"

    def pause(self) -> None:
        """SIGSTOP every process of the worker: it looks dead to others, and is not."""
        self._running().pause()

    def resume(self) -> None:
        """SIGCONT every process of the worker."""
        self._running().resume()

    def restart(self, timeout: float = 60) -> None:
        self._running().end(signal.SIGTERM, timeout)
        self.start()
        self.ready()

    def teardown(self) -> None:
        """SIGKILL whatever is left of the worker."""
        if self._process is not None:
            self._process.kill()

    # -- what CeleryTestWorker asks besides

    def version(self) -> str:
        """Of Celery."""
        return celery.__version__

    def log_level(self) -> str:
        """Of the worker."""
        return "INFO"

    def worker_name(self) -> str:
        """The part of the node's name before the @."""
        return self.name

    def worker_queue(self) -> str:
        """The queue that the worker consumes."""
        return self._queue

    def _running(self) -> ProcessTree:
        assert self._process is not None, f"{self.nodename} was not started"
        return self._process

    def _new_logs(self) -> str:
        return self.logs()[self._started_at :]


def signal_number(given: str | int) -> int:
    """A signal by its name or number."""
    return signal.Signals[given] if isinstance(given, str) else given


def locate_module(file: Path) -> tuple[str, Path]:
    """A Python file's module name and the directory to import it from: ours go by their package."""
    if file.is_relative_to(ROOT):
        return ".".join(file.relative_to(ROOT).with_suffix("").parts), ROOT
    return file.stem, file.parent

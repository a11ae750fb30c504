"""What a worker tells of itself when it is asked by Celery's remote control, as ``dagabaaz doctor`` does.

The command runs in the worker's consumer, which must not wait: no database is asked, and the one look at a file system,
which may be one of a network that is away, is made by a thread that is waited for only a moment.
"""

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from platform import python_version
from typing import Any

import celery
import kombu
import sqlalchemy
from celery import Celery
from celery.worker.control import inspect_command

from dagabaaz_celery import __version__
from dagabaaz_celery.stores.sql.engines import describe_url
from dagabaaz_celery.stores.sql.tables import is_id, new_id
from dagabaaz_celery.worker.runtime import Runtime

#: The remote control command that asks for a report.
COMMAND = "dagabaaz_report"
#: In the files directory: two workers that read the same id in it have the same directory.
MARK = ".dagabaaz-directory"

#: Seconds that a report waits for a file system.
_FILES_PATIENCE = 0.5
_VERSIONS = {
    "dagabaaz-celery": __version__,
    "python": python_version(),
    "celery": celery.__version__,
    "kombu": kombu.__version__,
    "sqlalchemy": sqlalchemy.__version__,
}
#: The same for every process of one running kernel, whatever host name a container has.
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
#: Settings on which the workers of one store have to agree, or else differ in what they do.
_SETTINGS = ("sweep_interval", "dead_after", "resend_after", "max_recoveries", "max_fan_out", "wrap_tasks")

_reporting: dict[Celery, Runtime] = {}


def offer_report(runtime: Runtime) -> None:
    """Answer for this app from now on."""
    _reporting[runtime.app] = runtime


def withdraw_report(runtime: Runtime) -> None:
    """Answer no more."""
    _reporting.pop(runtime.app, None)


@inspect_command(name=COMMAND)  # type: ignore[untyped-decorator]  # Celery ships no types
def report(state: Any, **_: Any) -> dict[str, Any] | None:
    """What this worker is and has, as far as its runs depend on it; None where its app has no Dagabaaz."""
    runtime = _reporting.get(state.app)
    return None if runtime is None else describe_worker(runtime, state.consumer.controller)


def describe_worker(runtime: Runtime, controller: Any) -> dict[str, Any]:
    """The report, as JSON; times are seconds. ``controller`` is Celery's WorkController."""
    conf = runtime.app.conf
    settings = asdict(runtime.settings)
    return {
        "app": str(runtime.app.main),
        "store": runtime.store.id,
        "store_at": describe_url(runtime.store.database.url),
        "worker": runtime.worker_id,
        "host": socket.gethostname(),
        "machine": read_machine_id(),
        "pid": os.getpid(),
        "versions": _VERSIONS,
        "clock": time.time(),
        "files": look_at_directory(runtime.settings.files_dir),
        "pool": type(controller.pool).__module__.rpartition(".")[2],
        "concurrency": controller.concurrency,
        "prefetch_multiplier": controller.prefetch_multiplier,
        "settings": {name: settings[name] for name in _SETTINGS},
        "time_limit": conf.task_time_limit,
        "visibility_timeout": (conf.broker_transport_options or {}).get("visibility_timeout"),
        "plugins": _describe_plugins(runtime),
    }


def _describe_plugins(runtime: Runtime) -> dict[str, str]:
    """Every plugin's name with its task's."""
    found = ((name, runtime.registry.find(name)) for name in runtime.registry.names())
    return {name: plugin.info.task_name for name, plugin in found if plugin is not None}


def read_machine_id() -> str | None:
    """What two processes have in common when they are on one machine; None where the system does not say."""
    with contextlib.suppress(OSError):
        return _BOOT_ID.read_text(encoding="ascii").strip()
    return None


def look_at_directory(directory: Path) -> dict[str, str | None]:
    """The directory, the id in it, which is put there by whoever looks first, and what went wrong if there is none."""
    done = _look.run(lambda: _identify(directory))
    return {"directory": str(directory), **done}


def _identify(directory: Path) -> dict[str, str | None]:
    try:
        directory.mkdir(parents=True, exist_ok=True)
        mark = directory / MARK
        if not mark.exists():
            _make_mark(mark)
        text = mark.read_text(encoding="ascii").strip()
    except (OSError, ValueError) as error:
        return {"id": None, "problem": f"{type(error).__name__}: {error}"}
    return {"id": text, "problem": None} if is_id(text) else {"id": None, "problem": f"{mark} was written by others"}


def _make_mark(mark: Path) -> None:
    """Whole or not at all, and never twice: a link is made at once, also on a network's file system."""
    draft = mark.with_name(f"{MARK}-{new_id()}")
    draft.write_text(new_id(), encoding="ascii")
    try:
        with contextlib.suppress(FileExistsError):
            os.link(draft, mark)
    finally:
        draft.unlink()


class _BoundedLook:
    """A look at a file system, one at a time: what hangs is not tried again as long as it hangs."""

    def __init__(self) -> None:
        self._busy = threading.Lock()

    def run(self, look: Callable[[], dict[str, str | None]]) -> dict[str, str | None]:
        """What the look gives, or that it takes too long."""
        found: dict[str, str | None] = {}
        if not self._busy.acquire(timeout=_FILES_PATIENCE):
            return {"id": None, "problem": "the file system has not answered since it was last looked at"}

        def run() -> None:
            try:
                found.update(look())
            finally:
                self._busy.release()

        thread = threading.Thread(target=run, name="dagabaaz-files", daemon=True)
        thread.start()
        thread.join(_FILES_PATIENCE)
        return dict(found) or {"id": None, "problem": f"the file system did not answer within {_FILES_PATIENCE} s"}


_look = _BoundedLook()

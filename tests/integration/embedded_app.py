"""A Celery app on the embedded broker, imported by the workers that the tests start: its tasks write a journal."""

import os
import time
from pathlib import Path

from celery import Celery, Task

from dagabaaz_celery.brokers import embedded, message_file

DIRECTORY_VARIABLE = "EMBEDDED_APP_DIRECTORY"
#: Seconds that the worker waits for a locked file; the default when unset.
BUSY_TIMEOUT_VARIABLE = "EMBEDDED_APP_BUSY_TIMEOUT"
#: Seconds that a held task waits for the test to release it.
LONGEST_HOLD = 30.0


def make_app(directory: Path) -> Celery:
    """An app with the tasks of this module, whose broker, journal and release file are in the directory.

    The tasks are not shared: every other app of the process would get them.
    """
    app = Celery("embedded_app", set_as_current=False)
    embedded.configure(app, directory)
    app.conf.update(task_ignore_result=True, worker_redirect_stdouts=False)

    @app.task(name="record", shared=False, bind=True, acks_late=True)
    def record(self: Task, line: str) -> None:
        write(directory, f"{line} again" if self.request.delivery_info.get("redelivered") else line)

    @app.task(name="hold", shared=False, acks_late=True)
    def hold(line: str) -> None:
        write(directory, f"{line} begun")
        deadline = time.monotonic() + LONGEST_HOLD
        while not (directory / "release").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        write(directory, f"{line} ended")

    @app.task(name="publish_from_task", shared=False)
    def publish_from_task(line: str) -> None:
        app.send_task("record", [line])

    @app.task(
        name="fail_once", shared=False, bind=True, autoretry_for=(OSError,), max_retries=1, default_retry_delay=0.2
    )
    def fail_once(self: Task, line: str) -> None:
        write(directory, f"{line} {self.request.retries}")
        if self.request.retries == 0:
            raise OSError("the first try fails")

    return app


def write(directory: Path, line: str) -> None:
    with (directory / "journal").open("a") as journal:
        journal.write(f"{line}\n")


def read_journal(directory: Path) -> list[str]:
    journal = directory / "journal"
    return journal.read_text().splitlines() if journal.exists() else []


if BUSY_TIMEOUT_VARIABLE in os.environ:
    message_file.BUSY_TIMEOUT = float(os.environ[BUSY_TIMEOUT_VARIABLE])
if DIRECTORY_VARIABLE in os.environ:
    app = make_app(Path(os.environ[DIRECTORY_VARIABLE]))

"""Plugins that tests run on every pool; what a body does is also written to a journal, a file that its input names."""

import os
import signal
import time
from functools import partial
from pathlib import Path

from celery import Task
from celery.exceptions import SoftTimeLimitExceeded

from dagabaaz_celery.app import Dagabaaz
from dagabaaz_celery.context import PluginContext

#: Seconds that a held body waits for the test to release it.
LONGEST_HOLD = 30.0


class NotYet(Exception):
    """What flaky bodies raise."""


def write_line(journal: str, *words: object) -> None:
    with Path(journal).open("a") as file:
        file.write(" ".join(map(str, words)) + "\n")


def declare_flaky(dag: Dagabaaz) -> None:
    """Bodies that ask for other attempts: each writes its time, request.retries and attempt number."""

    def note(task: Task, journal: str, context: PluginContext, fail_times: int) -> bool:
        write_line(journal, f"{time.time():.3f}", task.request.retries, context.attempt)
        return task.request.retries < fail_times

    @dag.plugin(bind=True, autoretry_for=(NotYet,), max_retries=3, retry_kwargs={"countdown": 0.05})
    def automatic(self: Task, journal: str, fail_times: int, context: PluginContext) -> int:
        if note(self, journal, context, fail_times):
            raise NotYet("automatic")
        return self.request.retries

    @dag.plugin(bind=True, autoretry_for=(NotYet,), max_retries=3, retry_backoff=True, retry_jitter=False)
    def backing_off(self: Task, journal: str, fail_times: int, context: PluginContext) -> int:
        if note(self, journal, context, fail_times):
            raise NotYet("backing off")
        return self.request.retries

    @dag.plugin(bind=True, max_retries=2)
    def manual(self: Task, journal: str, fail_times: int, context: PluginContext) -> int:
        if note(self, journal, context, fail_times):
            raise self.retry(exc=NotYet("manual"), countdown=0.05)
        return self.request.retries

    @dag.plugin(bind=True, max_retries=9)
    def speechless(self: Task, journal: str, fail_times: int, context: PluginContext) -> int:
        if note(self, journal, context, fail_times):
            raise self.retry(countdown=0, max_retries=1)
        return self.request.retries


def declare_limited(dag: Dagabaaz) -> None:
    """Bodies that Celery stops."""

    @dag.plugin(soft_time_limit=0.5)
    def past_soft_limit() -> None:
        time.sleep(LONGEST_HOLD)

    @dag.plugin(time_limit=0.8)
    def past_hard_limit() -> None:
        time.sleep(LONGEST_HOLD)

    @dag.plugin
    def unlimited() -> None:
        time.sleep(LONGEST_HOLD)

    @dag.plugin(soft_time_limit=0.5)
    def tidy() -> str:
        try:
            time.sleep(LONGEST_HOLD)
        except SoftTimeLimitExceeded:
            return "tidied up"
        return "never"


def declare_hooked(dag: Dagabaaz) -> None:
    """A task whose base class has a ``__call__`` and hooks: what they saw is the body's result and its log."""

    class Hooked(Task):
        def before_start(self, task_id: str, args: object, kwargs: object) -> None:
            self.request.seen = ["before_start"]

        def __call__(self, *args: object, **kwargs: object) -> object:
            self.request.seen.append("__call__")
            return super().__call__(*args, **kwargs)

    @dag.plugin(base=Hooked, bind=True, max_retries=1)
    def hooked(self: Task) -> list[object]:
        if self.request.retries == 0:
            raise self.retry(countdown=0)
        return [*self.request.seen, self.request.retries, self.request.id is not None]


class OddError(Exception):
    """An exception as they are met: it cannot be pickled, nor shown."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__()
        self.first, self.second = first, second

    def __str__(self) -> str:
        raise RuntimeError("not even its text can be had")


def declare_broken(dag: Dagabaaz) -> None:
    """Bodies that raise."""

    @dag.plugin
    def broken(price: int) -> float:
        return 1 / price

    @dag.plugin
    def odd() -> None:
        raise OddError("one", "two")

    @dag.plugin
    def fine() -> str:
        return "fine"


def end_process(how: str) -> None:
    """End the process that runs this, as crashes do."""
    if how == "exit":
        raise SystemExit(1)
    if how == "_exit":
        os._exit(1)
    os.kill(os.getpid(), signal.SIGKILL)


def declare_mortal(dag: Dagabaaz) -> None:
    """Bodies that end their process, or wait for somebody to do it."""

    @dag.plugin
    def mortal(journal: str, deaths: int, how: str, context: PluginContext) -> int:
        write_line(journal, "attempt", context.attempt)
        if context.attempt <= deaths:
            end_process(how)
        return context.attempt

    @dag.plugin(on_lost="crash")
    def once_only(journal: str) -> None:
        write_line(journal, "attempt")
        end_process("kill")

    @dag.app.task(name="early", shared=False)
    def early(journal: str) -> None:
        write_line(journal, "attempt")
        end_process("kill")

    @dag.app.task(name="plain-late", shared=False, acks_late=True, reject_on_worker_lost=True)
    def plain_late(journal: str) -> int:
        write_line(journal, "attempt")
        attempts = len(Path(journal).read_text().splitlines())
        if attempts == 1:
            end_process("kill")
        return attempts

    @dag.app.task(name="plain-early", shared=False)
    def plain_early(journal: str) -> None:
        write_line(journal, "attempt")
        end_process("kill")

    dag.plugin(early)

    @dag.plugin
    def count(n: int) -> list[int]:
        return list(range(n))

    @dag.plugin
    def hold(journal: str, value: int = 0) -> int:
        write_line(journal, "begun", value, os.getpid())
        deadline = time.monotonic() + LONGEST_HOLD
        while not Path(f"{journal}-release").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        write_line(journal, "ended", value, os.getpid())
        return value


def declare_callbacks(dag: Dagabaaz) -> None:
    """Callbacks that write to a file; one that ends its process where another file says so."""

    def note(kind: str, run_id: str) -> None:
        directory = dag.settings.files_dir
        directory.mkdir(parents=True, exist_ok=True)
        write_line(str(directory / "callbacks"), kind, run_id)
        deadly = directory / f"deadly-{run_id}"
        if deadly.exists():
            deadly.unlink()
            end_process("kill")

    dag.on_run_completed(partial(note, "completed"))
    dag.on_run_crashed(partial(note, "crashed"))


def declare_all(dag: Dagabaaz) -> None:
    """Every plugin of this module."""
    declare_flaky(dag)
    declare_limited(dag)
    declare_hooked(dag)
    declare_broken(dag)
    declare_mortal(dag)
    declare_callbacks(dag)

"""Real worker processes on a Redis broker, each test with a store, a queue and keys of its own."""

import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from celery import Celery

from dagabaaz_celery.app import Dagabaaz
from tests.integration.celery_support import wait_until
from tests.processes import ProcessTree, make_directory, remove_directory
from tests.services import open_redis_broker

ROOT = Path(__file__).resolve().parents[2]
Declare = Callable[[Dagabaaz], Any]


@dataclass
class Site:
    """A broker, a store and plugins that worker processes and this process share; ``dag`` is this process's side."""

    dag: Dagabaaz
    directory: Path
    settings: dict[str, Any]
    declare: Declare
    workers: list[ProcessTree] = field(default_factory=list)

    def start_worker(
        self,
        *options: str,
        pool: str = "prefork",
        concurrency: int = 2,
        declare: Declare | None = None,
        variables: Mapping[str, str] | None = None,
        wait: bool = True,
        **settings: Any,
    ) -> ProcessTree:
        """Start ``celery worker`` with more settings, and wait until it consumes, unless ``wait_ready`` is to.

        ``declare`` takes the place of the site's own plugins, ``variables`` are added to its environment.
        """
        log = self.directory / f"worker-{len(self.workers)}.log"
        name = f"{self.directory.name}-{len(self.workers)}@here"
        arguments = ["-n", name, "-P", pool, "-c", str(concurrency), "-l", "INFO", *options]
        environment = {**self.environment(declare, **settings), **(variables or {})}
        command = [sys.executable, "-m", "celery", "-A", "tests.integration.worker_app", "worker", *arguments]
        worker = ProcessTree(command, log=log, cwd=ROOT, env=environment)
        self.workers.append(worker)
        if wait:
            self._wait_for(worker, log)
        return worker

    def wait_ready(self) -> None:
        """Wait until every worker consumes."""
        for number, worker in enumerate(self.workers):
            self._wait_for(worker, self.directory / f"worker-{number}.log")

    def _wait_for(self, worker: ProcessTree, log: Path) -> None:
        wait_until(lambda: "ready." in log.read_text() or not worker.is_running, "the worker is ready", timeout=90)
        assert worker.is_running, log.read_text()

    def environment(self, declare: Declare | None = None, **settings: Any) -> dict[str, str]:
        """The environment in which ``tests.integration.worker_app`` is this site's app, with more settings."""
        declare = declare or self.declare
        return {
            **os.environ,
            "WORKER_APP_SETTINGS": json.dumps({**self.settings, **settings}),
            "WORKER_APP_PLUGINS": f"{declare.__module__}.{declare.__qualname__}",
        }

    def logs(self) -> str:
        """What all workers wrote so far."""
        return "\n".join(path.read_text() for path in sorted(self.directory.glob("worker-*.log")))


@contextmanager
def open_site(declare: Declare, **settings: Any) -> Iterator[Site]:
    """A site; its workers are ended, its keys and files removed afterwards."""
    with open_redis_broker() as broker:
        directory = make_directory("site")
        given = {
            **broker.settings,
            "dagabaaz_store_url": f"sqlite:///{directory / 'runs.sqlite3'}",
            "dagabaaz_files_dir": str(directory / "files"),
            "dagabaaz_sweep_interval": 0.2,
            "dagabaaz_dead_after": 1.5,
            "worker_hijack_root_logger": True,
            "worker_send_task_events": False,
            **settings,
        }
        app = Celery("worker_app", set_as_current=False)
        app.conf.update(given)
        dag = Dagabaaz(app)
        declare(dag)
        site = Site(dag, directory, given, declare)
        try:
            yield site
        finally:
            for worker in site.workers:
                worker.kill()
            dag.close()
            app.close()
            remove_directory(directory)

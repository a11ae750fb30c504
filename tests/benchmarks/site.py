"""A pair under measurement: its places, its two worker processes, and the rivals as this process drives them."""

import os
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import amqp
import psutil
from celery import Celery

from tests.benchmarks.apps import AppSpec, OpenedApp, open_app
from tests.benchmarks.barrier import make_tables
from tests.benchmarks.counts import CountFile, Counts, count_sent
from tests.benchmarks.pairs import open_places
from tests.benchmarks.rivals import Rival, Side
from tests.benchmarks.rivals.ours import LAUNCH_SUFFIX
from tests.benchmarks.stamps import StampFile
from tests.processes import ProcessTree, make_directory, remove_directory, wait_until

ROOT = Path(__file__).resolve().parents[2]
SIDES: tuple[Side, Side] = ("plain", "ours")
CONCURRENCY = 2
#: Arguments of every worker. What they leave out is chatter between workers, of which there are no others.
WORKER_ARGUMENTS = ("-P", "prefork", "-c", str(CONCURRENCY), "-l", "WARNING")
_QUIET = ("--without-gossip", "--without-mingle", "--without-heartbeat")
_START_SECONDS = 90.0
#: A read of Redis that was under way when a worker was told to consume no more ends within a second.
_READ_SECONDS = 1.3


@dataclass(frozen=True)
class Usage:
    """What a worker has taken so far: seconds of CPU of all its processes, and the memory of each now, in MB."""

    cpu: float
    memory: list[float]


@dataclass
class Site:
    """A pair with everything that measures it."""

    pair: str
    directory: Path
    specs: dict[Side, AppSpec]
    apps: dict[Side, OpenedApp]
    stamps: StampFile
    counts: CountFile | None
    workers: dict[Side, ProcessTree] = field(default_factory=dict)

    @property
    def rivals(self) -> dict[str, Rival]:
        """Every rival by its name."""
        return {rival.name: rival for opened in self.apps.values() for rival in opened.rivals}

    def start_workers(self) -> None:
        """Start those that do not run, and wait until all consume."""
        logs = {side: self.directory / f"{side}-{uuid.uuid4().hex[:4]}.log" for side in SIDES}
        started = [side for side in SIDES if side not in self.workers]
        for side in started:
            queue = self.specs[side].queue
            self.workers[side] = ProcessTree(
                [
                    *(sys.executable, "-m", "celery", "-q", "-A", "tests.benchmarks.worker_app", "worker"),
                    *WORKER_ARGUMENTS,
                    *_QUIET,
                    *("-n", self._name(side), "-Q", f"{queue},{queue}{LAUNCH_SUFFIX}"),
                ],
                log=logs[side],
                cwd=ROOT,
                env={**os.environ, **self.specs[side].to_environment()},
            )
        for side in started:
            self._wait_for(side, logs[side])

    def restart_workers(self) -> None:
        """After a sample that did not end: new workers, and none of its messages."""
        self._end_workers()
        for side in SIDES:
            with self._app(side).connection_for_write() as connection, connection.channel() as channel:
                for queue in (self.specs[side].queue, self.specs[side].queue + LAUNCH_SUFFIX):
                    channel.queue_purge(queue)
        self.start_workers()

    def close(self) -> None:
        """End the workers, and close what this process has open."""
        self._end_workers()
        for side in SIDES:
            for rival in self.apps[side].rivals:
                dag = getattr(rival, "dag", None)
                if dag is not None:
                    dag.close()
            self._app(side).close()
        self.stamps.close()

    def hold(self, side: Side) -> None:
        """Have a worker leave its queue alone; it goes on with the one for launches."""
        self._app(side).control.cancel_consumer(self.specs[side].queue, destination=[self._name(side)], reply=True)
        time.sleep(_READ_SECONDS)

    def release(self, side: Side) -> None:
        """Have it consume again; returns without waiting for it."""
        self._app(side).control.add_consumer(self.specs[side].queue, destination=[self._name(side)])

    def depth(self, side: Side) -> int:
        """Messages in a worker's queue. Redis knows of none that is empty."""
        with self._app(side).connection_for_read() as connection, connection.channel() as channel:
            try:
                return int(channel.queue_declare(self.specs[side].queue, passive=True).message_count)
            except amqp.ChannelError:
                return 0

    def usage(self, side: Side) -> Usage:
        """What a worker uses."""
        worker = self.workers[side]
        processes = [psutil.Process(worker.pid), *sorted(worker.children(), key=lambda child: child.pid)]
        times = [process.cpu_times() for process in processes]
        return Usage(
            sum(spent.user + spent.system for spent in times),
            [round(process.memory_info().rss / 2**20, 1) for process in processes],
        )

    @contextmanager
    def alone(self, side: Side) -> Iterator[None]:
        """The other worker is frozen meanwhile: what it does now and then is not this one's."""
        others = [worker for other, worker in self.workers.items() if other != side]
        for worker in others:
            worker.pause()
        try:
            yield
        finally:
            for worker in others:
                worker.resume()

    def take_counts(self) -> Counts:
        """What was sent since the last call, at a site that counts."""
        assert self.counts is not None
        return self.counts.take()

    def complaints(self) -> str:
        """What the workers logged, which is little when all is well."""
        return "\n".join(path.read_text() for path in sorted(self.directory.glob("*.log")))[-1000:]

    def _app(self, side: Side) -> Celery:
        return self.apps[side].app

    def _name(self, side: Side) -> str:
        return f"{self.directory.name}-{side}@bench"

    def _end_workers(self) -> None:
        for worker in self.workers.values():
            worker.end(timeout=10)
        self.workers.clear()

    def _wait_for(self, side: Side, log: Path) -> None:
        worker, name = self.workers[side], self._name(side)

        def answers() -> Any:
            assert worker.is_running, log.read_text()
            return self._app(side).control.ping(destination=[name], timeout=0.5)

        wait_until(answers, f"the worker of {side} answers", timeout=_START_SECONDS)


@contextmanager
def open_site(pair: str, *, query: str = "", counting: bool = False) -> Iterator[Site]:
    """A pair with workers that consume; with ``counting`` all that is sent is counted, which takes time of its own."""
    directory = make_directory("benchmark")
    tag = f"dagabaaz-bench-{uuid.uuid4().hex[:8]}"
    queues: dict[Side, str] = {side: f"{tag}-{side}" for side in SIDES}
    names = [name for queue in queues.values() for name in (queue, queue + LAUNCH_SUFFIX)]
    try:
        with open_places(pair, directory, tag, names, query) as places:
            make_tables(places.database_url)
            base = AppSpec(
                side="ours",
                queue=queues["ours"],
                settings=places.broker,
                database_url=places.database_url,
                stamps=str(directory / "stamps"),
                counts=str(directory / "counts") if counting else None,
            )
            plain = replace(base, side="plain", queue=queues["plain"], settings={**places.broker, **places.backend})
            specs: dict[Side, AppSpec] = {"plain": plain, "ours": base}
            site = Site(
                pair,
                directory,
                specs,
                {side: open_app(specs[side]) for side in SIDES},
                StampFile(Path(base.stamps)),
                CountFile(Path(base.counts)) if base.counts else None,
            )
            try:
                with nullcontext() if site.counts is None else count_sent(site.counts):
                    site.start_workers()
                    yield site
            finally:
                site.close()
    finally:
        remove_directory(directory)

"""Everything that the checks look at: gathered once, from all sides at the same time, within a bounded time."""

import itertools
import logging
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Generic, TypeVar

from celery import Celery

from dagabaaz_celery.app import Dagabaaz
from dagabaaz_celery.doctor.broker_facts import Answer, BrokerFacts, look_at_broker
from dagabaaz_celery.doctor.findings import NotChecked
from dagabaaz_celery.doctor.routes import Route, find_routes
from dagabaaz_celery.doctor.store_facts import Contents, SeenWorker, StoreFacts, look_at_store
from dagabaaz_celery.errors import DagabaazError
from dagabaaz_celery.settings import Settings
from dagabaaz_celery.stores.sql.outages import DATABASE_ERRORS, describe_outage

logger = logging.getLogger(__name__)
T = TypeVar("T")

#: Seconds that the store has, and the broker with all workers: both are asked at the same time.
STORE_PATIENCE = 6.0
BROKER_PATIENCE = 8.0
#: What kombu raises where a transport's library is not installed: some of its modules leave out the import that fails
#: and then use what it should have brought.
NOT_INSTALLED = (ImportError, NameError)
#: Seconds that workers have to answer a question.
ANSWER_PATIENCE = 1.5


class Asked(Generic[T]):
    """Something that is being asked in the background; what has not answered in time is given up."""

    def __init__(self, call: Callable[[], T], *, patience: float) -> None:
        self._patience = patience
        self._until = time.monotonic() + patience
        self._future: Future[T] = Future()
        threading.Thread(target=self._run, args=(call,), name="dagabaaz-doctor", daemon=True).start()

    def result(self) -> T:
        """What it gave. Raises what it raised, and TimeoutError when its time is over."""
        try:
            return self._future.result(max(self._until - time.monotonic(), 0))
        except TimeoutError:
            if self._future.done():
                raise
            raise TimeoutError(f"no answer within {self._patience:g} s") from None

    def _run(self, call: Callable[[], T]) -> None:
        try:
            self._future.set_result(call())
        except BaseException as error:  # handed to whoever asks for the result
            self._future.set_exception(error)


@dataclass(frozen=True)
class Worker:
    """A live worker of this store: its row, or its report, or both."""

    seen: SeenWorker | None
    answer: Answer | None
    #: What it answered that it consumes; None where it did not, or where another of its name may have.
    consumed: list[str] | None

    @property
    def name(self) -> str:
        """Its node name."""
        return self.seen.row.hostname if self.seen is not None else self.answer.node if self.answer else ""

    @property
    def report(self) -> dict[str, Any]:
        """What it told of itself; nothing where it did not answer."""
        return (self.answer.report if self.answer else None) or {}

    @property
    def hosts(self) -> set[str]:
        """The host that its node name names, or where that may be any name, the one that it tells."""
        told, named = self.report.get("host"), self.name.rpartition("@")[2]
        return {told} if told and told.partition(".")[0] == named.partition(".")[0] else {named}

    @property
    def queues(self) -> list[str]:
        """The queues that it consumes: as it says now, else as of its last heartbeat."""
        if self.consumed is not None:
            return self.consumed
        return self.seen.row.queues if self.seen is not None else []

    @property
    def tasks(self) -> list[str]:
        """Names of the tasks that it knows."""
        return self.seen.row.plugins if self.seen is not None else list(self.report.get("plugins", {}).values())


class Facts:
    """What is known. Whatever could not be had raises NotChecked where it is asked for."""

    def __init__(self, dag: Dagabaaz, *, command: str = "celery -A proj") -> None:
        self.dag = dag
        self.app: Celery = dag.app
        #: What stands before ``worker`` or ``dagabaaz`` in a command to be pasted.
        self.command = command
        #: Why settings, plugins, store and broker cannot be had; None where they can.
        self.settings_problem = _find_problem(lambda: dag.settings)
        self.plugins_problem = self.settings_problem or _find_problem(dag.plugin_names)
        self.store_problem: Exception | None = None
        self.broker_problem: Exception | None = None
        self._store: StoreFacts | None = None
        self._broker: BrokerFacts | None = None

    def gather(self) -> None:
        """Ask store, broker and workers; returns within ``BROKER_PATIENCE`` seconds."""
        store = Asked(lambda: look_at_store(self.dag._runtime.store), patience=STORE_PATIENCE)

        def choose(consumed: dict[str, list[str]]) -> list[str]:
            """Workers of this store, and those that take messages of our pipelines."""
            self._take_store(store)
            known = {seen.row.hostname for seen in self.contents.workers} if self._has_contents else set()
            routes = self.routes if self.plugins_problem is None else []
            ours = {queue for route in routes for queue in route.queues or ()}
            return [node for node, queues in consumed.items() if node in known or ours.intersection(queues)]

        broker = None
        if not self.app.conf.task_always_eager:
            broker = Asked(
                lambda: look_at_broker(self.app, patience=ANSWER_PATIENCE, choose=choose), patience=BROKER_PATIENCE
            )
        self._take_store(store)
        if broker is not None:
            try:
                self._broker = broker.result()
            except Exception as error:  # whatever a transport raises is what there is to tell
                logger.debug("the broker could not be asked", exc_info=True)
                self.broker_problem = error

    def _take_store(self, store: Asked[StoreFacts]) -> None:
        try:
            self._store = store.result()
        except Exception as error:  # whatever a driver raises is what there is to tell
            logger.debug("the store could not be asked", exc_info=True)
            self.store_problem = error

    # -- what checks ask for

    @property
    def settings(self) -> Settings:
        """The settings here."""
        if self.settings_problem is not None:
            raise NotChecked("the settings here cannot be read (see settings)")
        return self.dag.settings

    @property
    def migrate_command(self) -> str | None:
        """The command of the app's own framework that makes the tables, where the store is in that one's database."""
        shared = self.dag._runtime.store.shared
        return None if shared is None else shared.migrate_command

    @property
    def store(self) -> StoreFacts:
        """The store's database."""
        if self._store is None:
            raise NotChecked("the store does not answer (see store)")
        return self._store

    @property
    def contents(self) -> Contents:
        """What the store's tables hold."""
        if self.store.contents is None:
            raise NotChecked("the store's tables cannot be read (see schema)")
        return self.store.contents

    @property
    def broker(self) -> BrokerFacts:
        """The broker."""
        if self.app.conf.task_always_eager:
            raise NotChecked("with task_always_eager no broker and no worker is used")
        if self._broker is None:
            raise NotChecked("the broker does not answer (see broker)")
        return self._broker

    @property
    def talking(self) -> BrokerFacts:
        """The broker, where workers can be asked through it."""
        if not self.app.conf.worker_enable_remote_control:
            raise NotChecked(
                "worker_enable_remote_control is off, so that workers cannot be asked (see remote-control)"
            )
        return self.broker

    @property
    def _has_contents(self) -> bool:
        return self._store is not None and self._store.contents is not None

    @cached_property
    def workers(self) -> list[Worker]:
        """Live workers of this store: their heartbeat goes on."""
        silence = self.settings.dead_after
        answers = list(self._broker.answers) if self._broker else []
        consumed = self._broker.consumed if self._broker else {}
        living = [seen for seen in self.contents.workers if seen.silent_for <= silence]
        names = Counter(seen.row.hostname for seen in living)
        found = []
        for seen in living:
            name = seen.row.hostname
            found.append(Worker(seen, _pick(answers, seen), consumed.get(name) if names[name] == 1 else None))
        return sorted(found, key=lambda worker: worker.name)

    @property
    def shared_names(self) -> dict[str, int]:
        """Node names that several live workers have, and how many have each."""
        count = Counter(worker.name for worker in self.workers)
        return {name: number for name, number in sorted(count.items()) if number > 1}

    @property
    def unheard(self) -> list[str]:
        """Live workers that were asked what they consume, and did not answer."""
        if self._broker is None or not self.app.conf.worker_enable_remote_control:
            return []
        return [worker.name for worker in self.workers if worker.name not in self._broker.consumed]

    def stop_workers(self, names: Collection[str]) -> str:
        """A command that ends these workers when their bodies have."""
        if self.app.conf.worker_enable_remote_control:
            return f"{self.command} control shutdown --destination {','.join(sorted(names))}"
        pids = [str(worker.seen.row.pid) for worker in self.workers if worker.seen and worker.name in names]
        return f"kill -TERM {' '.join(pids)}"

    def is_imported_by_workers(self, module: str, names: Collection[str]) -> bool:
        """Whether these workers surely import a module that is there: as what ``-A`` names, or as a setting does.

        A worker that knows a task of the module has imported it, as it was then.
        """
        named = self.command.partition(" -A ")[2].partition(":")[0]
        conf = self.app.conf
        if module in {named, f"{named}.celery", f"{named}.app", *conf.imports, *conf.include}:
            return True
        workers = [worker for worker in self.workers if worker.name in names]
        return all(any(task.rpartition(".")[0] == module for task in worker.tasks) for worker in workers)

    @property
    def worker_command(self) -> str:
        """A command that starts a worker, beside others where there are some."""
        name = f" {self.name_another_worker('spare')}" if self.workers else ""
        return f"{self.command} worker --loglevel INFO{name}"

    def name_another_worker(self, name: str) -> str:
        """Options for one more worker: two of the default name on one host would be taken for one."""
        taken = {worker.name.partition("@")[0] for worker in self.workers}
        plain = re.sub(r"[^\w.-]", "-", name)
        free = (
            each for number in itertools.count(1) if (each := f"{plain}{number if number > 1 else ''}") not in taken
        )
        return f"-n {next(free)}@%h"

    @property
    def living(self) -> list[Worker]:
        """Live workers; NotChecked where there is none."""
        if not self.workers:
            raise NotChecked("no worker is alive (see workers)")
        return self.workers

    @property
    def reporting(self) -> list[Worker]:
        """Live workers that told of themselves; NotChecked where none did."""
        self.talking  # noqa: B018  # asked for first: its reason is the better one
        found = [worker for worker in self.living if worker.report]
        if not found:
            raise NotChecked("no live worker answered (see workers)")
        return found

    @property
    def silent(self) -> list[SeenWorker]:
        """Workers whose heartbeat has stopped, and that nobody has buried."""
        return [seen for seen in self.contents.workers if seen.silent_for > self.settings.dead_after]

    @cached_property
    def strangers(self) -> list[tuple[str, list[str], Answer | None]]:
        """Celery workers that consume from this broker and are none of this store: node, queues, what they answered."""
        ours = {worker.name for worker in self.workers}
        answers = {answer.node: answer for answer in self.talking.answers}
        return [
            (node, queues, answers.get(node))
            for node, queues in sorted(self.talking.consumed.items())
            if node not in ours
        ]

    @cached_property
    def routes(self) -> list[Route]:
        """Where the tasks of every node go, of pipelines registered here, saved ones, and open runs."""
        if self.plugins_problem is not None:
            raise NotChecked("the plugins here cannot be read (see pipelines)")
        return list(self._find_routes())

    def _find_routes(self) -> Iterator[Route]:
        for _, definition in self.dag_definitions:
            yield from find_routes(self.app, definition, {}, f"pipeline {definition.name!r}")
        if self._has_contents:
            for definition in self.contents.saved:
                yield from find_routes(self.app, definition, {}, f"saved pipeline {definition.name!r}")
            for definition, options in self.contents.running:
                yield from find_routes(self.app, definition, options, f"open runs of {definition.name!r}")

    @cached_property
    def dag_definitions(self) -> list[tuple[str, Any]]:
        """Registered pipelines that can run, as their runs would keep them."""
        found = []
        for name in sorted(self.dag._pipelines):
            try:
                found.append((name, self.dag._find_definition(name, None)[0]))
            except DagabaazError:
                continue  # told by the check of pipelines
        return found


def _pick(answers: list[Answer], seen: SeenWorker) -> Answer | None:
    """The report of a worker: by its id, or by its name where it has told none."""
    of_name = [answer for answer in answers if answer.node == seen.row.hostname]
    of_id = [answer for answer in of_name if (answer.report or {}).get("worker") == seen.row.id]
    return next(iter(of_id or [answer for answer in of_name if answer.report is None]), None)


def _find_problem(call: Callable[[], object]) -> DagabaazError | None:
    try:
        call()
    except DagabaazError as error:
        return error
    return None


def explain(error: BaseException) -> str:
    """What went wrong, in a line."""
    if isinstance(error, DagabaazError):
        return error.message
    if isinstance(error, DATABASE_ERRORS):
        return describe_outage(error)
    said = str(error).strip().splitlines()
    return said[0] if said else type(error).__name__

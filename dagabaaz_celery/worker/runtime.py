"""One app's running parts, wired together: settings, store, plugins, publisher, and what follows a commit."""

import logging
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

from celery import Celery
from celery.canvas import Signature

from dagabaaz_celery.constants import RunStatus
from dagabaaz_celery.errors import StoreUrlMissing
from dagabaaz_celery.settings import Settings, read_settings
from dagabaaz_celery.stores.sql.records import CARRIED, Aftermath, Owed, RunRow
from dagabaaz_celery.stores.sql.shared import SharedDatabase
from dagabaaz_celery.stores.sql.store import SqlStore
from dagabaaz_celery.stores.sql.transaction import StorePolicy
from dagabaaz_celery.worker.broker import BROKER_ERRORS, Broker
from dagabaaz_celery.worker.callbacks import RunCallback, make_call
from dagabaaz_celery.worker.django_project import DJANGO_APP, lacks_django_app
from dagabaaz_celery.worker.local_store import make_process_store_url
from dagabaaz_celery.worker.observers import Observers, RunFacts, find_closed_nodes
from dagabaaz_celery.worker.outcome import OutcomeHandler, ends_process, stop_flag, wait_out
from dagabaaz_celery.worker.publish import Publisher
from dagabaaz_celery.worker.registry import PluginRegistry
from dagabaaz_celery.worker.secrets import SecretResolver

logger = logging.getLogger(__name__)

FileCallback = Callable[[str, list[str]], Any]
Part = TypeVar("Part")

_IN_PROCESS_BROKERS = ("memory",)
_MAX_CALLBACK_DELAY = 300.0
#: Runs started in transactions of the app's, after which it is looked which of these have ended.
_CROWDED = 64


class _built_once(Generic[Part]):  # noqa: N801  # a decorator
    """A part built at its first use, once for all threads, which functools.cached_property no longer sees to."""

    def __init__(self, build: Callable[["Runtime"], Part]) -> None:
        self._build = build
        self.__doc__ = build.__doc__

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, runtime: "Runtime", owner: type) -> Part:
        with runtime.building:
            if self._name not in runtime.__dict__:
                runtime.__dict__[self._name] = self._build(runtime)
            part: Part = runtime.__dict__[self._name]
            return part


class Runtime:
    """Everything that an app's processes need to advance runs. Nothing is read or opened before its first use."""

    def __init__(self, app: Celery, secret_resolver: SecretResolver) -> None:
        self.app = app
        self.secret_resolver = secret_resolver
        self.registry = PluginRegistry()
        self.callbacks: dict[RunStatus, list[RunCallback]] = {}
        #: Told of what happens to runs in this process.
        self.observers = Observers()
        #: Told of the files of runs that are deleted.
        self.file_callbacks: list[FileCallback] = []
        #: Set in a worker's main process before its pool starts, so that its children inherit it.
        self.worker_id: str | None = None
        #: Takes work from the main process's signal receivers; None outside a worker's main process.
        self.sweep_queue: SweepQueue | None = None
        #: The app's own database, for a store without a URL.
        self.shared_database: SharedDatabase | None = None
        #: Runs that were started in a transaction of the app's, each with what tells whether that has not ended yet.
        self._uncommitted: dict[str, Callable[[], bool]] = {}
        self._crowded = _CROWDED
        #: Held while a part is built; a worker builds them all before it forks.
        self.building = threading.RLock()

    @_built_once
    def settings(self) -> Settings:
        """The app's settings, read at first use."""
        return read_settings(self.app.conf)

    @_built_once
    def store(self) -> SqlStore:
        """The app's store. Raises StoreUrlMissing with a real broker and no store URL."""
        settings = self.settings
        shared = self.shared_database if settings.store_url is None else None
        return SqlStore(
            settings.store_url or (self._url_without_setting() if shared is None else shared.url),
            prefix=settings.table_prefix,
            schema=settings.schema,
            policy=StorePolicy(
                lease=settings.dead_after,
                resend_after=settings.resend_after,
                short_delay=settings.sweep_interval,
                max_fan_out=settings.max_fan_out,
            ),
            auto_migrate=settings.auto_migrate and shared is None,
            shared=shared,
        )

    @_built_once
    def outcome(self) -> OutcomeHandler:
        """Records how attempts end."""
        settings = self.settings
        return OutcomeHandler(
            self.store,
            self.settle,
            max_recoveries=settings.max_recoveries,
            unknown_pause=settings.sweep_interval,
            observers=self.observers,
        )

    @_built_once
    def broker(self) -> Broker:
        """The app's broker, for bounded calls."""
        return Broker(self.app)

    @_built_once
    def publisher(self) -> Publisher:
        """Sends tasks to the broker."""
        return Publisher(
            self.app,
            self.broker,
            self.store,
            self.registry,
            max_input_bytes=self.settings.max_input_bytes,
            fail_task=self.outcome.fail_attempt,
            observers=self.observers,
        )

    def prepare_worker(self) -> None:
        """Build every part and open the store, before the pool forks: a child must not have to wait for it.

        Waits for a database that is away. Raises ConfigurationError and StoreError for what waiting does not mend.
        """
        stop_flag.share()
        wait_out(lambda: self.store.id)
        self.publisher  # noqa: B018  # with it, all others

    def close(self) -> None:
        """Close the connections to store and broker, where they were ever used."""
        self.write_marks()
        for part in ("broker", "store"):
            if part in self.__dict__:
                self.__dict__[part].close()

    def write_marks(self) -> None:
        """Before this process ends, or leaves the store: see ``LateMarks``."""
        if "publisher" in self.__dict__:
            self.publisher.write_marks()

    @property
    def is_worker(self) -> bool:
        """Whether this process is a worker or one of its children."""
        return self.worker_id is not None

    def check_transaction(self) -> None:
        """Before a run is started or changed for the app. Raises TransactionOpen."""
        if self.store.shared is not None:
            self.store.shared.check()

    def after_commit(self, call: Callable[[], object]) -> Callable[[], bool] | None:
        """Call this once what was asked of the store is committed; gives what tells whether it still waits for that.

        That is at once, unless the app has a transaction open on a database that it shares with the store.
        """
        shared = self.store.shared
        if shared is not None:
            return shared.after_commit(call)
        call()
        return None

    def settle(self, aftermath: Aftermath) -> None:
        """Do what a transaction owes, after its commit. What fails here is done by a sweep: it is stored as owed."""
        if not aftermath.is_empty:
            self.after_commit(lambda: self._settle(aftermath))

    def settle_start(self, run_id: str, aftermath: Aftermath) -> None:
        """Like ``settle``, of a run that was just started, and is not there for others before the commit."""
        waits = self.after_commit(lambda: self._settle(aftermath))
        if waits is None:
            return
        if len(self._uncommitted) >= self._crowded:  # each look takes its time: few looks for many starts
            self._uncommitted = {other: still for other, still in list(self._uncommitted.items()) if still()}
            self._crowded = max(2 * len(self._uncommitted), _CROWDED)
        self._uncommitted[run_id] = waits

    def is_uncommitted(self, run_id: str) -> bool:
        """Whether this process started the run in a transaction of the app's that has not ended yet."""
        waits = self._uncommitted.get(run_id)
        return waits is not None and waits()

    def _settle(self, aftermath: Aftermath) -> None:
        try:
            self.publisher.publish(aftermath.publish)
        except Exception:
            logger.exception("publishing failed after the commit: the sweep publishes what is owed")
        self.report(aftermath)
        for owed in sorted(aftermath.owed, key=_by_urgency):
            try:
                self.do_owed(owed)
            except Exception:
                logger.exception(
                    "%s of run %s failed after the commit: the sweep does it again", owed.kind, owed.run_id
                )

    def report(self, aftermath: Aftermath) -> None:
        """Tell observers what a commit did. What they hear, the database's times among it, is read anew."""
        if not self.observers or not (aftermath.started or aftermath.closed or aftermath.has_end):
            return
        try:
            run, closed = find_closed_nodes(self.store, aftermath)
        except Exception as error:
            logger.warning("what became of run %s is not told to observers: %s", aftermath.run_id, error)
            return
        if aftermath.started:
            self.observers.tell("run_started", run)
        for node in closed:
            self.observers.tell("node_closed", node)
        if aftermath.has_end and run.ended_at is not None:
            self.observers.tell("run_ended", run)

    def with_carried(self, run_id: str, pipeline: str, options: Mapping[str, Any]) -> dict[str, Any]:
        """A run's options, with what its observers want to find with it again."""
        carried = self.observers.carry(run_id, pipeline, {}) if self.observers else {}
        return {**options, CARRIED: carried} if carried else dict(options)

    def carry_again(self, run: RunRow) -> Mapping[str, str]:
        """What observers want to find with a run that is retried, in place of what they wanted before."""
        if not self.observers:
            return {}
        return self.observers.carry(run.id, run.pipeline, RunFacts.of(run).carried)

    def publish_due(self, limit: int) -> bool:
        """Publish up to ``limit`` tasks that are owed to the queue; whether there may be more that can be published."""
        due = self.store.lease_due_tasks(limit)
        was_sent = self.publisher.publish(due)
        if self.observers and due and was_sent:
            self.observers.tell("swept", "publish", len(due))
        return was_sent and len(due) == limit

    def do_owed(self, owed: Owed, *, terminate: bool = False) -> None:
        """Do one owed thing that this process has leased; ``terminate`` ends the bodies that a cancellation finds."""
        if owed.kind == "launch":
            self._finish_launch(owed)
        elif owed.kind == "cancel":
            cancelled = self.store.cancel_rest(owed)
            self._revoke([*cancelled, *(self.store.find_outlasting(owed) if terminate else ())], terminate)
        elif owed.kind == "epilogue":
            self.settle(self.store.follow_end(owed))
        elif self.app.conf.task_always_eager or (self.is_worker and not self.has_sweep):
            self.deliver(owed)
        else:
            self.store.postpone_owed(owed, 0)  # callbacks run in workers, there in a thread of their own
            if self.sweep_queue is not None:
                self.sweep_queue.callbacks.set()

    @property
    def has_sweep(self) -> bool:
        """Whether this process sweeps: a worker's main process, where nothing may wait for a user's callback."""
        return self.sweep_queue is not None and self.sweep_queue.is_here

    def do_all_owed(self, owed: Sequence[Owed], *, terminate: bool = False) -> None:
        """Do what a commit owed, raising what keeps it from being done; callbacks come last."""
        for each in sorted(owed, key=_by_urgency):
            self.do_owed(each, terminate=terminate)

    def _finish_launch(self, owed: Owed) -> None:
        aftermath = self.store.continue_launch(owed)
        self.publisher.publish(aftermath.publish)
        while aftermath.owed:
            aftermath = self.store.continue_launch(owed, aftermath.items)
            self.publisher.publish(aftermath.publish)

    def _revoke(self, attempt_ids: list[str], terminate: bool) -> None:
        """Tell workers to drop what still waits in their memory; the claim's guard would refuse it anyway.

        ``terminate``: these are running, and their workers are to end them.
        """
        if not attempt_ids or self.app.conf.task_always_eager:
            return
        try:
            with self.broker.link() as link:
                link.revoke(self.app, attempt_ids, terminate=terminate)
        except BROKER_ERRORS as error:
            level = logging.WARNING if terminate else logging.INFO
            logger.log(
                level, "could not revoke %d attempts (%s): their outcomes will be refused", len(attempt_ids), error
            )

    def deliver(self, owed: Owed) -> None:
        """Call or send what the app wants for a run's end; the row goes when all has been."""
        for place, callback in enumerate(self.callbacks.get(owed.status, ())):
            try:
                with self.calling_app():
                    make_call(self.app, self.broker, callback, owed, place)
            except BaseException as error:
                if ends_process(error):
                    raise
                delay = min(2.0 ** min(owed.tries + 1, 10), _MAX_CALLBACK_DELAY)
                is_away = isinstance(callback, Signature) and isinstance(error, BROKER_ERRORS)
                logger.log(
                    logging.WARNING if is_away else logging.ERROR,
                    "the callback %r for run %s (%s, generation %d) raised %s: again in %.0f s",
                    callback,
                    owed.run_id,
                    owed.status,
                    owed.generation,
                    error if is_away else type(error).__name__,
                    delay,
                    exc_info=not is_away,
                )
                self.store.postpone_owed(owed, delay)
                return
        self.store.settle_owed(owed)

    @contextmanager
    def calling_app(self) -> Iterator[None]:
        """Threads of a worker live long, and nobody else tells the app when one of them works for it."""
        shared = self.shared_database
        if shared is None:
            yield
            return
        shared.refresh()
        try:
            yield
        finally:
            shared.refresh()

    def _url_without_setting(self) -> str:
        """A broker inside this process, or none at all, needs no shared store."""
        conf = self.app.conf
        transport = self.app.connection_for_write().transport_cls
        if conf.task_always_eager or transport in _IN_PROCESS_BROKERS:
            return make_process_store_url()
        if lacks_django_app():
            raise StoreUrlMissing(
                f"The app {self.app.main!r} has a broker ({transport}) and no store for its runs. This is a Django "
                f'project: add "{DJANGO_APP}" to INSTALLED_APPS, and its own database is the store, after `python '
                "manage.py migrate`. (A script of your own calls django.setup() first. For a database that is none of "
                "Django's, set app.conf.dagabaaz_store_url.)"
            )
        raise StoreUrlMissing(
            f"The app {self.app.main!r} has a broker ({transport}) and no store for its runs. A default file would "
            "differ between hosts and hang runs silently, so name one database that every process reaches: "
            'app.conf.dagabaaz_store_url = "postgresql+psycopg://localhost/mydb" '
            "(on one machine: Dagabaaz.embedded(app) brings its own store and broker)."
        )


def _by_urgency(owed: Owed) -> int:
    """The rest of a run that ended is cancelled before anything follows. Callbacks come last: they may take time."""
    return ("cancel", "launch", "epilogue", "callback").index(owed.kind)


class SweepQueue:
    """Calls that the main process's signal receivers hand over to the sweep thread."""

    def __init__(self) -> None:
        self._calls: list[Callable[[], None]] = []
        self._lock = threading.Lock()
        self._pid = os.getpid()
        self.wake = threading.Event()
        self.callbacks = threading.Event()

    @property
    def is_here(self) -> bool:
        """Whether the sweep thread lives in this process (a forked child has only a copy of this object)."""
        return os.getpid() == self._pid

    def put(self, call: Callable[[], None]) -> None:
        """Have the sweep thread make this call soon."""
        with self._lock:
            self._calls.append(call)
        self.wake.set()

    def take_all(self) -> list[Callable[[], None]]:
        """What has been handed over."""
        with self._lock:
            calls, self._calls = self._calls, []
        return calls

"""The embedded broker under real worker processes, and its refusals."""

import multiprocessing
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from uuid import UUID

import psutil
import pytest
from celery import Celery
from embedded_app import BUSY_TIMEOUT_VARIABLE, DIRECTORY_VARIABLE, make_app, read_journal
from kombu import Connection, Exchange, Queue

from dagabaaz_celery.brokers import embedded
from dagabaaz_celery.errors import ConfigurationError

HERE = Path(__file__).parent


def wait_until(is_true: Callable[[], object], what: str, timeout: float = 20.0) -> None:
    deadline = time.monotonic() + timeout
    while not is_true():
        assert time.monotonic() < deadline, f"not within {timeout} s: {what}"
        time.sleep(0.01)


class Worker:
    """A `celery worker` process, ended by its pid."""

    def __init__(self, directory: Path, name: str, pool: str, *options: str) -> None:
        self.name = f"{name}@here"
        self.log = directory / f"{name}.log"
        command = ["-m", "celery", "-A", "embedded_app", "worker", "-n", self.name, "-P", pool, "-l", "INFO", *options]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, *command],
                cwd=HERE,
                env=os.environ | {DIRECTORY_VARIABLE: str(directory)},
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def wait_until_ready(self) -> None:
        wait_until(lambda: "ready." in self.log.read_text(), f"{self.name} is ready")

    def kill(self) -> None:
        """End the main process at once, as the out-of-memory killer would, and the orphans that it leaves."""
        orphans = psutil.Process(self.process.pid).children(recursive=True)
        self.process.kill()
        self.process.wait()
        for orphan in orphans:
            end(orphan)

    def shut_down(self, timeout: float = 15.0) -> None:
        self.process.terminate()
        assert self.process.wait(timeout) == 0, self.log.read_text()


def end(process: psutil.Process) -> None:
    try:
        process.kill()
    except psutil.NoSuchProcess:
        return


@contextmanager
def running_workers(directory: Path, *pools: str, options: tuple[str, ...] = ("-c", "2")) -> Iterator[list[Worker]]:
    workers = [Worker(directory, f"{pool}{number}", pool, *options) for number, pool in enumerate(pools)]
    try:
        for worker in workers:
            worker.wait_until_ready()
        yield workers
        for worker in workers:
            if worker.process.poll() is None:
                worker.process.terminate()
        for worker in workers:
            worker.process.wait(15)
    finally:
        for worker in workers:
            if worker.process.poll() is None:
                worker.kill()


@contextmanager
def open_app(directory: Path) -> Iterator[Celery]:
    app = make_app(directory)
    yield app
    app.close()


@pytest.fixture
def app(tmp_path: Path) -> Iterator[Celery]:
    with open_app(tmp_path) as app:
        yield app


@pytest.fixture(scope="module")
def crew(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Celery, Path, list[Worker]]]:
    """Two workers that the tests share, with an app that talks to them and their directory."""
    directory = tmp_path_factory.mktemp("crew")
    options = ("-c", "2", "-E")
    with open_app(directory) as app, running_workers(directory, "prefork", "threads", options=options) as workers:
        yield app, directory, workers


def count_ready(app: Celery, queue: str = "celery") -> int:
    with app.connection_for_read() as connection:
        return connection.default_channel.queue_declare(queue, passive=True).message_count


# -- tasks


@pytest.mark.parametrize("pool", ["prefork", "threads", "solo"])
def test_two_workers_run_every_task_exactly_once(app: Celery, tmp_path: Path, pool: str) -> None:
    # Given messages that were published while no worker was up
    expected = {f"task-{number}" for number in range(300)}
    for line in sorted(expected)[:100]:
        app.send_task("record", [line])
    # When two workers come up and more is published, directly and by the tasks themselves
    with running_workers(tmp_path, pool, pool):
        for number, line in enumerate(sorted(expected)[100:]):
            app.send_task("publish_from_task" if number % 4 == 0 else "record", [line])
        wait_until(lambda: len(read_journal(tmp_path)) >= len(expected), "300 tasks ran")
    # Then each ran once, and nothing is left for others
    assert Counter(read_journal(tmp_path)) == Counter(expected)
    assert count_ready(app) == 0


def test_messages_keep_their_order_and_their_text(app: Celery, tmp_path: Path) -> None:
    lines = ["żółć", "日本語", "🙂 'quoted' \"twice\" \\", *(f"line {number}" for number in range(20))]
    for line in lines:
        app.send_task("record", [line])
    with running_workers(tmp_path, "solo"):
        wait_until(lambda: len(read_journal(tmp_path)) == len(lines), "all ran")
    assert read_journal(tmp_path) == lines


def test_a_task_that_fails_is_retried_after_its_countdown(crew: tuple[Celery, Path, list[Worker]]) -> None:
    app, directory, _ = crew
    started = time.monotonic()
    app.send_task("fail_once", ["retried"])
    wait_until(lambda: "retried 1" in read_journal(directory), "the second try ran")
    assert time.monotonic() - started >= 0.2
    assert read_journal(directory).count("retried 0") == 1


def test_an_idle_worker_takes_a_message_soon(crew: tuple[Celery, Path, list[Worker]]) -> None:
    app, directory, _ = crew
    latencies = []
    for number in range(7):
        started = time.monotonic()
        app.send_task("record", [f"latency-{number}"])
        wait_until(lambda n=number: f"latency-{n}" in read_journal(directory), "it ran")
        latencies.append(time.monotonic() - started)
    assert median(latencies) < 0.3


# -- remote control and events


def test_remote_control_reaches_every_worker_and_brings_the_answers_back(
    crew: tuple[Celery, Path, list[Worker]],
) -> None:
    app, directory, workers = crew
    names = {worker.name for worker in workers}

    answers = app.control.ping(timeout=10, limit=2)
    assert {name for answer in answers for name in answer} == names

    stats = app.control.inspect(timeout=10, limit=2).stats()
    assert {name: stats[name]["pid"] for name in names} == {worker.name: worker.process.pid for worker in workers}

    command = [sys.executable, "-m", "celery", "-A", "embedded_app", "inspect", "ping"]
    environment = os.environ | {DIRECTORY_VARIABLE: str(directory)}
    done = subprocess.run(command, cwd=HERE, env=environment, capture_output=True, text=True, check=True, timeout=20)
    assert all(name in done.stdout for name in names)


def test_a_revoked_task_never_runs(crew: tuple[Celery, Path, list[Worker]]) -> None:
    app, directory, _ = crew
    revoked = app.send_task("record", ["revoked"], countdown=0.6)
    app.control.revoke(revoked.id, reply=True, timeout=10, limit=2)
    app.send_task("record", ["after the revoked one"], countdown=0.9)
    wait_until(lambda: "after the revoked one" in read_journal(directory), "the later task ran")
    assert "revoked" not in read_journal(directory)


def test_a_running_task_is_terminated(crew: tuple[Celery, Path, list[Worker]]) -> None:
    app, directory, workers = crew
    prefork, threads = [worker.name for worker in workers]
    app.control.cancel_consumer("celery", destination=[threads], reply=True, timeout=10)  # threads cannot be killed
    held = app.send_task("hold", ["terminated"])
    wait_until(lambda: "terminated begun" in read_journal(directory), "the task began")
    inspect = app.control.inspect(destination=[prefork], timeout=10)
    assert [task["id"] for task in inspect.active()[prefork]] == [held.id]

    app.control.revoke(held.id, terminate=True, signal="SIGKILL", destination=[prefork], reply=True, timeout=10)

    wait_until(lambda: not inspect.active()[prefork], "the task is gone")
    app.control.add_consumer("celery", destination=[threads], reply=True, timeout=10)


def test_events_reach_a_monitor_in_another_process(crew: tuple[Celery, Path, list[Worker]]) -> None:
    app, _, _ = crew
    seen: list[str] = []
    with app.connection_for_read() as connection:
        monitor = app.events.Receiver(connection, handlers={"task-succeeded": lambda event: seen.append(event["uuid"])})
        with monitor.consumer_context() as (monitored, _, _):
            sent = app.send_task("record", ["watched"])
            wait_until(lambda: drain(monitored) or sent.id in seen, "the event arrived")


def drain(connection: Connection) -> None:
    """Deliver what is there or comes within a tenth of a second."""
    try:
        connection.drain_events(timeout=0.1)
    except TimeoutError:
        return


def test_shutdown_by_remote_control(app: Celery, tmp_path: Path) -> None:
    with running_workers(tmp_path, "solo") as [worker]:
        app.control.shutdown()
        assert worker.process.wait(15) == 0


# -- the ends of workers


def test_what_a_killed_worker_held_goes_to_another(app: Celery, tmp_path: Path) -> None:
    # Given a worker that runs one task and holds three more
    for number in range(4):
        app.send_task("hold" if number == 0 else "record", [f"task-{number}"])
    with running_workers(tmp_path, "prefork", options=("-c", "1")) as [doomed]:
        wait_until(lambda: read_journal(tmp_path) == ["task-0 begun"] and count_ready(app) == 0, "all are held")
        # When its main process is killed
        doomed.kill()
    # Then another worker soon runs them all, and they say that they are redelivered
    (tmp_path / "release").touch()
    with running_workers(tmp_path, "prefork", options=("-c", "1")):
        wait_until(lambda: len(read_journal(tmp_path)) == 6, "all ran", timeout=10)
    lines = read_journal(tmp_path)
    assert lines[1:3] == ["task-0 begun", "task-0 ended"]
    assert sorted(lines[3:]) == [f"task-{number} again" for number in (1, 2, 3)]


def test_what_a_stopped_worker_holds_stays_with_it(app: Celery, tmp_path: Path) -> None:
    app.send_task("hold", ["slow"])
    with running_workers(tmp_path, "threads", "threads", options=("-c", "1")) as workers:
        wait_until(lambda: "slow begun" in read_journal(tmp_path), "it began")
        holder = next(worker for worker in workers if "hold[" in worker.log.read_text())
        holder.process.send_signal(signal.SIGSTOP)
        # the other worker has looked for the dead at least once when it has run a task two seconds later
        app.send_task("record", ["later"], countdown=2.1)
        wait_until(lambda: "later" in read_journal(tmp_path) or "later again" in read_journal(tmp_path), "later ran")
        holder.process.send_signal(signal.SIGCONT)
        (tmp_path / "release").touch()
        wait_until(lambda: "slow ended" in read_journal(tmp_path), "it ended")
    assert read_journal(tmp_path).count("slow begun") == 1


def test_a_warm_shutdown_ends_what_runs_and_gives_the_rest_back(app: Celery, tmp_path: Path) -> None:
    for number in range(4):
        app.send_task("hold" if number == 0 else "record", [f"task-{number}"])
    with running_workers(tmp_path, "prefork", options=("-c", "1")) as [worker]:
        wait_until(lambda: read_journal(tmp_path) == ["task-0 begun"] and count_ready(app) == 0, "all are held")
        worker.process.terminate()
        wait_until(lambda: "Warm shutdown" in worker.log.read_text(), "the shutdown began")
        (tmp_path / "release").touch()
        assert worker.process.wait(15) == 0
    assert read_journal(tmp_path) == ["task-0 begun", "task-0 ended"]
    assert count_ready(app) == 3


@pytest.mark.parametrize("pool", ["prefork", "threads", "solo"])
def test_a_worker_goes_on_after_the_file_was_locked_for_too_long(
    app: Celery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pool: str
) -> None:
    # Given a worker that is waiting for the end of a task when somebody locks the file
    monkeypatch.setenv(BUSY_TIMEOUT_VARIABLE, "0.1")
    lines = {f"task-{number}" for number in range(30)}
    app.send_task("hold", ["first"])
    for line in lines:
        app.send_task("record", [line])
    with running_workers(tmp_path, pool, options=("-c", "1")) as [worker]:
        wait_until(lambda: "first begun" in read_journal(tmp_path), "it began")
        intruder = sqlite3.connect(tmp_path / embedded.FILE_NAME, isolation_level=None)
        intruder.execute("BEGIN IMMEDIATE")
        # When it can neither acknowledge nor take anything
        (tmp_path / "release").touch()
        wait_until(lambda: "Connection to broker lost" in worker.log.read_text(), "the worker gave up waiting")
        intruder.rollback()
        intruder.close()
        # Then it does everything as soon as it can
        wait_until(lambda: lines <= {line.removesuffix(" again") for line in read_journal(tmp_path)}, "all ran")
        wait_until(lambda: read_journal(tmp_path).count("first ended") >= 1, "the first ended")
    assert count_ready(app) == 0


# -- messages, queues and exchanges


def test_purge_deletes_what_waits_and_says_how_many(app: Celery) -> None:
    for number in range(5):
        app.send_task("record", [str(number)])
    assert app.control.purge() == 5
    assert count_ready(app) == 0
    assert app.control.purge() == 0


def test_a_message_is_acknowledged_rejected_or_requeued(app: Celery) -> None:
    with app.connection_for_read() as connection, connection.SimpleQueue("jobs") as jobs:
        jobs.put("first")
        jobs.put("second")
        assert jobs.qsize() == 2

        jobs.get(timeout=5).requeue()
        again = jobs.get(timeout=5)
        assert again.payload == "first"
        assert again.delivery_info["redelivered"]
        again.ack()

        second = jobs.get(timeout=5)
        assert second.payload == "second"
        assert "redelivered" not in second.delivery_info
        second.reject()
        assert jobs.qsize() == 0
    assert count_ready(app, "jobs") == 0


def test_a_message_that_is_fetched_without_acknowledgement_is_gone(app: Celery) -> None:
    with app.connection_for_read() as connection:
        channel = connection.default_channel
        connection.SimpleQueue("jobs").put("only")
        assert channel.basic_get("jobs", no_ack=True).payload == "only"
        assert channel.basic_get("jobs", no_ack=True) is None
    assert count_ready(app, "jobs") == 0


def test_a_message_keeps_its_bytes_and_its_headers(app: Celery) -> None:
    headers = {"when": datetime(2030, 1, 2, tzinfo=UTC), "id": UUID(int=7), "text": "żółć"}
    with app.connection_for_read() as connection, connection.SimpleQueue("jobs") as jobs:
        jobs.put(b"\x00\xff", headers=headers, serializer="raw", compression="zlib")
        message = jobs.get(timeout=5)
        assert message.payload == b"\x00\xff"
        assert headers.items() <= message.headers.items()
        message.ack()


def test_a_closed_connection_gives_back_what_it_holds(app: Celery) -> None:
    with app.connection_for_write() as connection:
        connection.SimpleQueue("jobs").put("unfinished")
    with app.connection_for_read() as connection:
        message = connection.SimpleQueue("jobs").get(timeout=5)
        assert count_ready(app, "jobs") == 0
    assert count_ready(app, "jobs") == 1
    message.ack()  # too late: it is somebody else's now
    assert count_ready(app, "jobs") == 1


@pytest.mark.parametrize(
    ("kind", "keys", "sent", "reached"),
    [
        ("direct", ["red", "blue"], "red", ["q-red"]),
        ("topic", ["news.*", "news.#", "other.#"], "news.local", ["q-news.#", "q-news.*"]),
        ("fanout", ["red", "blue"], "", ["q-blue", "q-red"]),
    ],
)
def test_an_exchange_routes_to_the_queues_that_another_connection_bound(
    app: Celery, kind: str, keys: list[str], sent: str, reached: list[str]
) -> None:
    exchange = Exchange("letters", type=kind)
    with app.connection_for_read() as consumer, app.connection_for_write() as publisher:
        for key in keys:
            Queue(f"q-{key}", exchange, routing_key=key)(consumer.default_channel).declare()
        publisher.Producer().publish("hello", exchange=exchange, routing_key=sent, declare=[exchange])
        assert sorted(f"q-{key}" for key in keys if count_ready(app, f"q-{key}")) == reached

        unbound, kept = keys[0], keys[1]
        Queue(f"q-{unbound}", exchange, routing_key=unbound)(consumer.default_channel).unbind_from(exchange, unbound)
        consumer.default_channel.queue_delete(f"q-{kept}")
        before = count_ready(app, f"q-{unbound}")
        publisher.Producer().publish("hello", exchange=exchange, routing_key=sent, declare=[exchange])
        assert (count_ready(app, f"q-{unbound}"), count_ready(app, f"q-{kept}")) == (before, 0)


def test_two_apps_share_a_directory(app: Celery, tmp_path: Path) -> None:
    other = Celery("other", set_as_current=False)
    embedded.configure(other, tmp_path)
    other.conf.task_default_queue = "other"
    app.send_task("record", ["mine"])
    other.send_task("record", ["theirs"])
    other.send_task("record", ["theirs too"])
    assert (count_ready(app), count_ready(app, "other")) == (1, 2)
    assert app.control.purge() == 1
    assert count_ready(other, "other") == 2
    other.close()


def test_a_directory_may_have_any_name(tmp_path: Path) -> None:
    directory = tmp_path / "a new; folder + ü 100% #1?"
    with open_app(directory) as app:
        app.send_task("record", ["sent"])
        assert count_ready(app) == 1
        with running_workers(directory, "solo"):
            wait_until(lambda: read_journal(directory) == ["sent"], "it ran")


# -- forks


forks = multiprocessing.get_context("fork")
forking = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")  # what it warns of is what is tested


@forking
def test_a_forked_child_publishes_while_its_parent_does_too(app: Celery) -> None:
    # Given a process that publishes all the time, in another thread than the one that forks
    published = 0
    stop = threading.Event()
    turn = threading.Lock()  # Celery's app takes locks at every use, which a fork in between would copy as held

    def publish_until_stopped() -> None:
        nonlocal published
        while not stop.is_set():
            with turn:
                app.send_task("record", ["parent"])
            published += 1

    publisher = threading.Thread(target=publish_until_stopped)
    publisher.start()
    # When it forks, and its children publish
    try:
        for _ in range(20):
            child = forks.Process(target=app.send_task, args=("record", ["child"]))
            with turn:
                child.start()
            child.join(20)
            assert child.exitcode == 0
    finally:
        stop.set()
        publisher.join()
    # Then no message is lost or doubled
    assert count_ready(app) == published + 20


@forking
def test_a_forked_child_neither_holds_nor_gives_back_its_parents_messages(app: Celery) -> None:
    with app.connection_for_write() as connection:
        connection.SimpleQueue("jobs").put("held")
    connection = app.connection_for_read()
    message = connection.SimpleQueue("jobs").get(timeout=5)

    def use_the_broker() -> None:
        connection.close()
        with app.connection_for_read() as own:
            drain(own)  # looks for the dead
            assert own.default_channel.basic_get("jobs") is None

    child = forks.Process(target=use_the_broker)
    child.start()
    child.join(20)
    assert child.exitcode == 0
    message.ack()
    connection.close()
    assert count_ready(app, "jobs") == 0


@forking
def test_a_temporary_queue_ends_with_the_process_that_consumes_from_it(app: Celery) -> None:
    exchange = Exchange("news", type="fanout")

    def consume_forever() -> None:
        with app.connection_for_read() as connection:
            queue = Queue("news-of-the-child", exchange, auto_delete=True)
            with connection.Consumer(queue, callbacks=[lambda body, message: message.ack()]):
                while True:
                    drain(connection)

    def is_bound() -> bool:
        drain(connection)
        return bool(connection.default_channel.get_table("news"))

    child = forks.Process(target=consume_forever)
    child.start()
    with app.connection_for_read() as connection:
        wait_until(is_bound, "the child's queue is bound")
        child.kill()
        child.join()
        wait_until(lambda: not is_bound(), "the child's queue is gone")


# -- refusals


def test_the_app_is_embedded_after_configure_and_stays_so_when_it_is_configured_later(tmp_path: Path) -> None:
    app = Celery("later", set_as_current=False)
    assert not embedded.is_embedded(app)
    embedded.configure(app, tmp_path)
    embedded.configure(app, tmp_path)
    assert embedded.is_embedded(app)
    app.config_from_object({"CELERY_TASK_ACKS_LATE": True}, namespace="CELERY")
    assert app.conf.task_acks_late
    assert embedded.is_embedded(app)
    assert (tmp_path / embedded.FILE_NAME).name in app.connection().as_uri()


def test_a_broker_that_is_configured_later_wins_over_the_embedded_one(tmp_path: Path) -> None:
    app = Celery("later", set_as_current=False)
    embedded.configure(app, tmp_path)
    app.config_from_object({"broker_url": "memory://"})
    assert not embedded.is_embedded(app)
    assert app.conf.broker_url == "memory://"


@pytest.mark.parametrize(
    "settings",
    [
        {"broker_url": "redis://user:secret@example/0"},
        {"broker_read_url": "amqp://user:secret@example//"},
        {"broker_write_url": "amqp://user:secret@example//"},
        {"broker_url": "dagabaaz:///some/other/place/broker.sqlite3"},
    ],
)
def test_an_app_that_has_a_broker_is_refused(tmp_path: Path, settings: dict[str, str]) -> None:
    app = Celery("taken", set_as_current=False)
    app.conf.update(settings)
    with pytest.raises(ConfigurationError, match="already has a broker") as refused:
        embedded.configure(app, tmp_path / "broker")
    assert "secret" not in str(refused.value)
    assert not (tmp_path / "broker").exists()


def test_a_broker_in_the_environment_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CELERY_BROKER_URL", "memory://")
    with pytest.raises(ConfigurationError, match="CELERY_BROKER_URL"):
        embedded.configure(Celery("taken", set_as_current=False), tmp_path)


@pytest.mark.parametrize("directory", ["a file", "a file/below", "/proc/self"])
def test_a_directory_that_cannot_be_written_to_is_refused(tmp_path: Path, directory: str) -> None:
    (tmp_path / "a file").write_text("")
    app = Celery("misplaced", set_as_current=False)
    with pytest.raises(ConfigurationError, match="cannot write to its directory"):
        embedded.configure(app, tmp_path / directory)
    assert not embedded.is_embedded(app)


def test_a_file_that_is_not_a_database_is_refused(app: Celery, tmp_path: Path) -> None:
    (tmp_path / embedded.FILE_NAME).write_text("a letter to a friend, " * 100)
    with pytest.raises(ConfigurationError, match="cannot be the embedded broker's file"):
        app.send_task("record", ["never sent"])
    worker = Worker(tmp_path, "misled", "solo")
    assert worker.process.wait(20) != 0
    assert "cannot be the embedded broker's file" in worker.log.read_text()


def test_a_file_of_another_release_is_refused(app: Celery, tmp_path: Path) -> None:
    database = sqlite3.connect(tmp_path / embedded.FILE_NAME)
    database.execute("PRAGMA user_version = 99")
    database.close()
    with pytest.raises(ConfigurationError, match="in format 99"):
        app.send_task("record", ["never sent"])

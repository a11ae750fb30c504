"""A RabbitMQ that is there, and refuses one queue, or confirms more than what we sent."""

import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from kombu import Connection, Queue
from kombu.exceptions import OperationalError

from dagabaaz_celery.app import Dagabaaz
from dagabaaz_celery.testing import embedded_worker
from dagabaaz_celery.worker import publish
from tests import services
from tests.integration.celery_support import node, start, statuses, wait_until


class Site:
    """An app on RabbitMQ with queues of its own: ``good``, and ``bad``, which a test spoils."""

    def __init__(self, directory: Path) -> None:
        name = uuid.uuid4().hex[:8]
        self.good, self.bad = f"good-{name}", f"bad-{name}"
        self._directory = directory
        self._dags: list[Dagabaaz] = []
        self.connection = Connection(services.rabbitmq_url())
        self.channel: Any = self.connection.channel()

    def make_dag(self, query: str = "", **conf: Any) -> Dagabaaz:
        app = Celery("faults", broker=services.rabbitmq_url() + query, set_as_current=False)
        app.conf.update(
            {
                "task_default_queue": self.good,
                "worker_hijack_root_logger": False,
                "dagabaaz_store_url": f"sqlite:///{self._directory / 'runs'}",
                "dagabaaz_sweep_interval": 0.2,
                **conf,
            }
        )
        dag = Dagabaaz(app)
        self._dags.append(dag)

        @dag.plugin
        def count() -> list[int]:
            return [1, 2, 3]

        @dag.plugin
        def double(value: int) -> int:
            return value * 2

        return dag

    def close(self) -> None:
        for dag in self._dags:
            dag.close()
            dag.app.close()
        self.connection.release()
        with Connection(services.rabbitmq_url()) as connection:
            for queue in (self.good, self.bad):
                connection.default_channel.queue_delete(queue)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    site = Site(tmp_path)
    yield site
    site.close()


@pytest.fixture(params=[{}, {"confirm_publish": True}], ids=["our confirms", "the app's own confirms"])
def options(request: pytest.FixtureRequest) -> dict[str, Any]:
    found: dict[str, Any] = request.param
    return found


def on(queue: str, slug: str) -> Any:
    """A node ``slug`` that counts, sent to a queue."""
    return node(slug, plugin="count", options={"queue": queue})


def test_a_batch_is_confirmed_together_with_the_events_that_tell_of_it(site: Site, options: dict[str, Any]):
    dag = site.make_dag(task_send_sent_event=True, broker_transport_options=options)

    runs = [start(dag, *(on(site.good, f"n{i}") for i in range(size))) for size in (4, 1, 3)]

    assert [statuses(run) for run in runs] == [["queued"] * 4, ["queued"], ["queued"] * 3]
    with dag._runtime.broker.link() as link:
        assert link.count_messages(site.good) == 8


def test_small_messages_are_written_together(site: Site, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch):
    dag = site.make_dag(broker_transport_options=options)
    start(dag, on(site.good, "first"))  # what comes to the queue for the first time over a link is sent by itself
    with dag._runtime.broker.link() as link:
        transport = link.connection.connection.transport
    writes: list[int] = []
    write = transport.write
    monkeypatch.setattr(transport, "write", lambda frames: writes.append(len(frames)) or write(frames))

    run = start(dag, *(on(site.good, f"n{i}") for i in range(100)))

    assert statuses(run) == ["queued"] * 100
    assert len(writes) < 10
    with dag._runtime.broker.link() as link:
        assert link.count_messages(site.good) == 101


def test_a_message_that_takes_several_frames_arrives_whole_among_small_ones(site: Site, options: dict[str, Any]):
    dag = site.make_dag(broker_transport_options=options, dagabaaz_max_input_bytes=1_000_000)

    @dag.app.task(shared=False, ignore_result=True)
    def plain(text):
        """Its input travels in its message."""

    given = {"text": "ä" * 200_000}
    nodes = [node(f"plain{i}", plugin=plain.name) for i in range(2)]
    run = start(dag, on(site.good, "a"), nodes[0], on(site.good, "b"), nodes[1], on(site.good, "c"), input=given)

    assert statuses(run) == ["queued"] * 5
    messages = [Queue(site.good, channel=site.channel).get(no_ack=True) for _ in range(5)]
    assert [message.payload[1] for message in messages] == [{}, given, {}, given, {}]


def spoil_by_arguments(site: Site) -> None:
    """A queue that was declared by somebody else with other arguments: 406."""
    site.channel.queue_declare(site.bad, durable=True, auto_delete=False, arguments={"x-max-length": 7})


def spoil_by_lock(site: Site) -> None:
    """A queue that belongs to another connection: 405."""
    site.channel.queue_declare(site.bad, exclusive=True)


@pytest.mark.parametrize(("spoil", "word"), [(spoil_by_arguments, "x-max-length"), (spoil_by_lock, "LOCKED")])
def test_a_queue_that_refuses_holds_up_nothing_else(
    site: Site,
    options: dict[str, Any],
    spoil: Any,
    word: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(publish, "_REFUSED_PAUSE", 0.5)
    spoil(site)
    dag = site.make_dag(broker_transport_options=options)

    # Given a run with tasks for a queue that refuses them, in the midst of others
    run = start(
        dag,
        *(on(site.good, f"a{i}") for i in range(3)),
        *(on(site.bad, f"b{i}") for i in range(5)),
        *(on(site.good, f"c{i}") for i in range(3)),
    )
    # Then the others are sent, once, and the log says what the broker said of which queue
    assert {task.node: task.status for task in run.tasks()} == {
        **{f"{letter}{i}": "queued" for letter in "ac" for i in range(3)},
        **{f"b{i}": "pending" for i in range(5)},
    }
    with dag._runtime.broker.link() as link:
        assert link.count_messages(site.good) == 6
    assert site.bad in caplog.text
    assert word in caplog.text
    assert "the broker is away" not in caplog.text

    # And what starts later is sent, while a sweep does not try what was refused over and over
    assert statuses(start(dag, on(site.good, "later"))) == ["queued"]
    assert not dag._runtime.publish_due(10)

    # When somebody has mended the queue, then it takes them
    site.connection.close()
    with dag.app.connection_for_write() as connection:
        connection.channel().queue_delete(site.bad)
    wait_until(lambda: dag._runtime.publish_due(2) or set(statuses(run)) == {"queued"}, "it takes them")


def test_an_exchange_that_is_gone_holds_up_nothing_else(
    site: Site, options: dict[str, Any], caplog: pytest.LogCaptureFixture
):
    """RabbitMQ closes the channel for it some time after the message was sent."""
    dag = site.make_dag(broker_transport_options=options)
    nowhere = {"exchange": "nowhere-at-all", "routing_key": "x"}

    run = start(
        dag,
        on(site.good, "a"),
        *(node(f"b{i}", plugin="count", options=nowhere) for i in range(3)),
        on(site.good, "c"),
    )

    assert {task.node: task.status for task in run.tasks()} == {
        "a": "queued",
        **{f"b{i}": "pending" for i in range(3)},
        "c": "queued",
    }
    assert "no exchange 'nowhere-at-all'" in caplog.text
    with dag._runtime.broker.link() as link:
        assert link.count_messages(site.good) == 2


def test_a_full_queue_holds_up_nothing_else_and_takes_the_rest_when_it_has_room(
    site: Site, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(publish, "_REFUSED_PAUSE", 0.5)
    full = {"x-max-length": 2, "x-overflow": "reject-publish"}
    site.channel.queue_declare(site.bad, durable=True, auto_delete=False, arguments=full)
    dag = site.make_dag(broker_transport_options=options)
    exchange = {"exchange": "amq.direct", "routing_key": site.bad}
    site.channel.queue_bind(site.bad, "amq.direct", site.bad)

    run = start(dag, *(node(f"b{i}", plugin="count", options=exchange) for i in range(4)), on(site.good, "c"))
    assert statuses(run).count("pending") == 2
    assert statuses(run, "c") == ["queued"]

    site.channel.queue_purge(site.bad)
    wait_until(lambda: dag._runtime.publish_due(10) or statuses(run) == ["queued"] * 5, "there is room")


@pytest.mark.parametrize("heartbeat", [2, 60])
def test_links_have_no_heartbeat_that_nobody_would_send(site: Site, heartbeat: int):
    dag = site.make_dag(f"?heartbeat={heartbeat}")

    with dag._runtime.broker.link() as link:
        assert link.connection.connection.heartbeat == 0
        connected = link.connection.connection
    with dag._runtime.broker.link() as link:
        assert link.connection.connection is connected


def test_a_queue_that_cannot_be_asked_is_not_taken_for_an_empty_one(site: Site):
    spoil_by_lock(site)
    dag = site.make_dag()

    with dag._runtime.broker.link() as link:
        assert link.count_messages(site.good) == 0
    with pytest.raises(OperationalError, match=site.bad), dag._runtime.broker.link() as link:
        link.count_messages(site.bad)


def test_a_run_completes_with_events_and_a_heartbeat(site: Site):
    dag = site.make_dag("?heartbeat=4", task_send_sent_event=True)

    with embedded_worker(dag.app, pool="threads"):
        run = start(dag, node("count"), node("double", "count"))
        assert run.wait(60) == "completed"
    assert run.result("double") == [2, 4, 6]

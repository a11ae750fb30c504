"""Which messages are taken for lost: a real store, and a broker whose messages the test takes away, look by look."""

import contextlib
import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
from kombu.exceptions import OperationalError

from dagabaaz_celery.app import Dagabaaz
from dagabaaz_celery.run import Run
from dagabaaz_celery.stores.sql.owed import WorkerRow
from dagabaaz_celery.stores.sql.records import Dispatch
from dagabaaz_celery.worker import resend
from dagabaaz_celery.worker.broker import Broker
from dagabaaz_celery.worker.resend import LostMessages
from tests import services
from tests.integration.celery_support import node, start, statuses, wait_until

#: Seconds until a message may be taken for lost.
LEASE = 0.1


class Watcher:
    """A worker that looks for lost messages; what is held where, and who has reported, is up to the test."""

    def __init__(self, dag: Dagabaaz) -> None:
        self.dag = dag
        self.queue: str = dag.app.conf.task_default_queue
        self.beats = itertools.count(1)
        runtime = dag._runtime
        self._lost = LostMessages(runtime.broker, runtime.store, runtime.publisher)
        self._names = itertools.count()

    def start(self, **options: Any) -> str:
        """Start a run of one task; the attempt's id."""
        run: Run = start(self.dag, node("a", plugin="work"), name=f"run{next(self._names)}", options=options)
        assert statuses(run) == ["queued"]
        return run.tasks()[0].attempt_id

    def lose_first(self) -> None:
        """Take the next message away, as if the broker had lost it or given it to somebody."""
        with self.dag.app.connection_for_write() as connection:
            message = connection.default_channel.basic_get(self.queue, no_ack=True)
            assert message is not None

    def send_foreign(self) -> None:
        """Put a message of another task behind what is in the queue."""
        self.dag.app.send_task("foreign", queue=self.queue)

    def look(self, holding: list[str], *silent: list[str]) -> None:
        """One look, while this worker holds some attempts, and others do that have nothing new to tell."""
        workers = [self._report("w1", next(self.beats), holding)]
        workers += [self._report(f"silent{n}", 7, held) for n, held in enumerate(silent)]
        self._lost.resend(workers, "w1")

    def look_long(self, holding: list[str], *silent: list[str]) -> None:
        """Look again and again for several leases."""
        began = time.monotonic()
        while time.monotonic() < began + 5 * LEASE:
            self.look(holding, *silent)

    def look_until(self, is_true: Callable[[], Any], holding: list[str], *silent: list[str]) -> None:
        """Look again and again."""

        def once_more() -> Any:
            self.look(holding, *silent)
            return is_true()

        wait_until(once_more, "a look has found it")

    def resent(self) -> set[str]:
        """Attempts that were sent again, once or often."""
        return set(self.resends())

    def resends(self) -> dict[str, int]:
        """How often each was."""
        task = self.dag._runtime.store.tables.task
        with self.dag._runtime.store.read() as connection:
            rows = connection.execute(task.select().where(task.c.resends > 0))
            return {row.attempt_id: row.resends for row in rows}

    def sent_since(self, time: int) -> set[str]:
        """Attempts that are known to be sent after a time of the database's clock."""
        task = self.dag._runtime.store.tables.task
        with self.dag._runtime.store.read() as connection:
            return {row.attempt_id for row in connection.execute(task.select().where(task.c.queued_at > time))}

    def _report(self, name: str, beat: int, holding: list[str]) -> WorkerRow:
        return WorkerRow(name, "here", 1, "1", beat, [self.queue], ["work"], holding)


@pytest.fixture
def watcher(new_dag: Callable[..., Dagabaaz], monkeypatch: pytest.MonkeyPatch) -> Watcher:
    """Leases and patience of a tenth of a second."""
    monkeypatch.setattr(resend, "_MARGIN", 0)
    dag = new_dag(dagabaaz_resend_after=LEASE)

    @dag.plugin(name="work")
    def work() -> None:
        """Never runs: there is no worker."""

    return Watcher(dag)


def test_what_was_passed_by_a_later_message_is_sent_again_also_beside_foreign_ones(watcher: Watcher):
    lost, given_out, waiting = watcher.start(), watcher.start(), watcher.start()
    watcher.lose_first()
    watcher.lose_first()
    watcher.send_foreign()

    watcher.look_until(watcher.resent, [given_out])

    assert watcher.resent() == {lost}
    assert waiting not in watcher.resent()


def test_a_backlog_is_not_sent_again_however_long_it_waits(watcher: Watcher):
    attempts = [watcher.start() for _ in range(5)]
    watcher.lose_first()
    watcher.lose_first()

    watcher.look_long(attempts[:2])

    assert watcher.resent() == set()
    # and a look would have found a loss
    watcher.lose_first()
    watcher.lose_first()
    watcher.look_until(lambda: watcher.resent() == {*attempts[:3]}, [attempts[3]])


def test_what_a_worker_holds_is_not_sent_again(watcher: Watcher):
    held, given_out = watcher.start(), watcher.start()
    watcher.lose_first()
    watcher.lose_first()

    watcher.look_long([held, given_out])

    assert watcher.resent() == set()


def test_a_worker_that_has_not_reported_since_may_hold_what_is_missing(watcher: Watcher):
    lost = watcher.start()
    watcher.lose_first()

    watcher.look_long([], [])
    assert watcher.resent() == set()

    watcher.look_until(watcher.resent, [])
    assert watcher.resent() == {lost}


def test_a_worker_that_was_taken_for_dead_and_came_back_counts_its_reports_anew(watcher: Watcher):
    lost = watcher.start()
    watcher.lose_first()
    watcher.beats = itertools.count(5000)
    watcher.look_long([], [])

    watcher.beats = itertools.count()
    watcher.look_until(watcher.resent, [])

    assert watcher.resent() == {lost}


def test_a_message_of_another_priority_passes_nothing(watcher: Watcher):
    urgent, patient = watcher.start(priority=9), watcher.start(priority=1)
    watcher.lose_first()
    watcher.send_foreign()

    watcher.look_long([urgent])
    assert watcher.resent() == set()

    later = watcher.start(priority=1)
    watcher.look_until(watcher.resent, [later])
    assert watcher.resent() == {patient}


def test_everything_is_sent_again_when_the_queue_is_gone(watcher: Watcher, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(resend, "_BATCH", 3)
    attempts = [watcher.start() for _ in range(8)]
    watcher.dag.app.control.purge()

    watcher.look_until(lambda: watcher.resent() == {*attempts[1:]}, attempts[:1])

    with watcher.dag._runtime.broker.link() as link:
        assert link.count_messages(watcher.queue) == 7


def test_messages_of_a_redis_that_is_shared_under_a_prefix_are_counted(new_dag: Callable[..., Dagabaaz]):
    """Where none were found, every backlog would look as if it were lost."""
    with services.open_redis_broker() as broker:
        dag = new_dag(**broker.settings)
        queue = dag.app.conf.task_default_queue
        with dag._runtime.broker.link() as link:
            before = link.count_messages(queue)
            for _ in range(3):
                dag.app.send_task("anything")
            after = link.count_messages(queue)

    assert (before, after) == (0, 3)


def test_what_was_sent_again_waits_behind_the_backlog_without_being_sent_once_more(watcher: Watcher):
    lost, given_out = watcher.start(), watcher.start()
    watcher.lose_first()
    watcher.lose_first()
    backlog = [watcher.start() for _ in range(3)]
    watcher.look_until(watcher.resent, [given_out])

    watcher.look_long([given_out, *backlog[:1]])

    assert watcher.resends() == {lost: 1}


def test_a_loss_is_found_while_others_use_links_to_the_broker(watcher: Watcher):
    broker = watcher.dag._runtime.broker
    lost = watcher.start()
    watcher.lose_first()
    with broker.link(), broker.link():
        """Two are open from now on, and the one that was used last is lent first."""

    def look_beside_a_publisher() -> set[str]:
        with broker.link():
            watcher.look([])
        watcher.look([])
        return watcher.resent()

    wait_until(look_beside_a_publisher, "a look has found it")

    assert watcher.resent() == {lost}


def lends_link(broker: Broker) -> bool:
    try:
        with broker.link():
            return True
    except OperationalError:
        return False


def test_what_was_seen_before_the_broker_was_away_says_nothing_afterwards(watcher: Watcher):
    returned, given_out = watcher.start(), watcher.start()
    watcher.lose_first()
    watcher.lose_first()
    watcher.send_foreign()
    watcher.look_long([given_out], [])
    with contextlib.suppress(OperationalError), watcher.dag._runtime.broker.link():
        raise OperationalError("the broker went away, and put back what a worker had taken")
    # It is not asked again for as long as that took, which on a busy machine is longer than it takes to come here
    wait_until(lambda: lends_link(watcher.dag._runtime.broker), "the broker is asked again")

    watcher.look_long([given_out])

    assert returned not in watcher.resent()


def test_a_broker_that_goes_away_while_messages_are_sent_again_gets_the_rest_later(
    watcher: Watcher, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(resend, "_SENT_AT_ONCE", 2)
    attempts = [watcher.start() for _ in range(6)]
    watcher.dag.app.control.purge()
    publisher = watcher.dag._runtime.publisher
    publish = publisher.publish
    tries: list[set[str]] = []

    def publish_until_it_goes_away(dispatches: Sequence[Dispatch]) -> bool:
        tries.append({dispatch.attempt_id for dispatch in dispatches})
        return len(tries) != 2 and publish(dispatches)

    monkeypatch.setattr(publisher, "publish", publish_until_it_goes_away)
    store = watcher.dag._runtime.store
    before = store.read_clock()
    wait_until(lambda: store.read_clock() > before + 2e6 * LEASE, "every lease has ended: all are found at once")

    watcher.look_until(lambda: len(tries) > 1, [])

    with watcher.dag._runtime.broker.link() as link:
        assert link.count_messages(watcher.queue) == len(tries[0])
    assert watcher.sent_since(before) == tries[0]
    for _ in tries[0]:
        watcher.lose_first()  # a worker takes those that were sent
    watcher.look_until(lambda: watcher.sent_since(before) == {*attempts}, sorted(tries[0]))


def test_a_task_that_may_have_been_sent_twice_passes_nothing(watcher: Watcher):
    runtime = watcher.dag._runtime
    first = watcher.start()
    backlog = [watcher.start() for _ in range(3)]
    # Given that the first one was sent without being marked: its publisher died
    task = runtime.store.tables.task
    with runtime.store.database.write() as connection:
        unmarked = task.update().where(task.c.attempt_id == first)
        connection.execute(unmarked.values(status="pending", queue=None, queued_at=None, lease_until=1))
    # and that a sweep sent it again, behind the others
    runtime.publish_due(10)
    watcher.lose_first()

    watcher.look_long([first])

    assert not watcher.resent() & {*backlog}


def test_when_a_task_was_sent_does_not_depend_on_the_settings_of_who_asks(
    watcher: Watcher, monkeypatch: pytest.MonkeyPatch
):
    store = watcher.dag._runtime.store
    before = store.read_clock()
    attempt = watcher.start()
    monkeypatch.setattr(store, "policy", replace(store.policy, resend_after=3600.0))

    assert store.find_sent_before(watcher.queue, before, 10, within=7200) == []
    ((found, sent_at),) = store.find_sent_before(watcher.queue, store.read_clock() + 1, 10, within=7200)
    assert (found.attempt_id, sent_at > before) == (attempt, True)

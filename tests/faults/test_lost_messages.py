"""Brokers that take messages and lose them, and brokers that keep them for long: only what was lost is sent again."""

import time
from collections.abc import Callable

import pytest
from pytest_celery import CeleryTestWorker
from redis import Redis
from sqlalchemy import func, select

from dagabaaz_celery.app import Dagabaaz
from dagabaaz_celery.stores.sql.store import SqlStore
from tests.faults.app_under_test import Journal
from tests.faults.catalogue import IS_FULL
from tests.faults.nodes import ServerContainer
from tests.processes import wait_until

PATIENCE = 600.0
#: As they are where nobody says otherwise; the short form has others, to be quick.
DEFAULTS = {"dagabaaz_sweep_interval": 5.0, "dagabaaz_dead_after": 20.0, "dagabaaz_resend_after": 30.0}
pytestmark = pytest.mark.parametrize("more_conf", [DEFAULTS if IS_FULL else {}], ids=[""])


class Look:
    """What the store says of a run's messages."""

    def __init__(self, store: SqlStore) -> None:
        self._store = store

    def count_resends(self) -> int:
        """How often a message was sent again."""
        return self._ask(select(func.coalesce(func.sum(self._store.tables.task.c.resends), 0)))

    def count_waiting(self) -> int:
        """Tasks that were sent and not begun."""
        return self._ask(select(func.count()).where(self._store.tables.task.c.status == "queued"))

    def _ask(self, question: object) -> int:
        with self._store.read() as connection:
            return int(connection.execute(question).scalar_one())  # type: ignore[call-overload]


@pytest.fixture
def look(opened: SqlStore) -> Look:
    """A look into the store."""
    return Look(opened)


def lose_everything(dag: Dagabaaz) -> None:
    """FLUSHALL, or a purge of the queue."""
    if dag.app.conf.broker_url.startswith("redis"):
        with Redis.from_url(dag.app.conf.broker_url) as client:
            client.flushall()
    else:
        with dag.app.connection_for_write() as connection:
            connection.default_channel.queue_purge(dag.app.conf.task_default_queue)


@pytest.mark.fault(6)
@pytest.mark.parametrize("restart", [False, True], ids=["emptied", "restarted"])
def test_a_run_survives_a_broker_that_loses_its_messages(
    dag: Dagabaaz,
    celery_broker: object,
    journal: Journal,
    look: Look,
    start_worker: Callable[..., CeleryTestWorker],
    scale: Callable[[int, int], int],
    record: Callable[[str, float, str], None],
    restart: bool,
) -> None:
    count = scale(30, 300)
    # Given a run in its middle
    start_worker().ready()
    run = dag.start("pairs", {"count": count, "seconds": 0.2})
    wait_until(lambda: len(journal.count_bodies()) > 5, "bodies run", timeout=60)
    # When the broker loses what it had, or is restarted
    container = celery_broker.container  # type: ignore[attr-defined]
    assert isinstance(container, ServerContainer)
    if restart:
        container.server.kill()
        container.server.start()
        container.server.wait_ready()
    else:
        lose_everything(dag)
    lost_at = time.monotonic()
    # Then the run completes, and nothing ran twice
    assert run.wait(PATIENCE) == "completed", run.error
    assert run.result("total") == 2 * sum(range(count))
    assert set(journal.count_bodies().values()) == {1}
    record("messages sent again", look.count_resends(), "")
    record("run complete after the loss", time.monotonic() - lost_at, "s")


@pytest.mark.fault(6)
@pytest.mark.timeout(1800)
def test_of_a_long_backlog_nothing_is_sent_again_and_everything_when_it_is_lost(
    dag: Dagabaaz,
    journal: Journal,
    look: Look,
    start_worker: Callable[..., CeleryTestWorker],
    scale: Callable[[int, int], int],
    record: Callable[[str, float, str], None],
) -> None:
    each = scale(150, 10_000)
    # Given one slow worker, before which many tasks wait far longer than a lost message would
    start_worker("-c", "1").ready()
    run = dag.start("pairs", {"count": each, "seconds": 0.1})
    wait_until(lambda: look.count_waiting() > 2 * each - 50, "the backlog is there", timeout=600)
    patient = time.monotonic() + 3 * dag.settings.resend_after
    wait_until(lambda: time.monotonic() > patient, "it has waited", timeout=600)
    # Then nothing of it was sent again
    assert look.count_resends() == 0
    assert look.count_waiting() > each
    # When the broker loses it
    lose_everything(dag)
    lost_at = time.monotonic()
    lost = look.count_waiting()
    # Then all of it is sent again
    wait_until(lambda: look.count_resends() >= 0.9 * lost, "it is sent again", timeout=300)
    record(f"nine tenths of {2 * each:,} lost messages sent again after", time.monotonic() - lost_at, "s")
    patient = time.monotonic() + 3 * dag.settings.resend_after
    wait_until(lambda: time.monotonic() > patient or run.status != "running", "it has waited", timeout=600)
    # and once only
    assert look.count_resends() <= lost
    if IS_FULL:
        run.cancel()  # the rest of so many takes an hour
    else:
        assert run.wait(PATIENCE) == "completed", run.error
    assert set(journal.count_bodies().values()) == {1}

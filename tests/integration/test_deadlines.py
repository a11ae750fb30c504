"""A body that takes longer than its node allows, on real workers: its run fails, and nothing is undone beside it."""

from pathlib import Path

from dagabaaz_celery.models import DagNode
from dagabaaz_celery.pipeline import Pipeline
from tests.integration.celery_support import wait_until
from tests.integration.deadline_plugins import declare_deadlines
from tests.integration.worker_processes import open_site

SAGA = Pipeline("saga", nodes=[DagNode(slug="charge", plugin="charge", rollback="refund", timeout=0.5)])


def read(journal: Path) -> list[str]:
    return journal.read_text().split()


def test_a_thread_cannot_be_stopped_so_that_its_body_is_waited_for_before_it_is_undone(tmp_path: Path):
    journal = tmp_path / "journal"
    with open_site(declare_deadlines) as site:
        site.start_worker(pool="threads")
        run = site.dag.start(SAGA, {"journal": str(journal)})
        wait_until(lambda: run.status == "failed", "its time is over", timeout=60)
        store = site.dag._runtime.store
        beats = store.list_workers()[0].beat

        wait_until(lambda: store.list_workers()[0].beat > beats + 10, "many sweeps have passed")
        assert (read(journal), run.rollback_status) == (["begun"], "running")
        Path(f"{journal}.gate").touch()

        run.wait(60, rollback=True)
        assert (read(journal), run.rollback_status) == (["begun", "charged", "refunded"], "done")
        assert run.error is not None
        assert run.error.type == "DeadlineExceeded"


def test_a_process_is_killed_before_its_body_is_undone(tmp_path: Path):
    journal = tmp_path / "journal"
    with open_site(declare_deadlines) as site:
        site.start_worker()
        run = site.dag.start(SAGA, {"journal": str(journal)})

        run.wait(60, rollback=True)

        assert (read(journal), run.rollback_status) == (["begun", "told", "refunded"], "done")
        assert run.error is not None
        assert run.error.type == "DeadlineExceeded"

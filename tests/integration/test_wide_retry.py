"""A wide run on real workers is retried: what completed does not run again, counted by bodies."""

import os
from collections import Counter
from pathlib import Path

import pytest

from dagabaaz_celery.constants import FanMode
from dagabaaz_celery.models import DagNode
from dagabaaz_celery.pipeline import Pipeline
from dagabaaz_celery.testing import assert_sound
from tests import services
from tests.integration.wide_plugins import declare_wide
from tests.integration.worker_processes import open_site

#: With the source and the end, 2,000 tasks on each store; 500 on SQLite where time is short.
IS_FULL = os.environ.get("DAGABAAZ_FAULTS") == "full"
WIDTH = 1998 if IS_FULL else 498
SERVERS = {"postgresql": services.postgres_url, "mariadb": services.mysql_url} if IS_FULL else {}
STORES = {"sqlite": None, **SERVERS}


def read_bodies(journal: Path) -> Counter[tuple[str, str]]:
    """How many bodies each task had: (slug, task id)."""
    return Counter((slug, task_id) for slug, task_id in map(str.split, journal.read_text().splitlines()))


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", STORES)
def test_a_retry_of_a_wide_run_runs_no_completed_body_again(name: str, tmp_path: Path):
    url = STORES[name]
    settings = (
        {} if url is None else {"dagabaaz_store_url": url(), "dagabaaz_table_prefix": f"r{tmp_path.stat().st_ino}_"}
    )
    journal, bad = tmp_path / "journal", tmp_path / "journal.bad"
    nodes = [
        DagNode(slug="source", plugin="numbers"),
        DagNode(slug="work", plugin="work", depends_on=["source"]),
        DagNode(slug="end", plugin="end", depends_on=["work"], fan_mode=FanMode.AGGREGATE),
    ]
    with open_site(declare_wide, **settings) as site:
        site.start_worker()
        # Given a run of which one task failed
        bad.write_text(str(WIDTH // 2))
        run = site.dag.start(Pipeline("wide", nodes=nodes), {"journal": str(journal), "count": WIDTH})
        assert run.wait(120) == "failed"
        completed = {task.id for task in run.tasks() if task.status == "completed"}
        assert WIDTH // 4 < len(completed) < WIDTH  # those beside it need not have ended
        # When it is retried
        bad.unlink()
        run.retry()
        assert run.wait(120) == "completed", run.error
        # Then no body that had completed has run again, and every other has run
        bodies = read_bodies(journal)
        assert {task_id for (_, task_id), count in bodies.items() if count > 1}.isdisjoint(completed)
        assert len(bodies) == WIDTH + 2
        assert run.result("end") == sum(range(WIDTH))
        # When it is retried from a node although it completed, exactly that and what is behind it runs
        run.retry(from_node="work")
        assert run.wait(120) == "completed", run.error
        again = read_bodies(journal) - bodies
        assert Counter(slug for slug, _ in again.elements()) == {"work": WIDTH, "end": 1}
        assert_sound(site.dag)

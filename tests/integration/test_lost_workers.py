"""Processes that die under their tasks: pool children, whole workers, and what is made of it."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dagabaaz_celery.models import ConfigSource
from dagabaaz_celery.run import Run
from tests.integration.celery_support import node, start, statuses, wait_until
from tests.integration.shop_plugins import declare_all
from tests.integration.worker_processes import Site, open_site

PATIENCE = 40.0


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    return tmp_path / "journal"


@pytest.fixture
def site() -> Iterator[Site]:
    """A site whose workers the test starts and kills."""
    with open_site(declare_all, dagabaaz_resend_after=1.0) as site:
        yield site


def read(journal: Path) -> list[str]:
    return journal.read_text().splitlines() if journal.exists() else []


def callbacks(site: Site) -> list[str]:
    return read(Path(site.settings["dagabaaz_files_dir"]) / "callbacks")


def complete(run: Run) -> Run:
    assert run.wait(PATIENCE) == "completed", run.error
    return run


# -- a child of the pool


@pytest.mark.parametrize("how", ["kill", "_exit", "exit"])
def test_a_task_whose_process_died_is_dispatched_again_and_completes(prefork: Site, journal: Path, how: str):
    run = complete(
        start(
            prefork.dag,
            node("mortal"),
            node("fine", "mortal"),
            input={"journal": str(journal), "deaths": 1, "how": how},
        )
    )
    assert read(journal) == ["attempt 1", "attempt 2"]
    assert (run.result("mortal"), run.result("fine")) == (2, ["fine"])
    task = run.tasks()[0]
    assert (task.attempt, task.recoveries, task.retries) == (2, 1, 0)


def test_a_task_that_keeps_ending_its_process_crashes_its_run(prefork: Site, journal: Path):
    run = start(prefork.dag, node("mortal"), input={"journal": str(journal), "deaths": 99, "how": "kill"})
    assert run.wait(PATIENCE) == "crashed"
    assert read(journal) == ["attempt 1", "attempt 2", "attempt 3", "attempt 4"]
    assert statuses(run) == ["crashed"]
    assert run.error is not None
    assert (run.error.type, run.error.node) == ("WorkerLost", "mortal")
    assert "dagabaaz_max_recoveries is 3" in run.error.message
    wait_until(lambda: f"crashed {run.id}" in callbacks(prefork), "the callback was called")
    # a crashed run may be retried; it gets as many recoveries as any other
    run.retry()
    assert run.wait(PATIENCE) == "crashed"
    assert len(read(journal)) == 8


def test_terminating_a_running_task_in_celery_cancels_its_run(prefork: Site, journal: Path):
    run = start(prefork.dag, node("hold"), node("next", "hold", plugin="fine"), input={"journal": str(journal)})
    wait_until(lambda: read(journal), "the body runs")
    prefork.dag.app.control.revoke(run.tasks()[0].attempt_id, terminate=True)
    assert run.wait(PATIENCE) == "cancelled"
    assert run.error is not None
    assert (run.error.type, run.error.node) == ("TaskRevoked", "hold")
    assert statuses(run) == ["cancelled"]
    # the attempt that was revoked stays so; a retry makes another
    Path(f"{journal}-release").touch()
    run.retry()
    complete(run)
    assert run.tasks()[0].attempt == 2


@pytest.mark.parametrize(
    ("plugin", "fields"), [("once_only", {}), ("early", {}), ("mortal", {"on_lost": "crash"}), ("plain-early", {})]
)
def test_a_task_that_may_not_run_twice_crashes_its_run(
    prefork: Site, journal: Path, plugin: str, fields: dict[str, Any]
):
    given = {"journal": str(journal), "deaths": 99, "how": "kill"}
    run = start(prefork.dag, node("doomed", plugin=plugin, **fields), input=given)
    assert run.wait(PATIENCE) == "crashed"
    assert len(read(journal)) == 1
    assert run.error is not None
    assert 'on_lost="crash"' in run.error.message


def test_a_plain_task_that_celery_runs_again_itself_completes(prefork: Site, journal: Path):
    run = complete(start(prefork.dag, node("plain", plugin="plain-late"), input={"journal": str(journal)}))
    assert len(read(journal)) >= 2
    assert run.result("plain") == 2


def test_a_run_with_one_killed_task_among_many_loses_none_and_doubles_none(prefork: Site, journal: Path):
    bindings = {"journal": ConfigSource(value=str(journal))}
    Path(f"{journal}-release").touch()
    deadly = {
        "journal": ConfigSource(value=f"{journal}-2"),
        "deaths": ConfigSource(value=1),
        "how": ConfigSource(value="kill"),
    }
    run = complete(
        start(
            prefork.dag,
            node("count"),
            node("hold", "count", bindings=bindings),
            node("mortal", bindings=deadly),
            input={"n": 20},
        )
    )
    assert run.result("hold") == list(range(20))
    began = Counter(line.split()[1] for line in read(journal) if line.startswith("ended"))
    assert began == Counter(map(str, range(20)))


def test_a_callback_whose_process_dies_is_called_again(site: Site):
    site.start_worker()
    run = start(site.dag, node("hold", bindings={"journal": ConfigSource(value=str(site.directory / "j"))}))
    wait_until(lambda: read(site.directory / "j"), "it runs")
    Path(site.settings["dagabaaz_files_dir"]).mkdir(exist_ok=True)
    (Path(site.settings["dagabaaz_files_dir"]) / f"deadly-{run.id}").touch()
    (site.directory / "j-release").touch()
    complete(run)
    wait_until(lambda: callbacks(site) == [f"completed {run.id}"] * 2, "it was called again", timeout=PATIENCE)
    assert [task.attempt for task in run.tasks()] == [1]


# -- a whole worker


def test_another_worker_takes_over_what_a_killed_one_ran_and_held(site: Site):
    journal = site.directory / "journal"
    # Given a worker that runs one task and has taken the messages of others
    doomed = site.start_worker(concurrency=1)
    run = start(
        site.dag,
        node("count"),
        node("hold", "count", bindings={"journal": ConfigSource(value=str(journal))}),
        input={"n": 4},
    )
    wait_until(lambda: read(journal), "a body runs")
    # When all its processes are killed, and the broker keeps what it had taken for an hour
    doomed.kill()
    Path(f"{journal}-release").touch()
    # Then another one takes over the running task, and is sent the others again
    site.start_worker(concurrency=1)
    complete(run)
    assert run.result("hold") == [0, 1, 2, 3]
    assert sorted(task.recoveries for task in run.tasks() if task.node == "hold") == [0, 0, 0, 1]
    ended = Counter(line.split()[1] for line in read(journal) if line.startswith("ended"))
    assert ended == Counter("0123")


def test_a_worker_that_was_taken_for_dead_and_comes_back_spoils_nothing(site: Site):
    journal = site.directory / "journal"
    frozen = site.start_worker(concurrency=1)
    run = start(site.dag, node("hold", bindings={"journal": ConfigSource(value=str(journal))}))
    wait_until(lambda: read(journal), "a body runs")
    frozen.pause()
    site.start_worker(concurrency=1)
    wait_until(lambda: len(read(journal)) == 2, "another worker runs it", timeout=PATIENCE)
    frozen.resume()
    Path(f"{journal}-release").touch()
    complete(run)
    wait_until(lambda: len(read(journal)) == 4, "both bodies ended")
    wait_until(lambda: "the attempt is not current any more" in site.logs(), "the late outcome is refused")
    assert len(run.artifacts("hold")) == 1
    assert [(task.attempt, task.recoveries) for task in run.tasks()] == [(2, 1)]
    # and the worker that came back works on
    wait_until(lambda: "announces itself again" in site.logs(), "it announced itself")


def test_a_worker_that_is_stopped_ends_what_it_runs_and_leaves_the_rest_to_others(site: Site):
    journal = site.directory / "journal"
    stopped = site.start_worker(concurrency=1)
    run = start(
        site.dag,
        node("count"),
        node("hold", "count", bindings={"journal": ConfigSource(value=str(journal))}),
        input={"n": 4},
    )
    wait_until(lambda: read(journal), "a body runs")
    stopped.send(15)
    wait_until(lambda: "Warm shutdown" in site.logs(), "it is stopping")
    Path(f"{journal}-release").touch()
    assert stopped.wait(PATIENCE) == 0
    assert statuses(run, "hold").count("completed") == 1
    site.start_worker(concurrency=2)
    complete(run)
    assert [(task.attempt, task.recoveries) for task in run.tasks() if task.node == "hold"] == [(1, 0)] * 4
    assert len(read(journal)) == 8


def test_a_worker_without_a_store_does_not_start_and_says_why(site: Site):
    with pytest.raises(AssertionError, match="dagabaaz_store_url"):
        site.start_worker(dagabaaz_store_url=None)
    assert site.workers[0].wait(PATIENCE) != 0

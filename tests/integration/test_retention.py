"""Old runs are deleted whole, in small steps, by any number of processes, and nothing that is still of use."""

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event, func, select, update

from dagabaaz_celery.app import Dagabaaz
from dagabaaz_celery.constants import FanMode, RunStatus
from dagabaaz_celery.errors import KeyConflict, RunPruned, RunStateError, UnknownRun
from dagabaaz_celery.models import DagNode, TaskArtifact
from dagabaaz_celery.retention import PruneReport
from dagabaaz_celery.stores.sql.records import NewArtifact, TaskError
from dagabaaz_celery.stores.sql.store import SqlStore
from dagabaaz_celery.stores.sql.tables import new_id
from dagabaaz_celery.testing import embedded_worker, find_violations
from dagabaaz_celery.worker import pruning
from dagabaaz_celery.worker.pruning import Pruner, remove_run_directory
from tests.integration import celery_support
from tests.integration.celery_support import complete, wait_until
from tests.integration.sql_stores import attempts_of, claim, define, node, records, start

DAY = 86_400.0
NODES = (node("a"), node("b", "a"), node("c", "b", fan_mode=FanMode.AGGREGATE))
CHILDREN = ("task", "attempt", "artifact", "node", "tag", "owed")


def nothing() -> None:
    """A body with nothing to do."""


def store_of(dag: Dagabaaz) -> SqlStore:
    return dag._runtime.store


def end(
    dag: Dagabaaz,
    *nodes: DagNode,
    age: float = 0.0,
    fails: bool = False,
    artifacts: Sequence[NewArtifact] | None = None,
    settle: bool = True,
    **given: Any,
) -> str:
    """Start a run and bring it to its end, ``age`` seconds ago; its id."""
    store = store_of(dag)
    started = start(store, *(nodes or NODES), **given)
    todo = list(attempts_of(started))
    while todo:
        work = claim(store, todo.pop(0))
        if fails:
            aftermath = store.fail(work, TaskError("ValueError", "no"))
        else:
            aftermath = store.complete(work, records(3) if artifacts is None else artifacts, "many")
        for owed in aftermath.owed:
            if owed.kind == "cancel":
                store.cancel_rest(owed)
            elif settle:
                store.settle_owed(owed)
        todo += attempts_of(aftermath)
        if fails:
            break
    set_run(dag, started.run.id, ended_at=store.get_run(started.run.id).ended_at - int(age * 1_000_000))
    return started.run.id


def set_run(dag: Dagabaaz, run_id: str, **columns: Any) -> None:
    """Change columns of a run's row, as if it were another time."""
    run = store_of(dag).tables.run
    with store_of(dag).database.write() as connection:
        connection.execute(update(run).where(run.c.id == run_id).values(**columns))


def count_rows(dag: Dagabaaz, run_id: str) -> dict[str, int]:
    """How many rows belong to a run, by table, its own among them."""
    tables = store_of(dag).tables
    with store_of(dag).read() as connection:
        counts = {
            name: connection.execute(select(func.count()).where(getattr(tables, name).c.run_id == run_id)).scalar_one()
            for name in CHILDREN
        }
        counts["run"] = connection.execute(select(func.count()).where(tables.run.c.id == run_id)).scalar_one()
    return {name: count for name, count in counts.items() if count}


def forget_what_is_owed(dag: Dagabaaz) -> None:
    """As if every callback were delivered, and every cancellation made."""
    with store_of(dag).database.write() as connection:
        connection.execute(store_of(dag).tables.owed.delete())


def count_definitions(dag: Dagabaaz) -> int:
    with store_of(dag).read() as connection:
        return connection.execute(select(func.count()).select_from(store_of(dag).tables.definition)).scalar_one()


def go_on(dag: Dagabaaz, **given: Any) -> Pruner:
    """What a worker's look does first."""
    pruner = Pruner(dag._runtime, lambda seconds: False, **given)
    pruner.go_on()
    pruner.delete_definitions()
    return pruner


# -- what goes, and what stays


def test_everything_of_an_old_run_goes_and_nothing_of_others(stored: Dagabaaz):
    old = end(stored, age=9 * DAY, tags={"customer": "7"})
    young = end(stored, age=DAY, tags={"customer": "7"})
    before = count_rows(stored, young)
    assert set(count_rows(stored, old)) == {"run", "task", "artifact", "node", "tag"}
    expected = PruneReport({"completed": 1}, tasks=5, artifacts=15, files=0, dry_run=True)

    assert stored.prune(older_than=2 * DAY, dry_run=True) == expected
    assert stored.prune(older_than=2 * DAY) == PruneReport({"completed": 1}, 5, 15, 0)

    assert count_rows(stored, old) == {}
    assert count_rows(stored, young) == before
    assert [run.id for run in stored.runs()] == [young]
    assert find_violations(stored) == []
    with pytest.raises(UnknownRun):
        stored.run(old)


def test_the_history_of_tasks_goes_too(stored: Dagabaaz):
    run_id = end(stored, node("a"), fails=True, age=DAY)
    stored.run(run_id).retry()
    stored.run(run_id).cancel()
    forget_what_is_owed(stored)
    assert count_rows(stored, run_id)["attempt"] == 1

    stored.prune(older_than=0)

    assert count_rows(stored, run_id) == {}


def test_each_status_has_an_age_of_its_own(new_dag: Callable[..., Dagabaaz]):
    dag = new_dag(dagabaaz_retention={"completed": 5 * DAY, "failed": 9 * DAY})
    kept = [end(dag, age=4 * DAY), end(dag, age=8 * DAY, fails=True), end(dag, age=99 * DAY)]
    set_run(dag, kept[-1], status="cancelled")
    for age, fails in ((6 * DAY, False), (10 * DAY, True)):
        end(dag, age=age, fails=fails)

    assert dag.prune().runs == {"completed": 1, "failed": 1}
    assert {run.id for run in dag.runs()} == set(kept)


def test_a_deletion_can_be_narrowed_down_and_takes_the_oldest_first(stored: Dagabaaz):
    oldest, second, failed = end(stored, age=9 * DAY), end(stored, age=8 * DAY), end(stored, age=9 * DAY, fails=True)

    assert stored.prune(older_than=0, pipeline="others").runs == {}
    assert stored.prune(older_than=0, limit=0).runs == {}
    assert stored.prune(older_than=0, status="completed", limit=1, dry_run=True).runs == {"completed": 1}
    assert stored.prune(older_than=0, status="completed", limit=1, pipeline="p").runs == {"completed": 1}

    assert count_rows(stored, oldest) == {}
    assert {run.id for run in stored.runs()} == {second, failed}


def test_what_has_not_ended_or_still_owes_something_stays(stored: Dagabaaz):
    store = store_of(stored)
    undone = end(stored, node("a", rollback="work"), fails=True, settle=False)
    forget_what_is_owed(stored)
    kept = [start(store, *NODES).run.id, end(stored, settle=False), undone]
    assert store.get_run(undone).epilogue == "waiting"

    assert stored.prune(older_than=0).runs == {}
    assert {run.id for run in stored.runs()} == set(kept)


def test_a_run_that_could_not_be_undone_stays_until_somebody_says_so(stored: Dagabaaz):
    run_id = end(stored, fails=True, age=DAY)
    set_run(stored, run_id, rollback_status="failed")

    assert stored.prune(older_than=0).runs == {}
    assert stored.prune(older_than=0, failed_rollbacks=True, dry_run=True).runs == {"failed": 1}
    assert stored.prune(older_than=0, failed_rollbacks=True).runs == {"failed": 1}
    assert count_rows(stored, run_id) == {}


# -- while it goes on


def mark(dag: Dagabaaz, run_id: str) -> None:
    """Give a run up, as whoever deletes it does first, and leave it at that."""
    store = store_of(dag)
    store.transact(lambda connection: store.rows.pruning.mark(connection, [run_id], 0))


def test_a_run_that_is_being_deleted_is_gone_for_everybody(stored: Dagabaaz):
    run = stored.run(end(stored, fails=True, key="k"))
    mark(stored, run.id)

    assert (run.status, run.wait(1)) == ("failed", "failed")
    assert list(stored.runs()) == []
    for ask in (
        run.retry,
        run.rollback,
        run.cancel,
        run.pause,
        run.snapshot,
        run.tasks,
        run.errors,
        lambda: run.error,
        lambda: run.input,
        lambda: run.tags,
        lambda: run.result("a"),
    ):
        with pytest.raises(RunPruned, match="was failed, and is deleted by now"):
            ask()
    assert find_violations(stored) == []


def test_a_retry_and_a_deletion_at_the_same_time_never_leave_half_a_run(stored: Dagabaaz):
    run_ids = [end(stored, fails=True, age=DAY) for _ in range(6)]
    refused: list[str] = []

    def retry() -> None:
        for run_id in run_ids:
            try:
                stored.run(run_id).retry()
            except (UnknownRun, RunStateError):
                refused.append(run_id)

    retrying = threading.Thread(target=retry)
    retrying.start()
    report = stored.prune(older_than=0)
    retrying.join()

    retried = {run.id for run in stored.runs()}
    assert {run.status for run in stored.runs()} <= {RunStatus.RUNNING}
    assert report.runs_total == len(refused)
    assert retried | set(refused) == set(run_ids)
    assert find_violations(stored) == []
    assert all(count_rows(stored, run_id) == {} for run_id in refused)


def test_another_process_goes_on_where_one_died(stored: Dagabaaz):
    """After every commit once; what is left is no contradiction, and nobody sees it."""
    interrupted = 0
    for commits in range(1, 20):
        run_id = end(stored, age=DAY, tags={"customer": "7"})
        left = iter(range(commits - 1, -1, -1))
        pruner = Pruner(stored._runtime, lambda seconds, left=left: next(left) == 0)
        pruner.prune({RunStatus.COMPLETED: 0.0})
        assert find_violations(stored) == []
        if count_rows(stored, run_id):
            assert list(stored.runs()) == []
            assert stored.prune(older_than=0).runs == {}, "it is somebody's for a while"
            set_run(stored, run_id, prune_due_at=0)
            go_on(stored)
            interrupted += 1
        assert count_rows(stored, run_id) == {}
        if not pruner.stopped:
            break
    assert interrupted >= 2


def test_processes_share_the_work(stored: Dagabaaz, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(pruning, "_RUNS", 3)
    run_ids = [end(stored, node("a"), artifacts=records(1), age=DAY) for _ in range(20)]
    pruners = [Pruner(stored._runtime, lambda seconds: False) for _ in range(3)]
    threads = [threading.Thread(target=pruner.prune, args=({RunStatus.COMPLETED: 0.0},)) for pruner in pruners]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    reports = [pruner.report() for pruner in pruners]
    assert sum(report.runs_total for report in reports) == sum(report.tasks for report in reports) == len(run_ids)
    assert sum(report.artifacts for report in reports) == len(run_ids)
    assert list(stored.runs()) == []


def test_no_commit_deletes_more_than_some_rows(stored: Dagabaaz):
    store, deleted = store_of(stored), [0]
    wide = end(stored, node("a"), node("b", "a"), artifacts=records(1), age=DAY)
    with store.database.write() as connection:
        row = connection.execute(select(store.tables.task).where(store.tables.task.c.run_id == wide)).mappings().first()
        fields = {**row, "node_index": 1}
        made = [{**fields, "id": new_id(), "attempt_id": new_id(), "ordinal": n + 1} for n in range(4000)]
        connection.execute(store.tables.task.insert(), made)

    def count(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        if statement.startswith("DELETE"):
            deleted[-1] += cursor.rowcount

    event.listen(store.database.engine, "after_cursor_execute", count)
    event.listen(store.database.engine, "commit", lambda connection: deleted.append(0))
    assert stored.prune(older_than=0).tasks == 4002

    assert sum(deleted) > 4000
    assert max(deleted) <= 2000


# -- keys


def test_a_key_goes_with_its_run(stored: Dagabaaz):
    first = end(stored, key="k", age=DAY)
    stored.prune(older_than=0)

    assert start(store_of(stored), *NODES, key="k").run.id != first


@pytest.fixture
def keeping(stored: Dagabaaz) -> Dagabaaz:
    """One whose keys outlive their runs."""
    stored.app.conf.dagabaaz_retention = {"keys": 5 * DAY}
    stored._runtime.__dict__.pop("settings", None)
    assert stored.settings.retention.keys == 5 * DAY
    return stored


def test_a_key_that_outlives_its_run_starts_nothing(keeping: Dagabaaz):
    store, first = store_of(keeping), end(keeping, key="k", age=DAY, tags={"a": "b"})
    assert keeping.prune(older_than=0) == PruneReport({"completed": 1}, 5, 15, 0)

    again = start(store, *NODES, key="k")

    assert (again.run.id, again.created, again.aftermath.publish) == (first, False, [])
    assert keeping.run(first).status == "completed"
    with pytest.raises(RunPruned):
        keeping.run(first).result("a")
    with pytest.raises(KeyConflict, match="started with other input"):
        store.start(define(*NODES), '{"other":1}', run_id=new_id(), key="k")
    assert count_rows(keeping, first) == {"run": 1}
    assert find_violations(keeping) == []


def test_a_key_is_free_when_its_time_is_over(keeping: Dagabaaz):
    first = end(keeping, key="k", age=DAY)
    keeping.prune(older_than=0)
    pruned_at = store_of(keeping).get_run(first).pruned_at
    assert go_on(keeping).runs == {}
    assert count_rows(keeping, first) == {"run": 1}

    set_run(keeping, first, pruned_at=pruned_at - int(6 * DAY * 1_000_000), prune_due_at=0)
    assert go_on(keeping).runs == {}, "it is counted once"

    assert count_rows(keeping, first) == {}
    assert start(store_of(keeping), *NODES, key="k").run.id != first


# -- files


def file(path: str) -> NewArtifact:
    return NewArtifact(TaskArtifact(file_path=path, file_name="f"), "file", "{}")


def test_files_are_told_of_before_they_are_forgotten(stored: Dagabaaz):
    told: dict[str, list[str]] = {}

    @stored.on_files_pruned
    def note(run_id: str, paths: list[str]) -> None:
        assert count_rows(stored, run_id)["artifact"] == 2
        told.setdefault(run_id, []).extend(paths)

    run_id = end(stored, node("a"), artifacts=[file("s3://bucket/1"), file("/srv/2")], age=DAY)
    end(stored, node("a"), age=DAY)

    assert stored.prune(older_than=0) == PruneReport({"completed": 2}, 2, 5, 2)
    assert {run: sorted(paths) for run, paths in told.items()} == {run_id: ["/srv/2", "s3://bucket/1"]}


def test_a_run_whose_files_could_not_be_deleted_is_tried_again_and_holds_up_no_other(
    stored: Dagabaaz, caplog: pytest.LogCaptureFixture
):
    is_away = True

    @stored.on_files_pruned
    def delete(run_id: str, paths: list[str]) -> None:
        if is_away:
            raise ConnectionError("the object store is away")

    run_id = end(stored, node("a"), artifacts=[file("s3://bucket/1")], age=DAY)
    end(stored, node("a"), age=DAY)

    assert stored.prune(older_than=0).runs == {"completed": 1}
    assert f"run {run_id} is not deleted: the callback" in caplog.text
    assert set(count_rows(stored, run_id)) == {"run", "task", "artifact", "node"}
    assert list(stored.runs()) == []
    assert go_on(stored).runs == {}, "not at once again"
    is_away = False
    set_run(stored, run_id, prune_due_at=0)
    assert go_on(stored).runs == {"completed": 1}
    assert count_rows(stored, run_id) == {}


def test_the_scratch_directory_goes_and_what_links_lead_to_stays(new_dag: Callable[..., Dagabaaz], tmp_path: Path):
    dag = new_dag(dagabaaz_files_dir=str(tmp_path / "files"))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "precious").touch()
    run_id, other = end(dag, age=DAY), end(dag)
    for each in (run_id, other):
        scratch = tmp_path / "files" / each / "a"
        scratch.mkdir(parents=True)
        (scratch / "picture").touch()
        (scratch / "link").symlink_to(elsewhere)

    dag.prune(older_than=DAY / 2)

    assert [path.name for path in (tmp_path / "files").iterdir()] == [other]
    assert (elsewhere / "precious").exists()


def test_a_link_in_place_of_a_scratch_directory_is_left_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    run_id = new_id()
    (tmp_path / run_id).symlink_to(elsewhere)

    remove_run_directory(tmp_path, run_id)
    remove_run_directory(tmp_path, new_id())

    assert elsewhere.is_dir()
    assert f"{tmp_path / run_id} is a link" in caplog.text


# -- definitions


def test_a_definition_goes_when_nothing_refers_to_it_for_long(stored: Dagabaaz):
    store = store_of(stored)
    end(stored, node("a"), age=DAY)
    end(stored, node("b"), age=DAY)
    end(stored, node("b"))
    store.save_pipeline(define(node("c")), 1)
    end(stored, node("c"), age=DAY)

    stored.prune(older_than=DAY / 2)
    assert count_definitions(stored) == 3, "the first start that has seen it may not have committed yet"
    go_on(stored, grace=0)

    assert count_definitions(stored) == 2
    assert find_violations(stored) == []
    assert start(store, node("a")).created
    assert find_violations(stored) == []


def test_a_definition_that_was_given_up_is_used_again_by_the_next_start(stored: Dagabaaz):
    end(stored, node("a"), age=DAY)
    stored.prune(older_than=0)

    end(stored, node("a"))
    go_on(stored, grace=0)

    assert count_definitions(stored) == 1
    assert find_violations(stored) == []


# -- by workers


def test_workers_delete_what_the_setting_says(new_dag: Callable[..., Dagabaaz]):
    dag = new_dag(dagabaaz_retention={"completed": 0}, dagabaaz_sweep_interval=0.02)
    dag.plugin(nothing, name="a")
    with embedded_worker(dag.app):
        run = complete(dag, celery_support.node("a"))
        wait_until(lambda: not list(dag.runs()), "the worker deleted the run")
        wait_until(lambda: count_rows(dag, run.id) == {}, "nothing is left of it")


def test_workers_without_the_setting_do_not_look(dag: Dagabaaz):
    with embedded_worker(dag.app):
        assert "dagabaaz-prune" not in {thread.name for thread in threading.enumerate()}

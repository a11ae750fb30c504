"""A SQL store behind the suite's harness, driven as the app and its workers drive it."""

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import select

from dagabaaz_celery.constants import MAX_FAN_OUT, RunStatus, TaskStatus
from dagabaaz_celery.json_door import check_json
from dagabaaz_celery.models import DagNode, TaskArtifact
from dagabaaz_celery.pipeline import Definition, PluginSnapshot
from dagabaaz_celery.stores.sql.invariants import find_violations
from dagabaaz_celery.stores.sql.records import Aftermath, ClaimRefused, NewArtifact, NodeRow, Owed, TaskError
from dagabaaz_celery.stores.sql.store import Claimed, SqlStore, Work
from dagabaaz_celery.stores.sql.tables import new_id
from dagabaaz_celery.stores.sql.transaction import StorePolicy
from tests.contract.harness import OpenTask, RunStore, StoreHarness, is_passthrough


class SqlHarness(StoreHarness):
    """What is owed after a commit is done at once, as a worker does; launches go in batches of three."""

    def __init__(self, url: str, prefix: str = "dagabaaz_") -> None:
        self.store = SqlStore(url, prefix=prefix, policy=StorePolicy(launch_batch=3))
        self._ended: dict[str, list[RunStatus]] = {}
        self._held_back: list[Owed] | None = None
        self._moved_by_hand = False

    def start(
        self, nodes: Sequence[DagNode], run_input: Mapping[str, Any] | None = None, max_fan_out: int = MAX_FAN_OUT
    ) -> str:
        bounded = [
            node.model_copy(update={"max_fan_out": node.max_fan_out or max_fan_out}, deep=True) for node in nodes
        ]
        plugins = {
            name: PluginSnapshot(task_name=name, passthrough=is_passthrough(name))
            for name in {node.plugin for node in nodes}
        }
        definition = Definition(name="contract", nodes=bounded, plugins=plugins)
        run_id = new_id()
        self._ended[run_id] = []
        self._settle(self.store.start(definition, check_json(run_input or {}, "input"), run_id=run_id).aftermath)
        return run_id

    def open_tasks(self, run_id: str) -> list[OpenTask]:
        slugs = self._slugs(run_id)
        return [
            OpenTask(row.id, row.node_index, slugs[row.node_index], row.input_artifact_id, row.origin_artifact_id)
            for row in self._task_rows(run_id)
            if row.status in ("pending", "queued", "running")
        ]

    def task_input(self, task: OpenTask) -> dict[str, Any]:
        read = self.store.read_input(self._row(task).attempt_id)
        assert read is not None
        if read.input_error is not None:
            raise read.input_error
        return read.input

    def complete(self, task: OpenTask, artifacts: Sequence[TaskArtifact] = ()) -> None:
        work = self._claim(task)
        if work is not None:
            self._record_success(work, artifacts)

    def complete_late(self, task: OpenTask, artifacts: Sequence[TaskArtifact], meanwhile: Callable[[], None]) -> None:
        """What follows ``meanwhile``'s commits is held back: the success is recorded between commit and follow-up."""
        work = self._claim(task)
        assert work is not None
        self._held_back = []
        meanwhile()
        self._record_success(work, artifacts)
        held_back, self._held_back = self._held_back, None
        self._settle(Aftermath(owed=held_back))

    def fail(self, task: OpenTask, message: str) -> None:
        self._end(task, message, TaskStatus.FAILED)

    def crash(self, task: OpenTask, message: str) -> None:
        self._end(task, message, TaskStatus.CRASHED)

    def cancel(self, run_id: str) -> None:
        self._settle(self.store.cancel(run_id, "cancelled by a user"))

    def retry(self, run_id: str) -> dict[str, str]:
        before = {row.id: row.attempt_id for row in self._task_rows(run_id)}
        self._settle(self.store.retry(run_id))
        return {
            row.id: row.id for row in self._task_rows(run_id) if before.get(row.id, row.attempt_id) != row.attempt_id
        }

    def reconcile(self, run_id: str) -> None:
        self._settle(self.store.reconcile(run_id))

    def status(self, run_id: str) -> RunStatus:
        return self.store.get_run(run_id).status

    def node_states(self, run_id: str) -> dict[str, str]:
        slugs = self._slugs(run_id)
        with self.store.read() as connection:
            counts = self.store.rows.tasks.count_by_status(connection, run_id)
        return {
            slugs[node.index]: _describe_node(node, set(counts.get(node.index, ())))
            for node in self.store.get_nodes(run_id)
        }

    def task_statuses(self, run_id: str, slug: str) -> list[str]:
        slugs = self._slugs(run_id)
        return [row.status for row in self._task_rows(run_id) if slugs[row.node_index] == slug]

    def ended(self, run_id: str) -> list[RunStatus]:
        return list(self._ended[run_id])

    def check(self) -> None:
        """Every invariant holds, unless the test moved things by hand."""
        if not self._moved_by_hand:
            assert find_violations(self.store) == []

    @contextmanager
    def session(self, run_id: str) -> Iterator[RunStore]:
        self._moved_by_hand = True
        with self.store.database.write() as connection:
            transaction = self.store.transaction(connection, run_id)
            yield transaction
            transaction.flush_redispatched()
            transaction.flush()
        self._settle(transaction.aftermath)

    def close(self) -> None:
        """Drop the tables, so that a shared server is left as it was."""
        with self.store.database.write() as connection:
            self.store.tables.metadata.drop_all(connection)
            connection.exec_driver_sql(f"DROP TABLE IF EXISTS {self.store.tables.prefix}schema_version")
        self.store.close()

    def _claim(self, task: OpenTask) -> Work | None:
        claimed = self.store.claim(self._row(task).attempt_id, new_id(), None)
        if isinstance(claimed, ClaimRefused):
            return None
        assert isinstance(claimed, Claimed)
        return claimed.work

    def _record_success(self, work: Work, artifacts: Sequence[TaskArtifact]) -> None:
        new = [NewArtifact(artifact, "file", check_json(artifact.metadata, "metadata")) for artifact in artifacts]
        aftermath = self.store.complete(work, new, "many")
        if aftermath is not None:
            self._settle(aftermath)

    def _end(self, task: OpenTask, message: str, status: TaskStatus) -> None:
        work = self._claim(task)
        if work is not None:
            aftermath = self.store.fail(work, TaskError("", message), status)
            if aftermath is not None:
                self._settle(aftermath)

    def _settle(self, aftermath: Aftermath) -> None:
        if self._held_back is not None:
            self._held_back.extend(aftermath.owed)
            return
        for owed in aftermath.owed:
            if owed.kind == "callback":
                self._ended.setdefault(owed.run_id, []).append(owed.status)
                self.store.settle_owed(owed)
            elif owed.kind == "cancel":
                self.store.cancel_rest(owed)
            elif owed.kind == "epilogue":
                self._settle(self.store.follow_end(owed))
            else:
                while self.store.continue_launch(owed).owed:
                    pass

    def _slugs(self, run_id: str) -> list[str]:
        definition = self.store.definition_of(self.store.get_run(run_id).definition_hash).definition
        return [node.slug for node in definition.nodes]

    def _task_rows(self, run_id: str) -> list[Any]:
        task = self.store.tables.task
        with self.store.read() as connection:
            return list(connection.execute(select(task).where(task.c.run_id == run_id).order_by(task.c.id)))

    def _row(self, task: OpenTask) -> Any:
        table = self.store.tables.task
        with self.store.read() as connection:
            return connection.execute(select(table).where(table.c.id == task.task_id)).one()


def _describe_node(node: NodeRow, statuses: set[str]) -> str:
    if statuses & {"failed", "crashed"}:
        return "failed"
    # A node that was done when its run had ended already is closed by the reconciliation after a retry.
    is_done = node.status == "launched" and node.tasks_done == node.tasks_total
    return "completed" if is_done else node.status


@contextmanager
def open_sqlite_harness() -> Iterator[StoreHarness]:
    """A SQLite file of its own."""
    with tempfile.TemporaryDirectory() as directory:
        harness = SqlHarness(f"sqlite:///{Path(directory) / 'runs.sqlite3'}")
        try:
            yield harness
            harness.check()
        finally:
            harness.close()

"""What may happen to a run in the store in memory, which has no attempts: a task is claimed once and ends once."""

import sys
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from dagabaaz_celery import orchestrator
from dagabaaz_celery.constants import RunStatus
from dagabaaz_celery.models import DagNode
from dagabaaz_celery.retry import compute_retry_boundary, retry_run
from dagabaaz_celery.stores.memory import MemoryStore, MemoryTask
from dagabaaz_celery.task_input import build_task_input
from tests.contract.graphs import graphs
from tests.stateful.model import MAX_FAN_OUT, AttemptKey, Item, Key, Outcome, RunModel, find_results
from tests.stateful.worlds import Producer, pick, read_names, to_artifacts

RUN = "run-1"
RUN_INPUT = {"n": 1}
ONE = st.integers(0, 11)
TRAITS = st.lists(st.integers(0, 11), max_size=3)
NOW = 0.0


@dataclass
class Body:
    """A body that began, and may report more than once."""

    task_id: str
    attempt: AttemptKey
    token: str


class MemoryMachine(RuleBasedStateMachine):
    """One run, its messages, and the bodies that began."""

    @initialize(nodes=graphs())
    def start(self, nodes: list[DagNode]) -> None:
        self.nodes = nodes
        self.store = MemoryStore()
        self.producer = Producer()
        self.model = RunModel(nodes, NOW, launch_batch=None, cancels_at_once=True)
        self.told: list[RunStatus] = []
        self.callbacks = orchestrator.OrchestratorCallbacks(
            *(
                lambda run_id, status=status: self.told.append(status)
                for status in (RunStatus.COMPLETED, RunStatus.FAILED, RunStatus.CRASHED, RunStatus.CANCELLED)
            )
        )
        self.names: dict[str, str] = {}
        self.attempts: dict[str, AttemptKey] = {}
        self.messages: list[str] = []
        self.bodies: list[Body] = []
        self.store.create_run(RUN, nodes, RUN_INPUT)
        orchestrator.start_run(self.store, RUN, nodes)
        self._note_new_tasks()

    @precondition(lambda self: self.messages)
    @rule(one=ONE, what=st.sampled_from(["taken", "taken", "taken twice", "lost"]))
    def deliver(self, one: int, what: str) -> None:
        """A worker takes a message, which the broker may deliver again; or nobody ever sees it."""
        task_id = pick(self.messages, one)
        if what != "taken twice":
            self.messages.remove(task_id)
        if what != "lost":
            self._claim(task_id)

    @rule()
    def send_again(self) -> None:
        """Whatever is open and not claimed."""
        self.messages += [task.task_id for task in self.store.open_tasks(RUN) if task.status == "pending"]

    @precondition(lambda self: self.bodies)
    @rule(one=ONE, traits=TRAITS)
    def complete(self, one: int, traits: list[int]) -> None:
        self._complete(self.bodies[-1 - one % len(self.bodies)], traits)

    @precondition(lambda self: self.bodies)
    @rule(one=ONE, crashes=st.booleans())
    def end_badly(self, one: int, crashes: bool) -> None:
        """A body fails, or its worker is lost for good; late word of that must change nothing."""
        body = self.bodies[-1 - one % len(self.bodies)]
        expected = self.model.fail(body.attempt, body.token, "crashed" if crashes else "failed")
        if expected != "done":
            return  # the engine itself takes whoever calls at his word: guarding outcomes is the app's part
        report = orchestrator.on_task_crashed if crashes else orchestrator.on_task_failed
        report(self.store, task_id=body.task_id, error_message="boom", callbacks=self.callbacks)

    @rule(count=st.integers(1, 6), traits=TRAITS)
    def work(self, count: int, traits: list[int]) -> None:
        """A while in which nothing goes wrong."""
        for _ in range(count):
            if self.messages:
                body = self._claim(self.messages.pop(0))
                if body is not None:
                    self._complete(body, traits or [0])

    @rule()
    def reconcile(self) -> None:
        self.model.reconcile(NOW)
        self._reconcile()

    @rule()
    def cancel(self) -> None:
        was_over = self.model.is_over
        self.model.cancel()
        did = orchestrator.abort_run(
            self.store, run_id=RUN, reason="enough", callbacks=self.callbacks, status=RunStatus.CANCELLED
        )
        assert did is not was_over

    @rule()
    def retry(self) -> None:
        may = self.model.is_over and self.model.status != "completed"
        if may:
            store = self.store
            boundary = compute_retry_boundary(
                store.get_completed_node_indices(RUN),
                store.get_launched_node_indices(RUN),
                len(self.nodes),
                lambda index: bool(store.get_retryable_tasks(RUN, [index])),
            )
        assert self.store.reopen_run(RUN) == may
        if may:
            self.model.retry(NOW)
            retry_run(self.store, RUN, self.nodes, boundary)
            self._reconcile()

    @invariant()
    def the_store_is_as_the_model_says(self) -> None:
        if not hasattr(self, "store"):
            return
        run, model = self.store.run(RUN), self.model
        assert (run.status, run.generation) == (model.status, model.generation)
        assert self._read_tasks() == {
            task.key: (task.status, [(a.name, a.origin) for a in task.emitted]) for task in model.tasks()
        }
        launched = {index for index, node in enumerate(model.nodes) if node.status != "blocked"}
        assert self.store.get_launched_node_indices(RUN) == launched
        assert [str(status) for status in self.told] == [status for _, status in model.endings]

    def teardown(self) -> None:
        """Every run comes to an end that can be explained."""
        if sys.exc_info()[0] is not None or not hasattr(self, "store"):
            return
        for _ in range(2):
            while self.store.open_tasks(RUN):
                self.send_again()
                self.work(len(self.messages), [0])
                for body in list(self.bodies):
                    self._complete(body, [0])
                self.the_store_is_as_the_model_says()
            if self.model.status != "completed":
                self.retry()
        if any(node.status == "failed" for node in self.model.nodes):
            assert self.model.status == "failed"
            return
        assert self.model.status == "completed", "the run hangs"
        assert self.store.run(RUN).completed_nodes == len(self.nodes)
        summary = self.store.get_node_summary(RUN)
        results = find_results(self.model)
        assert {i for i, (ending, _) in enumerate(results) if ending == "skipped"} == {
            index for index, status in summary.items() if status == "skipped"
        }
        tasks = self._read_tasks()
        for index, (_, expected) in enumerate(results):
            made = [
                (key, [name for name, _ in emitted])
                for key, (status, emitted) in tasks.items()
                if key.node == index and status == "completed"
            ]
            assert sorted(made, key=repr) == expected

    # -- inside

    def _claim(self, task_id: str) -> Body | None:
        attempt, token = self.attempts[task_id], f"token-{len(self.bodies)}"
        may_begin = self.model.claim(attempt, token, "worker", NOW)
        assert self.store.claim_task(task_id) == may_begin
        if not may_begin:
            return None
        task = next(task for task in self.store.tasks(RUN) if task.task_id == task_id)
        given = build_task_input(
            self.store,
            run_id=RUN,
            node_index=task.node_index,
            input_artifact_id=task.input_artifact_id,
            origin_artifact_id=task.origin_artifact_id,
            nodes=self.nodes,
            passthrough_indices={index for index, node in enumerate(self.nodes) if node.plugin == "gate"},
        )
        assert read_names(given, RUN_INPUT) == self.model.input_names(attempt.key)
        self.bodies.append(Body(task_id, attempt, token))
        return self.bodies[-1]

    def _complete(self, body: Body, traits: list[int]) -> None:
        emitted = self.producer.emit(self.model, self.nodes, body.attempt.key, traits)
        expected: Outcome = self.model.complete(body.attempt, body.token, emitted, NOW)
        assert self.store.complete_task(body.task_id, to_artifacts(emitted)) == (expected == "done")
        # Told again of what is recorded, the engine has to change nothing.
        for _ in range(2):
            orchestrator.on_task_complete(
                self.store,
                task_id=body.task_id,
                callbacks=self.callbacks,
                resolve_passthrough=lambda plugin: plugin == "gate",
                max_fan_out=MAX_FAN_OUT,
            )
        self._note_new_tasks()

    def _reconcile(self) -> None:
        orchestrator.reconcile_run(
            self.store,
            RUN,
            callbacks=self.callbacks,
            resolve_passthrough=lambda plugin: plugin == "gate",
            max_fan_out=MAX_FAN_OUT,
        )
        self._note_new_tasks()

    def _note_new_tasks(self) -> None:
        """A task of a retried run has another id: it is the next attempt at the same work."""
        for task in self.store.tasks(RUN):
            if task.task_id not in self.attempts:
                key = self._key(task)
                found = self.model.find(key)
                assert found is not None, f"no task for {key} was to be made"
                self.attempts[task.task_id] = found.attempt
                if task.is_open:
                    self.messages.append(task.task_id)

    def _key(self, task: MemoryTask) -> Key:
        return Key(task.node_index, Item(self._name(task.input_artifact_id), self._name(task.origin_artifact_id)))

    def _name(self, artifact_id: str | None) -> str | None:
        if artifact_id is None:
            return None
        if artifact_id not in self.names:
            artifact = self.store.get_artifact_data(artifact_id)
            assert artifact is not None
            assert artifact.file_name is not None
            self.names[artifact_id] = artifact.file_name
        return self.names[artifact_id]

    def _read_tasks(self) -> dict[Key, Any]:
        """By what they work on: status, and what they emitted with its origin."""
        found: dict[Key, Any] = {}
        made = self.store.get_artifacts_partitioned(RUN, range(len(self.nodes)))
        origins = {a.file_name: self._name(a.origin_artifact_id) for artifacts in made.values() for a in artifacts}
        expected = {task.key: task.emitted for task in self.model.tasks()}
        for task in self.store.tasks(RUN):
            key = self._key(task)
            assert key not in found, f"two tasks for {key}"
            mine = [(a.name, origins[a.name]) for a in expected.get(key, ()) if a.name in origins]
            found[key] = (task.status.value, mine)
        assert len(origins) == sum(len(emitted) for _, emitted in found.values())
        return found

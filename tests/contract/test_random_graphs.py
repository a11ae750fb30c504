"""Random graphs, played by one script over a bare store and over every other: each decision must be the same.

The bare store has 20 methods and lazy collections, so that nothing the engine decides can hang on more than that.
"""

from random import Random
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from dagabaaz_celery.constants import RUN_TERMINAL_STATUSES
from dagabaaz_celery.models import DagNode, TaskArtifact
from tests.contract.graphs import graphs
from tests.contract.harness import OpenTask, StoreHarness

EXTENSIONS = (".mp4", ".srt", ".bin")
MAX_FAN_OUT = 6
MAX_STEPS = 80


class Script:
    """Decisions by chance, which a second player repeats: what is still missing then is 0."""

    def __init__(self, random: Random) -> None:
        self.random = random
        self.choices: list[int] = []

    def choose(self, count: int) -> int:
        self.choices.append(self.random.randrange(count))
        return self.choices[-1]


class Replay:
    """A script's decisions once more."""

    def __init__(self, script: Script) -> None:
        self.choices = iter(script.choices)

    def choose(self, count: int) -> int:
        return next(self.choices, 0) % count


class Player:
    """Plays a script on one store, and writes down what the engine decided."""

    def __init__(self, harness: StoreHarness, script: Script | Replay) -> None:
        self.harness = harness
        self.script = script
        self.labels: dict[
            str, str
        ] = {}  # of artifacts, by id: names are given by who made them, so equal in all stores
        self.emitted = 0
        self.story: list[Any] = []

    def play(self, nodes: list[DagNode]) -> list[Any]:
        """Run to the end, through at most one retry; returns every decision in order."""
        run_id = self.harness.start(nodes, run_input={"n": 1}, max_fan_out=MAX_FAN_OUT)
        self._play_until_over(run_id)
        if self.harness.status(run_id) != "completed":
            self.harness.retry(run_id)
            self._play_until_over(run_id)
        return self.story

    def _play_until_over(self, run_id: str) -> None:
        for _ in range(MAX_STEPS):
            tasks = self._note_decisions(run_id)
            if not tasks:
                return
            self._act(tasks[self.script.choose(len(tasks))])

    def _act(self, task: OpenTask) -> None:
        act = self.script.choose(32)
        if act == 1:
            self.harness.fail(task, "failed by the script")
        elif act == 2:
            self.harness.crash(task, "crashed by the script")
        else:
            artifacts = [self._make_artifact(task) for _ in range((1, 2, 0, 3)[self.script.choose(4)])]
            self.harness.complete(task, artifacts)
            if act >= 28:
                self.harness.complete(task, [TaskArtifact(file_name="a duplicate")])

    def _make_artifact(self, task: OpenTask) -> TaskArtifact:
        """Sizes never tie, so that a selection does not hang on the order in which a retry wrote its tasks."""
        self.emitted += 1
        traits = self.script.choose(12)
        return TaskArtifact(
            file_name=f"{task.slug}{self.emitted}{EXTENSIONS[traits % 3]}",
            file_size=None if traits == 11 else self.emitted * 97 % 389,
            metadata={"even": True} if self.emitted % 2 == 0 else {},
        )

    def _note_decisions(self, run_id: str) -> list[OpenTask]:
        """Write down the run as it is; the open tasks in an order that is the same in every store."""
        described = [(self._describe_task(run_id, task), task) for task in self.harness.open_tasks(run_id)]
        described.sort(key=lambda pair: repr(pair[0]))
        status = self.harness.status(run_id)
        if status in RUN_TERMINAL_STATUSES:
            assert not described
        states = self.harness.node_states(run_id)
        statuses = {slug: sorted(self.harness.task_statuses(run_id, slug)) for slug in states}
        if status in RUN_TERMINAL_STATUSES:  # where the end came between two batches of a launch, there is no second
            for slug in [slug for slug, state in states.items() if state in ("launching", "launched")]:
                states[slug], statuses[slug] = "launched", sorted(set(statuses[slug]))
        tasks = [description for description, _ in described]
        self.story.append((status, states, statuses, self.harness.ended(run_id), tasks))
        return [task for _, task in described]

    def _describe_task(self, run_id: str, task: OpenTask) -> tuple[Any, ...]:
        task_input = self.harness.task_input(task)
        if "artifacts" in task_input:  # a retry may have changed the order in which tasks, and so artifacts, stand
            task_input["artifacts"] = sorted(task_input["artifacts"], key=lambda artifact: artifact["file_name"])
        return (
            task.slug,
            self._label(run_id, task.input_artifact_id),
            self._label(run_id, task.origin_artifact_id),
            sorted(task_input.items()),
        )

    def _label(self, run_id: str, artifact_id: str | None) -> str:
        if artifact_id is None:
            return "-"
        if artifact_id not in self.labels:
            with self.harness.session(run_id) as store:
                self.labels[artifact_id] = store.get_artifact_data(artifact_id).file_name
        return self.labels[artifact_id]


GRAPHS = {"nodes": graphs(), "random": st.randoms(use_true_random=False)}


@settings(max_examples=100)
@given(**GRAPHS)
def test_every_store_makes_the_decisions_that_a_bare_one_makes(
    bare_harness: StoreHarness, shared_harness: StoreHarness, nodes: list[DagNode], random: Random
):
    check_same_decisions(bare_harness, shared_harness, nodes, random)


@settings(max_examples=15)
@given(**GRAPHS)
def test_every_server_makes_the_decisions_that_a_bare_store_makes(
    bare_harness: StoreHarness, server_harness: StoreHarness, nodes: list[DagNode], random: Random
):
    check_same_decisions(bare_harness, server_harness, nodes, random)


def check_same_decisions(bare: StoreHarness, other: StoreHarness, nodes: list[DagNode], random: Random) -> None:
    script = Script(random)
    expected = Player(bare, script).play(nodes)
    actual = Player(other, Replay(script)).play(nodes)

    assert actual == expected
    final_status, states, *_ = expected[-1]
    assert final_status in RUN_TERMINAL_STATUSES, "the run hangs"
    if final_status == "completed":
        assert set(states.values()) <= {"completed", "skipped", "filtered"}

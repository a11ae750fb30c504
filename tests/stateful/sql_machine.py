"""Everything that may happen to runs in the SQL store, in any order, beside a model that says what it comes to."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from sqlalchemy import select

from dagabaaz_celery.constants import TaskStatus
from dagabaaz_celery.errors import RunStateError
from dagabaaz_celery.json_door import check_json
from dagabaaz_celery.models import DagNode
from dagabaaz_celery.pipeline import Definition, PluginSnapshot
from dagabaaz_celery.stores.sql.invariants import find_violations
from dagabaaz_celery.stores.sql.owed import WorkerRow
from dagabaaz_celery.stores.sql.records import Aftermath, Dispatch, NewArtifact, Owed, TaskError
from dagabaaz_celery.stores.sql.store import Claimed, Work
from dagabaaz_celery.stores.sql.tables import new_id
from dagabaaz_celery.stores.sql.transaction import StorePolicy
from tests.contract.graphs import graphs
from tests.stateful.model import (
    LEASE,
    MAX_FAN_OUT,
    MAX_RECOVERIES,
    RESEND_AFTER,
    SHORT_DELAY,
    AttemptKey,
    Emitted,
    Item,
    Key,
    Outcome,
    OwedKey,
    RunModel,
    find_results,
)
from tests.stateful.worlds import Clock, LossyStore, Producer, pick, read_names, to_artifacts

QUEUE = "q"
LAUNCH_BATCH = 2
MAX_RUNS = 3
MAX_ROUNDS = 60
POLICY = StorePolicy(
    launch_batch=LAUNCH_BATCH,
    cancel_batch=2,
    lease=LEASE,
    resend_after=RESEND_AFTER,
    short_delay=SHORT_DELAY,
    max_fan_out=MAX_FAN_OUT,
)
RUN_INPUT = {"n": 1}
BOOM = TaskError("ValueError", "boom")
LOST = TaskError("WorkerLost", "gone")

#: One of whatever there is.
ONE = st.integers(0, 11)
TRAITS = st.lists(st.integers(0, 11), max_size=3)
#: What becomes of the process that committed: it does what follows, or not all of it, or dies.
FATE = st.sampled_from(["follows up", "follows up", "loses the marks", "is slow", "dies"])
RARELY = st.sampled_from([False, False, False, True])


@st.composite
def graphs_with_losses(draw: st.DrawFn) -> list[DagNode]:
    """Random graphs, some nodes of which may not run twice."""
    crash = st.sampled_from([None, None, None, "crash"])
    return [node.model_copy(update={"on_lost": draw(crash)}) for node in draw(graphs())]


@dataclass
class Tracked:
    """A run in the store and in the model."""

    run_id: str
    key: str
    nodes: list[DagNode]
    model: RunModel


@dataclass
class Body:
    """A body that began; it may still report when nobody waits for it any more."""

    run: Tracked
    attempt: AttemptKey
    token: str
    work: Work
    emitted: list[Emitted] = field(default_factory=list)


@dataclass
class Lost:
    """Work that a sweep found without its worker."""

    run: Tracked
    attempt: AttemptKey
    work: Work


class SqlMachine(RuleBasedStateMachine):
    """Up to three runs, any number of workers, a broker that duplicates and loses, processes that die anywhere."""

    def __init__(self, store: LossyStore, clock: Clock) -> None:
        super().__init__()
        self.store, self.clock = store, clock
        store.clear()
        self.producer = Producer()
        self.runs: list[Tracked] = []
        self.attempts: dict[str, tuple[Tracked, AttemptKey]] = {}
        self.names: dict[str, str] = {}
        self.messages: list[str] = []
        self.unsent: list[Dispatch] = []
        self.bodies: list[Body] = []
        self.begun: set[tuple[str, AttemptKey]] = set()
        self.hand: list[Owed] = []
        self.lost: list[Lost] = []
        self.delivered: set[tuple[str, int, str]] = set()
        self.workers = [self._hire() for _ in range(2)]
        self.looked_at = -1

    # -- runs begin and end

    @initialize(nodes=graphs_with_losses(), fate=FATE)
    def start_first(self, nodes: list[DagNode], fate: str) -> None:
        self._start(nodes, fate, lose_answer=False)

    @rule(nodes=graphs_with_losses(), one=ONE, fate=FATE, lose_answer=RARELY)
    def start(self, nodes: list[DagNode], one: int, fate: str, lose_answer: bool) -> None:
        if len(self.runs) < MAX_RUNS:
            self._start(nodes, fate, lose_answer)
            return
        run = pick(self.runs, one)  # the same key gives the same run
        started = self._begin(run.nodes, new_id(), run.key)
        assert (started.run.id, started.created) == (run.run_id, False)
        assert started.aftermath == Aftermath()

    @rule(
        one=ONE,
        order=st.sampled_from(["reconcile", "pause", "resume", "resume", "retry", "retry", "cancel"]),
        fate=FATE,
        lose_answer=RARELY,
    )
    def steer(self, one: int, order: str, fate: str, lose_answer: bool) -> None:
        """Somebody tells a run what to do, whatever state it is in."""
        run = self._choose_run(one, is_over=order == "retry")
        if order == "reconcile":
            self._reconcile(run, fate)
        elif order == "pause":
            self._set_paused(run, True)
        elif order == "resume":
            if self._set_paused(run, False):
                self._reconcile(run, fate)
        elif order == "cancel":
            run.model.cancel()
            self._follow_up(run, self._call(lambda: self.store.cancel(run.run_id, "enough"), lose_answer), fate)
        elif run.model.retry(self.clock.tick()):
            before = run.model.generation - 1
            self._follow_up(run, self._call(lambda: self.store.retry(run.run_id, after=before), lose_answer), fate)
        else:
            with pytest.raises(RunStateError):
                self.store.retry(run.run_id)

    # -- messages

    @precondition(lambda self: self.unsent)
    @rule(one=ONE, end=st.sampled_from(["sent", "sent", "mark lost", "broker away", "process dies"]))
    def publish(self, one: int, end: str) -> None:
        """What a slow process committed a while ago."""
        dispatch = pick(self.unsent, one)
        self.unsent.remove(dispatch)
        if end == "broker away":
            run, attempt = self.attempts[dispatch.attempt_id]
            run.model.release(attempt)
            self.store.release([dispatch.attempt_id])
        elif end != "process dies":
            self._send([dispatch], marks=end == "sent")

    @precondition(lambda self: self.messages)
    @rule(count=st.integers(1, 4), who=ONE)
    def take(self, count: int, who: int) -> None:
        """A worker takes what comes first."""
        for attempt_id in self.messages[:count]:
            self._claim(attempt_id, pick(self.workers, who))
        del self.messages[:count]

    @precondition(lambda self: self.messages)
    @rule(one=ONE, who=ONE, what=st.sampled_from(["taken", "taken twice", "lost", "unknown"]), lose_answer=RARELY)
    def deliver(self, one: int, who: int, what: str, lose_answer: bool) -> None:
        """A worker takes a message, which the broker may deliver again; or nobody ever sees it."""
        attempt_id = pick(self.messages, one)
        if what != "taken twice":
            self.messages.remove(attempt_id)
        if what.startswith("taken"):
            self._claim(attempt_id, pick(self.workers, who), lose_answer=lose_answer)
        elif what == "unknown":  # to a worker that does not have its plugin
            run, attempt = self.attempts[attempt_id]
            run.model.return_unknown(attempt, SHORT_DELAY, self.clock.tick())
            self.store.return_unknown(attempt_id, SHORT_DELAY)

    # -- bodies

    @precondition(lambda self: self.bodies)
    @rule(one=ONE, traits=TRAITS, fate=FATE, lose_answer=RARELY)
    def complete(self, one: int, traits: list[int], fate: str, lose_answer: bool) -> None:
        self._complete(self._choose_body(one), traits, fate, lose_answer)

    @precondition(lambda self: self.bodies)
    @rule(
        one=ONE,
        how=st.sampled_from([TaskStatus.FAILED, TaskStatus.CANCELLED, 0.0, 3.0, 60.0]),
        fate=FATE,
        lose_answer=RARELY,
    )
    def end_badly(self, one: int, how: TaskStatus | float, fate: str, lose_answer: bool) -> None:
        """A body fails, is revoked, or asks for another attempt after so many seconds."""
        body = self._choose_body(one)
        work, model = body.work, body.run.model
        if isinstance(how, TaskStatus):
            expected = model.fail(body.attempt, body.token, how.value)
            self._report(body.run, expected, lambda: self.store.fail(work, BOOM, how), fate, lose_answer)
            return
        expected = model.retry_attempt(body.attempt, body.token, how, self.clock.tick())
        again = work.attempt.retries + 1
        self._report(
            body.run,
            expected,
            lambda: self.store.retry_attempt(work, delay=how, retries=again, error=BOOM),
            fate,
            lose_answer,
        )

    @precondition(lambda self: self.bodies)
    @rule(one=ONE, who=ONE, same_token=st.booleans())
    def claim_again(self, one: int, who: int, same_token: bool) -> None:
        """The answer to a claim was lost, or another worker has the message too."""
        body = self._choose_body(one)
        worker, attempt = pick(self.workers, who), body.work.attempt
        if same_token:
            self._claim(attempt.attempt_id, worker, token=body.token)
        elif self._claim(attempt.attempt_id, worker) is None:
            token = new_id()  # one that goes on although it was refused has to be refused again
            work = replace(body.work, attempt=replace(attempt, token=token))
            self.bodies.append(Body(body.run, body.attempt, token, work))

    @rule(count=st.integers(1, 4), traits=TRAITS)
    def work(self, count: int, traits: list[int]) -> None:
        """A while in which nothing goes wrong."""
        self._work(count, traits)

    @rule(count=st.integers(3, 9), traits=TRAITS)
    def work_longer(self, count: int, traits: list[int]) -> None:
        self._work(count, traits)

    # -- what workers do when they sweep

    @rule(one=ONE, rescued=st.sampled_from(["at once", "at once", "later"]), fate=FATE, lose_answer=RARELY)
    def worker_dies(self, one: int, rescued: str, fate: str, lose_answer: bool) -> None:
        """Its bodies may not know that, and report later."""
        current = [task.worker for run in self.runs for task in run.model.tasks() if task.status == "running"]
        busy = [worker for worker in self.workers if worker in current]
        worker = pick(busy or self.workers, one)
        self.workers.remove(worker)
        assert self.store.try_bury_worker(worker, 0)
        self.workers.append(self._hire())
        if rescued == "at once":
            self._find_lost()
            for lost in self.lost:
                self._rescue(lost, fate, lose_answer)

    @rule(part=st.sampled_from(["find lost", "publish", "publish", "send again", "take owed"]), fate=FATE, few=ONE)
    def sweep(self, part: str, fate: str, few: int) -> None:
        """One part of a worker's sweep."""
        if part == "find lost":
            self._find_lost()
        elif part == "publish":
            self._publish_due(fate)
        elif part == "send again":
            self._send_again(fate, few)
        else:
            self._take_owed()

    @precondition(lambda self: self.lost)
    @rule(one=ONE, fate=FATE, lose_answer=RARELY)
    def rescue(self, one: int, fate: str, lose_answer: bool) -> None:
        """Another sweep may have rescued it already."""
        self._rescue(pick(self.lost, one), fate, lose_answer)

    @precondition(lambda self: self.hand)
    @rule(one=ONE, again=RARELY, dies=RARELY)
    def do_owed(self, one: int, again: bool, dies: bool) -> None:
        """``again``: somebody else has it in hand too."""
        owed = pick(self.hand, one)
        if not again:
            self.hand.remove(owed)
        self._do(owed, dies=dies)

    @rule(seconds=st.sampled_from([1.0, 4.0, 31.0, 100.0]))
    def wait(self, seconds: float) -> None:
        self.clock.tick(seconds)

    # -- what always holds

    @invariant()
    def the_store_is_as_the_model_says(self) -> None:
        if not self.runs or self.looked_at == self.store.commits:
            return
        assert find_violations(self.store) == []
        for run in self.runs:
            assert self._read(run) == _describe(run.model)
        self.looked_at = self.store.commits

    @invariant()
    def stalled_runs_are_those_with_nothing_open(self) -> None:
        expected = [
            run.run_id
            for run in self.runs
            if run.model.status == "running"
            and not run.model.is_paused
            and not any(task.status in ("pending", "queued", "running") for task in run.model.tasks())
        ]
        assert sorted(self.store.find_stalled_runs(500)) == sorted(expected)

    def teardown(self) -> None:
        """Whatever happened, what is left to do gets done, and every run comes to an end that can be explained."""
        if sys.exc_info()[0] is not None:
            return
        for run in self.runs:
            self._set_paused(run, False)
        self._drain()
        for run in self.runs:
            if run.model.status != "completed" and "failed" not in [node.status for node in run.model.nodes]:
                run.model.retry(self.clock.tick())
                self._follow_up(run, self.store.retry(run.run_id), "follows up")
        self._drain()
        self.looked_at = -1
        self.the_store_is_as_the_model_says()
        assert find_violations(self.store, at_rest=True) == []
        for run in self.runs:
            told = [(generation, status) for run_id, generation, status in self.delivered if run_id == run.run_id]
            assert sorted(told) == sorted(run.model.endings)
            if run.model.status == "completed":
                assert self._read_results(run) == find_results(run.model)
            else:
                assert any(node.status == "failed" for node in run.model.nodes), "it could have completed"

    # -- inside

    def _choose_body(self, one: int) -> Body:
        """Mostly one whose outcome is waited for."""
        waited_for = self._list_waited_for()
        return pick(waited_for if waited_for and one % 4 else self.bodies, one)

    def _list_waited_for(self) -> list[Body]:
        current = {task.token for run in self.runs for task in run.model.tasks() if task.status == "running"}
        return [body for body in self.bodies if body.token in current]

    def _choose_run(self, one: int, *, is_over: bool) -> Tracked:
        """Mostly one that is over, or that is not."""
        fitting = [run for run in self.runs if run.model.is_over is is_over]
        return pick(fitting if fitting and one % 4 else self.runs, one)

    def _work(self, count: int, traits: list[int]) -> None:
        self._send(self.unsent, marks=True)
        self.unsent = []
        if not self.messages:
            self.clock.tick(LEASE + 1)
            self._publish_due("follows up")
        for _ in range(count):
            if self.hand:
                self._do(self.hand.pop(0))
            if self.messages:
                body = self._claim(self.messages.pop(0), self.workers[0])
                if body is not None:
                    self._complete(body, traits or [0], "follows up", lose_answer=False)

    def _rescue(self, lost: Lost, fate: str, lose_answer: bool) -> None:
        attempt, token = lost.work.attempt, lost.work.attempt.token
        assert token is not None
        expected = lost.run.model.rescue(lost.attempt, token, attempt.recoveries, self.clock.tick())
        self._report(lost.run, expected, lambda: self.store.rescue(lost.work, LOST, MAX_RECOVERIES), fate, lose_answer)

    def _find_lost(self) -> None:
        found = self.store.list_orphans()
        expected = [
            (run.run_id, task.attempt)
            for run in self.runs
            for task in run.model.tasks()
            if task.status == "running" and task.worker not in self.workers
        ]
        assert sorted((work.attempt.run_id, self._attempt_of(work)) for work in found) == sorted(expected)
        self.lost += [Lost(*self.attempts[work.attempt.attempt_id], work) for work in _in_order(found)]

    def _publish_due(self, fate: str) -> None:
        now = self.clock.tick()
        expected = [(run, attempt) for run in self.runs for attempt in run.model.list_due(now)]
        due = self.store.lease_due_tasks(500)
        self._assert_same([dispatch.attempt_id for dispatch in due], expected)
        for run, attempt in expected:
            run.model.lease([attempt], now)
        self._hand_on(due, fate)

    def _send_again(self, fate: str, few: int) -> None:
        """What waits for long, less what somebody is known to hold, is taken for lost."""
        now = self.clock.tick()
        suspects = [(run, attempt) for run in self.runs for attempt in run.model.list_suspects(now)]
        found = self.store.find_sent_before(QUEUE, self.store.read_clock(), 500)
        candidates = [dispatch.attempt_id for dispatch, _ in found]
        self._assert_same(candidates, suspects)
        lost = candidates[few:]
        taken = self.store.lease_lost_tasks(lost)
        assert sorted(dispatch.attempt_id for dispatch in taken) == sorted(lost)
        for attempt_id in lost:
            run, attempt = self.attempts[attempt_id]
            run.model.lease_again([attempt], now)
        self._hand_on(taken, fate)
        if fate == "follows up":
            now = self.clock.tick()
            self.store.mark_resent(lost)
            for attempt_id in lost:
                run, attempt = self.attempts[attempt_id]
                run.model.mark_resent(attempt, now)

    def _take_owed(self) -> None:
        """What nobody did in time."""
        self.clock.tick()
        self._take_in_hand(self.store.lease_owed(500))

    def _take_in_hand(self, owed: Sequence[Owed]) -> None:
        known = {each.id for each in self.hand}
        self.hand += [each for each in owed if each.id not in known]

    def _hire(self) -> str:
        worker_id = new_id()
        self.store.announce_worker(WorkerRow(worker_id, "host", 1, "0", 0, [QUEUE], [], []))
        return worker_id

    def _begin(self, nodes: list[DagNode], run_id: str, key: str) -> Any:
        plugins = {
            name: PluginSnapshot(task_name=name, passthrough=name == "gate") for name in {node.plugin for node in nodes}
        }
        definition = Definition(name="stateful", nodes=nodes, plugins=plugins)
        return self.store.start(definition, check_json(RUN_INPUT, "input"), run_id=run_id, key=key)

    def _start(self, nodes: list[DagNode], fate: str, lose_answer: bool) -> None:
        run_id, key = new_id(), f"key-{len(self.runs)}"
        now = self.clock.tick()
        model = RunModel(nodes, now, launch_batch=LAUNCH_BATCH, cancels_at_once=False)
        self.runs.append(Tracked(run_id, key, nodes, model))
        aftermath = None
        if lose_answer:
            self.store.lose_answer(lambda: self._begin(nodes, run_id, key))
        started = self._begin(nodes, run_id, key)
        assert (started.run.id, started.created) == (run_id, True)
        aftermath = None if lose_answer else started.aftermath
        self._follow_up(self.runs[-1], aftermath, fate)

    def _set_paused(self, run: Tracked, paused: bool) -> bool:
        if run.model.set_paused(paused):
            self.store.set_paused(run.run_id, paused)
            return True
        with pytest.raises(RunStateError):
            self.store.set_paused(run.run_id, paused)
        return False

    def _reconcile(self, run: Tracked, fate: str) -> None:
        run.model.reconcile(self.clock.tick())
        self._follow_up(run, self.store.reconcile(run.run_id), fate)

    def _call(self, call: Callable[[], Aftermath | None], lose_answer: bool) -> Aftermath | None:
        """An answer that was lost is asked for again, and the second says that nothing is left to do."""
        if not lose_answer or not self.store.lose_answer(call):
            return call()
        again = call()
        assert again is not None
        assert again.publish == []
        return None

    def _report(
        self,
        run: Tracked,
        expected: Outcome,
        call: Callable[[], Aftermath | None],
        fate: str,
        lose_answer: bool,
    ) -> None:
        if expected == "done":
            self._follow_up(run, self._call(call, lose_answer), fate)
        elif expected == "repeat":
            assert call() == Aftermath()
        else:
            assert call() is None

    def _complete(self, body: Body, traits: Sequence[int], fate: str, lose_answer: bool) -> None:
        model, key = body.run.model, body.attempt.key
        body.emitted = body.emitted or self.producer.emit(model, body.run.nodes, key, traits)
        expected = model.complete(body.attempt, body.token, body.emitted, self.clock.tick())
        new = [NewArtifact(a, "file", check_json(a.metadata, "metadata")) for a in to_artifacts(body.emitted)]
        self._report(body.run, expected, lambda: self.store.complete(body.work, new, "many"), fate, lose_answer)

    def _claim(
        self, attempt_id: str, worker: str, *, token: str | None = None, lose_answer: bool = False
    ) -> Body | None:
        run, attempt = self.attempts[attempt_id]
        is_repeat = token is not None
        token = token or new_id()
        may_begin = run.model.claim(attempt, token, worker, self.clock.tick())
        if lose_answer:
            self.store.lose_answer(lambda: self.store.claim(attempt_id, token, worker))
        claimed = self.store.claim(attempt_id, token, worker)
        assert isinstance(claimed, Claimed) == may_begin, (attempt, claimed)
        if not isinstance(claimed, Claimed):
            return None
        assert claimed.input_error is None
        assert read_names(claimed.input, RUN_INPUT) == run.model.input_names(attempt.key)
        if is_repeat:
            return None
        assert (run.run_id, attempt) not in self.begun, "a body began twice"
        self.begun.add((run.run_id, attempt))
        self.bodies.append(Body(run, attempt, token, claimed.work))
        return self.bodies[-1]

    def _follow_up(self, run: Tracked, aftermath: Aftermath | None, fate: str) -> None:
        """What a process does after its commit; None: it never heard of that."""
        expected = [(run, attempt) for attempt in run.model.to_publish]
        run.model.to_publish = []
        self._note_attempts()
        if aftermath is None:
            return
        self._assert_same([dispatch.attempt_id for dispatch in aftermath.publish], expected)
        if fate != "dies":
            self._take_in_hand(aftermath.owed)
        self._hand_on(aftermath.publish, fate)

    def _hand_on(self, dispatches: Sequence[Dispatch], fate: str) -> None:
        if fate == "is slow":
            self.unsent += dispatches
        elif fate != "dies":
            self._send(dispatches, marks=fate == "follows up")

    def _send(self, dispatches: Sequence[Dispatch], *, marks: bool) -> None:
        self.messages += [dispatch.attempt_id for dispatch in dispatches]
        now = self.clock.tick()
        sent = [dispatch.attempt_id for dispatch in dispatches if marks and not dispatch.delay]
        self.store.mark_queued(sent, QUEUE)
        for attempt_id in sent:
            run, attempt = self.attempts[attempt_id]
            run.model.publish(attempt, now)

    def _do(self, owed: Owed, *, dies: bool = False) -> None:
        run = next(run for run in self.runs if run.run_id == owed.run_id)
        key = OwedKey(owed.kind, owed.generation, owed.node_index)
        if owed.kind == "callback":
            assert (owed.generation, owed.status) in run.model.endings
            self.delivered.add((run.run_id, owed.generation, owed.status))
            if not dies:
                self.store.settle_owed(owed)
                run.model.owed.pop(key, None)
        elif owed.kind == "cancel":
            self._cancel_rest(run, owed, key, dies)
        else:
            has_more = run.model.continue_launch(key, self.clock.tick())
            aftermath = self._call_launch(owed, dies)
            assert aftermath is None or bool(aftermath.owed) == has_more
            self._follow_up(run, aftermath, "dies" if dies else "follows up")

    def _call_launch(self, owed: Owed, dies: bool) -> Aftermath | None:
        if dies:
            self.store.lose_answer(lambda: self.store.continue_launch(owed))
            return None
        return self.store.continue_launch(owed)

    def _cancel_rest(self, run: Tracked, owed: Owed, key: OwedKey, dies: bool) -> None:
        """Whoever cancels may die between two batches; which tasks are in the first is the store's choice."""
        to_cancel = run.model.list_to_cancel()
        if dies and to_cancel:
            assert self.store.lose_answer(lambda: self.store.cancel_rest(owed))
            rows = {key: row.status for row, key in self._read_tasks(run).values()}
            first = [task for task in to_cancel if rows[task.key] == "cancelled"]
            assert len(first) == min(len(to_cancel), POLICY.cancel_batch)
            for task in first:
                task.status = "cancelled"
            return
        running = [(run, task.attempt) for task in to_cancel if task.status == "running"]
        self._assert_same(self.store.cancel_rest(owed), running)
        run.model.cancel_rest(key)

    def _drain(self) -> None:
        """Sweep, deliver and complete until nothing moves any more."""
        for _ in range(MAX_ROUNDS):
            self.clock.tick(1000.0)
            self._find_lost()
            for lost in self.lost:
                self._rescue(lost, "follows up", lose_answer=False)
            self.lost.clear()
            self._take_owed()
            while self.hand:
                self._do(self.hand.pop(0))
            self._publish_due("follows up")
            self._send_again("follows up", 0)
            while self.messages:
                self._claim(self.messages.pop(0), self.workers[0])
            for body in self._list_waited_for():
                self._complete(body, [0], "follows up", lose_answer=False)
            for run_id in self.store.find_stalled_runs(500):
                self._reconcile(next(run for run in self.runs if run.run_id == run_id), "follows up")
            if all(run.model.is_over and not run.model.owed for run in self.runs):
                return
        raise AssertionError("a run hangs")

    # -- reading the store

    def _attempt_of(self, work: Work) -> AttemptKey:
        return self.attempts[work.attempt.attempt_id][1]

    def _assert_same(self, attempt_ids: Sequence[str], expected: Sequence[tuple[Tracked, AttemptKey]]) -> None:
        found = [(self.attempts[id_][0].run_id, self.attempts[id_][1]) for id_ in attempt_ids]
        assert sorted(found, key=repr) == sorted(((run.run_id, attempt) for run, attempt in expected), key=repr)

    def _rows(self, table: Any, run: Tracked, *order: Any) -> list[Any]:
        with self.store.read() as connection:
            return list(connection.execute(select(table).where(table.c.run_id == run.run_id).order_by(*order)))

    def _note_attempts(self) -> None:
        """Learn what new attempts are attempts at."""
        for run in self.runs:
            self._read_tasks(run)

    def _read_tasks(self, run: Tracked) -> dict[str, tuple[Any, Key]]:
        """Rows with what they are in the model, by id."""
        found = {}
        for row in self._rows(self.store.tables.task, run, self.store.tables.task.c.id):
            key = Key(row.node_index, Item(self._name(row.input_artifact_id), self._name(row.origin_artifact_id)))
            found[row.id] = (row, key)
            self.attempts[row.attempt_id] = (run, AttemptKey(key, row.number))
        return found

    def _name(self, artifact_id: str | None) -> str | None:
        if artifact_id is None:
            return None
        if artifact_id not in self.names:
            artifact = self.store.tables.artifact
            with self.store.read() as connection:
                query = select(artifact.c.file_name).where(artifact.c.id == artifact_id)
                self.names[artifact_id] = connection.execute(query).scalar_one()
        return self.names[artifact_id]

    def _read(self, run: Tracked) -> dict[str, Any]:
        """The run in the store, in the model's words."""
        tables = self.store.tables
        row = self.store.get_run(run.run_id)
        emitted: dict[str, list[tuple[str, str | None]]] = {}
        for artifact in self._rows(tables.artifact, run, tables.artifact.c.task_id, tables.artifact.c.ordinal):
            made = (artifact.file_name, self._name(artifact.origin_artifact_id))
            emitted.setdefault(artifact.task_id, []).append(made)
        tasks = {}
        for task, key in self._read_tasks(run).values():
            assert key not in tasks, f"two tasks for {key}"
            held = (task.claim_token, task.worker_id)
            counts = (task.number, task.retries, task.recoveries)
            tasks[key] = (task.status, *counts, *held, emitted.get(task.id, []))
        return {
            "run": (row.status.value, row.paused, row.generation, row.nodes_done),
            "nodes": [
                (node.status, node.tasks_total, node.tasks_done, node.launch_cursor)
                for node in self.store.get_nodes(run.run_id)
            ],
            "tasks": tasks,
            "owed": {
                OwedKey(owed.kind, owed.generation, owed.node_index): owed.status if owed.kind == "callback" else None
                for owed in self._rows(tables.owed, run)
            },
        }

    def _read_results(self, run: Tracked) -> list[tuple[str, list[tuple[Key, list[str]]]]]:
        """How each node ended, and what its tasks emitted."""
        read = self._read(run)
        results = []
        for index, (status, *_) in enumerate(read["nodes"]):
            tasks = [
                (key, [name for name, _ in task[-1]])
                for key, task in read["tasks"].items()
                if key.node == index and task[0] == "completed"
            ]
            results.append((status, sorted(tasks, key=repr)))
        return results


def _describe(model: RunModel) -> dict[str, Any]:
    """What ``SqlMachine._read`` has to read."""
    return {
        "run": (model.status, model.is_paused, model.generation, model.closed_count()),
        "nodes": [
            (node.status, *((0, 0, 0) if node.status == "blocked" else (len(node.items), node.done, len(node.tasks))))
            for node in model.nodes
        ],
        "tasks": {
            task.key: (
                task.status,
                task.number,
                task.retries,
                task.recoveries,
                task.token,
                task.worker,
                [(artifact.name, artifact.origin) for artifact in task.emitted],
            )
            for task in model.tasks()
        },
        "owed": {key: status if key.kind == "callback" else None for key, status in model.owed.items()},
    }


def _in_order(found: Sequence[Work]) -> list[Work]:
    return sorted(found, key=lambda work: work.attempt.task_id)

"""What follows a run's end (undoing, finalisers), how failures that a node tolerates go on, deadlines, and retries."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, field

import pytest
from sqlalchemy import text, update

from dagabaaz_celery.constants import FanMode, RunStatus, TaskStatus
from dagabaaz_celery.errors import RunStateError, UnknownNode
from dagabaaz_celery.models import DagNode
from dagabaaz_celery.pipeline import Definition, PluginSnapshot
from dagabaaz_celery.stores.sql.dialects import now
from dagabaaz_celery.stores.sql.invariants import find_violations
from dagabaaz_celery.stores.sql.records import Aftermath, ClaimRefused, TaskError
from dagabaaz_celery.stores.sql.store import Claimed, SqlStore, Work
from dagabaaz_celery.stores.sql.tables import new_id
from dagabaaz_celery.stores.sql.transaction import StorePolicy
from tests import services
from tests.integration.sql_stores import records

BOOM = TaskError("ValueError", "boom", "Traceback …")
SERVERS = {"postgresql": services.postgres_url, "mariadb": services.mysql_url}


@pytest.fixture(scope="module", params=["sqlite", *SERVERS])
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SqlStore]:
    """A store with tables of its own, for this module's tests; launches go in batches of three."""
    if request.param in SERVERS:
        url, prefix = SERVERS[request.param](), f"e{new_id()[-8:]}_"
    else:
        url, prefix = f"sqlite:///{tmp_path_factory.mktemp('store') / 'runs.sqlite3'}", "dagabaaz_"
    made = SqlStore(url, prefix=prefix, policy=StorePolicy(launch_batch=3))
    assert made.id  # opened
    yield made
    with made.database.write() as connection:
        made.tables.metadata.drop_all(connection)
        connection.execute(text(f"DROP TABLE {made.tables.prefix}schema_version"))
    made.close()


def node(slug: str, *depends_on: str, rollback: bool = False, **fields: object) -> DagNode:
    return DagNode(slug=slug, plugin="work", depends_on=list(depends_on), rollback="undo" if rollback else "", **fields)


@dataclass
class World:
    """A run with its workers, played: what a commit owes is done at once, and what it publishes waits in ``queue``."""

    store: SqlStore
    run_id: str = ""
    queue: list[str] = field(default_factory=list)
    log: list[str] = field(default_factory=list)

    def start(self, *nodes: DagNode, **given: object) -> "World":
        plugins = {name: PluginSnapshot(task_name=name) for name in ("work", "undo")}
        definition = Definition(name="p", nodes=list(nodes), plugins=plugins)
        started = self.store.start(definition, '{"order": 7}', run_id=new_id(), **given)
        self.run_id = started.run.id
        self.settle(started.aftermath)
        return self

    def settle(self, aftermath: Aftermath | None) -> bool:
        if aftermath is None:
            return False
        self.queue += [dispatch.attempt_id for dispatch in aftermath.publish]
        for owed in sorted(
            aftermath.owed, key=lambda owed: ["cancel", "launch", "epilogue", "callback"].index(owed.kind)
        ):
            if owed.kind == "cancel":
                self.store.cancel_rest(owed)
            elif owed.kind == "launch":
                unfinished = True
                while unfinished:
                    more = self.store.continue_launch(owed)
                    unfinished, more.owed = bool(more.owed), []
                    self.settle(more)
            elif owed.kind == "epilogue":
                self.settle(self.store.follow_end(owed))
            else:
                self.log.append(f"told {owed.status}")
                self.store.settle_owed(owed)
        return True

    def claim_next(self) -> Claimed | None:
        """The next message's claim; None where it is refused."""
        claimed = self.store.claim(self.queue.pop(0), new_id(), None)
        return None if isinstance(claimed, ClaimRefused) else claimed

    def name(self, work: Work) -> str:
        """``slug.ordinal``, with a minus before what undoes."""
        attempt = work.attempt
        definition = self.store.definition_of(work.definition_hash).definition
        return f"{'-' if attempt.node_index < 0 else ''}{definition.node_of(attempt.node_index).slug}.{attempt.ordinal}"

    def work_off(self, *, fail: tuple[str, ...] = (), emit: int = 1) -> list[str]:
        """Run all that is queued and what follows, in order; each body's name is logged."""
        ran: list[str] = []
        while self.queue:
            claimed = self.claim_next()
            if claimed is None:
                continue
            ran.append(self.name(claimed.work))
            if ran[-1] in fail:
                self.settle(self.store.fail(claimed.work, BOOM))
            else:
                self.settle(self.store.complete(claimed.work, records(emit), "one" if emit == 1 else "many"))
        return ran

    @property
    def status(self) -> str:
        return self.store.get_run(self.run_id).status

    @property
    def rollback_status(self) -> str:
        return self.store.get_run(self.run_id).rollback_status

    @property
    def epilogue(self) -> str | None:
        return self.store.get_run(self.run_id).epilogue

    def check(self) -> None:
        assert find_violations(self.store, [self.run_id], at_rest=True) == []


@pytest.fixture
def world(store: SqlStore) -> World:
    return World(store)


# -- failures that a node tolerates


def test_a_failure_ends_nothing_where_its_node_says_continue(world: World):
    world.start(
        node("a"),
        node("b", "a", on_failure="continue"),
        node("c", "b", fan_mode=FanMode.AGGREGATE),
        node("d", "a"),
    )

    ran = world.work_off(fail=("b.0",))

    assert (world.status, ran) == (RunStatus.COMPLETED, ["a.0", "b.0", "d.0"])
    world.check()


def test_with_continue_those_behind_get_what_the_others_made(world: World):
    world.start(node("a"), node("b", "a", on_failure="continue"), node("c", "b"))

    first = world.claim_next()
    world.settle(world.store.complete(first.work, records(4), "many"))
    ran = world.work_off(fail=("b.1", "b.3"))

    assert (world.status, ran) == (RunStatus.COMPLETED, ["b.0", "b.1", "b.2", "b.3", "c.0", "c.1"])
    world.check()


def test_with_skip_those_behind_are_left_out_and_the_run_goes_on(world: World):
    world.start(node("a"), node("b", "a", on_failure="skip"), node("c", "b"), node("d", "c"), node("e", "a"))
    first = world.claim_next()
    world.settle(world.store.complete(first.work, records(2), "many"))

    ran = world.work_off(fail=("b.0",))

    states = [each.status for each in world.store.get_nodes(world.run_id)]
    assert (world.status, ran) == (RunStatus.COMPLETED, ["b.0", "b.1", "e.0", "e.1"])
    assert states == ["completed", "skipped", "skipped", "skipped", "completed"]
    world.check()


def test_a_task_that_is_revoked_counts_as_failed_where_failures_are_tolerated(world: World):
    world.start(node("a"), node("b", "a", on_failure="continue"))
    world.settle(world.store.complete(world.claim_next().work, records(1), "one"))

    world.settle(world.store.fail(world.claim_next().work, BOOM, TaskStatus.CANCELLED))

    assert world.status == RunStatus.COMPLETED
    world.check()


def test_a_crash_ends_the_run_whatever_the_node_says(world: World):
    world.start(node("a", on_failure="continue"))

    world.settle(world.store.fail(world.claim_next().work, BOOM, TaskStatus.CRASHED))

    assert world.status == RunStatus.CRASHED
    world.check()


# -- undoing


def chain(world: World) -> World:
    return world.start(
        node("reserve", rollback=True),
        node("charge", "reserve", rollback=True),
        node("note", "charge"),
        node("ship", "note", rollback=True),
    )


def test_what_was_done_is_undone_in_reverse_order(world: World):
    chain(world)

    ran = world.work_off(fail=("ship.0",))

    assert ran == ["reserve.0", "charge.0", "note.0", "ship.0", "-ship.0", "-charge.0", "-reserve.0"]
    assert (world.status, world.rollback_status, world.epilogue) == (RunStatus.FAILED, "done", None)
    assert world.log == ["told failed"]
    world.check()


def test_what_undoes_gets_the_input_and_the_result_of_what_it_undoes(world: World):
    chain(world)
    world.work_off(fail=("charge.0",))  # nothing is left of the queue: the inputs are read again below

    inputs = {}
    task = world.store.tables.task
    with world.store.read() as connection:
        rows = connection.execute(task.select().where(task.c.run_id == world.run_id, task.c.node_index < 0)).all()
    for row in rows:
        inputs[~row.node_index] = world.store.read_input(row.attempt_id).input

    assert inputs == {0: {"order": 7, "result": {"n": 0}}, 1: {**inputs[1], "n": 0, "result": None}}


def test_nothing_is_undone_of_what_never_began(world: World):
    chain(world)

    world.settle(world.store.cancel(world.run_id, "enough"))

    assert (world.status, world.rollback_status, world.epilogue) == (RunStatus.CANCELLED, "done", None)
    assert world.work_off() == []
    world.check()


def test_a_run_that_completes_undoes_nothing_by_itself(world: World):
    chain(world)

    assert world.work_off() == ["reserve.0", "charge.0", "note.0", "ship.0"]
    assert (world.status, world.rollback_status) == (RunStatus.COMPLETED, "none")
    world.check()


def test_a_completed_run_is_undone_where_somebody_asks_for_it(world: World):
    chain(world)
    world.work_off()

    world.settle(world.store.roll_back(world.run_id))

    assert world.work_off() == ["-ship.0", "-charge.0", "-reserve.0"]
    assert (world.status, world.rollback_status) == (RunStatus.COMPLETED, "done")
    world.check()


def test_what_runs_when_the_run_ends_comes_to_its_end_before_anything_is_undone(world: World):
    world.start(node("a", rollback=True), node("b", rollback=True))
    a, b = world.claim_next(), world.claim_next()

    world.settle(world.store.fail(b.work, BOOM))
    assert (world.epilogue, world.queue) == ("waiting", [])
    assert world.store.is_current(a.work.attempt.attempt_id)
    assert not world.store.is_wanted(a.work.attempt.attempt_id)
    world.settle(world.store.complete(a.work, records(1), "one"))

    assert sorted(world.work_off()) == ["-a.0", "-b.0"]
    assert world.rollback_status == "done"
    world.check()


def test_a_body_that_is_lost_after_the_end_of_its_run_is_undone_and_not_done_again(world: World):
    world.start(node("a", rollback=True), node("b", rollback=True))
    a, b = world.claim_next(), world.claim_next()
    world.settle(world.store.fail(b.work, BOOM))

    world.settle(world.store.rescue(a.work, TaskError("WorkerLost", "gone"), 3))

    assert sorted(world.work_off()) == ["-a.0", "-b.0"]
    world.check()


def test_a_wide_node_is_undone_in_batches_that_a_sweep_can_resume(world: World):
    world.start(node("a", rollback=True), node("b", "a", rollback=True), node("c", "b", fan_mode=FanMode.AGGREGATE))
    world.settle(world.store.complete(world.claim_next().work, records(8), "many"))

    ran = world.work_off(fail=("c.0",))

    assert ran[-9:] == [*(f"-b.{n}" for n in range(8)), "-a.0"]
    assert world.rollback_status == "done"
    world.check()


def test_levels_are_undone_one_after_the_other(world: World):
    world.start(
        node("a", rollback=True),
        node("b", "a", rollback=True),
        node("c", "a", rollback=True),
        node("d", "b", "c", rollback=True, fan_mode=FanMode.AGGREGATE),
    )
    world.work_off(fail=("d.0",))
    assert world.rollback_status == "done"

    again = World(world.store)
    again.start(*world.store.definition_of(world.store.get_run(world.run_id).definition_hash).definition.nodes)
    while len(again.queue) == 1:
        again.settle(again.store.complete(again.claim_next().work, records(1), "one"))
    b, c = again.claim_next(), again.claim_next()
    again.settle(again.store.complete(b.work, records(1), "one"))
    again.settle(again.store.fail(c.work, BOOM))

    first = again.claim_next()
    assert len(again.queue) == 1  # the rest of its level, and nothing of the one before
    again.settle(again.store.complete(first.work, (), "none"))
    assert [again.rollback_status, *again.work_off()] == ["running", "-b.0", "-a.0"]
    again.check()


def test_what_cannot_be_undone_ends_the_rollback_when_its_level_is_over_and_can_be_tried_again(world: World):
    world.start(
        node("a", rollback=True), node("b", "a", rollback=True), node("c", "a", rollback=True), node("d", "b", "c")
    )

    ran = world.work_off(fail=("d.0", "-b.0"))

    assert ran == ["a.0", "b.0", "c.0", "d.0", "-c.0", "-b.0"]
    assert (world.status, world.rollback_status, world.epilogue) == (RunStatus.FAILED, "failed", None)
    world.check()
    with pytest.raises(RunStateError, match=r"could not be undone.*run\.rollback\(\), which tries again"):
        world.store.retry(world.run_id)

    world.settle(world.store.roll_back(world.run_id))

    assert world.work_off() == ["-b.0", "-a.0"]
    assert world.rollback_status == "done"
    world.check()


def test_what_undoes_is_rescued_like_any_task(world: World):
    chain(world)
    world.settle(world.store.complete(world.claim_next().work, records(1), "one"))
    world.settle(world.store.fail(world.claim_next().work, BOOM))
    lost = world.claim_next()

    world.settle(world.store.rescue(lost.work, TaskError("WorkerLost", "gone"), 3))

    assert world.store.complete(lost.work, (), "none") is None
    assert world.work_off() == ["-charge.0", "-reserve.0"]
    assert world.rollback_status == "done"
    world.check()


def test_what_undoes_and_is_lost_too_often_fails_the_rollback(world: World):
    chain(world)
    world.settle(world.store.fail(world.claim_next().work, BOOM))

    for _ in range(2):
        world.settle(world.store.rescue(world.claim_next().work, TaskError("WorkerLost", "gone"), 1))

    assert (world.status, world.rollback_status) == (RunStatus.FAILED, "failed")
    world.check()


def test_a_run_is_not_undone_twice_nor_while_it_runs_nor_without_anything_to_undo_it_by(world: World):
    chain(world)
    with pytest.raises(RunStateError, match="Cancel it first"):
        world.store.roll_back(world.run_id)
    world.work_off(fail=("reserve.0",))
    with pytest.raises(RunStateError, match="was undone already"):
        world.store.roll_back(world.run_id)

    world.start(node("a"))
    world.work_off()
    with pytest.raises(RunStateError, match="no node of pipeline 'p' has a rollback"):
        world.store.roll_back(world.run_id)


def test_a_retry_is_refused_while_the_run_is_undone_and_afterwards_does_again_what_was_undone(world: World):
    world.start(node("a"), node("b", "a", rollback=True), node("c", "b"), node("d", "a"), node("e", "c", "d"))
    for _ in range(3):
        world.settle(world.store.complete(world.claim_next().work, records(1), "one"))
    world.settle(world.store.fail(world.claim_next().work, BOOM))
    with pytest.raises(RunStateError, match="is being undone"):
        world.store.retry(world.run_id)
    assert world.work_off() == ["-b.0"]

    world.settle(world.store.retry(world.run_id))

    ran = world.work_off()
    assert (world.status, world.rollback_status) == (RunStatus.COMPLETED, "none")
    assert ran[:1] + sorted(ran[1:]) == ["b.0", "c.0", "e.0", "e.1"]
    world.check()


def test_a_body_that_celery_is_to_retry_has_begun_and_is_undone(world: World):
    world.start(node("a", rollback=True), node("b"))
    a, b = world.claim_next(), world.claim_next()
    world.store.lend_to_celery(a.work.attempt.attempt_id, delay=3.0, retries=1)

    world.settle(world.store.fail(b.work, BOOM))

    assert world.work_off() == ["-a.0"]
    assert world.rollback_status == "done"


def test_a_body_that_could_not_begin_is_not_undone(world: World):
    world.start(node("a", rollback=True), node("b", "a", rollback=True))
    world.settle(world.store.complete(world.claim_next().work, records(1), "one"))

    world.settle(world.store.fail(world.claim_next().work, BOOM, began=False))

    assert world.work_off() == ["-a.0"]
    assert world.rollback_status == "done"
    world.check()


def test_in_the_middle_of_a_wide_rollback_nothing_contradicts_itself(world: World):
    world.start(node("a"), node("b", "a", rollback=True), node("c", "a"), node("d", "b", fan_mode=FanMode.AGGREGATE))
    cut_short = world.store.complete(world.claim_next().work, records(8), "many")
    launches, cut_short.owed = {owed.node_index: owed for owed in cut_short.owed}, []
    world.settle(cut_short)
    world.settle(Aftermath(owed=[launches[1]]))
    while len(world.queue) > 1:
        claimed = world.claim_next()
        emitted = (records(1), "one") if world.name(claimed.work) != "c.0" else ((), "none")
        world.settle(world.store.complete(claimed.work, *emitted))
    last = world.claim_next()
    ended = {owed.kind: owed for owed in world.store.fail(last.work, BOOM).owed}
    world.store.cancel_rest(ended["cancel"])
    world.store.continue_launch(launches[2])  # which gives it up, as the run has ended

    begun = world.store.follow_end(ended["epilogue"])
    [rest], begun.owed = begun.owed, []  # whoever is to go on with it is killed
    world.settle(begun)

    assert world.work_off() == [f"-b.{n}" for n in range(3)]
    assert find_violations(world.store, [world.run_id]) == []
    world.settle(Aftermath(owed=[rest, ended["callback"]]))
    assert world.work_off() == [f"-b.{n}" for n in range(3, 8)]
    assert world.rollback_status == "done"
    world.check()


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"rollback_status": "running"}, "has a rollback that is running, and its epilogue is None"),
        ({"rollback_status": "failed"}, "could not be undone, and of no node this is said"),
        ({"rollback_status": "none"}, "is not being undone, and nodes are completed"),
    ],
)
def test_a_rollback_that_contradicts_its_nodes_is_named(world: World, values: dict[str, str], sentence: str):
    chain(world)
    world.work_off(fail=("ship.0",))

    run = world.store.tables.run
    with world.store.database.write() as connection:
        connection.execute(update(run).where(run.c.id == world.run_id).values(values))

    assert find_violations(world.store, [world.run_id]) == [f"run {world.run_id}: {sentence}"]


def test_a_task_that_began_and_is_forgotten_by_the_rollback_is_named(world: World):
    chain(world)
    world.work_off(fail=("ship.0",))

    task, node_ = world.store.tables.task, world.store.tables.node
    with world.store.database.write() as connection:
        for table in (task, node_):
            connection.execute(table.delete().where(table.c.run_id == world.run_id, table.c.node_index == ~1))

    assert find_violations(world.store, [world.run_id]) == [
        f"run {world.run_id}: undoes 0 tasks of node 'charge', and 1 began"
    ]


def test_who_tries_a_rollback_again_waits_for_tasks_before_holding_the_run(world: World):
    if world.store.database.engine.dialect.name == "sqlite":
        pytest.skip("whoever writes there holds everything")
    chain(world)
    world.work_off(fail=("ship.0", "-ship.0"))
    task, run = world.store.tables.task, world.store.tables.run
    held = task.select().where(task.c.run_id == world.run_id, task.c.node_index < 0).with_for_update()
    free = run.select().where(run.c.id == world.run_id).with_for_update(nowait=True)

    with ThreadPoolExecutor(1) as pool:
        with world.store.database.write() as connection:
            assert connection.execute(held).all()
            tried = pool.submit(world.store.roll_back, world.run_id)
            assert wait([tried], timeout=0.5).not_done
            assert connection.execute(free).one().rollback_status == "failed"
        world.settle(tried.result(timeout=20))

    assert world.work_off() == ["-ship.0", "-charge.0", "-reserve.0"]


def test_what_follows_the_end_of_a_cancelled_run_is_not_among_what_its_cancellation_may_terminate(world: World):
    world.start(node("a", rollback=True), node("b", rollback=True))
    a = world.claim_next()
    ended = {owed.kind: owed for owed in world.store.cancel(world.run_id, "enough").owed}
    world.store.cancel_rest(ended["cancel"])
    assert world.store.find_outlasting(ended["cancel"]) == [a.work.attempt.attempt_id]
    world.settle(world.store.complete(a.work, records(1), "one"))

    assert world.claim_next() is None  # of b
    undoing = world.claim_next()

    assert undoing.work.attempt.node_index < 0
    assert world.store.find_outlasting(ended["cancel"]) == []


def test_a_late_cancellation_of_an_older_generation_leaves_bodies_alone_that_are_waited_for(
    world: World, monkeypatch: pytest.MonkeyPatch
):
    world.start(node("a", rollback=True), node("b", rollback=True))
    a = world.claim_next()
    ended = {owed.kind: owed for owed in world.store.fail(a.work, BOOM).owed}
    world.settle(Aftermath(owed=list(ended.values())))
    world.work_off()
    world.settle(world.store.retry(world.run_id))
    a, b = world.claim_next(), world.claim_next()
    get, late = world.store.rows.runs.get, [b.work]

    def get_and_end(*given: object) -> object:
        found = get(*given)
        while late:  # between the look at the run and the first batch its next generation ends, too
            world.settle(world.store.fail(late.pop(), BOOM))
        return found

    if world.store.database.engine.dialect.name != "sqlite":  # where whoever looks holds up whoever writes
        monkeypatch.setattr(world.store.rows.runs, "get", get_and_end)
        world.store.cancel_rest(ended["cancel"])
        assert (world.epilogue, world.queue) == ("waiting", [])
        assert world.store.complete(a.work, records(1), "one") is not None


# -- finalisers


def finalised(world: World, **given: object) -> World:
    return world.start(
        node("a", rollback=True),
        node("good", run_on="success"),
        node("bad", run_on="failure", fan_mode=FanMode.AGGREGATE),
        node("both", "a", run_on="always", fan_mode=FanMode.AGGREGATE),
        **given,
    )


def test_finalisers_run_after_everything_else(world: World):
    finalised(world)

    assert world.work_off() == ["a.0", "good.0", "both.0"]
    assert (world.status, world.epilogue, world.log) == (RunStatus.COMPLETED, None, ["told completed"])
    assert [each.status for each in world.store.get_nodes(world.run_id)] == [
        "completed", "completed", "skipped", "completed",
    ]  # fmt: skip
    world.check()


def test_after_a_failure_they_run_when_it_was_undone(world: World):
    finalised(world)

    assert world.work_off(fail=("a.0",)) == ["a.0", "-a.0", "bad.0", "both.0"]
    assert (world.status, world.rollback_status, world.epilogue) == (RunStatus.FAILED, "done", None)
    world.check()


def test_a_finaliser_that_fails_changes_nothing_of_its_run(world: World):
    finalised(world)

    assert world.work_off(fail=("good.0",)) == ["a.0", "good.0", "both.0"]
    assert (world.status, world.epilogue) == (RunStatus.COMPLETED, None)
    assert [each.status for each in world.store.get_nodes(world.run_id)][1] == "failed"
    world.check()


def test_a_finaliser_gets_what_its_dependencies_made_and_none_is_no_reason_not_to_run(world: World):
    finalised(world)
    world.work_off(fail=("a.0", "-a.0"))

    task = world.store.tables.task
    with world.store.read() as connection:
        last = connection.execute(task.select().where(task.c.run_id == world.run_id, task.c.node_index == 3)).one()
    assert last.status == "completed"
    assert world.store.read_input(last.attempt_id).input == {"artifacts": []}
    assert world.rollback_status == "failed"
    world.check()


def test_after_a_retry_finalisers_run_again(world: World):
    finalised(world)
    world.work_off(fail=("a.0",))

    world.settle(world.store.retry(world.run_id))

    assert world.work_off() == ["a.0", "good.0", "both.0"]
    assert world.status == RunStatus.COMPLETED
    world.check()


# -- retry from a node


def test_a_retry_from_a_node_runs_it_and_what_depends_on_it_and_nothing_else(world: World):
    world.start(node("a"), node("b", "a"), node("c", "b", fan_mode=FanMode.AGGREGATE), node("d", "a"))
    world.settle(world.store.complete(world.claim_next().work, records(3), "many"))
    world.work_off()
    ids = {row.id for row in rows_of(world, 1)}

    world.settle(world.store.retry(world.run_id, from_node="b"))

    assert world.work_off() == ["b.0", "b.1", "b.2", "c.0"]
    assert {row.id for row in rows_of(world, 1)} == ids  # the same tasks, in another attempt
    assert [row.number for row in rows_of(world, 1)] == [2, 2, 2]
    assert (world.status, world.store.get_run(world.run_id).generation) == (RunStatus.COMPLETED, 2)
    world.check()


def rows_of(world: World, index: int) -> list[object]:
    task = world.store.tables.task
    with world.store.read() as connection:
        return list(connection.execute(task.select().where(task.c.run_id == world.run_id, task.c.node_index == index)))


def test_a_retry_from_a_node_of_a_failed_run_also_does_what_failed_elsewhere(world: World):
    world.start(node("a"), node("b", "a"), node("c"), node("d", "c"))
    world.work_off(fail=("d.0",))

    world.settle(world.store.retry(world.run_id, from_node="a"))

    assert sorted(world.work_off()) == ["a.0", "b.0", "d.0"]
    assert world.status == RunStatus.COMPLETED
    world.check()


def test_a_retry_from_what_was_skipped_launches_it_anew(world: World):
    world.start(node("a"), node("b", "a", on_failure="skip"), node("c", "b"))
    world.work_off(fail=("b.0",))

    world.settle(world.store.retry(world.run_id, from_node="b"))

    assert world.work_off() == ["b.0", "c.0"]
    assert world.status == RunStatus.COMPLETED
    world.check()


def test_a_retry_from_no_such_node_or_of_an_open_run_is_refused(world: World):
    world.start(node("a"))
    with pytest.raises(UnknownNode, match="no node 'x' to be retried from: it has a"):
        world.store.retry(world.run_id, from_node="x")
    with pytest.raises(RunStateError, match="once it has ended"):
        world.store.retry(world.run_id, from_node="a")
    world.work_off()
    with pytest.raises(RunStateError, match="name the node to begin at"):
        world.store.retry(world.run_id)


# -- deadlines


def test_a_task_that_runs_longer_than_its_node_allows_is_overdue(world: World):
    world.start(node("a", timeout=10.0))
    work = world.claim_next().work
    assert [found.attempt for found, _ in world.store.find_overdue_tasks(10)] == []
    task = world.store.tables.task
    with world.store.database.write() as connection:
        late = update(task).where(task.c.run_id == world.run_id).values(claimed_at=now() - 11_500_000)
        connection.execute(late)

    ((found, timeout),) = [
        each for each in world.store.find_overdue_tasks(10) if each[0].attempt.run_id == world.run_id
    ]

    assert (found.attempt.attempt_id, timeout) == (work.attempt.attempt_id, 10.0)
    world.settle(world.store.fail(found, TaskError("DeadlineExceeded", "too long")))
    assert world.status == RunStatus.FAILED
    assert world.store.complete(work, (), "none") is None
    world.check()


def test_where_a_run_is_undone_a_pool_has_the_time_to_end_the_body_first(world: World):
    world.start(node("a", timeout=10.0, rollback=True))
    work = world.claim_next().work
    task = world.store.tables.task

    def find(micros: int) -> list[str]:
        with world.store.database.write() as connection:
            late = update(task).where(task.c.run_id == world.run_id).values(claimed_at=now() - micros)
            connection.execute(late)
        return [found.attempt.attempt_id for found, _ in world.store.find_overdue_tasks(10)]

    assert work.attempt.attempt_id not in find(15_500_000)
    assert work.attempt.attempt_id in find(16_500_000)


def test_a_run_that_takes_longer_than_it_may_fails(world: World):
    world.start(node("a"), timeout=0.000001)

    assert world.run_id in world.store.find_overdue_runs(100)
    world.settle(world.store.expire(world.run_id))

    run = world.store.get_run(world.run_id)
    assert (run.status, run.error["type"]) == (RunStatus.FAILED, "DeadlineExceeded")
    assert world.run_id not in world.store.find_overdue_runs(100)
    world.check()


def test_a_run_with_time_left_does_not_expire_and_a_retry_gets_the_whole_time_again(world: World):
    world.start(node("a"), timeout=1000.0)

    assert world.run_id not in world.store.find_overdue_runs(100)
    world.settle(world.store.expire(world.run_id))
    assert world.status == RunStatus.RUNNING
    world.work_off(fail=("a.0",))
    world.settle(world.store.retry(world.run_id))
    assert world.work_off() == ["a.0"]
    assert world.status == RunStatus.COMPLETED

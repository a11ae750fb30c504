"""The rules on tasks, artifacts and what is owed: each a query that finds only the rows that break it.

A database checks a wide run by these without handing its rows over, so that looking at a run of 100,000 tasks takes as
little memory as looking at one of ten.
"""

from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Select, Table, and_, bindparam, case, distinct, exists, func, not_, or_, select

from dagabaaz_celery.constants import TASK_TERMINAL_STATUSES, TaskStatus
from dagabaaz_celery.stores.sql.tables import BUSY_EPILOGUES, OPEN_TASK_STATUSES, Tables

_NEVER_SENT = (TaskStatus.SKIPPED, TaskStatus.FILTERED, TaskStatus.FAILED)


@dataclass(frozen=True, slots=True)
class Rule:
    """What is wrong with a row that ``select`` finds in the runs ``b_runs``.

    The sentence is filled from the row, which has its ``run_id``; one with a ``node_index`` gives the sentence the
    node's ``slug`` too. ``fenced_only``: a task whose retries Celery makes itself is not meant.
    """

    sentence: str
    select: Select[Any]
    fenced_only: bool = False


def build_rules(tables: Tables) -> list[Rule]:
    """Every rule that is a query."""
    run, definition = tables.run, tables.definition
    is_defined = exists().where(definition.c.hash == run.c.definition_hash)
    undefined = select(run.c.id.label("run_id"), run.c.definition_hash).where(
        run.c.id.in_(bindparam("b_runs", expanding=True)), not_(is_defined)
    )
    return [
        Rule("its definition {definition_hash} is not there", undefined),
        *_rules_on_tasks(tables),
        *_rules_on_history(tables),
        *_rules_on_references(tables),
        *_rules_on_artifacts(tables),
        *_rules_on_owed(tables),
    ]


def in_runs(table: Table) -> ColumnElement[bool]:
    """The rows of the runs that are looked at."""
    return table.c.run_id.in_(bindparam("b_runs", expanding=True))


def _rules_on_tasks(tables: Tables) -> list[Rule]:
    task = tables.task
    is_open = task.c.status.in_(OPEN_TASK_STATUSES)
    has_ended = task.c.status.in_(tuple(TASK_TERMINAL_STATUSES))

    def rule(problem: str, *where: ColumnElement[bool], fenced_only: bool = False) -> Rule:
        columns = (task.c.run_id, task.c.node_index, task.c.id, task.c.status, task.c.number)
        counts = (task.c.retries, task.c.recoveries)
        found = select(*columns, *counts).where(in_runs(task), *where).order_by(task.c.id)
        return Rule("task {id} of node {slug!r}: " + problem, found, fenced_only)

    work = (task.c.run_id, task.c.node_index, task.c.input_artifact_id, task.c.origin_artifact_id)
    same_work = select(*work, func.count().label("count")).where(in_runs(task)).group_by(*work)
    return [
        rule("runs and nobody claimed it", task.c.status == TaskStatus.RUNNING, task.c.claim_token.is_(None)),
        rule(
            "is {status} and claimed",
            task.c.status.in_((TaskStatus.PENDING, TaskStatus.QUEUED)),
            task.c.claim_token.is_not(None),
        ),
        rule("is queued and was never published", task.c.status == TaskStatus.QUEUED, task.c.queued_at.is_(None)),
        rule("is {status} and has an end", is_open, task.c.ended_at.is_not(None)),
        rule("is {status} and has no end", has_ended, task.c.number > 0, task.c.ended_at.is_(None)),
        rule("is {status} and was never sent", task.c.number == 0, task.c.status.not_in(_NEVER_SENT)),
        rule(
            "counts {recoveries} recoveries and {retries} retries in {number} attempts",
            task.c.number > 0,
            task.c.recoveries + task.c.retries > task.c.number - 1,
            fenced_only=True,
        ),
        Rule("node {slug!r}: has {count} tasks for the same work", same_work.having(func.count() > 1)),
    ]


def _rules_on_history(tables: Tables) -> list[Rule]:
    task, attempt = tables.task, tables.attempt
    of_task = (attempt.c.run_id == task.c.run_id, attempt.c.task_id == task.c.id)
    count = select(func.count(distinct(attempt.c.number))).where(*of_task).scalar_subquery()
    last = select(func.coalesce(func.max(attempt.c.number), 0)).where(*of_task).scalar_subquery()
    replaced = case((task.c.number > 0, task.c.number - 1), else_=0)
    columns = (task.c.run_id, task.c.node_index, task.c.id, task.c.number)
    return [
        Rule(
            "task {id} of node {slug!r}: is at attempt {number} and its history has {count}, the last of them {last}",
            select(*columns, count.label("count"), last.label("last")).where(
                in_runs(task), or_(count != replaced, last != replaced)
            ),
        ),
        Rule(
            "task {id} of node {slug!r}: its current attempt is in its history too",
            select(*columns).join(attempt, attempt.c.attempt_id == task.c.attempt_id).where(in_runs(task)),
        ),
        Rule(
            "attempt {attempt_id} belongs to task {task_id}, which is not there",
            select(attempt.c.run_id, attempt.c.attempt_id, attempt.c.task_id).where(
                in_runs(attempt), not_(exists().where(task.c.id == attempt.c.task_id))
            ),
        ),
    ]


def _rules_on_references(tables: Tables) -> list[Rule]:
    task, artifact = tables.task, tables.artifact
    origin = artifact.alias("origin")

    def rule(subject: str, table: Table, column: str, verb: str) -> Rule:
        named = table.c[column]
        is_there = exists().where(origin.c.id == named, origin.c.run_id == table.c.run_id)
        found = select(table.c.run_id, table.c.node_index, table.c.id, named.label("other")).where(
            in_runs(table), named.is_not(None), not_(is_there)
        )
        return Rule(f"{subject} {{id}} of node {{slug!r}}: {verb} artifact {{other}}, which is not there", found)

    undone = task.alias("undone")
    has_undone = exists().where(
        undone.c.run_id == task.c.run_id,
        undone.c.node_index == -1 - task.c.node_index,
        undone.c.ordinal == task.c.ordinal,
    )
    undoing = select(task.c.run_id, task.c.node_index, task.c.id, task.c.ordinal).where(in_runs(task))
    no_task = not_(exists().where(task.c.id == artifact.c.task_id))
    return [
        rule("task", task, "input_artifact_id", "reads"),
        Rule(
            "task {id} of node {slug!r} undoes number {ordinal}, which is not there",
            undoing.where(task.c.node_index < 0, not_(has_undone)),
        ),
        rule("task", task, "origin_artifact_id", "gathers what goes back to"),
        rule("artifact", artifact, "origin_artifact_id", "goes back to"),
        Rule(
            "artifact {id} of node {slug!r} belongs to task {task_id}, which is not there",
            select(artifact.c.run_id, artifact.c.node_index, artifact.c.id, artifact.c.task_id).where(
                in_runs(artifact), no_task
            ),
        ),
    ]


def _rules_on_artifacts(tables: Tables) -> list[Rule]:
    task, artifact = tables.task, tables.artifact
    columns = (artifact.c.run_id, artifact.c.node_index, artifact.c.task_id)
    count = func.count().label("count")
    # Begins with the artifacts: a task is found by its id, and no index finds the artifacts of a task.
    with_task = (
        select(*columns, task.c.status, task.c.result_shape, count)
        .select_from(artifact.join(task, task.c.id == artifact.c.task_id))
        .where(in_runs(artifact))
        .group_by(*columns, task.c.status, task.c.result_shape)
    )
    by_task = select(*columns, count).where(in_runs(artifact)).group_by(*columns)
    misplaced = or_(
        artifact.c.run_id != task.c.run_id,
        artifact.c.node_index != task.c.node_index,
        artifact.c.task_ordinal != task.c.ordinal,
    )
    # By nodes, for the same reason: a task that has none is found by no artifact. What undoes another has none.
    gave_one = (task.c.status == TaskStatus.COMPLETED, task.c.result_shape == "one", task.c.node_index >= 0)
    of_node = (task.c.run_id, task.c.node_index)
    tasks = select(*of_node, count).where(in_runs(task), *gave_one).group_by(*of_node).subquery()
    owners = artifact.join(task, task.c.id == artifact.c.task_id)
    theirs = select(*of_node, count).select_from(owners).where(in_runs(artifact), *gave_one).group_by(*of_node)
    made = theirs.subquery()
    is_same = and_(made.c.run_id == tasks.c.run_id, made.c.node_index == tasks.c.node_index)
    found = func.coalesce(made.c.count, 0)
    lacking = (
        select(tasks.c.run_id, tasks.c.node_index, tasks.c.count.label("tasks"), found.label("artifacts"))
        .select_from(tasks.outerjoin(made, is_same))
        .where(found < tasks.c.count)
    )
    subject = "task {task_id} of node {slug!r}: "
    return [
        Rule("node {slug!r}: {tasks} tasks gave back one value each, and {artifacts} are there", lacking),
        Rule(subject + "is {status} and has {count} artifacts", with_task.where(task.c.status != TaskStatus.COMPLETED)),
        Rule(
            subject + "has artifacts whose ordinals are not 0, 1, 2, …",
            by_task.having(
                or_(
                    func.min(artifact.c.ordinal) != 0,
                    func.max(artifact.c.ordinal) != func.count() - 1,
                    func.count(distinct(artifact.c.ordinal)) != func.count(),
                )
            ),
        ),
        Rule(
            subject + "gave back {result_shape!r} and has {count} artifacts",
            with_task.where(task.c.status == TaskStatus.COMPLETED, task.c.result_shape.in_(("none", "one"))).having(
                or_(task.c.result_shape == "none", func.count() != 1)
            ),
        ),
        Rule(
            subject + "has {count} artifacts that stand at another run, node or place than it does",
            with_task.where(misplaced),
        ),
    ]


def _rules_on_owed(tables: Tables) -> list[Rule]:
    run, node, task, owed = tables.run, tables.node, tables.task, tables.owed
    columns = (owed.c.run_id, owed.c.kind, owed.c.status, owed.c.generation, run.c.status.label("run_status"))
    joined = select(*columns).join(run, run.c.id == owed.c.run_id).where(in_runs(owed))
    is_now = owed.c.generation == run.c.generation
    is_busy = func.coalesce(run.c.epilogue, "").in_(BUSY_EPILOGUES)

    def is_owed(kind: str, *where: ColumnElement[bool]) -> ColumnElement[bool]:
        return exists().where(owed.c.run_id == run.c.id, is_now, owed.c.kind == kind, *where)

    is_open = and_(task.c.run_id == run.c.id, task.c.status.in_(OPEN_TASK_STATUSES))
    open_tasks = (
        select(task.c.run_id, run.c.status, func.count().label("count"))
        .join(run, is_open)
        .where(in_runs(task))
        .group_by(task.c.run_id, run.c.status)
    )
    return [
        Rule(
            "is owed a {kind} of generation {generation}, which it has not reached",
            joined.where(owed.c.generation > run.c.generation),
        ),
        Rule(
            "is {run_status} and owed a callback that says {status}",
            joined.where(owed.c.kind == "callback", is_now, owed.c.status != run.c.status),
        ),
        Rule("is completed with {count} open tasks", open_tasks.where(run.c.status == "completed", not_(is_busy))),
        Rule(
            "is {status} with {count} open tasks, and nobody is to cancel them",
            open_tasks.where(
                run.c.status.in_(("failed", "crashed", "cancelled")),
                not_(is_busy),
                not_(is_owed("cancel")),
                not_(is_owed("epilogue")),
            ),
        ),
        Rule(
            "waits for its last bodies, and nobody is to go on",
            select(run.c.id.label("run_id")).where(
                run.c.id.in_(bindparam("b_runs", expanding=True)),
                run.c.epilogue == "waiting",
                not_(is_owed("epilogue")),
            ),
        ),
        Rule(
            "is in its epilogue ({epilogue}) with nothing open",
            select(run.c.id.label("run_id"), run.c.epilogue).where(
                run.c.id.in_(bindparam("b_runs", expanding=True)),
                is_busy,
                not_(exists().where(is_open)),
                not_(is_owed("launch", owed.c.node_index < 0)),  # the rest of a wide rollback
            ),
        ),
        Rule(
            "node {slug!r}: is being launched, and nobody is to go on",
            select(node.c.run_id, node.c.node_index)
            .join(run, run.c.id == node.c.run_id)
            .where(
                in_runs(node),
                node.c.status == "launching",
                # What the run's end cut short is launched by nobody: a retry goes on with it.
                or_(run.c.status == "running", and_(is_busy, node.c.node_index < 0)),
                not_(is_owed("launch", owed.c.node_index == node.c.node_index)),
            ),
        ),
    ]

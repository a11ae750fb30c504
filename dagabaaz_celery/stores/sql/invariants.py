"""What must hold of every run in a store, checked on the rows themselves: foreign keys and more, without their locks.

Meant for tests after a fault, and for whoever suspects a store. It reads a few runs at a time, each as of one moment,
so that a store in use may be looked at too::

    python -m dagabaaz_celery.stores.sql.invariants postgresql+psycopg://user@host/database
"""

import argparse
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, bindparam, exists, func, not_, select
from sqlalchemy.exc import DBAPIError

from dagabaaz_celery.constants import RUN_TERMINAL_STATUSES, TASK_DONE_STATUSES, TASK_TERMINAL_STATUSES, RunStatus
from dagabaaz_celery.errors import DagabaazError, Remedy, StoreError, UnknownRun
from dagabaaz_celery.stores.sql.command_line import end_quietly
from dagabaaz_celery.stores.sql.definitions import CachedDefinition
from dagabaaz_celery.stores.sql.invariant_rules import Rule, build_rules, in_runs
from dagabaaz_celery.stores.sql.store import SqlStore
from dagabaaz_celery.stores.sql.tables import CLOSED_NODE_STATUSES, OPEN_TASK_STATUSES, Tables, is_id

#: Runs that are read in one transaction.
_BATCH = 50
#: Rows that are named of those in one run that break the same rule; the others are counted.
_SHOWN = 5


def find_violations(store: SqlStore, run_ids: Sequence[str] | None = None, *, at_rest: bool = False) -> list[str]:
    """Every broken invariant, each as a sentence that names its run; empty when all is well.

    Without ``run_ids`` every run is looked at, and rows that belong to no run. ``at_rest``: nothing is meant to be
    going on any more, so that every run has ended and nothing is owed. Raises UnknownRun.
    """
    return list(iterate_violations(store, run_ids, at_rest=at_rest))


def iterate_violations(
    store: SqlStore, run_ids: Sequence[str] | None = None, *, at_rest: bool = False
) -> Iterator[str]:
    """``find_violations`` as it goes, for stores of any size: memory is bounded by the largest graph, not by tasks."""
    if run_ids is None:
        with store.read(one_moment=True) as connection:
            orphans = list(_find_orphans(store.tables, connection))
        yield from orphans
    for batch in _batches(store, run_ids):
        with store.read(one_moment=True) as connection:
            found = _BatchCheck(store, connection, batch).find(at_rest, strict=run_ids is not None)
        yield from found


def _batches(store: SqlStore, run_ids: Sequence[str] | None) -> Iterator[Sequence[str]]:
    if run_ids is not None:
        wanted = list(dict.fromkeys(run_ids))
        yield from (wanted[start : start + _BATCH] for start in range(0, len(wanted), _BATCH))
        return
    run, last = store.tables.run, None
    while True:
        # Of what retention has given up something is gone already, and that is no contradiction.
        query = select(run.c.id).where(run.c.pruned_at.is_(None)).order_by(run.c.id).limit(_BATCH)
        with store.read() as connection:
            batch = list(connection.execute(query if last is None else query.where(run.c.id > last)).scalars())
        if not batch:
            return
        yield batch
        last = batch[-1]


def _find_orphans(tables: Tables, connection: Connection) -> Iterator[str]:
    for child in (tables.tag, tables.node, tables.task, tables.attempt, tables.artifact, tables.owed):
        orphans = select(func.count()).select_from(child).where(not_(exists().where(tables.run.c.id == child.c.run_id)))
        if count := connection.execute(orphans).scalar_one():
            yield f"table {child.name} has {count} rows of runs that are not there"


class _Queries:
    """What is asked of each batch of runs, built once for a store's tables."""

    def __init__(self, tables: Tables) -> None:
        run, node, task = tables.run, tables.node, tables.task
        self.rules = build_rules(tables)
        is_wanted = run.c.id.in_(bindparam("b_runs", expanding=True))
        self.runs = select(run).where(is_wanted, run.c.pruned_at.is_(None)).order_by(run.c.id)
        self.nodes = select(node).where(in_runs(node)).order_by(node.c.run_id, node.c.node_index)
        by_node = (task.c.run_id, task.c.node_index)
        self.statuses = (
            select(*by_node, task.c.status, func.count()).where(in_runs(task)).group_by(*by_node, task.c.status)
        )
        self.ordinals = (
            select(*by_node, func.min(task.c.ordinal), func.max(task.c.ordinal), func.count(task.c.ordinal.distinct()))
            .where(in_runs(task))
            .group_by(*by_node)
        )
        self.owed = select(tables.owed).where(in_runs(tables.owed)).order_by(tables.owed.c.id)


_build_queries = lru_cache(maxsize=8)(_Queries)


class _BatchCheck:
    """A few runs as of one moment, and what is wrong with them."""

    def __init__(self, store: SqlStore, connection: Connection, run_ids: Sequence[str]) -> None:
        if wrong := [run_id for run_id in run_ids if not is_id(run_id)]:
            raise UnknownRun(f"{wrong[0]!r} is no run id, so that no run can have it.")
        self._connection = connection
        self._tasks = store.rows.tasks
        self._key = {"b_runs": list(run_ids)}
        self._queries = _build_queries(store.tables)
        self._runs = {row.id: row for row in self._all(self._queries.runs)}
        self._missing = [run_id for run_id in run_ids if run_id not in self._runs]
        self._definitions = {run.id: _find_definition(store, connection, run) for run in self._runs.values()}
        self._nodes: dict[str, dict[int, Any]] = defaultdict(dict)
        for row in self._all(self._queries.nodes):
            self._nodes[row.run_id][row.node_index] = row
        self._statuses: dict[tuple[str, int], dict[str, int]] = defaultdict(dict)
        for run_id, index, status, count in self._all(self._queries.statuses):
            self._statuses[run_id, index][status] = count
        self._ordinals = {(row[0], row[1]): tuple(row[2:]) for row in self._all(self._queries.ordinals)}

    def find(self, at_rest: bool, *, strict: bool) -> list[str]:
        """Each broken invariant, by run. ``strict``: a run that is not there is the caller's mistake."""
        if strict and self._missing:
            raise UnknownRun(f"The store has no run {self._missing[0]}.", remedy=Remedy.LIST_RUNS)
        found: dict[str, list[str]] = {run_id: [] for run_id in self._runs}
        for run_id, run in self._runs.items():
            found[run_id] += self._check_run(run)
            found[run_id] += self._check_nodes(run_id)
        for rule in self._queries.rules:
            for run_id, sentence in self._apply(rule):
                found[run_id].append(sentence)
        if at_rest:
            for run_id, sentence in self._check_rest():
                found[run_id].append(sentence)
        return [f"run {run_id}: {sentence}" for run_id, sentences in found.items() for sentence in sentences]

    def _all(self, query: Any) -> Any:
        return self._connection.execute(query, self._key)

    def _slug(self, run_id: str, index: int) -> str:
        definition, place = self._definitions[run_id], max(index, ~index)
        if definition is None or place not in range(len(definition.topology.nodes)):
            return f"#{index}"
        slug = definition.topology.nodes[place].slug
        return slug if index >= 0 else f"{slug}, undone"

    def _follows_end(self, run_id: str, index: int) -> bool:
        """Whether a node's tasks run after the run's end: those that undo others, and finalisers."""
        definition = self._definitions[run_id]
        return index < 0 or (definition is not None and index in definition.topology.finalisers)

    def _check_run(self, run: Any) -> Iterator[str]:
        nodes = {index: node for index, node in self._nodes[run.id].items() if not self._follows_end(run.id, index)}
        closed = sum(node.status in CLOSED_NODE_STATUSES for node in nodes.values())
        definition = self._definitions[run.id]
        known = None if definition is None else {*range(len(definition.topology.nodes))}
        if definition is not None and known is not None:
            known -= definition.topology.finalisers
            if len(known) != run.nodes_total:
                yield f"has {run.nodes_total} nodes and its definition {len(known)}"
        if len(nodes) != run.nodes_total or (known is not None and known != set(nodes)):
            yield f"has {len(nodes)} node rows of {run.nodes_total}"
        if run.status not in RUN_TERMINAL_STATUSES and (run.epilogue is not None or run.rollback_status != "none"):
            yield f"is {run.status}, and its rollback {run.rollback_status} (epilogue: {run.epilogue})"
        yield from self._check_rollback(run)
        if run.nodes_done != closed:
            yield f"counts {run.nodes_done} nodes as done, and {closed} are closed"
        if (run.ended_at is not None) != (run.status in RUN_TERMINAL_STATUSES):
            yield f"is {run.status} and its end is {run.ended_at}"
        if run.status == RunStatus.COMPLETED and closed != run.nodes_total:
            yield f"is completed with {closed} of {run.nodes_total} nodes closed"

    def _check_rollback(self, run: Any) -> Iterator[str]:
        is_at_work = run.rollback_status == "running"
        if run.epilogue not in (("waiting", "rollback") if is_at_work else (None, "waiting", "finalisers")):
            yield f"has a rollback that is {run.rollback_status}, and its epilogue is {run.epilogue}"
        undoing = {~index: node for index, node in self._nodes[run.id].items() if index < 0}
        statuses = {node.status for node in undoing.values()}
        if run.rollback_status == "done" and statuses - {"completed"}:
            yield f"was undone, and nodes are {', '.join(sorted(statuses))}"
        if run.rollback_status == "failed" and "failed" not in statuses:
            yield "could not be undone, and of no node this is said"
        definition = self._definitions[run.id]
        is_planned = run.rollback_status != "none" and run.epilogue != "waiting"
        if not is_planned and undoing:
            yield f"is not being undone, and nodes are {', '.join(sorted(statuses))}"
        elif is_planned and definition is not None:
            begun = self._tasks.count_begun(self._connection, run.id, sorted(definition.definition.undoable))
            for index in sorted({*begun, *undoing}):
                count, total = begun.get(index, 0), undoing[index].tasks_total if index in undoing else 0
                if count != total:
                    yield f"undoes {total} tasks of node {self._slug(run.id, index)!r}, and {count} began"

    def _check_nodes(self, run_id: str) -> Iterator[str]:
        nodes = self._nodes[run_id]
        for index, node in nodes.items():
            subject = f"node {self._slug(run_id, index)!r} ({node.status})"
            for problem in (*self._check_node(node), *self._check_dependencies(run_id, node)):
                yield f"{subject}: {problem}"
        for (of_run, index), statuses in self._statuses.items():
            if of_run == run_id and index not in nodes:
                yield f"has {sum(statuses.values())} tasks of node #{index}, which is not there"

    def _check_node(self, node: Any) -> Iterator[str]:
        statuses = self._statuses.get((node.run_id, node.node_index), {})
        count = sum(statuses.values())
        done = sum(number for status, number in statuses.items() if self._counts_as_done(node, status))
        is_closed = node.status in CLOSED_NODE_STATUSES
        says_skip = node.status == "skipped" and self._says_skip(node) and "failed" in statuses
        if node.tasks_done != done:
            yield f"counts {node.tasks_done} tasks as done, and {done} are"
        if node.status == "blocked" and count:
            yield f"has {count} tasks before its launch"
        if node.status not in ("blocked", "launching") and count != node.tasks_total:
            yield f"has {count} tasks of {node.tasks_total}"
        if node.status == "launching" and count >= node.tasks_total:
            yield f"has all {count} tasks and is not launched"
        if count != node.launch_cursor:
            yield f"has {count} tasks and made {node.launch_cursor}"
        lasts = self._ordinals.get((node.run_id, node.node_index))
        if count and node.node_index >= 0 and lasts != (0, count - 1, count):
            yield "has tasks whose ordinals are not 0, 1, 2, …"
        if is_closed and done != node.tasks_total:
            yield f"is closed with {done} of {node.tasks_total} tasks done"
        if node.status in ("skipped", "filtered") and statuses != {node.status: 1} and not says_skip:
            yield f"has tasks that are {', '.join(f'{count} {status}' for status, count in statuses.items()) or 'gone'}"
        if (node.opened_at is None) != (node.status == "blocked"):
            yield f"was opened at {node.opened_at}"
        if (node.closed_at is None) == (is_closed or node.status == "failed"):
            yield f"was closed at {node.closed_at}"

    def _counts_as_done(self, node: Any, status: str) -> bool:
        """At the barrier of what follows the run's end, however a task ended."""
        if self._follows_end(node.run_id, node.node_index):
            return status in TASK_TERMINAL_STATUSES
        definition = self._definitions[node.run_id]
        index: int = node.node_index
        if definition is None or index >= len(definition.topology.nodes):
            return status in TASK_DONE_STATUSES
        return definition.topology.nodes[index].counts_as_done(status)

    def _says_skip(self, node: Any) -> bool:
        definition = self._definitions[node.run_id]
        return definition is not None and definition.definition.says_skip(node.node_index)

    def _check_dependencies(self, run_id: str, node: Any) -> Iterator[str]:
        definition, nodes = self._definitions[run_id], self._nodes[run_id]
        if (
            definition is None
            or self._follows_end(run_id, node.node_index)
            or node.status == "blocked"
            or node.node_index >= len(definition.topology.deps)
        ):
            return
        dependencies = definition.topology.deps[node.node_index]
        waiting = [
            self._slug(run_id, index)
            for index in dependencies
            if index not in nodes or nodes[index].status not in CLOSED_NODE_STATUSES
        ]
        if waiting:
            yield f"was launched while {', '.join(waiting)} is not closed"

    def _apply(self, rule: Rule) -> Iterator[tuple[str, str]]:
        """(run id, sentence) of what breaks a rule; of many rows in one run the first few."""
        counts: Counter[str] = Counter()
        for row in self._all(rule.select):
            facts = dict(row._mapping)
            run_id, index = facts["run_id"], facts.get("node_index")
            if run_id not in self._runs or (rule.fenced_only and not self._is_fenced(run_id, facts["node_index"])):
                continue
            counts[run_id] += 1
            if counts[run_id] <= _SHOWN:
                slug = None if index is None else self._slug(run_id, index)
                yield run_id, rule.sentence.format(slug=slug, **facts)
        for run_id, count in counts.items():
            if count > _SHOWN:
                yield run_id, f"and {count - _SHOWN} more like the last"

    def _is_fenced(self, run_id: str, index: int) -> bool:
        definition = self._definitions[run_id]
        return definition is not None and definition.definition.plugin_of(index).wrapped

    def _check_rest(self) -> Iterator[tuple[str, str]]:
        for run_id, run in self._runs.items():
            if run.status not in RUN_TERMINAL_STATUSES:
                yield run_id, f"is {run.status}, and was meant to have ended"
            elif run.epilogue is not None:
                yield run_id, f"is in its epilogue ({run.epilogue}), and was meant to have ended"
        open_tasks: Counter[str] = Counter()
        for (run_id, _), statuses in self._statuses.items():
            open_tasks[run_id] += sum(count for status, count in statuses.items() if status in OPEN_TASK_STATUSES)
        for run_id, count in open_tasks.items():
            if count:
                yield run_id, f"has {count} open tasks, and was meant to have none"
        for owed in self._all(self._queries.owed):
            yield owed.run_id, f"is still owed a {owed.kind} ({owed.status}, tried {owed.tries} times)"


def _find_definition(store: SqlStore, connection: Connection, run: Any) -> CachedDefinition | None:
    """None when the row was deleted: that is told of the run, and the others are looked at all the same."""
    try:
        return store.definitions.get(connection, run.definition_hash)
    except StoreError:
        return None


def _refuse_missing_file(store: SqlStore) -> None:
    """Opening a SQLite file makes it, and whoever mistyped its name would be told that all is well with it."""
    url = store.database.url
    if url.get_backend_name() == "sqlite" and not Path(str(url.database)).is_file():
        raise StoreError(f"There is no store file {url.database!r}. Give the URL that dagabaaz_store_url has.")


def main(arguments: Sequence[str] | None = None) -> int:
    """Check a store from the command line; 1 when something is wrong with it, 2 when it cannot be read."""
    parser = argparse.ArgumentParser(
        description="Look for runs whose rows contradict each other. Nothing is changed.",
        epilog="example: python -m dagabaaz_celery.stores.sql.invariants postgresql+psycopg://user@host/database",
    )
    parser.add_argument("url", help="dagabaaz_store_url")
    parser.add_argument("--run", action="append", dest="runs", metavar="ID", help="this run only; may be repeated")
    parser.add_argument("--at-rest", action="store_true", help="what is not ended, or still owed, is wrong too")
    parser.add_argument("--prefix", default="dagabaaz_", help="dagabaaz_table_prefix")
    parser.add_argument("--schema", default=None, help="dagabaaz_schema")
    given = parser.parse_args(arguments)
    count = 0
    try:
        store = SqlStore(given.url, prefix=given.prefix, schema=given.schema, auto_migrate=False)
        _refuse_missing_file(store)
        for sentence in iterate_violations(store, given.runs, at_rest=given.at_rest):
            count += 1
            sys.stdout.write(f"{sentence}\n")
    except (DagabaazError, DBAPIError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    store.close()
    sys.stdout.write(f"{count} broken invariants\n" if count else "every invariant holds\n")
    return 1 if count else 0


if __name__ == "__main__":
    sys.exit(end_quietly(main))

"""Statements on nodes, built once for a store."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, bindparam, delete, func, insert, select, update

from dagabaaz_celery.stores.sql.dialects import is_one_of, now
from dagabaaz_celery.stores.sql.direct import Answer, Direct, DirectByLength, read_all
from dagabaaz_celery.stores.sql.records import NodeRow
from dagabaaz_celery.stores.sql.tables import CLOSED_NODE_STATUSES, Tables


class NodeRows:
    """The nodes of runs: the barrier counters and the launch claims.

    The undoing of a node has a row of its own, with the index ``~index``, which is negative.
    """

    def __init__(self, tables: Tables) -> None:
        node = tables.node
        by_run = node.c.run_id == bindparam("b_run")
        by_node = (by_run, node.c.node_index == bindparam("b_node"))
        columns = (
            node.c.node_index,
            node.c.status,
            node.c.tasks_total,
            node.c.tasks_done,
            node.c.launch_cursor,
            node.c.opened_at,
            node.c.closed_at,
        )
        new = ("run_id", "node_index", "status", "tasks_total", "tasks_done", "launch_cursor")
        self._insert = Direct(insert(node), columns=new)
        in_order = select(*columns).where(by_run).order_by(node.c.node_index)
        self._all = in_order.where(node.c.node_index >= 0)
        self._undoing = in_order.where(node.c.node_index < 0)
        self._lock_all = in_order.with_for_update()
        self._delete_undoing = delete(node).where(by_run, node.c.node_index < 0)
        known = select(*columns).where(by_run)
        self._range = Direct(known.where(node.c.node_index.between(bindparam("b_first"), bindparam("b_last"))))
        self._some = DirectByLength(
            lambda names: known.where(node.c.node_index.in_([bindparam(name) for name in names]))
        )
        count_done = update(node).where(*by_node).values(tasks_done=node.c.tasks_done + 1)
        counters = (node.c.tasks_done, node.c.tasks_total, node.c.status, node.c.launch_cursor)
        self._count_done = Direct(count_done.returning(*counters))
        self._count_done_plain = Direct(count_done)
        self._one = Direct(select(*columns).where(*by_node))
        self._claim = (
            update(node).where(*by_node, node.c.status == "blocked").values(status="launching", opened_at=now())
        )
        is_unlaunched = is_one_of(node.c.status, ("blocked", "launching"))
        opened_at = func.coalesce(node.c.opened_at, now())
        self._launched = Direct(
            update(node)
            .where(*by_node, is_unlaunched)
            .values(
                status=bindparam("b_status"),
                tasks_total=bindparam("b_total"),
                launch_cursor=bindparam("b_cursor"),
                opened_at=opened_at,
            )
        )
        self._ended_at_launch = Direct(
            update(node)
            .where(*by_node, is_unlaunched)
            .values(
                status=bindparam("b_status"),
                tasks_total=1,
                tasks_done=bindparam("b_done"),
                launch_cursor=1,
                opened_at=opened_at,
                closed_at=now(),
            )
        )
        self._close = Direct(
            update(node)
            .where(*by_node, node.c.status == "launched", node.c.tasks_done == node.c.tasks_total)
            .values(status=bindparam("b_status"), closed_at=now())
        )
        self._reset = (
            update(node)
            .where(*by_node)
            .values(status="blocked", tasks_total=0, tasks_done=0, launch_cursor=0, opened_at=None, closed_at=None)
        )
        self._recount = (
            update(node)
            .where(*by_node)
            .values(
                status=bindparam("b_status"),
                tasks_total=bindparam("b_total"),
                tasks_done=bindparam("b_done"),
                launch_cursor=bindparam("b_cursor"),
                closed_at=None,
            )
        )

    def insert(self, connection: Connection, run_id: str, totals: Mapping[int, int]) -> None:
        """Blocked nodes by index, with how many tasks they will have where that is known (else 0)."""
        self._insert.later_each(
            connection,
            [
                {
                    "run_id": run_id,
                    "node_index": index,
                    "status": "blocked",
                    "tasks_total": total,
                    "tasks_done": 0,
                    "launch_cursor": 0,
                }
                for index, total in totals.items()
            ],
        )

    def get_all(self, connection: Connection, run_id: str) -> list[NodeRow]:
        """Every node of a run, by index."""
        return [NodeRow(*row) for row in connection.execute(self._all, {"b_run": run_id})]

    def lock_all(self, connection: Connection, run_id: str) -> None:
        """Lock every node of a run, before the run itself."""
        connection.execute(self._lock_all, {"b_run": run_id}).all()

    def get_undoing(self, connection: Connection, run_id: str) -> list[NodeRow]:
        """What is, was or will be undone: rows with the index ``~index`` of their node."""
        return [NodeRow(*row) for row in connection.execute(self._undoing, {"b_run": run_id})]

    def delete_undoing(self, connection: Connection, run_id: str) -> None:
        """Forget what was undone."""
        connection.execute(self._delete_undoing, {"b_run": run_id})

    def get(self, connection: Connection, run_id: str, index: int) -> NodeRow:
        """One node of a run."""
        return NodeRow(*self.ask(connection, run_id, index).one())

    def ask(self, connection: Connection, run_id: str, index: int) -> Answer:
        """The same, asked for with the next statement: what a NodeRow is made of."""
        return self._one.ask(connection, {"b_run": run_id, "b_node": index})

    def get_some(self, connection: Connection, run_id: str, indices: Collection[int]) -> list[NodeRow]:
        """The named nodes of a run."""
        return to_nodes(self.ask_some(connection, run_id, indices))

    def ask_some(self, connection: Connection, run_id: str, indices: Collection[int]) -> list[Answer]:
        """The same, asked for with the next statement, for ``to_nodes``."""
        if not indices:
            return []
        first, last = min(indices), max(indices)
        if last - first + 1 == len(set(indices)):  # as the nodes of a layer are mostly written
            return [self._range.ask(connection, {"b_run": run_id, "b_first": first, "b_last": last})]
        return self._some.ask(connection, list(indices), {"b_run": run_id})

    def count_done(self, connection: Connection, run_id: str, index: int) -> NodeRow:
        """Count one more task as done; returns the node after it."""
        key = {"b_run": run_id, "b_node": index}
        if connection.dialect.update_returning:
            done, total, status, cursor = self._count_done.one(connection, key)
            return NodeRow(index, status, total, done, cursor)
        self._count_done_plain.change(connection, key)
        return self.get(connection, run_id, index)

    def try_claim_launch(self, connection: Connection, run_id: str, index: int) -> bool:
        """Move a blocked node to launching; True if this call did."""
        return connection.execute(self._claim, {"b_run": run_id, "b_node": index}).rowcount == 1

    def set_launched(self, connection: Connection, run_id: str, launches: Iterable[tuple[int, int, int]]) -> None:
        """Record (index, tasks in all, tasks made so far) of nodes to be launched; those with all made are launched.

        Who launches holds the run's lock: nobody else does.
        """
        rows = [
            {
                "b_run": run_id,
                "b_node": index,
                "b_total": total,
                "b_cursor": cursor,
                "b_status": "launched" if cursor == total else "launching",
            }
            for index, total, cursor in launches
        ]
        self._launched.later_each(connection, rows)

    def end_at_launch(self, connection: Connection, run_id: str, ends: Iterable[tuple[int, str]]) -> None:
        """Record (index, status) of nodes that ended without a task being sent: skipped, filtered, failed."""
        rows = [
            {"b_run": run_id, "b_node": index, "b_status": status, "b_done": int(status in CLOSED_NODE_STATUSES)}
            for index, status in ends
        ]
        self._ended_at_launch.later_each(connection, rows)

    def try_close(self, connection: Connection, run_id: str, index: int, status: str) -> bool:
        """Close a launched node whose tasks are all done; True if this call did."""
        key = {"b_run": run_id, "b_node": index, "b_status": status}
        return self._close.change(connection, key) == 1

    def close(self, connection: Connection, run_id: str, ends: Iterable[tuple[int, str]]) -> None:
        """Close launched nodes whose tasks are known to be all done: (index, status)."""
        keys = [{"b_run": run_id, "b_node": index, "b_status": status} for index, status in ends]
        self._close.later_each(connection, keys)

    def reset(self, connection: Connection, run_id: str, indices: Sequence[int]) -> None:
        """Make nodes blocked again."""
        rows: list[dict[str, Any]] = [{"b_run": run_id, "b_node": index} for index in indices]
        if rows:
            connection.execute(self._reset, rows)

    def recount(self, connection: Connection, run_id: str, node: NodeRow) -> None:
        """Set a node's state and counters to these."""
        connection.execute(
            self._recount,
            {
                "b_run": run_id,
                "b_node": node.index,
                "b_status": node.status,
                "b_total": node.tasks_total,
                "b_done": node.tasks_done,
                "b_cursor": node.launch_cursor,
            },
        )


def to_nodes(answers: Sequence[Answer]) -> list[NodeRow]:
    """Nodes that were asked for."""
    return [NodeRow(*row) for row in read_all(answers)]

"""Statements on artifacts, built once for a store."""

import json
from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, Table, bindparam, delete, func, insert, select

from dagabaaz_celery.models import DagArtifact, TaskArtifact
from dagabaaz_celery.stores.sql.dialects import prefer_index
from dagabaaz_celery.stores.sql.direct import Answer, Direct, DirectByLength, read_all
from dagabaaz_celery.stores.sql.tables import Tables


class ArtifactRows:
    """What tasks produced, in the order of nodes, tasks, and emission."""

    def __init__(self, tables: Tables) -> None:
        artifact = tables.artifact
        self._insert = Direct(insert(artifact), columns=artifact.columns.keys())
        values = [bindparam(f"b_{column.name}", type_=column.type) for column in artifact.columns]
        if_changed = select(*values).where(func.row_count() > 0)
        self._insert_if_changed = Direct(insert(artifact).from_select(artifact.columns.keys(), if_changed))
        task_columns = list_task_columns(artifact)
        dag_columns = (
            artifact.c.id,
            artifact.c.file_name,
            artifact.c.file_size,
            artifact.c.mime_type,
            artifact.c.metadata,
            artifact.c.origin_artifact_id,
        )
        at_nodes = (
            artifact.c.run_id == bindparam("b_run"),
            artifact.c.node_index.in_(bindparam("b_nodes", expanding=True)),
        )

        def in_order(statement: Select[Any]) -> Select[Any]:
            return statement.order_by(artifact.c.node_index, artifact.c.task_ordinal, artifact.c.ordinal)

        def of_nodes(statement: Select[Any]) -> DirectByLength:
            by_run = statement.where(artifact.c.run_id == bindparam("b_run"))
            index = artifact.c.node_index
            return DirectByLength(lambda names: in_order(by_run.where(index.in_([bindparam(name) for name in names]))))

        self._for_routing = of_nodes(select(*dag_columns))
        self._for_tasks = of_nodes(select(artifact.c.node_index, *task_columns))
        for_tasks = select(*task_columns)
        self._of_origin = of_nodes(for_tasks.where(artifact.c.origin_artifact_id == bindparam("b_origin")))
        self._broadcast = of_nodes(for_tasks.where(artifact.c.origin_artifact_id.is_(None)))
        self._one = Direct(select(*task_columns).where(artifact.c.id == bindparam("b_id")))
        self._producer = select(artifact.c.node_index).where(artifact.c.id == bindparam("b_id"))
        self._values = in_order(
            select(artifact.c.task_id, artifact.c.shape, *task_columns).where(
                artifact.c.run_id == bindparam("b_run"), artifact.c.node_index == bindparam("b_node")
            )
        )
        # From the node's artifacts, as no index has those of a task; MariaDB would rather read every artifact there is.
        self._of_task = prefer_index(
            self._values.where(artifact.c.task_id == bindparam("b_task")), artifact, f"{artifact.name}_by_origin"
        )
        self._counts = (
            select(artifact.c.node_index, func.count())
            .where(artifact.c.run_id == bindparam("b_run"))
            .group_by(artifact.c.node_index)
        )
        self._delete = delete(artifact).where(*at_nodes)

    def insert(self, connection: Connection, rows: Sequence[dict[str, Any]]) -> None:
        """Insert artifact rows, with every column."""
        self._insert.later_each(connection, rows)

    def insert_if_changed(self, connection: Connection, rows: Sequence[dict[str, Any]]) -> list[Answer]:
        """The same, where the statement before it, which waits to be sent, changes a row: MySQL's ROW_COUNT() tells.

        That may say no for other reasons: each answer has to be looked at.
        """
        keys = [{f"b_{name}": value for name, value in row.items()} for row in rows]
        return [self._insert_if_changed.ask(connection, key) for key in keys]

    def for_routing(self, connection: Connection, run_id: str, indices: Sequence[int]) -> list[DagArtifact]:
        """Artifacts of nodes as the engine sees them."""
        return to_dag_artifacts(self.ask_for_routing(connection, run_id, indices))

    def ask_for_routing(self, connection: Connection, run_id: str, indices: Sequence[int]) -> list[Answer]:
        """The same, asked for with the next statement, for ``to_dag_artifacts``."""
        return self._for_routing.ask(connection, indices, {"b_run": run_id})

    def for_tasks(self, connection: Connection, run_id: str, indices: Sequence[int]) -> list[tuple[int, TaskArtifact]]:
        """Artifacts of nodes as plugins see them, each with its node."""
        rows = self._for_tasks.all(connection, indices, {"b_run": run_id})
        return [(row[0], to_task_artifact(row[1:])) for row in rows]

    def of_origin(
        self, connection: Connection, run_id: str, indices: Sequence[int], origin_id: str
    ) -> list[TaskArtifact]:
        """Artifacts of nodes that have this origin."""
        key = {"b_run": run_id, "b_origin": origin_id}
        return [to_task_artifact(row) for row in self._of_origin.all(connection, indices, key)]

    def broadcast(self, connection: Connection, run_id: str, indices: Sequence[int]) -> list[TaskArtifact]:
        """Artifacts of nodes that have no origin."""
        return [to_task_artifact(row) for row in self._broadcast.all(connection, indices, {"b_run": run_id})]

    def get(self, connection: Connection, artifact_id: str) -> TaskArtifact | None:
        """One artifact."""
        row = self._one.first(connection, {"b_id": artifact_id})
        return None if row is None else to_task_artifact(row)

    def get_producer(self, connection: Connection, artifact_id: str) -> int | None:
        """The node whose task made an artifact."""
        index: int | None = connection.execute(self._producer, {"b_id": artifact_id}).scalar_one_or_none()
        return index

    def count_by_node(self, connection: Connection, run_id: str) -> dict[int, int]:
        """How many artifacts nodes of a run have; a node that has none is left out."""
        return {row[0]: row[1] for row in connection.execute(self._counts, {"b_run": run_id})}

    def values(
        self, connection: Connection, run_id: str, index: int, limit: int | None = None
    ) -> list[tuple[str, str, TaskArtifact]]:
        """Artifacts of a node: (task id, shape, artifact); the first ones, with a limit."""
        rows = connection.execute(self._values.limit(limit), {"b_run": run_id, "b_node": index})
        return [(row[0], row[1], to_task_artifact(row[2:])) for row in rows]

    def values_of_task(
        self, connection: Connection, run_id: str, index: int, task_id: str
    ) -> list[tuple[str, TaskArtifact]]:
        """Artifacts of one task of a node: (shape, artifact)."""
        rows = connection.execute(self._of_task, {"b_run": run_id, "b_node": index, "b_task": task_id})
        return [(row[1], to_task_artifact(row[2:])) for row in rows]

    def delete_at_nodes(self, connection: Connection, run_id: str, indices: Sequence[int]) -> None:
        """Delete every artifact of nodes."""
        connection.execute(self._delete, {"b_run": run_id, "b_nodes": list(indices)})


def to_dag_artifacts(answers: Sequence[Answer]) -> list[DagArtifact]:
    """Artifacts, that were asked for, as the engine sees them."""
    return [
        DagArtifact.model_construct(
            id=id_,
            file_name=name,
            file_size=size,
            mime_type=mime,
            metadata=json.loads(text),
            origin_artifact_id=origin,
        )
        for id_, name, size, mime, text, origin in read_all(answers)
    ]


def list_task_columns(artifact: Table) -> tuple[ColumnElement[Any], ...]:
    """What a TaskArtifact is made of, in the order that ``to_task_artifact`` takes."""
    return (
        artifact.c.file_path,
        artifact.c.file_name,
        artifact.c.file_size,
        artifact.c.mime_type,
        artifact.c.metadata,
        artifact.c.origin_artifact_id,
    )


def to_task_artifact(row: Sequence[Any]) -> TaskArtifact:
    """An artifact as plugins see it."""
    path, name, size, mime, text, origin = row
    # Checked when it was stored: validating again would double the cost of a wide fan-in.
    return TaskArtifact.model_construct(
        file_path=path,
        file_name=name,
        file_size=size,
        mime_type=mime,
        metadata=json.loads(text),
        origin_artifact_id=origin,
    )

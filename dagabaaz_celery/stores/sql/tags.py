"""Statements on the tags of runs, built once for a store."""

from collections.abc import Mapping, Sequence

from sqlalchemy import Connection, bindparam, insert, select

from dagabaaz_celery.stores.sql.direct import Direct
from dagabaaz_celery.stores.sql.tables import Tables


class TagRows:
    """Names and values that runs were started with; ``RunRows.search`` finds runs by them."""

    def __init__(self, tables: Tables) -> None:
        tag = tables.tag
        self._insert = Direct(insert(tag), columns=tag.columns.keys())
        self._of_runs = select(tag.c.run_id, tag.c.name, tag.c.value).where(
            tag.c.run_id.in_(bindparam("b_runs", expanding=True))
        )
        self._of_run = select(tag.c.name, tag.c.value).where(tag.c.run_id == bindparam("b_run")).order_by(tag.c.name)

    def insert(self, connection: Connection, run_id: str, tags: Mapping[str, str]) -> None:
        """Keep the tags of a new run."""
        rows = [{"run_id": run_id, "name": name, "value": value} for name, value in tags.items()]
        self._insert.later_each(connection, rows)

    def get(self, connection: Connection, run_id: str) -> dict[str, str]:
        """The tags of a run, by name."""
        return {row.name: row.value for row in connection.execute(self._of_run, {"b_run": run_id})}

    def get_of_runs(self, connection: Connection, run_ids: Sequence[str]) -> dict[str, dict[str, str]]:
        """The tags of several runs, by run; a run that has none is left out."""
        found: dict[str, dict[str, str]] = {}
        for row in connection.execute(self._of_runs, {"b_runs": list(run_ids)}):
            found.setdefault(row.run_id, {})[row.name] = row.value
        return {run_id: dict(sorted(tags.items())) for run_id, tags in found.items()}

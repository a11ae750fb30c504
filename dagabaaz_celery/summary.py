"""Lists of runs: what a line of a list shows of each, read without its nodes and tasks."""

from collections.abc import Iterator
from dataclasses import dataclass

from dagabaaz_celery.constants import RunStatus
from dagabaaz_celery.run import MICROSECONDS, RunError, iterate_pages, read_run_error
from dagabaaz_celery.selection import RunSelection
from dagabaaz_celery.stores.sql.records import RollbackStatus, RunRow
from dagabaaz_celery.worker.runtime import Runtime


@dataclass(frozen=True)
class RunSummary:
    """A run at one moment, less its nodes. Times are seconds since 1970, by the database's clock."""

    id: str
    pipeline: str
    version: int | None
    key: str | None
    tags: dict[str, str]
    status: RunStatus
    paused: bool
    generation: int
    rollback_status: RollbackStatus
    nodes_total: int
    nodes_done: int
    error: RunError | None
    created_at: float
    ended_at: float | None


def iterate_summaries(runtime: Runtime, wanted: RunSelection, *, limit: int | None = None) -> Iterator[RunSummary]:
    """Runs that match, newest first; two statements for a page of them, however many tasks they have."""
    for rows in iterate_pages(runtime, wanted, limit=limit):
        tags = runtime.store.get_tags_of_runs([row.id for row in rows])
        yield from (_summarise(row, tags.get(row.id, {})) for row in rows)


def _summarise(row: RunRow, tags: dict[str, str]) -> RunSummary:
    return RunSummary(
        id=row.id,
        pipeline=row.pipeline,
        version=row.version,
        key=row.key,
        tags=tags,
        status=row.status,
        paused=row.paused,
        generation=row.generation,
        rollback_status=row.rollback_status,
        nodes_total=row.nodes_total,
        nodes_done=row.nodes_done,
        error=read_run_error(row),
        created_at=row.created_at / MICROSECONDS,
        ended_at=None if row.ended_at is None else row.ended_at / MICROSECONDS,
    )

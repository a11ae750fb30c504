"""Cancelling runs from a web view, a script or a task: one of them, or all that match."""

from dagabaaz_celery.constants import RunStatus
from dagabaaz_celery.errors import RunSelectionError, format_problems
from dagabaaz_celery.selection import RunSelection
from dagabaaz_celery.stores.sql.records import Aftermath, RunRow
from dagabaaz_celery.stores.sql.tables import OPEN_RUN_STATUSES
from dagabaaz_celery.worker.foreground import call_now
from dagabaaz_celery.worker.runtime import Runtime

#: The reason, where none is given.
CANCELLED_BY_APP = "cancelled by the app"
_PAGE = 200


def cancel_run(runtime: Runtime, run_id: str, reason: str, *, terminate: bool, before: str = "") -> bool:
    """Cancel a run that has not ended; whether this call did. Once it returns, no body of the run starts.

    ``terminate``: the bodies that run are ended, too, where their pool can do that. ``before`` says in an error what
    was done before. Raises UnknownRun, StoreUnavailable.
    """

    runtime.check_transaction()

    def cancel(again: bool) -> Aftermath:
        return runtime.store.cancel(run_id, reason, again=again)

    cancelled = call_now(
        cancel,
        not_done=f"{before}run {run_id} was not cancelled. Try again when the database is back.",
        in_doubt=f"{before}run {run_id} may have been cancelled. Look at it when the database is back.",
    )
    unfinished = f"{before}run {run_id} is cancelled, and no body of it starts; a worker cancels its open tasks later."

    def follow() -> None:
        runtime.report(cancelled)
        call_now(
            lambda again: runtime.do_all_owed(cancelled.owed, terminate=terminate),
            not_done=unfinished,
            in_doubt=unfinished,
        )

    runtime.after_commit(follow)
    return cancelled.ended_run


def cancel_runs(runtime: Runtime, wanted: RunSelection, reason: str, *, terminate: bool) -> int:
    """Cancel the open runs that match, newest first; how many this call cancelled. For each it is ``cancel_run``.

    Raises RunSelectionError for no criterion and for a status that ends a run, and StoreUnavailable.
    """
    _refuse_ended_and_everything(wanted)
    count = 0
    for status in OPEN_RUN_STATUSES if wanted.status is None else [wanted.status]:
        last = None
        while page := _find_open(runtime, wanted, status, last, before=_describe(count)):
            for run in page:
                count += cancel_run(runtime, run.id, reason, terminate=terminate, before=_describe(count))
                last = run.id
    return count


def _find_open(
    runtime: Runtime, wanted: RunSelection, status: RunStatus, last: str | None, *, before: str
) -> list[RunRow]:
    """The next runs that match and are in this status, older than the ``last`` one."""
    stopped = f"{before}no more were looked for. Cancel them again when the database is back."
    return call_now(
        lambda again: runtime.store.search_runs(
            pipeline=wanted.pipeline,
            status=status,
            tags=wanted.tags,
            limit=_PAGE,
            before=last,
            created_since=wanted.created_since,
            created_before=wanted.created_before,
        ),
        not_done=stopped,
        in_doubt=stopped,
    )


def _describe(count: int) -> str:
    return f"{count} {'run was' if count == 1 else 'runs were'} cancelled before, and "


def _refuse_ended_and_everything(wanted: RunSelection) -> None:
    open_statuses = " or ".join(OPEN_RUN_STATUSES)
    if wanted.is_everything:
        problem = (
            "no pipeline, tags, status or time say which runs are meant: name one of them. To cancel every run that is "
            'open, say status="running"'
        )
    elif wanted.status is not None and wanted.status not in OPEN_RUN_STATUSES:
        problem = (
            f"a run that is {wanted.status} has ended, and what has ended is not cancelled: leave the status out, or "
            f"take {open_statuses}"
        )
    else:
        return
    raise RunSelectionError(format_problems("No run was cancelled", [problem]), [problem])

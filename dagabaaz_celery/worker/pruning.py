"""Deleting old runs: in transactions so short that nobody waits for them, with pauses in between.

Any number of processes are at it at once: each takes a few runs for itself. What is written is only ever less than
before, so that a process that dies leaves nothing to mend; another goes on where it stopped.
"""

import logging
import random
import shutil
import threading
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from sqlalchemy import Connection

from dagabaaz_celery.constants import RunStatus
from dagabaaz_celery.errors import TransactionOpen
from dagabaaz_celery.retention import PruneReport, Retention
from dagabaaz_celery.stores.sql.pruning import PARTS, Emptied, OldRun, Part
from dagabaaz_celery.stores.sql.transaction import MICROSECONDS
from dagabaaz_celery.worker.foreground import call_now
from dagabaaz_celery.worker.liveness import log_failure
from dagabaaz_celery.worker.runtime import Runtime

logger = logging.getLogger(__name__)
T = TypeVar("T")

#: Runs that one process takes at a time, and rows of nodes that go with one commit.
_RUNS, _NODES = 50, 1000
#: Rows that go with one commit: at the start, and the bounds between which it follows how long they take.
_FIRST, _FEWEST, _MOST = 500, 50, 2000
#: Seconds for a commit below which the next has more rows, and above which it has fewer.
_QUICK, _SLOW = 0.1, 0.25
#: The longest pause after a commit; it is as long as the commit took.
_LONGEST_PAUSE = 1.0
#: Seconds after which what a callback or the files' directory refused is tried again.
_RETRY_AFTER = 300.0
#: Seconds for which no run may have referred to a definition before it goes.
_GRACE = 3600.0
#: Sweeps from one look for old runs to the next.
_SWEEPS = 12
#: Seconds that a stopping worker waits for a callback to return.
_PATIENCE = 10.0
_NOT_COUNTED = "the runs were not counted. Try again when the database is back."
_GO_ON = (
    "runs may be deleted already, and others half, which lists do not show. Call it again when the database is back, "
    "and it goes on with them."
)


class _Pace:
    """How many rows go with one commit."""

    def __init__(self) -> None:
        self.size = _FIRST

    def follow(self, seconds: float) -> None:
        """The last commit took so long."""
        if seconds > _SLOW:
            self.size = max(self.size // 2, _FEWEST)
        elif seconds < _QUICK:
            self.size = min(self.size * 2, _MOST)


class _Place(NamedTuple):
    """Where to go on reading rows of a run; from their start where ``begin`` is None."""

    run_id: str
    part: Part
    begin: Any


class _Batch:
    """Rows that are to go with one commit, by run and part, and the files among them."""

    def __init__(self) -> None:
        self.rows: dict[str, dict[Part, list[str]]] = defaultdict(lambda: defaultdict(list))
        self.files: dict[str, list[str]] = defaultdict(list)
        self.size = 0

    def add(self, run_id: str, part: Part, ids: list[str], files: list[str]) -> None:
        self.rows[run_id][part] += ids
        self.size += len(ids)
        if files:
            self.files[run_id] += files

    def drop(self, run_id: str) -> None:
        """Leave a run's rows where they are."""
        self.rows.pop(run_id, None)
        self.files.pop(run_id, None)

    def ids(self, part: Part) -> list[str]:
        return sorted(row_id for parts in self.rows.values() for row_id in parts[part])


class Pruner:
    """Deletes runs, and counts what it deleted.

    ``pause`` is called with the seconds to wait after each commit; what it returns says whether to stop there.
    """

    def __init__(self, runtime: Runtime, pause: Callable[[float], bool], *, grace: float = _GRACE) -> None:
        self._runtime = runtime
        self._store = runtime.store
        self._rows = runtime.store.rows.pruning
        self._lease = int(runtime.store.policy.lease * MICROSECONDS)
        retention = runtime.settings.retention or Retention()
        self._keys = int(retention.keys * MICROSECONDS)
        self._grace = int(grace * MICROSECONDS)
        self._pause = pause
        self._pace = _Pace()
        self._refused: set[str] = set()
        self.stopped = False
        self.runs: Counter[str] = Counter()
        self.counts: Counter[Part] = Counter()
        self.files = 0

    def go_on(self) -> None:
        """Delete what was given up and nobody is at, and keys that have had their time."""
        while not self.stopped:
            due = self._commit(lambda c: self._rows.take_due(c, limit=_RUNS, lease=self._lease))
            if not due:
                break
            self._delete(due)

    def prune(
        self,
        ages: Mapping[RunStatus, float],
        *,
        pipeline: str | None = None,
        failed_rollbacks: bool = False,
        limit: int | None = None,
    ) -> None:
        """Delete runs that ended longer ago than the age of their status, in seconds, the oldest first."""
        left = limit
        for status, age in ages.items():
            since = 0
            while not self.stopped and left != 0:
                found = self._take_old(
                    status,
                    age=int(age * MICROSECONDS),
                    since=since,
                    limit=_RUNS if left is None else min(left, _RUNS),
                    pipeline=pipeline,
                    failed_rollbacks=failed_rollbacks,
                )
                if not found:
                    break
                since = found[-1].ended_at
                left = None if left is None else left - len(found)
                self._delete([run.id for run in found])

    def delete_definitions(self) -> None:
        """Delete definitions to which nothing has referred for long."""
        while not self.stopped and self._commit(
            lambda c: self._rows.delete_definitions(c, grace=self._grace, limit=_RUNS)
        ):
            continue

    def report(self) -> PruneReport:
        """What was deleted so far."""
        return PruneReport(dict(self.runs), self.counts["task"], self.counts["artifact"], self.files)

    def _take_old(self, status: RunStatus, **which: Any) -> list[OldRun]:
        def work(connection: Connection) -> list[OldRun]:
            found = self._rows.find_old(connection, status.value, lock=True, **which)
            self._rows.mark(connection, [run.id for run in found], self._lease)
            return found

        return self._commit(work)

    def _delete(self, run_ids: Sequence[str]) -> None:
        """Delete runs that this process has taken: their rows, their files, and then themselves."""
        self._refused.clear()
        self._empty(run_ids)
        self._end([run_id for run_id in run_ids if run_id not in self._refused])
        if self._refused:
            delay = int(_RETRY_AFTER * MICROSECONDS)
            self._commit(lambda c: self._rows.lease(c, sorted(self._refused), delay))

    def _empty(self, run_ids: Sequence[str]) -> None:
        """Delete what runs may have many of."""
        places = deque(_Place(run_id, part, None) for run_id in run_ids for part in PARTS)
        while places and not self.stopped:
            self._flush(self._gather(places), run_ids)

    def _gather(self, places: deque[_Place]) -> _Batch:
        """The next rows that are to go, as many as go with one commit; takes the places where these are."""
        batch = _Batch()
        with self._store.read() as connection:
            while places and batch.size < self._pace.size:
                run_id, part, begin = places.popleft()
                if run_id in self._refused:
                    continue
                page = self._rows.read_page(connection, part, run_id, begin, self._pace.size - batch.size)
                batch.add(run_id, part, page.ids, page.files)
                if page.next is not None:
                    places.appendleft(_Place(run_id, part, page.next))
        return batch

    def _flush(self, batch: _Batch, run_ids: Sequence[str]) -> None:
        for run_id, files in list(batch.files.items()):
            if run_id in self._refused or not self._tell(run_id, files):
                batch.drop(run_id)
        if not batch.rows or self.stopped:
            return

        def work(connection: Connection) -> Counter[Part]:
            gone = Counter({part: self._rows.delete_rows(connection, part, batch.ids(part)) for part in PARTS})
            self._rows.lease(connection, run_ids, self._lease)
            return gone

        self.counts += self._commit(work, follow=True)
        self.files += sum(map(len, batch.files.values()))

    def _tell(self, run_id: str, files: list[str]) -> bool:
        """Have the app's callbacks delete files; False when one raised, and the run is left for another time."""
        for callback in self._runtime.file_callbacks:
            try:
                with self._runtime.calling_app():
                    callback(run_id, files)
            except Exception:
                self._refuse(run_id, f"the callback {callback!r} for its files raised")
                return False
        return True

    def _refuse(self, run_id: str, why: str) -> None:
        self._refused.add(run_id)
        logger.exception("run %s is not deleted: %s; again in %.0f s", run_id, why, _RETRY_AFTER)

    def _end(self, run_ids: Sequence[str]) -> None:
        if self.stopped:
            return
        with self._store.read() as connection:
            emptied = self._rows.list_emptied(connection, run_ids)
            clock = self._store.rows.tasks.read_clock(connection)
        group: list[Emptied] = []
        for run in emptied:
            if self.stopped or (not run.is_key_only and not self._remove_files(run.id)):
                continue
            if group and sum(each.nodes for each in group) + run.nodes > _NODES:
                self._end_some(group, clock)
                group = []
            group.append(run)
        self._end_some(group, clock)

    def _end_some(self, runs: Sequence[Emptied], clock: int) -> None:
        kept = [run for run in runs if run.has_key and run.pruned_at + self._keys > clock]
        gone = [run for run in runs if run not in kept]

        def work(connection: Connection) -> None:
            self._rows.delete_nodes(connection, [run.id for run in runs])
            for run in kept:
                self._rows.keep_key(connection, run.id, self._keys)
            self._rows.delete_runs(connection, [run.id for run in gone])
            self._rows.give_up_definitions(connection, sorted({run.definition_hash for run in gone}))

        if runs and not self.stopped:
            self._commit(work)
            self.runs += Counter(run.status for run in runs if not run.is_key_only)

    def _remove_files(self, run_id: str) -> bool:
        try:
            remove_run_directory(self._runtime.settings.files_dir, run_id)
        except OSError:
            self._refuse(run_id, "its directory could not be removed")
            return False
        return True

    def _commit(self, work: Callable[..., T], *, follow: bool = False) -> T:
        """Run a transaction, and leave the database to others for as long as it took."""
        begun = time.monotonic()
        done = self._store.transact(work)
        took = time.monotonic() - begun
        if follow:
            self._pace.follow(took)
        self.stopped = self._pause(min(took, _LONGEST_PAUSE))
        return done


def remove_run_directory(files_dir: Path, run_id: str) -> None:
    """Remove what the tasks of a run left in their scratch directories. Links are not followed; raises OSError."""
    path = files_dir / run_id
    if path.is_symlink():
        logger.warning("%s is a link: nobody but its owner should remove what it leads to", path)
        return
    try:
        shutil.rmtree(path)
    except FileNotFoundError:  # there were no files, or another process is at it
        if path.exists():
            raise


def prune_now(
    runtime: Runtime,
    ages: Mapping[RunStatus, float],
    *,
    pipeline: str | None,
    failed_rollbacks: bool,
    limit: int | None,
    dry_run: bool,
) -> PruneReport:
    """Delete runs in this process, and before that what others left half deleted. Raises StoreUnavailable."""

    def pause(seconds: float) -> bool:
        time.sleep(seconds)
        return False

    which: dict[str, Any] = {"pipeline": pipeline, "failed_rollbacks": failed_rollbacks, "limit": limit}
    if runtime.store.is_in_apps_transaction and not dry_run:
        raise TransactionOpen(
            "dag.prune was called inside a transaction on the store's database: a rollback would bring rows back, and "
            "not their files. Call it after the transaction. Nothing was deleted."
        )
    if dry_run:
        return call_now(lambda again: _count(runtime, ages, **which), not_done=_NOT_COUNTED, in_doubt=_NOT_COUNTED)
    pruner = Pruner(runtime, pause)

    def prune(again: bool) -> None:
        Pruner(runtime, pause).go_on()
        pruner.prune(ages, **which)
        pruner.delete_definitions()

    call_now(prune, not_done=_GO_ON, in_doubt=_GO_ON)
    return pruner.report()


def _count(runtime: Runtime, ages: Mapping[RunStatus, float], *, limit: int | None, **which: Any) -> PruneReport:
    """What ``prune`` would delete."""
    runs: dict[str, int] = {}
    tasks = artifacts = files = 0
    with runtime.store.read() as connection:
        for status, age in ages.items():
            left = None if limit is None else limit - sum(runs.values())
            counted = runtime.store.rows.pruning.count_old(
                connection, status.value, age=int(age * MICROSECONDS), limit=left, **which
            )
            if counted[0]:
                runs[status.value] = counted[0]
            tasks, artifacts, files = tasks + counted[1], artifacts + counted[2], files + counted[3]
    return PruneReport(runs, tasks, artifacts, files, dry_run=True)


class PruneThread:
    """Deletes what ``dagabaaz_retention`` says, in a worker's main process; without that setting there is no thread."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._interval = _SWEEPS * runtime.settings.sweep_interval
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="dagabaaz-prune", daemon=True)

    def start(self) -> None:
        if self._runtime.settings.retention is not None:
            self._thread.start()

    def ask_to_stop(self) -> None:
        self._stop.set()

    def stop(self) -> None:
        """Let the commit in progress, or a callback, come to its end, for a while."""
        self.ask_to_stop()
        if self._thread.ident is not None:
            self._thread.join(timeout=_PATIENCE)

    def look(self) -> None:
        """Delete all that is due."""
        pruner = Pruner(self._runtime, self._stop.wait)
        retention = self._runtime.settings.retention or Retention()
        pruner.go_on()
        pruner.prune(retention.ages)
        pruner.delete_definitions()
        if pruner.runs:
            report = pruner.report()
            logger.info("deleted %d old runs with %d tasks (%s)", report.runs_total, report.tasks, report.runs)

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self.look()
            except Exception as error:
                log_failure("deleting old runs", "the next look goes on with it", error)
            # Workers that were started at once do not all look at once.
            self._stop.wait(self._interval * random.uniform(0.75, 1.25))  # noqa: S311  # jitter, not a secret

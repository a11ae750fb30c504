"""Store calls for a process that cannot wait out an outage: a web view's, a script's."""

import time
from collections.abc import Callable
from typing import TypeVar

from celery._state import get_current_worker_task

from dagabaaz_celery.errors import StoreUnavailable
from dagabaaz_celery.stores.sql.outages import DATABASE_ERRORS, CommitUnanswered, describe_outage, is_outage
from dagabaaz_celery.worker.outcome import wait_out

T = TypeVar("T")

#: Seconds for which a commit without an answer is asked about again.
_DOUBT_SECONDS = 5.0
_FIRST_PAUSE = 0.05


def call_now(call: Callable[[bool], T], *, not_done: str, in_doubt: str) -> T:
    """Make a call on the store, or raise StoreUnavailable while its database is away; inside a task it is waited out.

    A commit without an answer is asked about for some seconds, by ``call(True)``, which must find what ``call(False)``
    may have done. ``not_done`` and ``in_doubt`` end the error's message: what is so, and what to do.
    """
    again = False

    def ask() -> T:
        nonlocal again
        try:
            return call(again)
        except CommitUnanswered:
            again = True
            raise

    if get_current_worker_task() is not None:
        return wait_out(ask)
    deadline, pause = None, _FIRST_PAUSE
    while True:
        try:
            return ask()
        except DATABASE_ERRORS as error:
            if not is_outage(error):
                raise
            where = f"The store's database is away ({describe_outage(error)})"
            if not again:
                raise StoreUnavailable(f"{where}: {not_done}") from error
            deadline = deadline or time.monotonic() + _DOUBT_SECONDS
            if time.monotonic() >= deadline:
                raise StoreUnavailable(f"{where}, and did not answer a commit: {in_doubt}", in_doubt=True) from error
        time.sleep(pause)
        pause *= 2

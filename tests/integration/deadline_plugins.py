"""A body that takes longer than it may and does not mind, and what undoes it; each says when to the run's journal."""

import os
import time
from pathlib import Path

from celery.exceptions import SoftTimeLimitExceeded

from dagabaaz_celery.app import Dagabaaz

#: Seconds that a test may take to open the gate.
_LONGEST = 60.0


def declare_deadlines(dag: Dagabaaz) -> None:
    def note(journal: str, line: str) -> None:
        file = os.open(journal, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(file, f"{line}\n".encode())
        os.close(file)

    @dag.plugin
    def charge(journal: str) -> None:
        note(journal, "begun")
        end = time.monotonic() + _LONGEST
        while not Path(f"{journal}.gate").exists() and time.monotonic() < end:
            try:
                time.sleep(0.05)
            except SoftTimeLimitExceeded:
                note(journal, "told")
        note(journal, "charged")

    @dag.plugin
    def refund(journal: str) -> None:
        note(journal, "refunded")

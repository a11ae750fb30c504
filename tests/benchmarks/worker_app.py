"""The app of the worker processes, as their environment says: ``celery -A tests.benchmarks.worker_app worker``."""

import os
from contextlib import ExitStack
from pathlib import Path

from tests.benchmarks.apps import AppSpec, open_app
from tests.benchmarks.counts import CountFile, count_sent

_spec = AppSpec.from_environment(os.environ)
_to_the_end = ExitStack()
if _spec.counts is not None:
    _to_the_end.enter_context(count_sent(CountFile(Path(_spec.counts))))
app = open_app(_spec).app

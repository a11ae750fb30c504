"""For users' own tests, from the quickest to the most real: whole runs without broker or database, factories, what a
pipeline decides kept in a file; a worker in this process; a checker of what runs left in the store.

The store in memory, for tests of the engine alone, is ``stores.memory.MemoryStore``.
"""

from dagabaaz_celery.testing.clock import Clock
from dagabaaz_celery.testing.factories import make_artifact, make_node, make_pipeline, make_plugin_context
from dagabaaz_celery.testing.fakes import fake_plugin
from dagabaaz_celery.testing.golden import assert_golden
from dagabaaz_celery.testing.inline import run_inline
from dagabaaz_celery.testing.inline_run import InlineRun
from dagabaaz_celery.testing.soundness import assert_sound, find_violations
from dagabaaz_celery.testing.workers import embedded_worker

__all__ = [
    "Clock",
    "InlineRun",
    "assert_golden",
    "assert_sound",
    "embedded_worker",
    "fake_plugin",
    "find_violations",
    "make_artifact",
    "make_node",
    "make_pipeline",
    "make_plugin_context",
    "run_inline",
]

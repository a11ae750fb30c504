"""What pytest offers to users wherever the package is installed: fixtures, and an option for golden files."""

import os
from collections.abc import Callable
from typing import Any

import pytest

from dagabaaz_celery.app import Dagabaaz
from dagabaaz_celery.testing import Clock, make_pipeline, run_inline
from dagabaaz_celery.testing.golden import UPDATE_VARIABLE

pytest_plugins = ["pytester"]

DECISIONS = """
    from dagabaaz_celery.testing import assert_golden, make_artifact, make_pipeline

    def test_decisions():
        assert_golden(make_pipeline("a -> b"), {"one": [make_artifact("x")]}, "decisions.json")
"""


def test_a_worker_of_this_process(dag: Dagabaaz, embedded_worker: Callable[..., Any]):
    @dag.plugin
    def work() -> int:
        return 7

    embedded_worker(dag.app)
    run = dag.start(make_pipeline("work"))
    assert run.wait(20) == "completed"
    assert run.result("work") == 7


def test_a_clock_that_is_moved(dagabaaz_clock: Clock):
    began = dagabaaz_clock.time()
    run_inline(make_pipeline("work"), plugins={"work": lambda: dagabaaz_clock.advance(5)}, clock=dagabaaz_clock)
    assert dagabaaz_clock.time() - began == pytest.approx(5)


def test_the_option_has_golden_files_written(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv(UPDATE_VARIABLE, raising=False)
    pytester.makepyfile(DECISIONS)
    arguments = ["-q", "-p", "no:cacheprovider", "-p", "no:xdist"]
    before = pytester.runpytest_inprocess(*arguments)
    before.assert_outcomes(failed=1)
    before.stdout.fnmatch_lines(["*--dagabaaz-update-golden*"])
    pytester.runpytest_inprocess(*arguments, "--dagabaaz-update-golden").assert_outcomes(passed=1)
    assert UPDATE_VARIABLE not in os.environ
    pytester.runpytest_inprocess(*arguments).assert_outcomes(passed=1)

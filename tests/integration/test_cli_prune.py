"""``celery -A proj dagabaaz prune``: counts, asks, and deletes old runs."""

import re
from pathlib import Path

import pytest

from tests.integration.celery_support import wait_until
from tests.integration.cli_support import Shell, quiet_shell, shell, start, worker  # noqa: F401  # fixtures


@pytest.fixture
def two_runs(shell: Shell) -> Shell:  # noqa: F811
    """A store with a run that completed and one that failed, and no others that may go."""
    shell.type("prune", "--older-than", "0s", "--yes")
    start(shell.dag, "good", input={"n": 2})
    start(shell.dag, "bad")
    wait_until(lambda: shell.dag.prune(older_than=0, dry_run=True).runs_total == 2, "both runs owe nothing any more")
    return shell


def test_runs_are_counted_and_deleted_when_that_is_confirmed(two_runs: Shell):
    told = "2 runs (1 completed, 1 failed) with 6 tasks, 5 artifacts and 0 files"
    assert two_runs.type("prune", "--older-than", "0s", "--dry-run") == f"{told} would be deleted.\n"
    assert f"Delete {told}? [y/N]" in two_runs.type("prune", "--older-than", "0s", given="n\n", code=1)
    assert two_runs.type("prune", "--older-than", "1h", "--yes") == "0 runs deleted.\n"
    assert two_runs.read("prune", "--older-than", "0s", "--status", "failed", "--yes") == {
        "runs": {"failed": 1},
        "runs_total": 1,
        "tasks": 3,
        "artifacts": 1,
        "files": 0,
        "dry_run": False,
    }
    assert f"{two_runs.type('prune', '--older-than', '0s', given='y')}".endswith(
        "1 run (1 completed) with 3 tasks, 4 artifacts and 0 files deleted.\n"
    )
    assert two_runs.type("prune", "--older-than", "0s") == "0 runs deleted.\n"


def test_what_says_of_no_run_that_it_goes_is_refused(quiet_shell: Shell):  # noqa: F811
    said = quiet_shell.refuse("prune", "--dry-run")
    assert "[DGB410]: No run was counted: dagabaaz_retention says nothing" in said
    assert said.endswith("Say how old they must be: `--older-than 30d`.\n")
    assert "No run was deleted: " in quiet_shell.refuse("prune", "--yes")
    assert "add --yes to delete" in quiet_shell.refuse("prune", "--json", code=2)
    assert "running" in quiet_shell.refuse("prune", "--status", "running", code=2)


def test_each_example_works_without_settings(quiet_shell: Shell):  # noqa: F811
    examples = re.findall(r"^ +celery -A proj dagabaaz (prune .*)$", quiet_shell.type("prune", "--help"), re.MULTILINE)
    assert len(examples) == 2
    for example in examples:
        assert quiet_shell.type(*example.split()).startswith("0 runs ")


def test_an_age_without_a_unit_is_refused_with_what_to_type(two_runs: Shell):
    """Who means 30 days must not delete what is older than 30 seconds."""
    said = two_runs.refuse("prune", "--older-than", "30", "--yes", code=2)
    assert "'30' has no unit: write 30d for days, 30h for hours, or 30s." in said
    assert "has no unit" in two_runs.refuse("prune", "--older-than", "1h30", "--yes", code=2)
    assert two_runs.type("prune", "--older-than", "30d", "--yes") == "0 runs deleted.\n"
    assert "2 runs" in two_runs.type("prune", "--older-than", "0s", "--dry-run")


def test_the_setting_says_what_goes(quiet_shell: Shell, tmp_path: Path):  # noqa: F811
    quiet_shell.dag.app.conf.dagabaaz_retention = {"completed": 60}
    assert quiet_shell.type("prune", "--dry-run") == "0 runs would be deleted.\n"

"""What ``dagabaaz_retention`` may say, and which runs a deletion means."""

from datetime import timedelta
from typing import Any

import pytest

from dagabaaz_celery.constants import RunStatus
from dagabaaz_celery.errors import ConfigurationError, RunSelectionError
from dagabaaz_celery.retention import Retention, choose_ages
from dagabaaz_celery.settings import Settings, read_settings


class Conf(dict):
    """A configuration of Celery's as far as settings look at it."""

    prefix = None


def read(retention: Any) -> Settings:
    return read_settings(Conf(dagabaaz_retention=retention))


def test_nothing_is_deleted_unless_the_setting_says_so():
    assert read(None).retention is None
    assert read({}).retention == Retention({}, 0.0)


def test_ages_are_seconds_or_timedeltas():
    kept = read({"completed": timedelta(days=1), "failed": 60, "keys": timedelta(minutes=2)}).retention

    assert kept == Retention({RunStatus.COMPLETED: 86400.0, RunStatus.FAILED: 60.0}, 120.0)


@pytest.mark.parametrize(
    ("given", "what"),
    [
        (30, "it is 30: pass a dict"),
        ("30 days", "it is '30 days': pass a dict"),
        ({"complete": 5}, "'complete' is no status in which a run has ended: .* did you mean completed"),
        ({"running": 5}, "'running' is no status in which a run has ended"),
        ({"failed": "5d"}, "'failed' is '5d': an age is a number of seconds, 0 or more, or a timedelta"),
        ({"failed": -1}, "'failed' is -1"),
        ({"failed": True}, "'failed' is True"),
        ({"failed": float("inf")}, "'failed' is inf"),
        ({"failed": None}, "'failed' is None"),
        ({"keys": timedelta(days=-1)}, "'keys' is"),
    ],
)
def test_what_is_wrong_with_the_setting_is_said(given: Any, what: str):
    with pytest.raises(ConfigurationError, match=f"dagabaaz_retention cannot be used: {what}"):
        read(given)


def test_every_problem_of_the_setting_is_named():
    with pytest.raises(ConfigurationError, match=r"(?s)- 'open'.*- 'keys'"):
        read({"open": 1, "keys": -1})


def test_a_call_without_an_age_goes_by_the_setting():
    kept = Retention({RunStatus.COMPLETED: 5.0, RunStatus.FAILED: 7.0})

    assert choose_ages(kept, None, None) == {RunStatus.COMPLETED: 5.0, RunStatus.FAILED: 7.0}
    assert choose_ages(kept, None, "failed") == {RunStatus.FAILED: 7.0}


def test_an_age_holds_for_every_status_in_which_runs_have_ended():
    kept = Retention({RunStatus.COMPLETED: 5.0})

    assert choose_ages(kept, timedelta(seconds=3), None) == dict.fromkeys(
        (RunStatus.COMPLETED, RunStatus.FAILED, RunStatus.CRASHED, RunStatus.CANCELLED), 3.0
    )
    assert choose_ages(None, 0, RunStatus.CANCELLED) == {RunStatus.CANCELLED: 0.0}


@pytest.mark.parametrize(
    ("given", "what"),
    [
        ((None, None), "dagabaaz_retention says nothing of runs, .* older_than"),
        ((None, "failed"), "dagabaaz_retention says nothing of runs that are failed"),
        ((5, "running"), "status is 'running': only a run that has ended can be deleted"),
        ((5, "complet"), "did you mean completed"),
        (("5d", None), "older_than is '5d'"),
        ((-1, None), "older_than is -1"),
        ((5, None, -1), "limit is -1"),
        ((5, None, True), "limit is True"),
    ],
)
def test_a_call_that_means_no_runs_is_refused(given: tuple[Any, ...], what: str):
    with pytest.raises(RunSelectionError, match=f"No run was deleted: .*{what}"):
        choose_ages(None, *given)

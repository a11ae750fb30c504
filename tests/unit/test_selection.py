"""Which runs are meant by the criteria of a search."""

from datetime import UTC, datetime

import pytest

from dagabaaz_celery.constants import RunStatus
from dagabaaz_celery.errors import RunSelectionError
from dagabaaz_celery.selection import RunSelection, read_selection


def test_criteria_that_are_not_named_choose_nothing():
    assert read_selection(None, None, None) == RunSelection(None, None, {})
    assert read_selection(None, None, None).is_everything
    assert read_selection(None, None, {}).is_everything


@pytest.mark.parametrize("given", [("p", None, None), (None, "failed", None), (None, None, {"a": "b"})])
def test_each_criterion_chooses(given: tuple[str | None, str | None, dict[str, str] | None]):
    assert not read_selection(*given).is_everything


@pytest.mark.parametrize("times", [(0, None), (None, 1.5)])
def test_a_time_chooses_in_microseconds(times: tuple[float | None, float | None]):
    chosen = read_selection(None, None, None, *times)
    assert not chosen.is_everything
    assert (chosen.created_since, chosen.created_before) == ((0, None) if times[0] == 0 else (None, 1_500_000))


def test_a_status_may_be_a_word_and_what_was_given_may_change_afterwards():
    tags = {"a": "b"}
    chosen = read_selection("p", "failed", tags)
    tags.clear()
    assert chosen == RunSelection("p", RunStatus.FAILED, {"a": "b"})
    assert read_selection("p", RunStatus.FAILED, {"a": "b"}) == chosen


def test_what_no_run_can_be_is_refused_with_every_problem():
    with pytest.raises(RunSelectionError, match="did you mean failed") as caught:
        read_selection(None, "faild", {"": "x", "a": "y "})
    assert len(caught.value.problems) == 3
    with pytest.raises(RunSelectionError, match="not 7"):
        read_selection(None, 7, None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given", "micros"),
    [
        (None, None),
        (12.5, 12_500_000),
        (datetime(1970, 1, 1, 0, 0, 3, tzinfo=UTC), 3_000_000),
    ],
    ids=str,
)
def test_a_moment_is_seconds_or_a_datetime(given: object, micros: int | None):
    assert read_selection(None, None, None, created_since=given).created_since == micros  # type: ignore[arg-type]


@pytest.mark.parametrize("given", [datetime(2026, 1, 1), True, "yesterday", -1, 10.0**15], ids=str)  # noqa: DTZ001
def test_what_is_no_moment_is_a_problem(given: object):
    with pytest.raises(RunSelectionError, match="created_before"):
        read_selection(None, None, None, created_before=given)  # type: ignore[arg-type]


def test_a_moment_is_a_criterion():
    assert read_selection(None, None, None).is_everything
    assert not read_selection(None, None, None, created_since=1.0).is_everything

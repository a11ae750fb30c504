"""What of a trace travels with a run, and the ids that every process makes of it."""

import pytest
from opentelemetry.sdk.trace.sampling import TraceIdRatioBased
from opentelemetry.trace import SpanContext, TraceFlags, TraceState

from dagabaaz_celery.contrib.otel.context import RunContext, derive_trace_id
from dagabaaz_celery.contrib.otel.measures import MAX_NAMES, _Names
from dagabaaz_celery.stores.sql.tables import new_id

SAMPLED = TraceFlags(TraceFlags.SAMPLED)
SPAN = SpanContext(0xA1, 0xB2, True, SAMPLED, TraceState([("vendor", "x")]))


@pytest.mark.parametrize(
    "context",
    [
        RunContext(SPAN),
        RunContext(SPAN, parent_id=0xC3, since=1_700_000_000_000_000),
        RunContext(SpanContext(0xA1, 0xB2, True, TraceFlags(0)), previous=SpanContext(0xD4, 0xE5, True, SAMPLED)),
    ],
)
def test_what_is_carried_is_read_back(context: RunContext):
    assert RunContext.read(context.carry()) == context


@pytest.mark.parametrize(
    "carried", [{}, {"traceparent": "nonsense"}, {**RunContext(SPAN, 1).carry(), "parent": "not hexadecimal"}]
)
def test_what_cannot_be_read_is_nothing(carried: dict[str, str]):
    assert RunContext.read(carried) is None


def test_nodes_and_attempts_have_ids_of_their_own_which_every_process_makes_alike():
    here, there = RunContext(SPAN), RunContext.read(RunContext(SPAN).carry())
    assert there is not None
    ids = [here.node(index).span_id for index in (0, 1, ~0)] + [here.task_id("attempt-1"), here.task_id("attempt-2")]
    assert len(set(ids)) == 5
    assert ids == [there.node(index).span_id for index in (0, 1, ~0)] + [
        there.task_id("attempt-1"),
        there.task_id("attempt-2"),
    ]
    assert here.node(0).trace_id == SPAN.trace_id


def test_in_another_generation_nodes_have_other_spans():
    other = RunContext(SpanContext(SPAN.trace_id, 0xF6, True, SAMPLED))
    assert other.node(0).span_id != RunContext(SPAN).node(0).span_id


def test_a_run_that_nobody_traced_at_its_start_has_the_same_ids_everywhere():
    run_id = new_id()
    assert RunContext.derive(run_id, is_sampled=True) == RunContext.derive(run_id, is_sampled=True)
    assert RunContext.derive(run_id, is_sampled=True) != RunContext.derive(new_id(), is_sampled=True)


def test_derived_trace_ids_are_spread_so_that_a_ratio_samples_about_as_many():
    """Run ids begin with the time: taken as they are, a sampler would take all of them or none."""
    sampler = TraceIdRatioBased(0.25)
    decisions = [
        sampler.should_sample(None, derive_trace_id(new_id()), "run").decision.is_sampled() for _ in range(800)
    ]
    assert 120 < sum(decisions) < 280


def test_names_beyond_the_limit_are_counted_together():
    names = _Names()
    for number in range(MAX_NAMES):
        assert names.bound("made by a user", str(number)) == ("made by a user", str(number))
    assert names.bound("one", "more") == ("(others)", "(others)")
    assert names.bound("made by a user", "7") == ("made by a user", "7")

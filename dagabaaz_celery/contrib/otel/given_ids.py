"""A tracer of the SDK whose spans get ids, and a decision about their sampling, that were made before.

Through what the SDK's tracer offers for it: its ``id_generator`` and its ``sampler`` are attributes of each tracer, and
the one with our name is ours alone. Processors, limits and exporters stay those of the provider.
"""

from collections.abc import Sequence
from contextvars import ContextVar
from typing import Any, NamedTuple

from opentelemetry.context import Context
from opentelemetry.sdk.trace import Tracer
from opentelemetry.sdk.trace.id_generator import IdGenerator
from opentelemetry.sdk.trace.sampling import Decision, Sampler, SamplingResult
from opentelemetry.trace import Link, Span, SpanKind, TracerProvider, TraceState, get_current_span

from dagabaaz_celery import __version__

_NAME = "dagabaaz_celery"


class _Given(NamedTuple):
    trace_id: int
    span_id: int
    is_decided: bool


_given: ContextVar[_Given | None] = ContextVar("dagabaaz_given_ids", default=None)


def find_tracer(provider: TracerProvider) -> Tracer | None:
    """Our tracer of a provider; None for one that is not the SDK's, such as the one that is there before any is set."""
    tracer = provider.get_tracer(_NAME, __version__)
    if not isinstance(tracer, Tracer):
        return None
    if not isinstance(tracer.id_generator, _GivenIds):
        tracer.id_generator = _GivenIds(tracer.id_generator)
        tracer.sampler = _GivenDecision(tracer.sampler)
    return tracer


def start_span(
    tracer: Tracer, name: str, *, trace_id: int, span_id: int, is_decided: bool, context: Context, **given: Any
) -> Span:
    """Start a span with these ids; ``is_decided``: it is sampled, whatever the sampler would say now."""
    token = _given.set(_Given(trace_id, span_id, is_decided))
    try:
        return tracer.start_span(name, context=context, **given)
    finally:
        _given.reset(token)


class _GivenIds(IdGenerator):
    """The ids of the span that is being started; any other span's as before."""

    def __init__(self, others: IdGenerator) -> None:
        self._others = others

    def generate_span_id(self) -> int:
        given = _given.get()
        return self._others.generate_span_id() if given is None else given.span_id

    def generate_trace_id(self) -> int:
        given = _given.get()
        return self._others.generate_trace_id() if given is None else given.trace_id


class _GivenDecision(Sampler):
    """Sampled, where that was decided at the run's start; else as the provider's sampler says."""

    def __init__(self, others: Sampler) -> None:
        self._others = others

    def should_sample(
        self,
        parent_context: Context | None,
        trace_id: int,
        name: str,
        kind: SpanKind | None = None,
        attributes: Any = None,
        links: Sequence[Link] | None = None,
        trace_state: TraceState | None = None,
    ) -> SamplingResult:
        given = _given.get()
        if given is not None and given.is_decided:
            state = get_current_span(parent_context).get_span_context().trace_state
            return SamplingResult(Decision.RECORD_AND_SAMPLE, attributes, state)
        return self._others.should_sample(parent_context, trace_id, name, kind, attributes, links)

    def get_description(self) -> str:
        return self._others.get_description()

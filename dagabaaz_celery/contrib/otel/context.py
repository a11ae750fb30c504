"""Which trace a run belongs to: what is stored with the run, so that every process gives its spans the same ids.

The span of a run, or of a node, is open longer than any process can be relied upon. So it is made when it is over, by
whoever ends it, with ids that all others knew before: those of the run are chosen at its start and travel with it, and
those below are made of them.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

from opentelemetry.context import Context
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, get_current_span, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

_w3c = TraceContextTextMapPropagator()


@dataclass(frozen=True)
class RunContext:
    """The span of a run in one generation; its parent's id, when it began, and the one of the generation before.

    ``since`` are microseconds since 1970; None for a run that was started by a process without tracing.
    """

    span: SpanContext
    parent_id: int | None = None
    since: int | None = None
    previous: SpanContext | None = None

    def carry(self) -> dict[str, str]:
        """As texts, of a few hundred characters at most."""
        carried = _write(self.span)
        if self.parent_id is not None:
            carried["parent"] = f"{self.parent_id:016x}"
        if self.since is not None:
            carried["since"] = str(self.since)
        if self.previous is not None:
            carried["previous"] = _write(self.previous)["traceparent"]
        return carried

    @classmethod
    def read(cls, carried: Mapping[str, str]) -> "RunContext | None":
        """What ``carry`` wrote; None where there is nothing, or nothing that can be read."""
        span = _read(carried)
        if span is None:
            return None
        try:
            parent_id = int(carried["parent"], 16) if "parent" in carried else None
            since = int(carried["since"]) if "since" in carried else None
        except ValueError:
            return None
        previous = _read({"traceparent": carried["previous"]}) if "previous" in carried else None
        return cls(span, parent_id, since, previous)

    @classmethod
    def derive(cls, run_id: str, *, is_sampled: bool) -> "RunContext":
        """For a run that was started where nobody traced: every process makes the same of its id."""
        flags = TraceFlags(TraceFlags.SAMPLED if is_sampled else TraceFlags.DEFAULT)
        return cls(
            SpanContext(derive_trace_id(run_id), _digest(run_id, "run", size=8), is_remote=True, trace_flags=flags)
        )

    @property
    def parent(self) -> SpanContext | None:
        """The span in which the run was started."""
        return None if self.parent_id is None else self._beside(self.parent_id)

    def node(self, index: int) -> SpanContext:
        """The span of a node, or with a negative index of its undoing."""
        return self._beside(self._span_id("node", index))

    def task_id(self, attempt_id: str) -> int:
        """The id of the span of an attempt at a task."""
        return self._span_id("attempt", attempt_id)

    def _span_id(self, kind: str, key: object) -> int:
        return _digest(f"{self.span.trace_id:032x}", f"{self.span.span_id:016x}", kind, str(key), size=8)

    def _beside(self, span_id: int) -> SpanContext:
        span = self.span
        return SpanContext(span.trace_id, span_id, True, span.trace_flags, span.trace_state)


def derive_trace_id(run_id: str) -> int:
    """The trace of a run that says nothing of one. Samplers ask for ids that look random: an id of ours does not."""
    return _digest(run_id, "trace", size=16)


def put_into_context(span: SpanContext | None, context: Context | None = None) -> Context:
    """A context in which spans become children of this one; of none."""
    base = Context() if context is None else context
    return base if span is None else set_span_in_context(NonRecordingSpan(span), base)


def _digest(*parts: str, size: int) -> int:
    return int.from_bytes(hashlib.sha256("/".join(parts).encode()).digest()[:size], "big") or 1


def _write(span: SpanContext) -> dict[str, str]:
    carrier: dict[str, str] = {}
    _w3c.inject(carrier, set_span_in_context(NonRecordingSpan(span), Context()))
    return carrier


def _read(carrier: Mapping[str, str]) -> SpanContext | None:
    span = get_current_span(_w3c.extract(dict(carrier), Context())).get_span_context()
    return span if span.is_valid else None

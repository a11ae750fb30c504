"""Spans of runs, nodes and tasks: one tree for each run, whichever processes it goes through.

A task's span is open while its body runs, so that what the body traces hangs under it. Those of nodes and runs are made
when they are over, with the database's times, by the process whose commit ended them; should that process die right
then, they are missing and the rest of the tree is there.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from opentelemetry import context as contexts
from opentelemetry import trace
from opentelemetry.sdk.trace import Tracer
from opentelemetry.sdk.trace.sampling import Decision
from opentelemetry.trace import Link, Span, SpanContext, SpanKind, Status, StatusCode, TraceFlags, TracerProvider

from dagabaaz_celery.constants import RunStatus
from dagabaaz_celery.contrib.otel.context import RunContext, derive_trace_id, put_into_context
from dagabaaz_celery.contrib.otel.given_ids import find_tracer, start_span
from dagabaaz_celery.stores.sql.records import TaskError
from dagabaaz_celery.worker.observers import Body, Carried, Loss, NodeFacts, Observer, RunFacts

_BAD_ENDS = (RunStatus.FAILED, RunStatus.CRASHED)
_NANOSECONDS = 1000


class Spans(Observer):
    """Traces with this provider, or with the global one as it is at each use."""

    def __init__(self, provider: TracerProvider | None) -> None:
        self._provider = provider
        self._known: tuple[TracerProvider, Tracer | None] | None = None

    # -- the start

    def carry(self, run_id: str, pipeline: str, before: Carried) -> Carried:
        """Choose the ids of the run's span, below the span that is current here, and have the sampler decide."""
        tracer = self._tracer
        if tracer is None:
            return {}
        current = trace.get_current_span().get_span_context()
        parent = current if current.is_valid else None
        trace_id = parent.trace_id if parent else tracer.id_generator.generate_trace_id()
        attributes = {"dagabaaz.run.id": run_id, "dagabaaz.pipeline": pipeline}
        decided = tracer.sampler.should_sample(
            contexts.get_current(), trace_id, f"run {pipeline}", SpanKind.INTERNAL, attributes, ()
        )
        flags = TraceFlags.SAMPLED if decided.decision == Decision.RECORD_AND_SAMPLE else TraceFlags.DEFAULT
        span_id = tracer.id_generator.generate_span_id()
        last = RunContext.read(before)
        chosen = RunContext(
            span=SpanContext(trace_id, span_id, True, TraceFlags(flags), decided.trace_state),
            parent_id=parent.span_id if parent else None,
            since=time.time_ns() // _NANOSECONDS,
            previous=last.span if last else None,
        )
        return chosen.carry()

    # -- tasks

    @contextmanager
    def around_body(self, body: Body) -> Iterator[None]:
        """The span of one attempt; what is current outside, such as a span for the message, is linked."""
        tracer, attempt = self._tracer, body.work.attempt
        if tracer is None:
            yield
            return
        run = self._find_run(tracer, attempt.run_id, body.pipeline, body.carried)
        outside = trace.get_current_span().get_span_context()
        span = start_span(
            tracer,
            f"{_name_kind('task', undoes=body.undoes)} {body.slug}",
            trace_id=run.span.trace_id,
            span_id=run.task_id(attempt.attempt_id),
            is_decided=False,
            context=put_into_context(run.node(attempt.node_index), contexts.get_current()),
            kind=SpanKind.CONSUMER,
            attributes=_describe_task(body),
            links=[Link(outside)] if outside.is_valid else [],
        )
        token = contexts.attach(trace.set_span_in_context(span))
        try:
            yield
        except BaseException as raised:
            error, is_retried = body.explain(raised)
            if is_retried:
                span.set_attribute("dagabaaz.retried", True)
            _record_error(span, error)
            raise
        finally:
            contexts.detach(token)
            span.end()

    def attempt_lost(self, loss: Loss) -> None:
        """The span that the process took with it, from its claim until now."""
        tracer, attempt = self._tracer, loss.work.attempt
        if tracer is None or attempt.claimed_at is None:
            return
        run = self._find_run(tracer, loss.run.id, loss.run.pipeline, loss.run.carried)
        if run.span.trace_flags.sampled:
            span = start_span(
                tracer,
                f"{_name_kind('task', undoes=attempt.node_index < 0)} {loss.slug}",
                trace_id=run.span.trace_id,
                span_id=run.task_id(attempt.attempt_id),
                is_decided=True,
                context=put_into_context(run.node(attempt.node_index)),
                kind=SpanKind.CONSUMER,
                attributes=_describe_task(loss),
                start_time=attempt.claimed_at * _NANOSECONDS,
            )
            _record_error(span, loss.error)
            span.end()

    # -- what is over

    def node_closed(self, node: NodeFacts) -> None:
        """The span of a node, under its run's."""
        tracer = self._tracer
        if tracer is None:
            return
        run = self._find_run(tracer, node.run.id, node.run.pipeline, node.run.carried)
        if not run.span.trace_flags.sampled:
            return
        attributes = {
            **_describe_run(node.run),
            "dagabaaz.node": node.slug,
            "dagabaaz.plugin": node.plugin,
            "dagabaaz.rollback": node.undoes,
            "dagabaaz.tasks": node.tasks_total,
            "dagabaaz.status": node.status,
        }
        span = start_span(
            tracer,
            f"{_name_kind('node', undoes=node.undoes)} {node.slug}",
            trace_id=run.span.trace_id,
            span_id=run.node(node.index).span_id,
            is_decided=True,
            context=put_into_context(run.span),
            attributes=attributes,
            start_time=node.opened_at * _NANOSECONDS,
        )
        if node.status == "failed":
            is_to_blame = node.run.error is not None and node.run.error.get("node") == node.slug
            span.set_status(Status(StatusCode.ERROR, _describe_error(node.run) if is_to_blame else "a task failed"))
        span.end(node.closed_at * _NANOSECONDS)

    def run_ended(self, run: RunFacts) -> None:
        """The span of a run, under the one in which it was started."""
        tracer = self._tracer
        if tracer is None or run.ended_at is None:
            return
        found = self._find_run(tracer, run.id, run.pipeline, run.carried)
        if not found.span.trace_flags.sampled:
            return
        # The first start has the database's time; for a later one the store has none.
        began = run.created_at if run.generation == 1 or found.since is None else found.since
        span = start_span(
            tracer,
            f"run {run.pipeline}",
            trace_id=found.span.trace_id,
            span_id=found.span.span_id,
            is_decided=True,
            context=put_into_context(found.parent),
            attributes={**_describe_run(run), "dagabaaz.status": run.status.value},
            links=[Link(found.previous)] if found.previous else [],
            start_time=began * _NANOSECONDS,
        )
        if run.status in _BAD_ENDS:
            span.set_status(Status(StatusCode.ERROR, _describe_error(run)))
        span.end(run.ended_at * _NANOSECONDS)

    # -- inside

    @property
    def _tracer(self) -> Tracer | None:
        provider = self._provider or trace.get_tracer_provider()
        if self._known is None or self._known[0] is not provider:
            self._known = provider, find_tracer(provider)
        return self._known[1]

    def _find_run(self, tracer: Tracer, run_id: str, pipeline: str, carried: Carried) -> RunContext:
        found = RunContext.read(carried)
        if found is not None:
            return found
        decided = tracer.sampler.should_sample(None, derive_trace_id(run_id), f"run {pipeline}", SpanKind.INTERNAL)
        return RunContext.derive(run_id, is_sampled=decided.decision == Decision.RECORD_AND_SAMPLE)


def _name_kind(kind: str, *, undoes: bool) -> str:
    return f"rollback {kind}" if undoes else kind


def _describe_run(run: RunFacts) -> dict[str, Any]:
    return {"dagabaaz.run.id": run.id, "dagabaaz.pipeline": run.pipeline, "dagabaaz.generation": run.generation}


def _describe_task(task: Body | Loss) -> dict[str, Any]:
    attempt = task.work.attempt
    return {
        "dagabaaz.run.id": attempt.run_id,
        "dagabaaz.pipeline": task.pipeline if isinstance(task, Body) else task.run.pipeline,
        "dagabaaz.node": task.slug,
        "dagabaaz.plugin": task.plugin,
        "dagabaaz.rollback": attempt.node_index < 0,
        "dagabaaz.task.id": attempt.task_id,
        "dagabaaz.attempt": attempt.number,
        "dagabaaz.attempt.id": attempt.attempt_id,
    }


def _describe_error(run: RunFacts) -> str:
    error = run.error or {}
    message = ": ".join(part for part in (error.get("type"), error.get("message")) if part)
    return f"{message} (node {error['node']})" if error.get("node") else message


def _record_error(span: Span, error: TaskError) -> None:
    """As the SDK records an exception; of what is kept of it, which shows no secret."""
    kind = f"{error.module}.{error.qualname}" if error.module not in ("", "builtins") else error.type
    attributes = {"exception.type": kind, "exception.message": error.message, "exception.stacktrace": error.traceback}
    span.add_event("exception", {name: value for name, value in attributes.items() if value})
    span.set_status(Status(StatusCode.ERROR, f"{error.type}: {error.message}"))

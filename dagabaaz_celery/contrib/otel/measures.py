"""Metrics of runs: how they end, how long nodes take and tasks wait, and what sweeps and rescues do.

Names in attributes are those of pipelines, nodes and queues. Where an app has more of them than any dashboard, as one
whose users make pipelines, those beyond a limit are counted together.
"""

import time
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property

from opentelemetry import metrics
from opentelemetry.metrics import Meter, MeterProvider

from dagabaaz_celery import __version__
from dagabaaz_celery.stores.sql.store import Work
from dagabaaz_celery.worker.observers import Body, NodeFacts, Observer, RunFacts

#: Combinations of names that one process counts apart, of each kind.
MAX_NAMES = 500
_OTHERS = "(others)"
#: Seconds; the SDK's own are made for milliseconds.
_BOUNDARIES = [0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0, 14400.0]
_MICROSECONDS = 1_000_000


class Measures(Observer):
    """Measures with this provider, or with the global one; instruments are made at their first use."""

    def __init__(self, provider: MeterProvider | None) -> None:
        self._provider = provider
        self._pipelines, self._nodes, self._queues = _Names(), _Names(), _Names()

    def run_ended(self, run: RunFacts) -> None:
        (pipeline,) = self._pipelines.bound(run.pipeline)
        self._runs.add(1, {"dagabaaz.pipeline": pipeline, "dagabaaz.status": run.status.value})

    def node_closed(self, node: NodeFacts) -> None:
        pipeline, slug = self._nodes.bound(node.run.pipeline, node.slug)
        self._node_seconds.record(
            (node.closed_at - node.opened_at) / _MICROSECONDS,
            {
                "dagabaaz.pipeline": pipeline,
                "dagabaaz.node": slug,
                "dagabaaz.status": node.status,
                "dagabaaz.rollback": node.undoes,
            },
        )

    def around_body(self, body: Body) -> AbstractContextManager[object]:
        if body.due_at is not None:
            (queue,) = self._queues.bound(body.queue or "")
            # By two hosts' clocks: one that goes ahead must not make it negative.
            self._queue_wait.record(max(time.time() - body.due_at, 0.0), {"dagabaaz.queue": queue})
        return nullcontext()

    def rescued(self, work: Work) -> None:
        self._rescues.add(1)

    def swept(self, action: str, count: int) -> None:
        self._sweep.add(count, {"dagabaaz.action": action})

    # -- instruments

    @cached_property
    def _meter(self) -> Meter:
        provider = self._provider or metrics.get_meter_provider()
        return provider.get_meter("dagabaaz_celery", __version__)

    @cached_property
    def _runs(self) -> metrics.Counter:
        return self._meter.create_counter("dagabaaz.runs", "{run}", "Runs that ended, by how they did.")

    @cached_property
    def _node_seconds(self) -> metrics.Histogram:
        return self._meter.create_histogram(
            "dagabaaz.node.duration",
            "s",
            "From a node's launch to the end of its last task.",
            explicit_bucket_boundaries_advisory=_BOUNDARIES,
        )

    @cached_property
    def _queue_wait(self) -> metrics.Histogram:
        return self._meter.create_histogram(
            "dagabaaz.queue.wait",
            "s",
            "From the sending of a task, or the end of its delay, to the start of its body.",
            explicit_bucket_boundaries_advisory=_BOUNDARIES,
        )

    @cached_property
    def _rescues(self) -> metrics.Counter:
        return self._meter.create_counter(
            "dagabaaz.rescues", "{attempt}", "Attempts that were lost with their process."
        )

    @cached_property
    def _sweep(self) -> metrics.Counter:
        return self._meter.create_counter("dagabaaz.sweep.actions", "{action}", "What sweeps did, by kind.")


class _Names:
    """Combinations of names, as many as are counted apart."""

    def __init__(self) -> None:
        self._known: set[tuple[str, ...]] = set()

    def bound(self, *names: str) -> tuple[str, ...]:
        """The names, or as many times the word for all others."""
        if names not in self._known and len(self._known) >= MAX_NAMES:
            return (_OTHERS,) * len(names)
        self._known.add(names)
        return names

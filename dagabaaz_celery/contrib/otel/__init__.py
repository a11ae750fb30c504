"""OpenTelemetry: ``instrument(dag)`` in the module that makes the app; nothing is imported or measured without it.

Needs the extra ``otel``. Traces are a tree of run, nodes and tasks, over whatever processes the run goes through;
metrics count runs, sweeps and rescues, and measure nodes and the time that tasks wait in queues.
"""

from opentelemetry.metrics import MeterProvider
from opentelemetry.trace import TracerProvider

from dagabaaz_celery.app import Dagabaaz
from dagabaaz_celery.contrib.otel.measures import Measures
from dagabaaz_celery.contrib.otel.spans import Spans
from dagabaaz_celery.errors import ConfigurationError


def instrument(
    dag: Dagabaaz, tracer_provider: TracerProvider | None = None, meter_provider: MeterProvider | None = None
) -> None:
    """Have this process's part of every run traced and measured: in workers, and where runs are started.

    Without a provider the global one counts, as it is at each use: it may be set up later, in
    ``worker_process_init`` for instance. Raises ConfigurationError for a second call.
    """
    observers = dag._runtime.observers
    if observers.find(Spans) is not None:
        raise ConfigurationError(
            "instrument(dag) was called twice for one Dagabaaz: everything would be traced and counted twice. Call it "
            "once, in the module that makes the app."
        )
    observers.add(Spans(tracer_provider))
    observers.add(Measures(meter_provider))

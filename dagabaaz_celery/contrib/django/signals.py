"""Django signals for the ends of runs, sent in a worker.

Receivers get ``run``, the handle as ``dag.run()`` gives it, and ``run_id``; the sender is the Dagabaaz. As any callback
of a run's end they are called at least once, also across a crash: where a receiver raises, all of them are called again
later.
"""

from collections.abc import Callable

from django.dispatch import Signal

from dagabaaz_celery.app import Dagabaaz

run_completed = Signal()
run_failed = Signal()
run_crashed = Signal()
run_cancelled = Signal()


def connect_signals(dag: Dagabaaz) -> None:
    """Have the ends of this Dagabaaz's runs told by the signals."""
    dag.on_run_completed(_sender_of(run_completed, dag))
    dag.on_run_failed(_sender_of(run_failed, dag))
    dag.on_run_crashed(_sender_of(run_crashed, dag))
    dag.on_run_cancelled(_sender_of(run_cancelled, dag))


def _sender_of(signal: Signal, dag: Dagabaaz) -> Callable[[str], None]:
    def send_signal(run_id: str) -> None:
        # Not send_robust: what a receiver raises is a call that has to be repeated.
        signal.send(sender=dag, run=dag.run(run_id), run_id=run_id)

    return send_signal

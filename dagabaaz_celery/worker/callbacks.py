"""What is called, or sent, when a run has ended: functions of the app, and Celery signatures."""

import uuid
from collections.abc import Callable
from typing import Any

from celery import Celery
from celery.canvas import Signature, maybe_signature
from kombu.exceptions import OperationalError

from dagabaaz_celery.errors import ConfigurationError
from dagabaaz_celery.stores.sql.records import Owed
from dagabaaz_celery.worker.broker import Broker

RunCallback = Callable[[str], Any]

#: A refusal is told to us and answered by another try later; waiting here would hold up other callbacks.
_SENDING = {"retry": False, "mandatory": True, "add_to_parent": False}


def check_callback(callback: object) -> None:
    """Raise ConfigurationError for what can neither be called nor sent."""
    if not callable(callback):
        raise ConfigurationError(
            f"dag.on_run_... got an object of type {type(callback).__name__}: pass a function that takes a run's id, "
            "or the signature of a task that does, such as notify.s()."
        )


def make_call(app: Celery, broker: Broker, callback: RunCallback, owed: Owed, place: int) -> None:
    """Call a function with the run's id, or send a signature with it; ``place`` tells it from the end's others.

    Whatever it raises means that it is to be made again. A signature is sent under the same id then.
    """
    if not isinstance(callback, Signature):
        callback(owed.run_id)
        return
    signature = maybe_signature(callback, app=getattr(callback, "_app", None) or app, clone=True)
    options: dict[str, Any] = {}
    if not signature.subtask_type:  # the id of a chain, a group or a chord is made of its parts'
        key = f"dagabaaz:{owed.id}:{place}:{signature.task}"
        options["task_id"] = signature.options.get("task_id") or str(uuid.uuid5(uuid.NAMESPACE_OID, key))
    if signature.app is app and not app.conf.task_always_eager:
        _send(broker, signature, owed.run_id, options)
    else:
        signature.apply_async((owed.run_id,), **options)


def _send(broker: Broker, signature: Signature, run_id: str, options: dict[str, Any]) -> None:
    """Over our own connection: bounded in time, and RabbitMQ has to say that it took the message."""
    with broker.link() as link:
        link.send(
            lambda producer: signature.apply_async((run_id,), producer=producer, root_id=run_id, **_SENDING, **options)
        )
        link.confirm()
        refused, unconfirmed = link.take_refused(), link.take_unconfirmed()
    if refused or unconfirmed:
        reason = next(iter(refused.values()), "it did not say that it took the message")
        raise OperationalError(f"the broker does not take {signature.task!r}: {reason}")

"""Log records that name the run, node, task and attempt whose body wrote them: ``name_runs_in_logs()``, once.

The fields are ``dagabaaz_run`` and ``dagabaaz_node`` (a slug), ``dagabaaz_task`` and ``dagabaaz_attempt`` (a number).
Outside of a body each is ``-``, so that a format may name them for every record.
"""

import functools
import logging
from typing import Any

from dagabaaz_celery.worker.active import find_active

#: What a record has on it, and a format or a JSON formatter finds there.
FIELDS = ("dagabaaz_run", "dagabaaz_node", "dagabaaz_task", "dagabaaz_attempt")
_NOWHERE = ("-", "-", "-", "-")


def name_runs_in_logs() -> None:
    """Have every record that this process makes from now on carry the fields, whatever its logger and handlers.

    For the module that makes the app: workers import it, and the processes that they fork have it too.
    """
    make_record = logging.getLogRecordFactory()
    if hasattr(make_record, "dagabaaz_fields"):
        return

    @functools.wraps(make_record)
    def make_named_record(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = make_record(*args, **kwargs)
        _name(record)
        return record

    make_named_record.dagabaaz_fields = FIELDS  # type: ignore[attr-defined]
    logging.setLogRecordFactory(make_named_record)


class RunContextFilter(logging.Filter):
    """The same for one handler, as ``logging.config`` takes it; on a handler, so that records of all loggers pass."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Name the body that wrote the record, and let it pass."""
        _name(record)
        return True


def _name(record: logging.LogRecord) -> None:
    active = find_active()
    attempt = None if active is None else active.work.attempt
    values = (
        _NOWHERE
        if active is None or attempt is None
        else (
            attempt.run_id,
            active.slug,
            attempt.task_id,
            attempt.number,
        )
    )
    record.__dict__.update(zip(FIELDS, values, strict=True))

"""Exceptions of workers, made again where a run's error is read."""

import sys
from typing import Any

from dagabaaz_celery.errors import RemoteActionError
from dagabaaz_celery.run import RunError


def rebuild_error(error: RunError, action: str | None) -> Exception:
    """The exception that a run's error tells of, or a RemoteActionError that names it.

    ``action`` says what raised it, None where no action did. The traceback from the worker is added as a note. What the
    store says is not trusted: only a class that this process has loaded already is called, only one of exceptions, and
    only with the exception's own arguments. The result counts when it reads as the original did.
    """
    rebuilt = _make_again(error)
    if rebuilt is None:
        rebuilt = RemoteActionError(
            f"{action or 'The run'} ended with {error.type or 'an error'}: {error.message}",
            type=error.type,
            traceback=error.traceback,
            node=error.node,
        )
    if error.traceback:
        rebuilt.add_note(f"{action or 'The run'}, in a worker:\n{error.traceback.rstrip()}")
    return rebuilt


def _make_again(error: RunError) -> Exception | None:
    kind = _find_class(error.module, error.qualname)
    if kind is None or not isinstance(error.args, list):
        return None
    try:
        rebuilt = kind(*error.args)
        is_same = type(rebuilt) is kind and str(rebuilt) == error.message
    except Exception:  # its own code does not take what the store says
        return None
    return rebuilt if is_same else None


def _find_class(module: str, qualname: str) -> type[Exception] | None:
    """A class of exceptions where it is defined; nothing is imported, and nothing but dictionaries is looked at."""
    found: Any = sys.modules.get(module)
    for name in qualname.split("."):
        found = getattr(found, "__dict__", {}).get(name)
    if not (isinstance(found, type) and issubclass(found, Exception)):
        return None
    return found if (found.__module__, found.__qualname__) == (module, qualname) else None

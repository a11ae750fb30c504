"""Async bodies: one long-lived event loop for each worker thread, so that clients and pools live across tasks."""

import asyncio
import contextvars
import functools
import inspect
import os
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

_local = threading.local()


def make_sync(function: Callable[..., Any]) -> Callable[..., Any]:
    """An async function or generator function as one that a worker can call; any other function as it is.

    What an async generator yields comes back as a list.
    """
    written = inspect.unwrap(function)
    if not inspect.iscoroutinefunction(written) and not inspect.isasyncgenfunction(written):
        return function

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        result = function(*args, **kwargs)
        if inspect.isasyncgen(result):
            result = _collect(result)
        return _run_on_loop(result) if inspect.iscoroutine(result) else result

    return call


class _ThreadLoop:
    """A thread's event loop; closed with the thread."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.runner = asyncio.Runner()

    def __del__(self) -> None:
        if self.pid == os.getpid():
            self.runner.close()


def _run_on_loop(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Wait for a coroutine on this thread's loop."""
    loop: _ThreadLoop | None = getattr(_local, "loop", None)
    if loop is None or loop.pid != os.getpid():  # a forked child must not touch its parent's loop
        loop = _local.loop = _ThreadLoop()
    # In this task's context: the loop's own is that of the first task that used it.
    return loop.runner.run(coroutine, context=contextvars.copy_context())


async def _collect(values: AsyncIterator[Any]) -> list[Any]:
    return [value async for value in values]

"""Plugins that are given a secret, and do with it whatever a body may do."""

import base64
import hashlib
import os
import signal
from typing import Any, Literal
from urllib.parse import quote

from celery import Task
from celery.exceptions import Ignore, Reject, Retry
from pydantic import BaseModel

from dagabaaz_celery.app import Dagabaaz
from dagabaaz_celery.context import PluginContext
from dagabaaz_celery.models import TaskArtifact


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


class Settings(BaseModel):
    token: int


class Hidden(Exception):
    """Tells nothing in its text, and everything in its repr."""

    def __str__(self) -> str:
        return "nothing to see"


def reject(token: str) -> None:
    raise ValueError(token)


def misbehave(task: Task, token: str, how: str, context: PluginContext) -> Any:
    """Everything a body may do to spread what it was given."""
    match how:
        case "message":
            raise ValueError(f"401 for {token!r}, that is {token}")
        case "key":
            return {}[token]
        case "cause":
            try:
                reject(token)
            except ValueError as error:
                raise RuntimeError("no login") from error
        case "context":
            try:
                reject(token)
            except ValueError:
                raise RuntimeError("no login") from None
        case "group":
            raise ExceptionGroup("two", [ValueError(token), KeyError(token)])
        case "note":
            error = ValueError("no login")
            error.add_note(f"with {token}")
            raise error
        case "repr":
            raise Hidden(token)
        case "url":
            raise OSError(2, "not found", f"https://example.org/?token={quote(token)}")
        case "basic":
            raise ValueError(f"Authorization: Basic {base64.b64encode(token.encode()).decode()}")
        case "long":
            raise ValueError("x" * 3_990 + token + "y" * 500_000)
        case "cut":
            raise ValueError(token[10:40])
        case "pydantic":
            Settings(token=token)  # type: ignore[arg-type]  # its error shows the beginning and the end of its input
        case "autoretry" if context.attempt == 1:
            raise ConnectionError(token)
        case "retry":
            raise task.retry(exc=ValueError(token), countdown=0, max_retries=1)
        case "raised-retry" if context.attempt == 1:
            raise Retry(exc=ValueError(token), when=0)
        case "ignore":
            raise Ignore(token)
        case "reject":
            raise Reject(token, requeue=False)
        case "returned":
            return {"answer": [f"token={token}"]}
        case "file-name":
            return TaskArtifact(file_name=token.splitlines()[0].replace("/", ""), metadata={"t": token})
        case "emitted":
            context.emit(token)
        case "kill" if context.attempt == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        case "exit" if context.attempt == 1:
            raise SystemExit(token)
    return "behaved"


def declare_users(dag: Dagabaaz) -> None:
    """Plugins that are given a secret; each writes its digest to a file, to prove that it had it."""

    @dag.plugin(bind=True, autoretry_for=(ConnectionError,), retry_kwargs={"countdown": 0}, ignore_result=False)
    def use(self: Task, token: str, how: str, context: PluginContext) -> Any:
        path = dag.settings.files_dir / f"{context.run_id}.digest"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(digest(token))
        return misbehave(self, token, how, context)

    @dag.plugin(ignore_result=False)
    def want_number(token: int) -> None: ...

    @dag.plugin(ignore_result=False)
    def want_choice(token: Literal["a", "b"]) -> None: ...

    @dag.plugin(ignore_result=False)
    def want_settings(token: Settings) -> None: ...

"""How far a run is, for a page of the project's own: who may see it, and what is shown of it."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Self

from django.conf import settings
from django.core import signing
from django.urls import NoReverseMatch, reverse
from django.utils.module_loading import import_string
from django.utils.safestring import SafeString, mark_safe

from dagabaaz_celery.constants import RUN_TERMINAL_STATUSES, RunStatus, TaskStatus
from dagabaaz_celery.drawing import Drawing, DrawnNode, draw_run, to_icon, to_json, to_svg
from dagabaaz_celery.errors import ConfigurationError
from dagabaaz_celery.run import NodeSnapshot, Run, RunSnapshot

#: Seconds for which an address that a page was given works.
DEFAULT_MAX_AGE = 24 * 60 * 60
_SALT = "dagabaaz_celery.contrib.django.progress"
_OPEN = (TaskStatus.PENDING, TaskStatus.QUEUED, TaskStatus.RUNNING)
_WORDS = {
    RunStatus.PENDING: "Starting",
    RunStatus.RUNNING: "Running",
    RunStatus.COMPLETED: "Completed",
    RunStatus.FAILED: "Failed",
    RunStatus.CRASHED: "Failed",
    RunStatus.CANCELLED: "Cancelled",
}


@dataclass(frozen=True)
class Look:
    """How a run is shown: as a ``graph`` or a list of bars, with the ``errors`` of its tasks or without, how often."""

    run_id: str
    graph: bool = True
    errors: bool = False
    seconds: float = 2.0

    def sign(self) -> str:
        """As text that nobody else can make: whoever has it may look so, for a while."""
        return str(signing.dumps([self.run_id, self.graph, self.errors, self.seconds], salt=_SALT))

    @classmethod
    def read(cls, token: str) -> Self | None:
        """What was signed; None for anything else, and for what is too old."""
        max_age = getattr(settings, "DAGABAAZ_PROGRESS_MAX_AGE", DEFAULT_MAX_AGE)
        try:
            return cls(*signing.loads(token, salt=_SALT, max_age=max_age))
        except (signing.BadSignature, TypeError):
            return None


def read_look(request: Any, run_id: str) -> Look:
    """How this request is to be shown a run: as was signed for it, else as it asks, without the errors."""
    signed = Look.read(request.GET.get("token", ""))
    if signed is not None and signed.run_id == run_id:
        return signed
    return Look(run_id, graph=request.GET.get("style") != "list")


def may_see_run(request: Any, run: Run) -> bool:
    """The rule without DAGABAAZ_MAY_SEE_RUN: staff who may view runs, and whoever ``run_progress`` gave an address."""
    user = getattr(request, "user", None)
    if user is not None and user.is_active and user.is_staff and user.has_perm("dagabaaz.view_run"):
        return True
    signed = Look.read(request.GET.get("token", ""))
    return signed is not None and signed.run_id == run.id


def find_rule() -> Callable[[Any, Run], bool]:
    """Who may see a run: what DAGABAAZ_MAY_SEE_RUN names, else ``may_see_run``. Raises ConfigurationError."""
    named = getattr(settings, "DAGABAAZ_MAY_SEE_RUN", None)
    if named is None:
        return may_see_run
    try:
        found = import_string(named) if isinstance(named, str) else named
    except ImportError as error:
        raise ConfigurationError(
            f"DAGABAAZ_MAY_SEE_RUN names {named!r}, which cannot be imported ({error}). Write the dotted path of a "
            "function that takes a request and a run and returns whether the one may see the other."
        ) from error
    rule: Callable[[Any, Run], bool] = found
    return rule


@dataclass(frozen=True)
class Progress:
    """A run as a page shows it."""

    look: Look
    snapshot: RunSnapshot
    url: str

    @cached_property
    def drawing(self) -> Drawing:
        """Its nodes, with the words and counts that people read."""
        drawing = draw_run(self.snapshot)
        return drawing if self.look.errors else replace(drawing, title=self.snapshot.pipeline)

    @property
    def is_over(self) -> bool:
        """Whether nothing changes any more: it has ended, and so has what follows."""
        return self.snapshot.settled and not any(_is_open(node) for node in self.snapshot.nodes)

    @property
    def status(self) -> str:
        """As ``run.status``."""
        return self.snapshot.status.value

    @property
    def icon(self) -> SafeString:
        """The status as a shape."""
        shown = "queued" if self.snapshot.status == RunStatus.PENDING else self.status
        return mark_safe(to_icon(shown))  # noqa: S308  # drawn here, of fixed parts

    @property
    def words(self) -> str:
        """The status in a sentence, which is read out when it changes."""
        word = "Paused" if self.snapshot.paused and self._is_running else _WORDS[self.snapshot.status]
        undoing = {"running": " What was done is being undone.", "done": " What was done is undone."}
        steps = f"{self.steps_done} of {self.steps_total} steps" if self.steps_total != 1 else ""
        if self._is_running:
            return f"{word}: {steps} done." if steps else f"{word}."
        failed = [node.label for node in self.drawing.nodes if node.state in ("failed", "crashed")]
        where = f" in step {failed[0]}" if failed and self.snapshot.status != RunStatus.COMPLETED else ""
        return f"{word}{where}.{undoing.get(self.snapshot.rollback_status, '')}"

    @property
    def steps(self) -> list[tuple[DrawnNode, SafeString]]:
        """The nodes with their shapes."""
        return [(node, mark_safe(to_icon(node.state or ""))) for node in self.drawing.nodes]  # noqa: S308

    @property
    def steps_total(self) -> int:
        """How many nodes there are."""
        return len(self.snapshot.nodes)

    @property
    def steps_done(self) -> int:
        """How many of them are over."""
        return sum(node.status in ("completed", "skipped", "filtered") for node in self.snapshot.nodes)

    @property
    def done(self) -> float:
        """How far the run is, by its steps, and within a step by its tasks: from 0 to ``steps_total``."""
        return round(sum(_share(node) for node in self.drawing.nodes), 3)

    @property
    def graph(self) -> SafeString | None:
        """The picture, where it is asked for."""
        return mark_safe(to_svg(self.drawing)) if self.look.graph else None  # noqa: S308  # it escapes what it is given

    @property
    def error(self) -> str | None:
        """Why it ended badly, where that may be told; never a traceback."""
        error = self.snapshot.error
        return None if error is None or not self.look.errors else error.message

    def to_json(self) -> dict[str, Any]:
        """For a page that draws for itself."""
        return {
            "run": self.snapshot.id,
            "status": self.status,
            "over": self.is_over,
            "words": self.words,
            "done": self.done,
            "total": self.steps_total,
            "error": self.error,
            "nodes": to_json(self.drawing)["nodes"],
        }

    @property
    def _is_running(self) -> bool:
        return self.snapshot.status not in RUN_TERMINAL_STATUSES


def make_url(look: Look) -> str:
    """An address at which whoever has it may look so. Raises ConfigurationError."""
    try:
        path = reverse("dagabaaz:progress", args=[look.run_id])
    except NoReverseMatch as error:
        raise ConfigurationError(
            "run_progress has no address to look at. Write "
            'path("runs/", include("dagabaaz_celery.contrib.django.urls")) into the project\'s URLs.'
        ) from error
    return f"{path}?token={look.sign()}"


def _is_open(node: NodeSnapshot) -> bool:
    return any(tasks.get(status) for tasks in (node.tasks, node.rollback_tasks) for status in _OPEN)


def _share(node: DrawnNode) -> float:
    if node.status in ("completed", "skipped", "filtered"):
        return 1.0
    return node.tasks_done / node.tasks_total if node.tasks_total else 0.0

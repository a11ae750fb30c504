"""What a plugin's body may ask for by annotating a parameter with ``PluginContext``."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

#: What a database keeps of a number.
_MAX_PROGRESS = 2**63


@dataclass(frozen=True)
class PluginContext:
    """The task that a body runs for.

    ``attempt`` counts from 1: retries and recoveries raise it. ``slug`` is the node's; ``undoes`` tells whether this
    task undoes one of that node's tasks.
    """

    run_id: str
    slug: str
    task_id: str
    attempt: int
    scratch_path: Path
    emit_artifact: Callable[[Any], None]
    report_progress: Callable[[int, int], None]
    ask_cancelled: Callable[[], bool]
    ask_run: Callable[[], tuple[str, str | None, str]]
    undoes: bool = False

    @property
    def scratch(self) -> Path:
        """A directory for this attempt's files, made at first use, under ``dagabaaz_files_dir``."""
        self.scratch_path.mkdir(parents=True, exist_ok=True)
        return self.scratch_path

    def file(self, name: str) -> Path:
        """The path of a file of this name in the scratch directory, for names that come from others.

        Raises ValueError for a name that leads elsewhere: with a folder in it, ``..``, or a link that stands there.
        """
        path = self.scratch / name
        if name in ("", ".", "..") or "\0" in name or path.name != name or path.is_symlink():
            raise ValueError(
                f"The file name {name[:200]!r} leads out of the scratch directory. Take the last part of the name "
                "alone, or make up another."
            )
        return path

    def emit(self, artifact: Any) -> None:
        """Produce an artifact before the body returns; stored with the outcome, ahead of what it returns.

        Takes what a body may return for one artifact: a TaskArtifact, a mapping, a pydantic model or a scalar.
        """
        self.emit_artifact(artifact)

    def progress(self, done: int, total: int) -> None:
        """Show how far the body is, in whole numbers; written at most once a second."""
        if not all(isinstance(number, int) and 0 <= number < _MAX_PROGRESS for number in (done, total)):
            raise ValueError(f"progress({done!r}, {total!r}) takes two whole numbers from 0 to 2**63 - 1.")
        self.report_progress(done, total)

    @property
    def cancelled(self) -> bool:
        """Whether the run has ended meanwhile, so that a long body may stop; asked at most once a second.

        What follows a run's end, the undoing of its tasks and its finalisers, is not cancelled by it.
        """
        return self.ask_cancelled()

    @property
    def run_status(self) -> str:
        """The run's status as it is now: to a finaliser, how the run ended."""
        return self.ask_run()[0]

    @property
    def run_error(self) -> str | None:
        """Why the run ended badly, in one message; None for one that runs or completed."""
        return self.ask_run()[1]

    @property
    def rollback_status(self) -> str:
        """How far the run's undoing is: to a finaliser, "none", "done" or "failed"."""
        return self.ask_run()[2]

"""What a plugin's body may ask for by annotating a parameter with ``PluginContext``."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class PluginContext:
    """The task that a body runs for.

    ``attempt`` counts from 1: retries and recoveries raise it. ``slug`` is the node's.
    """

    run_id: str
    slug: str
    task_id: str
    attempt: int
    scratch_path: Path
    emit_artifact: Callable[[Any], None]
    report_progress: Callable[[int, int], None]
    ask_cancelled: Callable[[], bool]

    @property
    def scratch(self) -> Path:
        """A directory for this attempt's files, made at first use, under ``dagabaaz_files_dir``."""
        self.scratch_path.mkdir(parents=True, exist_ok=True)
        return self.scratch_path

    def emit(self, artifact: Any) -> None:
        """Produce an artifact before the body returns; stored with the outcome, ahead of what it returns.

        Takes what a body may return for one artifact: a TaskArtifact, a mapping, a pydantic model or a scalar.
        """
        self.emit_artifact(artifact)

    def progress(self, done: int, total: int) -> None:
        """Show how far the body is; written at most once a second."""
        self.report_progress(done, total)

    @property
    def cancelled(self) -> bool:
        """Whether the run has ended meanwhile, so that a long body may stop; asked at most once a second."""
        return self.ask_cancelled()

"""Short ways to what tests need: artifacts, nodes, pipelines, a context for a body that is called by hand."""

import itertools
import mimetypes
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dagabaaz_celery.context import PluginContext
from dagabaaz_celery.models import DagNode, TaskArtifact
from dagabaaz_celery.pipeline import Pipeline


def make_artifact(
    file_name: str | None = None,
    *,
    file_size: int | None = None,
    mime_type: str | None = None,
    file_path: str | None = None,
    **metadata: Any,
) -> TaskArtifact:
    """An artifact: of a file known by its name, from which its MIME type follows, or a record of ``metadata`` alone."""
    guessed = None if file_name is None else mimetypes.guess_type(file_name)[0]
    return TaskArtifact(
        file_name=file_name,
        file_size=file_size,
        mime_type=mime_type or guessed,
        file_path=file_path,
        metadata=metadata,
    )


def make_node(slug: str, *depends_on: str, plugin: str | None = None, **fields: Any) -> DagNode:
    """A node that runs the plugin of its own name, unless another is given."""
    return DagNode(slug=slug, plugin=plugin or slug, depends_on=list(depends_on), **fields)


def make_pipeline(
    graph: str, *, name: str = "pipeline", nodes: Mapping[str, Mapping[str, Any]] | None = None, **fields: Any
) -> Pipeline:
    """A pipeline from a line of text: ``"a -> b, c; b, c -> d"``; each node runs the plugin of its own name.

    What is left of an arrow comes before what is right of it; ``;`` and line ends separate. ``nodes`` has DagNode's
    other fields by slug, ``fields`` are the pipeline's. Raises ValueError for a text that says something else.
    """
    depends_on: dict[str, dict[str, None]] = {}
    for before, after in _read_arrows(graph, depends_on):
        for slug in after:
            depends_on[slug] |= dict.fromkeys(before)
    given = nodes or {}
    unknown = [slug for slug in given if slug not in depends_on]
    if unknown:
        raise ValueError(f"make_pipeline got fields for {unknown[0]!r}, which is no node of {graph!r}.")
    made = [make_node(slug, *before, **given.get(slug, {})) for slug, before in depends_on.items()]
    return Pipeline(name, nodes=made, **fields)


def _read_arrows(graph: str, depends_on: dict[str, dict[str, None]]) -> Iterator[tuple[list[str], list[str]]]:
    """Each arrow's two sides; every slug is noted in order."""
    for part in graph.replace("\n", ";").split(";"):
        groups = [[slug.strip() for slug in group.split(",")] for group in part.split("->")] if part.strip() else []
        for slug in (slug for group in groups for slug in group):
            if not slug or any(letter.isspace() for letter in slug):
                raise ValueError(f'{part.strip()!r} is no graph: write slugs like "a -> b, c; b, c -> d".')
            depends_on.setdefault(slug, {})
        yield from itertools.pairwise(groups)


@dataclass(frozen=True)
class NotingContext(PluginContext):
    """A context that keeps what the body emitted, and how far it said it was."""

    emitted: list[Any] = field(default_factory=list)
    progressed: list[tuple[int, int]] = field(default_factory=list)


def make_plugin_context(
    *,
    slug: str = "node",
    attempt: int = 1,
    scratch: Path | None = None,
    cancelled: bool = False,
    run_id: str | None = None,
    run_status: str = "running",
    run_error: str | None = None,
    rollback_status: str = "none",
    undoes: bool = False,
) -> NotingContext:
    """The context for a body that a test calls by hand; what it emits is in ``context.emitted``.

    ``scratch`` is the directory for its files, such as pytest's ``tmp_path``; else one of its own below the system's.
    """
    emitted: list[Any] = []
    progressed: list[tuple[int, int]] = []
    return NotingContext(
        run_id=run_id or str(uuid.uuid4()),
        slug=slug,
        task_id=str(uuid.uuid4()),
        attempt=attempt,
        scratch_path=scratch or Path(tempfile.gettempdir()) / f"dagabaaz-test-{uuid.uuid4().hex}",
        emit_artifact=emitted.append,
        report_progress=lambda done, total: progressed.append((done, total)),
        ask_cancelled=lambda: cancelled,
        ask_run=lambda: (run_status, run_error, rollback_status),
        undoes=undoes,
        emitted=emitted,
        progressed=progressed,
    )

"""The Celery app of the demo, and its plugins: each hands its input to a plain function and returns what that found.

celery -A tasks worker -c 2
"""

import os
from collections.abc import Iterator
from dataclasses import asdict
from itertools import islice
from pathlib import PurePath
from typing import Any

import inspect_files
import pipeline
from celery import Celery
from find_files import find_files
from report import build_row, write_report

from dagabaaz_celery.app import Dagabaaz
from dagabaaz_celery.context import PluginContext
from dagabaaz_celery.models import TaskArtifact

app = Celery("library")
# SQLite and a broker in a file: every process that names this directory works on the same runs.
dag = Dagabaaz.embedded(app, directory=os.environ.get("LIBRARY_STATE", ".dagabaaz"))


@dag.plugin()
def scan(folder: str, out: str, limit: int) -> Iterator[TaskArtifact]:
    """One artifact for each file of the folder.

    Its path travels as metadata and not as ``file_path``, which promises that the file will still be there: a file of
    a folder in use may be gone before its turn, and here that is a line in the report and not the end of the run.
    """
    found = list(islice(find_files(folder, leave_out=out), limit + 1))
    for number, file in enumerate(found[:limit], start=1):
        facts = {key: value for key, value in asdict(file).items() if value is not None}
        yield TaskArtifact(
            file_name=PurePath(file.name).name,
            file_size=file.size,
            mime_type=file.mime_type,
            metadata=facts | {"number": number, "cut": len(found) > limit},
        )


@dag.plugin()
def read_image(path: str, thumbnail_name: str, context: PluginContext) -> TaskArtifact | None:
    """Size and format, and a thumbnail in the task's scratch directory."""
    thumbnail = context.scratch / thumbnail_name
    facts = inspect_files.read_facts(inspect_files.read_image, path, thumbnail)
    if facts is None:
        return None
    return TaskArtifact(file_path=None if "problem" in facts else str(thumbnail), metadata=facts)


@dag.plugin()
def read_text(path: str) -> dict[str, Any] | None:
    """Words, lines and language."""
    return inspect_files.read_facts(inspect_files.read_text, path)


@dag.plugin()
def read_subtitles(path: str) -> dict[str, Any] | None:
    """Cues and duration."""
    return inspect_files.read_facts(inspect_files.read_subtitles, path)


@dag.plugin()
def list_archive(path: str) -> dict[str, Any] | None:
    """Number of files inside, their size and the first names."""
    return inspect_files.read_facts(inspect_files.list_archive, path)


@dag.plugin()
def hash_file(path: str) -> dict[str, Any] | None:
    """SHA-256."""
    return inspect_files.read_facts(inspect_files.hash_file, path)


@dag.plugin()
def join(artifacts: list[dict[str, Any]], title: str | None = None) -> dict[str, Any]:
    """A row of the report, from all that the branches found out about one file."""
    return build_row(artifacts, title)


@dag.plugin()
def report(artifacts: list[dict[str, Any]], title: str, folder: str, out: str) -> TaskArtifact:
    """The report, with its totals as metadata."""
    place, totals = write_report((artifact["metadata"] for artifact in artifacts), out, title, folder)
    return TaskArtifact(file_path=str(place), metadata=totals)


library = dag.register(pipeline.library)

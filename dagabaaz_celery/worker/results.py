"""From what a body returns to artifacts, checked at the door."""

import mimetypes
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from dagabaaz_celery.errors import LimitExceeded, MissingFile, ResultError
from dagabaaz_celery.json_door import check_json, find_problem_in_text
from dagabaaz_celery.models import TaskArtifact
from dagabaaz_celery.settings import Settings
from dagabaaz_celery.stores.sql.records import ArtifactShape, NewArtifact, ResultShape
from dagabaaz_celery.worker.secrets import Secrets

#: Characters of metadata that one task's artifacts may have together: a body that never stops yielding ends here.
MAX_RESULT_LENGTH = 64 * 1024 * 1024
#: What a database keeps of each, in characters; and its largest whole number.
_MAX_FIELD_LENGTHS = {"file_path": 4096, "file_name": 1024, "mime_type": 255}
_MAX_FILE_SIZE = 2**63 - 1
_FIELD_TYPES = {"file_path": str, "file_name": str, "file_size": int, "mime_type": str, "metadata": dict}


class ArtifactDoor:
    """Takes what a body emits and returns, within the app's limits.

    Raises ResultError for what cannot become an artifact, LimitExceeded for too many or too much, MissingFile for a
    path without a file, SecretExposed for what shows one of the body's ``secrets``.
    """

    def __init__(self, settings: Settings, owner: str, secrets: Secrets | None = None) -> None:
        self._settings = settings
        self._owner = owner
        self._secrets = secrets
        self._taken: list[NewArtifact] = []
        self._length = 0

    def emit(self, value: Any) -> None:
        """Take one artifact."""
        if len(self._taken) >= self._settings.max_artifacts:
            raise LimitExceeded(
                f"A task of plugin {self._owner!r} produced more than {self._settings.max_artifacts} artifacts "
                "(dagabaaz_max_artifacts). Raise the setting, or let the plugin produce fewer, larger artifacts."
            )
        made = self._to_artifact(value)
        self._length += len(made.metadata_json)
        limit = max(MAX_RESULT_LENGTH, self._settings.max_metadata_bytes)
        if self._length > limit:
            raise LimitExceeded(
                f"A task of plugin {self._owner!r} produced artifacts whose metadata together is {self._length:,} "
                f"characters of JSON, and the limit is {limit:,}. Keep large data in files and produce their paths."
            )
        self._taken.append(made)

    def take_result(self, result: Any) -> tuple[list[NewArtifact], ResultShape]:
        """Take a body's result after what it emitted; all artifacts, and how the result is given back later."""
        if result is None:
            return self._taken, "many" if self._taken else "none"
        if isinstance(result, (list, tuple, Iterator)):
            for value in result:
                self.emit(value)
            return self._taken, "many"
        self.emit(result)
        return self._taken, "one" if len(self._taken) == 1 else "many"

    def _to_artifact(self, value: Any) -> NewArtifact:
        artifact, shape = self._convert(value)
        self._refuse_unstorable(artifact)
        text = check_json(
            artifact.metadata,
            f"the result of {self._owner}",
            max_bytes=self._settings.max_metadata_bytes,
            setting="dagabaaz_max_metadata_bytes",
        )
        made = NewArtifact(artifact, shape, text)
        if self._secrets is not None:
            self._secrets.refuse_in(made, self._owner)
        return made

    def _read_once(self, value: TaskArtifact) -> TaskArtifact:
        """A plain copy: a subclass, or one made without validation, may hold anything."""
        fields: dict[str, Any] = {field: getattr(value, field, None) for field in _FIELD_TYPES}
        for field, expected in _FIELD_TYPES.items():
            given = fields[field]
            if given is not None and (not isinstance(given, expected) or isinstance(given, bool)):
                raise ResultError(
                    f"Plugin {self._owner!r} produced an artifact whose {field} is of type {type(given).__name__}: it "
                    f"must be {expected.__name__}."
                )
            if isinstance(given, str):
                fields[field] = str.__str__(given)
        if fields["metadata"] is None:
            fields["metadata"] = {}
        return TaskArtifact.model_construct(**fields)

    def _refuse_unstorable(self, artifact: TaskArtifact) -> None:
        for field, limit in _MAX_FIELD_LENGTHS.items():
            value = getattr(artifact, field)
            if value is None:
                continue
            if problem := find_problem_in_text(value):
                raise ResultError(
                    f"Plugin {self._owner!r} produced an artifact that cannot be stored: its {field} {value[:200]!a} "
                    f"{problem}. A file whose name is not UTF-8 needs another name."
                )
            if len(value) > limit:
                raise LimitExceeded(
                    f"Plugin {self._owner!r} produced an artifact whose {field} has {len(value)} characters: "
                    f"{limit} can be stored. Shorten it, or put it into the metadata."
                )
        if artifact.file_name and _leads_out(artifact.file_name):
            raise ResultError(
                f"Plugin {self._owner!r} produced an artifact whose file_name is {artifact.file_name[:200]!r}: it "
                'would lead whoever writes a file of that name out of their directory. Give a name without "..", not '
                "beginning with a slash."
            )
        if artifact.file_size is not None and not 0 <= artifact.file_size <= _MAX_FILE_SIZE:
            raise ResultError(
                f"Plugin {self._owner!r} produced an artifact whose file_size is {artifact.file_size}: it must be a "
                "number of bytes from 0 to 2**63 - 1. Leave it out, and the file is measured."
            )

    def _convert(self, value: Any) -> tuple[TaskArtifact, ArtifactShape]:
        if isinstance(value, TaskArtifact):
            return _complete_from_file(self._read_once(value)), "file"
        if isinstance(value, BaseModel):
            return self._convert(value.model_dump(mode="json"))
        if isinstance(value, Mapping):
            return TaskArtifact.model_construct(metadata=dict(value)), "record"
        if isinstance(value, (str, int, float, bool)):
            return TaskArtifact.model_construct(metadata={"value": value}), "scalar"
        raise ResultError(
            f"Plugin {self._owner!r} produced a {type(value).__name__}, which cannot become an artifact. Return a "
            "TaskArtifact, a mapping, a pydantic model, a string, a number, a list or generator of those, or None for "
            "nothing at all (not in a list)."
        )


def _complete_from_file(artifact: TaskArtifact) -> TaskArtifact:
    """Fill in an absolute path, and the name, size and MIME type that the body left out."""
    if artifact.file_path is None:
        return artifact
    path = Path(artifact.file_path).absolute()
    try:
        size = path.stat().st_size
    except (OSError, ValueError) as error:
        raise MissingFile(
            f"An artifact names the file {str(path)!r}, which cannot be read: {error}. Write the file before returning "
            "its artifact, under context.scratch so that every worker finds it."
        ) from error
    return artifact.model_copy(
        update={
            "file_path": str(path),
            "file_name": artifact.file_name or path.name,
            "file_size": size if artifact.file_size is None else artifact.file_size,
            "mime_type": artifact.mime_type or mimetypes.guess_type(path.name)[0],
        }
    )


def _leads_out(name: str) -> bool:
    """Whether a file of this name in some directory would be outside of it, or be the directory itself."""
    return name.startswith("/") or ".." in name.split("/") or name.strip("./") == ""

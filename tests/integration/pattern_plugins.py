"""The plugins of the documented patterns, plain enough to run by Celery's signals alone."""

from typing import Any

from dagabaaz_celery.app import Dagabaaz
from dagabaaz_celery.models import TaskArtifact


def declare_patterns(dag: Dagabaaz) -> None:
    """Files are known by their names alone: there is nothing on disk."""

    @dag.plugin
    def fetch(names: list[str]) -> list[TaskArtifact]:
        return [TaskArtifact(file_name=name, file_size=len(name)) for name in names]

    @dag.plugin
    def settings(language: str = "en") -> dict[str, str]:
        return {"language": language}

    @dag.plugin
    def tag(file_name: str, tag: str = "tagged") -> TaskArtifact:
        return TaskArtifact(file_name=f"{tag}/{file_name}")

    @dag.plugin
    def split(file_name: str) -> list[TaskArtifact]:
        return [TaskArtifact(file_name=f"{file_name}#{part}") for part in range(2)]

    @dag.plugin
    def drop(file_name: str) -> None: ...

    @dag.plugin
    def merge(artifacts: list[dict[str, Any]]) -> list[str]:
        return [" ".join(sorted(entry["file_name"] or entry["metadata"]["language"] for entry in artifacts))]

    @dag.plugin(passthrough=True, fan_mode="aggregate")
    def gate(artifacts: list[dict[str, Any]]) -> None: ...

    @dag.plugin
    def refuse(file_name: str) -> None:
        raise ValueError(f"{file_name} cannot be read")

"""What users describe and what flows between nodes: nodes, edge filters, bindings, artifacts."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Protocol, runtime_checkable

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, field_validator

from dagabaaz_celery.constants import (
    TASK_DONE_STATUSES,
    ArtifactSelector,
    FanMode,
    FilterOperator,
    RunStatus,
    TaskStatus,
)


class ExpressionError(ValueError):
    """An expression that cannot be parsed or resolved."""


class _Definition(BaseModel):
    """A part of a pipeline definition: a misspelt field is an error, never ignored."""

    model_config = ConfigDict(extra="forbid")


#: A time that something may take; the longest is some 30 years.
Seconds = Annotated[float, Field(gt=0, le=1e9, allow_inf_nan=False)]


_seconds: TypeAdapter[float] = TypeAdapter(Seconds, config=ConfigDict(strict=True))


def is_timeout(value: object) -> bool:
    """Whether a value is a number of seconds that something may take."""
    try:
        _seconds.validate_python(value)
    except ValidationError:
        return False
    return True


class NodeSource(_Definition):
    """The value of ``key`` in the artifacts of the dependency ``node``; all of the artifact's data when empty."""

    source: Literal["previous_node"] = "previous_node"
    node: str
    key: str = ""


class ConfigSource(_Definition):
    """A literal value fixed in the definition; a text ``$NAME`` in it is a secret that only the worker looks up."""

    source: Literal["config"] = "config"
    value: Any = ""


class RuntimeSource(_Definition):
    """A field of the run input, which the pipeline's input schema then declares."""

    source: Literal["runtime"] = "runtime"
    key: str = ""
    label: str = ""
    placeholder: str = ""
    required: bool = False
    default: Any = ""


class ExpressionSource(_Definition):
    """An expression such as ``{source.title | upper}``, evaluated in the worker."""

    source: Literal["expression"] = "expression"
    expression: str


InputBinding = Annotated[
    NodeSource | ConfigSource | RuntimeSource | ExpressionSource,
    Field(discriminator="source"),
]


class FilterRule(_Definition):
    """One condition on an artifact: a virtual field (file_type, extension, …) or a metadata field."""

    field: str
    operator: FilterOperator
    value: bool | str | float | list[str] = ""


class EdgeFilter(_Definition):
    """Which artifacts pass an edge: those for which all rules hold, then at most one by size."""

    rules: list[FilterRule] = []
    select: ArtifactSelector | None = None


class DagNode(_Definition):
    """One step of a pipeline.

    ``plugin`` is a plugin's name, a Celery task's name, or the task object itself. ``config`` feeds
    ``{config.key}``; ``options`` are Celery publish options (queue, priority, …); ``max_fan_out`` bounds
    the node's tasks; ``scatter`` makes the node's artifacts their own origins, so that a later GROUPED
    node joins on them; ``on_lost`` says what to do when a worker dies in the body (None: as the plugin says).

    ``on_failure`` says what a failed task means: the run fails; it goes on as if the node had nothing for those behind
    it (``continue``); it goes on without those behind it (``skip``). ``timeout`` are the seconds that an attempt's body
    may take. ``rollback`` names the plugin that undoes the node's tasks when the run ends badly. ``run_on`` makes the
    node a finaliser, which runs once when everything else is over.
    """

    name: str = ""
    slug: str = ""
    plugin: str
    depends_on: list[str] = []
    edge_filters: dict[str, EdgeFilter] = {}
    bindings: dict[str, InputBinding] = {}
    fan_mode: FanMode = FanMode.SINGLE
    config: dict[str, Any] = {}
    options: dict[str, Any] = {}
    max_fan_out: int | None = Field(default=None, ge=1)
    scatter: bool = False
    on_lost: Literal["rerun", "crash"] | None = None
    on_failure: Literal["fail", "continue", "skip"] = "fail"
    timeout: Seconds | None = None
    rollback: str = ""
    run_on: Literal["success", "failure", "always"] | None = None

    @field_validator("plugin", "rollback", mode="before")
    @classmethod
    def _task_object_to_name(cls, value: object) -> object:
        if (
            not isinstance(value, str)
            and hasattr(value, "apply_async")
            and isinstance(getattr(value, "name", None), str)
        ):
            return value.name  # type: ignore[attr-defined]  # a Celery task, told by its shape: no Celery import here
        return value

    def counts_as_done(self, status: str) -> bool:
        """Whether a task in this state counts at the node's barrier."""
        return status in TASK_DONE_STATUSES or (status == TaskStatus.FAILED and self.on_failure != "fail")

    def runs_on(self, status: RunStatus) -> bool:
        """Whether a finaliser runs after a run that ended so."""
        return self.run_on == "always" or (self.run_on == "success") == (status == RunStatus.COMPLETED)


class DagArtifact(BaseModel):
    """An artifact as the engine sees it when it routes."""

    model_config = ConfigDict(frozen=True)

    id: str
    file_name: str | None = None
    file_size: int | None = None
    mime_type: str | None = None
    metadata: dict[str, Any] = {}
    origin_artifact_id: str | None = None


class TaskArtifact(BaseModel):
    """An artifact as a plugin makes it and receives it.

    ``file_path`` is absolute, or None for a plain data record; ``metadata`` is JSON; ``file_size`` is in bytes.
    ``origin_artifact_id`` is set by the store: what a plugin puts there is ignored.
    """

    model_config = ConfigDict(frozen=True)

    file_path: str | None = None
    file_name: str | None = None
    file_size: int | None = None
    mime_type: str | None = None
    metadata: dict[str, Any] = {}
    origin_artifact_id: str | None = None

    def to_input_dict(self) -> dict[str, Any]:
        """The entry for this artifact in a plugin's ``artifacts`` list."""
        return {
            "file_path": self.file_path,
            "file_name": self.file_name,
            "file_size": self.file_size,
            "mime_type": self.mime_type,
            "metadata": dict(self.metadata),
        }


@runtime_checkable
class DagArtifactLike(Protocol):
    """What filters and grouping need of an artifact, whichever side of the store it comes from."""

    @property
    def file_name(self) -> str | None: ...
    @property
    def file_size(self) -> int | None: ...
    @property
    def mime_type(self) -> str | None: ...
    @property
    def metadata(self) -> Mapping[str, Any]: ...
    @property
    def origin_artifact_id(self) -> str | None: ...


class TaskContext(BaseModel):
    """Where a task belongs."""

    model_config = ConfigDict(frozen=True)

    run_id: str
    node_index: int


class RetryableTaskInfo(BaseModel):
    """A task that ended without completing, with what it takes to dispatch it again.

    ``dispatched`` is False for a task that never was sent to a queue (pre-failed at a limit): its node is
    launched afresh instead.
    """

    model_config = ConfigDict(frozen=True)

    task_id: str
    node_index: int
    plugin_name: str
    input_artifact_id: str | None = None
    origin_artifact_id: str | None = None
    dispatched: bool = True

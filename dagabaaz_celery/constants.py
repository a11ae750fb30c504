"""Enums, status sets and default limits shared by the whole package."""

from enum import StrEnum


class RunStatus(StrEnum):
    """Lifecycle of a run."""

    PENDING = "pending"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CRASHED = "crashed"
    CANCELLED = "cancelled"


class TaskStatus(StrEnum):
    """Lifecycle of a task: pending (owed), queued (published), running (claimed), then one terminal state."""

    PENDING = "pending"
    QUEUED = "queued"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CRASHED = "crashed"
    CANCELLED = "cancelled"
    SKIPPED = "skipped"
    FILTERED = "filtered"


class NodeSummaryStatus(StrEnum):
    """How a closed node ended: PARTIAL is a mix of skipped tasks and others."""

    COMPLETED = "completed"
    SKIPPED = "skipped"
    PARTIAL = "partial"


class FilterOperator(StrEnum):
    """Operators of an edge filter rule."""

    EQ = "eq"
    NEQ = "neq"
    GT = "gt"
    GTE = "gte"
    LT = "lt"
    LTE = "lte"
    IN = "in"
    NOT_IN = "not_in"
    CONTAINS = "contains"
    NOT_CONTAINS = "not_contains"
    STARTS_WITH = "starts_with"
    ENDS_WITH = "ends_with"
    EXISTS = "exists"
    NOT_EXISTS = "not_exists"


class FileType(StrEnum):
    """Coarse kind of a file, the value of the virtual field ``file_type``."""

    VIDEO = "video"
    SUBTITLE = "subtitle"
    IMAGE = "image"
    AUDIO = "audio"
    ARCHIVE = "archive"
    OTHER = "other"


class ArtifactSelector(StrEnum):
    """Which single artifact an edge filter keeps, by file size."""

    LARGEST = "largest"
    SMALLEST = "smallest"


class FanMode(StrEnum):
    """How a node receives upstream artifacts: one task each, one for all, or one for each origin."""

    SINGLE = "single"
    AGGREGATE = "aggregate"
    GROUPED = "grouped"


class BindingSource(StrEnum):
    """Where a bound input field gets its value."""

    PREVIOUS_NODE = "previous_node"
    CONFIG = "config"
    RUNTIME = "runtime"
    EXPRESSION = "expression"


RUN_TERMINAL_STATUSES = frozenset({RunStatus.COMPLETED, RunStatus.FAILED, RunStatus.CRASHED, RunStatus.CANCELLED})
TASK_TERMINAL_STATUSES = frozenset(
    {
        TaskStatus.COMPLETED,
        TaskStatus.FAILED,
        TaskStatus.CRASHED,
        TaskStatus.CANCELLED,
        TaskStatus.SKIPPED,
        TaskStatus.FILTERED,
    }
)
RUN_RETRYABLE_STATUSES = RUN_TERMINAL_STATUSES - {RunStatus.COMPLETED}
TASK_RETRYABLE_STATUSES = TASK_TERMINAL_STATUSES - {TaskStatus.COMPLETED, TaskStatus.SKIPPED}

#: What counts as done at a node's barrier.
TASK_DONE_STATUSES = frozenset({TaskStatus.COMPLETED, TaskStatus.SKIPPED, TaskStatus.FILTERED})

ARTIFACT_STANDARD_FIELDS = frozenset({"file_path", "file_name", "file_size", "mime_type"})

#: Tasks one node may have, when neither node nor app says otherwise.
MAX_FAN_OUT = 200
#: Levels that an artifact search walks up through passthrough nodes.
MAX_BFS_DEPTH = 50

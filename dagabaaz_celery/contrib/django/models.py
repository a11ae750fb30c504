"""The store's rows, to look at: each model is a table of the store, and nothing is changed through it.

``run.handle`` is the run as ``dag.run()`` gives it, with all that can be done to it.
"""

from typing import Any, NoReturn

from django.db import models

from dagabaaz_celery.constants import RunStatus, TaskStatus
from dagabaaz_celery.contrib.django.fields import IdField, JsonTextField, PairField, TimeField
from dagabaaz_celery.contrib.django.names import name_table
from dagabaaz_celery.contrib.django.project import get_alias, get_dag
from dagabaaz_celery.errors import StoreReadOnly
from dagabaaz_celery.run import Run as RunHandle
from dagabaaz_celery.stores.sql.tables import NODE_STATUSES

RUN_STATUSES = [(str(status), str(status)) for status in RunStatus]
TASK_STATUSES = [(str(status), str(status)) for status in TaskStatus]
_NODE_STATUSES = [(status, status) for status in NODE_STATUSES]
_ROLLBACK_STATUSES = [(status, status) for status in ("none", "running", "done", "failed")]


def _refuse(what: str) -> NoReturn:
    raise StoreReadOnly(
        f"{what} was to be changed through a model, and these only show what is in the store. Change runs by "
        "dag.start(), and by the run's handle: run.handle.cancel(), retry(), rollback(), pause(), resume()."
    )


class StoreQuerySet(models.QuerySet):
    """Rows of the store, from the database that it is in."""

    def create(self, **kwargs: Any) -> NoReturn:
        """Refused."""
        _refuse(self.model.__name__)

    def bulk_create(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refused."""
        _refuse(self.model.__name__)

    def bulk_update(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refused."""
        _refuse(self.model.__name__)

    def update(self, **kwargs: Any) -> NoReturn:
        """Refused."""
        _refuse(self.model.__name__)

    def delete(self) -> NoReturn:
        """Refused."""
        _refuse(self.model.__name__)


class StoreManager(models.Manager.from_queryset(StoreQuerySet)):  # type: ignore[misc]  # made at run time
    """Reads from the store's database, whatever the project's routers say."""

    def get_queryset(self) -> Any:
        """Every row."""
        return super().get_queryset().using(self._db or get_alias())


class StoreModel(models.Model):
    """A row of the store."""

    objects = StoreManager()

    class Meta:
        abstract = True

    def save(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refused."""
        _refuse(f"{type(self).__name__} {self.pk}")

    def delete(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refused."""
        _refuse(f"{type(self).__name__} {self.pk}")


def _to(model: str, column: str, related_name: str) -> Any:
    """A reference that the database does not enforce, as the store has none that it does."""
    return models.ForeignKey(
        model,
        on_delete=models.DO_NOTHING,
        db_column=column,
        db_constraint=False,
        db_index=False,
        related_name=related_name,
    )


class Definition(StoreModel):
    """A pipeline as runs keep it, each content once."""

    hash = models.CharField(max_length=64, primary_key=True)
    body = JsonTextField()
    created_at = TimeField()
    unused_since = TimeField(null=True)

    class Meta:
        db_table = name_table("definition")

    def __str__(self) -> str:
        return f"{self.body['name']} {self.hash[:12]}"


class Pipeline(StoreModel):
    """A version of a pipeline that was saved with ``dag.save()``."""

    id = PairField("name", "version", split_last=True)
    name = models.CharField(max_length=200)
    version = models.IntegerField()
    definition = _to("Definition", "definition_hash", "pipelines")
    created_at = TimeField()

    class Meta:
        db_table = name_table("pipeline")
        unique_together = (("name", "version"),)
        ordering = ("name", "-version")

    def __str__(self) -> str:
        return f"{self.name} {self.version}"


class Run(StoreModel):
    """A run. ``timeout`` are microseconds; ``epilogue`` is what goes on after the end, None for nothing."""

    id = IdField(primary_key=True)
    pipeline = models.CharField(max_length=200)
    version = models.IntegerField(null=True)
    definition = _to("Definition", "definition_hash", "runs")
    key = models.CharField(max_length=200, null=True, db_column="run_key")
    input = JsonTextField()
    options = JsonTextField()
    status = models.CharField(max_length=16, choices=RUN_STATUSES)
    paused = models.BooleanField()
    generation = models.IntegerField()
    nodes_total = models.IntegerField()
    nodes_done = models.IntegerField()
    error = JsonTextField(null=True)
    rollback_status = models.CharField(max_length=16, choices=_ROLLBACK_STATUSES)
    created_at = TimeField()
    ended_at = TimeField(null=True)
    epilogue = models.CharField(max_length=16, null=True)
    timeout = models.BigIntegerField(null=True)
    deadline_at = TimeField(null=True)
    pruned_at = TimeField(null=True)
    prune_due_at = TimeField(null=True)

    class Meta:
        db_table = name_table("run")
        ordering = ("-id",)
        permissions = (
            ("retry_run", "Can retry runs"),
            ("cancel_run", "Can cancel runs"),
            ("rollback_run", "Can roll back runs"),
        )

    def __str__(self) -> str:
        return f"{self.pipeline} {self.id}"

    @property
    def handle(self) -> RunHandle:
        """The run as ``dag.run()`` gives it."""
        return get_dag().run(self.id)


class Tag(StoreModel):
    """A tag of a run."""

    id = PairField("run", "name")
    run = _to("Run", "run_id", "tags")
    name = models.CharField(max_length=100)
    value = models.CharField(max_length=200)

    class Meta:
        db_table = name_table("tag")
        unique_together = (("run", "name"),)

    def __str__(self) -> str:
        return f"{self.name}={self.value}"


class Node(StoreModel):
    """A node of a run: its place in the pipeline, its state and its counters. What undoes node i has the index -1 - i.

    ``id`` is "run:index".
    """

    id = PairField("run", "index")
    run = _to("Run", "run_id", "nodes")
    index = models.IntegerField(db_column="node_index")
    status = models.CharField(max_length=16, choices=_NODE_STATUSES)
    tasks_total = models.IntegerField()
    tasks_done = models.IntegerField()
    launch_cursor = models.IntegerField()
    opened_at = TimeField(null=True)
    closed_at = TimeField(null=True)

    class Meta:
        db_table = name_table("node")
        unique_together = (("run", "index"),)
        ordering = ("run", "index")

    def __str__(self) -> str:
        return self.slug

    @property
    def undoes(self) -> bool:
        """Whether it undoes a node."""
        return bool(self.index < 0)

    @property
    def slug(self) -> str:
        """What the pipeline calls it."""
        return _slug(self.run, self.index)


class Task(StoreModel):
    """A task with its current attempt; ``attempt_id`` is the Celery task id."""

    id = IdField(primary_key=True)
    run = _to("Run", "run_id", "tasks")
    node_index = models.IntegerField()
    ordinal = models.IntegerField()
    status = models.CharField(max_length=16, choices=TASK_STATUSES)
    attempt_id = IdField(unique=True)
    number = models.IntegerField()
    retries = models.IntegerField()
    recoveries = models.IntegerField()
    input_artifact_id = IdField(null=True)
    origin_artifact_id = IdField(null=True)
    claim_token = IdField(null=True)
    worker_id = IdField(null=True)
    claimed_at = TimeField(null=True)
    not_before = TimeField(null=True)
    lease_until = TimeField(null=True)
    queue = models.CharField(max_length=255, null=True)
    queued_at = TimeField(null=True)
    resends = models.IntegerField()
    ended_at = TimeField(null=True)
    result_shape = models.CharField(max_length=8, null=True)
    progress_done = models.BigIntegerField(null=True)
    progress_total = models.BigIntegerField(null=True)
    timeout = models.BigIntegerField(null=True)
    error = JsonTextField(null=True)

    class Meta:
        db_table = name_table("task")
        ordering = ("run", "node_index", "ordinal")

    def __str__(self) -> str:
        return f"{self.slug} {self.ordinal}"

    @property
    def slug(self) -> str:
        """What the pipeline calls the task's node."""
        return _slug(self.run, self.node_index)


class Attempt(StoreModel):
    """An attempt that was replaced by another one."""

    attempt_id = IdField(primary_key=True)
    task = _to("Task", "task_id", "attempts")
    run = _to("Run", "run_id", "attempts")
    number = models.IntegerField()
    status = models.CharField(max_length=16, choices=TASK_STATUSES)
    claim_token = IdField(null=True)
    worker_id = IdField(null=True)
    claimed_at = TimeField(null=True)
    ended_at = TimeField()
    reason = JsonTextField()

    class Meta:
        db_table = name_table("attempt")
        ordering = ("run", "task", "number")

    def __str__(self) -> str:
        return str(self.attempt_id)


class Artifact(StoreModel):
    """What a task produced."""

    id = IdField(primary_key=True)
    run = _to("Run", "run_id", "artifacts")
    node_index = models.IntegerField()
    task = _to("Task", "task_id", "artifacts")
    task_ordinal = models.IntegerField()
    ordinal = models.IntegerField()
    shape = models.CharField(max_length=8)
    file_path = models.TextField(null=True)
    file_name = models.TextField(null=True)
    file_size = models.BigIntegerField(null=True)
    mime_type = models.CharField(max_length=255, null=True)
    metadata = JsonTextField()
    origin_artifact_id = IdField(null=True)

    class Meta:
        db_table = name_table("artifact")
        ordering = ("run", "node_index", "task_ordinal", "ordinal")

    def __str__(self) -> str:
        return str(self.file_name or self.id)

    @property
    def slug(self) -> str:
        """What the pipeline calls the node that made it."""
        return _slug(self.run, self.node_index)


class Owed(StoreModel):
    """What must still happen after a commit; a worker does it."""

    id = IdField(primary_key=True)
    run = _to("Run", "run_id", "owed")
    kind = models.CharField(max_length=16)
    generation = models.IntegerField()
    node_index = models.IntegerField()
    status = models.CharField(max_length=16)
    tries = models.IntegerField()
    due_at = TimeField()

    class Meta:
        db_table = name_table("owed")
        verbose_name_plural = "owed"

    def __str__(self) -> str:
        return f"{self.kind} of run {self.run_id}"


class Worker(StoreModel):
    """A worker that is alive, or was not long ago."""

    id = IdField(primary_key=True)
    hostname = models.CharField(max_length=255)
    pid = models.IntegerField()
    version = models.CharField(max_length=64)
    beat = models.BigIntegerField()
    queues = JsonTextField()
    plugins = JsonTextField()
    holding = JsonTextField()
    started_at = TimeField()
    seen_at = TimeField()

    class Meta:
        db_table = name_table("worker")

    def __str__(self) -> str:
        return str(self.hostname)


def _slug(run: Run, index: int) -> str:
    nodes: list[dict[str, Any]] = run.definition.body["nodes"]
    return str(nodes[max(index, ~index)]["slug"])

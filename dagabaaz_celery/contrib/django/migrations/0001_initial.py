"""The first schema."""

from django.db import migrations, models

from dagabaaz_celery.contrib.django import fields
from dagabaaz_celery.contrib.django.names import name_table
from dagabaaz_celery.contrib.django.revisions import RunRevision


class Migration(migrations.Migration):
    """Every table."""

    initial = True
    dependencies: list[tuple[str, str]] = []
    operations = [
        migrations.SeparateDatabaseAndState(
            [RunRevision("0001", before="base")],
            [
                migrations.CreateModel(
                    name="Definition",
                    fields=[
                        ("hash", models.CharField(max_length=64, primary_key=True, serialize=False)),
                        ("body", fields.JsonTextField()),
                        ("created_at", fields.TimeField()),
                    ],
                    options={
                        "db_table": name_table("definition"),
                    },
                ),
                migrations.CreateModel(
                    name="Worker",
                    fields=[
                        ("id", fields.IdField(primary_key=True, serialize=False)),
                        ("hostname", models.CharField(max_length=255)),
                        ("pid", models.IntegerField()),
                        ("version", models.CharField(max_length=64)),
                        ("beat", models.BigIntegerField()),
                        ("queues", fields.JsonTextField()),
                        ("plugins", fields.JsonTextField()),
                        ("holding", fields.JsonTextField()),
                        ("started_at", fields.TimeField()),
                        ("seen_at", fields.TimeField()),
                    ],
                    options={
                        "db_table": name_table("worker"),
                    },
                ),
                migrations.CreateModel(
                    name="Run",
                    fields=[
                        ("id", fields.IdField(primary_key=True, serialize=False)),
                        ("pipeline", models.CharField(max_length=200)),
                        ("version", models.IntegerField(null=True)),
                        ("key", models.CharField(db_column="run_key", max_length=200, null=True)),
                        ("input", fields.JsonTextField()),
                        ("options", fields.JsonTextField()),
                        (
                            "status",
                            models.CharField(
                                choices=[
                                    ("pending", "pending"),
                                    ("running", "running"),
                                    ("completed", "completed"),
                                    ("failed", "failed"),
                                    ("crashed", "crashed"),
                                    ("cancelled", "cancelled"),
                                ],
                                max_length=16,
                            ),
                        ),
                        ("paused", models.BooleanField()),
                        ("generation", models.IntegerField()),
                        ("nodes_total", models.IntegerField()),
                        ("nodes_done", models.IntegerField()),
                        ("error", fields.JsonTextField(null=True)),
                        (
                            "rollback_status",
                            models.CharField(
                                choices=[
                                    ("none", "none"),
                                    ("running", "running"),
                                    ("done", "done"),
                                    ("failed", "failed"),
                                ],
                                max_length=16,
                            ),
                        ),
                        ("created_at", fields.TimeField()),
                        ("ended_at", fields.TimeField(null=True)),
                        (
                            "definition",
                            models.ForeignKey(
                                db_column="definition_hash",
                                db_constraint=False,
                                db_index=False,
                                on_delete=models.DO_NOTHING,
                                related_name="runs",
                                to="dagabaaz.definition",
                            ),
                        ),
                    ],
                    options={
                        "db_table": name_table("run"),
                        "ordering": ("-id",),
                        "permissions": (
                            ("retry_run", "Can retry runs"),
                            ("cancel_run", "Can cancel runs"),
                            ("rollback_run", "Can roll back runs"),
                        ),
                    },
                ),
                migrations.CreateModel(
                    name="Owed",
                    fields=[
                        ("id", fields.IdField(primary_key=True, serialize=False)),
                        ("kind", models.CharField(max_length=16)),
                        ("generation", models.IntegerField()),
                        ("node_index", models.IntegerField()),
                        ("status", models.CharField(max_length=16)),
                        ("tries", models.IntegerField()),
                        ("due_at", fields.TimeField()),
                        (
                            "run",
                            models.ForeignKey(
                                db_column="run_id",
                                db_constraint=False,
                                db_index=False,
                                on_delete=models.DO_NOTHING,
                                related_name="owed",
                                to="dagabaaz.run",
                            ),
                        ),
                    ],
                    options={
                        "verbose_name_plural": "owed",
                        "db_table": name_table("owed"),
                    },
                ),
                migrations.CreateModel(
                    name="Task",
                    fields=[
                        ("id", fields.IdField(primary_key=True, serialize=False)),
                        ("node_index", models.IntegerField()),
                        ("ordinal", models.IntegerField()),
                        (
                            "status",
                            models.CharField(
                                choices=[
                                    ("pending", "pending"),
                                    ("queued", "queued"),
                                    ("running", "running"),
                                    ("completed", "completed"),
                                    ("failed", "failed"),
                                    ("crashed", "crashed"),
                                    ("cancelled", "cancelled"),
                                    ("skipped", "skipped"),
                                    ("filtered", "filtered"),
                                ],
                                max_length=16,
                            ),
                        ),
                        ("attempt_id", fields.IdField(unique=True)),
                        ("number", models.IntegerField()),
                        ("retries", models.IntegerField()),
                        ("recoveries", models.IntegerField()),
                        ("input_artifact_id", fields.IdField(null=True)),
                        ("origin_artifact_id", fields.IdField(null=True)),
                        ("claim_token", fields.IdField(null=True)),
                        ("worker_id", fields.IdField(null=True)),
                        ("claimed_at", fields.TimeField(null=True)),
                        ("not_before", fields.TimeField(null=True)),
                        ("lease_until", fields.TimeField(null=True)),
                        ("queue", models.CharField(max_length=255, null=True)),
                        ("queued_at", fields.TimeField(null=True)),
                        ("resends", models.IntegerField()),
                        ("ended_at", fields.TimeField(null=True)),
                        ("result_shape", models.CharField(max_length=8, null=True)),
                        ("progress_done", models.BigIntegerField(null=True)),
                        ("progress_total", models.BigIntegerField(null=True)),
                        ("error", fields.JsonTextField(null=True)),
                        (
                            "run",
                            models.ForeignKey(
                                db_column="run_id",
                                db_constraint=False,
                                db_index=False,
                                on_delete=models.DO_NOTHING,
                                related_name="tasks",
                                to="dagabaaz.run",
                            ),
                        ),
                    ],
                    options={
                        "db_table": name_table("task"),
                        "ordering": ("run", "node_index", "ordinal"),
                    },
                ),
                migrations.CreateModel(
                    name="Attempt",
                    fields=[
                        ("attempt_id", fields.IdField(primary_key=True, serialize=False)),
                        ("number", models.IntegerField()),
                        (
                            "status",
                            models.CharField(
                                choices=[
                                    ("pending", "pending"),
                                    ("queued", "queued"),
                                    ("running", "running"),
                                    ("completed", "completed"),
                                    ("failed", "failed"),
                                    ("crashed", "crashed"),
                                    ("cancelled", "cancelled"),
                                    ("skipped", "skipped"),
                                    ("filtered", "filtered"),
                                ],
                                max_length=16,
                            ),
                        ),
                        ("claim_token", fields.IdField(null=True)),
                        ("worker_id", fields.IdField(null=True)),
                        ("claimed_at", fields.TimeField(null=True)),
                        ("ended_at", fields.TimeField()),
                        ("reason", fields.JsonTextField()),
                        (
                            "run",
                            models.ForeignKey(
                                db_column="run_id",
                                db_constraint=False,
                                db_index=False,
                                on_delete=models.DO_NOTHING,
                                related_name="attempts",
                                to="dagabaaz.run",
                            ),
                        ),
                        (
                            "task",
                            models.ForeignKey(
                                db_column="task_id",
                                db_constraint=False,
                                db_index=False,
                                on_delete=models.DO_NOTHING,
                                related_name="attempts",
                                to="dagabaaz.task",
                            ),
                        ),
                    ],
                    options={
                        "db_table": name_table("attempt"),
                        "ordering": ("run", "task", "number"),
                    },
                ),
                migrations.CreateModel(
                    name="Artifact",
                    fields=[
                        ("id", fields.IdField(primary_key=True, serialize=False)),
                        ("node_index", models.IntegerField()),
                        ("task_ordinal", models.IntegerField()),
                        ("ordinal", models.IntegerField()),
                        ("shape", models.CharField(max_length=8)),
                        ("file_path", models.TextField(null=True)),
                        ("file_name", models.TextField(null=True)),
                        ("file_size", models.BigIntegerField(null=True)),
                        ("mime_type", models.CharField(max_length=255, null=True)),
                        ("metadata", fields.JsonTextField()),
                        ("origin_artifact_id", fields.IdField(null=True)),
                        (
                            "run",
                            models.ForeignKey(
                                db_column="run_id",
                                db_constraint=False,
                                db_index=False,
                                on_delete=models.DO_NOTHING,
                                related_name="artifacts",
                                to="dagabaaz.run",
                            ),
                        ),
                        (
                            "task",
                            models.ForeignKey(
                                db_column="task_id",
                                db_constraint=False,
                                db_index=False,
                                on_delete=models.DO_NOTHING,
                                related_name="artifacts",
                                to="dagabaaz.task",
                            ),
                        ),
                    ],
                    options={
                        "db_table": name_table("artifact"),
                        "ordering": ("run", "node_index", "task_ordinal", "ordinal"),
                    },
                ),
                migrations.CreateModel(
                    name="Pipeline",
                    fields=[
                        (
                            "id",
                            fields.PairField(
                                editable=False,
                                first="name",
                                primary_key=True,
                                second="version",
                                serialize=False,
                                split_last=True,
                            ),
                        ),
                        ("name", models.CharField(max_length=200)),
                        ("version", models.IntegerField()),
                        ("created_at", fields.TimeField()),
                        (
                            "definition",
                            models.ForeignKey(
                                db_column="definition_hash",
                                db_constraint=False,
                                db_index=False,
                                on_delete=models.DO_NOTHING,
                                related_name="pipelines",
                                to="dagabaaz.definition",
                            ),
                        ),
                    ],
                    options={
                        "db_table": name_table("pipeline"),
                        "ordering": ("name", "-version"),
                        "unique_together": {("name", "version")},
                    },
                ),
                migrations.CreateModel(
                    name="Node",
                    fields=[
                        (
                            "id",
                            fields.PairField(
                                editable=False, first="run", primary_key=True, second="index", serialize=False
                            ),
                        ),
                        ("index", models.IntegerField(db_column="node_index")),
                        (
                            "status",
                            models.CharField(
                                choices=[
                                    ("blocked", "blocked"),
                                    ("launching", "launching"),
                                    ("launched", "launched"),
                                    ("completed", "completed"),
                                    ("skipped", "skipped"),
                                    ("filtered", "filtered"),
                                    ("failed", "failed"),
                                ],
                                max_length=16,
                            ),
                        ),
                        ("tasks_total", models.IntegerField()),
                        ("tasks_done", models.IntegerField()),
                        ("launch_cursor", models.IntegerField()),
                        ("opened_at", fields.TimeField(null=True)),
                        ("closed_at", fields.TimeField(null=True)),
                        (
                            "run",
                            models.ForeignKey(
                                db_column="run_id",
                                db_constraint=False,
                                db_index=False,
                                on_delete=models.DO_NOTHING,
                                related_name="nodes",
                                to="dagabaaz.run",
                            ),
                        ),
                    ],
                    options={
                        "db_table": name_table("node"),
                        "ordering": ("run", "index"),
                        "unique_together": {("run", "index")},
                    },
                ),
            ],
        ),
    ]

"""The first schema."""

import sqlalchemy as sa
from sqlalchemy.dialects import mysql

from dagabaaz_celery.stores.sql.migrations.steps import create_index, create_table, drop_table, name
from dagabaaz_celery.stores.sql.tables import Id

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

ID = Id()
JSON_TEXT = sa.Text().with_variant(mysql.LONGTEXT(), "mysql", "mariadb")
OPEN_TASKS = sa.text("status IN ('pending', 'queued', 'running')")
DELAYED_TASKS = sa.text("status = 'pending' AND not_before IS NOT NULL")
TABLES = ("definition", "pipeline", "run", "node", "task", "attempt", "artifact", "owed", "worker", "store")


def upgrade() -> None:
    """Create every table."""
    create_table(
        "artifact",
        sa.Column("id", ID, nullable=False),
        sa.Column("run_id", ID, nullable=False),
        sa.Column("node_index", sa.Integer(), nullable=False),
        sa.Column("task_id", ID, nullable=False),
        sa.Column("task_ordinal", sa.Integer(), nullable=False),
        sa.Column("ordinal", sa.Integer(), nullable=False),
        sa.Column("shape", sa.String(length=8), nullable=False),
        sa.Column("file_path", sa.Text(), nullable=True),
        sa.Column("file_name", sa.Text(), nullable=True),
        sa.Column("file_size", sa.BigInteger(), nullable=True),
        sa.Column("mime_type", sa.String(length=255), nullable=True),
        sa.Column("metadata", JSON_TEXT, nullable=False),
        sa.Column("origin_artifact_id", ID, nullable=True),
        sa.PrimaryKeyConstraint("id"),
    )
    create_index(
        "artifact_by_origin",
        "artifact",
        ["run_id", "node_index", "origin_artifact_id"],
    )
    create_table(
        "attempt",
        sa.Column("attempt_id", ID, nullable=False),
        sa.Column("task_id", ID, nullable=False),
        sa.Column("run_id", ID, nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("claim_token", ID, nullable=True),
        sa.Column("worker_id", ID, nullable=True),
        sa.Column("claimed_at", sa.BigInteger(), nullable=True),
        sa.Column("ended_at", sa.BigInteger(), nullable=False),
        sa.Column("reason", JSON_TEXT, nullable=False),
        sa.PrimaryKeyConstraint("attempt_id"),
    )
    create_index(
        "attempt_by_task",
        "attempt",
        ["run_id", "task_id"],
    )
    create_table(
        "definition",
        sa.Column("hash", sa.String(length=64), nullable=False),
        sa.Column("body", JSON_TEXT, nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("hash"),
    )
    create_table(
        "node",
        sa.Column("run_id", ID, nullable=False),
        sa.Column("node_index", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("tasks_total", sa.Integer(), nullable=False),
        sa.Column("tasks_done", sa.Integer(), nullable=False),
        sa.Column("launch_cursor", sa.Integer(), nullable=False),
        sa.Column("opened_at", sa.BigInteger(), nullable=True),
        sa.Column("closed_at", sa.BigInteger(), nullable=True),
        sa.CheckConstraint(
            "status IN ('blocked', 'launching', 'launched', 'completed', 'skipped', 'filtered', 'failed')",
            name=name("node_status"),
        ),
        sa.CheckConstraint("tasks_done BETWEEN 0 AND tasks_total", name=name("node_tasks_done")),
        sa.PrimaryKeyConstraint("run_id", "node_index"),
    )
    create_table(
        "owed",
        sa.Column("id", ID, nullable=False),
        sa.Column("run_id", ID, nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("generation", sa.Integer(), nullable=False),
        sa.Column("node_index", sa.Integer(), nullable=False),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("tries", sa.Integer(), nullable=False),
        sa.Column("due_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("run_id", "kind", "generation", "node_index", name=name("owed_once")),
    )
    create_index(
        "owed_due",
        "owed",
        ["due_at"],
    )
    create_table(
        "pipeline",
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("version", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("definition_hash", sa.String(length=64), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name", "version"),
    )
    create_table(
        "run",
        sa.Column("id", ID, nullable=False),
        sa.Column("pipeline", sa.String(length=200), nullable=False),
        sa.Column("version", sa.Integer(), nullable=True),
        sa.Column("definition_hash", sa.String(length=64), nullable=False),
        sa.Column("run_key", sa.String(length=200), nullable=True),
        sa.Column("input", JSON_TEXT, nullable=False),
        sa.Column("options", JSON_TEXT, nullable=False),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("paused", sa.Boolean(), nullable=False),
        sa.Column("generation", sa.Integer(), nullable=False),
        sa.Column("nodes_total", sa.Integer(), nullable=False),
        sa.Column("nodes_done", sa.Integer(), nullable=False),
        sa.Column("error", JSON_TEXT, nullable=True),
        sa.Column("rollback_status", sa.String(length=16), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("ended_at", sa.BigInteger(), nullable=True),
        sa.CheckConstraint(
            "status IN ('pending', 'running', 'completed', 'failed', 'crashed', 'cancelled')", name=name("run_status")
        ),
        sa.CheckConstraint("nodes_done BETWEEN 0 AND nodes_total", name=name("run_nodes_done")),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("pipeline", "run_key", name=name("run_key")),
    )
    create_index(
        "run_by_status",
        "run",
        ["status"],
    )
    create_table(
        "store",
        sa.Column("id", ID, nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    create_table(
        "task",
        sa.Column("id", ID, nullable=False),
        sa.Column("run_id", ID, nullable=False),
        sa.Column("node_index", sa.Integer(), nullable=False),
        sa.Column("ordinal", sa.Integer(), nullable=False),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("attempt_id", ID, nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("retries", sa.Integer(), nullable=False),
        sa.Column("recoveries", sa.Integer(), nullable=False),
        sa.Column("input_artifact_id", ID, nullable=True),
        sa.Column("origin_artifact_id", ID, nullable=True),
        sa.Column("claim_token", ID, nullable=True),
        sa.Column("worker_id", ID, nullable=True),
        sa.Column("claimed_at", sa.BigInteger(), nullable=True),
        sa.Column("not_before", sa.BigInteger(), nullable=True),
        sa.Column("lease_until", sa.BigInteger(), nullable=True),
        sa.Column("queue", sa.String(length=255), nullable=True),
        sa.Column("queued_at", sa.BigInteger(), nullable=True),
        sa.Column("resends", sa.Integer(), nullable=False),
        sa.Column("ended_at", sa.BigInteger(), nullable=True),
        sa.Column("result_shape", sa.String(length=8), nullable=True),
        sa.Column("progress_done", sa.BigInteger(), nullable=True),
        sa.Column("progress_total", sa.BigInteger(), nullable=True),
        sa.Column("error", JSON_TEXT, nullable=True),
        sa.CheckConstraint(
            "status IN ('pending', 'queued', 'running', 'completed', 'failed', 'crashed', 'cancelled', "
            "'skipped', 'filtered')",
            name=name("task_status"),
        ),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("attempt_id", name=name("task_attempt")),
    )
    create_index(
        "task_by_node",
        "task",
        ["run_id", "node_index", "ordinal"],
    )
    create_index(
        "task_open",
        "task",
        ["status", "run_id", "not_before"],
        postgresql_where=OPEN_TASKS,
    )
    create_index(
        "task_delayed",
        "task",
        ["status", "not_before"],
        postgresql_where=DELAYED_TASKS,
        sqlite_where=DELAYED_TASKS,
    )
    create_table(
        "worker",
        sa.Column("id", ID, nullable=False),
        sa.Column("hostname", sa.String(length=255), nullable=False),
        sa.Column("pid", sa.Integer(), nullable=False),
        sa.Column("version", sa.String(length=64), nullable=False),
        sa.Column("beat", sa.BigInteger(), nullable=False),
        sa.Column("queues", JSON_TEXT, nullable=False),
        sa.Column("plugins", JSON_TEXT, nullable=False),
        sa.Column("holding", JSON_TEXT, nullable=False),
        sa.Column("started_at", sa.BigInteger(), nullable=False),
        sa.Column("seen_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )


def downgrade() -> None:
    """Drop every table, and every run with them."""
    for table in reversed(TABLES):
        drop_table(table)

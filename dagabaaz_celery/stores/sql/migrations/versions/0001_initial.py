"""The first schema."""

from typing import Any

import sqlalchemy as sa
from alembic import context, op
from sqlalchemy.dialects import mysql

from dagabaaz_celery.stores.sql.tables import Id

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

ID = Id()
JSON_TEXT = sa.Text().with_variant(mysql.LONGTEXT(), "mysql", "mariadb")
OPEN_TASKS = sa.text("status IN ('pending', 'queued', 'running')")
DELAYED_TASKS = sa.text("status = 'pending' AND not_before IS NOT NULL")
MYSQL: dict[str, Any] = {"mysql_engine": "InnoDB", "mysql_collate": "utf8mb4_bin"}
TABLES = ("definition", "pipeline", "run", "node", "task", "attempt", "artifact", "owed", "worker", "store")


def upgrade() -> None:
    """Create every table."""
    p, schema = context.config.attributes["prefix"], context.config.attributes["schema"]
    op.create_table(
        f"{p}artifact",
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
        schema=schema,
        **MYSQL,
    )
    op.create_index(
        f"{p}artifact_by_origin",
        f"{p}artifact",
        ["run_id", "node_index", "origin_artifact_id"],
        unique=False,
        schema=schema,
    )
    op.create_table(
        f"{p}attempt",
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
        schema=schema,
        **MYSQL,
    )
    op.create_index(f"{p}attempt_by_task", f"{p}attempt", ["run_id", "task_id"], unique=False, schema=schema)
    op.create_table(
        f"{p}definition",
        sa.Column("hash", sa.String(length=64), nullable=False),
        sa.Column("body", JSON_TEXT, nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("hash"),
        schema=schema,
        **MYSQL,
    )
    op.create_table(
        f"{p}node",
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
            name=f"{p}node_status",
        ),
        sa.CheckConstraint("tasks_done BETWEEN 0 AND tasks_total", name=f"{p}node_tasks_done"),
        sa.PrimaryKeyConstraint("run_id", "node_index"),
        schema=schema,
        **MYSQL,
    )
    op.create_table(
        f"{p}owed",
        sa.Column("id", ID, nullable=False),
        sa.Column("run_id", ID, nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("generation", sa.Integer(), nullable=False),
        sa.Column("node_index", sa.Integer(), nullable=False),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("tries", sa.Integer(), nullable=False),
        sa.Column("due_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("run_id", "kind", "generation", "node_index", name=f"{p}owed_once"),
        schema=schema,
        **MYSQL,
    )
    op.create_index(f"{p}owed_due", f"{p}owed", ["due_at"], unique=False, schema=schema)
    op.create_table(
        f"{p}pipeline",
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("version", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("definition_hash", sa.String(length=64), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name", "version"),
        schema=schema,
        **MYSQL,
    )
    op.create_table(
        f"{p}run",
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
            "status IN ('pending', 'running', 'completed', 'failed', 'crashed', 'cancelled')", name=f"{p}run_status"
        ),
        sa.CheckConstraint("nodes_done BETWEEN 0 AND nodes_total", name=f"{p}run_nodes_done"),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("pipeline", "run_key", name=f"{p}run_key"),
        schema=schema,
        **MYSQL,
    )
    op.create_index(f"{p}run_by_status", f"{p}run", ["status"], unique=False, schema=schema)
    op.create_table(
        f"{p}store",
        sa.Column("id", ID, nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        schema=schema,
        **MYSQL,
    )
    op.create_table(
        f"{p}task",
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
            name=f"{p}task_status",
        ),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("attempt_id", name=f"{p}task_attempt"),
        schema=schema,
        **MYSQL,
    )
    op.create_index(f"{p}task_by_node", f"{p}task", ["run_id", "node_index", "ordinal"], unique=False, schema=schema)
    op.create_index(
        f"{p}task_open",
        f"{p}task",
        ["status", "run_id", "not_before"],
        unique=False,
        schema=schema,
        postgresql_where=OPEN_TASKS,
    )
    op.create_index(
        f"{p}task_delayed",
        f"{p}task",
        ["status", "not_before"],
        unique=False,
        schema=schema,
        postgresql_where=DELAYED_TASKS,
        sqlite_where=DELAYED_TASKS,
    )
    op.create_table(
        f"{p}worker",
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
        schema=schema,
        **MYSQL,
    )


def downgrade() -> None:
    """Drop every table, and every run with them."""
    p, schema = context.config.attributes["prefix"], context.config.attributes["schema"]
    for name in reversed(TABLES):
        op.drop_table(f"{p}{name}", schema=schema)

"""What happens after a run's end (undoing it, finalisers), deadlines of runs and tasks, and tags of runs."""

import sqlalchemy as sa

from dagabaaz_celery.stores.sql.migrations.steps import (
    add_column,
    create_index,
    create_table,
    drop_column,
    drop_index,
    drop_table,
)
from dagabaaz_celery.stores.sql.tables import Id

revision = "0003_0001"
down_revision = "0002_0001"
branch_labels = None
depends_on = None

BUSY = sa.text("epilogue IS NOT NULL")
LIMITED = sa.text("deadline_at IS NOT NULL")


def upgrade() -> None:
    """Columns that may be null: code that does not know them leaves them out."""
    add_column("task", sa.Column("timeout", sa.BigInteger(), nullable=True))
    add_column("run", sa.Column("epilogue", sa.String(length=16), nullable=True))
    add_column("run", sa.Column("timeout", sa.BigInteger(), nullable=True))
    add_column("run", sa.Column("deadline_at", sa.BigInteger(), nullable=True))
    create_index("run_in_epilogue", "run", ["epilogue", "id"], postgresql_where=BUSY, sqlite_where=BUSY)
    create_index("run_deadline", "run", ["deadline_at"], postgresql_where=LIMITED, sqlite_where=LIMITED)
    create_table(
        "tag",
        sa.Column("run_id", Id(), nullable=False),
        sa.Column("name", sa.String(length=100), nullable=False),
        sa.Column("value", sa.String(length=200), nullable=False),
        sa.PrimaryKeyConstraint("run_id", "name"),
    )
    create_index("tag_of_runs", "tag", ["name", "value", "run_id"])


def downgrade() -> None:
    """What was being undone stays as far as it is."""
    drop_table("tag")
    drop_column("task", "timeout")
    drop_index("run_deadline", "run")
    drop_index("run_in_epilogue", "run")
    for column in ("deadline_at", "timeout", "epilogue"):
        drop_column("run", column)

"""What a later release may do while earlier ones are at work: columns that may be null, and indexes."""

import sqlalchemy as sa
from alembic import op

from dagabaaz_celery.stores.sql.migrations.steps import create_index, drop_index, name

revision = "0005_0001"
down_revision = "0004_0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    for table in ("task", "node", "run"):
        op.add_column(name(table), sa.Column("note", sa.String(length=20), nullable=True))
    create_index("task_noted", "task", ["note"])


def downgrade() -> None:
    drop_index("task_noted", "task")
    for table in ("task", "node", "run"):
        op.drop_column(name(table), "note")

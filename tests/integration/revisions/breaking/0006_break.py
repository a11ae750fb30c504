"""What only the release that brings it works with: its number says of no earlier one that it does."""

import sqlalchemy as sa
from alembic import op

from dagabaaz_celery.stores.sql.migrations.steps import name

revision = "0006"
down_revision = "0005_0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.drop_column(name("run"), "note")


def downgrade() -> None:
    op.add_column(name("run"), sa.Column("note", sa.String(length=20), nullable=True))

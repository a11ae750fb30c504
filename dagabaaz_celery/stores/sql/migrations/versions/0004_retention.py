"""Deletion of old runs: which are to go and how far that is, and definitions that nothing refers to any more."""

import sqlalchemy as sa
from alembic import op

from dagabaaz_celery.stores.sql.migrations.steps import add_column, create_index, drop_column, drop_index, rows_of

revision = "0004_0001"
down_revision = "0003_0001"
branch_labels = None
depends_on = None

PRUNED = sa.text("prune_due_at IS NOT NULL")
UNUSED = sa.text("unused_since IS NOT NULL")


def upgrade() -> None:
    """Columns that may be null: code that does not know them leaves them out."""
    add_column("definition", sa.Column("unused_since", sa.BigInteger(), nullable=True))
    add_column("run", sa.Column("pruned_at", sa.BigInteger(), nullable=True))
    add_column("run", sa.Column("prune_due_at", sa.BigInteger(), nullable=True))
    create_index("definition_unused", "definition", ["unused_since"], postgresql_where=UNUSED, sqlite_where=UNUSED)
    create_index("run_to_prune", "run", ["status", "pruned_at", "ended_at"])
    create_index("run_prune_due", "run", ["prune_due_at"], postgresql_where=PRUNED, sqlite_where=PRUNED)
    create_index("run_of_definition", "run", ["definition_hash"])


def downgrade() -> None:
    """Without their mark, runs that are half deleted would be runs like others: what is left of them goes first."""
    run = rows_of("run", "id", "pruned_at")
    marked = sa.select(run.c.id).where(run.c.pruned_at.is_not(None))
    for name in ("attempt", "artifact", "task", "tag", "node", "owed"):
        rows = rows_of(name, "run_id")
        op.execute(sa.delete(rows).where(rows.c.run_id.in_(marked)))
    op.execute(sa.delete(run).where(run.c.pruned_at.is_not(None)))
    for index in ("run_of_definition", "run_prune_due", "run_to_prune"):
        drop_index(index, "run")
    drop_index("definition_unused", "definition")
    for column in ("prune_due_at", "pruned_at"):
        drop_column("run", column)
    drop_column("definition", "unused_since")

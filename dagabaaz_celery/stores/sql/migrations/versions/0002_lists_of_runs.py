"""Lists of runs, newest first: by status, and by pipeline, each from an index that has them in this order."""

from dagabaaz_celery.stores.sql.migrations.steps import create_index, drop_index

revision = "0002_0001"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Replace the index on the status alone. The step that locks out readers comes first: none waits for it inside."""
    drop_index("run_by_status", "run")
    create_index("run_of_status", "run", ["status", "id"])
    create_index("run_of_pipeline", "run", ["pipeline", "id"])


def downgrade() -> None:
    """The index on the status alone."""
    drop_index("run_of_pipeline", "run")
    drop_index("run_of_status", "run")
    create_index("run_by_status", "run", ["status"])

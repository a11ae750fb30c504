"""Runs the migrations on the connection, prefix and schema that the caller gives (see stores/sql/schema.py)."""

from alembic import context

attributes = context.config.attributes
context.configure(
    connection=attributes["connection"],
    version_table=f"{attributes['prefix']}schema_version",
    version_table_schema=attributes["schema"],
)
with context.begin_transaction():
    context.run_migrations()

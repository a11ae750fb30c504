"""Runs the migrations with the prefix and schema that the caller gives (see stores/sql/schema.py).

On the caller's connection, or as SQL that is written to the configuration's output.
"""

from alembic import context

attributes = context.config.attributes
if context.is_offline_mode():
    target = {"dialect_name": attributes["dialect_name"], "literal_binds": True}
else:
    target = {"connection": attributes["connection"]}
context.configure(
    **target,
    version_table=f"{attributes['prefix']}schema_version",
    version_table_schema=attributes["schema"],
)
with context.begin_transaction():
    context.run_migrations()

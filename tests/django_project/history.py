"""The store's tables as Django's migrations make them: the same as those of the store's own history."""

import io
import json

import pytest
from django.conf import settings
from django.core.management import call_command
from django.db import connection
from django.db.migrations.loader import MigrationLoader
from django.test import override_settings
from sqlalchemy import Connection, inspect, text

from dagabaaz_celery.contrib.django import dag
from dagabaaz_celery.contrib.django.revisions import RunRevision
from dagabaaz_celery.errors import StoreSchemaError
from dagabaaz_celery.stores.sql.schema import Migrations, open_schema
from dagabaaz_celery.stores.sql.store import SqlStore
from dagabaaz_celery.stores.sql.tables import build_tables

OTHER = "alembic_"
#: Each revision of the store's own history by the migration of Django's that runs it.
DJANGO_NAMES = {
    step.target: name
    for (label, name), migration in sorted(MigrationLoader(None).disk_migrations.items())
    if label == "dagabaaz"
    for operation in migration.operations
    for step in (operation, *getattr(operation, "database_operations", ()))
    if isinstance(step, RunRevision)
}


def migrate(name: str | None = None) -> None:
    call_command("migrate", "dagabaaz", *([name] if name else []), verbosity=0)


def reflect(connection: Connection, prefix: str) -> dict[str, list[str]]:
    """Everything that a database says of the tables with this prefix, with the prefix taken from every name."""
    inspector = inspect(connection)

    def describe(table: str) -> list[str]:
        parts = [
            *({**column, "type": str(column["type"])} for column in inspector.get_columns(table)),
            inspector.get_pk_constraint(table),
            *inspector.get_unique_constraints(table),
            *inspector.get_indexes(table),
            *inspector.get_check_constraints(table),
            inspector.get_foreign_keys(table),
            inspector.get_table_options(table),
        ]
        return sorted(json.dumps(part, default=str, sort_keys=True).replace(prefix, "") for part in parts)

    tables = [table for table in inspector.get_table_names() if table.startswith(prefix)]
    return {table.removeprefix(prefix): describe(table) for table in tables}


def read_version(connection: Connection, prefix: str) -> list[str]:
    return list(connection.execute(text(f"SELECT version_num FROM {prefix}schema_version")).scalars())


def test_both_histories_give_the_same_tables_at_every_revision():
    """Forth and back, each with the other's stamp."""
    store = SqlStore(dag._runtime.store.database.url, prefix=OTHER)
    own = Migrations(store.database, store.tables)

    def compare(revision: str) -> None:
        with store.database.read() as connection:
            ours, theirs = reflect(connection, "dagabaaz_"), reflect(connection, OTHER)
            assert ours == theirs
            assert read_version(connection, "dagabaaz_") == read_version(connection, OTHER) == [revision]

    try:
        open_schema(store.database, store.tables, may_migrate=True)
        compare(own.head)
        assert list(DJANGO_NAMES) == own.revisions[1:]
        for revision in reversed(list(DJANGO_NAMES)[:-1]):
            migrate(DJANGO_NAMES[revision])
            own.downgrade(revision)
            compare(revision)
        migrate("zero")
        own.downgrade("base")
        with store.database.read() as connection:
            assert [table for table in inspect(connection).get_table_names() if table.startswith("dagabaaz_")] in (
                [],
                ["dagabaaz_schema_version"],
            )
        migrate()
        open_schema(store.database, store.tables, may_migrate=True)
        compare(own.head)
    finally:
        migrate()
        own.downgrade("base")
        with store.database.write() as connection:
            connection.execute(text(f"DROP TABLE {OTHER}schema_version"))
        store.close()
        dag._runtime.store._id = None  # another store than before


def test_what_the_store_made_by_itself_is_taken_over():
    """A project whose store was in this database before its Django app was added."""
    migrate("zero")
    store = SqlStore(dag._runtime.store.database.url)
    made = store.id
    store.close()

    migrate()

    dag._runtime.store._id = None
    assert dag._runtime.store.id == made


def test_models_need_no_further_migration():
    call_command("makemigrations", check=True, dry_run=True, verbosity=0)


def test_the_sql_can_be_read_before():
    printed = io.StringIO()
    call_command("sqlmigrate", "dagabaaz", "0003", stdout=printed)

    script = printed.getvalue()
    assert "CREATE TABLE dagabaaz_tag" in script
    assert "SET version_num='0003_0001'" in script
    assert script.count("BEGIN") == script.count("COMMIT") == (1 if connection.features.can_rollback_ddl else 0)


def test_without_tables_a_start_says_what_to_type():
    migrate("zero")
    dag._runtime.store._id = None
    try:
        with pytest.raises(StoreSchemaError, match=r"has no tables yet.*`python manage.py migrate`"):
            dag.start("order", {"order": 1})
    finally:
        migrate()
    assert dag.start("order", {"order": 1}).status == "running"


def test_a_project_that_tests_without_migrations_has_the_same_tables():
    def look() -> tuple[dict[str, list[str]], list[str]]:
        with dag._runtime.store.database.read() as connection:
            return reflect(connection, "dagabaaz_"), read_version(connection, "dagabaaz_")

    migrated = look()
    migrate("zero")
    try:
        with override_settings(MIGRATION_MODULES={**settings.MIGRATION_MODULES, "dagabaaz": None}):
            call_command("migrate", run_syncdb=True, verbosity=0)
        assert look() == migrated
    finally:
        migrate()
        dag._runtime.store._id = None


def test_tables_of_models_are_those_of_the_store():
    from django.apps import apps

    shown = {
        model._meta.db_table: {field.column for field in model._meta.fields}
        for model in apps.get_app_config("dagabaaz").get_models()
    }
    tables = build_tables()
    for name, table in tables.metadata.tables.items():
        if table is not tables.store:
            assert shown[name] - {"id"} == set(table.columns.keys()) - {"id"}, name

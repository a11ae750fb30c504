"""Opening a store: is it there, is its schema this release's, and which store is it."""

import argparse
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, column, insert, inspect, select, table

from dagabaaz_celery.errors import StoreSchemaError
from dagabaaz_celery.stores.sql.engine import Database, check_sqlite_file, describe_url, now
from dagabaaz_celery.stores.sql.tables import Tables, build_tables, new_id

_MIGRATIONS = Path(__file__).parent / "migrations"


def open_schema(database: Database, tables: Tables, *, may_migrate: bool) -> str:
    """Bring the schema up to date, or refuse with the reason; returns the store's id.

    Concurrent first starts take turns: the first migrates, the others find it done. Raises StoreError,
    StoreSchemaError.
    """
    check_sqlite_file(database)
    config = _build_config(tables)
    script = ScriptDirectory.from_config(config)
    head = script.get_current_head()
    with database.read() as connection:
        store_id = _read_id(connection, tables) if _read_version(connection, tables) == head else None
    if store_id is not None:
        return store_id
    with database.schema_lock(tables.prefix), database.write() as connection:
        current = _read_version(connection, tables)
        if current != head:
            _refuse_unless_older(database, script, current, head, may_migrate)
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
        return _read_id(connection, tables) or _make_id(connection, tables)


def _build_config(tables: Tables) -> Config:
    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["prefix"] = tables.prefix
    config.attributes["schema"] = tables.metadata.schema
    return config


def _read_version(connection: Connection, tables: Tables) -> str | None:
    """The schema's version; asked here rather than of Alembic, which logs lines for every process that asks."""
    name, schema = f"{tables.prefix}schema_version", tables.metadata.schema
    if not inspect(connection).has_table(name, schema=schema):
        return None
    version: str | None = connection.execute(
        select(column("version_num")).select_from(table(name, schema=schema))
    ).scalar()
    return version


def _refuse_unless_older(
    database: Database, script: ScriptDirectory, current: str | None, head: str | None, may_migrate: bool
) -> None:
    where = describe_url(database.engine.url)
    known = {revision.revision for revision in script.walk_revisions()}
    if current is not None and current not in known:
        raise StoreSchemaError(
            f"The store at {where} has schema {current}, which is newer than this release knows (up to {head}). "
            "Upgrade dagabaaz-celery in this process to the release that made it; nothing was changed."
        )
    if not may_migrate:
        have = f"schema {current}" if current else "no tables yet"
        raise StoreSchemaError(
            f"The store at {where} has {have}, and this release needs schema {head}. dagabaaz_auto_migrate is off: "
            "run `python -m dagabaaz_celery.stores.sql.schema URL` when it suits you, then start again."
        )


def _read_id(connection: Connection, tables: Tables) -> str | None:
    store_id: str | None = connection.execute(select(tables.store.c.id)).scalar_one_or_none()
    return store_id


def _make_id(connection: Connection, tables: Tables) -> str:
    store_id = new_id()
    connection.execute(insert(tables.store).values(id=store_id, created_at=now()))
    return store_id


def main() -> None:
    """Bring a store's schema up to date, from the command line."""
    parser = argparse.ArgumentParser(
        description="Create or upgrade the tables of a dagabaaz-celery store.",
        epilog="example: python -m dagabaaz_celery.stores.sql.schema postgresql+psycopg://user@host/database",
    )
    parser.add_argument("url", help="dagabaaz_store_url")
    parser.add_argument("--prefix", default="dagabaaz_", help="dagabaaz_table_prefix")
    parser.add_argument("--schema", default=None, help="dagabaaz_schema")
    given = parser.parse_args()
    open_schema(Database(given.url), build_tables(given.prefix, given.schema), may_migrate=True)


if __name__ == "__main__":
    main()

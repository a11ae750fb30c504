"""Opening a store: is it there, is its schema one that this release works with, and which store is it.

``python -m dagabaaz_celery.stores.sql.schema`` changes the schema from the command line, or prints the SQL that would.

A revision is called after its number. One that code of an earlier release works with as well has that release's number
behind it: ``0002_0001`` is the second schema, good for code that was made for the first. So an old worker knows of a
schema that it has never seen whether to go on: while a new release is rolled out, both use the store.
"""

import argparse
import logging
import re
import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, column, insert, inspect, make_url, select, table
from sqlalchemy.exc import DBAPIError

from dagabaaz_celery.errors import DagabaazError, StoreSchemaError
from dagabaaz_celery.stores.sql.command_line import end_quietly
from dagabaaz_celery.stores.sql.database import Database, check_sqlite_file
from dagabaaz_celery.stores.sql.dialects import now
from dagabaaz_celery.stores.sql.engines import describe_url
from dagabaaz_celery.stores.sql.outages import DATABASE_ERRORS, is_outage
from dagabaaz_celery.stores.sql.tables import Tables, build_tables, new_id

logger = logging.getLogger(__name__)

_MIGRATIONS = Path(__file__).parent / "migrations"
#: Where revisions are looked for.
_VERSIONS = (_MIGRATIONS / "versions",)
_REVISION = re.compile(r"(?P<number>\d+)(?:_(?P<oldest>\d+))?")
_COMMAND = "python -m dagabaaz_celery.stores.sql.schema"


@dataclass(frozen=True)
class SchemaState:
    """A store's schema and the one of this release; ``current`` is None where there are no tables."""

    current: str | None
    head: str
    #: Whether this release works with it.
    fits: bool
    #: Whether a newer release made it.
    is_newer: bool


def open_schema(database: Database, tables: Tables, *, may_migrate: bool) -> str:
    """Bring the schema up to date, or refuse with the reason; returns the store's id.

    Concurrent first starts take turns: the first migrates, the others find it done. Raises StoreError,
    StoreSchemaError.
    """
    return Migrations(database, tables).open(may_migrate=may_migrate)


class Migrations:
    """The revisions of the schema, for the tables of one prefix and schema."""

    def __init__(self, database: Database, tables: Tables) -> None:
        self._database = database
        self._tables = tables
        self._config = _build_config(tables.prefix, tables.metadata.schema)
        self._script = ScriptDirectory.from_config(self._config)
        self.head = str(self._script.get_current_head())

    def open(self, *, may_migrate: bool) -> str:
        """The store's id, once its schema is one that this release works with. Raises StoreError, StoreSchemaError."""
        shared = self._database.shared
        if shared is None:  # beside an open transaction of the app's own there must be no write
            check_sqlite_file(self._database)
        with self._database.read() as connection:
            current = _read_version(connection, self._tables)
            is_good = self._is_good(current)
            store_id = _read_id(connection, self._tables) if is_good else None
        if store_id is not None:
            return store_id
        if shared is not None and not is_good:
            self._refuse_if_newer(current)
            raise self._too_old(current, f"`{shared.migrate_command}` brings it there: run it, then start again.")

        def migrate(connection: Connection) -> str:
            current = _read_version(connection, self._tables)
            if not self._is_good(current):
                self._refuse_if_newer(current)
                if not may_migrate:
                    off = f"dagabaaz_auto_migrate is off: run `{self._command}` when it suits you, then start again."
                    raise self._too_old(current, off)
                self._run(connection, lambda: command.upgrade(self._config, self.head))
            return _read_id(connection, self._tables) or _make_id(connection, self._tables)

        return self._database.transact_alone(self._tables.prefix, migrate)

    def look(self) -> SchemaState:
        """How the schema is, good or not; nothing is changed. Raises StoreError."""
        check_sqlite_file(self._database)
        with self._database.read() as connection:
            current = _read_version(connection, self._tables)
        is_newer = current is not None and current not in self.revisions
        return SchemaState(current, self.head, self._is_good(current), is_newer)

    def check(self) -> str:
        """The schema's revision, which is good for this release. Raises StoreError, StoreSchemaError."""
        check_sqlite_file(self._database)
        with self._database.read() as connection:
            current = _read_version(connection, self._tables)
        if not self._is_good(current):
            self._refuse_if_newer(current)
            raise self._too_old(current, f"`{self._command}` brings it there.")
        return str(current)

    def downgrade(self, target: str) -> None:
        """Go back to a revision, or to "base": no tables. Raises StoreError, StoreSchemaError."""
        check_sqlite_file(self._database)

        def migrate(connection: Connection) -> None:
            current = _read_version(connection, self._tables)
            if current not in self.revisions or self.revisions.index(current) < self.revisions.index(target):
                raise StoreSchemaError(
                    f"The store at {self.where} has {_describe(current)}: there is no way down to {target} from it. "
                    f"This release knows the schemas {', '.join(self.revisions)}."
                )
            self._run(connection, lambda: command.downgrade(self._config, target))

        self._database.transact_alone(self._tables.prefix, migrate)

    def print_sql(self, begin: str, end: str, *, down: bool = False) -> None:
        """Print the SQL from one revision to another; the database is not asked."""
        self._config.attributes["dialect_name"] = self._database.url.get_backend_name()
        (command.downgrade if down else command.upgrade)(self._config, f"{begin}:{end}", sql=True)

    def step(self, connection: Connection, target: str, *, down: bool = False) -> None:
        """Go to a revision in a transaction of the caller's; a schema that is there already, or beyond, is left alone.

        Raises StoreSchemaError.
        """
        current = _read_version(connection, self._tables)
        if not self._is_good(current):
            self._refuse_if_newer(current)
        place = self._place_of(current)
        if down and place > self._place_of(target):
            self._run(connection, lambda: command.downgrade(self._config, target))
        elif not down and place < self._place_of(target):
            self._run(connection, lambda: command.upgrade(self._config, target))
        if not down and _read_id(connection, self._tables) is None:
            _make_id(connection, self._tables)

    def _place_of(self, revision: str | None) -> int:
        """A revision's place in the order; a newer release's comes last."""
        known = self.revisions
        name = revision or "base"
        return known.index(name) if name in known else len(known)

    def write_sql(self, begin: str, end: str, output: TextIO, *, down: bool = False) -> None:
        """Write the SQL from one revision to another; the database is not asked."""
        self._config.output_buffer = output
        self.print_sql(begin, end, down=down)

    @property
    def revisions(self) -> list[str]:
        """Every revision that this release knows, in order; the first is "base": no tables."""
        known = [revision.revision for revision in self._script.walk_revisions()]
        return ["base", *reversed(known)]

    @property
    def where(self) -> str:
        """Which database it is, without a password."""
        return describe_url(self._database.url)

    def _is_good(self, current: str | None) -> bool:
        """Whether this release works with the schema as it is: its own, or a newer one that says so."""
        if current == self.head:
            return True
        if current is None or current in self.revisions or _read_oldest(current) > _read_number(self.head):
            return False
        logger.info("the store at %s has schema %s, of a newer release; it does for this one", self.where, current)
        return True

    def _refuse_if_newer(self, current: str | None) -> None:
        if current is not None and current not in self.revisions:
            raise StoreSchemaError(
                f"The store at {self.where} has schema {current}, which is newer than this release knows (up to "
                f"{self.head}) and not for releases as old as it. Upgrade dagabaaz-celery in this process to the "
                f"release that made it, or take the store back with that release: `{self._command} --down "
                f"{self.head}`. Nothing was changed."
            )

    def _too_old(self, current: str | None, what_helps: str) -> StoreSchemaError:
        prints = "" if self._database.shared else " With --sql it prints the SQL instead."
        return StoreSchemaError(
            f"The store at {self.where} has {_describe(current)}, and this release needs schema {self.head}. "
            f"{what_helps}{prints}"
        )

    def _run(self, connection: Connection, migrate: Callable[[], None]) -> None:
        """Migrate on this connection. What the database refuses for good is a StoreSchemaError."""
        self._config.attributes["connection"] = connection
        try:
            migrate()
        except DBAPIError as error:
            if is_outage(error):
                raise
            raise StoreSchemaError(
                f"The tables of the store at {self.where} could not be changed: {error.orig}. Give the database user "
                f"the right to do so, or set dagabaaz_auto_migrate = False and have somebody who has it run "
                f"`{self._command}`."
            ) from error

    @property
    def _command(self) -> str:
        """What to type; the URL, which may have a password in it, is left to the reader."""
        prefix, schema = self._tables.prefix, self._tables.metadata.schema
        options = "" if prefix == "dagabaaz_" else f" --prefix {prefix!r}"
        return f"{_COMMAND} URL{options}" + ("" if schema is None else f" --schema {schema!r}")


def _build_config(prefix: str, schema: str | None) -> Config:
    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    config.set_main_option("path_separator", "newline")
    config.set_main_option("version_locations", "\n".join(map(str, _VERSIONS)).replace("%", "%%"))
    config.attributes["prefix"] = prefix
    config.attributes["schema"] = schema
    return config


def _read_number(revision: str) -> int:
    found = _REVISION.fullmatch(revision)
    return int(found["number"]) if found else 0


def _read_oldest(revision: str) -> float:
    """The oldest schema whose code a revision is good for; of what is no revision of ours, none."""
    found = _REVISION.fullmatch(revision)
    return int(found["oldest"] or found["number"]) if found else float("inf")


def _describe(version: str | None) -> str:
    return f"schema {version}" if version else "no tables yet"


def _read_version(connection: Connection, tables: Tables) -> str | None:
    """The schema's version; asked here rather than of Alembic, which logs lines for every process that asks."""
    name, schema = f"{tables.prefix}schema_version", tables.metadata.schema
    if not inspect(connection).has_table(name, schema=schema):
        return None
    version: str | None = connection.execute(
        select(column("version_num")).select_from(table(name, schema=schema))
    ).scalar()
    return version


def _read_id(connection: Connection, tables: Tables) -> str | None:
    store_id: str | None = connection.execute(select(tables.store.c.id)).scalar_one_or_none()
    return store_id


def _make_id(connection: Connection, tables: Tables) -> str:
    store_id = new_id()
    connection.execute(insert(tables.store).values(id=store_id, created_at=now()))
    return store_id


# -- the command


def main(arguments: Sequence[str] | None = None) -> int:
    """Change a store's schema, or print the SQL; 0 when that is done, 1 when it was refused, 2 for a wrong call."""
    parser = _build_parser()
    given = parser.parse_args(arguments)
    try:
        with closing(Database(given.url)) as database:
            migrations = Migrations(database, build_tables(given.prefix, given.schema))
            for revision in (given.down, given.from_revision):
                if revision not in (None, *migrations.revisions):
                    parser.error(f"there is no schema {revision}; this release knows {', '.join(migrations.revisions)}")
            _act(migrations, given)
    except DagabaazError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    except DATABASE_ERRORS as error:
        reason = str(getattr(error, "orig", None) or error).strip().splitlines()[0]
        sys.stderr.write(f"The store at {describe_url(make_url(given.url))} could not be asked: {reason}\n")
        return 1
    return 0


def _act(migrations: Migrations, given: argparse.Namespace) -> None:
    if given.sql:
        down = given.down is not None
        begin = given.from_revision or (migrations.head if down else "base")
        migrations.print_sql(begin, given.down or migrations.head, down=down)
        return
    if given.check:
        done = f"has schema {migrations.check()}, which this release works with"
    elif given.down is not None:
        migrations.downgrade(given.down)
        done = "has no tables any more" if given.down == "base" else f"has schema {given.down} now"
    else:
        migrations.open(may_migrate=True)
        done = f"has schema {migrations.check()}"
    sys.stdout.write(f"The store at {migrations.where} {done}.\n")


def _build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=_COMMAND,
        description="Create or upgrade the tables of a dagabaaz-celery store, take them back, or print the SQL for it.",
        epilog=f"example: {_COMMAND} postgresql+psycopg://user@host/database --sql",
    )
    parser.add_argument("url", help="dagabaaz_store_url; with --sql it only says which kind of database it is")
    parser.add_argument("--prefix", default="dagabaaz_", help="dagabaaz_table_prefix")
    parser.add_argument("--schema", default=None, help="dagabaaz_schema")
    parser.add_argument(
        "--down", metavar="REVISION", help="go back to this schema; base: drop every table and every run"
    )
    act = parser.add_mutually_exclusive_group()
    act.add_argument("--sql", action="store_true", help="print the SQL and change nothing")
    act.add_argument(
        "--check", action="store_true", help="change nothing, fail unless this release works with the schema"
    )
    parser.add_argument(
        "--from",
        dest="from_revision",
        metavar="REVISION",
        help="with --sql: the schema that the database has (base, and with --down the newest, if left out)",
    )
    return parser


if __name__ == "__main__":
    sys.exit(end_quietly(main))

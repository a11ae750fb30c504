"""Django's migrations of the store: each runs a revision of the store's own history, on Django's connection.

So there is one schema, and its version is known to both: ``migrate`` leaves alone what is there already.
"""

import io
from typing import Any

from django.db.migrations.operations.base import Operation

from dagabaaz_celery.contrib.django.names import get_prefix, get_schema
from dagabaaz_celery.contrib.django.project import get_database
from dagabaaz_celery.stores.sql.database import Database
from dagabaaz_celery.stores.sql.schema import Migrations
from dagabaaz_celery.stores.sql.tables import build_tables


class RunRevision(Operation):
    """Goes from one revision of the store's schema to the next, or back; Django's picture of it is not its business."""

    reduces_to_sql = True
    reversible = True

    def __init__(self, target: str, before: str) -> None:
        self.target = target
        self.before = before

    def state_forwards(self, app_label: str, state: Any) -> None:
        """Nothing."""

    def database_forwards(self, app_label: str, schema_editor: Any, from_state: Any, to_state: Any) -> None:
        """Upgrade, in the store's database."""
        self._go(schema_editor, self.before, self.target, down=False)

    def database_backwards(self, app_label: str, schema_editor: Any, from_state: Any, to_state: Any) -> None:
        """Downgrade, in the store's database."""
        self._go(schema_editor, self.target, self.before, down=True)

    def describe(self) -> str:
        """One line, as ``migrate --plan`` shows it."""
        return f"Bring the store to schema {self.target}"

    def _go(self, schema_editor: Any, begin: str, end: str, *, down: bool) -> None:
        database = get_database()
        if schema_editor.connection.alias != database.alias:
            return
        migrations = open_migrations()
        if schema_editor.collect_sql:
            written = io.StringIO()
            migrations.write_sql(begin, end, written, down=down)
            schema_editor.collected_sql += _split(written.getvalue())
            return
        with database.connect() as connection:
            migrations.step(connection, end, down=down)


def open_migrations() -> Migrations:
    """The store's own migrations, in the project's database."""
    database = get_database()
    return Migrations(Database(database.url, database), build_tables(get_prefix(), get_schema()))


def _split(script: str) -> list[str]:
    """A script's statements and comments; where it begins and commits is Django's to say."""
    parts = [part.strip() for part in script.split("\n\n")]
    return [part for part in parts if part and part not in ("BEGIN;", "COMMIT;")]

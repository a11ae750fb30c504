"""``migrate``: the store's tables."""

import click
from celery.bin.base import CeleryCommand

from dagabaaz_celery.cli.context import find_dag
from dagabaaz_celery.errors import ConfigurationError
from dagabaaz_celery.stores.sql import schema


@click.command(cls=CeleryCommand)
@click.option("--check", is_flag=True, help="Change nothing; exit code 1 unless this release works with the tables.")
@click.option("--sql", is_flag=True, help="Print the SQL and change nothing.")
@click.option("--from", "begin", metavar="REVISION", help="With --sql: the schema that the database has.")
@click.option("--down", metavar="REVISION", help="Go back to this schema; base drops every table and every run.")
@click.pass_context
def migrate(ctx: click.Context, check: bool, sql: bool, begin: str | None, down: str | None) -> None:
    """Make the store's tables, or bring them to this release's schema.

    It does for the app's store what python -m dagabaaz_celery.stores.sql.schema does for any.

    \b
    Examples:
      celery -A proj dagabaaz migrate
      celery -A proj dagabaaz migrate --sql > upgrade.sql
    """
    if check and sql:
        raise click.UsageError("Take --check or --sql, not both.")
    dag = find_dag(ctx)
    settings, shared = dag.settings, dag._runtime.shared_database
    if settings.store_url is None and shared is not None:
        raise ConfigurationError(
            f"The store is in the app's own database, whose tables are not made here: `{shared.migrate_command}` does."
        )
    if settings.store_url is None:
        raise ConfigurationError(
            "dagabaaz_store_url is not set, so there is no store whose tables could be made. Set it to a SQLAlchemy "
            "URL such as postgresql+psycopg://user@host/database."
        )
    words = [settings.store_url, "--prefix", settings.table_prefix]
    words += ["--schema", settings.schema] if settings.schema is not None else []
    words += [flag for flag, is_given in (("--check", check), ("--sql", sql)) if is_given]
    words += [word for flag, value in (("--from", begin), ("--down", down)) if value for word in (flag, value)]
    ctx.exit(schema.main(words))

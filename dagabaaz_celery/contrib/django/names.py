"""Names of the store's tables, as models and migrations need them before there is an app to ask."""

from django.conf import settings

DEFAULT_PREFIX = "dagabaaz_"


def get_prefix() -> str:
    """What stands before the name of every table."""
    prefix: str = getattr(settings, "CELERY_DAGABAAZ_TABLE_PREFIX", DEFAULT_PREFIX)
    return prefix


def get_schema() -> str | None:
    """The database schema of the tables; None: the connection's default."""
    schema: str | None = getattr(settings, "CELERY_DAGABAAZ_SCHEMA", None)
    return schema


def name_table(table: str) -> str:
    """A table's whole name, as Django's ``db_table`` takes it."""
    name, schema = f"{get_prefix()}{table}", get_schema()
    if schema is None:
        return name
    alias = getattr(settings, "DAGABAAZ_DATABASE", "default")
    quote = "`" if "mysql" in settings.DATABASES[alias]["ENGINE"] else '"'
    return f"{schema}{quote}.{quote}{name}"  # Django puts the outer quotes

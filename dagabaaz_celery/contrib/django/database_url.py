"""A store URL from one of Django's DATABASES: the same server, the same driver, the options that matter."""

import sys
from collections.abc import Mapping
from typing import Any

from sqlalchemy import URL

from dagabaaz_celery.errors import ConfigurationError

#: What the options of psycopg and mysqlclient have in them for Django or for Python alone.
_NOT_FOR_THE_DRIVER = frozenset(
    (
        *("isolation_level", "server_side_binding", "pool", "assume_role", "cursor_factory", "context"),
        *("conv", "cursorclass", "use_unicode", "client_flag", "ssl"),
    )
)


def build_url(settings: Mapping[str, Any]) -> URL:
    """The URL for an entry of DATABASES, as a connection has it. Raises ConfigurationError."""
    engine = str(settings["ENGINE"])
    vendor = engine.rpartition(".")[2]
    options = dict(settings.get("OPTIONS") or {})
    if vendor.startswith("sqlite") or vendor == "spatialite":
        query = {"timeout": str(options["timeout"])} if "timeout" in options else {}
        return URL.create("sqlite", database=str(settings["NAME"]), query=query)
    if vendor.startswith("postg") or "postgres" in engine:
        return _build_postgresql(settings, options)
    if "mysql" in engine:
        return _build_mysql(settings, options)
    raise ConfigurationError(
        f"The store cannot be in a database of {engine!r}: it works on PostgreSQL, MariaDB, MySQL and SQLite. Name "
        "another of DATABASES in DAGABAAZ_DATABASE, or set CELERY_DAGABAAZ_STORE_URL."
    )


def is_in_memory(url: URL) -> bool:
    """Whether it is a SQLite database without a file, as Django's tests make by default."""
    name = url.database or ""
    return url.get_backend_name() == "sqlite" and (not name or name == ":memory:" or "mode=memory" in name)


def _build_postgresql(settings: Mapping[str, Any], options: dict[str, Any]) -> URL:
    query = _as_text(options)
    if role := options.get("assume_role"):
        query["options"] = f"{query.get('options', '')} -c role={role}".strip()
    host = str(settings.get("HOST") or "")
    if host.startswith("/"):
        query["host"], host = host, ""
    return _create("postgresql+psycopg" if _has_psycopg3() else "postgresql+psycopg2", settings, host, query)


def _has_psycopg3() -> bool:
    from django.db.backends.postgresql.psycopg_any import is_psycopg3  # noqa: PLC0415  # needs one of the two

    return bool(is_psycopg3)


def _build_mysql(settings: Mapping[str, Any], options: dict[str, Any]) -> URL:
    import MySQLdb  # noqa: PLC0415  # what Django uses: mysqlclient, or PyMySQL in its place

    driver = "pymysql" if MySQLdb is sys.modules.get("pymysql") else "mysqldb"
    query = {"charset": "utf8mb4", **_as_text(options)}
    if isinstance(ssl := options.get("ssl"), Mapping):
        query |= {f"ssl_{name}": str(value) for name, value in ssl.items()}
    host = str(settings.get("HOST") or "")
    if host.startswith("/"):
        query["unix_socket"], host = host, ""
    return _create(f"mysql+{driver}", settings, host, query)


def _as_text(options: Mapping[str, Any]) -> dict[str, str]:
    """Options that a driver takes by themselves, as a URL has them; Django's names of two of MySQL's are others."""
    renamed = {"passwd": "password", "db": "database"}
    return {
        renamed.get(name, name): str(value)
        for name, value in options.items()
        if name not in _NOT_FOR_THE_DRIVER and isinstance(value, (str, int, float))
    }


def _create(drivername: str, settings: Mapping[str, Any], host: str, query: dict[str, str]) -> URL:
    port = settings.get("PORT")
    return URL.create(
        drivername,
        username=str(settings.get("USER") or "") or query.pop("user", None),
        password=str(settings.get("PASSWORD") or "") or query.pop("password", None),
        host=host or None,
        port=int(port) if port else None,
        database=str(settings.get("NAME") or "") or query.pop("database", None),
        query=query,
    )

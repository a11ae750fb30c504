"""How many connections the database's server takes, and how many are open."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

from dagabaaz_celery.errors import DagabaazError
from dagabaaz_celery.stores.sql.outages import describe_outage
from dagabaaz_celery.stores.sql.store import SqlStore


@dataclass(frozen=True)
class Limit:
    """Connections that something allows, and those that are open; ``raise_it`` is the statement that changes it."""

    what: str
    allowed: int
    used: int
    raise_it: str


def ask_limits(store: SqlStore, dialect: str) -> tuple[list[Limit], str]:
    """Every limit of connections that holds for this user, or why they are not known."""
    ask = {"postgresql": _ask_postgresql, "mysql": _ask_mysql, "mariadb": _ask_mysql}.get(dialect)
    if ask is None:
        return [], f"{dialect} has no server that limits them"
    try:
        with store.database.read() as connection:
            return ask(connection)
    except (DBAPIError, DagabaazError) as error:
        return [], f"the database does not say: {describe_outage(error)}"


_POSTGRESQL_LIMITS = text(
    """
    SELECT current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int,
           current_setting('max_connections')::int,
           (SELECT count(*) FROM pg_stat_activity WHERE datid IS NOT NULL),
           d.datconnlimit, (SELECT count(*) FROM pg_stat_activity WHERE datid = d.oid),
           r.rolconnlimit, (SELECT count(*) FROM pg_stat_activity WHERE usesysid = r.oid),
           r.rolsuper, d.datname, r.rolname, inet_server_port()
    FROM pg_database d, pg_roles r WHERE d.datname = current_database() AND r.rolname = current_user
    """
)


def _ask_postgresql(connection: Connection) -> tuple[list[Limit], str]:
    row = connection.execute(_POSTGRESQL_LIMITS).one()
    (usable, total, used, of_database, used_in_it, of_role, used_by_it, is_super, database, role, port) = row
    url = connection.engine.url
    if port is not None and port != (url.port or 5432):
        return [], f"port {port} answers for port {url.port or 5432}, as behind a pooler, whose limits are its own"
    larger = f"ALTER SYSTEM SET max_connections = {2 * total};  -- then restart PostgreSQL"
    limits = [Limit("PostgreSQL's max_connections", usable, used, larger)]
    if of_database >= 0 and not is_super:
        larger = f'ALTER DATABASE "{database}" CONNECTION LIMIT -1;'
        limits.append(Limit(f"the connection limit of database {database!r}", of_database, used_in_it, larger))
    if of_role >= 0 and not is_super:
        larger = f'ALTER ROLE "{role}" CONNECTION LIMIT -1;'
        limits.append(Limit(f"the connection limit of user {role!r}", of_role, used_by_it, larger))
    return limits, ""


def _ask_mysql(connection: Connection) -> tuple[list[Limit], str]:
    total, of_user = _first_row(connection, "SELECT @@GLOBAL.max_connections, @@SESSION.max_user_connections")
    used = int(_first_row(connection, "SHOW GLOBAL STATUS LIKE 'Threads_connected'")[1])
    limits = [
        Limit(
            "max_connections of the server",
            int(total),
            used,
            f"SET GLOBAL max_connections = {2 * int(total)};  -- and in the server's configuration file",
        )
    ]
    if int(of_user) > 0:
        (by_user,) = _first_row(
            connection,
            "SELECT COUNT(*) FROM information_schema.PROCESSLIST WHERE USER = SUBSTRING_INDEX(CURRENT_USER(), '@', 1)",
        )
        limits.append(
            Limit(
                "max_user_connections of this user",
                int(of_user),
                int(by_user),
                "ALTER USER CURRENT_USER() WITH MAX_USER_CONNECTIONS 0;  -- or a larger number",
            )
        )
    return limits, ""


def _first_row(connection: Connection, statement: str) -> Sequence[Any]:
    return connection.exec_driver_sql(statement).one()

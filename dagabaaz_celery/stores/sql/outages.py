"""What errors of a database mean: it is away, somebody else won, or the statement is wrong."""

import sqlite3

from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

#: Deadlock and serialisation victims: PostgreSQL's SQLSTATEs, MySQL's error numbers. Of a deadlock inside a savepoint
#: MySQL's word is 1305: the savepoint went with the transaction before anybody could roll back to it.
_CONFLICTS = ("40001", "40P01", 1213, 1205, 1305)
#: What a call on the database raises: the driver's error, or that no connection of the pool became free.
DATABASE_ERRORS = (DBAPIError, PoolTimeoutError)


class CommitUnanswered(OperationalError):
    """The database went away during a commit: it was made, or it was not. The same call, made again, finds out."""


#: SQLSTATEs, or their beginnings, of a PostgreSQL that is away: no connection, rolled back, out of resources, stopping,
#: failing disks, demoted to a standby; and the timeouts that an administrator set, which waiting for locks exceeds.
_POSTGRESQL_OUTAGES = ("08", "40001", "40P01", "53", "57P", "58", "25006", "25P03", "55P03", "57014")
#: Error numbers of a MySQL or MariaDB that is away, for the same reasons.
_MYSQL_OUTAGES = frozenset(
    (
        *(2002, 2003, 2005, 2006, 2013, 2055, 1042, 1043, 1158, 1159, 1160, 1161),  # no connection, or a broken one
        *(1053, 1077, 1079, 1152, 1317, 1927, 4031),  # shutting down; somebody ended the statement or the connection
        *(1021, 1040, 1041, 1114, 1203, 1226),  # out of disk, memory, connections
        *(1047, 1290, 1836),  # a cluster's node that is not ready, or may only read
        *(1205, 1213, 1305, 1969, 3024),  # lost against others for the last time; took longer than allowed
    )
)
#: Codes of a SQLite file, or its disk, that cannot be used: a connection that met one is not used again, since one that
#: opened the file read-only stays so, and SQLite may have rolled back by itself.
SQLITE_FILE_OUTAGES = frozenset(
    (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_FULL, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY)
)
#: Those that at the start mean missing rights, which waiting does not bring.
SQLITE_RIGHTS = frozenset((sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY))
_SQLITE_OUTAGES = SQLITE_FILE_OUTAGES | {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL}


def is_conflict(error: BaseException) -> bool:
    """Whether a transaction lost against another (deadlock, serialisation) and may simply run again."""
    return isinstance(error, DBAPIError) and read_code(error.orig) in _CONFLICTS


def is_outage(error: BaseException) -> bool:
    """Whether the database was away (not reached, lost, stopping, locked, full): later the same call may work.

    Anything else that a database says is about the statement, and would be said again.
    """
    if isinstance(error, PoolTimeoutError):
        return True
    if not isinstance(error, DBAPIError):
        return False
    code = read_code(error.orig)
    if isinstance(error.orig, sqlite3.Error):
        return isinstance(code, int) and code & 0xFF in _SQLITE_OUTAGES  # above are details
    if isinstance(code, str):
        return error.connection_invalidated or code.startswith(_POSTGRESQL_OUTAGES)
    if isinstance(code, int):
        return error.connection_invalidated or code in _MYSQL_OUTAGES
    return error.connection_invalidated or isinstance(error, OperationalError)  # there was nobody to give a code


def was_lost_early(error: DBAPIError) -> bool:
    """Whether a connection of the pool was gone, so that nothing is done: another may well be there."""
    return error.connection_invalidated and not isinstance(error, CommitUnanswered)


def leaves_doubt(error: DBAPIError) -> bool:
    """Whether a commit that raised this may have been made: SQLite knows, but for a disk that fails."""
    if isinstance(error.orig, sqlite3.Error):
        code = read_code(error.orig)
        return isinstance(code, int) and code & 0xFF == sqlite3.SQLITE_IOERR
    return is_outage(error) and not is_conflict(error)


def describe_outage(error: BaseException) -> str:
    """What the database or its driver said, in one line, without the statement."""
    said = str(error.orig if isinstance(error, DBAPIError) else error).strip()
    return said.splitlines()[0] if said else type(error).__name__


def read_code(error: BaseException | None) -> str | int | None:
    """The database's code for an error: an SQLSTATE (PostgreSQL), a number (MySQL, SQLite), or none."""
    if isinstance(error, sqlite3.Error):
        return getattr(error, "sqlite_errorcode", None)
    first = error.args[0] if error is not None and error.args else None
    if isinstance(first, int):
        return first
    return getattr(error, "sqlstate", None) or getattr(error, "pgcode", None)


def leave_unanswered(statement: str | None, error: DBAPIError) -> CommitUnanswered:
    """The error of a commit that may have been made, from what the driver said."""
    return CommitUnanswered(statement, None, error.orig or error, connection_invalidated=error.connection_invalidated)

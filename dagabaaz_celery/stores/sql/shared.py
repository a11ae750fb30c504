"""A store whose tables are in the app's own database, beside the app's own tables."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol

from sqlalchemy import URL, Connection, Engine


class SharedDatabase(Protocol):
    """A database that the app uses by itself as well, and whose schema the app's own tool changes.

    While a thread has a transaction of the app open, everything that it asks of the store is part of that one: it is
    committed or rolled back with the app's own rows. Errors of the database are then the app's own kind, and nothing is
    tried again: only the app knows how to repeat its transaction. What follows the commit waits for it.
    """

    #: What is typed to make the tables, or to bring them up to date.
    migrate_command: str

    @property
    def url(self) -> URL:
        """Which database it is, as it is called now: a test may have its own."""

    def build_engine(self) -> Engine:
        """Connections of the store's own, for when no transaction of the app is open. Raises ConfigurationError."""

    def is_open(self) -> bool:
        """Whether this thread is to use the app's connection."""

    def join(self, *, writes: bool) -> AbstractContextManager[Connection]:
        """The app's connection; what is written is taken back if the block raises. Raises the app's own errors."""

    def check(self) -> None:
        """Raise TransactionOpen where a transaction of the app's is open that is none to take part in."""

    def awaits_commit(self) -> bool:
        """Whether what follows a commit has to wait for the transaction that this thread has open."""

    def refresh(self) -> None:
        """Have the app drop connections of this thread that are of no use any more; around each of its callbacks."""

    def after_commit(self, call: Callable[[], object]) -> Callable[[], bool] | None:
        """Call this after the commit; gives what tells whether it still waits for it. Without a transaction, now.

        After a rollback it is never called, and waits no more.
        """

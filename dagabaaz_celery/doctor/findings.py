"""What a check finds, and how it says that it could not look."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Generic, TypeVar

F = TypeVar("F")


class Level(StrEnum):
    """How much a finding matters, from nothing at all to what keeps runs from ending."""

    OK = "ok"
    ADVICE = "advice"
    WARNING = "warning"
    ERROR = "error"


@dataclass(frozen=True)
class Finding:
    """What one check found. ``fix`` is to be pasted: a command, or lines of Python.

    ``checked`` is False where the check could not be made; ``found`` then says why.
    """

    check: str
    level: Level
    found: str
    why: str = ""
    fix: str = ""
    checked: bool = True


class NotChecked(Exception):
    """A check cannot look; says why."""


#: What a check yields: a level, what was found, why it matters, the fix.
Said = tuple[Level, str, str, str]


def ok(found: str) -> Said:
    """All is well."""
    return Level.OK, found, "", ""


def advise(found: str, why: str, fix: str) -> Said:
    """It works, and could be better."""
    return Level.ADVICE, found, why, fix


def warn(found: str, why: str, fix: str) -> Said:
    """It works now, and will not always."""
    return Level.WARNING, found, why, fix


def fail(found: str, why: str, fix: str) -> Said:
    """Some runs do not end, or end wrongly."""
    return Level.ERROR, found, why, fix


def count(number: int, noun: str) -> str:
    """``1 task``, ``2 tasks``."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


@dataclass(frozen=True)
class Check(Generic[F]):
    """A check under the name by which findings refer to it; ``asks`` is what it wants to know."""

    name: str
    asks: str
    look: Callable[[F], Iterable[Said]]

    def run(self, facts: F) -> Iterator[Finding]:
        """Its findings; at least one. Whatever goes wrong is one of them, so that it hides no other."""
        total = 0
        try:
            for total, said in enumerate(self.look(facts), start=1):  # noqa: B007  # counted for what follows
                yield Finding(self.name, *said)
        except NotChecked as reason:
            yield Finding(self.name, Level.ADVICE, str(reason), checked=False)
        except Exception as error:  # a fault that nobody foresaw, in the set-up or in the check
            yield Finding(self.name, Level.ADVICE, f"it failed itself: {type(error).__name__}: {error}", checked=False)
        else:
            if not total:
                yield Finding(self.name, Level.OK, "nothing to say")

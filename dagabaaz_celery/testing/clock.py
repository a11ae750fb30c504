"""A clock that tests move, in place of waiting."""

from datetime import UTC, datetime, timedelta


class Clock:
    """A time that stands still until it is moved: by a test, by a body, and by ``run_inline`` over delays.

    It begins at ``start``, which needs a time zone; now, where none is given.
    """

    def __init__(self, start: datetime | None = None) -> None:
        if start is not None and start.tzinfo is None:
            raise ValueError(f"Clock({start!r}) has no time zone: write datetime(..., tzinfo=UTC), or another zone.")
        self._now = start or datetime.now(UTC)

    def __repr__(self) -> str:
        return f"Clock({self._now.isoformat()})"

    def now(self) -> datetime:
        """The clock's time; as ``nowfun`` of Celery's schedules, too."""
        return self._now

    def time(self) -> float:
        """The clock's time in seconds since 1970."""
        return self._now.timestamp()

    def advance(self, seconds: float | timedelta) -> None:
        """Move the clock on. Raises ValueError for going back."""
        step = seconds if isinstance(seconds, timedelta) else timedelta(seconds=seconds)
        if step < timedelta():
            raise ValueError(f"advance({seconds!r}) would move the clock back: it only goes on.")
        self._now += step

    def move_to(self, moment: datetime) -> None:
        """Move the clock on to a moment with a time zone; one that is past changes nothing."""
        self._now = max(self._now, moment)

"""When bodies began: one record for each, of all processes, at the end of one file.

It is how a rival's end is noticed, and how it is seen that each body ran once. One write costs some microseconds, the
same for all.
"""

import os
import struct
import time
from pathlib import Path
from typing import NamedTuple

_RECORD = struct.Struct("<IIq")


class Stamp(NamedTuple):
    """A body that began: of which sample, at which stage of its shape, and when, in seconds of the machine's clock."""

    sample: int
    stage: int
    at: float


class StampFile:
    """A file of stamps that worker processes append to and the benchmark reads."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)

    def write(self, sample: int, stage: int) -> None:
        """Note that a body begins, now. The clock is one for all processes of a machine."""
        os.write(self._file, _RECORD.pack(sample, stage, time.monotonic_ns()))

    def count(self) -> int:
        """Stamps that are there."""
        return os.fstat(self._file).st_size // _RECORD.size

    def read(self, first: int = 0) -> list[Stamp]:
        """The stamps from the one with this number on, in the order of their times."""
        size = (self.count() - first) * _RECORD.size
        data = os.pread(self._file, size, first * _RECORD.size)
        stamps = [Stamp(sample, stage, at / 1e9) for sample, stage, at in _RECORD.iter_unpack(data)]
        return sorted(stamps, key=lambda stamp: stamp.at)

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)

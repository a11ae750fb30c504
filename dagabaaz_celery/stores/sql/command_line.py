"""What the commands of this package have in common."""

import os
import sys
from collections.abc import Callable


def end_quietly(main: Callable[[], int]) -> int:
    """A command's exit status; 1, without a traceback, when its reader has seen enough, as ``head`` has."""
    try:
        status = main()
        sys.stdout.flush()
    except BrokenPipeError:
        # What is still to be flushed when the process ends goes nowhere, instead of failing again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return status

"""The store of an app whose broker lives in one process: a file that ends with it."""

import atexit
import shutil
import tempfile
from pathlib import Path


def make_process_store_url() -> str:
    """A SQLite URL in a new directory that is removed when this process exits."""
    directory = Path(tempfile.mkdtemp(prefix="dagabaaz-"))
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    return f"sqlite:///{directory / 'runs.sqlite3'}"

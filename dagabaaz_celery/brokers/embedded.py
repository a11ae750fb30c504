"""The broker that needs no server: real, separate worker processes of one machine share one SQLite file.

For development, tests and small installations. `celery worker` (prefork, threads or solo), several queues, eta and
countdown, late acknowledgement, `inspect`, `control` and events work as with any broker; priorities are ignored.

Why a transport of our own and not one of kombu's: its SQLAlchemy transport has no fanout, so no remote control, keeps
every consumed row, and loses what a killed worker held; its filesystem transport lists a directory for every message.
Here a message is a row until it is acknowledged, and goes back to its queue when the process that took it is gone. On
plain SQLite it is also the fastest of them: two workers with two processes each ran 1,700 empty tasks a second, and 340
over the SQLAlchemy transport with the same journal mode.

The directory must be on a local disk, as SQLite's locks are only as good as the file system's.
"""

import sys
import tempfile
from pathlib import Path
from typing import Any
from urllib.parse import quote

from celery import Celery
from kombu.transport import TRANSPORT_ALIASES
from kombu.utils.url import maybe_sanitize_url

from dagabaaz_celery.errors import ConfigurationError

SCHEME = "dagabaaz"
FILE_NAME = "broker.sqlite3"


def configure(app: Celery, directory: Path) -> None:
    """Make the app publish to and consume from ``broker.sqlite3`` in the directory, which is created if need be.

    It reads the app's configuration if that is still pending, to be sure that it names no other broker; a configuration
    loaded later is completed in the same way. Doing it twice with one directory is the same as once.

    Raises ConfigurationError when the app has a broker, the directory cannot be used, or the platform is Windows.
    """
    if sys.platform == "win32":
        raise ConfigurationError(
            "The embedded broker needs POSIX file locks, which Windows does not have. Give the app a broker_url."
        )
    directory = directory.resolve()
    url = f"{SCHEME}://{quote(str(directory / FILE_NAME))}"
    _refuse_other_broker(app, url)
    _make_directory(directory)
    TRANSPORT_ALIASES[SCHEME] = "dagabaaz_celery.brokers.transport:Transport"

    def complete_configuration(**_: Any) -> None:
        _refuse_other_broker(app, url)
        app.conf.update(broker_url=url, broker_connection_retry_on_startup=True)

    complete_configuration()
    app.on_after_configure.connect(complete_configuration, weak=False, dispatch_uid=SCHEME)


def is_embedded(app: Celery) -> bool:
    """Whether the app publishes to and consumes from the embedded broker."""
    return all(url is not None and url.startswith(f"{SCHEME}://") for url in _get_broker_urls(app))


def _get_broker_urls(app: Celery) -> set[str | None]:
    """What publishes and what consumes may have URLs of their own; the environment outranks the configuration."""
    return {app.conf.broker_url, app.conf.broker_read_url, app.conf.broker_write_url}


def _refuse_other_broker(app: Celery, url: str) -> None:
    others = sorted(str(other) for other in _get_broker_urls(app) - {None, url})
    if others:
        raise ConfigurationError(
            f"The app already has a broker, {maybe_sanitize_url(others[0])}, which the embedded one would replace. "
            "Either keep it and set app.conf.dagabaaz_store_url, or remove broker_url, broker_read_url and "
            "broker_write_url from the app's configuration and CELERY_BROKER_URL from the environment."
        )


def _make_directory(directory: Path) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            return  # it can be written to
    except OSError as error:
        raise ConfigurationError(
            f"The embedded broker cannot write to its directory {directory}: {error.strerror}. "
            "Name a local directory in which this user can create files."
        ) from error

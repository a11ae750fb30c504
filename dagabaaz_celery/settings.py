"""Settings: one frozen object, read once from the Celery app's configuration (names as there, less ``dagabaaz_``)."""

import math
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from sqlalchemy import URL

from dagabaaz_celery.errors import ConfigurationError, format_problems, suggest_closest
from dagabaaz_celery.retention import Retention, find_retention_problems, read_retention

_PREFIX = "dagabaaz_"
#: What may stand before a table's name: with it, names stay within what every database takes.
_TABLE_PREFIX = re.compile(r"([A-Za-z_][A-Za-z0-9_]{0,29})?")


def _is_seconds(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) and value > 0


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_positive_count(value: object) -> bool:
    return _is_count(value) and value != 0


_SECONDS = (_is_seconds, "a number of seconds greater than 0")
_POSITIVE_COUNT = (_is_positive_count, "a whole number greater than 0")
_FLAG = (lambda value: isinstance(value, bool), "True or False")
#: For each setting, whether a value will do, and what it must be.
_CHECKS: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "store_url": (lambda value: value is None or isinstance(value, (str, URL)), "a database URL, a text"),
    "table_prefix": (
        lambda value: isinstance(value, str) and bool(_TABLE_PREFIX.fullmatch(value)),
        "up to 30 letters, digits and underscores, not beginning with a digit",
    ),
    "schema": (lambda value: value is None or (isinstance(value, str) and bool(value)), "the name of a schema, a text"),
    "auto_migrate": _FLAG,
    "files_dir": (lambda value: isinstance(value, Path), "the path of a directory"),
    "max_fan_out": _POSITIVE_COUNT,
    "max_input_bytes": _POSITIVE_COUNT,
    "max_metadata_bytes": _POSITIVE_COUNT,
    "max_artifacts": _POSITIVE_COUNT,
    "sweep_interval": _SECONDS,
    "dead_after": _SECONDS,
    "max_recoveries": (_is_count, "a whole number, 0 or more"),
    "resend_after": _SECONDS,
    "wrap_tasks": _FLAG,
    "retention": (lambda value: value is None or isinstance(value, Retention), "a dict of statuses and ages, or None"),
}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Every setting of the package; docs/reference/settings.md shows them with unit and default."""

    #: SQLAlchemy URL of the store. Required with a real broker.
    store_url: str | None = None
    #: Put before the name of every table.
    table_prefix: str = "dagabaaz_"
    #: Database schema of the tables; None: the connection's default.
    schema: str | None = None
    #: Create and upgrade the tables at first use; False: refuse, naming the command to run.
    auto_migrate: bool = True
    #: Directory for plugins' scratch files; hosts that share runs must share it.
    files_dir: Path = Path(tempfile.gettempdir()) / "dagabaaz-files"
    #: Tasks that one node may have, unless the node says otherwise.
    max_fan_out: int = 10_000
    #: Bytes of a run's input, and of the input that travels in a message of a task driven by signals only.
    max_input_bytes: int = 1_048_576
    #: Bytes of one artifact's metadata.
    max_metadata_bytes: int = 262_144
    #: Artifacts that one task may produce.
    max_artifacts: int = 10_000
    #: Seconds between two sweeps of a worker, each with one heartbeat.
    sweep_interval: float = 5.0
    #: Seconds without a heartbeat after which a worker's tasks are given to others; also without a sign that what it
    #: took to publish or to deliver is done.
    dead_after: float = 20.0
    #: Times that a task lost with its worker is dispatched again; then its run is CRASHED.
    max_recoveries: int = 3
    #: Seconds that a published task waits before it is checked whether the broker lost its message.
    resend_after: float = 30.0
    #: Drive plugins through their wrapper; False: by Celery's signals alone, like tasks nobody registered.
    wrap_tasks: bool = True
    #: How long runs are kept after their end, by status, and keys after their runs; None: everything is kept.
    retention: Retention | None = None

    def __post_init__(self) -> None:
        for name, (will_do, what) in _CHECKS.items():
            value = getattr(self, name)
            if not will_do(value):
                raise ConfigurationError(f"{_PREFIX}{name} is {value!r}: it must be {what}.")
        if self.dead_after < 3 * self.sweep_interval:
            raise ConfigurationError(
                f"dagabaaz_dead_after is {self.dead_after} s, less than three sweeps of {self.sweep_interval} s "
                "(dagabaaz_sweep_interval): live workers would be taken for dead. Make it at least three times as long."
            )


def read_settings(conf: Any) -> Settings:
    """Settings from a Celery configuration: ``dagabaaz_*`` keys, under whatever namespace the app reads.

    Raises ConfigurationError for a value that will not do, and for a key that is none of ours.
    """
    names = [field.name for field in fields(Settings)]
    _refuse_unknown(conf, names)
    _refuse_without_json(conf)
    given = {name: value for name in names if (value := conf.get(f"{_PREFIX}{name}")) is not None}
    if isinstance(given.get("files_dir"), (str, os.PathLike)):
        given["files_dir"] = Path(given["files_dir"]).absolute()
    if "retention" in given:
        problems = list(find_retention_problems(given["retention"]))
        if problems:
            raise ConfigurationError(format_problems("dagabaaz_retention cannot be used", problems))
        given["retention"] = read_retention(given["retention"])
    return Settings(**given)


def _refuse_without_json(conf: Any) -> None:
    accepted = conf.get("accept_content")
    if accepted is not None and not {"json", "application/json"} & set(accepted):
        raise ConfigurationError(
            f"accept_content is {sorted(accepted)}: the messages of runs are JSON, and this app's workers would throw "
            "them away. Add 'json' to it; what your other tasks use may stay."
        )


def _refuse_unknown(conf: Any, names: Iterable[str]) -> None:
    known = [f"{_PREFIX}{name}" for name in names]
    for key in conf:
        if conf.prefix and key.isupper() and not key.startswith(conf.prefix):
            continue  # another's, in the same module: Django's own DAGABAAZ_DATABASE
        plain = key.removeprefix(conf.prefix or "").lower()
        if plain.startswith(_PREFIX) and plain not in known:
            advice = suggest_closest(plain, known) or ": correct the name, or remove it."
            raise ConfigurationError(f"There is no setting {key}{advice}")

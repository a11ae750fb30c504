"""The two apps of a pair: one with the tasks of all rivals that are Celery's own, one with this package."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from celery import Celery

from tests.benchmarks.counts import CountFile
from tests.benchmarks.rivals import COMMON, Rival, Side, Surroundings
from tests.benchmarks.rivals.bare import Bare
from tests.benchmarks.rivals.canvas import Canvas
from tests.benchmarks.rivals.ours import SETTINGS, Ours
from tests.benchmarks.rivals.sql_limit import SqlLimit
from tests.benchmarks.stamps import StampFile

_VARIABLE = "DAGABAAZ_BENCHMARK"
_RIVALS: Mapping[Side, tuple[Any, ...]] = {"plain": (Bare, Canvas, SqlLimit), "ours": (Ours,)}


@dataclass(frozen=True)
class AppSpec:
    """All that an app is made from; a worker process gets it with its environment."""

    side: Side
    queue: str
    settings: dict[str, Any]
    database_url: str
    stamps: str
    counts: str | None

    def to_environment(self) -> dict[str, str]:
        """The variable that carries it."""
        return {_VARIABLE: json.dumps(asdict(self))}

    @classmethod
    def from_environment(cls, variables: Mapping[str, str]) -> "AppSpec":
        """What ``to_environment`` carries."""
        return cls(**json.loads(variables[_VARIABLE]))


@dataclass(frozen=True)
class OpenedApp:
    """An app with its rivals."""

    app: Celery
    rivals: list[Rival]


def open_app(spec: AppSpec) -> OpenedApp:
    """Make the app and its rivals."""
    app = Celery(f"benchmark_{spec.side}", set_as_current=False)
    app.conf.update({**COMMON, **spec.settings, "task_default_queue": spec.queue})
    if spec.side == "ours":
        app.conf.update({**SETTINGS, "dagabaaz_store_url": spec.database_url})
    note = None if spec.counts is None else CountFile(Path(spec.counts)).note
    around = Surroundings(app, StampFile(Path(spec.stamps)), spec.database_url, note)
    return OpenedApp(app, [rival(around) for rival in _RIVALS[spec.side]])

"""The app under test, which also writes down how long each message is: ``<journal's directory>/messages``."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from celery.signals import before_task_publish

from dagabaaz_celery.app import Dagabaaz
from dagabaaz_celery.worker.publish import HEADER
from tests.faults.app_under_test import CONF_VARIABLE, Journal, make_dag, open_app


def messages_beside(journal: Path) -> Path:
    """The file with a line for each message: run id, node index and bytes."""
    return journal.with_name("messages")


def make_measured_dag(conf: Mapping[str, Any], journal: Journal) -> Dagabaaz:
    """``make_dag``, measured."""
    path = messages_beside(journal.path)

    def measure(body: Any, headers: dict[str, Any], properties: dict[str, Any], **_: Any) -> None:
        ours = headers[HEADER]
        size = len(json.dumps([body, headers, properties], default=str))
        with path.open("ab", buffering=0) as file:
            file.write(f"{ours['run']} {ours['node']} {size}\n".encode())

    before_task_publish.connect(measure, weak=False)
    return make_dag(conf, journal)


if CONF_VARIABLE in os.environ:
    app = open_app(make_measured_dag)

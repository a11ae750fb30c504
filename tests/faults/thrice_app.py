"""The app under test, of which every message is sent three times at once."""

import os
from collections.abc import Mapping
from typing import Any

from dagabaaz_celery.app import Dagabaaz
from tests.faults.app_under_test import CONF_VARIABLE, Journal, make_dag, open_app

TIMES = 3


def make_thrice_dag(conf: Mapping[str, Any], journal: Journal) -> Dagabaaz:
    """``make_dag``, with a broker that says everything three times."""
    dag = make_dag(conf, journal)
    send_task = dag.app.send_task

    def send_thrice(*args: Any, **kwargs: Any) -> Any:
        for _ in range(TIMES - 1):
            send_task(*args, **kwargs)
        return send_task(*args, **kwargs)

    dag.app.send_task = send_thrice
    return dag


if CONF_VARIABLE in os.environ:
    app = open_app(make_thrice_dag)

"""The app of worker processes that tests start: its broker, store and plugins come with the environment.

``celery -A tests.integration.worker_app worker``. WORKER_APP_SETTINGS is JSON: Celery settings. WORKER_APP_PLUGINS is
the dotted path of a function that declares plugins on a Dagabaaz.
"""

import json
import os
from importlib import import_module

from celery import Celery
from celery.concurrency.asynpool import AsynPool

from dagabaaz_celery.app import Dagabaaz

# Celery looks for dead children every five seconds: a test that kills some does not wait so long.
AsynPool.timers = property(lambda pool: {pool.maintain_pool: 0.2})

app = Celery("worker_app", set_as_current=False)
app.conf.update(json.loads(os.environ["WORKER_APP_SETTINGS"]))
dag = Dagabaaz(app)
_module, _, _function = os.environ["WORKER_APP_PLUGINS"].rpartition(".")
getattr(import_module(_module), _function)(dag)

"""``celery -A tests.faults.worker_app worker``: the app under test, as its environment says."""

from tests.faults.app_under_test import make_dag, open_app

app = open_app(make_dag)

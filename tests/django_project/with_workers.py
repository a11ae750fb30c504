"""What real worker processes do for the project."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from django.contrib.auth.models import User
from django.test import Client
from django_celery_results.models import TaskResult

from dagabaaz_celery.contrib.django import dag
from dagabaaz_celery.testing import assert_sound
from tests.django_project.orders.models import Order
from tests.processes import ProcessTree, wait_until

ROOT = Path(__file__).resolve().parents[2]
#: Commits an order with its run, and is killed before what Django calls on commit gets to publishing.
KILLED_AFTER_COMMIT = """
import django, os, signal
django.setup()
from django.db import transaction
from dagabaaz_celery.contrib.django import dag
from tests.django_project.orders.models import Order
with transaction.atomic():
    transaction.on_commit(lambda: os.kill(os.getpid(), signal.SIGKILL))
    order = Order.objects.create(item="tea")
    dag.start("order", {"order": order.pk})
"""


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProcessTree]:
    log = tmp_path_factory.mktemp("worker") / "worker.log"
    command = [sys.executable, "-m", "celery", "-A", "tests.django_project", "worker", "-c", "2", "-l", "INFO"]
    started = ProcessTree(command, log=log, cwd=ROOT)
    wait_until(lambda: "ready." in log.read_text() or not started.is_running, "the worker is ready", timeout=90)
    assert started.is_running, log.read_text()
    yield started
    started.kill()


def test_a_process_killed_between_commit_and_publishing_has_its_run_done_once(worker: ProcessTree):
    killed = subprocess.run([sys.executable, "-c", KILLED_AFTER_COMMIT], cwd=ROOT, timeout=90, check=False)
    assert killed.returncode == -signal.SIGKILL

    (run,) = dag.runs()
    assert run.wait(60) == "completed"

    assert Order.objects.get().packed == 1
    assert [task.attempt for task in run.tasks()] == [1, 1]
    assert_sound(dag, timeout=30)


def test_a_plugin_that_keeps_its_result_is_seen_in_the_admin_of_django_celery_results(worker: ProcessTree):
    order = Order.objects.create(item="tea")
    run = dag.start("order", {"order": order.pk})
    run.wait(60)

    pack = run.tasks()[0]
    wait_until(lambda: TaskResult.objects.filter(task_id=pack.attempt_id).exists(), "the result is stored")
    stored = TaskResult.objects.get(task_id=pack.attempt_id)
    assert (stored.task_name, stored.status) == ("tests.django_project.orders.tasks.pack", "SUCCESS")
    assert [result.task_id for result in TaskResult.objects.all()] == [pack.attempt_id], "others ignore theirs"

    client = Client()
    client.force_login(User.objects.create_superuser("admin"))
    page = client.get("/admin/django_celery_results/taskresult/").content.decode()
    assert pack.attempt_id in page
    assert "tests.django_project.orders.tasks.pack" in page


def test_a_view_has_its_run_done_by_a_worker(worker: ProcessTree):
    answer = Client().post("/orders/", {"item": "tea"}).json()

    assert dag.run(answer["run"]).wait(60) == "completed"
    assert Order.objects.get(run_id=answer["run"]).packed == 1

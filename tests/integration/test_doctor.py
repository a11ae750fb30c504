"""The doctor finds each planted fault and says what to do; a set-up that is well gives it nothing to say."""

import json
import shutil
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery
from click.testing import CliRunner, Result
from sqlalchemy import create_engine, inspect, make_url, text, update

from dagabaaz_celery.app import Dagabaaz
from dagabaaz_celery.cli.doctor import doctor
from dagabaaz_celery.doctor import CHECKS, Finding, diagnose, facts, worker_checks
from dagabaaz_celery.models import DagNode
from dagabaaz_celery.pipeline import Pipeline
from dagabaaz_celery.stores.sql.owed import WorkerRow
from dagabaaz_celery.stores.sql.tables import new_id
from dagabaaz_celery.testing import embedded_worker
from dagabaaz_celery.worker.observers import Observer
from tests import services
from tests.faults.app_under_test import __file__ as faults_module
from tests.integration.celery_support import PATIENCE, make_app, node, start, wait_until
from tests.integration.doctor_plugins import WRITE, declare_all, declare_nothing
from tests.integration.worker_processes import Site, open_site
from tests.servers import PrivateRedis

SKEWED_CLOCK = Path(faults_module).with_name("skewed_clock.c")


@pytest.fixture(autouse=True, scope="module")
def impatient() -> Iterator[None]:
    """Workers that answer do so in milliseconds, and who waits for more waits for the whole time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(facts, "ANSWER_PATIENCE", 0.5)
        yield


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    """A set-up that is well: Redis, a store, and a prefork worker that has run something."""
    with open_site(declare_all, dagabaaz_dead_after=20.0) as site:
        site.start_worker("--prefetch-multiplier", "1")
        assert site.dag.start("write").wait(PATIENCE) == "completed"
        yield site


@pytest.fixture
def visit(site: Site) -> Iterator[Callable[..., Dagabaaz]]:
    """Another process's side of the site: its own app, with more settings and other plugins."""
    made: list[Dagabaaz] = []

    def make(declare: Callable[[Dagabaaz], Any] = declare_all, **settings: Any) -> Dagabaaz:
        app = Celery("visitor", set_as_current=False)
        app.conf.update({**site.settings, **settings})
        dag = Dagabaaz(app)
        declare(dag)
        made.append(dag)
        return dag

    yield make
    for dag in made:
        dag.close()
        dag.app.close()


def find(findings: list[Finding], check: str, level: str = "error") -> Finding:
    """The one finding of a check that is of this level."""
    found = [each for each in findings if each.check == check and each.level == level and each.checked]
    assert len(found) == 1, "\n".join(map(str, findings))
    assert found[0].why
    return found[0]


def bad(findings: list[Finding]) -> set[str]:
    """Checks that found more than advice."""
    return {each.check for each in findings if each.level in ("warning", "error")}


def unchecked(findings: list[Finding]) -> set[str]:
    return {each.check for each in findings if not each.checked}


# What is well -------------------------------------------------------------------------------------------------------


def test_a_set_up_that_is_well_gives_nothing_worse_than_advice(site: Site):
    findings = diagnose(site.dag, runs=True)
    assert bad(findings) == set()
    assert unchecked(findings) == set()
    assert {each.check for each in findings} == {*(check.name for check in CHECKS), "runs"}
    found = {each.check: each.found for each in findings}
    assert found["clocks"] == "the clock here and that of 1 worker agree with the database's"
    assert found["pipelines"] == "1 registered pipeline can run"


def test_the_embedded_default_is_well(tmp_path: Path):
    dag = Dagabaaz.embedded(Celery("shop", set_as_current=False), tmp_path)
    dag.app.conf.worker_hijack_root_logger = False
    declare_all(dag)
    with embedded_worker(dag.app):
        assert dag.start("write").wait(PATIENCE) == "completed"
        findings = diagnose(dag)
    assert bad(findings) == unchecked(findings) == set()
    dag.close()


def test_it_leaves_a_store_that_is_not_there_alone(tmp_path: Path, new_dag: Callable[..., Dagabaaz]):
    path = tmp_path / "runs.sqlite3"
    diagnose(new_dag(dagabaaz_store_url=f"sqlite:///{path}"))
    assert not path.exists()


# The store ----------------------------------------------------------------------------------------------------------


def test_a_misspelt_setting(visit: Callable[..., Dagabaaz]):
    finding = find(diagnose(visit(declare_nothing, dagabaaz_store_ulr="sqlite:///x")), "settings")
    assert "did you mean dagabaaz_store_url?" in finding.found


def test_a_broker_without_a_store(visit: Callable[..., Dagabaaz]):
    finding = find(diagnose(visit(dagabaaz_store_url=None)), "settings")
    assert "dagabaaz_store_url = " in finding.fix


def test_a_store_that_is_away(visit: Callable[..., Dagabaaz]):
    findings = diagnose(visit(dagabaaz_store_url="postgresql+psycopg://nobody:secret@127.0.0.1:1/none"))
    finding = find(findings, "store")
    assert "pg_isready -h 127.0.0.1 -p 1" in finding.fix
    assert {"schema", "workers", "queues", "files"} <= unchecked(findings)
    assert "secret" not in str(findings)


def test_a_directory_for_the_sqlite_file_that_is_not_there(visit: Callable[..., Dagabaaz], tmp_path: Path):
    findings = diagnose(visit(dagabaaz_store_url=f"sqlite:///{tmp_path}/no/runs.sqlite3"))
    assert find(findings, "store").fix == f"mkdir -p '{tmp_path}/no'"


def test_a_store_without_tables(visit: Callable[..., Dagabaaz], tmp_path: Path):
    url = f"sqlite:///{tmp_path}/runs.sqlite3"
    finding = find(diagnose(visit(dagabaaz_store_url=url, dagabaaz_auto_migrate=False)), "schema")
    assert finding.fix == "celery -A proj dagabaaz migrate"
    assert find(diagnose(visit(dagabaaz_store_url=url)), "schema", "warning").fix == finding.fix


def test_a_database_without_tables_is_a_matter_of_the_schema_and_stays_without(
    visit: Callable[..., Dagabaaz], tmp_path: Path
):
    (tmp_path / "runs.sqlite3").touch()
    url = f"sqlite:///{tmp_path}/runs.sqlite3"
    for allowed, level in ((False, "error"), (True, "warning")):
        findings = diagnose(visit(dagabaaz_store_url=url, dagabaaz_auto_migrate=allowed))
        assert "store" not in bad(findings)
        finding = find(findings, "schema", level)
        assert "has no tables" in finding.found
        assert finding.fix == "celery -A proj dagabaaz migrate"
    engine = create_engine(url)
    assert inspect(engine).get_table_names() == []
    engine.dispose()


DJANGO_PROJECT = {
    "manage.py": """
        import os, sys
        from django.core.management import execute_from_command_line
        os.environ["DJANGO_SETTINGS_MODULE"] = "proj.settings"
        execute_from_command_line(sys.argv)
    """,
    "proj/__init__.py": "from proj.celery import app",
    "proj/settings.py": """
        SECRET_KEY = "for a test"
        INSTALLED_APPS = ["dagabaaz_celery.contrib.django"]
        DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": "db.sqlite3"}}
        CELERY_BROKER_URL = "memory://"
    """,
    "proj/celery.py": """
        from celery import Celery
        app = Celery("proj")
        app.config_from_object("django.conf:settings", namespace="CELERY")
    """,
}


def diagnose_project(directory: Path, *command: str, files: Mapping[str, str] | None = None) -> str:
    """What the doctor prints in a Django project, which is not migrated; ``files`` are others than those above."""
    for name, code in {**DJANGO_PROJECT, **(files or {})}.items():
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).write_text(textwrap.dedent(code))
    done = subprocess.run(
        [sys.executable, *(command or ("manage.py", "dagabaaz", "doctor"))],
        cwd=directory, capture_output=True, text=True, timeout=90, check=False,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    return done.stdout + done.stderr


@pytest.mark.parametrize("is_there", [False, True], ids=["no file", "an empty file"])
def test_a_django_project_that_is_not_migrated_is_told_its_own_command(is_there: bool, tmp_path: Path):
    if is_there:  # whatever looked at the database made it, as runserver does
        (tmp_path / "db.sqlite3").touch()
    shown = diagnose_project(tmp_path)
    assert "error    schema: sqlite:///db.sqlite3 has no tables" in shown
    assert "ok       store: sqlite:///db.sqlite3 " in shown
    assert "fix: python manage.py migrate\n" in shown
    assert "fix: celery -A proj worker --loglevel INFO\n" in shown
    assert (tmp_path / "db.sqlite3").exists() == is_there


@pytest.mark.parametrize(
    ("command", "told"),
    [
        (
            ("dagabaaz", "doctor"),
            'fix: INSTALLED_APPS += ["dagabaaz_celery.contrib.django"] # in the settings of Django',
        ),
        (
            ("dagabaaz", "start", "fine"),
            'This is a Django project: add "dagabaaz_celery.contrib.django" to INSTALLED_APPS',
        ),
    ],
    ids=["doctor", "start"],
)
def test_a_django_project_that_lacks_our_app(command: tuple[str, ...], told: str, tmp_path: Path):
    files = {
        "proj/settings.py": """
            SECRET_KEY = "for a test"
            INSTALLED_APPS = []
            DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": "db.sqlite3"}}
            CELERY_BROKER_URL = "redis://127.0.0.1:1/0"
        """,
        "proj/celery.py": """
            import os
            os.environ["DJANGO_SETTINGS_MODULE"] = "proj.settings"
            from celery import Celery
            from dagabaaz_celery.app import Dagabaaz
            from dagabaaz_celery.models import DagNode
            from dagabaaz_celery.pipeline import Pipeline
            app = Celery("proj")
            app.config_from_object("django.conf:settings", namespace="CELERY")
            dag = Dagabaaz(app)

            @dag.plugin
            def fine() -> None: ...

            dag.register(Pipeline("fine", nodes=[DagNode(slug="fine", plugin="fine")]))
        """,
    }
    shown = diagnose_project(tmp_path, "-m", "celery", "-A", "proj", *command, files=files)
    assert told in " ".join(shown.split())


def test_a_store_that_a_newer_release_made(new_dag: Callable[..., Dagabaaz], tmp_path: Path):
    dag = new_dag(dagabaaz_store_url=f"sqlite:///{tmp_path}/runs.sqlite3")
    assert list(dag.runs()) == []
    with dag._runtime.store.database.write() as connection:
        connection.execute(text("UPDATE dagabaaz_schema_version SET version_num = '0999'"))
    finding = find(diagnose(dag), "schema")
    assert "newer than this release knows" in finding.found
    assert finding.fix == "pip install --upgrade dagabaaz-celery"


@contextmanager
def limited_postgresql() -> Iterator[str]:
    """A database of PostgreSQL that takes eight connections of a user who is nobody special."""
    url, name = make_url(services.postgres_url()), f"doctor_{new_id()[-8:]}"
    engine = create_engine(url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text(f"CREATE ROLE {name} LOGIN PASSWORD 'doctor'"))
        connection.execute(text(f"CREATE DATABASE {name} OWNER {name} CONNECTION LIMIT 8"))
        yield url.set(username=name, password="doctor", database=name).render_as_string(hide_password=False)
        connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
        connection.execute(text(f"DROP ROLE {name}"))
    engine.dispose()


@contextmanager
def limited_mariadb() -> Iterator[str]:
    """The same on MariaDB."""
    url, name = make_url(services.mysql_url()), f"doctor_{new_id()[-8:]}"
    engine = create_engine(url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
        connection.execute(
            text(f"GRANT ALL ON {name}.* TO {name}@'%' IDENTIFIED BY 'doctor' WITH MAX_USER_CONNECTIONS 8")
        )
        yield url.set(username=name, password="doctor", database=name).render_as_string(hide_password=False)
        connection.execute(text(f"DROP DATABASE {name}"))
        connection.execute(text(f"DROP USER {name}@'%'"))
    engine.dispose()


@pytest.mark.parametrize(
    ("limited", "fix"),
    [(limited_postgresql, "CONNECTION LIMIT"), (limited_mariadb, "MAX_USER_CONNECTIONS")],
    ids=["postgresql", "mariadb"],
)
def test_more_workers_than_the_server_takes_connections(limited: Any, fix: str, new_dag: Callable[..., Dagabaaz]):
    with limited() as url:
        dag = new_dag(dagabaaz_store_url=url)
        for name in ("one", "two"):
            dag._runtime.store.announce_worker(WorkerRow(new_id(), f"{name}@host", 1, "0.1.0", 0, [], [], []))
        finding = find(diagnose(dag), "connections")
        dag.close()
    assert "2 live workers may open 10 connections" in finding.found
    assert fix in finding.fix


# The broker ---------------------------------------------------------------------------------------------------------


def test_a_broker_that_is_away(visit: Callable[..., Dagabaaz]):
    findings = diagnose(visit(broker_url="redis://:secret@127.0.0.1:1/0"))
    finding = find(findings, "broker")
    assert finding.fix.startswith("redis-cli -h 127.0.0.1 -p 1 ping")
    assert {"visibility", "strangers", "files"} <= unchecked(findings)
    assert "queues" not in unchecked(findings), "heartbeats tell of queues"
    assert "secret" not in str(findings)


def test_a_broker_whose_library_is_not_installed(visit: Callable[..., Dagabaaz], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("kombu.transport.redis.redis", None)
    assert find(diagnose(visit()), "broker").fix == 'pip install "dagabaaz-celery[redis]"'


@pytest.mark.parametrize("store", ["sqlite:///{tmp}/runs.sqlite3", None])
def test_what_kombu_imports_for_redis_is_not_installed(
    store: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """As without the extra: kombu's module for Redis cannot be imported, and there is no connection to ask."""
    url = "redis://:secret@127.0.0.1:1/0"
    monkeypatch.delitem(sys.modules, "kombu.transport.redis", raising=False)
    monkeypatch.setitem(sys.modules, "packaging.version", None)
    monkeypatch.setattr("kombu.transport._transport_cache", {})
    dag = Dagabaaz(Celery("shop", broker=url, set_as_current=False))
    dag.app.conf.dagabaaz_store_url = store and store.format(tmp=tmp_path)
    findings = diagnose(dag)
    finding = find(findings, "broker")
    assert "needs a library that is not installed here" in finding.found
    assert "packaging" in finding.found
    assert finding.fix == 'pip install "dagabaaz-celery[redis]"'
    assert not [each for each in findings if "failed itself" in each.found]
    assert ("store" in unchecked(findings)) == (store is None)
    assert "secret" not in str(findings)
    dag.close()
    dag.app.close()


@pytest.mark.parametrize(
    ("url", "fix"),
    [
        ("sqs://key@", 'pip install "kombu[sqs]"'),
        ("kafka://127.0.0.1:1", 'pip install "kombu[confluentkafka]"'),
        ("mongodb://127.0.0.1:1", 'pip install "kombu[mongodb]"'),
        ("etcd://127.0.0.1:1", 'app.conf.broker_url = "redis://localhost:6379/0"   # or install what has that module'),
        ("carrier-pigeon://roof", 'app.conf.broker_url = "redis://localhost:6379/0"'),
    ],
)
def test_another_brokers_library_is_not_installed(url: str, fix: str, tmp_path: Path):
    dag = Dagabaaz(Celery("shop", broker=url, set_as_current=False))
    dag.app.conf.dagabaaz_store_url = f"sqlite:///{tmp_path}/runs.sqlite3"
    assert find(diagnose(dag), "broker").fix == fix
    dag.close()
    dag.app.close()


def test_servers_that_take_everything_and_answer_nothing(
    visit: Callable[..., Dagabaaz], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(facts, "STORE_PATIENCE", 1.0)
    monkeypatch.setattr(facts, "BROKER_PATIENCE", 1.5)
    with socket.create_server(("127.0.0.1", 0)) as mute:
        port = mute.getsockname()[1]
        findings = diagnose(
            visit(
                dagabaaz_store_url=f"postgresql+psycopg://nobody@127.0.0.1:{port}/none",
                broker_url=f"redis://127.0.0.1:{port}/0",
            )
        )
    assert "no answer within 1 s" in find(findings, "store").found
    assert "no answer within 1.5 s" in find(findings, "broker").found


def test_another_broker_than_the_workers_have(visit: Callable[..., Dagabaaz]):
    findings = diagnose(visit(broker_transport_options={"global_keyprefix": f"other-{new_id()}-"}))
    finding = find(findings, "workers", "warning")
    assert "no worker answers through the broker" in finding.found
    assert "broker_url" in finding.fix


def test_workers_that_were_killed_and_count_as_alive_for_a_while(dag: Dagabaaz):
    dag._runtime.store.announce_worker(WorkerRow(new_id(), "killed@box", 4711, "0.1.0", 0, [], [], []))
    finding = find(diagnose(dag), "workers", "warning")
    assert "no worker answers through the broker: killed@box (last heartbeat " in finding.found
    assert "may be dead" in finding.why
    assert "for 5 s after its last heartbeat (dagabaaz_dead_after)" in finding.why
    assert "another broker" in finding.why
    assert finding.fix.startswith("ps -p 4711   # on box: who is not listed is dead")


def test_a_visibility_timeout_that_is_shorter_than_a_body(site: Site, visit: Callable[..., Dagabaaz]):
    dag = visit(broker_transport_options={**site.settings["broker_transport_options"], "visibility_timeout": 60})
    dag.register(Pipeline("long", nodes=[DagNode(slug="slow", plugin="read", timeout=500)]))
    dag.register(Pipeline("longest", nodes=[DagNode(slug="encode", plugin="read", options={"time_limit": 7200})]))
    finding = find(diagnose(dag), "visibility", "warning")
    assert "is 60 s, and node 'encode' of pipeline 'longest' may run for 7200 s" in finding.found
    assert '{"visibility_timeout": 18000}' in finding.fix


def test_a_body_that_takes_longer_than_rabbitmq_waits(visit: Callable[..., Dagabaaz]):
    dag = visit(broker_url=services.rabbitmq_url(), broker_transport_options={})
    dag.plugin(_encode, name="encode", time_limit=7200)
    dag.register(Pipeline("long", nodes=[DagNode(slug="encode", plugin="encode")]))
    finding = find(diagnose(dag), "visibility", "warning")
    assert "RabbitMQ waits 1800 s" in finding.found
    assert "consumer_timeout = 18000000 in rabbitmq.conf" in finding.fix


def test_a_redis_that_throws_messages_away_when_it_is_full(visit: Callable[..., Dagabaaz]):
    with services.open_private(PrivateRedis("--maxmemory", "64mb", "--maxmemory-policy", "allkeys-lru")) as server:
        finding = find(diagnose(visit(broker_url=server.url)), "redis-memory", "warning")
    assert "maxmemory-policy allkeys-lru" in finding.found
    assert "CONFIG SET maxmemory-policy noeviction" in finding.fix


def _encode() -> str:
    return "encoded"


def _cut() -> str:
    return "cut"


def test_a_broker_that_ends_with_its_process(dag: Dagabaaz):
    assert "redis://" in find(diagnose(dag), "broker", "warning").fix


def test_tasks_that_run_in_place(eager: Dagabaaz):
    findings = diagnose(eager)
    assert find(findings, "broker", "warning").fix == "app.conf.task_always_eager = False"
    assert "workers" not in bad(findings)


def test_remote_control_that_is_off(visit: Callable[..., Dagabaaz]):
    findings = diagnose(visit(worker_enable_remote_control=False))
    assert find(findings, "remote-control", "advice").fix == "app.conf.worker_enable_remote_control = True"
    assert {"files", "strangers", "worker-settings"} <= unchecked(findings)


def test_tasks_that_wait_behind_a_long_body(dag: Dagabaaz):
    dag.plugin(_encode, name="encode", time_limit=600)
    dag.register(Pipeline("long", nodes=[DagNode(slug="encode", plugin="encode")]))
    with embedded_worker(dag.app):
        finding = find(diagnose(dag), "prefetch", "advice")
    assert finding.fix.startswith("app.conf.worker_prefetch_multiplier = 1")


def test_an_existing_task_that_is_gone_with_its_worker(dag: Dagabaaz):
    @dag.app.task(name="charge", shared=False)
    def charge() -> str:
        return "charged"

    dag.plugin(charge)
    finding = find(diagnose(dag), "acks", "advice")
    assert "task charge acknowledges early" in finding.found
    assert "acks_late=True" in finding.fix


# Pipelines ----------------------------------------------------------------------------------------------------------


def test_a_queue_that_nobody_consumes(visit: Callable[..., Dagabaaz]):
    def declare(dag: Dagabaaz) -> None:
        declare_all(dag)
        dag.app.conf.task_routes = {"*.read": {"queue": "disk"}}
        dag.register(Pipeline("gpu", nodes=[DagNode(slug="render", plugin="write", options={"queue": "gpu"})]))

    findings = [each for each in diagnose(visit(declare)) if each.check == "queues"]
    assert [each.level for each in findings] == ["error", "error"]
    assert "'disk', which is used by node 'read' of pipeline 'write'" in findings[0].found
    assert "'gpu', which is used by node 'render' of pipeline 'gpu'" in findings[1].found
    assert {each.fix for each in findings} == {"celery -A proj worker -Q disk,gpu -n disk@%h"}


def test_runs_that_wait_in_a_queue_that_nobody_consumes(new_dag: Callable[..., Dagabaaz]):
    dag = new_dag()
    dag.plugin(_encode, name="encode")
    run = start(dag, node("encode", options={"queue": f"gone-{new_id()}"}))
    with embedded_worker(dag.app):
        finding = find(diagnose(dag), "queues")
    assert "which is used by node 'encode' of open runs of 'work'; 1 task waits there, for " in finding.found
    run.cancel()


def declare_gpu(dag: Dagabaaz) -> None:
    dag.plugin(_encode, name="encode")
    dag.register(Pipeline("gpu", nodes=[DagNode(slug="render", plugin="encode", options={"queue": "gpu"})]))


def test_the_worker_to_start_for_a_queue_has_a_name_that_no_other_has(dag: Dagabaaz):
    declare_gpu(dag)
    with embedded_worker(dag.app, hostname="gpu@here"):
        assert find(diagnose(dag), "queues").fix == "celery -A proj worker -Q gpu -n gpu2@%h"


def test_a_queue_that_one_of_two_workers_of_one_name_consumes(dag: Dagabaaz):
    """One answers for both, and not always the same one; each heartbeat tells of its own worker."""
    declare_gpu(dag)
    with embedded_worker(dag.app, hostname="twin@here"):
        dag._runtime.store.announce_worker(WorkerRow(new_id(), "twin@here", 1, "0.1.0", 0, ["gpu"], [], []))
        findings = diagnose(dag)
    assert find(findings, "names", "warning")
    assert [each.found for each in findings if each.check == "queues"] == ["every queue has a live worker: gpu"]


@pytest.mark.parametrize(
    ("name", "reason"),
    [("twin@here", "2 live workers are called twin@here"), ("mute@here", "no answer from mute@here (see workers)")],
)
def test_a_queue_that_a_worker_may_consume_that_did_not_answer(dag: Dagabaaz, name: str, reason: str):
    declare_gpu(dag)
    with embedded_worker(dag.app, hostname="twin@here"):
        dag._runtime.store.announce_worker(WorkerRow(new_id(), name, 1, "0.1.0", 0, [], [], []))
        findings = [each for each in diagnose(dag) if each.check == "queues"]
    assert [each.checked for each in findings] == [False]
    assert f"cannot be told whether a worker consumes 'gpu': {reason}" in findings[0].found


class Carrying(Observer):
    """Has something else travel with each run, as telemetry does."""

    def carry(self, run_id: str, pipeline: str, before: Mapping[str, str]) -> Mapping[str, str]:
        return {"traceparent": run_id}


def test_what_travels_with_many_runs_hides_no_other_run(dag: Dagabaaz):
    """Of more runs than are looked at, one more has a pipeline of its own."""
    dag.plugin(_encode, name="encode")
    dag._runtime.observers.add(Carrying())
    for _ in range(201):
        start(dag, node("encode"))
    start(dag, node("encode", options={"queue": f"gone-{new_id()}"}))
    with embedded_worker(dag.app):
        found = [each.found for each in diagnose(dag) if each.check == "queues"]
    assert ["by node 'encode' of open runs of 'work'; 1 task waits" in each for each in found] == [True]


def test_a_worker_consumes_what_it_was_given_and_not_what_it_publishes_to(dag: Dagabaaz):
    dag.plugin(_encode, name="encode")
    with embedded_worker(dag.app):
        run = start(dag, node("encode"), node("second", "encode", plugin="encode", options={"queue": "elsewhere"}))
        wait_until(lambda: run.snapshot().nodes[1].status == "launched", "the worker has published to the other queue")
        beat = dag._runtime.store.list_workers()[0].beat
        wait_until(lambda: dag._runtime.store.list_workers()[0].beat > beat + 1, "it has beaten since")
        assert dag._runtime.store.list_workers()[0].queues == [dag.app.conf.task_default_queue]
        run.cancel()


def test_a_plugin_that_the_workers_of_its_queue_do_not_know(visit: Callable[..., Dagabaaz]):
    def declare(dag: Dagabaaz) -> None:
        declare_all(dag)
        dag.plugin(_encode, name="encode")
        dag.register(Pipeline("new", nodes=[DagNode(slug="encode", plugin="encode")]))

    finding = find(diagnose(visit(declare)), "plugins")
    assert f"no live worker knows task {__name__}._encode of node 'encode' of pipeline 'new'" in finding.found
    restart, imports = finding.fix.splitlines()
    assert restart.startswith("celery -A proj control shutdown --destination ")
    assert "# then start again" in restart
    assert imports.startswith(f"app.conf.imports = [{__name__!r}]   # before that, if no module")


@pytest.mark.parametrize("known", [f"{__name__}.older", "elsewhere.task"])
@pytest.mark.parametrize("command", ["celery -A proj", f"celery -A {__name__}:app"])
def test_plugins_that_were_added_to_a_module_since_the_worker_was_started(dag: Dagabaaz, known: str, command: str):
    """One fix for all of them, and no setting where the worker imports that module already."""
    for name in ("encode", "cut", "join"):
        dag.app.task(name=f"{__name__}.{name}", shared=False)(_encode)
        dag.plugin(dag.app.tasks[f"{__name__}.{name}"])
    for name in ("encode", "cut"):
        dag.register(Pipeline(name, nodes=[DagNode(slug="only", plugin=f"{__name__}.{name}")]))
    queue = dag.app.conf.task_default_queue
    dag._runtime.store.announce_worker(WorkerRow(new_id(), "stale@host", 1, "0.1.0", 0, [queue], [known], []))
    finding = find(diagnose(dag, command=command), "plugins")
    assert f"knows tasks {__name__}.cut, {__name__}.encode of node 'only' of pipeline 'cut', " in finding.found
    assert "join, which no pipeline names yet" in finding.found
    assert finding.fix.startswith(f"{command} control shutdown --destination stale@host   # then start again")
    assert ("app.conf.imports" in finding.fix) == (known == "elsewhere.task" and command == "celery -A proj")


def test_plugins_that_no_pipeline_names_and_no_worker_knows(dag: Dagabaaz):
    for name in ("encode", "cut"):
        dag.plugin(_encode if name == "encode" else _cut, name=name)
    dag._runtime.store.announce_worker(WorkerRow(new_id(), "stale@host", 1, "0.1.0", 0, [], [], []))
    finding = find(diagnose(dag), "plugins", "warning")
    assert finding.found == f"plugins cut, encode of {__name__} are known here, and to no live worker"


def test_a_plugin_that_is_not_known_here(site: Site, visit: Callable[..., Dagabaaz]):
    findings = diagnose(visit(declare_nothing))
    finding = find(findings, "plugins", "advice")
    assert "tests.integration.doctor_plugins.read" in finding.found
    assert "import tests.integration.doctor_plugins" in finding.fix
    site.dag.save(WRITE)
    missing = [each for each in diagnose(visit(declare_nothing)) if each.check == "plugins"]
    assert {each.level for each in missing} == {"warning"}
    assert "of saved pipeline 'write'" in missing[0].found


def test_a_pipeline_that_cannot_run(dag: Dagabaaz):
    dag.register(Pipeline("broken", nodes=[DagNode(slug="wire", plugin="transmogrify")]))
    assert "transmogrify" in find(diagnose(dag), "pipelines").found


def test_a_callback_that_never_returns_well_and_a_task_that_nobody_publishes(dag: Dagabaaz):
    dag.plugin(_encode, name="encode")
    store = dag._runtime.store
    run, other = start(dag, node("encode")), start(dag, node("encode"))
    hour_ago = int((time.time() - 3600) * 1_000_000)
    with store.database.write() as connection:
        tables = store.tables
        connection.execute(
            update(tables.task)
            .where(tables.task.c.run_id == run.id)
            .values(status="pending", lease_until=hour_ago, queued_at=None, queue=None)
        )
        connection.execute(update(tables.run).where(tables.run.c.id == run.id).values(created_at=hour_ago))
    other.cancel()
    with store.database.write() as connection:
        connection.execute(update(tables.owed).where(tables.owed.c.kind == "callback").values(tries=7))
    findings = diagnose(dag)
    assert find(findings, "overdue", "warning").found.startswith(
        "1 task should have been published a minute ago, and was not"
    )
    assert find(findings, "callbacks", "warning").found.startswith("1 callback for ends of runs has raised")
    run.cancel()


def test_a_run_whose_rows_contradict_each_other(dag: Dagabaaz):
    dag.plugin(_encode, name="encode")
    run = start(dag, node("encode"))
    store = dag._runtime.store
    with store.database.write() as connection:
        connection.execute(update(store.tables.node).values(tasks_total=7))
    assert bad(diagnose(dag)) == {"broker", "workers"}
    finding = next(each for each in diagnose(dag, runs=True) if each.check == "runs")
    assert finding.level == "error"
    assert run.id in finding.found
    with store.database.write() as connection:
        connection.execute(update(store.tables.node).values(tasks_total=1))
    run.cancel()


# Workers ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def skewed_clock(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library that, preloaded, shifts a process's wall clock."""
    compiler = shutil.which("cc")
    if sys.platform != "linux" or compiler is None:
        services.miss("a test with a shifted clock", "it preloads a library on Linux, made by a C compiler (cc)")
    library = tmp_path_factory.mktemp("clock") / "skewed_clock.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", library, SKEWED_CLOCK, "-ldl"], check=True)
    return library


@pytest.fixture(scope="module")
def odd(skewed_clock: Path) -> Iterator[list[Finding]]:
    """What is found where one worker is well and another is odd in every way, and a third is none of ours."""
    with open_site(declare_all, dagabaaz_dead_after=20.0) as site:
        site.start_worker("-n", "well@here", concurrency=1, wait=False)
        site.start_worker(
            *("-n", "odd@elsewhere"),
            concurrency=1,
            declare=declare_nothing,
            variables={"LD_PRELOAD": str(skewed_clock), "SKEWED_CLOCK_SECONDS": "600"},
            dagabaaz_files_dir=str(site.directory / "other-files"),
            dagabaaz_sweep_interval=8.0,
            dagabaaz_dead_after=24.0,
            wait=False,
        )
        site.start_worker(
            *("-n", "stranger@here"),
            pool="solo",
            dagabaaz_store_url=f"sqlite:///{site.directory / 'other.sqlite3'}",
            wait=False,
        )
        site.wait_ready()
        store = site.dag._runtime.store
        with store.database.write() as connection:
            worker = store.tables.worker
            connection.execute(update(worker).where(worker.c.hostname == "odd@elsewhere").values(version="0.0.9"))
        yield diagnose(site.dag)


def test_workers_that_do_not_share_the_files_directory(odd: list[Finding]):
    finding = find(odd, "files", "warning")
    assert "there are 2 of them" in finding.found
    assert "other-files of odd@elsewhere" in finding.found
    assert "app.conf.dagabaaz_files_dir = " in finding.fix


def test_a_sqlite_store_that_workers_of_two_hosts_use(odd: list[Finding]):
    finding = find(odd, "sqlite-hosts", "warning")
    assert "2 hosts" in finding.found
    assert "elsewhere" in finding.found
    assert "postgresql+psycopg://" in finding.fix


def test_a_worker_whose_clock_is_wrong(odd: list[Finding]):
    finding = find(odd, "clocks", "warning")
    assert "worker odd@elsewhere" in finding.found
    assert "s ahead of the database's" in finding.found
    assert 590 < float(finding.found.split(" s ahead")[0].split()[-1]) < 610
    assert "timedatectl set-ntp true" in finding.fix


def test_a_worker_of_another_release(odd: list[Finding]):
    finding = find(odd, "versions", "warning")
    assert "dagabaaz-celery is 0.0.9 on odd@elsewhere" in finding.found
    assert "pip install 'dagabaaz-celery==" in finding.fix


def test_the_newer_of_two_releases_is_the_one_with_the_higher_number(dag: Dagabaaz, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(worker_checks, "__version__", "0.9.0")
    dag._runtime.store.announce_worker(WorkerRow(new_id(), "new@host", 1, "0.10.0", 0, [], [], []))
    finding = find(diagnose(dag), "versions", "warning")
    assert "dagabaaz-celery is 0.10.0 on new@host, and 0.9.0 here" in finding.found
    assert finding.fix.startswith("pip install 'dagabaaz-celery==0.10.0'")


def test_workers_that_take_each_other_for_dead(odd: list[Finding]):
    finding = find(odd, "worker-settings", "error")
    assert "beats every 8 s (dagabaaz_sweep_interval)" in finding.found
    assert "app.conf.dagabaaz_dead_after = " in finding.fix


def test_one_worker_of_a_queue_that_does_not_know_a_plugin(odd: list[Finding]):
    found = [each for each in odd if each.check == "plugins"]
    assert {each.level for each in found} == {"warning"}
    assert "odd@elsewhere consumes work and does not know task" in found[0].found
    assert "control shutdown --destination odd@elsewhere" in found[0].fix
    assert "app.conf.imports = ['tests.integration.doctor_plugins']" in found[0].fix
    assert len(found) == 1


def test_a_worker_with_another_store(odd: list[Finding]):
    finding = find(odd, "strangers")
    assert "stranger@here consumes work, and keeps its runs in another store" in finding.found
    same, apart = finding.fix.splitlines()
    assert same.startswith("app.conf.dagabaaz_store_url = ...   # if it is this project")
    assert '{"global_keyprefix": "worker_app-"}   # in every process of the other project' in apart


def test_two_projects_with_one_broker(new_dag: Callable[..., Dagabaaz], tmp_path: Path):
    """Neither wants the other's store."""
    shop = new_dag(dagabaaz_store_url=f"sqlite:///{tmp_path}/shop.sqlite3")
    queue = shop.app.conf.task_default_queue
    shop.plugin(_encode, name="encode")
    shop.register(Pipeline("work", nodes=[DagNode(slug="encode", plugin="encode")]))
    assert list(shop.runs()) == []
    settings = {"task_default_queue": queue, "dagabaaz_store_url": f"sqlite:///{tmp_path}/billing.sqlite3"}
    billing = Dagabaaz(make_app("billing", **settings))
    with embedded_worker(billing.app, hostname="billing@here"):
        fix = find(diagnose(shop), "strangers").fix
    billing.close()
    billing.app.close()
    assert fix.startswith(
        'app.conf.task_default_queue = "billing"   # in every process of the other project; or another'
    )
    assert "dagabaaz_store_url" not in fix


def test_a_worker_of_a_django_project_with_another_database(
    new_dag: Callable[..., Dagabaaz], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Its store is one of DATABASES, and no setting of the app's."""
    here, there = (new_dag(dagabaaz_store_url=f"sqlite:///{tmp_path}/{name}.sqlite3") for name in ("here", "there"))
    there.app.conf.task_default_queue = here.app.conf.task_default_queue
    here.plugin(_encode, name="encode")
    here.register(Pipeline("work", nodes=[DagNode(slug="encode", plugin="encode")]))
    assert list(here.runs()) == []
    monkeypatch.setattr(facts.Facts, "migrate_command", "python manage.py migrate")
    with embedded_worker(there.app, hostname="there@here"):
        same, apart = find(diagnose(here), "strangers").fix.splitlines()
    assert same.startswith("python manage.py diffsettings   # if it is this project: compare DATABASES")
    assert apart.startswith("app.conf.task_default_queue = ")


def test_a_worker_of_a_queue_of_ours_that_has_no_dagabaaz(dag: Dagabaaz):
    dag.plugin(_encode, name="encode")
    dag.register(Pipeline("work", nodes=[DagNode(slug="encode", plugin="encode")]))
    assert list(dag.runs()) == []
    plain = make_app(task_default_queue=dag.app.conf.task_default_queue)
    with embedded_worker(plain) as worker:
        findings = diagnose(dag)
    finding = find(findings, "strangers")
    assert f"{worker.hostname} consumes {plain.conf.task_default_queue}, and has no Dagabaaz" in finding.found
    assert "cancel_consumer" in finding.fix
    assert find(findings, "workers").fix.startswith("celery -A proj worker")
    plain.close()


def test_two_apps_with_one_store(tmp_path: Path):
    settings = {"task_default_queue": f"shared-{new_id()}", "dagabaaz_store_url": f"sqlite:///{tmp_path}/runs.sqlite3"}
    shop, billing = Dagabaaz(make_app("shop", **settings)), Dagabaaz(make_app("billing", **settings))
    with embedded_worker(shop.app), embedded_worker(billing.app, hostname="billing@here"):
        finding = find(diagnose(shop), "strangers", "warning")
    assert "billing, shop" in finding.found
    assert "dagabaaz_table_prefix" in finding.fix
    for dag in (shop, billing):
        dag.close()
        dag.app.close()


def test_a_worker_that_died_with_its_tasks_and_two_of_one_name(dag: Dagabaaz):
    dag.plugin(_encode, name="encode")
    run = start(dag, node("encode"))
    store = dag._runtime.store
    workers = [WorkerRow(new_id(), f"{name}@host", 1, "0.1.0", 0, [], [], []) for name in ("dead", "twin", "twin")]
    for worker in workers:
        store.announce_worker(worker)
    store.claim(run.tasks()[0].attempt_id, new_id(), workers[0].id)
    with store.database.write() as connection:
        table = store.tables.worker
        long_ago = int((time.time() - 3600) * 1_000_000)
        connection.execute(update(table).where(table.c.id == workers[0].id).values(seen_at=long_ago))
    findings = diagnose(dag)
    assert "dead@host" in (dead := find(findings, "dead-workers", "warning")).found
    assert "1 task is still its own" in dead.found
    assert dead.fix == "celery -A proj worker --loglevel INFO -n spare@%h"
    assert find(findings, "names", "warning").fix.startswith("celery -A proj worker -n twin2@%h   # in place of one")
    run.cancel()


# The command --------------------------------------------------------------------------------------------------------


def invoke(dag: Dagabaaz, *options: str) -> Result:
    """The command in this process, as Celery's own command line calls it."""
    return CliRunner().invoke(doctor, options, obj=SimpleNamespace(app=dag.app, no_color=False))


def test_the_command_ends_with_0_where_all_is_well_and_prints_json(site: Site):
    done = invoke(site.dag, "--json", "--runs")
    assert done.exit_code == 0, done.output
    findings = json.loads(done.output)["findings"]
    assert {finding["level"] for finding in findings} <= {"ok", "advice"}
    assert {"check", "level", "found", "why", "fix", "checked"} == set(findings[0])


def test_the_command_leaves_out_what_it_is_told_to(dag: Dagabaaz):
    assert invoke(dag).exit_code == 1
    done = invoke(dag, "--fail-on", "error", "--ignore", "workers", "--ignore", "broker")
    assert done.exit_code == 0, done.output
    assert " workers: " not in done.output


def test_the_command_ends_with_1_for_a_fault_and_prints_its_fix_last(dag: Dagabaaz):
    done = invoke(dag)
    assert done.exit_code == 1
    assert done.output.index("ok       settings: ") < done.output.index(
        "\nerror    workers: no worker of this store is"
    )
    assert "         fix: celery -A proj worker --loglevel INFO\n" in done.output
    assert done.output.splitlines()[-1].startswith("1 error, 1 warning, ")
    assert "\x1b" not in done.output

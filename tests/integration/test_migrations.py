"""The schema of a store: made by whoever comes first, changed under running work, refused where it does not fit."""

import os
import re
import shlex
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import text

from dagabaaz_celery.constants import FanMode, RunStatus
from dagabaaz_celery.errors import StoreSchemaError
from dagabaaz_celery.stores.sql import schema
from dagabaaz_celery.stores.sql.invariants import find_violations
from dagabaaz_celery.stores.sql.store import SqlStore, Work
from dagabaaz_celery.stores.sql.tables import new_id
from tests import services
from tests.integration.sql_stores import attempts_of, claim, node, records, start
from tests.processes import wait_until

ROOT = Path(__file__).resolve().parents[2]
SERVERS = {
    "postgresql": services.postgres_url,
    "pgbouncer": services.pgbouncer_url,
    "mariadb": services.mysql_url,
}
NODES = (node("a"), node("b", "a"), node("c", "b", fan_mode=FanMode.AGGREGATE))
FIRST, NEWEST = "0001", "0004_0001"

pytestmark = pytest.mark.timeout(600)


@dataclass(frozen=True)
class Database:
    """A database and a prefix that nobody else has."""

    url: str
    prefix: str

    @contextmanager
    def open(self, **given: object) -> Iterator[SqlStore]:
        """A store there, as a process has it that starts now."""
        store = SqlStore(self.url, prefix=self.prefix, **given)
        try:
            yield store
        finally:
            store.close()

    def run(self, *arguments: str) -> int:
        """The command, in this process."""
        return schema.main([self.url, "--prefix", self.prefix, *arguments])

    def read_version(self) -> str | None:
        with self.open() as store, store.database.read() as connection:
            return connection.execute(text(f"SELECT version_num FROM {self.prefix}schema_version")).scalar()


@pytest.fixture(params=["sqlite", *SERVERS])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    """A database without tables of this prefix; they are dropped in the end."""
    url = SERVERS[request.param]() if request.param in SERVERS else f"sqlite:///{tmp_path / 'runs.sqlite3'}"
    made = Database(url, f"m{new_id()[-8:]}_")
    yield made
    with made.open() as store, store.database.write() as connection:
        store.tables.metadata.drop_all(connection)
        connection.execute(text(f"DROP TABLE IF EXISTS {made.prefix}schema_version"))


@pytest.fixture
def later_release(monkeypatch: pytest.MonkeyPatch) -> Callable[..., object]:
    """Have what is opened within be of a release to come: it knows more revisions, in these directories."""

    @contextmanager
    def be_later(*directories: str) -> Iterator[None]:
        more = (Path(__file__).parent / "revisions" / directory for directory in directories)
        with monkeypatch.context() as patched:
            patched.setattr(schema, "_VERSIONS", (*schema._VERSIONS, *more))
            yield

    return be_later


def find_differences(store: SqlStore) -> list[object]:
    """Between the tables that are there and those that the code uses."""

    def is_ours(name: str | None, kind: str, parents: object) -> bool:
        return kind != "table" or (str(name).startswith(store.tables.prefix) and not str(name).endswith("version"))

    with store.database.read() as connection:
        context = MigrationContext.configure(connection, opts={"include_name": is_ours})
        return compare_metadata(context, store.tables.metadata)


# -- first starts


def test_processes_that_start_at_once_make_one_store(database: Database):
    program = (
        "import sys; from dagabaaz_celery.stores.sql.store import SqlStore; store = SqlStore(*sys.argv[1:2], "
        "prefix=sys.argv[2]); print('ready', flush=True); sys.stdin.readline(); print(store.id)"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", program, database.url, database.prefix],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    said = [process.communicate(timeout=90) for process in processes]

    assert [process.returncode for process in processes] == [0] * 4, said
    assert len({output for output, _ in said}) == 1


def test_a_first_start_that_was_killed_half_way_is_finished_by_the_next(database: Database):
    """MySQL and MariaDB keep every table that was made before."""
    with database.open() as store:
        with store.database.write() as connection:
            for table in (store.tables.artifact, store.tables.run):
                if store.database.engine.dialect.name in ("mysql", "mariadb"):
                    table.create(connection)
        assert store.id
        assert find_differences(store) == []


def test_stores_of_two_prefixes_know_nothing_of_each_other(database: Database):
    other = Database(database.url, f"o{new_id()[-8:]}_")
    with database.open() as ours, other.open() as theirs:
        run_id = start(ours, node("a")).run.id

        assert ours.id != theirs.id
        assert [run.id for run in ours.search_runs()] == [run_id]
        assert theirs.search_runs() == []
    assert other.run("--down", "base") == 0
    with other.open() as theirs, theirs.database.write() as connection:
        connection.execute(text(f"DROP TABLE {other.prefix}schema_version"))


def test_tables_go_where_the_setting_schema_says(database: Database):
    """A schema of PostgreSQL, a database of MariaDB, "main" of SQLite."""
    is_sqlite = database.url.startswith("sqlite")
    name = "main" if is_sqlite else f"s{new_id()[-8:]}"
    with database.open() as outside, database.open(schema=name) as store:
        if not is_sqlite:
            with pytest.raises(StoreSchemaError, match=f"--schema '{name}'"):
                store.search_runs()
            with outside.database.write() as connection:
                connection.execute(text(f"CREATE SCHEMA {name}"))
        try:
            run_to_its_end(store)
            with store.read() as connection:
                assert connection.execute(text(f"SELECT count(*) FROM {name}.{database.prefix}run")).scalar_one() == 1
            assert find_violations(store, at_rest=True) == []
            assert database.run("--schema", name, "--check") == 0
            assert database.run("--schema", name, "--down", FIRST) == 0
            assert database.run("--schema", name) == 0
        finally:
            if not is_sqlite:
                with outside.database.write() as connection:
                    cascade = " CASCADE" if outside.database.engine.dialect.name == "postgresql" else ""
                    connection.execute(text(f"DROP SCHEMA {name}{cascade}"))


# -- changes under running work


def run_to_its_end(store: SqlStore) -> None:
    """A run as workers do it, without a broker."""
    started = start(store, *NODES)
    todo = [*attempts_of(started)]
    while todo:
        store.mark_queued(todo, "work")
        todo += finish(store, claim(store, todo.pop()))
    assert store.get_run(started.run.id).status == RunStatus.COMPLETED


def finish(store: SqlStore, work: Work) -> list[str]:
    """Complete an attempt; the attempts that are to be published then."""
    aftermath = store.complete(work, records(3), "many")
    for owed in aftermath.owed:
        store.settle_owed(owed)
    return [*attempts_of(aftermath)]


class Traffic:
    """Threads that start runs and bring them to their ends, one after the other, on a store of one release."""

    def __init__(self, store: SqlStore, threads: int = 3) -> None:
        self.ended = 0
        self.errors: list[Exception] = []
        self._store = store
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(threads)]

    def _run(self) -> None:
        while not self._stop.is_set() and not self.errors:
            try:
                run_to_its_end(self._store)
                self.ended += 1
            except Exception as error:  # told to the test by its own thread
                self.errors.append(error)

    def wait_for_more(self) -> None:
        """Until every thread has ended a run that it began after this call."""
        enough = self.ended + 2 * len(self._threads)
        wait_until(lambda: self.errors or self.ended >= enough, "more runs ended", timeout=60)
        assert self.errors == []

    def __enter__(self) -> "Traffic":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)


def finish_run(store: SqlStore, work: Work) -> None:
    """Complete an attempt, and all that follows."""
    todo = finish(store, work)
    while todo:
        todo += finish(store, claim(store, todo.pop()))
    assert store.get_run(work.attempt.run_id).status == RunStatus.COMPLETED


def test_a_store_is_migrated_up_and_down_with_live_runs_in_it(database: Database, later_release: Callable[..., object]):
    """Workers of this release go on throughout, while a later one starts, migrates, and is taken back.

    To an older schema than its own a release's workers do not go along: they rest while the store is there and back.
    """
    with database.open() as store:
        held = [claim(store, attempts_of(start(store, *NODES))[0]) for _ in range(3)]
        for way in (["--down", FIRST], []):
            assert database.run(*way) == 0
        finish_run(store, held.pop())
        with Traffic(store) as traffic:
            with later_release("compatible"), database.open() as later:
                run_to_its_end(later)
            assert database.read_version() == "0005_0001"
            finish_run(store, held.pop())
            traffic.wait_for_more()
            with database.open() as started_late:
                run_to_its_end(started_late)
            with later_release("compatible"):
                assert database.run("--down", NEWEST) == 0
            finish_run(store, held.pop())
            traffic.wait_for_more()

        assert traffic.errors == []
        assert find_violations(store, at_rest=True) == []
        assert {run.status for run in store.search_runs(limit=10_000)} == {RunStatus.COMPLETED}


def test_what_was_half_deleted_does_not_come_back_with_an_older_schema(database: Database):
    """Releases that do not know the mark of such a run would take it for one like others."""
    with database.open() as store:
        for _ in range(2):
            run_to_its_end(store)
        kept, marked = [run.id for run in store.search_runs()]
        store.transact(lambda connection: store.rows.pruning.mark(connection, [marked], 0))

    assert database.run("--down", "0003_0001") == 0
    assert database.run() == 0

    with database.open() as store:
        assert [run.id for run in store.search_runs()] == [kept]
        assert find_violations(store) == []


def test_a_release_goes_on_with_a_newer_schema_that_is_good_for_it(
    database: Database, later_release: Callable[..., object], caplog: pytest.LogCaptureFixture
):
    with later_release("compatible"), database.open() as later:
        assert later.id

    with caplog.at_level("INFO"), database.open() as store:
        run_to_its_end(store)

        assert store.id == later.id
    assert "has schema 0005_0001, of a newer release; it does for this one" in caplog.text


def test_a_release_refuses_a_newer_schema_that_is_not_good_for_it(
    database: Database, later_release: Callable[..., object]
):
    with later_release("compatible", "breaking"), database.open() as later:
        run_to_its_end(later)

    with database.open() as store, pytest.raises(StoreSchemaError) as refused:
        store.search_runs()

    assert f"has schema 0006, which is newer than this release knows (up to {NEWEST})" in str(refused.value)
    assert f"--prefix {database.prefix!r} --down {NEWEST}`" in str(refused.value)
    with later_release("compatible", "breaking"):
        assert database.run("--down", NEWEST) == 0
    with database.open() as store:
        assert len(store.search_runs()) == 1


# -- the command


def test_the_command_makes_checks_and_drops_the_tables(database: Database, capsys: pytest.CaptureFixture[str]):
    assert database.run("--check") == 1
    refusal = capsys.readouterr().err
    assert "has no tables yet" in refusal
    assert "auto_migrate" not in refusal, "a setting that this command does not look at"
    assert database.run() == 0
    assert database.run() == 0
    assert database.run("--check") == 0
    assert f"has schema {NEWEST}" in capsys.readouterr().out

    assert database.run("--down", FIRST) == 0
    assert database.run("--check") == 1
    assert f"has schema {FIRST}, and this release needs schema {NEWEST}" in capsys.readouterr().err
    assert database.run("--down", NEWEST) == 1
    assert f"no way down to {NEWEST}" in capsys.readouterr().err
    assert database.run("--down", "base") == 0

    assert database.run("--check") == 1
    assert database.run() == 0
    with database.open() as store:
        assert find_differences(store) == []


def test_the_printed_sql_does_what_the_command_does(database: Database, capsys: pytest.CaptureFixture[str]):
    def run_printed(*arguments: str) -> None:
        capsys.readouterr()
        assert database.run("--sql", *arguments) == 0
        script = "\n".join(line for line in capsys.readouterr().out.splitlines() if not line.startswith("--"))
        with database.open() as store, store.database.write() as connection:
            for statement in script.split(";"):
                if statement.strip() not in ("", "BEGIN", "COMMIT"):
                    connection.exec_driver_sql(statement)

    run_printed()
    with database.open(auto_migrate=False) as store:
        assert find_differences(store) == []
        run_to_its_end(store)
    run_printed("--down", FIRST)
    assert database.run("--check") == 1
    run_printed("--from", FIRST)
    with database.open(auto_migrate=False) as store:
        assert find_differences(store) == []
        run_to_its_end(store)
    run_printed("--down", "base")
    with database.open(auto_migrate=False) as store, pytest.raises(StoreSchemaError, match="no tables yet"):
        store.search_runs()


def test_a_reader_who_has_seen_enough_of_the_sql_gets_no_traceback():
    """As head does after some lines: it closes its end of the pipe."""
    reads, writes = os.pipe()
    os.close(reads)
    command = [sys.executable, "-m", "dagabaaz_celery.stores.sql.schema", "sqlite:///runs.sqlite3", "--sql"]
    try:
        done = subprocess.run(command, stdout=writes, stderr=subprocess.PIPE, text=True, timeout=60, check=False)
    finally:
        os.close(writes)

    assert (done.returncode, done.stderr) == (1, "")


def test_a_schema_that_does_not_exist_is_a_wrong_call(database: Database, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ended:
        database.run("--down", "0815")

    assert ended.value.code == 2
    assert (
        "there is no schema 0815; this release knows base, 0001, 0002_0001, 0003_0001, 0004_0001"
        in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    "url",
    [
        "postgresql+psycopg://shop:tiger@127.0.0.1:1/shop",
        "mysql+pymysql://shop:tiger@127.0.0.1:1/shop",
        "sqlite:////no/such/directory/runs.sqlite3",
        "no url, with tiger in it",
    ],
)
def test_a_store_that_cannot_be_reached_is_said_in_one_line_without_the_password(
    url: str, capsys: pytest.CaptureFixture[str]
):
    assert schema.main([url]) == 1

    said = capsys.readouterr()
    assert said.out == ""
    assert len(said.err.splitlines()) == 1
    assert "tiger" not in said.err


def test_a_worker_does_not_start_on_a_store_that_it_may_not_migrate(tmp_path: Path):
    """The command that it names mends that, typed as it stands there."""
    (tmp_path / "shop.py").write_text(
        "from celery import Celery\n"
        "from dagabaaz_celery.app import Dagabaaz\n"
        "app = Celery('shop', broker='memory://')\n"
        "app.conf.update(dagabaaz_store_url='sqlite:///runs.sqlite3', dagabaaz_auto_migrate=False,\n"
        "                dagabaaz_table_prefix='shop_')\n"
        "dag = Dagabaaz(app)\n"
    )

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        path = f"{ROOT}:{tmp_path}"
        return subprocess.run(
            [sys.executable, *words],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": path},
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
        )

    refused = run("-m", "celery", "-A", "shop", "worker", "-P", "solo")

    assert refused.returncode != 0
    command = re.search(r"run `python (.*?)`", refused.stderr)
    assert command is not None, refused.stderr
    done = run(*shlex.split(command[1].replace("URL", "sqlite:///runs.sqlite3")))
    assert (done.returncode, done.stderr) == (0, "")
    checked = run(*shlex.split(command[1].replace("URL", "sqlite:///runs.sqlite3")), "--check")
    assert checked.returncode == 0

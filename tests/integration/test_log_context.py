"""Log records of a plugin name its run, node, task and attempt, wherever the body goes."""

import asyncio
import io
import json
import logging
import logging.config
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context

import pytest
from celery import Celery
from celery.utils.log import get_task_logger

from dagabaaz_celery.app import Dagabaaz
from dagabaaz_celery.log_context import FIELDS, RunContextFilter, name_runs_in_logs
from dagabaaz_celery.models import TaskArtifact
from dagabaaz_celery.testing import embedded_worker
from tests.integration.celery_support import complete, make_app, node

logger = logging.getLogger("tests.plugins")


class Records(logging.Handler):
    """Keeps what is logged."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.kept.append(record)

    def places(self, message: str) -> list[tuple[object, ...]]:
        """The four fields of every record with this message."""
        return [
            tuple(getattr(record, field) for field in FIELDS) for record in self.kept if record.getMessage() == message
        ]


@pytest.fixture
def records() -> Iterator[Records]:
    """What plugins log, each record as it was made."""
    factory = logging.getLogRecordFactory()
    kept = Records()
    logger.addHandler(kept)
    logger.setLevel(logging.INFO)
    name_runs_in_logs()
    yield kept
    logging.setLogRecordFactory(factory)
    logger.removeHandler(kept)


@pytest.fixture
def app() -> Celery:
    return make_app()


def test_a_record_names_run_node_task_and_attempt(app: Celery, records: Records):
    dag = Dagabaaz(app)

    @dag.plugin(max_retries=1, bind=True)
    def fetch(self) -> list[int]:
        logger.info("fetching")
        if not self.request.retries:
            raise self.retry(countdown=0)
        return [1, 2]

    @dag.plugin
    def show(value: int) -> None:
        logger.info("showing")

    with embedded_worker(app):
        run = complete(dag, node("fetch"), node("each", "fetch", plugin="show"))

    (first,) = [task for task in run.tasks() if task.node == "fetch"]
    assert records.places("fetching") == [(run.id, "fetch", first.id, 1), (run.id, "fetch", first.id, 2)]
    shown = {(run.id, "each", task.id, 1) for task in run.tasks() if task.node == "each"}
    assert set(records.places("showing")) == shown
    assert len(shown) == 2


def test_an_async_body_and_its_threads_are_named_by_their_own_task(app: Celery, records: Records):
    """The event loop of a thread outlives many tasks: none of them may be taken for the first."""
    dag = Dagabaaz(app)

    @dag.plugin
    def words() -> list[str]:
        return ["one", "two", "three"]

    @dag.plugin
    async def say(word: str) -> None:
        logger.info("loop %s", word)
        await asyncio.gather(asyncio.to_thread(logger.info, "thread %s", word), tell(word))

    async def tell(word: str) -> None:
        logger.info("subtask %s", word)

    with embedded_worker(app):
        run = complete(dag, node("words"), node("say", "words"))

    ordinals = {task.ordinal: task.id for task in run.tasks() if task.node == "say"}
    for ordinal, word in enumerate(["one", "two", "three"]):
        for what in ("loop", "thread", "subtask"):
            assert records.places(f"{what} {word}") == [(run.id, "say", ordinals[ordinal], 1)]


def test_a_pool_of_threads_is_named_where_it_is_given_the_context(app: Celery, records: Records):
    dag = Dagabaaz(app)

    @dag.plugin
    def split() -> None:
        with ThreadPoolExecutor() as pool:
            pool.submit(copy_context().run, logger.info, "with the context").result()
            pool.submit(logger.info, "without").result()

    with embedded_worker(app):
        run = complete(dag, node("split"))

    (task,) = run.tasks()
    assert records.places("with the context") == [(run.id, "split", task.id, 1)]
    assert records.places("without") == [("-",) * 4]


def test_a_format_may_name_the_fields_outside_of_a_run(records: Records):
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logging.Formatter(" ".join(f"%({field})s" for field in FIELDS) + " %(message)s"))
    logger.addHandler(handler)
    logger.info("a request")
    logger.removeHandler(handler)
    assert stream.getvalue() == "- - - - a request\n"


def test_saying_it_twice_is_saying_it_once(records: Records):
    factory = logging.getLogRecordFactory()
    name_runs_in_logs()
    assert logging.getLogRecordFactory() is factory


def test_a_task_logger_with_a_json_formatter_has_the_fields(app: Celery):
    """As an app's logging.config would have it: the filter on one handler, no record factory."""

    class Json(logging.Formatter):
        def format(self, record: logging.LogRecord) -> str:
            return json.dumps({field: record.__dict__[field] for field in FIELDS} | {"message": record.getMessage()})

    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.addFilter(RunContextFilter())
    handler.setFormatter(Json())
    task_logger = get_task_logger("tests.json")
    task_logger.addHandler(handler)
    task_logger.setLevel(logging.INFO)
    dag = Dagabaaz(app)

    @dag.plugin
    def make() -> TaskArtifact:
        task_logger.info("made")
        return TaskArtifact(file_name="a")

    with embedded_worker(app):
        run = complete(dag, node("make"))
    task_logger.removeHandler(handler)

    (line,) = map(json.loads, stream.getvalue().splitlines())
    assert line == {
        "dagabaaz_run": run.id,
        "dagabaaz_node": "make",
        "dagabaaz_task": run.tasks()[0].id,
        "dagabaaz_attempt": 1,
        "message": "made",
    }


def test_a_task_without_a_wrapper_is_named_too(app: Celery, records: Records):
    dag = Dagabaaz(app)

    @app.task(name="plain", shared=False)
    def plain() -> int:
        logger.info("plainly")
        return 1

    with embedded_worker(app):
        run = complete(dag, node("plain"))
        plain()

    (task,) = run.tasks()
    assert records.places("plainly") == [(run.id, "plain", task.id, 1), ("-",) * 4]

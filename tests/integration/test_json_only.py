"""Messages of runs are JSON, whatever the app's other messages are."""

import json
from typing import Any

import pytest
from celery import Celery
from kombu import Queue

from dagabaaz_celery.app import Dagabaaz
from dagabaaz_celery.errors import ConfigurationError
from dagabaaz_celery.testing import embedded_worker
from tests.integration.celery_support import PATIENCE, node, start

PICKLING = {
    "task_serializer": "pickle",
    "result_serializer": "pickle",
    "event_serializer": "json",
    "accept_content": ["pickle", "json"],
}


class Spy:
    """A value that tells when somebody unpickles it."""

    def __reduce__(self) -> tuple[Any, ...]:
        return pytest.fail, ("a pickle was read",)


@pytest.fixture
def pickling(new_dag: Any) -> Dagabaaz:
    """An app whose own messages are pickles, with a plugin and a task that nobody registered."""
    dag = new_dag(**PICKLING)

    @dag.plugin
    def fenced(word: str = "") -> str:
        return word

    @dag.app.task(name="plain", shared=False)
    def plain(word: str) -> str:
        return word

    return dag


def take_messages(app: Celery) -> list[Any]:
    with app.connection_for_read() as connection:
        queue = Queue(app.conf.task_default_queue, channel=connection.default_channel)
        return list(iter(lambda: queue.get(no_ack=True, accept=["pickle", "json"]), None))


def test_every_message_of_a_run_is_json_where_the_app_pickles(pickling: Dagabaaz):
    """Given an app whose default is pickle, when a run is published, then only its messages are JSON."""
    start(pickling, node("one", plugin="fenced"), node("two", plugin="plain"), input={"word": "x"})
    messages = take_messages(pickling.app)
    assert [message.content_type for message in messages] == ["application/json"] * 2
    assert [json.loads(message.body)[1] for message in messages] == [{}, {"word": "x"}]
    pickling.app.tasks["plain"].delay("y")
    [own] = take_messages(pickling.app)
    assert own.content_type == "application/x-python-serialize"


def test_an_option_cannot_make_them_anything_else(pickling: Dagabaaz):
    pickling.app.finalize()
    pickling.app.tasks["plain"].serializer = "pickle"
    route = {"serializer": "pickle", "retry_policy": {"max_retries": 9}, "add_to_parent": True}
    pickling.app.conf.task_routes = {"*": route}
    start(pickling, node("one", plugin="fenced"), node("two", plugin="plain"), input={"word": "x"})
    assert [message.content_type for message in take_messages(pickling.app)] == ["application/json"] * 2


def test_a_worker_that_accepts_pickle_runs_them(pickling: Dagabaaz):
    with embedded_worker(pickling.app):
        run = start(pickling, node("one", plugin="fenced"), node("two", plugin="plain"), input={"word": "x"})
        assert run.wait(PATIENCE) == "completed", run.error
    assert (run.result("one"), run.result("two")) == ("x", "x")


@pytest.mark.parametrize("place", ["result", "input"])
def test_what_only_a_pickle_could_carry_is_refused(pickling: Dagabaaz, place: str):
    pickling.app.conf.task_always_eager = True

    @pickling.plugin
    def produce() -> Any:
        return {"spy": Spy()}

    if place == "result":
        run = start(pickling, node("produce"))
        assert run.wait(PATIENCE) == "failed"
        assert run.error is not None
        assert "a Spy is not JSON" in run.error.message
    else:
        with pytest.raises(ValueError, match="a Spy is not JSON"):
            start(pickling, node("fenced"), input={"word": Spy()})


@pytest.mark.parametrize("accepted", [["pickle"], {"yaml", "msgpack"}, []])
def test_an_app_whose_workers_take_no_json_is_told(new_dag: Any, accepted: Any):
    dag = new_dag(accept_content=accepted)
    with pytest.raises(ConfigurationError, match=r"accept_content is .*Add 'json' to it"):
        _ = dag.settings


@pytest.mark.parametrize("accepted", [["application/json"], ["json", "pickle"], None])
def test_one_whose_workers_do_is_not(new_dag: Any, accepted: Any):
    assert new_dag(accept_content=accepted).settings

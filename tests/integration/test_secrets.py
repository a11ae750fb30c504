"""``$NAME`` in a ConfigSource: the body gets the value, and nothing else in the world gets to see it."""

import base64
import logging
import secrets as random_texts
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis
from celery import Celery
from pydantic import SecretStr

from dagabaaz_celery.app import Dagabaaz
from dagabaaz_celery.errors import ConfigurationError, PipelineError
from dagabaaz_celery.models import ConfigSource, ExpressionSource, RuntimeSource
from dagabaaz_celery.pipeline import Pipeline
from tests.integration.celery_support import PATIENCE, complete, fail, node, start, wait_until
from tests.integration.secret_plugins import declare_users, digest
from tests.integration.worker_processes import Site, open_site

NAME = "DAGABAAZ_TEST_TOKEN"
#: Texts of real secrets: quotes, backslashes, spaces, two lines, letters beyond ASCII.
RANDOM_PART = random_texts.token_hex(30)
SECRET = f"it's\\{RANDOM_PART} +/ü%\nsecond-line-{random_texts.token_hex(12)}"


def find_secret(text: bytes | str) -> str | None:
    """A piece of the secret that stands in a text."""
    data = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    pieces = [RANDOM_PART[at : at + 12] for at in range(len(RANDOM_PART) - 12)]
    encoded = base64.b64encode(SECRET.encode()).decode()
    pieces += [encoded[at : at + 16] for at in range(len(encoded) - 16)]
    return next((piece for piece in pieces if piece.encode() in data), None)


# -- one worker process for all, which is looked at from everywhere


@pytest.fixture(scope="module")
def watched() -> Iterator["Watched"]:
    """A prefork worker that logs everything, sends events and keeps results; it has the secret, this process not."""
    with open_site(declare_users) as site, pytest.MonkeyPatch.context() as environment:
        prefix = site.settings["broker_transport_options"]["global_keyprefix"]
        more = {
            "result_backend": site.settings["broker_url"],
            "result_backend_transport_options": {"global_keyprefix": prefix},
            "result_extended": True,
            "worker_send_task_events": True,
            "task_send_sent_event": True,
        }
        site.settings.update(more)
        site.dag.app.conf.update(more)
        watched = Watched(site, prefix)
        with watched.capturing_events():
            environment.setenv(NAME, SECRET)
            site.start_worker("-E", "-l", "DEBUG")
            environment.delenv(NAME)
            yield watched


class Watched:
    """A site, and everything that it shows."""

    def __init__(self, site: Site, prefix: str) -> None:
        self.site = site
        self.dag = site.dag
        self.prefix = prefix
        self.events: list[dict[str, Any]] = []

    @contextmanager
    def capturing_events(self) -> Iterator[None]:
        """Collect every event meanwhile, as monitors do."""
        with self.dag.app.connection_for_read() as connection:
            receiver = self.dag.app.events.Receiver(connection, handlers={"*": self.events.append})
            thread = threading.Thread(target=receiver.capture, kwargs={"limit": None, "timeout": None, "wakeup": False})
            thread.start()
            try:
                yield
            finally:
                receiver.should_stop = True
                thread.join()

    def everything(self) -> Iterator[tuple[str, bytes]]:
        """Name and content of all that was written: store, logs, files, broker and result backend, events."""
        for path in self.site.directory.rglob("*"):
            if path.is_file():
                yield str(path), path.read_bytes()
        with redis.Redis.from_url(self.site.settings["broker_url"]) as client:
            for key in client.scan_iter(match=f"{self.prefix}*", count=1000):
                yield f"key {key!r}", client.dump(key) or b""
                if client.type(key) == b"string":
                    yield f"text {key!r}", client.get(key) or b""
                elif client.type(key) == b"list":
                    yield f"list {key!r}", b"".join(client.lrange(key, 0, -1))
                elif client.type(key) == b"hash":
                    yield f"hash {key!r}", b"".join(client.hvals(key))
        yield "events", repr(list(self.events)).encode("utf-8", "surrogatepass")

    def assert_unseen(self) -> None:
        for what, content in self.everything():
            assert find_secret(content) is None, f"{what} shows the secret: …{around(content)}…"

    def start(self, how: str, plugin: str = "use") -> Any:
        bindings = {"token": ConfigSource(value=f"${NAME}"), "how": ConfigSource(value=how)}
        return start(self.dag, node("use", plugin=plugin, bindings=bindings))


def around(content: bytes) -> str:
    at = content.find((find_secret(content) or "").encode())
    return content[max(at - 200, 0) : at + 100].decode(errors="replace")


def test_what_looks_for_the_secret_finds_it(watched: Watched, tmp_path: Path):
    """Given the secret in a file, the store's directory or the broker, when all is searched, then it is found."""
    spilled = watched.site.directory / "spilled"
    spilled.write_text(f"it is {SECRET}")
    with pytest.raises(AssertionError, match="spilled shows the secret"):
        watched.assert_unseen()
    spilled.unlink()
    with redis.Redis.from_url(watched.site.settings["broker_url"]) as client:
        client.lpush(f"{watched.prefix}spilled", f"x{RANDOM_PART}")
        with pytest.raises(AssertionError, match=r"spilled.*shows the secret"):
            watched.assert_unseen()
        client.delete(f"{watched.prefix}spilled")
    watched.assert_unseen()


SUCCEEDING = ["", "autoretry", "raised-retry", "kill", "exit"]
FAILING = {
    "message": "ValueError",
    "key": "KeyError",
    "cause": "RuntimeError",
    "context": "RuntimeError",
    "group": "ExceptionGroup",
    "note": "ValueError",
    "repr": "Hidden",
    "url": "FileNotFoundError",
    "basic": "ValueError",
    "long": "ValueError",
    "cut": "ValueError",
    "pydantic": "ValidationError",
    "retry": "ValueError",
    "ignore": "Ignore",
    "reject": "Reject",
    "returned": "SecretExposed",
    "file-name": "SecretExposed",
    "emitted": "SecretExposed",
}


@pytest.mark.parametrize("how", [*SUCCEEDING, *FAILING])
def test_a_body_has_its_secret_and_nothing_else_shows_it(watched: Watched, how: str):
    """Given a secret in a worker's environment, when its body ends in any way, then no place shows the value."""
    run = watched.start(how)
    assert run.wait(60) == ("failed" if how in FAILING else "completed"), run.error
    written = watched.dag.settings.files_dir / f"{run.id}.digest"
    assert written.read_text() == digest(SECRET)
    if how in FAILING:
        assert run.error is not None
        assert run.error.type == FAILING[how]
    wait_until(lambda: any(event.get("uuid") == run.tasks()[0].attempt_id for event in watched.events), "its events")
    watched.assert_unseen()


@pytest.mark.parametrize("plugin", ["want_number", "want_choice", "want_settings"])
def test_a_secret_that_does_not_fit_its_parameter_is_named_and_not_shown(watched: Watched, plugin: str):
    run = watched.start("", plugin)
    assert run.wait(60) == "failed"
    assert run.error is not None
    assert run.error.type == "TaskInputError"
    assert "token: " in run.error.message
    watched.assert_unseen()


def test_an_error_says_which_secret_stood_there(watched: Watched):
    run = watched.start("message")
    assert run.wait(60) == "failed"
    assert run.error is not None
    assert run.error.message == f'401 for "<secret ${NAME}>", that is <secret ${NAME}>'
    assert f'ValueError: 401 for "<secret ${NAME}>"' in run.error.traceback
    assert "in misbehave" in run.error.traceback
    wait_until(lambda: "SecretExposed: [DGB507] The body raised ValueError" in watched.site.logs(), "Celery logs it")


def test_before_any_worker_runs_only_the_reference_is_there(tmp_path: Path):
    with open_site(declare_users) as site:
        site.dag.save(Pipeline("saved", nodes=[node("use", bindings={"token": ConfigSource(value=f"${NAME}")})]))
        dump = b"".join(path.read_bytes() for path in site.directory.rglob("runs.sqlite3*"))
        assert f"${NAME}".encode() in dump


# -- what is missing, and where it is looked for


def declare_echo(dag: Dagabaaz) -> None:
    @dag.plugin
    def echo(value: Any = None) -> dict[str, Any]:
        return {"is": type(value).__name__, "length": len(str(value))}


@pytest.fixture
def make(new_dag: Callable[..., Dagabaaz]) -> Callable[..., Dagabaaz]:
    """A Dagabaaz that runs in place, with this resolver."""

    def make(**options: Any) -> Dagabaaz:
        dag = new_dag(task_always_eager=True, **options)
        declare_echo(dag)
        return dag

    return make


def bound(value: Any) -> Any:
    return node("echo", bindings={"value": ConfigSource(value=value)})


def test_a_missing_secret_fails_the_task_once_and_says_what_to_set(make: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv(NAME, raising=False)
    dag = make()
    run = fail(dag, bound(f"${NAME}"))
    assert run.error is not None
    assert (run.error.type, run.error.node) == ("MissingSecret", "echo")
    assert f"The secret ${NAME} could not be had: there is no such secret. Set {NAME} as an env" in run.error.message
    assert run.tasks()[0].attempt == 1
    monkeypatch.setenv(NAME, "found-at-last")
    run.retry()
    assert run.wait(PATIENCE) == "completed"
    assert run.result("echo") == {"is": "str", "length": 13}


def raise_timeout(name: str) -> str:
    raise TimeoutError(f"vault token {SECRET}")


def raise_lookup(name: str) -> str:
    raise KeyError(name)


@pytest.mark.parametrize(
    ("resolver", "what"),
    [
        (lambda name: None, "there is no such secret"),
        ({}.get, "there is no such secret"),
        (raise_lookup, "there is no such secret"),
        (lambda name: "", "its value is empty"),
        (lambda name: b"bytes", "an object of type bytes and not text"),
        (raise_timeout, "the app's resolver raised TimeoutError"),
    ],
)
def test_a_resolver_that_gives_nothing_is_named(make: Any, caplog: pytest.LogCaptureFixture, resolver: Any, what: str):
    caplog.set_level(logging.DEBUG)
    run = fail(make(secrets=resolver), bound("$VAULT_TOKEN"))
    assert run.error is not None
    assert run.error.type == "MissingSecret"
    assert "$VAULT_TOKEN" in run.error.message
    assert what in run.error.message
    assert "Dagabaaz(app, secrets=...)" in run.error.message
    assert find_secret(str(run.error) + run.error.traceback + caplog.text) is None


def test_a_resolver_is_asked_once_for_each_name_and_attempt(make: Any):
    asked: list[str] = []

    def resolve(name: str) -> str:
        asked.append(name)
        return name.lower()

    run = complete(make(secrets=resolve), bound({"a": "$ONE", "b": ["$TWO", "$ONE", "$$x", "plain $ONE"]}))
    assert asked == ["ONE", "TWO"]
    given = {"a": "one", "b": ["two", "one", "$x", "plain $ONE"]}
    assert run.result("echo") == {"is": "dict", "length": len(str(given))}


def test_text_that_only_looks_like_a_reference_is_never_looked_up(make: Any):
    """Given references in what users may send, when a body gets them, then they are text."""
    asked: list[str] = []
    dag = make(secrets=asked.append)

    @dag.plugin
    def produce() -> dict[str, str]:
        return {"value": "$FROM_ARTIFACT"}

    expression = {"value": ExpressionSource(expression="$AN_{config.x}")}
    run = complete(
        dag,
        node("from-input", plugin="echo"),
        node("from-runtime", plugin="echo", bindings={"value": RuntimeSource(default="$FROM_DEFAULT")}),
        node("from-expression", plugin="echo", bindings=expression, config={"x": "$EXPRESSION"}),
        node("produce"),
        node("from-artifact", "produce", plugin="echo"),
        input={"value": "$FROM_INPUT"},
    )
    assert run.status == "completed"
    assert asked == []


def test_a_short_value_may_stand_in_a_result_and_not_in_an_error(make: Any):
    dag = make(secrets={"PORT": "8080"}.get)

    @dag.plugin
    def serve(port: str, how: str = "") -> dict[str, str]:
        if how == "fail":
            raise ValueError(f"port {port} is taken")
        return {"url": f"http://localhost:{port}"}

    port = {"port": ConfigSource(value="$PORT")}
    assert complete(dag, node("serve", bindings=port)).result("serve")["url"].endswith("8080")
    run = fail(dag, node("serve", bindings=port), input={"how": "fail"})
    assert run.error is not None
    assert run.error.message == "port <secret $PORT> is taken"


def test_a_parameter_may_be_a_secret_str(make: Any):
    dag = make(secrets={"TOKEN": "open sesame"}.get)

    @dag.plugin
    def use(token: SecretStr) -> str:
        assert token.get_secret_value() == "open sesame"
        return repr(token)

    run = complete(dag, node("use", bindings={"token": ConfigSource(value="$TOKEN")}))
    assert run.result("use") == "SecretStr('**********')"


def test_celery_gets_the_bodys_own_exception_where_it_shows_no_secret(make: Any, caplog: pytest.LogCaptureFixture):
    dag = make(secrets={"TOKEN": "open sesame"}.get)

    @dag.plugin
    def use(token: str) -> None:
        raise ZeroDivisionError("nothing of it")

    fail(dag, node("use", bindings={"token": ConfigSource(value="$TOKEN")}))
    assert "raised unexpected: ZeroDivisionError('nothing of it')" in caplog.text


def test_a_resolver_must_be_callable():
    with pytest.raises(ConfigurationError, match=r"type dict.*mapping's \.get"):
        Dagabaaz(Celery("x", set_as_current=False), secrets={"A": "b"})  # type: ignore[arg-type]


# -- tasks whose input travels in a message


def test_a_task_that_runs_by_signals_alone_is_refused_a_secret(new_dag: Any):
    dag = new_dag()

    @dag.app.task(shared=False, name="plain")
    def plain(token: str) -> None: ...

    with pytest.raises(PipelineError) as refused:
        start(dag, node("use", plugin="plain", bindings={"token": ConfigSource(value=["$TOKEN"])}))
    assert "names the secret $TOKEN" in str(refused.value)
    assert "travels in a message" in str(refused.value)
    assert "dag.plugin(task)" in str(refused.value)
    assert list(dag.runs()) == []


def test_it_gets_an_escaped_dollar_as_text(new_dag: Any):
    dag = new_dag(task_always_eager=True)

    @dag.app.task(shared=False, name="plain")
    def plain(token: str) -> str:
        return token

    run = complete(dag, node("use", plugin="plain", bindings={"token": ConfigSource(value="$$TOKEN")}))
    assert run.result("use") == "$TOKEN"


def test_a_task_that_lost_its_registration_is_not_sent_with_a_secret(new_dag: Any, tmp_path: Path):
    """Given a stored definition that names a secret for a task without a wrapper, when it starts, then it fails."""
    shared = {"dagabaaz_store_url": f"sqlite:///{tmp_path}/s", "task_always_eager": True}
    dag, other = new_dag(**shared), new_dag(**shared)
    for app in (dag.app, other.app):

        @app.task(name="use", shared=False)
        def use(token: str) -> None:
            raise AssertionError("never called")

    dag.plugin(dag.app.tasks["use"])
    dag.save(Pipeline("p", nodes=[node("use", bindings={"token": ConfigSource(value="$TOKEN")})]))
    stored = dag._runtime.store.database.engine
    with stored.begin() as connection:
        change = """replace(body, '"task_name":"use"', '"task_name":"use","wrapped":false')"""
        connection.exec_driver_sql(f"UPDATE dagabaaz_definition SET body = {change}")

    run = other.start("p")
    assert run.wait(PATIENCE) == "failed"
    assert run.error is not None
    assert run.error.type == "SecretExposed"
    assert "$TOKEN" in run.error.message

"""What bodies, inputs and names can hold at their worst: refused with a reason or kept unchanged, on every database."""

import json
import logging
import math
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
from pydantic import BaseModel, field_serializer
from sqlalchemy import func, make_url, select, text

from dagabaaz_celery.app import Dagabaaz
from dagabaaz_celery.context import PluginContext
from dagabaaz_celery.errors import DagabaazError, PipelineError, RunInputError
from dagabaaz_celery.models import DagNode, EdgeFilter, FilterRule, TaskArtifact
from dagabaaz_celery.pipeline import Pipeline
from dagabaaz_celery.stores.sql.store import SqlStore
from tests import services
from tests.integration.celery_support import complete, fail, make_app, node, start

DATABASES = {"sqlite": None, "postgresql": services.postgres_url, "mariadb": services.mysql_url}


class Shop:
    """An app that runs tasks in place; its plugin ``produce`` returns or raises what a test puts into ``make``."""

    def __init__(self, **settings: Any) -> None:
        self.dag = Dagabaaz(make_app(task_always_eager=True, **settings))
        self.make: Callable[[PluginContext], Any] = lambda context: None

        @self.dag.plugin
        def produce(context: PluginContext) -> Any:
            return self.make(context)

        @self.dag.plugin
        def echo(value: Any = None) -> dict[str, Any]:
            return {"value": value}

        @self.dag.plugin(fan_mode="aggregate")
        def gather(artifacts: list[dict]) -> int:
            return len(artifacts)

    @property
    def store(self) -> SqlStore:
        return self.dag._runtime.store

    def count_artifacts(self) -> int:
        with self.store.read() as connection:
            return connection.execute(select(func.count()).select_from(self.store.tables.artifact)).scalar_one()

    def close(self) -> None:
        self.dag.close()
        self.dag.app.close()


@pytest.fixture(scope="module", params=DATABASES)
def every_shop(request: pytest.FixtureRequest) -> Iterator[Shop]:
    """A shop on each database, with tables of its own: for what reaches the database."""
    find_url = DATABASES[request.param]
    settings = {} if find_url is None else {"dagabaaz_store_url": find_url()}
    prefix = f"h{uuid.uuid4().hex[:8]}_"
    shop = Shop(dagabaaz_table_prefix=prefix, **settings)
    yield shop
    with shop.store.database.write() as connection:
        shop.store.tables.metadata.drop_all(connection)
        connection.execute(text(f"DROP TABLE {prefix}schema_version"))
    shop.close()


@pytest.fixture(scope="module")
def shop() -> Iterator[Shop]:
    """A shop on SQLite, for what is refused before any database sees it."""
    shop = Shop(dagabaaz_max_artifacts=50)
    yield shop
    shop.close()


@pytest.fixture(autouse=True)
def no_logs() -> Iterator[None]:
    """Half a surrogate pair in a log cannot be told between the processes of pytest-xdist."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


# -- artifacts


class Unreadable:
    """Everything that is asked of it raises."""

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(f"do not ask for {name}")

    def __repr__(self) -> str:
        raise RuntimeError("do not look")

    __str__ = __repr__

    def __hash__(self) -> int:
        return 1


class Liar(dict):
    """Tells the encoder other things than who looks."""

    def __init__(self, told: list[tuple[Any, Any]]) -> None:
        super().__init__(honest=1)
        self._told = told

    def items(self) -> Any:
        return self._told


class Sulking(BaseModel):
    value: int = 1

    @field_serializer("value")
    def sulk(self, value: int) -> int:
        raise RuntimeError("not today")


class Endless(Mapping[str, Any]):
    """A mapping whose keys are there and whose values are not."""

    def __getitem__(self, key: str) -> Any:
        raise OverflowError("no value")

    def __iter__(self) -> Iterator[str]:
        yield from map(str, range(10))

    def __len__(self) -> int:
        return 10


def nest(levels: int) -> Any:
    value: Any = {}
    for _ in range(levels):
        value = {"a": value}
    return value


def make_cycle() -> Any:
    value: dict[str, Any] = {}
    value["self"] = [value]
    return value


def yield_forever() -> Iterator[dict[str, int]]:
    number = 0
    while True:
        yield {"number": number}
        number += 1


def yield_and_raise() -> Iterator[dict[str, int]]:
    yield {"number": 1}
    yield {"number": 2}
    raise ZeroDivisionError("half way")


def yield_big() -> Iterator[dict[str, str]]:
    while True:
        yield {"text": "x" * 200_000}


NESTED_LIE: Any = [("a", Liar([("b", nest(100))]))]
REFUSED = {
    "too large": (lambda: {"text": "x" * 300_000}, "LimitExceeded", "(dagabaaz_max_metadata_bytes)"),
    "a hundred megabytes": (lambda: {"text": "x" * 100_000_000}, "LimitExceeded", "100,000,0"),
    "too large in bytes alone": (lambda: {"text": "漢" * 100_000}, "LimitExceeded", "300,0"),
    "too deep": (lambda: nest(65), "LimitExceeded", "64 levels"),
    "deeper than Python goes": (lambda: nest(100_000), "LimitExceeded", "64 levels"),
    "nul": (lambda: {"text": "a\0b"}, "NotJson", "NUL"),
    "nul in a key": (lambda: {"a\0b": 1}, "NotJson", "NUL"),
    "half a surrogate pair": (lambda: {"text": "\ud800"}, "NotJson", "surrogate"),
    "half of one in a key": (lambda: {"\udfff": 1}, "NotJson", "surrogate"),
    "not a number": (lambda: {"x": math.nan}, "NotJson", "nan is not JSON"),
    "infinity": (lambda: -math.inf, "NotJson", "-inf is not JSON"),
    "a number of 5,000 digits": (lambda: {"x": 10**5000}, "NotJson", "too many digits"),
    "a cycle": (make_cycle, "NotJson", "contains itself"),
    "an object": (lambda: {"x": object()}, "NotJson", "an object is not JSON"),
    "an object that raises": (lambda: {"x": Unreadable()}, "NotJson|RuntimeError", ""),
    "a key that raises": (lambda: {Unreadable(): 1}, "NotJson", "the key of type Unreadable"),
    "a long key": (lambda: {"k" * 200_000: math.nan}, "NotJson", 'kkk..."]: nan'),
    "a dict that lies about depth": (lambda: {"x": Liar(NESTED_LIE)}, "LimitExceeded", "64 levels"),
    "a dict that lies about nan": (lambda: {"x": Liar([("x", math.nan)])}, "NotJson", "nan is not JSON"),
    "a mapping that raises": (Endless, "OverflowError", "no value"),
    "a generator that never ends": (yield_forever, "LimitExceeded", "50 artifacts (dagabaaz_max_artifacts)"),
    "a generator that raises": (yield_and_raise, "ZeroDivisionError", "half way"),
    "a model that raises": (Sulking, "PydanticSerializationError", "not today"),
    "metadata that is a list": (lambda: TaskArtifact.model_construct(metadata=[1]), "ResultError", "must be dict"),
    "a name that is a number": (lambda: TaskArtifact.model_construct(file_name=5), "ResultError", "must be str"),
    "a size that is true": (lambda: TaskArtifact.model_construct(file_size=True), "ResultError", "must be int"),
    "a size that is a fraction": (lambda: TaskArtifact.model_construct(file_size=1.5), "ResultError", "must be int"),
    "a name that leads out": (lambda: TaskArtifact(file_name="../../etc/passwd"), "ResultError", "lead whoever"),
    "a name that leads out by a folder": (lambda: TaskArtifact(file_name="a/../../b"), "ResultError", "lead whoever"),
    "a name that begins at the root": (lambda: TaskArtifact(file_name="/etc/passwd"), "ResultError", "lead whoever"),
    "a name that is a folder": (lambda: TaskArtifact(file_name=".."), "ResultError", "lead whoever"),
    "a path that is not there": (lambda: TaskArtifact(file_path="/nowhere/at/all"), "MissingFile", "/nowhere/at/all"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_hostile_result_fails_its_run_with_the_reason_and_leaves_nothing(shop: Shop, what: str):
    """Given a body with a hostile result, when it runs, then its run fails, and a neighbour completes."""
    make, error, part = REFUSED[what]
    stored = shop.count_artifacts()
    shop.make = lambda context: make()
    run = fail(shop.dag, node("produce"))
    assert run.error is not None
    assert run.error.type in error.split("|")
    assert any(piece in run.error.message for piece in part.split("|")), run.error.message
    assert len(run.error.message) <= 4_000
    assert run.error.node == "produce"
    assert run.artifacts("produce") == []
    shop.make = lambda context: [make()] if what != "a hundred megabytes" else "fine"  # inside a list too
    if what.startswith("a generator"):
        shop.make = lambda context: context.emit({"kept": False}) or make()
    if what != "a hundred megabytes":
        fail(shop.dag, node("produce"))
    assert shop.count_artifacts() == stored
    complete(shop.dag, node("echo"), input={"value": 1})


def test_what_is_emitted_before_a_bad_end_is_not_kept(shop: Shop):
    stored = shop.count_artifacts()

    def emit_then_fail(context: PluginContext) -> Any:
        context.emit({"number": 1})
        return {"x": math.nan}

    shop.make = emit_then_fail
    fail(shop.dag, node("produce"))
    assert shop.count_artifacts() == stored


KEPT = {
    "emoji": "👩‍👩‍👧‍👦 🏳️‍🌈",
    "right to left": "\u202eexe.gpj\u202c שלום",
    "accents": "e\u0301 \u00e9",
    "no characters": "\ufffe\uffff\U0010ffff",
    "line ends": "\r\n\u2028\u2029\x85\x1f\x7f",
    "quotes": "'; DROP TABLE dagabaaz_run; -- \" ` \\ \\' %s %(x)s :x ? {x}",
    "escapes": "\\u0000 \\x00 \\ud800",
    "huge number": 10**4000,
    "small number": 5e-324,
    "large number": sys.float_info.max,
    "deep": nest(60),
    "empty keys": {"": {"": None}},
    "a value as long as may be": "x" * 262_000,
    "keys of Object.prototype": {"__proto__": 1, "constructor": 2},
}


@pytest.mark.parametrize("what", KEPT)
def test_strange_values_come_back_as_they_were(every_shop: Shop, what: str):
    value = KEPT[what]
    every_shop.make = lambda context: {"value": value}
    run = complete(every_shop.dag, node("produce"), node("echo", "produce"), input={"other": value})
    assert run.result("produce") == {"value": value}
    assert run.result("echo") == [{"value": value}]
    assert run.input == {"other": value}


@pytest.mark.parametrize("operator", ["gt", "lte", "eq", "contains", "in", "starts_with"])
@pytest.mark.parametrize("what", ["huge number", "quotes", "deep", "a value as long as may be"])
def test_filters_stand_strange_values(shop: Shop, what: str, operator: str):
    value: Any = ["1", "x"] if operator == "in" else 1.5
    rule = FilterRule(field="value", operator=operator, value=value)
    shop.make = lambda context: {"value": KEPT[what]}
    gather = node("gather", "produce", edge_filters={"produce": EdgeFilter(rules=[rule])})
    complete(shop.dag, node("produce"), gather)


def test_a_dict_that_tells_a_key_twice_is_kept_as_what_json_makes_of_it(shop: Shop):
    shop.make = lambda context: Liar([("a", 1), ("a", 2)])
    run = complete(shop.dag, node("produce"))
    assert run.result("produce") in ({"a": 2}, {"honest": 1})
    with shop.store.read() as connection:
        stored = shop.store.tables.artifact
        kept = connection.execute(select(stored.c.metadata).where(stored.c.run_id == run.id)).scalar_one()
    assert kept.count('"a"') <= 1


def test_a_body_that_yields_without_end_is_stopped_by_the_sum_too(new_dag: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("dagabaaz_celery.worker.results.MAX_RESULT_LENGTH", 1_000_000)
    dag = new_dag(task_always_eager=True)

    @dag.plugin
    def produce() -> Any:
        return yield_big()

    run = fail(dag, node("produce"))
    assert run.error is not None
    assert run.error.type == "LimitExceeded"
    assert "1,000,055 characters of JSON, and the limit is 1,000,000" in run.error.message


# -- exceptions


class OddText(Exception):
    def __str__(self) -> str:
        return 5  # type: ignore[return-value]  # noqa: PLE0307


class NoText(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no")

    __repr__ = __str__


EXCEPTIONS: dict[str, tuple[Callable[[], BaseException], str]] = {
    "nul": (lambda: ValueError("a\0b"), "a\0b"),
    "half a surrogate pair": (lambda: ValueError("a\ud800b"), "a\ud800b"),
    "ten megabytes": (lambda: ValueError("x" * 10_000_000), "x" * 4_000),
    "quotes": (lambda: ValueError("'; DROP TABLE dagabaaz_run; -- %s %(x)s \\"), "'; DROP TABLE dagabaaz_run"),
    "no text": (NoText, "its __str__ raised RuntimeError"),
    "odd text": (OddText, "its __str__ raised TypeError"),
    "a note": (lambda: add_note(ValueError("x")), "x"),
    "a long name": (lambda: type("E" * 100_000, (Exception,), {})("x"), "x"),
    "a name with quotes": (lambda: type("E'\"; \u202e", (Exception,), {})("x"), "x"),
    "a long chain": (lambda: chain(3_000), "link"),
    "a deep group": (lambda: group(200), "group"),
}


def add_note(error: Exception) -> Exception:
    error.__notes__ = [5, "a\0b\ud800", NoText()]  # type: ignore[list-item]
    return error


def chain(links: int) -> Exception:
    error = ValueError("link")
    for _ in range(links):
        outer = ValueError("link")
        outer.__cause__ = error
        error = outer
    return error


def group(levels: int) -> BaseException:
    error: Exception = ValueError("x")
    for _ in range(levels):
        error = ExceptionGroup("group", [error])
    return error


@pytest.mark.parametrize("what", EXCEPTIONS)
def test_a_hostile_exception_fails_its_run_like_any_other(every_shop: Shop, what: str):
    """Given a body that raises what no log was made for, when it runs, then its run fails and says so."""
    make, message = EXCEPTIONS[what]

    def leave(context: PluginContext) -> None:
        raise make()

    every_shop.make = leave
    run = fail(every_shop.dag, node("produce"))
    assert run.error is not None
    assert message in run.error.message
    assert len(run.error.type) <= 200
    assert len(run.error.message) <= 4_000
    assert len(run.error.traceback) <= 20_100
    assert run.tasks()[0].error is not None
    complete(every_shop.dag, node("echo"), input={"value": 1})


# -- input


@pytest.mark.parametrize(
    "what", [name for name in REFUSED if "name" not in name and "size" not in name and "path" not in name]
)
def test_hostile_input_is_refused_and_starts_nothing(shop: Shop, what: str):
    before = sum(1 for _ in shop.dag.runs())
    value = REFUSED[what][0]()
    if what == "too large" or what.startswith("a hundred") or what.endswith("alone"):
        value = {"text": "x" * 1_048_600}
    with pytest.raises((DagabaazError, RuntimeError)) as refused:
        start(shop.dag, node("echo"), input={"value": value})
    assert len(str(refused.value)) < 20_000
    assert sum(1 for _ in shop.dag.runs()) == before


def test_input_may_be_as_large_as_its_limit_and_one_byte_more_is_refused(every_shop: Shop):
    every_shop.make = lambda context: "small"
    room = 1_048_576 - len('{"value":""}')
    complete(every_shop.dag, node("produce"), input={"value": "x" * room})
    with pytest.raises(RunInputError) as refused:
        start(every_shop.dag, node("produce"), input={"value": "x" * (room + 1)})
    assert "input is 1,048,577 bytes of JSON and the limit is 1,048,576 (dagabaaz_max_input_bytes)" in str(
        refused.value
    )


# -- the other bounds, each to the last one that passes


@pytest.fixture
def bounded(new_dag: Any) -> Dagabaaz:
    """An app with small bounds."""
    dag = new_dag(
        task_always_eager=True, dagabaaz_max_metadata_bytes=100, dagabaaz_max_artifacts=3, dagabaaz_max_fan_out=2
    )

    @dag.plugin
    def count(n: int) -> list[int]:
        return list(range(n))

    @dag.plugin
    def write(length: int) -> dict[str, str]:
        return {"text": "x" * (length - len('{"text":""}'))}

    @dag.plugin
    def echo(value: int) -> int:
        return value

    return dag


def assert_limit(run: Any, *parts: str) -> None:
    assert run.error is not None
    assert run.error.type == "LimitExceeded"
    assert all(part in run.error.message for part in parts), run.error.message


def test_metadata_is_bounded(bounded: Dagabaaz):
    complete(bounded, node("write"), input={"length": 100})
    run = fail(bounded, node("write"), input={"length": 101})
    assert_limit(run, "101 bytes", "100 (dagabaaz_max_metadata_bytes)")


def test_artifacts_of_a_task_are_bounded(bounded: Dagabaaz):
    complete(bounded, node("count"), input={"n": 3})
    assert_limit(fail(bounded, node("count"), input={"n": 4}), "more than 3 artifacts (dagabaaz_max_artifacts)")


def test_fan_out_is_bounded_by_the_app_and_by_the_node(bounded: Dagabaaz):
    complete(bounded, node("count"), node("echo", "count"), input={"n": 2})
    run = fail(bounded, node("count"), node("echo", "count"), input={"n": 3})
    assert_limit(run, "would get 3 tasks and may have 2", "dagabaaz_max_fan_out")
    complete(bounded, node("count"), node("echo", "count", max_fan_out=3), input={"n": 3})
    run = fail(bounded, node("count"), node("echo", "count", max_fan_out=1), input={"n": 2})
    assert_limit(run, "would get 2 tasks and may have 1", "Raise max_fan_out of the node")


# -- names


HOSTILE_TEXTS = [
    "'; DROP TABLE dagabaaz_run; --",
    '" OR 1=1 --',
    "100% _done_ \\",
    "`x` [y] $$z$$ %s %(a)s :b ?",
    "👾 שלום \u202e",
]
ILLEGAL_TEXTS = ["a\0b", "a\ud800b"]


@pytest.mark.parametrize("name", HOSTILE_TEXTS)
def test_hostile_keys_are_kept_as_they_are(every_shop: Shop, name: str):
    run = complete(every_shop.dag, node("echo"), key=name)
    assert start(every_shop.dag, node("echo"), key=name) == run
    assert run.snapshot().key == name
    others = [complete(every_shop.dag, node("echo"), key=other) for other in (f"{name}x", f"x{name}")]
    assert run not in others


def test_keys_that_only_a_pattern_or_a_collation_would_match_are_different(every_shop: Shop):
    keys = ["a_b", "axb", "a%b", "A_B", "a_b\u0301", "\u00e1", "a\u0301"]
    assert len({complete(every_shop.dag, node("echo"), key=key) for key in keys}) == len(keys)


@pytest.mark.parametrize("name", [*HOSTILE_TEXTS, *ILLEGAL_TEXTS])
def test_hostile_pipeline_names_and_slugs_are_refused_before_a_run(shop: Shop, name: str):
    with pytest.raises(PipelineError, match="pipeline name"):
        start(shop.dag, node("echo"), name=name)
    with pytest.raises(PipelineError, match="slug"):
        start(shop.dag, DagNode(slug=name, plugin="echo"))
    with pytest.raises(PipelineError, match="no plugin is called"):
        start(shop.dag, DagNode(slug="a", plugin=name))
    for refuse in (shop.dag.register, shop.dag.save):
        with pytest.raises(PipelineError, match="pipeline name"):
            refuse(Pipeline(name, nodes=[node("echo")]))


@pytest.mark.parametrize("name", [*HOSTILE_TEXTS, *ILLEGAL_TEXTS])
def test_hostile_names_find_nothing(every_shop: Shop, name: str):
    complete(every_shop.dag, node("echo"))
    assert list(every_shop.dag.runs(pipeline=name)) == []
    with pytest.raises(LookupError):
        every_shop.dag.start(name)
    with pytest.raises(LookupError):
        every_shop.dag.run(name)
    assert list(every_shop.dag.runs(limit=1)) != []


def test_a_pattern_is_no_name(every_shop: Shop):
    complete(every_shop.dag, node("echo"), name="work")
    assert list(every_shop.dag.runs(pipeline="wor_")) == []
    assert list(every_shop.dag.runs(pipeline="%")) == []


@pytest.mark.parametrize("name", HOSTILE_TEXTS)
def test_a_plugin_and_a_queue_may_have_hostile_names(every_shop: Shop, name: str):
    """Given a plugin, a queue and an artifact under such a name, when they are used, then they are what they are."""

    def odd(context: PluginContext) -> TaskArtifact:
        path = context.file(name.replace("/", ""))
        path.write_text("x")
        return TaskArtifact(file_path=str(path))

    every_shop.dag.plugin(every_shop.dag.app.task(name=f"task-{name}", shared=False)(odd), name=name)
    run = complete(every_shop.dag, DagNode(slug="odd", plugin=name, options={"queue": name}))
    assert run.snapshot().nodes[0].plugin == name
    [artifact] = run.artifacts("odd")
    assert artifact.file_name == name.replace("/", "")


@pytest.mark.parametrize("name", ILLEGAL_TEXTS)
def test_options_that_no_database_keeps_are_refused(shop: Shop, name: str):
    with pytest.raises(PipelineError, match="options"):
        start(shop.dag, node("echo", options={"queue": name}))
    with pytest.raises(RunInputError, match="options"):
        start(shop.dag, node("echo"), options={"queue": name})


def test_a_schema_may_have_any_name():
    """Given a PostgreSQL schema with quotes in its name, when runs are kept there, then nothing else is touched."""
    schema = f'it\'s "odd"; DROP TABLE x -- {uuid.uuid4().hex[:6]}'
    url = services.postgres_url()
    plain = SqlStore(url)
    quoted = plain.database.engine.dialect.identifier_preparer.quote_schema(schema)
    with plain.database.write() as connection:
        connection.exec_driver_sql(f"CREATE SCHEMA {quoted}".replace("%", "%%"))
    shop = Shop(dagabaaz_store_url=make_url(url), dagabaaz_schema=schema)
    try:
        complete(shop.dag, node("echo"), input={"value": 1})
    finally:
        shop.close()
        with plain.database.write() as connection:
            connection.exec_driver_sql(f"DROP SCHEMA {quoted} CASCADE".replace("%", "%%"))
        plain.close()


# -- files


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "..", ".", "", "a/b", "a/../../x", "a\0b", "x/"])
def test_a_file_name_cannot_leave_the_scratch_directory(shop: Shop, name: str):
    shop.make = lambda context: str(context.file(name))
    run = fail(shop.dag, node("produce"))
    assert run.error is not None
    assert run.error.type == "ValueError"
    assert "leads out of the scratch directory" in run.error.message


def test_nor_can_a_link_that_stands_there(shop: Shop):
    def link(context: PluginContext) -> str:
        (context.scratch / "passwd").symlink_to("/etc/passwd")
        return str(context.file("passwd"))

    shop.make = link
    run = fail(shop.dag, node("produce"))
    assert run.error is not None
    assert "leads out of the scratch directory" in run.error.message


def test_the_scratch_directory_is_made_of_ids(shop: Shop):
    shop.make = lambda context: str(context.file("x").relative_to(shop.dag.settings.files_dir))
    run = complete(shop.dag, node("produce"))
    assert run.result("produce") == f"{run.id}/produce/{run.tasks()[0].id}-1/x"


@pytest.mark.parametrize("numbers", [(-1, 3), (1, 2**63), ("1", 2), (None, 1), (0.5, 1), (math.nan, 1)])
def test_progress_takes_whole_numbers(shop: Shop, numbers: Any):
    shop.make = lambda context: context.progress(*numbers)
    run = fail(shop.dag, node("produce"))
    assert run.error is not None
    assert run.error.type == "ValueError"
    assert "two whole numbers" in run.error.message
    shop.make = lambda context: context.progress(0, 2**63 - 1)
    assert complete(shop.dag, node("produce")).tasks()[0].progress == (0, 2**63 - 1)


def test_text_in_the_store_is_json_that_any_parser_reads(every_shop: Shop):
    """Given all of the above, when the store's JSON is read strictly, then it is JSON."""

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    tables = every_shop.store.tables
    with every_shop.store.read() as connection:
        for column in (tables.artifact.c.metadata, tables.run.c.input, tables.run.c.error, tables.task.c.error):
            for value in connection.execute(select(column).where(column.is_not(None))).scalars():
                json.loads(value, parse_constant=refuse)

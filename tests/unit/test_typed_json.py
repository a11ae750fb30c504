"""Values of declared types go through JSON and come back as they were, or are refused."""

import dataclasses
import enum
import json
import math
import os
import subprocess
import sys
import typing
from collections import Counter
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Annotated, Any, Literal, NamedTuple
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field, PydanticUserError
from typing_extensions import TypedDict

from dagabaaz_celery.json_door import check_json
from dagabaaz_celery.typed_json import TypedJson


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Point(NamedTuple):
    x: int
    y: int


class Label(TypedDict):
    text: str
    tags: frozenset[str]


class Item(BaseModel):
    name: str
    price: Decimal
    tags: set[str] = set()


@dataclasses.dataclass(frozen=True)
class Order:
    number: UUID
    at: datetime
    items: tuple[Item, ...]
    weights: dict[int, float]
    note: bytes = b""


class Special(Item):
    discount: int = 0


# PostgreSQL and the door refuse NUL, and JSON has no half surrogates.
texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=20)
decimals = st.decimals(allow_nan=False, allow_infinity=False)
datetimes = st.datetimes(timezones=st.sampled_from([None, UTC]))
items = st.builds(Item, name=texts, price=decimals, tags=st.sets(texts, max_size=4))
orders = st.builds(
    Order,
    number=st.uuids(),
    at=datetimes,
    items=st.lists(items, max_size=3).map(tuple),
    weights=st.dictionaries(st.integers(), st.floats(allow_nan=False, allow_infinity=False), max_size=3),
    note=st.binary(max_size=20),
)

#: A type, and its values.
TYPES: list[tuple[Any, st.SearchStrategy[Any]]] = [
    (int, st.integers()),
    (str, texts),
    (bool, st.booleans()),
    (float, st.floats()),
    (bytes, st.binary()),
    (Decimal, decimals),
    (datetime, datetimes),
    (date, st.dates()),
    (time, st.times()),
    (timedelta, st.timedeltas(timedelta(days=-10_000), timedelta(days=10_000))),
    (UUID, st.uuids()),
    (Colour, st.sampled_from(Colour)),
    (Point, st.builds(Point, st.integers(), st.integers())),
    (Label, st.fixed_dictionaries({"text": texts, "tags": st.frozensets(texts, max_size=4)})),
    (Item, items),
    (Order, orders),
    (Counter[str], st.dictionaries(texts, st.integers(1, 9), max_size=4).map(Counter)),
    (Literal["a", 1], st.sampled_from(["a", 1])),
    (int | str, st.integers() | texts),
    (datetime | str, datetimes | st.sampled_from(["", "soon"])),
]


def nest(hint: Any, values: st.SearchStrategy[Any]) -> st.SearchStrategy[tuple[Any, Any]]:
    """The type itself, and types made of it, each with a value."""
    # Two NaN in a set are one or two; no way to tell what came back.
    hashable = hint not in (Label, Item, Order, Counter[str], float)
    shapes = [
        values.map(lambda value: (hint, value)),
        st.lists(values, max_size=4).map(lambda value: (list[hint], value)),
        st.tuples(values, st.booleans()).map(lambda value: (tuple[hint, bool], value)),
        st.dictionaries(texts, st.lists(values, max_size=2), max_size=3).map(lambda v: (dict[str, list[hint]], v)),
        (st.none() | values).map(lambda value: (hint | None, value)),
    ]
    if hashable:
        shapes += [
            st.sets(values, max_size=4).map(lambda value: (set[hint], value)),
            st.frozensets(st.tuples(values, st.integers()), max_size=3).map(
                lambda value: (frozenset[tuple[hint, int]], value)
            ),
        ]
    return st.one_of(shapes)


def is_same(one: Any, other: Any) -> bool:
    """Equal, of one type, NaN being itself; parts are compared by what shows of them."""
    return type(one) is type(other) and (one == other or repr(one) == repr(other))


@given(st.sampled_from(TYPES).flatmap(lambda pair: nest(*pair)))
def test_a_value_of_a_declared_type_comes_back_as_it_was(pair):
    hint, value = pair
    carrier = TypedJson(hint)
    data = carrier.encode(value)
    text = check_json(data, "value")
    back = carrier.decode(json.loads(text))
    assert is_same(back, value), (hint, text)


@dataclasses.dataclass
class Box:
    sets: dict[str, list[set[str]]]
    item: Item


def test_the_same_value_is_the_same_json_in_every_process():
    def encode(seed: str) -> str:
        done = subprocess.run(
            [sys.executable, __file__], env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, check=True
        )
        return done.stdout.decode()

    assert encode("1") == encode("2") == encode("3")


def print_sets() -> None:
    words = {f"word {number}" for number in range(20)}
    box = Box({"a": [words, set()]}, Item(name="a", price=Decimal(1), tags=words))
    nested = (box, frozenset({frozenset(words), frozenset({"b"})}))
    sys.stdout.write(json.dumps(TypedJson(tuple[Box, frozenset[frozenset[str]]]).encode(nested)))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda values: st.lists(values, max_size=3) | st.dictionaries(texts, values, max_size=3),
    max_leaves=10,
)


@given(json_values)
def test_json_passes_where_nothing_is_declared(value):
    carrier = TypedJson(Any)
    assert is_same(carrier.decode(json.loads(json.dumps(carrier.encode(value)))), value)


@pytest.mark.parametrize(
    "value",
    [
        {1},
        (1, 2),
        b"x",
        {1: 2},
        [Decimal(1)],
        {"at": datetime(2026, 1, 1, tzinfo=UTC)},
        object(),
        math.nan,
        [{1}],
        Item(name="a", price=1),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_not_json_is_refused_where_nothing_is_declared(value):
    with pytest.raises(ValueError, match=r"would come back changed|nknown type|not valid"):
        TypedJson(Any).encode(value)


@pytest.mark.parametrize(
    ("hint", "value", "reason"),
    [
        (int, "1", "should be a valid integer"),
        (set[str], ["a"], "should be a valid set"),
        (set[str], {1}, "should be a valid string"),
        (list[int], (1,), "should be a valid list"),
        (Item, {"name": "a", "price": Decimal(1)}, "Item"),
        (Annotated[int, Field(gt=0)], -1, "greater than 0"),
        (dict[tuple[int, int], int], {(1, 2): 3}, "valid array"),
        (Item, Special(name="a", price=1, discount=5), "would come back changed"),
        (typing.Sequence[int], (1, 2), "would come back changed: \\(1, 2\\) as \\[1, 2\\]"),
        (list[Any], [{1}], "would come back changed"),
    ],
)
def test_a_value_that_does_not_fit_its_type_is_refused(hint, value, reason):
    with pytest.raises(ValueError, match=reason):
        TypedJson(hint).encode(value)


def test_nothing_passes_as_any_type():
    assert TypedJson(set[str]).encode(None) is None
    assert TypedJson(set[str]).decode(None) is None


def test_stored_data_that_does_not_fit_is_refused_with_its_place():
    with pytest.raises(ValueError, match=r"tags\.0: Input should be a valid string"):
        TypedJson(Item).decode({"name": "a", "price": "1", "tags": [1]})


def test_a_type_that_pydantic_does_not_know_is_refused():
    with pytest.raises(PydanticUserError):
        TypedJson(type("Unknown", (), {}))


def test_equal_values_of_a_class_that_cannot_compare_pass():
    @dataclasses.dataclass(eq=False)
    class Odd:
        numbers: list[float]

    carrier = TypedJson(Odd)
    assert carrier.decode(carrier.encode(Odd([1.5, math.nan]))).numbers[0] == 1.5


@pytest.mark.parametrize(
    ("hint", "shown"), [(set[str], "set[str]"), (Item, "Item"), (int | None, "int | None"), (Any, "Any")]
)
def test_a_type_is_shown_as_it_is_written(hint, shown):
    assert str(TypedJson(hint)) == shown


if __name__ == "__main__":
    print_sets()

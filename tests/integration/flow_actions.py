"""Flows that tests run on worker processes; actions write what they do to a journal, a file that the input names."""

import asyncio
import os
import signal
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import UUID
from weakref import WeakKeyDictionary

import networkx as nx
from pydantic import BaseModel

from dagabaaz_celery.app import Dagabaaz
from dagabaaz_celery.flow import DagaAction, DagaFlow
from tests.integration.shop_plugins import write_line

#: The flows of each Dagabaaz that declares them.
FLOWS: "WeakKeyDictionary[Dagabaaz, Any]" = WeakKeyDictionary()


# The first example of the seed ---------------------------------------------------------------------------------------


async def root(predecessors_results: list[int]):
    return sum(predecessors_results) + 1


async def layer1_f1(predecessors_results: list[int]):
    return sum(predecessors_results) + 2


async def layer1_f2(predecessors_results: list[int]):
    return sum(predecessors_results) + 3


async def layer2_f1(predecessors_results: list[int]):
    return sum(predecessors_results) + 4


async def layer2_f2(predecessors_results: list[int]):
    return sum(predecessors_results) + 5


def make_sums() -> Any:
    graph = nx.DiGraph()
    graph.add_edges_from(
        [
            (root, layer1_f1),
            (root, layer1_f2),
            (layer1_f1, layer2_f1),
            (layer1_f1, layer2_f2),
            (layer1_f2, layer2_f2),
        ]
    )
    return graph


# The second, as it is printed: actions that do nothing ---------------------------------------------------------------


@DagaAction[set[str], set[str]]
async def empty_root(predecessors_results: list[set[str]]):
    pass


@empty_root.register_function_as_rollback
@DagaAction[set[str], set[str]]
async def empty_root_rollback(predecessors_results: list[set[str]]):
    pass


@DagaAction[set[str], set[str]]
async def empty_layer(predecessors_results: list[set[str]]):
    pass


@empty_layer.register_function_as_rollback
@DagaAction[set[str], set[str]]
async def empty_layer_rollback(predecessors_results: list[set[str]]):
    pass


# Values that JSON lacks ----------------------------------------------------------------------------------------------


class Item(BaseModel):
    name: str
    price: Decimal


@dataclass(frozen=True)
class Order:
    number: UUID
    at: datetime
    items: tuple[Item, ...]
    tags: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Invoice:
    order: Order
    total: Decimal
    by_tag: dict[str, set[UUID]] = field(default_factory=dict)


@DagaAction[Order, Order]
async def check_order(predecessors_results: list[Order]) -> Order:
    (order,) = predecessors_results
    assert type(order) is Order
    return order


class WriteInvoice(DagaAction[Order, Invoice]):
    """Adds up."""

    async def __call__(self, predecessors_results: list[Order]) -> Invoice:
        (order,) = predecessors_results
        total = sum((item.price for item in order.items), Decimal(0))
        return Invoice(order, total, {tag: {order.number} for tag in order.tags})


write_invoice = WriteInvoice()


async def count_items(predecessors_results: list[Order]) -> int:
    return len(predecessors_results[0].items)


async def join(predecessors_results: list[Any]) -> tuple[Invoice, int]:
    invoice, count = predecessors_results
    return invoice, count


# Booking: what is undone, and how it fails ---------------------------------------------------------------------------


class NoRoom(Exception):
    """What a hotel says."""


class Trip(BaseModel):
    """What the actions of a booking are told: where they write, and which of them misbehave, in which way."""

    journal: str
    misbehave: dict[str, str] = {}
    done: frozenset[str] = frozenset()


async def act(name: str, received: list[Trip]) -> Trip:
    """Write that an action began, misbehave, write that it ended; give on what all predecessors did, and this."""
    trip = received[0]
    write_line(trip.journal, "do", name)
    await misbehave(trip, name)
    write_line(trip.journal, "done", name)
    return trip.model_copy(update={"done": frozenset({name}).union(*(one.done for one in received))})


async def undo(name: str, received: list[Trip]) -> None:
    trip = received[0]
    write_line(trip.journal, "undo", name, ",".join("+".join(sorted(one.done)) or "-" for one in received))
    await misbehave(trip, f"undo {name}")
    write_line(trip.journal, "undone", name)


async def misbehave(trip: Trip, name: str) -> None:
    match trip.misbehave.get(name):
        case "raise":
            raise NoRoom(f"{name} has no room", 0)
        case "raise after car":
            while "do car\n" not in Path(trip.journal).read_text():
                await asyncio.sleep(0.01)
            raise NoRoom(f"{name} has no room", 0)
        case "raise hidden":

            class Hidden(Exception): ...

            raise Hidden(f"{name} fails")
        case "wait" | "wait and raise" as how:
            while not Path(f"{trip.journal}.go").exists():
                await asyncio.sleep(0.01)
            if how == "wait and raise":
                raise NoRoom(f"{name} has no room", 1)
        case "die once" if not Path(f"{trip.journal}.died").exists():
            Path(f"{trip.journal}.died").touch()
            os.kill(os.getpid(), signal.SIGKILL)


@DagaAction[Trip, Trip]
async def flight(predecessors_results: list[Trip]) -> Trip:
    return await act("flight", predecessors_results)


@flight.register_function_as_rollback
@DagaAction[Trip, None]
async def cancel_flight(predecessors_results: list[Trip]) -> None:
    await undo("flight", predecessors_results)


class Hotel(DagaAction[Trip, Trip]):
    async def __call__(self, predecessors_results: list[Trip]) -> Trip:
        return await act("hotel", predecessors_results)


@Hotel.register_class_as_rollback
class CancelHotel(DagaAction[Trip, None]):
    async def __call__(self, predecessors_results: list[Trip]) -> None:
        await undo("hotel", predecessors_results)


hotel = Hotel()


@DagaAction[Trip, Trip]
async def car(predecessors_results: list[Trip]) -> Trip:
    return await act("car", predecessors_results)


@car.register_function_as_rollback
async def cancel_car(predecessors_results: list[Trip]) -> None:
    await undo("car", predecessors_results)


async def mail(predecessors_results: list[Trip]) -> Trip:
    """Has no rollback."""
    return await act("mail", predecessors_results)


@DagaAction[Trip, Trip]
async def pay(predecessors_results: list[Trip]) -> Trip:
    return await act("pay", predecessors_results)


@pay.register_function_as_rollback
async def pay_back(predecessors_results: list[Trip]) -> None:
    await undo("pay", predecessors_results)


# Results that do not fit ---------------------------------------------------------------------------------------------


@DagaAction[str, set[str]]
async def misfit(predecessors_results: list[str]) -> Any:
    return {"list": ["a"], "number": 1, "set": {"a"}}[predecessors_results[0]]


async def undeclared(predecessors_results):
    return {"set": {"a"}, "tuple": (1, 2), "json": {"a": [1, None]}}[predecessors_results[0]]


async def impatient(predecessors_results: list[int]) -> list[int]:
    """Waits for another run in a worker."""
    (only,) = FLOWS.values()
    return only.sums.run(predecessors_results[0])


def path(*actions: Any) -> Any:
    return nx.path_graph(actions, nx.DiGraph)


def declare(dag: Dagabaaz) -> None:
    """Make every flow of this module."""
    FLOWS[dag] = SimpleNamespace(
        sums=DagaFlow(make_sums(), dag),
        empty=DagaFlow(path(empty_root, empty_layer), dag),
        invoice=DagaFlow(
            nx.DiGraph(
                [(check_order, write_invoice), (check_order, count_items), (write_invoice, join), (count_items, join)]
            ),
            dag,
            name="invoice",
        ),
        booking=DagaFlow(
            nx.DiGraph([(flight, hotel), (flight, car), (hotel, mail), (hotel, pay), (car, pay)]), dag, name="booking"
        ),
        misfit=DagaFlow(path(misfit), dag),
        undeclared=DagaFlow(path(undeclared), dag),
        impatient=DagaFlow(path(impatient), dag),
    )


def flows(dag: Dagabaaz) -> Any:
    """The flows that a Dagabaaz declared."""
    return FLOWS[dag]

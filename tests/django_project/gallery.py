"""Pipelines that the project's pages show: of pictures that are scanned, looked at one by one, and put in an album."""

import threading
from datetime import date
from enum import Enum
from typing import Annotated, Any, Literal

from pydantic import Field

from dagabaaz_celery.contrib.django import dag
from dagabaaz_celery.models import DagNode, RuntimeSource, TaskArtifact
from dagabaaz_celery.pipeline import Pipeline

#: What the pictures that are held back wait for.
gate = threading.Event()


class Format(Enum):
    """What a picture is saved as."""

    JPEG = "jpeg"
    PNG = "png"


@dag.plugin
def scan(count: int = 3, hold_from: int = 10_000, bad: tuple[int, ...] = ()) -> list[dict[str, Any]]:
    """So many pictures; some are bad, and from one on they are held back."""
    return [{"n": n, "bad": n in bad, "held": n >= hold_from} for n in range(count)]


@dag.plugin
def resize(n: int, bad: bool = False, held: bool = False) -> dict[str, Any]:
    """Make a picture smaller."""
    if held:
        assert gate.wait(60)
    if bad:
        raise ValueError(f"picture {n} is no <b>JPEG</b>")
    return {"width": 800}


@dag.plugin
def read_date(n: int) -> dict[str, Any]:
    """When it was taken."""
    return {"taken": f"2026-05-{n % 28 + 1:02}"}


@dag.plugin(fan_mode="aggregate")
def make_album(artifacts: list[TaskArtifact]) -> dict[str, Any]:
    """Put all in one."""
    return {"pictures": len(artifacts)}


@dag.plugin
def put_away(result: Any = None) -> None:
    """Undo an album."""


@dag.plugin
def announce(pictures: int) -> str:
    """Tell everybody."""
    return f"{pictures} new pictures"


GALLERY = Pipeline(
    "gallery",
    nodes=[
        DagNode(slug="scan", plugin="scan", name="Scan the folder"),
        DagNode(slug="resize", plugin="resize", depends_on=["scan"], name="Make smaller"),
        DagNode(slug="date", plugin="read_date", depends_on=["scan"], name="Read the date"),
        DagNode(
            slug="album", plugin="make_album", depends_on=["resize", "date"], fan_mode="aggregate", rollback="put_away"
        ),
        DagNode(slug="announce", plugin="announce", depends_on=["album"]),
    ],
    description="Pictures of a folder, as an album",
)
dag.register(GALLERY)
dag.register(
    Pipeline(
        "wide",
        nodes=[
            DagNode(slug="scan", plugin="scan", name="Scan the archive"),
            DagNode(slug="resize", plugin="resize", depends_on=["scan"], name="Make smaller"),
            DagNode(slug="album", plugin="make_album", depends_on=["resize"], fan_mode="aggregate"),
        ],
    )
)


@dag.plugin
def print_poster(
    title: Annotated[str, Field(description="Above the picture", max_length=20)],
    copies: Annotated[int, Field(ge=1, le=100)],
    scale: float = 1.5,
    glossy: bool = True,
    format: Format = Format.PNG,
    paper: Literal["a4", "a3"] | None = None,
    day: date | None = None,
    colours: list[str] | None = None,
    extra: Any = None,
    source: str = "",
) -> dict[str, Any]:
    """Print a poster; gives back what it got."""
    return {
        "title": title,
        "copies": copies,
        "scale": scale,
        "glossy": glossy,
        "format": format.value,
        "paper": paper,
        "day": None if day is None else day.isoformat(),
        "colours": colours,
        "extra": extra,
    }


POSTER = Pipeline(
    "poster",
    nodes=[
        DagNode(
            slug="print",
            plugin="print_poster",
            bindings={"source": RuntimeSource(key="file", label="Picture file", placeholder="/pictures/cat.jpg")},
        )
    ],
    default_input={"copies": 2},
)
dag.register(POSTER)

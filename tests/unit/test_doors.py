"""What may not enter the store: texts that a database cannot keep, refused by name before SQL sees them."""

from pathlib import Path
from typing import Any

import pytest
from celery import Celery

from dagabaaz_celery.app import Dagabaaz
from dagabaaz_celery.errors import DagabaazError, LimitExceeded, ResultError, RunInputError
from dagabaaz_celery.models import TaskArtifact
from dagabaaz_celery.settings import Settings
from dagabaaz_celery.worker.results import ArtifactDoor


@pytest.fixture
def door() -> ArtifactDoor:
    return ArtifactDoor(Settings(), "resize")


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"file_name": "a\x00b"}, "file_name"),
        ({"file_name": "caf\udce9.txt"}, "file_name"),
        ({"mime_type": "text/\x00"}, "mime_type"),
        ({"mime_type": "\ud800"}, "mime_type"),
        ({"file_size": -1}, "file_size"),
        ({"file_size": 2**63}, "file_size"),
    ],
)
def test_a_field_that_no_database_keeps_is_refused(door: ArtifactDoor, fields: dict[str, Any], field: str):
    with pytest.raises(ResultError, match=rf"'resize'.*{field}"):
        door.emit(TaskArtifact.model_construct(**fields))


@pytest.mark.parametrize(
    ("fields", "field"),
    [({"file_name": "n" * 1025}, "file_name"), ({"mime_type": "m" * 256}, "mime_type")],
)
def test_a_field_that_is_too_long_is_refused(door: ArtifactDoor, fields: dict[str, Any], field: str):
    with pytest.raises(LimitExceeded, match=rf"'resize'.*{field}"):
        door.emit(TaskArtifact(**fields))


def test_a_path_that_is_not_utf8_is_refused(door: ArtifactDoor, tmp_path: Path):
    path = tmp_path / "caf\udce9.txt"  # as os.listdir gives the bytes 63 61 66 e9
    path.write_text("x")

    with pytest.raises(ResultError, match="file_path"):
        door.emit(TaskArtifact.model_construct(file_path=str(path)))


def test_a_path_with_a_null_character_is_refused(door: ArtifactDoor):
    with pytest.raises(DagabaazError, match="null"):
        door.emit(TaskArtifact(file_path="/tmp/a\x00b"))


def test_the_longest_fields_pass(door: ArtifactDoor):
    door.emit(TaskArtifact(file_name="ü" * 1024, mime_type="m" * 255, file_size=2**63 - 1))

    assert door.take_result(None)[1] == "many"


@pytest.mark.parametrize("key", [" k", "k ", "k\t", "k\u00a0", "a\nb", "a\x00b", "\ud800", "a\x7fb", "", "k" * 201, 7])
def test_a_key_that_databases_read_differently_is_refused(key: Any):
    with pytest.raises(RunInputError, match=r"key is .*200 characters"):
        Dagabaaz(Celery("doors")).start("any", key=key)

"""What a worker tells of its files directory: an id that whoever shares it reads, and never a wait."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from dagabaaz_celery.worker import report
from dagabaaz_celery.worker.report import look_at_directory


def test_everybody_who_has_a_directory_reads_one_id_in_it(tmp_path: Path):
    directory = tmp_path / "files"
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: report._identify(directory), range(32)))
    assert {each["problem"] for each in found} == {None}
    assert len({each["id"] for each in found}) == 1
    assert [path.name for path in directory.iterdir()] == [report.MARK]
    assert look_at_directory(directory) == {"directory": str(directory), **found[0]}
    assert look_at_directory(tmp_path / "other")["id"] != found[0]["id"]


def test_a_directory_that_cannot_be_used_is_told_with_its_reason(tmp_path: Path):
    (tmp_path / "file").write_text("in the way")
    assert "Error" in (look_at_directory(tmp_path / "file")["problem"] or "")
    (tmp_path / report.MARK).write_text("not an id")
    assert "written by others" in (look_at_directory(tmp_path)["problem"] or "")


def test_a_file_system_that_hangs_holds_up_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    hangs, is_over = threading.Event(), threading.Event()

    def hang(directory: Path) -> dict[str, str | None]:
        hangs.set()
        is_over.wait(30)
        return {"id": None, "problem": None}

    monkeypatch.setattr(report, "_FILES_PATIENCE", 0.05)
    monkeypatch.setattr(report, "_identify", hang)
    assert "did not answer within" in (look_at_directory(tmp_path)["problem"] or "")
    assert hangs.is_set()
    assert "has not answered since" in (look_at_directory(tmp_path)["problem"] or "")
    is_over.set()
    monkeypatch.undo()
    assert look_at_directory(tmp_path)["problem"] is None

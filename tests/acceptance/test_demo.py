"""examples/library as its users run it: a process of its own, real workers, real signals."""

import fcntl
import os
import pty
import re
import signal
import subprocess
import sys
import termios
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

LIBRARY = Path(__file__).parents[2] / "examples" / "library"
PATIENCE = 60


class Demo:
    """A demo.py process; what it printed so far is in ``output``."""

    def __init__(self, arguments: list[object], temporary: Path, *, terminal: bool = False) -> None:
        self.output = ""
        self.reader, writer = pty.openpty() if terminal else os.pipe()
        self.process = subprocess.Popen(
            [sys.executable, str(LIBRARY / "demo.py"), *map(str, arguments)],
            stdin=writer if terminal else subprocess.DEVNULL,
            stdout=writer,
            stderr=subprocess.STDOUT,
            env={**os.environ, "TMPDIR": str(temporary), "TERM": "xterm", "COLUMNS": "100"},
            start_new_session=True,
            preexec_fn=own_terminal if terminal else None,  # noqa: PLW1509  # one system call
        )
        os.close(writer)

    def read_until(self, text: str) -> None:
        """Wait until it has printed ``text``."""
        while text not in self.output:
            assert self._read(), f"ended without printing {text!r}:\n{self.output}"

    def type(self, keys: bytes) -> None:
        """Type into its terminal."""
        os.write(self.reader, keys)

    def wait(self) -> int:
        """Read to the end; returns the exit code."""
        while self._read():
            pass
        return self.process.wait(PATIENCE)

    def workers(self) -> list[psutil.Process]:
        """The worker processes it started, which carry its pid in their names, and their children."""
        mark = re.compile(rf"library\d+-{self.process.pid}@")
        found = []
        for process in psutil.process_iter():
            try:
                if any(mark.search(word) for word in process.cmdline()):
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def _read(self) -> bool:
        try:
            data = os.read(self.reader, 65536)
        except OSError:  # how a terminal tells that its last writer has gone
            return False
        self.output += data.decode(errors="replace")
        return bool(data)


def own_terminal() -> None:
    """Make standard input the controlling terminal: then Ctrl-C typed there is a signal, as for a person."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


@pytest.fixture
def temporary(tmp_path: Path) -> Path:
    place = tmp_path / "tmp"
    place.mkdir()
    return place


@pytest.fixture
def run_demo(tmp_path: Path, temporary: Path) -> Iterator[Callable[..., Demo]]:
    """Starts demo.py, with the report in tmp_path/out; nothing of it outlives the test."""
    started: list[Demo] = []

    def start(*arguments: object, terminal: bool = False) -> Demo:
        demo = Demo([*arguments, "--out", tmp_path / "out"], temporary, terminal=terminal)
        started.append(demo)
        return demo

    yield start
    for demo in started:
        demo.process.kill()
        for worker in demo.workers():
            worker.kill()
        demo.process.wait()
        os.close(demo.reader)


@pytest.fixture
def many_texts(tmp_path: Path) -> Path:
    """A folder that keeps the workers busy for longer than the test takes to interrupt them."""
    folder = tmp_path / "many"
    folder.mkdir()
    for number in range(1500):
        (folder / f"{number}.txt").write_text(f"text {number}")
    return folder


def test_the_sample_becomes_a_report(run_demo, tmp_path, temporary):
    demo = run_demo()
    assert demo.wait() == 0, demo.output
    report = tmp_path / "out" / "report.html"
    assert f"Report: {report.as_uri()}" in demo.output
    assert "20 files, 108 kB: images 6, text and source 8, subtitles 2, archives 2, audio 1, other 1." in demo.output
    html = report.read_text(encoding="utf-8")
    for expected in (
        "<h1>Library of sample</h1>",
        "pictures/Sonnenblume für Zoë.png",
        "JPEG, 960 \u00d7 640",
        "Python, 16 lines, 51 words",
        "4 cues, 1:07",
        "7 files inside, 5.3 kB unpacked",
        "the same as <bdi>writing/bread (copy).md</bdi>",
        "<b><bdi>night city</bdi></b>",
    ):
        assert expected in html
    assert html.count("data:image/jpeg;base64,") == 6
    assert demo.workers() == []
    assert list(temporary.iterdir()) == []


def test_a_branch_without_files_is_filtered_and_bad_files_are_rows(run_demo, tmp_path):
    folder = tmp_path / "odd [folder]"
    folder.mkdir()
    (folder / "<b>.txt").write_text("bold")
    (folder / "broken.png").write_text("no image")
    (folder / "broken.zip").write_bytes(b"PK\x03\x04 and no more")
    (folder / "dangling.jpg").symlink_to("nowhere")
    (folder / "loop").symlink_to(folder, target_is_directory=True)
    (folder / "line\nbreak.bin").write_bytes(b"\0")
    os.mkfifo(folder / "pipe")
    demo = run_demo("--dir", folder, "--workers", 1)
    assert demo.wait() == 0, demo.output
    assert re.search(r"^subtitle +filtered: nothing to do", demo.output, re.MULTILINE)
    assert re.search(r"^image +done +2/2", demo.output, re.MULTILINE)
    assert "4 files with a problem" in demo.output
    html = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "Library of odd [folder]" in html
    assert "&lt;b&gt;.txt" in html
    assert "no image that Pillow knows" in html
    assert "this link leads nowhere" in html


def test_a_folder_above_the_limit_is_cut_and_says_so(run_demo, many_texts, tmp_path):
    demo = run_demo("--dir", many_texts, "--limit", 20)
    assert demo.wait() == 0, demo.output
    assert "The folder has more files: the report has the first 20." in demo.output
    assert "here are the first 20" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")


def test_an_empty_folder_has_no_report_and_is_no_failure(run_demo, tmp_path):
    (tmp_path / "empty").mkdir()
    demo = run_demo("--dir", tmp_path / "empty")
    assert demo.wait() == 0, demo.output
    assert "No files were found, so there is no report." in demo.output


def test_ctrl_c_in_a_terminal_ends_everything(run_demo, many_texts, temporary, tmp_path):
    demo = run_demo("--dir", many_texts, terminal=True)
    demo.read_until("filtered: nothing to do")
    assert demo.workers() != []
    demo.type(b"\x03")
    assert demo.wait() == 130, demo.output
    assert "Stopped by SIGINT: the run is cancelled and its workers have ended." in demo.output
    assert demo.workers() == []
    assert list(temporary.iterdir()) == []
    assert list((tmp_path / "out").iterdir()) == []


def test_sigterm_ends_everything_too_and_the_run_is_cancelled(run_demo, many_texts, tmp_path):
    demo = run_demo("--dir", many_texts, "--state", tmp_path / "state")
    demo.read_until("text       running")
    demo.process.send_signal(signal.SIGTERM)
    assert demo.wait() == 143, demo.output
    assert demo.workers() == []
    status = "import tasks; (run,) = tasks.dag.runs(pipeline='library'); print(run.status)"
    seen = subprocess.run(
        [sys.executable, "-c", status],
        cwd=LIBRARY,
        env={**os.environ, "LIBRARY_STATE": str(tmp_path / "state")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert seen.stdout.strip() == "cancelled"


def test_without_workers_it_fails_and_shows_their_last_words(run_demo, many_texts):
    demo = run_demo("--dir", many_texts, "--workers", 1)
    demo.read_until("running")
    for process in demo.workers():
        process.kill()
    assert demo.wait() == 1
    assert "every worker process ended early" in demo.output
    assert "were left in" in demo.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dir", "/no/such/folder"], "/no/such/folder is no folder"),
        (["--dir", __file__], "is no folder"),
        (["--limit", "0"], "--limit is 0"),
        (["--workers", "-1"], "--workers is -1"),
    ],
)
def test_wrong_arguments_are_told_before_anything_starts(run_demo, arguments, message):
    demo = run_demo(*arguments)
    assert demo.wait() == 2
    assert message in " ".join(demo.output.split())

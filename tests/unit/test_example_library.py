"""The plain functions of examples/library: finding, reading and reporting files, above all files made to break them."""

import bz2
import gzip
import importlib
import io
import os
import socket
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

LIBRARY = Path(__file__).parents[2] / "examples" / "library"
SAMPLE = LIBRARY / "sample"


@pytest.fixture(scope="module")
def library() -> Iterator[SimpleNamespace]:
    names = ("find_files", "inspect_files", "report")
    sys.path.insert(0, str(LIBRARY))
    try:
        yield SimpleNamespace(**{name: importlib.import_module(name) for name in names})
    finally:
        sys.path.remove(str(LIBRARY))
        for name in names:
            sys.modules.pop(name, None)


@pytest.fixture
def found(library, tmp_path):
    """What find_files finds below tmp_path, by the name it shows."""
    return lambda **options: {file.name: file for file in library.find_files.find_files(str(tmp_path), **options)}


@pytest.fixture
def read(library):
    """read_facts with a reader given by name."""
    return lambda reader, path, *rest: library.inspect_files.read_facts(
        getattr(library.inspect_files, reader), str(path), *rest
    )


# Finding


def test_finds_files_of_every_depth_in_order_and_tells_their_kinds(tmp_path, library):
    for name in ("b/deep/er/note.txt", "a.PNG", "b/film.mkv", "b/talk.srt", "c.tar.gz", "d.wav", "e.bin", "Makefile"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    files = list(library.find_files.find_files(str(tmp_path)))
    assert [(file.name, file.kind) for file in files] == [
        ("Makefile", "text"),
        ("a.PNG", "image"),
        ("c.tar.gz", "archive"),
        ("d.wav", "audio"),
        ("e.bin", "other"),
        ("b/film.mkv", "video"),
        ("b/talk.srt", "subtitle"),
        ("b/deep/er/note.txt", "text"),
    ]
    assert all(file.path == str(tmp_path / file.name) and file.size == 1 and file.problem is None for file in files)


def test_passes_over_hidden_names_the_report_and_links_to_directories(tmp_path, found):
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "config").write_text("x")
    (tmp_path / ".hidden.txt").write_text("x")
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "report.html").write_text("x")
    (tmp_path / "loop").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "kept.txt").write_text("x")
    assert list(found(leave_out=str(tmp_path / "report"))) == ["kept.txt"]


def test_what_cannot_be_handed_to_a_reader_is_found_with_its_problem_and_without_a_path(tmp_path, found):
    (tmp_path / "dangling.jpg").symlink_to(tmp_path / "nowhere")
    (tmp_path / "itself").symlink_to(tmp_path / "itself")
    os.mkfifo(tmp_path / "pipe.txt")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s"))
    files = found()
    assert {name: file.path for name, file in files.items()} == dict.fromkeys(files, "")
    assert files["dangling.jpg"].problem == "this link leads nowhere: No such file or directory"
    assert files["itself"].problem.startswith("this link leads nowhere: ")
    assert files["pipe.txt"].problem.startswith("not a regular file")
    assert files["s"].problem.startswith("not a regular file")


def test_a_name_that_is_no_utf8_is_shown_with_marks_in_its_place(tmp_path, found):
    try:
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.txt")).write_text("x")
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    (file,) = found().values()
    assert file.name == "caf\ufffd.txt"
    assert "not valid UTF-8" in file.problem


def test_a_folder_that_cannot_be_opened_is_found_as_such(tmp_path, library):
    (file,) = library.find_files.find_files(str(tmp_path / "gone"))
    assert (file.path, file.kind) == ("", "other")
    assert file.problem == "this folder cannot be opened: No such file or directory"


def test_finding_is_lazy_and_quick_for_thousands_of_files(tmp_path, library):
    for number in range(3000):
        (tmp_path / f"{number:04}.txt").touch()
    assert sum(1 for _ in library.find_files.find_files(str(tmp_path))) == 3000


# Reading


def test_whatever_a_reader_raises_becomes_the_problem_of_the_file(tmp_path, read, library):
    def broken(_path: str) -> dict:
        raise RecursionError("too\nnested " + "x" * 500)

    facts = library.inspect_files.read_facts(broken, "any")
    assert facts["problem"].startswith("cannot be understood: too nested xxx")
    assert len(facts["problem"]) < 200
    assert read("hash_file", tmp_path / "gone") == {"problem": "cannot be read: No such file or directory"}
    assert read("hash_file", tmp_path) == {"problem": "cannot be read: Is a directory"}
    assert library.inspect_files.read_facts(broken, "") is None


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "L", "LA", "1", "CMYK", "I;16", "I", "F"])
def test_images_of_every_mode_have_sizes_and_thumbnails(tmp_path, read, mode):
    name = "image.tiff" if mode in {"CMYK", "F", "I", "LA"} else "image.png"
    Image.new(mode, (640, 320)).save(tmp_path / name)
    facts = read("read_image", tmp_path / name, tmp_path / "thumb.jpg")
    assert (facts["width"], facts["height"]) == (640, 320)
    with Image.open(tmp_path / "thumb.jpg") as thumbnail:
        assert thumbnail.size == (192, 96)


def test_a_thumbnail_stands_upright_as_the_camera_says(tmp_path, read):
    image = Image.new("RGB", (400, 200), "red")
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.jpg", exif=exif)
    read("read_image", tmp_path / "turned.jpg", tmp_path / "thumb.jpg")
    with Image.open(tmp_path / "thumb.jpg") as thumbnail:
        assert thumbnail.width < thumbnail.height


def test_sixteen_bit_grey_is_scaled_and_not_clipped_to_white(tmp_path, read):
    Image.new("I;16", (100, 100), 32768).save(tmp_path / "grey.png")
    read("read_image", tmp_path / "grey.png", tmp_path / "thumb.jpg")
    with Image.open(tmp_path / "thumb.jpg") as thumbnail:
        assert 110 < thumbnail.convert("L").getpixel((50, 50)) < 145


def test_broken_images_are_problems(tmp_path, read):
    whole = (SAMPLE / "pictures" / "spring meadow.jpg").read_bytes()
    for name, data in {
        "empty.png": b"",
        "text.png": b"no image at all",
        "half.jpg": whole[: len(whole) // 2],
        "cut.png": b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR",
        # PostScript under a picture's name: Pillow would hand it to Ghostscript, if we let it.
        "sneaky.png": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n",
    }.items():
        (tmp_path / name).write_bytes(data)
        assert set(read("read_image", tmp_path / name, tmp_path / "thumb.jpg")) == {"problem"}, name


def test_an_image_of_too_many_pixels_is_not_opened(tmp_path, read, monkeypatch):
    Image.new("1", (2000, 1000)).save(tmp_path / "huge.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1_500_000)
    assert read("read_image", tmp_path / "huge.png", tmp_path / "t.jpg") == {
        "problem": "more than 1,500,000 pixels: not opened"
    }


@pytest.mark.parametrize(
    ("data", "words", "lines"),
    [
        (b"", 0, 0),
        (b"one", 1, 1),
        (b"one two\nthree\n", 3, 2),
        (b"\n\n\n", 0, 3),
        (b"\xef\xbb\xbfmark", 1, 1),
        ("Straße nach Köln".encode(), 3, 1),
        ("Straße nach Köln\n".encode("utf-16"), 3, 1),
        (b"\xff\xff not utf-8 \xc3", 4, 1),
    ],
)
def test_words_and_lines(tmp_path, read, data, words, lines):
    (tmp_path / "a.txt").write_bytes(data)
    assert read("read_text", tmp_path / "a.txt") == {
        "words": words,
        "lines": lines,
        "language": "Text",
        "partial": False,
    }


@pytest.mark.parametrize("chunk", [1, 2, 3, 7])
def test_a_word_across_chunks_is_one_word(tmp_path, read, library, monkeypatch, chunk):
    monkeypatch.setattr(library.inspect_files, "CHUNK", chunk)
    (tmp_path / "a.py").write_text("größe = 1\n\n  next  line\n", encoding="utf-8")
    facts = read("read_text", tmp_path / "a.py")
    assert (facts["words"], facts["lines"], facts["language"]) == (5, 3, "Python")


def test_a_huge_text_is_read_as_far_as_its_bound(tmp_path, read, library, monkeypatch):
    monkeypatch.setattr(library.inspect_files, "MAX_TEXT", 4 * library.inspect_files.CHUNK)
    path = tmp_path / "endless.log"
    with path.open("wb") as file:
        file.write(b"a line of text\n" * 300_000)
        file.truncate(1 << 40)  # a terabyte that takes no room
    facts = read("read_text", path)
    assert facts["partial"] is True
    assert facts["words"] > 1_000_000


def test_binary_data_under_a_text_name_is_a_problem(tmp_path, read):
    (tmp_path / "a.c").write_bytes(b"int main\0\0\0\0")
    assert "binary data" in read("read_text", tmp_path / "a.c")["problem"]


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        (
            "a.srt",
            "1\r\n00:00:01,000 --> 00:00:02,500\r\nHi\r\n\r\n2\r\n01:00:03,000 --> 01:00:04,250\r\nHo\r\n",
            (2, 3604.25),
        ),
        ("a.vtt", "WEBVTT\n\n00:01.000 --> 00:04.050 align:start\nHi\n", (1, 4.05)),
        ("a.ass", "[Events]\nDialogue: 0,0:00:01.00,0:01:03.50,Default,,0,0,0,,Hi\n", (1, 63.5)),
        ("a.sbv", "0:00:01.000,0:00:03.000\nHi\n", (1, 3.0)),
    ],
)
def test_cues_and_duration(tmp_path, read, name, text, expected):
    (tmp_path / name).write_text(text, newline="")
    assert read("read_subtitles", tmp_path / name) == dict(zip(("cues", "duration"), expected, strict=True))


def test_subtitles_without_cues_are_a_problem(tmp_path, read):
    (tmp_path / "a.srt").write_bytes(bytes(range(256)) * 10)
    assert read("read_subtitles", tmp_path / "a.srt") == {"problem": "no cues that this demo can read"}


def make_tar(names_and_sizes: dict[str, int]) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for name, size in names_and_sizes.items():
            info = tarfile.TarInfo(name)
            info.size = size
            archive.addfile(info, io.BytesIO(bytes(size)))
    return packed.getvalue()


@pytest.mark.parametrize(("name", "pack"), [("a.tar", bytes), ("a.tar.gz", gzip.compress), ("a.tbz2", bz2.compress)])
def test_tars_are_listed(tmp_path, read, name, pack):
    (tmp_path / name).write_bytes(pack(make_tar({"one.txt": 10, "d/two.txt": 20, "three": 0, "four": 5})))
    assert read("list_archive", tmp_path / name) == {
        "entries": 4,
        "unpacked": 35,
        "listing": ["one.txt", "d/two.txt", "three"],
        "partial": False,
    }


def test_zips_are_listed_without_unpacking(tmp_path, read):
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.mkdir("d")
        archive.writestr("d/zeros", bytes(30_000_000))
        archive.writestr("../../etc/passwd", b"x")
    assert read("list_archive", tmp_path / "a.zip") == {
        "entries": 2,
        "unpacked": 30_000_001,
        "listing": ["d/zeros", "../../etc/passwd"],
    }


def test_a_compressed_single_file_is_measured(tmp_path, read):
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(bytes(12345)))
    assert read("list_archive", tmp_path / "a.csv.gz") == {
        "entries": 1,
        "unpacked": 12345,
        "listing": [],
        "partial": False,
    }


@pytest.mark.parametrize("name", ["bomb.gz", "bomb.tar.gz"])
def test_an_archive_that_unpacks_without_end_is_measured_as_far_as_its_bound(
    tmp_path, read, library, monkeypatch, name
):
    monkeypatch.setattr(library.inspect_files, "MAX_UNPACKED", 1_000_000)
    (tmp_path / name).write_bytes(gzip.compress(make_tar({"a": 5, "zeros": 20_000_000, "never": 5})))
    facts = read("list_archive", tmp_path / name)
    assert facts["partial"] is True
    assert facts["entries"] <= 2


def test_an_archive_that_lies_about_sizes_and_names_is_read_in_no_time(tmp_path, read):
    header = tarfile.TarInfo("end\udcffless\nfile" + "x" * 60)
    header.size = 1 << 62
    (tmp_path / "lie.tar").write_bytes(header.tobuf(tarfile.GNU_FORMAT, errors="surrogateescape") + bytes(2000))
    facts = read("list_archive", tmp_path / "lie.tar")
    assert facts == {"problem": "cannot be understood: it ends in the middle of a file"}
    header.size = 0
    (tmp_path / "name.tar").write_bytes(header.tobuf(tarfile.GNU_FORMAT, errors="surrogateescape") + bytes(2000))
    assert read("list_archive", tmp_path / "name.tar")["listing"] == ["end\ufffdless\ufffdfile" + "x" * 60]


def test_an_archive_of_very_many_files_is_listed_as_far_as_its_bound(tmp_path, read, library, monkeypatch):
    monkeypatch.setattr(library.inspect_files, "MAX_ENTRIES", 50)
    (tmp_path / "many.tar").write_bytes(make_tar({str(number): 1 for number in range(60)}))
    facts = read("list_archive", tmp_path / "many.tar")
    assert (facts["entries"], facts["partial"]) == (50, True)


def test_corrupt_archives_are_problems(tmp_path, read):
    tar = gzip.compress(make_tar({"a": 5000, "b": 5000}))
    for name, data in {
        "empty.zip": b"",
        "text.zip": b"no archive",
        "half.tar.gz": tar[: len(tar) // 2],
        "text.tar.gz": gzip.compress(b"text that is no tar" * 100),
        "wrong.gz": b"\x1f\x8b" + b"x" * 50,
        "directory_gone.zip": b"PK\x05\x06" + b"\xff" * 18,
        "seven.7z": b"7z\xbc\xaf\x27\x1c rest",
    }.items():
        (tmp_path / name).write_bytes(data)
        assert set(read("list_archive", tmp_path / name)) == {"problem"}, name


def test_checksums(tmp_path, read, library, monkeypatch):
    (tmp_path / "a").write_bytes(b"")
    assert read("hash_file", tmp_path / "a")["sha256"].startswith("e3b0c44298fc1c14")
    monkeypatch.setattr(library.inspect_files, "MAX_HASHED", library.inspect_files.CHUNK)
    with (tmp_path / "b").open("wb") as file:
        file.truncate(1 << 40)
    assert read("hash_file", tmp_path / "b") == {"note": "over 1 GiB: no checksum"}


# Joining and reporting


def artifact(path: str | None = None, **metadata: object) -> dict[str, object]:
    return {"file_path": path, "file_name": None, "file_size": None, "mime_type": None, "metadata": metadata}


def row(name: str, kind: str = "other", **facts: object) -> dict[str, object]:
    return {"name": name, "kind": kind, "title": name, "size": 1, "problems": [], **facts}


def test_a_row_joins_what_every_branch_found_out(library):
    made = library.report.build_row(
        [
            artifact(name="a.jpg", kind="image", size=3),
            artifact("/scratch/1.jpg", width=4, height=3, format="JPEG"),
            artifact(sha256="ab"),
        ],
        "A",
    )
    assert made == {
        "name": "a.jpg",
        "kind": "image",
        "size": 3,
        "thumbnail": "/scratch/1.jpg",
        "width": 4,
        "height": 3,
        "format": "JPEG",
        "sha256": "ab",
        "title": "A",
        "problems": [],
    }


def test_a_row_tells_each_problem_once_and_falls_back_to_the_name(library):
    made = library.report.build_row(
        [artifact(name="a", kind="text", size=3), artifact(problem="no"), artifact(problem="no")], None
    )
    assert (made["title"], made["problems"]) == ("a", ["no"])


def test_totals(library):
    totals = library.report.count_totals(
        [
            row("a", "image", size=5, sha256="x"),
            row("b", "image", size=5, sha256="x"),
            row("c", "text", size=0, sha256="e"),
            row("d", "text", size=0, sha256="e", problems=["bad"]),
            row("e", size=None, cut=True),
        ]
    )
    assert totals == {
        "files": 5,
        "bytes": 10,
        "kinds": {
            "image": {"files": 2, "bytes": 10},
            "text": {"files": 2, "bytes": 0},
            "other": {"files": 1, "bytes": 0},
        },
        "problems": 1,
        "copies": 1,
        "cut": True,
    }


class Page(HTMLParser):
    """The tags and visible texts of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.texts: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, _attributes: object) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_the_report_shows_every_row_by_name_with_its_thumbnail(tmp_path, library):
    Image.new("RGB", (4, 4)).save(tmp_path / "thumb.jpg")
    place, totals = library.report.write_report(
        [
            row("b.txt", "text", words=2, lines=1, language="Text", sha256="c" * 64, size=7),
            row("a.jpg", "image", width=4, height=4, format="JPEG", thumbnail=str(tmp_path / "thumb.jpg")),
            row("C.srt", "subtitle", cues=1, duration=62.4),
            row("d.zip", "archive", entries=1, unpacked=2000, listing=["x.txt"], partial=True),
            row("e.txt", "text", words=2, lines=1, language="Text", sha256="c" * 64, size=7),
            row("f.txt", "text", size=0, note="a note", problems=["a problem"]),
        ],
        str(tmp_path / "out" / "deep"),
        "Library of things",
        "/things",
    )
    html = place.read_text(encoding="utf-8")
    page = Page(html)
    shown = [text for text in page.texts if text.strip()]
    names = [text for text in shown if text in {"a.jpg", "b.txt", "C.srt", "d.zip", "e.txt", "f.txt"}]
    assert list(dict.fromkeys(names)) == ["a.jpg", "b.txt", "C.srt", "d.zip", "e.txt", "f.txt"]
    for expected in (
        "JPEG, 4 \u00d7 4",
        "Text, 1 line, 2 words",
        "1 cue, 1:02",
        "at least 1 file inside, at least 2.0 kB unpacked",
        "x.txt",
        "the same as ",
        "a note",
        "a problem",
        "cccccccccccc",
        "6 files, 17 B \u00b7 1 file with a problem \u00b7 1 copy of another file",
    ):
        assert expected in shown, expected
    assert page.tags.count("img") == 1
    assert "data:image/jpeg;base64," in html
    assert totals["files"] == 6
    assert [path.name for path in place.parent.iterdir()] == ["report.html"]


def test_nothing_from_a_file_becomes_markup(tmp_path, library):
    evil = "<script>alert('1')</script>\"' onload=x <img src=x>&amp;\u202egnp.exe"
    place, _ = library.report.write_report(
        [
            row(evil, "text", title=evil, language=evil, words=1, lines=1, note=evil, problems=[evil], sha256=evil),
            row("z", "archive", entries=1, unpacked=1, listing=[evil], thumbnail=evil, format=evil, width=1, height=1),
            row("zz", "other", sha256=evil, problems=["\ud800"]),
        ],
        str(tmp_path),
        evil,
        evil,
    )
    html = place.read_text(encoding="utf-8")
    assert not {"script", "img"} & set(Page(html).tags)
    assert "default-src 'none'" in html
    assert "<script" not in html


def test_an_empty_report_and_a_cut_one_are_whole_pages(tmp_path, library):
    place, totals = library.report.write_report([], str(tmp_path), "None", "/none")
    assert totals["files"] == 0
    assert "0 files, 0 B" in place.read_text(encoding="utf-8")
    place, _ = library.report.write_report([row("a", cut=True)], str(tmp_path), "Cut", "/cut")
    assert "The folder has more files than the limit: here are the first 1." in place.read_text(encoding="utf-8")


def test_a_report_that_cannot_be_finished_leaves_the_old_one(tmp_path, library):
    library.report.write_report([row("old")], str(tmp_path), "Old", "/")
    with pytest.raises(KeyError):
        library.report.write_report([{"name": "x", "kind": "other"}], str(tmp_path), "New", "/")
    (only,) = tmp_path.iterdir()
    assert "<h1>Old</h1>" in only.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (99_949, "99.9 kB"),
        (99_950, "100 kB"),
        (999_499, "999 kB"),
        (999_500, "1.0 MB"),
        (10**21, "1000 EB"),
    ],
)
def test_sizes_for_people(library, size, text):
    assert library.report.human_size(size) == text


def test_durations_for_people(library):
    assert [library.report.human_duration(s) for s in (0, 59.6, 3723)] == ["0:00", "1:00", "1:02:03"]


def test_the_sample_is_small_and_every_file_of_it_can_be_read(tmp_path, library, read):
    files = list(library.find_files.find_files(str(SAMPLE)))
    readers = {"text": "read_text", "subtitle": "read_subtitles", "archive": "list_archive"}
    assert {file.kind for file in files} == {"image", "text", "subtitle", "archive", "audio", "other"}
    assert sum(file.size for file in files) < 300_000
    for file in files:
        facts = read("hash_file", file.path)
        if file.kind == "image":
            facts |= read("read_image", file.path, tmp_path / "thumb.jpg")
        elif file.kind in readers:
            facts |= read(readers[file.kind], file.path)
        assert "problem" not in facts, file.name

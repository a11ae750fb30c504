"""Reading what a file says of itself: each reader takes a path and returns facts, whatever the file holds.

Files come from anywhere, so every reader stops at a bound, and whatever breaks in one is told in that file's row.
"""

import bz2
import codecs
import gzip
import hashlib
import itertools
import lzma
import re
import tarfile
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from find_files import language_of, make_showable
from PIL import Image, ImageOps

Facts = dict[str, Any]

MIB = 1024 * 1024
CHUNK = MIB
MAX_TEXT = 64 * MIB
MAX_SUBTITLES = 16 * MIB
MAX_UNPACKED = 256 * MIB
MAX_HASHED = 1024 * MIB
MAX_ENTRIES = 20_000
MAX_SIZE = 1 << 60  # an archive can claim any size for a file
THUMBNAIL_SIZE = (192, 144)
# Named, because Pillow would otherwise try every format it has, one of which starts an interpreter (EPS).
IMAGE_FORMATS = ("BMP", "GIF", "ICO", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
DECOMPRESSORS: tuple[tuple[bytes, Callable[..., Any]], ...] = (
    (b"\x1f\x8b", gzip.open),
    (b"BZh", bz2.open),
    (b"\xfd7zXZ\x00", lzma.open),
)
Image.init()  # else only the most common of these formats are known by name
CUE_END = re.compile(r"-->\s*(?:(\d{1,3}):)?(\d{1,2}):(\d{2})[.,](\d{1,3})")
CUE_END_SBV = re.compile(r"^\d{1,3}:\d{2}:\d{2}\.\d{3},(\d{1,3}):(\d{2}):(\d{2})\.(\d{3})\s*$", re.MULTILINE)
CUE_END_ASS = re.compile(r"^Dialogue:[^,\n]{0,80},[^,\n]{0,20},\s*(\d{1,3}):(\d{2}):(\d{2})\.(\d{2,3}),", re.MULTILINE)


def read_facts(reader: Callable[..., Facts], path: str, *arguments: Any) -> Facts | None:
    """What ``reader`` says of the file; a ``problem`` in place of whatever it raises; None without a path.

    A parser can be made to raise anything by a file that someone broke on purpose, hence the broad except: one bad
    file is a line in the report, not the end of the run.
    """
    if not path:
        return None
    try:
        return reader(path, *arguments)
    except Exception as error:
        return {"problem": describe_problem(error)}


def describe_problem(error: Exception) -> str:
    """One line for the reader of the report, without the path that stands beside it anyway."""
    if isinstance(error, OSError) and error.strerror:
        return f"cannot be read: {error.strerror}"
    message = " ".join(str(error).split()) or type(error).__name__
    return f"cannot be understood: {make_showable(message[:160])}"


def read_image(path: str, thumbnail: Path) -> Facts:
    """Width and height in pixels and the format; a thumbnail is written as JPEG."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        warnings.filterwarnings("ignore", category=UserWarning)  # odd metadata is no reason to refuse an image
        try:
            with Image.open(path, formats=IMAGE_FORMATS) as image:
                facts = {"width": image.width, "height": image.height, "format": image.format}
                write_thumbnail(image, thumbnail)
        except Image.UnidentifiedImageError:
            return {"problem": "no image that Pillow knows"}
        except (Image.DecompressionBombWarning, Image.DecompressionBombError):
            return {"problem": f"more than {Image.MAX_IMAGE_PIXELS:,} pixels: not opened"}
    return facts


def write_thumbnail(image: Image.Image, thumbnail: Path) -> None:
    """Scale down, turn as the camera says, and put what is transparent on white."""
    image.draft("RGB", THUMBNAIL_SIZE)
    small = ImageOps.exif_transpose(image)
    small.thumbnail(THUMBNAIL_SIZE)
    if small.mode.startswith("I;16"):
        small = small.point(lambda value: value * (1 / 256)).convert("L")  # convert alone would clip it to white
    layer = small.convert("RGBA")
    flat = Image.new("RGB", layer.size, "white")
    flat.paste(layer, mask=layer)
    flat.save(thumbnail, "JPEG", quality=80)


def read_text(path: str) -> Facts:
    """Words and lines of the first 64 MiB, and the language by the name; UTF-8, or UTF-16 with its mark."""
    words = lines = 0
    last = "\n"
    with open(path, "rb") as file:
        for text in decode_chunks(file):
            continues_word = not last.isspace() and not text[0].isspace()
            words += len(text.split()) - continues_word
            lines += text.count("\n")
            last = text[-1]
        partial = bool(file.read(1))
    return {
        "words": words,
        "lines": lines + (last != "\n"),
        "language": language_of(path) or "Text",
        "partial": partial,
    }


def decode_chunks(file: BinaryIO) -> Iterator[str]:
    """Decoded pieces, none of them empty; raises ValueError for a file with NUL bytes, which no text has."""
    mark = file.read(2)
    file.seek(0)
    encoding = "utf-16" if mark in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig"
    decoder = codecs.getincrementaldecoder(encoding)("replace")
    for _ in range(MAX_TEXT // CHUNK):
        data = file.read(CHUNK)
        text = decoder.decode(data, final=not data)
        if "\0" in text:
            raise ValueError("binary data under the name of a text file")
        if text:
            yield text
        if not data:
            return


def read_subtitles(path: str) -> Facts:
    """Number of cues, and when the last one ends, in seconds."""
    with open(path, "rb") as file:
        text = file.read(MAX_SUBTITLES).decode("utf-8-sig", "replace").replace("\r\n", "\n")
    for pattern in (CUE_END, CUE_END_ASS, CUE_END_SBV):
        ends = [cue_end_seconds(*match.groups()) for match in pattern.finditer(text)]
        if ends:
            return {"cues": len(ends), "duration": max(ends)}
    return {"problem": "no cues that this demo can read"}


def cue_end_seconds(hours: str | None, minutes: str, seconds: str, fraction: str) -> float:
    """Seconds from the parts of a time stamp; the fraction keeps its leading zeros."""
    return int(hours or 0) * 3600 + int(minutes) * 60 + int(seconds) + float(f"0.{fraction}")


def list_archive(path: str) -> Facts:
    """Number of files, their size unpacked in bytes, and the first names; nothing is unpacked to disk."""
    if zipfile.is_zipfile(path):
        return list_zip(path)
    with open(path, "rb") as file:
        magic = file.read(6)
    if magic.startswith((b"7z\xbc\xaf\x27\x1c", b"Rar!", b"\x28\xb5\x2f\xfd")):
        return {"problem": "a 7z, rar or zst archive, which Python does not open"}
    opener = next((opener for start, opener in DECOMPRESSORS if magic.startswith(start)), open)
    with opener(path, "rb") as stream:
        is_single_file = opener is not open and not re.search(r"\.(tar\.\w+|t[gbx]z\d?)$", path.lower())
        return measure_single_file(BoundedReader(stream)) if is_single_file else list_tar(BoundedReader(stream))


def list_zip(path: str) -> Facts:
    """The directory at the end of a ZIP file."""
    with zipfile.ZipFile(path) as archive:
        files = [info for info in archive.infolist() if not info.is_dir()]
    return {
        "entries": len(files),
        "unpacked": sum(info.file_size for info in files),
        "listing": [make_showable(info.filename[:120]) for info in files[:3]],
    }


def list_tar(stream: "BoundedReader") -> Facts:
    """The members of a tar stream, as far as the bounds; ``partial`` tells that there may be more."""
    sizes: list[int] = []
    listing: list[str] = []
    partial = False
    try:
        with tarfile.open(fileobj=stream, mode="r|") as archive:
            for member in itertools.takewhile(lambda _: len(sizes) < MAX_ENTRIES, archive):
                if member.isfile():
                    sizes.append(min(max(member.size, 0), MAX_SIZE))
                    listing += [make_showable(member.name[:120])] if len(listing) < 3 else []
    except BoundReached:
        partial = True
    return {
        "entries": len(sizes),
        "unpacked": sum(sizes),
        "listing": listing,
        "partial": partial or len(sizes) == MAX_ENTRIES,
    }


def measure_single_file(stream: "BoundedReader") -> Facts:
    """A compressed file that is no tar: one entry, as large as what comes out of it."""
    try:
        while stream.read(CHUNK):
            pass
    except BoundReached:
        return {"entries": 1, "unpacked": stream.count, "listing": [], "partial": True}
    return {"entries": 1, "unpacked": stream.count, "listing": [], "partial": False}


class BoundReached(Exception):
    """An archive has more in it than a demo should unpack."""


class BoundedReader:
    """Reads a stream up to MAX_UNPACKED bytes: a small archive can hold terabytes of zeros."""

    def __init__(self, stream: BinaryIO) -> None:
        self.stream = stream
        self.count = 0
        self.reads_past_end = 0

    def read(self, size: int) -> bytes:
        """At most ``size`` bytes; raises BoundReached past the bound.

        Raises EOFError for a caller that goes on at the end: tarfile skips a file by reading as often as its claimed
        size takes, and the claim may be a lie.
        """
        if self.count >= MAX_UNPACKED:
            raise BoundReached
        data = self.stream.read(size)
        self.count += len(data)
        self.reads_past_end += not data
        if self.reads_past_end > 3:
            raise EOFError("it ends in the middle of a file")
        return data


def hash_file(path: str) -> Facts:
    """SHA-256 of the whole file, or a note that it is too large for a demo to wait for."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for _ in range(MAX_HASHED // CHUNK):
            data = file.read(CHUNK)
            if not data:
                return {"sha256": digest.hexdigest()}
            digest.update(data)
    return {"note": "over 1 GiB: no checksum"}

"""Finding the files of a folder and telling their kinds by their names: no file is opened here."""

import mimetypes
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePath

LANGUAGES = {
    ".c": "C",
    ".cfg": "Configuration",
    ".cpp": "C++",
    ".cs": "C#",
    ".css": "CSS",
    ".csv": "CSV",
    ".go": "Go",
    ".h": "C",
    ".hpp": "C++",
    ".html": "HTML",
    ".ini": "Configuration",
    ".java": "Java",
    ".js": "JavaScript",
    ".json": "JSON",
    ".jsx": "JavaScript",
    ".kt": "Kotlin",
    ".log": "Log",
    ".lua": "Lua",
    ".md": "Markdown",
    ".php": "PHP",
    ".pl": "Perl",
    ".py": "Python",
    ".r": "R",
    ".rb": "Ruby",
    ".rs": "Rust",
    ".rst": "reStructuredText",
    ".scala": "Scala",
    ".sh": "Shell",
    ".sql": "SQL",
    ".svg": "SVG",
    ".swift": "Swift",
    ".tex": "TeX",
    ".toml": "TOML",
    ".ts": "TypeScript",
    ".tsx": "TypeScript",
    ".txt": "Text",
    ".xml": "XML",
    ".yaml": "YAML",
    ".yml": "YAML",
}
LANGUAGES_BY_NAME = {"makefile": "Make", "dockerfile": "Docker", "license": "Text", "readme": "Text"}
SUBTITLE_EXTENSIONS = {".ass", ".dfxp", ".sbv", ".smi", ".srt", ".ssa", ".sub", ".sup", ".ttml", ".vtt"}
ARCHIVE_EXTENSIONS = {".7z", ".bz2", ".gz", ".rar", ".tar", ".tgz", ".xz", ".zip", ".zst"}


@dataclass(frozen=True)
class FoundFile:
    """A file of the folder, or what stands in its place.

    ``path`` is absolute, and empty for what cannot be handed on to a reader: ``problem`` then says why.
    ``name`` is relative to the folder and safe to show. ``size`` is in bytes, None when unknown.
    """

    path: str
    name: str
    size: int | None
    mime_type: str | None
    kind: str
    problem: str | None = None


def find_files(folder: str, leave_out: str = "") -> Iterator[FoundFile]:
    """Every file below ``folder``, in order of name within each directory.

    Names that start with a dot, the directory ``leave_out``, and links to directories (they may lead back up) are
    passed over. A directory that cannot be opened and a file that cannot be read are found all the same, with their
    problem.
    """
    pending = [folder]
    while pending:
        directory = pending.pop()
        try:
            with os.scandir(directory) as scan:
                shown = [entry for entry in scan if not entry.name.startswith(".")]
        except OSError as error:
            yield _with_problem(directory, folder, f"this folder cannot be opened: {error.strerror}")
            continue
        below = []
        for entry in sorted(shown, key=lambda entry: entry.name):
            if not os.path.isdir(entry.path):
                yield _describe(entry.path, folder)
            elif not entry.is_symlink() and entry.path != leave_out:
                below.append(entry.path)
        pending.extend(reversed(below))


def make_showable(text: str) -> str:
    """The text with a mark for each character that JSON or a cell of a table cannot have."""
    return re.sub("[\x00-\x1f\x7f\ud800-\udfff]", "\ufffd", text)


def language_of(name: str) -> str | None:
    """The language that a file's name announces: None when it announces none."""
    path = PurePath(name.lower())
    return LANGUAGES.get(path.suffix) or LANGUAGES_BY_NAME.get(path.name)


def kind_of(name: str, mime_type: str | None) -> str:
    """One of text, subtitle, archive, image, audio, video, other."""
    extension = PurePath(name.lower()).suffix
    if extension in SUBTITLE_EXTENSIONS:
        return "subtitle"
    if extension in ARCHIVE_EXTENSIONS:
        return "archive"
    family = (mime_type or "").partition("/")[0]
    if language_of(name) or family == "text":
        return "text"
    return family if family in {"image", "audio", "video"} else "other"


def _describe(path: str, folder: str) -> FoundFile:
    try:
        path.encode()
    except UnicodeEncodeError:
        return _with_problem(path, folder, "its name is not valid UTF-8, so it was not read")
    try:
        found = os.stat(path)
    except OSError as error:
        what = "this link leads nowhere" if os.path.islink(path) else "cannot be read"
        return _with_problem(path, folder, f"{what}: {error.strerror}")
    if not stat.S_ISREG(found.st_mode):
        return _with_problem(path, folder, "not a regular file (a pipe, socket or device), so it was not read")
    mime_type = mimetypes.guess_type(path)[0]
    return FoundFile(path, _name_to_show(path, folder), found.st_size, mime_type, kind_of(path, mime_type))


def _with_problem(path: str, folder: str, problem: str) -> FoundFile:
    return FoundFile("", _name_to_show(path, folder), None, None, "other", problem)


def _name_to_show(path: str, folder: str) -> str:
    return make_showable(os.path.relpath(path, folder))

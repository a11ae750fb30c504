"""Writing the report: one HTML file that needs nothing beside it, and the totals that the demo prints."""

import base64
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from html import escape
from pathlib import Path
from typing import Any

from inspect_files import describe_problem

Row = dict[str, Any]

KINDS = {
    "image": "Images",
    "text": "Text and source",
    "subtitle": "Subtitles",
    "archive": "Archives",
    "audio": "Audio",
    "video": "Video",
    "other": "Other",
}
SIZE_UNITS = ("B", "kB", "MB", "GB", "TB", "PB", "EB")

STYLE = (Path(__file__).parent / "report.css").read_text(encoding="utf-8")
# The page needs no script and nothing from elsewhere: a name that slipped through the escaping could do nothing.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
STYLE += "".join(
    f'body:has(#only-{kind}:checked) tr[data-kind]:not([data-kind="{kind}"]) {{ display: none; }}\n' for kind in KINDS
)


def build_row(artifacts: list[Row], title: str | None) -> Row:
    """One row from the artifacts of one file: all their metadata, a list of their problems, the thumbnail's path."""
    row: Row = {}
    problems = []
    for artifact in artifacts:
        facts = dict(artifact["metadata"])
        if "problem" in facts:
            problems.append(facts.pop("problem"))
        row |= facts
        if artifact["file_path"]:
            row["thumbnail"] = artifact["file_path"]
    return row | {"title": title or row["name"], "problems": list(dict.fromkeys(problems))}


def write_report(rows: Iterable[Row], out: str, title: str, folder: str) -> tuple[Path, Row]:
    """Write ``report.html`` into the directory ``out``; returns its path and the totals.

    A reader never sees half a report: it is written beside its place and then moved there.
    """
    ordered = sorted(rows, key=lambda row: (row["name"].casefold(), row["name"]))
    totals = count_totals(ordered)
    place = Path(out) / "report.html"
    place.parent.mkdir(parents=True, exist_ok=True)
    part = place.with_name(f".report-{os.getpid()}.part")
    try:
        with part.open("w", encoding="utf-8", errors="replace", newline="\n") as file:
            file.writelines(render_page(ordered, totals, title, folder))
        os.replace(part, place)
    finally:
        part.unlink(missing_ok=True)
    return place, totals


def count_totals(rows: list[Row]) -> Row:
    """Files and bytes, in all and by kind, files with problems, copies, and whether the scan was cut short."""
    files = Counter(row["kind"] for row in rows)
    sizes: Counter[str] = Counter()
    for row in rows:
        sizes[row["kind"]] += row.get("size") or 0
    sums = Counter(row["sha256"] for row in rows if row.get("sha256") and row.get("size"))
    return {
        "files": len(rows),
        "bytes": sizes.total(),
        "kinds": {kind: {"files": files[kind], "bytes": sizes[kind]} for kind in KINDS if files[kind]},
        "problems": sum(1 for row in rows if row.get("problems")),
        "copies": sum(count - 1 for count in sums.values()),
        "cut": any(row.get("cut") for row in rows),
    }


def render_page(rows: list[Row], totals: Row, title: str, folder: str) -> Iterator[str]:
    """The page in pieces, so that a large one is never whole in memory."""
    yield "<!doctype html>\n<html lang=en>\n<head>\n<meta charset=utf-8>\n"
    yield "<meta name=viewport content='width=device-width, initial-scale=1'>\n"
    yield f'<meta http-equiv=Content-Security-Policy content="{POLICY}">\n'
    yield f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
    yield from render_header(totals, title, folder)
    yield "<div class=table><table>\n<thead><tr><th></th><th>Name</th><th>What is known</th>"
    yield "<th class=number>Size</th><th class=sum>SHA-256</th></tr></thead>\n<tbody>\n"
    seen: dict[str, str] = {}
    for row in rows:
        digest = row.get("sha256") if row.get("size") else None
        first = seen.setdefault(digest, row["name"]) if digest else row["name"]
        yield render_row(row, copy_of=first if first != row["name"] else None)
    yield "</tbody>\n</table></div>\n"
    yield "<footer>Joined by origin from what each branch of the pipeline found out.</footer>\n</body>\n</html>\n"


def render_header(totals: Row, title: str, folder: str) -> Iterator[str]:
    """Title, totals, and a card for each kind that also narrows the table to it."""
    yield f"<header><h1>{escape(title)}</h1>\n<p><bdi>{escape(folder)}</bdi></p>\n"
    said = [f"{count(totals['files'], 'file')}, {human_size(totals['bytes'])}"]
    said += [f"{count(totals['problems'], 'file')} with a problem"] if totals["problems"] else []
    said += [f"{count(totals['copies'], 'copy', 'copies')} of another file"] if totals["copies"] else []
    yield f"<p>{' · '.join(said)}</p></header>\n<div class=kinds>\n"
    yield render_card("all", "Everything", totals["files"], totals["bytes"], checked=True)
    for kind, of_kind in totals["kinds"].items():
        yield render_card(kind, KINDS[kind], of_kind["files"], of_kind["bytes"])
    yield "</div>\n"
    if totals["cut"]:
        yield f"<p class=notice>The folder has more files than the limit: here are the first {totals['files']:,}.</p>\n"


def render_card(kind: str, label: str, files: int, size: int, *, checked: bool = False) -> str:
    """One of the cards above the table; ``kind`` is one of our own words, never a file's."""
    return (
        f"<label><input type=radio name=only id=only-{kind}{' checked' if checked else ''}>"
        f"<b>{files:,}</b>{label}<span>{human_size(size)}</span></label>\n"
    )


def render_row(row: Row, copy_of: str | None) -> str:
    """One file. Everything that comes from the file or its name is escaped."""
    facts = [escape(", ".join(describe_facts(row)))]
    facts += [f"<span><bdi>{escape(name)}</bdi></span>" for name in row.get("listing") or ()]
    facts += [f"<span>the same as <bdi>{escape(copy_of)}</bdi></span>"] if copy_of else []
    facts += [f"<span>{escape(row['note'])}</span>"] if row.get("note") else []
    facts += [f"<span class=problem>{escape(problem)}</span>" for problem in row.get("problems") or ()]
    size = "" if row.get("size") is None else human_size(row["size"])
    digest = escape(row.get("sha256") or "")
    return (
        f"<tr data-kind='{escape(row['kind'])}'><td>{render_picture(row)}</td>"
        f"<td class=name><b><bdi>{escape(row['title'])}</bdi></b><span><bdi>{escape(row['name'])}</bdi></span></td>"
        f"<td class=facts>{''.join(facts)}</td><td class=number>{size}</td>"
        f"<td class=sum><code title='{digest}'>{digest[:12]}</code></td></tr>\n"
    )


def render_picture(row: Row) -> str:
    """The thumbnail, inside the page; without one, the extension of the file."""
    try:
        data = Path(row["thumbnail"]).read_bytes() if row.get("thumbnail") else b""
    except OSError as error:
        return f"<div class=mark title='{escape(describe_problem(error))}'>?</div>"
    if data:
        return f"<img alt='' src='data:image/jpeg;base64,{base64.b64encode(data).decode()}'>"
    extension = Path(row["name"]).suffix.lstrip(".")[:5]
    return f"<div class=mark>{escape(extension) or 'file'}</div>"


def describe_facts(row: Row) -> list[str]:
    """The facts of a file in words, in the order of the kinds; each branch of the pipeline left its own."""
    about = "at least " if row.get("partial") else ""
    said = []
    if "width" in row:
        said += [f"{row['format']}, {row['width']:,} \u00d7 {row['height']:,}"]
    if "words" in row:
        said += [row["language"], f"{about}{count(row['lines'], 'line')}", f"{about}{count(row['words'], 'word')}"]
    if "cues" in row:
        said += [count(row["cues"], "cue"), human_duration(row["duration"])]
    if "entries" in row:
        said += [f"{about}{count(row['entries'], 'file')} inside", f"{about}{human_size(row['unpacked'])} unpacked"]
    if not said and row.get("size") == 0:
        return ["Empty"]
    return said or [row.get("mime_type") or ""]


def count(number: int, one: str, many: str = "") -> str:
    """``1 file``, ``2 files``."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def human_size(size: int) -> str:
    """Bytes in decimal units with three significant digits, as file managers show them."""
    number, unit = float(size), 0
    while number >= 999.5 and unit < len(SIZE_UNITS) - 1:
        number, unit = number / 1000, unit + 1
    digits = 0 if unit == 0 or number >= 99.95 else 1
    return f"{number:.{digits}f} {SIZE_UNITS[unit]}"


def human_duration(seconds: float) -> str:
    """``1:02:03`` or ``2:03``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"

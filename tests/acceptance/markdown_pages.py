"""The code blocks, links and headings of Markdown pages."""

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]

_BLOCK = re.compile(
    r"^```(?P<language>\w*)\n(?P<code>.*?)^```$|^<!-- setup\n(?P<setup>.*?)^-->$", re.MULTILINE | re.DOTALL
)
_FILE_NAME = re.compile(r"(?:#|<!--) (?P<name>[\w./-]+\.\w+)(?P<continued>, continued)?(?: -->)?\n")
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A fenced code block, or the Python of a ``<!-- setup`` comment; ``line`` is that of its first line of code."""

    page: Path
    line: int
    language: str
    code: str

    @property
    def file_name(self) -> str | None:
        """The file that the block belongs in: its first line is a comment with nothing but the name."""
        found = _FILE_NAME.match(self.code)
        return found["name"] if found else None

    def save(self, folder: Path) -> None:
        """Write the block's file, or put the block at its end where the name is followed by ``, continued``."""
        found = _FILE_NAME.match(self.code)
        assert found, self.place
        path = folder / found["name"]
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a" if found["continued"] else "w", encoding="utf-8") as file:
            file.write(f"\n\n{self.code}" if found["continued"] else self.code)

    @property
    def place(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def find_blocks(page: Path, *languages: str) -> list[Block]:
    """The page's blocks, in order; those in the languages, when any is named."""
    text = page.read_text(encoding="utf-8")
    blocks = []
    for found in _BLOCK.finditer(text):
        line = text.count("\n", 0, found.start()) + 2
        language = "python" if found["language"] is None else found["language"]
        blocks.append(Block(page, line, language, found["code"] if found["setup"] is None else found["setup"]))
    return [block for block in blocks if not languages or block.language in languages]


def find_links(page: Path) -> list[str]:
    """Targets of the page's links, as written."""
    return _LINK.findall(_without_blocks(page))


def find_anchors(page: Path) -> set[str]:
    """What a link to a heading of the page may name."""
    return {_to_anchor(heading) for heading in _HEADING.findall(_without_blocks(page))}


def find_tables(page: Path, heading: str) -> list[list[str]]:
    """The rows, less the head, of the tables below a heading; cells without their backticks."""
    section = _HEADING.split(_without_blocks(page))
    body = section[section.index(heading) + 1]
    rows = [line for line in body.splitlines() if line.startswith("|")]
    return [_split_cells(row) for row in rows if not re.fullmatch(r"[|\s:-]+", row)][1:]


def _split_cells(row: str) -> list[str]:
    cells = re.split(r"(?<!\\)\|", row.strip().strip("|"))
    return [cell.strip().replace("\\|", "|") for cell in cells]


def _to_anchor(heading: str) -> str:
    plain = re.sub(r"[^\w\- ]", "", heading.replace("`", "").lower())
    return plain.strip().replace(" ", "-")


def _without_blocks(page: Path) -> str:
    return re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)

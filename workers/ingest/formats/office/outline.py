"""Text in sections under headings -> one passage for each section.

The text of a section is its headings and what follows the last of them; the path of its headings is
metadata, such as `Guide > Install`. Headings with nothing between them belong to one section. Blank
lines separate paragraphs; items of a list and rows of a table are lines.

A row of a table is one line with its cells separated by " | "; an empty cell stays, as nothing
between two separators. A merged cell counts in each row that it covers, unless it is long, and once
in a row. Tables are also used for layout. So a row with one cell is written as blocks, and in a row
with a table inside, or with long text of several paragraphs, the cells follow one another.

Notes and comments become passages of their own behind their section; `part` says what they are.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from shared.bounds import Metadata
from workers.ingest.formats.loader import (
    PassageKey,
    RawDocument,
    RawPassage,
    heading_title,
    too_long,
    too_many,
)

_LONG_ROW_CHARS: Final = 1000
_LONG_CELL_CHARS: Final = 300
"""A merged cell with more text counts only in its first row."""
PATH_SIGN: Final = " > "
SYMBOLS: Final = {
    "\uf02d": "-", "\uf06c": "●", "\uf06e": "■", "\uf06f": "□", "\uf071": "❑", "\uf076": "❖",
    "\uf0a7": "▪", "\uf0a8": "◻", "\uf0b7": "•", "\uf0d8": "➢", "\uf0e0": "→", "\uf0fc": "✓",
}  # fmt: skip
"""Bullets and similar signs in the fonts Symbol and Wingdings, which use private characters."""
_SYMBOLS: Final = str.maketrans(SYMBOLS)
CELL_SIGN: Final = " | "
_MAX_PATH_CHARS: Final = 1000
"""Limit for the path of headings, since each chunk of the section repeats it."""


@dataclass(kw_only=True)
class Cell:
    """The blocks of a cell of a table; with each, whether it is a line of the block before."""

    blocks: list[tuple[str, bool]] = field(default_factory=list)
    has_rows: bool = False
    """Whether it contains a table whose rows have several cells."""

    def text(self) -> str:
        return " ".join(" ".join(text for text, _ in self.blocks).split())

    def lines(self) -> str:
        return "\n".join(text for text, _ in self.blocks)

    def below(self) -> "Cell":
        """The cell as it counts in the rows below its first one, if it is merged."""
        is_long = sum(len(text) for text, _ in self.blocks) > _LONG_CELL_CHARS
        return Cell() if is_long or self.has_rows else self


class Blocks:
    """Receives paragraphs, lines and rows. `Outline` makes passages of them, `CellBlocks` a
    cell."""

    def paragraph(self, text: str) -> None:
        self.add(text, is_line=False)

    def line(self, text: str) -> None:
        self.add(text, is_line=True)

    def add(self, text: str, *, is_line: bool) -> None:
        raise NotImplementedError

    def heading(self, level: int, text: str, *, label: str = "") -> None:
        """`label` is the automatic number of the heading."""
        raise NotImplementedError

    def rows(self, rows: Sequence[Sequence[Cell]]) -> None:
        """Write a whole table."""
        for number, row in enumerate(rows):
            self.row(row, is_first=not number)

    def row(self, row: Sequence[Cell], *, is_first: bool) -> None:
        blocks = sum(len(cell.blocks) for cell in row)
        chars = sum(len(text) for cell in row for text, _ in cell.blocks)
        is_long = chars > _LONG_ROW_CHARS and blocks > len(row)
        if len(row) < 2 or is_long or any(cell.has_rows for cell in row):
            for cell in row:
                is_row = len(row) < 2 and len(cell.blocks) == 1 and not is_first
                for at, (text, is_line) in enumerate(cell.blocks):
                    self.add(text, is_line=is_row or (is_line and at > 0))
            return
        line = CELL_SIGN.join(cell.text() for cell in row)
        if line.strip(" |"):
            self.add(line.strip(), is_line=not is_first)


class CellBlocks(Blocks):
    """Writes into a cell."""

    def __init__(self) -> None:
        self.cell = Cell()

    def heading(self, level: int, text: str, *, label: str = "") -> None:  # noqa: ARG002
        """A paragraph: cells have no sections, whatever the level."""
        self.paragraph(f"{label} {text}" if label else text)

    def add(self, text: str, *, is_line: bool) -> None:
        if text.strip():
            self.cell.blocks.append((text.strip("\n"), is_line))

    def row(self, row: Sequence[Cell], *, is_first: bool) -> None:
        super().row(row, is_first=is_first)
        self.cell.has_rows |= len(row) > 1 or any(cell.has_rows for cell in row)


class Outline(Blocks):
    """Blocks in reading order -> passages."""

    def __init__(self, document: RawDocument, own: Metadata | None = None) -> None:
        """`own` is metadata of each passage. Later calls raise DocumentError if the document has
        more text, or more passages, than the settings allow."""
        self._document = document
        self._own = dict(own or {})
        self._chars = 0
        self._path: list[tuple[int, str]] = []
        self._blocks: list[str] = []
        self._has_body = False
        self._notes: dict[str, list[str]] = {}
        self._passages: list[RawPassage] = []

    def heading(self, level: int, text: str, *, label: str = "") -> None:
        """Level 1 is the outermost; titles have level 0.

        An automatic number is part of the text but not of the path, since it changes when others
        are inserted before it.
        """
        name = heading_title(text)
        if not name:
            return
        if self._has_body:
            self._end_section()
        while self._path and self._path[-1][0] >= level:
            self._path.pop()
        self._path.append((level, name))
        self._blocks.append(f"{label} {text.strip()}" if label else text.strip())

    def add(self, text: str, *, is_line: bool) -> None:
        text = text.strip("\n").translate(_SYMBOLS)
        if not text.strip():
            return
        self._chars += len(text)
        if self._chars > self._document.max_chars:
            raise too_long(self._document.name, self._document.max_chars)
        if is_line and self._has_body:
            self._blocks.append("\n" + text)
        else:
            self._blocks.append(text)
        self._has_body = True

    def note(self, part: str, text: str) -> None:
        """A note or comment at this point of the text."""
        if text.strip():
            self._notes.setdefault(part, []).append(text.strip())

    def passages(self) -> Iterator[RawPassage]:
        """All passages; call it last."""
        self._end_section()
        yield from self._passages

    def _end_section(self) -> None:
        own = dict(self._own)
        if self._path:
            own[PassageKey.HEADING] = PATH_SIGN.join(name for _, name in self._path)[
                :_MAX_PATH_CHARS
            ]
        if self._blocks:
            parts: list[str] = []
            for block in self._blocks:
                parts.append(block if not parts or block[0] == "\n" else "\n\n" + block)
            self._passages.append(("".join(parts), own))
        if len(self._passages) > self._document.max_passages:
            raise too_many(self._document.name, self._document.max_passages)
        for part, texts in self._notes.items():
            self._passages.append(("\n".join(texts), {**own, PassageKey.PART: part}))
        self._blocks, self._has_body, self._notes = [], False, {}

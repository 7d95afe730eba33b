"""Sheets of a workbook (.xlsx, .ods, .xls) -> a passage for each row.

The header row is found by the same signs as in CSV (`tables.py`). Titles above it are a passage of
their own, and a row reads "column: value", a line for each column. A header has several rows if it
has merged cells: `2023 first half`. Without a header, a row is its values, separated by " | ". Rows
have the numbers that people see; metadata has the name of the sheet, and `hidden` for a hidden one.

A merged cell counts in each row that it covers, unless it is long, and once in a row.
`csv.content_columns` and `csv.metadata_columns` select columns as for CSV, in each sheet that has
them. A metadata column has integers, numbers or booleans if all its cells are such and none is
shown with leading zeros; dates are ISO 8601; all other values are the text shown.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, NamedTuple

from shared.bounds import Metadata
from shared.errors import DocumentError
from workers.ingest.formats.loader import PassageKey, RawDocument, RawPassage, too_many
from workers.ingest.formats.office.outline import CELL_SIGN
from workers.ingest.formats.texts.tables import column_names, looks_like_header, named_columns

_HEAD_ROWS: Final = 64
_TITLE_ROWS: Final = 20
_HEADER_ROWS: Final = 5
_LONG_CELL_CHARS: Final = 300

Value = str | int | float | bool


class SheetCell(NamedTuple):
    column: int
    """From 0."""
    text: str
    """The text shown."""
    value: Value
    """The value for a metadata column."""


class SheetRow(NamedTuple):
    number: int
    cells: list[SheetCell]
    """The cells that are not empty, by column."""


class Merge(NamedTuple):
    """Merged cells: first and last row and column, both included; rows as in `SheetRow`."""

    first_row: int
    last_row: int
    first_column: int
    last_column: int


@dataclass(frozen=True, kw_only=True)
class Sheet:
    name: str
    rows: Callable[[], Iterator[SheetRow]]
    """The rows in order; may be called again."""
    merges: Callable[[], Sequence[Merge]] = tuple
    is_hidden: bool = False


@dataclass(kw_only=True)
class _Header:
    titles: list[str] = field(default_factory=list)
    names: dict[int, str] = field(default_factory=dict)
    """Column -> its name; empty without a header."""
    last_row: int = 0
    """The rows of data follow this row."""


def date_value(moment: datetime) -> str:
    """ISO 8601; without a time of day at midnight."""
    if not (moment.hour or moment.minute or moment.second or moment.microsecond):
        return moment.date().isoformat()
    return moment.isoformat(timespec="seconds")


def passages(document: RawDocument, sheets: Sequence[Sheet]) -> Iterator[RawPassage]:
    """Raises DocumentError if a selected column is in no sheet, or if there are too many rows."""
    options = document.options.csv
    chosen = [*(options.content_columns or ()), *(options.metadata_columns or ())]
    left = dict.fromkeys(chosen)
    seen: list[str] = []
    count = 0
    for sheet in sheets:
        for passage in _sheet(document, sheet, left, seen):
            count += 1
            if count > document.max_passages:
                raise too_many(document.name, document.max_passages)
            yield passage
    if left:
        raise DocumentError(
            f"{document.name}: csv.content_columns or csv.metadata_columns name "
            f"{named_columns(list(left))}, which no sheet has. Its columns are "
            f"{named_columns(list(dict.fromkeys(seen)))}."
        )


def _sheet(
    document: RawDocument, sheet: Sheet, left: dict[str, None], seen: list[str]
) -> Iterator[RawPassage]:
    options = document.options.csv
    own: Metadata = {PassageKey.SHEET: sheet.name}
    if sheet.is_hidden:
        own[PassageKey.HIDDEN] = True
    merges = sorted(sheet.merges())
    head: list[SheetRow] = []
    for row in _filled(sheet.rows(), merges):
        head.append(row)
        if len(head) == _HEAD_ROWS:
            break
    if not head:
        return
    header = _header(head, merges)
    by_name = {" ".join(name.split()): column for column, name in header.names.items()}
    seen.extend(by_name)
    content = {by_name[name] for name in options.content_columns or () if name in by_name}
    metadata = {by_name[name] for name in options.metadata_columns or () if name in by_name}
    for name in list(left):
        if name in by_name:
            del left[name]
    numeric = _column_types(_filled(sheet.rows(), merges), header, metadata)
    if header.titles:
        yield "\n".join(header.titles), own
    for row in _filled(sheet.rows(), merges):
        if row.number <= header.last_row:
            continue
        shown = [
            cell
            for cell in row.cells
            if (cell.column in content if content else cell.column not in metadata)
        ]
        if header.names:
            text = "\n".join(f"{_name(header, cell.column)}: {cell.text}" for cell in shown)
        else:
            text = _joined(shown)
        noted: Metadata = {**own, PassageKey.ROW: row.number}
        for cell in row.cells:
            if cell.column in metadata:
                is_typed = cell.column in numeric or isinstance(cell.value, str)
                noted[header.names[cell.column]] = cell.value if is_typed else cell.text
        yield text, noted


def _name(header: _Header, column: int) -> str:
    return header.names.get(column) or f"column {letters(column)}"


def _joined(cells: Sequence[SheetCell]) -> str:
    """The cells separated by " | ", with empty ones between them unless these are many."""
    parts: list[str] = []
    before = cells[0].column if cells else 0
    for cell in cells:
        gap = cell.column - before
        parts.extend([""] * min(max(gap - 1, 0), 8))
        parts.append(" ".join(cell.text.split()))
        before = cell.column
    return CELL_SIGN.join(parts)


def _filled(rows: Iterator[SheetRow], merges: Sequence[Merge]) -> Iterator[SheetRow]:
    """The rows, with merged cells of rows above filled in. Rows with nothing else are left out."""
    waiting = 0
    active: dict[int, tuple[int, SheetCell]] = {}
    """Column -> the last row of a merged cell, and its content."""
    for row in rows:
        if not row.cells:
            continue
        if not merges:
            yield row
            continue
        cells = {cell.column: cell for cell in row.cells}
        own = set(cells)
        for column in [column for column, (last, _) in active.items() if last < row.number]:
            del active[column]
        starting: list[Merge] = []
        while waiting < len(merges) and merges[waiting].first_row <= row.number:
            merge = merges[waiting]
            waiting += 1
            if merge.first_row == row.number:
                starting.append(merge)
        for column, (_, cell) in active.items():
            if column not in own:
                cells[column] = cell
        for merge in starting:
            merged = cells.get(merge.first_column)
            is_short = merged is not None and len(merged.text) <= _LONG_CELL_CHARS
            if merge.last_row > merge.first_row and merged is not None and is_short:
                active[merge.first_column] = merge.last_row, merged
        yield SheetRow(row.number, [cells[column] for column in sorted(cells)])


def _header(head: Sequence[SheetRow], merges: Sequence[Merge]) -> _Header:
    titles: list[str] = []
    at = 0
    width = max(len(row.cells) for row in head)
    if width == 1:
        # One column: the first cell is the name, as in CSV, unless nothing is below it.
        name = head[0].cells[0]
        is_above = any(row.cells[0].column == name.column for row in head[1:])
        if is_above and isinstance(name.value, str) and len(name.text) <= 100:
            return _Header(names={name.column: _plain(name.text)}, last_row=head[0].number)
        return _Header()
    while at < len(head) and len(head[at].cells) == 1 and at < _TITLE_ROWS:
        titles.append(head[at].cells[0].text)
        at += 1
    if at == len(head) or len(head) < at + 2:
        return _Header()
    row = head[at]
    last = _last_header_row(row, merges)
    rows = [other for other in head[at : at + _HEADER_ROWS] if other.number <= last]
    if len(head) < at + len(rows) + 1:
        return _Header()
    names = _names(rows, merges)
    first, end = min(names), max(names) + 1
    if not looks_like_header(
        [names.get(column, "") for column in range(first, end)], width=len(names)
    ):
        return _Header()
    columns = sorted(names)
    unique = column_names([names[column] for column in columns])
    return _Header(
        titles=titles, names=dict(zip(columns, unique, strict=True)), last_row=rows[-1].number
    )


def _last_header_row(row: SheetRow, merges: Sequence[Merge]) -> int:
    """The last row of the header: below cells merged over columns there are names of the single
    columns."""
    spans = [merge for merge in merges if merge.first_row == row.number]
    last = max((merge.last_row for merge in spans), default=row.number)
    is_over_columns = any(merge.last_column > merge.first_column for merge in spans)
    if is_over_columns and last == row.number and len(row.cells) > 1:
        last += 1
    return last if last < row.number + _HEADER_ROWS else row.number


def _names(rows: Sequence[SheetRow], merges: Sequence[Merge]) -> dict[int, str]:
    """Column -> the texts of the header's rows; a merged name counts for all its columns."""
    across = {
        (merge.first_row, merge.first_column): merge.last_column
        for merge in merges
        if merge.first_row <= rows[-1].number
    }
    columns = sorted({cell.column for row in rows for cell in row.cells})
    parts: dict[int, list[str]] = {column: [] for column in columns}
    for row in rows:
        texts = {cell.column: _plain(cell.text) for cell in row.cells}
        above, last = "", -1
        for column in columns:
            if column in texts:
                above, last = texts[column], across.get((row.number, column), column)
            text = above if column <= last else ""
            if text and text not in parts[column]:
                parts[column].append(text)
    return {column: " ".join(names) for column, names in parts.items() if names}


def _column_types(rows: Iterator[SheetRow], header: _Header, metadata: set[int]) -> frozenset[int]:
    """The metadata columns that store values and not the text shown."""
    kinds: dict[int, set[str]] = {column: set() for column in metadata}
    if not metadata:
        return frozenset()
    for row in rows:
        if row.number <= header.last_row:
            continue
        for cell in row.cells:
            if cell.column in kinds:
                kinds[cell.column].add(_kind(cell))
    numbers = ({"int"}, {"float"}, {"int", "float"}, {"bool"})
    return frozenset(column for column, types in kinds.items() if types in numbers)


def _kind(cell: SheetCell) -> str:
    if isinstance(cell.value, bool):
        return "bool"
    if isinstance(cell.value, int | float):
        is_padded = len(cell.text) > 1 and cell.text[0] == "0" and cell.text[1].isdigit()
        return "text" if is_padded else type(cell.value).__name__
    return "text"


def _plain(text: str) -> str:
    return " ".join(text.split())


def letters(column: int) -> str:
    """0 -> A, 26 -> AA."""
    name = ""
    column += 1
    while column:
        column, rest = divmod(column - 1, 26)
        name = chr(65 + rest) + name
    return name

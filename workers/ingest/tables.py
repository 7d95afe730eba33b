"""CSV and TSV text -> one passage of text for each row, with its number and metadata.

The dialect is found from the whole file: the delimiter (comma, semicolon, tab or bar) is the one
under which every row has as many fields as the header. Quoted fields may hold line ends. A row of
another length is an error that names its line; nothing is guessed, padded or cut. The first row
is always the header. A row reads "column: value" line by line, empty values left out.
"""

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

from shared.errors import DocumentError
from shared.payloads import CsvOptions, Metadata

_DELIMITERS: Final = (",", ";", "\t", "|")
_NO_DELIMITER: Final = "\x1f"  # for a file of one column, whose text may hold any of the others
_END_OF_TEXT: Final = "end\x1eof\x1etext"
_ROWS_NAMED_IN_ERRORS: Final = 3


@dataclass(frozen=True, kw_only=True)
class _Dialect:
    delimiter: str = ","
    quoting: bool = True
    strict: bool = True
    skip_space: bool = False


_VARIANTS: Final = (
    _Dialect(),
    _Dialect(skip_space=True),
    _Dialect(strict=False),
    _Dialect(strict=False, quoting=False),
)


class _OpenQuote(Exception):
    """A quote that is never closed, in the row that begins on this line."""

    def __init__(self, line: int) -> None:
        super().__init__(line)
        self.line = line


@dataclass(frozen=True, kw_only=True)
class _Table:
    header: list[str]
    rows: list[tuple[int, list[str]]]  # the line that the row begins on, and its fields

    def misfits(self) -> list[tuple[int, list[str]]]:
        # More fields than the header are no loss if they are empty, as spreadsheets leave them.
        width = len(self.header)
        return [(line, row) for line, row in self.rows if len(row) < width or any(row[width:])]


def rows(
    text: str, *, name: str, options: CsvOptions, delimiter: str | None = None
) -> Iterator[tuple[str, Metadata]]:
    """Each row's text and metadata (`row` counts from 1). Raises `DocumentError`.

    `delimiter` is tried before the others (a .tsv file). Columns named in `metadata_columns` are
    metadata, and text only if `content_columns` names them too.
    """
    table = _read(text, name=name, first=delimiter)
    columns = _column_names(table.header)
    content = _indices(options.content_columns, columns, "csv.content_columns", name)
    metadata = _indices(options.metadata_columns, columns, "csv.metadata_columns", name) or []
    if content is None:
        content = [at for at in range(len(columns)) if at not in metadata]
    if not table.rows:
        raise DocumentError(f"{name}: has a header and no rows. There is nothing to ingest.")
    for number, (_, row) in enumerate(table.rows, start=1):
        lines = [f"{columns[at]}: {row[at].strip()}" for at in content if row[at].strip()]
        own: Metadata = {"row": number}
        own.update({columns[at]: row[at].strip() for at in metadata if row[at].strip()})
        yield "\n".join(lines), own


def _read(text: str, *, name: str, first: str | None) -> _Table:
    # Python refuses fields of more than 128 KiB by default; the document's own limit is enough.
    csv.field_size_limit(max(csv.field_size_limit(), len(text) + 1))
    text, declared = _without_sep_line(text)
    heading = text.lstrip().split("\n", 1)[0]
    fixed = declared or (first if first and first in heading else None)
    delimiters = [fixed] if fixed else [sign for sign in _DELIMITERS if sign in heading]
    if not delimiters:
        return _one_column(text, name)
    failure: DocumentError | None = None
    # From the proper reading to the lenient ones; the last takes quotes as plain characters
    # (5" pipes, database dumps). The first that makes a rectangle is right.
    for variant in _VARIANTS if '"' in text else _VARIANTS[:1]:
        tables: list[_Table] = []
        for delimiter in delimiters:
            try:
                table = _parse(text, replace(variant, delimiter=delimiter))
            except _OpenQuote as quote:
                failure = failure or _unclosed(quote.line, name)
                continue
            except csv.Error:
                continue  # text after a closing quote; a lenient reading takes it
            if len(table.header) > 1:
                tables.append(table)
        fitting = [table for table in tables if not table.misfits()]
        if fitting:
            return max(fitting, key=lambda table: len(table.header))
        if tables:
            best = min(tables, key=lambda table: len(table.misfits()))
            failure = failure or _ragged(best, name)
    if failure is not None:
        raise failure
    return _one_column(text, name)


def _one_column(text: str, name: str) -> _Table:
    try:
        return _parse(text, _Dialect(delimiter=_NO_DELIMITER, strict=False))
    except _OpenQuote as quote:
        raise _unclosed(quote.line, name) from quote


def _parse(text: str, dialect: _Dialect) -> _Table:
    # Without `strict`, Python takes all the rest of the file for the field of an open quote. The
    # line put at the end shows whether that happened.
    end = "" if dialect.strict else f"\n{_END_OF_TEXT}\n"
    reader = csv.reader(
        io.StringIO(text + end, newline=""),
        delimiter=dialect.delimiter,
        quoting=csv.QUOTE_MINIMAL if dialect.quoting else csv.QUOTE_NONE,
        strict=dialect.strict,
        skipinitialspace=dialect.skip_space,
    )
    records: list[tuple[int, list[str]]] = []
    line = 1
    try:
        for record in reader:
            if any(field.strip() for field in record):
                records.append((line, record))
            line = reader.line_num + 1
    except csv.Error as wrong:
        if "unexpected end of data" in str(wrong):
            raise _OpenQuote(line) from wrong
        raise
    if end:
        last_line, last = records.pop()
        if last != [_END_OF_TEXT]:
            raise _OpenQuote(last_line)
    if not records:
        return _Table(header=[], rows=[])
    return _Table(header=records[0][1], rows=records[1:])


def _without_sep_line(text: str) -> tuple[str, str | None]:
    """Excel's own first line, `sep=;`, names the delimiter. Blanked, so that lines still count."""
    head, _, rest = text.partition("\n")
    if head.lower().startswith("sep=") and len(head.rstrip()) <= len("sep=;"):
        return "\n" + rest, head[len("sep=") : len("sep=;")] or None
    return text, None


def _unclosed(line: int, name: str) -> DocumentError:
    return DocumentError(
        f"{name}: a quote that opens in the row on line {line:,} is never closed. Close it, or "
        'write a quote inside a field as "".'
    )


def _ragged(table: _Table, name: str) -> DocumentError:
    misfits = table.misfits()
    named = ", ".join(
        f"line {line:,} has {len(row)} fields" for line, row in misfits[:_ROWS_NAMED_IN_ERRORS]
    )
    more = len(misfits) - _ROWS_NAMED_IN_ERRORS
    return DocumentError(
        f"{name}: the header has {len(table.header)} fields, but {named}"
        + (f" and {more:,} more rows differ" if more > 0 else "")
        + ". Make the rows equally long; a field that holds the delimiter or a line end must be "
        "in double quotes."
    )


def _column_names(header: Sequence[str]) -> list[str]:
    """Names that are all there and all different: `column 3`, `name (2)`."""
    names: list[str] = []
    taken = {cell.strip() for cell in header}
    for at, cell in enumerate(header, start=1):
        name = base = cell.strip() or f"column {at}"
        copy = 2
        while name in names or (name != base and name in taken):
            name, copy = f"{base} ({copy})", copy + 1
        names.append(name)
    return names


def _indices(
    wanted: Sequence[str] | None, columns: Sequence[str], setting: str, name: str
) -> list[int] | None:
    if wanted is None:
        return None
    missing = [column for column in wanted if column not in columns]
    if missing:
        raise DocumentError(
            f"{name}: {setting} names {', '.join(map(repr, missing))}, which the file does not "
            f"have. Its columns are {', '.join(map(repr, columns))}."
        )
    return [columns.index(column) for column in dict.fromkeys(wanted)]

"""CSV and TSV -> one passage of text for each row, with its number and metadata.

The dialect is detected from the whole file: the delimiter (comma, semicolon, tab or bar, or the one
of a first line `sep=;`) and the kind of quoting with which each row has as many fields as the
header. Quoted fields may contain line ends, also in the header. Quotes inside a field are doubled,
or written with a backslash (Spark, MySQL) if the file is a table only so. A row with another number
of fields is an error with its line; nothing is padded or cut. Lines with one field above the header
(titles) and, after a blank line, below the rows (notes) become passages of their own if they are
clearly such, and are else an error that says what to do. Lines that begin with `#` are comments,
and a passage of their own, if the file is a table only without them, or if the first of them is
above a clear header. Another table, after a blank line and with its own header, is read with that
header.

A row reads "column: value", a line for each column; empty values and `\\N`, the NULL of databases,
are left out. The values of a metadata column are stored as integers of at most 64 bits, as decimal
numbers of at most 15 digits, or as booleans if all of them are such and no detail of their spelling
is lost; with leading zeros, signs, exponents, separators, or other values among them, the whole
column is text. A column of dates with the year first is stored in ISO 8601, which filters compare;
all other dates are ambiguous and stay as they are.

Costs are linear: the text is parsed a fixed number of times, row by row, and no table is kept in
memory.
"""

import csv
import io
import itertools
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial
from typing import Final, NamedTuple

from shared.bounds import Metadata
from shared.errors import DocumentError
from shared.kinds.ingest import CsvOptions
from workers.ingest.formats.loader import DocumentParts, Loader, RawDocument
from workers.ingest.formats.texts.text import text_of

MAX_COLUMNS: Final = 10_000
_DELIMITERS: Final = (",", ";", "\t", "|")
_NO_DELIMITER: Final = "\x1f"  # for one column, whose text may contain the others
_NAMED_IN_ERRORS: Final = 3
_COLUMNS_NAMED_IN_ERRORS: Final = 20
_HEAD_RECORDS: Final = 64
_TITLE_RECORDS: Final = 20
_RUNS: Final = 64  # with more changes of the number of fields, it is no table with that delimiter
_NULL: Final = "\\N"
_TABLES: Final = 64  # with more blank lines, these do not separate tables
_BLANK_LINE: Final = re.compile(r'^[,;|\t "]*+$', re.MULTILINE)
_MISSING: Final = frozenset(
    {
        "-",
        "--",
        "—",
        "?",
        "n/a",
        "na",
        "nan",
        "none",
        "null",
        "unknown",
        "tbd",
        "없음",
        "미정",
        "미상",
    }
)
_FILE_END: Final = "\x1a"  # which DOS programs write
_COMMENT: Final = "#"
_COMMENT_LINE: Final = re.compile(rf"^{_COMMENT}", re.MULTILINE)

_INTEGER: Final = re.compile(r"0|-?[1-9][0-9]{0,18}")
_DECIMAL: Final = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.([0-9]+))?")
_DECIMAL_DIGITS: Final = 15  # a double represents as many exactly
_BOOLEANS: Final = {"true": True, "false": False}
_NUMBER: Final = re.compile(r"[-+(]?[$€£¥₩]?\s?[0-9][0-9.,' ]*\)?\s?[%원]?")
_YEAR: Final = re.compile(r"(?:1[89]|20)[0-9]{2}")
_DATE: Final = re.compile(r"[0-9]{2,4}[-./][0-9]{1,2}[-./][0-9]{1,4}\b.*")
# With the year first, so that they are unambiguous. Dots alone also occur in versions (2024.3.1),
# and count only with two digits each, or as Korean writes dates.
_FULL_DATE: Final = re.compile(
    r"(?P<year>[0-9]{4})(?:"
    r"(?P<sign>[-/])(?P<month>[0-9]{1,2})(?P=sign)(?P<day>[0-9]{1,2})"
    r"|\.(?P<month2>[0-9]{2})\.(?P<day2>[0-9]{2})\.?"
    r"|\. ?(?P<month3>[0-9]{1,2})\. ?(?P<day3>[0-9]{1,2})\."
    r"|[년年] ?(?P<month4>[0-9]{1,2})[월月] ?(?P<day4>[0-9]{1,2})[일日]"
    r")"
    r"(?:[T ](?P<time>[0-9]{1,2}:[0-9]{2})(?::(?P<second>[0-9]{2})(?P<fraction>\.[0-9]{1,6})?)?"
    r" ?(?P<zone>Z|[-+][0-9]{2}:?[0-9]{2})?)?"
)
_SEP_LINE: Final = re.compile(r'"?sep=([^"\\\n\s]|\t)"?[ ]*(?=\n)', re.IGNORECASE)
_SIGN_NAMES: Final = {",": "a comma", ";": "a semicolon", "\t": "a tab", "|": "a bar"}
# A number with a decimal comma, or with commas between thousands.
_COMMA_NUMBER: Final = re.compile(r"[-+]?(?:[0-9]+,[0-9]+|[0-9]{1,3}(?:,[0-9]{3})+)(?:\.[0-9]+)?")


@dataclass(frozen=True, kw_only=True)
class _Dialect:
    delimiter: str = ","
    quoting: bool = True
    spaces: bool = False
    """Whether spaces may be between a delimiter and a quote."""
    escapes: bool = False
    """Whether a backslash escapes a quote, a delimiter, a line end or a backslash."""
    comments: bool = False
    """Whether lines that begin with `#`, outside of quotes, are comments."""


class _BadQuote(Exception):
    """In the row that begins at `line`, a quote is never closed, or text follows it."""

    def __init__(self, line: int, *, is_open: bool) -> None:
        super().__init__(line)
        self.line = line
        self.is_open = is_open


class _Record(NamedTuple):
    line: int
    fields: list[str]
    length: int
    """The number of fields without empty ones at the end; never 0."""
    blank_width: int
    """The number of fields of the record before, if all of them are empty; else 0."""

    @property
    def after_blank(self) -> bool:
        return self.blank_width > 0


@dataclass(kw_only=True)
class _RecordRun:
    """Consecutive records: any number of fields from `low` to `high` fits all of them."""

    first: _Record
    low: int
    high: int
    count: int = 1


@dataclass(kw_only=True)
class _Scan:
    """The records of a text in one dialect."""

    reader: "_Reader"
    head: list[_Record] = field(default_factory=list)
    runs: list[_RecordRun] = field(default_factory=list)
    widths: Counter[int] = field(default_factory=Counter)
    bad_quote: _BadQuote | None = None
    too_wide: _Record | None = None
    is_long: bool = False
    """Whether it has more rows than are read."""
    is_whole: bool = False
    """Whether it was scanned to the end."""

    @property
    def first_width(self) -> int:
        return len(self.head[0].fields) if self.head else 0

    def plausibility(self) -> tuple[bool, int]:
        is_table = self.first_width > 1 or self.too_wide is not None
        return is_table, max((run.count for run in self.runs), default=0)


@dataclass(frozen=True, kw_only=True)
class _Table:
    reader: "_Reader"
    comments: list[str]
    titles: list[str]
    header: list[str]
    header_line: int
    notes_line: int | None
    row_count: int

    def rows(self) -> Iterator[list[str]]:
        """The fields of each row, stripped; NULL is empty."""
        width = len(self.header)
        for record in self.reader.records():
            if record.line <= self.header_line:
                continue
            if self.notes_line is not None and record.line >= self.notes_line:
                return
            cells = [cell.strip() for cell in self.reader.fields(record)[:width]]
            yield ["" if cell == _NULL else cell for cell in cells]

    def notes(self) -> list[str]:
        if self.notes_line is None:
            return []
        return [
            self.reader.fields(record)[0].strip()
            for record in self.reader.records()
            if record.line >= self.notes_line
        ]


def rows(
    text: str,
    *,
    name: str,
    options: CsvOptions,
    delimiter: str | None = None,
    max_rows: int = sys.maxsize,
) -> Iterator[tuple[str, Metadata]]:
    """The text and metadata of each row; `row` counts from 1, through all tables.

    `delimiter` is tried before the others (for .tsv). Columns in `metadata_columns` are metadata;
    they are text, too, only if `content_columns` names them.

    Raises DocumentError if the text is no table, or as soon as there are more than `max_rows`
    records.
    """
    # Python refuses fields of more than 128 KiB by default; the limit of the document is enough.
    csv.field_size_limit(max(csv.field_size_limit(), len(text) + 1))
    tables = _find_all(text, name=name, first=delimiter, max_rows=max_rows)
    chosen = [_Columns.of(table, options, name) for table in tables]
    count = 0
    for table, columns in zip(tables, chosen, strict=True):
        yield from _passages(table, columns, first=count + 1)
        count += table.row_count


@dataclass(frozen=True, kw_only=True)
class _Columns:
    """The columns of a table, and which of them are text or metadata."""

    names: list[str]
    content: list[int]
    """The indexes of those that are text."""
    metadata: list[int]

    @classmethod
    def of(cls, table: _Table, options: CsvOptions, name: str) -> "_Columns":
        """Raises DocumentError for columns that the table does not have."""
        names = column_names(table.header)
        content = _indices(options.content_columns, names, "csv.content_columns", name)
        metadata = _indices(options.metadata_columns, names, "csv.metadata_columns", name) or []
        if content is None:
            others = set(metadata)
            content = [at for at in range(len(names)) if at not in others]
        if table.row_count == 0:
            raise DocumentError(f"{name}: has a header and no rows. There is nothing to ingest.")
        return cls(names=names, content=content, metadata=metadata)


def _passages(table: _Table, columns: _Columns, *, first: int) -> Iterator[tuple[str, Metadata]]:
    types = {at: _ColumnType() for at in columns.metadata}
    if types:
        for row in table.rows():
            for at, type_ in types.items():
                if row[at]:
                    type_.see(row[at])
    names = columns.names
    if titles := table.comments + table.titles:
        yield "\n".join(titles), {}
    for number, row in enumerate(table.rows(), start=first):
        lines = [f"{names[at]}: {row[at]}" for at in columns.content if row[at]]
        own: Metadata = {"row": number}
        own.update({names[at]: type_.value(row[at]) for at, type_ in types.items() if row[at]})
        yield "\n".join(lines), own
    if notes := table.notes():
        yield "\n".join(notes), {}


def load(document: RawDocument, *, delimiter: str | None = None) -> DocumentParts:
    options = document.options.csv
    text, metadata = text_of(
        document, encoding=options.encoding, hint="Save it as UTF-8, or set csv.encoding."
    )
    passages = rows(
        text,
        name=document.name,
        options=options,
        delimiter=delimiter,
        max_rows=document.max_passages,
    )
    return DocumentParts(passages=passages, metadata=metadata)


CSV = Loader(
    load=load,
    example=b'day,hours\nMonday,"9, 10"\nFriday,\n',
    example_text="day: Monday\nhours: 9, 10\n\nday: Friday",
)
TSV = Loader(
    load=partial(load, delimiter="\t"),
    example=b"day\thours\nMonday\t9, 10\n",
    example_text="day: Monday\nhours: 9, 10",
)


class _Reader:
    """The records of a text in a dialect, without blank ones. May be read many times."""

    def __init__(self, text: str, dialect: _Dialect) -> None:
        self.dialect = dialect
        self._source = text
        self.comments: list[str] = []
        """The comments read so far."""
        self._line_end = ""
        self._escaped: dict[int, str] = {}
        self._is_record_open = False
        if dialect.spaces:
            # After a closing quote; the csv module handles spaces before an opening one.
            sign = re.escape(dialect.delimiter)
            text = re.sub(rf'(?<=[^"\n{sign}])" ++(?={sign}|\n|\Z)', '"', text)
        if dialect.escapes:
            text = self._without_escapes(text)
        self._text = text

    def under(self, dialect: _Dialect) -> "_Reader":
        return _Reader(self._source, dialect)

    def _without_escapes(self, text: str) -> str:
        """Replace escaped characters by others that are nowhere in the text, while it is parsed."""
        used = set(text)
        unused = (chr(code) for code in (*range(0xFDD0, 0xFDF0), *range(0xF0000, 0x110000)))
        stand_ins = dict(
            zip(
                ('"', "\\", "\n", self.dialect.delimiter),
                (char for char in unused if char not in used),
                strict=False,
            )
        )
        self._line_end = stand_ins["\n"]
        self._escaped = {ord(stand_in): char for char, stand_in in stand_ins.items()}
        signs = re.escape(self.dialect.delimiter)
        return re.sub(rf'\\(["\\\n{signs}])', lambda escape: stand_ins[escape[1]], text)

    def _without_comments(self, source: Iterable[str]) -> Iterator[str]:
        """The lines, with comments replaced by blank ones, so that quotes in them do not count. A
        comment is only where the parser reads the first line of a record."""
        self.comments = []
        self._is_record_open = False
        for line in source:
            if not self._is_record_open and line.startswith(_COMMENT):
                self.comments.append(line.strip().translate(self._escaped))
                line = "\n"
            self._is_record_open = True
            yield line

    def fields(self, record: _Record) -> list[str]:
        if not self._escaped:
            return record.fields
        return [cell.translate(self._escaped) for cell in record.fields]

    def records(self) -> Iterator[_Record]:
        """Raises _BadQuote."""
        source = io.StringIO(self._text, newline="")
        reader = csv.reader(
            self._without_comments(source) if self.dialect.comments else source,
            delimiter=self.dialect.delimiter,
            quoting=csv.QUOTE_MINIMAL if self.dialect.quoting else csv.QUOTE_NONE,
            strict=True,
            skipinitialspace=self.dialect.spaces,
        )
        line = 1
        escaped_lines = 0
        blank_width = 0
        comments = 0
        try:
            for cells in reader:
                self._is_record_open = False
                length = len(cells)
                while length and not cells[length - 1].strip():
                    length -= 1
                if length:
                    yield _Record(line=line, fields=cells, length=length, blank_width=blank_width)
                if len(self.comments) == comments:
                    blank_width = 0 if length else max(1, len(cells))
                comments = len(self.comments)
                if self._line_end:
                    escaped_lines += sum(cell.count(self._line_end) for cell in cells)
                line = reader.line_num + 1 + escaped_lines
        except csv.Error as wrong:
            raise _BadQuote(line, is_open="unexpected end of data" in str(wrong)) from wrong


def _find_all(text: str, *, name: str, first: str | None, max_rows: int) -> list[_Table]:
    """The table of the text, as in most files; or its tables, separated by blank lines, each with
    its header."""
    text, declared = _without_sep_line(text.rstrip(_FILE_END))
    present = [sign for sign in _DELIMITERS if sign in text]
    groups = [present]
    if declared:
        groups = [[declared]]
    elif first and first in text:
        groups = [[first], [sign for sign in present if sign != first]]
    failure: DocumentError | None = None
    table: _Table | None = None
    try:
        table = _find(text, groups, name=name, max_rows=max_rows)
    except DocumentError as error:
        failure = error
    if _BLANK_LINE.search(text.strip()):
        signs = [sign for group in groups for sign in group]
        if table is not None and table.reader.dialect.delimiter in signs:
            signs = [table.reader.dialect.delimiter]
        for starts in filter(None, (_starts_of_tables(text, sign) for sign in signs)):
            try:
                return [
                    _find(part, groups, name=name, max_rows=max_rows)
                    for part in _parts_from_lines(text, starts)
                ]
            except DocumentError as error:
                failure = failure or error
    if table is None:
        assert failure is not None
        raise failure
    return [table]


def _parts_from_lines(text: str, starts: Sequence[int]) -> Iterator[str]:
    """Parts of the text that begin at these lines. As many line ends precede a part as in the whole
    text, so that line numbers stay right."""
    lines = text.split("\n")
    for start, end in itertools.pairwise([1, *starts, len(lines) + 1]):
        yield "\n" * (start - 1) + "\n".join(lines[start - 1 : end - 1])


def _starts_of_tables(text: str, delimiter: str) -> list[int]:
    """The lines where further tables begin: after a blank line, with a header that is no row of the
    table before. None if in doubt."""
    blocks: list[list[_Record]] = []
    try:
        for record in _Reader(text, _Dialect(delimiter=delimiter)).records():
            if not blocks or record.after_blank:
                if len(blocks) == _TABLES:
                    return []
                blocks.append([])
            if len(blocks[-1]) < _HEAD_RECORDS:
                blocks[-1].append(record)
    except _BadQuote:
        return []
    starts: list[int] = []
    table: Sequence[_Record] = ()
    for block in blocks:
        below = _without_titles(block)
        if len(table) < 2:
            table = below
            if len(table) > 1 and not _looks_like_header(table[0]):
                return []
        elif _is_further_table(below, table, delimiter):
            starts.append(block[0].line)
            table = below
    return starts


def _without_titles(block: Sequence[_Record]) -> Sequence[_Record]:
    """The records from the first one with several fields on."""
    first = next((at for at, record in enumerate(block) if record.length > 1), len(block))
    return block[first:] if first <= _TITLE_RECORDS else ()


def _is_further_table(records: Sequence[_Record], above: Sequence[_Record], delimiter: str) -> bool:
    if len(records) < 2 or not _looks_like_header(records[0]):
        return False
    if _is_spaced(records, delimiter) and not _is_spaced(above, delimiter):
        return False  # sentences with commas
    header, *rows = records
    if any(row.length > header.length for row in rows):
        return False
    before = above[0]
    if header.fields[: header.length] == before.fields[: before.length]:
        return True  # as programs print it on each page
    if any(cell.strip().lower() in _MISSING for cell in header.fields):
        return False
    is_as_wide = len(header.fields) == len(before.fields)
    if not is_as_wide and header.length != before.length:
        return True
    if any(_is_value(cell) for cell in header.fields[: header.length]):
        return False
    return _has_types(
        [record._replace(fields=record.fields[: header.length]) for record in records]
    )


def _find(text: str, groups: Sequence[Sequence[str]], *, name: str, max_rows: int) -> _Table:
    """The table, with the first group of delimiters for which there is one."""
    failure: DocumentError | None = None
    for signs in groups:
        scans: list[_Scan] = []
        for variant in _variants(text, signs):
            tried = [
                _scan(_Reader(text, replace(variant, delimiter=sign)), max_rows) for sign in signs
            ]
            tables = [table for table in map(_table, tried) if table is not None]
            if tables:
                best = max(tables, key=lambda table: (not table.titles, len(table.header)))
                return _below_comments(best, max_rows) or best
            if variant.quoting and not variant.comments:
                scans += tried
        failure = failure or _failure(scans, text=text, name=name, max_rows=max_rows)
    if failure is not None:
        raise failure
    return _one_column(text, name, max_rows)


def _below_comments(table: _Table, max_rows: int) -> _Table | None:
    """The table without the comment that was read as its header, if it clearly is one."""
    cells = table.header
    if table.titles or not cells[0].startswith(_COMMENT):
        return None
    dialect = replace(table.reader.dialect, comments=True)
    scan = _scan(table.reader.under(dialect), max_rows)
    below = _table(scan)
    if below is None or below.titles or not _looks_like_header(scan.head[0]):
        return None
    delimiter = dialect.delimiter
    is_prose = delimiter in ",;" and all(cell.startswith(" ") for cell in cells[1:] if cell)
    is_sure = _has_types(scan.head) or (is_prose and not _is_spaced(scan.head, delimiter))
    return below if is_sure else None


def _one_column(text: str, name: str, max_rows: int) -> _Table:
    scans: list[_Scan] = []
    for variant in _variants(text, [_NO_DELIMITER]):
        scan = _scan(_Reader(text, replace(variant, delimiter=_NO_DELIMITER)), max_rows)
        if (table := _table(scan)) is not None:
            return table
        if scan.is_long:
            raise _too_many_rows(max_rows, name)
        scans.append(scan)
    broken = next(scan.bad_quote for scan in scans if scan.bad_quote)
    raise _quote_error(broken, name)


def _variants(text: str, signs: Sequence[str]) -> list[_Dialect]:
    """The dialects, from the proper one to the others. The first that makes a rectangle is
    right."""
    variants = _quotings(text, signs)
    if _COMMENT_LINE.search(text):
        variants += [replace(variant, comments=True) for variant in variants]
    return variants


def _quotings(text: str, signs: Sequence[str]) -> list[_Dialect]:
    if '"' not in text and "\\" not in text:
        return [_Dialect()]
    variants = [_Dialect()]
    either = "".join(map(re.escape, signs)) or _NO_DELIMITER
    has_spaces = re.search(rf'[{either}] ++"|" ++[{either}\n]', text) is not None
    if has_spaces:
        # First, since ` "a"` would be read as an unquoted field.
        variants.insert(0, _Dialect(spaces=True))
    if re.search(rf'\\["\n{either}]', text):
        variants.append(_Dialect(escapes=True))
        if has_spaces:
            variants.append(_Dialect(escapes=True, spaces=True))
    # Quotes as ordinary characters (5" pipes, database dumps), unless some field is quoted.
    if not re.search(rf'(?:^|[{either}])"[^"\n]*"(?:[{either}]|$)', text, re.MULTILINE):
        variants.append(_Dialect(quoting=False))
        if re.search(rf"\\[\n{either}]", text):
            variants.append(_Dialect(quoting=False, escapes=True))
    return variants


def _scan(reader: _Reader, max_rows: int) -> _Scan:
    scan = _Scan(reader=reader)
    count = 0
    try:
        for record in reader.records():
            width = len(record.fields)
            if record.length > MAX_COLUMNS:
                scan.too_wide = record
                return scan
            count += 1
            if count > max_rows + 1 + 2 * _TITLE_RECORDS:
                scan.is_long = True
                return scan
            scan.widths[width] += 1
            if len(scan.head) < _HEAD_RECORDS:
                scan.head.append(record)
            run = scan.runs[-1] if scan.runs else None
            # Fields beyond the header are no loss if they are empty; spreadsheets write such.
            if run and max(run.low, record.length) <= min(run.high, width):
                run.low, run.high = max(run.low, record.length), min(run.high, width)
                run.count += 1
            elif len(scan.runs) == _RUNS:
                return scan
            else:
                scan.runs.append(_RecordRun(first=record, low=record.length, high=width))
    except _BadQuote as broken:
        scan.bad_quote = broken
        return scan
    scan.is_whole = True
    return scan


def _table(scan: _Scan) -> _Table | None:
    """The rectangle of the records without titles and notes; None if there is none."""
    if not scan.is_whole or not scan.runs:
        return None
    runs = list(scan.runs)
    notes_line: int | None = None
    if len(runs) > 1 and runs[-2].low > 1 and runs[-2].count > 1 and _are_notes(runs[-1]):
        notes_line = runs.pop().first.line
    body = runs[-1]
    is_single = scan.reader.dialect.delimiter == _NO_DELIMITER
    if body.high < 2 and not is_single:
        return None
    above = sum(run.count for run in runs[:-1])
    if above > _TITLE_RECORDS:
        return None
    if above and not _is_header_below_titles(scan, above, body):
        return None
    # Spreadsheets pad titles to the width of the table.
    padded = above + _padded_titles(scan.head[above:])
    header = scan.head[padded]
    has_names = not _is_below_empty_header(header) or padded
    return _Table(
        reader=scan.reader,
        comments=list(scan.reader.comments),
        titles=[_title(scan.reader, record) for record in scan.head[:padded]],
        header=scan.reader.fields(header)[: body.high] if has_names else [""] * body.high,
        header_line=header.line if has_names else header.line - 1,
        notes_line=notes_line,
        row_count=body.count - (padded - above) - bool(has_names),
    )


def _is_below_empty_header(record: _Record) -> bool:
    """Whether a row of values follows a row as wide without any name. (Above titles such a row is
    blank.)"""
    cells = [cell.strip() for cell in record.fields]
    return record.blank_width == len(cells) > 1 and any(
        _is_value(cell) and not _YEAR.fullmatch(cell) for cell in cells
    )


def _title(reader: "_Reader", record: _Record) -> str:
    return reader.dialect.delimiter.join(reader.fields(record)[: record.length]).strip()


def _are_notes(run: _RecordRun) -> bool:
    return run.first.after_blank and run.low == 1 and run.count <= _TITLE_RECORDS


def _is_header_below_titles(scan: _Scan, above: int, body: _RecordRun) -> bool:
    """Whether the records above the widest part are clearly titles, and it has a header."""
    titles, rest = scan.head[:above], scan.head[above:]
    if not rest or body.count < 2 or not _looks_like_header(rest[0]):
        return False
    is_spaced = _is_spaced(rest, scan.reader.dialect.delimiter)
    for title in titles:
        if title.length > 1 and (is_spaced or not _is_spaced([title], ",")):
            return False
    has_types = _has_types(rest)
    if is_spaced:  # sentences with commas look like this
        return has_types or (body.count > 2 and (body.high > 2 or rest[0].after_blank))
    return has_types or body.high > 2 or above > 1 or rest[0].after_blank


def _has_types(records: Sequence[_Record]) -> bool:
    """Whether some column has numbers or dates below a name that is none."""
    return len(records) > 1 and any(
        all(_is_value(row.fields[at]) for row in records[1:])
        for at in range(min(len(record.fields) for record in records))
        if not _is_value(records[0].fields[at])
    )


def _padded_titles(head: Sequence[_Record]) -> int:
    """How many records at the beginning have only a first field and precede what looks like a
    header."""
    count = 0
    while count < len(head) and head[count].length == 1 and len(head[count].fields) > 1:
        count += 1
    if not count or count > _TITLE_RECORDS or len(head) < count + 2:
        return 0
    header, row = head[count], head[count + 1]
    if not _looks_like_header(header):
        return 0
    if len(header.fields) == 2:  # `note,` may also be a header with one name
        is_table = header.length == 2 and any(
            _is_value(cell) and not _is_value(above)
            for cell, above in zip(row.fields, header.fields, strict=False)
        )
        return count if is_table else 0
    return count


def _looks_like_header(record: _Record) -> bool:
    return looks_like_header(record.fields, width=record.length)


def looks_like_header(fields: Sequence[str], *, width: int) -> bool:
    """Whether the fields may be the names of `width` columns."""
    cells = [cell.strip() for cell in fields if cell.strip()]
    names = [cell for cell in cells if not _is_value(cell)]
    return (
        len(cells) >= 2
        and 2 * len(cells) > width
        and len(set(cells)) == len(cells)
        and bool(names)
        and all(_YEAR.fullmatch(cell) for cell in cells if _is_value(cell))
    )


def _is_value(cell: str) -> bool:
    """Whether it is a number, date or boolean, which headers do not contain."""
    cell = cell.strip()
    return bool(_NUMBER.fullmatch(cell) or _DATE.fullmatch(cell) or cell.lower() in _BOOLEANS)


def _is_spaced(records: Sequence[_Record], delimiter: str) -> bool:
    """Whether a space follows each delimiter, as in prose."""
    if delimiter not in ",;":
        return False
    return all(
        all(not cell or cell.startswith(" ") for cell in record.fields[1:]) for record in records
    )


def _without_sep_line(text: str) -> tuple[str, str | None]:
    """The first line `sep=;` of Excel names the delimiter. It is made blank, so that line numbers
    stay right."""
    declared = _SEP_LINE.match(text)
    if declared is None:
        return text, None
    return text[declared.end() :], declared[1]


def _failure(
    scans: Sequence[_Scan], *, text: str, name: str, max_rows: int
) -> DocumentError | None:
    """Why the most likely dialect does not fit; None if a single column is more likely."""
    likely = [scan for scan in scans if scan.plausibility()[0] or _is_table_below(scan, text)]
    if not likely:
        return None
    best = max(likely, key=_Scan.plausibility)
    if best.too_wide is not None:
        return DocumentError(
            f"{name}: line {best.too_wide.line:,} has {len(best.too_wide.fields):,} columns; at "
            f"most {MAX_COLUMNS:,} can be read. Leave columns out, or turn the table around."
        )
    if best.bad_quote is not None:
        return _quote_error(best.bad_quote, name)
    if best.is_long:
        return _too_many_rows(max_rows, name)
    header = best.head[0]
    widest = max(best.runs, key=lambda run: run.count)
    if widest is not best.runs[0] and widest.count >= best.runs[0].count:
        above = sum(run.count for run in best.runs[: best.runs.index(widest)])
        if above >= len(best.head) or not _is_header_below_titles(best, above, widest):
            return _title_error(best, widest, name)
        header = best.head[above]
    return _ragged(best, header, name)


def _too_many_rows(max_rows: int, name: str) -> DocumentError:
    return DocumentError(
        f"{name}: has more than {max_rows:,} rows or records, each a chunk. Divide it, or raise "
        "SLUICE_MAX_DOCUMENT_CHUNKS."
    )


def _is_table_below(scan: _Scan, text: str) -> bool:
    """Whether most records have the same number of fields, more than one, though the first has
    one."""
    sign = scan.reader.dialect.delimiter
    width, count = max(scan.widths.items(), key=lambda item: item[1], default=(0, 0))
    if width < 2 or 2 * count <= scan.widths.total() - 1:
        return False
    if sign in ",;" and 10 * (text.count(sign + " ") + text.count(sign + "\n")) >= 9 * text.count(
        sign
    ):
        return False  # prose
    rest = scan.head[1:]
    return sign != "," or not all(_COMMA_NUMBER.fullmatch(",".join(r.fields)) for r in rest)


def _quote_error(broken: _BadQuote, name: str) -> DocumentError:
    if broken.is_open:
        return DocumentError(
            f"{name}: a quote that opens in the row on line {broken.line:,} is never closed. Close "
            'it, or write a quote inside a field as "".'
        )
    return DocumentError(
        f"{name}: in the row on line {broken.line:,}, text follows the quote that closes a field. "
        'Put the whole field in double quotes, and write a quote inside it as "".'
    )


def _title_error(scan: _Scan, body: _RecordRun, name: str) -> DocumentError:
    first, line = scan.head[0], body.first.line
    fields = "1 field" if len(first.fields) == 1 else f"{len(first.fields)} fields"
    return DocumentError(
        f"{name}: line {first.line:,}, which should be the header, has {fields}, but the rows from "
        f"line {line:,} on have {body.high}. If what is above line {line:,} is a title, remove it, "
        "so that the header comes first; a field that holds the delimiter "
        f"({_SIGN_NAMES.get(scan.reader.dialect.delimiter, 'as declared')}) or a line end must be "
        "in double quotes."
    )


def _ragged(scan: _Scan, header: _Record, name: str) -> DocumentError:
    width = len(header.fields)
    misfits: list[tuple[int, int]] = []
    more = 0
    try:
        for record in scan.reader.records():
            is_fitting = max(header.length, record.length) <= min(width, len(record.fields))
            if record.line < header.line or is_fitting:
                continue
            if len(misfits) < _NAMED_IN_ERRORS:
                misfits.append((record.line, len(record.fields)))
            else:
                more += 1
    except _BadQuote as broken:
        return _quote_error(broken, name)
    if not misfits:
        # Each row fits the header, but with another number of columns.
        misfits = [(run.first.line, len(run.first.fields)) for run in scan.runs[1:2]]
    named = ", ".join(f"line {line:,} has {count} fields" for line, count in misfits)
    return DocumentError(
        f"{name}: the header has {width} fields, but {named}"
        + (f" and {more:,} more rows differ" if more > 0 else "")
        + ". Make the rows equally long; a field that holds the delimiter or a line end must be "
        "in double quotes."
    )


def column_names(header: Sequence[str]) -> list[str]:
    """Names on one line, none empty or repeated: `column 3`, `name (2)`."""
    bases = [_plain(cell) or f"column {at}" for at, cell in enumerate(header, start=1)]
    taken = set(bases)
    seen: set[str] = set()
    copies: dict[str, int] = {}
    names: list[str] = []
    for base in bases:
        name = base
        if base in seen:
            copy = copies.get(base, 2)
            while (name := f"{base} ({copy})") in taken:
                copy += 1
            copies[base] = copy + 1
            taken.add(name)
        seen.add(base)
        names.append(name)
    return names


def _plain(name: str) -> str:
    return " ".join(name.split())


def _indices(
    selected: Sequence[str] | None, columns: Sequence[str], setting: str, name: str
) -> list[int] | None:
    if selected is None:
        return None
    indexes = {column: at for at, column in reversed(list(enumerate(columns)))}
    selected = [_plain(column) for column in selected]
    missing = [column for column in selected if column not in indexes]
    if missing:
        raise DocumentError(
            f"{name}: {setting} names {named_columns(missing)}, which the file does not have. Its "
            f"columns are {named_columns(columns)}."
        )
    return [indexes[column] for column in dict.fromkeys(selected)]


def named_columns(columns: Sequence[str]) -> str:
    """The names, for messages."""
    named = ", ".join(map(repr, columns[:_COLUMNS_NAMED_IN_ERRORS]))
    more = len(columns) - _COLUMNS_NAMED_IN_ERRORS
    return named + (f" and {more:,} more" if more > 0 else "")


@dataclass(kw_only=True)
class _ColumnType:
    """The type that the values of a column can be stored as without losing their spelling."""

    is_integer: bool = True
    is_decimal: bool = True
    is_boolean: bool = True
    is_date: bool = True
    zones: set[str] = field(default_factory=set)
    """Of times; dates have none."""
    scales: set[int] = field(default_factory=set)
    """The numbers of decimals of the values."""
    is_shortest: bool = True
    """Whether no value has zeros at its end that a number would lose."""

    def see(self, cell: str) -> None:
        self.is_boolean = self.is_boolean and cell.lower() in _BOOLEANS
        if self.is_date:
            date = _FULL_DATE.fullmatch(cell)
            self.is_date = date is not None and _iso(date) is not None
            if date is not None and date["time"]:
                self.zones.add((date["zone"] or "").replace(":", ""))
        self.is_integer = (
            self.is_integer
            and _INTEGER.fullmatch(cell) is not None
            and -(2**63) <= int(cell) < 2**63
        )
        if not self.is_decimal:
            return
        decimal = _DECIMAL.fullmatch(cell) if len(cell) <= _DECIMAL_DIGITS + 2 else None
        digits = sum(char.isdigit() for char in cell)
        if decimal is None or digits > _DECIMAL_DIGITS or (cell[0] == "-" and not float(cell)):
            self.is_decimal = False
            return
        self.scales.add(len(decimal[1] or ""))
        self.is_shortest = self.is_shortest and cell in (repr(float(cell)), f"{float(cell):.0f}")

    def value(self, cell: str) -> str | int | float | bool:
        if self.is_boolean:
            return _BOOLEANS[cell.lower()]
        if self.is_integer:
            return int(cell)
        # Texts of times in several zones do not sort by time.
        if self.is_date and len(self.zones) <= 1 and (date := _FULL_DATE.fullmatch(cell)):
            return _iso(date) or cell
        # 12.50 among prices with two decimals is a number; 1.10 among 1.1 and 1.2 is a version.
        if self.is_decimal and (self.is_shortest or len(self.scales) == 1):
            return float(cell)
        return cell


def _iso(date: re.Match[str]) -> str | None:
    """ISO 8601, as precise as it is written; None if there is no such day or time."""
    parts = date.groupdict()
    month, day = (
        next(int(parts[key + n]) for n in ("", "2", "3", "4") if parts[key + n])
        for key in ("month", "day")
    )
    hour, minute = map(int, (parts["time"] or "0:0").split(":"))
    try:
        datetime(int(parts["year"]), month, day, hour, minute, int(parts["second"] or 0))
    except ValueError:
        return None
    iso = f"{parts['year']}-{month:02}-{day:02}"
    if not parts["time"]:
        return iso
    seconds = f":{parts['second']}{parts['fraction'] or ''}" if parts["second"] else ""
    zone = parts["zone"] or ""
    if len(zone) == len("+0900"):
        zone = f"{zone[:3]}:{zone[3:]}"
    return f"{iso}T{hour:02}:{minute:02}{seconds}{zone}"

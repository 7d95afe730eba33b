"""Excel workbooks (.xlsx, .xlsm, .xltx, Office Open XML, ISO/IEC 29500) -> a passage for each row.

Numbers, dates, percentages and currencies are text as people see them (`number_formats.py`). A
formula counts as its value when the workbook was last saved, or else as the formula. `sheets.py`
describes rows, headers and merged cells. Notes and comments on cells, and text of shapes, are
passages of their own (`part` in the metadata). Charts and pictures are not read.

By lxml alone: openpyxl builds an object for each cell that a merged cell covers, which may be
billions in a file of 5 kB, and does not format numbers; LangChain's loader for Excel needs
unstructured, which loses rows. Here only cells in the file have a cost.
"""

import re
from collections.abc import Iterator, Sequence
from functools import lru_cache, partial
from itertools import chain
from typing import Final, NamedTuple

from lxml import etree

from workers.ingest.formats.loader import DocumentParts, Loader, RawDocument, RawPassage
from workers.ingest.formats.office import number_formats
from workers.ingest.formats.office.package import (
    Package,
    Relation,
    archive_of,
    attribute,
    child,
    children,
    core_properties,
    descendants,
    local,
)
from workers.ingest.formats.office.sheets import (
    Merge,
    Sheet,
    SheetCell,
    SheetRow,
    Value,
    date_value,
    passages,
)

_REFERENCE: Final = re.compile(r"\$?([A-Za-z]{1,3})\$?([0-9]{1,7})")
_MERGE: Final = re.compile(
    rb"<(?:\w+:)?mergeCell\s[^>]{0,200}?ref\s*=\s*[\"']([A-Za-z0-9:$]+)[\"']"
)
_ESCAPE: Final = re.compile(r"_x([0-9A-Fa-f]{4})_")
_LAST_ROW: Final = 1_048_576
_LAST_COLUMN: Final = 16_384


class _Book(NamedTuple):
    package: Package
    strings: list[str]
    formats: list[str]
    """Number format codes, by the index of a cell's style."""
    is_1904: bool


def load(document: RawDocument) -> DocumentParts:
    package = Package(document, kind="an Excel workbook (.xlsx)")
    main = next(
        (r.target for r in package.relations("").values() if r.type == "officeDocument"),
        "xl/workbook.xml",
    )
    root = package.xml(main)
    if root is None or local(root) != "workbook":
        raise package.lacks("xl/workbook.xml")
    relations = package.relations(main)
    targets = {relation.type: relation.target for relation in relations.values()}
    book = _Book(
        package=package,
        strings=list(_strings(package, targets.get("sharedStrings", ""))),
        formats=_formats(package.xml(targets.get("styles", ""))),
        is_1904=(_attribute_of(child(root, "workbookPr"), "date1904") or "0") in ("1", "true"),
    )
    sheets: list[Sheet] = []
    parts: set[str] = set()
    beside: list[Iterator[RawPassage]] = []
    for node in children(child(root, "sheets"), "sheet"):
        relation = relations.get(attribute(node, "id") or "")
        if relation is None or relation.type not in ("worksheet", "dialogsheet"):
            continue  # a sheet that is a chart
        if relation.target in parts:
            continue
        parts.add(relation.target)
        name = node.get("name") or ""
        sheets.append(
            Sheet(
                name=name,
                rows=partial(_rows, book, relation.target),
                merges=partial(_merges, book, relation.target),
                is_hidden=node.get("state") in ("hidden", "veryHidden"),
            )
        )
        beside.append(_beside(book, relation, name))
    return DocumentParts(
        passages=chain(passages(document, sheets), chain.from_iterable(beside)),
        metadata=dict(core_properties(package)),
    )


def _attribute_of(node: etree._Element | None, name: str) -> str | None:
    return None if node is None else attribute(node, name)


def _rows(book: _Book, part: str) -> Iterator[SheetRow]:
    number = 0
    for row in book.package.events(part, ("{*}row",)):
        stated = row.get("r")
        number = int(stated) if stated and stated.isdecimal() else number + 1
        if not 0 < number <= _LAST_ROW:
            continue
        cells: dict[int, SheetCell] = {}
        column = -1
        for node in row:
            if local(node) != "c":
                continue
            reference = _REFERENCE.fullmatch(node.get("r") or "")
            column = _column(reference[1]) if reference else column + 1
            cell = _cell(book, node, column) if column < _LAST_COLUMN else None
            if cell is not None and cell.text.strip():
                cells[column] = cell
        if cells:
            yield SheetRow(number, [cells[at] for at in sorted(cells)])


def _cell(book: _Book, node: etree._Element, column: int) -> SheetCell | None:
    kind = node.get("t", "n")
    raw: str | None = None
    formula: str | None = None
    for part in node:
        name = local(part)
        if name == "v":
            raw = part.text
        elif name == "f":
            formula = part.text
        elif name == "is" and kind == "inlineStr":
            raw = _rich_text(part)
    if raw is None or (raw == "" and kind != "str"):
        return SheetCell(column, f"={formula}", f"={formula}") if formula else None
    style = node.get("s", "0")
    code = (
        book.formats[int(style)]
        if style.isdecimal() and int(style) < len(book.formats)
        else number_formats.GENERAL
    )
    if kind == "s":
        at = int(raw) if raw.strip().isdecimal() else -1
        text = book.strings[at] if 0 <= at < len(book.strings) else ""
        return SheetCell(column, number_formats.shown_text(text, code), text)
    if kind in ("str", "inlineStr"):
        text = _unescaped(raw)
        return SheetCell(column, number_formats.shown_text(text, code), text)
    if kind == "b":
        truth = raw.strip() in ("1", "true")
        return SheetCell(column, "TRUE" if truth else "FALSE", truth)
    if kind == "n":
        return number_cell(column, raw, code, is_1904=book.is_1904)
    return SheetCell(column, raw, raw)  # an error such as #DIV/0!, or a date in ISO 8601


def number_cell(column: int, raw: str, code: str, *, is_1904: bool) -> SheetCell:
    try:
        number = float(raw)
    except ValueError:
        return SheetCell(column, raw, raw)
    if number != number or number in (float("inf"), float("-inf")):
        return SheetCell(column, raw, raw)
    try:
        text = number_formats.shown(number, code, is_1904=is_1904)
    except (ArithmeticError, ValueError):
        text = number_formats.general(number)
    value: Value = int(number) if number == int(number) and abs(number) < 2**53 else number
    if number_formats.is_date(code):
        moment = number_formats.moment(number, is_1904=is_1904)
        is_day = moment is not None and number >= 1 and not number_formats.is_elapsed(code)
        value = date_value(moment) if moment is not None and is_day else text
    return SheetCell(column, text, value)


def _strings(package: Package, part: str) -> Iterator[str]:
    for node in package.events(part, ("{*}si",)):
        yield _rich_text(node)


def _rich_text(node: etree._Element) -> str:
    """The text of a cell, without the phonetic guides of East Asian text (`rPh`)."""
    parts: list[str] = []
    for part in node:
        name = local(part)
        if name == "t":
            parts.append(part.text or "")
        elif name == "r":
            parts.extend(text.text or "" for text in children(part, "t"))
    return _unescaped("".join(parts))


def _unescaped(text: str) -> str:
    """`_x000D_` encodes a character that XML cannot contain."""
    if "_x" not in text:
        return text
    return _ESCAPE.sub(lambda escape: chr(int(escape[1], 16)), text).replace("\r\n", "\n")


def _formats(root: etree._Element | None) -> list[str]:
    codes = dict(number_formats.BUILT_IN)
    for node in children(child(root, "numFmts"), "numFmt"):
        id_ = node.get("numFmtId") or ""
        if id_.isdecimal() and node.get("formatCode"):
            codes[int(id_)] = node.get("formatCode") or ""
    formats: list[str] = []
    for node in children(child(root, "cellXfs"), "xf"):
        id_ = node.get("numFmtId") or "0"
        formats.append(codes.get(int(id_) if id_.isdecimal() else 0, number_formats.GENERAL))
    return formats


def _merges(book: _Book, part: str) -> Sequence[Merge]:
    """The merged cells, which the file has behind the rows."""
    data = book.package.read(part)
    merges: list[Merge] = []
    for match in _MERGE.finditer(data, max(0, data.rfind(b"sheetData"))):
        first, _, last = match[1].decode("ascii").partition(":")
        start, end = _REFERENCE.fullmatch(first), _REFERENCE.fullmatch(last)
        if start and end:
            merges.append(Merge(int(start[2]), int(end[2]), _column(start[1]), _column(end[1])))
    return merges


def _beside(book: _Book, sheet: Relation, name: str) -> Iterator[RawPassage]:
    """Text on a sheet outside of its cells."""
    comments: list[str] = []
    shapes: list[str] = []
    relations = book.package.relations(sheet.target).values()
    for relation in {relation.target: relation for relation in relations}.values():
        if relation.type == "comments":
            for node in descendants(book.package.xml(relation.target), "comment"):
                body = child(node, "text")
                text = "" if body is None else " ".join(_rich_text(body).split())
                if text:
                    comments.append(f"{node.get('ref')}: {text}")
        elif relation.type == "drawing":
            for body in descendants(book.package.xml(relation.target), "txBody"):
                lines = (
                    "".join(t.text or "" for t in descendants(line, "t"))
                    for line in children(body, "p")
                )
                shapes.extend(line for line in lines if line.strip())
    if comments:
        yield "\n".join(comments), {"sheet": name, "part": "comment"}
    if shapes:
        yield "\n".join(shapes), {"sheet": name, "part": "shape"}


@lru_cache(maxsize=2048)
def _column(letters: str) -> int:
    column = 0
    for letter in letters.upper():
        column = 26 * column + ord(letter) - 64
    return column - 1


WORKBOOK = Loader(
    load=load,
    example=archive_of(
        {
            "xl/workbook.xml": '<workbook xmlns:r="r"><sheets><sheet name="Hours" r:id="1"/>'
            "</sheets></workbook>",
            "xl/_rels/workbook.xml.rels": '<R><R Id="1" Type="x/worksheet" Target="1.xml"/></R>',
            "xl/1.xml": '<worksheet><sheetData><row r="1"><c r="A1" t="inlineStr"><is><t>day</t>'
            '</is></c><c r="B1" t="inlineStr"><is><t>opens</t></is></c></row><row r="2"><c r="A2" '
            't="inlineStr"><is><t>Monday</t></is></c><c r="B2"><v>9</v></c></row></sheetData>'
            "</worksheet>",
        }
    ),
    example_text="day: Monday\nopens: 9",
)

"""Excel workbooks 97 to 2003 (.xls, BIFF) -> a passage for each row, as for `.xlsx`.

By xlrd, which reads only these; LangChain's loader for Excel needs unstructured. Many programs
write other formats under this suffix: a web page with a table, CSV, or a workbook in XML
(SpreadsheetML of Office 2003, [MS-OE376] and the XML Spreadsheet Reference). These are read, too.
"""

import io
import zlib
from base64 import b64decode
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Final

import xlrd
from lxml import etree
from xlrd.sheet import Sheet as RawSheet

from shared.errors import DocumentError
from workers.ingest.formats.loader import DocumentKey, DocumentParts, Loader, RawDocument
from workers.ingest.formats.office import number_formats
from workers.ingest.formats.office.package import (
    attribute,
    child,
    children,
    descendants,
    text_within,
    xml_parser,
)
from workers.ingest.formats.office.sheets import Merge, Sheet, SheetCell, SheetRow, passages
from workers.ingest.formats.office.workbook import number_cell
from workers.ingest.formats.sniffing import is_binary
from workers.ingest.formats.texts import tables
from workers.ingest.formats.texts.html import page_within

_HEAD_BYTES: Final = 65_536
_SPREADSHEET: Final = b"urn:schemas-microsoft-com:office:spreadsheet"
_LAST_PLACE: Final = 1_048_576


def load(document: RawDocument) -> DocumentParts:
    if not is_binary(document.content):
        return _load_text(document)
    try:
        book = xlrd.open_workbook(
            file_contents=document.content, formatting_info=True, ragged_rows=True,
            logfile=io.StringIO(),
        )  # fmt: skip
    except Exception as wrong:  # xlrd raises errors of every class for damage
        if "encrypted" in str(wrong):
            raise DocumentError(
                f"{document.name}: is encrypted with a password. Save it without one and ingest "
                "that."
            ) from wrong
        raise DocumentError(
            f"{document.name}: cannot be read as an Excel workbook (.xls): {wrong or 'damaged'}. "
            "Open it in a spreadsheet program and save it as .xlsx."
        ) from wrong
    sheets = [
        Sheet(
            name=sheet.name,
            rows=partial(_rows, book, sheet),
            merges=partial(_merges, sheet),
            is_hidden=sheet.visibility != 0,
        )
        for sheet in book.sheets()
    ]
    author = " ".join(str(book.user_name or "").split())
    return DocumentParts(
        passages=passages(document, sheets),
        metadata={DocumentKey.AUTHOR: author} if author else {},
    )


def _load_text(document: RawDocument) -> DocumentParts:
    head = document.content[:_HEAD_BYTES].lower()
    if _SPREADSHEET in head:
        return _load_xml(document)
    if b"<table" not in head and b"<html" not in head:
        return tables.load(document)
    page = page_within(document.content, name=document.name)
    return DocumentParts(passages=[(page.text, {})] if page is not None else [])


def _load_xml(document: RawDocument) -> DocumentParts:
    try:
        root = etree.fromstring(document.content, xml_parser())
    except (etree.XMLSyntaxError, ValueError) as wrong:
        raise DocumentError(
            f"{document.name}: cannot be read as an Excel workbook in XML: {wrong}. Open it in a "
            "spreadsheet program and save it as .xlsx."
        ) from wrong
    codes = {
        attribute(style, "ID") or "": attribute(format_, "Format") or ""
        for style in descendants(root, "Style")
        if (format_ := child(style, "NumberFormat")) is not None
    }
    sheets = [
        Sheet(
            name=attribute(node, "Name") or "",
            rows=partial(_xml_rows, child(node, "Table"), codes),
            merges=partial(_xml_merges, child(node, "Table")),
            is_hidden=(text := child(node, "WorksheetOptions", "Visible")) is not None
            and (text.text or "").startswith("SheetHidden"),
        )
        for node in children(root, "Worksheet")
    ]
    return DocumentParts(passages=passages(document, sheets))


def _places(nodes: Iterator[etree._Element]) -> Iterator[tuple[int, etree._Element]]:
    """Rows, or cells of a row, with their numbers from 1; the file states a number only after a
    gap."""
    place = 0
    for node in nodes:
        place = min(max(place + 1, _count(node, "Index")), _LAST_PLACE)
        yield place, node
        place += _count(node, "MergeAcross")


def _count(node: etree._Element, name: str) -> int:
    """The number in an attribute; 0 if there is none."""
    value = attribute(node, name) or ""
    return int(value) if value.isdecimal() and len(value) < 8 else 0


def _xml_rows(table: etree._Element | None, codes: Mapping[str, str]) -> Iterator[SheetRow]:
    for number, row in _places(children(table, "Row")):
        cells = []
        for place, node in _places(children(row, "Cell")):
            data = child(node, "Data")
            text = "" if data is None else text_within(data)
            if data is not None and text.strip():
                code = codes.get(attribute(node, "StyleID") or "", "")
                cells.append(_xml_cell(place - 1, attribute(data, "Type") or "", text, code))
        if cells:
            yield SheetRow(number, cells)


def _xml_cell(column: int, kind: str, text: str, code: str) -> SheetCell:
    if kind == "Number":
        # Formats may have names, such as `Fixed`; a code contains one of these characters.
        is_code = any(sign in code for sign in "0#?@")
        return number_cell(column, text, code if is_code else number_formats.GENERAL, is_1904=False)
    if kind == "Boolean":
        return SheetCell(column, "TRUE" if text == "1" else "FALSE", text == "1")
    if kind == "DateTime":
        day, _, clock = text.removesuffix(".000").partition("T")
        text = day if clock in ("", "00:00:00") else f"{day} {clock}"
    return SheetCell(column, text, text)


def _xml_merges(table: etree._Element | None) -> list[Merge]:
    return [
        Merge(
            number, number + _count(node, "MergeDown"), place - 1,
            place - 1 + _count(node, "MergeAcross"),
        )
        for number, row in _places(children(table, "Row"))
        for place, node in _places(children(row, "Cell"))
        if attribute(node, "MergeDown") or attribute(node, "MergeAcross")
    ]  # fmt: skip


def _rows(book: xlrd.Book, sheet: RawSheet) -> Iterator[SheetRow]:
    is_1904 = book.datemode == 1
    for at in range(sheet.nrows):
        cells: list[SheetCell] = []
        for column, raw in enumerate(sheet.row(at)):
            if raw.ctype in (xlrd.XL_CELL_EMPTY, xlrd.XL_CELL_BLANK):
                continue
            code = _code(book, raw.xf_index)
            if raw.ctype == xlrd.XL_CELL_TEXT:
                cell = SheetCell(column, number_formats.shown_text(raw.value, code), raw.value)
            elif raw.ctype == xlrd.XL_CELL_BOOLEAN:
                cell = SheetCell(column, "TRUE" if raw.value else "FALSE", bool(raw.value))
            elif raw.ctype == xlrd.XL_CELL_ERROR:
                text = xlrd.error_text_from_code.get(raw.value, "#ERROR")
                cell = SheetCell(column, text, text)
            else:
                cell = number_cell(column, repr(raw.value), code, is_1904=is_1904)
            if cell.text.strip():
                cells.append(cell)
        if cells:
            yield SheetRow(at + 1, cells)


def _code(book: xlrd.Book, index: int | None) -> str:
    if index is None or not 0 <= index < len(book.xf_list):
        return number_formats.GENERAL
    key = book.xf_list[index].format_key
    if key in number_formats.BUILT_IN and 14 <= key <= 22:
        return number_formats.BUILT_IN[key]  # xlrd returns the American form of the short date
    format_ = book.format_map.get(key)
    return format_.format_str if format_ is not None else number_formats.GENERAL


def _merges(sheet: RawSheet) -> list[Merge]:
    return [
        Merge(first_row + 1, last_row, first_column, last_column - 1)
        for first_row, last_row, first_column, last_column in sheet.merged_cells
    ]


# A workbook with two rows, written by xlwt and compressed.
_EXAMPLE: Final = (
    "eNrtWD1oFEEU/mZzm/shd9mLFyER4hEwmpgm2NjEjYLGJiHaKCKYi3eFJOyGjSliodF4pSBYKTaBNDZRG3/QQrGx"
    "ECJaCIJwp6VVQMEiufW9d7tyiSlyoCHKfMt88/bNm523O29mdubtUro0/7C9jHU4hAZU/Dgaa3SKUjy8sUDlvs9i"
    "mMco+Rr/FOIx6shGE8+Sb6Lch9zfZRh4EHlJDHymdBaTGHadQnYLcUR8yCn2oZ9Y4S5pUmgTr1qEzwvvEL4vls+F"
    "B0RzQ7ifbEvqDJbs4Z6DQRSfNjqlLAV+7mOp81E0fWjFa47iKzdV1dbEYe9CbmJ7FnREmrAA6rfBglPwchMlZKgD"
    "F/DdzwLfwpH6Iqv1W6tXIP2PtfroBvpbRgSYhT8qAV5EEq8auMTEcXfam1rBbvB9kPK5GRqdQ65Dggm4kwVnKsFT"
    "sgxha80QTkpoNxHn0SxyWgLcokl65d7yu6GxEfucaGZl2q5O7nvYH/i4yjWockpKjF/cI7xf+Jo8dZfI7cIZ8pvy"
    "rpHWQDg2JzbXpbSL2jkgeG/vrZH3kVz8euJJR/GL3U3y4mD5Umbxgz2PTlps8lSfrzn0ql515zbjqR3mKpgIPgm3"
    "/TYpxAwr8N0PVrBmrCIhYlq4ehd+HbZXG9grsWe+bCTEnzS9Dy2SRgseyecZqFkmE9DQ0NDQ0NDQ0NDYplDBrz3v"
    "MSKy9ahuIKLBuc4qpYo+JvlvcRIuXRdpY3oUDuUeZuqKn50wVfgstck64Xkh4xS17mEcY+LHeN3xSxtAVfs+m65o"
    "/bkhVG/7lXr8/Mvt/wQUSsFu"
)
XLS = Loader(
    load=load,
    example=zlib.decompress(b64decode(_EXAMPLE)),
    example_text="day: Monday\nopens: 9",
)

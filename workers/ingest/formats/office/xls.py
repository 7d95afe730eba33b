"""Excel workbooks of 97 to 2003 (.xls, BIFF) -> a passage for each row, as of `.xlsx`.

By xlrd, which reads these and nothing else; LangChain's loader for Excel needs unstructured. What
web sites call so is often a page with a table, or CSV: these are read as what they are.
"""

import io
import zlib
from base64 import b64decode
from collections.abc import Iterator
from functools import partial
from typing import Final

import xlrd
from xlrd.sheet import Sheet as RawSheet

from shared.errors import DocumentError
from workers.ingest.formats.loader import DocumentKey, DocumentParts, Loader, RawDocument
from workers.ingest.formats.office import number_formats
from workers.ingest.formats.office.sheets import Merge, Sheet, SheetCell, SheetRow, passages
from workers.ingest.formats.office.workbook import number_cell
from workers.ingest.formats.sniffing import is_binary
from workers.ingest.formats.texts import tables
from workers.ingest.formats.texts.html import page_within

_HEAD_BYTES: Final = 65_536


def load(document: RawDocument) -> DocumentParts:
    if not is_binary(document.content):
        return _load_text(document)
    try:
        book = xlrd.open_workbook(
            file_contents=document.content, formatting_info=True, ragged_rows=True,
            logfile=io.StringIO(),
        )  # fmt: skip
    except Exception as wrong:  # what it raises for damage is of every kind
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
    if b"<table" not in head and b"<html" not in head:
        return tables.load(document)
    page = page_within(document.content, name=document.name)
    return DocumentParts(passages=[(page.text, {})] if page is not None else [])


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
        return number_formats.BUILT_IN[key]  # xlrd has the American form of a short date
    format_ = book.format_map.get(key)
    return format_.format_str if format_ is not None else number_formats.GENERAL


def _merges(sheet: RawSheet) -> list[Merge]:
    return [
        Merge(first_row + 1, last_row, first_column, last_column - 1)
        for first_row, last_row, first_column, last_column in sheet.merged_cells
    ]


# A workbook of two rows as xlwt writes it, compressed.
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

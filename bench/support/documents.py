"""Documents of every format, of any size, as programs write them: for benches of reading."""

import io
from collections.abc import Callable, Mapping
from datetime import date, timedelta
from typing import Any, Final

SENTENCES: Final = (
    "The queue only rings a doorbell, and the state of every job is kept in the database.",
    "작업 큐는 알림만 보내고 작업의 상태는 모두 데이터베이스에 저장합니다.",
    "Nothing is lost when a message disappears, for the sweeper looks at it again.",
    "그래서 알림이 사라져도 작업은 잃지 않습니다.",
)
_SECTION: Final = 10  # paragraphs
_DAY: Final = date(2024, 1, 1)


def _paragraph(at: int) -> str:
    return f"{at}. " + " ".join(SENTENCES)


def _row(at: int) -> list[Any]:
    return [f"품목 {at}", 1000 + at, at / 100, _DAY + timedelta(days=at % 365), SENTENCES[at % 4]]


_HEADER: Final = ["이름", "price", "share", "day", "text"]


def _saved(document: Any, save: str = "save") -> bytes:
    stream = io.BytesIO()
    getattr(document, save)(stream)
    return stream.getvalue()


def text(size: int) -> bytes:
    return "\n\n".join(map(_paragraph, range(size))).encode()


def markdown(size: int) -> bytes:
    return "\n\n".join(
        (f"# Section {at}\n\n" if at % _SECTION == 0 else "") + _paragraph(at) for at in range(size)
    ).encode()


def html(size: int) -> bytes:
    body = "".join(
        (f"<h2>Section {at}</h2>" if at % _SECTION == 0 else "") + f"<p>{_paragraph(at)}</p>"
        for at in range(size)
    )
    return f"<html><head><title>t</title></head><body>{body}</body></html>".encode()


def csv(size: int) -> bytes:
    rows = [_HEADER, *(_row(at) for at in range(size))]
    return "".join(",".join(f'"{cell}"' for cell in row) + "\n" for row in rows).encode()


def json_lines(size: int) -> bytes:
    return "".join(f'{{"text": "{_paragraph(at)}", "n": {at}}}\n' for at in range(size)).encode()


def pdf(size: int) -> bytes:
    from reportlab.lib.styles import ParagraphStyle
    from reportlab.pdfbase import pdfmetrics
    from reportlab.pdfbase.cidfonts import UnicodeCIDFont
    from reportlab.platypus import Paragraph, SimpleDocTemplate

    pdfmetrics.registerFont(UnicodeCIDFont("HYSMyeongJo-Medium"))
    korean = ParagraphStyle("k", fontName="HYSMyeongJo-Medium", wordWrap="CJK")
    english = ParagraphStyle("e", fontName="Helvetica", spaceAfter=6)
    stream = io.BytesIO()
    SimpleDocTemplate(stream).build(
        [
            Paragraph(SENTENCES[half::2][0] + " " + SENTENCES[half::2][1], style)
            for _ in range(size)
            for half, style in ((0, english), (1, korean))
        ]
    )
    return stream.getvalue()


def word(size: int) -> bytes:
    import docx

    document = docx.Document()
    for at in range(size):
        if at % _SECTION == 0:
            document.add_heading(f"Section {at}", 1)
        document.add_paragraph(_paragraph(at))
    return _saved(document)


def excel(size: int) -> bytes:
    import openpyxl

    book = openpyxl.Workbook(write_only=True)
    sheet = book.create_sheet("Sheet")
    sheet.append(_HEADER)
    for at in range(size):
        sheet.append(_row(at))
    return _saved(book)


def excel_97(size: int) -> bytes:
    import xlwt

    book = xlwt.Workbook(encoding="utf-8")
    sheet = book.add_sheet("Sheet")
    day = xlwt.easyxf(num_format_str="YYYY-MM-DD")
    for row, cells in enumerate([_HEADER, *(_row(at) for at in range(min(size, 65_000)))]):
        for column, cell in enumerate(cells):
            if isinstance(cell, date):
                sheet.write(row, column, cell, day)
            else:
                sheet.write(row, column, cell)
    return _saved(book)


def powerpoint(size: int) -> bytes:
    import pptx

    deck = pptx.Presentation()
    for at in range(0, size, _SECTION):
        slide: Any = deck.slides.add_slide(deck.slide_layouts[1])
        slide.shapes.title.text = f"Slide {at}"
        slide.placeholders[1].text = "\n".join(
            _paragraph(other) for other in range(at, min(at + _SECTION, size))
        )
    return _saved(deck)


def opendocument_text(size: int) -> bytes:
    from odf.opendocument import OpenDocumentText
    from odf.text import H, P

    document = OpenDocumentText()
    for at in range(size):
        if at % _SECTION == 0:
            document.text.addElement(H(outlinelevel=1, text=f"Section {at}"))
        document.text.addElement(P(text=_paragraph(at)))
    return _saved(document, "write")


def opendocument_sheet(size: int) -> bytes:
    from odf.opendocument import OpenDocumentSpreadsheet
    from odf.table import Table, TableCell, TableRow
    from odf.text import P

    document = OpenDocumentSpreadsheet()
    table = Table(name="Sheet")
    for cells in [_HEADER, *(_row(at) for at in range(size))]:
        row = TableRow()
        for value in cells:
            cell = TableCell()
            cell.addElement(P(text=str(value)))
            row.addElement(cell)
        table.addElement(row)
    document.spreadsheet.addElement(table)
    return _saved(document, "write")


def hwpx(size: int) -> bytes:
    return bytes(_hancom(size).to_bytes())


def hwp(size: int) -> bytes:
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.hwp"
        _hancom(size).save_to_path(path)
        return path.read_bytes()


def _hancom(size: int) -> Any:
    from hwpx import HwpxDocument

    document = HwpxDocument.new()
    for at in range(size):
        if at % _SECTION == 0:
            document.add_heading(f"Section {at}", 1)
        document.add_paragraph(_paragraph(at), inherit_style=False)
    return document


def epub(size: int) -> bytes:
    from ebooklib import epub as books

    book = books.EpubBook()
    book.set_identifier("1")
    book.set_title("t")
    chapters = []
    for at in range(0, size, _SECTION):
        chapter = books.EpubHtml(title=f"Chapter {at}", file_name=f"{at}.xhtml")
        chapter.content = f"<h1>Chapter {at}</h1>" + "".join(
            f"<p>{_paragraph(other)}</p>" for other in range(at, min(at + _SECTION, size))
        )
        book.add_item(chapter)
        chapters.append(chapter)
    book.toc = chapters
    book.add_item(books.EpubNcx())
    book.spine = chapters
    stream = io.BytesIO()
    books.write_epub(stream, book)
    return stream.getvalue()


def rtf(size: int) -> bytes:
    def escaped(text: str) -> str:
        return "".join(
            char if char.isascii() else f"\\u{(ord(char) + 0x8000) % 0x10000 - 0x8000}?"
            for char in text
        )

    body = "".join(f"\\pard {escaped(_paragraph(at))}\\par\n" for at in range(size))
    return f"{{\\rtf1\\ansi\\ansicpg949\\uc1{{\\fonttbl{{\\f0 Arial;}}}}{body}}}".encode("ascii")


WRITERS: Final[Mapping[str, Callable[[int], bytes]]] = {
    "text": text,
    "Markdown": markdown,
    "HTML": html,
    "CSV": csv,
    "JSON Lines": json_lines,
    "PDF": pdf,
    "Word": word,
    "Excel": excel,
    "Excel 97": excel_97,
    "PowerPoint": powerpoint,
    "OpenDocument text": opendocument_text,
    "OpenDocument spreadsheet": opendocument_sheet,
    "HWPX": hwpx,
    "HWP 5": hwp,
    "EPUB": epub,
    "RTF": rtf,
}
"""By the names of formats (`shared/formats.py`); the size counts paragraphs or rows."""

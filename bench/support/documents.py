"""Documents of every format, of any size, as programs write them: for benches of reading."""

import bz2
import gzip
import io
import json
import lzma
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from datetime import date, timedelta
from email.message import EmailMessage
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


def tsv(size: int) -> bytes:
    rows = [_HEADER, *(_row(at) for at in range(size))]
    return "".join("\t".join(map(str, row)) + "\n" for row in rows).encode()


def json_array(size: int) -> bytes:
    items = [{"text": _paragraph(at), "n": at} for at in range(size)]
    return json.dumps(items, ensure_ascii=False).encode()


def restructured_text(size: int) -> bytes:
    return "".join(
        (f"Section {at}\n=============\n\n" if at % _SECTION == 0 else "")
        + f"Paragraph {_paragraph(at)}\n\n"
        for at in range(size)
    ).encode()


def xml(size: int) -> bytes:
    items = "".join(f'<item n="{at}"><p>{_paragraph(at)}</p></item>' for at in range(size))
    return f"<?xml version='1.0'?><items>{items}</items>".encode()


def yaml(size: int) -> bytes:
    return "".join(f'item{at}:\n  text: "{_paragraph(at)}"\n' for at in range(size)).encode()


def toml(size: int) -> bytes:
    return "".join(f'[item{at}]\ntext = "{_paragraph(at)}"\n' for at in range(size)).encode()


def ini(size: int) -> bytes:
    return "".join(f"[item{at}]\ntext = {_paragraph(at)}\n" for at in range(size)).encode()


def log(size: int) -> bytes:
    return "".join(
        f"2024-03-01T{at // 3600 % 24:02}:{at // 60 % 60:02}:{at % 60:02}Z INFO {_paragraph(at)}\n"
        for at in range(size)
    ).encode()


def _time(seconds: int, point: str) -> str:
    return f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}{point}000"


def _cues(size: int, point: str) -> str:
    return "".join(
        f"{at + 1}\n{_time(2 * at, point)} --> {_time(2 * at + 2, point)}\n{_paragraph(at)}\n\n"
        for at in range(size)
    )


def subrip(size: int) -> bytes:
    return _cues(size, ",").encode()


def webvtt(size: int) -> bytes:
    return f"WEBVTT\n\n{_cues(size, '.')}".encode()


def source_code(size: int) -> bytes:
    return "".join(
        f'def function_{at}():\n    """{_paragraph(at)}"""\n    return {at}\n\n\n'
        for at in range(size)
    ).encode()


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


def opendocument_presentation(size: int) -> bytes:
    from odf.draw import Frame, Page, TextBox
    from odf.opendocument import OpenDocumentPresentation
    from odf.style import MasterPage, PageLayout
    from odf.text import P

    document = OpenDocumentPresentation()
    layout = PageLayout(name="layout")
    document.automaticstyles.addElement(layout)
    document.masterstyles.addElement(MasterPage(name="master", pagelayoutname=layout))
    for at in range(0, size, _SECTION):
        page = Page(name=f"Slide {at}", masterpagename="master")
        frame = Frame(width="20cm", height="15cm", x="1cm", y="1cm")
        box = TextBox()
        for other in range(at, min(at + _SECTION, size)):
            box.addElement(P(text=_paragraph(other)))
        frame.addElement(box)
        page.addElement(frame)
        document.presentation.addElement(page)
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


def mail(size: int) -> bytes:
    message = EmailMessage()
    message["From"], message["To"] = "kim@example.org", "lee@example.org"
    message["Subject"] = "주간 보고"
    message.set_content(text(size).decode())
    return bytes(message)


def outlook_message(size: int) -> bytes:
    from tests.unit.compound_file import outlook_message as written

    return written(subject="주간 보고", body=text(size).decode())


_MEMBERS: Final = 10


def _parts(size: int) -> dict[str, bytes]:
    return {f"{at}.txt": text(max(1, size // _MEMBERS)) for at in range(_MEMBERS)}


def zipped(size: int) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in _parts(size).items():
            archive.writestr(name, data)
    return stream.getvalue()


def tarred(size: int) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name, data in _parts(size).items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return stream.getvalue()


def sevenzipped(size: int) -> bytes:
    import py7zr

    stream = io.BytesIO()
    with py7zr.SevenZipFile(stream, "w") as archive:
        for name, data in _parts(size).items():
            archive.writestr(data, name)
    return stream.getvalue()


def zstandard(size: int) -> bytes:
    from zstandard import ZstdCompressor

    return bytes(ZstdCompressor().compress(text(size)))


WRITERS: Final[Mapping[str, Callable[[int], bytes]]] = {
    "text": text,
    "Markdown": markdown,
    "HTML": html,
    "CSV": csv,
    "TSV": tsv,
    "JSON": json_array,
    "JSON Lines": json_lines,
    "reStructuredText": restructured_text,
    "XML": xml,
    "YAML": yaml,
    "TOML": toml,
    "INI": ini,
    "log": log,
    "SubRip": subrip,
    "WebVTT": webvtt,
    "source code": source_code,
    "PDF": pdf,
    "Word": word,
    "Excel": excel,
    "Excel 97": excel_97,
    "PowerPoint": powerpoint,
    "OpenDocument text": opendocument_text,
    "OpenDocument spreadsheet": opendocument_sheet,
    "OpenDocument presentation": opendocument_presentation,
    "HWPX": hwpx,
    "HWP 5": hwp,
    "EPUB": epub,
    "RTF": rtf,
    "ZIP": zipped,
    "TAR": tarred,
    "gzip": lambda size: gzip.compress(text(size)),
    "bzip2": lambda size: bz2.compress(text(size)),
    "xz": lambda size: lzma.compress(text(size)),
    "Zstandard": zstandard,
    "7-Zip": sevenzipped,
    "EML": mail,
    "MSG": outlook_message,
}
"""By the names of formats (`shared/formats.py`); the size counts paragraphs or rows."""

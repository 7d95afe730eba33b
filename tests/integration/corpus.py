"""Documents of every format, each made by a program that writes such: where one sentence stands in
them, and what else they hold."""

import ast
import bz2
import configparser
import csv
import gzip
import io
import json
import logging
import lzma
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from email.message import EmailMessage
from email.policy import SMTP
from pathlib import Path
from typing import Any, Final, Literal
from xml.etree import ElementTree

import docutils.core
import docx
import openpyxl
import pptx
import py7zr
import xlwt
import yaml
import zstandard
from ebooklib import epub
from hwpx import HwpxDocument
from odf.draw import Frame, Page, TextBox
from odf.opendocument import (
    OpenDocumentPresentation,
    OpenDocumentSpreadsheet,
    OpenDocumentText,
)
from odf.style import MasterPage, PageLayout
from odf.table import Table, TableCell, TableRow
from odf.text import H, P
from PIL import Image, ImageDraw, ImageFont
from reportlab.pdfbase import pdfmetrics
from reportlab.pdfbase.cidfonts import UnicodeCIDFont
from reportlab.pdfgen.canvas import Canvas

from tests.tiny import voice
from tests.unit.compound_file import outlook_message

Language = Literal["en", "ko"]
_HEADING: Final = {"en": ("Guide", "Hours"), "ko": ("안내", "운영 시간")}
_OTHER: Final = {
    "en": "Everything else in this document speaks of other matters.",
    "ko": "이 문서의 나머지는 다른 일을 다룹니다.",
}
_SHEET: Final = {"en": "Opening times", "ko": "운영"}
_COLUMNS: Final = {"en": ("number", "rule"), "ko": ("번호", "규칙")}


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A document, and what a search has to say of the sentence in it."""

    suffix: str
    data: bytes
    metadata: Mapping[str, Any] = field(default_factory=dict)
    """Of the hit, at least."""
    source: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the source of the job."""
    member: str = ""
    """The name of the document in it that the sentence is in, from `!/` on."""
    spoken: str = ""
    """What is to be searched for instead, in capitals."""


Writer = Callable[[str, Language], Sample]
_SPLIT_AT_HEADINGS: Final = {"splitter": {"type": "html"}}


def _saved(document: Any, save: str = "save", **options: Any) -> bytes:
    stream = io.BytesIO()
    getattr(document, save)(stream, **options)
    return stream.getvalue()


def _path(language: Language) -> str:
    return " > ".join(_HEADING[language])


# Texts


def text(sentence: str, language: Language) -> Sample:
    encoding = {"en": "utf-16", "ko": "cp949"}[language]
    return Sample(
        suffix=".txt",
        data=f"{_OTHER[language]}\n\n{sentence}\n".encode(encoding),
        metadata={"media_type": "text/plain"},
    )


def markdown(sentence: str, language: Language) -> Sample:
    outer, inner = _HEADING[language]
    front = yaml.safe_dump({"title": outer, "year": 2026}, allow_unicode=True)
    body = f"# {outer}\n\n{_OTHER[language]}\n\n## {inner}\n\n{sentence}"
    return Sample(
        suffix=".md",
        data=f"---\n{front}---\n{body}".encode(),
        metadata={"title": outer, "year": 2026, "heading": _path(language)},
        source={"splitter": {"type": "markdown"}},
    )


def _rst(sentence: str, language: Language) -> str:
    outer, inner = _HEADING[language]
    parts = [outer, "=" * 20, _OTHER[language], inner, "-" * 20, sentence, ""]
    return "{}\n{}\n\n{}\n\n{}\n{}\n\n{}\n{}".format(*parts)


def rst(sentence: str, language: Language) -> Sample:
    return Sample(
        suffix=".rst",
        data=f":author: Kim\n\n{_rst(sentence, language)}".encode(),
        metadata={"author": "Kim", "heading": _path(language)},
        source=_SPLIT_AT_HEADINGS,
    )


def html(sentence: str, language: Language) -> Sample:
    page = docutils.core.publish_string(
        _rst(sentence, language),
        writer="html5",
        settings_overrides={
            "doctitle_xform": False, "title": "Counters", "language_code": language,
            "embed_stylesheet": False,
        },
    )  # fmt: skip
    return Sample(
        suffix=".html",
        data=page,
        metadata={"title": "Counters", "language": language, "heading": _path(language)},
        source=_SPLIT_AT_HEADINGS,
    )


def _table(sentence: str, language: Language) -> list[Sequence[Any]]:
    """Its sentence is in the second row below the header."""
    return [_COLUMNS[language], (1, _OTHER[language]), (2, sentence), (3, _OTHER[language])]


def _delimited(suffix: str, delimiter: str) -> Writer:
    def write(sentence: str, language: Language) -> Sample:
        stream = io.StringIO(newline="")
        csv.writer(stream, delimiter=delimiter).writerows(_table(sentence, language))
        number, _ = _COLUMNS[language]
        return Sample(
            suffix=suffix,
            data=stream.getvalue().encode("cp949" if language == "ko" else "utf-8-sig"),
            metadata={"row": 2, number: 2},
            source={"csv": {"metadata_columns": [number]}},
        )

    return write


def _records(sentence: str, language: Language) -> list[dict[str, Any]]:
    return [{"text": _OTHER[language], "year": 2025}, {"text": sentence, "year": 2026}]


def json_array(sentence: str, language: Language) -> Sample:
    data = json.dumps(_records(sentence, language), ensure_ascii=language == "ko").encode()
    return Sample(suffix=".json", data=data, metadata={"item": 2, "year": 2026})


def json_lines(sentence: str, language: Language) -> Sample:
    lines = map(json.dumps, _records(sentence, language))
    return Sample(
        suffix=".jsonl", data="\n".join(lines).encode(), metadata={"line": 2, "year": 2026}
    )


def xml(sentence: str, language: Language) -> Sample:
    root = ElementTree.Element("rules")
    for n, rule in enumerate((_OTHER[language], sentence)):
        ElementTree.SubElement(ElementTree.SubElement(root, "rule", id=str(n)), "text").text = rule
    data = ElementTree.tostring(root, encoding="euc-kr" if language == "ko" else "utf-8")
    return Sample(suffix=".xml", data=data, metadata={"item": 2})


def settings_yaml(sentence: str, language: Language) -> Sample:
    values = {"first": {"note": _OTHER[language]}, "hours": {"note": sentence}}
    data = yaml.safe_dump(values, allow_unicode=True, width=1000).encode()
    return Sample(
        suffix=".yaml", data=data, metadata={"heading": "hours"}, source=_SPLIT_AT_HEADINGS
    )


def settings_toml(sentence: str, language: Language) -> Sample:
    data = f'[first]\nnote = "{_OTHER[language]}"\n\n[hours]\nnote = "{sentence}"\n'.encode()
    return Sample(
        suffix=".toml", data=data, metadata={"heading": "hours"}, source=_SPLIT_AT_HEADINGS
    )


def settings_ini(sentence: str, language: Language) -> Sample:
    parser = configparser.ConfigParser(interpolation=None)
    parser["first"] = {"note": _OTHER[language]}
    parser["hours"] = {"note": sentence}
    stream = io.StringIO()
    parser.write(stream)
    data = stream.getvalue().encode("cp949" if language == "ko" else "ascii")
    return Sample(
        suffix=".ini", data=data, metadata={"heading": "hours"}, source=_SPLIT_AT_HEADINGS
    )


def log(sentence: str, language: Language) -> Sample:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    formatter = logging.Formatter("%(asctime)s %(levelname)s %(message)s")
    formatter.converter = lambda _: time.struct_time((2026, 11, 2, 9, 0, 0, 0, 306, 0))
    handler.setFormatter(formatter)

    def write(level: int, message: str) -> None:
        handler.emit(logging.LogRecord("x", level, "", 0, message, None, None))

    # Of some length together, so that the sentence begins a passage.
    lines = 0
    while stream.tell() < 800:
        write(logging.INFO, _OTHER[language])
        lines += 1
    write(logging.ERROR, sentence)
    return Sample(
        suffix=".log",
        data=stream.getvalue().encode(),
        metadata={"level": "error", "line": lines + 1},
    )


def _cues(sentence: str, language: Language) -> list[tuple[int, int, str]]:
    return [(1, 3, _OTHER[language]), (61, 64, sentence), (120, 123, _OTHER[language])]


_CUE: Final = {"start_s": 61.0, "end_s": 64.0}


def _clock(seconds: int) -> str:
    return f"{seconds // 60:02}:{seconds % 60:02}"


def subrip(sentence: str, language: Language) -> Sample:
    cues = "\r\n".join(
        f"{n}\r\n00:{_clock(start)},000 --> 00:{_clock(end)},000\r\n{said}\r\n"
        for n, (start, end, said) in enumerate(_cues(sentence, language), start=1)
    )
    return Sample(suffix=".srt", data=cues.encode("utf-8-sig"), metadata=_CUE)


def webvtt(sentence: str, language: Language) -> Sample:
    cues = "\n".join(
        f"{_clock(start)}.000 --> {_clock(end)}.000\n<v Kim>{said}\n"
        for start, end, said in _cues(sentence, language)
    )
    return Sample(suffix=".vtt", data=f"WEBVTT\n\n{cues}".encode(), metadata=_CUE)


def substation(sentence: str, language: Language) -> Sample:
    # In the order of layers, as programs for karaoke write it.
    events = "\n".join(
        f"Dialogue: 0,0:{_clock(start)}.00,0:{_clock(end)}.00,Default,,0,0,0,,{{\\an8}}{said}"
        for start, end, said in reversed(_cues(sentence, language))
    )
    head = (
        "[Script Info]\nTitle: Counters\n\n[Events]\n"
        "Format: Layer, Start, End, Style, Name, MarginL, MarginR, MarginV, Effect, Text\n"
    )
    return Sample(
        suffix=".ass", data=f"{head}{events}\n".encode(), metadata={**_CUE, "title": "Counters"}
    )


def source_code(sentence: str, language: Language) -> Sample:
    tree = ast.parse(f"def other():\n    {_OTHER[language]!r}\n\ndef hours():\n    {sentence!r}\n")
    return Sample(
        suffix=".py",
        data=ast.unparse(tree).encode(),
        metadata={"programming_language": "python"},
        source={"splitter": {"type": "code"}},
    )


# What office programs write


def pdf(sentence: str, language: Language) -> Sample:
    font = {"en": "Helvetica", "ko": "HYSMyeongJo-Medium"}[language]
    if language == "ko":
        pdfmetrics.registerFont(UnicodeCIDFont(font))
    stream = io.BytesIO()
    canvas = Canvas(stream)
    canvas.setTitle("Counters")
    for line in (_OTHER[language], sentence):
        canvas.setFont(font, 11)
        canvas.drawString(60, 700, line)
        canvas.showPage()
    canvas.save()
    return Sample(suffix=".pdf", data=stream.getvalue(), metadata={"page": 2, "title": "Counters"})


def word(sentence: str, language: Language) -> Sample:
    document = docx.Document()
    document.core_properties.title = "Counters"
    for level, heading in enumerate(_HEADING[language], start=1):
        document.add_heading(heading, level)
        document.add_paragraph(_OTHER[language] if level == 1 else sentence)
    return Sample(
        suffix=".docx",
        data=_saved(document),
        metadata={"title": "Counters", "heading": _path(language)},
    )


def workbook(sentence: str, language: Language) -> Sample:
    book = openpyxl.Workbook()
    book.active.append(["a", "b"])
    sheet = book.create_sheet(_SHEET[language])
    for row in _table(sentence, language):
        sheet.append(list(row))
    return _sheet_sample(".xlsx", _saved(book), language)


def _sheet_sample(suffix: str, data: bytes, language: Language) -> Sample:
    return Sample(
        suffix=suffix,
        data=data,
        metadata={"sheet": _SHEET[language], "row": 3, _COLUMNS[language][0]: 2},
        source={"csv": {"metadata_columns": [_COLUMNS[language][0]]}},
    )


def workbook_97(sentence: str, language: Language) -> Sample:
    book = xlwt.Workbook(encoding="utf-8")
    sheet = book.add_sheet(_SHEET[language])
    for n, row in enumerate(_table(sentence, language)):
        for column, value in enumerate(row):
            sheet.write(n, column, value)
    return _sheet_sample(".xls", _saved(book), language)


def slides(sentence: str, language: Language) -> Sample:
    deck = pptx.Presentation()
    for heading, body in zip(_HEADING[language], (_OTHER[language], sentence), strict=True):
        slide: Any = deck.slides.add_slide(deck.slide_layouts[1])
        slide.shapes.title.text = heading
        slide.placeholders[1].text = body
    return Sample(
        suffix=".pptx",
        data=_saved(deck),
        metadata={"slide": 2, "heading": _HEADING[language][1]},
    )


def opendocument_text(sentence: str, language: Language) -> Sample:
    document = OpenDocumentText()
    bodies = (_OTHER[language], sentence)
    for level, (heading, body) in enumerate(zip(_HEADING[language], bodies, strict=True), start=1):
        document.text.addElement(H(outlinelevel=level, text=heading))
        document.text.addElement(P(text=body))
    return Sample(
        suffix=".odt", data=_saved(document, "write"), metadata={"heading": _path(language)}
    )


def opendocument_sheet(sentence: str, language: Language) -> Sample:
    document = OpenDocumentSpreadsheet()
    table = Table(name=_SHEET[language])
    for values in _table(sentence, language):
        row = TableRow()
        for value in values:
            typed = (
                {"valuetype": "float", "value": value}
                if isinstance(value, int)
                else {"valuetype": "string"}
            )
            cell = TableCell(**typed)
            cell.addElement(P(text=str(value)))
            row.addElement(cell)
        table.addElement(row)
    document.spreadsheet.addElement(table)
    return _sheet_sample(".ods", _saved(document, "write"), language)


def opendocument_slides(sentence: str, language: Language) -> Sample:
    document = OpenDocumentPresentation()
    layout = PageLayout(name="L")
    document.automaticstyles.addElement(layout)
    master = MasterPage(name="M", pagelayoutname=layout)
    document.masterstyles.addElement(master)
    for body in (_OTHER[language], sentence):
        page = Page(masterpagename=master)
        frame, box = Frame(width="10cm", height="2cm"), TextBox()
        box.addElement(P(text=body))
        frame.addElement(box)
        page.addElement(frame)
        document.presentation.addElement(page)
    return Sample(suffix=".odp", data=_saved(document, "write"), metadata={"slide": 2})


def _hancom(suffix: str) -> Writer:
    def write(sentence: str, language: Language) -> Sample:
        document = HwpxDocument.new()
        bodies = (_OTHER[language], sentence)
        for level, (heading, body) in enumerate(
            zip(_HEADING[language], bodies, strict=True), start=1
        ):
            document.add_heading(heading, level)
            document.add_paragraph(body, inherit_style=False)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"a{suffix}"
            document.save_to_path(path)
            data = path.read_bytes()
        return Sample(suffix=suffix, data=data, metadata={"heading": _path(language)})

    return write


def book(sentence: str, language: Language) -> Sample:
    made = epub.EpubBook()
    made.set_identifier("1")
    made.set_title("Counters")
    made.set_language(language)
    chapters = []
    for n, (title, body) in enumerate(
        zip(_HEADING[language], (_OTHER[language], sentence), strict=True)
    ):
        chapter = epub.EpubHtml(title=title, file_name=f"{n}.xhtml", lang=language)
        chapter.content = f"<h1>{title}</h1><p>{body}</p>"
        made.add_item(chapter)
        chapters.append(chapter)
    made.toc = chapters
    made.add_item(epub.EpubNcx())
    made.add_item(epub.EpubNav())
    made.spine = ["nav", *chapters]
    stream = io.BytesIO()
    epub.write_epub(stream, made)
    return Sample(
        suffix=".epub",
        data=stream.getvalue(),
        metadata={"title": "Counters", "language": language, "part": _HEADING[language][1]},
    )


def rtf(sentence: str, language: Language) -> Sample:
    """No package writes it; as WordPad does."""

    def escaped(text: str) -> str:
        if language == "en":
            return text
        return "".join(
            char if char.isascii() else "".join(f"\\'{byte:02x}" for byte in char.encode("cp949"))
            for char in text
        )

    outer, inner = map(escaped, _HEADING[language])
    body = (
        f"\\pard\\outlinelevel0 {outer}\\par\\pard {escaped(_OTHER[language])}\\par"
        f"\\pard\\outlinelevel1 {inner}\\par\\pard {escaped(sentence)}\\par"
    )
    charset = {"en": 0, "ko": 129}[language]
    font = f"{{\\fonttbl{{\\f0\\fcharset{charset} Batang;}}}}"
    return Sample(
        suffix=".rtf",
        data=f"{{\\rtf1\\ansi\\ansicpg949{font}\\f0 {body}}}".encode("ascii"),
        metadata={"heading": _path(language)},
    )


# Pictures and recordings


def _picture(suffix: str, form: str) -> Writer:
    def write(sentence: str, _: Language) -> Sample:
        pages = []
        for line in (_OTHER["en"], sentence):
            page = Image.new("L", (1000, 120), 255)
            font = ImageFont.load_default(34)
            ImageDraw.Draw(page).text((30, 30), line, fill=0, font=font)
            pages.append(page)
        is_tiff = form == "TIFF"
        more: dict[str, Any] = {"save_all": True, "append_images": pages[1:]} if is_tiff else {}
        return Sample(
            suffix=suffix,
            data=_saved(pages[0] if is_tiff else pages[1], format=form, **more),
            metadata={"page": 2} if is_tiff else {},
            source={"ocr": {"languages": ["eng"]}},
        )

    return write


SPOKEN: Final = ("NO ONE IS IN", "THE CAT RAN", "A HILL IS THERE", "ALICE EATS RICE")


def _recording(suffix: str, form: str, said: str) -> Writer:
    def write(_: str, __: Language) -> Sample:
        return Sample(
            suffix=suffix,
            data=voice.recorded(said, format_=form),
            spoken=said,
            metadata={"start_s": 0, "end_s": voice.length_s(said)},
            source={"speech": {"model": "tiny/wav2vec2"}},
        )

    return write


# What holds documents


def _zip(files: Mapping[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return stream.getvalue()


def _tar(files: Mapping[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return stream.getvalue()


def _seven_zip(files: Mapping[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with py7zr.SevenZipFile(stream, "w") as archive:
        for name, data in files.items():
            archive.writestr(data, name)
    return stream.getvalue()


def _archive(suffix: str, pack: Callable[[Mapping[str, bytes]], bytes]) -> Writer:
    def write(sentence: str, language: Language) -> Sample:
        inner = word(sentence, language)
        name = {"en": "rules/hours.docx", "ko": "규정/운영 시간.docx"}[language]
        return Sample(
            suffix=suffix,
            data=pack({"other.txt": _OTHER[language].encode(), name: inner.data}),
            member=name,
            metadata=inner.metadata,
        )

    return write


def _packed(suffix: str, pack: Callable[[bytes], bytes]) -> Writer:
    """Of one document in English, of an archive in Korean."""

    def write(sentence: str, language: Language) -> Sample:
        if language == "ko":
            return _archive(f".tar{suffix}", lambda files: pack(_tar(files)))(sentence, language)
        return Sample(
            suffix=f".md{suffix}",
            data=pack(f"# Hours\n\n{sentence}".encode()),
            member="{stem}.md",
            metadata={"media_type": "text/markdown"},
        )

    return write


def mail(sentence: str, language: Language) -> Sample:
    """In its own text in English, in what is attached to it in Korean."""
    message = EmailMessage(policy=SMTP)
    message["Subject"] = _HEADING[language][1]
    message["From"] = "김하나 <kim@example.org>"
    message["Date"] = "Mon, 02 Nov 2026 09:00:00 +0900"
    message.set_content(sentence if language == "en" else _OTHER[language])
    inner = slides(sentence if language == "ko" else _OTHER[language], language)
    name = {"en": "plan.pptx", "ko": "계획.pptx"}[language]
    message.add_attachment(inner.data, "application", "octet-stream", filename=name)
    if language == "ko":
        return Sample(suffix=".eml", data=message.as_bytes(), member=name, metadata=inner.metadata)
    return Sample(
        suffix=".eml",
        data=message.as_bytes(),
        metadata={
            "title": "Hours", "author": "김하나 <kim@example.org>",
            "date": "2026-11-02T09:00:00+09:00",
        },
    )  # fmt: skip


def outlook_mail(sentence: str, language: Language) -> Sample:
    """No package writes it; by the tables of MS-OXMSG."""
    inner = pdf(sentence, language)
    data = outlook_message(
        subject=_HEADING[language][1],
        body=sentence if language == "en" else _OTHER[language],
        attachments=[{"name": "plan.pdf", "data": inner.data}] if language == "ko" else [],
    )
    if language == "ko":
        return Sample(suffix=".msg", data=data, member="plan.pdf", metadata=inner.metadata)
    return Sample(suffix=".msg", data=data, metadata={"title": "Hours"})


WRITERS: Final[Mapping[str, Writer]] = {
    "text": text,
    "Markdown": markdown,
    "HTML": html,
    "CSV": _delimited(".csv", ";"),
    "TSV": _delimited(".tsv", "\t"),
    "JSON": json_array,
    "JSON Lines": json_lines,
    "reStructuredText": rst,
    "XML": xml,
    "YAML": settings_yaml,
    "TOML": settings_toml,
    "INI": settings_ini,
    "log": log,
    "SubRip": subrip,
    "WebVTT": webvtt,
    "SubStation Alpha": substation,
    "source code": source_code,
    "PDF": pdf,
    "Word": word,
    "Excel": workbook,
    "PowerPoint": slides,
    "Excel 97": workbook_97,
    "OpenDocument text": opendocument_text,
    "OpenDocument spreadsheet": opendocument_sheet,
    "OpenDocument presentation": opendocument_slides,
    "HWPX": _hancom(".hwpx"),
    "HWP 5": _hancom(".hwp"),
    "EPUB": book,
    "RTF": rtf,
    "PNG": _picture(".png", "PNG"),
    "JPEG": _picture(".jpg", "JPEG"),
    "TIFF": _picture(".tif", "TIFF"),
    "WebP": _picture(".webp", "WEBP"),
    "WAV": _recording(".wav", "WAV", SPOKEN[0]),
    "FLAC": _recording(".flac", "FLAC", SPOKEN[1]),
    "MP3": _recording(".mp3", "MP3", SPOKEN[2]),
    "Ogg": _recording(".ogg", "OGG", SPOKEN[3]),
    "ZIP": _archive(".zip", _zip),
    "TAR": _archive(".tar", _tar),
    "gzip": _packed(".gz", gzip.compress),
    "bzip2": _packed(".bz2", bz2.compress),
    "xz": _packed(".xz", lzma.compress),
    "Zstandard": _packed(".zst", zstandard.compress),
    "7-Zip": _archive(".7z", _seven_zip),
    "EML": mail,
    "MSG": outlook_mail,
}
"""By the names of formats (`shared/formats.py`)."""
ENGLISH_ALONE: Final = frozenset({"PNG", "JPEG", "TIFF", "WebP", "WAV", "FLAC", "MP3", "Ogg"})
"""What tests can draw without a font of their own, and what the tiny model of speech knows."""

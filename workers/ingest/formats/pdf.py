"""PDF -> a passage for each page, with its number.

Lines that a page has wrapped become paragraphs again: words that were divided with a hyphen at a
line's end are one word, and where Korean text breaks within words, these are joined if the page
shows where its spaces are. Columns that are drawn line by line across the page are read one behind
the other; in rows of a table cells are separated by " | ". What form fields and text annotations
show is text. Encrypted documents are read if they open without a password. Pages that have no text
but pictures are read by optical character recognition where the job asks for it (`ocr.py`); a
document of such pages alone is else an error.

By PDFium (pypdfium2; Apache-2.0 and BSD-3-Clause), which Chrome fuzzes: measured against pypdf
and pdfplumber it is 3 to 30 times as fast and leaves least spaces out; LangChain's loader for it
does the same without joining lines. PyMuPDF has the AGPL. PDFium is not safe for threads, so one
document at a time is read in a process.
"""

import re
import threading
from collections.abc import Iterator, Sequence
from ctypes import byref, c_float, create_string_buffer
from dataclasses import dataclass, field
from io import BytesIO
from itertools import pairwise
from typing import Final

import pypdf
import pypdfium2
import pypdfium2.raw as pdfium

from shared.bounds import Metadata
from shared.errors import DocumentError
from workers.ingest.formats import ocr
from workers.ingest.formats.loader import (
    DocumentKey,
    DocumentParts,
    Loader,
    PassageKey,
    RawDocument,
    RawPassage,
)

_LOCK: Final = threading.Lock()
_WORD: Final = re.compile("[^\\s\\x00\x02\ufffe\xad]+")
_DATE: Final = re.compile(
    r"D:([0-9]{4})([0-9]{2})?([0-9]{2})?([0-9]{2})?([0-9]{2})?([0-9]{2})?(?:([+\-Z])([0-9]{2})?'?([0-9]{2})?)?"
)
_HYPHENS: Final = ("\x02", "\ufffe", "\xad")
"""What PDFium has for a hyphen that divides a word at a line's end."""
_SHOWN_ANNOTATIONS: Final = frozenset(
    {pdfium.FPDF_ANNOT_WIDGET, pdfium.FPDF_ANNOT_FREETEXT, pdfium.FPDF_ANNOT_STAMP}
)
_COLUMN_LINES: Final = 4
_WIDE_GAP: Final = 1.2
"""Of the height of its line."""
_OPENERS: Final = re.compile(r"(?:[-–—•‣▪◦●○■□▶※*·☞]|\(?[0-9]{1,3}[.)]|[①-⑳]|[가-하][.)])(?:\s|$)")
_HANGUL: Final = re.compile(r"[가-힣]")
_CJK: Final = re.compile("[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\uff00-\uffef]")
_NO_BOX: Final = pdfium.FS_RECTF()
_NO_WIDTH: Final = 0.01
_STANDARD_FONTS: Final = (b"Helvetica", b"Times", b"Courier", b"Arial", b"Symbol", b"Zapf")


@dataclass(frozen=True, kw_only=True, slots=True)
class _Segment:
    """Words of a line without a wide gap between them."""

    text: str
    left: float
    right: float
    bottom: float
    top: float
    ends_with_space: bool = False
    is_divided: bool = False
    """It ends with a hyphen that divides a word."""

    @property
    def height(self) -> float:
        return self.top - self.bottom


@dataclass(kw_only=True)
class _Column:
    """Lines one below the other, of one column or of the page's width."""

    lines: list[_Segment] = field(default_factory=list)
    rows: list[str] = field(default_factory=list)
    """Of a table instead."""


def load(document: RawDocument) -> DocumentParts:
    return DocumentParts(passages=_passages(document), metadata=_metadata(document))


def _open(document: RawDocument) -> pypdfium2.PdfDocument:
    try:
        return pypdfium2.PdfDocument(document.content)
    except pypdfium2.PdfiumError as wrong:
        if wrong.err_code in (pdfium.FPDF_ERR_PASSWORD, pdfium.FPDF_ERR_SECURITY):
            raise DocumentError(
                f"{document.name}: is encrypted with a password. Save it without one and ingest "
                "that."
            ) from wrong
        raise _damage(document, wrong) from wrong


def _damage(document: RawDocument, wrong: object) -> DocumentError:
    return DocumentError(
        f"{document.name}: cannot be read as PDF: {str(wrong).rstrip('.')}. The file is damaged or "
        "cut off; export it again, or print it into a new PDF."
    )


def _metadata(document: RawDocument) -> Metadata:
    with _LOCK:
        pdf = _open(document)
        try:
            terms = pdf.get_metadata_dict(skip_empty=True)
        finally:
            pdf.close()
    metadata: Metadata = {}
    for term, key in (("Title", DocumentKey.TITLE), ("Author", DocumentKey.AUTHOR)):
        value = " ".join(terms.get(term, "").split())
        if value and value.lower() not in ("untitled", "anonymous", "(unspecified)"):
            metadata[key] = value
    date = _date(terms.get("CreationDate", "")) or _date(terms.get("ModDate", ""))
    if date:
        metadata[DocumentKey.DATE] = date
    return metadata


def _date(text: str) -> str | None:
    """`D:20240301120000+09'00'` in ISO 8601."""
    match = _DATE.match(text)
    if match is None:
        return None
    year, month, day, hour, minute, second, sign, zone, zone_minute = match.groups()
    date = f"{year}-{month or '01'}-{day or '01'}"
    if hour is None:
        return date
    offset = "Z" if sign == "Z" else f"{sign}{zone}:{zone_minute or '00'}" if sign and zone else ""
    return f"{date}T{hour}:{minute or '00'}:{second or '00'}{offset}"


def _passages(document: RawDocument) -> Iterator[RawPassage]:
    pictures: list[int] = []
    has_text = False
    with _LOCK:
        pdf = _open(document)
        try:
            count = len(pdf)
        except pypdfium2.PdfiumError as wrong:
            pdf.close()
            raise _damage(document, wrong) from wrong
    try:
        for index in range(count):
            with _LOCK:
                text, is_picture = _page(document, pdf, index)
            if text.strip():
                has_text = True
                yield text, {PassageKey.PAGE: index + 1}
            elif is_picture:
                pictures.append(index + 1)
    finally:
        with _LOCK:
            pdf.close()
    if not has_text and pictures:
        raise DocumentError(
            f"{document.name}: has no text, only pictures of it (a scan). Ingest it with "
            "ocr, or make its text searchable with a program for scans."
        )


def _page(document: RawDocument, pdf: pypdfium2.PdfDocument, index: int) -> tuple[str, bool]:
    """The text of a page, and whether it is none but a picture."""
    try:
        page = pdf.get_page(index)
    except pypdfium2.PdfiumError as wrong:
        raise _damage(document, f"page {index + 1:,} of {len(pdf):,} is broken") from wrong
    try:
        if _has_shown_annotations(page):
            flat = pdfium.FPDFPage_Flatten(page, pdfium.FLAT_NORMALDISPLAY)
            if flat == pdfium.FLATTEN_SUCCESS:
                page.close()
                page = pdf.get_page(index)
        text = _without_pdfium(document, index) if _drops_text(page) else _text(page)
        is_picture = not text.strip() and any(
            True for _ in page.get_objects([pdfium.FPDF_PAGEOBJ_IMAGE], max_depth=4)
        )
        if is_picture and document.options.ocr is not None:
            text = ocr.text_of_picture(
                page.render(scale=ocr.DPI / 72, grayscale=True).to_pil(), document
            )
        return text, is_picture
    except pypdfium2.PdfiumError as wrong:
        raise _damage(document, f"page {index + 1:,} of {len(pdf):,} is broken") from wrong
    finally:
        page.close()


def _has_shown_annotations(page: pypdfium2.PdfPage) -> bool:
    for at in range(pdfium.FPDFPage_GetAnnotCount(page)):
        annotation = pdfium.FPDFPage_GetAnnot(page, at)
        subtype = pdfium.FPDFAnnot_GetSubtype(annotation)
        pdfium.FPDFPage_CloseAnnot(annotation)
        if subtype in _SHOWN_ANNOTATIONS:
            return True
    return False


def _drops_text(page: pypdfium2.PdfPage) -> bool:
    """Whether PDFium leaves out text: single characters of a font that is neither embedded nor on
    this machine have no width there."""
    left, bottom, right, top = c_float(), c_float(), c_float(), c_float()
    buffer = create_string_buffer(128)
    for thing in page.get_objects([pdfium.FPDF_PAGEOBJ_TEXT], max_depth=4):
        pdfium.FPDFPageObj_GetBounds(thing, byref(left), byref(bottom), byref(right), byref(top))
        if right.value - left.value >= _NO_WIDTH:
            continue
        font = pdfium.FPDFTextObj_GetFont(thing)
        if font and pdfium.FPDFFont_GetIsEmbedded(font) == 0:
            pdfium.FPDFFont_GetBaseFontName(font, buffer, len(buffer))
            if not buffer.value.startswith(_STANDARD_FONTS):
                return True
    return False


def _without_pdfium(document: RawDocument, index: int) -> str:
    try:
        return pypdf.PdfReader(BytesIO(document.content)).pages[index].extract_text()
    except Exception as wrong:  # pypdf's own classes are a part of what it raises
        raise _damage(document, f"page {index + 1:,} is broken ({type(wrong).__name__})") from wrong


def _text(page: pypdfium2.PdfPage) -> str:
    text_page = page.get_textpage()
    try:
        lines = list(_lines(text_page))
    finally:
        text_page.close()
    knows_spaces = any(segment.ends_with_space for line in lines for segment in line)
    blocks: list[str] = []
    for column in _columns(lines):
        if column.rows:
            blocks.append("\n".join(column.rows))
        else:
            blocks.extend(_paragraphs(column.lines, knows_spaces=knows_spaces))
    return "\n\n".join(blocks)


def _chars(text_page: pypdfium2.PdfTextPage) -> str:
    """The text with one character for each index of PDFium's."""
    count = text_page.count_chars()
    text = text_page.get_text_range() if count else ""
    if len(text) == count:
        return text
    codes = (pdfium.FPDFText_GetUnicode(text_page, at) for at in range(count))
    return "".join(chr(code) if code < 0x110000 else "\ufffd" for code in codes)


def _lines(text_page: pypdfium2.PdfTextPage) -> Iterator[list[_Segment]]:
    """Each line's segments, from left to right, in the order of the page.

    By the places of words, for PDFium also ends a line within one, before single characters.
    """
    text = _chars(text_page)
    line: list[_Segment] = []
    words: list[str] = []
    first = before = _NO_BOX

    def segment(end: int) -> _Segment:
        ends_with_space = text[end : end + 1] == " " and text[end + 1 : end + 2] in ("", "\r", "\n")
        return _segment(words, first, before, ends_with_space, text[end : end + 1] in _HYPHENS)

    end = 0
    for word in _WORD.finditer(text):
        left, right = _box(text_page, word.start()), _box(text_page, word.end() - 1)
        height = max(left.top - left.bottom, before.top - before.bottom, 1.0)
        overlap = min(left.top, before.top) - max(left.bottom, before.bottom)
        gap = left.left - before.right
        is_same_line = overlap > 0.5 * min(left.top - left.bottom, before.top - before.bottom)
        if not words:
            first = left
        elif not is_same_line or gap < -height or (gap < 0 and _is_line_end(text, end)):
            line.append(segment(end))
            yield line
            line, words, first = [], [], left
        elif gap > _WIDE_GAP * height:
            line.append(segment(end))
            words, first = [], left
        words.append(word[0])
        before, end = right, word.end()
    if words:
        line.append(segment(end))
        yield line


def _is_line_end(text: str, at: int) -> bool:
    return text[at : at + 2].strip(" ")[:1] in ("\r", "\n", *_HYPHENS)


def _box(text_page: pypdfium2.PdfTextPage, at: int) -> pdfium.FS_RECTF:
    """By the font's height and the character's width, for glyphs may be missing."""
    box = pdfium.FS_RECTF()
    pdfium.FPDFText_GetLooseCharBox(text_page, at, byref(box))
    return box


def _segment(
    words: Sequence[str],
    first: pdfium.FS_RECTF,
    last: pdfium.FS_RECTF,
    ends_with_space: bool,
    is_divided: bool,
) -> _Segment:
    text = " ".join(words)
    if len(text) > 2 and text[-1] in "-‐" and text[-2].isalpha():
        text, is_divided = text[:-1], True
    return _Segment(
        text=text,
        left=min(first.left, last.left),
        right=max(first.right, last.right),
        bottom=first.bottom,
        top=first.top,
        ends_with_space=ends_with_space,
        is_divided=is_divided,
    )


def _columns(lines: Sequence[list[_Segment]]) -> Iterator[_Column]:
    """Neighbouring lines that a gutter divides become columns, or rows of a table."""
    at = 0
    plain = _Column()
    while at < len(lines):
        end, gutter = _gutter(lines, at)
        if end - at < 2:
            plain.lines.append(_joined(lines[at]))
            at += 1
            continue
        if plain.lines:
            yield plain
            plain = _Column()
        block = lines[at:end]
        if _are_columns(block, gutter):
            for is_right in (False, True):
                side = [
                    [segment for segment in line if (segment.left >= gutter) is is_right]
                    for line in block
                ]
                yield from _columns([segments for segments in side if segments])
        else:
            rows = [" | ".join(_text_of(segment) for segment in line) for line in block]
            yield _Column(rows=rows)
        at = end
    if plain.lines:
        yield plain


def _gutter(lines: Sequence[list[_Segment]], at: int) -> tuple[int, float]:
    """Up to which line a gap goes on that begins in this one, and its middle."""
    if len(lines[at]) < 2:
        return at + 1, 0.0
    best = at + 1, 0.0
    for left, right in pairwise(lines[at]):
        low, high = left.right, right.left
        end = at + 1
        gapped = end
        while end < len(lines) and (gap := _gap(lines[end], low, high)) is not None:
            low, high = gap
            end += 1
            if len(lines[end - 1]) > 1:
                gapped = end
        if gapped > best[0]:
            best = gapped, (low + high) / 2
    return best


def _gap(line: Sequence[_Segment], low: float, high: float) -> tuple[float, float] | None:
    """What is left of a gap between x of `low` and `high` in a line; None if it is crossed."""
    for segment in line:
        if segment.right <= low or segment.left >= high:
            continue
        middle = (low + high) / 2
        if segment.left < middle < segment.right:
            return None
        if segment.right <= middle:
            low = max(low, segment.right)
        else:
            high = min(high, segment.left)
    return (low, high) if high - low > 2 else None


def _are_columns(lines: Sequence[Sequence[_Segment]], gutter: float) -> bool:
    """Whether both sides are running text, whose lines are long and nearly all of one width."""
    for is_right in (False, True):
        side = [
            segment for line in lines for segment in line if (segment.left >= gutter) is is_right
        ]
        if len(side) < _COLUMN_LINES or len(side) > len(lines):
            return False
        width = max(segment.right for segment in side) - min(segment.left for segment in side)
        full = sum(segment.right - segment.left > 0.75 * width for segment in side)
        letters = sum(len(segment.text) for segment in side) / len(side)
        if full < 0.6 * len(side) or letters < 15:
            return False
    return True


def _joined(line: Sequence[_Segment]) -> _Segment:
    if len(line) == 1:
        return line[0]
    return _Segment(
        text=" ".join(segment.text for segment in line),
        left=min(segment.left for segment in line),
        right=max(segment.right for segment in line),
        bottom=line[0].bottom,
        top=line[0].top,
        ends_with_space=line[-1].ends_with_space,
        is_divided=line[-1].is_divided,
    )


def _text_of(segment: _Segment) -> str:
    return segment.text + ("-" if segment.is_divided else "")


def _paragraphs(lines: Sequence[_Segment], *, knows_spaces: bool) -> Iterator[str]:
    """Lines of one column -> paragraphs; single lines that are no running text stay lines."""
    edge = max(segment.right for segment in lines)
    pitch = _pitch(lines)
    parts: list[str] = []
    before: _Segment | None = None
    for line in lines:
        if before is not None:
            step = before.bottom - line.bottom
            is_alike = abs(line.height - before.height) < 0.2 * pitch
            is_near = 0 < step < 1.35 * pitch and is_alike
            is_full = before.right > edge - 0.15 * (edge - min(before.left, line.left))
            is_wrapped = is_near and (is_full or before.is_divided)
            if not is_wrapped or _OPENERS.match(line.text):
                parts.append("-" if before.is_divided else "")
                if (
                    step > 1.35 * pitch
                    or step < 0
                    or abs(line.height - before.height) > 0.2 * pitch
                ):
                    yield "".join(parts)
                    parts = []
                else:
                    parts.append("\n")
            elif not before.is_divided:
                parts.append(_between(before, line, knows_spaces=knows_spaces))
            elif not line.text[:1].islower():
                parts.append("-")
        parts.append(line.text)
        before = line
    if before is not None and before.is_divided:
        parts.append("-")
    yield "".join(parts)


def _pitch(lines: Sequence[_Segment]) -> float:
    """From line to line, as most of them have it."""
    steps = sorted(
        round(above.bottom - below.bottom, 1)
        for above, below in pairwise(lines)
        if above.bottom > below.bottom
    )
    return steps[len(steps) // 2] if steps else max(lines[0].height, 1.0)


def _between(before: _Segment, line: _Segment, *, knows_spaces: bool) -> str:
    """What the end of a line stands for within a paragraph."""
    last, first = before.text[-1:], line.text[:1]
    if _CJK.match(last) and _CJK.match(first):
        return ""
    if _HANGUL.match(last) and _HANGUL.match(first) and knows_spaces:
        return " " if before.ends_with_space else ""
    return " "


def _example() -> bytes:
    stream = b"BT /F1 12 Tf 72 720 Td (We open at nine.) Tj ET"
    objects = [
        b"<</Type/Catalog/Pages 2 0 R>>",
        b"<</Type/Pages/Kids[3 0 R]/Count 1>>",
        b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 612 792]/Contents 4 0 R"
        b"/Resources<</Font<</F1 5 0 R>>>>>>",
        b"<</Length %d>>stream\n%b\nendstream" % (len(stream), stream),
        b"<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>",
    ]
    body = b"%PDF-1.4\n"
    offsets: list[int] = []
    for number, content in enumerate(objects, start=1):
        offsets.append(len(body))
        body += b"%d 0 obj\n%b\nendobj\n" % (number, content)
    table = b"xref\n0 6\n0000000000 65535 f \n" + b"".join(
        b"%010d 00000 n \n" % offset for offset in offsets
    )
    return body + table + b"trailer<</Size 6/Root 1 0 R>>\nstartxref\n%d\n%%%%EOF" % len(body)


PDF = Loader(load=load, example=_example(), example_text="We open at nine.")

"""PDF -> a passage for each page, with its number.

Wrapped lines become paragraphs again: a word hyphenated at the end of a line is joined. Where
Korean text breaks within words, these are joined if the page shows where its spaces are. Columns
that are drawn line by line across the page are read one after the other; cells in a row of a table
are separated by " | ". The visible text of form fields and annotations counts. Encrypted documents
are read if they open without a password. Pages with pictures and no text are read by optical
character recognition if the job asks for it (`ocr.py`); without it, a document of such pages only
is an error.

By PDFium (pypdfium2; Apache-2.0 and BSD-3-Clause), which Chrome fuzzes. It leaves out single
characters of fonts that are neither embedded nor installed; such pages are read by pypdf
(BSD-3-Clause). LangChain's loaders for both keep the lines as they are; PyMuPDF has the AGPL.
`docs/decisions/0024-reading-office-documents.md` compares them. PDFium is not thread-safe, so a
process reads one document at a time.
"""

import logging
import math
import re
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from ctypes import byref, c_float, create_string_buffer
from dataclasses import dataclass, field, replace
from enum import Enum
from io import BytesIO
from itertools import islice, pairwise
from typing import Final

import pypdf
import pypdfium2
import pypdfium2.raw as pdfium

from shared.bounds import Metadata
from shared.errors import DocumentError
from workers.ingest.formats.loader import (
    DocumentKey,
    DocumentParts,
    Loader,
    PassageKey,
    RawDocument,
    RawPassage,
)
from workers.ingest.formats.media import ocr
from workers.ingest.formats.office.outline import SYMBOLS

_LOCK: Final = threading.Lock()
_WORD: Final = re.compile("[^\\s\\x00\x02\ufffe\xad]+")
_DATE: Final = re.compile(
    r"D:([0-9]{4})([0-9]{2})?([0-9]{2})?([0-9]{2})?([0-9]{2})?([0-9]{2})?(?:([+\-Z])([0-9]{2})?'?([0-9]{2})?)?"
)
_HYPHENS: Final = ("\x02", "\ufffe", "\xad")
"""What PDFium returns for a hyphen at the end of a line that divides a word."""
_SHOWN_ANNOTATIONS: Final = frozenset(
    {pdfium.FPDF_ANNOT_WIDGET, pdfium.FPDF_ANNOT_FREETEXT, pdfium.FPDF_ANNOT_STAMP}
)
_COLUMN_LINES: Final = 4
_NAMED_PAGES: Final = 20
_MAX_SEGMENTS: Final = 64
_MAX_LINES: Final = 400
"""How many consecutive lines of a page are examined for a gutter."""
_WIDE_GAP: Final = 1.2
"""In heights of the line."""
_OPENER: Final = re.compile(r"(?:[-–—•‣▪◦●○■□▶※*·☞]|\(?[0-9]{1,3}[.)]|[①-⑳])(?:\s|$)")
_KOREAN_OPENER: Final = re.compile(r"[가나다라마바사아자차카타파하][.)](?:\s|$)")
_ENDS: Final = frozenset(".!?:;)")
_PARTICLES: Final = frozenset("은는이가을를의에로고며서도만과와지면게")
"""Syllables that Korean words often end with, and rarely contain elsewhere."""
_SUFFIXES: Final = frozenset(
    {"다", "니다", "습니다", "입니다", "합니다", "됩니다", "은", "는", "이", "가", "을", "를", "의"}
    | {"에", "로", "으로", "에서", "에게", "까지", "부터", "도", "만", "과", "와", "고", "며", "서"}
)
"""Particles and endings: at the beginning of a line, they continue the word before."""
_HANGUL: Final = re.compile(r"[가-힣]")
_CJK: Final = re.compile("[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\uff00-\uffef]")
_NO_BOX: Final = pdfium.FS_RECTF()
_NO_GAP: Final = 0.1
_SIZES: Final = 0.04
"""By how much font sizes may differ within a paragraph."""
_FULL: Final = 1.4
"""A line is full if it has less room at its end than this many characters: one and a space."""
_NO_WIDTH: Final = 0.01
_SAMPLE_WORDS: Final = 50
_PLAIN: Final = str.maketrans(
    SYMBOLS | dict(zip("ﬀﬁﬂﬃﬄﬅﬆ", ("ff", "fi", "fl", "ffi", "ffl", "st", "st"), strict=True))
)
_MAX_PIXELS: Final = 40_000_000
_STANDARD_FONTS: Final = (b"Helvetica", b"Times", b"Courier", b"Arial", b"Symbol", b"Zapf")


@dataclass(frozen=True, kw_only=True, slots=True)
class _Segment:
    """Words of a line without a wide gap between them. Coordinates and sizes are in points, after
    the page is turned so that its text is upright."""

    text: str
    left: float
    right: float
    bottom: float
    size: float
    """The font size."""
    lead: float
    """The width of its first word."""
    first: float
    """The width of its first character."""
    ends_with_space: bool = False
    is_divided: bool = False
    """Whether it ends with a hyphen that divides a word."""

    def is_alike(self, other: "_Segment") -> bool:
        return abs(self.size - other.size) <= _SIZES * max(self.size, other.size)


@dataclass(kw_only=True)
class _Column:
    """Consecutive lines of one column, or of the whole width of the page."""

    width: float
    lines: list[_Segment] = field(default_factory=list)
    rows: list[str] = field(default_factory=list)
    """The rows, if it is a table."""


def load(document: RawDocument) -> DocumentParts:
    warnings: list[str] = []
    return DocumentParts(
        passages=_passages(document, warnings), metadata=_metadata(document), warnings=warnings
    )


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
    """`D:20240301120000+09'00'` -> ISO 8601; None if it is not a date."""
    match = _DATE.match(text)
    if match is None:
        return None
    year, month, day, hour, minute, second, sign, zone, zone_minute = match.groups()
    date = f"{year}-{month or '01'}-{day or '01'}"
    if hour is None:
        return date
    offset = "Z" if sign == "Z" else f"{sign}{zone}:{zone_minute or '00'}" if sign and zone else ""
    return f"{date}T{hour}:{minute or '00'}:{second or '00'}{offset}"


def _passages(document: RawDocument, warnings: list[str]) -> Iterator[RawPassage]:
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
    if has_text and pictures:
        named = ", ".join(map(str, pictures[:_NAMED_PAGES]))
        more = f" and {len(pictures) - _NAMED_PAGES:,} more" if len(pictures) > _NAMED_PAGES else ""
        warnings.append(
            f"{document.name}: pages that are pictures were not read ({named}{more}). Ingest it "
            "with ocr, so that their text is recognized."
        )
    if not has_text and pictures:
        raise DocumentError(
            f"{document.name}: has no text, only pictures of it (a scan). Ingest it with "
            "ocr, or make its text searchable with a program for scans."
        )


def _page(document: RawDocument, pdf: pypdfium2.PdfDocument, index: int) -> tuple[str, bool]:
    """The text of a page, and whether the page is only a picture."""
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
        text = _text(page)
        if _drops_text(page):
            text = max(_without_pdfium(document, index), text, key=_letters)
        is_picture = not text.strip() and any(
            True for _ in page.get_objects([pdfium.FPDF_PAGEOBJ_IMAGE], max_depth=4)
        )
        if is_picture and document.options.ocr is not None:
            text = ocr.text_of_picture(
                page.render(scale=_scale(page), grayscale=True).to_pil(), document, dpi=ocr.DPI
            )
        return text, is_picture and document.options.ocr is None
    except pypdfium2.PdfiumError as wrong:
        raise _damage(document, f"page {index + 1:,} of {len(pdf):,} is broken") from wrong
    finally:
        page.close()


def _scale(page: pypdfium2.PdfPage) -> float:
    """The scale at which a page is rendered for optical character recognition."""
    width, height = page.get_size()
    return min(ocr.DPI / 72, math.sqrt(_MAX_PIXELS / max(width * height, 1.0)))


def _has_shown_annotations(page: pypdfium2.PdfPage) -> bool:
    for at in range(pdfium.FPDFPage_GetAnnotCount(page)):
        annotation = pdfium.FPDFPage_GetAnnot(page, at)
        subtype = pdfium.FPDFAnnot_GetSubtype(annotation)
        pdfium.FPDFPage_CloseAnnot(annotation)
        if subtype in _SHOWN_ANNOTATIONS:
            return True
    return False


def _drops_text(page: pypdfium2.PdfPage) -> bool:
    """Whether PDFium leaves out text: single characters of a font that is neither embedded nor
    installed have no width there."""
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
    """The text by pypdf, in the order of the page; empty if it cannot read the page."""
    logging.getLogger("pypdf").setLevel(logging.CRITICAL)  # pypdf's warnings about the document
    try:
        return pypdf.PdfReader(BytesIO(document.content)).pages[index].extract_text()
    except Exception:  # its own classes are only some of those that it raises
        return ""


def _letters(text: str) -> int:
    return sum(not char.isspace() for char in text)


def _text(page: pypdfium2.PdfPage) -> str:
    text_page = page.get_textpage()
    try:
        text = _chars(text_page)
        turns = _quarter_turns(text_page, text)
        lines = list(_lines(text_page, text, turns))
    finally:
        text_page.close()
    blocks: list[str] = []
    for column in _columns(lines, page.get_height() if turns % 2 else page.get_width()):
        if column.rows:
            blocks.append("\n".join(column.rows))
        else:
            blocks.extend(_paragraphs(block, column.width) for block in _blocks(column.lines))
    return "\n\n".join(blocks).translate(_PLAIN)


def _quarter_turns(text_page: pypdfium2.PdfTextPage, text: str) -> int:
    """By how many quarter turns, counterclockwise, most of the text is turned; PDFium's angles are
    clockwise."""
    places = [word.start() for word in islice(_WORD.finditer(text), _SAMPLE_WORDS)]
    turns = Counter(
        round(-pdfium.FPDFText_GetCharAngle(text_page, at) / (math.pi / 2)) % 4 for at in places
    )
    return max(turns, key=turns.__getitem__, default=0)


def _chars(text_page: pypdfium2.PdfTextPage) -> str:
    """The text, with one character for each index of PDFium."""
    count = text_page.count_chars()
    text = text_page.get_text_range() if count else ""
    if len(text) == count:
        return text
    codes = (pdfium.FPDFText_GetUnicode(text_page, at) for at in range(count))
    return "".join(chr(code) if code < 0x110000 else "\ufffd" for code in codes)


class _Line:
    """A line, built from the characters of PDFium."""

    def __init__(self, text_page: pypdfium2.PdfTextPage, text: str, turns: int) -> None:
        self._page = text_page
        self._text = text
        self._turns = turns
        self.segments: list[_Segment] = []
        self._words: list[str] = []
        self._first = self._last = self._lead = _NO_BOX
        self._start = self._end = 0

    def add(self, word: re.Match[str]) -> bool:
        """Add a word if it belongs to this line; returns whether it does."""
        left, right = self._box(word.start()), self._box(word.end() - 1)
        if self._words:
            last = self._last
            height = max(left.top - left.bottom, last.top - last.bottom, 1.0)
            lower = min(left.top - left.bottom, last.top - last.bottom)
            gap = left.left - last.right
            if min(left.top, last.top) - max(left.bottom, last.bottom) <= 0.5 * lower:
                return False
            if gap < -height or (gap < 0 and self._text[self._end : self._end + 1] in "\r\n\x02"):
                return False
            if gap > _WIDE_GAP * height:
                self.end_segment()
            elif gap < _NO_GAP * height:
                # A space that PDFium inserts where the font changes, or that is drawn elsewhere.
                self._words[-1] += word[0]
                self._last, self._end = right, word.end()
                return True
        if not self._words:
            self._first, self._lead, self._start = left, right, word.start()
        self._words.append(word[0])
        self._last, self._end = right, word.end()
        return True

    def end_segment(self) -> None:
        if not self._words:
            return
        text = " ".join(self._words)
        is_divided = self._text[self._end : self._end + 1] in _HYPHENS
        if len(text) > 2 and text[-1] in "-‐" and text[-2].isalpha():
            text, is_divided = text[:-1], True
        first, last = self._first, self._last
        size: float = pdfium.FPDFText_GetFontSize(self._page, self._start)
        self.segments.append(
            _Segment(
                text=text,
                left=min(first.left, last.left),
                right=max(first.right, last.right),
                bottom=first.bottom,
                size=size,
                lead=self._lead.right - first.left,
                first=first.right - first.left,
                ends_with_space=self._ends_with_space(size),
                is_divided=is_divided,
            )
        )
        self._words = []

    def _ends_with_space(self, size: float) -> bool:
        """Whether a space follows directly, and not elsewhere on the page."""
        if self._text[self._end : self._end + 1] != " ":
            return False
        if pdfium.FPDFText_IsGenerated(self._page, self._end) != 0:
            return False
        return bool(abs(self._box(self._end).left - self._last.right) < 0.3 * max(size, 1.0))

    def _box(self, at: int) -> pdfium.FS_RECTF:
        """The box of a character, from the height of the font and the width of the character:
        glyphs may be missing."""
        box = pdfium.FS_RECTF()
        pdfium.FPDFText_GetLooseCharBox(self._page, at, byref(box))
        left, right, bottom, top = box.left, box.right, box.bottom, box.top
        if self._turns == 1:
            box.left, box.right, box.bottom, box.top = bottom, top, -right, -left
        elif self._turns == 2:
            box.left, box.right, box.bottom, box.top = -right, -left, -top, -bottom
        elif self._turns == 3:
            box.left, box.right, box.bottom, box.top = -top, -bottom, left, right
        return box


def _lines(text_page: pypdfium2.PdfTextPage, text: str, turns: int) -> Iterator[list[_Segment]]:
    """The segments of each line, left to right, in the order of the page.

    Lines come from the positions of words: PDFium also ends a line within one, before single
    characters.
    """
    line = _Line(text_page, text, turns)
    for word in _WORD.finditer(text):
        if not line.add(word):
            line.end_segment()
            yield line.segments
            line = _Line(text_page, text, turns)
            line.add(word)
    line.end_segment()
    if line.segments:
        yield line.segments


def _columns(lines: Sequence[list[_Segment]], width: float) -> Iterator[_Column]:
    """Consecutive lines that a gutter divides become columns, or rows of a table."""
    at = 0
    plain = _Column(width=width)
    while at < len(lines):
        end, gutter = _gutter(lines, at)
        if end - at < 2:
            plain.lines.append(_joined(lines[at]))
            at += 1
            continue
        if plain.lines:
            yield plain
            plain = _Column(width=width)
        block = lines[at:end]
        if _are_columns(block, gutter):
            for is_right in (False, True):
                side = [
                    [segment for segment in line if (segment.left >= gutter) is is_right]
                    for line in block
                ]
                within = [segment for segments in side for segment in segments]
                left = min(segment.left for segment in within)
                right = max(segment.right for segment in within)
                yield from _columns([segments for segments in side if segments], right - left)
        else:
            rows = [" | ".join(_text_of(segment) for segment in line) for line in block]
            yield _Column(width=width, rows=rows)
        at = end
    if plain.lines:
        yield plain


def _gutter(lines: Sequence[list[_Segment]], at: int) -> tuple[int, float]:
    """The index of the line up to which the gap of this line continues, and the middle of the
    gap."""
    if not 1 < len(lines[at]) <= _MAX_SEGMENTS:
        return at + 1, 0.0
    best = at + 1, 0.0
    last = min(len(lines), at + _MAX_LINES)
    for left, right in pairwise(lines[at]):
        low, high = left.right, right.left
        end = at + 1
        gapped = end
        while end < last and (gap := _gap(lines[end], low, high)) is not None:
            low, high = gap
            end += 1
            if len(lines[end - 1]) > 1:
                gapped = end
        if gapped > best[0]:
            best = gapped, (low + high) / 2
    return best


def _gap(line: Sequence[_Segment], low: float, high: float) -> tuple[float, float] | None:
    """The part of the gap between `low` and `high` that is free in this line; None if text crosses
    it."""
    for segment in line[:_MAX_SEGMENTS]:
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
    """Whether both sides are running text, with long lines of nearly the same width."""
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
    return replace(
        line[0],
        text=" ".join(_text_of(segment) for segment in line[:-1]) + f" {line[-1].text}",
        left=min(segment.left for segment in line),
        right=max(segment.right for segment in line),
        ends_with_space=line[-1].ends_with_space,
        is_divided=line[-1].is_divided,
    )


def _text_of(segment: _Segment) -> str:
    return segment.text + ("-" if segment.is_divided else "")


def _blocks(lines: Sequence[_Segment]) -> Iterator[list[_Segment]]:
    """Groups of lines with the same size and the usual distance."""
    pitch = _pitch(lines)
    block: list[_Segment] = []
    for line in lines:
        if block:
            step = block[-1].bottom - line.bottom
            if not (0 <= step < 1.35 * pitch and block[-1].is_alike(line)):
                yield block
                block = []
        block.append(line)
    if block:
        yield block


def _pitch(lines: Sequence[_Segment]) -> float:
    """The most frequent distance from line to line."""
    steps = sorted(
        round(above.bottom - below.bottom, 1)
        for above, below in pairwise(lines)
        if above.bottom > below.bottom
    )
    return steps[len(steps) // 2] if steps else 1.5 * max(lines[0].size, 1.0)


def _paragraphs(lines: Sequence[_Segment], width: float) -> str:
    """The text of a block. Lines are joined where the text was wrapped: where a line has no room
    left for the first word of the next one."""
    left, edge = min(line.left for line in lines), max(line.right for line in lines)
    is_full = sum(edge - line.right < 0.12 * (edge - left) for line in lines) >= _COLUMN_LINES - 1
    pairs = list(pairwise(lines))
    wrapped = [
        (is_full or before.right - before.left > 0.45 * width)
        and edge - before.right < line.lead + 0.5 * line.size
        and not _begins_item(before, line)
        for before, line in pairs
    ]
    breaks = _breaks(pairs, wrapped, edge)
    words = {word for line in lines for word in line.text.split(" ")[1:-1]}
    parts = [lines[0].text]
    for (before, line), is_wrapped in zip(pairs, wrapped, strict=True):
        if before.is_divided and not (is_wrapped and line.text[:1].islower()):
            parts.append("-")
        if not is_wrapped:
            parts.append("\n")
        elif not before.is_divided:
            parts.append(_between(before, line, breaks, words))
        parts.append(line.text)
    if lines[-1].is_divided:
        parts.append("-")
    return "".join(parts)


def _begins_item(before: _Segment, line: _Segment) -> bool:
    if _KOREAN_OPENER.match(line.text):
        return before.text[-1:] in _ENDS  # else it is the "다." of a sentence
    return _OPENER.match(line.text) is not None


class _Breaks(Enum):
    """Where lines of Korean text may break."""

    UNKNOWN = 0
    SPACES_ARE_SHOWN = 1
    """At spaces, which the page contains at the ends of lines."""
    ANYWHERE = 2
    """Within words; lines are as full as possible, and ragged."""


def _breaks(
    pairs: Sequence[tuple[_Segment, _Segment]], wrapped: Sequence[bool], edge: float
) -> _Breaks:
    korean = [
        (before, line)
        for (before, line), is_wrapped in zip(pairs, wrapped, strict=True)
        if is_wrapped and _HANGUL.match(before.text[-1:]) and _HANGUL.match(line.text[:1])
    ]
    if any(before.ends_with_space for before, _ in korean):
        return _Breaks.SPACES_ARE_SHOWN
    rooms = [(edge - before.right) / max(line.first, 0.1) for before, line in korean]
    is_ragged = any(room > 0.3 for room in rooms)
    if is_ragged and sum(room < _FULL for room in rooms) >= 0.8 * len(rooms):
        return _Breaks.ANYWHERE
    return _Breaks.UNKNOWN


def _between(before: _Segment, line: _Segment, breaks: _Breaks, words: set[str]) -> str:
    """The text that replaces a line break within a paragraph."""
    last, first = before.text[-1:], line.text[:1]
    if _CJK.match(last) and _CJK.match(first):
        return ""
    if not (_HANGUL.match(last) and _HANGUL.match(first)):
        return " "
    if breaks is _Breaks.SPACES_ARE_SHOWN:
        return " " if before.ends_with_space else ""
    above, below = before.text.rpartition(" ")[2], line.text.partition(" ")[0]
    if above + below in words or below.rstrip(".,?!)") in _SUFFIXES:
        return ""
    is_whole = above in words or last in _PARTICLES
    return "" if breaks is _Breaks.ANYWHERE and not is_whole else " "


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

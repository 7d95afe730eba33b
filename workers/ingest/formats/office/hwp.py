"""HWP 5.0, the binary format of Hancom Office -> sections under headings, as for HWPX (`hwpx.py`).

Written from the published format ("한글문서파일형식 5.0", Hancom) on top of olefile: pyhwp has the
AGPL and is not maintained, and no loader of LangChain reads the format. Encrypted documents,
documents made for distribution (their text is encrypted, too) and documents of HWP 3 are refused.
"""

import struct
import zlib
from base64 import b64decode
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from io import BytesIO
from typing import Final

import olefile

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
from workers.ingest.formats.office.hwpx import LEVELS, HeadNumbers, TableCell, write_table
from workers.ingest.formats.office.numerals import LABEL_CHARS, numeral
from workers.ingest.formats.office.outline import Blocks, Cell, CellBlocks, Outline
from workers.ingest.formats.office.package import UnpackedBytes

_SIGNATURE: Final = b"HWP Document File"
_COMPRESSED, _ENCRYPTED, _DISTRIBUTED, _DRM = 1, 2, 4, 16
_NUMBERING, _PARA_SHAPE = 23, 25
_PARA_HEADER, _PARA_TEXT, _CTRL_HEADER, _LIST_HEADER, _TABLE, _EQUATION = 66, 67, 71, 72, 77, 88
_MAX_LEVEL: Final = 100
"""How deep tables and text boxes may nest, in levels of records."""
_LONG_CONTROLS: Final = frozenset({*range(1, 10), 11, 12, *range(14, 24)})
"""Control characters that take the space of eight characters."""
_EXTENDED: Final = frozenset({1, 2, 3, 11, 12, 14, 15, 16, 17, 18, 21, 22, 23})
"""Control characters that have a record of their own."""
_SIGNS: Final = {9: "\t", 10: "\n", 24: "-", 30: " ", 31: " "}
_FORMS: Final = (
    "decimal", "decimalEnclosedCircle", "upperRoman", "lowerRoman", "upperLetter", "lowerLetter",
    "upperLetter", "lowerLetter", "ganada", "ganada", "chosung", "chosung", "koreanDigital",
    "ideographDigital", "ideographDigital",
)  # fmt: skip
_NOTES: Final = {b"fn  ": "footnote", b"en  ": "endnote"}
_BESIDE: Final = {b"head": "header", b"foot": "footer"}


@dataclass(frozen=True, kw_only=True, slots=True)
class _Record:
    tag: int
    level: int
    data: bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class _ParagraphShape:
    heading: int
    """0: none, 1: outline, 2: number, 3: bullet."""
    level: int
    numbering: int


def load(document: RawDocument) -> DocumentParts:
    content = document.content
    if content.startswith(_SIGNATURE):
        raise DocumentError(
            f"{document.name}: is of HWP 3, which cannot be read. Open it in Hancom Office and "
            "save it as .hwpx."
        )
    try:
        ole = olefile.OleFileIO(BytesIO(content))
    except Exception as wrong:  # olefile raises errors of every class for damage
        raise _damage(document, wrong) from wrong
    with ole:
        reader = _Reader(document, ole)
        passages = list(reader.passages())
        return DocumentParts(passages=passages, metadata=reader.metadata())


def _damage(document: RawDocument, wrong: object) -> DocumentError:
    return DocumentError(
        f"{document.name}: cannot be read as HWP 5: {str(wrong).rstrip('.') or 'it is damaged'}. "
        "Open it in Hancom Office and save it as .hwpx."
    )


class _Reader:
    def __init__(self, document: RawDocument, ole: olefile.OleFileIO) -> None:
        self._document = document
        self._ole = ole
        self._unpacked = UnpackedBytes(document)
        head = self._stream("FileHeader")
        if not head.startswith(_SIGNATURE) or len(head) < 40:
            raise _damage(document, "it has no FileHeader")
        (flags,) = struct.unpack_from("<I", head, 36)
        if flags & (_ENCRYPTED | _DRM):
            raise DocumentError(
                f"{document.name}: is encrypted. Save it without a password and ingest that."
            )
        if flags & _DISTRIBUTED:
            raise DocumentError(
                f"{document.name}: is a document for distribution (배포용 문서), whose text is "
                "encrypted. Ingest the document that it was made of."
            )
        self._is_compressed = bool(flags & _COMPRESSED)
        self._outline = Outline(document)
        self._numbers = {"footnote": 0, "endnote": 0}
        self._beside: dict[str, list[str]] = {"header": [], "footer": []}
        self._shapes: list[_ParagraphShape] = []
        self._numberings: list[HeadNumbers] = []
        self._outline_numbers: HeadNumbers | None = None
        for record in self._records("DocInfo"):
            if record.tag == _PARA_SHAPE and len(record.data) >= 32:
                (flags,) = struct.unpack_from("<I", record.data)
                (numbering,) = struct.unpack_from("<H", record.data, 30)
                self._shapes.append(
                    _ParagraphShape(
                        heading=flags >> 23 & 3, level=flags >> 25 & 7, numbering=numbering
                    )
                )
            elif record.tag == _NUMBERING:
                self._numberings.append(HeadNumbers(forms=_forms(record.data)))

    def metadata(self) -> Metadata:
        try:
            properties = self._ole.getproperties("\x05HwpSummaryInformation")
        except Exception:  # metadata is optional; olefile raises errors of every class
            return {}
        metadata: Metadata = {}
        for number, key in ((2, DocumentKey.TITLE), (4, DocumentKey.AUTHOR)):
            value = properties.get(number)
            if isinstance(value, bytes):
                value = value.decode("utf-16-le", "replace")
            if isinstance(value, str) and value.split("\0")[0].strip():
                metadata[key] = " ".join(value.split("\0")[0].split())
        created = properties.get(12)
        if isinstance(created, datetime):
            metadata[DocumentKey.DATE] = created.isoformat(timespec="seconds")
        return metadata

    def passages(self) -> Iterator[RawPassage]:
        number = 0
        while self._ole.exists(f"BodyText/Section{number}"):
            records = list(self._records(f"BodyText/Section{number}"))
            self._paragraphs(records, 0, len(records), self._outline)
            number += 1
        if not number:
            raise _damage(self._document, "it has no text in it (BodyText/Section0)")
        yield from self._outline.passages()
        for part, texts in self._beside.items():
            for text in dict.fromkeys(texts):
                yield text, {PassageKey.PART: part}

    def _stream(self, name: str) -> bytes:
        try:
            with self._ole.openstream(name) as stream:
                return bytes(stream.read())
        except Exception as wrong:  # olefile raises errors of every class for damage
            raise _damage(self._document, wrong) from wrong

    def _records(self, name: str) -> Iterator[_Record]:
        data = self._stream(name)
        if self._is_compressed:
            data = self._inflated(data)
        at = 0
        while at + 4 <= len(data):
            (head,) = struct.unpack_from("<I", data, at)
            at += 4
            size = head >> 20
            if size == 0xFFF:
                if at + 4 > len(data):
                    return
                (size,) = struct.unpack_from("<I", data, at)
                at += 4
            level = head >> 10 & 0x3FF
            if level > _MAX_LEVEL:
                raise _damage(self._document, "its parts nest too deeply")
            yield _Record(tag=head & 0x3FF, level=level, data=data[at : at + size])
            at += size

    def _inflated(self, data: bytes) -> bytes:
        unpacking = zlib.decompressobj(-zlib.MAX_WBITS)
        try:
            unpacked = unpacking.decompress(data, self._unpacked.left + 1)
        except zlib.error as wrong:
            raise _damage(self._document, wrong) from wrong
        self._unpacked.add(len(unpacked))
        return unpacked

    def _paragraphs(self, records: Sequence[_Record], at: int, end: int, out: Blocks) -> None:
        """The paragraphs of one list: those at the outermost level of records `at` to `end`."""
        while at < end:
            record = records[at]
            behind = _behind(records, at, end)
            if record.tag == _PARA_HEADER:
                self._paragraph(records, at, behind, out)
            at = behind

    def _paragraph(self, records: Sequence[_Record], at: int, end: int, out: Blocks) -> None:
        head = records[at]
        text = b""
        controls: list[tuple[int, int]] = []
        """The first and the end index of the records of each control."""
        inner = at + 1
        while inner < end:
            behind = _behind(records, inner, end)
            if records[inner].tag == _PARA_TEXT:
                text = records[inner].data
            elif records[inner].tag == _CTRL_HEADER:
                controls.append((inner, behind))
            inner = behind
        parts: list[str] = []
        things: list[tuple[int, int]] = []
        waiting = iter(controls)
        for piece in _pieces(text):
            if isinstance(piece, str):
                parts.append(piece)
            elif piece in _EXTENDED:
                place = next(waiting, None)
                if place is not None:
                    self._control(records, *place, parts, things)
        for place in waiting:
            self._control(records, *place, parts, things)
        written = "".join(parts).strip()
        if written:
            self._write(head, written, out)
        for first, behind in things:
            self._thing(records, first, behind, out)

    def _write(self, head: _Record, text: str, out: Blocks) -> None:
        shape = _ParagraphShape(heading=0, level=0, numbering=0)
        if len(head.data) >= 10:
            (number,) = struct.unpack_from("<H", head.data, 8)
            if number < len(self._shapes):
                shape = self._shapes[number]
        if shape.heading == 1:
            numbers = self._outline_numbers
            label = numbers.label(shape.level) if numbers else ""
            out.heading(shape.level + 1, text, label=label)
        elif shape.heading == 2:
            numbers = self._numbering(shape.numbering)
            label = numbers.label(shape.level) if numbers else ""
            out.line(f"{label} {text}" if label else text)
        elif shape.heading == 3:
            out.line(f"- {text}")
        else:
            out.paragraph(text)

    def _numbering(self, number: int) -> HeadNumbers | None:
        return self._numberings[number - 1] if 0 < number <= len(self._numberings) else None

    def _control(
        self,
        records: Sequence[_Record],
        at: int,
        end: int,
        parts: list[str],
        things: list[tuple[int, int]],
    ) -> None:
        data = records[at].data
        kind = data[:4][::-1]
        if kind in _NOTES:
            note = _NOTES[kind]
            self._numbers[note] += 1
            mark = f"[{self._numbers[note]}]"
            if note == "endnote":
                mark = f"[{numeral(self._numbers[note], 'lowerRoman')}]"
            parts.append(mark)
            self._outline.note(note, f"{mark} {self._inside(records, at, end).text()}")
        elif kind in _BESIDE:
            cell = self._inside(records, at, end)
            text = cell.lines()
            if text.strip():
                self._beside[_BESIDE[kind]].append(text)
        elif kind == b"tcmt":
            self._outline.note("comment", self._inside(records, at, end).text())
        elif kind == b"secd":
            if len(data) >= 20:
                self._outline_numbers = self._numbering(struct.unpack_from("<H", data, 18)[0])
        elif kind == b"tdut":
            main, behind = _string(data, 4)
            sub, _ = _string(data, behind)
            parts.append(f"{main}({sub})" if sub else main)
        elif kind == b"tcps":
            parts.append(_string(data, 4)[0])
        elif kind == b"eqed":
            for record in records[at + 1 : end]:
                if record.tag == _EQUATION:
                    parts.append(_string(record.data, 4)[0])
        elif kind in (b"tbl ", b"gso "):
            things.append((at, end))

    def _inside(self, records: Sequence[_Record], at: int, end: int) -> Cell:
        blocks = CellBlocks()
        for first, behind in _lists(records, at + 1, end):
            self._paragraphs(records, first + 1, behind, blocks)
        return blocks.cell

    def _thing(self, records: Sequence[_Record], at: int, end: int, out: Blocks) -> None:
        """A table, or a shape with text."""
        if records[at].data[:4][::-1] != b"tbl ":
            for first, behind in _lists(records, at + 1, end):
                self._paragraphs(records, first + 1, behind, out)
            return
        cells: list[TableCell] = []
        has_begun = False
        lists = dict(_lists(records, at + 1, end))
        for inner in range(at + 1, end):
            record = records[inner]
            if record.tag == _TABLE and record.level == records[at].level + 1:
                has_begun = True
            elif inner in lists and not has_begun:
                self._paragraphs(records, inner + 1, lists[inner], out)  # the caption
            elif inner in lists and len(record.data) >= 16:
                column, row, _, row_span = struct.unpack_from("<4H", record.data, 8)
                blocks = CellBlocks()
                self._paragraphs(records, inner + 1, lists[inner], blocks)
                cells.append(TableCell(row=row, column=column, row_span=row_span, cell=blocks.cell))
        write_table(cells, out)


def _behind(records: Sequence[_Record], at: int, end: int) -> int:
    """The index of the first record that is no descendant of record `at`."""
    level = records[at].level
    behind = at + 1
    while behind < end and records[behind].level > level:
        behind += 1
    return behind


def _lists(records: Sequence[_Record], at: int, end: int) -> Iterator[tuple[int, int]]:
    """The outermost lists of paragraphs among the records: first and end index of each.

    The paragraphs of a list follow its header, at the same level.
    """
    while at < end:
        if records[at].tag != _LIST_HEADER:
            at += 1
            continue
        level = records[at].level
        behind = at + 1
        while behind < end and (
            records[behind].level > level
            or (records[behind].level == level and records[behind].tag == _PARA_HEADER)
        ):
            behind += 1
        yield at, behind
        at = behind


def _pieces(data: bytes) -> Iterator[str | int]:
    """Text and codes of control characters, in order."""
    codes = memoryview(data[: len(data) & ~1]).cast("H")
    start = at = 0
    while at < len(codes):
        code = codes[at]
        if code >= 32:
            at += 1
            continue
        if at > start:
            yield data[2 * start : 2 * at].decode("utf-16-le", "replace")
        if code in _SIGNS:
            yield _SIGNS[code]
        else:
            yield code
        at += 8 if code in _LONG_CONTROLS else 1
        start = at
    if at > start:
        yield data[2 * start : 2 * at].decode("utf-16-le", "replace")


def _string(data: bytes, at: int) -> tuple[str, int]:
    """A string that its length precedes, and the index behind it."""
    if at + 2 > len(data):
        return "", at
    (length,) = struct.unpack_from("<H", data, at)
    end = min(at + 2 + 2 * length, len(data))
    return data[at + 2 : end].decode("utf-16-le", "replace"), end


def _forms(data: bytes) -> dict[int, tuple[str, str, int]]:
    forms: dict[int, tuple[str, str, int]] = {}
    at = 0
    for level in range(min(7, LEVELS)):
        if at + 14 > len(data):
            break
        (flags,) = struct.unpack_from("<I", data, at)
        text, at = _string(data, at + 12)
        form, text = flags >> 5 & 0xF, text[:LABEL_CHARS]
        forms[level] = _FORMS[form] if form < len(_FORMS) else "decimal", text, 1
    return forms


# A document with one paragraph, compressed.
_EXAMPLE: Final = (
    "eNq7cF7wwcKNUg8Z0IAdAzPDv/+cDGxIYoxAzATjCED4IPzv////ICEWIP4/CoYU8AgPUHDJTy7NTc0rUXDLzElF"
    "TwisQDiMgRNDAqMgA0MDpowziwJTOEMqgwJDPkMBkM4DshIZSoBkHkMmEKcy6DHwDnn/w/I0MzQf/xvNEiMKBAFT"
    "dz44VbsC03QJQxFDJUnpR4yBlRFmFjMJ+hwYIbQbMC/lAPOSBxAnMqQAySIS7WdiRPYPSQkfCFyAvk9m8AT6PQ3I"
    "Ih0IkGH/PyR1TkBbU4BhHgL0eQUw/EkFQgyMjExQ77CQ4f5goL3JQHszge7IYzAgw37S/Q9ypwMVyzCy4n/Ufnha"
    "/AfNuyD672iROKIAAPnhGD0="
)
HWP = Loader(
    load=load,
    example=zlib.decompress(b64decode(_EXAMPLE)),
    example_text="We open at nine.",
)

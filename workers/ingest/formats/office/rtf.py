"""Rich Text Format (version 1.9.1) -> sections under headings.

Text is decoded by the code page of its font (Korean, Japanese, Chinese, …) or from Unicode escapes.
Headings are paragraphs whose own format or style has an outline level. Labels of lists are text, a
row of a table is one line, and notes, comments, headers and footers are passages of their own
(`part`). Deleted and hidden text, pictures and instructions of fields are not read.

Own code, linear in the size of the file: striprtf has no headings, notes or merged cells and
matches each control word against many patterns; LangChain's loader needs pandoc.
"""

import codecs
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Final

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
from workers.ingest.formats.office.outline import Blocks, Cell, CellBlocks, Outline

_TOKEN: Final = re.compile(
    rb"\\([a-zA-Z]{1,64})(-?[0-9]{1,10})? ?|\\'([0-9a-fA-F]{2})|\\(.)|([{}])|([^\\{}\r\n]+)"
    rb"|[\r\n]+|(\\)",
    re.DOTALL,
)
_ESCAPES: Final = re.compile(rb"(?:\\u-?[0-9]{1,5} ?\?){2,1000}")
"""Consecutive Unicode escapes, such as all of a Korean text, each with the usual fallback
character."""
_ESCAPED: Final = re.compile(rb"\\u(-?[0-9]{1,5})")
_CODE_PAGES: Final = {
    0: "cp1252", 77: "mac_roman", 128: "cp932", 129: "cp949", 130: "johab",
    134: "gb18030", 136: "cp950",
    161: "cp1253", 162: "cp1254", 163: "cp1258", 177: "cp1255", 178: "cp1256", 186: "cp1257",
    204: "cp1251", 222: "cp874", 238: "cp1250", 254: "cp437", 255: "cp850",
}  # fmt: skip
"""By the number of `\\fcharset`."""
_SIGNS: Final = {
    "tab": "\t", "line": "\n", "lbr": "\n", "emdash": "—", "endash": "–", "emspace": " ",
    "enspace": " ", "qmspace": " ", "bullet": "•", "lquote": "‘", "rquote": "’",
    "ldblquote": "“", "rdblquote": "”", "zwj": "\u200d", "zwnj": "\u200c", "nestcell": " ",
    "nestrow": "\n", "softline": " ", "zwbo": "", "softpage": "",
}  # fmt: skip
_LEFT_OUT: Final = frozenset(
    {
        "colortbl", "listtable", "listoverridetable", "revtbl", "rsidtbl", "pict", "object",
        "objdata", "fldinst", "filetbl", "generator", "themedata", "colorschememapping",
        "latentstyles", "datastore", "xmlnstbl", "nonshppict", "bkmkstart", "bkmkend", "pgdsctbl",
        "mmathPr", "atnid", "atnref", "atndate", "atrfstart", "atrfend", "ftnsep", "ftnsepc",
        "ftncn", "aftnsep", "aftnsepc", "aftncn", "template", "private", "datafield", "formfield",
        "falt", "panose", "blipuid", "pnseclvl", "operator", "company", "manager", "keywords",
        "comment", "doccomm", "hlinkbase", "nextfile", "sp", "wgrffmtfilter", "nonesttables",
        "userprops", "listname", "liststylename", "leveltext", "levelnumbers"
    }
)  # fmt: skip
_KEPT: Final = frozenset({"shpinst", "shppict", "nesttableprops", "pn", "ud", "footnote"})
"""Destinations marked as optional (`\\*`) that contain text."""
_PARTS: Final = {
    "header": "header", "headerl": "header", "headerr": "header", "headerf": "header",
    "footer": "footer", "footerl": "footer", "footerr": "footer", "footerf": "footer",
    "footnote": "footnote", "annotation": "comment", "shptxt": "box", "dptxbxtext": "box",
}  # fmt: skip
_INFO: Final = {"title": DocumentKey.TITLE, "author": DocumentKey.AUTHOR}
_LEVELS: Final = 9


@dataclass(kw_only=True)
class _Target:
    """Where text is written: the body, a note, a header, a title."""

    part: str
    out: Blocks
    text: list[str] = field(default_factory=list)
    cells: list[Cell] = field(default_factory=list)
    cell: CellBlocks = field(default_factory=CellBlocks)
    merges: list[str] = field(default_factory=list)
    """The cells of the row being defined: empty, or how the next cell is merged."""
    above: dict[int, Cell] = field(default_factory=dict)
    pending: str = ""
    has_rows: bool = False


@dataclass(kw_only=True)
class _Group:
    target: _Target
    code_page: str = "cp1252"
    fallback_chars: int = 1
    """How many fallback characters follow a Unicode escape."""
    is_hidden: bool = False
    is_left_out: bool = False
    is_optional: bool = False
    destination: str = ""
    outline: int | None = None
    style: int = 0
    in_table: bool = False
    font: int | None = None


def load(document: RawDocument) -> DocumentParts:
    if not document.content.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{\\rtf"):
        raise DocumentError(
            f"{document.name}: is not RTF: it does not begin with {{\\rtf. Check what it is, and "
            "give it the ending that it should have."
        )
    reader = _Reader(document)
    reader.read(document.content)
    return DocumentParts(passages=reader.passages(), metadata=reader.metadata)


class _Reader:
    def __init__(self, document: RawDocument) -> None:
        self.metadata: Metadata = {}
        self._outline = Outline(document)
        body = _Target(part="", out=self._outline)
        self._group = _Group(target=body)
        self._stack: list[_Group] = []
        self._fonts: dict[int, str] = {}
        self._levels: dict[int, int] = {}
        """Outline levels of styles."""
        self._default_page = "cp1252"
        self._bytes = bytearray()
        self._skip = 0
        self._surrogate = ""
        self._beside: dict[str, list[str]] = {}
        self._numbers = {"footnote": 0}

    def passages(self) -> Iterator[RawPassage]:
        while self._stack:
            self._close()
        self._flush()
        self._end_paragraph(self._group)
        self._end_row(self._group.target)
        yield from self._outline.passages()
        for part, texts in self._beside.items():
            yield "\n".join(dict.fromkeys(texts)), {PassageKey.PART: part}

    def read(self, data: bytes) -> None:
        at = 0
        while (match := _TOKEN.match(data, at)) is not None:
            if match[1] == b"u" and self._group.fallback_chars == 1 and not self._skip:
                escapes = _ESCAPES.match(data, at)
                if escapes is not None:
                    at = escapes.end()
                    self._flush()
                    self._write_codes([int(code) for code in _ESCAPED.findall(escapes[0])])
                    continue
            at = match.end()
            word, number, hexadecimal, symbol, brace, text, _ = match.groups()
            if text is not None:
                self._write_bytes(text)
            elif hexadecimal is not None:
                self._write_bytes(bytes([int(hexadecimal, 16)]))
            elif word is not None:
                name = word.decode("ascii")
                value = int(number) if number else None
                if name == "bin":
                    self._flush()
                    at += max(0, min(value or 0, len(data) - at))
                elif name == "u":
                    self._write_unicode(value or 0)
                else:
                    self._flush()
                    self._control(name, value)
            elif brace is not None:
                self._flush()
                self._skip = 0
                if brace == b"{":
                    self._stack.append(self._group)
                    self._group = replace(self._group, destination="", is_optional=False)
                elif self._stack:
                    self._close()
            elif symbol is not None:
                self._symbol(symbol)
        self._flush()

    def _symbol(self, symbol: bytes) -> None:
        if symbol == b"*":
            self._flush()
            self._group.is_optional = True
        elif symbol in (b"\\", b"{", b"}"):
            self._write_bytes(symbol)
        elif symbol in (b"\r", b"\n"):
            self._flush()
            self._control("par", None)
        elif symbol == b"~":
            self._write("\u00a0")
        elif symbol == b"_":
            self._write("\u2011")
        elif symbol == b"\t":
            self._write("\t")

    def _close(self) -> None:
        ended, self._group = self._group, self._stack.pop()
        target = ended.target
        if target is not self._group.target:
            self._end_paragraph(ended)
            self._end_row(target)
            self._end_target(target)
        if self._group.destination == "stylesheet" and ended.outline is not None:
            self._levels.setdefault(ended.style, ended.outline)
        if ended.destination == "fonttbl":
            self._group.code_page = self._default_page

    def _end_target(self, target: _Target) -> None:
        blocks = target.out
        if not isinstance(blocks, CellBlocks):
            return
        text = blocks.cell.lines().strip()
        if target.part in _INFO.values() and text:
            self.metadata.setdefault(target.part, " ".join(text.split()))
        elif target.part == "footnote":
            self._outline.note(
                "footnote", f"[{self._numbers['footnote']}] {' '.join(text.split())}"
            )
        elif target.part == "comment":
            self._outline.note("comment", text)
        elif target.part in ("header", "footer") and text:
            self._beside.setdefault(target.part, []).append(text)
        elif target.part == "box":
            for block, is_line in blocks.cell.blocks:
                self._outline.add(block, is_line=is_line)

    def _control(self, name: str, value: int | None) -> None:
        group = self._group
        target = group.target
        if name in _LEFT_OUT:
            group.is_left_out, group.destination = True, name
        elif name in ("fonttbl", "stylesheet", "info", "listtext", "pntext", "fldrslt"):
            group.destination = name
            group.is_left_out = group.is_left_out or name in ("fonttbl", "stylesheet", "info")
            if name in ("listtext", "pntext"):
                group.is_left_out = bool(self._stack) and self._stack[-1].is_left_out
        elif name in _INFO and self._stack and self._stack[-1].destination == "info":
            group.is_left_out = False
            group.target = _Target(part=_INFO[name], out=CellBlocks())
        elif name == "creatim":
            group.destination = name
            self.metadata.setdefault(DocumentKey.DATE, "")
        elif name in ("yr", "mo", "dy") and group.destination == "creatim":
            self._note_date(name, value or 0)
        elif name in _PARTS:
            self._begin_part(name)
        elif group.is_optional and name not in _KEPT and not group.destination:
            group.is_left_out, group.destination = True, name
        elif name == "ansicpg":
            self._default_page = group.code_page = _codec(f"cp{value}") or group.code_page
        elif name in ("mac", "pc", "pca"):
            self._default_page = group.code_page = {"mac": "mac_roman", "pc": "cp437"}.get(
                name, "cp850"
            )
        elif name == "f" and value is not None:
            group.font = value
            if not self._in_font_table():
                group.code_page = self._fonts.get(value) or self._default_page
        elif name == "fcharset" and group.font is not None and self._in_font_table():
            self._fonts[group.font] = _CODE_PAGES.get(value or 0, "")
        elif name == "cpg" and group.font is not None and self._in_font_table():
            self._fonts[group.font] = _codec(f"cp{value}") or ""
        elif name == "uc":
            group.fallback_chars = max(0, min(value if value is not None else 1, 100))
        elif name in ("par", "sect", "page", "column"):
            self._end_paragraph(group)
        elif name == "pard":
            group.outline, group.style, group.in_table = None, 0, False
        elif name == "plain":
            group.is_hidden = False
            group.code_page = self._default_page
        elif name in ("v", "deleted"):
            group.is_hidden = value != 0
        elif name == "s" and value is not None:
            group.style = value
        elif name == "outlinelevel":
            group.outline = value
        elif name == "intbl":
            group.in_table = True
        elif name == "trowd":
            target.merges, target.pending = [], ""
        elif name in ("clvmrg", "clmrg"):
            target.pending = name
        elif name == "cellx":
            target.merges.append(target.pending)
            target.pending = ""
        elif name == "cell":
            self._end_paragraph(group, in_cell=True)
            target.cells.append(target.cell.cell)
            target.cell = CellBlocks()
        elif name == "row":
            self._end_row(target)
        elif name in _SIGNS:
            self._write(_SIGNS[name])

    def _begin_part(self, name: str) -> None:
        group = self._group
        if group.is_left_out and name not in ("shptxt", "dptxbxtext"):
            return
        part = _PARTS[name]
        if part == "footnote":
            self._numbers["footnote"] += 1
            self._write(f"[{self._numbers['footnote']}]")
        group.is_left_out = group.is_hidden = False
        group.target = _Target(part=part, out=CellBlocks())
        group.outline, group.style, group.in_table = None, 0, False

    def _in_font_table(self) -> bool:
        return self._group.destination == "fonttbl" or any(
            group.destination == "fonttbl" for group in self._stack[-2:]
        )

    def _note_date(self, name: str, value: int) -> None:
        date = str(self.metadata.get(DocumentKey.DATE) or "")
        width = 4 if name == "yr" else 2
        self.metadata[DocumentKey.DATE] = f"{date}-{value:0{width}d}".lstrip("-")

    def _write_unicode(self, value: int) -> None:
        self._flush()
        self._write_codes([value])
        self._skip = self._group.fallback_chars

    def _write_codes(self, values: list[int]) -> None:
        """Units of UTF-16, signed or not; the first half of a surrogate pair waits for the
        second."""
        text = self._surrogate + "".join(chr(value % 0x10000) for value in values)
        self._surrogate = ""
        if "\ud800" <= text[-1] < "\udc00":
            text, self._surrogate = text[:-1], text[-1]
        if text:
            if not text.isascii():
                text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
            self._write(text)

    def _write_bytes(self, data: bytes) -> None:
        if self._skip:
            # A fallback of two bytes is written as two escapes and counts as two.
            dropped = min(self._skip, len(data))
            self._skip -= dropped
            data = data[dropped:]
        if not (self._group.is_left_out or self._group.is_hidden):
            self._bytes += data

    def _flush(self) -> None:
        if self._bytes:
            text = bytes(self._bytes).decode(self._group.code_page, "replace")
            self._bytes.clear()
            self._write(text)

    def _write(self, text: str) -> None:
        if self._bytes:
            self._flush()
        group = self._group
        if not (group.is_left_out or group.is_hidden):
            if group.destination in ("listtext", "pntext"):
                text = text.replace("\t", " ")
            group.target.text.append(text)

    def _end_paragraph(self, group: _Group, *, in_cell: bool = False) -> None:
        target = group.target
        text = "".join(target.text).strip(" ")
        target.text = []
        out: Blocks = target.out
        if in_cell or group.in_table:
            out = target.cell
        elif target.cells or target.has_rows:
            self._end_row(target)
            target.has_rows = False
            target.above = {}
        if not text.strip():
            return
        level = group.outline
        if level is None:
            level = self._levels.get(group.style)
        if level is not None and 0 <= level < _LEVELS:
            out.heading(level + 1, text.strip())
        else:
            out.paragraph(text)

    def _end_row(self, target: _Target) -> None:
        if target.cell.cell.blocks:
            target.cells.append(target.cell.cell)
            target.cell = CellBlocks()
        if not target.cells:
            return
        cells: list[Cell] = []
        for column, cell in enumerate(target.cells):
            merge = target.merges[column] if column < len(target.merges) else ""
            if merge == "clmrg":
                continue
            if merge == "clvmrg" and column in target.above:
                cell = target.above[column].below()
            else:
                target.above[column] = cell
            cells.append(cell)
        target.out.row(cells, is_first=not target.has_rows)
        target.has_rows = True
        target.cells = []


def _codec(name: str) -> str:
    """The name of a codec; empty if Python has none."""
    try:
        return codecs.lookup("utf-8" if name == "cp65001" else name).name
    except LookupError:
        return ""


RTF = Loader(
    load=load,
    example=rb"{\rtf1\ansi{\fonttbl{\f0 Arial;}}\pard\outlinelevel0 Hours\par\pard We open at "
    rb"\b nine\b0 .\par}",
    example_text="Hours\n\nWe open at nine.",
)

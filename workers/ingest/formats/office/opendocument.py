"""OpenDocument (ISO/IEC 26300) -> passages: texts, spreadsheets, presentations, and their
templates.

Texts become sections under their headings, as Word documents do (`outline.py`). Lists and headings
have their numbers; notes, comments, headers and footers are passages of their own (`part`); tracked
deletions are not read. Sheets become rows (`sheets.py`): each cell has the text that people see,
and its value. Each slide of a presentation is a passage, and its notes are another.

By lxml alone: odfpy builds objects for all elements and is not maintained; LangChain's loader needs
unstructured and pandoc. Repeated rows and cells are counted, and copied only if they have text.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from lxml import etree

from shared.bounds import Metadata
from workers.ingest.formats.loader import (
    DocumentKey,
    DocumentParts,
    Loader,
    PassageKey,
    RawDocument,
    RawPassage,
    heading_title,
)
from workers.ingest.formats.office.formulas import formula
from workers.ingest.formats.office.numerals import LABEL_CHARS, numeral
from workers.ingest.formats.office.outline import Blocks, Cell, CellBlocks, Outline
from workers.ingest.formats.office.package import (
    Package,
    archive_of,
    attribute,
    child,
    children,
    descendants,
    dublin_core,
    local,
)
from workers.ingest.formats.office.sheets import (
    Merge,
    Sheet,
    SheetCell,
    SheetRow,
    Value,
    passages,
)

_LAST_ROW: Final = 1_048_576
_LAST_COLUMN: Final = 16_384
_SPACES: Final = 1000
_GROUPS: Final = frozenset(
    {
        "section", "index-body", "table-of-content", "alphabetical-index", "illustration-index",
        "table-index", "object-index", "user-index", "bibliography", "index-title", "g", "a",
        "numbered-paragraph", "page",
    }
)  # fmt: skip
_SHAPES: Final = frozenset(
    {
        "frame", "text-box", "custom-shape", "rect", "line", "polyline", "polygon", "path",
        "ellipse", "circle", "connector", "caption", "regular-polygon", "measure",
    }
)  # fmt: skip
_LEFT_OUT: Final = frozenset(
    {"tracked-changes", "sequence-decls", "variable-decls", "user-field-decls", "forms",
     "event-listeners", "object", "object-ole", "image", "note-citation", "hidden-text",
     "desc", "title", "thumbnail"}
)  # fmt: skip
_FORMS: Final = {
    "1": "decimal", "a": "lowerLetter", "A": "upperLetter", "i": "lowerRoman", "I": "upperRoman",
    "가, 나, 다, ...": "ganada", "ㄱ, ㄴ, ㄷ, ...": "chosung", "": "none",
    "일, 이, 삼, ...": "koreanDigital", "①, ②, ③, ...": "decimalEnclosedCircle",
    "一, 二, 三, ...": "ideographDigital",
}  # fmt: skip
_LEVELS: Final = 10


@dataclass(kw_only=True)
class _ListLevel:
    format: str = "none"
    prefix: str = ""
    suffix: str = ""
    shown_levels: int = 1
    start: int = 1


@dataclass(kw_only=True)
class _List:
    """The state of a list while it is read."""

    style: str = ""
    counts: list[int] = field(default_factory=list)


def load_text(document: RawDocument) -> DocumentParts:
    package, content, styles = _open(document, kind="an OpenDocument text (.odt)")
    body = child(content, "body", "text")
    if body is None:
        raise package.lacks("office:text in its content.xml")
    reader = _Reader(package, content, styles)
    outline = Outline(document)
    reader.blocks(body, outline)
    return DocumentParts(
        passages=_text_passages(reader, outline, styles), metadata=_metadata(package)
    )


def _text_passages(
    reader: "_Reader", outline: Outline, styles: etree._Element | None
) -> Iterator[RawPassage]:
    yield from outline.passages()
    for kind in ("header", "footer"):
        texts: set[str] = set()
        for node in descendants(child(styles, "master-styles"), kind, f"{kind}-left"):
            blocks = CellBlocks()
            reader.blocks(node, blocks)
            text = blocks.cell.lines()
            if text not in texts:
                texts.add(text)
                yield text, {PassageKey.PART: kind}


def load_slides(document: RawDocument) -> DocumentParts:
    package, content, styles = _open(document, kind="an OpenDocument presentation (.odp)")
    body = child(content, "body", "presentation")
    if body is None:
        raise package.lacks("office:presentation in its content.xml")
    return DocumentParts(
        passages=_slides(document, _Reader(package, content, styles), body),
        metadata=_metadata(package),
    )


def _slides(document: RawDocument, reader: "_Reader", body: etree._Element) -> Iterator[RawPassage]:
    for number, page in enumerate(children(body, "page"), start=1):
        own: Metadata = {PassageKey.SLIDE: number}
        title = ""
        blocks = CellBlocks()
        notes = CellBlocks()
        comments = CellBlocks()
        for shape in page:
            name = local(shape)
            if name == "notes":
                for frame in children(shape, "frame"):
                    if attribute(frame, "class") == "notes":
                        reader.blocks(frame, notes)
            elif name == "annotation":
                reader.blocks(shape, comments)
            elif attribute(shape, "class") == "title" and not title:
                inner = CellBlocks()
                reader.blocks(shape, inner)
                title = inner.cell.text()
            elif attribute(shape, "class") not in ("page-number", "date-time"):
                reader.shape(shape, blocks)
        if title:
            own[PassageKey.HEADING] = heading_title(title)
        style = reader.properties.get(attribute(page, "style-name") or "")
        if style is not None and attribute(style, "visibility") == "hidden":
            own[PassageKey.HIDDEN] = True
        outline = Outline(document)
        if title:
            outline.paragraph(title)
        for text, is_line in blocks.cell.blocks:
            outline.add(text, is_line=is_line)
        for text, _ in outline.passages():
            yield text, own
        for part, other in (("notes", notes), ("comment", comments)):
            text = other.cell.lines()
            yield text, {**own, PassageKey.PART: part}


def load_sheets(document: RawDocument) -> DocumentParts:
    package, content, styles = _open(document, kind="an OpenDocument spreadsheet (.ods)")
    body = child(content, "body", "spreadsheet")
    if body is None:
        raise package.lacks("office:spreadsheet in its content.xml")
    reader = _Reader(package, content, styles)
    sheets: list[Sheet] = []
    for table in children(body, "table"):
        style = reader.properties.get(attribute(table, "style-name") or "")
        sheets.append(
            Sheet(
                name=attribute(table, "name") or "",
                rows=partial(_sheet_rows, reader, table),
                merges=partial(_sheet_merges, table),
                is_hidden=style is not None and attribute(style, "display") == "false",
            )
        )
    return DocumentParts(
        passages=_sheet_passages(document, reader, sheets, body), metadata=_metadata(package)
    )


def _sheet_passages(
    document: RawDocument, reader: "_Reader", sheets: Sequence[Sheet], body: etree._Element
) -> Iterator[RawPassage]:
    yield from passages(document, sheets)
    for table in children(body, "table"):
        for part, name in (("comment", "annotation"), ("shape", "shapes")):
            texts: list[str] = []
            for node in descendants(table, name):
                blocks = CellBlocks()
                if name == "annotation":
                    reader.blocks(node, blocks)
                else:
                    for shape in node:
                        reader.shape(shape, blocks)
                texts.append(blocks.cell.lines())
            yield (
                "\n".join(texts),
                {
                    PassageKey.SHEET: attribute(table, "name") or "",
                    PassageKey.PART: part,
                },
            )


def _numbered_rows(table: etree._Element) -> Iterator[tuple[int, int, etree._Element]]:
    """The number of a row, how often it is repeated, and the row."""
    number = 1
    for row in descendants(table, "table-row"):
        repeated = max(1, _count(row, "number-rows-repeated", _LAST_ROW))
        yield number, repeated, row
        number += repeated


def _sheet_rows(reader: "_Reader", table: etree._Element) -> Iterator[SheetRow]:
    for number, repeated, row in _numbered_rows(table):
        cells: list[SheetCell] = []
        column = 0
        for node in children(row, "table-cell", "covered-table-cell"):
            count = max(1, _count(node, "number-columns-repeated", _LAST_COLUMN))
            if len(node) and local(node) == "table-cell":
                text = reader.cell_text(node)
                if text.strip():
                    value = _value(node, text)
                    last = min(column + count, _LAST_COLUMN)
                    cells.extend(SheetCell(at, text, value) for at in range(column, last))
            column += count
        for at in range(repeated if cells else 0):
            yield SheetRow(number + at, cells)


def _sheet_merges(table: etree._Element) -> list[Merge]:
    merges: list[Merge] = []
    for number, _, row in _numbered_rows(table):
        column = 0
        for node in children(row, "table-cell", "covered-table-cell"):
            rows = _count(node, "number-rows-spanned", _LAST_ROW)
            columns = _count(node, "number-columns-spanned", _LAST_COLUMN)
            if rows > 1 or columns > 1:
                merges.append(
                    Merge(number, number + max(rows, 1) - 1, column, column + max(columns, 1) - 1)
                )
            column += max(1, _count(node, "number-columns-repeated", _LAST_COLUMN))
    return merges


def _value(node: etree._Element, text: str) -> Value:
    kind = attribute(node, "value-type")
    if kind in ("float", "currency", "percentage"):
        try:
            number = float(attribute(node, "value") or "")
        except ValueError:
            return text
        if number != number or abs(number) == float("inf"):
            return text
        return int(number) if number == int(number) and abs(number) < 2**53 else number
    if kind == "boolean":
        return attribute(node, "boolean-value") == "true"
    if kind == "date":
        return attribute(node, "date-value") or text
    return text


def _open(
    document: RawDocument, *, kind: str
) -> tuple[Package, etree._Element, etree._Element | None]:
    package = Package(document, kind=kind)
    for _ in descendants(package.xml("META-INF/manifest.xml"), "encryption-data"):
        raise package.encryption()
    content = package.xml("content.xml")
    if content is None:
        raise package.lacks("content.xml")
    return package, content, package.xml("styles.xml")


def _metadata(package: Package) -> Metadata:
    terms = dublin_core(child(package.xml("meta.xml"), "meta"))
    return {key: value for key, value in terms.items() if key in set(DocumentKey)}


class _Reader:
    def __init__(
        self, package: Package, content: etree._Element, styles: etree._Element | None
    ) -> None:
        self._package = package
        self.properties: dict[str, etree._Element] = {}
        """Name of a style -> the properties of drawing pages and tables."""
        self._lists: dict[str, dict[int, _ListLevel]] = {}
        self._outline_levels: dict[int, _ListLevel] = {}
        self._heading_counts = [0] * _LEVELS
        self._counts: dict[str, list[int]] = {}
        self._outline: Outline | None = None
        self._notes = {"footnote": 0, "endnote": 0}
        for root in (styles, content):
            for node in descendants(root, "style"):
                for part in children(node, "drawing-page-properties", "table-properties"):
                    self.properties[attribute(node, "name") or ""] = part
            for node in descendants(root, "list-style"):
                self._lists[attribute(node, "name") or ""] = _levels(node)
            for node in descendants(root, "outline-style"):
                self._outline_levels = _levels(node)

    def blocks(self, parent: etree._Element, out: Blocks) -> None:
        if isinstance(out, Outline):
            self._outline = out
        for node in parent:
            name = local(node)
            if name in ("p", "h"):
                self._paragraph(node, out)
            elif name == "list":
                self._list(node, out, _List(), 0)
            elif name == "table":
                self._table(node, out)
            elif name in _GROUPS:
                self.blocks(node, out)
            elif name in _SHAPES:
                self.shape(node, out)

    def shape(self, node: etree._Element, out: Blocks) -> None:
        """A shape, with its content."""
        if local(node) in _SHAPES or local(node) in _GROUPS:
            self.blocks(node, out)
        elif local(node) == "table":
            self._table(node, out)

    def cell_text(self, node: etree._Element) -> str:
        boxes: list[etree._Element] = []
        return "\n".join(self._text(part, boxes) for part in children(node, "p", "h"))

    def _paragraph(self, node: etree._Element, out: Blocks, label: str | None = None) -> None:
        boxes: list[etree._Element] = []
        text = self._text(node, boxes)
        if text.strip():
            if local(node) == "h":
                level = _count(node, "outline-level", _LEVELS) or 1
                number = self._heading_number(node, level)
                out.heading(level, text, label=number)
            elif label is not None:
                out.line(f"{label} {text}" if label else text)
            else:
                out.paragraph(text)
        for box in boxes:
            self.shape(box, out)

    def _heading_number(self, node: etree._Element, level: int) -> str:
        if attribute(node, "is-list-header") == "true" or level > _LEVELS:
            return ""
        counts = self._heading_counts
        form = self._outline_levels.get(level)
        counts[level - 1] = (
            counts[level - 1] + 1 if counts[level - 1] else form.start if form else 1
        )
        counts[level:] = [0] * (_LEVELS - level)
        return _label(self._outline_levels, counts, level)

    def _list(self, node: etree._Element, out: Blocks, above: _List, depth: int) -> None:
        style = attribute(node, "style-name") or above.style
        levels = self._lists.get(style, {})
        level = depth + 1
        goes_on = attribute(node, "continue-numbering") == "true" or attribute(
            node, "continue-list"
        )
        counts = self._counts.get(style) if goes_on else None
        counts = list(above.counts) if depth else (counts or [])
        counts = (counts + [0] * _LEVELS)[:_LEVELS]
        if depth and depth < _LEVELS:
            counts[depth] = 0
        for item in children(node, "list-item", "list-header"):
            label = None
            if local(item) == "list-item" and level <= _LEVELS:
                start = _count(item, "start-value", _LAST_ROW)
                form = levels.get(level, _ListLevel())
                counts[depth] = start or (counts[depth] + 1 if counts[depth] else form.start)
                label = _label(levels, counts, level) or "-"
            for part in item:
                name = local(part)
                if name == "list":
                    self._list(part, out, _List(style=style, counts=counts), depth + 1)
                elif name in ("p", "h"):
                    self._paragraph(part, out, label if label is not None else "")
                    label = ""
        if not depth:
            self._counts[style] = counts

    def _table(self, node: etree._Element, out: Blocks) -> None:
        below: dict[int, tuple[int, Cell]] = {}
        is_first = True
        for row in _rows_of(node):
            cells: list[Cell] = []
            column = 0
            for part in children(row, "table-cell", "covered-table-cell"):
                if local(part) == "covered-table-cell":
                    left, cell = below.get(column, (0, None))
                    if cell is not None and left:
                        cells.append(cell.below())
                        below[column] = left - 1, cell
                else:
                    blocks = CellBlocks()
                    self.blocks(part, blocks)
                    cells.append(blocks.cell)
                    below[column] = (
                        max(0, _count(part, "number-rows-spanned", _LAST_ROW) - 1),
                        blocks.cell,
                    )
                column += max(1, _count(part, "number-columns-repeated", _LAST_COLUMN))
            out.row(cells, is_first=is_first)
            is_first = False

    def _text(self, node: etree._Element, boxes: list[etree._Element]) -> str:
        parts: list[str] = []
        self._gather(node, parts, boxes)
        return "".join(parts).strip()

    def _gather(self, node: etree._Element, parts: list[str], boxes: list[etree._Element]) -> None:
        parts.append(_collapsed(node.text, parts))
        for part in node:
            name = local(part)
            if name == "s":
                parts.append(" " * max(1, _count(part, "c", _SPACES)))
            elif name == "tab":
                parts.append("\t")
            elif name == "line-break":
                parts.append("\n")
            elif name == "note":
                parts.append(self._note(part))
            elif name == "annotation":
                self._comment(part)
            elif name == "ruby":
                for inner, form in (("ruby-base", "{}"), ("ruby-text", "({})")):
                    base = child(part, inner)
                    text = "" if base is None else self._text(base, boxes)
                    parts.append(form.format(text) if text else "")
            elif name == "frame" and (written := self._formula(part)):
                parts.append(written)
            elif name in _SHAPES or name == "table":
                boxes.append(part)
            elif name not in _LEFT_OUT:
                self._gather(part, parts, boxes)
            parts.append(_collapsed(part.tail, parts))

    def _formula(self, frame: etree._Element) -> str:
        """The formula in a frame; empty if there is none."""
        thing = child(frame, "object")
        if thing is None:
            return ""
        math = child(thing, "math")
        if math is None and (place := attribute(thing, "href")):
            math = self._package.xml(f"{place.removeprefix('./')}/content.xml")
        return formula(math) if math is not None and local(math) == "math" else ""

    def _note(self, node: etree._Element) -> str:
        kind = attribute(node, "note-class") or "footnote"
        body = child(node, "note-body")
        if body is None or self._outline is None or kind not in self._notes:
            return ""
        self._notes[kind] += 1
        citation = child(node, "note-citation")
        mark = f"[{(citation.text if citation is not None else None) or self._notes[kind]}]"
        outline = self._outline
        blocks = CellBlocks()
        self.blocks(body, blocks)
        outline.note(kind, f"{mark} {blocks.cell.text()}")
        return mark

    def _comment(self, node: etree._Element) -> None:
        if self._outline is None:
            return
        outline = self._outline
        blocks = CellBlocks()
        self.blocks(node, blocks)
        author = child(node, "creator")
        name = (author.text or "").strip() if author is not None else ""
        text = blocks.cell.text()
        outline.note("comment", f"{name}: {text}" if name and text else text)


def _collapsed(text: str | None, before: Sequence[str]) -> str:
    """White space collapses as in HTML; `text:s` stands for several spaces."""
    if not text:
        return ""
    words = " ".join(text.split())
    if not words:
        return "" if _ends_with_space(before) else " "
    lead = "" if not text[0].isspace() or _ends_with_space(before) else " "
    return lead + words + (" " if text[-1].isspace() else "")


def _ends_with_space(parts: Sequence[str]) -> bool:
    for part in reversed(parts):
        if part:
            return part[-1].isspace()
    return True


def _rows_of(table: etree._Element) -> Iterator[etree._Element]:
    for node in table:
        name = local(node)
        if name == "table-row":
            yield node
        elif name in ("table-header-rows", "table-rows", "table-row-group"):
            yield from _rows_of(node)


def _levels(style: etree._Element) -> dict[int, _ListLevel]:
    levels: dict[int, _ListLevel] = {}
    for node in style:
        name = local(node)
        level = _count(node, "level", _LEVELS)
        if not level or not name.endswith(("-number", "outline-level-style")):
            continue
        levels[level] = _ListLevel(
            format=_FORMS.get(attribute(node, "num-format") or "", "decimal"),
            prefix=(attribute(node, "num-prefix") or "")[:LABEL_CHARS],
            suffix=(attribute(node, "num-suffix") or "")[:LABEL_CHARS],
            shown_levels=max(1, _count(node, "display-levels", _LEVELS)),
            start=_count(node, "start-value", _LAST_ROW) or 1,
        )
    return levels


def _label(levels: dict[int, _ListLevel], counts: Sequence[int], level: int) -> str:
    form = levels.get(level)
    if form is None or form.format == "none":
        return ""
    first = max(1, level - form.shown_levels + 1)
    numbers = [
        numeral(counts[at - 1] or 1, levels.get(at, form).format) for at in range(first, level + 1)
    ]
    return f"{form.prefix}{'.'.join(filter(None, numbers))}{form.suffix}".strip()


def _count(node: etree._Element, name: str, limit: int) -> int:
    """The number in an attribute, at most `limit`; 0 if there is none."""
    value = attribute(node, name)
    return min(int(value), limit) if value and value.isdecimal() and len(value) < 10 else 0


_CONTENT: Final = (
    '<o:document-content xmlns:o="o" xmlns:t="t" xmlns:b="b" xmlns:d="d"><o:body>{}</o:body>'
    "</o:document-content>"
)


def _example(kind: str, body: str) -> bytes:
    mimetype = f"application/vnd.oasis.opendocument.{kind}"
    return archive_of({"mimetype": mimetype, "content.xml": _CONTENT.format(body)})


TEXT = Loader(
    load=load_text,
    example=_example(
        "text", "<o:text><t:h>Hours</t:h><t:p>We open at <t:span>nine</t:span>.</t:p></o:text>"
    ),
    example_text="Hours\n\nWe open at nine.",
)
SHEETS = Loader(
    load=load_sheets,
    example=_example(
        "spreadsheet",
        '<o:spreadsheet><b:table b:name="Hours"><b:table-row><b:table-cell><t:p>day</t:p>'
        "</b:table-cell><b:table-cell><t:p>opens</t:p></b:table-cell></b:table-row><b:table-row>"
        "<b:table-cell><t:p>Monday</t:p></b:table-cell><b:table-cell><t:p>9</t:p></b:table-cell>"
        "</b:table-row></b:table></o:spreadsheet>",
    ),
    example_text="day: Monday\nopens: 9",
)
SLIDES = Loader(
    load=load_slides,
    example=_example(
        "presentation",
        "<o:presentation><d:page><d:frame><d:text-box><t:p>We open at nine.</t:p></d:text-box>"
        "</d:frame></d:page></o:presentation>",
    ),
    example_text="We open at nine.",
)

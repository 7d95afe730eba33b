"""Word documents (.docx, .docm, .dotx, Office Open XML, ISO/IEC 29500) -> sections under headings.

The text is that of the document with all changes accepted: with insertions, without deletions,
hidden text and instructions of fields. Headings are paragraphs whose style or own format has an
outline level. Automatic numbers of headings, clauses and lists ("제3조", "1.2", "(a)") are text.
Text boxes follow the paragraph that contains them. Footnotes, endnotes, comments, headers and
footers are passages of their own (`part` in the metadata); the mark of a note, `[1]`, stays in the
text.

By lxml alone: LangChain's loader (docx2txt) loses headings, numbers and rows of tables, and the API
of python-docx leaves out insertions, text boxes, content controls and notes. Costs are linear.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from lxml import etree

from workers.ingest.formats.loader import (
    DocumentKey,
    DocumentParts,
    Loader,
    PassageKey,
    RawDocument,
    RawPassage,
)
from workers.ingest.formats.office.formulas import formula
from workers.ingest.formats.office.numerals import LABEL_CHARS, numeral
from workers.ingest.formats.office.outline import SYMBOLS, Blocks, Cell, CellBlocks, Outline
from workers.ingest.formats.office.package import (
    Package,
    Relation,
    alternative,
    archive_of,
    attribute,
    child,
    children,
    core_properties,
    descendants,
    local,
)
from workers.ingest.formats.texts.html import page_within

_LEVELS: Final = 9
_CONTAINERS: Final = frozenset({"sdt", "sdtContent", "customXml", "ins", "moveTo", "smartTag"})
_LEFT_OUT: Final = frozenset({"del", "moveFrom", "rPr", "pPr", "instrText", "delText", "sdtPr"})
_BREAKS: Final = {"tab": "\t", "ptab": "\t", "br": "\n", "cr": "\n", "noBreakHyphen": "\u2011"}
_NOTE_MARKS: Final = {"footnoteReference": "footnote", "endnoteReference": "endnote"}
_ON: Final = frozenset({"1", "true", "on", ""})
_PRIVATE: Final = range(0xE000, 0xF900)


@dataclass(kw_only=True)
class _ListLevel:
    start: int = 1
    format: str = "decimal"
    text: str = ""
    has_plain_numbers: bool = False
    """Whether all numbers in it are decimal (`isLgl`)."""


@dataclass(kw_only=True)
class _ParagraphStyle:
    name: str = ""
    based_on: str = ""
    outline: int | None = None
    numbering: str | None = None
    level: int | None = None


@dataclass(kw_only=True)
class _Numbering:
    """Automatic numbers (`numbering.xml`)."""

    levels: dict[str, dict[int, _ListLevel]] = field(default_factory=dict)
    """`numId` -> its levels."""
    lists: dict[str, str] = field(default_factory=dict)
    """`numId` -> the abstract list whose count it continues."""
    counts: dict[str, list[int | None]] = field(default_factory=dict)
    restarted: set[tuple[str, int]] = field(default_factory=set)
    overrides: dict[tuple[str, int], int] = field(default_factory=dict)

    def label(self, number_id: str, level: int) -> str | None:
        """The next number; None if there is no such list, empty if the list shows none."""
        levels = self.levels.get(number_id)
        if levels is None or level not in levels:
            return None
        counts = self.counts.setdefault(self.lists[number_id], [None] * _LEVELS)
        override = self.overrides.get((number_id, level))
        if override is not None and (number_id, level) not in self.restarted:
            self.restarted.add((number_id, level))
            counts[level] = override
        else:
            before = counts[level]
            counts[level] = levels[level].start if before is None else before + 1
        for deeper in range(level + 1, _LEVELS):
            counts[deeper] = None
        form = levels[level]
        if form.format in ("bullet", "none"):
            return "-" if form.format == "bullet" else ""
        label = form.text
        for at in range(level + 1):
            sign = f"%{at + 1}"
            if sign in label:
                other = levels.get(at, _ListLevel())
                count = counts[at] if counts[at] is not None else other.start
                kind = "decimal" if form.has_plain_numbers else other.format
                label = label.replace(sign, numeral(count or 0, kind))
        return label.strip()


def load(document: RawDocument) -> DocumentParts:
    package = Package(document, kind="a Word document (.docx)")
    main = next(
        (r.target for r in package.relations("").values() if r.type == "officeDocument"),
        "word/document.xml",
    )
    root = package.xml(main)
    body = child(root, "body")
    if root is None or local(root) != "document" or body is None:
        raise package.lacks("word/document.xml")
    reader = _Reader(package, main)
    metadata = core_properties(package)
    outline = Outline(document)
    reader.blocks(body, outline)
    title = metadata.get(DocumentKey.TITLE) or reader.title
    if title:
        metadata[DocumentKey.TITLE] = title
    return DocumentParts(passages=_passages(reader, outline, root), metadata=dict(metadata))


def _passages(reader: "_Reader", outline: Outline, root: etree._Element) -> Iterator[RawPassage]:
    yield from outline.passages()
    for kind in ("header", "footer"):
        parts: set[str] = set()
        texts: set[str] = set()
        for node in descendants(root, f"{kind}Reference"):
            relation = reader.relations.get(attribute(node, "id") or "")
            if relation is None or relation.target in parts:
                continue
            parts.add(relation.target)
            blocks = CellBlocks()
            reader.part(relation.target, blocks)
            text = blocks.cell.lines()
            if text not in texts:
                texts.add(text)
                yield text, {PassageKey.PART: kind}


class _Reader:
    def __init__(self, package: Package, main: str) -> None:
        self.package = package
        self.relations: dict[str, Relation] = package.relations(main)
        self.title: str | None = None
        targets = {r.type: r.target for r in self.relations.values()}
        self._styles, self._default_style = _styles(package.xml(targets.get("styles", "")))
        self._numbering = _numbering(package.xml(targets.get("numbering", "")))
        self._notes = {
            kind: {
                attribute(node, "id"): node
                for node in children(package.xml(targets.get(f"{kind}s", "")), kind)
            }
            for kind in ("footnote", "endnote", "comment")
        }
        self._numbers = dict.fromkeys(self._notes, 0)
        self._outline: Outline | None = None
        self._depth = 0

    def part(self, name: str, blocks: Blocks) -> None:
        self.blocks(self.package.xml(name), blocks)

    def blocks(self, parent: etree._Element | None, out: Blocks) -> None:
        """Paragraphs and tables, in their order."""
        if isinstance(out, Outline):
            self._outline = out
        for node in () if parent is None else parent:
            name = local(node)
            if name == "p":
                self._paragraph(node, out)
            elif name == "tbl":
                self._table(node, out)
            elif name in _CONTAINERS:
                self.blocks(node, out)
            elif name == "AlternateContent":
                self.blocks(alternative(node), out)
            elif name == "altChunk":
                self._foreign(node, out)

    def _foreign(self, node: etree._Element, out: Blocks) -> None:
        """An embedded part in another format, which Word reads when it opens the document."""
        relation = self.relations.get(attribute(node, "id") or "")
        data = self.package.read(relation.target) if relation else b""
        if relation is None or not data:
            return
        if relation.target.endswith((".htm", ".html", ".xhtml", ".xht")):
            page = page_within(data, name=f"{self.package.name}!/{relation.target}")
            out.paragraph(page.text if page else "")
        elif relation.target.endswith(".txt"):
            out.paragraph(data.decode("utf-8", "replace"))
        elif not relation.target.endswith((".xml",)):
            raise self.package.damage(
                f"it holds a part in another format ({relation.target}), which only Word takes in"
            )

    def _paragraph(self, node: etree._Element, out: Blocks) -> None:
        format_ = child(node, "pPr")
        deleted = child(format_, "rPr", "del") is not None
        boxes: list[etree._Element] = []
        text = self._text(node, boxes)
        style = self._style(_value(child(format_, "pStyle")))
        level = _number(_value(child(format_, "outlineLvl")))
        level = style.outline if level is None else level
        label = self._label(format_, style) if text.strip() or not deleted else None
        is_title = style.name.lower() in ("title", "제목") and style.outline is None
        if text.strip():
            numbered = f"{label} {text.strip()}" if label else text
            if is_title:
                self.title = self.title or " ".join(text.split())
                out.heading(0, text)
            elif level is not None and level < _LEVELS:
                out.heading(level + 1, text, label=label or "")
            elif label is not None:
                out.line(numbered)
            else:
                out.paragraph(text)
        for box in boxes:
            self.blocks(box, out)

    def _label(self, format_: etree._Element | None, style: _ParagraphStyle) -> str | None:
        own = child(format_, "numPr")
        number_id = _value(child(own, "numId")) or style.numbering
        if number_id is None or number_id == "0":
            return None
        level = _number(_value(child(own, "ilvl")))
        level = (style.level or 0) if level is None else level
        return self._numbering.label(number_id, level)

    def _style(self, id_: str | None) -> _ParagraphStyle:
        return self._styles.get(id_ or self._default_style, _ParagraphStyle())

    def _text(self, node: etree._Element, boxes: list[etree._Element]) -> str:
        parts: list[str] = []
        self._gather(node, parts, boxes)
        return "".join(parts)

    def _gather(self, node: etree._Element, parts: list[str], boxes: list[etree._Element]) -> None:
        for part in node:
            name = local(part)
            if name == "t":
                parts.append(part.text or "")
            elif name == "r":
                if not _is_hidden(part):
                    self._gather(part, parts, boxes)
            elif name in _LEFT_OUT:
                continue
            elif name in _BREAKS:
                parts.append(_BREAKS[name])
            elif name in _NOTE_MARKS:
                parts.append(self._note(_NOTE_MARKS[name], part))
            elif name == "commentReference":
                self._note("comment", part)
            elif name == "sym":
                parts.append(_symbol(attribute(part, "char") or ""))
            elif name == "AlternateContent":
                branch = alternative(part)
                if branch is not None:
                    self._gather(branch, parts, boxes)
            elif name == "txbxContent":
                boxes.append(part)
            elif name == "oMath":
                parts.append(formula(part))
            elif name == "checkBox":
                parts.append(_tick(part))
            elif name == "ruby":
                self._ruby(part, parts, boxes)
            else:
                self._gather(part, parts, boxes)

    def _ruby(self, node: etree._Element, parts: list[str], boxes: list[etree._Element]) -> None:
        for part in ("rubyBase", "rt"):
            inner = child(node, part)
            text = "" if inner is None else self._text(inner, boxes)
            if text:
                parts.append(text if part == "rubyBase" else f"({text})")

    def _note(self, kind: str, reference: etree._Element) -> str:
        node = self._notes[kind].pop(attribute(reference, "id"), None)
        if node is None or self._outline is None:
            return ""
        self._numbers[kind] += 1
        number = self._numbers[kind]
        blocks = CellBlocks()
        outline = self._outline
        self.blocks(node, blocks)
        text = blocks.cell.text()
        if kind == "comment":
            author = attribute(node, "author")
            outline.note(kind, f"{author}: {text}" if author and text else text)
            return ""
        mark = f"[{number}]" if kind == "footnote" else f"[{numeral(number, 'lowerRoman')}]"
        outline.note(kind, f"{mark} {text}")
        return mark

    def _table(self, node: etree._Element, out: Blocks) -> None:
        merged: dict[int, Cell] = {}
        """Column -> a cell that continues in the rows below."""
        for number, row in enumerate(_inside(node, "tr")):
            if child(row, "trPr", "del") is not None:
                continue
            cells: list[Cell] = []
            column = _number(_value(child(row, "trPr", "gridBefore"))) or 0
            for cell in _inside(row, "tc"):
                format_ = child(cell, "tcPr")
                merge = child(format_, "vMerge")
                is_below = merge is not None and _value(merge) in (None, "continue")
                if is_below and column in merged:
                    content = merged[column].below()
                else:
                    blocks = CellBlocks()
                    self.blocks(cell, blocks)
                    content = blocks.cell
                    merged.pop(column, None)
                    if merge is not None:
                        merged[column] = content
                if (
                    child(format_, "hMerge") is None
                    or _value(child(format_, "hMerge")) == "restart"
                ):
                    cells.append(content)
                column += max(1, _number(_value(child(format_, "gridSpan"))) or 1)
            out.row(cells, is_first=not number)


def _inside(parent: etree._Element, name: str) -> Iterator[etree._Element]:
    """Rows of a table, or cells of a row, also within content controls and insertions."""
    for node in parent:
        tag = local(node)
        if tag == name:
            yield node
        elif tag in _CONTAINERS:
            yield from _inside(node, name)


def _symbol(code: str) -> str:
    """A character of a symbol font; empty if it has no known equivalent."""
    try:
        char = chr(int(code, 16))
    except (ValueError, OverflowError):
        return ""
    return SYMBOLS.get(char, "" if ord(char) in _PRIVATE else char)


def _tick(node: etree._Element) -> str:
    """A check box of a form, which has no text of its own."""
    checked = child(node, "checked")
    checked = child(node, "default") if checked is None else checked
    is_on = checked is not None and (_value(checked) or "1").lower() not in ("0", "false", "off")
    return "☒" if is_on else "☐"


def _is_hidden(run: etree._Element) -> bool:
    format_ = child(run, "rPr")
    for node in children(format_, "vanish"):
        return (_value(node) or "").lower() in _ON
    return False


def _value(node: etree._Element | None) -> str | None:
    return None if node is None else attribute(node, "val")


def _number(value: str | None) -> int | None:
    try:
        return None if value is None else int(value)
    except ValueError:
        return None


def _styles(root: etree._Element | None) -> tuple[dict[str, _ParagraphStyle], str]:
    """Id -> paragraph style, with inherited properties; and the id of the default style."""
    styles: dict[str, _ParagraphStyle] = {}
    default = ""
    for node in children(root, "style"):
        if attribute(node, "type") not in (None, "paragraph"):
            continue
        id_ = attribute(node, "styleId") or ""
        if attribute(node, "default") in ("1", "true"):
            default = id_
        format_ = child(node, "pPr")
        style = _ParagraphStyle(
            name=_value(child(node, "name")) or "",
            based_on=_value(child(node, "basedOn")) or "",
            outline=_number(_value(child(format_, "outlineLvl"))),
            numbering=_value(child(format_, "numPr", "numId")),
            level=_number(_value(child(format_, "numPr", "ilvl"))),
        )
        name = style.name.lower()
        if style.outline is None and name.startswith("heading ") and name[8:].isdecimal():
            style.outline = int(name[8:]) - 1
        styles[id_] = style
    for style in styles.values():
        _inherit(style, styles)
    return styles, default


def _inherit(style: _ParagraphStyle, styles: dict[str, _ParagraphStyle]) -> None:
    chain = [style]
    seen = {id(style)}
    while (base := styles.get(chain[-1].based_on)) is not None and id(base) not in seen:
        seen.add(id(base))
        chain.append(base)
    for base, derived in zip(reversed(chain[1:]), reversed(chain[:-1]), strict=True):
        derived.based_on = ""  # complete now, so that no chain is followed twice
        if derived.outline is None:
            derived.outline = base.outline
        if derived.numbering is None:
            derived.numbering, derived.level = base.numbering, derived.level or base.level


def _numbering(root: etree._Element | None) -> _Numbering:
    numbering = _Numbering()
    abstract: dict[str, dict[int, _ListLevel]] = {}
    for node in children(root, "abstractNum"):
        abstract[attribute(node, "abstractNumId") or ""] = _levels(node)
    for node in children(root, "num"):
        id_ = attribute(node, "numId") or ""
        of = _value(child(node, "abstractNumId")) or ""
        if of not in abstract:
            continue
        levels = abstract[of]
        for override in children(node, "lvlOverride"):
            at = _number(attribute(override, "ilvl"))
            if at is None or not 0 <= at < _LEVELS:
                continue
            own = _levels(override)
            if own:
                levels = {**levels, **own}
            start = _number(_value(child(override, "startOverride")))
            if start is not None:
                numbering.overrides[id_, at] = start
        numbering.levels[id_] = levels
        numbering.lists[id_] = of
    return numbering


def _levels(parent: etree._Element) -> dict[int, _ListLevel]:
    levels: dict[int, _ListLevel] = {}
    for node in children(parent, "lvl"):
        at = _number(attribute(node, "ilvl"))
        if at is None or not 0 <= at < _LEVELS:
            continue
        legal = child(node, "isLgl")
        start = _number(_value(child(node, "start")))
        levels[at] = _ListLevel(
            start=1 if start is None else start,
            format=_value(child(node, "numFmt")) or "decimal",
            text=(_value(child(node, "lvlText")) or "")[:LABEL_CHARS],
            has_plain_numbers=legal is not None and (_value(legal) or "").lower() in _ON,
        )
    return levels


_EXAMPLE: Final = """<w:document xmlns:w="w"><w:body>
<w:p><w:pPr><w:outlineLvl w:val="0"/></w:pPr><w:r><w:t>Hours</w:t></w:r></w:p>
<w:p><w:r><w:t>We open at nine.</w:t></w:r></w:p>
</w:body></w:document>"""
WORD = Loader(
    load=load,
    example=archive_of({"word/document.xml": _EXAMPLE}),
    example_text="Hours\n\nWe open at nine.",
)

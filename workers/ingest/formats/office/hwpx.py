"""HWPX, the format of Hancom Office (OWPML, KS X 6101:2024) -> sections under headings.

Headings are paragraphs with an outline level. Headings and items of lists have the numbers that
Hancom Office shows. A row of a table is one line, with merged cells in each row that they cover.
Text boxes and captions follow the paragraph that contains them. Notes, hidden comments, memos,
headers and footers are passages of their own (`part`). Tracked deletions are not read. Equations
stay in the notation of Hancom.

By lxml alone: python-hwpx is made for editing and builds objects for a whole document, and no
loader of LangChain reads the format.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
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
)
from workers.ingest.formats.office.numerals import LABEL_CHARS, numeral
from workers.ingest.formats.office.outline import Blocks, Cell, CellBlocks, Outline
from workers.ingest.formats.office.package import (
    Package,
    archive_of,
    attribute,
    child,
    children,
    descendants,
    local,
    resolve,
    text_within,
)

_SECTION: Final = re.compile(r"(?:.*/)?section([0-9]{1,6})\.xml")
_SIGNS: Final = {
    "lineBreak": "\n", "tab": "\t", "nbSpace": " ", "fwSpace": " ", "hyphen": "-",
}  # fmt: skip
_NOTES: Final = {"footNote": "footnote", "endNote": "endnote"}
_FORMS: Final = {
    "DIGIT": "decimal", "CIRCLED_DIGIT": "decimalEnclosedCircle", "ROMAN_CAPITAL": "upperRoman",
    "ROMAN_SMALL": "lowerRoman", "LATIN_CAPITAL": "upperLetter", "LATIN_SMALL": "lowerLetter",
    "HANGUL_SYLLABLE": "ganada", "HANGUL_JAMO": "chosung", "HANGUL_PHONETIC": "koreanDigital",
    "IDEOGRAPH": "ideographDigital",
}  # fmt: skip
_PLACE: Final = re.compile(r"\^([0-9n])")
LEVELS: Final = 10
_REPEATS: Final = 16
"""How many copies of merged cells are written, for each cell of the table."""


@dataclass(kw_only=True)
class HeadNumbers:
    """Automatic numbers of an outline or a list."""

    forms: Mapping[int, tuple[str, str, int]]
    """Level from 0 -> the form of the number, the text in which `^1` stands for the number of level
    1, and the first number."""
    counts: list[int | None] = field(default_factory=lambda: [None] * LEVELS)

    def label(self, level: int) -> str:
        """The next number of a level, as text."""
        if not 0 <= level < LEVELS or level not in self.forms:
            return ""
        before = self.counts[level]
        self.counts[level] = self.forms[level][2] if before is None else before + 1
        self.counts[level + 1 :] = [None] * (LEVELS - level - 1)

        def number(match: re.Match[str]) -> str:
            at = level if match[1] == "n" else (int(match[1]) or LEVELS) - 1
            form, _, start = self.forms.get(at, ("decimal", "", 1))
            count = self.counts[at]
            return numeral(start if count is None else count, form)

        return _PLACE.sub(number, self.forms[level][1]).strip()


@dataclass(kw_only=True)
class TableCell:
    """A cell of a table; row and column count from 0."""

    row: int
    column: int
    row_span: int
    cell: Cell


def write_table(cells: Sequence[TableCell], out: Blocks) -> None:
    """Write a table. A cell merged over rows counts in each of them; positions without a cell are
    covered by a merged one."""
    rows: dict[int, list[TableCell]] = {}
    for cell in cells:
        rows.setdefault(cell.row, []).append(cell)
    below: dict[int, tuple[int, Cell]] = {}
    repeats = _REPEATS * len(cells)
    for number, row in enumerate(sorted(rows)):
        line = {cell.column: cell.cell for cell in rows[row]}
        for column in [column for column, (last, _) in below.items() if last < row]:
            del below[column]
        for column, (_, above) in below.items():
            if column not in line and repeats:
                repeats -= 1
                line[column] = above.below()
        for own in rows[row]:
            if own.row_span > 1:
                below[own.column] = own.row + own.row_span - 1, own.cell
        out.row([line[column] for column in sorted(line)], is_first=not number)


def load(document: RawDocument) -> DocumentParts:
    package = Package(document, kind="a HWPX document")
    for _ in descendants(package.xml("META-INF/manifest.xml"), "encryption-data"):
        raise package.encryption()
    container = package.xml("META-INF/container.xml")
    main = next(
        (node.get("full-path") or "" for node in descendants(container, "rootfile")),
        "Contents/content.hpf",
    )
    root = package.xml(resolve("", main))
    sections = _sections(package, root)
    if not sections:
        raise package.lacks("Contents/section0.xml")
    reader = _Reader(document, package)
    return DocumentParts(passages=reader.passages(sections), metadata=_metadata(root))


def _sections(package: Package, root: etree._Element | None) -> list[str]:
    """The names of the sections in the order of the spine; those not in the spine follow, by
    number."""
    items = {
        node.get("id") or "": node.get("href") or ""
        for node in children(child(root, "manifest"), "item")
    }
    named = [
        items.get(node.get("idref") or "", "") for node in children(child(root, "spine"), "itemref")
    ]
    numbers = {
        match[0]: int(match[1])
        for name in package.names()
        if (match := _SECTION.fullmatch(name)) is not None
    }
    order = [name.lower() for name in named if _SECTION.fullmatch(name.lower())]
    order = [name if name in numbers else f"contents/{name}" for name in order]
    rest = sorted(set(numbers) - set(order), key=lambda name: numbers[name])
    return [name for name in dict.fromkeys(order) if name in numbers] + rest


def _metadata(root: etree._Element | None) -> Metadata:
    metadata: Metadata = {}
    keys = {
        "title": DocumentKey.TITLE, "language": DocumentKey.LANGUAGE, "creator": DocumentKey.AUTHOR,
        "CreatedDate": DocumentKey.DATE,
    }  # fmt: skip
    of_document = child(root, "metadata")
    for node in () if of_document is None else of_document:
        key = keys.get(local(node)) or keys.get(node.get("name") or "")
        value = " ".join((node.text or "").split())
        if key and value:
            metadata.setdefault(key, value)
    return metadata


class _Reader:
    def __init__(self, document: RawDocument, package: Package) -> None:
        self._package = package
        self._outline = Outline(document)
        self._numbers = {"footnote": 0, "endnote": 0}
        self._beside: dict[str, list[str]] = {"header": [], "footer": []}
        self._is_deleted = False
        head = next((name for name in package.names() if name.endswith("header.xml")), "")
        root = package.xml(head)
        self._shapes = {
            node.get("id"): child(node, "heading") for node in descendants(root, "paraPr")
        }
        self._styles = {
            node.get("id"): node.get("paraPrIDRef") for node in descendants(root, "style")
        }
        self._numberings = {
            node.get("id"): HeadNumbers(forms=_forms(node))
            for node in descendants(root, "numbering")
        }
        self._outline_numbers: HeadNumbers | None = None

    def passages(self, sections: Sequence[str]) -> Iterator[RawPassage]:
        for name in sections:
            root = self._package.xml(name)
            for node in descendants(root, "secPr"):
                self._outline_numbers = self._numberings.get(node.get("outlineShapeIDRef"))
            if root is not None:
                self._blocks(root, self._outline)
        yield from self._outline.passages()
        for part, texts in self._beside.items():
            for text in dict.fromkeys(texts):
                yield text, {PassageKey.PART: part}

    def _blocks(self, parent: etree._Element, out: Blocks) -> None:
        for node in children(parent, "p"):
            self._paragraph(node, out)

    def _paragraph(self, node: etree._Element, out: Blocks) -> None:
        parts: list[str] = []
        things: list[etree._Element] = []
        for run in children(node, "run"):
            self._run(run, parts, things)
        text = "".join(parts).strip()
        if text:
            self._write(node, text, out)
        for thing in things:
            self._thing(thing, out)

    def _write(self, node: etree._Element, text: str, out: Blocks) -> None:
        shape = node.get("paraPrIDRef") or self._styles.get(node.get("styleIDRef"))
        heading = self._shapes.get(shape)
        kind = "NONE" if heading is None else heading.get("type")
        level = _number(heading, "level")
        if kind == "OUTLINE":
            label = self._outline_numbers.label(level) if self._outline_numbers else ""
            out.heading(level + 1, text, label=label)
        elif kind == "NUMBER" and heading is not None:
            numbers = self._numberings.get(heading.get("idRef"))
            label = numbers.label(level) if numbers else ""
            out.line(f"{label} {text}" if label else text)
        elif kind == "BULLET":
            out.line(f"- {text}")
        else:
            out.paragraph(text)

    def _run(self, run: etree._Element, parts: list[str], things: list[etree._Element]) -> None:
        for node in run:
            name = local(node)
            if name == "t":
                self._text(node, parts)
            elif name == "ctrl":
                for control in node:
                    self._control(control, parts, things)
            elif name == "dutmal":
                for part, form in (("mainText", "{}"), ("subText", "({})")):
                    text = "".join(text_within(t) for t in children(node, part))
                    parts.append(form.format(text) if text else "")
            elif name == "compose":
                parts.append(node.get("composeText") or "")
            elif name == "equation":
                script = child(node, "script")
                parts.append("" if script is None else script.text or "")
            elif name == "switch":
                for branch in children(node, "default", "case"):
                    if next(descendants(branch, "t"), None) is not None:
                        self._run(branch, parts, things)
                        break
            elif name not in ("secPr", "linesegarray"):
                things.append(node)

    def _text(self, node: etree._Element, parts: list[str]) -> None:
        self._add(node.text, parts)
        for inner in node:
            name = local(inner)
            if name == "deleteBegin":
                self._is_deleted = True
            elif name == "deleteEnd":
                self._is_deleted = False
            else:
                self._add(_SIGNS.get(name), parts)
            self._add(inner.tail, parts)

    def _add(self, text: str | None, parts: list[str]) -> None:
        if text and not self._is_deleted:
            parts.append(text)

    def _control(
        self, node: etree._Element, parts: list[str], things: list[etree._Element]
    ) -> None:
        name = local(node)
        if name in _NOTES:
            kind = _NOTES[name]
            self._numbers[kind] += 1
            mark = f"[{self._numbers[kind]}]"
            if kind == "endnote":
                mark = f"[{numeral(self._numbers[kind], 'lowerRoman')}]"
            parts.append(mark)
            self._outline.note(kind, f"{mark} {self._inside(node).text()}")
        elif name in self._beside:
            cell = self._inside(node)
            text = cell.lines()
            if text.strip():
                self._beside[name].append(text)
        elif name in ("hiddenComment", "fieldBegin"):
            if child(node, "subList") is not None:
                self._outline.note("comment", self._inside(node).text())
        elif name == "autoNum" and node.get("numType") in ("TABLE", "PICTURE", "EQUATION"):
            parts.append(node.get("num") or "")
        elif name not in ("colPr", "pageNum", "pageHiding", "fieldEnd", "bookmark", "newNum"):
            things.append(node)

    def _inside(self, node: etree._Element) -> Cell:
        blocks = CellBlocks()
        for sub_list in children(node, "subList"):
            self._blocks(sub_list, blocks)
        return blocks.cell

    def _thing(self, node: etree._Element, out: Blocks) -> None:
        """A table, a shape with text, or a group of shapes."""
        for caption in children(node, "caption"):
            for sub_list in children(caption, "subList"):
                self._blocks(sub_list, out)
        if local(node) == "tbl":
            cells: list[TableCell] = []
            for number, row in enumerate(children(node, "tr")):
                for at, cell in enumerate(children(row, "tc")):
                    place, span = child(cell, "cellAddr"), child(cell, "cellSpan")
                    cells.append(
                        TableCell(
                            row=number,
                            column=_number(place, "colAddr") if place is not None else at,
                            row_span=_number(span, "rowSpan"),
                            cell=self._inside(cell),
                        )
                    )
            write_table(cells, out)
            return
        for inner in node:
            name = local(inner)
            if name == "drawText":
                for sub_list in children(inner, "subList"):
                    self._blocks(sub_list, out)
            elif name == "tbl" or name == "container" or child(inner, "drawText") is not None:
                self._thing(inner, out)


def _forms(numbering: etree._Element) -> dict[int, tuple[str, str, int]]:
    forms: dict[int, tuple[str, str, int]] = {}
    for node in children(numbering, "paraHead"):
        level = _number(node, "level") - 1
        form = _FORMS.get(node.get("numFormat") or "", "decimal")
        forms[level] = form, (node.text or "")[:LABEL_CHARS], _number(node, "start") or 1
    return forms


def _number(node: etree._Element | None, name: str) -> int:
    """The number in an attribute; 0 if there is none."""
    value = None if node is None else attribute(node, name)
    return int(value) if value and value.isdecimal() and len(value) < 10 else 0


HWPX = Loader(
    load=load,
    example=archive_of(
        {
            "mimetype": "application/hwp+zip",
            "Contents/section0.xml": '<s xmlns:hp="p"><hp:p><hp:run><hp:t>We open at nine.</hp:t>'
            "</hp:run></hp:p></s>",
        }
    ),
    example_text="We open at nine.",
)

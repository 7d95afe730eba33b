"""PowerPoint presentations (Office Open XML, ISO/IEC 29500) -> a passage for each slide, and one
for its notes.

The title is first, then the shapes in the order of the slide, as screen readers read them, with
groups, tables (a line for each row), text of SmartArt, and the titles, names and values of charts.
Slide numbers and dates in footers are left out. Metadata has the number and title of the slide,
`part` for notes and comments, and `hidden` for a slide that is not shown.

By lxml alone: LangChain's loader needs unstructured; python-pptx does not read SmartArt and builds
objects for all pictures.
"""

from collections.abc import Iterator
from itertools import zip_longest
from typing import Final

from lxml import etree

from shared.bounds import Metadata
from workers.ingest.formats.loader import (
    DocumentParts,
    Loader,
    PassageKey,
    RawDocument,
    RawPassage,
    heading_title,
)
from workers.ingest.formats.office.formulas import formula
from workers.ingest.formats.office.outline import Blocks, Cell, CellBlocks
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
    text_within,
)

_TITLES: Final = frozenset({"title", "ctrTitle"})
_LEFT_OUT: Final = frozenset({"sldNum", "dt"})
_POINTS: Final = 200
"""How many points of a chart's series become text."""


def load(document: RawDocument) -> DocumentParts:
    package = Package(document, kind="a PowerPoint presentation (.pptx)")
    main = next(
        (r.target for r in package.relations("").values() if r.type == "officeDocument"),
        "ppt/presentation.xml",
    )
    root = package.xml(main)
    if root is None or local(root) != "presentation":
        raise package.lacks("ppt/presentation.xml")
    return DocumentParts(
        passages=_passages(package, main, root), metadata=dict(core_properties(package))
    )


def _passages(package: Package, main: str, root: etree._Element) -> Iterator[RawPassage]:
    relations = package.relations(main)
    parts: set[str] = set()
    for number, node in enumerate(children(child(root, "sldIdLst"), "sldId"), start=1):
        relation = relations.get(_relation_id(node) or "")
        if relation is None or relation.target in parts:
            continue
        parts.add(relation.target)
        slide = package.xml(relation.target)
        if slide is not None:
            yield from _slide(package, relation.target, slide, number)


def _relation_id(node: etree._Element) -> str | None:
    """`r:id`, beside an `id` with another meaning."""
    for key, value in node.attrib.items():
        if str(key).endswith("}id"):
            return str(value)
    return None


def _slide(package: Package, part: str, slide: etree._Element, number: int) -> Iterator[RawPassage]:
    relations = package.relations(part)
    blocks = CellBlocks()
    title = _shapes(package, relations, child(slide, "cSld", "spTree"), blocks)
    own: Metadata = {PassageKey.SLIDE: number}
    if title:
        own[PassageKey.HEADING] = heading_title(title)
    if slide.get("show") in ("0", "false"):
        own[PassageKey.HIDDEN] = True
    parts = [title] if title else []
    for text, is_line in blocks.cell.blocks:
        gap = "\n" if is_line else "\n\n"
        parts.append(gap + text if parts else text)
    yield "".join(parts), own
    for relation in {relation.target: relation for relation in relations.values()}.values():
        if relation.type == "notesSlide":
            notes = CellBlocks()
            tree = child(package.xml(relation.target), "cSld", "spTree")
            for shape in children(tree, "sp"):
                if (_placeholder(shape) or "") == "body":
                    _paragraphs(child(shape, "txBody"), notes)
            yield notes.cell.lines(), {**own, PassageKey.PART: "notes"}
        elif relation.type == "comments":
            comments = [
                " ".join(text_within(text).split())
                for text in descendants(package.xml(relation.target), "text", "txBody")
            ]
            yield "\n".join(filter(None, comments)), {**own, PassageKey.PART: "comment"}


def _shapes(
    package: Package, relations: dict[str, Relation], tree: etree._Element | None, out: Blocks
) -> str:
    """Write the shapes; returns the title."""
    title = ""
    for shape in () if tree is None else tree:
        name = local(shape)
        if name == "sp":
            placeholder = _placeholder(shape)
            body = child(shape, "txBody")
            if placeholder in _LEFT_OUT:
                continue
            if placeholder in _TITLES and not title:
                title = " ".join(" ".join(_lines(body)).split())
                continue
            _paragraphs(body, out)
        elif name in ("grpSp", "contentPart"):
            title = title or _shapes(package, relations, shape, out)
        elif name == "graphicFrame":
            _frame(package, relations, shape, out)
        elif name == "AlternateContent":
            title = title or _shapes(package, relations, alternative(shape), out)
    return title


def _placeholder(shape: etree._Element) -> str | None:
    node = next(descendants(child(shape, "nvSpPr"), "ph"), None)
    return None if node is None else node.get("type", "obj")


def _paragraphs(body: etree._Element | None, out: Blocks) -> None:
    for at, line in enumerate(_lines(body)):
        out.add(line, is_line=at > 0)


def _lines(body: etree._Element | None) -> Iterator[str]:
    for paragraph in children(body, "p"):
        parts: list[str] = []
        _gather(paragraph, parts)
        text = "".join(parts).replace("\x0b", "\n").strip()
        if text:
            yield text


def _gather(node: etree._Element, parts: list[str]) -> None:
    for part in node:
        name = local(part)
        if name == "t":
            parts.append(part.text or "")
        elif name in ("br", "tab"):
            parts.append("\n" if name == "br" else "\t")
        elif name == "oMath":
            parts.append(formula(part))
        elif name == "AlternateContent":
            branch = alternative(part)
            if branch is not None:
                _gather(branch, parts)
        else:
            _gather(part, parts)


def _frame(
    package: Package, relations: dict[str, Relation], frame: etree._Element, out: Blocks
) -> None:
    for table in descendants(frame, "tbl"):
        _table(table, out)
    for node in descendants(frame, "chart", "relIds"):
        # A diagram names its data by the attribute `dm`, a chart its part by `id`.
        id_ = attribute(node, "dm") or attribute(node, "id")
        relation = relations.get(id_ or "")
        root = None if relation is None else package.xml(relation.target)
        if local(node) == "chart":
            _chart(root, out)
        else:
            for point in descendants(root, "pt"):
                _paragraphs(child(point, "t"), out)


def _table(table: etree._Element, out: Blocks) -> None:
    below: dict[int, Cell] = {}
    rows: list[list[Cell]] = []
    for row in children(table, "tr"):
        cells: list[Cell] = []
        for column, node in enumerate(children(row, "tc")):
            if node.get("hMerge") in ("1", "true"):
                continue
            if node.get("vMerge") in ("1", "true") and column in below:
                cells.append(below[column].below())
                continue
            blocks = CellBlocks()
            _paragraphs(child(node, "txBody"), blocks)
            cells.append(blocks.cell)
            below.pop(column, None)
            if (node.get("rowSpan") or "1") != "1":
                below[column] = blocks.cell
        rows.append(cells)
    out.rows(rows)


def _chart(root: etree._Element | None, out: Blocks) -> None:
    for title in descendants(root, "title"):
        out.paragraph(" ".join("".join(t.text or "" for t in descendants(title, "t")).split()))
    for at, series in enumerate(descendants(root, "ser")):
        name = " ".join(_values(child(series, "tx")))
        labels = _values(child(series, "cat")) or _values(child(series, "xVal"))
        values = _values(child(series, "val")) or _values(child(series, "yVal"))
        points = [
            f"{label} {value}".strip()
            for label, value in zip_longest(labels[: len(values)], values[:_POINTS], fillvalue="")
        ]
        out.add(f"{name}: {', '.join(points)}" if name else ", ".join(points), is_line=at > 0)


def _values(node: etree._Element | None) -> list[str]:
    return [" ".join((v.text or "").split()) for v in descendants(node, "v")]


SLIDES = Loader(
    load=load,
    example=archive_of(
        {
            "ppt/presentation.xml": '<presentation xmlns:r="r"><sldIdLst><sldId id="256" r:id="1"/>'
            "</sldIdLst></presentation>",
            "ppt/_rels/presentation.xml.rels": '<R><R Id="1" Type="x/slide" Target="1.xml"/></R>',
            "ppt/1.xml": "<sld><cSld><spTree><sp><txBody><p><r><t>We open at nine.</t></r></p>"
            "</txBody></sp></spTree></cSld></sld>",
        }
    ),
    example_text="We open at nine.",
)

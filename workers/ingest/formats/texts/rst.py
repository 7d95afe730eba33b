"""reStructuredText -> readable text by docutils, with its headings.

Blank lines separate paragraphs, items of lists begin with "- " or their number, a row of a table is
one line with " | " between its cells, and code stays as it is. The title and the fields at the top
(`:Author: ...`) are metadata. Markup that docutils does not know, such as directives of Sphinx,
stays as it is written. Comments, targets and hidden parts are left out. No file is included, no raw
HTML is kept, and no configuration is read.
"""

import io
import re
from typing import Final

from docutils import nodes
from docutils.core import publish_doctree

from shared.bounds import Metadata
from shared.errors import DocumentError
from workers.ingest.formats.loader import (
    DocumentKey,
    DocumentParts,
    Heading,
    Loader,
    RawDocument,
    heading_title,
)
from workers.ingest.formats.texts.text import storable, text_of

_LINE_CHARS: Final = 10_000
_BLOCK_CHARS: Final = 20_000
"""Docutils needs more than linear time for a paragraph."""
_BLANK_LINE: Final = re.compile(r"\n[ \t]*\n")
_SETTINGS: Final = {
    "file_insertion_enabled": False,
    "raw_enabled": False,
    "report_level": 5,
    "halt_level": 5,
    "_disable_config": True,
    "doctitle_xform": True,
    "sectsubtitle_xform": False,
    "docinfo_xform": True,
    "smart_quotes": False,
    "line_length_limit": _LINE_CHARS,
    "syntax_highlight": "none",
    "embed_stylesheet": False,
    "traceback": True,
}
_LEFT_OUT: Final = (
    nodes.comment,
    nodes.target,
    nodes.substitution_definition,
    nodes.docinfo,
    nodes.pending,
    nodes.image,
    nodes.meta,
    nodes.decoration,
)
_CONTENTS: Final = "contents"
"""The class of a table of contents, which repeats the headings."""
_INDENTED: Final = 2
_DEPTH: Final = 100
_FIELD: Final = re.compile(r"[A-Za-z][\w -]{0,50}")


def load(document: RawDocument) -> DocumentParts:
    text, metadata = text_of(document)
    _check_lengths(text, name=document.name)
    errors = io.StringIO()
    try:
        tree = publish_doctree(text, settings_overrides={**_SETTINGS, "warning_stream": errors})
    except (RecursionError, AssertionError, IndexError, ValueError) as wrong:
        raise DocumentError(
            f"{document.name}: cannot be parsed as reStructuredText: {type(wrong).__name__}: "
            f"{wrong}. Give it a name that ends with .txt to ingest it as it is."
        ) from wrong
    writer = _Writer()
    writer.blocks(tree, level=0, depth=0)
    rendered, headings = writer.text()
    if not rendered.strip():
        rendered = text  # such as only fields or targets
    title = tree.get("title")
    own: Metadata = {DocumentKey.TITLE: title} if title else {}
    for node in tree.findall(nodes.docinfo):
        for child in node:
            own |= _field(child)
    return DocumentParts(passages=[(rendered, {})], metadata=metadata | own, headings=headings)


RST = Loader(
    load=load,
    example=b"Hours\n=====\n\nFrom *nine* to five:\n\n* Monday\n* Friday\n",
    example_text="Hours\n\nFrom nine to five:\n\n- Monday\n- Friday",
)


def _check_lengths(text: str, *, name: str) -> None:
    for block in _BLANK_LINE.split(text):
        if len(block) <= _LINE_CHARS:
            continue
        if len(block) > _BLOCK_CHARS or max(map(len, block.split("\n"))) > _LINE_CHARS:
            raise DocumentError(
                f"{name}: has a line of more than {_LINE_CHARS:,} characters, or a paragraph of "
                f"more than {_BLOCK_CHARS:,}, which is not read as reStructuredText. Put blank "
                "lines into it, or give it a name that ends with .txt to ingest it as it is."
            )


def _field(node: nodes.Node) -> Metadata:
    """The fields at the top, as metadata."""
    if isinstance(node, nodes.authors):
        return {DocumentKey.AUTHOR: "; ".join(author.astext() for author in node)}
    if isinstance(node, nodes.field):
        name, value = node[0].astext().strip(), " ".join(node[1].astext().split())
    else:
        name, value = type(node).__name__, " ".join(node.astext().split())
    key = name.lower()
    reserved = (DocumentKey.MEDIA_TYPE, DocumentKey.ENCODING)
    if not value or key in reserved or not _FIELD.fullmatch(name):
        return {}
    return {key: value[:1000]}


class _Writer:
    """Receives blocks in order, with the separator between two: a blank line, or a line end."""

    def __init__(self) -> None:
        self._parts: list[str] = []
        self._levels: list[tuple[int, int]] = []  # of headings: index in the parts, and level

    def text(self) -> tuple[str, tuple[Heading, ...]]:
        levels = dict(self._levels)
        headings: list[Heading] = []
        written: list[str] = []
        length = 0
        for at, part in enumerate(self._parts):
            plain = storable(part)
            if at in levels:
                title = heading_title(plain)
                headings.append(
                    Heading(start=length, end=length + len(plain), level=levels[at], title=title)
                )
            written.append(plain)
            length += len(plain)
        return "".join(written), tuple(headings)

    def _add(self, text: str, *, is_line: bool = False) -> None:
        if not text.strip():
            return
        if self._parts:
            self._parts.append("\n" if is_line else "\n\n")
        self._parts.append(text)

    def blocks(self, parent: nodes.Element, *, level: int, depth: int) -> None:
        for node in parent.children:
            if not isinstance(node, _LEFT_OUT) and _CONTENTS not in node.get("classes", ()):
                self._block(node, level=level, depth=depth + 1)

    def _block(self, node: nodes.Node, *, level: int, depth: int) -> None:
        if depth > _DEPTH:
            self._add(node.astext())
        elif isinstance(node, nodes.section):
            self.blocks(node, level=level + 1, depth=depth)
        elif isinstance(node, nodes.title | nodes.subtitle | nodes.rubric):
            if isinstance(node.parent, nodes.section | nodes.document):
                words = " ".join(node.astext().split())
                # The title of the document is above all sections.
                own = max(1, level + (level > 0)) if isinstance(node, nodes.title) else 2
                if words:
                    self._levels.append((len(self._parts) + bool(self._parts), own))
                self._add(words)
            else:
                self._add(node.astext())
        elif isinstance(node, nodes.bullet_list | nodes.enumerated_list):
            self._list(node, indent=0, depth=depth)
        elif isinstance(node, nodes.table):
            self._table(node)
        elif isinstance(node, nodes.definition_list):
            for item in node.children:
                self._definition(item, level=level, depth=depth)
        elif isinstance(node, nodes.field_list | nodes.option_list):
            for number, item in enumerate(node.children):
                name, body = item.children[0].astext(), item.children[-1].astext()
                self._add(f"{name}: {' '.join(body.split())}", is_line=number > 0)
        elif isinstance(node, nodes.line_block):
            self._add(_lines_of(node))
        elif isinstance(node, nodes.literal_block | nodes.doctest_block | nodes.math_block):
            self._add(node.astext())
        elif isinstance(node, nodes.system_message):
            # Unknown markup is in the tree as it was written.
            for block in node.findall(nodes.literal_block):
                self._add(block.astext())
        elif isinstance(node, nodes.TextElement):
            self._add(_inline(node))
        elif isinstance(node, nodes.footnote | nodes.citation):
            label = node.children[0].astext() if node.children else ""
            body = " ".join(child.astext() for child in node.children[1:])
            self._add(f"[{label}] {' '.join(body.split())}")
        elif isinstance(node, nodes.Element):
            self.blocks(node, level=level, depth=depth)

    def _list(self, node: nodes.Element, *, indent: int, depth: int) -> None:
        first = node.get("start", 1)
        is_numbered = isinstance(node, nodes.enumerated_list)
        for number, item in enumerate(node.children, start=first):
            mark = f"{number}. " if is_numbered else "- "
            is_line = indent > 0 or number > first
            for child in item.children:
                if isinstance(child, nodes.bullet_list | nodes.enumerated_list) and depth < _DEPTH:
                    self._list(child, indent=indent + _INDENTED, depth=depth + 1)
                elif isinstance(child, nodes.paragraph):
                    self._add(" " * indent + mark + _inline(child), is_line=is_line)
                elif not isinstance(child, _LEFT_OUT):
                    self._add(" " * indent + mark + child.astext(), is_line=is_line)
                mark, is_line = " " * len(mark), True

    def _definition(self, item: nodes.Node, *, level: int, depth: int) -> None:
        is_first = True
        for child in item.children:
            if isinstance(child, nodes.definition):
                for inner in child.children:
                    if isinstance(inner, nodes.paragraph) and is_first:
                        self._add(_inline(inner), is_line=True)
                        is_first = False
                    elif not isinstance(inner, _LEFT_OUT):
                        self._block(inner, level=level, depth=depth + 1)
            else:
                self._add(child.astext(), is_line=isinstance(child, nodes.classifier))

    def _table(self, node: nodes.Element) -> None:
        for title in node.findall(nodes.title):
            self._add(title.astext())
        merged: dict[int, list[str | int]] = {}  # column: number of rows that follow, text
        is_first = True
        for row in node.findall(nodes.row):
            cells: list[str] = []
            column = 0
            for entry in row.children:
                column = _fill(cells, merged, column)
                words = " ".join(entry.astext().split())
                cells.append(words)
                if entry.get("morerows", 0):
                    merged[column] = [entry["morerows"], words]
                column += 1 + entry.get("morecols", 0)
            _fill(cells, merged, column)
            line = " | ".join(cells)
            if line.strip(" |"):
                self._add(line.strip(), is_line=not is_first)
                is_first = False


def _fill(cells: list[str], merged: dict[int, list[str | int]], column: int) -> int:
    """Add the merged cells of rows above."""
    while column in merged:
        rows, words = merged[column]
        cells.append(str(words))
        if int(rows) <= 1:
            del merged[column]
        else:
            merged[column][0] = int(rows) - 1
        column += 1
    return column


def _inline(node: nodes.Element) -> str:
    return " ".join(node.astext().split())


def _lines_of(block: nodes.Element) -> str:
    return "\n".join(line.astext() for line in block.findall(nodes.line))

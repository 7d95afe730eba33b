"""HTML -> readable text, with the title beside it.

Blocks become lines, paragraphs and headings stand between blank lines, `<pre>` keeps its
whitespace, list items begin with "- ", cells of a table row are separated by " | ". Left out:
scripts, styles, templates, `<noscript>`, `<iframe>`, `<svg>`, comments, `hidden` parts, and
navigation where the page says that it is navigation: `<nav>`, `role="navigation"`, and the
`navheader`/`navfooter` bars of DocBook. `<header>`, `<footer>` and `<aside>` stay, for they often
hold content. The text of `<title>` is metadata, not text. It runs no scripts and loads nothing.
"""

import re
from dataclasses import dataclass, field
from typing import Final

from lxml import etree

from shared.errors import DocumentError

_CHARSET: Final = re.compile(rb"""<meta[^>]{0,500}?charset\s*=\s*["']?\s*([\w.:-]+)""", re.I)
_XML_ENCODING: Final = re.compile(rb"""^\s*<\?xml[^>]{0,200}?encoding\s*=\s*["']([\w.:-]+)""")
_DECLARED_WITHIN_BYTES: Final = 4096

_DROPPED_TAGS: Final = (
    "script style noscript template iframe object embed svg canvas head nav datalist"
)
_DROPPED: Final = frozenset(_DROPPED_TAGS.split())
_NAVIGATION_CLASSES: Final = frozenset({"navheader", "navfooter"})
_PARAGRAPH_TAGS: Final = (
    "address article aside blockquote body details dl fieldset figure footer form h1 h2 h3 h4 h5 "
    "h6 header hr main ol p pre section table textarea ul listing xmp"
)
_LINE_TAGS: Final = (
    "caption center dd dir div dt figcaption legend li menu optgroup option summary tbody tfoot "
    "thead tr"
)
# The number of line ends before and after.
_BLOCKS: Final = dict.fromkeys(_PARAGRAPH_TAGS.split(), 2) | dict.fromkeys(_LINE_TAGS.split(), 1)
_VERBATIM: Final = frozenset({"pre", "textarea", "listing", "xmp"})


@dataclass(frozen=True, kw_only=True)
class Page:
    text: str
    title: str | None


def declared_charset(data: bytes) -> str | None:
    """The encoding that the first bytes name, in an XML declaration or a `<meta>`."""
    head = data[:_DECLARED_WITHIN_BYTES]
    found = _XML_ENCODING.search(head) or _CHARSET.search(head)
    return found[1].decode("ascii") if found else None


def render(text: str, *, name: str) -> Page:
    """Raises `DocumentError` if the page has no text."""
    # Bytes with the encoding given to the parser: a string that carries an XML declaration would
    # be refused, and a <meta> that names the file's old encoding would be believed.
    parser = etree.HTMLParser(
        encoding="utf-8", huge_tree=True, recover=True, remove_comments=True, remove_pis=True
    )
    try:
        root = etree.fromstring(text.encode("utf-8"), parser)
    except (etree.XMLSyntaxError, ValueError) as wrong:
        raise DocumentError(f"{name}: cannot be read as HTML: {wrong}.") from wrong
    if any(entry.type == etree.ErrorTypes.ERR_RESOURCE_LIMIT for entry in parser.error_log):
        # The parser has left out all that is nested deeper; half a page would go unnoticed.
        raise DocumentError(
            f"{name}: elements nest more than 2,000 deep in this HTML. Save it in a simpler form."
        )
    writer = _Writer()
    title = None
    if root is not None:
        title = " ".join(root.findtext(".//title", default="").split()) or None
        _walk(root, writer)
    rendered = "".join(writer.out).strip("\n")
    if not rendered.strip():
        raise DocumentError(
            f"{name}: the HTML has no text in it. If a script builds the page, save the rendered "
            "page from a browser and ingest that."
        )
    return Page(text=rendered, title=title)


def _walk(root: etree._Element, writer: "_Writer") -> None:
    """Visit every node in document order, without recursion."""
    walker = etree.iterwalk(root, events=("start", "end"))
    for event, node in walker:
        tag = node.tag
        if event == "start":
            if tag in _DROPPED or (node.attrib and _is_hidden(node)):
                walker.skip_subtree()
                # The end event of a skipped element still comes; it closes only what it opened.
                continue
            writer.open(tag)
            if node.text:
                writer.write(node.text)
        else:
            if tag not in _DROPPED and not (node.attrib and _is_hidden(node)):
                writer.close(tag)
            if node.tail:
                writer.write(node.tail)


def _is_hidden(node: etree._Element) -> bool:
    if node.get("hidden") is not None or node.get("role") == "navigation":
        return True
    classes: str = node.get("class", "")
    return not _NAVIGATION_CLASSES.isdisjoint(classes.split())


@dataclass
class _Writer:
    """Collapses whitespace the way a browser does, over the borders of inline elements."""

    out: list[str] = field(default_factory=list)
    breaks: int = 0
    space: bool = False
    verbatim: int = 0
    fresh: bool = False  # a <pre> has just begun; its first line end is not content
    prefix: str = ""  # a list mark or cell separator that waits for the text after it
    in_row: bool = False

    def open(self, tag: str) -> None:
        if tag == "br":
            self._break(min(2, self.breaks + 1))
            return
        if tag in ("td", "th"):
            self._cell()
            return
        level = _BLOCKS.get(tag)
        if level is not None:
            self._break(level)
        if tag == "li":
            self.prefix = "- "
        elif tag == "tr":
            self.in_row, self.prefix = False, ""
        elif tag in _VERBATIM:
            self.verbatim, self.fresh = self.verbatim + 1, True

    def close(self, tag: str) -> None:
        if tag in _VERBATIM:
            self.verbatim = max(0, self.verbatim - 1)
        if tag in ("tr", "li"):
            self.in_row, self.prefix = False, ""
        level = _BLOCKS.get(tag)
        if level is not None:
            self._break(level)

    def write(self, text: str) -> None:
        if self.verbatim:
            if self.fresh:
                text, self.fresh = text.removeprefix("\n"), False
            if text:
                self._start(" " if self.space else "")
                self.out.append(text)
            return
        words = text.split()
        if not words:
            self.space = True
            return
        self._start(" " if self.space or text[0].isspace() else "")
        self.out.append(" ".join(words))
        self.space = text[-1].isspace()

    def _start(self, gap: str) -> None:
        """Write what waits: line ends, or else a space; then the list mark or separator."""
        if self.breaks:
            if self.out:
                last = self.out[-1]
                there = len(last) - len(last.rstrip("\n"))
                self.out.append("\n" * (self.breaks - there))
                self.prefix = self.prefix.lstrip()
            gap = ""
        elif self.prefix:
            gap = ""
        if gap and self.out:
            self.out.append(gap)
        if self.prefix:
            self.out.append(self.prefix if self.out else self.prefix.lstrip())
        self.breaks, self.space, self.prefix = 0, False, ""

    def _break(self, level: int) -> None:
        # A block that opens a cell or list item does not part it from its separator or mark.
        if not self.prefix:
            self.breaks = max(self.breaks, level)
        self.space = False

    def _cell(self) -> None:
        if self.in_row:
            # The end of a block in the cell before does not end the row's line.
            self.breaks = 0 if not self._at_line_start() else self.breaks
            self.prefix += " | "
        self.in_row = True
        self.space = False

    def _at_line_start(self) -> bool:
        return not self.out or self.out[-1].endswith("\n")

"""HTML and XHTML -> readable text, with the title and other metadata.

Blocks become lines, blank lines separate paragraphs and headings, `<pre>` keeps its line ends, and
list items begin with "- ". A row of a table is one line with its cells separated by " | "; an empty
cell stays as nothing between two separators, and line ends inside a cell become spaces. A merged
cell counts in each row that it covers, once in a row. Tables for layout are treated otherwise: a
row of one cell is a block, and if a row contains rows of another table, lines of code or long text
of several blocks, its cells follow one another on lines of their own. A row without any text is
left out.

Of a whole page, as opposed to a fragment, only the main content becomes text (`main_content.py`),
unless the job says otherwise or names CSS classes.

What a browser does not show is left out: scripts, styles, templates, `<noscript>`, `<noframes>`,
fallbacks for old browsers (`<iframe>`, `<object>`, `<canvas>`, `<video>`, …), comments, a closed
`<dialog>`, parts hidden by the attribute `hidden` or their own style, and decoration
(`aria-hidden`). So are `<svg>`, and what the page marks as navigation: `<nav>`,
`role="navigation"`, and the `navheader`/`navfooter` bars of DocBook. `<header>`, `<footer>`,
`<aside>` and a closed `<details>` stay. Stylesheets are not read. The text of `<title>` is
metadata, not text. No script runs and nothing is loaded.
"""

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import date
from enum import IntEnum
from html import escape
from html.entities import html5
from typing import Final, NamedTuple

from lxml import etree

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
from workers.ingest.formats.texts.main_content import find_main_content, is_page
from workers.ingest.formats.texts.text import decode, storable, text_of

_CHARSET: Final = re.compile(rb"""<meta[^>]{0,500}?charset\s*=\s*["']?\s*([\w.:-]+)""", re.I)
_XML_ENCODING: Final = re.compile(rb"""^\s*<\?xml[^>]{0,200}?encoding\s*=\s*["']([\w.:-]+)""")
_DECLARED_WITHIN_BYTES: Final = 4096

# They separate words: a browser shows something at their place.
_REPLACED_TAGS: Final = (
    "audio canvas embed iframe img input meter object picture progress svg video"
)
_REPLACED: Final = frozenset(_REPLACED_TAGS.split())
_DROPPED_TAGS: Final = (
    "annotation annotation-xml audio canvas datalist embed iframe link meta nav noframes noscript "
    "object rp script style svg template title video"
)
_DROPPED: Final = frozenset(_DROPPED_TAGS.split())
_NAVIGATION_CLASSES: Final = frozenset({"navheader", "navfooter"})
_PARAGRAPH_TAGS: Final = (
    "address article aside blockquote body details dialog dl fieldset figure footer form frameset "
    "h1 h2 h3 h4 h5 h6 header hgroup hr listing main ol p plaintext pre search section table "
    "textarea ul xmp"
)
_LINE_TAGS: Final = (
    "caption center dd dir div dt figcaption head legend li marquee menu optgroup option select "
    "summary tbody tfoot thead tr"
)
_HEADINGS: Final = frozenset({"h1", "h2", "h3", "h4", "h5", "h6"})
_CELLS: Final = frozenset({"td", "th"})
_VERBATIM: Final = frozenset({"listing", "plaintext", "pre", "textarea", "xmp"})
_READINGS: Final = frozenset({"rt", "rtc"})
# Parts of formulas, and inline elements that a browser shows as boxes.
_SPACED: Final = frozenset({"button", "math", "mi", "mn", "mo", "ms", "mtext"}) | _REPLACED
_MAIN_PARTS: Final = ("main", "article", "h1")

_STYLES: Final = re.compile("display|visibility|white-space|clip|-[0-9]{3}|[^0-9]1px", re.I)
_FAR: Final = re.compile(r"-[0-9]{3,}(?:\.[0-9]*)?(?:px|r?em|%|v[wh])?")
_CLIPPED: Final = re.compile(r"rect\((?:[01](?:px)?[\s,]*){4}\)")
_INSET: Final = re.compile(r"inset\((?:50|100)%\)")
_STYLE_COMMENT: Final = re.compile(r"/\*(?:.*?\*/|.*$)", re.S)
_BLOCK_DISPLAYS: Final = ("block", "flex", "flow-root", "grid", "list-item", "table")
_PRESERVED_SPACE: Final = frozenset({"pre", "pre-wrap", "pre-line", "break-spaces"})
# Characters at which a line may break, and those that fill the previews of mails.
_INVISIBLE: Final = re.compile("[\u00ad\u200b\u2060\ufeff]|(?<!\\S)[\u034f\u200c\u200d]+(?!\\S)")
_KANA: Final = re.compile(r"[぀-ヿㄅ-ㄯˊˇˋ˙]+")

_IS_XHTML: Final = re.compile(
    r"""^\s*<\?xml\s|<html\s[^>]{0,1000}?xmlns\s*=\s*["']http://www\.w3\.org/1999/xhtml["']""", re.I
)
_ENTITY_OR_CDATA: Final = re.compile(
    r"&([A-Za-z][A-Za-z0-9]{1,31};)|<!\[CDATA\[(.*?)(\]\]>|\Z)", re.S
)
_XML_ENTITIES: Final = frozenset({"amp;", "apos;", "gt;", "lt;", "quot;"})

_PAGE_ENDS: Final = re.compile(r"</(?:body|html)\s*>", re.I)

# As the tokenizer of HTML reads it: a name, and a value that is quoted or has no white space.
_TAG: Final = re.compile(r"<[A-Za-z][^\s/>]*+")
_ATTRIBUTE: Final = re.compile(
    r"""[\s/]*+(?:[^\s/>=]|=)[^\s/>=]*+(?:\s*+=\s*+(?:"[^"]*+"?|'[^']*+'?|[^\s>"'][^\s>]*+)?)?"""
)
_ATTRIBUTES_LIMIT: Final = 10_000
_ATTRIBUTES_FEW: Final = 200_000

_ROW_GROUPS: Final = frozenset({"thead", "tbody", "tfoot"})
_SPAN: Final = re.compile(r"\s*([0-9]{1,5})")
_SPAN_LIMIT: Final = 1000
_MERGED_CELLS: Final = 20
_MERGED_CHARS: Final = 100
_MERGED_PARTS: Final = 50
_FILLED_CELLS: Final = 1000
_FILLED_CHARS: Final = 10_000
_FILLED_SHARE: Final = 8
"""Limits what merged cells add to rows, relative to the page."""

_CLASSES_NAMED: Final = 30
_META_LIMIT: Final = 500
_META_CHARS: Final = 1000
_JSON_CHARS: Final = 100_000
_LANGUAGE: Final = re.compile(r"[A-Za-z]{2,3}(?:[-_][A-Za-z0-9]{2,8})*")
_URL: Final = re.compile(r"https?://[^\s<>\"']{1,2000}", re.I)
_DATE_NAMES: Final = (
    "article:published_time", "og:published_time", "datepublished", "date", "dc.date",
    "dc.date.issued", "dcterms.created", "dcterms.date", "dcterms.issued", "publishdate",
    "publish-date", "pubdate", "parsely-pub-date", "citation_publication_date", "citation_date",
    "article:modified_time", "last-modified",
)  # fmt: skip
_DATE: Final = re.compile(
    r"[0-9]{4}-(?:0[1-9]|1[0-2])-(?:0[1-9]|[12][0-9]|3[01])"
    r"(?:[T ][0-2][0-9]:[0-5][0-9](?::[0-5][0-9](?:\.[0-9]{1,9})?)?"
    r"(?:Z|[+-][0-2][0-9]:?[0-5][0-9])?)?"
)
# 2024/3/1, 2024.03.01., 2024년 3월 1일, 20240301; Fri, 01 Mar 2024 (RFC 5322); March 1st, 2024.
_YEAR_FIRST: Final = re.compile(
    r"(?P<year>[12][0-9]{3})(?:(?P<mark>[-/.년年])\s{0,2}(?P<month>[0-9]{1,2})(?:(?P=mark)|[월月])\s{0,2}"
    r"(?P<day>[0-9]{1,2})(?![0-9])|(?P<month2>[0-9]{2})(?P<day2>[0-9]{2})(?![0-9]))"
)
_DAY_FIRST: Final = re.compile(
    r"(?:[A-Z][a-z]{2,8},?\s{1,2})?(?P<day>[0-9]{1,2})(?:st|nd|rd|th)?\s{1,2}(?P<month>[A-Z][a-z]{2,8})\.?"
    r",?\s{1,2}(?P<year>[12][0-9]{3})(?![0-9])"
)
_MONTH_FIRST: Final = re.compile(
    r"(?:[A-Z][a-z]{2,8},?\s{1,2})?(?P<month>[A-Z][a-z]{2,8})\.?\s{1,2}(?P<day>[0-9]{1,2})(?:st|nd|rd|th)?"
    r",?\s{1,2}(?P<year>[12][0-9]{3})(?![0-9])"
)
_MONTH_NAMES: Final = (
    "january february march april may june july august september october november december"
)
_MONTHS: Final = _MONTH_NAMES.split()
_PUBLISHED: Final = re.compile(r'"date(?:Published|Created)"\s{0,9}:\s{0,9}"([^"]{8,40})"')

_LONG_ROW_CHARS: Final = 1000
"""A row with blocks and more text than this is layout, not data: the text is an article."""


@dataclass(frozen=True, kw_only=True)
class HtmlPage:
    text: str
    title: str | None
    headings: tuple[Heading, ...] = ()
    metadata: Metadata = field(default_factory=dict)
    """Metadata besides the title: language, address, date."""


def declared_charset(data: bytes) -> str | None:
    """The encoding that the first bytes declare, in an XML declaration or a `<meta>`."""
    head = data[:_DECLARED_WITHIN_BYTES]
    match = _XML_ENCODING.search(head) or _CHARSET.search(head)
    return match[1].decode("ascii") if match else None


def render(
    text: str, *, name: str, main_content: bool = False, css_classes: Sequence[str] | None = None
) -> HtmlPage:
    """The text of a page or fragment; only of its main content, or of elements with certain
    classes.

    Raises DocumentError if there is no text.
    """
    root = parse(text, name=name)
    page = None
    if root is not None and css_classes is not None:
        page = _page(root, _of_classes(root, css_classes, name=name), _hidden(root))
    elif root is not None and main_content and is_page(text):
        hidden = _hidden(root)
        content = find_main_content(root, hidden=hidden)
        page = _page(root, content.roots, hidden | content.left_out)
    if page is None:
        page = _page(root)
    if page is not None:
        return page
    if root is not None and root.find(".//{*}frameset") is not None:
        raise DocumentError(
            f"{name}: the HTML has no text of its own, only frames. Ingest the pages that it "
            "shows in them."
        )
    raise DocumentError(
        f"{name}: the HTML has no text in it. If a script builds the page, save the rendered "
        "page from a browser and ingest that."
    )


def page_within(data: bytes, *, name: str) -> HtmlPage | None:
    """The text of a page that is part of a document in another format; None if there is none."""
    hint = "Save the document again with the program that it comes from."
    decoded = decode(data, name=name, declared=[declared_charset(data)], hint=hint)
    return _page(parse(decoded.text.removeprefix("\ufeff"), name=name))


def _page(
    root: etree._Element | None,
    parts: Sequence[etree._Element] | None = None,
    left_out: set[etree._Element] | None = None,
) -> HtmlPage | None:
    """The text of a page, or of parts of it, without the elements left out; None if there is
    none."""
    if root is None:
        return None
    writer = _Writer()
    left_out = _hidden(root) if left_out is None else left_out
    for part in parts or [root]:
        _walk(part, writer, left_out)
    text, headings = writer.text()
    if not text.strip():
        return None
    return HtmlPage(text=text, title=_title(root), headings=headings, metadata=_about(root))


def load(document: RawDocument) -> DocumentParts:
    data = document.data
    declared = None if isinstance(data, str) else declared_charset(data)
    text, metadata = text_of(
        document, declared=[declared], hint="Save it as UTF-8, or declare its charset."
    )
    page = render(
        text,
        name=document.name,
        main_content=document.options.html.main_content,
        css_classes=document.options.html.css_classes,
    )
    title: Metadata = {DocumentKey.TITLE: page.title} if page.title else {}
    return DocumentParts(
        passages=[(page.text, {})],
        metadata=metadata | title | page.metadata,
        headings=page.headings,
    )


HTML = Loader(
    load=load,
    example=b"<title>Hours</title><h1>Open</h1><p>From <b>nine</b>.<script>x()</script>",
    example_text="Open\n\nFrom nine.",
)


def parse(text: str, *, name: str) -> etree._Element | None:
    """Parsed as XML if it declares that and is well-formed, else as HTML of any quality."""
    if name.lower().endswith((".xhtml", ".xht")) or _IS_XHTML.search(text[:_DECLARED_WITHIN_BYTES]):
        root = _parse_xml(text)
        if root is not None:
            return root
        # An HTML parser reads CDATA as a comment.
        text = _ENTITY_OR_CDATA.sub(
            lambda match: escape(match[2], quote=False) if match[3] else match[0], text
        )
    check_attributes(text, name=name)
    # The parser stops at these end tags, which are optional; browsers do not.
    text = _PAGE_ENDS.sub(" ", text)
    # As bytes, with the encoding given to the parser: it refuses strings with an XML declaration,
    # and would believe a <meta> that declares the file's old encoding.
    parser = etree.HTMLParser(
        encoding="utf-8", huge_tree=True, recover=True, remove_comments=True, remove_pis=True
    )
    try:
        root = etree.fromstring(text.encode("utf-8"), parser)
    except (etree.XMLSyntaxError, ValueError) as wrong:
        raise DocumentError(f"{name}: cannot be read as HTML: {wrong}.") from wrong
    if any(entry.type == etree.ErrorTypes.ERR_RESOURCE_LIMIT for entry in parser.error_log):
        # The parser drops what is nested more deeply; half a page could be missing unnoticed.
        raise DocumentError(
            f"{name}: elements nest more than 2,000 deep in this HTML. Save it in a simpler form."
        )
    return root


def check_attributes(text: str, *, name: str) -> None:
    """Refuse elements with very many attributes: the parser compares each with all before it.

    Anything that may begin a tag counts, also within scripts, comments and other tags, so that all
    tags that the parser sees are among them. Tags within tags cost more than their length, so the
    number of all attributes is limited, too, by the length of the page.
    """
    left = _ATTRIBUTES_FEW + len(text)
    for tag in _TAG.finditer(text):
        at, count = tag.end(), 0
        while (attribute := _ATTRIBUTE.match(text, at)) is not None:
            at = attribute.end()
            count += 1
            if count > _ATTRIBUTES_LIMIT:
                raise DocumentError(
                    f"{name}: an element has more than {_ATTRIBUTES_LIMIT:,} attributes. Is this "
                    "HTML? Save it in a simpler form."
                )
        left -= count
        if left < 0:
            raise DocumentError(
                f"{name}: tags stand within tags that never end. Save the HTML in a simpler form."
            )


def _parse_xml(text: str) -> etree._Element | None:
    """The root; None if it is not well-formed. No DTD is loaded, and no entity of its own is
    expanded."""
    parser = etree.XMLParser(
        encoding="utf-8", huge_tree=True, remove_comments=True, remove_pis=True,
        resolve_entities=False, load_dtd=False, no_network=True,
    )  # fmt: skip
    numbered = _ENTITY_OR_CDATA.sub(_number_entity, text.lstrip())
    try:
        root = etree.fromstring(numbered.encode("utf-8"), parser)
    except (etree.XMLSyntaxError, ValueError):
        return None
    return None if any(True for _ in root.iter(etree.Entity)) else root


def _number_entity(match: re.Match[str]) -> str:
    """Names of characters from HTML, which XML does not know without its DTD."""
    if match[1] is None or match[1] in _XML_ENTITIES or match[1] not in html5:
        return match[0]
    return "".join(f"&#{ord(char)};" for char in html5[match[1]])


def _hidden(root: etree._Element) -> set[etree._Element]:
    """The outermost elements that no browser shows, or that are decoration."""
    hidden: set[etree._Element] = set()
    main_parts: set[etree._Element] | None = None
    walker = etree.iterwalk(root, events=("start",))
    for _, node in walker:
        tag = _local(node.tag)
        is_hidden = tag in _DROPPED
        if node.attrib and not is_hidden:
            is_hidden = _is_hidden(tag, node, _declarations(node.get("style", "")))
            is_decoration = node.get("aria-hidden", "").strip().lower() == "true"
            if not is_hidden and is_decoration and tag not in ("html", "body"):
                # A page saved under an open dialog marks all of its content so.
                main_parts = _around_main_parts(root) if main_parts is None else main_parts
                is_hidden = node not in main_parts
        if is_hidden or (tag == "dialog" and node.get("open") is None):
            hidden.add(node)
            walker.skip_subtree()
    return hidden


def _of_classes(
    root: etree._Element, css_classes: Sequence[str], *, name: str
) -> list[etree._Element]:
    """The outermost elements that have one of the classes, or whose attribute is exactly that text,
    as with a `SoupStrainer` of Beautiful Soup."""
    names = set(css_classes)
    roots: list[etree._Element] = []
    others: dict[str, None] = {}
    walker = etree.iterwalk(root, events=("start",))
    for _, node in walker:
        attribute = node.get("class")
        if attribute is None:
            continue
        classes = attribute.split()
        if attribute in names or not names.isdisjoint(classes):
            roots.append(node)
            walker.skip_subtree()
        elif len(others) < _CLASSES_NAMED:
            others.update(dict.fromkeys(classes))
    if not roots:
        named = ", ".join(map(repr, css_classes))
        has = ", ".join(map(repr, list(others)[:_CLASSES_NAMED])) or "none"
        raise DocumentError(
            f"{name}: no element has the class {named} (html.css_classes). Classes of the page "
            f"are: {has}."
        )
    return roots


def _walk(root: etree._Element, writer: "_Writer", left_out: set[etree._Element]) -> None:
    """Visit all nodes in document order, without recursion."""
    skipped: etree._Element | None = None
    walker = etree.iterwalk(root, events=("start", "end"))
    writer.begin()
    for event, node in walker:
        tag = _local(node.tag)
        if event == "end":
            if node is skipped:
                skipped = None
            else:
                writer.close(tag, node)
            if node.tail and node is not root:
                writer.write(node.tail)
            continue
        if node in left_out and node is not root:
            if tag in _REPLACED:
                writer.space()
            elif tag not in _DROPPED:
                writer.part(tag)
            # The end event of a skipped element follows next.
            walker.skip_subtree()
            skipped = node
            continue
        writer.open(tag, node, _declarations(node.get("style", "")) if node.attrib else {})
        if node.text:
            writer.write(node.text)


def _title(root: etree._Element) -> str | None:
    """The title of the page, not of an image in it."""
    for node in root.iter("{*}title"):
        parent = node.getparent()
        is_page_title = parent is None or _local(parent.tag) in ("html", "head", "body")
        if is_page_title and (title := " ".join("".join(map(str, node.itertext())).split())):
            return title
    return _meta(root).get("og:title")


def _meta(root: etree._Element) -> dict[str, str]:
    """Name -> content of `<meta>`; the first counts if a name occurs twice."""
    contents: dict[str, str] = {}
    for node in root.iter("{*}meta"):
        names = (node.get(key) for key in ("property", "name", "itemprop", "http-equiv"))
        name = next(filter(None, names), "")
        content = " ".join(node.get("content", "").split())[:_META_CHARS]
        if name and content and len(contents) < _META_LIMIT:
            contents.setdefault(name.strip().lower(), content)
    return contents


def _about(root: etree._Element) -> Metadata:
    about: Metadata = {}
    meta = _meta(root)
    xml_language = root.get("{http://www.w3.org/XML/1998/namespace}lang") or root.get("xml:lang")
    for language in (root.get("lang"), xml_language, meta.get("content-language"),
                     meta.get("og:locale")):  # fmt: skip
        if language and _LANGUAGE.fullmatch(language.strip()):
            about[DocumentKey.LANGUAGE] = language.strip().replace("_", "-")
            break
    links = (node.get("href") for node in root.iter("{*}link") if _is_canonical(node))
    for url in (next(links, None), meta.get("og:url")):
        if url and _URL.fullmatch(url.strip()):
            about[DocumentKey.URL] = url.strip()
            break
    author = meta.get("author") or meta.get("article:author")
    if author and not _URL.fullmatch(author):
        about[DocumentKey.AUTHOR] = author
    published = next((iso for text in _dates(root, meta) if (iso := iso_date(text))), None)
    if published is not None:
        about[DocumentKey.DATE] = published
    return about


def iso_date(text: str) -> str | None:
    """A date as web pages write it -> ISO 8601, with its time if it is in that format already. None
    if it is not a date, has no day, or is ambiguous."""
    text = text.strip()
    if match := _DATE.match(text):
        with suppress(ValueError):
            date.fromisoformat(text[:10])
            return match[0].replace(" ", "T")
        return None
    for form in (_YEAR_FIRST, _DAY_FIRST, _MONTH_FIRST):
        if match := form.match(text):
            parts = match.groupdict("")
            day = int(parts["day"] or parts.get("day2", ""))
            month = _month(parts["month"] or parts.get("month2", ""))
            with suppress(ValueError):
                return date(int(parts["year"]), month, day).isoformat()
    return None


def _month(text: str) -> int:
    """1 to 12; 0 if it is not the name of a month."""
    if text.isdigit():
        return int(text)
    names = (number for number, name in enumerate(_MONTHS, 1) if name.startswith(text.lower()))
    return next(names, 0)


def _is_canonical(link: etree._Element) -> bool:
    return "canonical" in link.get("rel", "").lower().split()


def _dates(root: etree._Element, meta: Mapping[str, str]) -> Iterator[str]:
    """Candidates for the date of publication, the most reliable first."""
    yield from (meta[name] for name in _DATE_NAMES if name in meta)
    for script in itertools.islice(root.iter("{*}script"), _META_LIMIT):
        if script.get("type", "").strip().lower() == "application/ld+json" and script.text:
            yield from _PUBLISHED.findall(script.text[:_JSON_CHARS])
    for node in itertools.islice(root.iter("{*}time"), _META_LIMIT):
        if node.get("itemprop") == "datePublished" or node.get("pubdate") is not None:
            yield node.get("datetime", "")
    for article in itertools.islice(root.iter("{*}article", "{*}header"), 1):
        yield from (
            node.get("datetime", "") for node in itertools.islice(article.iter("{*}time"), 1)
        )


def _local(tag: str) -> str:
    return tag.rpartition("}")[2].lower() if tag[0] == "{" else tag


def _declarations(style: str) -> Mapping[str, str]:
    """The declarations of a `style` attribute, in lower case; of two, the important or the later
    one counts."""
    if not _STYLES.search(style):
        return {}
    declared: dict[str, str] = {}
    important: set[str] = set()
    for declaration in _STYLE_COMMENT.sub(" ", style).lower().split(";"):
        name, _, value = declaration.partition(":")
        value, mark, rank = value.partition("!")
        is_important = bool(mark) and rank.strip() == "important"
        name = name.strip()
        if value.strip() and (is_important or name not in important):
            declared[name] = value.strip()
            if is_important:
                important.add(name)
    return declared


def _is_hidden(tag: str, node: etree._Element, style: Mapping[str, str]) -> bool:
    if tag in ("html", "body"):
        return False  # a script shows them once the page is complete
    display = style.get("display")
    if display == "none" or _is_out_of_sight(style):
        return True
    # Parts that the browser's search can find are content.
    hidden = node.get("hidden")
    if hidden is not None and hidden.strip().lower() != "until-found" and display is None:
        return True
    if node.get("role") == "navigation":
        return True
    classes: str = node.get("class", "")
    return not _NAVIGATION_CLASSES.isdisjoint(classes.split())


def _is_out_of_sight(style: Mapping[str, str]) -> bool:
    """Whether one of the usual ways hides text from sighted readers."""
    if _FAR.fullmatch(style.get("text-indent", "")):
        return True
    if style.get("position") not in ("absolute", "fixed"):
        return False
    return (
        any(_FAR.fullmatch(style.get(side, "")) for side in ("left", "right", "top", "bottom"))
        or _CLIPPED.fullmatch(style.get("clip", "")) is not None
        or _INSET.fullmatch(style.get("clip-path", "")) is not None
        or (style.get("width") == style.get("height") == "1px" and "overflow" in style)
    )


def _around_main_parts(root: etree._Element) -> set[etree._Element]:
    """The elements that are, or contain, the main part of the page. Each is visited once."""
    around: set[etree._Element] = set()
    for part in root.iter(*(f"{{*}}{tag}" for tag in _MAIN_PARTS)):
        node: etree._Element | None = part
        while node is not None and node not in around:
            around.add(node)
            node = node.getparent()
    return around


class _Mark(IntEnum):
    """A separator between texts: white space by its strength, or a sign."""

    NOTHING = -1
    SPACE = 0
    LINE = 1
    PARAGRAPH = 2
    BR = 3  # one line end more than there is, up to an empty line
    CELL = 4  # " | "
    ITEM = 5  # "- ", if text follows before ITEM_END
    ITEM_END = 6
    SUPERSCRIPT = 7  # "^" between two digits, so that 10<sup>6</sup> does not become 106
    SUBSCRIPT = 8  # "_" likewise


class _HeadingMark(NamedTuple):
    """The beginning of a heading; with level 0, its end."""

    level: int


_BLOCKS: Final = dict.fromkeys(_PARAGRAPH_TAGS.split(), _Mark.PARAGRAPH) | dict.fromkeys(
    _LINE_TAGS.split(), _Mark.LINE
)
_SHIFTS: Final = {"sup": _Mark.SUPERSCRIPT, "sub": _Mark.SUBSCRIPT}


@dataclass(kw_only=True)
class _Row:
    """A row being written; its end decides how its marks are written."""

    ends_with: etree._Element  # the <tr>, or the element that holds cells without one
    is_implied: bool
    in_cell: bool = False
    cells: int = 0
    chars: int = 0
    inner_rows: bool = False  # that must remain lines
    inner_lines: bool = False
    column: int = 0  # of the next cell
    filled: list[int] = field(default_factory=list)  # where the text of merged cells is
    merged: list[tuple[int, int, int, int]] = field(default_factory=list)
    """Cells of more than one row: column, width, rows that follow, and where the text begins."""
    ends: list[int] = field(default_factory=list)  # where the cells of `merged` end
    gaps: list[int] = field(default_factory=list)  # where the marks between cells are
    breaks: list[int] = field(default_factory=list)  # and those of blocks within cells

    def is_line(self) -> bool:
        if self.cells < 2:
            return False
        is_long = self.chars > _LONG_ROW_CHARS and bool(self.breaks)
        return not (self.inner_rows or self.inner_lines or is_long)


@dataclass(kw_only=True)
class _MergedCell:
    """A cell of a row above, merged over rows, in a table being written."""

    text: str
    width: int
    rows: int
    """How many more rows it covers."""


@dataclass(kw_only=True)
class _Style:
    """Inherited properties, from an element on."""

    node: etree._Element | None
    is_visible: bool
    is_verbatim: bool


def _span(cell: etree._Element, attribute: str) -> int:
    """How many columns or rows a cell covers; 0 means all that follow."""
    match = _SPAN.match(cell.get(attribute, "1"))
    return min(int(match[1]) or _SPAN_LIMIT, _SPAN_LIMIT) if match else 1


class _Writer:
    """Receives elements and texts in order; puts marks and texts together at the end.

    Each mark is written once and changed at most once, so the cost is linear however deeply tables
    nest.
    """

    def __init__(self) -> None:
        self._parts: list[str | _Mark | _HeadingMark] = []
        self._rows: list[_Row] = []
        self._styles = [_Style(node=None, is_visible=True, is_verbatim=False)]
        self._is_fresh = False  # just after <pre>: its first line end is not content
        self._has_line = False  # verbatim text has been written since
        self._line_ended = False
        self._tables: list[dict[int, _MergedCell]] = [{}]
        self._chars = self._cells = 0  # of the page
        self._filled = self._filled_chars = 0  # that merged cells add
        self._ruby = 0
        self._reading = 0
        self._readings: list[str] = []

    def open(self, tag: str, node: etree._Element, style: Mapping[str, str]) -> None:
        row = self._rows[-1] if self._rows else None
        if row and row.is_implied and tag not in _CELLS and node.getparent() is row.ends_with:
            self._end_row()
        self._part(tag, style)
        self._inherit(tag, node, style)
        if tag in _HEADINGS and not self._rows:
            self._parts.append(_HeadingMark(int(tag[1])))
        if tag == "br":
            self._break(_Mark.BR)
        elif tag == "li":
            self._parts.append(_Mark.ITEM)
        elif tag == "table":
            self._tables.append({})
        elif tag in _ROW_GROUPS:
            self._tables[-1].clear()
        elif tag == "tr":
            self._rows.append(_Row(ends_with=node, is_implied=False))
        elif tag in _CELLS:
            self._open_cell(node)
        elif tag in _SHIFTS:
            self._parts.append(_SHIFTS[tag])
        elif tag == "ruby":
            self._ruby += 1
        elif tag in _READINGS and self._ruby:
            self._reading += 1

    def close(self, tag: str, node: etree._Element) -> None:
        if self._rows and self._rows[-1].ends_with is node:
            self._end_row()
        if self._styles[-1].node is node:
            self._styles.pop()
        if tag in _HEADINGS and not self._rows:
            self._parts.append(_HeadingMark(0))
        if tag == "li":
            self._parts.append(_Mark.ITEM_END)
        elif tag == "table" and len(self._tables) > 1:
            self._tables.pop()
        elif tag in _CELLS:
            if self._rows:
                row = self._rows[-1]
                row.in_cell = False
                if len(row.ends) < len(row.merged):
                    row.ends.append(len(self._parts))
            self.space()
        elif tag == "ruby":
            self._ruby -= 1
            self._end_readings()
        elif tag in _READINGS and self._ruby:
            self._reading -= 1
        self._part(tag, _declarations(node.get("style", "")))

    def space(self) -> None:
        self._parts.append(_Mark.SPACE)

    def write(self, text: str) -> None:
        style = self._styles[-1]
        if not style.is_visible:
            self.space()
            return
        if style.is_verbatim:
            if self._is_fresh:
                text, self._is_fresh = text.removeprefix("\n"), False
            self._add_lines(text)
            return
        if not text.isascii():
            text = _INVISIBLE.sub("", text)
        words = text.split()
        if not words:
            if text:
                self.space()
            return
        if self._reading:
            self._readings += words
            return
        if text[0].isspace():
            self.space()
        self._add(" ".join(words))
        if text[-1].isspace():
            self.space()

    def text(self) -> tuple[str, tuple[Heading, ...]]:
        while self._rows:
            self._end_row()
        return _put_together(self._parts)

    def begin(self) -> None:
        """Start a part of the page, separated from the one before."""
        while self._rows:
            self._end_row()
        self._styles = self._styles[:1]
        self._break(_Mark.PARAGRAPH)

    def part(self, tag: str) -> None:
        """Replaces an element that is left out."""
        self._part(tag, {})

    def _add(self, text: str) -> None:
        self._parts.append(text)
        self._chars += len(text)
        if self._rows:
            self._rows[-1].chars += len(text)

    def _add_lines(self, text: str) -> None:
        """In a row, line ends around verbatim text are marks: it may become one line."""
        if not self._rows:
            if text:
                self._parts.append(text)
            return
        body = text.strip("\n")
        before = len(text) - len(text.lstrip("\n"))
        after = len(text) - len(body) - before
        for _ in range(min(before, 2)):
            self._break(_Mark.BR)
        if body:
            self._add(body)
        for _ in range(min(after, 2)):
            self._break(_Mark.BR)
        if body.strip():
            follows = self._has_line and (before or self._line_ended)
            if follows or "\n" in body:
                self._rows[-1].inner_lines = True
            self._has_line, self._line_ended = True, bool(after)
        elif before:
            self._line_ended = True

    def _break(self, mark: _Mark) -> None:
        if self._rows:
            self._rows[-1].breaks.append(len(self._parts))
        self._parts.append(mark)

    def _part(self, tag: str, style: Mapping[str, str]) -> None:
        """Write the separator between an element and what precedes or follows it."""
        mark = _BLOCKS.get(tag)
        display = style.get("display", "")
        if mark is not None:
            self._break(mark)
        elif tag in _SPACED or display.startswith("inline-") or display == "table-cell":
            self.space()
        elif tag not in _CELLS and display.startswith(_BLOCK_DISPLAYS):
            self._break(_Mark.LINE)

    def _inherit(self, tag: str, node: etree._Element, style: Mapping[str, str]) -> None:
        now = self._styles[-1]
        is_visible, is_verbatim = now.is_visible, now.is_verbatim or tag in _VERBATIM
        if "visibility" in style and tag not in ("html", "body"):
            is_visible = style["visibility"] not in ("hidden", "collapse")
        if "white-space" in style:
            is_verbatim = style["white-space"] in _PRESERVED_SPACE
        if tag in _VERBATIM or (is_verbatim and not now.is_verbatim):
            self._is_fresh = tag in _VERBATIM
            self._has_line = self._line_ended = False
        if (is_visible, is_verbatim) != (now.is_visible, now.is_verbatim):
            self._styles.append(_Style(node=node, is_visible=is_visible, is_verbatim=is_verbatim))

    def _open_cell(self, node: etree._Element) -> None:
        parent = node.getparent()
        if parent is None:
            return
        if not self._rows or self._rows[-1].in_cell:
            self._break(_Mark.LINE)
            self._rows.append(_Row(ends_with=parent, is_implied=True))
        row = self._rows[-1]
        self._fill(row)
        if row.cells:
            row.gaps.append(len(self._parts))
        row.cells += 1
        row.in_cell = True
        self._parts.append(_Mark.SPACE)
        self._cells += 1
        width, rows = _span(node, "colspan"), _span(node, "rowspan")
        if rows > 1 and len(row.merged) < _MERGED_CELLS:
            row.merged.append((row.column, width, rows - 1, len(self._parts)))
        row.column += width

    def _fill(self, row: _Row) -> None:
        """Write merged cells of the rows above, up to the next cell."""
        merged = self._tables[-1]
        while (cell := merged.get(row.column)) is not None:
            self._filled += 1
            self._filled_chars += len(cell.text)
            if self._filled > _FILLED_CELLS + _FILLED_SHARE * self._cells:
                return  # a page made to grow without limit
            cell.rows -= 1
            if not cell.rows:
                del merged[row.column]
            if row.cells:
                row.gaps.append(len(self._parts))
            row.cells += 1
            self._parts.append(_Mark.SPACE)
            row.filled.append(len(self._parts))
            is_within = self._filled_chars <= _FILLED_CHARS + _FILLED_SHARE * self._chars
            self._parts.append(cell.text if cell.text and is_within else _Mark.SPACE)
            row.column += cell.width

    def _end_row(self) -> None:
        row = self._rows.pop()
        if row.cells:
            self._fill(row)
        if row.chars and row.is_line():
            self._note_merged(row)
            for at in row.gaps:
                self._parts[at] = _Mark.CELL
            for at in row.breaks:
                self._parts[at] = _Mark.SPACE
        else:
            self._tables[-1].clear()
            for at in row.filled:
                self._parts[at] = _Mark.SPACE
            for at in row.gaps:
                self._parts[at] = _Mark.PARAGRAPH
        if self._rows:
            outer = self._rows[-1]
            outer.chars += row.chars
            outer.inner_lines = outer.inner_lines or row.inner_lines
            if row.chars and (row.cells > 1 or row.inner_rows):
                outer.inner_rows = True
            if not row.is_line():
                # They are lines only if the row around them is not one.
                if len(outer.breaks) < len(row.breaks):
                    outer.breaks, row.breaks = row.breaks, outer.breaks
                outer.breaks += row.breaks
        if row.is_implied:
            self._break(_Mark.LINE)

    def _note_merged(self, row: _Row) -> None:
        """Note the cells merged over rows, for the rows below, if their text is short."""
        for (column, width, rows, start), end in zip(row.merged, row.ends, strict=False):
            words: list[str] = []
            for part in self._parts[start : min(end, start + _MERGED_PARTS)]:
                if isinstance(part, str):
                    words += [part]
                elif words and words[-1] != " ":
                    words += [" "]
            text = "".join(words).strip()
            if end - start > _MERGED_PARTS or len(text) > _MERGED_CHARS:
                text = ""
            self._tables[-1][column] = _MergedCell(text=text, width=width, rows=rows)

    def _end_readings(self) -> None:
        """Write the readings of ruby characters in brackets after them."""
        if self._readings and not self._ruby:
            gap = "" if all(map(_KANA.fullmatch, self._readings)) else " "
            self._add(f"({gap.join(self._readings)})")
            self._readings = []


def _put_together(parts: list[str | _Mark | _HeadingMark]) -> tuple[str, tuple[Heading, ...]]:
    """The text, in storable form, and its headings."""
    written: list[str] = []
    headings: list[Heading] = []
    begun = 0  # of a heading, in `written`
    level = 0
    edges: list[tuple[int, int, int]] = []  # of headings in `written`, with their level
    gap, last = _Mark.NOTHING, ""
    item = False
    shift: _Mark | None = None
    in_row = False  # a mark between cells was just written
    for part in parts:
        if isinstance(part, str):
            pieces = [_white(gap, last), "- " if item else ""]
            if shift and last[-1:].isdigit() and part[0].isdigit() and not any(pieces):
                pieces.append("^" if shift is _Mark.SUPERSCRIPT else "_")
            if level and begun < 0:
                begun = len(written) + bool(pieces[0])
                if last and not (pieces[0] or last).endswith("\n"):
                    level = 0  # within a line
            written += (piece for piece in pieces if piece)
            written.append(part)
            gap, last, item, shift, in_row = _Mark.NOTHING, part, False, None, False
        elif isinstance(part, _HeadingMark):
            if part.level:
                level, begun = part.level, -1
            else:
                if level and begun >= 0:
                    edges.append((begun, len(written), level))
                level = 0
        elif part is _Mark.ITEM:
            item = True
        elif part is _Mark.ITEM_END:
            item = False
        elif part in (_Mark.SUPERSCRIPT, _Mark.SUBSCRIPT):
            shift = part
        elif part is _Mark.CELL:
            if gap > _Mark.SPACE and last:
                written.append(_white(gap, last))
                last = "\n"
            # "a |  | b": an empty cell stays.
            begins = not last or last.endswith("\n")
            last = "|" if begins else "  |" if in_row else " |"
            written.append(last)
            gap, item, in_row = _Mark.SPACE, False, True
        elif item:
            continue  # a block at the beginning of a list item stays on the line of its "- "
        elif part is _Mark.BR:
            gap = _Mark(min(_Mark.PARAGRAPH, max(gap, _Mark.SPACE) + 1))
        else:
            gap = max(gap, part)
    # Headings are between line ends, across which no two characters combine.
    texts: list[str] = []
    length = reached = 0
    for first, last_, level in edges:
        before = storable("".join(written[reached:first]))
        before = before.lstrip("\n") if not length else before
        heading = storable("".join(written[first:last_]))
        start = length + len(before)
        length = start + len(heading)
        texts += (before, heading)
        title = heading.removeprefix("- ")
        headings.append(Heading(start=start, end=length, level=level, title=heading_title(title)))
        reached = last_
    rest = storable("".join(written[reached:]))
    texts.append(rest.rstrip("\n") if length else rest.strip("\n"))
    return "".join(texts), tuple(headings)


def _white(gap: _Mark, last: str) -> str:
    if not last or gap is _Mark.NOTHING:
        return ""
    ends = len(last) - len(last.rstrip("\n"))
    if gap is _Mark.SPACE:
        return "" if ends else " "
    return "\n" * (gap - ends)

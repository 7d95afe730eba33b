"""XML of any vocabulary -> its text.

If the elements below the root are records (the same element repeated, with values and no running
text), each is a passage of lines "path: value", with attributes as `@name`, and `item` counts them
from 1. Other documents with only short values or attributes, such as settings, are lines of this
kind, too. In all other documents an element with text of its own is a paragraph, together with its
content; white space is as in HTML. Comments and processing instructions are left out. No DTD is
read, and no entities are expanded except the five of XML and numeric ones.
"""

import re
from collections import Counter
from collections.abc import Iterator
from typing import Final, cast

from lxml import etree

from shared.errors import DocumentError
from workers.ingest.formats.loader import (
    DocumentKey,
    DocumentParts,
    Loader,
    PassageKey,
    RawDocument,
    RawPassage,
    too_long,
)
from workers.ingest.formats.texts import html
from workers.ingest.formats.texts.text import text_of

_ENCODING: Final = re.compile(rb"""^\s*<\?xml[^>]{0,200}?encoding\s*=\s*["']([\w.:-]+)""")
_DECLARED_WITHIN_BYTES: Final = 1024
_DECLARATION: Final = re.compile(r"^\s*<\?xml[^>]*\?>")
_ATTRIBUTES_FEW: Final = 100
_DEPTH: Final = 200
_LEAST_RECORDS: Final = 2
_FEW_CHILDREN: Final = 3
_VALUE_CHARS: Final = 80
_PROSE: Final = frozenset({"p", "para", "paragraph", "li", "item", "section", "sec", "chapter"})
_TECHNICAL: Final = frozenset({"lang", "space", "id", "base", "schemaLocation", "version"})


def load(document: RawDocument) -> DocumentParts:
    data = document.data
    declared = None
    if isinstance(data, bytes) and (match := _ENCODING.search(data[:_DECLARED_WITHIN_BYTES])):
        declared = match[1].decode("ascii")
    text, metadata = text_of(document, declared=[declared])
    root = _parse(text, name=document.name)
    if _local(root) == "html":
        return html.load(document)
    holder = _holder(root)
    children = [*root, *(holder if holder is not None and holder is not root else ())]
    title = next((_words(n) for n in children if _local(n) == "title" and _words(n)), None)
    if title:
        metadata = metadata | {DocumentKey.TITLE: title}
    if language := root.get("{http://www.w3.org/XML/1998/namespace}lang"):
        metadata = metadata | {DocumentKey.LANGUAGE: language}
    if holder is not None:
        passages = _records(holder, document)
    elif _is_of_values(root):
        passages = iter([("\n".join(_bounded_lines(root, document)), {})])
    else:
        passages = _paragraphs(root)
    return DocumentParts(passages=passages, metadata=metadata)


XML = Loader(
    load=load,
    example=b"<hours><day name='Monday'><open>9</open></day><day><open>10</open></day></hours>",
    example_text="@name: Monday\nopen: 9\n\nopen: 10",
)


def _parse(text: str, *, name: str) -> etree._Element:
    html.check_attributes(text, name=name)
    parser = etree.XMLParser(
        encoding="utf-8", huge_tree=True, remove_comments=True, remove_pis=True,
        resolve_entities=False, load_dtd=False, no_network=True, strip_cdata=True,
    )  # fmt: skip
    try:
        root = etree.fromstring(_DECLARATION.sub("", text, count=1).strip().encode(), parser)
    except (etree.XMLSyntaxError, ValueError) as wrong:
        raise DocumentError(
            f"{name}: is not well-formed XML: {wrong}. Correct the file, or give it a name that "
            "ends with .txt to ingest it as it is."
        ) from wrong
    depth = 0
    for event, _ in etree.iterwalk(root, events=("start", "end")):
        depth += 1 if event == "start" else -1
        if depth > _DEPTH:
            raise DocumentError(
                f"{name}: elements nest more than {_DEPTH} deep in this XML. Flatten it."
            )
    return root


def _local(node: etree._Element) -> str:
    return node.tag.rpartition("}")[2] if isinstance(node.tag, str) else ""


def _words(node: etree._Element) -> str:
    """The text in an element. Elements may be within words, as in H<sub>2</sub>O; elements that
    follow each other, contain only others, or are empty separate words."""
    parts: list[str] = []
    has_ended = False
    for event, inner in etree.iterwalk(node, events=("start", "end")):
        is_start = event == "start"
        text = (inner.text if is_start else inner.tail if inner is not node else "") or ""
        if inner is not node and ((is_start and has_ended) or _parts_words(inner)):
            parts.append(" ")
        parts.append(text)
        has_ended = not is_start and not text
    return " ".join("".join(parts).split())


def _parts_words(node: etree._Element) -> bool:
    return not (node.text or "").strip()


def _holder(root: etree._Element) -> etree._Element | None:
    """The element whose children are records: the root, or the only element with many in it (such
    as `channel` in RSS); None if there is none."""
    candidates: list[etree._Element] = [root, *(root if len(root) <= _FEW_CHILDREN else ())]
    for node in candidates:
        names = Counter(map(_local, node))
        if not names:
            continue
        ((most, count),) = names.most_common(1)
        is_table = count >= _LEAST_RECORDS and 2 * count >= names.total()
        records = (child for child in node if _local(child) == most)
        if is_table and all(len(r) or r.attrib for r in records) and not _has_running_text(root):
            return node
    return None


def _has_running_text(root: etree._Element) -> bool:
    """Whether an element has text beside child elements."""
    for node in root.iter("*"):
        if len(node) and (
            (node.text or "").strip() or any((child.tail or "").strip() for child in node)
        ):
            return True
    return False


def _is_of_values(root: etree._Element) -> bool:
    """Whether the names of elements carry as much information as their texts."""
    names: set[str] = set()
    has_attributes = False
    for node in root.iter("*"):
        if _local(node).lower() in _PROSE:
            return False
        has_attributes = has_attributes or any(
            str(name).rpartition("}")[2] not in _TECHNICAL for name in node.attrib
        )
        if not len(node) and (node.text or "").strip():
            if len((node.text or "").strip()) > _VALUE_CHARS:
                return False
            names.add(_local(node))
    return (has_attributes or len(names) > 1) and not _has_running_text(root)


def _bounded_lines(root: etree._Element, document: RawDocument) -> Iterator[str]:
    room = document.max_chars
    for line in _lines(root, without=None, path=[]):
        yield line
        room -= len(line) + 1
        if room < -1:  # each line repeats its path
            raise too_long(document.name, document.max_chars)


def _records(holder: etree._Element, document: RawDocument) -> Iterator[RawPassage]:
    root = holder.getroottree().getroot()
    if holder is not root or root.attrib:
        head = [*_lines(root, without=holder, path=[]), *_attributes(holder, [])]
        yield "\n".join(head), {}
    for number, child in enumerate(holder, start=1):
        yield "\n".join(_bounded_lines(child, document)), {PassageKey.ITEM: number}


def _attributes(node: etree._Element, path: list[str]) -> Iterator[str]:
    for name, value in _pairs(node):
        words = " ".join(str(value).split())
        if words:
            yield f"{'.'.join([*path, '@' + str(name).rpartition('}')[2]])}: {words}"


def _pairs(node: etree._Element) -> Iterator[tuple[str, str]]:
    """The names and values of the attributes of an element, in time in proportion to their number:
    `attrib.items()` looks for each value among all of them."""
    if len(node.attrib) <= _ATTRIBUTES_FEW:
        yield from ((str(name), str(value)) for name, value in node.attrib.items())
        return
    for value in cast("list[etree._ElementUnicodeResult]", node.xpath("@*")):
        yield str(value.attrname), str(value)


def _lines(
    root: etree._Element, *, without: etree._Element | None, path: list[str]
) -> Iterator[str]:
    """A line for each value below an element; the path does not contain the element itself."""
    path = list(path)
    walker = etree.iterwalk(root, events=("start", "end"))
    for event, node in walker:
        if event == "end":
            if node is not root:
                path.pop()
            continue
        if node is not root:
            path.append(_local(node))
        if node is without:
            walker.skip_subtree()
            continue
        yield from _attributes(node, path)
        words = " ".join((node.text or "").split()) if not len(node) else ""
        if words:
            yield f"{'.'.join(path)}: {words}" if path else words


def _paragraphs(root: etree._Element) -> Iterator[RawPassage]:
    """All paragraphs as one passage."""
    blocks: list[str] = []
    walker = etree.iterwalk(root, events=("start",))
    for _, node in walker:
        own = (node.text or "").strip() or any((child.tail or "").strip() for child in node)
        if own and (words := _words(node)):
            blocks.append(words)
            walker.skip_subtree()
    yield "\n\n".join(blocks), {}

"""XML of whatever vocabulary -> its text, element by element.

Where the elements below the root are records (the same element again and again, with values in it
and no running text), each is a passage of lines "path: value", attributes among them as `@name`,
and `item` counts them from 1. In any other document an element with text of its own is a paragraph,
with what is in it; white space is as in HTML. Comments and processing instructions are left out. No
DTD is read, and no entity is expanded but the five of XML and numbers.
"""

import re
from collections import Counter
from collections.abc import Iterator
from typing import Final

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
_DEPTH: Final = 200
_LEAST_RECORDS: Final = 2
_FEW_CHILDREN: Final = 3


def load(document: RawDocument) -> DocumentParts:
    data = document.data
    declared = None
    if isinstance(data, bytes) and (match := _ENCODING.search(data[:_DECLARED_WITHIN_BYTES])):
        declared = match[1].decode("ascii")
    text, metadata = text_of(document, declared=[declared])
    root = _parse(text, name=document.name)
    if _local(root) == "html":
        return html.load(document)
    title = next((_words(n) for n in root if _local(n) == "title" and _words(n)), None)
    if title:
        metadata = metadata | {DocumentKey.TITLE: title}
    holder = _holder(root)
    passages = _records(holder, document) if holder is not None else _paragraphs(root)
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
    return " ".join("".join(map(str, node.itertext())).split())


def _holder(root: etree._Element) -> etree._Element | None:
    """The element whose children are records: the root, or the only one with many in it (as
    `channel` in RSS)."""
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
    """Whether an element has text beside elements."""
    for node in root.iter("*"):
        if len(node) and (
            (node.text or "").strip() or any((child.tail or "").strip() for child in node)
        ):
            return True
    return False


def _records(holder: etree._Element, document: RawDocument) -> Iterator[RawPassage]:
    root = holder.getroottree().getroot()
    if holder is not root or root.attrib:
        head = [*_lines(root, without=holder, path=[]), *_attributes(holder, [])]
        yield "\n".join(head), {}
    for number, child in enumerate(holder, start=1):
        lines: list[str] = []
        room = document.max_chars
        for line in _lines(child, without=None, path=[]):
            lines.append(line)
            room -= len(line) + 1
            if room < -1:  # each line repeats its path
                raise too_long(document.name, document.max_chars)
        yield "\n".join(lines), {PassageKey.ITEM: number}


def _attributes(node: etree._Element, path: list[str]) -> Iterator[str]:
    for name, value in node.attrib.items():
        words = " ".join(str(value).split())
        if words:
            yield f"{'.'.join([*path, '@' + str(name).rpartition('}')[2]])}: {words}"


def _lines(
    root: etree._Element, *, without: etree._Element | None, path: list[str]
) -> Iterator[str]:
    """A line for each value below an element, which itself is not in the path."""
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
    """All in one passage."""
    blocks: list[str] = []
    walker = etree.iterwalk(root, events=("start",))
    for _, node in walker:
        own = (node.text or "").strip() or any((child.tail or "").strip() for child in node)
        if own and (words := _words(node)):
            blocks.append(words)
            walker.skip_subtree()
    yield "\n\n".join(blocks), {}

"""EPUB books -> passages: the sections of the documents in the spine, in its order.

`part` in the metadata is the title of the chapter: from the table of contents (the navigation
document of EPUB 3, the NCX of EPUB 2), or else from the document itself. The documents are read as
HTML is (`html.py`), without the navigation document. Books with DRM are refused.

By lxml alone: EbookLib has the AGPL, and LangChain's loader needs pandoc.
"""

from collections.abc import Iterator
from posixpath import dirname
from typing import Final

from lxml import etree

from shared.errors import DocumentError
from workers.ingest.formats.loader import (
    DocumentParts,
    Loader,
    PassageKey,
    RawDocument,
    RawPassage,
    heading_title,
)
from workers.ingest.formats.office.outline import Outline
from workers.ingest.formats.office.package import (
    Package,
    archive_of,
    attribute,
    child,
    children,
    descendants,
    dublin_core,
    resolve,
    text_within,
)
from workers.ingest.formats.texts.html import page_within

# Algorithms that only make fonts unreadable; no font is read here.
_FONT_ALGORITHMS: Final = (
    "http://www.idpf.org/2008/embedding",
    "http://ns.adobe.com/pdf/enc#RC",
)
_PAGES: Final = frozenset({"application/xhtml+xml", "text/html", "application/x-dtbook+xml"})


def load(document: RawDocument) -> DocumentParts:
    package = Package(document, kind="an EPUB book")
    rights = package.xml("META-INF/encryption.xml")
    for method in descendants(rights, "EncryptionMethod"):
        if method.get("Algorithm") not in _FONT_ALGORITHMS:
            raise DocumentError(
                f"{document.name}: is protected by DRM, so that its text cannot be read. Ingest a "
                "copy without protection."
            )
    container = package.xml("META-INF/container.xml")
    main = next(
        (node.get("full-path") or "" for node in descendants(container, "rootfile")), ""
    ) or next((name for name in package.names() if name.endswith(".opf")), "")
    root = package.xml(resolve("", main)) if main else None
    if root is None:
        raise package.lacks("META-INF/container.xml that names a package document (.opf)")
    return DocumentParts(
        passages=_passages(document, package, root, dirname(main)),
        metadata=dict(dublin_core(child(root, "metadata"))),
    )


def _passages(
    document: RawDocument, package: Package, root: etree._Element, folder: str
) -> Iterator[RawPassage]:
    manifest = {
        node.get("id") or "": node
        for node in children(child(root, "manifest"), "item")
        if node.get("href")
    }
    spine = child(root, "spine")
    titles = _titles(package, manifest, spine, folder)
    # A document that the spine names twice is read once.
    for id_ in dict.fromkeys(node.get("idref") or "" for node in children(spine, "itemref")):
        item = manifest.get(id_)
        if item is None or item.get("media-type") not in _PAGES or _is_navigation(item):
            continue
        name = resolve(folder, item.get("href") or "")
        data = package.read(name)
        page = page_within(data, name=f"{package.name}!/{name}") if data.strip() else None
        if page is None:
            continue  # a cover that is a picture
        title = titles.get(name.lower()) or page.title
        outline = Outline(document, {PassageKey.PART: heading_title(title)} if title else {})
        end = 0
        for heading in page.headings:
            outline.paragraph(page.text[end : heading.start])
            outline.heading(heading.level, page.text[heading.start : heading.end])
            end = heading.end
        outline.paragraph(page.text[end:])
        yield from outline.passages()


def _is_navigation(item: etree._Element) -> bool:
    return "nav" in (item.get("properties") or "").split()


def _titles(
    package: Package,
    manifest: dict[str, etree._Element],
    spine: etree._Element | None,
    folder: str,
) -> dict[str, str]:
    """Member name -> the title of the first, outermost entry of the table of contents for it."""
    titles: dict[str, str] = {}
    for item in manifest.values():
        if not _is_navigation(item):
            continue
        name = resolve(folder, item.get("href") or "")
        root = package.xml(name)
        for nav in descendants(root, "nav"):
            if "toc" in (attribute(nav, "type") or "toc").split():
                for link in descendants(nav, "a"):
                    _note(titles, dirname(name), link.get("href"), text_within(link))
    toc = manifest.get(spine.get("toc") or "") if spine is not None else None
    if toc is None:
        toc = next(
            (i for i in manifest.values() if i.get("media-type") == "application/x-dtbncx+xml"),
            None,
        )
    if toc is not None and not titles:
        name = resolve(folder, toc.get("href") or "")
        for point in descendants(package.xml(name), "navPoint"):
            label = child(point, "navLabel", "text")
            content = child(point, "content")
            if label is not None and content is not None:
                _note(titles, dirname(name), content.get("src"), label.text or "")
    return titles


def _note(titles: dict[str, str], folder: str, target: str | None, title: str) -> None:
    title = " ".join(title.split())
    if target and title:
        titles.setdefault(resolve(folder, target).lower(), title)


EPUB = Loader(
    load=load,
    example=archive_of(
        {
            "mimetype": "application/epub+zip",
            "META-INF/container.xml": '<c><rootfile full-path="a.opf"/></c>',
            "a.opf": '<package><manifest><item id="1" href="1.xhtml" '
            'media-type="application/xhtml+xml"/></manifest><spine><itemref idref="1"/></spine>'
            "</package>",
            "1.xhtml": "<html><body><h1>Hours</h1><p>We open at nine.</p></body></html>",
        }
    ),
    example_text="Hours\n\nWe open at nine.",
)

"""An HTML page -> its main content, without the parts that surround it on each page of a site.

Two sources decide. First, what the page itself declares, by elements, roles and the names of
classes and ids: navigation, sidebars, cookie banners, bars for sharing, the header and the footer
of the page. Second, trafilatura, which extracts the text of an article: the main content is the
smallest element that contains all of that text. Its output itself is not used, since it lacks rows,
lists and formulas; all text of that element that a reader sees counts. If trafilatura returns less
than half of the text outside links, the page is not an article, and its result does not count. The
same holds for pages that are very large or deep, where it would need more than linear time.
"""

import copy
import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final

from lxml import etree

_IS_PAGE: Final = re.compile(r"<(?:!doctype|html|head|body)[\s>]", re.I)
_BEGINNING_CHARS: Final = 4096

_SKIPPED: Final = frozenset({"script", "style", "template", "noscript", "title", "head", "svg"})
_MAIN_TAGS: Final = frozenset({"main", "article"})
_MAIN_ROLES: Final = frozenset({"main", "article"})
_AROUND_ROLES: Final = frozenset(
    {"navigation", "search", "complementary", "contentinfo", "alertdialog", "dialog", "menubar"}
    | {"menu", "toolbar", "banner"}
)
_NEVER_AROUND: Final = frozenset(
    {"html", "body", "table", "thead", "tbody", "tfoot", "tr", "td", "th", "pre", "code", "a"}
)
_ANCHORS: Final = ("¶", "#", "§")  # links of headings to themselves
_CONTROLS: Final = frozenset({"a", "button", "input"})

# Parts of the names of classes and ids. Korean sites call their menus gnb, lnb and snb.
_AROUND_NAMES: Final = (
    "cookie cookies cookiebar cookiebanner cookieconsent gdpr consent onetrust sidebar breadcrumb "
    "breadcrumbs navbar navigation gnb lnb snb footer pagination paging newsletter skiplink "
    "skiplinks skipnav advertisement adsbygoogle sharedaddy addtoany sharethis navbox editsection "
    "catlinks printfooter comments disqus utterances giscus cybot didomi truste cmplz osano "
    "usercentrics iubenda"
)
_AROUND_WORDS: Final = frozenset(_AROUND_NAMES.split())
# These may also be content: a menu of dishes, a list of related laws.
_PERHAPS_NAMES: Final = (
    "nav menu related recommend recommended recommendations popular trending share sharing sns "
    "social ad ads advert banner promo popup modal toolbar subscribe login widget pager tags "
    "utility topbar dropdown satisfaction feedback helpful survey"
)
_PERHAPS_WORDS: Final = frozenset(_PERHAPS_NAMES.split())
_AROUND_FORMS: Final = re.compile(
    r"(?:reply|comment|cmt)[-_]?(?:area|list|wrap|wrapper|box|section|container|thread|form)"
    r"|skip[-_]?(?:to|link|links|nav|navigation|content|menu)|qc-cmp.*|sp_message.*|.*_postbtn"
    r"|action[-_]?bar",
    re.I,
)
# Text only for screen readers, or only for those who see, by the classes of common stylesheets.
_UNSEEN_NAMES: Final = (
    "sr-only sr_only visually-hidden visuallyhidden screen-reader-text screenreader-text "
    "screen-reader-only a11y-hidden a11y_hidden blind element-invisible assistive-text show-for-sr "
    "u-hidden-visually hidden-visually noprint no-print d-print-none hidden-print"
)
_UNSEEN: Final = frozenset(_UNSEEN_NAMES.split())
_AROUND_TAGS: Final = frozenset({"amp-ad", "amp-embed", "amp-sidebar", "amp-consent"})
_AROUND_LABELS: Final = frozenset({"advertisement", "advertisements", "breadcrumb", "광고"})
_ARROWS: Final = frozenset(">›»＞▶")
_CRUMBS_CHARS: Final = 120
_NO_PART_WORDS: Final = frozenset({"has", "no", "with", "without", "layout", "content"})
_WORD: Final = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")
_COOKIES: Final = re.compile(r"cookie|쿠키|クッキー", re.I)
_CHOICE: Final = re.compile(
    r"accept|agree|allow|consent|got it|reject|decline|동의|수락|허용|확인|거부|同意|许可|許可|"
    r"\bok\b|akzept|zustimm|accepte|aceptar|accetta",
    re.I,
)
_FIXED: Final = re.compile(r"position\s*:\s*fixed", re.I)
_OTHER_PAGES: Final = re.compile(
    r"^(?:relatedarticle|relatedpost|relatedstor|relatednews|morefrom|mostread|mostpopular|popular|"
    r"trending|recentposts|latestnews|archives|categories|navigation|menu|followus|share|youmayalso|"
    r"관련기사|관련글|관련뉴스|많이본|인기글|인기기사|최신글|최신기사|추천기사|다른기사|카테고리|메뉴|공유)"
)
_BANNER_CHARS: Final = 1200
_MOST: Final = 0.6
_BAR_CHARS: Final = 200
_LINK_SHARE: Final = 0.5
_MENU_SHARE: Final = 0.7
_BLOCKS: Final = frozenset({"br", "p", "table", "div", "h1", "h2", "h3", "ul", "ol"})
_BLOCKS_OF_PAGE: Final = 3

_NO_ARTICLE_TAGS: Final = "p ul ol dl pre blockquote h1 h2 h3 h4 h5 h6 a b i em strong span font"
_NO_ARTICLES: Final = frozenset(_NO_ARTICLE_TAGS.split())

_GRAM_CHARS: Final = 8
_ARTICLE_CHARS: Final = 150
_ARTICLE_SHARE: Final = 0.5
_LEFT_CHARS: Final = 40
_MARKUP_LIMIT: Final = 1_000_000
_ELEMENTS_LIMIT: Final = 200_000
_ARTICLE_ELEMENTS_LIMIT: Final = 50_000
_DEPTH_LIMIT: Final = 100
_SPACE: Final = re.compile(r"\s+")


@dataclass(frozen=True, kw_only=True)
class MainContent:
    roots: list[etree._Element]
    """In the order of the page; none contains another."""
    left_out: set[etree._Element] = field(default_factory=set)
    """Elements within the roots that do not count."""


@dataclass(kw_only=True)
class _Part:
    """Counts for an element with all of its content; characters are counted without white space."""

    chars: int = 0
    link_chars: int = 0
    article_chars: int = 0
    """Characters outside links that trafilatura has, too."""
    links: int = 0
    blocks: int = 0
    """Line ends, paragraphs and tables."""
    headings: int = 0
    """Headings of level 1."""
    has_main: bool = False
    """Whether it is or contains the main part of a page."""
    has_control: bool = False
    has_cookies: bool = False
    has_choice: bool = False
    """Whether it mentions cookies, and accepting something."""
    has_arrow: bool = False
    """Whether an arrow separates links, as in breadcrumbs."""

    def add(self, inner: "_Part") -> None:
        self.chars += inner.chars
        self.link_chars += inner.link_chars
        self.article_chars += inner.article_chars
        self.links += inner.links
        self.blocks += inner.blocks
        self.headings += inner.headings
        self.has_main = self.has_main or inner.has_main
        self.has_control = self.has_control or inner.has_control
        self.has_cookies = self.has_cookies or inner.has_cookies
        self.has_choice = self.has_choice or inner.has_choice
        self.has_arrow = self.has_arrow or inner.has_arrow

    @property
    def is_banner(self) -> bool:
        """Whether it asks for consent to cookies, without a class or id that says so."""
        is_short = self.chars <= _BANNER_CHARS
        return is_short and self.has_control and self.has_cookies and self.has_choice

    @property
    def is_links(self) -> bool:
        return self.link_chars >= _LINK_SHARE * self.chars


def is_page(markup: str) -> bool:
    """Whether this is a whole page; nothing surrounds the content of a fragment."""
    return _IS_PAGE.search(markup[:_BEGINNING_CHARS]) is not None


def find_main_content(root: etree._Element, *, hidden: set[etree._Element]) -> MainContent:
    """The main content; all of the page if nothing distinguishes it. `hidden` elements do not
    count."""
    body = root.find("{*}body")
    body = root if body is None else body
    if sum(1 for _ in body.iter()) > _ELEMENTS_LIMIT:
        return MainContent(roots=[body])
    left_out, chars = _around(body, hidden)
    if chars < _ARTICLE_CHARS:
        return MainContent(roots=[body], left_out=left_out)  # trafilatura cannot return as much
    article_text = _article_text(root, hidden | left_out)
    parts = _parts(body, hidden | left_out, _grams(article_text))
    page = parts[body]
    plain_chars = page.chars - page.link_chars
    if len(article_text) < _ARTICLE_CHARS or page.article_chars < _ARTICLE_SHARE * plain_chars:
        return MainContent(roots=[body], left_out=left_out)
    article = _smallest(body, parts)
    left_out |= _edges(article, parts)
    heading = _heading_outside(root, article, parts)
    roots = [article] if heading is None else [heading, article]
    return MainContent(roots=roots, left_out=left_out)


def _local(node: etree._Element) -> str:
    return _local_name(node.tag) if isinstance(node.tag, str) else ""


@lru_cache(maxsize=1000)
def _local_name(tag: str) -> str:
    return tag.rpartition("}")[2].lower()


def _walk(
    root: etree._Element, left_out: set[etree._Element]
) -> Iterator[tuple[str, etree._Element]]:
    walker = etree.iterwalk(root, events=("start", "end"))
    skipped: etree._Element | None = None
    for event, node in walker:
        if event == "end":
            if skipped is not None and node is skipped:
                skipped = None
                yield "skipped", node
            else:
                yield event, node
        elif node in left_out or _local(node) in _SKIPPED:
            walker.skip_subtree()
            skipped = node
        else:
            yield event, node


def _parts(
    root: etree._Element, left_out: set[etree._Element], grams: set[int]
) -> dict[etree._Element, _Part]:
    """Element -> its counts, from the inside out."""
    parts: dict[etree._Element, _Part] = {}
    open_: list[_Part] = []
    links = 0
    for event, node in _walk(root, left_out):
        tag = _local(node)
        if event == "start":
            links += tag == "a"
            part = _Part(
                links=tag == "a",
                blocks=tag in _BLOCKS,
                headings=tag == "h1",
                has_main=_is_main(node),
                has_control=tag in _CONTROLS,
            )
            if tag == "input":
                _notice(part, node.get("value", ""))
            open_.append(part)
            _count(part, node.text, is_link=links > 0, grams=grams)
            continue
        if event == "end":
            links -= tag == "a"
            parts[node] = part = open_.pop()
            if open_:
                open_[-1].add(part)
        if open_:
            _count(open_[-1], node.tail, is_link=links > 0, grams=grams)
    return parts


def _count(part: _Part, text: str | None, *, is_link: bool, grams: set[int]) -> None:
    if not text or not (dense := _SPACE.sub("", text)):
        return
    part.chars += len(dense)
    if is_link:
        part.link_chars += len(dense)
    elif dense[0] in _ARROWS:
        part.has_arrow = True
    _notice(part, text[:_BANNER_CHARS])
    if is_link or not grams or len(dense) < _GRAM_CHARS:
        return
    starts = range(0, len(dense) - _GRAM_CHARS + 1, _GRAM_CHARS)
    hits = sum(hash(dense[at : at + _GRAM_CHARS]) in grams for at in starts)
    if 2 * hits > len(starts):
        part.article_chars += len(dense)


def _notice(part: _Part, text: str) -> None:
    part.has_cookies = part.has_cookies or _COOKIES.search(text) is not None
    part.has_choice = part.has_choice or _CHOICE.search(text) is not None


def _grams(text: str) -> set[int]:
    """Hashes of all sequences of a few characters, by which text is recognized."""
    return {hash(text[at : at + _GRAM_CHARS]) for at in range(len(text) - _GRAM_CHARS + 1)}


def _around(body: etree._Element, hidden: set[etree._Element]) -> tuple[set[etree._Element], int]:
    """The elements that the page itself declares as surroundings, never with all of its text; and
    the number of characters that are left."""
    parts = _parts(body, hidden, set())
    page = parts[body]
    layout = set(_layout_tables(parts, page))
    left_out: set[etree._Element] = set()
    chars, depth = page.chars, 0  # that are left; of main parts that are open
    within: etree._Element | None = None
    for event, node in _walk(body, hidden):
        if event == "start":
            depth += _is_main(node)
            part = parts[node]
            if within is not None or node is body or not 0 < part.chars < chars:
                continue
            is_menu = part.links > 1 and part.link_chars >= _MENU_SHARE * part.chars
            if (is_menu and _table_of(node) in layout) or _is_around(
                node, part, page, in_main=depth > 0
            ):
                within = node
                left_out.add(node)
                chars -= part.chars
        elif event == "end":
            depth -= _is_main(node)
            if node is within:
                within = None
    return left_out, chars


def _layout_tables(
    parts: dict[etree._Element, _Part], page: _Part
) -> Iterator[etree._Element | None]:
    """Tables for layout, of which one cell has most of the text of the page, in blocks: cells
    beside it that are full of links are menus."""
    for node, part in parts.items():
        if part.blocks < _BLOCKS_OF_PAGE or _local(node) not in ("td", "th"):
            continue
        if part.chars - part.link_chars > _MOST * (page.chars - page.link_chars):
            yield _table_of(node)


def _table_of(cell: etree._Element) -> etree._Element | None:
    if _local(cell) not in ("td", "th"):
        return None
    return next((node for node in cell.iterancestors() if _local(node) == "table"), None)


def _is_main(node: etree._Element) -> bool:
    return _local(node) in _MAIN_TAGS or node.get("role") in _MAIN_ROLES


def _is_around(node: etree._Element, part: _Part, page: _Part, *, in_main: bool) -> bool:
    tag = _local(node)
    is_most = part.chars - part.link_chars > _MOST * (page.chars - page.link_chars)
    if tag == "a" and part.chars == 1 and (node.text or "").strip() in _ANCHORS:
        return True
    if part.has_main or 0 < part.headings == page.headings:
        return False
    if _is_unseen(node) and not is_most:
        return True
    if tag in _NEVER_AROUND:
        return False
    if node.get("role", "").strip().lower() in _AROUND_ROLES or tag == "nav":
        return True
    if tag in _AROUND_TAGS or node.get("aria-label", "").strip().lower() in _AROUND_LABELS:
        return True
    if part.has_arrow and part.is_links and part.links > 1 and part.chars <= _CRUMBS_CHARS:
        return True  # breadcrumbs: the path from the home page to this one
    if tag in ("header", "footer") and not in_main:
        return not is_most
    if (tag == "aside" and (part.is_links or not in_main)) or (not in_main and part.is_banner):
        return True
    verdict = _by_names(node)
    if is_most and (verdict != "around" or part.chars > _BANNER_CHARS):
        return False
    if not in_main and _FIXED.search(node.get("style", "")):
        return True
    return verdict == "around" or (verdict == "perhaps" and _is_bar(part))


def _is_unseen(node: etree._Element) -> bool:
    names = node.get("class", "").lower().split()[:20]
    shows = any(name.endswith("not-sr-only") and not name.startswith("focus") for name in names)
    return not (shows or _UNSEEN.isdisjoint(names))


def _is_bar(part: _Part) -> bool:
    return part.has_control and (part.is_links or part.chars <= _BAR_CHARS)


def _by_names(node: etree._Element) -> str:
    verdict = ""
    for name in [*node.get("class", "").split()[:20], node.get("id", "")]:
        words = {word.lower() for word in _WORD.findall(name[:100])}
        if _AROUND_FORMS.fullmatch(name):
            return "around"
        if words & _NO_PART_WORDS:
            continue
        if words & _AROUND_WORDS:
            return "around"
        if words & _PERHAPS_WORDS:
            verdict = "perhaps"
    return verdict


def _article_text(root: etree._Element, left_out: set[etree._Element]) -> str:
    """The text by trafilatura without white space; empty if there is none, or if it is not used."""
    size = depth = deepest = 0
    for event, _ in etree.iterwalk(root, events=("start", "end")):
        depth += 1 if event == "start" else -1
        deepest = max(deepest, depth)
        size += event == "start"
        if size > _ARTICLE_ELEMENTS_LIMIT or deepest > _DEPTH_LIMIT:
            return ""
    page = copy.deepcopy(root)
    for node, copied in zip(list(root.iter()), list(page.iter()), strict=True):
        if node in left_out:
            _remove(copied)
        elif isinstance(copied.tag, str):
            copied.tag = _local(copied)
            for span in ("colspan", "rowspan"):  # each would become as many cells
                if span in copied.attrib:
                    del copied.attrib[span]
    markup = etree.tostring(page, encoding="unicode", method="html")
    if len(markup) > _MARKUP_LIMIT:
        return ""
    # Imported late: it takes a third of a second, and many pages do not need it.
    from trafilatura import bare_extraction

    logging.getLogger("trafilatura").setLevel(logging.CRITICAL)  # pages without an article
    try:
        article = bare_extraction(markup, fast=True, favor_recall=True, include_comments=False)
    except Exception:  # a page that a library cannot handle is not an article
        return ""
    if article is None or isinstance(article, dict) or article.body is None:
        return ""
    return _SPACE.sub("", "".join(map(str, article.body.itertext())))


def _remove(node: etree._Element) -> None:
    """Remove the element with its content, not the text behind it."""
    parent = node.getparent()
    if parent is None:
        return
    before = node.getprevious()
    tail = f" {node.tail or ''}"
    if before is not None:
        before.tail = (before.tail or "") + tail
    else:
        parent.text = (parent.text or "") + tail
    parent.remove(node)


def _smallest(body: etree._Element, parts: dict[etree._Element, _Part]) -> etree._Element:
    """The innermost element that contains the text of the article, except small rests."""
    article = body
    while True:
        inner = max(
            (child for child in article if child in parts),
            key=lambda child: parts[child].article_chars,
            default=None,
        )
        if inner is None or _local(inner) in _NO_ARTICLES:
            break
        left = parts[article].article_chars - parts[inner].article_chars
        if left > _LEFT_CHARS or _has_contents(article, inner, parts):
            break
        article = inner
    around = (node for node in article.iterancestors() if node in parts)
    main = next((node for node in (article, *around) if _is_main(node)), None)
    if main is not None:
        return main  # with its heading, which trafilatura may leave out
    while _local(article) in ("tbody", "thead", "tr") and article is not body:
        article = article.getparent()  # type: ignore[assignment]  # it is below the body
    table = _labelled_table(article, parts)
    return article if table is None else table


def _labelled_table(
    cell: etree._Element, parts: dict[etree._Element, _Part]
) -> etree._Element | None:
    """The table around an article in a cell, if another row has a label and its value: notices have
    their title, date and office there."""
    table = _table_of(cell)
    if table is None:
        return None
    for row in table.iter("{*}tr"):
        if row is cell.getparent() or next(row.iterancestors("{*}table"), None) is not table:
            continue
        texts = [parts[one] for one in row if one in parts]
        if sum(part.chars > part.link_chars for part in texts) > 1:
            return table
    return None


def _has_contents(
    outer: etree._Element, inner: etree._Element, parts: dict[etree._Element, _Part]
) -> bool:
    """Whether there is a table of contents beside the inner element."""
    others = (child for child in outer if child is not inner and child in parts)
    return any(_is_contents(node) for child in others for node in child.iter("*"))


def _edges(article: etree._Element, parts: dict[etree._Element, _Part]) -> set[etree._Element]:
    """Lists of links before and after the text of the article, unless a heading assigns them to it
    or they are a table of contents."""
    if _is_main(article) or any(map(_is_main, article.iterancestors())):
        return set()
    edges: set[etree._Element] = set()
    children = [child for child in article if child in parts]
    for ordered in (children, children[::-1]):
        for child in ordered:
            part = parts[child]
            if (
                part.has_main
                or part.article_chars
                or (part.chars and part.link_chars < _MENU_SHARE * part.chars)
            ):
                break
            if any(_is_own_list(node) for node in child.iter("*")):
                break
            if part.chars:
                edges.add(child)
    return edges


def _is_own_list(node: etree._Element) -> bool:
    if _local(node) in ("h1", "h2", "h3", "h4", "h5", "h6"):
        return _OTHER_PAGES.search(_dense(node)) is None
    return _is_contents(node)


def _is_contents(node: etree._Element) -> bool:
    return "toc" in node.get("class", "").lower().split()


def _heading_outside(
    root: etree._Element, article: etree._Element, parts: dict[etree._Element, _Part]
) -> etree._Element | None:
    """The heading before the article that the title of the page repeats, the longest if there are
    several; or else the last one before it that is not a link, if the article has none."""
    title = root.find(".//{*}title")
    words = "" if title is None else _dense(title)
    around = {article, *article.iterancestors()}
    best: etree._Element | None = None
    last: etree._Element | None = None
    for node in root.iter("{*}h1", "{*}h2", "{*}h3", article.tag):
        if node is article:
            break
        if node not in parts or node in around or not (own := _dense(node)):
            continue
        if own in words and (best is None or len(own) > len(_dense(best))):
            best = node
        if not parts[node].links and _local(node) in ("h1", "h2"):
            last = node
    if best is None and next(article.iter("{*}h1", "{*}h2"), None) is None:
        best = last
    return best


def _dense(node: etree._Element) -> str:
    return _SPACE.sub("", "".join(map(str, node.itertext()))).lower()

"""Markdown text -> its sections: a heading with what follows it up to the next heading.

Knows ATX headings (`# A`), setext headings (underlined by `===` or `---`), and that lines in
fenced code and in front matter are no headings. A heading with nothing under it belongs to the
section after it. Everything else of Markdown is left as it is: this is not a parser.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

_ATX: Final = re.compile(r" {0,3}(#{1,6})(?:[ \t]+(.*?))??(?:[ \t]+#+)?[ \t]*$")
_FENCE: Final = re.compile(r" {0,3}(`{3,}(?=[^`]*$)|~{3,})")
_UNDERLINE: Final = re.compile(r" {0,3}(=+|-+)[ \t]*$")
# What an underline does not turn into a heading: lists, quotes, tables, code, other rules.
_NO_PARAGRAPH: Final = re.compile(r"\s*$| {4}|\t| {0,3}(?:[-*+>|#]|\d+[.)]\s|={2,}|_{3,})")
_FRONT_MATTER: Final = re.compile(r"---[ \t]*\n(?:.*\n)*?(?:---|\.\.\.)[ \t]*(?:\n|$)")


@dataclass(frozen=True, kw_only=True)
class Section:
    """`text[start:end]`, under `heading`: the path of headings, outermost first."""

    start: int
    end: int
    heading: str | None


@dataclass(frozen=True, kw_only=True)
class _Heading:
    start: int
    end: int
    level: int
    title: str


def sections(text: str) -> Iterator[Section]:
    """All of the text, in order, without gaps."""
    path: dict[int, str] = {}
    start = body = 0
    for heading in _headings(text):
        if text[body : heading.start].strip():
            yield Section(start=start, end=heading.start, heading=_joined(path))
            start = heading.start
        path = {level: title for level, title in path.items() if level < heading.level}
        path[heading.level] = heading.title
        body = heading.end
    if start < len(text):
        yield Section(start=start, end=len(text), heading=_joined(path))


def _joined(path: dict[int, str]) -> str | None:
    return " > ".join(title for title in path.values() if title) or None


def _headings(text: str) -> Iterator[_Heading]:
    matter = _FRONT_MATTER.match(text)
    start = matter.end() if matter else 0
    fence = ""
    before = ""  # the line above, while it may be a paragraph of one line
    before_start = start
    for line in text[start:].splitlines(keepends=True):
        end = start + len(line)
        bare = line.rstrip("\r\n")
        opening = _FENCE.match(bare)
        if fence:
            if opening and opening[1].startswith(fence) and not bare[opening.end() :].strip():
                fence = ""
            before = ""
        elif opening:
            fence, before = opening[1], ""
        elif atx := _ATX.match(bare):
            yield _Heading(start=start, end=end, level=len(atx[1]), title=(atx[2] or "").strip())
            before = ""
        elif before and (underline := _UNDERLINE.match(bare)):
            level = 1 if underline[1][0] == "=" else 2
            yield _Heading(start=before_start, end=end, level=level, title=before.strip())
            before = ""
        else:
            before, before_start = ("" if _NO_PARAGRAPH.match(bare) else bare), start
        start = end

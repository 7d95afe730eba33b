"""A passage -> its sentences, for English and Korean prose and for the lines of documents.

Headings, list items, table rows and code lines are sentences of their own; a hard-wrapped
paragraph is joined first; the "column: value" lines of a record stay together. A sentence knows
whether the edge of the passage cut it. No model and no language data beyond the lists below.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, kw_only=True)
class Sentence:
    """`text` is a slice of the passage, with runs of whitespace collapsed to one space."""

    text: str
    is_heading: bool
    is_cut: bool  # it begins before the passage, or ends after it


_ABBREVIATED: Final = (
    "mr mrs ms dr prof st sr jr vs etc eg ie e.g i.e cf al fig figs eq no nos vol pp p ch sec "
    "inc ltd co corp dept est approx ca gen col lt sgt capt rev hon gov sen rep pres mt ft ave "
    "blvd rd u.s u.k u.n a.m p.m ph.d b.c a.d jan feb mar apr jun jul aug sep sept oct nov dec "
    "resp incl excl max min viz esp"
)
_ABBREVIATIONS: Final = frozenset(_ABBREVIATED.split())
# An end mark with what closes after it. Whitespace must follow, except after Korean and CJK ends.
_END: Final = re.compile(
    r"[.!?…]+[\"'”’)\]»*_]*(?=\s)"
    r"|(?<=[다요죠까네오])[.!?]+(?=[가-힣])"
    r"|[。！？]+[」』”’）)]*"
)
# After a closed quotation, a particle goes on with the sentence: "갑니다." 라고 말했다.
_GOES_ON: Final = re.compile(r"\s*(?:이?라고|이?라는|하고|고|며|라며|는|란)(?![가-힣]{3})")
_STARTS: Final = re.compile(r"\s+[\"'“‘(\[«*_`]*[A-Z0-9À-ÖØ-Þ가-힣぀-ヿ一-鿿]")
_LAST_WORD: Final = re.compile(r"([\w.]+)$")
_BLANK_LINES: Final = re.compile(r"\n[ \t]*\n\s*")
_LIST_ITEM: Final = re.compile(r"\s*(?:[-*+•·▪◦‣○●□■▶※]|\(?\d{1,3}[.)]|[가-하a-z][.)])\s+\S")
_HEADING_MARK: Final = re.compile(r"\s*#{1,6}\s+\S")
_TABLE_ROW: Final = re.compile(r".*\S\s*\|\s*\S|\s*\|")
_RECORD_LINE: Final = re.compile(r"[^\s:.?!|#-][^:.?!|]{0,39}: \S")
_ENDED: Final = re.compile(r"[.!?。！？…:;][\"'”’)\]」』»*_`]*$")
_WRAPPED_FROM_CHARS: Final = 40
_HEADING_UP_TO_CHARS: Final = 80


def split(passage: str) -> list[Sentence]:
    """All sentences in order; none is empty."""
    found: list[Sentence] = []
    blocks = [block for block in _BLANK_LINES.split(passage) if block.strip()]
    for number, block in enumerate(blocks):
        is_last_block = number == len(blocks) - 1
        units = list(_units(block))
        for at, unit in enumerate(units):
            parts = [" ".join(part.split()) for part in _prose(unit)]
            for index, text in enumerate(part for part in parts if part):
                first = not found
                last = is_last_block and at == len(units) - 1 and index == len(parts) - 1
                is_heading = bool(_HEADING_MARK.match(text)) or (
                    len(parts) == 1 and len(units) == 1 and not last and _is_title(text)
                )
                is_cut = not is_heading and (
                    (first and _begins_midway(text)) or (last and _ends_midway(text))
                )
                found.append(Sentence(text=text, is_heading=is_heading, is_cut=is_cut))
    return found


def _units(block: str) -> Iterator[str]:
    """The lines of a block, with wrapped lines and records put together."""
    lines = block.split("\n")
    records = sum(bool(_RECORD_LINE.match(line)) for line in lines)
    if len(lines) > 1 and records >= 0.7 * len(lines) and records >= 2:
        yield block
        return
    unit = ""
    for line in lines:
        if unit and _is_wrapped(unit.rsplit("\n", 1)[-1], line):
            unit += "\n" + line
            continue
        if unit:
            yield unit
        unit = line
    if unit:
        yield unit


def _is_wrapped(above: str, line: str) -> bool:
    """Whether `line` continues the paragraph that the line above belongs to."""
    if any(mark.match(line) for mark in (_LIST_ITEM, _HEADING_MARK, _TABLE_ROW)):
        return False
    if _HEADING_MARK.match(above) or _TABLE_ROW.match(above):
        return False
    return len(above.strip()) >= _WRAPPED_FROM_CHARS


def _prose(unit: str) -> Iterator[str]:
    start = 0
    for end in _END.finditer(unit):
        if _is_end(unit, start, end):
            yield unit[start : end.end()]
            start = end.end()
    yield unit[start:]


def _is_end(unit: str, start: int, end: re.Match[str]) -> bool:
    mark, after = end[0], end.end()
    if mark[0] in "。！？":
        return True
    if len(mark) > 1 and mark[-1] in "\"'”’" and _GOES_ON.match(unit, after):
        return False
    if after < len(unit) and not unit[after].isspace():
        return True  # a Korean ending straight before the next sentence
    if not _STARTS.match(unit, after):
        return False
    if mark[0] != ".":
        return True
    before = _LAST_WORD.search(unit, start, end.start())
    word = before[1] if before else ""
    if word.lower() in _ABBREVIATIONS:
        return False
    # Initials ("J. Smith") and the numbers of list items and sections ("1. Install").
    is_initial = len(word) == 1 and (word.isupper() or (before and before.start() == start))
    is_number = word.replace(".", "").isdigit() and unit[start : end.start()].strip() == word
    return not (is_initial or is_number)


def _is_title(text: str) -> bool:
    if _RECORD_LINE.match(text):
        return False
    return len(text) <= _HEADING_UP_TO_CHARS and not _ENDED.search(text) and "|" not in text


def _begins_midway(text: str) -> bool:
    return text[0].islower() or text[0] in ",.;:)]}%!?" or text[0] in "、。"


def _ends_midway(text: str) -> bool:
    return len(text) > _WRAPPED_FROM_CHARS and not _ENDED.search(text) and "|" not in text

"""Logs -> passages of some entries each, with when and where they begin.

An entry begins with a time (ISO 8601, Apache's, syslog's, a number of seconds), and what follows
without one, such as a stack trace, belongs to it. Entries stay as they are written, without the
colors of terminals. `date` is the time of the first entry of a passage as ISO 8601, if it is one,
`line` its line in the file, and `level` the gravest level of its entries. A log without times is
one passage.
"""

import re
from collections.abc import Iterator
from typing import Final

from shared.bounds import Metadata
from workers.ingest.formats.loader import (
    DocumentKey,
    DocumentParts,
    Loader,
    PassageKey,
    RawDocument,
    RawPassage,
)
from workers.ingest.formats.texts.text import text_of

_COLORS: Final = re.compile(r"\x1b\[[0-9;?]{0,20}[A-Za-z]")
_ISO: Final = re.compile(
    r"[^\w\n]{0,3}(?:[A-Z]{4,8}[ :\[]{1,3})?"
    r"([0-9]{4})[-/.]([0-9]{2})[-/.]([0-9]{2})[T ]([0-9]{2}:[0-9]{2}:[0-9]{2})(?:[.,]([0-9]{1,9}))?"
    r"(?:\s?(Z|[+-][0-9]{2}:?[0-9]{2})\b)?"
)
_OTHER_TIME: Final = re.compile(
    r"(?:\S{1,60} \S{1,60} \S{1,60} )?\[[0-9]{1,2}/[A-Z][a-z]{2}/[0-9]{4}:"  # Apache
    r"|(?:<[0-9]{1,3}>)?[A-Z][a-z]{2} [ 0-9][0-9] [0-9]{2}:[0-9]{2}:[0-9]{2}"  # syslog
    r"|[^\w\n]?[0-9]{2}:[0-9]{2}:[0-9]{2}"
    r"|[^\w\n]?[A-Z][a-z]{2} [A-Z][a-z]{2} [ 0-9][0-9] [0-9]{2}:[0-9]{2}:[0-9]{2}"  # Apache errors
    r"|\[ {0,6}[0-9]{1,9}\.[0-9]{6}\]"  # dmesg
    r"|[0-9]{10}(?:\.[0-9]{1,9}|[0-9]{3})?\s"
)
_LEVEL: Final = re.compile(
    r"\b(TRACE|DEBUG|INFO|NOTICE|WARN(?:ING)?|ERROR|SEVERE|CRITICAL|FATAL|PANIC|ALERT|EMERG)\b",
    re.I,
)
_LEVELS: Final = ("trace", "debug", "info", "notice", "warning", "error", "critical")
_SAME_LEVEL: Final = {
    "warn": "warning", "severe": "error", "fatal": "critical", "panic": "critical",
    "alert": "critical", "emerg": "critical",
}  # fmt: skip
_HEAD_CHARS: Final = 200
_PASSAGE_CHARS: Final = 800


def load(document: RawDocument) -> DocumentParts:
    text, metadata = text_of(document)
    return DocumentParts(passages=_passages(_COLORS.sub("", text)), metadata=metadata)


LOG = Loader(
    load=load,
    example=b"2024-03-01 09:00:00 INFO open\n2024-03-01 09:00:01 ERROR no key\n  at door\n",
    example_text="2024-03-01 09:00:00 INFO open\n2024-03-01 09:00:01 ERROR no key\n  at door\n",
)


def _passages(text: str) -> Iterator[RawPassage]:
    start = position = 0
    own: Metadata = {}
    for line, written in enumerate(_lines(text), start=1):
        if _begins(written):
            if own and position - start >= _PASSAGE_CHARS:
                yield text[start:position], own
                start, own = position, {}
            if not own:
                own = {PassageKey.LINE: line}
                if date := _date(written):
                    own[DocumentKey.DATE] = date
            _note_level(own, written)
        position += len(written)
    yield text[start:], own


def _lines(text: str) -> Iterator[str]:
    start = 0
    while start < len(text):
        end = text.find("\n", start) + 1 or len(text)
        yield text[start:end]
        start = end


def _begins(line: str) -> bool:
    head = line[:_HEAD_CHARS]
    return _ISO.match(head) is not None or _OTHER_TIME.match(head) is not None


def _date(line: str) -> str | None:
    match = _ISO.match(line[:_HEAD_CHARS])
    if match is None:
        return None
    year, month, day, time, fraction, zone = match.groups()
    if not (1 <= int(month) <= 12 and 1 <= int(day) <= 31):
        return None
    return f"{year}-{month}-{day}T{time}" + (f".{fraction}" if fraction else "") + (zone or "")


def _note_level(own: Metadata, line: str) -> None:
    match = _LEVEL.search(line[:_HEAD_CHARS])
    if match is None:
        return
    level = match[1].lower()
    level = _SAME_LEVEL.get(level, level)
    before = own.get("level")
    if before is None or _LEVELS.index(level) > _LEVELS.index(str(before)):
        own["level"] = level

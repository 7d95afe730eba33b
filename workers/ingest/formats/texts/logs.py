"""Logs -> passages of several entries each, with the time and the line where they begin.

An entry begins with a time (ISO 8601 and similar, those of Apache, syslog, Java, Android, glog and
the kernel, Korean ones, a number of seconds), or is one line of JSON. Lines without a time, such as
a stack trace, belong to the entry before. Entries stay as they are, without the colors of
terminals. `date` is the time of the first entry in ISO 8601 if it has a year, `line` its line in
the file, and `level` the most severe level of the entries. A log without times is one passage.
"""

import re
from collections.abc import Iterator
from datetime import datetime
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
_CLOCK: Final = (
    r"(?:(?P<half>오전|오후) ?)?(?P<hour>[0-9]{1,2}):(?P<minute>[0-9]{2})(?::(?P<second>[0-9]{2}))?"
    r"(?:[.,](?P<fraction>[0-9]{1,9}))?(?: (?P<half2>[AP]M)\b)?"
    r"(?P<zone> ?Z\b| ?[+-][0-9]{2}:?[0-9]{2}\b|[+-][0-9]{2}\b)?"
)
_MONTHS: Final = (
    "Jan",
    "Feb",
    "Mar",
    "Apr",
    "May",
    "Jun",
    "Jul",
    "Aug",
    "Sep",
    "Oct",
    "Nov",
    "Dec",
)
_MONTH: Final = rf"(?P<month>{'|'.join(_MONTHS)})"
# Before a time: brackets, a level, the priority of syslog (RFC 5424), a name.
_BEFORE: Final = (
    r"(?:<[0-9]{1,3}>[0-9]{0,2} ?)?[^\w\n]{0,3}"
    r"(?:(?:[A-Z]{1,8}|[a-z]{4,8}(?=\])|[가-힣]{1,4}(?=\]))[ :\]\[|,]{1,6})?"
)
_TIMES: Final = tuple(
    re.compile(_BEFORE + pattern)
    for pattern in (
        r"(?P<year>[0-9]{4})(?P<sign>[-/.])(?P<month>[0-9]{1,2})(?P=sign)(?P<day>[0-9]{1,2})"
        rf"(?:(?:T|[ _]{{1,2}}|,? ){_CLOCK}|(?=\s))",
        rf"(?P<year>(?:19|20)[0-9]{{2}})(?P<month>[0-9]{{2}})(?P<day>[0-9]{{2}})[T ]{_CLOCK}",
        r"(?P<year>[0-9]{4})[년.] ?(?P<month>[0-9]{1,2})[월.] ?(?P<day>[0-9]{1,2})[일.]"
        rf"(?: ?(?:\([월화수목금토일]\) ?)?{_CLOCK})?",
        # Apache, Tomcat
        rf"(?:\S{{1,60}} \S{{1,60}} \S{{1,60}} )?\[?(?P<day>[0-9]{{1,2}})[-/ ]{_MONTH}[-/ ]"
        rf"(?P<year>[0-9]{{4}})[: ]{_CLOCK}",
        # java.util.logging
        rf"{_MONTH} (?P<day>[0-9]{{1,2}}), (?P<year>[0-9]{{4}}),? {_CLOCK}",
        # errors of Apache
        rf"[A-Z][a-z]{{2}} {_MONTH} [ 0-9]?(?P<day>[0-9]{{1,2}}) {_CLOCK}(?: [A-Z]{{3,4}})? "
        r"(?P<year>[0-9]{4})",
    )
)
_OTHER_TIME: Final = re.compile(
    r"(?:<[0-9]{1,3}>)?(?:[A-Z][a-z]{2}|[0-9]{1,2}월) [ 0-9][0-9]일? [0-9]{2}:[0-9]{2}:[0-9]{2}"
    r"|[^\w\n]?[0-9]{2}:[0-9]{2}:[0-9]{2}"
    r"|[0-9]{2}/[0-9]{2}/[0-9]{2,4} [0-9]{2}:[0-9]{2}:[0-9]{2}"  # Spark
    r"|[0-9]{2}-[0-9]{2} [0-9]{2}:[0-9]{2}:[0-9]{2}"  # Android
    r"|[IWEF][0-9]{4} [0-9]{2}:[0-9]{2}:[0-9]{2}"  # glog
    r"|\[ {0,6}[0-9]{1,9}\.[0-9]{6}\]"  # dmesg
    r"|[0-9]{10}(?:\.[0-9]{1,9}|[0-9]{3})?\s"
    r"|(?:\w{1,20}=\S{0,40} ){0,4}(?:time|ts|timestamp)="
    r'|\{ {0,2}"'
)
_NAMED_TIME: Final = re.compile(
    r'(?:"(?:@?timestamp|time|ts|date|datetime|\$date|asctime)" {0,2}: {0,2}"'
    r'|\b(?:timestamp|time|ts)="?)(?=[0-9]{4}[-/])'
)
"""In JSON, and in pairs such as `level=info time=...`."""
_LEVEL: Final = re.compile(
    r"\b(TRACE|DEBUG|INFO|NOTICE|WARN(?:ING)?|ERROR|SEVERE|CRITICAL|FATAL|PANIC|ALERT|EMERG)\b"
    r"|[\[<(](디버그|정보|경고|오류|에러|심각|치명)[\])>]|^([IWEF])(?=[0-9]{4} )",
    re.I,
)
_LEVELS: Final = ("trace", "debug", "info", "notice", "warning", "error", "critical")
_SAME_LEVEL: Final = {
    "warn": "warning", "severe": "error", "fatal": "critical", "panic": "critical",
    "alert": "critical", "emerg": "critical", "디버그": "debug", "정보": "info", "경고": "warning",
    "오류": "error", "에러": "error", "심각": "critical", "치명": "critical", "i": "info",
    "w": "warning", "e": "error", "f": "critical",
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
    return any(time.match(head) for time in _TIMES) or _OTHER_TIME.match(head) is not None


def _date(line: str) -> str | None:
    head = line[: 5 * _HEAD_CHARS]
    match = next(filter(None, (time.match(head[:_HEAD_CHARS]) for time in _TIMES)), None)
    if match is None and (named := _NAMED_TIME.search(head)) is not None:
        match = _TIMES[0].match(head, named.end())
    return _iso(match) if match is not None else None


def _iso(match: re.Match[str]) -> str | None:
    """None if there is no such day or time."""
    parts = match.groupdict()
    month = parts["month"]
    month = f"{_MONTHS.index(month) + 1:02}" if month in _MONTHS else month.zfill(2)
    date = f"{parts['year']}-{month}-{parts['day'].zfill(2)}"
    hour = int(parts["hour"] or 0)
    half = parts["half"] or parts["half2"]
    if half is not None:
        hour = hour % 12 + (12 if half in ("오후", "PM") else 0)
    time = f"{hour:02}:{parts['minute'] or '00'}:{parts['second'] or '00'}"
    try:
        datetime.fromisoformat(f"{date}T{time}")
    except ValueError:
        return None
    if parts["hour"] is None:
        return date
    zone = (parts["zone"] or "").strip()
    if len(zone) == len("+09"):
        zone += ":00"
    elif len(zone) == len("+0900"):
        zone = f"{zone[:3]}:{zone[3:]}"
    return f"{date}T{time}" + (f".{parts['fraction']}" if parts["fraction"] else "") + zone


def _note_level(own: Metadata, line: str) -> None:
    match = _LEVEL.search(line[:_HEAD_CHARS])
    if match is None:
        return
    level = next(filter(None, match.groups())).lower()
    level = _SAME_LEVEL.get(level, level)
    before = own.get("level")
    if before is None or _LEVELS.index(level) > _LEVELS.index(str(before)):
        own["level"] = level

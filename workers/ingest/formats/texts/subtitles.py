"""Subtitles (SubRip, WebVTT, SubStation Alpha) -> passages of speech, with their times.

Consecutive cues become one passage, up to a pause, or to the end of a sentence after some length;
`start_s` and `end_s` are seconds from the beginning. Lines of a cue are joined, except those of
several speakers. A cue of SubRip may contain blank lines; it ends at the next cue. Style tags are
left out, and the name of a speaker (`<v Mina>`, the field `Name`) precedes the speech. Formats:
SubRip as players read it; WebVTT, https://www.w3.org/TR/webvtt1/; SubStation Alpha v4 and v4+
(`.ssa`, `.ass`) as libass reads it: lines are in the order of layers, so they are sorted by time,
and drawings and comments are left out.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from html import unescape
from typing import Final

from shared.bounds import Metadata
from shared.errors import DocumentError
from workers.ingest.formats.loader import (
    DocumentKey,
    DocumentParts,
    Loader,
    PassageKey,
    RawDocument,
    RawPassage,
    Utterance,
    heading_title,
)
from workers.ingest.formats.texts.text import text_of

_TIME: Final = r"(?:([0-9]{1,4}):)?([0-9]{1,2}):([0-9]{1,2})(?:[,.:]([0-9]{1,3}))?"
_TIMES: Final = re.compile(rf"[ \t]*{_TIME}[ \t]*-->[ \t]*{_TIME}(?=[ \t\n]|$)")
_VOICE: Final = re.compile(r"<v(?:\.[^\s>]{1,50})?[ \t]+([^>\n]{1,200})>")
_TAG: Final = re.compile(r"</?[A-Za-z0-9][^<>\n]{0,200}>|\{\\[^{}\n]{1,200}\}")
_BREAK: Final = re.compile(r"\\[Nnh]")
"""Line breaks of SubStation Alpha, which other formats have from copied cues."""
_LANGUAGE: Final = re.compile(r"WEBVTT[^\n]*\n(?:[^\n]+\n)*?Language:[ \t]*([\w-]{2,35})[ \t]*\n")
_SENTENCE_END: Final = re.compile(r"[.!?…。！？][\"')\]”’」』]{0,2}$")
_SPEAKER: Final = re.compile(r"[-–—]\s?\S")
_PASSAGE_CHARS: Final = 300
_PASSAGE_LIMIT: Final = 1000
_PAUSE_S: Final = 10.0


def load(document: RawDocument, *, ends_with_blank: bool = False) -> DocumentParts:
    text, metadata = text_of(document)
    cues = _once(_cues(text, ends_with_blank=ends_with_blank))
    if language := _LANGUAGE.match(text):
        metadata = metadata | {DocumentKey.LANGUAGE: language[1]}
    if not cues:
        raise DocumentError(
            f"{document.name}: has no cues such as `00:01:02,500 --> 00:01:04,000` with text "
            "below. If these are no subtitles, give it a name that ends with .txt."
        )
    return DocumentParts(passages=passages_of(cues), metadata=metadata)


def load_substation(document: RawDocument) -> DocumentParts:
    text, metadata = text_of(document)
    title = _title(text)
    if title:
        metadata[DocumentKey.TITLE] = title
    cues = _once(sorted(_events(text), key=lambda cue: cue.start_s))
    if not cues:
        raise DocumentError(
            f"{document.name}: has no lines such as `Dialogue: 0,0:00:01.00,0:00:02.50,…` with "
            "text. If these are no subtitles, give it a name that ends with .txt."
        )
    return DocumentParts(passages=passages_of(cues), metadata=metadata)


SUBRIP = Loader(
    load=load,
    example=b"1\n00:00:01,000 --> 00:00:02,500\nWe open\nat <i>nine</i>.\n",
    example_text="We open at nine.",
)
WEBVTT = Loader(
    load=partial(load, ends_with_blank=True),
    example=b"WEBVTT\n\n00:01.000 --> 00:02.500 align:start\n<v Mina>We open at nine.\n",
    example_text="Mina: We open at nine.",
)
SUBSTATION = Loader(
    load=load_substation,
    example=(
        b"[Script Info]\nScriptType: v4.00+\n\n[Events]\n"
        b"Format: Layer, Start, End, Style, Name, MarginL, MarginR, MarginV, Effect, Text\n"
        b"Dialogue: 0,0:00:01.00,0:00:02.50,Default,Mina,0,0,0,,We open\\Nat {\\i1}nine{\\i0}.\n"
    ),
    example_text="Mina: We open at nine.",
)


def _cues(text: str, *, ends_with_blank: bool) -> Iterator[Utterance]:
    lines = text.split("\n")
    at = 0
    while at < len(lines):
        times = _TIMES.match(lines[at])
        at += 1
        if times is None:
            continue
        said: list[str] = []
        while at < len(lines) and not _TIMES.match(lines[at]):
            if ends_with_blank and not lines[at].strip():
                break
            said.append(lines[at])
            at += 1
        if at < len(lines) and _TIMES.match(lines[at]) and said and said[-1].strip().isdigit():
            said.pop()  # the number of the next cue
        words = _joined(said)
        start_s, end_s = _seconds(times.groups()[:4]), _seconds(times.groups()[4:])
        if words:
            yield Utterance(start_s=start_s, end_s=max(start_s, end_s), text=words)


# SubStation Alpha

_SECTION: Final = re.compile(r"[ \t]*\[([^\[\]\n]{1,80})\][ \t]*$")
_TITLE: Final = re.compile(r"[ \t]*title[ \t]*:(.*)", re.IGNORECASE)
_NO_TITLES: Final = frozenset({"", "untitled", "<untitled>", "default aegisub file"})
_EVENT: Final = re.compile(r"[ \t]*(format|dialogue)[ \t]*:(.*)", re.IGNORECASE)
_EVENT_TIME: Final = re.compile(rf"[ \t]*{_TIME}[ \t]*$")
_EVENT_FIELDS: Final = (
    "layer", "start", "end", "style", "name", "marginl", "marginr", "marginv", "effect", "text",
)  # fmt: skip
"""The fields if there is no line `Format`; the last one may contain commas."""
_DRAWING: Final = re.compile(r"\\p([0-9])")
_BREAKS: Final = re.compile(r"\\[Nn]")


def _title(text: str) -> str:
    in_info = False
    for line in text.split("\n"):
        if section := _SECTION.match(line):
            in_info = section[1].strip().lower() == "script info"
        elif in_info and (title := _TITLE.match(line)):
            written = heading_title(title[1])
            return "" if written.lower() in _NO_TITLES else written
    return ""


def _events(text: str) -> Iterator[Utterance]:
    fields: Sequence[str] = _EVENT_FIELDS
    for line in text.split("\n"):
        event = _EVENT.match(line)
        if event is None:
            if _SECTION.match(line):
                fields = _EVENT_FIELDS
            continue
        if event[1].lower() == "format":
            fields = [field.strip().lower() for field in event[2].split(",")]
            continue
        values = dict(zip(fields, event[2].split(",", len(fields) - 1), strict=False))
        start, end = (_EVENT_TIME.match(values.get(name, "")) for name in ("start", "end"))
        said = _plain(values.get("text", ""))
        if start is None or not said:
            continue
        if speaker := " ".join(values.get("name", values.get("actor", "")).split()):
            said = f"{speaker}: {said}"
        start_s = _seconds(start.groups())
        end_s = start_s if end is None else _seconds(end.groups())
        yield Utterance(start_s=start_s, end_s=max(start_s, end_s), text=said)


def _plain(text: str) -> str:
    """The text without tags in braces, and without the drawings that `\\p1` begins."""
    parts: list[str] = []
    is_drawing, at = False, 0
    while at < len(text):
        begin = text.find("{", at)
        end = text.find("}", begin) if begin >= 0 else -1
        if not is_drawing:
            parts.append(text[at : begin if end >= 0 else len(text)])
        if end < 0:
            break
        for drawing in _DRAWING.finditer(text, begin, end):
            is_drawing = drawing[1] != "0"
        at = end + 1
    lines = _BREAKS.split("".join(parts).replace("\\h", " "))
    return _together(" ".join(line.split()) for line in lines)


def _seconds(parts: tuple[str | None, ...]) -> float:
    hours, minutes, seconds, fraction = parts
    whole = int(hours or 0) * 3600 + int(minutes or 0) * 60 + int(seconds or 0)
    return round(whole + (int(fraction.ljust(3, "0")) / 1000 if fraction else 0), 3)


def _joined(lines: list[str]) -> str:
    plain = (unescape(_TAG.sub("", _VOICE.sub(r"\1: ", _BREAK.sub(" ", line)))) for line in lines)
    return _together(" ".join(line.split()) for line in plain)


def _together(texts: Iterable[str]) -> str:
    joined: list[str] = []
    for text in texts:
        if text:
            gap = "\n" if _SPEAKER.match(text) else " "
            joined += (gap, text) if joined else (text,)
    return "".join(joined)


def _are_apart(one: Utterance, other: Utterance) -> bool:
    return abs(other.start_s - one.end_s) > _PAUSE_S


def _once(cues: Iterable[Utterance]) -> list[Utterance]:
    """Merge cues that repeat a line, as scrolling subtitles do."""
    once: list[Utterance] = []
    for cue in cues:
        if once and once[-1].text == cue.text and not _are_apart(once[-1], cue):
            once[-1] = once[-1]._replace(end_s=max(once[-1].end_s, cue.end_s))
        else:
            once.append(cue)
    return once


def passages_of(cues: Sequence[Utterance]) -> Iterator[RawPassage]:
    """Consecutive cues as one passage, with their times."""
    together: list[Utterance] = []
    chars = 0
    for cue in cues:
        if together:
            last = together[-1]
            is_full = chars >= _PASSAGE_CHARS and _SENTENCE_END.search(last.text) is not None
            is_long = chars + len(cue.text) > _PASSAGE_LIMIT
            if is_full or is_long or _are_apart(last, cue):
                yield _passage(together)
                together, chars = [], 0
        together.append(cue)
        chars += len(cue.text) + 1
    if together:
        yield _passage(together)


def _passage(cues: list[Utterance]) -> RawPassage:
    own: Metadata = {
        PassageKey.START_S: cues[0].start_s,
        PassageKey.END_S: max(cue.end_s for cue in cues),
    }
    return _together(cue.text for cue in cues), own

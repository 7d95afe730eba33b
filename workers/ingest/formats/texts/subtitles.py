"""Subtitles (SubRip and WebVTT) -> passages of what is said, with when.

Cues that follow each other become one passage, up to a pause or the end of a sentence after some
length; `start_s` and `end_s` are seconds from the beginning. Lines of a cue are joined, but for
those of several speakers; a cue of SubRip goes on behind a blank line, up to the next one. Tags of
style are left out, a voice (`<v Mina>`) is written before what it says. Formats: SubRip as players
read it; WebVTT, https://www.w3.org/TR/webvtt1/.
"""

import re
from collections.abc import Iterable, Iterator
from functools import partial
from html import unescape
from typing import Final, NamedTuple

from shared.bounds import Metadata
from shared.errors import DocumentError
from workers.ingest.formats.loader import (
    DocumentKey,
    DocumentParts,
    Loader,
    PassageKey,
    RawDocument,
    RawPassage,
)
from workers.ingest.formats.texts.text import text_of

_TIME: Final = r"(?:([0-9]{1,4}):)?([0-9]{1,2}):([0-9]{1,2})(?:[,.:]([0-9]{1,3}))?"
_TIMES: Final = re.compile(rf"[ \t]*{_TIME}[ \t]*-->[ \t]*{_TIME}(?=[ \t\n]|$)")
_VOICE: Final = re.compile(r"<v(?:\.[^\s>]{1,50})?[ \t]+([^>\n]{1,200})>")
_TAG: Final = re.compile(r"</?[A-Za-z0-9][^<>\n]{0,200}>|\{\\[^{}\n]{1,200}\}")
_BREAK: Final = re.compile(r"\\[Nnh]")
"""Of SubStation Alpha, whose cues programs copy."""
_LANGUAGE: Final = re.compile(r"WEBVTT[^\n]*\n(?:[^\n]+\n)*?Language:[ \t]*([\w-]{2,35})[ \t]*\n")
_SENTENCE_END: Final = re.compile(r"[.!?…。！？][\"')\]”’」』]{0,2}$")
_SPEAKER: Final = re.compile(r"[-–—]\s?\S")
_PASSAGE_CHARS: Final = 300
_PASSAGE_LIMIT: Final = 1000
_PAUSE_S: Final = 10.0


class _Cue(NamedTuple):
    start_s: float
    end_s: float
    text: str


def load(document: RawDocument, *, ends_with_blank: bool = False) -> DocumentParts:
    text, metadata = text_of(document)
    cues = list(_cues(text, ends_with_blank=ends_with_blank))
    if language := _LANGUAGE.match(text):
        metadata = metadata | {DocumentKey.LANGUAGE: language[1]}
    if not cues:
        raise DocumentError(
            f"{document.name}: has no cues such as `00:01:02,500 --> 00:01:04,000` with text "
            "below. If these are no subtitles, give it a name that ends with .txt."
        )
    return DocumentParts(passages=_passages(cues), metadata=metadata)


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


def _cues(text: str, *, ends_with_blank: bool) -> Iterator[_Cue]:
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
            yield _Cue(start_s=start_s, end_s=max(start_s, end_s), text=words)


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


def _passages(cues: list[_Cue]) -> Iterator[RawPassage]:
    together: list[_Cue] = []
    chars = 0
    for cue in cues:
        if together:
            last = together[-1]
            is_full = chars >= _PASSAGE_CHARS and _SENTENCE_END.search(last.text) is not None
            is_long = chars + len(cue.text) > _PASSAGE_LIMIT
            is_apart = not 0 <= cue.start_s - last.end_s + _PAUSE_S <= 2 * _PAUSE_S
            if is_full or is_long or is_apart:
                yield _passage(together)
                together, chars = [], 0
        # Subtitles that scroll show a line twice.
        if not together or together[-1].text != cue.text:
            together.append(cue)
            chars += len(cue.text) + 1
        else:
            together[-1] = together[-1]._replace(end_s=cue.end_s)
    if together:
        yield _passage(together)


def _passage(cues: list[_Cue]) -> RawPassage:
    own: Metadata = {
        PassageKey.START_S: cues[0].start_s,
        PassageKey.END_S: max(cue.end_s for cue in cues),
    }
    return _together(cue.text for cue in cues), own

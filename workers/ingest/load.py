"""A document's bytes -> its text and the passages in it that are split on their own.

`load` finds the type (by extension, then content type, else plain text), decodes the bytes and
makes text of them. Whatever it returns can be stored: it is in Unicode's normal form C (NFC), line
ends are `\\n`, and NUL characters and lone surrogates, which Postgres refuses, have become U+FFFD.
Whatever it cannot use is a `DocumentError` that names the document and the remedy. No network, no
database, no splitting.

Offsets count code points of that text. Plain text and Markdown are otherwise unchanged; HTML is
rendered (`html.py`); every row of a CSV (`tables.py`) and every element of a JSON array or line of
JSON Lines (`records.py`) is a passage, with a blank line between two.
"""

import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from email.message import Message
from enum import StrEnum
from pathlib import PurePosixPath
from typing import Final

from shared.bounds import Metadata
from shared.errors import DocumentError
from shared.kinds.ingest import CsvOptions
from shared.normal import nfc
from workers.ingest.formats import decode, html, records, tables

PASSAGE_GAP: Final = "\n\n"


class MediaType(StrEnum):
    TEXT = "text/plain"
    MARKDOWN = "text/markdown"
    HTML = "text/html"
    CSV = "text/csv"
    TSV = "text/tab-separated-values"
    JSON = "application/json"
    JSONL = "application/jsonl"


@dataclass(frozen=True, kw_only=True)
class Passage:
    """A part of the text that is split on its own: a row, a JSON element, or the whole text."""

    text: str
    start: int
    metadata: Metadata


@dataclass(frozen=True, kw_only=True)
class LoadedText:
    """`text[p.start : p.start + len(p.text)] == p.text` for each passage `p`."""

    text: str
    passages: tuple[Passage, ...]
    metadata: Metadata


_EXTENSIONS: Final = {
    ".txt": MediaType.TEXT,
    ".text": MediaType.TEXT,
    ".md": MediaType.MARKDOWN,
    ".markdown": MediaType.MARKDOWN,
    ".html": MediaType.HTML,
    ".htm": MediaType.HTML,
    ".xhtml": MediaType.HTML,
    ".xht": MediaType.HTML,
    ".csv": MediaType.CSV,
    ".tsv": MediaType.TSV,
    ".json": MediaType.JSON,
    ".jsonl": MediaType.JSONL,
    ".ndjson": MediaType.JSONL,
}
_CONTENT_TYPES: Final = {
    "text/plain": MediaType.TEXT,
    "text/markdown": MediaType.MARKDOWN,
    "text/x-markdown": MediaType.MARKDOWN,
    "text/html": MediaType.HTML,
    "application/xhtml+xml": MediaType.HTML,
    "text/csv": MediaType.CSV,
    "application/csv": MediaType.CSV,
    "text/tab-separated-values": MediaType.TSV,
    "application/json": MediaType.JSON,
    "application/jsonl": MediaType.JSONL,
    "application/x-jsonlines": MediaType.JSONL,
    "application/x-ndjson": MediaType.JSONL,
    "application/ndjson": MediaType.JSONL,
}
# Refused by name, before a byte is looked at. Any other unknown extension (.log, .rst, .py) may
# well be text, and is read as text if its bytes are.
_UNSUPPORTED_EXTENSIONS: Final = (
    ".7z .aac .avi .bin .bmp .bz2 .dll .doc .docm .docx .eml .epub .exe .flac .gif .gz .hwp .hwpx "
    ".ico .jar .jpeg .jpg .key .m4a .mkv .mov .mp3 .mp4 .msg .numbers .odp .ods .odt .ogg .otf "
    ".pages .parquet .pdf .png .ppt .pptx .rar .rtf .so .sqlite .tar .tgz .tif .tiff .ttf .wav "
    ".webm .webp .whl .xls .xlsb .xlsm .xlsx .xz .zip .zst"
)
_UNSUPPORTED: Final = frozenset(_UNSUPPORTED_EXTENSIONS.split())
_UNSUPPORTED_TYPES: Final = ("image/", "audio/", "video/", "font/", "application/pdf")
_SUPPORTED_LIST: Final = ", ".join(_EXTENSIONS)
_UNSTORABLE: Final = re.compile("[\x00\ud800-\udfff]")
_SURROGATE_PAIR: Final = re.compile("[\ud800-\udbff][\udc00-\udfff]")


def load(
    data: bytes | str,
    *,
    name: str,
    content_type: str | None,
    csv: CsvOptions,
    max_chars: int,
    max_passages: int = sys.maxsize,
) -> LoadedText:
    """Read one document. Raises `DocumentError`.

    `data` may be a string (text sent inline): nothing is decoded then, and an extension in `name`
    that is unknown or unsupported means plain text, since the name is only a label. Each passage
    becomes at least one chunk, so `max_passages` is how many of these the document may have.
    """
    media, charset = _content_type(content_type)
    kind = _kind(name, media, inline=isinstance(data, str))
    if not data.strip():
        raise DocumentError(f"{name}: is empty. There is nothing to ingest; leave it out.")
    metadata: Metadata = {"media_type": kind.value}
    if isinstance(data, bytes):
        decoded = _decode(data, name=name, kind=kind, charset=charset, csv=csv)
        text = decoded.text
        metadata["encoding"] = decoded.encoding
    else:
        text = data
    text = _storable(text.removeprefix("\ufeff"))
    parts: Iterable[tuple[str, Metadata]]
    if kind is MediaType.HTML:
        page = html.render(text, name=name)
        if page.title:
            metadata["title"] = page.title
        parts = [(page.text, {})]
    elif kind in (MediaType.CSV, MediaType.TSV):
        tabs = "\t" if kind is MediaType.TSV else None
        parts = tables.rows(text, name=name, options=csv, delimiter=tabs, max_rows=max_passages)
    elif kind is MediaType.JSON:
        parts = records.elements(text, name=name, max_chars=max_chars)
    elif kind is MediaType.JSONL:
        parts = records.lines(text, name=name, max_chars=max_chars)
    else:
        parts = [(text, {})]
    return _assemble(
        parts, name=name, metadata=metadata, max_chars=max_chars, max_passages=max_passages
    )


def form(name: str, content_type: str | None, *, inline: bool) -> tuple[str, ...]:
    """What name and content type decide about the text that the bytes become."""
    media, charset = _content_type(content_type)
    try:
        kind = _kind(name, media, inline=inline).value
    except DocumentError:
        kind = media or ""  # loading will say what is wrong
    return kind, ("" if inline or charset in (None, "utf-8", "utf8") else str(charset))


def _assemble(
    parts: Iterable[tuple[str, Metadata]],
    *,
    name: str,
    metadata: Metadata,
    max_chars: int,
    max_passages: int,
) -> LoadedText:
    passages: list[Passage] = []
    end = 0
    for written, own in parts:
        text = _storable(written)
        if not text.strip():
            continue
        start = end + len(PASSAGE_GAP) if passages else 0
        end = start + len(text)
        if end > max_chars:
            # Checked as the parts come, so that an endless document is not built first.
            raise records.too_long(name, max_chars)
        if len(passages) == max_passages:
            raise DocumentError(
                f"{name}: has more than {max_passages:,} rows or records, each a chunk. Divide it, "
                "or raise SLUICE_MAX_DOCUMENT_CHUNKS."
            )
        passages.append(Passage(text=text, start=start, metadata=_storable_metadata(own)))
    if not passages:
        raise DocumentError(f"{name}: has no text in it. There is nothing to ingest; leave it out.")
    return LoadedText(
        text=PASSAGE_GAP.join(passage.text for passage in passages),
        passages=tuple(passages),
        metadata=_storable_metadata(metadata),
    )


def _decode(
    data: bytes, *, name: str, kind: MediaType, charset: str | None, csv: CsvOptions
) -> decode.Decoded:
    encoding, hint = None, "Save it as UTF-8."
    declared = [charset]
    if kind in (MediaType.CSV, MediaType.TSV):
        encoding, hint = csv.encoding, "Save it as UTF-8, or set csv.encoding."
    elif kind is MediaType.HTML:
        declared.append(html.declared_charset(data))
        hint = "Save it as UTF-8, or declare its charset."
    return decode.decode(data, name=name, encoding=encoding, declared=declared, hint=hint)


def _kind(name: str, media: str | None, *, inline: bool) -> MediaType:
    suffix = PurePosixPath(name.replace("\\", "/")).suffix.lower()
    if suffix in _EXTENSIONS:
        return _EXTENSIONS[suffix]
    if not inline:
        if suffix in _UNSUPPORTED:
            raise DocumentError(
                f"{name}: {suffix} files are not supported. Convert it to one of {_SUPPORTED_LIST}."
            )
        if media and media.startswith(_UNSUPPORTED_TYPES):
            raise DocumentError(
                f"{name}: the type {media} is not supported. Convert it to one of "
                f"{_SUPPORTED_LIST}."
            )
    return _CONTENT_TYPES.get(media or "", MediaType.TEXT)


def _content_type(value: str | None) -> tuple[str | None, str | None]:
    """`text/html; charset=euc-kr` -> the type and the charset."""
    if not value:
        return None, None
    header = Message()
    header["content-type"] = value.replace("\r", " ").replace("\n", " ")
    return header.get_content_type(), header.get_content_charset()


def _storable(text: str) -> str:
    text = nfc(text.replace("\r\n", "\n").replace("\r", "\n"))
    if _UNSTORABLE.search(text) is None:
        return text
    # Two JSON escapes that make a pair may sit side by side; together they are one character.
    text = _SURROGATE_PAIR.sub(
        lambda pair: pair[0].encode("utf-16", "surrogatepass").decode("utf-16"), text
    )
    return _UNSTORABLE.sub("\ufffd", text)


def _storable_metadata(metadata: Metadata) -> Metadata:
    """Keys that become one are numbered, as columns of one name are."""
    storable: Metadata = {}
    for written, value in metadata.items():
        key = base = _storable(written)
        copy = 2
        while key in storable or (key != base and key in metadata):
            key, copy = f"{base} ({copy})", copy + 1
        storable[key] = _storable(value) if isinstance(value, str) else value
    return storable

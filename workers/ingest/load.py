"""A document's bytes -> its text and the passages in it that are split on their own.

`load` finds the format (`shared/formats.py`: by suffix, then media type, then first bytes, else
plain text), and has its loader make text of the bytes. Whatever it returns can be stored: it is in
Unicode's normal form C (NFC), line ends are `\\n`, and NUL characters and lone surrogates, which
Postgres refuses, have become U+FFFD. Whatever it cannot use is a `DocumentError` that names the
document and the remedy. No network, no database, no splitting.

Offsets count code points of that text. Plain text and Markdown are otherwise unchanged; HTML is
rendered (`html.py`); every row of a CSV (`tables.py`) and every element of a JSON array or line of
JSON Lines (`records.py`) is a passage, with a blank line between two.
"""

import sys
from dataclasses import dataclass
from email.message import Message
from functools import cache
from pathlib import PurePosixPath
from pkgutil import resolve_name
from typing import Final

from shared.bounds import Metadata
from shared.errors import DocumentError
from shared.formats import FORMATS, PLAIN_TEXT, Format
from shared.kinds.ingest import CsvOptions
from workers.ingest.formats.loader import Document, Loader, Parts, too_long
from workers.ingest.formats.text import storable

LOADER_VERSION = 3
"""Raise it when loading or splitting gives something else than before, so that it is redone: a
source that is ingested again is then replaced, though its bytes are the same."""
PASSAGE_GAP: Final = "\n\n"


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
    format_ = _format(name, media, data)
    if not data.strip():
        raise DocumentError(f"{name}: is empty. There is nothing to ingest; leave it out.")
    document = Document(
        name=name,
        data=data,
        charset=charset,
        csv=csv,
        max_chars=max_chars,
        max_passages=max_passages,
    )
    parts = loader_of(format_).load(document)
    return _assemble(document, parts, media_type=format_.media_types[0])


@cache
def loader_of(format_: Format) -> Loader:
    """Imported late: a library that reads one format is needed by nobody who reads others."""
    loader: Loader = resolve_name(format_.loader)
    return loader


def form(name: str, content_type: str | None, data: bytes | str) -> tuple[str, ...]:
    """What decides about the text that the bytes become, beside them."""
    media, charset = _content_type(content_type)
    try:
        media_type = _format(name, media, data).media_types[0]
    except DocumentError:
        media_type = media or ""  # loading will say what is wrong
    is_plain = isinstance(data, str) or charset in (None, "utf-8", "utf8")
    return media_type, ("" if is_plain else str(charset))


def _assemble(document: Document, parts: Parts, *, media_type: str) -> LoadedText:
    name, max_passages = document.name, document.max_passages
    passages: list[Passage] = []
    end = 0
    for written, own in parts.passages:
        text = storable(written)
        if not text.strip():
            continue
        start = end + len(PASSAGE_GAP) if passages else 0
        end = start + len(text)
        if end > document.max_chars:
            # Checked as the parts come, so that an endless document is not built first.
            raise too_long(name, document.max_chars)
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
        metadata=_storable_metadata({"media_type": media_type, **parts.metadata}),
    )


def _format(name: str, media: str | None, data: bytes | str) -> Format:
    """Raises `DocumentError` for files whose name or type says that they cannot be read."""
    suffix = PurePosixPath(name.replace("\\", "/")).suffix.lower()
    for format_ in FORMATS.values():
        if suffix in format_.suffixes:
            return format_
    is_inline = isinstance(data, str)
    supported = ", ".join(suffix for format_ in FORMATS.values() for suffix in format_.suffixes)
    if not is_inline and suffix in _UNSUPPORTED:
        raise DocumentError(
            f"{name}: {suffix} files are not supported. Convert it to one of {supported}."
        )
    for format_ in FORMATS.values():
        if media in format_.media_types:
            return format_
    if not is_inline and media and media.startswith(_UNSUPPORTED_TYPES):
        raise DocumentError(
            f"{name}: the type {media} is not supported. Convert it to one of {supported}."
        )
    for format_ in FORMATS.values():
        if isinstance(data, bytes) and format_.magic and data.startswith(format_.magic):
            return format_
    return PLAIN_TEXT


def _content_type(value: str | None) -> tuple[str | None, str | None]:
    """`text/html; charset=euc-kr` -> the type and the charset."""
    if not value:
        return None, None
    header = Message()
    header["content-type"] = value.replace("\r", " ").replace("\n", " ")
    return header.get_content_type(), header.get_content_charset()


def _storable_metadata(metadata: Metadata) -> Metadata:
    """Keys that become one are numbered, as columns of one name are."""
    renamed: Metadata = {}
    for written, value in metadata.items():
        key = base = storable(written)
        copy = 2
        while key in renamed or (key != base and key in metadata):
            key, copy = f"{base} ({copy})", copy + 1
        renamed[key] = storable(value) if isinstance(value, str) else value
    return renamed

"""Chunks of other programs -> the content of a document.

The texts of chunks and what their metadata says stay as they are, in Unicode's normal form C. Only
what Sluice keeps in a place of its own is taken out of the metadata: the name of the document, and
where a chunk starts.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

from pydantic import TypeAdapter, ValidationError

from shared.bounds import (
    INT32_MAX,
    METADATA_LIMIT_BYTES,
    METADATA_LIMIT_KEYS,
    Metadata,
    SourceName,
    is_storable_text,
    nfc,
    nfc_value,
    storable_json,
    storable_text,
)
from shared.config import Settings
from shared.documents.ingest_items import Adoption
from shared.documents.versions import Content
from shared.errors import DocumentError
from workers.ingest.adoption.origin import OriginChunk
from workers.ingest.sources import IngestRequest, metadata_chars

SOURCE_KEYS: Final = ("source", "file_path", "file_name", "filename", "path", "url")
"""Where programs note from which document a chunk is, the usual one first."""
ORDER_KEYS: Final = ("page", "page_number", "seq_num", "row", "start_index")
"""What chunks of a document are ordered by, each of which counts if all chunks have a number."""
START: Final = "start_index"
GAP_CHARS: Final = 2
"""Between chunks of which nobody says where they start: they are paragraphs."""

_METADATA: Final = TypeAdapter[dict[str, Any]](Metadata)
_NAME: Final = TypeAdapter[str](SourceName)


@dataclass(frozen=True, kw_only=True)
class AdoptedContent:
    """A document with the ids that its chunks have where they come from, in order."""

    content: Content
    ids: Sequence[str]
    counts: Counter[Adoption]


@dataclass(frozen=True, kw_only=True)
class Place:
    """From which document a chunk is: its name, and the key and the value that say so."""

    name: str
    key: str
    value: str


def place_of(metadata: Mapping[str, Any]) -> Place | None:
    """None if the metadata names no document."""
    for key in SOURCE_KEYS:
        value = metadata.get(key)
        if isinstance(value, str) and (name := _name_of(value)):
            return Place(name=name, key=key, value=value)
    return None


def _name_of(value: Any) -> str:
    """The name of the document that a value stands for; empty if it stands for none. What
    PostgreSQL cannot hold could not be asked for again."""
    return nfc(value).strip() if isinstance(value, str) and is_storable_text(value) else ""


def name_problem(name: str) -> str | None:
    """Why a document cannot be called so; None if it can."""
    try:
        _NAME.validate_python(name)
    except ValidationError as error:
        return f"{name[:80]}: cannot be the name of a document: {error.errors()[0]['msg']}."
    return None


def content_of(
    name: str, chunks: Iterable[OriginChunk], request: IngestRequest, settings: Settings
) -> AdoptedContent:
    """The content of a document with these chunks. Raises DocumentError for one that has no text,
    or too much."""
    counts: Counter[Adoption] = Counter()
    kept: list[tuple[str, str, Metadata]] = []
    known: set[bytes] = set()
    chars = metadata_size = 0
    for chunk in chunks:
        text = text_of(chunk.text)
        if not text.strip():
            counts[Adoption.NO_TEXT] += 1
            continue
        metadata, left_out = clean(chunk.metadata, name)
        counts[Adoption.BAD_METADATA] += left_out
        metadata |= request.metadata
        digest = hashlib.sha256(_json([text, metadata])).digest()
        if digest in known:
            counts[Adoption.DUPLICATES] += 1
            continue
        known.add(digest)
        kept.append((chunk.id, text, metadata))
        chars += len(text)
        metadata_size += metadata_chars(metadata)
        _check_size(name, len(kept), chars, metadata_size, settings)
    if not kept:
        raise DocumentError(f"{name}: has no text to adopt, only vectors.")
    kept = _ordered(kept)
    placed = _placed(kept)
    hashed = request.digest(("adopted",))
    for chunk_ in placed:
        hashed.update(_json(chunk_))
    data = "\n\n".join(text for _, text, _ in placed).encode()
    content = Content(
        source=name,
        sha256=hashlib.sha256(data).hexdigest(),
        content_hash=hashed.hexdigest(),
        size_bytes=len(data),
        metadata=_common([metadata for _, _, metadata in placed]),
        chunks=placed,
        attributes=request.metadata,
    )
    return AdoptedContent(content=content, ids=[id_ for id_, _, _ in kept], counts=counts)


def text_of(text: str | None) -> str:
    """The text of a chunk as it is stored."""
    return nfc(storable_text(text or ""))


def clean(metadata: Mapping[str, Any], name: str) -> tuple[Metadata, int]:
    """The metadata that can be kept, without the name of the document; and how many values cannot.
    What is nested is kept as JSON."""
    cleaned: Metadata = {}
    left_out = 0
    for written, value in metadata.items():
        if value is None or (written == "source" and _name_of(value) == name):
            continue
        try:
            key = nfc(storable_text(str(written)))
            one = _METADATA.validate_python({key: _plain(value)})
        except (ValidationError, ValueError, TypeError, RecursionError):
            left_out += 1
            continue
        left_out += key in cleaned  # written in two normal forms
        cleaned |= one
    sizes = {key: len(_json({key: value})) for key, value in cleaned.items()}
    size = sum(sizes.values())  # that of the JSON of all of them
    largest_last = sorted(sizes, key=sizes.__getitem__)
    while size > METADATA_LIMIT_BYTES or len(cleaned) > METADATA_LIMIT_KEYS:
        key = largest_last.pop()
        size -= sizes[key]
        del cleaned[key]
        left_out += 1
    return cleaned, left_out


def _plain(value: Any) -> Any:
    """A value as metadata have it; what is nested or mixed as JSON. Raises ValueError and
    TypeError."""
    if isinstance(value, dict | list | tuple):
        _check_parts(value)
    value = nfc_value(storable_json(value))
    is_flat = not isinstance(value, dict | list | tuple)
    if is_flat:
        return value
    if isinstance(value, list):
        try:
            _METADATA.validate_python({"list": value})
        except ValidationError:
            pass
        else:
            return value
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def _check_parts(value: Any) -> None:
    """Raises ValueError for what has more parts than metadata have bytes: lists in lists of a
    pickle may be the same list many times, so that a few of them have billions of parts."""
    left, count = [value], 0
    while left:
        at = left.pop()
        if isinstance(at, dict | list | tuple):
            count += len(at)
            if count > METADATA_LIMIT_BYTES:
                raise ValueError("has too many parts")
            left += at.values() if isinstance(at, dict) else at


def _check_size(name: str, count: int, chars: int, metadata_size: int, settings: Settings) -> None:
    for is_, limit, of, setting in (
        (count, settings.max_document_chunks, "chunks", "SLUICE_MAX_DOCUMENT_CHUNKS"),
        (chars, settings.max_document_chars, "characters", "SLUICE_MAX_DOCUMENT_CHARS"),
        (
            metadata_size,
            settings.max_document_metadata_chars,
            "characters of metadata",
            "SLUICE_MAX_DOCUMENT_METADATA_CHARS",
        ),
    ):
        if is_ > limit:
            raise DocumentError(f"{name}: has more than {limit:,} {of}. Raise {setting}.")


def _ordered(chunks: list[tuple[str, str, Metadata]]) -> list[tuple[str, str, Metadata]]:
    """In reading order, as far as the metadata say; else as they were written."""
    keys = [key for key in ORDER_KEYS if all(_is_number(meta.get(key)) for _, _, meta in chunks)]
    return sorted(chunks, key=lambda chunk: tuple(chunk[2][key] for key in keys))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _placed(chunks: Sequence[tuple[str, str, Metadata]]) -> list[tuple[int, str, Metadata]]:
    """The chunks as (start, text, metadata). Splitters of LangChain count from the beginning of a
    page or a row, so what they note is used only where it grows all through the document."""
    starts = [metadata.get(START) for _, _, metadata in chunks]
    if all(isinstance(n, int) and not isinstance(n, bool) and 0 <= n <= INT32_MAX for n in starts):
        numbers = [int(n) for n in starts if n is not None]
        if all(before < after for before, after in pairwise(numbers)):
            return [
                (start, text, {key: value for key, value in metadata.items() if key != START})
                for start, (_, text, metadata) in zip(numbers, chunks, strict=True)
            ]
    placed: list[tuple[int, str, Metadata]] = []
    start = 0
    for _, text, metadata in chunks:
        placed.append((start, text, metadata))
        start += len(text) + GAP_CHARS
    return placed


def _common(metadatas: Sequence[Metadata]) -> Metadata:
    """What all chunks have."""
    common = dict(metadatas[0])
    for metadata in metadatas[1:]:
        common = {k: v for k, v in common.items() if k in metadata and metadata[k] == v}
        if not common:
            break
    return common


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, sort_keys=True).encode()

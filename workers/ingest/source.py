"""From a source of an ingest job to the content of a version: read, load, split, hash."""

import hashlib
import json
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, overload
from uuid import UUID

from sqlalchemy.orm import Session
from tokenizers import Tokenizer

from shared.bounds import Metadata
from shared.config import Settings
from shared.documents import collections, ingest_items
from shared.documents.versions import Content
from shared.errors import DocumentError
from shared.kinds.ingest import CsvOptions, Splitter, SplitterType
from shared.normal import nfc
from shared.tables import File
from workers.ingest.load import LoadedText, form, load
from workers.ingest.split import Piece, least_pieces, split
from workers.process import Process

LOADER_VERSION = 3
"""Raise it when loading or splitting gives something else than before, so that it is redone: a
source that is ingested again is then replaced, though its bytes are the same."""


_NOTED = frozenset({"row", "item", "line", "heading"})
"""What loading and splitting note of a passage, unless the job's own metadata has it."""


@dataclass(frozen=True, kw_only=True)
class IngestOptions:
    """What an ingest job asks for, without its sources."""

    collection: str
    collection_id: UUID
    model: str
    splitter: Splitter
    csv: CsvOptions
    skip_existing: bool
    metadata: Metadata

    @classmethod
    def of_job(cls, session: Session, job_id: UUID) -> "IngestOptions":
        """Raises NotFound where the collection has been erased meanwhile."""
        settings = ingest_items.settings_of(session, job_id)
        collection = collections.get(session, settings["collection"])
        return cls(
            collection=collection.name,
            collection_id=collection.id,
            model=collection.embedding_model,
            splitter=Splitter.model_validate(settings["splitter"]),
            csv=CsvOptions.model_validate(settings["csv"]),
            skip_existing=settings["on_existing"] == "skip",
            metadata=settings["metadata"],
        )

    def content_hash(self, data: bytes, form: tuple[str, ...]) -> str:
        """Of the bytes and of everything else that decides chunks, vectors and metadata."""
        recipe = [
            LOADER_VERSION, self.model, self.metadata, form,
            self.splitter.model_dump(mode="json"), self.csv.model_dump(mode="json"),
        ]  # fmt: skip
        digest = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode())
        digest.update(data)
        return digest.hexdigest()


@dataclass(frozen=True, kw_only=True)
class Raw:
    """A source's bytes, read but not yet looked into."""

    name: str
    data: bytes
    text: str | None
    """What the client sent as text, which needs no decoding."""
    content_type: str | None
    content_hash: str


def source_name(source: dict[str, Any], uploads: dict[str, File]) -> str:
    """The identity of a source within its collection: file name, or the name given to a text.

    In NFC: macOS spells the names of files in another way, and they are the same ones.
    """
    if source["type"] == "file":
        upload = uploads.get(source["file_id"])
        return nfc(upload.name) if upload else f"file {source['file_id']}"
    digest = hashlib.sha256(source["text"].encode()).hexdigest()
    return nfc(source["name"] or f"text-{digest[:16]}")


def read(
    process: Process, options: IngestOptions, source: dict[str, Any], uploads: dict[str, File]
) -> Raw:
    """Raises DocumentError for an unknown file, NotFound for one that the storage lost."""
    name = source_name(source, uploads)
    text: str | None = None
    content_type: str | None = None
    if source["type"] == "text":
        text = source["text"]
        data = source["text"].encode()
    else:
        upload = uploads.get(source["file_id"])
        if upload is None:
            raise DocumentError(
                f"There is no file {source['file_id']}; upload it with `POST /v1/files` first."
            )
        data, content_type = process.storage.read(upload.path), upload.content_type
    return Raw(
        name=name,
        data=data,
        text=text,
        content_type=content_type,
        content_hash=options.content_hash(data, form(name, content_type, inline=text is not None)),
    )


class _Chunks(Sequence[tuple[int, str, Metadata]]):
    """The pieces of a document as (start, text, metadata), cut from its text when they are read.

    What is held of each is its place and its metadata, which the pieces of a passage share.
    """

    def __init__(self, text: str, base: Metadata, over: Metadata) -> None:
        self._text = text
        self._base = base
        self._over = over
        self._starts, self._ends = array("q"), array("q")
        self._own: list[Metadata] = []
        self.metadata_chars = 0
        self._last: tuple[Metadata, int] | None = None

    def append(self, piece: Piece) -> None:
        if self._last is None or self._last[0] is not piece.metadata:
            self._last = piece.metadata, _chars({**self._base, **piece.metadata})
        self.metadata_chars += self._last[1]
        self._starts.append(piece.start)
        self._ends.append(piece.start + len(piece.text))
        self._own.append(piece.metadata)

    def __len__(self) -> int:
        return len(self._starts)

    @overload
    def __getitem__(self, at: int) -> tuple[int, str, Metadata]: ...
    @overload
    def __getitem__(self, at: slice) -> list[tuple[int, str, Metadata]]: ...
    def __getitem__(
        self, at: int | slice
    ) -> tuple[int, str, Metadata] | list[tuple[int, str, Metadata]]:
        if isinstance(at, slice):
            return [self[one] for one in range(*at.indices(len(self)))]
        start, end = self._starts[at], self._ends[at]
        return start, self._text[start:end], {**self._base, **self._own[at], **self._over}


def _chars(metadata: Metadata) -> int:
    return sum(len(key) + len(str(value)) for key, value in metadata.items())


def make(process: Process, options: IngestOptions, raw: Raw) -> Content:
    """Load and split. Raises DocumentError, naming the document and the remedy."""
    loaded = load(
        raw.data if raw.text is None else raw.text,
        name=raw.name,
        content_type=raw.content_type,
        csv=options.csv,
        max_chars=process.settings.max_document_chars,
        max_passages=process.settings.max_document_chunks,
    )
    tokenizer = None
    if options.splitter.type is SplitterType.TOKEN:
        tokenizer = process.embedders.get(options.model).tokenizer
    metadata = {**loaded.metadata, **options.metadata}
    chunks = _split(process.settings, options, loaded, metadata, name=raw.name, tokenizer=tokenizer)
    if not chunks:
        raise DocumentError(f"{raw.name} has no text to ingest.")
    return Content(
        source=raw.name,
        sha256=hashlib.sha256(raw.data).hexdigest(),
        content_hash=raw.content_hash,
        size_bytes=len(raw.data),
        metadata=metadata,
        chunks=chunks,
    )


def _split(
    settings: Settings,
    options: IngestOptions,
    loaded: LoadedText,
    metadata: Metadata,
    *,
    name: str,
    tokenizer: Tokenizer | None,
) -> _Chunks:
    """Raises DocumentError as soon as it is plain that there are too many chunks."""
    limit = settings.max_document_chunks
    too_many = DocumentError(
        f"{name}: has more than {limit:,} chunks of {options.splitter.chunk_size:,}. Choose larger "
        "chunks, divide it, or raise SLUICE_MAX_DOCUMENT_CHUNKS."
    )
    if least_pieces(loaded, options.splitter) > limit:
        raise too_many
    chosen = {key: value for key, value in options.metadata.items() if key in _NOTED}
    chunks = _Chunks(loaded.text, metadata, chosen)
    for piece in split(loaded, options.splitter, tokenizer=tokenizer):
        if len(chunks) == limit:
            raise too_many
        chunks.append(piece)
        if chunks.metadata_chars > settings.max_document_metadata_chars:
            raise DocumentError(
                f"{name}: has too much metadata, which each of its chunks carries: more than "
                f"{settings.max_document_metadata_chars:,} characters together. Choose larger "
                "chunks or less metadata (csv.metadata_columns, the fields beside the text), or "
                "raise SLUICE_MAX_DOCUMENT_METADATA_CHARS."
            )
    return chunks

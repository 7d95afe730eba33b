"""From a source of an ingest job to the content of a version: read, load, split, hash."""

import hashlib
import json
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy.orm import Session

from shared import collections, items
from shared.document_models import File
from shared.errors import DocumentError
from shared.normal import nfc
from shared.payloads import CsvOptions, Metadata, Splitter, SplitterType
from shared.versions import Content
from workers.ingest.load import load
from workers.ingest.split import split
from workers.process import Process

LOADER_VERSION = 2
"""Raise it when loading or splitting gives something else than before, so that it is redone."""


@dataclass(frozen=True, kw_only=True)
class Order:
    """What an ingest job asks for, without its sources."""

    collection: str
    collection_id: UUID
    model: str
    splitter: Splitter
    csv: CsvOptions
    skip_existing: bool
    metadata: Metadata

    @classmethod
    def of_job(cls, session: Session, job_id: UUID) -> "Order":
        """Raises NotFound where the collection has been erased meanwhile."""
        wanted = items.settings_of(session, job_id)
        collection = collections.get(session, wanted["collection"])
        return cls(
            collection=collection.name,
            collection_id=collection.id,
            model=collection.embedding_model,
            splitter=Splitter.model_validate(wanted["splitter"]),
            csv=CsvOptions.model_validate(wanted["csv"]),
            skip_existing=wanted["on_existing"] == "skip",
            metadata=wanted["metadata"],
        )

    def content_hash(self, data: bytes) -> str:
        """Of the bytes and of everything else that decides chunks, vectors and metadata."""
        recipe = [
            LOADER_VERSION, self.model, self.metadata,
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


def read(process: Process, order: Order, source: dict[str, Any], uploads: dict[str, File]) -> Raw:
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
        content_hash=order.content_hash(data),
    )


def make(process: Process, order: Order, raw: Raw) -> Content:
    """Load and split. Raises DocumentError, naming the document and the remedy."""
    loaded = load(
        raw.data if raw.text is None else raw.text,
        name=raw.name,
        content_type=raw.content_type,
        csv=order.csv,
        max_chars=process.settings.max_document_chars,
    )
    tokenizer = None
    if order.splitter.type is SplitterType.TOKEN:
        tokenizer = process.embedders.get(order.model).tokenizer
    pieces = split(loaded, order.splitter, tokenizer=tokenizer)
    metadata = {**loaded.metadata, **order.metadata}
    chunks = [(piece.start, piece.text, {**metadata, **piece.metadata}) for piece in pieces]
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

"""Exports: the live documents of a collection at one moment, and their chunks afterwards.

What is live when an export begins is kept by the collector until the job has ended
(`shared/documents/erasure.py`), though it may be replaced meanwhile. What is erased is gone.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import func, select, text
from sqlalchemy.orm import Session

from shared.bounds import as_object
from shared.documents.versions import ChunkRange
from shared.tables import Chunk, Collection, Document, VectorIndex, Version

_FETCHED_ROWS = 1000


@dataclass(frozen=True, kw_only=True)
class LiveDocument:
    """A document and its live version."""

    id: UUID
    version_id: UUID
    source: str
    chunk_count: int
    sha256: str
    content_hash: str
    size_bytes: int
    metadata: dict[str, Any]
    attributes: dict[str, Any] | None
    source_id: str | None
    container: str | None
    created_at: datetime
    updated_at: datetime


def live_documents(session: Session, collection_id: UUID) -> Iterator[LiveDocument]:
    """All that have chunks, oldest first, as of one moment; some thousand are in memory at once."""
    session.execute(text("SET LOCAL statement_timeout = 0"))
    query = (
        select(Document, Version)
        .join(Version, Version.id == Document.live_version_id)
        .where(Document.collection_id == collection_id, Version.chunk_count > 0)
        .order_by(Document.id)
        .execution_options(yield_per=_FETCHED_ROWS)
    )
    for document, version in session.execute(query):
        yield LiveDocument(
            id=document.id,
            version_id=version.id,
            source=document.source,
            chunk_count=version.chunk_count,
            sha256=version.sha256,
            content_hash=version.content_hash,
            size_bytes=version.size_bytes,
            metadata=as_object(version.meta),
            attributes=None if version.attributes is None else as_object(version.attributes),
            source_id=document.source_id,
            container=document.container,
            created_at=document.created_at,
            updated_at=document.updated_at,
        )
        session.expunge(document)
        session.expunge(version)


def read_moment(session: Session) -> None:
    """Let all statements of the session see one moment. Call it first."""
    session.connection(execution_options={"isolation_level": "REPEATABLE READ"})


def chunks_of(session: Session, parts: Sequence[ChunkRange]) -> list[Chunk]:
    """The chunks of these parts, as far as they are there, in the order of the parts."""
    ranges = (
        func.unnest(
            [part.version_id for part in parts],
            [part.first for part in parts],
            [part.end for part in parts],
        )
        .table_valued("version_id", "first", "behind", with_ordinality="place", name="ranges")
        .render_derived()
    )
    query = (
        select(Chunk)
        .join(
            ranges,
            (Chunk.version_id == ranges.c.version_id)
            & (Chunk.ordinal >= ranges.c.first)
            & (Chunk.ordinal < ranges.c.behind),
        )
        .order_by(ranges.c.place, Chunk.ordinal)
    )
    return list(session.scalars(query))


def unerased(session: Session, document_ids: Sequence[UUID]) -> set[UUID]:
    """Those of the documents that are there, and are not being erased."""
    query = (
        select(Document.id)
        .join(Collection, Collection.id == Document.collection_id)
        .where(
            Document.id.in_(document_ids), Document.erasing_at.is_(None), Collection.is_visible()
        )
    )
    return set(session.scalars(query))


def index_of(session: Session, index_id: UUID) -> VectorIndex | None:
    """None where it is gone."""
    return session.get(VectorIndex, index_id)

"""The tables of collections, documents and their text, and of uploads.

State columns are written only by `shared/versions.py`, `remains.py` and `erasure.py`.
"""

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import BigInteger, ForeignKey, Index, UniqueConstraint, func
from sqlalchemy import text as sql
from sqlalchemy.dialects.postgresql import INT4MULTIRANGE
from sqlalchemy.orm import Mapped, mapped_column

from shared.base import Base
from shared.ids import new_id


class Collection(Base):
    """A named set of documents with one embedding model and one dimension."""

    __tablename__ = "collections"

    id: Mapped[UUID] = mapped_column(primary_key=True, default=new_id)
    name: Mapped[str] = mapped_column(unique=True)
    embedding_model: Mapped[str]
    dimension: Mapped[int | None]
    distance: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    erasing_at: Mapped[datetime | None]


class Document(Base):
    """A source item. Readers see it, and its chunks, only through `live_version_id`."""

    __tablename__ = "documents"

    id: Mapped[UUID] = mapped_column(primary_key=True, default=new_id)
    collection_id: Mapped[UUID] = mapped_column(ForeignKey("collections.id", ondelete="CASCADE"))
    source: Mapped[str]
    live_version_id: Mapped[UUID | None]
    erasing_at: Mapped[datetime | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    updated_at: Mapped[datetime] = mapped_column(server_default=func.now())

    __table_args__ = (
        UniqueConstraint("collection_id", "source"),
        Index("ix_documents_collection_id_id", "collection_id", "id"),
    )


class Version(Base):
    """One content of a document: `pending` until embedded whole, then `live`, then `retired`."""

    __tablename__ = "versions"

    id: Mapped[UUID] = mapped_column(primary_key=True, default=new_id)
    document_id: Mapped[UUID] = mapped_column(ForeignKey("documents.id", ondelete="CASCADE"))
    state: Mapped[str]
    sha256: Mapped[str]
    """Of the raw bytes."""
    content_hash: Mapped[str]
    """Of the raw bytes and of everything else that decides the chunks and their metadata."""
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    meta: Mapped[dict[str, Any]] = mapped_column("metadata", server_default=sql("'{}'"))
    chunk_count: Mapped[int]
    embedded: Mapped[Any] = mapped_column(INT4MULTIRANGE, server_default=sql("'{}'"))
    """The ordinals whose vectors are in Chroma."""
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())

    __table_args__ = (
        Index("ix_versions_document_id", "document_id"),
        Index(
            "uq_versions_pending",
            "document_id",
            "content_hash",
            unique=True,
            postgresql_where=sql("state = 'pending'"),
        ),
        Index("ix_versions_not_live", "created_at", postgresql_where=sql("state <> 'live'")),
    )


class Chunk(Base):
    """A piece of a version's text. Its public id is `chunk_id(version_id, ordinal)`."""

    __tablename__ = "chunks"

    version_id: Mapped[UUID] = mapped_column(
        ForeignKey("versions.id", ondelete="CASCADE"), primary_key=True
    )
    ordinal: Mapped[int] = mapped_column(primary_key=True)
    start: Mapped[int]
    text: Mapped[str]
    meta: Mapped[dict[str, Any]] = mapped_column("metadata", server_default=sql("'{}'"))


class File(Base):
    """An upload; its bytes lie in the storage under `path`."""

    __tablename__ = "files"

    id: Mapped[UUID] = mapped_column(primary_key=True, default=new_id)
    name: Mapped[str]
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str]
    content_type: Mapped[str | None]
    path: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())

    __table_args__ = (Index("ix_files_sha256", "sha256"),)

"""Erasure in the ledger: hidden from readers at once, rows deleted once the vectors are gone."""

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import ColumnElement, delete, func, select, text, update
from sqlalchemy.orm import Session

from shared.document_models import Collection, Document, Version
from shared.errors import NotFound
from shared.versions import VersionState


@dataclass(frozen=True, kw_only=True)
class Extent:
    """How much an erasure removes from Postgres."""

    documents: int
    chunks: int


def require_document(session: Session, document_id: UUID) -> None:
    """Raises NotFound. A document that is being erased is there: it may have to be done again."""
    if session.scalar(select(Document.id).where(Document.id == document_id)) is None:
        raise NotFound(f"There is no document {document_id}.")


def require_collection(session: Session, name: str) -> None:
    """Raises NotFound. A collection that is being erased is there."""
    if session.scalar(select(Collection.id).where(Collection.name == name)) is None:
        raise NotFound(f"There is no collection {name!r}.")


def hide_documents(session: Session, document_ids: Sequence[UUID]) -> list[UUID]:
    """Hide documents from readers and retire all their versions. Returns those that exist."""
    found = list(
        session.scalars(
            select(Document.id)
            .where(Document.id.in_(document_ids))
            .order_by(Document.id)
            .with_for_update()
        )
    )
    session.execute(
        update(Document)
        .where(Document.id.in_(found))
        .values(live_version_id=None, erasing_at=func.coalesce(Document.erasing_at, func.now()))
    )
    session.execute(
        update(Version)
        .where(Version.document_id.in_(found))
        .values(state=VersionState.RETIRED.value)
    )
    return found


def hide_collection(session: Session, name: str) -> UUID:
    """Raises NotFound where there is none."""
    collection_id: UUID | None = session.scalar(
        update(Collection)
        .where(Collection.name == name)
        .values(erasing_at=func.coalesce(Collection.erasing_at, func.now()))
        .returning(Collection.id)
    )
    if collection_id is None:
        raise NotFound(f"There is no collection {name!r}.")
    return collection_id


def extent_of_documents(session: Session, document_ids: Sequence[UUID]) -> Extent:
    return _extent(session, Document.id.in_(document_ids))


def extent_of_collection(session: Session, collection_id: UUID) -> Extent:
    return _extent(session, Document.collection_id == collection_id)


def _extent(session: Session, where: ColumnElement[bool]) -> Extent:
    documents, chunks = session.execute(
        select(func.count(Document.id.distinct()), func.coalesce(func.sum(Version.chunk_count), 0))
        .select_from(Document)
        .outerjoin(Version, Version.document_id == Document.id)
        .where(where)
    ).one()
    return Extent(documents=documents, chunks=chunks)


def delete_documents(session: Session, document_ids: Sequence[UUID]) -> None:
    session.execute(text("SET LOCAL statement_timeout = 0"))
    session.execute(delete(Document).where(Document.id.in_(document_ids)))


def delete_collection(session: Session, collection_id: UUID) -> None:
    session.execute(text("SET LOCAL statement_timeout = 0"))
    session.execute(delete(Collection).where(Collection.id == collection_id))

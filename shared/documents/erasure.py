"""Erasure in the ledger: documents are hidden at once; rows are deleted after their vectors.

Ids are given to statements as arrays: of parameters a statement takes no more than 65,535.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from uuid import UUID

from sqlalchemy import ColumnElement, and_, delete, exists, func, or_, select, text, update
from sqlalchemy.orm import Session

from shared.documents import containers, lexical
from shared.documents.versions import GarbageVersion, VersionState, garbage_where, lock_documents_of
from shared.errors import NotFound
from shared.kinds.bundle import EXPORT
from shared.tables import Chunk, Collection, Document, IngestItem, Job, VectorIndex, Version
from shared.vocabulary import OPEN, State

# Garbage: versions that readers no longer see, until their vectors and rows are deleted.

ERASURE_ABANDONED_AFTER = timedelta(hours=1)
"""After this time, the collector completes an erasure whose own job did not."""


def retire_abandoned(
    session: Session, *where: ColumnElement[bool], limit: int
) -> list[GarbageVersion]:
    """Retire pending versions that no open job works on; returns all retired versions. Versions of
    collections that are being imported stay as they are."""
    in_work = exists().where(
        IngestItem.version_id == Version.id, Job.id == IngestItem.job_id, Job.state.in_(OPEN)
    )
    imported = exists().where(
        Document.id == Version.document_id,
        Collection.id == Document.collection_id,
        Collection.importing_job_id.is_not(None),
    )
    pending = and_(Version.state == VersionState.PENDING, ~imported)
    # Locked first, then checked again: a job that joins a version holds this lock.
    idle = session.scalars(
        select(Version.id).where(pending, ~in_work).limit(limit).with_for_update(skip_locked=True)
    ).all()
    session.execute(
        update(Version)
        .where(Version.id.in_(idle), pending, ~in_work)
        .values(state=VersionState.RETIRED.value)
        .execution_options(synchronize_session=False)
    )
    return garbage(session, *where, limit=limit)


def garbage(session: Session, *where: ColumnElement[bool], limit: int) -> list[GarbageVersion]:
    """Retired versions, except those that an erasure, an open item or an export works on."""
    left_alone = func.coalesce(Document.erasing_at, Collection.erasing_at)
    return garbage_where(
        session,
        Version.state == VersionState.RETIRED,
        ~_is_used(),
        or_(left_alone.is_(None), left_alone < func.now() - ERASURE_ABANDONED_AFTER),
        *where,
        limit=limit,
    )


def abandoned(session: Session, collection_id: UUID, *, limit: int) -> list[GarbageVersion]:
    """Versions of documents of a collection whose erasure was begun long ago and has not ended."""
    return garbage_where(
        session,
        Version.state == VersionState.RETIRED,
        ~_is_used(),
        Document.collection_id == collection_id,
        Document.erasing_at < func.now() - ERASURE_ABANDONED_AFTER,
        limit=limit,
    )


def empty_documents(session: Session, collection_id: UUID) -> Sequence[UUID]:
    """Documents without a version for so long that nobody is about to write one."""
    return session.scalars(
        select(Document.id)
        .where(
            Document.collection_id == collection_id,
            Document.live_version_id.is_(None),
            func.greatest(Document.updated_at, Document.erasing_at)
            < func.now() - ERASURE_ABANDONED_AFTER,
            ~exists().where(Version.document_id == Document.id),
        )
        .order_by(Document.id)
        .with_for_update(skip_locked=True)
    ).all()


def remove_empty(session: Session, document_ids: Sequence[UUID]) -> None:
    """Delete locked documents that still have no version."""
    session.execute(
        delete(Document).where(
            Document.id == func.any(list(document_ids)),
            ~exists().where(Version.document_id == Document.id),
        )
    )


def garbage_of_documents(session: Session, document_ids: Sequence[UUID]) -> list[GarbageVersion]:
    return garbage_where(
        session,
        Version.state == VersionState.RETIRED,
        Version.document_id == func.any(list(document_ids)),
    )


def unused(session: Session, candidates: Sequence[GarbageVersion]) -> list[GarbageVersion]:
    """The versions that no open item waits for, which would take its version for erased, and that
    no export reads."""
    ids = set(
        session.scalars(
            select(Version.id).where(
                Version.id == func.any([version.version_id for version in candidates]), ~_is_used()
            )
        )
    )
    return [version for version in candidates if version.version_id in ids]


def with_readers(session: Session, version_ids: Iterable[UUID]) -> set[UUID]:
    """The versions among these whose vectors are read, or will be: those that are live or may
    become live, and those that an export reads."""
    rows = session.scalars(
        select(Version.id).where(
            Version.id.in_(list(version_ids)),
            or_(Version.state != VersionState.RETIRED, _is_exported()),
        )
    )
    return set(rows)


def _is_used() -> ColumnElement[bool]:
    by_item = exists().where(
        IngestItem.version_id == Version.id,
        IngestItem.outcome.is_(None),
        Job.id == IngestItem.job_id,
        Job.state.in_(OPEN),
    )
    return or_(by_item, _is_exported())


def _is_exported() -> ColumnElement[bool]:
    """Whether an export may read a version: it was live when the export began, and its document was
    not erased."""
    return exists().where(
        Document.id == Version.document_id,
        Document.erasing_at.is_(None),
        Collection.id == Document.collection_id,
        _has_export(),
    )


def is_exported_index() -> ColumnElement[bool]:
    """Whether an export may read an index."""
    return exists().where(Collection.id == VectorIndex.collection_id, _has_export())


def _has_export() -> ColumnElement[bool]:
    return and_(
        Collection.erasing_at.is_(None),
        Job.collection == Collection.name,
        Job.batch_id.is_(None),
        Job.kind == EXPORT.name,
        Job.state == State.RUNNING,
    )


def remove_chunks(session: Session, version_id: UUID, *, up_to: int) -> int:
    """Delete chunks of a retired version below an ordinal; returns how many."""
    some = select(Chunk.ordinal).where(Chunk.version_id == version_id).limit(up_to)
    gone = session.execute(
        delete(Chunk)
        .where(
            Chunk.version_id == version_id,
            Chunk.ordinal.in_(some),
            exists().where(Version.id == version_id, Version.state == VersionState.RETIRED),
        )
        .returning(Chunk.ordinal)
        .execution_options(synchronize_session=False)
    ).all()
    return len(gone)


def remove(session: Session, version_ids: Sequence[UUID]) -> int:
    """Delete retired versions with their text, and documents without other versions.

    Returns the number of chunks deleted. Call it after their vectors are deleted.
    """
    # Locked first, as everywhere; also so that no step adds a version at the same time.
    lock_documents_of(session, version_ids)
    gone = session.execute(
        delete(Version)
        .where(Version.id == func.any(list(version_ids)), Version.state == VersionState.RETIRED)
        .returning(Version.document_id, Version.chunk_count)
    ).all()
    session.execute(
        delete(Document).where(
            Document.id == func.any(list({row.document_id for row in gone})),
            Document.live_version_id.is_(None),
            ~exists().where(Version.document_id == Document.id),
        )
    )
    return sum(row.chunk_count for row in gone)


@dataclass(frozen=True, kw_only=True)
class Extent:
    """How much an erasure removes from Postgres."""

    documents: int
    chunks: int


def require_document(session: Session, document_id: UUID) -> None:
    """Raises NotFound. A document that is being erased exists: its erasure may have to be
    repeated."""
    if session.scalar(select(Document.id).where(Document.id == document_id)) is None:
        raise NotFound(f"There is no document {document_id}.")


def require_collection(session: Session, name: str) -> None:
    """Raises NotFound. A collection that is being erased exists."""
    if session.scalar(select(Collection.id).where(Collection.name == name)) is None:
        raise NotFound(f"There is no collection {name!r}.")


def hide_documents(session: Session, document_ids: Sequence[UUID]) -> list[UUID]:
    """Hide documents from readers and retire all their versions. Returns those that exist."""
    existing_ids = list(
        session.scalars(
            select(Document.id)
            .where(Document.id == func.any(list(document_ids)))
            .order_by(Document.id)
            .with_for_update()
        )
    )
    containers.reopen(session, existing_ids)
    live = select(Version.id).join(Document, Document.live_version_id == Version.id)
    lexical.unpublish(
        session, session.scalars(live.where(Document.id == func.any(existing_ids))).all()
    )
    session.execute(
        update(Document)
        .where(Document.id == func.any(existing_ids))
        .values(live_version_id=None, erasing_at=func.coalesce(Document.erasing_at, func.now()))
    )
    session.execute(
        update(Version)
        .where(Version.document_id == func.any(existing_ids))
        .values(state=VersionState.RETIRED.value)
    )
    return existing_ids


def collections_of(session: Session, document_ids: Sequence[UUID]) -> list[UUID]:
    collection_ids = (
        select(Document.collection_id).where(Document.id == func.any(list(document_ids))).distinct()
    )
    return sorted(session.scalars(collection_ids))


def hide_collection(session: Session, name: str) -> UUID:
    """Hide a collection; returns its id. Raises NotFound."""
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
    return _extent(session, Document.id == func.any(list(document_ids)))


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
    session.execute(delete(Document).where(Document.id == func.any(list(document_ids))))


def delete_collection(session: Session, collection_id: UUID) -> None:
    lexical.lock(session, collection_id)  # else a merge could write segments afterwards
    session.execute(delete(Collection).where(Collection.id == collection_id))
    lexical.delete_of_collection(session, collection_id)

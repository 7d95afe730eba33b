"""Collections that are imported: written by a job, and visible to nobody until all is there.

The rows of such a collection have ids that follow from its own id and from the numbers that the
import gives its documents, from 0 on. So steps can run in any order and any number of times. A
collection whose job has ended without making it visible is erased by the sweeper.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from sqlalchemy import ColumnElement, and_, exists, func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from shared.documents import collections, indexes
from shared.documents.collections import Spec
from shared.documents.indexes import IndexState
from shared.documents.versions import VersionState
from shared.errors import Conflict, NotFound, Unavailable
from shared.tables import Chunk, Collection, Document, Job, VectorIndex, Version, new_id
from shared.vocabulary import OPEN

DOCUMENTS_LIMIT: Final = 2**32
_NUMBER_BITS: Final = 33
"""The lowest bits of an id: the number of the document, above it whether it is a version's."""


@dataclass(frozen=True, kw_only=True)
class ImportedDocument:
    """A document with its live version; the fields are those of their tables."""

    source: str
    chunk_count: int
    sha256: str
    content_hash: str
    size_bytes: int
    metadata: dict[str, Any] = field(default_factory=dict)
    attributes: dict[str, Any] | None = None
    source_id: str | None = None
    container: str | None = None
    created_at: datetime | None = None
    """None: now."""
    updated_at: datetime | None = None


@dataclass(frozen=True, kw_only=True)
class ImportedChunk:
    """A chunk of the document with that number."""

    document: int
    ordinal: int
    start: int
    text: str
    metadata: dict[str, Any] = field(default_factory=dict)


def require_free(session: Session, name: str) -> None:
    """Raises Conflict if there is a collection of this name, Unavailable while a failed import of
    that name is being erased."""
    old = session.scalars(select(Collection).where(Collection.name == name)).first()
    if old is None:
        return
    query = select(exists().where(Collection.id == old.id, is_abandoned()))
    if old.erasing_at is not None or session.scalar(query):
        raise Unavailable(
            f"What was collection {name!r} is being erased; it is imported again after that."
        )
    if old.importing_job_id is not None:
        raise Conflict(
            f"Job {old.importing_job_id} imports a collection with the name {name!r}. Wait for its "
            "end, or cancel it."
        )
    raise Conflict(
        f"There is a collection {name!r} already. Import it under another name (`--as NAME`), or "
        f"erase that one first: `sluice collections delete {name}`."
    )


def is_abandoned() -> ColumnElement[bool]:
    """Whether the job that imports a collection has ended without making it visible."""
    is_open = exists().where(Job.id == Collection.importing_job_id, Job.state.in_(OPEN))
    return and_(Collection.importing_job_id.is_not(None), ~is_open)


def begin(
    session: Session,
    job_id: UUID,
    name: str,
    spec: Spec,
    *,
    display_name: str | None = None,
    metadata: dict[str, Any] | None = None,
    expires_after_days: int | None = None,
) -> VectorIndex:
    """Make the collection that a job imports, and its index; or find those that it has made. Raises
    as `require_free` does."""
    index = find(session, job_id)
    if index is not None:
        return index
    id_ = session.scalar(
        insert(Collection)
        .values(
            {
                "id": new_id(),
                "name": name,
                "display_name": display_name,
                "metadata": metadata or {},
                "expires_after_days": expires_after_days,
                "importing_job_id": job_id,
            }
        )
        .on_conflict_do_nothing()
        .returning(Collection.id)
    )
    if id_ is None:
        require_free(session, name)
        raise Unavailable(f"Collection {name!r} was removed at this moment.")
    return indexes.add(
        session,
        id_,
        name,
        embedding_model=spec.embedding_model,
        dimension=spec.dimension,
        distance=spec.distance,
        state=IndexState.ACTIVE,
    )


def find(session: Session, job_id: UUID) -> VectorIndex | None:
    """The active index of the collection that a job imports. None where there is none (any more):
    it was not begun, it was erased, or it is visible."""
    return session.scalars(
        select(VectorIndex)
        .join(Collection, Collection.id == VectorIndex.collection_id)
        .where(
            Collection.importing_job_id == job_id,
            Collection.erasing_at.is_(None),
            VectorIndex.state == IndexState.ACTIVE,
        )
    ).first()


def get(session: Session, job_id: UUID) -> VectorIndex:
    """As `find`. Raises NotFound."""
    index = find(session, job_id)
    if index is None:
        raise NotFound("The collection was erased while it was imported; import it again.")
    return index


def document_id(collection_id: UUID, number: int) -> UUID:
    """Of the document with that number. It sorts as numbers do, before all that is made later."""
    return UUID(int=collection_id.int >> _NUMBER_BITS << _NUMBER_BITS | number)


def version_id(collection_id: UUID, number: int) -> UUID:
    return UUID(int=document_id(collection_id, number).int | DOCUMENTS_LIMIT)


def write_documents(
    session: Session, collection_id: UUID, documents: Mapping[int, ImportedDocument]
) -> None:
    """Write documents by their numbers, each with a pending version. The collection must be held.
    What is there already stays."""
    if not documents:
        return
    now = session.scalar(select(func.now()))
    rows: list[dict[str, Any]] = []
    pending: list[dict[str, Any]] = []
    for number, document in documents.items():
        id_ = document_id(collection_id, number)
        rows.append(
            {
                "id": id_,
                "collection_id": collection_id,
                "source": document.source,
                "source_id": document.source_id,
                "container": document.container,
                "created_at": document.created_at or now,
                "updated_at": document.updated_at or now,
            }
        )
        pending.append(
            {
                "id": version_id(collection_id, number),
                "document_id": id_,
                "state": VersionState.PENDING.value,
                "sha256": document.sha256,
                "content_hash": document.content_hash,
                "size_bytes": document.size_bytes,
                "meta": document.metadata,
                "attributes": document.attributes,
                "chunk_count": document.chunk_count,
            }
        )
    session.execute(insert(Document).on_conflict_do_nothing(index_elements=[Document.id]), rows)
    session.execute(insert(Version).on_conflict_do_nothing(index_elements=[Version.id]), pending)


def write_chunks(session: Session, collection_id: UUID, chunks: Sequence[ImportedChunk]) -> None:
    """Write chunks whose documents are there. What is there already stays."""
    rows = [
        {
            "version_id": version_id(collection_id, chunk.document),
            "ordinal": chunk.ordinal,
            "start": chunk.start,
            "text": chunk.text,
            "meta": chunk.metadata,
        }
        for chunk in chunks
    ]
    if rows:
        session.execute(insert(Chunk).on_conflict_do_nothing(), rows)


def count_incomplete(session: Session, collection_id: UUID) -> int:
    """How many documents are not there with all chunks and vectors yet."""
    count = session.scalar(
        select(func.count())
        .select_from(Document)
        .where(Document.collection_id == collection_id, Document.live_version_id.is_(None))
    )
    return count or 0


def publish(session: Session, job_id: UUID) -> Collection | None:
    """Let readers see the collection that a job has imported. None where it is not there."""
    collection = session.scalars(
        select(Collection)
        .where(Collection.importing_job_id == job_id, Collection.erasing_at.is_(None))
        .with_for_update()
    ).first()
    if collection is not None:
        collection.importing_job_id = None
        session.flush()
    return collection


def hold(session: Session, job_id: UUID) -> VectorIndex:
    """As `get`; no erasure of the collection begins before the commit."""
    index = get(session, job_id)
    collections.hold(session, index.collection_id)
    return index

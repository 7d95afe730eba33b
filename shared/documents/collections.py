"""Collections: named sets of documents with one embedding model and one dimension."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import func, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from shared.errors import Conflict, NotFound
from shared.tables import Collection, Document, Version, new_id


@dataclass(frozen=True, kw_only=True)
class Spec:
    """What a client may fix about a collection; None leaves it to the server."""

    embedding_model: str
    dimension: int | None = None
    distance: str = "cosine"


@dataclass(frozen=True, kw_only=True)
class Summary:
    name: str
    embedding_model: str
    dimension: int | None
    distance: str
    documents: int
    chunks: int
    created_at: datetime


def put(session: Session, name: str, spec: Spec) -> bool:
    """Make a collection; True if it is new. Raises Conflict if it exists and is different."""
    row = session.execute(
        insert(Collection)
        .values(
            id=new_id(),
            name=name,
            embedding_model=spec.embedding_model,
            dimension=spec.dimension,
            distance=spec.distance,
        )
        .on_conflict_do_nothing()
        .returning(Collection.id)
    ).first()
    if row is not None:
        return True
    old = session.scalars(select(Collection).where(Collection.name == name)).one()
    if old.erasing_at is not None:
        raise Conflict(f"Collection {name!r} is being erased; try again when that has ended.")
    differs = old.embedding_model != spec.embedding_model or old.distance != spec.distance
    if differs or (spec.dimension is not None and spec.dimension != old.dimension):
        raise Conflict(
            f"Collection {name!r} exists with model {old.embedding_model!r}, dimension "
            f"{old.dimension} and distance {old.distance!r}; these cannot be changed. Use another "
            "name, or delete the collection first."
        )
    return False


def get(session: Session, name: str) -> Collection:
    """Raises NotFound, also while the collection is being erased."""
    collection = session.scalars(
        select(Collection).where(Collection.name == name, Collection.erasing_at.is_(None))
    ).first()
    if collection is None:
        raise NotFound(
            f"There is no collection {name!r}. Create it with `PUT /v1/collections/{name}` or "
            f"`sluice collections create {name}`."
        )
    return collection


def hold(session: Session, collection_id: UUID) -> None:
    """Let no erasure of the collection begin before the commit. Raises NotFound if one has."""
    held = session.scalar(
        select(Collection.name)
        .where(Collection.id == collection_id, Collection.erasing_at.is_(None))
        .with_for_update(read=True)
    )
    if held is None:
        raise NotFound("The collection was erased.")


def fix_dimension(session: Session, collection_id: UUID, dimension: int) -> int:
    """Set the dimension if none is set yet; return the one that holds."""
    session.execute(
        update(Collection)
        .where(Collection.id == collection_id, Collection.dimension.is_(None))
        .values(dimension=dimension)
    )
    return (
        session.execute(
            select(Collection.dimension).where(Collection.id == collection_id)
        ).scalar_one()
        or dimension
    )


def tuning(session: Session, collection_id: UUID) -> Any:
    """As `note_tuning` left it; None where nothing was noted, or the collection has gone."""
    return session.scalar(select(Collection.tuning).where(Collection.id == collection_id))


def note_tuning(session: Session, collection_id: UUID, tuning: dict[str, Any]) -> None:
    """The last one that is measured counts."""
    session.execute(update(Collection).where(Collection.id == collection_id).values(tuning=tuning))


def page(session: Session, *, limit: int, after: str | None) -> list[Summary]:
    """Collections by name, with their counts."""
    query = select(Collection).where(Collection.erasing_at.is_(None))
    if after is not None:
        query = query.where(Collection.name > after)
    return _summaries(session, session.scalars(query.order_by(Collection.name).limit(limit)).all())


def newest(session: Session, *, limit: int) -> list[tuple[str, datetime]]:
    """Names of collections and when they were made, newest first."""
    query = (
        select(Collection.name, Collection.created_at)
        .where(Collection.erasing_at.is_(None))
        .order_by(Collection.id.desc())
        .limit(limit)
    )
    return [(row.name, row.created_at) for row in session.execute(query)]


def summary(session: Session, collection: Collection) -> Summary:
    return _summaries(session, [collection])[0]


def _summaries(session: Session, collections: Sequence[Collection]) -> list[Summary]:
    """Each collection with its counts, in one statement for all."""
    rows = session.execute(
        select(Document.collection_id, func.count(), func.sum(Version.chunk_count))
        .join(Version, Version.id == Document.live_version_id)
        .where(Document.collection_id == func.any([collection.id for collection in collections]))
        .group_by(Document.collection_id)
    )
    counts = {collection_id: (documents, chunks) for collection_id, documents, chunks in rows}
    return [
        Summary(
            name=collection.name,
            embedding_model=collection.embedding_model,
            dimension=collection.dimension,
            distance=collection.distance,
            documents=counts.get(collection.id, (0, 0))[0],
            chunks=counts.get(collection.id, (0, 0))[1],
            created_at=collection.created_at,
        )
        for collection in collections
    ]

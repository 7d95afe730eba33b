"""Collections: named sets of documents with one embedding model and one dimension."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

from sqlalchemy import ColumnElement, and_, func, select, text, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from shared.bounds import COLLECTION_NAME, nfc
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
    id: UUID
    name: str
    embedding_model: str
    dimension: int | None
    distance: str
    documents: int
    chunks: int
    size_bytes: int
    """Of what its documents were made of."""
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
        select(Collection).where(Collection.name == nfc(name), Collection.erasing_at.is_(None))
    ).first()
    if collection is None:
        raise NotFound(
            f"There is no collection {name!r}. Create it with `PUT /v1/collections/{name}` or "
            f"`sluice collections create {name}`."
        )
    return collection


def hold(session: Session, collection_id: UUID, *, alone: bool = False) -> None:
    """Let no erasure of the collection begin before the commit; `alone`, nobody else hold it, too.
    Raises NotFound if an erasure has begun."""
    held = session.scalar(
        select(Collection.name)
        .where(Collection.id == collection_id, Collection.erasing_at.is_(None))
        .with_for_update(read=not alone, key_share=alone)
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


# Collections as vector stores of OpenAI's API: known by their ids, called as anybody likes.


_ID_NAME: Final = re.compile(r"vs_[0-9a-f]{32}")


def make_store(
    session: Session,
    spec: Spec,
    *,
    display_name: str | None,
    metadata: dict[str, Any],
    expires_after_days: int | None,
) -> Collection:
    """Make a collection that may be called as others are. Its name is what it is called, if that is
    free and a name of collections, else `vs_` and the digits of its id."""
    id_ = new_id()
    row = {
        "id": id_,
        "embedding_model": spec.embedding_model,
        "dimension": spec.dimension,
        "distance": spec.distance,
        "display_name": display_name,
        "metadata": metadata,
        "expires_after_days": expires_after_days,
    }
    names = [f"vs_{id_.hex}"]
    is_name = re.fullmatch(COLLECTION_NAME, display_name or "") is not None
    if display_name and is_name and not _ID_NAME.fullmatch(display_name):
        names.insert(0, display_name)
    for name in names:
        statement = insert(Collection).values(row | {"name": name}).on_conflict_do_nothing()
        if session.scalar(statement.returning(Collection.id)) is not None:
            break
    return session.scalars(select(Collection).where(Collection.id == id_)).one()


def find_store(session: Session, id_: UUID) -> Collection | None:
    return session.scalars(
        select(Collection).where(Collection.id == id_, Collection.erasing_at.is_(None))
    ).first()


def store_page(
    session: Session,
    *,
    limit: int,
    newest_first: bool,
    behind: UUID | None = None,
    before: UUID | None = None,
) -> list[Collection]:
    """Collections by age: those behind or before the one that is named, and as near to it as they
    can be."""
    backwards = before is not None and behind is None
    query = select(Collection).where(Collection.erasing_at.is_(None))
    if behind is not None:
        query = query.where(Collection.id < behind if newest_first else Collection.id > behind)
    if before is not None:
        query = query.where(Collection.id > before if newest_first else Collection.id < before)
    is_descending = newest_first is not backwards
    by_age = Collection.id.desc() if is_descending else Collection.id.asc()
    rows = list(session.scalars(query.order_by(by_age).limit(limit)))
    return rows[::-1] if backwards else rows


def summaries(session: Session, collections: Sequence[Collection]) -> list[Summary]:
    return _summaries(session, collections)


def last_use(session: Session, collections: Sequence[Collection]) -> dict[UUID, datetime]:
    """When each was last used: made, filled, or named by a job."""
    rows = session.execute(
        text("""
            SELECT c.id, greatest(c.used_at, (
                SELECT created_at FROM jobs WHERE collection = c.name ORDER BY id DESC LIMIT 1
            )) AS used_at
            FROM collections c WHERE c.id = ANY(:ids)
        """),
        {"ids": [collection.id for collection in collections]},
    )
    return {row.id: row.used_at for row in rows}


def note_use(session: Session, names: Sequence[str]) -> None:
    """Of collections that expire, where the job does not show it: it names several of them."""
    session.execute(
        update(Collection)
        .where(
            Collection.name.in_(names),
            Collection.expires_after_days.is_not(None),
            Collection.used_at < func.now() - timedelta(minutes=1),
        )
        .values(used_at=func.now())
        .execution_options(synchronize_session=False)
    )


def note_uses(session: Session) -> None:
    """Note the last use of all collections that expire, for jobs are forgotten."""
    session.execute(
        text("""
            UPDATE collections c SET used_at = newest.created_at
            FROM collections other
            CROSS JOIN LATERAL (
                SELECT created_at FROM jobs WHERE collection = other.name ORDER BY id DESC LIMIT 1
            ) newest
            WHERE other.expires_after_days IS NOT NULL AND other.erasing_at IS NULL
                AND c.id = other.id AND newest.created_at > c.used_at + interval '1 second'
        """)
    )


def is_expired() -> ColumnElement[bool]:
    """Whether a collection's time is up, going by the use that was noted."""
    lifetime = func.make_interval(0, 0, 0, Collection.expires_after_days)
    return and_(
        Collection.expires_after_days.is_not(None), Collection.used_at + lifetime <= func.now()
    )


def _summaries(session: Session, collections: Sequence[Collection]) -> list[Summary]:
    """Each collection with its counts, in one statement for all."""
    rows = session.execute(
        select(
            Document.collection_id,
            func.count(),
            func.sum(Version.chunk_count),
            func.sum(Version.size_bytes),
        )
        .join(Version, Version.id == Document.live_version_id)
        .where(Document.collection_id == func.any([collection.id for collection in collections]))
        .group_by(Document.collection_id)
    )
    counts = {row[0]: tuple(row[1:]) for row in rows}
    none = (0, 0, 0)
    return [
        Summary(
            id=collection.id,
            name=collection.name,
            embedding_model=collection.embedding_model,
            dimension=collection.dimension,
            distance=collection.distance,
            documents=counts.get(collection.id, none)[0],
            chunks=counts.get(collection.id, none)[1],
            size_bytes=int(counts.get(collection.id, none)[2]),
            created_at=collection.created_at,
        )
        for collection in collections
    ]

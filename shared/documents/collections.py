"""Collections: named sets of documents, whose vectors are those of one model (`indexes`)."""

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
from shared.documents import checks, indexes
from shared.documents.checks import LastCheck
from shared.documents.indexes import IndexState
from shared.errors import Conflict, NotFound
from shared.models.embedding_models import canonical
from shared.tables import Collection, Document, VectorIndex, Version, new_id


@dataclass(frozen=True, kw_only=True)
class Spec:
    """What a client may set for a collection; None leaves it to the server. References of the same
    model get one form."""

    embedding_model: str
    dimension: int | None = None
    distance: str = "cosine"

    def __post_init__(self) -> None:
        object.__setattr__(self, "embedding_model", canonical(self.embedding_model))


@dataclass(frozen=True, kw_only=True)
class Summary:
    id: UUID
    name: str
    embedding_model: str
    dimension: int | None
    distance: str
    server: str | None
    """Which of several servers of the store has its vectors; None: the only one."""
    documents: int
    chunks: int
    size_bytes: int
    """The size of the contents of its documents."""
    check: LastCheck | None
    created_at: datetime


def put(session: Session, name: str, spec: Spec) -> bool:
    """Make a collection; True if it is new. Raises Conflict if it exists with other settings."""
    id_ = session.scalar(
        insert(Collection)
        .values(id=new_id(), name=name)
        .on_conflict_do_nothing()
        .returning(Collection.id)
    )
    if id_ is not None:
        _add_index(session, id_, name, spec)
        return True
    old = session.scalars(select(Collection).where(Collection.name == name)).one()
    if old.erasing_at is not None:
        raise Conflict(f"Collection {name!r} is being erased; try again when that has ended.")
    if old.importing_job_id is not None:
        raise Conflict(
            f"Job {old.importing_job_id} imports a collection with the name {name!r}. Wait for its "
            "end, or cancel it."
        )
    index = indexes.active(session, old.id)
    is_same = canonical(index.embedding_model) == spec.embedding_model
    differs = not is_same or index.distance != spec.distance
    if differs or (spec.dimension is not None and spec.dimension != index.dimension):
        raise Conflict(
            f"Collection {name!r} exists with model {index.embedding_model!r}, dimension "
            f"{index.dimension} and distance {index.distance!r}. `sluice collections rebuild "
            f"{name} --model MODEL` changes the model; else use another name, or delete the "
            "collection first."
        )
    return False


def _add_index(session: Session, collection_id: UUID, name: str, spec: Spec) -> None:
    indexes.add(
        session,
        collection_id,
        name,
        embedding_model=spec.embedding_model,
        dimension=spec.dimension,
        distance=spec.distance,
        state=IndexState.ACTIVE,
    )


def get(session: Session, name: str) -> Collection:
    """Raises NotFound, also while the collection is being erased."""
    collection = session.scalars(
        select(Collection).where(Collection.name == nfc(name), Collection.is_visible())
    ).first()
    if collection is None:
        raise _no_collection(name)
    return collection


def get_with_index(session: Session, name: str) -> tuple[Collection, VectorIndex]:
    """The collection and its active index. Raises NotFound as `get`."""
    row = session.execute(
        select(Collection, VectorIndex)
        .join(VectorIndex, _is_active_index())
        .where(Collection.name == nfc(name), Collection.is_visible())
    ).first()
    if row is None:
        raise _no_collection(name)
    return row.Collection, row.VectorIndex


def _is_active_index() -> ColumnElement[bool]:
    return and_(VectorIndex.collection_id == Collection.id, VectorIndex.state == IndexState.ACTIVE)


def _no_collection(name: str) -> NotFound:
    return NotFound(
        f"There is no collection {name!r}. Create it with `PUT /v1/collections/{name}` or "
        f"`sluice collections create {name}`."
    )


def hold(session: Session, collection_id: UUID, *, alone: bool = False) -> None:
    """Keep an erasure of the collection from beginning before the commit; with `alone`, also keep
    others from holding it. Raises NotFound if an erasure has begun."""
    held = session.scalar(
        select(Collection.name)
        .where(Collection.id == collection_id, Collection.erasing_at.is_(None))
        .with_for_update(read=not alone, key_share=alone)
    )
    if held is None:
        raise NotFound("The collection was erased.")


def page(session: Session, *, limit: int, after: str | None) -> list[Summary]:
    """Collections by name, with their counts."""
    query = select(Collection).where(Collection.is_visible())
    if after is not None:
        query = query.where(Collection.name > after)
    return _summaries(session, session.scalars(query.order_by(Collection.name).limit(limit)).all())


def newest(session: Session, *, limit: int) -> list[tuple[str, datetime]]:
    """Names of collections and when they were made, newest first."""
    query = (
        select(Collection.name, Collection.created_at)
        .where(Collection.is_visible())
        .order_by(Collection.id.desc())
        .limit(limit)
    )
    return [(row.name, row.created_at) for row in session.execute(query)]


def embedding_models(session: Session, *, limit: int) -> Sequence[str]:
    """The references of the models of all collections, without duplicates."""
    models = (
        select(VectorIndex.embedding_model)
        .join(Collection, _is_active_index())
        .where(Collection.is_visible())
        .distinct()
    )
    return session.scalars(models.order_by(VectorIndex.embedding_model).limit(limit)).all()


def summary(session: Session, collection: Collection) -> Summary:
    """Raises NotFound if the collection has just been erased."""
    summaries = _summaries(session, [collection])
    if not summaries:
        raise _no_collection(collection.name)
    return summaries[0]


# Collections as vector stores of OpenAI's API: identified by their ids, with any display name.


_ID_NAME: Final = re.compile(r"vs_[0-9a-f]{32}")


def make_store(
    session: Session,
    spec: Spec,
    *,
    display_name: str | None,
    metadata: dict[str, Any],
    expires_after_days: int | None,
) -> Collection:
    """Make a collection for a vector store. Its name is the display name if that is free and valid,
    else `vs_` and the digits of its id."""
    id_ = new_id()
    row = {
        "id": id_,
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
            _add_index(session, id_, name, spec)
            break
    return session.scalars(select(Collection).where(Collection.id == id_)).one()


def find_store(session: Session, id_: UUID) -> Collection | None:
    return session.scalars(
        select(Collection).where(Collection.id == id_, Collection.is_visible())
    ).first()


def store_page(
    session: Session,
    *,
    limit: int,
    newest_first: bool,
    behind: UUID | None = None,
    before: UUID | None = None,
) -> list[Collection]:
    """Collections by age: the nearest ones behind or before a collection."""
    backwards = before is not None and behind is None
    query = select(Collection).where(Collection.is_visible())
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
    """Collection id -> its last use: when it was made, filled, or named by a job."""
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
    """Note the use of collections that expire by a job that names several of them, since the job
    does not show it."""
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
    """Note the last use of all collections that expire, because jobs are deleted after a time."""
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
    """Whether a collection has expired, by the last use that was noted."""
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
    active = indexes.active_of(session, [collection.id for collection in collections])
    last = checks.last_of(session, [collection.id for collection in collections])
    return [
        Summary(
            id=collection.id,
            name=collection.name,
            embedding_model=active[collection.id].embedding_model,
            dimension=active[collection.id].dimension,
            distance=active[collection.id].distance,
            server=active[collection.id].server,
            documents=counts.get(collection.id, none)[0],
            chunks=counts.get(collection.id, none)[1],
            size_bytes=int(counts.get(collection.id, none)[2]),
            check=last.get(collection.id),
            created_at=collection.created_at,
        )
        for collection in collections
        if collection.id in active  # others were erased just now
    ]

"""Vector indexes: of which model the vectors of a collection are, and where they lie in the store.

A collection has one active index at a time. Who searches reads it once, and embeds the query and
asks the store by that one only. What is erased is deleted from all indexes of a collection.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from itertools import count
from typing import Any
from uuid import UUID

from sqlalchemy import exists, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from shared.errors import NotFound
from shared.tables import VectorIndex, new_id


class IndexState(StrEnum):
    ACTIVE = "active"
    """Searches read it, and ingestion writes to it."""
    BUILDING = "building"
    """It is filled from Postgres, and nobody reads it yet."""
    RETIRED = "retired"
    """It was active, and is kept for a while so that one can go back to it."""


@dataclass(frozen=True, kw_only=True)
class IndexPlace:
    """Where the vectors of an index lie: the store's own collection, and the server that has it
    (None: the only one)."""

    stored_name: str
    server: str | None

    @classmethod
    def of(cls, index: VectorIndex) -> "IndexPlace":
        return cls(stored_name=index.stored_name, server=index.server)


def add(
    session: Session,
    collection_id: UUID,
    name: str,
    *,
    embedding_model: str,
    dimension: int | None,
    distance: str,
    state: IndexState,
) -> VectorIndex:
    """A new index of the collection with that name. In the store it is called the same, so that
    other programs find it there; if another index has that name, `NAME.2` and so on.

    `dimension` None: as the model will give it.
    """
    values = {
        "id": new_id(),
        "collection_id": collection_id,
        "embedding_model": embedding_model,
        "dimension": dimension,
        "distance": distance,
        "state": state.value,
    }
    for n in count(1):
        stored_name = name if n == 1 else f"{name}.{n}"
        index = session.scalars(
            insert(VectorIndex)
            .values(values | {"stored_name": stored_name})
            .on_conflict_do_nothing(index_elements=[VectorIndex.stored_name])
            .returning(VectorIndex)
        ).first()
        if index is not None:
            return index
    raise AssertionError


def active(session: Session, collection_id: UUID) -> VectorIndex:
    """Raises NotFound if the collection was erased."""
    index = session.scalar(
        select(VectorIndex).where(
            VectorIndex.collection_id == collection_id, VectorIndex.state == IndexState.ACTIVE
        )
    )
    if index is None:
        raise NotFound("The collection was erased.")
    return index


def active_of(session: Session, collection_ids: Iterable[UUID]) -> dict[UUID, VectorIndex]:
    """The active indexes of these collections, by the ids of these."""
    rows = session.scalars(
        select(VectorIndex).where(
            VectorIndex.collection_id.in_(list(collection_ids)),
            VectorIndex.state == IndexState.ACTIVE,
        )
    )
    return {index.collection_id: index for index in rows}


def places_of(session: Session, collection_ids: Iterable[UUID]) -> dict[UUID, list[IndexPlace]]:
    """Those of all indexes, whatever their state, by the ids of their collections."""
    places: dict[UUID, list[IndexPlace]] = {}
    for index in session.scalars(
        select(VectorIndex)
        .where(VectorIndex.collection_id.in_(list(collection_ids)))
        .order_by(VectorIndex.id)
    ):
        places.setdefault(index.collection_id, []).append(IndexPlace.of(index))
    return places


def is_in_use(session: Session, place: IndexPlace) -> bool:
    """Whether it is the place of an index that the ledger has."""
    return bool(
        session.scalar(select(exists().where(VectorIndex.stored_name == place.stored_name)))
    )


def next_place(session: Session, after: str, *, inclusive: bool) -> IndexPlace | None:
    """The place of the first index behind that name, or of the one with that name if `inclusive`;
    the names in the order of the database. None behind the last one."""
    name = VectorIndex.stored_name
    index = session.scalar(
        select(VectorIndex)
        .where(name >= after if inclusive else name > after)
        .order_by(name)
        .limit(1)
    )
    return None if index is None else IndexPlace.of(index)


def fix_dimension(session: Session, index_id: UUID, dimension: int) -> int:
    """Set the dimension if none is set yet; return the one that holds."""
    session.execute(
        update(VectorIndex)
        .where(VectorIndex.id == index_id, VectorIndex.dimension.is_(None))
        .values(dimension=dimension)
    )
    fixed = session.scalar(select(VectorIndex.dimension).where(VectorIndex.id == index_id))
    return fixed or dimension


def tuning(session: Session, index_id: UUID) -> Any:
    """As `note_tuning` left it; None where nothing was noted, or the index has gone."""
    return session.scalar(select(VectorIndex.tuning).where(VectorIndex.id == index_id))


def note_tuning(session: Session, index_id: UUID, tuning: dict[str, Any]) -> None:
    """The last one that is measured counts."""
    session.execute(update(VectorIndex).where(VectorIndex.id == index_id).values(tuning=tuning))

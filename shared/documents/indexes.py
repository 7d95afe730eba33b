"""Vector indexes: the model of a collection's vectors, and where they are in the store.

A collection has one active index at a time. A search reads it once, and uses its model and its
vectors only. Erasures delete vectors from all indexes of a collection.

Another index is built beside it from Postgres, until it has everything that the active one has.
Then it becomes the active one, in one transaction (`switch`). A transaction that notes vectors of
the active index, which may make versions live, holds a lock that excludes this until its commit
(`hold_active`).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from itertools import count
from typing import Any, Final
from uuid import UUID

from sqlalchemy import ColumnElement, and_, delete, exists, func, or_, select, text, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from shared.bounds import shown
from shared.errors import Conflict, NotFound, Unavailable
from shared.models.embedding_models import canonical
from shared.tables import (
    Collection,
    Document,
    Job,
    VectorIndex,
    VectorIndexVersion,
    Version,
    new_id,
)
from shared.vocabulary import OPEN, State


class IndexChanged(Unavailable):
    """The collection is getting another vector index; the step runs again afterwards."""


class IndexState(StrEnum):
    ACTIVE = "active"
    """Searches read it, and ingestion writes to it."""
    BUILDING = "building"
    """It is being filled from Postgres, and not read yet."""
    RETIRED = "retired"
    """It was active, and is kept for some time for a rollback."""


@dataclass(frozen=True, kw_only=True)
class IndexPlace:
    """Where the vectors of an index are: the name of the collection in the store, and the server
    that has it (None: the only one)."""

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
    """Add an index to the collection with that name. In the store the first one has the same name,
    so that other programs find it, and later ones `NAME.2` and so on. The collection must be held
    alone.

    A name that an index of the collection has had is not given again: a process that stood still
    may yet write vectors of another model to it. `dimension` None: it is set once the model is
    loaded.
    """
    values = {
        "id": new_id(),
        "collection_id": collection_id,
        "embedding_model": embedding_model,
        "dimension": dimension,
        "distance": distance,
        "state": state.value,
    }
    made = session.scalar(select(Collection.indexes_made).where(Collection.id == collection_id))
    for n in count((made or 0) + 1):
        stored_name = name if n == 1 else f"{name}.{n}"
        index = session.scalars(
            insert(VectorIndex)
            .values(values | {"stored_name": stored_name})
            .on_conflict_do_nothing(index_elements=[VectorIndex.stored_name])
            .returning(VectorIndex)
        ).first()
        if index is not None:
            session.execute(
                update(Collection)
                .where(Collection.id == collection_id)
                .values(indexes_made=n)
                .execution_options(synchronize_session=False)
            )
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
    """Collection id -> its active index."""
    rows = session.scalars(
        select(VectorIndex).where(
            VectorIndex.collection_id.in_(list(collection_ids)),
            VectorIndex.state == IndexState.ACTIVE,
        )
    )
    return {index.collection_id: index for index in rows}


def places_of(session: Session, collection_ids: Iterable[UUID]) -> dict[UUID, list[IndexPlace]]:
    """Collection id -> the places of all its indexes, in any state."""
    places: dict[UUID, list[IndexPlace]] = {}
    for index in session.scalars(
        select(VectorIndex)
        .where(VectorIndex.collection_id.in_(list(collection_ids)))
        .order_by(VectorIndex.id)
    ):
        places.setdefault(index.collection_id, []).append(IndexPlace.of(index))
    return places


def is_in_use(session: Session, place: IndexPlace) -> bool:
    """Whether an index of the ledger is at this place."""
    return bool(
        session.scalar(select(exists().where(VectorIndex.stored_name == place.stored_name)))
    )


def next_index(
    session: Session, after: str, *where: ColumnElement[bool], inclusive: bool
) -> VectorIndex | None:
    """The first index after that name in the store, or the one with that name if `inclusive`, in
    the order of the database. None after the last one."""
    name = VectorIndex.stored_name
    return session.scalar(
        select(VectorIndex)
        .where(name >= after if inclusive else name > after, *where)
        .order_by(name)
        .limit(1)
    )


def server_of(session: Session, stored_name: str) -> str | None:
    """The server that has the index with this name; None if none is noted, or there is no such
    index."""
    return session.scalar(select(VectorIndex.server).where(VectorIndex.stored_name == stored_name))


def count_servers(session: Session) -> dict[str, int]:
    """Server -> the number of its indexes, for servers that are noted."""
    rows = session.execute(
        select(VectorIndex.server, func.count())
        .where(VectorIndex.server.is_not(None))
        .group_by(VectorIndex.server)
    )
    return {server: count_ for server, count_ in rows if server is not None}


def note_server(session: Session, stored_name: str, server: str) -> str | None:
    """Note the server of an index if none is noted; returns the one that is noted then, None if
    there is no such index."""
    session.execute(
        update(VectorIndex)
        .where(VectorIndex.stored_name == stored_name, VectorIndex.server.is_(None))
        .values(server=server)
    )
    return server_of(session, stored_name)


def fix_dimension(session: Session, index_id: UUID, dimension: int) -> int:
    """Set the dimension if it is not set yet; returns the one that is set then."""
    session.execute(
        update(VectorIndex)
        .where(VectorIndex.id == index_id, VectorIndex.dimension.is_(None))
        .values(dimension=dimension)
    )
    fixed = session.scalar(select(VectorIndex.dimension).where(VectorIndex.id == index_id))
    return fixed or dimension


def has_vectors(session: Session, collection_id: UUID) -> bool:
    """Whether the active index of a collection has vectors, or had any that the store has lost."""
    return bool(
        session.scalar(
            select(
                exists().where(
                    Document.collection_id == collection_id,
                    Version.document_id == Document.id,
                    Version.state.in_(("live", "pending")),
                    Version.embedded != text("'{}'::int4multirange"),
                )
            )
        )
    )


def tuning(session: Session, index_id: UUID) -> Any:
    """What `note_tuning` has stored; None if nothing, or if there is no such index."""
    return session.scalar(select(VectorIndex.tuning).where(VectorIndex.id == index_id))


def note_tuning(session: Session, index_id: UUID, tuning: dict[str, Any]) -> None:
    """Store the tuning of an index, replacing an earlier one."""
    session.execute(update(VectorIndex).where(VectorIndex.id == index_id).values(tuning=tuning))


# Another index takes the place of the active one.


def hold_active(session: Session, collection_id: UUID, index_id: UUID) -> None:
    """Keep other indexes from becoming active before the commit. Call it before locking documents.

    Raises IndexChanged if this index is no longer active, or is paused.
    """
    _lock(session, collection_id, shared=True)
    row = session.execute(
        select(VectorIndex.state, _is_paused()).where(VectorIndex.id == index_id)
    ).first()
    if row is not None and (row[0] != IndexState.ACTIVE or row[1]):
        raise IndexChanged


def is_paused(session: Session, index_id: UUID) -> bool:
    """Whether an index accepts no vectors at the moment."""
    return bool(session.scalar(select(_is_paused()).where(VectorIndex.id == index_id)))


def _is_paused() -> ColumnElement[bool]:
    return func.coalesce(VectorIndex.paused_until > func.now(), False)


def pause(session: Session, collection_id: UUID, *, for_s: float) -> None:
    """Let the active index accept no vectors for `for_s` seconds. Waits for transactions that note
    some now."""
    _lock(session, collection_id, shared=False)
    session.execute(
        update(VectorIndex)
        .where(VectorIndex.collection_id == collection_id, VectorIndex.state == IndexState.ACTIVE)
        .values(paused_until=func.now() + timedelta(seconds=for_s))
    )


def _lock(session: Session, collection_id: UUID, *, shared: bool) -> None:
    lock = "pg_advisory_xact_lock_shared" if shared else "pg_advisory_xact_lock"
    session.execute(
        text(f"SELECT {lock}(hashtextextended(:name, 0))"), {"name": f"index of {collection_id}"}
    )


def begin(
    session: Session,
    collection_id: UUID,
    name: str,
    job_id: UUID,
    *,
    embedding_model: str,
    distance: str,
) -> VectorIndex:
    """The index that a job builds: the one that it has begun, one that another job left unfinished,
    or a new one. Raises Conflict while another job builds one. The collection must be held
    alone."""
    _lock(session, collection_id, shared=False)
    index = building(session, collection_id)
    if index is not None and index.job_id != job_id:
        _require_ended(session, index)
        is_same = canonical(index.embedding_model) == canonical(embedding_model)
        if not is_same or index.distance != distance:
            _give_up(session, VectorIndex.id == index.id)
            index = None
        else:
            index.job_id = job_id
    if index is None:
        index = add(
            session,
            collection_id,
            name,
            embedding_model=embedding_model,
            dimension=None,
            distance=distance,
            state=IndexState.BUILDING,
        )
        index.job_id = job_id
    session.flush()
    return index


def begin_rollback(session: Session, collection_id: UUID, job_id: UUID) -> VectorIndex:
    """The index that was active before, for a job to bring up to date. Raises Conflict if it is no
    longer kept, and while another job builds one. The collection must be held."""
    _lock(session, collection_id, shared=False)
    index = building(session, collection_id)
    if index is not None:
        if index.job_id == job_id:
            return index
        _require_ended(session, index)
        _give_up(session, VectorIndex.id == index.id)
    index = _newest_kept(session, collection_id)
    index.state, index.job_id = IndexState.BUILDING.value, job_id
    session.flush()
    return index


def require_kept(session: Session, collection_id: UUID) -> None:
    """Raises Conflict unless there is an index to go back to."""
    index = building(session, collection_id)
    if index is None or index.kept_until is None:  # else a rollback has begun with it
        _newest_kept(session, collection_id)


def _newest_kept(session: Session, collection_id: UUID) -> VectorIndex:
    index = session.scalars(
        select(VectorIndex)
        .where(VectorIndex.collection_id == collection_id, is_kept())
        .order_by(VectorIndex.kept_until.desc(), VectorIndex.id.desc())
        .limit(1)
    ).first()
    if index is None:
        raise Conflict(
            "The collection has no index to go back to: none was replaced, or it is not kept any "
            "more (SLUICE_RETIRED_INDEX_KEEP_S). Rebuild it with the model that you want."
        )
    return index


def is_kept() -> ColumnElement[bool]:
    """Whether an index is retired and complete enough for a rollback."""
    return and_(
        VectorIndex.state == IndexState.RETIRED,
        VectorIndex.kept_until > func.now(),
        exists().where(VectorIndexVersion.index_id == VectorIndex.id),
    )


def building(session: Session, collection_id: UUID) -> VectorIndex | None:
    return session.scalars(
        select(VectorIndex).where(
            VectorIndex.collection_id == collection_id, VectorIndex.state == IndexState.BUILDING
        )
    ).first()


def building_models(session: Session, *, limit: int) -> Sequence[str]:
    """The models of indexes that jobs build at present, those of the oldest first."""
    return session.scalars(
        select(VectorIndex.embedding_model)
        .join(Job, Job.id == VectorIndex.job_id)
        .where(VectorIndex.state == IndexState.BUILDING, Job.state.in_(OPEN))
        .group_by(VectorIndex.embedding_model)
        .order_by(func.min(VectorIndex.created_at))
        .limit(limit)
    ).all()


def _require_ended(session: Session, index: VectorIndex) -> None:
    state = session.scalar(select(Job.state).where(Job.id == index.job_id))
    if state in OPEN:
        raise Conflict(
            f"Job {index.job_id} rebuilds this collection. Wait for its end, or cancel it."
        )


@dataclass(frozen=True, kw_only=True)
class Lack:
    """The ordinals `first <= ordinal < end` of a version whose vectors an index lacks."""

    document_id: UUID
    version_id: UUID
    first: int
    end: int


# Documents one after the other, each looked up by indexes: OFFSET keeps the planner from joining
# whole tables, which for a limit of rows it did in quadratic time where its statistics were old.
_LACKS: Final = text("""
    SELECT d.id AS document_id, l.version_id, l.first, l.behind
    FROM (
        SELECT id FROM documents
        WHERE collection_id = :collection_id AND id > :after AND id <= :until ORDER BY id OFFSET 0
    ) d
    CROSS JOIN LATERAL (
        SELECT v.id AS version_id, lower(r.lack) AS first, upper(r.lack) AS behind
        FROM versions v
        CROSS JOIN LATERAL unnest(v.embedded - coalesce((
            SELECT i.embedded FROM vector_index_versions i
            WHERE i.index_id = :index_id AND i.version_id = v.id
        ), '{}'::int4multirange)) r (lack)
        WHERE v.document_id = d.id AND v.state IN ('live', 'pending')
        OFFSET 0
    ) l
    ORDER BY d.id, l.version_id, l.first LIMIT :limit
""")
_NO_ID: Final = UUID(int=0)
_LAST_ID: Final = UUID(int=2**128 - 1)
DOCUMENTS_AT_ONCE: Final = 20_000
"""How many documents one statement looks at, at most: it ends within the timeout of statements,
however large the collection is."""


def lacks(session: Session, index: VectorIndex, *, after: UUID | None, limit: int) -> list[Lack]:
    """What an index lacks compared with the active one, in documents after `after`, by document."""
    found: list[Lack] = []
    after = after or _NO_ID
    while after != _LAST_ID and len(found) < limit:
        until = session.scalar(
            select(Document.id)
            .where(Document.collection_id == index.collection_id, Document.id > after)
            .order_by(Document.id)
            .offset(DOCUMENTS_AT_ONCE - 1)
            .limit(1)
        )
        rows = session.execute(
            _LACKS,
            {
                "index_id": index.id,
                "collection_id": index.collection_id,
                "after": after,
                "until": until or _LAST_ID,
                "limit": limit - len(found),
            },
        )
        found += [
            Lack(
                document_id=row.document_id,
                version_id=row.version_id,
                first=row.first,
                end=row.behind,
            )
            for row in rows
        ]
        after = until or _LAST_ID
    return found


def count_lacking(session: Session, index: VectorIndex) -> int:
    """The number of chunks whose vectors an index lacks, compared with the active one."""
    session.execute(text("SET LOCAL statement_timeout = 0"))
    count_ = session.scalar(
        text("""
            SELECT coalesce(sum(upper(r.lack) - lower(r.lack)), 0)
            FROM documents d
            JOIN versions v ON v.document_id = d.id AND v.state IN ('live', 'pending')
            LEFT JOIN vector_index_versions i ON i.index_id = :index_id AND i.version_id = v.id
            CROSS JOIN LATERAL unnest(
                v.embedded - coalesce(i.embedded, '{}'::int4multirange)) r (lack)
            WHERE d.collection_id = :collection_id
        """),
        {"index_id": index.id, "collection_id": index.collection_id},
    )
    return int(count_ or 0)


def note(session: Session, index_id: UUID, parts: Sequence[tuple[UUID, int, int]]) -> None:
    """Note that an index has the vectors of these chunks: (version, first, end)."""
    session.execute(
        text("""
            INSERT INTO vector_index_versions AS i (index_id, version_id, embedded)
            SELECT :index_id, p.id, range_agg(int4range(p.first, p.behind))
            FROM unnest(CAST(:ids AS uuid[]), CAST(:firsts AS int[]), CAST(:ends AS int[]))
                p (id, first, behind)
            GROUP BY p.id
            ON CONFLICT (index_id, version_id)
                DO UPDATE SET embedded = i.embedded + excluded.embedded
        """),
        {
            "index_id": index_id,
            "ids": [version_id for version_id, _, _ in parts],
            "firsts": [first for _, first, _ in parts],
            "ends": [end for _, _, end in parts],
        },
    )


def note_lost(session: Session, index_id: UUID, parts: Sequence[tuple[UUID, int]]) -> None:
    """Note that an index lacks the vectors of these chunks: (version, ordinal)."""
    session.execute(
        text("""
            UPDATE vector_index_versions i SET embedded = i.embedded - p.lost
            FROM (
                SELECT id, range_agg(int4range(ordinal, ordinal + 1)) AS lost
                FROM unnest(CAST(:ids AS uuid[]), CAST(:ordinals AS int[])) l (id, ordinal)
                GROUP BY id
            ) p
            WHERE i.index_id = :index_id AND i.version_id = p.id
        """),
        {
            "index_id": index_id,
            "ids": [version_id for version_id, _ in parts],
            "ordinals": [ordinal for _, ordinal in parts],
        },
    )


# What is noted to be in an index: of the active one by its versions, of the others in rows of their
# own. One statement says which of both it is, for another index may become active meanwhile.


@dataclass(frozen=True, kw_only=True)
class NotedPart:
    """Ordinals of a version whose vectors are noted to be in an index."""

    document_id: UUID
    version_id: UUID
    first: int
    end: int


_NOTED: Final = """
    FROM vector_indexes x
    JOIN documents d ON d.collection_id = x.collection_id
    JOIN versions v ON v.document_id = d.id AND v.state IN ('live', 'pending')
    LEFT JOIN vector_index_versions i
        ON x.state <> 'active' AND i.index_id = x.id AND i.version_id = v.id
    CROSS JOIN LATERAL (SELECT CASE WHEN x.state = 'active' THEN v.embedded
        ELSE coalesce(i.embedded, '{}'::int4multirange) END AS embedded) n
"""
# Of the same meaning as _NOTED; as _LACKS, for a limit of rows.
_NOTED_PARTS: Final = text("""
    SELECT d.id AS document_id, p.version_id, p.first, p.behind
    FROM (
        SELECT id FROM documents
        WHERE collection_id = (SELECT collection_id FROM vector_indexes WHERE id = :index_id)
            AND id >= :document_id
        ORDER BY id OFFSET 0
    ) d
    CROSS JOIN LATERAL (
        SELECT v.id AS version_id, lower(r.part) AS first, upper(r.part) AS behind
        FROM versions v
        CROSS JOIN LATERAL unnest(
            CASE WHEN (SELECT state FROM vector_indexes WHERE id = :index_id) = 'active'
                THEN v.embedded
            ELSE coalesce((
                SELECT i.embedded FROM vector_index_versions i
                WHERE i.index_id = :index_id AND i.version_id = v.id
            ), '{}'::int4multirange) END * int4multirange(int4range(
                CASE WHEN v.id = :version_id THEN :ordinal ELSE 0 END, NULL))) r (part)
        WHERE v.document_id = d.id AND v.state IN ('live', 'pending')
            AND (d.id, v.id) >= (:document_id, :version_id)
        OFFSET 0
    ) p
    ORDER BY d.id, p.version_id, p.first LIMIT :limit
""")
Position = tuple[UUID, UUID, int]
"""Document, version and ordinal of the next chunk."""
_START: Final[Position] = (_NO_ID, _NO_ID, 0)


def has_notes(session: Session, index_id: UUID) -> bool:
    """Whether anything is noted to be in an index that is not active."""
    return bool(session.scalar(select(exists().where(VectorIndexVersion.index_id == index_id))))


def noted(
    session: Session, index_id: UUID, *, position: Position | None, chunks: int
) -> tuple[list[NotedPart], Position | None]:
    """The next parts with so many chunks at most, and the position behind them; None at the end.
    The order is that of documents, versions and ordinals."""
    document_id, version_id, ordinal = position or _START
    rows = session.execute(
        _NOTED_PARTS,
        {
            "index_id": index_id,
            "document_id": document_id,
            "version_id": version_id,
            "ordinal": ordinal,
            "limit": chunks + 1,  # each part has a chunk at least
        },
    )
    parts: list[NotedPart] = []
    room = chunks
    for row in rows:
        if room == 0:
            return parts, (row.document_id, row.version_id, row.first)
        end = min(row.behind, row.first + room)
        parts.append(
            NotedPart(
                document_id=row.document_id, version_id=row.version_id, first=row.first, end=end
            )
        )
        room -= end - row.first
        if end < row.behind:
            return parts, (row.document_id, row.version_id, end)
    return parts, None


def count_noted(session: Session, index_id: UUID) -> int:
    """How many chunks are noted to be in an index."""
    session.execute(text("SET LOCAL statement_timeout = 0"))
    count_ = session.scalar(
        text(f"""
            SELECT coalesce(sum(upper(r.part) - lower(r.part)), 0)
            {_NOTED} CROSS JOIN LATERAL unnest(n.embedded) r (part)
            WHERE x.id = :index_id
        """),
        {"index_id": index_id},
    )
    return int(count_ or 0)


def still_noted(
    session: Session, index_id: UUID, chunks: Iterable[tuple[UUID, int]]
) -> set[tuple[UUID, int]]:
    """Those of the chunks, (version, ordinal), that are noted to be in an index."""
    pairs = list(chunks)
    rows = session.execute(
        text(f"""
            SELECT c.id, c.ordinal
            {_NOTED}
            JOIN unnest(CAST(:ids AS uuid[]), CAST(:ordinals AS int[])) c (id, ordinal)
                ON c.id = v.id AND n.embedded @> c.ordinal
            WHERE x.id = :index_id
        """),
        {
            "index_id": index_id,
            "ids": [version_id for version_id, _ in pairs],
            "ordinals": [ordinal for _, ordinal in pairs],
        },
    )
    return {(row.id, row.ordinal) for row in rows}


def surplus(
    session: Session, collection_id: UUID, chunks: Iterable[tuple[UUID, int]]
) -> set[tuple[UUID, int]]:
    """Those of the chunks, (version, ordinal), that no index of the collection can have: of a
    version that is gone, or of another collection, and beyond the end of a live one.

    A version is in the ledger before its vectors are made. One that is retired is left to who
    retired it.
    """
    pairs = list(chunks)
    rows = session.execute(
        text("""
            SELECT c.id, c.ordinal
            FROM unnest(CAST(:ids AS uuid[]), CAST(:ordinals AS int[])) c (id, ordinal)
            LEFT JOIN versions v ON v.id = c.id
            LEFT JOIN documents d ON d.id = v.document_id
            WHERE d.id IS NULL OR d.collection_id <> :collection_id
                OR (v.state = 'live' AND c.ordinal >= v.chunk_count)
        """),
        {
            "collection_id": collection_id,
            "ids": [version_id for version_id, _ in pairs],
            "ordinals": [ordinal for _, ordinal in pairs],
        },
    )
    return {(row.id, row.ordinal) for row in rows}


def to_check(session: Session, collection_id: UUID) -> list[UUID]:
    """The active index of a collection, then those that one can go back to."""
    rows = session.execute(
        select(VectorIndex.id, VectorIndex.state)
        .where(VectorIndex.collection_id == collection_id, _is_to_check())
        .order_by(VectorIndex.state, VectorIndex.id)
    )
    return [row.id for row in rows]


def find_to_check(session: Session, index_id: UUID) -> VectorIndex | None:
    """The index if it is still one of `to_check`: no job builds on it, and it is not dropped."""
    return session.scalar(select(VectorIndex).where(VectorIndex.id == index_id, _is_to_check()))


def _is_to_check() -> ColumnElement[bool]:
    return or_(VectorIndex.state == IndexState.ACTIVE, is_kept())


def find(session: Session, index_id: UUID) -> VectorIndex | None:
    return session.get(VectorIndex, index_id)


def forget_gone(session: Session, collection_id: UUID) -> int:
    """Forget what was noted of versions that are gone; returns of how many."""
    gone = session.execute(
        text("""
            DELETE FROM vector_index_versions i USING vector_indexes x
            WHERE x.collection_id = :id AND i.index_id = x.id
                AND NOT EXISTS (SELECT FROM versions v WHERE v.id = i.version_id)
            RETURNING 1
        """),
        {"id": collection_id},
    )
    return len(gone.all())


def give_up_kept(session: Session, index_id: UUID) -> None:
    """Let a retired index be dropped: the store has lost it."""
    session.execute(
        update(VectorIndex)
        .where(VectorIndex.id == index_id, VectorIndex.state == IndexState.RETIRED)
        .values(kept_until=func.now())
    )


def kept_until(session: Session, collection_id: UUID) -> datetime | None:
    """Until when a rollback to the previous index is possible; None if it is not."""
    return session.scalar(
        select(func.max(VectorIndex.kept_until)).where(
            VectorIndex.collection_id == collection_id, is_kept()
        )
    )


def switch(session: Session, index_id: UUID, *, keep_s: float) -> VectorIndex | None:
    """Make a built index active, and retire the one that was active. Returns the new one; None, and
    nothing has changed, if it still lacks vectors. The collection must be held.

    From then on `versions.embedded` describes the new index. The ledger keeps what it was for the
    old one, so that a rollback is possible for `keep_s` seconds. There is no rollback to an index
    of the same model: there was a reason to build it again.
    """
    session.execute(text("SET LOCAL statement_timeout = 0"))
    index = session.get_one(VectorIndex, index_id)
    _lock(session, index.collection_id, shared=False)
    session.refresh(index)
    if index.state != IndexState.BUILDING:
        raise Conflict("Another job has taken over the index that this one was building.")
    if lacks(session, index, after=None, limit=1):
        return None
    old = active(session, index.collection_id)
    values = {"new": index.id, "old": old.id, "collection_id": index.collection_id}
    if not is_same_model(old, index):
        session.execute(
            text("""
                INSERT INTO vector_index_versions (index_id, version_id, embedded)
                SELECT :old, v.id, v.embedded
                FROM documents d JOIN versions v ON v.document_id = d.id
                WHERE d.collection_id = :collection_id AND v.state IN ('live', 'pending')
                    AND NOT isempty(v.embedded)
                ON CONFLICT DO NOTHING
            """),
            values,
        )
    session.execute(text("DELETE FROM vector_index_versions WHERE index_id = :new"), values)
    old.state, old.paused_until = IndexState.RETIRED.value, None
    old.kept_until = session.scalar(select(func.now() + timedelta(seconds=keep_s)))
    session.flush()
    index.state, index.kept_until = IndexState.ACTIVE.value, None
    session.flush()
    return index


def is_same_model(one: VectorIndex, other: VectorIndex) -> bool:
    return canonical(one.embedding_model) == canonical(other.embedding_model)


def retire_unfinished(session: Session, *, keep_s: float) -> None:
    """Give up indexes whose jobs have ended without making them active: at once after cancelled
    jobs, and after `keep_s` seconds after failed ones, which may be run again."""
    job = (
        select(Job.id)
        .where(
            Job.id == VectorIndex.job_id,
            or_(
                Job.state.in_(OPEN),
                and_(
                    Job.state == State.FAILED,
                    Job.finished_at > func.now() - timedelta(seconds=keep_s),
                ),
            ),
        )
        .exists()
    )
    _give_up(session, and_(VectorIndex.state == IndexState.BUILDING, ~job))


def _give_up(session: Session, which: ColumnElement[bool]) -> None:
    """Retire indexes that are being built. One that was active before is kept for as long as
    before."""
    session.execute(
        update(VectorIndex)
        .where(which)
        .values(
            state=IndexState.RETIRED.value,
            kept_until=func.coalesce(VectorIndex.kept_until, func.now()),
        )
        .execution_options(synchronize_session="fetch")
    )


@dataclass(frozen=True, kw_only=True)
class IndexSummary:
    """An index as people see it."""

    stored_name: str
    embedding_model: str
    dimension: int | None
    distance: str
    state: IndexState
    server: str | None
    chunks: int
    """Of how many chunks it has the vectors, as far as that is noted: of an index that is retired
    and that nobody goes back to, it is 0."""
    can_roll_back: bool
    """Whether a rollback may go back to it."""
    job_id: UUID | None
    created_at: datetime
    kept_until: datetime | None


def _length(multirange: str) -> str:
    """SQL for how many numbers are in a multirange. Nearly all are one range, and are not unnested:
    that takes most of the time of a count."""
    whole = f"range_merge({multirange})"
    return f"""
        CASE WHEN isempty({multirange}) THEN 0
        WHEN {multirange} = int4multirange({whole}) THEN upper({whole}) - lower({whole})
        ELSE (SELECT sum(upper(r.part) - lower(r.part)) FROM unnest({multirange}) r (part)) END
    """


_CHUNKS: Final = text(f"""
    SELECT x.id, sum({_length("v.embedded")}) AS chunks
    FROM vector_indexes x
    JOIN documents d ON d.collection_id = x.collection_id
    JOIN versions v ON v.document_id = d.id AND v.state IN ('live', 'pending')
    WHERE x.collection_id = :collection_id AND x.state = 'active' GROUP BY x.id
    UNION ALL
    SELECT x.id, sum({_length("i.embedded")}) AS chunks
    FROM vector_indexes x
    JOIN vector_index_versions i ON i.index_id = x.id
    JOIN versions v ON v.id = i.version_id AND v.state IN ('live', 'pending')
    WHERE x.collection_id = :collection_id AND x.state <> 'active' GROUP BY x.id
""")


def summaries(session: Session, collection_id: UUID) -> list[IndexSummary]:
    """All indexes of a collection, the active one first, then the newest."""
    counts = {
        row.id: int(row.chunks)
        for row in session.execute(_CHUNKS, {"collection_id": collection_id})
    }
    rows = session.execute(
        select(VectorIndex, is_kept().label("is_kept"))
        .where(VectorIndex.collection_id == collection_id)
        .order_by(VectorIndex.state != IndexState.ACTIVE, VectorIndex.id.desc())
    )
    return [
        IndexSummary(
            stored_name=index.stored_name,
            embedding_model=index.embedding_model,
            dimension=index.dimension,
            distance=index.distance,
            state=IndexState(index.state),
            server=index.server,
            chunks=counts.get(index.id, 0),
            can_roll_back=is_kept_,
            job_id=index.job_id,
            created_at=index.created_at,
            kept_until=index.kept_until,
        )
        for index, is_kept_ in rows
    ]


def named(session: Session, collection_id: UUID, stored_name: str) -> VectorIndex:
    """An index by its name in the store. Raises NotFound."""
    index = session.scalars(
        select(VectorIndex).where(
            VectorIndex.collection_id == collection_id, VectorIndex.stored_name == stored_name
        )
    ).first()
    if index is None:
        raise NotFound(f"The collection has no index {shown(stored_name)}.")
    return index


def drop(session: Session, index: VectorIndex) -> IndexSummary:
    """Let an index that is not in use go: the sweeper drops its vectors in its next round. Raises
    Conflict for the active one, and for one that a job builds. The collection must be held."""
    _require_unused(session, index)
    index.kept_until = session.scalar(select(func.now()))
    session.flush()
    return _summary(session, index)


def forget(session: Session, index: VectorIndex) -> IndexSummary:
    """Forget an index whose server is gone for good, with its vectors. Raises Conflict as
    `drop`."""
    summary = drop(session, index)
    session.delete(index)
    session.flush()
    return summary


def _summary(session: Session, index: VectorIndex) -> IndexSummary:
    found = summaries(session, index.collection_id)
    return next(one for one in found if one.stored_name == index.stored_name)


def _require_unused(session: Session, index: VectorIndex) -> None:
    _lock(session, index.collection_id, shared=False)
    session.refresh(index)
    if index.state == IndexState.ACTIVE:
        raise Conflict(
            f"{shown(index.stored_name)} is the index that searches read. Make another one active "
            "first: `sluice collections rebuild NAME`, or with `--rollback`."
        )
    if index.state == IndexState.BUILDING:
        _require_ended(session, index)
        index.state = IndexState.RETIRED.value


def due(session: Session, *where: ColumnElement[bool], limit: int) -> Sequence[VectorIndex]:
    """Retired indexes whose time is up: no rollback to them is possible."""
    return session.scalars(
        select(VectorIndex)
        .where(
            VectorIndex.state == IndexState.RETIRED,
            VectorIndex.kept_until <= func.now(),
            *where,
        )
        .order_by(VectorIndex.id)
        .limit(limit)
    ).all()


def remove(session: Session, index_id: UUID) -> None:
    """Delete a retired index, after its vectors."""
    session.execute(
        delete(VectorIndex).where(
            VectorIndex.id == index_id, VectorIndex.state == IndexState.RETIRED
        )
    )

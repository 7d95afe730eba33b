"""The lexical index in the ledger: which segments of postings count, and which versions do not.

A segment has the postings of some chunks of a collection in one field, as bytes that
`workers/retrieval/postings.py` writes and reads. Segments do not change. The postings of a version
count from the transaction that makes it live (`publish`) until the one that retires it
(`unpublish`). After that they stay in their segment, and readers leave out the versions of
`lexical_deletions`. Merging replaces many small segments by few large ones without deleted
versions. A transaction that merges, or removes postings, holds the lock of the collection's index
(`lock`); writing a version needs no lock.
"""

import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from uuid import UUID

from sqlalchemy import ColumnElement, and_, delete, func, insert, select, text, update
from sqlalchemy.orm import Session

from shared.tables import Document, LexicalPage, LexicalSegment, Version

ROWS_AT_ONCE = 10_000
TIER_FACTOR = 8
FULL_CHUNKS = 2**15
"""Segments with this many chunks are not merged any more."""


class Field(IntEnum):
    """The kind of terms; each has an index of its own."""

    TERMS = 0
    MORPHEMES = 1

    @property
    def bit(self) -> int:
        """Its bit in `versions.lexical_fields`."""
        return 1 << self.value


@dataclass(frozen=True, kw_only=True)
class PackedSegment:
    """The bytes of a segment. `pages` are pairs (last term, bytes) in ascending order; `tokens` is
    the sum of the lengths of the chunks."""

    field: Field
    chunks: int
    tokens: int
    members: bytes
    lengths: bytes
    pages: Sequence[tuple[int, bytes]]


def tier_of(chunks: int) -> int:
    """The tier of a segment. `TIER_FACTOR` segments of a tier are merged."""
    tier = 0
    while chunks >= TIER_FACTOR:
        chunks //= TIER_FACTOR
        tier += 1
    return tier


FULL_TIER = tier_of(FULL_CHUNKS)


def write(
    session: Session,
    collection_id: UUID,
    segment: PackedSegment,
    *,
    version_id: UUID | None = None,
) -> int:
    """Store a segment; returns its id. It counts at once, or with a pending version, once that is
    live."""
    segment_id = session.execute(
        insert(LexicalSegment)
        .values(
            collection_id=collection_id,
            field=segment.field.value,
            version_id=version_id,
            tier=tier_of(segment.chunks),
            chunks=segment.chunks,
            tokens=segment.tokens,
            members=segment.members,
            lengths=segment.lengths,
            page_ends=_packed_ends([end for end, _ in segment.pages]),
        )
        .returning(LexicalSegment.id)
    ).scalar_one()
    write_pages(session, segment_id, segment.pages)
    return segment_id


def write_pages(session: Session, segment_id: int, pages: Sequence[tuple[int, bytes]]) -> None:
    rows = [{"segment_id": segment_id, "last_term": end, "data": data} for end, data in pages]
    if rows:
        session.execute(insert(LexicalPage), rows)


def set_page_ends(session: Session, segment_id: int, ends: Sequence[int]) -> None:
    """Store the page ends of a segment whose pages were written one after the other."""
    session.execute(
        update(LexicalSegment)
        .where(LexicalSegment.id == segment_id)
        .values(page_ends=_packed_ends(ends))
    )


def _packed_ends(ends: Sequence[int]) -> bytes:
    return struct.pack(f"<{len(ends)}q", *ends)


def lacks_postings(session: Session, version_id: UUID, *, first: int, end: int) -> bool:
    """Whether a pending version, whose document is locked, still needs the postings of these
    ordinals. They are written in the same transaction that notes their vectors."""
    lacks = session.scalar(
        text("""
            SELECT state = 'pending' AND NOT embedded @> int4range(:first, :end)
            FROM versions WHERE id = :id
        """),
        {"id": version_id, "first": first, "end": end},
    )
    return bool(lacks)


def publish(session: Session, version_id: UUID) -> None:
    """Let the postings of a version count, since it becomes live.

    If a field lacks postings of some chunks, those of the others are dropped; the sweeper makes
    them anew.
    """
    session.execute(
        text("""
            WITH whole AS (
                SELECT s.field FROM lexical_segments s WHERE s.version_id = :id
                GROUP BY s.field
                HAVING sum(s.chunks) = (SELECT chunk_count FROM versions WHERE id = :id)
            ), published AS (
                UPDATE lexical_segments SET version_id = NULL
                WHERE version_id = :id AND field IN (SELECT field FROM whole)
            ), dropped AS (
                DELETE FROM lexical_segments
                WHERE version_id = :id AND field NOT IN (SELECT field FROM whole)
            )
            UPDATE versions
            SET lexical_fields = lexical_fields | (SELECT sum(1 << field)::int FROM whole)
            WHERE id = :id AND EXISTS (SELECT FROM whole)
        """),
        {"id": version_id},
    )


def note_published(session: Session, version_ids: Iterable[UUID], fields: Iterable[Field]) -> None:
    """Note that live versions have postings that count."""
    session.execute(
        text("""
            UPDATE versions SET lexical_fields = lexical_fields | :bits WHERE id = ANY(:ids)
        """),
        {"ids": list(version_ids), "bits": sum(field.bit for field in fields)},
    )


def unpublish(session: Session, version_ids: Iterable[UUID]) -> None:
    """Let the postings of live versions count no longer. Their documents must be locked."""
    session.execute(
        text("""
            INSERT INTO lexical_deletions (collection_id, field, version_id, chunks)
            SELECT d.collection_id, f.field, v.id, v.chunk_count
            FROM versions v
            JOIN documents d ON d.id = v.document_id
            JOIN (VALUES (0), (1)) f (field) ON v.lexical_fields & (1 << f.field) <> 0
            WHERE v.id = ANY(:ids)
            ON CONFLICT DO NOTHING
        """),
        {"ids": list(version_ids)},
    )


def lock(session: Session, collection_id: UUID, *, wait: bool = True) -> bool:
    """Keep others from merging segments of the collection until the commit; False if another
    transaction does so now and `wait` is False. Call it before locking rows."""
    key = int.from_bytes(collection_id.bytes[8:], "big", signed=True)
    if not wait:
        return bool(session.scalar(select(func.pg_try_advisory_xact_lock(key))))
    session.execute(text("SET LOCAL statement_timeout = 0"))
    session.execute(select(func.pg_advisory_xact_lock(key)))
    return True


@dataclass(frozen=True, kw_only=True)
class MergeGroup:
    """Segments of one tier, or of a pending version, to be merged."""

    collection_id: UUID
    field: Field
    version_id: UUID | None
    segment_ids: Sequence[int]


def groups_to_merge(
    session: Session,
    collection_id: UUID | None = None,
    *,
    up_to_tier: int = FULL_TIER - 1,
    limit: int,
) -> list[MergeGroup]:
    """The groups of segments that are due for merging, in one collection or in all."""
    rows = session.execute(
        text(f"""
            SELECT collection_id, field, version_id, array_agg(id ORDER BY id) AS ids
            FROM lexical_segments
            WHERE tier <= :tier AND (CAST(:id AS uuid) IS NULL OR collection_id = :id)
            GROUP BY collection_id, field, version_id, tier
            HAVING count(*) >= {TIER_FACTOR}
            ORDER BY tier LIMIT :limit
        """),
        {"id": collection_id, "tier": up_to_tier, "limit": limit},
    )
    return [
        MergeGroup(
            collection_id=row.collection_id,
            field=Field(row.field),
            version_id=row.version_id,
            segment_ids=row.ids,
        )
        for row in rows
    ]


def indexes_to_compact(
    session: Session,
    collection_id: UUID | None = None,
    *,
    share: float,
    least_chunks: int,
    versions: int,
    limit: int,
) -> list[tuple[UUID, Field]]:
    """The indexes with so many deleted chunks, or versions, that searches become slower."""
    rows = session.execute(
        text("""
            SELECT d.collection_id, d.field
            FROM (
                SELECT collection_id, field, sum(chunks) AS chunks, count(*) AS versions
                FROM lexical_deletions
                WHERE CAST(:id AS uuid) IS NULL OR collection_id = :id
                GROUP BY collection_id, field
            ) d
            WHERE d.versions >= :versions OR d.chunks >= :least AND d.chunks >= :share * (
                SELECT sum(s.chunks) FROM lexical_segments s
                WHERE s.collection_id = d.collection_id AND s.field = d.field
                    AND s.version_id IS NULL
            )
            LIMIT :limit
        """),
        {
            "id": collection_id, "share": share, "least": least_chunks, "versions": versions,
            "limit": limit,
        },
    )  # fmt: skip
    return [(row.collection_id, Field(row.field)) for row in rows]


@dataclass(frozen=True, kw_only=True)
class StoredSegment:
    id: int
    chunks: int
    members: bytes
    lengths: bytes
    page_ends: bytes


def segments(session: Session, ids: Sequence[int]) -> list[StoredSegment]:
    """The segments with these ids that exist, in the order of their ids."""
    rows = session.execute(
        select(
            LexicalSegment.id,
            LexicalSegment.chunks,
            LexicalSegment.members,
            LexicalSegment.lengths,
            LexicalSegment.page_ends,
        )
        .where(LexicalSegment.id.in_(ids))
        .order_by(LexicalSegment.id)
    )
    return [
        StoredSegment(
            id=row.id,
            chunks=row.chunks,
            members=row.members,
            lengths=row.lengths,
            page_ends=row.page_ends,
        )
        for row in rows
    ]


def counting_ids(session: Session, collection_id: UUID, field: Field | None = None) -> list[int]:
    """The segments of a collection that count, of one field or of all."""
    query = select(LexicalSegment.id).where(
        LexicalSegment.collection_id == collection_id, LexicalSegment.version_id.is_(None)
    )
    if field is not None:
        query = query.where(LexicalSegment.field == field.value)
    return list(session.scalars(query.order_by(LexicalSegment.id)))


def deleted_versions(session: Session, collection_id: UUID, field: Field) -> set[UUID]:
    rows = session.execute(
        text("""
            SELECT version_id FROM lexical_deletions WHERE collection_id = :id AND field = :field
        """),
        {"id": collection_id, "field": field.value},
    )
    return {row.version_id for row in rows}


def pages(session: Session, segment_id: int, last_terms: Sequence[int]) -> list[tuple[int, bytes]]:
    """These pages of a segment, as (last term, bytes), ascending."""
    rows = session.execute(
        select(LexicalPage.last_term, LexicalPage.data)
        .where(LexicalPage.segment_id == segment_id, LexicalPage.last_term.in_(last_terms))
        .order_by(LexicalPage.last_term)
    )
    return [(row.last_term, row.data) for row in rows]


def rewrite_page(session: Session, segment_id: int, last_term: int, data: bytes) -> None:
    """Replace a page that had postings of erased documents. Readers that have cached the old one do
    not count these anyway."""
    session.execute(
        text("""
            UPDATE lexical_pages SET data = :data
            WHERE segment_id = :id AND last_term = :last
        """),
        {"id": segment_id, "last": last_term, "data": data},
    )


def give_to_pending(session: Session, segment_id: int, version_id: UUID) -> bool:
    """Make a new segment part of a pending version, which stays pending until the commit; False if
    the version was deleted.

    The last operation on a segment, because erasures take locks in this order.
    """
    document = text("""
        SELECT 1 FROM documents WHERE id = (SELECT document_id FROM versions WHERE id = :id)
        FOR UPDATE
    """)
    if session.scalar(document, {"id": version_id}) is None:
        return False
    session.execute(
        update(LexicalSegment).where(LexicalSegment.id == segment_id).values(version_id=version_id)
    )
    return True


def remove_segments(session: Session, ids: Sequence[int], *, version_id: UUID | None) -> int:
    """Delete segments with their pages, if they still belong to that version, or to none; returns
    how many were deleted."""
    gone = session.execute(
        delete(LexicalSegment)
        .where(
            LexicalSegment.id.in_(ids), LexicalSegment.version_id.is_not_distinct_from(version_id)
        )
        .returning(LexicalSegment.id)
        .execution_options(synchronize_session=False)
    )
    return len(gone.all())


def remove_deletions(
    session: Session, collection_id: UUID, field: Field, removed: Iterable[tuple[UUID, int]]
) -> None:
    """Remove the rows of deleted versions that no segment has chunks of any more.

    `removed` are the versions that a merge left out, with the number of chunks of each.
    """
    rows = [
        {"id": collection_id, "field": field.value, "version": version_id, "chunks": chunks}
        for version_id, chunks in sorted(removed)
    ]
    if not rows:
        return
    where = "collection_id = :id AND field = :field AND version_id = :version"
    session.execute(
        text(f"UPDATE lexical_deletions SET chunks = chunks - :chunks WHERE {where}"), rows
    )
    session.execute(text(f"DELETE FROM lexical_deletions WHERE {where} AND chunks <= 0"), rows)


# Live versions without postings: from before there was a lexical index, or, for morphemes, from a
# time when these were switched off.


def unindexed(
    session: Session, field: Field, *where: ColumnElement[bool], limit: int
) -> list[tuple[UUID, UUID, int]]:
    """Live versions without postings of the field that meet the conditions: (collection, version,
    number of chunks)."""
    rows = session.execute(
        select(Document.collection_id, Version.id, Version.chunk_count)
        .join(
            Document,
            and_(Document.id == Version.document_id, Document.live_version_id == Version.id),
        )
        .where(Version.state == "live", _LACKS[field], *where)
        .order_by(Version.id)
        .limit(limit)
    )
    return [(collection_id, version_id, chunks) for collection_id, version_id, chunks in rows]


_LACKS = {field: text(f"versions.lexical_fields & {field.bit} = 0") for field in Field}
"""The same condition as that of the partial indexes."""


def pending_chunks(session: Session, version_id: UUID, field: Field) -> int:
    """The number of chunks of a version whose postings wait for those of the others."""
    count = session.scalar(
        select(func.sum(LexicalSegment.chunks)).where(
            LexicalSegment.version_id == version_id, LexicalSegment.field == field.value
        )
    )
    return count or 0


def still_unindexed(session: Session, version_ids: Sequence[UUID], field: Field) -> set[UUID]:
    """Those of the versions that are live and have no postings; their documents must be locked."""
    rows = session.scalars(
        select(Version.id).where(
            Version.id.in_(version_ids),
            Version.state == "live",
            Version.lexical_fields.op("&")(field.bit) == 0,
        )
    )
    return set(rows)


def drop_field(session: Session, field: Field, *, limit: int) -> bool:
    """Delete some segments of a field; False if none is left."""
    gone = session.execute(
        text("""
            DELETE FROM lexical_segments WHERE id = ANY(ARRAY(
                SELECT id FROM lexical_segments WHERE field = :field LIMIT :limit
            )) RETURNING id
        """),
        {"field": field.value, "limit": limit},
    ).all()
    if gone:
        return True
    session.execute(
        text("DELETE FROM lexical_deletions WHERE field = :field"), {"field": field.value}
    )
    noted = session.execute(
        text("""
            UPDATE versions SET lexical_fields = lexical_fields & ~CAST(:bit AS int)
            WHERE id = ANY(ARRAY(
                SELECT id FROM versions WHERE lexical_fields & :bit <> 0 LIMIT :rows
            )) RETURNING id
        """),
        {"bit": field.bit, "rows": ROWS_AT_ONCE},
    ).all()
    return bool(noted)


def live_among(session: Session, version_ids: Iterable[UUID]) -> set[UUID]:
    rows = session.scalars(
        select(Version.id).where(
            # As an array: a statement takes 65,535 parameters, and a segment has more versions.
            Version.id == func.any(list(version_ids)),
            Version.state == "live",
        )
    )
    return set(rows)


def note_deletions(
    session: Session, collection_id: UUID, field: Field, chunks: Mapping[UUID, int]
) -> None:
    """Note that versions which do not exist any more are deleted from the index; `chunks` says how
    many chunks of each are in a segment. The lock of the index must be held."""
    session.execute(
        text("""
            INSERT INTO lexical_deletions AS l (collection_id, field, version_id, chunks)
            SELECT :id, :field, v.id, v.chunks
            FROM unnest(CAST(:versions AS uuid[]), CAST(:chunks AS int[])) v (id, chunks)
            ON CONFLICT (collection_id, field, version_id)
                DO UPDATE SET chunks = l.chunks + excluded.chunks
        """),
        {
            "id": collection_id,
            "field": field.value,
            "versions": list(chunks),
            "chunks": list(chunks.values()),
        },
    )


def without_collection(session: Session) -> list[UUID]:
    """Deleted collections that still have segments, or rows in `lexical_deletions`."""
    rows = session.execute(
        text("""
            SELECT DISTINCT l.collection_id FROM (
                SELECT collection_id FROM lexical_segments
                UNION ALL SELECT collection_id FROM lexical_deletions
            ) l WHERE NOT EXISTS (SELECT FROM collections c WHERE c.id = l.collection_id)
        """)
    )
    return [row.collection_id for row in rows]


def delete_of_collection(session: Session, collection_id: UUID) -> None:
    """Delete all postings of a collection whose rows are deleted."""
    session.execute(
        text("DELETE FROM lexical_segments WHERE collection_id = :id"), {"id": collection_id}
    )
    session.execute(
        text("DELETE FROM lexical_deletions WHERE collection_id = :id"), {"id": collection_id}
    )

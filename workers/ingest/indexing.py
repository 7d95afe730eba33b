"""The lexical index during ingestion: postings of new versions, merges, missing postings, erasure.

The embedding step makes postings together with vectors, outside of any transaction. The transaction
that notes the vectors stores them, and lets them count if it makes the version live. Segments are
merged after commits, or by the sweeper. Postings of erased text are removed from the pages where
they are.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Final
from uuid import UUID

import numpy as np
from sqlalchemy import select
from sqlalchemy.orm import Session

from shared.config import LexicalSettings
from shared.database.sqlstates import first_line, is_outage
from shared.documents import lexical, versions
from shared.documents.lexical import Field, MergeGroup, PackedSegment, StoredSegment
from shared.documents.versions import ChunkRange, EmbeddingOutcome, VersionState
from shared.jobs import sweeps
from shared.tables import Chunk, Version
from workers.attempts.process import Process
from workers.retrieval.postings import (
    MEMBER,
    SEGMENT_CHUNKS,
    Array,
    ChunkSpan,
    MergePart,
    Segment,
    TermPage,
    build,
    chunk_of,
    deleted_chunks,
    merge,
    merge_members,
)
from workers.retrieval.terms import morphemes_of, terms
from workers.rounds import Item, Round

log = logging.getLogger(__name__)

AT_ONCE_CHUNKS: Final = 512
"""How many chunks are in memory while missing postings are made."""
DELETED_SHARE: Final = 0.1
DELETED_CHUNKS: Final = 512
"""An index is rewritten if at least this share of its chunks is deleted, and at least this
number."""
DELETED_VERSIONS: Final = 20_000
"""Or if this many versions are deleted, whose ids each search reads."""
SOON_TIER: Final = 3
"""Segments up to this tier are merged by the step that wrote the last of them: it takes less than a
second."""
PAGES_AT_ONCE: Final = 32


def fields_of(settings: LexicalSettings) -> list[Field]:
    return [Field.TERMS, Field.MORPHEMES] if settings.morphemes == "kiwi" else [Field.TERMS]


def _terms_in(process: Process, field: Field) -> Callable[[str], list[str]]:
    return terms if field is Field.TERMS else morphemes_of(process).terms


def pack(field: Field, segment: Segment) -> PackedSegment:
    return PackedSegment(
        field=field,
        chunks=len(segment.lengths),
        tokens=int(segment.lengths.sum(dtype=np.int64)),
        members=segment.members.tobytes(),
        lengths=segment.lengths.tobytes(),
        pages=[(int(page.terms[-1]), page.packed()) for page in segment.pages],
    )


# New versions.


@dataclass(frozen=True, kw_only=True)
class _Postings:
    field: Field
    spans: Sequence[ChunkSpan]
    packed: PackedSegment

    @classmethod
    def of(cls, field: Field, spans: Sequence[ChunkSpan]) -> "_Postings":
        return cls(field=field, spans=spans, packed=pack(field, build(spans)))


class NewPostings:
    """The postings of the chunks that an embedding step has embedded.

    All versions that are complete within the step share one segment, however small they are. A part
    of a larger version gets a segment that waits until the version becomes live.
    """

    def __init__(self, process: Process, chunks: Sequence[Chunk], sizes: dict[UUID, int]) -> None:
        """`chunks` are sorted by part and ordinal; `sizes` has the number of chunks of each
        version."""
        self._whole: list[_Postings] = []
        self._parts: list[tuple[UUID, int, _Postings]] = []
        runs = list(_runs(chunks))
        whole = [run for run in runs if len(run) == sizes[run[0].version_id]]
        for field in fields_of(process.settings):
            terms_in = _terms_in(process, field)
            if whole:
                spans = [_span(run, terms_in) for run in whole]
                self._whole.append(_Postings.of(field, spans))
            for run in runs:
                if len(run) < sizes[run[0].version_id]:
                    postings = _Postings.of(field, [_span(run, terms_in)])
                    self._parts.append((run[0].version_id, len(run), postings))

    def write_parts(self, session: Session, collection_id: UUID) -> None:
        """Store the parts that wait for the rest of their versions. In the same transaction as
        their vectors, and before these are noted; the documents must be locked."""
        for version_id, chunks, postings in self._parts:
            _, first = chunk_of(postings.packed.members[:20])
            if lexical.lacks_postings(session, version_id, first=first, end=first + chunks):
                lexical.write(session, collection_id, postings.packed, version_id=version_id)

    def write_whole(
        self,
        session: Session,
        collection_id: UUID,
        embedded: Iterable[tuple[UUID, EmbeddingOutcome]],
    ) -> None:
        """Store the postings of the versions that this transaction makes live."""
        live = {
            version_id
            for version_id, noted in embedded
            if noted.state is VersionState.LIVE and not noted.by_another
        }
        fields: list[Field] = []
        published: set[UUID] = set()
        for postings in self._whole:
            spans = [span for span in postings.spans if span.version_id in live]
            if not spans:
                continue
            if len(spans) < len(postings.spans):  # a version was erased or replaced meanwhile
                postings = _Postings.of(postings.field, spans)
            lexical.write(session, collection_id, postings.packed)
            fields.append(postings.field)
            published.update(span.version_id for span in spans)
        if published:
            lexical.note_published(session, published, fields)


def _runs(chunks: Sequence[Chunk]) -> Iterator[list[Chunk]]:
    """Chunks of one version with consecutive ordinals."""
    run: list[Chunk] = []
    for chunk in chunks:
        if run and (chunk.version_id != run[-1].version_id or chunk.ordinal != run[-1].ordinal + 1):
            yield run
            run = []
        run.append(chunk)
    if run:
        yield run


def _span(run: Sequence[Chunk], terms_in: Callable[[str], list[str]]) -> ChunkSpan:
    return ChunkSpan(
        version_id=run[0].version_id,
        first=run[0].ordinal,
        terms=[terms_in(chunk.text) for chunk in run],
    )


# Merging.


class _SegmentsChanged(Exception):
    """The segments to be merged have changed; another round takes those that exist then."""


def merge_soon(process: Process, collection_id: UUID) -> None:
    """Merge small segments of a collection if there are enough of them."""
    with process.ledger.read() as session:
        groups = lexical.groups_to_merge(session, collection_id, up_to_tier=SOON_TIER, limit=4)
    for group in groups:
        merge_group(process, group)


def merge_group(process: Process, group: MergeGroup) -> bool:
    """Replace several segments by one without deleted versions; False if another process merges in
    the collection, or the segments have changed."""
    with suppress(_SegmentsChanged), process.ledger.begin() as session:
        if not lexical.lock(session, group.collection_id, wait=False):
            return False
        stored = _fitting(lexical.segments(session, group.segment_ids))
        deleted: set[UUID] = set()
        if group.version_id is None:
            deleted = lexical.deleted_versions(session, group.collection_id, group.field)
        _replace(session, group, stored, deleted)
        return True
    return False


def _fitting(stored: Sequence[StoredSegment]) -> list[StoredSegment]:
    """The first segments that fit into one."""
    fitting: list[StoredSegment] = []
    room = SEGMENT_CHUNKS
    for segment in stored:
        if segment.chunks <= room:
            fitting.append(segment)
            room -= segment.chunks
    return fitting


def _replace(
    session: Session, group: MergeGroup, stored: Sequence[StoredSegment], deleted: set[UUID]
) -> None:
    parts = [_part(session, segment, deleted) for segment in stored]
    if not parts:
        raise _SegmentsChanged
    members, lengths = merge_members(parts)
    if len(lengths):
        head = PackedSegment(
            field=group.field,
            chunks=len(lengths),
            tokens=int(lengths.sum(dtype=np.int64)),
            members=members.tobytes(),
            lengths=lengths.tobytes(),
            pages=[],
        )
        new_id = lexical.write(session, group.collection_id, head)
        ends: list[int] = []
        batch: list[tuple[int, bytes]] = []
        for page in merge(parts):
            batch.append((int(page.terms[-1]), page.packed()))
            if len(batch) == PAGES_AT_ONCE:
                lexical.write_pages(session, new_id, batch)
                ends += [end for end, _ in batch]
                batch = []
        lexical.write_pages(session, new_id, batch)
        lexical.set_page_ends(session, new_id, [*ends, *(end for end, _ in batch)])
        owner = group.version_id
        if owner is not None and not lexical.give_to_pending(session, new_id, owner):
            raise _SegmentsChanged
    ids = [segment.id for segment in stored]
    if lexical.remove_segments(session, ids, version_id=group.version_id) < len(ids):
        raise _SegmentsChanged  # published, or deleted with its version
    lexical.remove_deletions(session, group.collection_id, group.field, _removed(parts))


def _part(session: Session, stored: StoredSegment, deleted: set[UUID]) -> MergePart:
    members: Array = np.frombuffer(stored.members, MEMBER)
    ends = np.frombuffer(stored.page_ends, "<i8")

    def read(first: int, end: int) -> list[TermPage]:
        return [
            TermPage.read(data)
            for _, data in lexical.pages(session, stored.id, ends[first:end].tolist())
        ]

    return MergePart(
        members=members,
        lengths=np.frombuffer(stored.lengths, "<u4"),
        deleted=deleted_chunks(members, deleted),
        page_ends=ends,
        read=read,
    )


def _removed(parts: Sequence[MergePart]) -> Iterator[tuple[UUID, int]]:
    """The versions that were left out, with numbers of chunks; a version may occur several
    times."""
    for part in parts:
        starts = np.cumsum(part.members["chunks"]) - part.members["chunks"]
        for member in part.members[part.deleted[starts]] if len(part.members) else []:
            version_id, _ = chunk_of(member["key"])
            yield version_id, int(member["chunks"])


def compact(process: Process, collection_id: UUID, field: Field) -> None:
    """Rewrite segments of an index, those with most deletions first, until half of the allowed
    share is left."""
    with process.ledger.read() as session:
        deleted = lexical.deleted_versions(session, collection_id, field)
        stored = lexical.segments(session, lexical.counting_ids(session, collection_id, field))
    masks = {
        segment.id: deleted_chunks(np.frombuffer(segment.members, MEMBER), deleted)
        for segment in stored
    }
    left = sum(int(mask.sum()) for mask in masks.values())
    allowed = DELETED_SHARE * sum(map(len, masks.values()))
    if len(deleted) >= DELETED_VERSIONS:
        allowed = min(allowed, left / 2)
    for id_ in sorted(masks, key=lambda id_: -masks[id_].mean()):
        if left <= allowed / 2:
            break
        group = MergeGroup(
            collection_id=collection_id, field=field, version_id=None, segment_ids=[id_]
        )
        if merge_group(process, group):
            left -= int(masks[id_].sum())


# Erasing.


def purge(process: Process, collection_id: UUID, *, check: Callable[[], None]) -> int:
    """Remove the postings of all deleted versions of a collection from its pages.

    Until none are left: each page is read again after it was written. Returns the number of pages
    written. Waits for a merge that is running, which may still write what was deleted meanwhile.
    """
    pages = 0
    while True:
        with process.ledger.begin() as session:
            lexical.lock(session, collection_id)
            written = sum(_purge_segments(session, collection_id, field, check) for field in Field)
        if not written:
            return pages
        pages += written


def _purge_segments(
    session: Session, collection_id: UUID, field: Field, check: Callable[[], None]
) -> int:
    deleted_versions = lexical.deleted_versions(session, collection_id, field)
    written = 0
    ids = lexical.counting_ids(session, collection_id, field) if deleted_versions else []
    for id_ in ids:
        check()
        for stored in lexical.segments(session, [id_]):
            deleted = deleted_chunks(np.frombuffer(stored.members, MEMBER), deleted_versions)
            if not deleted.any():
                continue
            ends = np.frombuffer(stored.page_ends, "<i8").tolist()
            for first in range(0, len(ends), PAGES_AT_ONCE):
                some = ends[first : first + PAGES_AT_ONCE]
                for end, data in lexical.pages(session, id_, some):
                    page = TermPage.read(data).without(deleted)
                    if page is not None:
                        lexical.rewrite_page(session, id_, end, page.packed())
                        written += 1
    return written


def orphans(
    process: Process, collection_id: UUID, *, check: Callable[[], None], is_noted: bool
) -> set[UUID]:
    """Versions that are not live any more, and whose postings still count. With `is_noted`, they
    are noted as deleted."""
    versions_: set[UUID] = set()
    for field in Field:
        with process.ledger.read() as reading:
            ids = lexical.counting_ids(reading, collection_id, field)
        for id_ in ids:
            check()
            with process.ledger.begin() as session:
                # So that no merge replaces the segment, and with it the notes of deletions.
                lexical.lock(session, collection_id)
                for stored in lexical.segments(session, [id_]):
                    chunks: dict[UUID, int] = {}
                    for member in np.frombuffer(stored.members, MEMBER):
                        version_id, _ = chunk_of(member["key"])
                        chunks[version_id] = chunks.get(version_id, 0) + int(member["chunks"])
                    # In this order: a version is noted as deleted when it stops being live.
                    gone = chunks.keys() - lexical.live_among(session, chunks)
                    gone -= (
                        lexical.deleted_versions(session, collection_id, field) if gone else set()
                    )
                    if gone and is_noted:
                        counts = {version_id: chunks[version_id] for version_id in gone}
                        lexical.note_deletions(session, collection_id, field, counts)
                    versions_ |= gone
    return versions_


# Missing postings.


def add_missing(process: Process, field: Field, round_: Round | None = None) -> bool:
    """Make postings for some live versions without them; False if there are none.

    A version that fails is noted, and skipped for some time.
    """
    fine = [] if round_ is None else [~sweeps.is_left_alone(round_.part, "version", Version.id)]
    with process.ledger.read() as session:
        lacking = lexical.unindexed(session, field, *fine, limit=AT_ONCE_CHUNKS)
    if not lacking:
        return False
    collection_id, version_id, chunks = lacking[0]
    batch = [version_id]
    add: Callable[[Sequence[UUID]], None]
    if chunks > AT_ONCE_CHUNKS:
        add = partial(_add_part, process, field, collection_id, chunk_count=chunks)
    else:
        add = partial(_add_batch, process, field, collection_id)
        room = AT_ONCE_CHUNKS - chunks
        for owner, other, count in lacking[1:]:
            if owner == collection_id and count <= room:
                batch.append(other)
                room -= count
    try:
        add(batch)
    except Exception as error:
        if round_ is None or is_outage(error):
            raise
        log.info("postings of %s versions are made one by one: %s", len(batch), first_line(error))
        for one in batch:
            try:
                add([one])
            except Exception as own:
                round_.blame(Item(kind="version", id=one), own)
    return True


def _add_batch(
    process: Process, field: Field, collection_id: UUID, version_ids: Sequence[UUID]
) -> None:
    with process.ledger.read() as session:
        chunks = session.scalars(
            select(Chunk)
            .where(Chunk.version_id.in_(version_ids))
            .order_by(Chunk.version_id, Chunk.ordinal)
        ).all()
    terms_in = _terms_in(process, field)
    spans = [_span(run, terms_in) for run in _runs(chunks)]
    with process.ledger.begin() as session:
        versions.lock_documents_of(session, version_ids)
        unindexed = lexical.still_unindexed(session, version_ids, field)
        spans = [span for span in spans if span.version_id in unindexed]
        if spans:
            lexical.write(session, collection_id, pack(field, build(spans)))
        lexical.note_published(session, unindexed, [field])


def _add_part(
    process: Process,
    field: Field,
    collection_id: UUID,
    version_ids: Sequence[UUID],
    *,
    chunk_count: int,
) -> None:
    """The next chunks of a large version; its postings count once all chunks have some."""
    (version_id,) = version_ids
    with process.ledger.read() as session:
        first = lexical.pending_chunks(session, version_id, field)
    end = min(first + AT_ONCE_CHUNKS, chunk_count)
    part = ChunkRange(version_id=version_id, first=first, end=end)
    with process.ledger.read() as session:
        chunks = versions.chunks_of(session, part)
    packed = pack(field, build([_span(chunks, _terms_in(process, field))]))
    with process.ledger.begin() as session:
        versions.lock_documents_of(session, [version_id])
        if not lexical.still_unindexed(session, [version_id], field):
            return
        if lexical.pending_chunks(session, version_id, field) == first:
            lexical.write(session, collection_id, packed, version_id=version_id)
        if end == chunk_count:
            lexical.publish(session, version_id)


class LexicalUpkeep:
    """The part of the sweeper that maintains the lexical indexes: adds missing postings, merges,
    rewrites."""

    def __init__(self) -> None:
        self._is_dropped = False

    def __call__(self, round_: Round) -> None:
        process = round_.process
        fields = fields_of(process.settings)
        for field in fields:
            while round_.goes_on and add_missing(process, field, round_):
                self._merge(round_)
        if Field.MORPHEMES not in fields and not self._is_dropped:
            while round_.goes_on and not self._is_dropped:
                with process.ledger.begin() as session:
                    self._is_dropped = not lexical.drop_field(
                        session, Field.MORPHEMES, limit=round_.limit_rows
                    )
        self._merge(round_)
        with process.ledger.read() as session:
            to_compact = lexical.indexes_to_compact(
                session,
                share=DELETED_SHARE,
                least_chunks=DELETED_CHUNKS,
                versions=DELETED_VERSIONS,
                limit=round_.limit_rows,
            )
        for collection_id, field in to_compact:
            self._try(round_, collection_id, partial(compact, process, collection_id, field))

    def _merge(self, round_: Round) -> None:
        with round_.process.ledger.read() as session:
            groups = lexical.groups_to_merge(session, limit=round_.limit_rows)
        for group in groups:
            self._try(round_, group.collection_id, partial(merge_group, round_.process, group))

    def _try(self, round_: Round, collection_id: UUID, upkeep: Callable[[], object]) -> None:
        """A collection that fails does not stop the others."""
        if not round_.goes_on:
            return
        try:
            upkeep()
        except Exception as error:
            round_.blame(Item(kind="collection", id=collection_id), error)

"""Versions: how the content of a document is replaced so that readers never see a mix of two.

A version is written as `pending` with all its chunks. Embedding steps note which ordinals have
vectors. The step that completes a version makes it `live` and its predecessor `retired`, in one
transaction. Retired and abandoned versions are garbage: their vectors are deleted first, their rows
last. The row of the document is the lock for all of this.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import chain, islice
from typing import Any, Final
from uuid import UUID

from sqlalchemy import delete, exists, func, insert, select, text, update
from sqlalchemy.dialects.postgresql import distinct_on
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.orm import Session

from shared.bounds import as_object
from shared.documents import indexes, lexical
from shared.documents.documents import chunk_id
from shared.documents.indexes import IndexPlace
from shared.errors import DocumentError, Unavailable
from shared.tables import Chunk, Collection, Document, Version, new_id

_ROWS_AT_ONCE: Final = 1000


class VersionState(StrEnum):
    PENDING = "pending"
    LIVE = "live"
    RETIRED = "retired"


@dataclass(frozen=True, kw_only=True)
class Content:
    """The content of a new version: hashes in hex, chunks as (start, text, metadata).

    `chunks` may make its items when they are read; at most some thousands are in memory at once.
    """

    source: str
    sha256: str
    content_hash: str
    size_bytes: int
    metadata: dict[str, Any]
    chunks: Sequence[tuple[int, str, dict[str, Any]]]
    attributes: dict[str, Any] = field(default_factory=dict)
    """The part of the metadata that came with the request."""
    copied_from: UUID | None = None
    """A version with the same chunks, whose vectors are used again."""
    source_id: str | None = None
    """The client's id of the document, which does not depend on `source`."""
    container: str | None = None
    """The name of the source that contains the document, such as an archive."""
    is_growing: bool = False
    """Whether its chunks are added later (`grow`, until `end_growth`); `chunks` is empty then."""


@dataclass(frozen=True, kw_only=True)
class ChunkRange:
    """The chunks `first <= ordinal < end` of a version, for one embedding step."""

    version_id: UUID
    first: int
    end: int

    def chunk_ids(self) -> list[str]:
        return [chunk_id(self.version_id, n) for n in range(self.first, self.end)]


@dataclass(frozen=True, kw_only=True)
class GarbageVersion:
    """A version whose vectors are to be deleted from the store, in all indexes."""

    version_id: UUID
    chunk_count: int
    places: Sequence[IndexPlace]

    def chunk_ids(self) -> list[str]:
        return [chunk_id(self.version_id, n) for n in range(self.chunk_count)]


def lock_documents(
    session: Session, collection_id: UUID, sources: Iterable[str]
) -> dict[str, Document]:
    """The documents of these sources, locked until the commit. Missing ones are made.

    They are locked in the same order always, so that two steps do not deadlock. Raises Unavailable
    if documents are removed at the same time.
    """
    names = sorted(set(sources))
    rows = [{"id": new_id(), "collection_id": collection_id, "source": name} for name in names]
    session.execute(upsert(Document).on_conflict_do_nothing(), rows)
    documents = session.scalars(
        select(Document)
        .where(Document.collection_id == collection_id, Document.source.in_(names))
        .order_by(Document.id)
        .with_for_update()
        .execution_options(populate_existing=True)
    ).all()
    if len(documents) < len(names):
        raise Unavailable("A document was removed at this moment; it is ingested again after that.")
    return {document.source: document for document in documents}


def rename(session: Session, collection_id: UUID, sources: Mapping[str, str]) -> dict[str, str]:
    """Give the documents with these client ids new names; returns errors by id. Call it before
    `lock_documents`."""
    documents = session.scalars(
        select(Document)
        .where(Document.collection_id == collection_id, Document.source_id.in_(sources))
        .order_by(Document.id)
        .with_for_update()
        .execution_options(populate_existing=True)
    ).all()
    errors: dict[str, str] = {}
    for document in documents:
        id_ = document.source_id or ""
        if document.source == sources[id_]:
            continue
        taken = select(Document.id).where(
            Document.collection_id == collection_id, Document.source == sources[id_]
        )
        if session.scalar(taken) is not None:
            errors[id_] = (
                f"{sources[id_]}: the document with the id {id_} is called {document.source}, and "
                "cannot be called so, for another one is. Choose another name, or erase that one."
            )
            continue
        document.source = sources[id_]
        session.flush()
    return errors


def set_source_id(document: Document, content: Content) -> None:
    """Give a locked document the client's id of its content. Raises DocumentError if it has another
    one."""
    if content.source_id is None or document.source_id == content.source_id:
        return
    if document.source_id is not None:
        raise DocumentError(
            f"{content.source}: is the name of the document with the id {document.source_id}, not "
            f"of {content.source_id}. Choose another name, or erase that one."
        )
    document.source_id = content.source_id


def lock_contents(session: Session, collection_id: UUID) -> None:
    """Wait for other callers of this, so that they add no content before the commit."""
    session.execute(
        text("SELECT pg_advisory_xact_lock(hashtextextended(:id, 0))"), {"id": str(collection_id)}
    )


def duplicate_name(session: Session, document: Document, sha256: str) -> str | None:
    """The name of another document of the collection with these bytes, live or pending. None if
    there is none, or if the document has a live content already."""
    if document.live_version_id is not None:
        return None
    return session.scalar(
        select(Document.source)
        .join(Version, Version.document_id == Document.id)
        .where(
            Version.sha256 == sha256,
            Version.state != VersionState.RETIRED,
            Document.collection_id == document.collection_id,
            Document.id != document.id,
            Document.erasing_at.is_(None),
        )
        .limit(1)
    )


def remove_empty(session: Session, document: Document) -> None:
    """Delete a document without versions, which was made for one that was not written."""
    session.execute(
        delete(Document)
        .where(Document.id == document.id, ~exists().where(Version.document_id == Document.id))
        .execution_options(synchronize_session=False)
    )


def retire_missing(
    session: Session, collection_id: UUID, container: str, names: Sequence[str]
) -> dict[str, GarbageVersion]:
    """Hide the documents of a container that are not among these names; returns their versions by
    name, to be collected after the commit."""
    missing = session.scalars(
        select(Document)
        .where(
            Document.collection_id == collection_id,
            Document.container == container,
            Document.source != func.all(list(names)),
            Document.live_version_id.is_not(None),
            Document.erasing_at.is_(None),
        )
        .order_by(Document.id)
        .with_for_update()
        .execution_options(populate_existing=True)
    ).all()
    if not missing:
        return {}
    ids = [document.id for document in missing]
    live = [document.live_version_id for document in missing]
    lexical.unpublish(session, [version_id for version_id in live if version_id is not None])
    for document in missing:
        document.live_version_id = None
    session.flush()
    session.execute(
        update(Version)
        .where(Version.document_id == func.any(ids))
        .values(state=VersionState.RETIRED.value)
        .execution_options(synchronize_session=False)
    )
    garbage = {
        version.version_id: version
        for version in garbage_where(session, Version.id == func.any(live))
    }
    return {
        document.source: garbage[version_id]
        for document, version_id in zip(missing, live, strict=True)
        if version_id is not None
    }


def begin(
    session: Session, document: Document, content: Content, *, skip_existing: bool
) -> UUID | None:
    """`begin_all` for one document."""
    return begin_all(session, [(document, content)], skip_existing=skip_existing)[0]


def begin_all(
    session: Session, items: Sequence[tuple[Document, Content]], *, skip_existing: bool
) -> list[UUID | None]:
    """Write a pending version for each of some locked documents, which are all different, or join
    the one with the same content. Returns their ids; None if the live version has this content
    already.

    A pending version is joined only if it is the newest, since an older one would not become live.
    Raises Unavailable while a document is being erased.
    """
    for document, content in items:
        if document.erasing_at is not None:
            raise Unavailable(f"{content.source} is being erased; it is ingested again after that.")
        if content.container is not None:
            document.container = content.container
    live = _live_hashes(session, [document for document, _ in items])
    todo = [
        (document, content)
        for document, content in items
        if not (live_hash := live.get(document.id))
        or not (skip_existing or live_hash == content.content_hash)
    ]
    pending, newest = _unfinished(session, todo)
    ids: dict[UUID, UUID] = {}
    written: list[tuple[UUID, Document, Content]] = []
    for document, content in todo:
        joined = pending.get((document.id, content.content_hash))
        if joined is not None and joined == newest[document.id]:
            ids[document.id] = joined
            continue
        if joined is not None:
            _set_state(session, joined, VersionState.RETIRED)
        ids[document.id] = new_id(after=newest.get(document.id))
        written.append((ids[document.id], document, content))
    if written:
        rows = [
            {
                "id": version_id,
                "document_id": document.id,
                "state": VersionState.PENDING.value,
                "sha256": content.sha256,
                "content_hash": content.content_hash,
                "size_bytes": content.size_bytes,
                "meta": content.metadata,
                "attributes": content.attributes,
                "chunk_count": len(content.chunks),
            }
            for version_id, document, content in written
        ]
        session.execute(insert(Version), rows)
        _insert_chunks(
            session,
            chain.from_iterable(_rows(id_, 0, content.chunks) for id_, _, content in written),
        )
    return [ids.get(document.id) for document, _ in items]


def _live_hashes(session: Session, documents: Sequence[Document]) -> dict[UUID, str]:
    """Document id -> content hash of its live version."""
    ids = [document.live_version_id for document in documents if document.live_version_id]
    if not ids:
        return {}
    rows = session.execute(
        select(Version.document_id, Version.content_hash).where(Version.id.in_(ids))
    )
    return {row.document_id: row.content_hash for row in rows}


def _unfinished(
    session: Session, items: Sequence[tuple[Document, Content]]
) -> tuple[dict[tuple[UUID, str], UUID], dict[UUID, UUID]]:
    """The pending versions with these contents, locked, by document and hash; and the newest
    version of each document."""
    if not items:
        return {}, {}
    ids = [document.id for document, _ in items]
    pending = session.execute(
        select(Version.document_id, Version.content_hash, Version.id)
        .where(
            Version.document_id.in_(ids),
            Version.content_hash.in_({content.content_hash for _, content in items}),
            Version.state == VersionState.PENDING,
        )
        .order_by(Version.id)
        .with_for_update()
    )
    waiting = {(document_id, content_hash): id_ for document_id, content_hash, id_ in pending}
    newest = session.execute(
        select(Version.document_id, Version.id)
        .where(Version.document_id.in_(ids))
        .ext(distinct_on(Version.document_id))
        .order_by(Version.document_id, Version.id.desc())
    )
    return waiting, {row.document_id: row.id for row in newest}


def _rows(
    version_id: UUID, first: int, chunks: Iterable[tuple[int, str, dict[str, Any]]]
) -> Iterator[dict[str, Any]]:
    return (
        {"version_id": version_id, "ordinal": n, "start": start, "text": text_, "meta": meta}
        for n, (start, text_, meta) in enumerate(chunks, start=first)
    )


def _insert_chunks(session: Session, rows: Iterator[dict[str, Any]]) -> None:
    while batch := list(islice(rows, _ROWS_AT_ONCE)):
        session.execute(insert(Chunk), batch)


# A version that grows gets its chunks in several transactions. Until its growth has ended, its
# chunk count is 0, and no other job joins it. One attempt at a time adds chunks.


@dataclass(frozen=True, kw_only=True)
class Growth:
    """How far a version has grown."""

    chunk_count: int | None
    """The number of chunks, if the growth has ended."""
    ordinal: int
    """The ordinal of the next chunk."""
    start: int
    """The offset from which the text is not in chunks yet."""


def resume_growth(session: Session, version_id: UUID) -> Growth:
    """Where an attempt continues, perhaps after one that was lost. The last chunk is deleted,
    because text behind it may belong to it."""
    chunk_count = session.scalar(select(Version.chunk_count).where(Version.id == version_id))
    if chunk_count:
        return Growth(chunk_count=chunk_count, ordinal=chunk_count, start=0)
    last = session.execute(
        select(Chunk.ordinal, Chunk.start)
        .where(Chunk.version_id == version_id)
        .order_by(Chunk.ordinal.desc())
        .limit(1)
    ).first()
    if last is None:
        return Growth(chunk_count=None, ordinal=0, start=0)
    session.execute(
        delete(Chunk)
        .where(Chunk.version_id == version_id, Chunk.ordinal == last.ordinal)
        .execution_options(synchronize_session=False)
    )
    return Growth(chunk_count=None, ordinal=last.ordinal, start=last.start)


def grow(
    session: Session,
    version_id: UUID,
    first: int,
    chunks: Sequence[tuple[int, str, dict[str, Any]]],
) -> bool:
    """Add the next chunks; False if the version is no longer to become live."""
    if not _hold_pending(session, version_id):
        return False
    _insert_chunks(session, _rows(version_id, first, chunks))
    return True


def end_growth(session: Session, version_id: UUID, chunk_count: int) -> bool:
    """Note that the version has all its chunks; False if it is no longer to become live."""
    if not _hold_pending(session, version_id):
        return False
    session.execute(update(Version).where(Version.id == version_id).values(chunk_count=chunk_count))
    return True


def _hold_pending(session: Session, version_id: UUID) -> bool:
    """Whether the version is pending; it stays so until the commit."""
    held = session.scalar(
        select(Version.id)
        .where(Version.id == version_id, Version.state == VersionState.PENDING)
        .with_for_update()
    )
    return held is not None


@dataclass(frozen=True, kw_only=True)
class VersionDocument:
    """The document of a version, and the number of the version's chunks."""

    document_id: UUID
    source: str
    chunk_count: int


def documents_of(session: Session, version_ids: Iterable[UUID]) -> dict[UUID, VersionDocument]:
    """The documents of these versions, as far as they exist."""
    rows = session.execute(
        select(Version.id, Document.id, Document.source, Version.chunk_count)
        .join(Document, Document.id == Version.document_id)
        .where(Version.id.in_(list(version_ids)))
    )
    return {v: VersionDocument(document_id=d, source=name, chunk_count=n) for v, d, name, n in rows}


_LACKING: Final = text("""
    SELECT p.n FROM unnest(CAST(:ids AS uuid[]), CAST(:firsts AS int[]), CAST(:ends AS int[]))
        WITH ORDINALITY p (id, first, behind, n)
    JOIN versions v ON v.id = p.id
    WHERE v.state = 'pending' AND NOT v.embedded @> int4range(p.first, p.behind)
""")


def unembedded(session: Session, parts: Sequence[ChunkRange]) -> list[Chunk]:
    """The chunks of these parts that have no vectors yet and whose version is pending."""
    lacking = set(session.scalars(_LACKING, _arrays(parts)))
    return chunks_in(session, [part for n, part in enumerate(parts, 1) if n in lacking])


def chunks_of(session: Session, part: ChunkRange) -> Sequence[Chunk]:
    return session.scalars(
        select(Chunk)
        .where(
            Chunk.version_id == part.version_id,
            Chunk.ordinal >= part.first,
            Chunk.ordinal < part.end,
        )
        .order_by(Chunk.ordinal)
    ).all()


_CHUNKS_IN: Final = text("""
    SELECT c.* FROM unnest(CAST(:ids AS uuid[]), CAST(:firsts AS int[]), CAST(:ends AS int[]))
        p (id, first, behind)
    JOIN chunks c ON c.version_id = p.id AND c.ordinal >= p.first AND c.ordinal < p.behind
""")


def chunks_in(session: Session, parts: Sequence[ChunkRange]) -> list[Chunk]:
    """The chunks of all parts, read by one statement; versions in the order of the parts."""
    if not parts:
        return []
    chunks = session.scalars(select(Chunk).from_statement(_CHUNKS_IN), _arrays(parts))
    places: dict[UUID, int] = {}
    for part in parts:
        places.setdefault(part.version_id, len(places))
    return sorted(chunks, key=lambda chunk: (places[chunk.version_id], chunk.ordinal))


def _arrays(parts: Sequence[ChunkRange]) -> dict[str, Any]:
    return {
        "ids": [part.version_id for part in parts],
        "firsts": [part.first for part in parts],
        "ends": [part.end for part in parts],
    }


@dataclass(frozen=True, kw_only=True)
class LiveVersion:
    """The live version of a document without its chunks; `attributes` came with the request."""

    id: UUID
    source: str
    sha256: str
    content_hash: str
    size_bytes: int
    chunk_count: int
    metadata: dict[str, Any]
    attributes: dict[str, Any]


def live_version(session: Session, collection_id: UUID, document_id: UUID) -> LiveVersion | None:
    """None if the collection has no such live document."""
    row = session.execute(
        select(Document.source, Version)
        .join(Version, Version.id == Document.live_version_id)
        .where(Document.id == document_id, Document.collection_id == collection_id)
    ).first()
    if row is None:
        return None
    source, version = row
    metadata = as_object(version.meta)
    return LiveVersion(
        id=version.id,
        source=source,
        sha256=version.sha256,
        content_hash=version.content_hash,
        size_bytes=version.size_bytes,
        chunk_count=version.chunk_count,
        metadata=metadata,
        attributes=metadata if version.attributes is None else as_object(version.attributes),
    )


def lock_documents_of(session: Session, version_ids: Sequence[UUID]) -> None:
    """Lock the documents of these versions until the commit, in the order of their ids."""
    session.execute(
        select(Document.id)
        .where(
            Document.id.in_(
                select(Version.document_id).where(Version.id == func.any(list(version_ids)))
            )
        )
        .order_by(Document.id)
        .with_for_update()
    )


@dataclass(frozen=True, kw_only=True)
class EmbeddingOutcome:
    """The state of a version after one part of it got vectors."""

    state: VersionState | None
    """None: the version was deleted. `pending`: other parts have no vectors yet."""
    replaced: GarbageVersion | None = None
    """The version that it has replaced."""
    by_another: bool = False
    """It was live before this part."""
    superseded: bool = False
    """A newer version of the document has replaced it."""
    chunk_count: int = 0


_NOTE: Final = text("""
    UPDATE versions v SET embedded = v.embedded + int4multirange(int4range(p.first, p.behind))
    FROM unnest(CAST(:ids AS uuid[]), CAST(:firsts AS int[]), CAST(:ends AS int[]))
        p (id, first, behind)
    WHERE v.id = p.id
    RETURNING v.id, v.state, v.chunk_count, v.embedded @> int4range(0, v.chunk_count) AS complete
""")
_MAKE_LIVE: Final = text("""
    WITH made_live AS (
        UPDATE versions SET state = 'live' WHERE id = ANY(:ids) RETURNING id, document_id)
    UPDATE documents d SET live_version_id = made_live.id, updated_at = now()
    FROM made_live WHERE d.id = made_live.document_id
""")


def note_embedded(session: Session, parts: Sequence[ChunkRange]) -> list[EmbeddingOutcome]:
    """Note that the parts have vectors; make the versions live that are complete now.

    Their documents must be locked (`lock_documents_of`). A version older than the live one is
    retired, so that the newest content stays.
    """
    if len({part.version_id for part in parts}) < len(parts):
        return [embedded for part in parts for embedded in note_embedded(session, [part])]
    ids = [part.version_id for part in parts]
    version_rows = session.execute(
        select(Version.id, Document)
        .join(Document, Document.id == Version.document_id)
        .where(Version.id.in_(ids))
        .execution_options(populate_existing=True)
    )
    documents = {row.id: row.Document for row in version_rows}
    values = {
        "ids": ids,
        "firsts": [part.first for part in parts],
        "ends": [part.end for part in parts],
    }
    rows = {row.id: row for row in session.execute(_NOTE, values)}
    counts = Counter(document.id for document in documents.values())
    fresh: list[UUID] = []
    outcomes: list[EmbeddingOutcome] = []
    for part in parts:
        row, document = rows.get(part.version_id), documents.get(part.version_id)
        if row is None or document is None:
            outcomes.append(EmbeddingOutcome(state=None))
            continue
        state = VersionState(row.state)
        if state is not VersionState.PENDING or not row.complete:
            outcomes.append(
                EmbeddingOutcome(
                    state=state,
                    by_another=state is VersionState.LIVE,
                    superseded=state is VersionState.RETIRED and document.erasing_at is None,
                    chunk_count=row.chunk_count,
                )
            )
            continue
        if document.live_version_id is None and counts[document.id] == 1:
            fresh.append(part.version_id)
            outcomes.append(EmbeddingOutcome(state=VersionState.LIVE, chunk_count=row.chunk_count))
        else:
            outcomes.append(_take_over(session, document, part.version_id, row.chunk_count))
        in_parts = part.end - part.first < row.chunk_count  # and earlier parts have left postings
        if in_parts and outcomes[-1].state is VersionState.LIVE:
            lexical.publish(session, part.version_id)
    if fresh:
        session.execute(_MAKE_LIVE, {"ids": fresh})
    return outcomes


def _take_over(
    session: Session, document: Document, version_id: UUID, chunk_count: int
) -> EmbeddingOutcome:
    """Make a complete version live instead of the current one, unless that is newer."""
    old = document.live_version_id
    if old is not None and old > version_id:
        _set_state(session, version_id, VersionState.RETIRED)
        return EmbeddingOutcome(state=VersionState.RETIRED, superseded=True)
    if old is not None:
        lexical.unpublish(session, [old])
        _set_state(session, old, VersionState.RETIRED)
    _set_state(session, version_id, VersionState.LIVE)
    document.live_version_id = version_id
    document.updated_at = func.now()
    session.flush()
    return EmbeddingOutcome(
        state=VersionState.LIVE,
        chunk_count=chunk_count,
        replaced=next(iter(garbage_where(session, Version.id == old)), None),
    )


def garbage_where(session: Session, *where: Any, limit: int | None = None) -> list[GarbageVersion]:
    rows = session.execute(
        select(Version.id, Version.chunk_count, Collection.id)
        .join(Document, Document.id == Version.document_id)
        .join(Collection, Collection.id == Document.collection_id)
        .where(*where)
        .limit(limit)
    ).all()
    places = indexes.places_of(session, {collection_id for _, _, collection_id in rows})
    return [
        GarbageVersion(version_id=i, chunk_count=n, places=places.get(collection_id, ()))
        for i, n, collection_id in rows
    ]


def _set_state(session: Session, version_id: UUID, state: VersionState) -> None:
    session.execute(update(Version).where(Version.id == version_id).values(state=state.value))

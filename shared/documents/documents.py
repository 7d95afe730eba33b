"""Documents as readers see them: only live ones, and only text that is in Postgres."""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from typing import Any
from uuid import UUID

from sqlalchemy import (
    Integer,
    Select,
    String,
    Uuid,
    and_,
    bindparam,
    func,
    literal,
    or_,
    select,
    true,
    tuple_,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.orm import Session

from shared.bounds import INT32_MAX, as_object, nfc
from shared.documents import filtering
from shared.errors import Conflict, NotFound
from shared.filters import MetadataFilter
from shared.tables import Chunk, Collection, Container, Document, Version

ChunkQuery = Select[*tuple[Any, ...]]

CHUNK_ID = re.compile(r"([0-9a-f]{32})-([0-9]{6,10})")


@dataclass(frozen=True, kw_only=True)
class DocumentView:
    id: UUID
    collection: str
    source: str
    sha256: str
    content_hash: str
    size_bytes: int
    chunks: int
    metadata: dict[str, Any]
    source_id: str | None
    """The client's id of the document, which does not depend on `source`."""
    container: str | None
    """The name of the archive or mail that contains it."""
    container_sha256: str | None
    """The hash of the bytes of that container, if all of it has been read."""
    is_whole: bool
    """False if the container, or the attachments of a mail, have not all been read."""
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True, kw_only=True)
class ChunkView:
    """A chunk; `start` is the offset of `text` in the text of the document, in characters."""

    id: str
    document_id: UUID
    source: str
    ordinal: int
    start: int
    text: str
    metadata: dict[str, Any]


def chunk_id(version_id: UUID, ordinal: int) -> str:
    """The id of a chunk in the ledger and in the vector store, the same in each run."""
    return f"{version_id.hex}-{ordinal:06d}"


def parse_chunk_id(value: str) -> tuple[UUID, int] | None:
    match = CHUNK_ID.fullmatch(value)
    if match is None or int(match[2]) > INT32_MAX:
        return None
    return UUID(match[1]), int(match[2])


def get(session: Session, document_id: UUID) -> DocumentView:
    """Raises NotFound, also for documents that are not live yet or are being erased."""
    row = session.execute(_documents().where(Document.id == document_id)).first()
    if row is None:
        raise NotFound(f"There is no document {document_id}.")
    return _document_view(*row)


def page(
    session: Session, collection_id: UUID, *, limit: int, after: UUID | None
) -> list[DocumentView]:
    """Live documents of a collection, oldest first."""
    query = _documents().where(Document.collection_id == collection_id)
    if after is not None:
        query = query.where(Document.id > after)
    return [
        _document_view(*row) for row in session.execute(query.order_by(Document.id).limit(limit))
    ]


def chunk_page(
    session: Session, document_id: UUID, *, limit: int, after: str | None
) -> list[ChunkView]:
    """Chunks in order. Raises Conflict if the document was replaced between two pages."""
    query = _chunks().where(Document.id == document_id).order_by(Chunk.ordinal).limit(limit)
    position = parse_chunk_id(after) if after is not None else None
    if position is not None:
        live = session.scalar(select(Document.live_version_id).where(Document.id == document_id))
        if live != position[0]:
            raise Conflict(f"Document {document_id} was replaced while it was read; start again.")
        query = query.where(Chunk.version_id == position[0], Chunk.ordinal > position[1])
    return [_chunk_view(*row) for row in session.execute(query)]


def named_chunks(
    session: Session,
    collection_id: UUID,
    *,
    sources: Sequence[str],
    ids: Sequence[str],
    limit: int,
    after: str | None,
) -> list[ChunkView]:
    """The live chunks with these ids, and those of the documents with these sources, by id."""
    keys = [key for key in map(parse_chunk_id, ids) if key is not None]
    names = [nfc(name) for name in sources]
    versions = select(Document.live_version_id).where(
        Document.collection_id == collection_id, Document.source.in_(names)
    )
    place = tuple_(Chunk.version_id, Chunk.ordinal)
    query = _chunks().where(
        Document.collection_id == collection_id,
        # As an array, so that the index of chunks can be used for both.
        or_(
            Chunk.version_id == func.any(func.array(versions.scalar_subquery())),
            place.in_(keys),
        ),
    )
    position = parse_chunk_id(after) if after is not None else None
    if position is not None:
        query = query.where(place > position)
    query = query.order_by(Chunk.version_id, Chunk.ordinal).limit(limit)
    return [_chunk_view(*row) for row in session.execute(query)]


def live_hashes(session: Session, collection_id: UUID, sources: Iterable[str]) -> dict[str, str]:
    """Source -> content hash, for those of the documents that are live."""
    rows = session.execute(
        select(Document.source, Version.content_hash)
        .join(Version, Version.id == Document.live_version_id)
        .where(Document.collection_id == collection_id, Document.source.in_(set(sources)))
    )
    return dict(rows.all())


def live_source_ids(session: Session, collection_id: UUID, ids: Sequence[str]) -> set[str]:
    """Those of the clients' ids that live documents have."""
    if not ids:
        return set()
    rows = session.scalars(
        select(Document.source_id).where(
            Document.collection_id == collection_id,
            Document.source_id.in_(ids),
            Document.live_version_id.is_not(None),
        )
    )
    return {id_ for id_ in rows if id_ is not None}


def names(session: Session, collection_id: UUID, ids: Iterable[str]) -> dict[str, str]:
    """Id -> name, for those of the documents that are in the collection."""
    parsed = [id_ for id_ in map(_parse_id, ids) if id_ is not None]
    rows = session.execute(
        select(Document.id, Document.source).where(
            Document.collection_id == collection_id, Document.id.in_(parsed)
        )
    )
    return {str(row.id): row.source for row in rows}


def known_names(session: Session, collection_id: UUID, names: Sequence[str]) -> set[str]:
    """Those of the names that are the source or the id of a live document, or the id of a live
    chunk."""
    ids = {parsed: name for name in names if (parsed := _parse_id(name)) is not None}
    rows = session.execute(
        select(Document.source, Document.id).where(
            Document.collection_id == collection_id,
            Document.live_version_id.is_not(None),
            or_(Document.source.in_(names), Document.id.in_(ids)),
        )
    )
    known = {name for row in rows for name in (row.source, ids.get(row.id, row.source))}
    return known | live_chunks(session, collection_id, names).keys()


def live_chunks(
    session: Session,
    collection_id: UUID,
    ids: Sequence[str],
    *,
    where: MetadataFilter | None = None,
) -> dict[str, ChunkView]:
    """Id -> chunk, for those of the ids that are live and match. One statement, so that versions
    never mix."""
    rows = session.execute(_among(_chunks, where), _named(ids, collection_id))
    views = (_chunk_view(*row) for row in rows)
    return {view.id: view for view in views}


def live_ids(
    session: Session,
    collection_id: UUID,
    ids: Sequence[str],
    *,
    where: MetadataFilter | None = None,
) -> set[str]:
    """Those of the ids for which `live_chunks` has chunks; faster, because texts and metadata are
    not read."""
    rows = session.execute(_among(_keys, where), _named(ids, collection_id))
    return {chunk_id(*row) for row in rows}


def _named(ids: Sequence[str], collection_id: UUID) -> dict[str, Any]:
    keys = [key for key in map(parse_chunk_id, ids) if key is not None]
    return {
        "collection_id": collection_id,
        "version_ids": [version_id for version_id, _ in keys],
        "ordinals": [ordinal for _, ordinal in keys],
    }


def _among(make: Callable[[], ChunkQuery], where: MetadataFilter | None) -> ChunkQuery:
    """The chunks that `_named` names, each found by an index: OFFSET keeps the planner from reading
    a whole table. The statement is the same for any number of ids, so it is seldom planned."""
    return _among_all(make) if where is None else _among_those(make, where)


@cache
def _among_all(make: Callable[[], ChunkQuery]) -> ChunkQuery:
    return _among_those(make, None)


def _among_those(make: Callable[[], ChunkQuery], where: MetadataFilter | None) -> ChunkQuery:
    named = (
        func.unnest(
            bindparam("version_ids", type_=ARRAY(Uuid)), bindparam("ordinals", type_=ARRAY(Integer))
        )
        .table_valued("version_id", "ordinal", name="named")
        .render_derived()
    )
    query = make().where(
        Chunk.version_id == named.c.version_id,
        Chunk.ordinal == named.c.ordinal,
        Document.collection_id == bindparam("collection_id"),
    )
    if where is not None:
        query = query.where(filtering.condition(where))
    chunks = query.correlate(named).offset(0).lateral("found")
    return select(*chunks.c).select_from(named.join(chunks, true()))


def _keys() -> ChunkQuery:
    return _live(select(Chunk.version_id, Chunk.ordinal))


def chunk_range(session: Session, version_id: UUID, *, first: int, last: int) -> list[ChunkView]:
    """The chunks `first <= ordinal <= last` of a version, in order; none if it is not live."""
    query = _chunks().where(Chunk.version_id == version_id, Chunk.ordinal.between(first, last))
    return [_chunk_view(*row) for row in session.execute(query.order_by(Chunk.ordinal))]


def matching_chunks(
    session: Session, collection_id: UUID, where: MetadataFilter, *, limit: int
) -> list[str]:
    """The ids of live chunks that match a filter, at most `limit`, in no order.

    Indexes serve comparisons of a value, of an item of a list, and of a document. For any other
    condition all chunks of the collection are read.
    """
    query = (
        select(Chunk.version_id, Chunk.ordinal)
        .join(Document, Document.live_version_id == Chunk.version_id)
        .join(Collection, Collection.id == Document.collection_id)
        .where(
            Document.collection_id == collection_id,
            Collection.is_visible(),
            filtering.condition(where),
        )
    )
    for key in ("source", "document_id"):
        values = where.required(key)
        if values is None:
            continue
        texts = [value for value in values if isinstance(value, str)]
        own = (
            Document.source.in_(texts) if key == "source"
            else Document.id.in_([*filter(None, map(_parse_id, texts))])
        )  # fmt: skip
        # A consequence of the condition, in a form that both indexes serve.
        versions = select(Document.live_version_id).where(
            Document.collection_id == collection_id, own
        )
        users = literal([{key: value} for value in values], ARRAY(JSONB))
        query = query.where(
            or_(
                Chunk.version_id == func.any(func.array(versions.scalar_subquery())),
                Chunk.meta.op("@>", is_comparison=True)(func.any(users)),
            )
        )
    rows = session.execute(query.limit(limit))
    return [chunk_id(version_id, ordinal) for version_id, ordinal in rows]


def _parse_id(value: str) -> UUID | None:
    try:
        return UUID(value)
    except ValueError:
        return None


def value_types(
    session: Session, collection_id: UUID, keys: Sequence[str], *, sample_chunks: int
) -> dict[str, set[str]]:
    """Key -> the types of its values (as `jsonb_typeof`) in the metadata of some live chunks;
    without keys that none of these has."""
    sample = (
        select(Chunk.meta)
        .join(Document, Document.live_version_id == Chunk.version_id)
        .where(Document.collection_id == collection_id)
        .limit(sample_chunks)
        .subquery()
    )
    names = func.unnest(literal(list(keys), ARRAY(String))).table_valued("name")
    type_ = func.jsonb_typeof(sample.c.meta.op("->")(names.c.name))
    query = select(names.c.name, type_).select_from(sample.join(names, true()))
    types: dict[str, set[str]] = {}
    for name, value_type in session.execute(query.where(type_.is_not(None)).distinct()):
        types.setdefault(name, set()).add(value_type)
    return types


def _documents() -> Select[Document, Version, str, str | None, bool | None]:
    return (
        select(Document, Version, Collection.name, Container.sha256, Container.is_whole)
        .join(Version, Version.id == Document.live_version_id)
        .join(Collection, Collection.id == Document.collection_id)
        .outerjoin(
            Container,
            and_(
                Container.collection_id == Document.collection_id,
                Container.source == func.coalesce(Document.container, Document.source),
            ),
        )
        .where(Collection.is_visible())
    )


def _chunks() -> ChunkQuery:
    """Columns, because an object of the ORM costs as much as everything else for a row."""
    return _live(
        select(
            Chunk.version_id, Chunk.ordinal, Chunk.start, Chunk.text, Chunk.meta,
            Document.id, Document.source,
        )
    )  # fmt: skip


def _live(query: ChunkQuery) -> ChunkQuery:
    return (
        query.select_from(Chunk)
        .join(Version, Version.id == Chunk.version_id)
        .join(
            Document,
            and_(Document.id == Version.document_id, Document.live_version_id == Version.id),
        )
        .join(Collection, Collection.id == Document.collection_id)
        .where(Collection.is_visible())
    )


def _document_view(
    document: Document,
    version: Version,
    collection: str,
    container_sha256: str | None,
    is_whole: bool | None,
) -> DocumentView:
    return DocumentView(
        id=document.id,
        collection=collection,
        source=document.source,
        sha256=version.sha256,
        content_hash=version.content_hash,
        size_bytes=version.size_bytes,
        chunks=version.chunk_count,
        metadata=as_object(version.meta),
        source_id=document.source_id,
        container=document.container,
        container_sha256=container_sha256 if document.container and is_whole else None,
        is_whole=is_whole is not False,
        created_at=document.created_at,
        updated_at=document.updated_at,
    )


def _chunk_view(
    version_id: UUID, ordinal: int, start: int, text: str, meta: Any, document_id: UUID, source: str
) -> ChunkView:
    return ChunkView(
        id=chunk_id(version_id, ordinal),
        document_id=document_id,
        source=source,
        ordinal=ordinal,
        start=start,
        text=text,
        metadata=as_object(meta),
    )

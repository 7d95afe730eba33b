"""Remote documents: the state in which they were read, and the time of the next request to a host.

With the state (`ETag`, `Last-Modified`, links), the next job reads only changed documents.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final
from uuid import UUID

from sqlalchemy import delete, func, select, text
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.orm import Session

from shared.documents.containers import next_page
from shared.tables import RemoteDocument, RemoteHost


@dataclass(frozen=True, kw_only=True)
class RemoteOrigin:
    """The place and state in which a document was read; fields as in `RemoteDocument`."""

    source: str
    url: str
    recipe: str
    content_hash: str
    parent: str | None = None
    etag: str | None = None
    modified: str | None = None
    links: Sequence[str] | None = None


def origins(
    session: Session, collection_id: UUID, sources: Iterable[str]
) -> dict[str, RemoteOrigin]:
    """The stored origins, by the names of the documents."""
    rows = session.scalars(
        select(RemoteDocument).where(
            RemoteDocument.collection_id == collection_id,
            RemoteDocument.source.in_(list(sources)),
        )
    )
    return {
        row.source: RemoteOrigin(
            source=row.source,
            url=row.url,
            recipe=row.recipe,
            content_hash=row.content_hash,
            parent=row.parent,
            etag=row.etag,
            modified=row.modified,
            links=row.links,
        )
        for row in rows
    }


def note(session: Session, collection_id: UUID, new_origins: Sequence[RemoteOrigin]) -> None:
    """Store the origins of documents; earlier ones of the same documents are replaced."""
    rows: dict[str, dict[str, Any]] = {
        origin.source: {
            "collection_id": collection_id,
            "source": origin.source,
            "parent": origin.parent,
            "url": origin.url,
            "etag": origin.etag,
            "modified": origin.modified,
            "recipe": origin.recipe,
            "content_hash": origin.content_hash,
            "links": None if origin.links is None else list(origin.links),
        }
        for origin in new_origins
    }
    if not rows:
        return
    # Ordered by name, so that two jobs with the same documents do not deadlock.
    insert = upsert(RemoteDocument)
    keys = ("collection_id", "source")
    changed = {
        column.name: insert.excluded[column.name]
        for column in RemoteDocument.__table__.columns
        if column.name not in keys
    }
    session.execute(
        insert.on_conflict_do_update(index_elements=keys, set_=changed),
        [rows[name] for name in sorted(rows)],
    )


@dataclass(frozen=True, kw_only=True)
class LiveDocument:
    document_id: UUID
    source: str
    origin: str
    """The document that was read: this one, or the archive that contains it."""


def live_documents(session: Session, collection_id: UUID, parent: str) -> list[LiveDocument]:
    """The live documents that were read from this site or folder, also in archives, by name."""
    rows = session.execute(
        text("""
            WITH met AS (
                SELECT source FROM remote_documents
                WHERE collection_id = :collection_id AND parent = :parent
            )
            SELECT d.id, d.source, met.source AS origin FROM met
            JOIN documents d ON d.collection_id = :collection_id AND d.source = met.source
            WHERE d.live_version_id IS NOT NULL
            UNION ALL
            SELECT d.id, d.source, met.source FROM met
            JOIN documents d ON d.collection_id = :collection_id AND d.container = met.source
            WHERE d.live_version_id IS NOT NULL
            ORDER BY source
        """),
        {"collection_id": collection_id, "parent": parent},
    )
    return [LiveDocument(document_id=id_, source=source, origin=name) for id_, source, name in rows]


def forget(session: Session, collection_id: UUID, sources: Sequence[str]) -> None:
    """Delete the origins of documents that are erased."""
    session.execute(
        delete(RemoteDocument).where(
            RemoteDocument.collection_id == collection_id, RemoteDocument.source.in_(sources)
        )
    )


_FORGET_UNUSED = text("""
    WITH page AS (
        SELECT collection_id, source FROM remote_documents
        WHERE (collection_id, source) > (:collection_id, :source)
        ORDER BY collection_id, source LIMIT :limit
    ), gone AS (
        DELETE FROM remote_documents r USING page p
        WHERE r.collection_id = p.collection_id AND r.source = p.source
          AND NOT EXISTS (
              SELECT FROM documents d
              WHERE d.collection_id = r.collection_id
                AND (d.source = r.source OR d.container = r.source))
          AND NOT EXISTS (
              SELECT FROM containers c
              WHERE c.collection_id = r.collection_id AND c.source = r.source)
    )
    SELECT collection_id, source FROM page ORDER BY collection_id DESC, source DESC LIMIT 1
""")


def forget_unused(
    session: Session, after: tuple[UUID, str] | None, *, limit: int
) -> tuple[UUID, str] | None:
    """Of the next rows after `after`, delete those without a document. Returns the last of these
    rows; None at the end."""
    return next_page(session, _FORGET_UNUSED, after, limit=limit)


# Requests to hosts

HOST_KEPT: Final = timedelta(hours=1)
"""How long the row of a host stays after its last request."""


def forget_hosts(session: Session, *, limit: int) -> None:
    """Delete the rows of hosts without requests for this time."""
    idle = select(RemoteHost.origin).where(RemoteHost.next_at < func.now() - HOST_KEPT)
    session.execute(
        delete(RemoteHost)
        .where(RemoteHost.origin.in_(idle.limit(limit).with_for_update(skip_locked=True)))
        .execution_options(synchronize_session=False)
    )


RESERVE_REQUEST = text("""
    INSERT INTO remote_hosts AS h (origin, next_at)
    VALUES (:origin, now() + make_interval(secs => :delay_s))
    ON CONFLICT (origin) DO UPDATE
    SET next_at = greatest(h.next_at, now()) + make_interval(secs => :delay_s)
    WHERE h.next_at <= now() + make_interval(secs => :patience_s)
    RETURNING extract(epoch FROM h.next_at - now()) - :delay_s AS wait_s
""")


def reserve_request(
    session: Session, origin: str, *, delay_s: float, patience_s: float
) -> float | None:
    """Reserve the next request to a host. Returns the seconds until it may be sent.

    The request after it may be sent `delay_s` later. None, and nothing is reserved, if the time is
    more than `patience_s` away.
    """
    wait_s = session.scalar(
        RESERVE_REQUEST, {"origin": origin, "delay_s": delay_s, "patience_s": patience_s}
    )
    return None if wait_s is None else max(0.0, float(wait_s))


def seconds_until_request(session: Session, origin: str) -> float:
    """The seconds until the next request to the host may be sent."""
    seconds = session.scalar(
        select(func.extract("epoch", RemoteHost.next_at - func.now())).where(
            RemoteHost.origin == origin
        )
    )
    return max(0.0, float(seconds or 0))


def pause_requests(session: Session, origin: str, seconds: float) -> None:
    """Send no requests to the host for this time, which it has asked for."""
    until = func.now() + timedelta(seconds=seconds)
    insert = upsert(RemoteHost).values(origin=origin, next_at=until)
    session.execute(
        insert.on_conflict_do_update(
            index_elements=["origin"],
            set_={"next_at": func.greatest(RemoteHost.next_at, insert.excluded.next_at)},
        )
    )

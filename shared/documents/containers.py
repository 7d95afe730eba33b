"""Containers: sources that contain documents, such as archives and mails with attachments. The
ledger notes which have been read as a whole, so that unchanged ones are not read again.

Members that cannot be read because of their content do not matter for that. Members that were not
read for another reason do, such as a lost worker or a cancelled job, and so do members that were
erased. A container without a document is deleted.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from sqlalchemy import TextClause, delete, select, text, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from shared.database.transaction import Transaction
from shared.tables import Container


@dataclass(frozen=True, kw_only=True)
class NewContainer:
    """A container that is being read; fields as in `Container`."""

    source: str
    sha256: str
    content_hash: str


def begin(
    session: Transaction, collection_id: UUID, new: NewContainer, *, job_id: UUID | None
) -> None:
    """Note that this job reads the container; it has read all of it when it succeeds. `job_id`
    None: a read that leaves existing documents as they are."""
    values = {
        "sha256": new.sha256,
        "content_hash": new.content_hash,
        "job_id": job_id,
        "is_whole": False,
    }
    statement = insert(Container).values(collection_id=collection_id, source=new.source, **values)
    session.execute(
        statement.on_conflict_do_update(index_elements=["collection_id", "source"], set_=values)
    )


def empty(session: Transaction, collection_id: UUID, source: str) -> None:
    """Note that the container has no members any more."""
    session.execute(
        delete(Container).where(
            Container.collection_id == collection_id, Container.source == source
        )
    )


def end(session: Session, job_id: UUID) -> None:
    """Note that the job has read its containers as a whole: it has succeeded."""
    session.execute(
        update(Container)
        .where(Container.job_id == job_id)
        .values(is_whole=True, job_id=None)
        .execution_options(synchronize_session=False)
    )


_FIRST: Final = UUID(int=0)
_OF_MEMBERS: Final = """
    UPDATE containers c SET job_id = NULL
    FROM ingest_items member
    JOIN ingest_items whole ON whole.job_id = member.job_id AND whole.ordinal = member.parent
    WHERE member.job_id = :job_id AND c.job_id = :job_id AND c.source = whole.name
"""


def mark_incomplete(session: Session, job_id: UUID, ordinals: Sequence[int]) -> None:
    """Note that containers of these items are not read as a whole: a member failed that may succeed
    another time."""
    statement = text(f"{_OF_MEMBERS} AND member.ordinal = ANY(:ordinals)")
    session.execute(statement, {"job_id": job_id, "ordinals": list(ordinals)})


def mark_incomplete_versions(session: Session, job_id: UUID, version_ids: Sequence[UUID]) -> None:
    """The same for members that have become versions."""
    statement = text(f"{_OF_MEMBERS} AND member.version_id = ANY(:version_ids)")
    session.execute(statement, {"job_id": job_id, "version_ids": list(version_ids)})


def reopen(session: Session, document_ids: Sequence[UUID]) -> None:
    """Note that containers are not whole: these documents, containers or members, are erased."""
    session.execute(
        text("""
            UPDATE containers c SET is_whole = false, job_id = NULL
            FROM documents d
            WHERE d.id = ANY(:ids) AND c.collection_id = d.collection_id
              AND c.source = coalesce(d.container, d.source)
        """),
        {"ids": list(document_ids)},
    )


def content_hashes(
    session: Session, collection_id: UUID, sources: Sequence[str]
) -> dict[str, str | None]:
    """Source -> hash of the content that was read, for those sources that are containers; None if a
    container is not read as a whole."""
    rows = session.execute(
        select(Container.source, Container.content_hash, Container.is_whole).where(
            Container.collection_id == collection_id, Container.source.in_(sources)
        )
    )
    return {source: content_hash if is_whole else None for source, content_hash, is_whole in rows}


_FORGET: Final = text("""
    WITH page AS (
        SELECT collection_id, source FROM containers
        WHERE (collection_id, source) > (:collection_id, :source)
        ORDER BY collection_id, source LIMIT :limit
    ), gone AS (
        DELETE FROM containers c USING page p
        WHERE c.collection_id = p.collection_id AND c.source = p.source
          AND NOT EXISTS (
              SELECT FROM documents d
              WHERE d.collection_id = c.collection_id
                AND (d.container = c.source OR d.source = c.source))
          AND NOT EXISTS (
              SELECT FROM jobs j WHERE j.id = c.job_id AND j.state IN ('queued', 'running'))
    )
    SELECT collection_id, source FROM page ORDER BY collection_id DESC, source DESC LIMIT 1
""")


def next_page(
    session: Session, statement: TextClause, after: tuple[UUID, str] | None, *, limit: int
) -> tuple[UUID, str] | None:
    """The key of the last row of the next page of a table whose key is (collection, name); None at
    the end."""
    collection_id, source = after or (_FIRST, "")
    row = session.execute(
        statement, {"collection_id": collection_id, "source": source, "limit": limit}
    ).first()
    return None if row is None else (row.collection_id, row.source)


def forget_empty(
    session: Session, after: tuple[UUID, str] | None, *, limit: int
) -> tuple[UUID, str] | None:
    """Of the next containers behind `after`, delete those without documents that are not being
    read. Returns the key of the last one; None at the end."""
    return next_page(session, _FORGET, after, limit=limit)

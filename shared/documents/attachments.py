"""Attachments: files put into a collection by their upload ids, and the state of each.

A collection is also a vector store of OpenAI's API; attachments are the files of that store.
Documents that came into the collection in another way are files of it as well, under their own ids.
Both are listed together, by ids that sort by age.

The state of a running attachment is read from its ingest job, and stored in its row once it is
final, since jobs may be deleted later. This module is the only writer.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from pathlib import PurePosixPath
from typing import Any, Final
from uuid import UUID

from sqlalchemy import delete, select, text
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from shared.bounds import NAME_LIMIT_BYTES, as_object
from shared.documents.ingest_items import Outcome
from shared.tables import Attachment, Document, File, new_id
from shared.vocabulary import OPEN, State

NAME_CHARS: Final = 1024


class AttachmentState(StrEnum):
    """The states of OpenAI's API."""

    IN_PROGRESS = "in_progress"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


@dataclass(frozen=True, kw_only=True)
class NewAttachment:
    """A file to be ingested; `source` is the name of its document."""

    file_id: UUID
    source: str
    attributes: Mapping[str, Any] = field(default_factory=dict)
    splitter: Mapping[str, Any] = field(default_factory=dict)


def sources_of(session: Session, collection_id: UUID, uploads: Sequence[File]) -> dict[UUID, str]:
    """The names for the documents of these uploads: those of the files, unless another document has
    that name. Files that are in the collection already keep their names."""
    # Attachments whose documents were erased keep no name.
    session.execute(
        delete(Attachment)
        .where(
            Attachment.collection_id == collection_id,
            Attachment.source.in_([upload.name for upload in uploads]),
            Attachment.state == AttachmentState.COMPLETED.value,
            Attachment.document_id.is_(None),
        )
        .execution_options(synchronize_session=False)
    )
    known = dict(
        session.execute(
            select(Attachment.file_id, Attachment.source).where(
                Attachment.collection_id == collection_id,
                Attachment.file_id.in_([upload.id for upload in uploads]),
            )
        ).all()
    )
    names = {upload.name for upload in uploads if upload.id not in known}
    taken = set(
        session.scalars(
            select(Document.source).where(
                Document.collection_id == collection_id, Document.source.in_(names)
            )
        )
    )
    taken |= set(
        session.scalars(
            select(Attachment.source).where(
                Attachment.collection_id == collection_id, Attachment.source.in_(names)
            )
        )
    )
    sources: dict[UUID, str] = {}
    for upload in uploads:
        source = known.get(upload.id)
        if source is None:
            source = _distinct(upload) if upload.name in taken else upload.name
            taken.add(source)
        sources[upload.id] = source
    return sources


def _distinct(upload: File) -> str:
    """A name that no other file has, with the suffix of the file, which determines its format."""
    path = PurePosixPath(upload.name)
    suffix = path.suffix if len(path.suffix) < 20 else ""
    stem = upload.name.removesuffix(suffix)
    mark = f" (file-{upload.id.hex}){suffix}"
    stem = stem[: NAME_CHARS - len(mark)]
    room = NAME_LIMIT_BYTES - len(mark.encode())
    return stem.encode()[:room].decode(errors="ignore") + mark


def add(
    session: Session, collection_id: UUID, job_id: UUID, attachments: Sequence[NewAttachment]
) -> None:
    """Write the attachments of a new ingest job, in the order of its sources. Files that are in the
    collection already are ingested again."""
    rows = [
        {
            "id": new_id(),
            "collection_id": collection_id,
            "file_id": attachment.file_id,
            "source": attachment.source,
            "job_id": job_id,
            "ordinal": ordinal,
            "state": AttachmentState.IN_PROGRESS.value,
            "attributes": dict(attachment.attributes),
            "splitter": dict(attachment.splitter),
        }
        for ordinal, attachment in enumerate(attachments)
    ]
    # Sorted, so that two of these transactions do not deadlock.
    rows.sort(key=lambda row: str(row["file_id"]))
    statement = insert(Attachment)
    renewed = ("job_id", "ordinal", "state", "attributes", "splitter")
    session.execute(
        statement.on_conflict_do_update(
            index_elements=[Attachment.collection_id, Attachment.file_id],
            set_={name: statement.excluded[name] for name in renewed} | {"message": None},
        ),
        rows,
    )


_SETTLE = f"""
    WITH decided AS (
        SELECT a.id, d.id AS document_id,
            CASE
                WHEN i.outcome IN (:added, :replaced, :skipped) THEN 'completed'
                WHEN i.outcome IS NOT NULL THEN 'failed'
                WHEN j.state = :cancelled THEN 'cancelled'
                WHEN j.id IS NULL AND d.id IS NOT NULL THEN 'completed'
                ELSE 'failed'
            END AS state,
            coalesce(i.message, j.error ->> 'message',
                'Its ingest job was forgotten before it had ended.') AS message
        FROM attachments a
        LEFT JOIN jobs j ON j.id = a.job_id
        LEFT JOIN ingest_items i ON i.job_id = a.job_id AND i.ordinal = a.ordinal
        LEFT JOIN documents d ON d.collection_id = a.collection_id AND d.source = a.source
            AND d.live_version_id IS NOT NULL
        WHERE a.state = 'in_progress' AND %s AND (i.outcome IS NOT NULL OR j.id IS NULL
            OR j.state NOT IN ({", ".join(f"'{state.value}'" for state in OPEN)}))
        ORDER BY a.id LIMIT :limit FOR UPDATE OF a SKIP LOCKED
    )
    UPDATE attachments a SET state = decided.state, document_id = decided.document_id,
        message = CASE WHEN decided.state = 'failed' THEN left(decided.message, 2000) END
    FROM decided WHERE a.id = decided.id
"""
_SETTLED_AT_ONCE: Final = 10_000


def settle(
    session: Session, collection_ids: Sequence[UUID] | None = None, *, limit: int = _SETTLED_AT_ONCE
) -> int:
    """Store the final states of attachments whose ingestion has ended, of some collections or of
    all; returns how many. Rows that another transaction has locked are skipped."""
    where = "true" if collection_ids is None else "a.collection_id = ANY(:collection_ids)"
    values = {
        "limit": limit,
        "added": Outcome.ADDED.value,
        "replaced": Outcome.REPLACED.value,
        "skipped": Outcome.SKIPPED.value,
        "cancelled": State.CANCELLED.value,
    }
    if collection_ids is not None:
        values["collection_ids"] = list(collection_ids)
    settled = session.execute(text(f"{_SETTLE % where} RETURNING a.id"), values)
    return len(settled.all())


@dataclass(frozen=True, kw_only=True)
class Counts:
    """The number of files of a collection in each state."""

    in_progress: int = 0
    completed: int = 0
    failed: int = 0
    cancelled: int = 0

    @property
    def total(self) -> int:
        return self.in_progress + self.completed + self.failed + self.cancelled


def counts(session: Session, documents: Mapping[UUID, int]) -> dict[UUID, Counts]:
    """Collection id -> its counts; `documents` has the numbers of live documents."""
    rows = session.execute(
        text("""
            SELECT a.collection_id, a.state, count(*) AS files, count(d.id) AS live
            FROM attachments a
            LEFT JOIN documents d ON d.id = a.document_id AND d.live_version_id IS NOT NULL
            WHERE a.collection_id = ANY(:ids) AND a.state <> 'completed'
            GROUP BY a.collection_id, a.state
        """),
        {"ids": list(documents)},
    ).all()
    by_state: dict[UUID, dict[str, int]] = {}
    live: dict[UUID, int] = {}
    for row in rows:
        by_state.setdefault(row.collection_id, {})[row.state] = row.files
        # While a file is ingested again, its document still exists.
        live[row.collection_id] = live.get(row.collection_id, 0) + row.live
    return {
        id_: Counts(completed=max(0, count - live.get(id_, 0)), **by_state.get(id_, {}))
        for id_, count in documents.items()
    }


@dataclass(frozen=True, kw_only=True)
class AttachedFile:
    """A file of a collection: an attachment, or a document that came in another way.

    `id` is that of the upload or of the document. `attributes` are those of the live version if
    there is one; of a document they may be any metadata.
    """

    id: UUID
    key: UUID
    """The sort key of lists."""
    source: str
    name: str
    document_id: UUID | None
    version_id: UUID | None
    state: AttachmentState
    message: str | None
    size_bytes: int
    attributes: Mapping[str, Any]
    splitter: Mapping[str, Any] | None
    """None if unknown."""
    job_id: UUID | None
    ordinal: int | None
    created_at: datetime


_COLUMNS = """
    SELECT a.file_id AS id, a.id AS key, a.source, coalesce(f.name, a.source) AS name,
        d.id AS document_id, v.id AS version_id, a.state, a.message,
        coalesce(v.size_bytes, 0) AS size_bytes,
        CASE WHEN a.state = 'completed' THEN coalesce(v.attributes, v.metadata) END AS live,
        a.attributes, a.splitter, a.job_id, a.ordinal, a.created_at
    FROM attachments a
    LEFT JOIN documents d ON d.id = a.document_id AND d.live_version_id IS NOT NULL
    LEFT JOIN versions v ON v.id = d.live_version_id
    LEFT JOIN files f ON f.id = a.file_id
    WHERE a.collection_id = :collection_id
        AND (a.state <> 'completed' OR d.id IS NOT NULL)
"""
_DOCUMENT_COLUMNS = """
    SELECT d.id, d.id AS key, d.source, d.source AS name, d.id AS document_id, v.id AS version_id,
        'completed' AS state, NULL AS message, v.size_bytes,
        coalesce(v.attributes, v.metadata) AS live, NULL::jsonb AS attributes,
        NULL::jsonb AS splitter, NULL::uuid AS job_id, NULL::int AS ordinal, d.created_at
    FROM documents d JOIN versions v ON v.id = d.live_version_id
    WHERE d.collection_id = :collection_id
        AND NOT EXISTS (SELECT FROM attachments o WHERE o.document_id = d.id)
"""


def get(session: Session, collection_id: UUID, file_id: UUID) -> AttachedFile | None:
    """The file with the id of an upload or of a document; None if the collection has none."""
    by_upload = f"{_COLUMNS} AND a.file_id = :id"
    by_document = f"{_COLUMNS} AND a.document_id = :id"
    rows = session.execute(
        text(f"{by_upload} UNION ALL {by_document} UNION ALL {_DOCUMENT_COLUMNS} AND d.id = :id"),
        {"collection_id": collection_id, "id": file_id},
    ).all()
    return _view(rows[0]) if rows else None


def page(
    session: Session,
    collection_id: UUID,
    *,
    limit: int,
    newest_first: bool,
    behind: UUID | None = None,
    before: UUID | None = None,
    state: AttachmentState | None = None,
    job_id: UUID | None = None,
) -> list[AttachedFile]:
    """Files of a collection, or those of one job, by age: the nearest ones behind or before a
    key."""
    # For `before`, the list is read backwards from that file.
    backwards = before is not None and behind is None
    ascending = newest_first if backwards else not newest_first
    of_attachments, of_documents = [""], [""]
    for key, is_end in ((behind, False), (before, True)):
        if key is None:
            continue
        is_larger = newest_first if is_end else not newest_first
        sign, name = (">" if is_larger else "<"), ("before" if is_end else "behind")
        of_attachments.append(f"a.id {sign} :{name}")
        of_documents.append(f"d.id {sign} :{name}")
    if state is not None:
        of_attachments.append("a.state = :state")
    if job_id is not None:
        of_attachments.append("a.job_id = :job_id")
    direction = "ASC" if ascending else "DESC"
    parts = [f"({_COLUMNS}{' AND '.join(of_attachments)} ORDER BY a.id {direction} LIMIT :limit)"]
    if job_id is None and state in (None, AttachmentState.COMPLETED):
        where = " AND ".join(of_documents)
        parts.append(f"({_DOCUMENT_COLUMNS}{where} ORDER BY d.id {direction} LIMIT :limit)")
    rows = session.execute(
        text(
            f"SELECT * FROM ({' UNION ALL '.join(parts)}) files "
            f"ORDER BY key {direction} LIMIT :limit"
        ),
        {
            "collection_id": collection_id,
            "limit": limit,
            "behind": behind,
            "before": before,
            "state": state.value if state is not None else None,
            "job_id": job_id,
        },
    ).all()
    views = [_view(row) for row in rows]
    return views[::-1] if backwards else views


def _view(row: Any) -> AttachedFile:
    attributes = row.live if row.live is not None else row.attributes
    return AttachedFile(
        id=row.id,
        key=row.key,
        source=row.source,
        name=row.name,
        document_id=row.document_id,
        version_id=row.version_id,
        state=AttachmentState(row.state),
        message=row.message,
        size_bytes=row.size_bytes,
        attributes=as_object(attributes),
        splitter=row.splitter,
        job_id=row.job_id,
        ordinal=row.ordinal,
        created_at=row.created_at,
    )


def of_documents(
    session: Session, document_ids: Sequence[UUID]
) -> dict[UUID, tuple[UUID, str, dict[str, Any]]]:
    """Document id -> its file: id, name and attributes."""
    rows = session.execute(
        text("""
            SELECT d.id AS document_id, coalesce(a.file_id, d.id) AS id,
                coalesce(f.name, a.source, d.source) AS name,
                coalesce(v.attributes, v.metadata) AS attributes
            FROM documents d
            JOIN versions v ON v.id = d.live_version_id
            LEFT JOIN attachments a
                ON a.collection_id = d.collection_id AND a.source = d.source
            LEFT JOIN files f ON f.id = a.file_id
            WHERE d.id = ANY(:ids)
        """),
        {"ids": list(document_ids)},
    )
    return {row.document_id: (row.id, row.name, as_object(row.attributes)) for row in rows}


def file_of_document(session: Session, document_id: UUID) -> UUID | None:
    """The upload that this document was made of; None if there is none."""
    query = select(Attachment.file_id).where(Attachment.document_id == document_id)
    return session.scalar(query.limit(1))


def documents_of_file(session: Session, file_id: UUID) -> list[UUID]:
    """The documents made of an upload, in all collections."""
    return list(
        session.scalars(
            select(Document.id)
            .join(
                Attachment,
                (Attachment.collection_id == Document.collection_id)
                & (Attachment.source == Document.source),
            )
            .where(Attachment.file_id == file_id)
        )
    )


def document_of(session: Session, collection_id: UUID, source: str) -> UUID | None:
    """The id of the document with this name, in any state; None if there is none."""
    query = select(Document.id).where(
        Document.collection_id == collection_id, Document.source == source
    )
    return session.scalar(query)


def remove(session: Session, *, file_id: UUID, collection_id: UUID | None = None) -> None:
    """Delete the attachments of the file in a collection, or in all."""
    statement = delete(Attachment).where(Attachment.file_id == file_id)
    if collection_id is not None:
        statement = statement.where(Attachment.collection_id == collection_id)
    session.execute(statement.execution_options(synchronize_session=False))

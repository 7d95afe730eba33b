"""The tables of PostgreSQL, which holds the truth; and ids that sort by age.

State columns of jobs and steps are written only in `shared/jobs/`, those of documents only in
`shared/documents/`, generated text and conversations only by `shared/conversations.py`, prompts
only by `shared/prompts.py`.
"""

import os
import threading
import time
from datetime import datetime
from typing import Any, ClassVar
from uuid import UUID

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    ForeignKey,
    Identity,
    Index,
    Integer,
    MetaData,
    SmallInteger,
    Text,
    TypeDecorator,
    UniqueConstraint,
    and_,
    func,
)
from sqlalchemy import text as sql
from sqlalchemy.dialects.postgresql import ARRAY, INT4MULTIRANGE, JSONB, TIMESTAMP
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

# Identifiers that sort by age: UUID version 7 (RFC 9562, sections 5.7 and 6.2).

_lock = threading.Lock()
_last = 0


def new_id(*, after: UUID | None = None) -> UUID:
    """A UUIDv7: a time in steps of 1/4096 ms, then random bits.

    It sorts after all that this process made before, and after `after`, whatever the clock says.
    """
    tick = _next_tick()
    if after is not None:
        tick = max(tick, _tick_of(after) + 1)
    random_bits = int.from_bytes(os.urandom(8), "big") & (2**62 - 1)
    value = (tick >> 12) << 80 | 0x7 << 76 | (tick & 0xFFF) << 64 | 0x2 << 62 | random_bits
    return UUID(int=value)


def _next_tick() -> int:
    global _last
    with _lock:
        _last = max(time.time_ns() * 4096 // 1_000_000, _last + 1)
        return _last


def _tick_of(id_: UUID) -> int:
    return (id_.int >> 80) << 12 | (id_.int >> 64) & 0xFFF


# What all tables have in common: names of constraints, types of columns.

NAMING = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s",
    "pk": "pk_%(table_name)s",
}


JSON = JSONB(none_as_null=True)


class Base(DeclarativeBase):
    metadata = MetaData(naming_convention=NAMING)
    type_annotation_map = {  # noqa: RUF012  (SQLAlchemy's own interface)
        datetime: TIMESTAMP(timezone=True),
        dict[str, Any]: JSON,
        str: Text,
    }


class Texts(TypeDecorator[list[str]]):
    """A column of several texts. A row that holds nulls or lists of lists is read as the texts in
    it, for such a row must not stop those who read others."""

    impl = ARRAY(Text)
    cache_ok = True

    def process_result_value(self, value: Any, dialect: Any) -> list[str]:
        if not isinstance(value, list):
            return [] if value is None else [str(value)]
        return [text for item in value for text in self.process_result_value(item, dialect)]


# The tables of generated text: what running steps have shown, and stored conversations.
#
# `shared/conversations.py` is their only writer.


class Transcript(Base):
    """What a step has generated so far; the next attempt goes on behind it.

    Text that clients were shown is here first, so that no attempt can contradict it.
    """

    __tablename__ = "transcripts"

    step_id: Mapped[int] = mapped_column(
        BigInteger, ForeignKey("steps.id", ondelete="CASCADE"), primary_key=True
    )
    text: Mapped[str]
    """As the model wrote it."""
    shown: Mapped[str]
    """As clients see it: without markers that cite nothing, without calls of tools."""
    token_ids: Mapped[list[int]] = mapped_column(ARRAY(Integer))
    logprobs: Mapped[Any] = mapped_column(JSON, nullable=True)
    """Of its tokens, where the job asks for them: entries of `TokenLogprob`."""


class Conversation(Base):
    """Turns that one key exchanged with a model."""

    __tablename__ = "conversations"

    id: Mapped[UUID] = mapped_column(primary_key=True, default=new_id)
    fair_key: Mapped[str]
    meta: Mapped[dict[str, Any]] = mapped_column("metadata", server_default=sql("'{}'"))
    summarize: Mapped[bool] = mapped_column(server_default=sql("false"))
    """Whether turns that find no room in the window are summed up rather than forgotten."""
    summary: Mapped[str | None]
    summary_upto: Mapped[int] = mapped_column(server_default=sql("0"))
    """How many messages, from the first one, the summary covers."""
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    updated_at: Mapped[datetime] = mapped_column(server_default=func.now())

    __table_args__ = (Index("ix_conversations_fair_key_id", "fair_key", "id"),)


class ConversationMessage(Base):
    """One message of a conversation, in the shape of `shared.kinds.chat.ChatMessage`."""

    __tablename__ = "conversation_messages"

    conversation_id: Mapped[UUID] = mapped_column(
        ForeignKey("conversations.id", ondelete="CASCADE"), primary_key=True
    )
    ordinal: Mapped[int] = mapped_column(primary_key=True)
    message: Mapped[dict[str, Any]]
    job_id: Mapped[UUID | None]
    """The job whose turn it was; jobs may be gone by retention."""
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


# The tables of prompts; `shared/prompts.py` is their only writer.


class Prompt(Base):
    """A name for versions of a template. Without a `current` one it is erased."""

    __tablename__ = "prompts"

    name: Mapped[str] = mapped_column(primary_key=True)
    current: Mapped[int | None]
    """The version that the name alone stands for."""
    latest: Mapped[int] = mapped_column(server_default=sql("0"))
    """The highest number that was ever given: none is given twice."""
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    updated_at: Mapped[datetime] = mapped_column(server_default=func.now())


class PromptVersion(Base):
    """A version of a prompt. Its row never changes."""

    __tablename__ = "prompt_versions"

    prompt: Mapped[str] = mapped_column(
        ForeignKey("prompts.name", ondelete="CASCADE"), primary_key=True
    )
    version: Mapped[int] = mapped_column(primary_key=True)
    template: Mapped[str]
    description: Mapped[str]
    variables: Mapped[dict[str, Any]]
    """By name: `description` and `default`."""
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


# Presets over models.


class NamedModel(Base):
    """A preset over a model; `shared/named_models.py` is its only reader and writer."""

    __tablename__ = "named_models"

    name: Mapped[str] = mapped_column(primary_key=True)
    base: Mapped[str]
    """The model reference that writes."""
    preset: Mapped[dict[str, Any]]
    """In the shape of `shared.kinds.chat.Preset`."""
    parameters: Mapped[dict[str, Any]] = mapped_column(server_default=sql("'{}'"))
    """Those that it sets, under the names of `shared.kinds.chat.Parameters`."""
    licenses: Mapped[list[str]] = mapped_column(Texts, server_default=sql("'{}'"))
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    updated_at: Mapped[datetime] = mapped_column(server_default=func.now())


# The tables of collections, documents and their text, and of uploads.
#
# State columns are written only by `shared/documents/versions.py` and `erasure.py`.


class Collection(Base):
    """A named set of documents. Its active vector index says of which model its vectors are."""

    __tablename__ = "collections"

    id: Mapped[UUID] = mapped_column(primary_key=True, default=new_id)
    name: Mapped[str] = mapped_column(unique=True)
    display_name: Mapped[str | None]
    """Any text, as vector stores have it; `name` where there is none."""
    meta: Mapped[dict[str, Any]] = mapped_column("metadata", server_default=sql("'{}'"))
    expires_after_days: Mapped[int | None]
    """It is erased so many days after it was last used; None: never."""
    used_at: Mapped[datetime] = mapped_column(server_default=func.now())
    """When it was last used, or before: the newest job that names it may be later."""
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    erasing_at: Mapped[datetime | None]
    importing_job_id: Mapped[UUID | None]
    """The job that writes it, while it is not complete; it may be gone by retention."""
    indexes_made: Mapped[int] = mapped_column(server_default=sql("0"))
    """The highest number that one of its vector indexes has had; none has it again."""

    __table_args__ = (
        Index(
            "ix_collections_expires_after_days",
            "id",
            postgresql_where=sql("expires_after_days IS NOT NULL AND erasing_at IS NULL"),
        ),
        Index(
            "ix_collections_importing_job_id",
            "importing_job_id",
            postgresql_where=sql("importing_job_id IS NOT NULL"),
        ),
    )

    @classmethod
    def is_visible(cls) -> ColumnElement[bool]:
        """Whether readers see it: it is neither being imported nor erased."""
        return and_(cls.erasing_at.is_(None), cls.importing_job_id.is_(None))


class VectorIndex(Base):
    """The vectors that one model gives for a collection: `shared/documents/indexes.py` is its only
    writer."""

    __tablename__ = "vector_indexes"

    id: Mapped[UUID] = mapped_column(primary_key=True, default=new_id)
    collection_id: Mapped[UUID] = mapped_column(
        ForeignKey("collections.id", ondelete="CASCADE"), index=True
    )
    embedding_model: Mapped[str]
    dimension: Mapped[int | None]
    """None until the model was first used, unless the client has fixed it."""
    distance: Mapped[str]
    stored_name: Mapped[str] = mapped_column(unique=True)
    """What the store's own collection is called."""
    server: Mapped[str | None]
    """Of several servers of the store, the one that has it; None: the only one."""
    state: Mapped[str]
    """One of `shared.documents.indexes.IndexState`."""
    tuning: Mapped[dict[str, Any] | None]
    """What was measured of both halves of hybrid search (`workers/retrieval/fusion.py`)."""
    job_id: Mapped[UUID | None]
    """The job that builds it, or has built it; it may be gone by retention."""
    paused_until: Mapped[datetime | None]
    """Until then nothing becomes live in the collection, so that what is built can catch up."""
    kept_until: Mapped[datetime | None]
    """When it is dropped, being retired."""
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())

    __table_args__ = (
        Index(
            "uq_vector_indexes_active",
            "collection_id",
            unique=True,
            postgresql_where=sql("state = 'active'"),
        ),
        Index(
            "uq_vector_indexes_building",
            "collection_id",
            unique=True,
            postgresql_where=sql("state = 'building'"),
        ),
    )


class VectorIndexVersion(Base):
    """Which vectors of a version are in an index that is not active; of the active one,
    `versions.embedded` says it.

    Not tied to versions by a foreign key: who builds an index would wait for each erasure. A row
    that outlives its version does no harm, and goes with its index.
    """

    __tablename__ = "vector_index_versions"

    index_id: Mapped[UUID] = mapped_column(
        ForeignKey("vector_indexes.id", ondelete="CASCADE"), primary_key=True
    )
    version_id: Mapped[UUID] = mapped_column(primary_key=True)
    embedded: Mapped[Any] = mapped_column(INT4MULTIRANGE)


class CollectionCheck(Base):
    """The last comparison of a collection with the vector store, and whether one is due.
    `shared/documents/checks.py` is its only writer, and that of the next table."""

    __tablename__ = "collection_checks"

    collection_id: Mapped[UUID] = mapped_column(
        ForeignKey("collections.id", ondelete="CASCADE"), primary_key=True
    )
    due_at: Mapped[datetime | None]
    """Since when the sweeper is to submit one; None: it is not."""
    finished_at: Mapped[datetime | None]
    """When the last one ended; None before the first."""
    job_id: Mapped[UUID | None]
    """Of the last one; it may be gone by retention."""
    state: Mapped[str | None]
    """One of `shared.documents.checks.CheckState`."""
    counts: Mapped[dict[str, Any]] = mapped_column(server_default=sql("'{}'"))
    """Those of `shared.documents.checks.CheckCounts`."""

    __table_args__ = (
        Index("ix_collection_checks_due_at", "due_at", postgresql_where=sql("due_at IS NOT NULL")),
    )


class StoreServer(Base):
    """A server, or the folder, of the vector store: when it was last seen."""

    __tablename__ = "store_servers"

    url: Mapped[str] = mapped_column(primary_key=True)
    """Without credentials."""
    seen_at: Mapped[datetime]
    """When it was last healthy."""
    away_at: Mapped[datetime | None]
    """Since when it is not; None: it is."""


class Attachment(Base):
    """A file that was put into a collection by its id, and what became of it: the document
    `document_id`. `shared/documents/attachments.py` is its only writer."""

    __tablename__ = "attachments"

    id: Mapped[UUID] = mapped_column(primary_key=True, default=new_id)
    collection_id: Mapped[UUID] = mapped_column(ForeignKey("collections.id", ondelete="CASCADE"))
    file_id: Mapped[UUID]
    """Of an upload, which may be gone."""
    source: Mapped[str]
    """What the document is called: the name of the file, or one made of it where that is taken."""
    document_id: Mapped[UUID | None] = mapped_column(
        ForeignKey("documents.id", ondelete="SET NULL")
    )
    job_id: Mapped[UUID]
    ordinal: Mapped[int]
    """Of its ingest item in the job, which may be gone by retention."""
    state: Mapped[str]
    """One of `shared.documents.attachments.AttachmentState`."""
    message: Mapped[str | None]
    """Why it failed."""
    attributes: Mapped[dict[str, Any]] = mapped_column(server_default=sql("'{}'"))
    """As they were sent with it; those of a document that is there are its version's."""
    splitter: Mapped[dict[str, Any]] = mapped_column(server_default=sql("'{}'"))
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())

    __table_args__ = (
        UniqueConstraint("collection_id", "file_id"),
        UniqueConstraint("collection_id", "source"),
        Index("ix_attachments_collection_id_id", "collection_id", "id"),
        Index("ix_attachments_file_id", "file_id"),
        Index("ix_attachments_job_id", "job_id"),
        Index(
            "ix_attachments_document_id",
            "document_id",
            postgresql_where=sql("document_id IS NOT NULL"),
        ),
        Index(
            "ix_attachments_incomplete",
            "collection_id",
            postgresql_where=sql("state <> 'completed'"),
        ),
    )


class Document(Base):
    """A source item. Readers see it, and its chunks, only through `live_version_id`."""

    __tablename__ = "documents"

    id: Mapped[UUID] = mapped_column(primary_key=True, default=new_id)
    collection_id: Mapped[UUID] = mapped_column(ForeignKey("collections.id", ondelete="CASCADE"))
    source: Mapped[str]
    live_version_id: Mapped[UUID | None]
    source_id: Mapped[str | None]
    """What the client calls it; it stays where `source` changes."""
    container: Mapped[str | None]
    """The name of the source that it was found in, such as an archive; None of a source itself."""
    erasing_at: Mapped[datetime | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    updated_at: Mapped[datetime] = mapped_column(server_default=func.now())

    __table_args__ = (
        UniqueConstraint("collection_id", "source"),
        Index("ix_documents_collection_id_id", "collection_id", "id"),
        Index(
            "uq_documents_source_id",
            "collection_id",
            "source_id",
            unique=True,
            postgresql_where=sql("source_id IS NOT NULL"),
        ),
        Index(
            "ix_documents_container",
            "collection_id",
            "container",
            postgresql_where=sql("container IS NOT NULL"),
        ),
    )


class Version(Base):
    """One content of a document: `pending` until embedded whole, then `live`, then `retired`."""

    __tablename__ = "versions"

    id: Mapped[UUID] = mapped_column(primary_key=True, default=new_id)
    document_id: Mapped[UUID] = mapped_column(ForeignKey("documents.id", ondelete="CASCADE"))
    state: Mapped[str]
    sha256: Mapped[str]
    """Of the raw bytes."""
    content_hash: Mapped[str]
    """Of the raw bytes and of everything else that decides the chunks and their metadata."""
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    meta: Mapped[dict[str, Any]] = mapped_column("metadata", server_default=sql("'{}'"))
    attributes: Mapped[dict[str, Any] | None]
    """The part of its metadata that came with the request; None where that was not noted."""
    chunk_count: Mapped[int]
    embedded: Mapped[Any] = mapped_column(INT4MULTIRANGE, server_default=sql("'{}'"))
    """The ordinals whose vectors are in the active index of the collection."""
    lexical_fields: Mapped[int] = mapped_column(SmallInteger, server_default=sql("0"))
    """Bits of the fields (`shared.documents.lexical.Field`) of which its postings count."""
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())

    __table_args__ = (
        Index("ix_versions_document_id", "document_id"),
        Index("ix_versions_sha256", "sha256"),
        Index(
            "uq_versions_pending",
            "document_id",
            "content_hash",
            unique=True,
            postgresql_where=sql("state = 'pending'"),
        ),
        Index("ix_versions_not_live", "created_at", postgresql_where=sql("state <> 'live'")),
        Index(
            "ix_versions_without_terms",
            "id",
            postgresql_where=sql("state = 'live' AND lexical_fields & 1 = 0"),
        ),
        Index(
            "ix_versions_without_morphemes",
            "id",
            postgresql_where=sql("state = 'live' AND lexical_fields & 2 = 0"),
        ),
    )


class Schedule(Base):
    """A job that is submitted again and again: `shared/jobs/schedules.py` is its only writer."""

    __tablename__ = "schedules"

    name: Mapped[str] = mapped_column(primary_key=True)
    cron: Mapped[str]
    timezone: Mapped[str]
    """By its name in the IANA database."""
    kind: Mapped[str]
    input: Mapped[dict[str, Any]]
    options: Mapped[dict[str, Any]]
    """Lane, metadata, webhook, timeout and attempts of the jobs."""
    fair_key: Mapped[str]
    paused_at: Mapped[datetime | None]
    next_at: Mapped[datetime | None]
    """None where the expression names no moment any more."""
    last_at: Mapped[datetime | None]
    last_job_id: Mapped[UUID | None]
    """Not a foreign key: retention forgets jobs."""
    error: Mapped[str | None]
    """Why the last job could not be submitted."""
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    updated_at: Mapped[datetime] = mapped_column(server_default=func.now())

    __table_args__ = (
        Index("ix_schedules_next_at", "next_at", postgresql_where=sql("paused_at IS NULL")),
    )


class RemoteDocument(Base):
    """Where a document was read that lies elsewhere, and what its server said of it then."""

    __tablename__ = "remote_documents"

    collection_id: Mapped[UUID] = mapped_column(
        ForeignKey("collections.id", ondelete="CASCADE"), primary_key=True
    )
    source: Mapped[str] = mapped_column(primary_key=True)
    """The name of the document."""
    parent: Mapped[str | None]
    """The URL of the site or of the folder that it was found in."""
    url: Mapped[str]
    etag: Mapped[str | None]
    modified: Mapped[str | None]
    """As the server writes it (`Last-Modified`)."""
    recipe: Mapped[str]
    """A hash of everything but the bytes that decides the document's content."""
    content_hash: Mapped[str]
    """That of the version which came of it."""
    links: Mapped[list[str] | None] = mapped_column(ARRAY(Text))
    """Of a page of a site, where its links lead that may be followed."""

    __table_args__ = (
        Index(
            "ix_remote_documents_parent",
            "collection_id",
            "parent",
            postgresql_where=sql("parent IS NOT NULL"),
        ),
    )


class Container(Base):
    """A source that holds documents, such as an archive, or a mail with attachments: what was read
    of it the last time. It is a document itself, or has none."""

    __tablename__ = "containers"

    collection_id: Mapped[UUID] = mapped_column(
        ForeignKey("collections.id", ondelete="CASCADE"), primary_key=True
    )
    source: Mapped[str] = mapped_column(primary_key=True)
    """Its name, which `documents.container` has."""
    sha256: Mapped[str]
    """Of its bytes."""
    content_hash: Mapped[str]
    """Of its bytes, and of all else that decides what its documents are."""
    job_id: Mapped[UUID | None]
    """The job that is to read all of it; None once that is decided."""
    is_whole: Mapped[bool]
    """Whether all that is in it has been read, and nothing of it was erased since."""

    __table_args__ = (
        Index("ix_containers_job_id", "job_id", postgresql_where=sql("job_id IS NOT NULL")),
    )


class RemoteHost(Base):
    """A host that documents are read from: when it may be asked again."""

    __tablename__ = "remote_hosts"

    origin: Mapped[str] = mapped_column(primary_key=True)
    next_at: Mapped[datetime]


class Chunk(Base):
    """A piece of a version's text. Its public id is `chunk_id(version_id, ordinal)`."""

    __tablename__ = "chunks"

    version_id: Mapped[UUID] = mapped_column(
        ForeignKey("versions.id", ondelete="CASCADE"), primary_key=True
    )
    ordinal: Mapped[int] = mapped_column(primary_key=True)
    start: Mapped[int]
    text: Mapped[str]
    meta: Mapped[dict[str, Any]] = mapped_column("metadata", server_default=sql("'{}'"))

    __table_args__ = (
        Index(
            "ix_chunks_metadata",
            "metadata",
            postgresql_using="gin",
            postgresql_ops={"metadata": "jsonb_path_ops"},
        ),
    )


class LexicalSegment(Base):
    """Packed postings of some chunks of a collection; `shared/documents/lexical.py` writes them.

    Not tied to collections by a foreign key: who writes one holds documents, and a key would have
    it wait for an erasure of the collection, which waits for these documents.
    """

    __tablename__ = "lexical_segments"

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    collection_id: Mapped[UUID]
    field: Mapped[int] = mapped_column(SmallInteger)
    version_id: Mapped[UUID | None] = mapped_column(ForeignKey("versions.id", ondelete="CASCADE"))
    """The pending version that it is a part of; None where it counts."""
    tier: Mapped[int] = mapped_column(SmallInteger)
    chunks: Mapped[int]
    tokens: Mapped[int] = mapped_column(BigInteger)
    members: Mapped[bytes]
    lengths: Mapped[bytes]
    page_ends: Mapped[bytes]

    __table_args__ = (
        Index(
            "ix_lexical_segments_tier",
            "collection_id",
            "field",
            "version_id",
            "tier",
            postgresql_include=["id"],
        ),
        Index(
            "ix_lexical_segments_version_id",
            "version_id",
            postgresql_where=sql("version_id IS NOT NULL"),
        ),
    )


class LexicalPage(Base):
    """Postings of the terms of a segment behind the page before it, up to `last_term`."""

    __tablename__ = "lexical_pages"

    segment_id: Mapped[int] = mapped_column(
        BigInteger, ForeignKey("lexical_segments.id", ondelete="CASCADE"), primary_key=True
    )
    last_term: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    data: Mapped[bytes]


class LexicalDeletion(Base):
    """A version that searches must leave out, and how many of its chunks are still in segments."""

    __tablename__ = "lexical_deletions"

    collection_id: Mapped[UUID] = mapped_column(primary_key=True)
    field: Mapped[int] = mapped_column(SmallInteger, primary_key=True)
    version_id: Mapped[UUID] = mapped_column(primary_key=True)
    chunks: Mapped[int]


class File(Base):
    """An upload, whose bytes lie in the storage under `path`; or a file that grows, of which each
    of `parts` is such a path."""

    __tablename__ = "files"

    id: Mapped[UUID] = mapped_column(primary_key=True, default=new_id)
    name: Mapped[str]
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str]
    content_type: Mapped[str | None]
    path: Mapped[str]
    parts: Mapped[list[str] | None] = mapped_column(ARRAY(Text))
    """In their order, below `path`; None for an upload, which is whole."""
    purpose: Mapped[str] = mapped_column(server_default=sql("'user_data'"))
    """One of `shared.files.Purpose`."""
    expires_at: Mapped[datetime | None]
    """When it is forgotten at the latest; retention may be earlier."""
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())

    __table_args__ = (
        Index("ix_files_sha256", "sha256"),
        Index("ix_files_purpose_id", "purpose", "id"),
        Index("ix_files_expires_at", "expires_at", postgresql_where=sql("expires_at IS NOT NULL")),
    )


class Job(Base):
    """What a client submits, polls and cancels."""

    __tablename__ = "jobs"

    id: Mapped[UUID] = mapped_column(primary_key=True, default=new_id)
    kind: Mapped[str]
    state: Mapped[str]
    ending: Mapped[str | None]
    """The state the job goes to once its running steps have stopped: `failed` or `cancelled`."""
    lane: Mapped[int] = mapped_column(SmallInteger)
    queue: Mapped[str]
    fair_key: Mapped[str]
    private: Mapped[bool] = mapped_column(server_default=sql("false"))
    """Whether its text is for its own key alone: that of a conversation's turn, erased or not."""
    collection: Mapped[str | None]
    conversation_id: Mapped[UUID | None] = mapped_column(
        ForeignKey("conversations.id", ondelete="SET NULL")
    )
    batch_id: Mapped[UUID | None] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"))
    """The job of the batch of which it is a line; lists of jobs leave lines out."""
    input: Mapped[dict[str, Any]]
    result: Mapped[Any] = mapped_column(JSON, nullable=True)
    result_path: Mapped[str | None]
    """Where in the storage a result lies that is too large for the row, as JSON."""
    result_bytes: Mapped[int | None] = mapped_column(BigInteger)
    warnings: Mapped[list[str]] = mapped_column(Texts, server_default=sql("'{}'"))
    """What the user has to know of a job that succeeded, such as that a text was cut off."""
    error: Mapped[dict[str, Any] | None]
    dead: Mapped[bool] = mapped_column(server_default=sql("false"))
    progress_done: Mapped[int] = mapped_column(server_default=sql("0"))
    progress_total: Mapped[int | None]
    progress_unit: Mapped[str | None]
    paced_at: Mapped[datetime | None]
    """When the first of it was done: from then on its pace is measured."""
    paced_done: Mapped[int | None]
    """What of `progress_done` was done then."""
    work_done: Mapped[int] = mapped_column(BigInteger, server_default=sql("0"))
    """Parts that are smaller than a unit of progress, such as chunks."""
    work_total: Mapped[int] = mapped_column(BigInteger, server_default=sql("0"))
    """As far as is known."""
    paced_work: Mapped[int | None] = mapped_column(BigInteger)
    open_steps: Mapped[int] = mapped_column(server_default=sql("0"))
    attempt: Mapped[int] = mapped_column(server_default=sql("0"))
    max_attempts: Mapped[int]
    timeout_s: Mapped[float | None]
    deadline_at: Mapped[datetime | None]
    meta: Mapped[dict[str, Any]] = mapped_column("metadata", server_default=sql("'{}'"))
    webhook: Mapped[dict[str, Any] | None]
    has_webhook: ClassVar[bool] = False
    """Only of a job that `shared.jobs.jobs.lock` has loaded, which leaves the column itself out."""
    idempotency_key: Mapped[str | None]
    request_hash: Mapped[str | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    run_after: Mapped[datetime | None]
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]

    __table_args__ = (
        Index(
            "uq_jobs_fair_key_idempotency_key",
            "fair_key",
            "idempotency_key",
            unique=True,
            postgresql_where=sql("idempotency_key IS NOT NULL"),
        ),
        # Of lists, which leave out the lines of batches; those are a list of their own.
        Index("ix_jobs_listed", "id", postgresql_where=sql("batch_id IS NULL")),
        Index("ix_jobs_state_id", "state", "id", postgresql_where=sql("batch_id IS NULL")),
        Index("ix_jobs_kind_id", "kind", "id", postgresql_where=sql("batch_id IS NULL")),
        Index(
            "ix_jobs_collection_id", "collection", "id", postgresql_where=sql("batch_id IS NULL")
        ),
        Index(
            "ix_jobs_batch_id_id", "batch_id", "id", postgresql_where=sql("batch_id IS NOT NULL")
        ),
        Index("ix_jobs_dead_id", "id", postgresql_where=sql("dead")),
        Index(
            "ix_jobs_conversation_id",
            "conversation_id",
            "id",
            postgresql_where=sql("conversation_id IS NOT NULL"),
        ),
        Index(
            "ix_jobs_deadline_at",
            "deadline_at",
            postgresql_where=sql("state IN ('queued', 'running') AND deadline_at IS NOT NULL"),
        ),
        Index("ix_jobs_finished_at", "finished_at"),
    )


class Step(Base):
    """A unit of work inside a job: what workers claim, retry and recover."""

    __tablename__ = "steps"

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    job_id: Mapped[UUID] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"))
    name: Mapped[str]
    queue: Mapped[str]
    route: Mapped[str] = mapped_column(server_default=sql("''"))
    """Which workers of the queue can run it: of `generate`, those that serve this model."""
    batch_key: Mapped[str | None]
    """Queued steps of one key may be claimed together, to run as one batch."""
    lane: Mapped[int] = mapped_column(SmallInteger)
    fair_key: Mapped[str]
    state: Mapped[str]
    after_end: Mapped[bool] = mapped_column(server_default=sql("false"))
    """Housekeeping of a job that has ended (clean-up, webhook); not counted in `open_steps`."""
    payload: Mapped[dict[str, Any]] = mapped_column(server_default=sql("'{}'"))
    result: Mapped[Any] = mapped_column(JSON, nullable=True)
    error: Mapped[dict[str, Any] | None]
    attempt: Mapped[int] = mapped_column(server_default=sql("0"))
    max_attempts: Mapped[int]
    run_after: Mapped[datetime] = mapped_column(server_default=func.now())
    lease_until: Mapped[datetime | None]
    worker: Mapped[str | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]

    __table_args__ = (
        Index(
            "ix_steps_claim",
            "queue",
            "lane",
            "fair_key",
            "route",
            "job_id",
            "id",
            "run_after",
            postgresql_where=sql("state = 'queued'"),
        ),
        Index(
            "ix_steps_due",
            "queue",
            "lane",
            "fair_key",
            "route",
            "job_id",
            "id",
            postgresql_where=sql("state = 'queued' AND run_after <= created_at"),
        ),
        Index(
            "ix_steps_put_off",
            "queue",
            "lane",
            "fair_key",
            "route",
            "run_after",
            "job_id",
            "id",
            postgresql_where=sql("state = 'queued' AND run_after > created_at"),
        ),
        Index(
            "ix_steps_batch",
            "queue",
            "batch_key",
            "lane",
            "job_id",
            "id",
            postgresql_where=sql("state = 'queued' AND batch_key IS NOT NULL"),
        ),
        Index(
            "ix_steps_lease",
            "queue",
            "lease_until",
            "fair_key",
            postgresql_where=sql("state = 'running'"),
        ),
        Index("ix_steps_job_id_state_run_after", "job_id", "state", "run_after"),
        Index(
            "ix_steps_queue_finished_at",
            "queue",
            "finished_at",
            postgresql_where=sql("state = 'succeeded'"),
        ),
    )


class Turn(Base):
    """When a key was last served in a queue: fair share breaks ties by it."""

    __tablename__ = "turns"

    queue: Mapped[str] = mapped_column(primary_key=True)
    fair_key: Mapped[str] = mapped_column(primary_key=True)
    served_at: Mapped[datetime] = mapped_column(server_default=func.now())

    __table_args__ = ({"prefixes": ["UNLOGGED"]},)


class QueueState(Base):
    """Whether a queue is paused; and, for `control`, when the sweeper last ran."""

    __tablename__ = "queues"

    name: Mapped[str] = mapped_column(primary_key=True)
    paused_at: Mapped[datetime | None]
    swept_at: Mapped[datetime | None]


class SweepFault(Base):
    """A row that the sweeper cannot handle, or, with an empty `item`, a part of it that fails."""

    __tablename__ = "sweep_faults"

    part: Mapped[str] = mapped_column(primary_key=True)
    item: Mapped[str] = mapped_column(primary_key=True)
    """The row as people look for it, such as `step 17`."""
    job_id: Mapped[UUID | None]
    message: Mapped[str]
    tries: Mapped[int] = mapped_column(server_default=sql("1"))
    first_at: Mapped[datetime] = mapped_column(server_default=func.now())
    last_at: Mapped[datetime] = mapped_column(server_default=func.now())
    retry_at: Mapped[datetime] = mapped_column(server_default=func.now())

    __table_args__ = (Index("ix_sweep_faults_job_id", "job_id"),)


class PathToDelete(Base):
    """A path in the storage that has to be deleted; the row that named it is deleted already."""

    __tablename__ = "paths_to_delete"

    path: Mapped[str] = mapped_column(primary_key=True)
    is_folder: Mapped[bool]
    tries: Mapped[int] = mapped_column(server_default=sql("0"))
    retry_at: Mapped[datetime] = mapped_column(server_default=func.now())

    __table_args__ = (Index("ix_paths_to_delete_retry_at", "retry_at"),)


class Worker(Base):
    """A live or recent worker process."""

    __tablename__ = "workers"

    name: Mapped[str] = mapped_column(primary_key=True)
    hostname: Mapped[str]
    pid: Mapped[int]
    queues: Mapped[list[str]] = mapped_column(Texts)
    routes: Mapped[list[str]] = mapped_column(Texts, server_default=sql("'{}'"))
    """The models that it serves, as `shared.models.providers.route_of` writes them."""
    concurrency: Mapped[int]
    started_at: Mapped[datetime] = mapped_column(server_default=func.now())
    last_seen_at: Mapped[datetime] = mapped_column(server_default=func.now())


class IngestItem(Base):
    """One source of one ingest job, and what became of it."""

    __tablename__ = "ingest_items"

    job_id: Mapped[UUID] = mapped_column(
        ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True
    )
    ordinal: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    outcome: Mapped[str | None]
    message: Mapped[str | None]
    version_id: Mapped[UUID | None]
    chunks: Mapped[int] = mapped_column(server_default=sql("0"))
    parent: Mapped[int | None]
    """The ordinal of the source that the item is a part of, such as a page of a site."""
    source: Mapped[dict[str, Any] | None]
    """Of an item that has a parent, what stands for an entry of the job's input."""

    __table_args__ = (
        Index(
            "ix_ingest_items_parent",
            "job_id",
            "parent",
            "ordinal",
            postgresql_where=sql("parent IS NOT NULL"),
        ),
        Index(
            "ix_ingest_items_version_id",
            "version_id",
            postgresql_where=sql("version_id IS NOT NULL"),
        ),
    )


# The tables of batches: `shared/jobs/batches.py` is their only writer.


class Batch(Base):
    """What is known of a job of the kind `batch` beyond its row, whose id it has.

    `counts` of its lines are kept here, so that nobody counts rows to show them.
    """

    __tablename__ = "batches"

    id: Mapped[UUID] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    read_bytes: Mapped[int] = mapped_column(BigInteger, server_default=sql("0"))
    """How far the file has been read, at the end of a line."""
    read_lines: Mapped[int] = mapped_column(server_default=sql("0"))
    """How many lines that are, blank ones as well."""
    errors: Mapped[list[dict[str, Any]]] = mapped_column(JSON, server_default=sql("'[]'"))
    """What is wrong with lines of the file: objects of `line`, `message`, `code` and `param`."""
    total: Mapped[int] = mapped_column(server_default=sql("0"))
    open: Mapped[int] = mapped_column(server_default=sql("0"))
    """How many lines are jobs whose end is not noted here yet."""
    succeeded: Mapped[int] = mapped_column(server_default=sql("0"))
    failed: Mapped[int] = mapped_column(server_default=sql("0"))
    cancelled: Mapped[int] = mapped_column(server_default=sql("0"))
    expired: Mapped[int] = mapped_column(server_default=sql("0"))
    prompt_tokens: Mapped[int] = mapped_column(BigInteger, server_default=sql("0"))
    completion_tokens: Mapped[int] = mapped_column(BigInteger, server_default=sql("0"))
    output_file_id: Mapped[UUID | None]
    """Of `files`; it grows while the batch runs, and has the order of the lines at last."""
    error_file_id: Mapped[UUID | None]
    finish_by: Mapped[datetime]
    validated_at: Mapped[datetime | None]
    settled_at: Mapped[datetime | None]
    """When lines were last found to have ended, and written into the files."""
    expired_at: Mapped[datetime | None]
    closed_at: Mapped[datetime | None]
    """When its files were written to their ends."""


class BatchLine(Base):
    """A line of a batch: where it lies in the file, and what became of it."""

    __tablename__ = "batch_lines"

    batch_id: Mapped[UUID] = mapped_column(
        ForeignKey("batches.id", ondelete="CASCADE"), primary_key=True
    )
    number: Mapped[int] = mapped_column(primary_key=True)
    """Of the line in the file, from 1."""
    custom_id: Mapped[str]
    start: Mapped[int] = mapped_column(BigInteger)
    size_bytes: Mapped[int]
    state: Mapped[str]
    """`waiting` until it is a job, then `open`, then as the job ended, or `expired`."""
    url: Mapped[str]
    queue_model: Mapped[str] = mapped_column(server_default=sql("''"))
    """The queue of its first step and the model that it names, as `generate.hf/x`: lines that
    wait for the same have a share of the open ones, so that others go on."""
    options: Mapped[dict[str, Any] | None]
    """What its answer needs of the body, beside the job's input."""
    job_id: Mapped[UUID | None]
    """No foreign key: jobs go by thousands, and each would be looked for here."""
    error: Mapped[dict[str, Any] | None]
    """Why there was no job; what a job failed with stands in its row."""

    __table_args__ = (
        UniqueConstraint("batch_id", "custom_id"),
        Index(
            "ix_batch_lines_waiting",
            "batch_id",
            "queue_model",
            "number",
            postgresql_where=sql("state = 'waiting'"),
        ),
        Index(
            "ix_batch_lines_open",
            "batch_id",
            "number",
            postgresql_where=sql("state = 'open'"),
        ),
        Index(
            "ix_batch_lines_without_result",
            "batch_id",
            "number",
            postgresql_where=sql("state IN ('failed', 'cancelled', 'expired')"),
        ),
    )

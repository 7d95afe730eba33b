"""The tables of jobs, steps and workers. Postgres holds the truth.

State columns are written only by `shared/jobs.py`, `shared/steps.py`, `claims.py` and
`submission.py`. `document_models.py` has the tables of documents and their text,
`dialogue_models.py` those of generated text.
"""

from datetime import datetime
from typing import Any, ClassVar
from uuid import UUID

from sqlalchemy import (
    BigInteger,
    ForeignKey,
    Identity,
    Index,
    SmallInteger,
    Text,
    TypeDecorator,
    func,
)
from sqlalchemy import text as sql
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.orm import Mapped, mapped_column

from shared.base import JSON
from shared.base import Base as Base  # of which the migrations read all tables
from shared.dialogue_models import Conversation as Conversation  # so that they read these, too
from shared.document_models import Document as Document
from shared.ids import new_id


class Texts(TypeDecorator[list[str]]):
    """A column of several texts. A row that holds nulls or lists of lists is read as the texts in
    it, for such a row must not stop those who read others."""

    impl = ARRAY(Text)
    cache_ok = True

    def process_result_value(self, value: Any, dialect: Any) -> list[str]:
        if not isinstance(value, list):
            return [] if value is None else [str(value)]
        return [text for each in value for text in self.process_result_value(each, dialect)]


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
    open_steps: Mapped[int] = mapped_column(server_default=sql("0"))
    attempt: Mapped[int] = mapped_column(server_default=sql("0"))
    max_attempts: Mapped[int]
    timeout_s: Mapped[float | None]
    deadline_at: Mapped[datetime | None]
    meta: Mapped[dict[str, Any]] = mapped_column("metadata", server_default=sql("'{}'"))
    webhook: Mapped[dict[str, Any] | None]
    has_webhook: ClassVar[bool] = False
    """Only of a job that `shared.jobs.lock` has loaded, which leaves the column itself out."""
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
        Index("ix_jobs_state_id", "state", "id"),
        Index("ix_jobs_kind_id", "kind", "id"),
        Index("ix_jobs_collection_id", "collection", "id"),
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
    door: Mapped[str] = mapped_column(server_default=sql("''"))
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
            "door",
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
            "door",
            "job_id",
            "id",
            postgresql_where=sql("state = 'queued' AND run_after <= created_at"),
        ),
        Index(
            "ix_steps_put_off",
            "queue",
            "lane",
            "fair_key",
            "door",
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


class DoomedPath(Base):
    """What retention still has to delete from the storage, its row being gone already."""

    __tablename__ = "doomed_paths"

    path: Mapped[str] = mapped_column(primary_key=True)
    is_folder: Mapped[bool]
    tries: Mapped[int] = mapped_column(server_default=sql("0"))
    retry_at: Mapped[datetime] = mapped_column(server_default=func.now())

    __table_args__ = (Index("ix_doomed_paths_retry_at", "retry_at"),)


class Worker(Base):
    """A live or recent worker process."""

    __tablename__ = "workers"

    name: Mapped[str] = mapped_column(primary_key=True)
    hostname: Mapped[str]
    pid: Mapped[int]
    queues: Mapped[list[str]] = mapped_column(Texts)
    doors: Mapped[list[str]] = mapped_column(Texts, server_default=sql("'{}'"))
    """The models that it serves, as `shared.generation.door_of` writes them."""
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

    __table_args__ = (
        Index(
            "ix_ingest_items_version_id",
            "version_id",
            postgresql_where=sql("version_id IS NOT NULL"),
        ),
    )

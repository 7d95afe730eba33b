"""Writes what a load step produced: many small documents in one transaction, fenced.

Holds about a million characters at a time, so that memory does not grow with the documents.
"""

from sqlalchemy.orm import Session

from shared import items, steps, versions
from shared.errors import Cancelled, DocumentError
from shared.items import Outcome
from shared.versions import Content
from workers.ingest.content import Order
from workers.step import Context

FLUSH_CHARS = 1_000_000


class Writer:
    def __init__(self, context: Context, order: Order) -> None:
        self._context = context
        self._order = order
        self._contents: list[tuple[int, Content]] = []
        self._skipped: list[int] = []
        self._failed: list[tuple[int, str]] = []
        self._chars = 0

    def add(self, ordinal: int, content: Content) -> None:
        """Raises DocumentError where the job would have too many chunks with it."""
        self._limit(content)
        self._contents.append((ordinal, content))
        self._chars += sum(len(text) for _, text, _ in content.chunks)
        if self._chars > FLUSH_CHARS:
            self.flush()

    def _limit(self, content: Content) -> None:
        """Small documents pass unasked, for all that a job may have are within the limit together.

        Steps that run at the same time do not see each other's chunks, so the limit is exceeded by
        as many documents at the most.
        """
        settings = self._context.process.settings
        count, limit = len(content.chunks), settings.max_job_chunks
        if count <= limit // settings.max_sources_per_job:
            return
        with self._context.process.ledger.read() as session:
            written = items.count_chunks(session, self._context.claim.job_id)
        waiting = sum(len(other.chunks) for _, other in self._contents)
        if written + waiting + count > limit:
            raise DocumentError(
                f"{content.source}: has {count:,} chunks, and the job has {written + waiting:,} "
                f"before it; at most {limit:,} go into one job. Ingest it in a job of its own, "
                "choose larger chunks, or raise SLUICE_MAX_JOB_CHUNKS."
            )

    def add_skipped(self, ordinal: int) -> None:
        self._skipped.append(ordinal)

    def add_failed(self, ordinal: int, message: str) -> None:
        self._failed.append((ordinal, message))

    def flush(self) -> None:
        """Raises Cancelled where the attempt is no longer this worker's."""
        claim = self._context.claim
        with self._context.process.ledger.begin() as session:
            if not steps.hold(session, claim):
                raise Cancelled
            self._write_contents(session)
            items.settle(session, claim.job_id, self._skipped, Outcome.SKIPPED)
            for ordinal, message in self._failed:
                items.settle(session, claim.job_id, [ordinal], Outcome.FAILED, message)
        self._contents, self._skipped, self._failed, self._chars = [], [], [], 0

    def _write_contents(self, session: Session) -> None:
        if not self._contents:
            return
        job_id = self._context.claim.job_id
        documents = versions.lock_documents(
            session, self._order.collection_id, [content.source for _, content in self._contents]
        )
        for ordinal, content in self._contents:
            version_id = versions.begin(
                session,
                documents[content.source],
                content,
                skip_existing=self._order.skip_existing,
            )
            if version_id is None:
                self._skipped.append(ordinal)
            else:
                items.assign(session, job_id, ordinal, version_id)

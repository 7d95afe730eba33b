"""Writes the documents of a step as pending versions, with the outcomes of their items.

Every transaction is fenced by the attempt. About a million characters are held at a time, so that
memory does not grow with the number of documents.
"""

from collections.abc import Mapping
from uuid import UUID

from shared.database.transaction import Transaction
from shared.documents import ingest_items, remote, versions
from shared.documents.ingest_items import Outcome
from shared.documents.remote import RemoteOrigin
from shared.documents.versions import Content
from shared.errors import Cancelled, DocumentError, Unavailable
from shared.jobs import jobs, steps
from shared.jobs.steps import Record
from shared.tables import Document
from workers.attempts.context import Context
from workers.ingest.sources import IngestRequest

FLUSH_CHARS = 1_000_000


class Writer:
    """Collects the outcomes of a step, and writes many small documents in one transaction.

    `chunk_counts` has the versions that are to be embedded. `copies` has, for versions with the
    chunks of another version, that one.
    """

    def __init__(self, context: Context, request: IngestRequest) -> None:
        self._context = context
        self._request = request
        self._contents: list[tuple[int, Content]] = []
        self._skipped: list[int] = []
        self._failed: list[tuple[int, str]] = []
        self._left_out: list[int] = []
        self._origins: list[RemoteOrigin] = []
        self._records: list[Record] = []
        self._chars = 0
        self._document_count: int | None = None
        """The number of documents of the job, as far as it is known."""
        self.chunk_counts: dict[UUID, int] = {}
        self.copies: dict[UUID, UUID] = {}

    def add(self, ordinal: int, content: Content) -> None:
        """Raises DocumentError if the job would have too many chunks."""
        self._require_room(content)
        self._contents.append((ordinal, content))
        self._chars += sum(len(text) for _, text, _ in content.chunks)
        if self._chars > FLUSH_CHARS:
            self.flush()

    def _require_room(self, content: Content) -> None:
        """A document is not checked if all documents of its size were within half of the limit.

        Steps that run at the same time do not see each other's chunks: each may exceed the limit by
        one document.
        """
        settings = self._context.process.settings
        count, limit = len(content.chunks), settings.max_job_chunks
        if self._document_count is None:
            with self._context.process.ledger.read() as session:
                self._document_count = jobs.total(session, self._context.claim.job_id)
        if count <= limit // (2 * max(1, self._document_count)):
            return
        with self._context.process.ledger.read() as session:
            written = ingest_items.count_chunks(session, self._context.claim.job_id)
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

    def add_left_out(self, ordinal: int) -> None:
        self._left_out.append(ordinal)

    def add_origin(self, origin: RemoteOrigin) -> None:
        """Let the same transaction write where a document was read."""
        self._origins.append(origin)

    def add_record(self, record: Record) -> None:
        """Let the same transaction run this after the documents."""
        self._records.append(record)

    def flush(self) -> None:
        """Raises Cancelled if the step is no longer this worker's."""
        claim = self._context.claim
        with self._context.process.ledger.begin() as session:
            if not steps.hold(session, claim):
                raise Cancelled
            self._write_contents(session)
            remote.note(session, self._request.collection_id, self._origins)
            ingest_items.settle(session, claim.job_id, self._skipped, Outcome.SKIPPED)
            ingest_items.settle(session, claim.job_id, self._left_out, Outcome.LEFT_OUT)
            for ordinal, message in self._failed:
                ingest_items.settle(session, claim.job_id, [ordinal], Outcome.FAILED, message)
            for record in self._records:
                record(session)
        self._contents, self._skipped, self._failed, self._chars = [], [], [], 0
        self._left_out, self._origins, self._records = [], [], []

    def _write_contents(self, session: Transaction) -> None:
        if not self._contents:
            return
        job_id, collection_id = self._context.claim.job_id, self._request.collection_id
        ids = {c.source_id: c.source for _, c in self._contents if c.source_id is not None}
        errors = versions.rename(session, collection_id, ids) if ids else {}
        documents = versions.lock_documents(
            session, collection_id, [content.source for _, content in self._contents]
        )
        if self._request.skip_duplicates:
            versions.lock_contents(session, self._request.collection_id)
        # Another attempt may have settled an item meanwhile.
        held = ingest_items.hold(session, job_id, [ordinal for ordinal, _ in self._contents])
        ready: dict[str, tuple[int, Content]] = {}
        for ordinal, content in self._contents:
            if ordinal not in held:
                continue
            document = documents[content.source]
            try:
                if content.source_id in errors:
                    raise DocumentError(errors[content.source_id])
                versions.set_source_id(document, content)
            except DocumentError as error:
                self._failed.append((ordinal, error.message))
                continue
            if self._request.skip_duplicates or content.source in ready:
                self._begin(session, documents, ready)  # what follows depends on those before
                ready = {}
            other = (
                versions.duplicate_name(session, document, content.sha256)
                if self._request.skip_duplicates
                else None
            )
            if other is not None:
                ingest_items.settle(session, job_id, [ordinal], Outcome.SKIPPED, other)
                versions.remove_empty(session, document)
                continue
            ready[content.source] = ordinal, content
        self._begin(session, documents, ready)

    def _begin(
        self,
        session: Transaction,
        documents: Mapping[str, Document],
        ready: Mapping[str, tuple[int, Content]],
    ) -> None:
        """Write versions of documents, by their names."""
        if not ready:
            return
        job_id = self._context.claim.job_id
        ids = versions.begin_all(
            session,
            [(documents[source], content) for source, (_, content) in ready.items()],
            skip_existing=self._request.skip_existing,
        )
        assigned: dict[int, UUID] = {}
        written = 0
        for version_id, (ordinal, content) in zip(ids, ready.values(), strict=True):
            if version_id is None:
                self._skipped.append(ordinal)
                continue
            if content.is_growing and ingest_items.is_grown(
                session, version_id, but=(job_id, ordinal)
            ):
                raise Unavailable(
                    f"{content.source} is being ingested by another step; this one goes on after "
                    "that."
                )
            assigned[ordinal] = version_id
            if version_id not in self.chunk_counts:
                written += len(content.chunks)
            self.chunk_counts[version_id] = len(content.chunks)
            if content.copied_from is not None:
                self.copies[version_id] = content.copied_from
        ingest_items.assign(session, job_id, assigned)
        if written:
            jobs.add_work(session, job_id, written)

"""Ingestion in this process: jobs of documents, and what both stores then hold."""

import io
from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import func, select

from shared import files
from shared.config import DEFAULT_EMBEDDING_MODEL
from shared.documents import collections, documents
from shared.kinds import registry as kinds
from shared.kinds.ingest import IngestInput
from shared.kinds.search import Hit, SearchInput
from shared.tables import Chunk, Collection, Document, Job, Version
from shared.vocabulary import OPEN, Lane, Queue, State
from tests.integration.job_runner import drain, handlers, job_of, submit
from workers.attempts.process import Process
from workers.attempts.runner import run_next
from workers.retrieval import search as searching
from workers.retrieval.search import SearchRequest
from workers.retrieval.servers import store_of

SMALL_PIECES = {"type": "recursive", "chunk_size": 60, "chunk_overlap": 10}
CATS = "Cats sleep for most of the day. A cat sleeps fifteen hours on average."
TRAINS = "The train to Busan leaves at nine. Trains run every thirty minutes."


def pages(word: str, count: int) -> str:
    return "\n\n".join(f"{word} page {n} speaks of {word} matters only." for n in range(count))


def new_collection(process: Process, **spec: Any) -> str:
    """A collection with a name that no other test has in Chroma."""
    name = f"test-{uuid4().hex[:12]}"
    with process.ledger.begin() as session:
        collections.put(
            session,
            name,
            collections.Spec(**{"embedding_model": DEFAULT_EMBEDDING_MODEL, **spec}),
        )
    return name


def order(
    process: Process,
    collection: str,
    texts: Mapping[str, str] | Sequence[tuple[str, str]],
    *,
    fields: Mapping[str, Any] | None = None,
    **options: Any,
) -> UUID:
    """Submit an ingest job of inline texts; pairs where a name is to come twice."""
    pairs = texts.items() if isinstance(texts, Mapping) else texts
    sources = [{"type": "text", "name": name, "text": text_} for name, text_ in pairs]
    return order_sources(process, collection, sources, fields=fields, **options)


def order_sources(
    process: Process,
    collection: str,
    sources: list[dict[str, Any]],
    *,
    fields: Mapping[str, Any] | None = None,
    **options: Any,
) -> UUID:
    settings = {"collection": collection, "sources": sources, "splitter": SMALL_PIECES} | options
    input_ = IngestInput.model_validate(settings).model_dump(mode="json")
    return submit(process, kinds.INGEST, input_, **(fields or {}))


def upload(process: Process, name: str, data: bytes, content_type: str | None = None) -> str:
    stored = process.storage.store(io.BytesIO(data), name=name, limit_bytes=10**6)
    with process.ledger.begin() as session:
        return str(files.record(session, stored, name=name, content_type=content_type).id)


def ingest(
    process: Process, collection: str, texts: Any, **options: Any
) -> tuple[dict[str, int], Job]:
    """Ingest to the end; returns the counts of documents by outcome (zeros left out), the job."""
    job_id = order(process, collection, texts, **options)
    drain(process)
    return counts(process, job_id), job_of(process, job_id)


def ingest_files(
    process: Process, collection: str, uploads: dict[str, bytes], **options: Any
) -> dict[str, int]:
    sources = [
        {"type": "file", "file_id": upload(process, name, data)} for name, data in uploads.items()
    ]
    job_id = order_sources(process, collection, sources, **options)
    drain(process)
    return counts(process, job_id)


def load_all(process: Process) -> None:
    while run_next(process, handlers(), Queue.INGEST.value):
        pass


def counts(process: Process, job_id: UUID) -> dict[str, int]:
    job = job_of(process, job_id)
    assert job.state == State.SUCCEEDED, (job.state, job.error)
    assert job.result is not None
    return {name: n for name, n in job.result["documents"].items() if n}


def search(process: Process, collection: str, query: str, **options: Any) -> list[Hit]:
    """The hits of a search job."""
    input_ = SearchInput(collection=collection, query=query, **options).model_dump(mode="json")
    job_id = submit(process, kinds.SEARCH, input_, lane=Lane.INTERACTIVE)
    while job_of(process, job_id).state in OPEN:
        run_next(process, handlers(), Queue.QUERY.value)
    job = job_of(process, job_id)
    assert job.state == State.SUCCEEDED, job.error
    assert job.result is not None
    return [Hit.model_validate(hit) for hit in job.result["hits"]]


def hits_of(process: Process, collection: str, query: str, **options: Any) -> list[Hit]:
    """What a search gives, without a job."""
    request = SearchRequest(collections=[collection], queries=[query], **options)
    return list(searching.search(process, request).hits[0])


def live_texts(process: Process, collection: str) -> dict[str, list[str]]:
    """Source -> the texts of its chunks, as the document list gives them."""
    with process.ledger.read() as session:
        owner = collections.get(session, collection)
        listed = documents.page(session, owner.id, limit=1000, after=None)
        return {
            document.source: [
                chunk.text
                for chunk in documents.chunk_page(session, document.id, limit=100_000, after=None)
            ]
            for document in listed
        }


def document_id(process: Process, collection: str, source: str) -> UUID:
    with process.ledger.read() as session:
        owner = collections.get(session, collection)
        (id_,) = [
            document.id
            for document in documents.page(session, owner.id, limit=1000, after=None)
            if document.source == source
        ]
        return id_


def live_chunk_ids(process: Process, collection: str) -> set[str]:
    with process.ledger.read() as session:
        rows = session.execute(
            select(Chunk.version_id, Chunk.ordinal)
            .join(Document, Document.live_version_id == Chunk.version_id)
            .join(Collection, Collection.id == Document.collection_id)
            .where(Collection.name == collection)
        ).all()
    return {documents.chunk_id(version_id, ordinal) for version_id, ordinal in rows}


def vector_ids(process: Process, collection: str) -> set[str]:
    """All ids that the vector store has in a collection."""
    ids: set[str] = set()
    while page := store_of(process).id_page(collection, limit=10_000, offset=len(ids)):
        ids.update(page)
    return ids


def stores_agree(process: Process, collection: str) -> None:
    """Chroma holds exactly the live chunks of Postgres, and Postgres holds nothing but these."""
    live = live_chunk_ids(process, collection)
    assert vector_ids(process, collection) == live
    with process.ledger.read() as session:
        mine = select(Document.id).join(Collection).where(Collection.name == collection)
        states = session.scalars(select(Version.state).where(Version.document_id.in_(mine))).all()
        assert set(states) <= {"live"}, states
        empty = session.scalars(
            select(Document.source).where(Document.id.in_(mine), Document.live_version_id.is_(None))
        ).all()
        assert list(empty) == []
        count = session.scalar(
            select(func.count())
            .select_from(Chunk)
            .join(Version)
            .where(Version.document_id.in_(mine))
        )
    assert count == len(live)

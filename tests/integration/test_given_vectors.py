"""Imports of documents whose vectors are given: all is there, or nothing is seen."""

from typing import Any
from uuid import uuid4

import numpy as np
import pytest
from sqlalchemy import select

from shared.config import DEFAULT_EMBEDDING_MODEL
from shared.documents import collections, imports
from shared.documents.collections import Spec
from shared.documents.imports import ImportedChunk, ImportedDocument
from shared.errors import Conflict, NotFound, Permanent
from shared.tables import Collection
from shared.vocabulary import State
from tests.integration.ingestion import CATS, TRAINS, hits_of, live_texts, stores_agree
from tests.integration.job_runner import doing, drain, embedders, job_of, submit
from tests.integration.sweeps import sweep
from workers.attempts.context import Context, Done
from workers.attempts.process import Process
from workers.ingest.transfer import given
from workers.models.devices import Vectors
from workers.retrieval.servers import store_of

SPEC = Spec(embedding_model=DEFAULT_EMBEDDING_MODEL, dimension=384)
DOCUMENTS = [
    ImportedDocument(source=name, chunk_count=n, sha256="0" * 64, content_hash=name, size_bytes=9)
    for name, n in (("cats", 1), ("trains", 2))
]
NUMBERED = dict(enumerate(DOCUMENTS))
CHUNKS = [
    ImportedChunk(document=0, ordinal=0, start=0, text=CATS, metadata={"kind": "animal"}),
    ImportedChunk(document=1, ordinal=0, start=0, text=TRAINS),
    ImportedChunk(document=1, ordinal=1, start=68, text="Trams run all night."),
]


@pytest.fixture
def vectors() -> Vectors:
    model = embedders().get(DEFAULT_EMBEDDING_MODEL)
    return model.encode([chunk.text for chunk in CHUNKS], between=lambda: None)


def test_an_import_is_seen_when_all_of_it_is_there(process: Process, vectors: Vectors) -> None:
    name = f"test-{uuid4().hex[:12]}"
    seen: list[Any] = []

    def sees() -> bool:
        try:
            with process.ledger.read() as session:
                collections.get(session, name)
        except NotFound:
            return False
        return True

    def work(context: Context) -> Done:
        given.begin(context, name, SPEC, display_name="Animals and trains")
        given.write_documents(context, NUMBERED)
        sweep(process)  # takes it for no garbage
        for _ in range(2):  # each part may come twice
            given.begin(context, name, SPEC)
            given.write_documents(context, {1: DOCUMENTS[1]})
            for some in (slice(1, 2), slice(2, 3), slice(0, 1)):
                record = given.write_chunks(context, CHUNKS[some], 2 * vectors[some])
                with process.ledger.begin() as session:
                    record(session)
        with process.ledger.read() as session:
            seen.append(
                imports.count_incomplete(session, imports.get(session, job_id).collection_id)
            )
        seen.append(sees())
        with process.ledger.begin() as session, pytest.raises(Conflict, match="imports"):
            collections.put(session, name, SPEC)
        with process.ledger.begin() as session:
            imports.publish(session, job_id)
        return Done(result={})

    job_id = submit(process)
    drain(process, doing(work))

    assert job_of(process, job_id).state == State.SUCCEEDED, job_of(process, job_id).error
    assert (seen, sees()) == ([0, False], True)
    sweep(process)
    stores_agree(process, name)
    assert live_texts(process, name) == {"cats": [CATS], "trains": [c.text for c in CHUNKS[1:]]}
    stored = store_of(process).vectors(name, [hits_of(process, name, CATS, k=1)[0].chunk_id])
    assert np.allclose(next(iter(stored.values())), vectors[0], atol=1e-6)
    assert hits_of(process, name, "fifteen hours on average", k=1)[0].metadata["kind"] == "animal"


def test_nothing_is_left_of_an_import_that_fails(process: Process, vectors: Vectors) -> None:
    name = f"test-{uuid4().hex[:12]}"

    def work(context: Context) -> Done:
        given.begin(context, name, SPEC)
        given.write_documents(context, NUMBERED)
        given.write_chunks(context, CHUNKS[:2], vectors[:2])
        with pytest.raises(Permanent, match="same source"):
            given.write_documents(context, {2: DOCUMENTS[0]})
        with pytest.raises(Permanent, match="Vector 1"):
            given.usable_vectors(np.stack([vectors[0], vectors[1] * np.nan]), 2, 384)
        given.write_chunks(context, CHUNKS[2:], vectors[:, :7])
        return Done()

    job_id = submit(process)
    drain(process, doing(work))
    sweep(process)
    drain(process)

    job = job_of(process, job_id)
    assert job.state == State.FAILED
    assert "384 dimensions" in (job.error or {})["message"]
    with process.ledger.read() as session:
        assert session.scalar(select(Collection.id).where(Collection.name == name)) is None
    assert store_of(process).id_page(name, limit=10, offset=0) == []

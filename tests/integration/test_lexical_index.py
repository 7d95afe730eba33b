"""The lexical index against `bm25s`, while documents are written, replaced and erased."""

import logging
import threading
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import pairwise
from math import log
from random import Random
from typing import Any
from uuid import UUID

import bm25s
import numpy as np
import pytest
from sqlalchemy import func, select, text

from shared.config import Settings
from shared.documents import collections, erasure, lexical, versions
from shared.documents.documents import chunk_id
from shared.documents.lexical import Field
from shared.documents.versions import ChunkRange, Content
from shared.errors import Unavailable
from shared.jobs import sweeps
from shared.tables import (
    Chunk,
    Document,
    LexicalDeletion,
    LexicalPage,
    LexicalSegment,
    new_id,
)
from tests.integration.erasures import erase
from tests.integration.ingestion import document_id
from tests.integration.job_runner import make_process
from tests.integration.sweeps import change, sweep
from workers.attempts.process import Process
from workers.ingest import indexing
from workers.ingest.indexing import NewPostings, add_missing, merge_group, purge
from workers.retrieval.lexical import CONTEXT_SHARE, Lexical, LexicalResult, lexical_of
from workers.retrieval.postings import ChunkSpan, TermPage, build, hash_of
from workers.retrieval.terms import terms

WORDS = [f"word{n}" for n in range(60)]
QUERIES = [
    "word1 word2 word3",
    "word0 word0 word59 nothing",
    "word7 한국어 word5 word0 word4 word10",
]


def some_text(random: Random) -> str:
    """Few words are common and most are rare, as in what people write."""
    words = [
        WORDS[min(int(random.paretovariate(0.7)) - 1, 59)] for _ in range(random.randint(0, 30))
    ]
    return " ".join([*words, *(["한국어를"] if random.random() < 0.2 else [])])


def collection_id_of(process: Process, name: str) -> UUID:
    with process.ledger.read() as session:
        return collections.get(session, name).id


def write(
    process: Process, collection_id: UUID, source: str, texts: Sequence[str], *, step: int = 2
) -> None:
    """A document's new version, embedded in parts of `step` chunks: the transactions of ingestion
    without the vectors."""
    content = Content(
        source=source, sha256="", content_hash=str(hash(tuple(texts))), size_bytes=0, metadata={},
        chunks=[(0, text_, {}) for text_ in texts],
    )  # fmt: skip
    with process.ledger.begin() as session:
        document = versions.lock_documents(session, collection_id, [source])[source]
        version_id = versions.begin(session, document, content, skip_existing=False)
    if version_id is None:
        return
    for first in range(0, len(texts), step):
        part = ChunkRange(version_id=version_id, first=first, end=min(first + step, len(texts)))
        with process.ledger.read() as session:
            chunks = versions.unembedded(session, [part])
        new = NewPostings(process, chunks, {version_id: len(texts)})
        with process.ledger.begin() as session:
            versions.lock_documents_of(session, [version_id])
            new.write_parts(session, collection_id)
            (noted,) = versions.note_embedded(session, [part])
            new.write_whole(session, collection_id, [(version_id, noted)])
    indexing.merge_soon(process, collection_id)


def erase_rows(process: Process, source: str) -> None:
    """As the step `erase` does, without the vectors."""
    with process.ledger.begin() as session:
        ids = session.scalars(select(Document.id).where(Document.source == source)).all()
        erasure.hide_documents(session, ids)
        collection_ids = erasure.collections_of(session, ids)
    for collection_id in collection_ids:
        purge(process, collection_id, check=lambda: None)
    with process.ledger.begin() as session:
        erasure.delete_documents(session, ids)


def contexts_of(query: str, rows: Sequence[Any]) -> np.ndarray:
    """BM25 of each chunk with its neighbours, by the book; terms weigh as they do in chunks."""
    counts = {(row.version_id, row.ordinal): Counter(terms(row.text)) for row in rows}
    contexts = [
        sum(
            (counts.get((row.version_id, row.ordinal + step), Counter()) for step in (-1, 0, 1)),
            Counter(),
        )
        for row in rows
    ]
    average = sum(context.total() for context in contexts) / len(contexts)
    scores = np.zeros(len(rows))
    for term, times in Counter(terms(query)).items():
        has = sum(term in count for count in counts.values())
        weight = times * log(1 + (len(rows) - has + 0.5) / (has + 0.5))
        for n, context in enumerate(contexts):
            length = 1.5 * (1 - 0.75 + 0.75 * context.total() / average)
            scores[n] += weight * context[term] / (context[term] + length)
    return scores


def compare(process: Process, lexical_: Lexical, collection_id: UUID) -> LexicalResult:
    """Search and read the live text at one moment: every score is that of bm25s."""
    with process.ledger.engine.connect() as opened:
        connection = opened.execution_options(isolation_level="REPEATABLE READ")
        results = lexical_.search_many(collection_id, QUERIES, limit=5, connection=connection)
        rows = connection.execute(
            select(Chunk.version_id, Chunk.ordinal, Chunk.text)
            .join(Document, Document.live_version_id == Chunk.version_id)
            .where(Document.collection_id == collection_id)
        ).all()
    ids = [chunk_id(row.version_id, row.ordinal) for row in rows]
    corpus = [terms(row.text) for row in rows]
    assert {result.live_chunks for result in results} == {len(rows)}
    if not any(corpus):
        assert all(result.chunk_ids == [] for result in results)
        return results[0]
    reference = bm25s.BM25(method="lucene", k1=1.5, b=0.75, dtype="float64")
    reference.index(corpus, show_progress=False)
    for query, result in zip(QUERIES, results, strict=True):
        known = [term for term in terms(query) if term in reference.vocab_dict]
        scores = reference.get_scores(known) if known else np.zeros(len(ids))
        np.testing.assert_allclose(result.score(ids), scores, atol=1e-6, rtol=0)
        best = np.sort(scores[scores > 0])[::-1][:5]
        np.testing.assert_allclose(result.scores, best, atol=1e-6, rtol=0)
        np.testing.assert_allclose(result.scores, result.score(result.chunk_ids), atol=1e-9)
        in_context = (1 - CONTEXT_SHARE) * scores + CONTEXT_SHARE * contexts_of(query, rows)
        np.testing.assert_allclose(result.score_in_context(ids), in_context, atol=1e-6, rtol=0)
        assert in_context.max(initial=0) <= result.best_possible
        everything = result.further(len(ids))
        assert sorted(everything.chunk_ids) == sorted(
            id_ for id_, score in zip(ids, scores, strict=True) if score > 0
        )
        assert all(one >= other for one, other in pairwise(everything.scores))
        assert everything.scores.max(initial=0) <= result.best_possible
        np.testing.assert_allclose(result.shares * result.best_possible, result.scores)
    return results[0]


@pytest.fixture
def lexical_(process: Process) -> Lexical:
    return lexical_of(process)


@pytest.fixture(autouse=True, scope="module")
def _quiet_reference() -> None:
    """It logs several lines for each index at DEBUG."""
    logging.getLogger("bm25s").setLevel(logging.WARNING)


@pytest.fixture(autouse=True)
def small_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a few documents are merged, in several levels, and pruned."""
    monkeypatch.setattr(lexical, "TIER_FACTOR", 3)
    monkeypatch.setattr("workers.retrieval.postings.PAGE_BYTES", 200)
    monkeypatch.setattr("workers.retrieval.lexical.WORTH_POSTINGS", 1)


def test_scores_are_those_of_bm25s_at_any_moment(
    process: Process, collection: str, lexical_: Lexical
) -> None:
    """Writers replace and erase documents, a merger merges, and a reader compares all the while."""
    collection_id = collection_id_of(process, collection)
    ended = threading.Event()
    changes = threading.Semaphore(0)

    def alter(seed: int) -> None:
        random = Random(seed)
        try:
            for _ in range(30):
                source = f"document {random.randrange(8)}"
                if random.random() < 0.15:
                    erase_rows(process, source)
                else:
                    texts = [some_text(random) for _ in range(random.randint(1, 5))]
                    with suppress(Unavailable):  # the other one is erasing it
                        write(process, collection_id, source, texts)
                changes.release()
        finally:
            changes.release(60)

    def merge() -> None:
        while not ended.is_set():
            with process.ledger.read() as session:
                groups = lexical.groups_to_merge(session, limit=10)
            for group in groups:
                merge_group(process, group)
            indexing.compact(process, collection_id, Field.TERMS)
            ended.wait(0.05)

    with ThreadPoolExecutor(4) as pool:
        merging = pool.submit(merge)
        writers = [pool.submit(alter, seed) for seed in (1, 2)]
        for _ in range(15):
            for _ in range(4):
                changes.acquire()
            compare(process, lexical_, collection_id)
        for future in writers:
            future.result()
        ended.set()
        merging.result()
    result = compare(process, lexical_, collection_id)
    assert result.live_chunks > 0
    assert result.unindexed == 0


def stored_terms(process: Process, collection_id: UUID) -> set[int]:
    """All hashes of terms that the database has of a collection, in whatever state."""
    hashes: set[int] = set()
    with process.ledger.read() as session:
        rows = session.scalars(
            select(LexicalPage.data)
            .join(LexicalSegment, LexicalSegment.id == LexicalPage.segment_id)
            .where(LexicalSegment.collection_id == collection_id)
        )
        for data in rows:
            hashes.update(TermPage.read(data).terms.tolist())
    return hashes


def count(
    process: Process, table: type[LexicalSegment] | type[LexicalDeletion], collection_id: UUID
) -> int:
    with process.ledger.read() as session:
        query = select(func.count()).select_from(table)
        return session.execute(query.where(table.collection_id == collection_id)).scalar_one()


def test_an_erased_document_leaves_no_term_in_any_version(
    process: Process, collection: str
) -> None:
    collection_id = collection_id_of(process, collection)
    write(process, collection_id, "kept", ["public words stay"] * 3, step=3)
    write(process, collection_id, "gone", ["secretformer words"])
    write(process, collection_id, "gone", ["secretnow words"])
    before = stored_terms(process, collection_id)
    assert {hash_of("secretnow"), hash_of("secretformer")} <= before
    erase(process, document_ids=[document_id(process, collection, "gone")])
    left = stored_terms(process, collection_id)
    assert left == {hash_of(term) for term in terms("public words stay")}
    compare(process, lexical_of(process), collection_id)


def test_an_erased_collection_leaves_nothing(process: Process, collection: str) -> None:
    collection_id = collection_id_of(process, collection)
    write(process, collection_id, "a", ["some words"])
    write(process, collection_id, "a", ["new words"])
    assert count(process, LexicalSegment, collection_id) > 0
    assert count(process, LexicalDeletion, collection_id) > 0
    erase(process, collection=collection)
    assert count(process, LexicalSegment, collection_id) == 0
    assert count(process, LexicalDeletion, collection_id) == 0


def test_merges_forget_deleted_versions(process: Process, collection: str) -> None:
    """Of versions in one part and in several."""
    collection_id = collection_id_of(process, collection)
    random = Random(3)
    for n in range(12):
        texts = [f"only{n} {some_text(random)}" for _ in range(1 + n % 5)]
        write(process, collection_id, f"document {n % 2}", texts)
    with process.ledger.read() as session:
        ids = lexical.counting_ids(session, collection_id, Field.TERMS)
    group = lexical.MergeGroup(
        collection_id=collection_id, field=Field.TERMS, version_id=None, segment_ids=ids
    )
    assert merge_group(process, group)
    assert count(process, LexicalDeletion, collection_id) == 0
    assert count(process, LexicalSegment, collection_id) == 1
    only = {hash_of(f"only{n}") for n in range(12)}
    assert stored_terms(process, collection_id) & only == {hash_of("only10"), hash_of("only11")}
    compare(process, lexical_of(process), collection_id)


def test_parts_of_a_large_version_are_merged_before_it_is_live(
    process: Process, collection: str
) -> None:
    """And count from the moment on in which the last one is there."""
    collection_id = collection_id_of(process, collection)
    texts = [f"word{n} word1" for n in range(8)]
    content = Content(
        source="large", sha256="", content_hash="", size_bytes=0, metadata={},
        chunks=[(0, text_, {}) for text_ in texts],
    )  # fmt: skip
    with process.ledger.begin() as session:
        document = versions.lock_documents(session, collection_id, ["large"])["large"]
        version_id = versions.begin(session, document, content, skip_existing=False)
    assert version_id is not None
    for first in (4, 6, 0, 2):  # they end in any order
        part = ChunkRange(version_id=version_id, first=first, end=first + 2)
        with process.ledger.read() as session:
            chunks = versions.unembedded(session, [part])
        new = NewPostings(process, chunks, {version_id: 8})
        with process.ledger.begin() as session:
            versions.lock_documents_of(session, [version_id])
            new.write_parts(session, collection_id)
            versions.note_embedded(session, [part])
        indexing.merge_soon(process, collection_id)
        result = compare(process, lexical_of(process), collection_id)
        assert result.live_chunks == (8 if first == 2 else 0)
    assert count(process, LexicalSegment, collection_id) == 2


def test_a_merge_that_meets_a_version_going_live_changes_nothing(
    process: Process, collection: str
) -> None:
    collection_id = collection_id_of(process, collection)
    write(process, collection_id, "a", ["word1", "word2", "word3"])
    with process.ledger.read() as session:
        ids = lexical.counting_ids(session, collection_id)
        version_id = session.scalar(select(Document.live_version_id))
    assert len(ids) == 2
    for owner in (version_id, UUID(int=1)):  # as it was before, and one that is gone
        stale = lexical.MergeGroup(
            collection_id=collection_id, field=Field.TERMS, version_id=owner, segment_ids=ids
        )
        assert not merge_group(process, stale)
        with process.ledger.read() as session:
            assert lexical.counting_ids(session, collection_id) == ids
    compare(process, lexical_of(process), collection_id)


def test_what_was_ingested_before_there_was_an_index_is_counted_as_missing_then_added(
    process: Process, collection: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after an upgrade: small documents together, a large one in parts."""
    monkeypatch.setattr(indexing, "AT_ONCE_CHUNKS", 4)
    collection_id = collection_id_of(process, collection)
    random = Random(4)
    for n, chunks in enumerate((1, 2, 11, 1, 1)):
        write(process, collection_id, f"document {n}", [some_text(random) for _ in range(chunks)])
    with process.ledger.begin() as session:
        session.execute(text("DELETE FROM lexical_segments"))
        session.execute(text("UPDATE versions SET lexical_fields = 0"))
    result = lexical_of(process).search(collection_id, "word1", limit=5)
    assert (result.unindexed, result.chunk_ids) == (5, [])
    write(process, collection_id, "document 0", ["word1 as new"])
    assert lexical_of(process).search(collection_id, "word1", limit=5).unindexed == 4
    while add_missing(process, Field.TERMS):
        pass
    assert compare(process, lexical_of(process), collection_id).unindexed == 0
    write(process, collection_id, "document 2", ["word2 as new"])
    compare(process, lexical_of(process), collection_id)


def test_the_sweeper_adds_morphemes_where_they_are_on_and_drops_them_where_not(
    process: Process, collection: str, settings: Settings
) -> None:
    """Searches take the second field once it is complete, and give the same without it."""
    collection_id = collection_id_of(process, collection)
    write(process, collection_id, "a", ["학교에서 공부했다", "학생이 집에 갔다", "no Korean"])
    write(process, collection_id, "b", ["학교가 멀다"])
    korean = make_process(settings, morphemes="kiwi")
    query = "학교는 어디인가"
    plain = lexical_of(process).search(collection_id, query, limit=5)
    assert lexical_of(korean).search(collection_id, query, limit=5).scores == pytest.approx(
        plain.scores
    )
    sweep(korean)
    both = lexical_of(korean).search(collection_id, query, limit=5)
    assert set(both.chunk_ids) == set(plain.chunk_ids)
    assert both.scores.tolist() != plain.scores.tolist()
    assert both.score(both.chunk_ids) == pytest.approx(both.scores)
    write(korean, collection_id, "b", ["학교가 아주 멀다"])
    again = lexical_of(korean).search(collection_id, query, limit=5)
    assert again.live_chunks == 4
    assert again.scores.tolist() != pytest.approx(both.scores.tolist())
    sweep(process)
    with process.ledger.read() as session:
        assert lexical.counting_ids(session, collection_id, Field.MORPHEMES) == []
        fields = session.scalars(text("SELECT DISTINCT lexical_fields FROM versions")).all()
    assert fields == [1]
    compare(process, lexical_of(process), collection_id)
    korean.close()


def test_a_version_of_which_postings_cannot_be_made_stops_no_other(
    process: Process, collection: str
) -> None:
    """One with chunks that are gone, as no program leaves them behind."""
    collection_id = collection_id_of(process, collection)
    for name in "abc":
        write(process, collection_id, name, ["word1"])
    change(process, "DELETE FROM lexical_segments")
    change(process, "UPDATE versions SET lexical_fields = 0")
    with process.ledger.read() as session:
        bad = session.scalars(select(Document.live_version_id).where(Document.source == "b")).one()
    change(process, f"UPDATE versions SET chunk_count = 1000 WHERE id = '{bad}'")
    change(process, f"DELETE FROM chunks WHERE version_id = '{bad}'")
    sweep(process)
    result = lexical_of(process).search(collection_id, "word1", limit=5)
    assert (len(result.chunk_ids), result.unindexed) == (2, 1)
    with process.ledger.read() as session:
        assert [fault.item for fault in sweeps.faults(session, limit=5)] == [f"version {bad}"]


def test_chunks_are_told_apart_beyond_those_of_one_segment(
    process: Process, collection: str
) -> None:
    """With a common term, whose scores are kept for the next query, and a rare one."""
    collection_id = collection_id_of(process, collection)
    version_ids = [new_id() for _ in range(3)]
    for version_id in version_ids:
        texts = [["common"]] * 30_000 + [["common", "rare"]]
        segment = build([ChunkSpan(version_id=version_id, first=0, terms=texts)])
        with process.ledger.begin() as session:
            lexical.write(session, collection_id, indexing.pack(Field.TERMS, segment))
    for _ in range(2):
        result = lexical_of(process).search(collection_id, "rare common", limit=4)
        assert set(result.chunk_ids[:3]) == {chunk_id(id_, 30_000) for id_ in version_ids}
        assert result.live_chunks == 90_003
        assert result.scores[3] < result.scores[2]
        assert result.score(result.chunk_ids) == pytest.approx(result.scores)

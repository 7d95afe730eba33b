"""Lexical search and what its index costs, in PostgreSQL alone.

    python -m bench.retrieval.lexical [--chunks 10000 50000 200000] [--queries 200] [--explain]

Writes chunks of 1,000 characters as ingestion does, in steps of 128, with every merge: words by
Zipf's law from a vocabulary that grows (Heaps), and, for every other document, text of PostgreSQL's
documentation.

Prints, at each size, what a chunk cost (terms, packing, writing, merging), the size of the pages,
and the milliseconds of a query: ten words that stand one after the other in some chunk.
`--copies 5` then has each chunk five times. `--explain` prints how PostgreSQL reads. `--ingest`
instead ingests pages of the documentation in this process, with postings and without, in turns,
and prints the seconds of both, by the ledger. `--recall` instead prints how often the right passage
is among the best, for the data sets of `../shared/data`, with morphemes and without.
"""

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import cycle
from pathlib import Path
from random import Random
from unittest.mock import patch
from uuid import UUID

import numpy as np
from pydantic import SecretStr
from sqlalchemy import insert, text

from bench.support.corpus import NoCorpus, pages
from shared.config import Settings
from shared.database.engine import upgrade
from shared.documents import collections, lexical
from shared.documents.lexical import Field
from shared.tables import Document, Version, new_id
from tests.integration.ingestion import ingest, new_collection
from tests.integration.job_runner import make_process
from tests.servers import start_chroma, start_postgres, start_redis
from workers.attempts.process import Process
from workers.ingest import steps
from workers.ingest.indexing import merge_group, pack
from workers.ingest.load import load
from workers.retrieval.lexical import HEADS, PAGES, SNAPSHOT, Lexical, lexical_of
from workers.retrieval.postings import ChunkSpan, build
from workers.retrieval.terms import morphemes_of, terms

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
CHUNK_CHARS = 1000
STEP_CHUNKS = 128
DOCUMENT_CHUNKS = 8
QUERY_WORDS = 10


class Corpus:
    """Chunks without end, always the same ones."""

    def __init__(self) -> None:
        self._random = Random(1)
        self._draw = np.random.default_rng(1)
        self._real = cycle(_real_text())
        self._used = 0

    def document(self) -> list[str]:
        self._used += 1
        if self._used % 2:
            return [next(self._real) for _ in range(DOCUMENT_CHUNKS)]
        return [self._zipf() for _ in range(DOCUMENT_CHUNKS)]

    def _zipf(self) -> str:
        """Ranks by a power law; the letters of a word are those of its rank."""
        ranks = self._draw.zipf(1.15, 165) % 2_000_000
        return " ".join(_word(rank) for rank in ranks.tolist())[:CHUNK_CHARS]


def _word(rank: int) -> str:
    letters = "etaoinshrdlu"
    word = letters[rank % 12]
    while rank := rank // 12:
        word += letters[rank % 12]
    return word


def _real_text() -> list[str]:
    chunks: list[str] = []
    for path in pages():
        loaded = load(
            path.read_bytes(), name=path.name, content_type="text/html",
        )  # fmt: skip
        chunks += [
            loaded.text[n : n + CHUNK_CHARS] for n in range(0, len(loaded.text), CHUNK_CHARS)
        ]
    return chunks


class Writer:
    """Writes chunks to a collection, and keeps the seconds of each part of it."""

    def __init__(self, process: Process, collection_id: UUID) -> None:
        self._process = process
        self._collection_id = collection_id
        self._corpus = Corpus()
        self.seconds: dict[str, float] = defaultdict(float)
        self.chunks = 0
        self.samples: list[str] = []

    def write_up_to(self, chunks: int) -> None:
        while self.chunks < chunks:
            self._write_step(
                [self._corpus.document() for _ in range(STEP_CHUNKS // DOCUMENT_CHUNKS)]
            )

    def _write_step(self, documents: Sequence[Sequence[str]]) -> None:
        self.samples.append(documents[-1][-1] if len(self.samples) % 2 else documents[0][0])
        with self._timed("terms"):
            result = [[terms(chunk) for chunk in document] for document in documents]
        ids = [new_id() for _ in documents]
        with self._timed("packing"):
            spans = [
                ChunkSpan(version_id=i, first=0, terms=t) for i, t in zip(ids, result, strict=True)
            ]
            packed = pack(Field.TERMS, build(spans))
        with self._process.ledger.begin() as session:
            rows = [
                {"id": id_, "collection_id": self._collection_id, "source": str(id_),
                 "live_version_id": id_}
                for id_ in ids
            ]  # fmt: skip
            session.execute(insert(Document), rows)
            session.execute(
                insert(Version),
                [
                    {"id": id_, "document_id": id_, "state": "live", "sha256": "",
                     "content_hash": "", "size_bytes": 0, "meta": {}, "chunk_count": len(t)}
                    for id_, t in zip(ids, result, strict=True)
                ],
            )  # fmt: skip
            with self._timed("writing"):
                lexical.write(session, self._collection_id, packed)
                lexical.note_published(session, ids, [Field.TERMS])
        with self._timed("merging"):
            with self._process.ledger.read() as session:
                groups = lexical.groups_to_merge(session, self._collection_id, limit=10)
            for group in groups:
                merge_group(self._process, group)
        self.chunks += sum(map(len, result))

    @contextmanager
    def _timed(self, part: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.seconds[part] += time.perf_counter() - began


def measure(
    process: Process,
    sizes: Sequence[int],
    copies: Sequence[int],
    queries: int,
    *,
    explain: bool,
) -> None:
    with process.ledger.begin() as session:
        collections.put(session, "bench", collections.Spec(embedding_model="none"))
        collection_id = collections.get(session, "bench").id
    writer = Writer(process, collection_id)
    for size in sizes:
        writer.write_up_to(size)
        parts = ", ".join(
            f"{part} {1000 * seconds / writer.chunks:.2f}"
            for part, seconds in writer.seconds.items()
        )
        print(f"{writer.chunks:,} chunks; ms a chunk until here: {parts}")
        _time(process, collection_id, writer, queries)
    for times in copies:
        _copy(process, collection_id, times)
        print(f"each of these chunks {times} times, {times * writer.chunks:,}")
        _time(process, collection_id, writer, queries)
    if explain:
        _explain(process, collection_id)


_COPIES = 10**9
"""Added to the number of a segment for each of its copies."""


def _copy(process: Process, collection_id: UUID, times: int) -> None:
    """Have each segment so often: to search more than is worth writing."""
    values = {"id": collection_id, "step": _COPIES, "times": times}
    with process.ledger.begin() as session:
        session.execute(text("SET LOCAL statement_timeout = 0"))
        session.execute(text("DELETE FROM lexical_segments WHERE id >= :step"), values)
        session.execute(
            text("""
                INSERT INTO lexical_segments OVERRIDING SYSTEM VALUE
                SELECT id + CAST(n AS bigint) * :step, collection_id, field, version_id, tier,
                    chunks, tokens, members, lengths, page_ends
                FROM lexical_segments, generate_series(1, CAST(:times AS int) - 1) n
                WHERE collection_id = :id
            """),
            values,
        )
        session.execute(
            text("""
                INSERT INTO lexical_pages
                SELECT s.id, p.last_term, p.data FROM lexical_segments s
                JOIN lexical_pages p ON p.segment_id = s.id % :step
                WHERE s.collection_id = :id AND s.id >= :step
            """),
            values,
        )


def _time(process: Process, collection_id: UUID, writer: Writer, queries: int) -> None:
    with process.ledger.begin() as session:
        session.execute(text("ANALYZE"))
        count = len(lexical.counting_ids(session, collection_id))
        bytes_ = session.scalar(text("SELECT sum(length(data)) FROM lexical_pages"))
    print(f"  {count} segments, pages of {(bytes_ or 0) / 2**20:,.0f} MiB")
    random = Random(2)
    sent = [_query(random, writer.samples) for _ in range(queries)]
    own = Lexical(process)
    for name in ("cold", "warm"):
        times: list[tuple[float, float]] = []
        for query in sent:
            began, cpu_began = time.perf_counter(), time.process_time()
            own.search(collection_id, query, limit=100)
            ended, cpu_ended = time.perf_counter(), time.process_time()
            times.append((1000 * (ended - began), 1000 * (cpu_ended - cpu_began)))
        wall, cpu = (
            ", ".join(f"p{p} {np.percentile(column, p):.1f}" for p in (50, 95, 99))
            for column in zip(*times, strict=True)
        )
        print(f"  {name}: ms a query {wall}; of its processor time {cpu}")
    cpu_began = time.process_time()
    own.search_many(collection_id, sent[:32], limit=100)
    print(f"  32 at once: processor ms a query {1000 * (time.process_time() - cpu_began) / 32:.1f}")
    sys.stdout.flush()


def _query(random: Random, samples: Sequence[str]) -> str:
    words = random.choice(samples).split()
    first = random.randrange(max(1, len(words) - QUERY_WORDS))
    return " ".join(words[first : first + QUERY_WORDS])


def _explain(process: Process, collection_id: UUID) -> None:
    with process.ledger.engine.connect() as connection:
        rows = connection.exec_driver_sql(
            "SELECT segment_id, last_term FROM lexical_pages ORDER BY random() LIMIT 20"
        ).all()
        ids, ends = zip(*rows, strict=True)
        values = {
            "id": collection_id, "unindexed": 1000, "ids": list(ids), "ends": list(ends)
        }  # fmt: skip
        for name, statement in (("snapshot", SNAPSHOT), ("heads", HEADS), ("pages", PAGES)):
            print(f"-- {name}")
            plan = connection.exec_driver_sql(
                f"EXPLAIN (ANALYZE, BUFFERS, COSTS OFF) {statement}", values
            )
            print("\n".join(row[0] for row in plan))


# Ingestion with postings and without.


class _NoPostings:
    """What stands in their place."""

    def __init__(self, *_: object) -> None:
        """Takes what NewPostings takes."""

    def write_parts(self, *_: object) -> None:
        """Nothing."""

    write_whole = write_parts


def ingest_pairs(folder: Path, documents: int, rounds: int) -> None:
    postgres = start_postgres(folder / "postgres", durable=True)
    redis, chroma = start_redis(folder / "redis"), start_chroma(folder / "chroma")
    try:
        upgrade(postgres.url)
        settings = Settings(
            database_url=SecretStr(postgres.url), redis_url=SecretStr(redis.url),
            chroma_url=chroma.url, storage_url=str(folder / "files"), home=folder / "home",
        )  # fmt: skip
        process = make_process(settings, embed_step_chunks=128, load_step_documents=16)
        sources = {path.name: path.read_text("utf-8") for path in pages(documents)}
        ingest(process, new_collection(process), dict(list(sources.items())[:4]), splitter={})
        ratios = []
        for number in range(1, rounds + 1):
            seconds: dict[str, float] = {}
            for name in ("without", "with") if number % 2 else ("with", "without"):
                with ExitStack() as stack:
                    if name == "without":
                        stack.enter_context(patch.object(steps, "NewPostings", _NoPostings))
                        stack.enter_context(patch.object(steps, "merge_soon", lambda *_: None))
                    collection = new_collection(process)
                    _, job = ingest(process, collection, sources, splitter={})
                    assert job.finished_at is not None
                    seconds[name] = (job.finished_at - job.created_at).total_seconds()
            ratios.append(seconds["with"] / seconds["without"])
            chunks = (job.result or {})["chunks"]
            print(
                f"round {number}: {chunks} chunks, without postings {seconds['without']:.1f} s, "
                f"with {seconds['with']:.1f} s, ratio {ratios[-1]:.3f}",
                flush=True,
            )
        print(f"median ratio {np.median(ratios):.3f}")
        process.close()
    finally:
        for server in (chroma, redis, postgres):
            server.stop()


# Recall.


def _squad(name: str) -> tuple[list[str], list[tuple[str, int]]]:
    passages: dict[str, int] = {}
    questions: list[tuple[str, int]] = []
    for article in json.loads((DATA / name).read_text("utf-8"))["data"]:
        for paragraph in article["paragraphs"]:
            number = passages.setdefault(paragraph["context"], len(passages))
            questions += [(qa["question"], number) for qa in paragraph["qas"]]
    return list(passages), questions


def _klue(name: str) -> tuple[list[str], list[tuple[str, int]]]:
    sentences: dict[str, int] = {}
    pairs: list[tuple[str, int]] = []
    for row in json.loads((DATA / name).read_text("utf-8")):
        number = sentences.setdefault(row["sentence2"], len(sentences))
        if row["labels"]["binary-label"] == 1:
            pairs.append((row["sentence1"], number))
    return list(sentences), pairs


SETS = {
    "xquad.en.json": _squad,
    "xquad.zh.json": _squad,
    "tydiqa.ko.json": _squad,
    "klue-sts-v1.1_dev.json": _klue,
}


def recall(process: Process) -> None:
    for name, read in SETS.items():
        passages, questions = read(name)
        with process.ledger.begin() as session:
            collections.put(session, name, collections.Spec(embedding_model="none"))
            collection_id = collections.get(session, name).id
            version_id, document_id = new_id(), new_id()
            session.execute(
                insert(Document).values(
                    id=document_id, collection_id=collection_id, source=name,
                    live_version_id=version_id,
                )
            )  # fmt: skip
            session.execute(
                insert(Version).values(
                    id=version_id, document_id=document_id, state="live", sha256="",
                    content_hash="", size_bytes=0, meta={}, chunk_count=len(passages),
                )
            )  # fmt: skip
            for field, terms_in in (
                (Field.TERMS, terms), (Field.MORPHEMES, morphemes_of(process).terms)
            ):  # fmt: skip
                span = ChunkSpan(
                    version_id=version_id, first=0, terms=[terms_in(p) for p in passages]
                )
                lexical.write(session, collection_id, pack(field, build([span])))
            lexical.note_published(session, [version_id], list(Field))
        for morphemes in ("off", "kiwi"):
            reader = Process(process.settings.model_copy(update={"morphemes": morphemes}), "bench")
            results = lexical_of(reader).search_many(
                collection_id, [question for question, _ in questions], limit=10
            )
            ranks = [
                next((n for n, id_ in enumerate(r.chunk_ids, 1) if int(id_[33:]) == right), 0)
                for r, (_, right) in zip(results, questions, strict=True)
            ]
            rank_of = np.array(ranks)
            print(
                f"{name:24} morphemes {morphemes:5} recall@1 {(rank_of == 1).mean():.3f} "
                f"@6 {((rank_of > 0) & (rank_of <= 6)).mean():.3f} "
                f"MRR@10 {np.where(rank_of > 0, 1 / np.maximum(rank_of, 1), 0).mean():.3f}",
                flush=True,
            )
            reader.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--chunks", type=int, nargs="+", default=[10_000, 50_000, 200_000])
    parser.add_argument("--copies", type=int, nargs="*", default=[])
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--explain", action="store_true")
    parser.add_argument("--recall", action="store_true")
    parser.add_argument("--ingest", action="store_true")
    parser.add_argument("--documents", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=4)
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="sluice-bench-"))
    folder.chmod(0o755)  # PostgreSQL's own user must reach its part of it
    try:
        if arguments.ingest:
            ingest_pairs(folder, arguments.documents, arguments.rounds)
        else:
            _with_postgres(folder, arguments)
    except NoCorpus as error:
        sys.exit(str(error))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _with_postgres(folder: Path, arguments: argparse.Namespace) -> None:
    postgres = start_postgres(folder / "postgres", durable=True)
    try:
        upgrade(postgres.url)
        settings = Settings(
            database_url=SecretStr(postgres.url), redis_url=SecretStr("redis://127.0.0.1:9")
        )
        process = Process(settings, "bench")
        if arguments.recall:
            recall(process)
        else:
            measure(
                process, arguments.chunks, arguments.copies, arguments.queries,
                explain=arguments.explain,
            )  # fmt: skip
        process.close()
    finally:
        postgres.stop()


if __name__ == "__main__":
    main()

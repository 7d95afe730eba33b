"""Collections of many chunks, made without encoding each: for measuring searches.

The sentences are those of PostgreSQL's documentation, and of XQuAD where `../shared/data` is there.
Each is encoded once, by the workers' model. A chunk has some of them that stand near each other, in
a new order, and one word in `FOREIGN_EVERY` is another one of the same corpus, or a number that no
other chunk has: so the words are real, as frequent as in real text (Zipf), and their number grows
with that of the chunks (Heaps). Its vector is the sum of those of its sentences, and noise, of
length 1.

They are written as ingestion writes them: rows of live versions, segments of packed postings with
all their merges, and vectors with their texts into the store. `python -m bench.search` is who asks.
"""

import json
import random
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

import numpy as np
from psycopg.types.json import Jsonb

from bench.support.corpus import pages
from shared.documents import collections, indexes, lexical
from shared.documents.documents import chunk_id
from shared.documents.lexical import Field
from shared.tables import new_id
from workers.attempts.process import Process
from workers.ingest.indexing import merge_group, pack
from workers.ingest.load import load
from workers.models.devices import Vectors, unit
from workers.retrieval.embed import embedders_of
from workers.retrieval.postings import ChunkSpan, build
from workers.retrieval.servers import store_of
from workers.retrieval.store import VectorEntry
from workers.retrieval.terms import terms

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
SENTENCES = 12_000
SENTENCE_CHARS = 40, 300
CHUNK_CHARS = 800
DOCUMENT_CHUNKS = 8
WRITTEN_DOCUMENTS = 64
NEARBY = 60
FOREIGN_EVERY = 12
NUMBER_EVERY = 4
"""Of those foreign words."""
NOISE = 0.35
"""Of the length of a vector."""

_SENTENCE = re.compile(r"(?<=[.!?])\s+|\n+")


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """Sentences, their vectors, (n, dimension), and all words, each as often as it stands there."""

    sentences: Sequence[str]
    vectors: Vectors
    words: Sequence[str]

    def chunk(self, draw: random.Random, first: int) -> tuple[str, list[int]]:
        """A text of sentences around the one with that number, and which ones these are."""
        text: list[str] = []
        chosen: list[int] = []
        left = CHUNK_CHARS
        while left > 0:
            n = (first + draw.randrange(NEARBY)) % len(self.sentences)
            words = self.sentences[n].split(" ")
            for place in range(len(words)):
                if not draw.randrange(FOREIGN_EVERY):
                    words[place] = self._foreign(draw)
            text.append(" ".join(words))
            chosen.append(n)
            left -= len(text[-1]) + 1
        return " ".join(text), chosen

    def _foreign(self, draw: random.Random) -> str:
        if not draw.randrange(NUMBER_EVERY):
            return f"{draw.choice('ABCDEFGH')}-{draw.randrange(10**6)}"
        return draw.choice(self.words)

    def queries(self, count: int, *, seed: int) -> list[str]:
        """Three to ten words that stand one after the other."""
        draw = random.Random(seed)
        queries = []
        for _ in range(count):
            words = draw.choice(self.sentences).split()
            size = min(len(words), draw.randint(3, 10))
            first = draw.randrange(len(words) - size + 1)
            queries.append(" ".join(words[first : first + size]))
        return queries


def make_corpus(process: Process, *, kept: Path) -> Corpus:
    """It is made but once where the folder `kept` stays. Raises NoCorpus."""
    texts, vectors_file = kept / "corpus.json", kept / "corpus.npy"
    if texts.exists() and vectors_file.exists():
        return Corpus(**json.loads(texts.read_text("utf-8")), vectors=np.load(vectors_file))
    whole = list(_texts())
    sentences = list(
        dict.fromkeys(
            sentence
            for text in whole
            for sentence in (" ".join(one.split()) for one in _SENTENCE.split(text))
            if SENTENCE_CHARS[0] <= len(sentence) <= SENTENCE_CHARS[1]
        )
    )
    # Every n-th, in their order: what stands near each other is about the same.
    step = max(1.0, len(sentences) / SENTENCES)
    sentences = [sentences[int(n * step)] for n in range(min(SENTENCES, len(sentences)))]
    words = [word for text in whole for word in text.split() if word.isalpha()]
    vectors = embedders_of(process).get().encode(sentences, between=lambda: None)
    np.save(vectors_file, vectors)
    texts.write_text(json.dumps({"sentences": sentences, "words": words}), "utf-8")
    return Corpus(sentences=sentences, words=words, vectors=vectors)


def _texts() -> Iterator[str]:
    for path in pages():
        loaded = load(
            path.read_bytes(), name=path.name, content_type="text/html",
        )  # fmt: skip
        yield loaded.text
    squad = DATA / "xquad.en.json"
    if squad.exists():
        for article in json.loads(squad.read_text("utf-8"))["data"]:
            for paragraph in article["paragraphs"]:
                yield paragraph["context"]


@dataclass(frozen=True, kw_only=True)
class _Document:
    id: UUID
    version_id: UUID
    texts: Sequence[str]
    vectors: Vectors


class Filling:
    """Writes a collection that has so many chunks in the end."""

    def __init__(self, process: Process, corpus: Corpus, name: str) -> None:
        self._process = process
        self._corpus = corpus
        self._name = name
        self._draw = random.Random(name)
        self._noise = np.random.default_rng(len(name))
        dimension = corpus.vectors.shape[1]
        with process.ledger.begin() as session:
            model = embedders_of(process).get().name
            collections.put(session, name, collections.Spec(embedding_model=model))
            collection, index = collections.get_with_index(session, name)
            indexes.fix_dimension(session, index.id, dimension)
        self._id = collection.id
        store_of(process).make(index.stored_name, index.distance)

    def write(self, chunks: int) -> None:
        documents = chunks // DOCUMENT_CHUNKS
        with ThreadPoolExecutor(1) as aside:
            vectors: list[Future[None]] = []
            for first in range(0, documents, WRITTEN_DOCUMENTS):
                batch = [self._document() for _ in range(min(WRITTEN_DOCUMENTS, documents - first))]
                vectors.append(aside.submit(self._write_vectors, batch))
                self._write_rows(batch)
                if len(vectors) > 2:
                    vectors.pop(0).result()
            for future in vectors:
                future.result()

    def _document(self) -> _Document:
        corpus = self._corpus
        first = self._draw.randrange(len(corpus.sentences))
        drawn = [corpus.chunk(self._draw, first) for _ in range(DOCUMENT_CHUNKS)]
        sums = unit(np.stack([corpus.vectors[chosen].sum(axis=0) for _, chosen in drawn]))
        noise = unit(self._noise.standard_normal(sums.shape, dtype=np.float32))
        id_ = new_id()
        return _Document(
            id=id_,
            version_id=id_,
            texts=[text for text, _ in drawn],
            vectors=unit(sums + NOISE * noise),
        )

    def _write_rows(self, documents: Sequence[_Document]) -> None:
        spans = [
            ChunkSpan(version_id=one.version_id, first=0, terms=[terms(text) for text in one.texts])
            for one in documents
        ]
        packed = pack(Field.TERMS, build(spans))
        with self._process.ledger.begin() as session:
            connection = session.connection().connection.driver_connection
            assert connection is not None
            with connection.cursor() as cursor:
                with cursor.copy("COPY documents (id, collection_id, source) FROM STDIN") as copy:
                    for one in documents:
                        copy.write_row((one.id, self._id, f"{one.id}.txt"))
                with cursor.copy(
                    "COPY versions (id, document_id, state, sha256, content_hash, size_bytes, "
                    "chunk_count, embedded) FROM STDIN"
                ) as copy:
                    for one in documents:
                        count = len(one.texts)
                        copy.write_row(
                            (one.version_id, one.id, "live", "", "", 0, count, f"{{[0,{count})}}")
                        )
                with cursor.copy(
                    "COPY chunks (version_id, ordinal, start, text, metadata) FROM STDIN"
                ) as copy:
                    for one in documents:
                        for n, text in enumerate(one.texts):
                            row = one.version_id, n, n * CHUNK_CHARS, text, Jsonb({"page": n})
                            copy.write_row(row)
                cursor.execute(
                    "UPDATE documents SET live_version_id = id WHERE id = ANY(%s)",
                    ([one.id for one in documents],),
                )
            lexical.write(session, self._id, packed)
            lexical.note_published(session, [one.version_id for one in documents], [Field.TERMS])
        with self._process.ledger.read() as session:
            groups = lexical.groups_to_merge(session, self._id, limit=10)
        for group in groups:
            merge_group(self._process, group)

    def _write_vectors(self, documents: Sequence[_Document]) -> None:
        entries = [
            VectorEntry(
                id=chunk_id(one.version_id, n),
                text=text,
                metadata={"page": n},
                own={
                    "source": f"{one.id}.txt",
                    "document_id": str(one.id),
                    "start_index": n * CHUNK_CHARS,
                },
            )
            for one in documents
            for n, text in enumerate(one.texts)
        ]
        vectors = np.concatenate([one.vectors for one in documents])
        store_of(self._process).upsert(self._name, entries, vectors)

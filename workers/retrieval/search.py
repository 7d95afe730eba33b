"""Search: the passages of collections that answer queries.

All queries of a request are embedded together, and a store is asked once for all of them. What
comes back is looked up in Postgres: a passage that is not live there is no hit.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from uuid import UUID

import numpy as np

from shared.documents import collections, documents
from shared.documents.documents import ChunkView, parse_chunk_id
from shared.errors import Permanent
from shared.filters import MetadataFilter
from shared.kinds.search import (
    DEFAULT_FETCH_K,
    DEFAULT_LAMBDA_MULT,
    Hit,
    HitDebug,
    SearchOptions,
    SearchType,
)
from workers.attempts.process import Process
from workers.models.devices import Vectors
from workers.retrieval.embed import Embedder, embedders_of
from workers.retrieval.store import Match, Missing, store_of

WIDEN_TIMES = 4
WIDEN_FACTOR = 4
"""A store that gives too few live passages is asked for so many times as many, so often."""
MATCHING_CHUNKS = 10_000
"""So many chunks that a filter matches are compared with a query where it has to be found in
Postgres which ones these are."""


@dataclass(frozen=True, kw_only=True)
class SearchRequest:
    """`noun` is what the user calls a query: the query, the question."""

    collections: Sequence[str]
    queries: Sequence[str]
    k: int
    options: SearchOptions = field(default_factory=SearchOptions)
    noun: str = "query"


@dataclass(kw_only=True)
class Candidate:
    """A live passage that may become a hit. `debug` says how well it fits."""

    chunk: ChunkView
    collection: str
    score: float
    debug: HitDebug


@dataclass(frozen=True, kw_only=True)
class Candidates:
    """Those of each query, best first, and what the user has to know."""

    rows: Sequence[Sequence[Candidate]]
    warnings: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class Passage:
    """A candidate that is a hit, and the chunks that make its text: its own, and neighbours."""

    candidate: Candidate
    chunks: Sequence[ChunkView]

    @property
    def ordinals(self) -> tuple[int, int]:
        """Of the first and of the last of the chunks."""
        return self.chunks[0].ordinal, self.chunks[-1].ordinal

    def hit(self, request: SearchRequest) -> Hit:
        chunk = self.candidate.chunk
        return Hit(
            chunk_id=chunk.id,
            document_id=str(chunk.document_id),
            source=chunk.source,
            text=joined(self.chunks),
            start=self.chunks[0].start,
            score=round(self.candidate.score, 6),
            metadata=chunk.metadata,
            collection=self.candidate.collection if len(request.collections) > 1 else None,
            debug=self.candidate.debug if request.options.debug else None,
        )


@dataclass(frozen=True, kw_only=True)
class SearchAnswer:
    """The hits of each query, best first; fewer than k where there are fewer."""

    hits: Sequence[Sequence[Hit]]
    warnings: Sequence[str]


def search(
    process: Process, request: SearchRequest, *, check: Callable[[], None] = lambda: None
) -> SearchAnswer:
    """What `candidates` and `passages` give, together; nothing is reranked."""
    chosen = candidates(process, request, check=check)
    hits = [[one.hit(request) for one in passages(process, request, row)] for row in chosen.rows]
    return SearchAnswer(hits=hits, warnings=chosen.warnings)


def candidates(
    process: Process,
    request: SearchRequest,
    *,
    count: int = 0,
    check: Callable[[], None] = lambda: None,
) -> Candidates:
    """At least `count` for each query, and as many as hits need; fewer where there are fewer.

    `check` is called while a model is waited for, and may raise. Raises NotFound where a
    collection is not there.
    """
    # Neighbours of better hits are no hits themselves.
    count = max(count, request.k * (1 + 2 * request.options.expand))
    parts = [CollectionSearch(process, name, request, check) for name in request.collections]
    rows: list[list[Candidate]] = [[] for _ in request.queries]
    for part in parts:
        for row, more in zip(rows, part.candidates(count), strict=True):
            row += more
    for row in rows:
        row.sort(key=lambda candidate: -candidate.score)  # stable: equals stay in order
    warnings = dict.fromkeys(warning for part in parts for warning in part.warnings)
    return Candidates(rows=rows, warnings=list(warnings))


class CollectionSearch:
    """The queries of a request in one of its collections."""

    def __init__(
        self, process: Process, name: str, request: SearchRequest, check: Callable[[], None]
    ) -> None:
        self._process = process
        self._name = name
        self._request = request
        self._options = request.options
        self._check = check
        self.warnings: list[str] = []
        with process.ledger.read() as session:
            collection = collections.get(session, name)
            self._id, self._model = collection.id, collection.embedding_model
            self._dimension = collection.dimension

    def candidates(self, count: int) -> list[list[Candidate]]:
        """Those of each query, best first."""
        if self._dimension is None:
            return [[] for _ in self._request.queries]  # nothing has been ingested yet
        vectors = self._vectors()
        if self._options.type is SearchType.MMR:
            return self._diverse(vectors, count)
        nearest = self._nearest(vectors, count)
        threshold = self._options.score_threshold
        if threshold is None:
            return nearest
        return [[one for one in row if one.score >= threshold] for row in nearest]

    # The dense half

    def _vectors(self) -> Vectors:
        """Of the queries, of the shape (queries, dimension)."""
        embedder = embedders_of(self._process).get(self._model, check=self._check)
        if embedder.dimension != self._dimension:
            raise Permanent(
                f"Collection {self._name!r} has {self._dimension} dimensions, but {self._model!r} "
                f"now gives {embedder.dimension}. Put the model back, or ingest into a new "
                "collection."
            )
        self._warn_of_cut(embedder)
        return embedder.encode_queries(self._request.queries, between=self._check)

    def _warn_of_cut(self, embedder: Embedder) -> None:
        cut = embedder.overlong_queries(self._request.queries, between=self._check)
        for n, tokens in cut.items():
            which = f" {n + 1:,}" if len(self._request.queries) > 1 else ""
            self.warnings.append(
                f"The {self._request.noun}{which} has {tokens:,} tokens, of which {embedder.name} "
                f"reads the first {embedder.window:,}: what it says after these had no part in the "
                "search. Shorten it."
            )

    def _nearest(self, vectors: Vectors, count: int) -> list[list[Candidate]]:
        """The passages whose vectors are nearest, `count` for each query.

        The store may know passages that are live no longer, and for a moment the other way round;
        and it may not know all of the filter. Where that leaves fewer than `count`, more are asked
        for, and then those that Postgres has found.
        """
        nearest: list[list[Candidate]] = [[] for _ in vectors]
        left = list(range(len(vectors)))
        limit = count
        for _ in range(WIDEN_TIMES):
            rows = self._query(vectors[left], limit)
            for n, live in zip(left, self._live(rows, count), strict=True):
                nearest[n] = live
            left = [
                n
                for n, row in zip(left, rows, strict=True)
                if len(nearest[n]) < min(count, len(row))
            ]
            if not left:
                return nearest
            limit *= WIDEN_FACTOR
        where = self._options.filter
        if where is not None and not store_of(self._process).is_exact(where):
            rows = self._query(vectors[left], count, ids=self._matching(where))
            for n, live in zip(left, self._live(rows, count), strict=True):
                nearest[n] = live
        return nearest

    def _matching(self, where: MetadataFilter) -> list[str]:
        with self._process.ledger.read() as session:
            ids = documents.matching_chunks(session, self._id, where, limit=MATCHING_CHUNKS)
        if len(ids) == MATCHING_CHUNKS:
            self.warnings.append(
                f"The filter matches {MATCHING_CHUNKS:,} passages or more of {self._name}, and the "
                "vector store does not know all of it: not all were compared. Filter by something "
                "that it knows, too: that a value is equal to another, or larger than a number."
            )
        return ids

    def _query(
        self, vectors: Vectors, limit: int, *, ids: Sequence[str] | None = None
    ) -> list[list[Match]]:
        try:
            return store_of(self._process).query(
                self._name, vectors, limit=limit, where=self._options.filter, ids=ids
            )
        except Missing:
            if self._is_empty():
                return [[] for _ in vectors]
            raise

    def _is_empty(self) -> bool:
        """Whether there is nothing to find. Raises NotFound where it was just erased."""
        with self._process.ledger.read() as session:
            collection = collections.get(session, self._name)
            return not documents.page(session, collection.id, limit=1, after=None)

    def _live(self, rows: Sequence[Sequence[Match]], count: int) -> list[list[Candidate]]:
        """Of each row those that are live and match the filter, `count` at most."""
        ids = list(dict.fromkeys(match.id for row in rows for match in row))
        with self._process.ledger.read() as session:
            live = documents.live_chunks(session, self._id, ids, where=self._options.filter)
        return [
            [self._candidate(live[match.id], match.score) for match in row if match.id in live][
                :count
            ]
            for row in rows
        ]

    def _candidate(self, chunk: ChunkView, similarity: float) -> Candidate:
        debug = HitDebug(similarity=similarity, halves=["dense"])
        return Candidate(chunk=chunk, collection=self._name, score=similarity, debug=debug)

    def _diverse(self, vectors: Vectors, count: int) -> list[list[Candidate]]:
        fetch = max(self._options.fetch_k or DEFAULT_FETCH_K, count)
        share = self._options.lambda_mult
        nearest = self._nearest(vectors, fetch)
        ids = list(dict.fromkeys(one.chunk.id for row in nearest for one in row))
        kept = store_of(self._process).vectors(self._name, ids) if ids else {}
        diverse = []
        for query, row in zip(vectors, nearest, strict=True):
            row = [one for one in row if one.chunk.id in kept]
            passages = np.array([kept[one.chunk.id] for one in row]).reshape(len(row), len(query))
            order = marginal_relevance(
                query,
                passages / np.maximum(np.linalg.norm(passages, axis=1, keepdims=True), 1e-12),
                share=DEFAULT_LAMBDA_MULT if share is None else share,
                count=count,
            )
            diverse.append([row[n] for n in order])
        return diverse


def marginal_relevance(query: Vectors, passages: Vectors, *, share: float, count: int) -> list[int]:
    """Indices of `count` passages by maximal marginal relevance, of vectors of length 1.

    Carbonell and Goldstein 1998, with the meaning that LangChain documents: the first is the most
    similar to the query; each next one has the largest `share` x (cosine with the query) less
    (1 - `share`) x (largest cosine with those before). So a `share` of 1 is similarity alone, and 0
    is diversity alone.
    """
    similar = passages @ query
    repeated = np.full(len(passages), -np.inf, dtype=np.float32)
    order: list[int] = []
    gain = similar
    for _ in range(min(count, len(passages))):
        best = int(np.argmax(gain))
        order.append(best)
        repeated = np.maximum(repeated, passages @ passages[best])
        gain = share * similar - (1 - share) * repeated
        gain[order] = -np.inf
    return order


# Candidates -> hits


def passages(process: Process, request: SearchRequest, row: Sequence[Candidate]) -> list[Passage]:
    """The first k candidates, with their neighbours; no chunk is in two of them."""
    expand = request.options.expand
    if not expand:
        return [Passage(candidate=one, chunks=[one.chunk]) for one in row[: request.k]]
    shown: dict[UUID, set[int]] = {}
    chosen: list[Passage] = []
    with process.ledger.read() as session:
        for one in row:
            version_id, ordinal = _place(one.chunk)
            before = shown.setdefault(version_id, set())
            if ordinal in before:
                continue
            chunks = documents.chunk_range(
                session, version_id, first=ordinal - expand, last=ordinal + expand
            )
            around = list(_unbroken(chunks, ordinal, before)) or [one.chunk]
            before |= {chunk.ordinal for chunk in around}
            chosen.append(Passage(candidate=one, chunks=around))
            if len(chosen) == request.k:
                break
    return chosen


def _place(chunk: ChunkView) -> tuple[UUID, int]:
    place = parse_chunk_id(chunk.id)
    assert place is not None
    return place


def _unbroken(chunks: Sequence[ChunkView], ordinal: int, shown: set[int]) -> Iterator[ChunkView]:
    """The chunks around one of them, up to those that another hit has shown."""
    earlier = [chunk for chunk in chunks if chunk.ordinal < ordinal]
    first = max((chunk.ordinal + 1 for chunk in earlier if chunk.ordinal in shown), default=0)
    for chunk in chunks:
        if chunk.ordinal > ordinal and chunk.ordinal in shown:
            return
        if chunk.ordinal >= first:
            yield chunk


def joined(chunks: Sequence[ChunkView]) -> str:
    """The text of neighbours, what two of them share only once."""
    text, end = chunks[0].text, chunks[0].start + len(chunks[0].text)
    for chunk in chunks[1:]:
        gap = chunk.start - end
        if gap > 0:  # white space that no chunk has: of a line or a paragraph
            text += (" " if gap == 1 else "\n\n") + chunk.text
        else:
            text += chunk.text[-gap:]
        end = max(end, chunk.start + len(chunk.text))
    return text

"""Search: the passages of collections that answer queries.

All queries of a request are embedded together, and a store is asked once for all of them. What
comes back is looked up in Postgres: a passage that is not live there is no hit.
"""

import math
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from uuid import UUID

import numpy as np

from shared.bounds import shown
from shared.documents import collections, documents
from shared.documents.documents import ChunkView, parse_chunk_id
from shared.errors import Permanent
from shared.filters import OWN_KEYS, MetadataFilter
from shared.kinds.search import (
    DEFAULT_FETCH_K,
    DEFAULT_LAMBDA_MULT,
    Hit,
    HitDebug,
    SearchOptions,
    SearchType,
    Span,
)
from workers.attempts.process import Process
from workers.models.devices import Vectors
from workers.retrieval.embed import Embedder, embedders_of
from workers.retrieval.fusion import Floats, QueryFacts, fuse
from workers.retrieval.lexical import LexicalResult, lexical_of
from workers.retrieval.store import Match, Missing, store_of
from workers.retrieval.terms import terms
from workers.retrieval.tuning import CollectionFacts, coverage_by, tuning_for_search

HYBRID_POOL = 50
"""So many of the best of each half are weighed, at least."""
JOINED_CHUNKS = 3
"""At most so many chunks that follow each other are one hit."""
WIDEN_TIMES = 4
WIDEN_FACTOR = 4
"""A store that gives too few live passages is asked for so many times as many, so often."""
TEXTS_AT_ONCE = 25
"""Of so many passages the text is read when it is asked whether they are live. Of more, most are
not among the best, and so theirs is read last."""
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
    vector: Sequence[float] | None = None
    """What stands for the one query, which is then empty."""


@dataclass(kw_only=True)
class Candidate:
    """A live passage that may become a hit. `debug` says how well it fits."""

    chunk: ChunkView
    collection: str
    score: float
    debug: HitDebug
    weights: Mapping[str, float] = field(default_factory=dict)
    """What each term of the query is worth in the collection, where that is known."""


@dataclass(kw_only=True, slots=True)
class _ScoredId:
    """A live passage before its text is read: its id, its score, and how that came about."""

    id: str
    score: float
    halves: tuple[str, ...]
    similarity: float | None = None
    lexical: float | None = None
    dense_weight: float | None = None
    weights: Mapping[str, float] = field(default_factory=dict)


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

    def hit(self, request: SearchRequest, query: str) -> Hit:
        chunk = self.candidate.chunk
        text = joined(self.chunks)
        return Hit(
            chunk_id=chunk.id,
            document_id=str(chunk.document_id),
            source=chunk.source,
            text=text,
            start=self.chunks[0].start,
            score=round(self.candidate.score, 6),
            metadata=chunk.metadata,
            collection=self.candidate.collection if len(request.collections) > 1 else None,
            span=best_span(text, self.candidate.weights or dict.fromkeys(terms(query), 1.0)),
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
    hits = [
        [one.hit(request, query) for one in passages(process, request, row)]
        for query, row in zip(request.queries, chosen.rows, strict=True)
    ]
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
    options = request.options
    share = 1 + 2 * options.expand if options.expand else 1
    if options.joins and not options.expand and not options.rerank:
        share = JOINED_CHUNKS
    count = max(count, request.k * share)
    parts = [CollectionSearch(process, name, request, check) for name in request.collections]
    rows: list[list[Candidate]] = [[] for _ in request.queries]
    for part in parts:
        for row, more in zip(rows, part.candidates(count), strict=True):
            row += more
    for row in rows:
        row.sort(key=lambda candidate: -candidate.score)  # stable: equals stay in order
    if not any(rows):
        for part in parts:
            part.warn_of_filter()
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
        self._is_live: dict[str, bool] = {}
        """Whether passages, by their ids, were live and matched the filter when they were met."""
        self._chunks: dict[str, ChunkView] = {}
        with process.ledger.read_single() as session:
            collection = collections.get(session, name)
            self._id, self._model = collection.id, collection.embedding_model
            self._dimension = collection.dimension
            self._facts = CollectionFacts(
                id=collection.id, name=collection.name, tuning=collection.tuning
            )

    def candidates(self, count: int) -> list[list[Candidate]]:
        """Those of each query, best first."""
        if self._dimension is None:
            return [[] for _ in self._request.queries]  # nothing has been ingested yet
        type_ = self._options.type
        if type_ is SearchType.LEXICAL:
            return self._read(self._matches(self._lexical(count), count), count)
        if self._request.vector is None:
            embedder = self._embedder()
            vectors = embedder.encode_queries(self._request.queries, between=self._check)
            if type_ is SearchType.HYBRID:
                return self._read(self._weighed(embedder, vectors, count), count)
        else:
            vectors = self._unit_vector(self._request.vector)
        if type_ is SearchType.MMR:
            return self._read(self._diverse(vectors, count), count)
        nearest = self._nearest(vectors, self._query(vectors, count), count)
        threshold = self._options.score_threshold
        if threshold is not None:
            nearest = [[one for one in row if one.score >= threshold] for row in nearest]
        return self._read(nearest, count)

    def _unit_vector(self, vector: Sequence[float]) -> Vectors:
        """The vector of a request, of length 1."""
        if len(vector) != self._dimension:
            raise Permanent(
                f"The vector has {len(vector):,} numbers, and those of {self._name} have "
                f"{self._dimension:,}. Make it with {self._model}, or send a query."
            )
        numbers = np.array([vector], dtype=np.float32)
        return numbers / max(float(np.linalg.norm(numbers)), 1e-12)

    def warn_of_filter(self) -> None:
        """Say of keys that the filter names where no passage has them, or in another type."""
        where = self._options.filter
        if where is None or self._dimension is None:
            return
        compared: dict[str, set[str]] = {}
        for comparison in where.comparisons():
            if comparison.key not in OWN_KEYS:
                compared.setdefault(comparison.key, set()).update(comparison.types)
        if not compared:
            return
        with self._process.ledger.read() as session:
            stored = documents.value_types(
                session, self._id, list(compared), sample_chunks=MATCHING_CHUNKS
            )
        for key, types in compared.items():
            if key not in stored:
                self.warnings.append(
                    f"The filter names {shown(key)}, which the metadata of no passage of "
                    f"{self._name} has, of {MATCHING_CHUNKS:,} at most that were looked at."
                )
            elif not types & stored[key]:
                self.warnings.append(
                    f"For the filter {shown(key)} has to be {_named(types)}, but in {self._name} "
                    f"it is {_named(stored[key])}; values of different types never match."
                    + (" In lists look with $contains." if "array" in stored[key] else "")
                )

    # Both halves

    def _weighed(self, embedder: Embedder, vectors: Vectors, count: int) -> list[list[_ScoredId]]:
        """The best by words and by meaning together: the best of each half, with both scores."""
        pool = max(count, HYBRID_POOL)
        # The store and Postgres look at the same time, the store before a thread of its own.
        aside = self._process.held(_aside, ThreadPoolExecutor.shutdown)
        waiting = aside.submit(self._query, vectors, pool)
        try:
            results = self._lexical(pool)
        finally:
            wait([waiting])
        rows = waiting.result()
        nearest_ids = set(_ids(rows))
        others = [id_ for result in results for id_ in result.chunk_ids if id_ not in nearest_ids]
        kept = aside.submit(self._vectors_if_there, list(dict.fromkeys(others)))
        try:
            self._live([*nearest_ids, *others])  # of both halves by one statement
        finally:
            wait([kept])
        halves = zip(self._nearest(vectors, rows, pool), self._matches(results, pool), strict=True)
        united = [_united(nearest, matches) for nearest, matches in halves]
        cosines = self._cosines(vectors, united, kept.result())
        tuning = tuning_for_search(
            self._process, self._facts, embedder, results[0], check=self._check
        )
        coverage = coverage_by(embedder.tokenizer)
        for query, row, result, similarities in zip(
            self._request.queries, united, results, cosines, strict=True
        ):
            lexical = result.score_in_context([one.id for one in row])
            fused = fuse(
                similarities,
                lexical,
                best_possible=result.best_possible,
                facts=QueryFacts(coverage=coverage(query)),
                tuning=tuning,
                chunk_count=result.live_chunks,
            )
            for one, score, similarity, match in zip(
                row, fused.scores.tolist(), similarities.tolist(), lexical.tolist(), strict=True
            ):
                one.score = score
                one.weights = result.weights
                one.similarity = None if math.isnan(similarity) else round(similarity, 6)
                one.lexical = round(match, 6)
                one.dense_weight = round(fused.weight, 6)
            row.sort(key=lambda one: -one.score)
        return united

    def _cosines(
        self, vectors: Vectors, rows: Sequence[Sequence[_ScoredId]], kept: Mapping[str, Vectors]
    ) -> list[Floats]:
        """Of each row's candidates with its query; NaN for those without a vector. `kept` has
        vectors of most of those that the store did not compare with the query."""
        missing = dict.fromkeys(
            one.id for row in rows for one in row if one.similarity is None and one.id not in kept
        )
        kept = {**kept, **self._vectors(list(missing))}

        def cosine(vector: Vectors, one: _ScoredId) -> float:
            if one.similarity is not None:
                return one.similarity
            other = kept.get(one.id)
            if other is None:
                return math.nan
            return float(vector @ other) / max(float(np.linalg.norm(other)), 1e-12)

        return [
            np.array([cosine(vector, one) for one in row], dtype=np.float64)
            for vector, row in zip(vectors, rows, strict=True)
        ]

    # The lexical half

    def _lexical(self, limit: int) -> list[LexicalResult]:
        results = lexical_of(self._process).search_many(
            self._id, self._request.queries, limit=limit
        )
        if results[0].unindexed:
            self.warnings.append(
                f"{results[0].unindexed:,} documents or more of {self._name} are not in the index "
                "of words yet: they were ingested by an older version, and come in one by one. "
                "Search again later."
            )
        for n, result in enumerate(results):
            if result.terms_left_out:
                which = f" {n + 1:,}" if len(results) > 1 else ""
                self.warnings.append(
                    f"The {self._request.noun}{which} has {result.query_terms:,} different words "
                    f"and parts of words, of which the first "
                    f"{result.query_terms - result.terms_left_out:,} were looked for. Shorten it."
                )
        return results

    def _matches(self, results: Sequence[LexicalResult], count: int) -> list[list[_ScoredId]]:
        """The passages that have words of the queries, `count` for each.

        What was erased since, or does not match the filter, makes room for further ones; where
        that is most of them, those that Postgres has found are scored.
        """
        matches: list[list[_ScoredId]] = [[] for _ in results]
        left = dict(enumerate(results))
        limit = count
        for _ in range(WIDEN_TIMES):
            live = self._live_matches(left.values(), count)
            for n, row in zip(left, live, strict=True):
                matches[n] = row
            left = {
                n: result
                for n, result in left.items()
                if len(matches[n]) < count and len(result.chunk_ids) >= limit
            }
            if not left:
                return matches
            limit *= WIDEN_FACTOR
            left = {n: result.further(limit) for n, result in left.items()}
        where = self._options.filter
        if where is not None:
            ids = self._matching(where)
            for n, row in zip(left, self._scored(left.values(), ids, count), strict=True):
                matches[n] = row
        return matches

    def _live_matches(
        self, results: Collection[LexicalResult], count: int
    ) -> list[list[_ScoredId]]:
        live = self._live([id_ for result in results for id_ in result.chunk_ids])
        return [
            [
                _match(id_, score, result.weights)
                for id_, score in zip(result.chunk_ids, result.scores.tolist(), strict=True)
                if id_ in live
            ][:count]
            for result in results
        ]

    def _scored(
        self, results: Collection[LexicalResult], ids: Sequence[str], count: int
    ) -> list[list[_ScoredId]]:
        """The best of those passages."""
        best: list[list[tuple[str, float]]] = []
        for result in results:
            scores = result.score(ids)
            order = np.argsort(-scores, kind="stable")[:count].tolist()
            best.append([(ids[n], float(scores[n])) for n in order if scores[n] > 0])
        live = self._live([id_ for row in best for id_, _ in row])
        return [
            [_match(id_, score, result.weights) for id_, score in row if id_ in live]
            for result, row in zip(results, best, strict=True)
        ]

    # The dense half

    def _embedder(self) -> Embedder:
        embedder = embedders_of(self._process).get(self._model, check=self._check)
        if embedder.dimension != self._dimension:
            raise Permanent(
                f"Collection {self._name!r} has {self._dimension} dimensions, but {self._model!r} "
                f"now gives {embedder.dimension}. Put the model back, or ingest into a new "
                "collection."
            )
        self._warn_of_cut(embedder)
        return embedder

    def _warn_of_cut(self, embedder: Embedder) -> None:
        cut = embedder.overlong_queries(self._request.queries, between=self._check)
        for n, tokens in cut.items():
            which = f" {n + 1:,}" if len(self._request.queries) > 1 else ""
            self.warnings.append(
                f"The {self._request.noun}{which} has {tokens:,} tokens, of which {embedder.name} "
                f"reads the first {embedder.window:,}: what it says after these had no part in the "
                "search. Shorten it."
            )

    def _nearest(
        self, vectors: Vectors, rows: Sequence[Sequence[Match]], count: int
    ) -> list[list[_ScoredId]]:
        """The passages whose vectors are nearest, `count` for each query: those of `rows`, which
        `_query` has of as many.

        The store may know passages that are live no longer, and for a moment the other way round;
        and it may not know all of the filter. Where that leaves fewer than `count`, more are asked
        for, and then those that Postgres has found. Where a filter leaves nothing, these are
        compared here: an index of neighbours may not reach them, as among very many equal vectors.
        """
        nearest: list[list[_ScoredId]] = [[] for _ in vectors]
        left = list(range(len(vectors)))
        limit = count
        for _ in range(WIDEN_TIMES):
            if limit > count:
                rows = self._query(vectors[left], limit)
            for n, live in zip(left, self._live_nearest(rows, count), strict=True):
                nearest[n] = live
            left = [
                n
                for n, row in zip(left, rows, strict=True)
                if len(nearest[n]) < min(count, len(row))
            ]
            if not left:
                break
            limit *= WIDEN_FACTOR
        where = self._options.filter
        if where is None:
            return nearest
        if left and not store_of(self._process).is_exact(where):
            rows = self._query(vectors[left], count, ids=self._matching(where))
            for n, live in zip(left, self._live_nearest(rows, count), strict=True):
                nearest[n] = live
        empty = [n for n, row in enumerate(nearest) if not row]
        if empty:
            rows = self._compared(vectors[empty], self._matching(where), count)
            for n, live in zip(empty, self._live_nearest(rows, count), strict=True):
                nearest[n] = live
        return nearest

    def _compared(self, vectors: Vectors, ids: Sequence[str], count: int) -> list[list[Match]]:
        """The best of these passages for each query, by their cosines with it."""
        kept = self._vectors(ids)
        if not kept:
            return [[] for _ in vectors]
        passages = np.array(list(kept.values()))
        lengths = np.maximum(np.linalg.norm(passages, axis=1), 1e-12)
        rows = []
        for cosines in vectors @ passages.T / lengths:
            order = np.argsort(-cosines, kind="stable")[:count].tolist()
            best = zip((list(kept)[n] for n in order), cosines[order].tolist(), strict=True)
            rows.append([Match(id=id_, score=score) for id_, score in best])
        return rows

    def _matching(self, where: MetadataFilter) -> list[str]:
        with self._process.ledger.read_single() as session:
            ids = documents.matching_chunks(session, self._id, where, limit=MATCHING_CHUNKS)
        if len(ids) == MATCHING_CHUNKS:
            self.warnings.append(
                f"The filter matches {MATCHING_CHUNKS:,} passages or more of {self._name}, of "
                f"which {MATCHING_CHUNKS:,} were compared with the {self._request.noun}: better "
                "ones may be missing. Narrow the filter down."
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

    def _vectors(self, ids: Sequence[str]) -> dict[str, Vectors]:
        return store_of(self._process).vectors(self._name, ids) if ids else {}

    def _vectors_if_there(self, ids: Sequence[str]) -> dict[str, Vectors]:
        """None where the store has no such collection any more: perhaps none of these is live."""
        try:
            return self._vectors(ids)
        except Missing:
            return {}

    def _is_empty(self) -> bool:
        """Whether there is nothing to find. Raises NotFound where it was just erased."""
        with self._process.ledger.read_single() as session:
            collection = collections.get(session, self._name)
            return not documents.page(session, collection.id, limit=1, after=None)

    def _live_nearest(self, rows: Sequence[Sequence[Match]], count: int) -> list[list[_ScoredId]]:
        """Of each row those that are live and match the filter, `count` at most."""
        live = self._live(_ids(rows))
        return [
            [
                _ScoredId(id=match.id, score=match.score, similarity=match.score, halves=("dense",))
                for match in row
                if match.id in live
            ][:count]
            for row in rows
        ]

    def _diverse(self, vectors: Vectors, count: int) -> list[list[_ScoredId]]:
        fetch = max(self._options.fetch_k or DEFAULT_FETCH_K, count)
        share = self._options.lambda_mult
        nearest = self._nearest(vectors, self._query(vectors, fetch), fetch)
        kept = self._vectors(list(dict.fromkeys(one.id for row in nearest for one in row)))
        diverse = []
        for query, row in zip(vectors, nearest, strict=True):
            row = [one for one in row if one.id in kept]
            passages = np.array([kept[one.id] for one in row]).reshape(len(row), len(query))
            order = marginal_relevance(
                query,
                passages / np.maximum(np.linalg.norm(passages, axis=1, keepdims=True), 1e-12),
                share=DEFAULT_LAMBDA_MULT if share is None else share,
                count=count,
            )
            diverse.append([row[n] for n in order])
        return diverse

    # What Postgres has of them

    def _live(self, ids: Sequence[str]) -> set[str]:
        """Those of the passages that are live and match the filter. Each is looked up but once."""
        new = [id_ for id_ in dict.fromkeys(ids) if id_ not in self._is_live]
        if new:
            where = self._options.filter
            live: Collection[str]
            with self._process.ledger.read_single() as session:
                if len(new) > TEXTS_AT_ONCE:
                    live = documents.live_ids(session, self._id, new, where=where)
                else:
                    live = chunks = documents.live_chunks(session, self._id, new, where=where)
                    self._chunks |= chunks
            self._is_live |= {id_: id_ in live for id_ in new}
        return {id_ for id_ in ids if self._is_live[id_]}

    def _read(self, rows: Sequence[Sequence[_ScoredId]], count: int) -> list[list[Candidate]]:
        """The first `count` of each row with their texts. One that is erased just now makes room
        for the next."""
        first = [row[:count] for row in rows]
        if not self._read_chunks(first):
            self._read_chunks(rows)
        return [
            [self._candidate(one) for one in row if one.id in self._chunks][:count] for row in rows
        ]

    def _read_chunks(self, rows: Sequence[Sequence[_ScoredId]]) -> bool:
        """Whether all of them are there."""
        ids = dict.fromkeys(one.id for row in rows for one in row)
        new = [id_ for id_ in ids if id_ not in self._chunks]
        if not new:
            return True
        with self._process.ledger.read_single() as session:
            chunks = documents.live_chunks(session, self._id, new, where=self._options.filter)
        self._chunks |= chunks
        return len(chunks) == len(new)

    def _candidate(self, scored: _ScoredId) -> Candidate:
        debug = HitDebug(
            similarity=scored.similarity,
            lexical=scored.lexical,
            dense_weight=scored.dense_weight,
            halves=list(scored.halves),
        )
        return Candidate(
            chunk=self._chunks[scored.id],
            collection=self._name,
            score=scored.score,
            debug=debug,
            weights=scored.weights,
        )


def _aside(_process: Process) -> ThreadPoolExecutor:
    """A thread beside those that search, which waits for the store meanwhile."""
    return ThreadPoolExecutor(1, thread_name_prefix="store")


def _ids(rows: Sequence[Sequence[Match]]) -> list[str]:
    return [match.id for row in rows for match in row]


def _match(id_: str, score: float, weights: Mapping[str, float]) -> _ScoredId:
    return _ScoredId(
        id=id_, score=score, lexical=round(score, 6), halves=("lexical",), weights=weights
    )


def _united(nearest: Sequence[_ScoredId], matches: Sequence[_ScoredId]) -> list[_ScoredId]:
    """Each passage once; one that both halves have says so."""
    united = {one.id: one for one in nearest}
    for one in matches:
        known = united.setdefault(one.id, one)
        if known is not one:
            known.halves += one.halves
    return list(united.values())


_TYPES = {
    "string": "a text", "number": "a number", "boolean": "true or false", "array": "a list",
}  # fmt: skip


def _named(types: Collection[str]) -> str:
    return " or ".join(name for type_, name in _TYPES.items() if type_ in types) or "nothing"


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
        return _joining(row, request.k, at_most=JOINED_CHUNKS if request.options.joins else 1)
    shown: dict[UUID, set[int]] = {}
    chosen: list[Passage] = []
    with process.ledger.read_single() as session:
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


def _joining(row: Sequence[Candidate], k: int, *, at_most: int) -> list[Passage]:
    """k passages of the best candidates. Of these, up to `at_most` that follow each other in a text
    become one passage, which has the score of the best; the next candidate takes the free place.
    Where there is none, those that were joined last are passages of their own again."""
    groups: list[list[Candidate]] = []
    places: dict[tuple[UUID, int], list[Candidate]] = {}
    joined: list[Candidate] = []
    for one in row:
        version_id, ordinal = _place(one.chunk)
        group = next(
            (
                near
                for step in (-1, 1)
                if (near := places.get((version_id, ordinal + step))) is not None
                and len(near) < at_most
                and any(_is_continued(one.chunk, other.chunk) for other in near)
            ),
            None,
        )
        if group is not None:
            group.append(one)
            joined.append(one)
        elif len(groups) == k:
            break
        else:
            group = [one]
            groups.append(group)
        places[version_id, ordinal] = group
    alone = joined[max(0, len(joined) + len(groups) - k) :]
    ranked = [
        *([one for one in group if one is group[0] or one not in alone] for group in groups),
        *([one] for one in alone),
    ]
    ranked.sort(key=lambda group: row.index(group[0]))
    return [
        Passage(
            candidate=group[0],
            chunks=sorted((one.chunk for one in group), key=lambda chunk: chunk.ordinal),
        )
        for group in ranked
    ]


def _is_continued(one: ChunkView, other: ChunkView) -> bool:
    """Whether one of these chunks of a version goes on where the other ends. Rows of a table, and
    elements of a list, are texts of their own, with metadata of their own and a line between."""
    before, after = sorted((one, other), key=lambda chunk: chunk.ordinal)
    if after.ordinal != before.ordinal + 1 or before.metadata != after.metadata:
        return False
    return after.start <= before.start + len(before.text) + 1


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


_SENTENCE = re.compile(r"[^.!?…。！？؟۔।\n]+(?:[.!?…。！？؟۔।]+(?=\s|$|[^\x00-\x7f])|[.!?]+|\n|$)?")


def best_span(text: str, weights: Mapping[str, float]) -> Span | None:
    """The sentence, or line, with the terms that are worth most; None where it has none of them."""
    best: Span | None = None
    most = 0.0
    for match in _SENTENCE.finditer(text):
        sentence = match[0]
        worth = sum(weights.get(term, 0.0) for term in set(terms(sentence)))
        if worth > most:
            start = match.start() + len(sentence) - len(sentence.lstrip())
            best, most = Span(start=start, end=match.start() + len(sentence.rstrip())), worth
    return best

"""Search: the passages of collections that answer queries.

All queries of a request are embedded in one batch, and one request to the store looks for many of
them. The results are looked up in Postgres: only passages that are live there are hits.
"""

import math
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import TypeVar
from uuid import UUID

import numpy as np

from shared.bounds import shown
from shared.documents import collections, documents, indexes
from shared.documents.documents import ChunkView, parse_chunk_id
from shared.documents.indexes import IndexChanged
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
from workers.retrieval.servers import store_of
from workers.retrieval.store import Match, MissingCollection, VectorStore
from workers.retrieval.terms import terms
from workers.retrieval.tuning import IndexFacts, coverage_by, tuning_for_search

T = TypeVar("T")

HYBRID_POOL = 50
"""How many of the best chunks of each half are scored by both, at least."""
JOINED_CHUNKS = 3
"""At most this many consecutive chunks become one hit."""
WIDEN_TIMES = 4
WIDEN_FACTOR = 4
"""If too few of a store's results are live, it is asked again for this many times as many."""
TEXTS_AT_ONCE = 25
"""Up to this many passages are read with their texts when they are checked to be live. Of more
passages, most are not among the best, and the texts of the best are read at the end."""
QUERIES_AT_ONCE = 100
"""So many queries are answered together. Of each, the vectors of some hundred passages are held."""
MATCHES_AT_ONCE = 100_000
"""If many queries are asked again for more, so many results of all of them are held at once."""
MATCHING_CHUNKS = 10_000
"""At most this many of the chunks that a filter matches are compared with a query, if Postgres has
to find them."""


@dataclass(frozen=True, kw_only=True)
class SearchRequest:
    """`noun` is how warnings call a query: query or question."""

    collections: Sequence[str]
    queries: Sequence[str]
    k: int
    options: SearchOptions = field(default_factory=SearchOptions)
    noun: str = "query"
    vector: Sequence[float] | None = None
    """The vector of the only query, whose text is then empty."""


@dataclass(kw_only=True)
class Candidate:
    """A live passage that may become a hit. `debug` has the parts of its score."""

    chunk: ChunkView
    collection: str
    score: float
    debug: HitDebug
    weights: Mapping[str, float] = field(default_factory=dict)
    """The weight of each term of the query in the collection; empty if lexical search was not
    asked."""


@dataclass(kw_only=True, slots=True)
class _ScoredId:
    """A live passage whose text is not read yet: its id, its score, and the parts of the score."""

    id: str
    score: float
    halves: tuple[str, ...]
    similarity: float | None = None
    lexical: float | None = None
    dense_weight: float | None = None
    weights: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Candidates:
    """The candidates of each query, best first, and the warnings for the user."""

    rows: Sequence[Sequence[Candidate]]
    warnings: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class Passage:
    """A candidate that is a hit, and the chunks of its text: its own chunk, and neighbours."""

    candidate: Candidate
    chunks: Sequence[ChunkView]

    @property
    def ordinals(self) -> tuple[int, int]:
        """Those of the first and of the last chunk."""
        return self.chunks[0].ordinal, self.chunks[-1].ordinal

    def hit(self, request: SearchRequest, query: str) -> Hit:
        chunk = self.candidate.chunk
        text = joined_text(self.chunks)
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
    """The hits of each query, best first; at most k."""

    hits: Sequence[Sequence[Hit]]
    warnings: Sequence[str]


def search(
    process: Process, request: SearchRequest, *, check: Callable[[], None] = lambda: None
) -> SearchAnswer:
    """The hits of a request, without reranking. Raises what `candidates` raises."""
    result = candidates(process, request, check=check)
    hits = [
        [passage.hit(request, query) for passage in passages(process, request, row)]
        for query, row in zip(request.queries, result.rows, strict=True)
    ]
    return SearchAnswer(hits=hits, warnings=result.warnings)


def candidates(
    process: Process,
    request: SearchRequest,
    *,
    count: int = 0,
    check: Callable[[], None] = lambda: None,
) -> Candidates:
    """The candidates of each query: `count`, or as many as k hits may need, if there are so many.

    `check` is called between units of work and may raise. Raises NotFound if a collection does not
    exist.
    """
    # Some candidates become part of a better hit, so more than k are needed.
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
        row.sort(key=lambda candidate: -candidate.score)
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
        """Id -> whether the passage was live and matched the filter when it was looked up."""
        self._chunks: dict[str, ChunkView] = {}
        with process.ledger.read_single() as session:
            collection, self._index = collections.get_with_index(session, name)
            self._id, self._model = collection.id, self._index.embedding_model
            self._dimension = self._index.dimension
            self._facts = IndexFacts.of(collection, self._index)

    def candidates(self, count: int) -> list[list[Candidate]]:
        """The candidates of each query, best first."""
        if self._dimension is None:
            return [[] for _ in self._request.queries]  # nothing was ingested yet
        find = self._finder(count)
        rows: list[list[Candidate]] = []
        for first in range(0, len(self._request.queries), QUERIES_AT_ONCE):
            self._check()
            self._is_live, self._chunks = {}, {}  # passages may have been erased since
            rows += self._read(find(slice(first, first + QUERIES_AT_ONCE)), count)
        return rows

    def _finder(self, count: int) -> Callable[[slice], list[list[_ScoredId]]]:
        """What finds the best passages for a part of the queries, all of which are embedded
        here."""
        type_ = self._options.type
        if type_ is SearchType.LEXICAL:
            return lambda part: self._matches(self._lexical(part, count), count)
        if self._request.vector is None:
            embedder = self._embedder()
            vectors = embedder.encode_queries(self._request.queries, between=self._check)
            if type_ is SearchType.HYBRID:
                return lambda part: self._hybrid(embedder, part, vectors[part], count)
        else:
            vectors = self._unit_vector(self._request.vector)
        if type_ is SearchType.MMR:
            return lambda part: self._diverse(vectors[part], count)
        return lambda part: self._similar(vectors[part], count)

    def _unit_vector(self, vector: Sequence[float]) -> Vectors:
        """The vector of the request, scaled to length 1, as an array of one row."""
        if len(vector) != self._dimension:
            raise Permanent(
                f"The vector has {len(vector):,} numbers, and those of {self._name} have "
                f"{self._dimension:,}. Make it with {self._model}, or send a query."
            )
        numbers = np.array([vector], dtype=np.float32)
        return numbers / max(float(np.linalg.norm(numbers)), 1e-12)

    def warn_of_filter(self) -> None:
        """Add a warning for each key of the filter that no passage has, or has in another type."""
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
                    f"For the filter {shown(key)} has to be {_type_names(types)}, but in "
                    f"{self._name} it is {_type_names(stored[key])}; values of different types "
                    "never match."
                    + (" In lists look with $contains." if "array" in stored[key] else "")
                )

    # Both halves

    def _hybrid(
        self, embedder: Embedder, part: slice, vectors: Vectors, count: int
    ) -> list[list[_ScoredId]]:
        """The best of each half, scored by both."""
        pool = max(count, HYBRID_POOL)
        # The store is asked in a second thread, so that it and Postgres work at the same time.
        executor = self._process.held(_store_thread, ThreadPoolExecutor.shutdown)
        store_rows = executor.submit(self._query, vectors, pool)
        try:
            results = self._lexical(part, pool)
        finally:
            wait([store_rows])
        rows = store_rows.result()
        nearest_ids = set(_ids(rows))
        others = [id_ for result in results for id_ in result.chunk_ids if id_ not in nearest_ids]
        other_vectors = executor.submit(self._vectors, list(dict.fromkeys(others)))
        try:
            self._live([*nearest_ids, *others])  # one statement for both halves
        finally:
            wait([other_vectors])
        halves = zip(self._nearest(vectors, rows, pool), self._matches(results, pool), strict=True)
        united = [_union(nearest, matches) for nearest, matches in halves]
        cosines = self._cosines(vectors, united, other_vectors.result())
        tuning = tuning_for_search(
            self._process, self._facts, embedder, results[0], check=self._check
        )
        coverage = coverage_by(embedder.tokenizer)
        for query, row, result, similarities in zip(
            self._request.queries[part], united, results, cosines, strict=True
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
        self, vectors: Vectors, rows: Sequence[Sequence[_ScoredId]], known: Mapping[str, Vectors]
    ) -> list[Floats]:
        """The cosines of each row's candidates with the row's query; NaN for those without a
        vector. `known` has vectors of candidates that the store did not compare with the query."""
        missing = dict.fromkeys(
            scored.id
            for row in rows
            for scored in row
            if scored.similarity is None and scored.id not in known
        )
        known = {**known, **self._vectors(list(missing))}

        def cosine(vector: Vectors, scored: _ScoredId) -> float:
            if scored.similarity is not None:
                return scored.similarity
            other = known.get(scored.id)
            if other is None:
                return math.nan
            return float(vector @ other) / max(float(np.linalg.norm(other)), 1e-12)

        return [
            np.array([cosine(vector, scored) for scored in row], dtype=np.float64)
            for vector, row in zip(vectors, rows, strict=True)
        ]

    # The lexical half

    def _lexical(self, part: slice, limit: int) -> list[LexicalResult]:
        queries = self._request.queries
        results = lexical_of(self._process).search_many(self._id, queries[part], limit=limit)
        if results[0].unindexed:
            self.warnings.append(
                f"{results[0].unindexed:,} documents or more of {self._name} are not in the index "
                "of words yet: they were ingested by an older version, and come in one by one. "
                "Search again later."
            )
        for number, result in enumerate(results, part.start + 1):
            if result.terms_left_out:
                which = f" {number:,}" if len(queries) > 1 else ""
                self.warnings.append(
                    f"The {self._request.noun}{which} has {result.query_terms:,} different words "
                    f"and parts of words, of which the first "
                    f"{result.query_terms - result.terms_left_out:,} were looked for. Shorten it."
                )
        return results

    def _matches(self, results: Sequence[LexicalResult], count: int) -> list[list[_ScoredId]]:
        """The `count` best passages by words for each query, if there are so many.

        Results that were erased since, or that the filter excludes, are replaced by further ones.
        If that leaves too few, the passages that the filter matches in Postgres are scored.
        """
        matches: list[list[_ScoredId]] = [[] for _ in results]
        left = list(range(len(results)))
        parts: Iterable[tuple[list[int], Sequence[LexicalResult]]] = [(left, results)]
        limit = count
        for _ in range(WIDEN_TIMES):
            left = []
            for numbers, part in parts:
                live = self._live_matches(part, count)
                for n, result, row in zip(numbers, part, live, strict=True):
                    matches[n] = row
                    if len(row) < count and len(result.chunk_ids) >= limit:
                        left.append(n)
            if not left:
                return matches
            limit *= WIDEN_FACTOR
            parts = self._further(results, left, limit)
        where = self._options.filter
        if where is not None:
            ids = self._matching(where)
            scored = self._scored([results[n] for n in left], ids, count)
            for n, row in zip(left, scored, strict=True):
                matches[n] = row
        return matches

    def _further(
        self, results: Sequence[LexicalResult], left: list[int], limit: int
    ) -> Iterator[tuple[list[int], Sequence[LexicalResult]]]:
        """The results for another limit, some at a time, with their numbers."""
        for numbers in self._parts(left, limit):
            yield numbers, [results[n].further(limit) for n in numbers]

    def _parts(self, numbers: list[int], limit: int) -> Iterator[list[int]]:
        """The numbers of queries, so many at a time that they have MATCHES_AT_ONCE results."""
        size = max(1, MATCHES_AT_ONCE // limit)
        for first in range(0, len(numbers), size):
            self._check()
            yield numbers[first : first + size]

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
        """The best of these passages for each query."""
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
                f"now gives {embedder.dimension}. Put the model back, or make the vectors anew: "
                "`sluice collections rebuild NAME`."
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

    def _similar(self, vectors: Vectors, count: int) -> list[list[_ScoredId]]:
        nearest = self._nearest(vectors, self._query(vectors, count), count)
        threshold = self._options.score_threshold
        if threshold is None:
            return nearest
        return [[one for one in row if one.score >= threshold] for row in nearest]

    def _nearest(
        self, vectors: Vectors, rows: Sequence[Sequence[Match]], count: int
    ) -> list[list[_ScoredId]]:
        """The `count` live passages with the nearest vectors for each query, if there are so many.
        `rows` is what `_query` returned for the same `count`.

        The store may have passages that are not live any more, or lack live ones for a moment, and
        it may apply a part of the filter only. If fewer than `count` are left, it is asked for
        more, and then among the passages that the filter matches in Postgres. If still nothing is
        left, those are compared here: the store's index of neighbours may not reach them, for
        example among very many equal vectors.
        """
        nearest: list[list[_ScoredId]] = [[] for _ in vectors]
        left = list(range(len(vectors)))
        parts: Iterable[tuple[list[int], Sequence[Sequence[Match]]]] = [(left, rows)]
        limit = count
        for _ in range(WIDEN_TIMES):
            left = []
            for numbers, part in parts:
                live_part = self._live_nearest(part, count)
                for n, row, live in zip(numbers, part, live_part, strict=True):
                    nearest[n] = live
                    if len(live) < min(count, len(row)):
                        left.append(n)
            if not left:
                break
            limit *= WIDEN_FACTOR
            parts = self._further_rows(vectors, left, limit)
        where = self._options.filter
        if where is None:
            return nearest
        if left and not store_of(self._process).is_exact(where):
            rows = self._query(vectors[left], count, ids=self._matching(where))
            for n, live in zip(left, self._live_nearest(rows, count), strict=True):
                nearest[n] = live
        empty = [n for n, row in enumerate(nearest) if not row]
        if empty:
            rows = self._compare(vectors[empty], self._matching(where), count)
            for n, live in zip(empty, self._live_nearest(rows, count), strict=True):
                nearest[n] = live
        return nearest

    def _further_rows(
        self, vectors: Vectors, left: list[int], limit: int
    ) -> Iterator[tuple[list[int], Sequence[Sequence[Match]]]]:
        """What the store has for another limit, some queries at a time, with their numbers."""
        for numbers in self._parts(left, limit):
            yield numbers, self._query(vectors[numbers], limit)

    def _compare(self, vectors: Vectors, ids: Sequence[str], count: int) -> list[list[Match]]:
        """The best of these passages for each query, by their cosines with it."""
        stored = self._vectors(ids)
        if not stored:
            return [[] for _ in vectors]
        stored_ids, passages = list(stored), np.array(list(stored.values()))
        lengths = np.maximum(np.linalg.norm(passages, axis=1), 1e-12)
        rows = []
        for cosines in vectors @ passages.T / lengths:
            order = np.argsort(-cosines, kind="stable")[:count].tolist()
            best = zip((stored_ids[n] for n in order), cosines[order].tolist(), strict=True)
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
        name, where = self._index.stored_name, self._options.filter
        return self._ask(
            lambda store: store.query(name, vectors, limit=limit, where=where, ids=ids),
            if_empty=[[] for _ in vectors],
        )

    def _vectors(self, ids: Sequence[str]) -> dict[str, Vectors]:
        if not ids:
            return {}
        name = self._index.stored_name
        return self._ask(lambda store: store.vectors(name, ids), if_empty={})

    def _ask(self, ask: Callable[[VectorStore], T], *, if_empty: T) -> T:
        """The answer of the store. Where it lacks the collection of the index, `if_empty` if there
        are no documents; NotFound if the collection was just erased, and IndexChanged if another
        index is active by now."""
        try:
            return ask(store_of(self._process))
        except MissingCollection:
            if self._is_empty():
                return if_empty
            self._require_active()
            raise

    def _require_active(self) -> None:
        """Raises IndexChanged if another index is active by now: this one may have been dropped
        since it was replaced."""
        with self._process.ledger.read_single() as session:
            if indexes.active(session, self._id).id != self._index.id:
                raise IndexChanged

    def _is_empty(self) -> bool:
        """Whether the collection has no documents. Raises NotFound if it was just erased."""
        with self._process.ledger.read_single() as session:
            collection = collections.get(session, self._name)
            return not documents.page(session, collection.id, limit=1, after=None)

    def _live_nearest(self, rows: Sequence[Sequence[Match]], count: int) -> list[list[_ScoredId]]:
        """The first `count` of each row that are live and match the filter."""
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
        stored = self._vectors(list(dict.fromkeys(scored.id for row in nearest for scored in row)))
        diverse = []
        for query, row in zip(vectors, nearest, strict=True):
            row = [scored for scored in row if scored.id in stored]
            passages = np.array([stored[one.id] for one in row]).reshape(len(row), len(query))
            order = marginal_relevance(
                query,
                passages / np.maximum(np.linalg.norm(passages, axis=1, keepdims=True), 1e-12),
                share=DEFAULT_LAMBDA_MULT if share is None else share,
                count=count,
            )
            diverse.append([row[n] for n in order])
        return diverse

    # Live passages, from Postgres

    def _live(self, ids: Sequence[str]) -> set[str]:
        """Those passages that are live and match the filter. Each id is looked up once only."""
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
        """The first `count` candidates of each row, with their texts. If one was erased meanwhile,
        the next one takes its place."""
        first = [row[:count] for row in rows]
        if not self._read_chunks(first):
            self._read_chunks(rows)
        return [
            [self._candidate(one) for one in row if one.id in self._chunks][:count] for row in rows
        ]

    def _read_chunks(self, rows: Sequence[Sequence[_ScoredId]]) -> bool:
        """Read the chunks of the rows. Returns whether all of them are live."""
        ids = dict.fromkeys(one.id for row in rows for one in row)
        new = [id_ for id_ in ids if id_ not in self._chunks]
        if not new:
            return True
        with self._process.ledger.read_single() as session:
            chunks = documents.live_chunks(session, self._id, new, where=self._options.filter)
        self._chunks |= chunks
        return len(chunks) == len(new)

    def _candidate(self, scored: _ScoredId) -> Candidate:
        has_vectors = self._options.type is not SearchType.LEXICAL
        debug = HitDebug(
            similarity=scored.similarity,
            lexical=scored.lexical,
            dense_weight=scored.dense_weight,
            halves=list(scored.halves),
            index=self._index.stored_name if has_vectors else None,
            embedding_model=self._model if has_vectors else None,
        )
        return Candidate(
            chunk=self._chunks[scored.id],
            collection=self._name,
            score=scored.score,
            debug=debug,
            weights=scored.weights,
        )


def _store_thread(_process: Process) -> ThreadPoolExecutor:
    """A thread that waits for the store while others ask Postgres."""
    return ThreadPoolExecutor(1, thread_name_prefix="store")


def _ids(rows: Sequence[Sequence[Match]]) -> list[str]:
    return [match.id for row in rows for match in row]


def _match(id_: str, score: float, weights: Mapping[str, float]) -> _ScoredId:
    return _ScoredId(
        id=id_, score=score, lexical=round(score, 6), halves=("lexical",), weights=weights
    )


def _union(nearest: Sequence[_ScoredId], matches: Sequence[_ScoredId]) -> list[_ScoredId]:
    """Each passage once. The `halves` of a passage that is in both lists has both."""
    by_id = {scored.id: scored for scored in nearest}
    for match in matches:
        scored = by_id.setdefault(match.id, match)
        if scored is not match:
            scored.halves += match.halves
    return list(by_id.values())


_TYPES = {
    "string": "a text", "number": "a number", "boolean": "true or false", "array": "a list",
}  # fmt: skip


def _type_names(types: Collection[str]) -> str:
    return " or ".join(name for type_, name in _TYPES.items() if type_ in types) or "nothing"


def marginal_relevance(query: Vectors, passages: Vectors, *, share: float, count: int) -> list[int]:
    """Indices of `count` passages by maximal marginal relevance. Vectors have length 1.

    Carbonell and Goldstein 1998, as LangChain defines it: the first passage is the one most similar
    to the query; each next one has the largest `share` x (cosine with the query) - (1 - `share`) x
    (largest cosine with those before it). A `share` of 1 is similarity alone, 0 is diversity alone.
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
    """The passages of the first k candidates, with their neighbours. No chunk is in two of them."""
    expand = request.options.expand
    if not expand:
        return _join(row, request.k, at_most=JOINED_CHUNKS if request.options.joins else 1)
    used_ordinals: dict[UUID, set[int]] = {}
    result: list[Passage] = []
    with process.ledger.read_single() as session:
        for candidate in row:
            version_id, ordinal = _place(candidate.chunk)
            used = used_ordinals.setdefault(version_id, set())
            if ordinal in used:
                continue
            chunks = documents.chunk_range(
                session, version_id, first=ordinal - expand, last=ordinal + expand
            )
            around = list(_unused_around(chunks, ordinal, used)) or [candidate.chunk]
            used |= {chunk.ordinal for chunk in around}
            result.append(Passage(candidate=candidate, chunks=around))
            if len(result) == request.k:
                break
    return result


def _join(row: Sequence[Candidate], k: int, *, at_most: int) -> list[Passage]:
    """k passages of the best candidates. Up to `at_most` candidates that follow each other in a
    text become one passage, with the score of the best one; the place that gets free is for the
    next candidate. If there is no next one, the candidates that were joined last are split off
    again."""
    groups: list[list[Candidate]] = []
    places: dict[tuple[UUID, int], list[Candidate]] = {}
    joined: list[Candidate] = []
    for candidate in row:
        version_id, ordinal = _place(candidate.chunk)
        group = next(
            (
                near
                for step in (-1, 1)
                if (near := places.get((version_id, ordinal + step))) is not None
                and len(near) < at_most
                and any(_are_continuous(candidate.chunk, other.chunk) for other in near)
            ),
            None,
        )
        if group is not None:
            group.append(candidate)
            joined.append(candidate)
        elif len(groups) == k:
            break
        else:
            group = [candidate]
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


def _are_continuous(one: ChunkView, other: ChunkView) -> bool:
    """Whether one of two chunks of a version continues the text of the other. Rows of a table and
    elements of a list do not: they have metadata of their own, and a line between them."""
    before, after = sorted((one, other), key=lambda chunk: chunk.ordinal)
    if after.ordinal != before.ordinal + 1 or before.metadata != after.metadata:
        return False
    return after.start <= before.start + len(before.text) + 1


def _place(chunk: ChunkView) -> tuple[UUID, int]:
    place = parse_chunk_id(chunk.id)
    assert place is not None
    return place


def _unused_around(
    chunks: Sequence[ChunkView], ordinal: int, used: set[int]
) -> Iterator[ChunkView]:
    """The chunks around `ordinal`, up to the nearest that are `used` by another hit."""
    earlier = [chunk for chunk in chunks if chunk.ordinal < ordinal]
    first = max((chunk.ordinal + 1 for chunk in earlier if chunk.ordinal in used), default=0)
    for chunk in chunks:
        if chunk.ordinal > ordinal and chunk.ordinal in used:
            return
        if chunk.ordinal >= first:
            yield chunk


def joined_text(chunks: Sequence[ChunkView]) -> str:
    """The text of consecutive chunks, without repeating what two of them share."""
    text, end = chunks[0].text, chunks[0].start + len(chunks[0].text)
    for chunk in chunks[1:]:
        gap = chunk.start - end
        if gap > 0:  # the splitter dropped the white space: a line end or an empty line
            text += (" " if gap == 1 else "\n\n") + chunk.text
        else:
            text += chunk.text[-gap:]
        end = max(end, chunk.start + len(chunk.text))
    return text


_SENTENCE = re.compile(r"[^.!?…。！？؟۔।\n]+(?:[.!?…。！？؟۔।]+(?=\s|$|[^\x00-\x7f])|[.!?]+|\n|$)?")


def best_span(text: str, weights: Mapping[str, float]) -> Span | None:
    """The sentence or line whose terms have the largest total weight; None if no term has a
    weight."""
    best: Span | None = None
    most = 0.0
    for match in _SENTENCE.finditer(text):
        sentence = match[0]
        worth = sum(weights.get(term, 0.0) for term in set(terms(sentence)))
        if worth > most:
            start = match.start() + len(sentence) - len(sentence.lstrip())
            best, most = Span(start=start, end=match.start() + len(sentence.rstrip())), worth
    return best

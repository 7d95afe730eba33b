"""Lexical search: BM25 over the segments of a collection, exact at the moment of the search.

The formula is that of Lucene, in `bm25s` the method "lucene" (Kamphuis et al., "Which BM25 do you
mean?", ECIR 2020). A term that occurs f times in a chunk of l terms adds to the chunk's score

    ln(1 + (N - n + 0.5) / (n + 0.5)) * f / (f + k1 * (1 - b + b * l / avg))

for each time that it occurs in the query, where n of the N chunks have it. This is never negative
and less than the logarithm, the term's weight; the sum of the weights is the best possible score of
a query. N, n and avg count the chunks that are live in the snapshot that the search reads; deleted
chunks that are still in their segments do not count.

Pages and heads of segments never change, so a process caches them. A search reads from the database
which segments there are and which versions are deleted, and the pages of its terms that are not
cached. Rare terms are scored first. Once the remaining terms cannot bring another chunk among the
best, they are scored for the top chunks only (MaxScore: Turtle and Flood, 1995).
"""

from collections import Counter, OrderedDict
from collections.abc import Sequence
from functools import cached_property
from itertools import count
from math import log
from threading import RLock
from typing import Any, Final
from uuid import UUID

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection

from shared.documents.documents import chunk_id, parse_chunk_id
from shared.documents.lexical import Field
from workers.attempts.process import Process
from workers.retrieval.postings import (
    MEMBER,
    Array,
    Bools,
    Longs,
    TermPage,
    chunk_of,
    hash_of,
    key_of,
)
from workers.retrieval.terms import has_hangul, morphemes_of, terms

K1: Final = 1.5
B: Final = 0.75
CONTEXT_SHARE: Final = 1 / 3
"""The share of a chunk together with its neighbours in a score in context; the rest is that of the
chunk alone."""
QUERY_TERMS: Final = 1024
"""How many different terms of a query are looked for; later ones are ignored with a warning."""
UNINDEXED_LIMIT: Final = 1000
VIEWS_KEPT: Final = 16
WORTH_POSTINGS: Final = 4096
"""Shorter posting lists are scored at once: that is faster than to decide whether they matter."""
POSTING_BYTES: Final = 12
COMMON_SHARE: Final = 0.25
"""The share of the cache for what common terms add to each chunk, which is the same for all queries
until the index changes."""
_MIB = 2**20

Scores = NDArray[np.float64]
TermPiece = tuple[int, NDArray[np.uint16], Array]
"""The postings of a term in one segment: the segment's number in the view, its chunks, the
counts."""
_views = count()


class Cache:
    """A cache of heads and pages of segments, which drops the least recently used; thread-safe."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._bytes = 0
        self._values: OrderedDict[Any, tuple[Any, int]] = OrderedDict()
        self._lock = RLock()

    def get(self, key: Any) -> Any:
        with self._lock:
            entry = self._values.get(key)
            if entry is None:
                return None
            self._values.move_to_end(key)
            return entry[0]

    def add(self, key: Any, value: Any, size: int) -> None:
        with self._lock:
            if key in self._values:
                return
            self._values[key] = value, size
            self._bytes += size
            while self._bytes > self._limit_bytes and len(self._values) > 1:
                _, (dropped, size) = self._values.popitem(last=False)
                self._bytes -= size
                if isinstance(dropped, Postings):
                    dropped.drop_parts()


class SegmentHead:
    """The chunks of a segment and their lengths, without the postings."""

    def __init__(self, id_: int, members: bytes, lengths: bytes, page_ends: bytes) -> None:
        self.id = id_
        self.members: Array = np.frombuffer(members, MEMBER)
        self.lengths: NDArray[np.uint32] = np.frombuffer(lengths, "<u4")
        self.page_ends: Longs = np.frombuffer(page_ends, "<i8")
        self.size = 2 * len(members) + 2 * len(lengths) + len(page_ends)

    @cached_property
    def starts(self) -> Longs:
        """(members,): the number of the first chunk of each member."""
        sizes: Longs = self.members["chunks"].astype(np.int64)
        return np.cumsum(sizes) - sizes

    @cached_property
    def by_key(self) -> tuple[Array, Longs]:
        """The keys of the members, ascending, and the index of each."""
        keys = self.members["key"]
        order = np.argsort(keys, kind="stable")
        return keys[order], order

    @cached_property
    def followers(self) -> tuple[Longs, Longs, Longs]:
        """The numbers of chunks that have a successor in their version, the numbers of these
        successors, and the members whose first chunk has its predecessor in another segment."""
        is_first = np.zeros(len(self.lengths), np.bool_)
        is_first[self.starts] = True
        within = np.flatnonzero(~is_first)
        keys, order = self.by_key
        versions, firsts = _split(keys)
        sizes, starts = self.members["chunks"][order].astype(np.int64), self.starts[order]
        goes_on = np.zeros(len(keys), np.bool_)
        goes_on[1:] = (versions[1:] == versions[:-1]).all(axis=1)
        goes_on[1:] &= firsts[1:] == firsts[:-1] + sizes[:-1]
        behind = np.flatnonzero(goes_on)
        ends = (starts + sizes - 1)[behind - 1]
        before = np.concatenate([within - 1, ends])
        return before, np.concatenate([within, starts[behind]]), order[~goes_on & (firsts > 0)]

    @cached_property
    def contexts(self) -> NDArray[np.uint32]:
        """(chunks,): the number of terms of each chunk and of its neighbours in its version, as far
        as they are in this segment."""
        contexts = self.lengths.copy()
        before, behind, _ = self.followers
        # `+=` with index arrays is right, because no number occurs twice in one of them.
        contexts[behind] += self.lengths[before]
        contexts[before] += self.lengths[behind]
        return contexts

    def deleted_chunks(self, versions: Array) -> Bools | None:
        """(chunks,): whether each belongs to one of the versions, (n, 16) of bytes; None if none
        does."""
        keys, order = self.by_key
        bounds = np.zeros((2, len(versions), 20), np.uint8)
        bounds[:, :, :16] = versions
        bounds[1, :, 16:] = 0xFF
        first, end = np.searchsorted(keys, bounds.view("S20")[..., 0])
        has = np.flatnonzero(first < end)
        if not len(has):
            return None
        deleted = np.zeros(len(self.lengths), np.bool_)
        for one, other in zip(first[has].tolist(), end[has].tolist(), strict=True):
            for member in order[one:other].tolist():
                start = int(self.starts[member])
                deleted[start : start + int(self.members["chunks"][member])] = True
        return deleted

    def locate(self, keys: Array) -> Longs:
        """The numbers of the chunks with these keys, (n,) of S20; -1 for chunks it does not
        have."""
        known, order = self.by_key
        at = np.searchsorted(known, keys, "right") - 1
        numbers = np.full(len(keys), -1, np.int64)
        places = np.flatnonzero(at >= 0)
        members = order[at[places]]
        versions, firsts = _split(self.members["key"][members])
        own, ordinals = _split(keys[places])
        behind = ordinals - firsts
        has = (versions == own).all(axis=1) & (behind < self.members["chunks"][members])
        numbers[places[has]] = self.starts[members[has]] + behind[has]
        return numbers


def _versions(ids: bytes) -> NDArray[np.uint8]:
    return np.frombuffer(ids, np.uint8).reshape(-1, 16)


def _split(keys: Array) -> tuple[NDArray[np.uint8], Longs]:
    """Keys, (n,) of S20, as the bytes of versions, (n, 16), and ordinals, (n,)."""
    raw = np.ascontiguousarray(keys).view(np.uint8).reshape(-1, 20)
    ordinals = np.ascontiguousarray(raw[:, 16:]).view(">u4")[:, 0].astype(np.int64)
    return raw[:, :16], ordinals


def _keys(versions: NDArray[np.uint8], ordinals: Longs) -> Array:
    """The opposite of `_split`."""
    raw = np.empty((len(ordinals), 20), np.uint8)
    raw[:, :16] = versions
    raw[:, 16:] = ordinals.astype(">u4").view(np.uint8).reshape(-1, 4)
    return raw.view("S20")[:, 0]


class IndexView:
    """One field of a collection at one moment: its segments, and which of their chunks are deleted.

    Chunks are numbered through all segments, from 0.
    """

    def __init__(
        self,
        heads: Sequence[SegmentHead],
        deleted_versions: bytes,
        *,
        before: "IndexView | None" = None,
    ) -> None:
        """`deleted_versions` are the concatenated bytes of their ids. If the view of an earlier
        moment is given as `before`, only versions deleted since are looked up."""
        self.number = next(_views)
        self.heads = heads
        sizes = [len(head.lengths) for head in heads]
        self.bases: Longs = np.cumsum([0, *sizes])
        self.size = int(self.bases[-1])
        self.lengths: NDArray[np.uint32] = (
            np.concatenate([head.lengths for head in heads]) if heads else np.empty(0, np.uint32)
        )
        self.deleted_versions = deleted_versions
        self._deleted_in = self._deleted_chunks(before)
        masks = [self._deleted_in[head.id] for head in heads]
        self.has_deleted = [mask is not None for mask in masks]
        self.live: Bools | None = None
        self.chunks = self.size
        tokens = int(self.lengths.sum(dtype=np.int64))
        if any(self.has_deleted):
            self.live = np.ones(self.size, np.bool_)
            for base, mask in zip(self.bases.tolist(), masks, strict=False):
                if mask is not None:
                    self.live[base : base + len(mask)] = ~mask
            self.chunks = int(self.live.sum())
            tokens = int(self.lengths[self.live].sum(dtype=np.int64))
        self.average = tokens / self.chunks if tokens else 1.0

    @cached_property
    def norms(self) -> Scores:
        """(size,): k1 * (1 - b + b * l / avg) of each chunk."""
        norms = self.lengths.astype(np.float64)
        norms *= K1 * B / self.average
        norms += K1 * (1 - B)
        return norms

    @cached_property
    def context_average(self) -> float:
        """The mean length of a chunk together with its neighbours in its version."""
        tokens = 0
        for head, base in zip(self.heads, self.bases.tolist(), strict=False):
            deleted = self._deleted_in[head.id]
            contexts = head.contexts if deleted is None else head.contexts[~deleted]
            tokens += int(contexts.sum(dtype=np.int64))
            # Neighbours lie in different segments while the parts of a version are not merged.
            loose = head.followers[2]
            if len(loose):
                versions, firsts = _split(head.members["key"][loose])
                before = self._locate(_keys(versions, firsts - 1))
                pairs = self.lengths[before].astype(np.int64)
                pairs += head.lengths[head.starts[loose]]
                is_live = before >= 0
                if self.live is not None:
                    is_live &= self.live[base + head.starts[loose]]
                tokens += int(pairs[is_live].sum())
        return tokens / self.chunks if tokens else 1.0

    def _deleted_chunks(self, before: "IndexView | None") -> dict[int, Bools | None]:
        """Segment id -> (chunks,), whether each is deleted; None where all are live.

        Deletions that `before` has and this view lacks do not matter: their versions are in no
        segment.
        """
        deleted = _versions(self.deleted_versions)
        known = before._deleted_in if before is not None else {}
        new = deleted
        if known and before is not None:
            old = np.frombuffer(before.deleted_versions, "S16")
            new = deleted[~np.isin(np.frombuffer(self.deleted_versions, "S16"), old)]
        masks: dict[int, Bools | None] = {}
        for head in self.heads:
            mask = known.get(head.id)
            deleted_ids = new if head.id in known else deleted
            more = head.deleted_chunks(deleted_ids) if len(deleted_ids) else None
            masks[head.id] = mask if more is None else more if mask is None else mask | more
        return masks

    def locate(self, chunk_ids: Sequence[str]) -> Longs:
        """The numbers of chunks by their ids; -1 for those that are deleted or unknown."""
        parsed = [parse_chunk_id(id_) for id_ in chunk_ids]
        return self._locate(
            np.array([b"" if key is None else key_of(*key) for key in parsed], "S20")
        )

    def _locate(self, keys: Array) -> Longs:
        numbers = np.full(len(keys), -1, np.int64)
        for head, base in zip(self.heads, self.bases.tolist(), strict=False):
            own = head.locate(keys)
            numbers = np.where(own >= 0, own + base, numbers)
        if self.live is not None:
            numbers[numbers >= 0] = np.where(
                self.live[numbers[numbers >= 0]], numbers[numbers >= 0], -1
            )
        return numbers

    def chunk_ids(self, numbers: Longs) -> list[str]:
        ids = [""] * len(numbers)
        segments = np.searchsorted(self.bases, numbers, "right") - 1
        for segment in np.unique(segments).tolist():
            head = self.heads[segment]
            places = np.flatnonzero(segments == segment)
            own = numbers[places] - self.bases[segment]
            members = np.searchsorted(head.starts, own, "right") - 1
            behind = (own - head.starts[members]).tolist()
            keys = head.members["key"][members].tolist()
            for place, key, n in zip(places.tolist(), keys, behind, strict=True):
                version_id, first = chunk_of(key)
                ids[place] = chunk_id(version_id, first + n)
        return ids


class Postings:
    """The postings of a term in a view, shared by all queries while the view lasts."""

    def __init__(self, view: IndexView, pieces: Sequence[TermPiece]) -> None:
        """`pieces` has an entry for each segment that has the term."""
        self._view = view
        self._pieces = pieces
        self._keeps = True
        self._parts: tuple[NDArray[np.int32], Scores] | None = None
        self.size = sum(len(chunks) for _, chunks, _ in pieces)
        self.chunks = 0
        """How many live chunks have the term."""
        for segment, chunks, _ in pieces:
            if view.live is not None and view.has_deleted[segment]:
                base = int(view.bases[segment])
                end = int(view.bases[segment + 1])
                self.chunks += int(np.count_nonzero(view.live[base:end][chunks]))
            else:
                self.chunks += len(chunks)

    def drop_parts(self) -> None:
        """Free the memory of `parts`, and do not keep them again: the cache has dropped this, but
        results may still refer to it."""
        self._keeps, self._parts = False, None

    def parts(self) -> tuple[NDArray[np.int32], Scores]:
        """The numbers of the chunks that have the term, ascending, deleted ones too; and what the
        term adds to the score of each, divided by its weight."""
        parts = self._parts
        if parts is not None:
            return parts
        numbers = np.empty(self.size, np.int32)
        shares = np.empty(self.size)
        end = 0
        for segment, chunks, counts in self._pieces:
            first, end = end, end + len(chunks)
            base = int(self._view.bases[segment])
            np.add(chunks, np.int32(base), out=numbers[first:end])
            piece = shares[first:end]  # f / (f + norm), computed in place
            np.take(self._view.norms[base:], chunks, out=piece)
            piece += counts
            np.divide(counts, piece, out=piece)
        if self._keeps:
            self._parts = numbers, shares
        return numbers, shares


class Term:
    """A term of a query: its weight, and its postings."""

    def __init__(self, view: IndexView, name: str, times: int, postings: Postings) -> None:
        self.name = name
        self._view = view
        self.postings = postings
        total, having = view.chunks, postings.chunks
        self.weight = times * log(1 + (total - having + 0.5) / (having + 0.5))
        """An upper bound of what it adds to the score of a chunk."""

    def scores_of(self, numbers: Longs) -> Scores:
        """What it adds to the scores of these chunks: 0 where it does not occur."""
        chunks, shares = self.postings.parts()
        at = np.minimum(np.searchsorted(chunks, numbers.astype(np.int32)), len(chunks) - 1)
        return np.where(chunks[at] == numbers, shares[at] * self.weight, 0.0)

    def counts_in(self, numbers: Longs) -> Scores:
        """How often it occurs in each of these chunks."""
        chunks, shares = self.postings.parts()
        at = np.minimum(np.searchsorted(chunks, numbers.astype(np.int32)), len(chunks) - 1)
        # The inverse of share = count / (count + norm); a float64 is exact enough for any count.
        counts = shares[at] * self._view.norms[numbers] / (1 - shares[at])
        return np.where(chunks[at] == numbers, np.rint(counts), 0.0)


class FieldQuery:
    """The terms of a query in one field of the index."""

    def __init__(self, view: IndexView, terms_: Sequence[Term]) -> None:
        self.view = view
        self.terms = sorted((t for t in terms_ if t.postings.chunks), key=lambda t: -t.weight)
        self.best_possible = sum(term.weight for term in self.terms)

    def best(self, limit: int) -> tuple[Longs, Scores]:
        """The numbers of the chunks with the highest scores, best first, and the scores, which are
        all above 0."""
        scores = np.zeros(self.view.size)
        is_scored = np.zeros(self.view.size, np.bool_)
        rest = np.cumsum([0.0, *(term.weight for term in reversed(self.terms))])[::-1]
        threshold = 0.0
        scored = 0
        for n, term in enumerate(self.terms):
            if n and rest[n] < threshold:
                break
            places, shares = term.postings.parts()
            scores[places] += term.weight * shares
            is_scored[places] = True
            scored += 1
            may_be_enough = rest[n + 1] < self.best_possible / 2
            if may_be_enough and self._postings_behind(n) >= WORTH_POSTINGS:
                numbers = self._live(np.flatnonzero(is_scored))
                if len(numbers) >= limit:
                    at = len(numbers) - limit
                    threshold = float(np.partition(scores[numbers], at)[at])
        numbers = self._live(np.flatnonzero(is_scored))
        sums = scores[numbers]
        for n in range(scored, len(self.terms)):
            is_near = sums + rest[n] >= threshold
            numbers, sums = numbers[is_near], sums[is_near]
            sums = sums + self.terms[n].scores_of(numbers)
        if len(numbers) > limit:
            top = np.argpartition(sums, len(sums) - limit)[len(sums) - limit :]
            numbers, sums = numbers[top], sums[top]
        order = np.lexsort((numbers, -sums))
        return numbers[order], sums[order]

    def _postings_behind(self, n: int) -> int:
        return self.terms[n + 1].postings.size if n + 1 < len(self.terms) else 0

    def _live(self, numbers: Longs) -> Longs:
        return numbers if self.view.live is None else numbers[self.view.live[numbers]]

    def score(self, chunk_ids: Sequence[str]) -> Scores:
        numbers = self.view.locate(chunk_ids)
        known = np.flatnonzero(numbers >= 0)
        scores = np.zeros(len(chunk_ids))
        for term in self.terms:
            scores[known] += term.scores_of(numbers[known])
        return scores

    def score_contexts(self, places: Sequence[tuple[UUID, int]]) -> Scores:
        """BM25 of each chunk together with its neighbours, as if they were one chunk. The weights
        of terms are those for chunks, and avg is the mean length of such contexts."""
        numbers = self.view.locate(
            [
                chunk_id(version_id, ordinal + step) if ordinal + step >= 0 else ""
                for step in (-1, 0, 1)
                for version_id, ordinal in places
            ]
        )
        known = np.flatnonzero(numbers >= 0)
        values = np.zeros(len(numbers))

        def in_contexts(known_values: Scores) -> Scores:
            values[known] = known_values
            total: Scores = values.reshape(3, len(places)).sum(axis=0)
            return total

        lengths = in_contexts(self.view.lengths[numbers[known]].astype(np.float64))
        norms = K1 * (1 - B + B * lengths / self.view.context_average)
        scores = np.zeros(len(places))
        for term in self.terms:
            counts = in_contexts(term.counts_in(numbers[known]))
            scores += term.weight * counts / (counts + norms)
        return scores


class LexicalResult:
    """The chunks that have terms of a query, best first, at one moment.

    `scores` are BM25; with morphemes, the sum for both fields. `shares` are scores divided by
    `best_possible`.
    """

    def __init__(
        self,
        fields: Sequence[FieldQuery],
        *,
        limit: int,
        query_terms: int,
        terms_left_out: int,
        unindexed: int,
    ) -> None:
        self._fields = fields
        self.query_terms = query_terms
        """How many different terms the query has."""
        self.terms_left_out = terms_left_out
        """How many of them were not looked for (`QUERY_TERMS`)."""
        self.known_terms = len(fields[0].terms)
        """How many of them occur in some live chunk."""
        self.weights = {term.name: term.weight for term in fields[0].terms}
        """The weights of those that occur."""
        self.live_chunks = fields[0].view.chunks
        self.unindexed = unindexed
        """How many live documents of the collection have no postings yet, at most
        `UNINDEXED_LIMIT`: after an upgrade the sweeper adds them."""
        self.best_possible = sum(field.best_possible for field in fields)
        self.chunk_ids: list[str]
        self.scores: Scores
        self.shares: Scores
        self.chunk_ids, self.scores = self._best(limit)
        self.shares = self.scores / (self.best_possible or 1.0)

    def _best(self, limit: int) -> tuple[list[str], Scores]:
        if len(self._fields) == 1:
            numbers, scores = self._fields[0].best(limit)
            return self._fields[0].view.chunk_ids(numbers), scores
        # Nearly all of the best by the sum are among the best of one field: only chunks that are
        # mediocre in both may be missed.
        ids: dict[str, None] = {}
        for field in self._fields:
            ids |= dict.fromkeys(field.view.chunk_ids(field.best(2 * limit)[0]))
        chunk_ids = list(ids)
        scores = self.score(chunk_ids)
        order = np.argsort(-scores, kind="stable")[:limit]
        return [chunk_ids[n] for n in order], scores[order]

    def further(self, limit: int) -> "LexicalResult":
        """The result for another limit, at the same moment, without reading the database."""
        return LexicalResult(
            self._fields,
            limit=limit,
            query_terms=self.query_terms,
            terms_left_out=self.terms_left_out,
            unindexed=self.unindexed,
        )

    def sample(self, count: int) -> list[str]:
        """Random live chunks; the same ones while the index does not change."""
        view = self._fields[0].view
        numbers = np.arange(view.size) if view.live is None else np.flatnonzero(view.live)
        chosen = np.random.default_rng(len(numbers)).permutation(len(numbers))[:count]
        return view.chunk_ids(numbers[chosen])

    def score(self, chunk_ids: Sequence[str]) -> Scores:
        """The exact scores of any chunks: 0 for those without a term, and for those not live."""
        total: Scores = np.sum([field.score(chunk_ids) for field in self._fields], axis=0)
        return total

    def score_in_context(self, chunk_ids: Sequence[str]) -> Scores:
        """The scores of live chunks, in which words of their neighbours in the document count, too.

        The subject of a passage is often named only before or after it, and so may be in the
        neighbouring chunk. Two thirds of a score are those of the chunk alone, one third those of
        the chunk with its neighbours (`CONTEXT_SHARE`); the best possible score does not change.
        """
        places = [place for place in map(parse_chunk_id, chunk_ids) if place is not None]
        assert len(places) == len(chunk_ids)
        contexts = np.sum([field.score_contexts(places) for field in self._fields], axis=0)
        scores: Scores = (1 - CONTEXT_SHARE) * self.score(chunk_ids) + CONTEXT_SHARE * contexts
        return scores


SNAPSHOT = """
    SELECT
        ARRAY(
            SELECT id FROM lexical_segments
            WHERE collection_id = %(id)s AND field = 0 AND version_id IS NULL ORDER BY id
        ),
        (
            SELECT string_agg(uuid_send(version_id), ''::bytea ORDER BY version_id)
            FROM lexical_deletions WHERE collection_id = %(id)s AND field = 0
        ),
        ARRAY(
            SELECT id FROM lexical_segments
            WHERE collection_id = %(id)s AND field = 1 AND version_id IS NULL ORDER BY id
        ),
        (
            SELECT string_agg(uuid_send(version_id), ''::bytea ORDER BY version_id)
            FROM lexical_deletions WHERE collection_id = %(id)s AND field = 1
        ),
        (
            SELECT count(*) FROM (
                SELECT FROM versions v
                JOIN documents d ON d.id = v.document_id AND d.live_version_id = v.id
                WHERE v.state = 'live' AND v.lexical_fields & 1 = 0 AND d.collection_id = %(id)s
                LIMIT %(unindexed)s
            ) lacking
        )
"""
HEADS = """
    SELECT id, members, lengths, page_ends FROM lexical_segments WHERE id = ANY(%(ids)s)
"""
PAGES = """
    SELECT p.segment_id, p.last_term, p.data
    FROM unnest(%(ids)s::bigint[], %(ends)s::bigint[]) AS w (segment_id, last_term)
    CROSS JOIN LATERAL (
        SELECT * FROM lexical_pages
        WHERE segment_id = w.segment_id AND last_term = w.last_term OFFSET 0
    ) p
"""
"""OFFSET 0 makes the planner use the index for each row instead of reading all pages."""


class _NotCached(Exception):
    """Something that is not in the cache has to be read."""


class Lexical:
    """Reads the lexical index, for one process."""

    def __init__(self, process: Process) -> None:
        self._process = process
        settings = process.settings
        limit_bytes = settings.lexical_cache_mib * _MIB
        self._cache = Cache(int((1 - COMMON_SHARE) * limit_bytes))
        self._common = Cache(int(COMMON_SHARE * limit_bytes))
        self._with_morphemes = settings.morphemes == "kiwi"
        engine = process.ledger.engine
        self._single = engine.execution_options(isolation_level="AUTOCOMMIT")
        self._transaction = engine.execution_options(isolation_level="REPEATABLE READ")
        self._views: OrderedDict[tuple[UUID, Field], tuple[tuple[int, ...], IndexView]] = (
            OrderedDict()
        )
        self._lock = RLock()

    def search(
        self,
        collection_id: UUID,
        query: str,
        *,
        limit: int,
        connection: Connection | None = None,
    ) -> LexicalResult:
        """The best chunks that have terms of the query, at most `limit`.

        If a connection is given, its transaction, which must be REPEATABLE READ, is used; then the
        result fits what else is read there. Raises ConfigurationError if morphemes are switched on
        and their package is missing.
        """
        return self.search_many(collection_id, [query], limit=limit, connection=connection)[0]

    def search_many(
        self,
        collection_id: UUID,
        queries: Sequence[str],
        *,
        limit: int,
        connection: Connection | None = None,
    ) -> list[LexicalResult]:
        """As `search` for several queries, at the same moment, with the same statements."""
        counted = [Counter(terms(query)) for query in queries]
        term_counts = [dict(list(counts.items())[:QUERY_TERMS]) for counts in counted]
        korean: list[dict[str, int]] = [{} for _ in queries]
        if self._with_morphemes and any(map(has_hangul, queries)):
            analyser = morphemes_of(self._process)
            korean = [
                dict(list(Counter(analyser.terms(query)).items())[:QUERY_TERMS])
                for query in queries
            ]
        if connection is not None:
            fields, unindexed = self._fields(connection, collection_id, term_counts, korean)
        else:
            try:
                # If all pages are cached, one statement is enough, and that needs no transaction.
                with self._single.connect() as single:
                    fields, unindexed = self._fields(
                        single, collection_id, term_counts, korean, only_cached=True
                    )
            except _NotCached:
                with self._transaction.connect() as opened:
                    fields, unindexed = self._fields(opened, collection_id, term_counts, korean)
        return [
            LexicalResult(
                [of_field[n] for of_field in fields],
                limit=limit,
                query_terms=len(counts),
                terms_left_out=len(counts) - len(term_counts[n]),
                unindexed=unindexed,
            )
            for n, counts in enumerate(counted)
        ]

    def _fields(
        self,
        connection: Connection,
        collection_id: UUID,
        term_counts: Sequence[dict[str, int]],
        korean: Sequence[dict[str, int]],
        *,
        only_cached: bool = False,
    ) -> tuple[list[list[FieldQuery]], int]:
        """The queries in each field, and how many documents have no postings yet, at one moment.

        With `only_cached` raises _NotCached if more than the first statement is needed.
        """
        row = _rows(connection, SNAPSHOT, id=collection_id, unindexed=UNINDEXED_LIMIT)[0]
        reader = _IndexReader(connection, self._cache, self._common, only_cached=only_cached)
        ids, deleted, korean_ids, korean_deleted, unindexed = row
        view = self._view(reader, collection_id, Field.TERMS, ids, deleted or b"")
        fields = [reader.queries(view, term_counts)]
        if any(korean) and korean_ids:
            other = self._view(
                reader, collection_id, Field.MORPHEMES, korean_ids, korean_deleted or b""
            )
            if other.chunks == view.chunks:  # else the sweeper is still building this field
                fields.append(reader.queries(other, korean))
        return fields, unindexed

    def _view(
        self,
        reader: "_IndexReader",
        collection_id: UUID,
        field: Field,
        ids: list[int],
        deleted: bytes,
    ) -> IndexView:
        key = collection_id, field
        with self._lock:
            kept_ids, kept = self._views.get(key, ((), None))
            if kept is not None and kept_ids == tuple(ids) and kept.deleted_versions == deleted:
                self._views.move_to_end(key)
                return kept
        view = IndexView(reader.heads(ids), deleted, before=kept)
        with self._lock:
            self._views[key] = tuple(ids), view
            self._views.move_to_end(key)
            while len(self._views) > VIEWS_KEPT:
                self._views.popitem(last=False)
        return view


class _IndexReader:
    """Reads what a search needs, from the cache or from the database."""

    def __init__(
        self, connection: Connection, cache: Cache, common: Cache, *, only_cached: bool
    ) -> None:
        self._connection = connection
        self._common = common
        self._cache = cache
        self._only_cached = only_cached

    def _read(self, statement: str, **values: Any) -> list[tuple[Any, ...]]:
        if self._only_cached:
            raise _NotCached
        return _rows(self._connection, statement, **values)

    def heads(self, ids: Sequence[int]) -> list[SegmentHead]:
        heads = {id_: self._cache.get(id_) for id_ in ids}
        missing = [id_ for id_, head in heads.items() if head is None]
        if missing:
            for id_, members, lengths, page_ends in self._read(HEADS, ids=missing):
                head = heads[id_] = SegmentHead(id_, members, lengths, page_ends)
                self._cache.add(id_, head, head.size)
        return [heads[id_] for id_ in ids]

    def queries(self, view: IndexView, queries: Sequence[dict[str, int]]) -> list[FieldQuery]:
        hashes = {term: hash_of(term) for query in queries for term in query}
        distinct = np.unique(np.fromiter(hashes.values(), np.int64, len(hashes)))
        postings = {
            hash_: self._postings(view, hash_, pieces)
            for hash_, pieces in self._pieces(view, distinct).items()
        }
        return [
            FieldQuery(
                view,
                [
                    Term(view, term, times, postings[hashes[term]])
                    for term, times in query.items()
                    if hashes[term] in postings
                ],
            )
            for query in queries
        ]

    def _postings(self, view: IndexView, hash_: int, pieces: Sequence[TermPiece]) -> Postings:
        """The postings of a term; those of common terms are cached while the view lasts."""
        key = "postings", view.number, hash_
        kept: Postings | None = self._common.get(key)
        if kept is not None:
            return kept
        postings = Postings(view, pieces)
        if postings.size >= WORTH_POSTINGS:
            self._common.add(key, postings, POSTING_BYTES * postings.size)
        return postings

    def _pieces(self, view: IndexView, distinct: Longs) -> dict[int, list[TermPiece]]:
        """Hash -> the postings in each segment, for those of the hashes (ascending) that occur."""
        lookups: list[tuple[int, tuple[int, int], Longs]] = []
        for segment, head in enumerate(view.heads):
            at = np.searchsorted(head.page_ends, distinct)
            inside = int(np.searchsorted(at, len(head.page_ends)))
            if not inside:
                continue
            cuts = np.flatnonzero(np.diff(at[:inside], prepend=-1)).tolist()
            for first, end in zip(cuts, [*cuts[1:], inside], strict=True):
                key = head.id, int(head.page_ends[at[first]])
                lookups.append((segment, key, distinct[first:end]))
        pages = self._pages([key for _, key, _ in lookups])
        pieces: dict[int, list[TermPiece]] = {}
        for segment, key, own in lookups:
            page = pages[key]
            at = np.searchsorted(page.terms, own)
            for place, value in zip(at.tolist(), own.tolist(), strict=True):
                if place == len(page.terms) or page.terms[place] != value:
                    continue
                first = int(page.ends[place - 1]) if place else 0
                end = int(page.ends[place])
                piece = segment, page.chunks[first:end], page.counts[first:end]
                pieces.setdefault(value, []).append(piece)
        return pieces

    def _pages(self, keys: Sequence[tuple[int, int]]) -> dict[tuple[int, int], TermPage]:
        pages: dict[tuple[int, int], TermPage] = {}
        missing: list[tuple[int, int]] = []
        for key in keys:
            page = self._cache.get(key)
            if page is None:
                missing.append(key)
            else:
                pages[key] = page
        if missing:
            ids, ends = zip(*missing, strict=True)
            for id_, end, data in self._read(PAGES, ids=list(ids), ends=list(ends)):
                page = pages[id_, end] = TermPage.read(data)
                self._cache.add((id_, end), page, len(data))
        return pages


def _rows(connection: Connection, statement: str, **values: Any) -> list[tuple[Any, ...]]:
    """Run a statement with results in PostgreSQL's binary format: as text, bytea has twice the
    size."""
    driver = connection.connection.driver_connection
    assert driver is not None
    with driver.cursor(binary=True) as cursor:
        cursor.execute(statement, values)
        rows: list[tuple[Any, ...]] = cursor.fetchall()
    return rows


def lexical_of(process: Process) -> Lexical:
    return process.held(Lexical)

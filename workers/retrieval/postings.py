"""Postings in immutable segments of packed bytes: which terms occur in which chunks, how often.

A segment has the postings of some chunks of one collection, for one field. It numbers its chunks
from 0, and has at most `SEGMENT_CHUNKS`, so that a number takes two bytes. Its terms are hashes of
64 bits in ascending order, and are divided into pages, so that a query reads the pages of its own
terms only. This module is numpy over bytes and does not use the database.
"""

import struct
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from itertools import pairwise
from typing import Any, Final, TypeAlias
from uuid import UUID

import numpy as np
from numpy.typing import NDArray

Longs: TypeAlias = NDArray[np.int64]
Bools: TypeAlias = NDArray[np.bool_]
Array: TypeAlias = NDArray[Any]

SEGMENT_CHUNKS: Final = 2**16
PAGE_BYTES: Final = 2**15
"""The size of a page, unless a single term takes more."""
KEPT_HASHES: Final = 2**15
MEMBER: Final = np.dtype([("key", "S20"), ("chunks", "<u4")])
"""A run of consecutive chunks of a version in a segment: `key_of` the first, and their number."""
_HEAD: Final = struct.Struct("<HHI")
"""Version of the format, bytes of a count, number of terms."""
_FORMAT: Final = 1


def key_of(version_id: UUID, ordinal: int) -> bytes:
    """The key of a chunk; keys sort by version and ordinal."""
    return version_id.bytes + ordinal.to_bytes(4, "big")


def chunk_of(key: bytes) -> tuple[UUID, int]:
    """The opposite of `key_of`. numpy has dropped zero bytes at the end of the key."""
    key = key.ljust(20, b"\0")
    return UUID(bytes=key[:16]), int.from_bytes(key[16:], "big")


@lru_cache(KEPT_HASHES)
def hash_of(term: str) -> int:
    """A hash of 64 bits, signed like PostgreSQL's bigint. Among a million terms, the probability
    that two have the same hash is 3 in 10^8."""
    return int.from_bytes(blake2b(term.encode(), digest_size=8).digest(), "little", signed=True)


@dataclass(frozen=True)
class TermPage:
    """Some terms of a segment, ascending, with their postings.

    Term n occurs in the chunks `chunks[ends[n - 1]:ends[n]]`, ascending, `counts[...]` times each.
    """

    terms: Longs
    """(n,)"""
    ends: NDArray[np.uint32]
    """(n,)"""
    chunks: NDArray[np.uint16]
    """(postings,)"""
    counts: Array
    """(postings,), unsigned, with as many bytes as the highest count needs"""

    @classmethod
    def read(cls, data: bytes) -> "TermPage":
        """The opposite of `packed`; shares the memory of `data`. Raises ValueError for another
        version of the format."""
        format_, width, terms = _HEAD.unpack_from(data)
        if format_ != _FORMAT:
            raise ValueError(f"a page of postings has the format {format_}, not {_FORMAT}")
        at = _HEAD.size
        hashes = np.frombuffer(data, "<i8", terms, at)
        at += 8 * terms
        ends = np.frombuffer(data, "<u4", terms, at)
        at += 4 * terms
        postings = int(ends[-1]) if terms else 0
        chunks = np.frombuffer(data, "<u2", postings, at)
        counts = np.frombuffer(data, f"<u{width}", postings, at + 2 * postings)
        return cls(hashes, ends, chunks, counts)

    def packed(self) -> bytes:
        highest = int(self.counts.max(initial=0))
        width = 1 if highest < 2**8 else 2 if highest < 2**16 else 4
        return b"".join(
            (
                _HEAD.pack(_FORMAT, width, len(self.terms)),
                self.terms.astype("<i8", copy=False).tobytes(),
                self.ends.astype("<u4", copy=False).tobytes(),
                self.chunks.astype("<u2", copy=False).tobytes(),
                self.counts.astype(f"<u{width}", copy=False).tobytes(),
            )
        )

    def without(self, deleted: Bools) -> "TermPage | None":
        """The page without the chunks that `deleted`, (chunks of the segment,), marks; None if it
        has none of them."""
        kept = ~deleted[self.chunks]
        if kept.all():
            return None
        before = np.concatenate(([0], np.cumsum(kept)))
        ends = before[self.ends]
        is_left = np.diff(ends, prepend=0) > 0
        return TermPage(
            self.terms[is_left],
            ends[is_left].astype(np.uint32),
            self.chunks[kept],
            self.counts[kept],
        )


def _pages_of(terms: Longs, sizes: Longs, chunks: Array, counts: Array) -> Iterator[TermPage]:
    """Divide postings into pages, between terms; `sizes` has the number of postings of each
    term."""
    ends = np.cumsum(sizes)
    cost = np.cumsum(12 + 3 * sizes) // PAGE_BYTES
    cuts = [0, *(np.flatnonzero(np.diff(cost)) + 1).tolist(), len(terms)]
    for first, end in pairwise(cuts):
        if first == end:
            continue
        base = int(ends[first - 1]) if first else 0
        last = int(ends[end - 1])
        yield TermPage(
            terms[first:end],
            (ends[first:end] - base).astype(np.uint32),
            chunks[base:last],
            counts[base:last],
        )


@dataclass(frozen=True, kw_only=True)
class ChunkSpan:
    """Consecutive chunks of a version, and the terms of each chunk."""

    version_id: UUID
    first: int
    terms: Sequence[Sequence[str]]


@dataclass(frozen=True, kw_only=True)
class Segment:
    """A segment in memory. `lengths` has the number of terms of each chunk."""

    members: Array
    """(n,) of MEMBER, in the order of their chunks"""
    lengths: NDArray[np.uint32]
    """(chunks,)"""
    pages: Sequence[TermPage]


def build(spans: Sequence[ChunkSpan]) -> Segment:
    """A segment of at most `SEGMENT_CHUNKS` chunks."""
    members = np.array(
        [(key_of(span.version_id, span.first), len(span.terms)) for span in spans], MEMBER
    )
    texts = [terms for span in spans for terms in span.terms]
    lengths = np.array([len(terms) for terms in texts], np.uint32)
    known: dict[str, int] = {}
    hashes: list[int] = []
    counts: list[int] = []
    sizes: list[int] = []
    for terms in texts:
        counted = Counter(terms)
        sizes.append(len(counted))
        counts += counted.values()
        for term in counted:
            value = known.get(term)
            if value is None:
                value = known[term] = hash_of(term)
            hashes.append(value)
    all_hashes = np.array(hashes, np.int64)
    chunks = np.repeat(np.arange(len(texts), dtype=np.uint16), sizes)
    order = np.argsort(all_hashes, kind="stable")
    terms_, starts = np.unique(all_hashes[order], return_index=True)
    term_sizes = np.diff(np.append(starts, len(order)))
    pages = list(_pages_of(terms_, term_sizes, chunks[order], np.array(counts, np.uint32)[order]))
    return Segment(members=members, lengths=lengths, pages=pages)


# Merging: several segments become one, without their deleted chunks.

AT_ONCE_PAGES: Final = 32
"""How many pages of each segment are in memory at a time."""


@dataclass(frozen=True, kw_only=True)
class MergePart:
    """A segment to be merged. `read(n, m)` returns its pages n to m - 1."""

    members: Array
    lengths: NDArray[np.uint32]
    deleted: Bools
    """(chunks,)"""
    page_ends: Longs
    """(pages,): the last term of each page when it was written; it may have lost that since"""
    read: Callable[[int, int], Sequence[TermPage]]


def merge_members(parts: Sequence[MergePart]) -> tuple[Array, NDArray[np.uint32]]:
    """The members and the lengths of the merged segment."""
    members = np.concatenate([part.members for part in parts])
    starts = [np.cumsum(part.members["chunks"]) - part.members["chunks"] for part in parts]
    is_deleted = np.concatenate(
        [part.deleted[start] for part, start in zip(parts, starts, strict=True)]
    )
    lengths = np.concatenate([part.lengths[~part.deleted] for part in parts])
    return members[~is_deleted], lengths


def merge(parts: Sequence[MergePart]) -> Iterator[TermPage]:
    """The pages of the merged segment. Either all chunks of a version are deleted, or none."""
    readers = []
    base = 0
    for part in parts:
        numbers = np.cumsum(~part.deleted) - 1 + base
        base += int((~part.deleted).sum())
        readers.append(_PartReader(part, numbers))
    if base > SEGMENT_CHUNKS:
        raise ValueError(f"{base:,} chunks do not go into one segment")
    rest: list[tuple[Longs, Longs, Array, Array]] = []
    while full := [reader for reader in readers if reader.fill()]:
        upto = min(reader.last for reader in full)
        slices = [reader.take(upto) for reader in full]
        rest.append(_merged([part for part in slices if len(part[0])]))
        if sum(12 * len(terms) + 3 * len(chunks) for terms, _, chunks, _ in rest) > PAGE_BYTES:
            *whole, last = _pages_of(*_concatenated(rest))
            yield from whole
            sizes = np.diff(last.ends, prepend=np.uint32(0)).astype(np.int64)
            rest = [(last.terms, sizes, last.chunks, last.counts)]
    if rest:
        yield from _pages_of(*_concatenated(rest))


class _PartReader:
    """Reads the pages of a segment that is merged, some at a time, and renumbers its chunks."""

    def __init__(self, part: MergePart, numbers: Array) -> None:
        self._part = part
        self._numbers = numbers
        self._next = 0
        self._terms: Longs = np.empty(0, np.int64)
        self._sizes: Longs = np.empty(0, np.int64)
        self._chunks: Array = np.empty(0, np.int64)
        self._counts: Array = np.empty(0, np.uint32)

    @property
    def has_terms(self) -> bool:
        return len(self._terms) > 0

    @property
    def last(self) -> int:
        """The last term that was read."""
        return int(self._terms[-1])

    def fill(self) -> bool:
        """Read the next pages if nothing is left. Returns False at the end."""
        while not self.has_terms and self._next < len(self._part.page_ends):
            end = min(self._next + AT_ONCE_PAGES, len(self._part.page_ends))
            pages = [self._live(page) for page in self._part.read(self._next, end)]
            self._next = end
            if pages:
                self._terms, self._sizes, self._chunks, self._counts = _concatenated(pages)
        return self.has_terms

    def _live(self, page: TermPage) -> tuple[Longs, Longs, Array, Array]:
        page = page.without(self._part.deleted) or page
        sizes = np.diff(page.ends, prepend=np.uint32(0)).astype(np.int64)
        return page.terms, sizes, self._numbers[page.chunks], page.counts

    def take(self, upto: int) -> tuple[Longs, Longs, Array, Array]:
        """Remove and return the terms up to `upto`: terms, sizes, chunks, counts."""
        n = int(np.searchsorted(self._terms, upto, "right"))
        postings = int(self._sizes[:n].sum())
        taken = self._terms[:n], self._sizes[:n], self._chunks[:postings], self._counts[:postings]
        self._terms, self._sizes = self._terms[n:], self._sizes[n:]
        self._chunks, self._counts = self._chunks[postings:], self._counts[postings:]
        return taken


def _concatenated(
    parts: Sequence[tuple[Longs, Longs, Array, Array]],
) -> tuple[Longs, Longs, Array, Array]:
    terms, sizes, chunks, counts = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return terms, sizes, chunks, counts


def _merged(
    parts: Sequence[tuple[Longs, Longs, Array, Array]],
) -> tuple[Longs, Longs, Array, Array]:
    """The terms of several parts in one ascending list, each with its postings in ascending
    order."""
    if len(parts) == 1:
        return parts[0]
    terms, places = np.unique(np.concatenate([part[0] for part in parts]), return_inverse=True)
    sizes = np.zeros(len(terms), np.int64)
    np.add.at(sizes, places, np.concatenate([part[1] for part in parts]))
    cursor = np.cumsum(sizes) - sizes
    total = int(sizes.sum())
    chunks = np.empty(total, np.uint16)
    counts = np.empty(total, np.uint32)
    first = 0
    for part_terms, part_sizes, part_chunks, part_counts in parts:
        at = places[first : first + len(part_terms)]
        first += len(part_terms)
        begins = np.cumsum(part_sizes) - part_sizes
        target = np.repeat(cursor[at] - begins, part_sizes) + np.arange(len(part_chunks))
        chunks[target] = part_chunks
        counts[target] = part_counts
        cursor[at] += part_sizes
    return terms, sizes, chunks, counts


def deleted_chunks(members: Array, versions: Iterable[UUID]) -> Bools:
    """(chunks,): whether each chunk belongs to one of the versions."""
    keys = np.array([version.bytes for version in versions], "S16")
    is_deleted = np.isin(members["key"].astype("S16"), keys)
    return np.repeat(is_deleted, members["chunks"])

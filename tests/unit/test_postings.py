"""Packed postings: built, merged and purged as plain dictionaries say."""

from collections import Counter
from itertools import count
from random import Random
from uuid import UUID

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.tables import new_id
from workers.retrieval import postings
from workers.retrieval.postings import (
    ChunkSpan,
    MergePart,
    Segment,
    TermPage,
    build,
    chunk_of,
    hash_of,
)

WORDS = [f"w{n}" for n in range(40)]
Plain = dict[int, dict[tuple[UUID, int], int]]
"""Term -> chunk -> how often."""


def plain(spans: list[ChunkSpan]) -> Plain:
    stands: Plain = {}
    for span in spans:
        for ordinal, terms in zip(count(span.first), span.terms, strict=False):
            for term, times in Counter(terms).items():
                stands.setdefault(hash_of(term), {})[span.version_id, ordinal] = times
    return stands


def unpacked(members: np.ndarray, pages: list[TermPage]) -> Plain:
    chunks = [
        (version_id, ordinal)
        for member in members
        for version_id, first in [chunk_of(member["key"])]
        for ordinal in range(first, first + int(member["chunks"]))
    ]
    stands: Plain = {}
    for page in pages:
        first = 0
        for term, end in zip(page.terms.tolist(), page.ends.tolist(), strict=True):
            own = page.chunks[first:end].tolist()
            assert own == sorted(set(own))
            assert term not in stands
            stands[term] = dict(
                zip([chunks[n] for n in own], page.counts[first:end].tolist(), strict=True)
            )
            first = end
        assert page.terms.tolist() == sorted(page.terms.tolist())
    assert list(stands) == sorted(stands)
    return stands


def part(segment: Segment, deleted: list[UUID]) -> MergePart:
    packed = [page.packed() for page in segment.pages]
    return MergePart(
        members=segment.members,
        lengths=segment.lengths,
        deleted=postings.deleted_chunks(segment.members, deleted),
        page_ends=np.array([page.terms[-1] for page in segment.pages], np.int64),
        read=lambda first, end: [TermPage.read(data) for data in packed[first:end]],
    )


texts = st.lists(st.sampled_from(WORDS), max_size=60)
spans = st.builds(
    lambda first, terms: ChunkSpan(version_id=new_id(), first=first, terms=terms),
    st.integers(0, 1000),
    st.lists(texts, min_size=1, max_size=5),
)


@pytest.fixture(autouse=True)
def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postings, "PAGE_BYTES", 100)
    monkeypatch.setattr(postings, "AT_ONCE_PAGES", 2)


@settings(max_examples=40)
@given(st.lists(st.tuples(st.lists(spans, min_size=1, max_size=4), st.booleans()), min_size=1))
def test_merged_segments_have_what_is_live_of_each(
    drawn: list[tuple[list[ChunkSpan], bool]],
) -> None:
    parts, live, lengths = [], [], []
    for own, has_deleted in drawn:
        deleted = [own[0].version_id] if has_deleted else []
        left = [span for span in own if span.version_id not in deleted]
        parts.append(part(build(own), deleted))
        live += left
        lengths += [len(terms) for span in left for terms in span.terms]
    members, merged_lengths = postings.merge_members(parts)
    pages = [TermPage.read(page.packed()) for page in postings.merge(parts)]
    assert unpacked(members, pages) == plain(live)
    assert merged_lengths.tolist() == lengths


@given(st.lists(spans, min_size=1, max_size=6))
def test_a_page_without_deleted_chunks_has_neither_their_chunks_nor_their_terms(
    own: list[ChunkSpan],
) -> None:
    segment = build(own)
    assert unpacked(segment.members, list(segment.pages)) == plain(own)
    deleted = postings.deleted_chunks(segment.members, [own[0].version_id])
    pages = [page.without(deleted) or page for page in segment.pages]
    assert all(page.without(deleted) is None for page in pages)
    assert unpacked(segment.members, pages) == plain(own[1:])


@pytest.mark.parametrize("times", [1, 255, 256, 65_535, 65_536])
def test_counts_of_any_size_survive(times: int) -> None:
    segment = build([ChunkSpan(version_id=new_id(), first=0, terms=[["a"] * times, ["b"]])])
    pages = [TermPage.read(page.packed()) for page in segment.pages]
    assert sorted(n for page in pages for n in page.counts.tolist()) == [1, times]


def test_a_page_of_another_format_is_refused() -> None:
    with pytest.raises(ValueError, match="format 7"):
        TermPage.read(b"\x07\0\x01\0\0\0\0\0")


def test_a_segment_has_no_more_chunks_than_a_number_can_tell() -> None:
    random = Random(1)
    half = postings.SEGMENT_CHUNKS // 2 + 1
    parts = [
        part(
            build([ChunkSpan(version_id=new_id(), first=0, terms=[[random.choice(WORDS)]] * half)]),
            [],
        )
        for _ in range(2)
    ]
    with pytest.raises(ValueError, match="one segment"):
        list(postings.merge(parts))


def test_keys_sort_as_versions_and_ordinals_and_come_back() -> None:
    version = UUID(bytes=b"\x01" * 15 + b"\0")
    keys = np.array([postings.key_of(version, n) for n in (0, 1, 256, 2**31 - 1)], "S20")
    assert sorted(keys.tolist()) == keys.tolist()
    assert [chunk_of(key) for key in keys] == [(version, n) for n in (0, 1, 256, 2**31 - 1)]

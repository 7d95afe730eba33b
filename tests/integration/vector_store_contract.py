"""What any vector store has to do: a class of tests for each implementation to inherit."""

from collections.abc import Iterator
from typing import Any, ClassVar
from uuid import uuid4

import numpy as np
import pytest

from shared.bounds import Metadata
from shared.filters import MetadataFilter
from workers.models.devices import Vectors
from workers.retrieval.store import MissingCollection, VectorEntry, VectorStore


def entry(id_: str, metadata: Metadata | None = None) -> VectorEntry:
    own: Metadata = {"source": "file", "document_id": "d", "start_index": 0}
    return VectorEntry(id=id_, text=f"text of {id_}", metadata=metadata or {}, own=own)


def reads(where: Metadata) -> MetadataFilter | None:
    return MetadataFilter.read(where) if where else None


def along(*axes: int) -> Vectors:
    """Unit vectors along axes of three dimensions."""
    return np.eye(3, dtype=np.float32)[list(axes)]


def between(share: float) -> Vectors:
    """A unit vector whose cosine with the first axis is `share`."""
    return np.array([share, (1 - share**2) ** 0.5, 0], dtype=np.float32)


class VectorStoreContract:
    """Subclasses have a fixture `store`, of the class `store_class`."""

    store_class: ClassVar[type[VectorStore]]

    @pytest.fixture
    def name(self, store: VectorStore) -> Iterator[str]:
        name = f"test-{uuid4().hex[:12]}"
        store.make(name, "cosine")
        yield name
        store.drop(name)

    def ids(self, store: VectorStore, name: str, **where: Any) -> list[str]:
        (matches,) = store.query(name, along(0), limit=9, where=reads(where))
        return [match.id for match in matches]

    def test_it_has_all_that_a_store_has(self, store: VectorStore) -> None:
        assert isinstance(store, VectorStore)

    @pytest.mark.parametrize("distance", ["cosine", "ip", "l2"])
    def test_the_nearest_come_first_with_their_cosine(
        self, store: VectorStore, distance: str
    ) -> None:
        name = f"test-{uuid4().hex[:12]}"
        store.make(name, distance)
        vectors = np.stack([between(0.5), between(0.9), between(-0.3)])
        store.upsert(name, [entry("half"), entry("near"), entry("far")], vectors)
        matches, opposite = store.query(
            name, np.stack([along(0)[0], -along(0)[0]]), limit=2, where=None
        )
        assert [match.id for match in matches] == ["near", "half"]
        assert [match.score for match in matches] == pytest.approx([0.9, 0.5], abs=1e-3)
        assert [match.id for match in opposite] == ["far", "half"]
        store.drop(name)

    def test_making_it_again_keeps_what_is_in_it(self, store: VectorStore, name: str) -> None:
        store.upsert(name, [entry("a")], along(0))
        store.make(name, "cosine")
        assert self.ids(store, name) == ["a"]

    @pytest.mark.parametrize("name", ["가", "고객 지원", "a..b", "127.0.0.1", "日" * 128])
    def test_a_collection_may_be_called_in_any_script(self, store: VectorStore, name: str) -> None:
        store.drop(name)
        store.make(name, "cosine")
        store.upsert(name, [entry("a")], along(0))
        assert self.ids(store, name) == ["a"]
        assert store.id_page(name, limit=9, offset=0) == ["a"]
        assert store.delete(name, ["a"]) == 1
        assert store.drop(name) == 0
        with pytest.raises(MissingCollection):
            self.ids(store, name)

    def test_writing_twice_is_writing_once_and_the_last_counts(
        self, store: VectorStore, name: str
    ) -> None:
        store.upsert(name, [entry("a", {"n": 1})], along(1))
        store.upsert(name, [entry("a", {"n": 2})], along(0))
        ((match,),) = store.query(name, along(0), limit=9, where=reads({"n": 2}))
        assert match.score == pytest.approx(1, abs=1e-3)
        assert self.ids(store, name, n=1) == []

    def test_any_number_is_written_listed_and_deleted(self, store: VectorStore, name: str) -> None:
        ids = [f"id-{n}" for n in range(1201)]
        store.upsert(name, [entry(id_) for id_ in ids], along(*(n % 3 for n in range(1201))))
        pages = [store.id_page(name, limit=500, offset=offset) for offset in (0, 500, 1000, 1201)]
        assert [len(page) for page in pages] == [500, 500, 201, 0]
        assert sorted(id_ for page in pages for id_ in page) == sorted(ids)
        assert store.delete(name, [*ids[1:], "never"]) == 1200
        assert store.delete(name, ids[1:]) == 0
        assert store.id_page(name, limit=9, offset=0) == ids[:1]

    def test_vectors_are_given_back(self, store: VectorStore, name: str) -> None:
        written = np.stack([between(n / 1201) for n in range(1201)])
        store.upsert(name, [entry(f"id-{n}") for n in range(1201)], written)
        read = store.vectors(name, ["never", *(f"id-{n}" for n in range(1201))])
        assert len(read) == 1201
        for n in (0, 600, 1200):
            assert read[f"id-{n}"] == pytest.approx(written[n], abs=1e-3)

    @pytest.mark.parametrize(
        ("where", "ids"),
        [
            ({"year": 2024}, ["a"]),
            ({"year": 2024.0}, ["a"]),
            ({"year": 2024.5}, []),
            ({"share": 0.5}, ["b"]),
            ({"share": 0}, []),
            ({"is_new": True}, ["a"]),
            ({"city": "caf\u00e9"}, ["b"]),
            ({"year": 2024, "is_new": True}, ["a"]),
            ({"year": 2024, "city": "caf\u00e9"}, []),
            ({"none": 1}, []),
            ({"source": "file"}, ["a"]),
            ({"source": "mine"}, ["b"]),
            ({"$odd": "x"}, ["b"]),
            ({"tags": {"$contains": "new"}}, ["a"]),
            ({"counts": {"$contains": 2}}, ["b"]),
            ({"tags": "new"}, []),
            ({"year": {"$ne": 2024}}, ["b"]),
            ({"tags": {"$not": {"$contains": "new"}}}, ["b"]),
            ({"$or": [{"year": {"$gt": 2023}}, {"share": {"$lte": 0.5}}]}, ["a", "b"]),
            ({"share": {"$gt": 0.25}}, ["b"]),
            ({"source": {"$nin": ["file"]}}, ["b"]),
            ({"city": {"$in": []}}, []),
            ({"city": {"$nin": []}}, ["a", "b"]),
        ],
        ids=str,
    )
    def test_filters(self, store: VectorStore, name: str, where: Metadata, ids: list[str]) -> None:
        tags = {"tags": ["old", "new"], "none": []}
        first = entry("a", {"year": 2024, "is_new": True, **tags})
        odd = {"source": "mine", "$odd": "x", "counts": [1.5, 2]}
        second = entry("b", {"share": 0.5, "city": "caf\u00e9", **odd})
        store.upsert(name, [first, second], along(0, 0))
        assert self.ids(store, name, **where) == ids

    @pytest.mark.parametrize(
        ("where", "ids"),
        [
            ({"day": {"$gte": "2024-02"}}, ["b"]),
            ({"$not": {"n": {"$lt": 5}}}, ["b", "c"]),
            ({"n": 2**53 + 1}, []),
            ({"day": {"$gte": "2024-02"}, "n": {"$gte": 0}}, ["b"]),
        ],
        ids=str,
    )
    def test_what_it_cannot_say_leaves_nothing_out(
        self, store: VectorStore, name: str, where: Metadata, ids: list[str]
    ) -> None:
        chunks = [
            entry("a", {"day": "2024-01-31", "n": 4}),
            entry("b", {"day": "2024-02-01", "n": 5}),
            entry("c", {"n": "4"}),
        ]
        store.upsert(name, chunks, along(0, 0, 0))
        filter_ = reads(where)
        assert filter_ is not None
        (row,) = store.query(name, along(0), limit=9, where=filter_)
        matches = {match.id for match in row}
        assert matches >= set(ids)
        if store.is_exact(filter_):
            assert matches == set(ids)

    def test_some_chunks_are_searched_alone(self, store: VectorStore, name: str) -> None:
        store.upsert(name, [entry("a", {"n": 1}), entry("b"), entry("c")], along(0, 1, 0))

        def among(*ids: str, **where: Any) -> list[str]:
            (matches,) = store.query(name, along(0), limit=9, where=reads(where), ids=ids)
            return [match.id for match in matches]

        assert among("b", "c") == ["c", "b"]
        assert among("b", "c", "never") == ["c", "b"]
        assert among("a", "b", n=1) == ["a"]
        assert among() == []
        assert among("never") == []

    def test_a_collection_that_is_not_there(self, store: VectorStore) -> None:
        name = f"test-{uuid4().hex[:12]}"
        with pytest.raises(MissingCollection):
            store.upsert(name, [entry("a")], along(0))
        with pytest.raises(MissingCollection):
            store.query(name, along(0), limit=1, where=None)
        with pytest.raises(MissingCollection):
            store.vectors(name, ["a"])
        assert store.delete(name, ["a"]) == 0
        assert store.id_page(name, limit=1, offset=0) == []
        assert store.drop(name) == 0

    def test_a_dropped_collection_is_gone_and_may_be_made_again(
        self, store: VectorStore, name: str
    ) -> None:
        store.upsert(name, [entry("a"), entry("b")], along(0, 1))
        assert store.drop(name) == 2
        assert store.id_page(name, limit=1, offset=0) == []
        store.make(name, "cosine")
        assert self.ids(store, name) == []

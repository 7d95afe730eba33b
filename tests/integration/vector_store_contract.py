"""What any vector store has to do: a class of tests for each implementation to inherit."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
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


RECALL = 0.99


def random_vectors(count: int, dimension: int, *, seed: int = 0) -> Vectors:
    """Unit vectors."""
    shape = (count, dimension)
    vectors: Vectors = np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors


class SmallStoreContract:
    """What a store does with a few chunks. Subclasses have a fixture `store`."""

    has_texts: ClassVar[bool] = True

    @pytest.fixture
    def name(self, store: VectorStore) -> Iterator[str]:
        name = f"test-{uuid4().hex[:12]}"
        store.make(name, "cosine")
        yield name
        store.drop(name)

    def ids(self, store: VectorStore, name: str, **where: Any) -> list[str]:
        (matches,) = store.query(name, along(0), limit=9, where=reads(where))
        return [match.id for match in matches]

    def test_the_nearest_come_first_with_their_cosine(self, store: VectorStore) -> None:
        assert isinstance(store, VectorStore)
        vectors = np.stack([between(0.5), between(0.9), between(-0.3)])
        for distance in ("cosine", "ip", "l2"):
            name = f"test-{uuid4().hex[:12]}"
            store.make(name, distance)
            store.upsert(name, [entry("half"), entry("near"), entry("far")], vectors)
            matches, opposite = store.query(
                name, np.stack([along(0)[0], -along(0)[0]]), limit=2, where=None
            )
            assert [match.id for match in matches] == ["near", "half"], distance
            scores = [match.score for match in matches]
            assert scores == pytest.approx([0.9, 0.5], abs=1e-3), distance
            assert [match.id for match in opposite] == ["far", "half"], distance
            many = np.concatenate([np.repeat(along(0), 250, axis=0), -along(0)])
            rows = store.query(name, many, limit=1, where=None, ids=["far", "near", "never"])
            assert [match.id for (match,) in rows] == [*["near"] * 250, "far"], distance
            store.drop(name)

    def test_a_collection_may_be_called_in_any_script(self, store: VectorStore) -> None:
        for name in ("가", "고객 지원", "a..b", "127.0.0.1", "日" * 128):
            store.drop(name)
            store.make(name, "cosine")
            store.upsert(name, [entry("a")], along(0))
            assert self.ids(store, name) == ["a"], name
            assert store.id_page(name, limit=9, offset=0) == ["a"], name
            assert store.delete(name, ["a"]) == 1, name
            assert store.drop(name) == 0, name
            with pytest.raises(MissingCollection):
                self.ids(store, name)

    def test_writing_or_making_twice_is_once_and_the_last_counts(
        self, store: VectorStore, name: str
    ) -> None:
        store.upsert(name, [entry("a", {"n": 1})], along(1))
        store.make(name, "cosine")
        assert self.ids(store, name) == ["a"]
        store.upsert(name, [entry("a", {"n": 3}), entry("a", {"n": 2})], along(1, 0))
        ((match,),) = store.query(name, along(0), limit=9, where=reads({"n": 2}))
        assert match.score == pytest.approx(1, abs=1e-3)
        assert self.ids(store, name, n=1) == self.ids(store, name, n=3) == []
        store.upsert(name, [], along())
        assert store.vectors(name, []) == {}
        assert store.delete(name, []) == 0

    def test_it_tells_whose_text_and_metadata_are_not_as_they_were_written(
        self, store: VectorStore, name: str
    ) -> None:
        rich: Metadata = {
            "year": 2024, "share": 0.1 + 0.2, "large": 1e22, "is_new": True, "source": "mine",
            "city": "cafe\u0301", "tags": ["old", "new"], "counts": [1.5, 2], "none": [],
            "$odd": '"x\\',
        }  # fmt: skip
        chunks = [entry("plain"), entry("rich", rich), entry("other", {"n": 1}), entry("never")]
        store.upsert(name, chunks[:3], along(0, 1, 2))
        assert store.compare(name, chunks) == {"plain": True, "rich": True, "other": True}
        other_order = dict(reversed(rich.items())) | {"share": 0.30000000000000004}
        assert store.compare(name, [entry("rich", other_order)]) == {"rich": True}
        changed = [
            entry("plain", {"n": 1}),
            entry("rich", rich | {"year": 2025}),
            replace(chunks[2], own={**chunks[2].own, "source": "another"}),
        ]
        assert store.compare(name, changed) == {"plain": False, "rich": False, "other": False}
        assert store.compare(name, [entry("other")]) == {"other": False}  # it has a key more
        if self.has_texts:
            texts = [replace(chunk, text="another text") for chunk in chunks]
            assert not any(store.compare(name, texts).values())
        with pytest.raises(MissingCollection):
            store.compare(f"{name}-2", chunks)

    def test_filters(self, store: VectorStore, name: str) -> None:
        tags = {"tags": ["old", "new"], "none": []}
        first = entry("a", {"year": 2024, "is_new": True, **tags})
        odd = {"source": "mine", "$odd": "x", "counts": [1.5, 2]}
        second = entry("b", {"share": 0.5, "city": "caf\u00e9", **odd})
        store.upsert(name, [first, second], along(0, 0))
        cases: list[tuple[Metadata, list[str]]] = [
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
        ]
        for where, ids in cases:
            assert sorted(self.ids(store, name, **where)) == ids, where

    def test_what_it_cannot_say_leaves_nothing_out(self, store: VectorStore, name: str) -> None:
        chunks = [
            entry("a", {"day": "2024-01-31", "n": 4}),
            entry("b", {"day": "2024-02-01", "n": 5}),
            entry("c", {"n": "4"}),
        ]
        store.upsert(name, chunks, along(0, 0, 0))
        cases: list[tuple[Metadata, set[str]]] = [
            ({"day": {"$gte": "2024-02"}}, {"b"}),
            ({"$not": {"n": {"$lt": 5}}}, {"b", "c"}),
            ({"n": 2**53 + 1}, set()),
            ({"day": {"$gte": "2024-02"}, "n": {"$gte": 0}}, {"b"}),
        ]
        for where, ids in cases:
            matches = set(self.ids(store, name, **where))
            assert matches >= ids, where
            if store.is_exact(MetadataFilter.read(where)):
                assert matches == ids, where

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
            store.query(name, along(0), limit=1, where=None, ids=[])
        with pytest.raises(MissingCollection):
            store.query(name, along(0), limit=1, where=reads({"n": {"$in": []}}))
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


class VectorStoreContract(SmallStoreContract):
    """All that a store has to do. Subclasses have a fixture `store`, of the class `store_class`.
    One whose store has a server or a folder has `restart` as well, and `own_store` where `store` is
    on the session's server."""

    store_class: ClassVar[type[VectorStore]]
    is_approximate: ClassVar[bool] = False
    """Whether its index may miss what is near. It then has to find it among as many vectors as the
    index needs to be used, of as many dimensions as the default embedding model has."""

    @property
    def dimension(self) -> int:
        return 384 if self.is_approximate else 32

    def test_any_number_is_written_read_listed_and_deleted(
        self, store: VectorStore, name: str
    ) -> None:
        ids = [f"id-{n}" for n in range(1001)]
        written = np.stack([between(n / 1001) for n in range(1001)])
        store.upsert(name, [entry(id_) for id_ in ids], written)
        pages = [store.id_page(name, limit=500, offset=offset) for offset in (0, 500, 1000, 1001)]
        assert [len(page) for page in pages] == [500, 500, 1, 0]
        assert sorted(id_ for page in pages for id_ in page) == sorted(ids)
        read = store.vectors(name, ["never", *ids])
        assert len(read) == 1001
        np.testing.assert_allclose(np.stack([read[id_] for id_ in ids]), written, atol=1e-3)
        assert store.delete(name, [*ids[1:], "never"]) == 1000
        assert store.delete(name, ids[1:]) == 0
        assert store.id_page(name, limit=9, offset=0) == ids[:1]

    # Random vectors, whose seeds are fixed.

    def test_hits_are_those_of_exact_search(self, store: VectorStore, name: str) -> None:
        count = 2000 if self.is_approximate else 500
        vectors = random_vectors(count, self.dimension)
        queries = random_vectors(20, self.dimension, seed=1)
        store.upsert(name, [entry(f"id-{n}", {"part": n % 5}) for n in range(count)], vectors)
        assert self.recall(store, name, vectors, queries) >= RECALL
        assert self.recall(store, name, vectors, queries, part=3) >= RECALL

    def recall(
        self,
        store: VectorStore,
        name: str,
        vectors: Vectors,
        queries: Vectors,
        *,
        part: int | None = None,
    ) -> float:
        """The share of the ten best of each query by exact search that the store finds; of the
        chunks `id-n` with n % 5 == `part` alone. The scores have to be exact."""
        where = None if part is None else reads({"part": part})
        rows = store.query(name, queries, limit=10, where=where)
        found = 0
        for row, exact in zip(rows, queries @ vectors.T, strict=True):
            if part is not None:
                exact = np.where(np.arange(len(exact)) % 5 == part, exact, -2)
            numbers = [int(match.id.removeprefix("id-")) for match in row]
            assert len(set(numbers)) == 10
            assert [match.score for match in row] == pytest.approx(exact[numbers], abs=1e-3)
            assert all(np.diff([match.score for match in row]) <= 1e-6)
            found += len(set(numbers) & {int(n) for n in np.argsort(-exact)[:10]})
        return found / (10 * len(queries))

    def test_what_is_erased_is_found_by_nothing(self, store: VectorStore, name: str) -> None:
        vectors = random_vectors(300, self.dimension)
        ids = [f"id-{n}" for n in range(300)]
        store.upsert(name, [entry(id_, {"n": n}) for n, id_ in enumerate(ids)], vectors)
        erased, kept = ids[::2], set(ids[1::2])
        assert store.delete(name, erased) == 150
        assert store.vectors(name, erased) == {}
        assert set(store.id_page(name, limit=1000, offset=0)) == kept
        # Each of the erased is the nearest to its own vector.
        for row in store.query(name, vectors[::2][:20], limit=300, where=None):
            assert {match.id for match in row} <= kept
        (row,) = store.query(name, vectors[:1], limit=9, where=reads({"n": 0}))
        assert row == []
        (row,) = store.query(name, vectors[:1], limit=9, where=None, ids=erased)
        assert row == []

    def test_what_is_replaced_has_nothing_of_what_was_before(
        self, store: VectorStore, name: str
    ) -> None:
        ids = [f"id-{n}" for n in range(200)]
        old = random_vectors(200, self.dimension)
        new = random_vectors(200, self.dimension, seed=1)
        store.upsert(name, [entry(id_, {"of": "old", "old": 1, "tags": ["x"]}) for id_ in ids], old)
        store.upsert(name, [entry(id_, {"of": "new"}) for id_ in ids[:100]], new[:100])
        store.upsert(name, [entry(id_, {"of": "new"}) for id_ in ids[100:]], new[100:])
        assert len(store.id_page(name, limit=1000, offset=0)) == 200
        wheres: list[Metadata] = [{"of": "old"}, {"old": 1}, {"tags": {"$contains": "x"}}]
        for where in wheres:
            assert store.query(name, old[:3], limit=9, where=reads(where)) == [[], [], []]
        rows = store.query(name, new[:20], limit=1, where=reads({"of": "new"}))
        assert [row[0].id for row in rows] == ids[:20]
        assert [row[0].score for row in rows] == pytest.approx([1] * 20, abs=1e-3)
        for n, row in enumerate(store.query(name, old[:20], limit=1, where=None)):
            assert row[0].score < 0.9, f"the vector that id-{n} had is still there"
        stored = store.vectors(name, ids)
        np.testing.assert_allclose(np.stack([stored[id_] for id_ in ids]), new, atol=1e-3)

    def restart(self, store: VectorStore) -> VectorStore | None:
        """End the server of a store and start it again on the same data, or close a folder and open
        it again: the store from then on. None where there is neither server nor folder."""
        del store
        return None

    @pytest.fixture
    def own_store(self, store: VectorStore) -> VectorStore:
        """A store that `restart` may restart: no other test uses its server."""
        return store

    def test_a_restart_loses_nothing(self, request: pytest.FixtureRequest) -> None:
        if type(self).restart is VectorStoreContract.restart:
            pytest.skip("has neither a server nor a folder of its own")
        own_store: VectorStore = request.getfixturevalue("own_store")
        name = f"test-{uuid4().hex[:12]}"
        # Chroma has written its index to the disk by then (issue 7090 lost it).
        count = 5000 if self.is_approximate else 300
        vectors, queries = random_vectors(count, 32), random_vectors(20, 32, seed=1)
        own_store.make(name, "cosine")
        chunks = [entry(f"id-{n}", {"part": n % 5}) for n in range(count)]
        own_store.upsert(name, chunks, vectors)
        own_store.delete(name, [f"id-{count - 1}"])
        store = self.restart(own_store)
        assert store is not None
        vectors[-1] = -queries[0]  # which no query is near to
        assert len(store.id_page(name, limit=9999, offset=0)) == count - 1
        assert self.recall(store, name, vectors, queries) >= RECALL
        assert self.recall(store, name, vectors, queries, part=2) >= RECALL
        assert len(store.vectors(name, [f"id-{n}" for n in range(count)])) == count - 1
        assert store.delete(name, ["id-0"]) == 1
        store.upsert(name, [entry("new")], queries[:1])
        assert store.query(name, queries[:1], limit=1, where=None)[0][0].id == "new"
        assert store.drop(name) == count - 1

    def test_many_read_while_one_writes(self, store: VectorStore, name: str) -> None:
        """16 readers, each of whom reads in all ways beside each of the writes."""
        vectors = random_vectors(300, self.dimension)
        chunks = [entry(f"id-{n}", {"part": n % 5}) for n in range(300)]
        store.upsert(name, chunks[:100], vectors[:100])
        ids = [chunk.id for chunk in chunks[:50]]

        def read(reader: int) -> None:
            own = vectors[reader : reader + 1]  # of the first fifty, which stay
            (row,) = store.query(name, own, limit=5, where=None)
            assert row[0].id == f"id-{reader}"
            assert row[0].score == pytest.approx(1, abs=1e-3)
            (row,) = store.query(name, own, limit=5, where=reads({"part": reader % 5}))
            assert all(int(match.id.removeprefix("id-")) % 5 == reader % 5 for match in row)
            (row,) = store.query(name, own, limit=5, where=None, ids=ids)
            assert {match.id for match in row} <= set(ids)
            assert list(store.vectors(name, [f"id-{reader}"])) == [f"id-{reader}"]

        with ThreadPoolExecutor(16) as pool:
            for first in range(100, 300, 50):
                readers = [pool.submit(read, reader) for reader in range(16)]
                store.upsert(name, chunks[first : first + 50], vectors[first : first + 50])
                gone = [chunk.id for chunk in chunks[first - 50 : first - 25]]
                assert store.delete(name, gone) == 25
                for reader in readers:
                    reader.result()
        assert len(store.id_page(name, limit=9999, offset=0)) == 300 - 4 * 25

"""The vector store Qdrant: its local mode, and a server with Qdrant's engine (tests/wire)."""

import json
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as settings_of_hypothesis
from hypothesis import strategies as st
from langchain_core.embeddings import Embeddings
from langchain_qdrant import QdrantVectorStore
from qdrant_client import QdrantClient, models

from shared.config import Settings
from shared.errors import ConfigurationError, Permanent, Unavailable
from shared.filters import MetadataFilter
from tests.integration.erasures import erase
from tests.integration.ingestion import (
    CATS,
    TRAINS,
    document_id,
    ingest,
    live_chunk_ids,
    new_collection,
    search,
    stores_agree,
    vector_ids,
)
from tests.integration.test_filter_meanings import LISTS, SINGLE, filters, is_storable, metadata
from tests.integration.vector_store_contract import VectorStoreContract, along, entry, reads
from tests.wire.behaviour import Behaviour, Wire
from tests.wire.qdrant_server import served_qdrant
from workers.attempts.process import Process
from workers.retrieval.servers import store_of
from workers.retrieval.store import MissingCollection, VectorStore
from workers.retrieval.stores import qdrant as qdrant_store
from workers.retrieval.stores.qdrant import CATALOG, Qdrant, stored_name

KEY = "a-key-that-nobody-sees"


def qdrant(url: str, **settings: Any) -> Qdrant:
    # Longer than the default, for machines that do much else: the server is a thread of the tests.
    return Qdrant(Settings(_env_file=None, **{"request_timeout_s": 300, **settings}), url)


def url_of(wire: Wire, password: str = "") -> str:
    return wire.url.replace("http://", f"qdrant://{password and f':{password}@'}")


@pytest.fixture(scope="module")
def server() -> Iterator[Wire]:
    with served_qdrant() as wire:
        yield wire


@pytest.fixture
def wire() -> Iterator[Wire]:
    """A server of this test alone, which may misbehave."""
    with served_qdrant(KEY) as wire:
        yield wire


class TestQdrantLocal(VectorStoreContract):
    store_class = Qdrant

    @pytest.fixture
    def store(self, tmp_path: Path) -> Iterator[VectorStore]:
        stores = [qdrant(f"qdrant://{tmp_path}/vectors")]
        self.stores, self.folder = stores, tmp_path
        yield stores[0]
        for store in stores:
            store.close()

    def restart(self, store: VectorStore) -> VectorStore:
        store.close()
        self.stores.append(qdrant(f"qdrant://{self.folder}/vectors"))
        return self.stores[-1]


class TestQdrantServer(VectorStoreContract):
    store_class = Qdrant

    @pytest.fixture
    def store(self, server: Wire) -> Iterator[VectorStore]:
        store = qdrant(url_of(server))
        yield store
        store.close()


# Filters


class Rows:
    """Chunks of one collection, and what each filter should match by `MetadataFilter.matches`."""

    def __init__(self, store: Qdrant) -> None:
        self.store, self.name = store, f"test-{uuid4().hex[:12]}"
        self.rows: list[dict[str, Any]] = []
        store.make(self.name, "cosine")

    def hold(self, rows: list[dict[str, Any]]) -> None:
        self.store.delete(self.name, [str(n) for n in range(len(self.rows))])
        self.rows = rows
        entries = [entry(str(n), row) for n, row in enumerate(rows)]
        self.store.upsert(self.name, entries, along(*(0 for _ in rows)))

    def check(self, filter_: dict[str, Any]) -> None:
        where = MetadataFilter.read(filter_)
        own = entry("x").own
        expected = {str(n) for n, row in enumerate(self.rows) if where.matches(row, own)}
        (matches,) = self.store.query(self.name, along(0), limit=1000, where=where)
        ids = {match.id for match in matches}
        assert ids >= expected, filter_
        if self.store.is_exact(where):
            assert ids == expected, filter_


@pytest.fixture(scope="module", params=["local", "server"])
def rows(
    request: pytest.FixtureRequest, server: Wire, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Rows]:
    """In a collection whose keys have payload indexes of several types, on the server."""
    is_local = request.param == "local"
    store = qdrant(f"qdrant://{tmp_path_factory.mktemp('q')}" if is_local else url_of(server))
    rows = Rows(store)
    rows.hold([{"k": 1, "a": "x", "b": True, "": 0.5, "a.b": "y"}])
    yield rows
    store.close()


def test_each_comparison_of_each_pair_of_values(rows: Rows) -> None:
    rows.hold([*({"k": value} for value in [*SINGLE, *LISTS]), {"other": 1}])
    for operand in SINGLE:
        for filter_ in ({"k": operand}, {"k": {"$contains": operand}}):
            rows.check(filter_)
            rows.check({"$not": filter_})
        if not isinstance(operand, bool):
            for sign in ("$gt", "$gte", "$lt", "$lte"):
                rows.check({"k": {sign: operand}})
    rows.check({"k": {"$in": SINGLE}})
    rows.check({"k": {"$nin": SINGLE[::2]}})


@given(held=st.lists(metadata, min_size=1, max_size=12), wheres=st.lists(filters, max_size=6))
@settings_of_hypothesis(max_examples=10, deadline=None)
def test_random_filters_mean_the_same(
    rows: Rows, held: list[dict[str, Any]], wheres: list[Any]
) -> None:
    rows.hold(held)
    for where in filter(is_storable, wheres):
        rows.check(where)


def test_keys_that_no_path_can_name(rows: Rows) -> None:
    odd = ['a"b', "a\\b", "a%22b", 'sluice:a"b', "sluice:a%22b", "a.b", "a[]", "a[0]", " ", "가"]
    rows.hold([*({key: 1} for key in odd), {"a": {"b": 1}}, {"a": [1]}])
    for key in odd:
        rows.check({key: 1})


def test_exact_are_all_comparisons_but_the_order_of_texts_and_of_huge_numbers(
    rows: Rows,
) -> None:
    def is_exact(**where: Any) -> bool:
        filter_ = reads(where)
        assert filter_ is not None
        return rows.store.is_exact(filter_)

    assert is_exact(a="x", b=True, c={"$gt": 1.5, "$lte": 7}, source={"$ne": "y"})
    assert is_exact(a={"$not": {"$contains": "x"}})
    assert is_exact(**{"$or": [{"a": {"$in": [1, "x", 0.5]}}, {"$not": {"b": {"$lt": 3}}}]})
    assert not is_exact(day={"$gte": "2024-02"})
    assert not is_exact(n=2**53)


def test_new_keys_get_a_payload_index_of_the_type_of_their_value(server: Wire) -> None:
    store, name = qdrant(url_of(server)), f"test-{uuid4().hex[:12]}"
    store.make(name, "cosine")
    store.upsert(
        name,
        [entry("a", {"n": 1, "is_new": True}), entry("b", {"a.b": ["x"], "สี": "x"})],
        along(0, 1),
    )
    store.upsert(name, [entry("c", {"n": "text", "new": 0.5, "สี": "y"})], along(1))
    made = {
        body["field_name"]: body["field_schema"]
        for body in server.bodies(f"/collections/{name}/index")
    }
    assert made == {
        "lists": "keyword",
        "metadata.source": "keyword",
        "metadata.document_id": "keyword",
        "metadata.start_index": "float",
        "metadata.n": "float",
        "metadata.is_new": "bool",
        'metadata."a.b"': "keyword",
        'metadata."สี"': "keyword",  # which Qdrant writes without the quotation marks
        "metadata.new": "float",
    }
    paths = [body["field_name"] for body in server.bodies(f"/collections/{name}/index")]
    assert len(paths) == len(set(paths))
    store.drop(name)
    store.close()


# Requests


def bodies(server: Wire, name: str, path: str) -> list[dict[str, Any]]:
    return server.bodies(f"/collections/{name}{path}")


def test_pages_in_a_row_do_not_begin_at_the_first_point(server: Wire) -> None:
    store, name = qdrant(url_of(server)), f"test-{uuid4().hex[:12]}"
    store.make(name, "cosine")
    store.upsert(name, [entry(f"id-{n}") for n in range(30)], along(*[0] * 30))
    ids = [id_ for offset in (0, 10, 20) for id_ in store.id_page(name, limit=10, offset=offset)]
    assert sorted(ids) == sorted(f"id-{n}" for n in range(30))
    assert len(bodies(server, name, "/points/scroll")) == 3
    assert bodies(server, name, "/points/query") == []
    for limit, offset in ((7, 23), (9, 5), (9, 5), (9, 14), (9, 30), (40, 0)):
        assert store.id_page(name, limit=limit, offset=offset) == ids[offset : offset + limit]
    # What another process deletes between two pages shifts none behind it.
    assert store.id_page(name, limit=10, offset=0) == ids[:10]
    other = qdrant(url_of(server))
    other.delete(name, ids[8:10])
    assert store.id_page(name, limit=10, offset=10) == ids[10:20]
    for one in (store, other):
        one.close()


def test_many_queries_with_large_filters_are_several_requests(
    server: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(qdrant_store, "BATCH_BYTES", 20_000)
    store, name = qdrant(url_of(server)), f"test-{uuid4().hex[:12]}"
    store.make(name, "cosine")
    store.upsert(name, [entry("a"), entry("b"), entry("c")], along(0, 1, 0))
    ids = ["a", "b", *(f"never-{n}" for n in range(150))]
    rows = store.query(name, along(*(n % 2 for n in range(9))), limit=1, where=None, ids=ids)
    assert [match.id for (match,) in rows] == ["ab"[n % 2] for n in range(9)]
    sizes = [len(json.dumps(body)) for body in bodies(server, name, "/points/query/batch")]
    assert len(sizes) > 1
    assert max(sizes) <= 20_000
    store.close()


# Other programs


class _Axis(Embeddings):
    def embed_query(self, text: str) -> list[float]:
        del text
        return [1.0, 0.0, 0.0]

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return [self.embed_query(text) for text in texts]


def test_langchain_opens_the_collection(tmp_path: Path) -> None:
    store = qdrant(f"qdrant://{tmp_path}")
    store.make("wiki", "l2")
    store.upsert("wiki", [entry("a", {"year": 2024}), entry("b")], along(0, 1))
    store.close()

    client = QdrantClient(path=str(tmp_path))
    opened = QdrantVectorStore(client=client, collection_name="wiki", embedding=_Axis())
    (document, score), _ = opened.similarity_search_with_score("anything", k=2)
    assert document.page_content == "text of a"
    assert document.metadata.items() >= {
        "source": "file", "document_id": "d", "start_index": 0, "year": 2024,
    }.items()  # fmt: skip
    assert score == pytest.approx(1, abs=1e-3)
    condition = models.FieldCondition(key="metadata.year", match=models.MatchValue(value=2024))
    (only,) = opened.similarity_search("anything", filter=models.Filter(must=[condition]))
    assert only.page_content == "text of a"
    client.close()


def test_a_name_that_qdrant_might_not_take_is_hashed() -> None:
    assert stored_name("Wiki_2.de-1") == "Wiki_2.de-1"
    assert stored_name("가").startswith("sluice-")
    assert len(stored_name("가")) == 71
    assert not stored_name(CATALOG).startswith("_")


def test_points_of_another_program_do_no_harm(server: Wire) -> None:
    store, name = qdrant(url_of(server)), f"test-{uuid4().hex[:12]}"
    store.make(name, "cosine")
    store.upsert(name, [entry("a")], along(0))
    client = QdrantClient(url=server.url, check_compatibility=False)
    other = str(uuid4())
    client.upsert(name, [models.PointStruct(id=other, vector=[0.0, 1.0, 0.0], payload={})])
    assert set(store.id_page(name, limit=9, offset=0)) == {"a", other}
    assert store.delete(name, [other]) == 0
    assert store.drop(name) == 2
    client.close()
    store.close()


def test_a_collection_that_was_lost_is_not_taken_for_an_empty_one(server: Wire) -> None:
    """As where it was deleted in Qdrant, or is not in the backup, while the catalog is there."""
    store, name = qdrant(url_of(server)), f"test-{uuid4().hex[:12]}"
    store.make(name, "cosine")
    store.upsert(name, [entry("a")], along(0))
    store.make(name, "cosine")
    assert list(store.vectors(name, ["a"])) == ["a"]
    client = QdrantClient(url=server.url, check_compatibility=False)
    client.delete_collection(name)
    client.close()
    calls: list[Callable[[], object]] = [
        lambda: store.query(name, along(0), limit=1, where=None),
        lambda: store.vectors(name, ["a"]),
        lambda: store.compare(name, [entry("a")]),
        lambda: store.upsert(name, [entry("b")], along(1)),
    ]
    for call in calls:
        with pytest.raises(MissingCollection, match="collections rebuild"):
            call()
    store.make(name, "cosine")
    assert store.vectors(name, ["a"]) == {}
    store.upsert(name, [entry("b")], along(1))
    assert store.drop(name) == 1
    store.close()


# Faults

CALLS: list[Callable[[Qdrant], object]] = [
    lambda store: store.make("documents", "cosine"),
    lambda store: store.upsert("documents", [entry("a")], along(0)),
    lambda store: store.query("documents", along(0), limit=1, where=None),
    lambda store: store.delete("documents", ["a"]),
    lambda store: store.id_page("documents", limit=10, offset=0),
    lambda store: store.drop("documents"),
]


def test_a_server_that_does_not_answer(wire: Wire) -> None:
    wire.behaviours["qdrant"] = Behaviour(hang=True)
    store = qdrant(url_of(wire, KEY), request_timeout_s=0.2)
    for call in CALLS:
        with pytest.raises(Unavailable, match="SLUICE_VECTORS_URL"):
            call(store)
    store.close()


def test_a_server_that_is_not_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    store = qdrant(f"qdrant://:{KEY}@127.0.0.1:{port}")
    with pytest.raises(Unavailable) as error:
        store.make("documents", "cosine")
    assert f"qdrant://127.0.0.1:{port}" in str(error.value)
    assert KEY not in str(error.value)
    store.close()


def test_what_a_server_refuses(wire: Wire) -> None:
    store = qdrant(url_of(wire, KEY))
    for status, kind in (
        (400, Permanent),
        (422, Permanent),
        (429, Unavailable),
        (503, Unavailable),
    ):
        wire.behaviours["qdrant"] = Behaviour(
            refuse_times=1, refuse_status=status, refuse_message="no space left"
        )
        with pytest.raises(kind, match="no space left"):
            store.id_page("documents", limit=1, offset=0)
    store.close()


def test_vectors_of_another_dimension_are_refused(server: Wire) -> None:
    store, name = qdrant(url_of(server)), f"test-{uuid4().hex[:12]}"
    store.make(name, "cosine")
    store.upsert(name, [entry("a")], along(0))
    with pytest.raises(Permanent, match=r"[Dd]imension"):
        store.upsert(name, [entry("b")], np.full((1, 4), 0.5, dtype=np.float32))
    store.drop(name)
    store.close()


def test_the_key_is_taken_from_the_url_or_the_setting_and_never_shown(wire: Wire) -> None:
    for store in (
        qdrant(url_of(wire, KEY)),
        qdrant(url_of(wire), qdrant_api_key=KEY),
        qdrant(url_of(wire, KEY), qdrant_api_key="another"),
    ):
        assert store.id_page("documents", limit=1, offset=0) == []
        store.close()
    wrong = qdrant(url_of(wire, "wrong-key"))
    with pytest.raises(Permanent, match="SLUICE_QDRANT_API_KEY") as error:
        wrong.make("documents", "cosine")
    assert "wrong-key" not in str(error.value)
    wrong.close()
    with pytest.raises(ConfigurationError, match="SLUICE_QDRANT_API_KEY") as refused:
        qdrant(url_of(wire), qdrant_api_key="키")
    assert "키" not in str(refused.value)


def test_a_folder_is_opened_once(tmp_path: Path) -> None:
    first, second = (qdrant(f"qdrant://{tmp_path}") for _ in range(2))
    first.make("documents", "cosine")
    with pytest.raises(Permanent, match="one process"):
        second.make("documents", "cosine")
    first.close()
    second.make("documents", "cosine")
    second.close()


# Jobs


@pytest.fixture
def process(process_with_store: Callable[[str], Process], tmp_path: Path) -> Process:
    return process_with_store(f"qdrant://{tmp_path}")


def test_documents_are_ingested_searched_replaced_and_erased(process: Process) -> None:
    collection = new_collection(process)
    assert ingest(process, collection, {"cats": CATS}, metadata={"team": "pets", "year": 2024})[
        0
    ] == {"added": 1}
    assert ingest(process, collection, {"trains": TRAINS}, metadata={"team": "rail"})[0] == {
        "added": 1
    }
    assert isinstance(store_of(process), Qdrant)
    stores_agree(process, collection)

    question = "When does a train leave?"
    assert search(process, collection, question, k=1)[0].source == "trains"
    for where, source in (
        ({"team": "pets"}, "cats"),
        ({"year": {"$gte": 2020.5}}, "cats"),
        ({"year": {"$ne": 2024}}, "trains"),
        ({"source": "trains"}, "trains"),
        ({"team": {"$gt": "q"}}, "trains"),
    ):
        hits = search(process, collection, question, search={"type": "similarity", "filter": where})
        assert {hit.source for hit in hits} == {source}, where

    assert ingest(process, collection, {"cats": TRAINS})[0] == {"replaced": 1}
    assert vector_ids(process, collection) == live_chunk_ids(process, collection)
    erase(process, document_ids=[str(document_id(process, collection, "cats"))])
    stores_agree(process, collection)
    erase(process, collection=collection)
    assert store_of(process).drop(collection) == 0
